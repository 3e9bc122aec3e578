"""Digests of the state by buckets: equal on voters that applied the same entries of the log.

A bucket's digest is the sum of the checksums of its entries, so that a change costs two of
them, whatever the size of the state; and those only when the digest is asked for, once for each
key however often it changed. CRCs do: it is faults that are looked for, not forgers. What does
not go through `changed` (a bit that turned over in memory, a bug) a sum does not show. So a scrub
walks through all keys, a few at a time, and adds up anew; at the end of each walk both sums must
be equal. After a start the sums are known only at the end of the first walk.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, Final, Protocol
from zlib import crc32

import msgspec
from sortedcontainers import SortedList

from swarmd.base.errors import Diverged
from swarmd.state.raft.messages import Entry

BUCKETS: Final = 64
# Keys that one step of the scrub adds up; more of them as long as nothing is known.
SCRUB_KEYS: Final = 128
FIRST_SCRUB_KEYS: Final = 768
_SUM_BYTES: Final = 8
_encode: Final = msgspec.msgpack.Encoder().encode

Sums = list[int]


class Summed(Protocol):
    """What is added up: entries by their keys, and what is small besides."""

    @property
    def keys(self) -> SortedList[bytes]: ...

    @property
    def lookup(self) -> Callable[[bytes], Entry | None]:
        """Finds entries by their keys, until the state is replaced."""
        ...

    def besides(self) -> tuple[Any, ...]: ...


class Digests:
    """Whoever is the first to change an entry of `state` puts what it was into `changed`."""

    def __init__(self, state: Summed) -> None:
        self._state = state
        self.changed: dict[bytes, Entry | None] = {}
        self._sums: Sums | None = None
        self._walk: Sums = [0] * BUCKETS
        self._cursor = b""  # The walk has added up the keys up to here.

    def take(self) -> bytes | None:
        """The digest of the state now, bucket by bucket; None while it is not known.

        Raises:
            Diverged: the state changed otherwise than by its log.
        """
        self._fold()
        self._scrub()
        if self._sums is None:
            return None
        sums = [*self._sums, crc32(_encode(self._state.besides()))]
        return b"".join(s.to_bytes(_SUM_BYTES, "big") for s in sums)

    def _fold(self) -> None:
        """Take what changed since into the sums."""
        # Spelled out: every change of the state passes here, on every voter.
        changed, self.changed = self.changed, {}
        sums, walk, cursor, get = self._sums, self._walk, self._cursor, self._state.lookup
        for key, before in changed.items():
            now = get(key)
            delta = 0
            if now is not None:
                delta = crc32(_encode(now))
            if before is not None:
                delta -= crc32(_encode(before))
            bucket = crc32(key) % BUCKETS
            if sums is not None:
                sums[bucket] += delta
            if key <= cursor:
                walk[bucket] += delta

    def _scrub(self) -> None:
        count = FIRST_SCRUB_KEYS if self._sums is None else SCRUB_KEYS
        walk, get = self._walk, self._state.lookup
        keys = list(islice(self._state.keys.irange(self._cursor, None, (False, True)), count))
        for key in keys:
            walk[bucket_of(key)] += crc32(_encode(get(key)))
        if len(keys) == count:
            self._cursor = keys[-1]
            return
        if self._sums is None:
            self._sums = walk
        elif self._sums != walk:
            bucket = next(n for n in range(BUCKETS) if self._sums[n] != walk[n])
            raise Diverged(
                f"bucket {bucket} of the state in memory is not what the log made of it: this"
                " node's memory or its code is at fault; start it again"
            )
        self._walk, self._cursor = [0] * BUCKETS, b""


def first_difference(one: bytes, other: bytes) -> str:
    """What differs between two digests, for people."""
    at = next(n for n in range(len(one)) if n >= len(other) or one[n] != other[n])
    bucket = at // _SUM_BYTES
    return f"bucket {bucket} of the state" if bucket < BUCKETS else "the state beside its keys"


def bucket_of(key: bytes) -> int:
    return crc32(key) % BUCKETS
