"""Digests of the state by buckets: equal on voters that applied the same entries of the log.

A bucket's digest is the sum of the hashes of its entries, so that a change costs two hashes,
whatever the size of the state; and those only when the digest is asked for, once for each key
however often it changed. What does not go through `note` (a bit that turned over in memory, a
bug) a sum does not show. So a scrub walks through all keys, a few at a time, and adds up anew;
at the end of each walk both sums must be equal. After a start the sums are known only at the end
of the first walk.
"""

from __future__ import annotations

import hashlib
import zlib
from itertools import islice
from typing import Any, Final, Protocol

import msgspec
from sortedcontainers import SortedList

from swarmd.base.errors import Diverged
from swarmd.state.raft.messages import Entry

BUCKETS: Final = 64
# Keys that one step of the scrub adds up; more of them as long as nothing is known.
SCRUB_KEYS: Final = 128
FIRST_SCRUB_KEYS: Final = 768
_SUM_BYTES: Final = 8
_MODULUS: Final = 2 ** (8 * _SUM_BYTES)
_encode: Final = msgspec.msgpack.Encoder().encode

Sums = list[int]


class Summed(Protocol):
    """What is added up: entries by their keys, and what is small besides."""

    @property
    def keys(self) -> SortedList[bytes]: ...

    def get(self, key: bytes) -> Entry | None: ...

    def besides(self) -> tuple[Any, ...]: ...


class Digests:
    """Whoever changes an entry of `state` calls `note` first."""

    def __init__(self, state: Summed) -> None:
        self._state = state
        self._changed: dict[bytes, Entry | None] = {}
        self._sums: Sums | None = None
        self._walk: Sums = [0] * BUCKETS
        self._cursor = b""  # The walk has added up the keys up to here.

    def note(self, key: bytes, before: Entry | None) -> None:
        """`key` is about to change; `before` is its entry."""
        if key not in self._changed:
            self._changed[key] = before

    def take(self) -> bytes | None:
        """The digest of the state now, bucket by bucket; None while it is not known.

        Raises:
            Diverged: the state changed otherwise than by its log.
        """
        self._fold()
        self._scrub()
        if self._sums is None:
            return None
        sums = b"".join(s.to_bytes(_SUM_BYTES, "big") for s in self._sums)
        rest = _hash(_encode(self._state.besides()))
        return sums + rest.to_bytes(_SUM_BYTES, "big")

    def _fold(self) -> None:
        """Take what changed since into the sums."""
        changed, self._changed = self._changed, {}
        sums, walk, cursor = self._sums, self._walk, self._cursor
        for key, before in changed.items():
            now = self._state.get(key)
            delta = (_hash_of(now) - _hash_of(before)) % _MODULUS
            bucket = bucket_of(key)
            if sums is not None:
                sums[bucket] = (sums[bucket] + delta) % _MODULUS
            if key <= cursor:
                walk[bucket] = (walk[bucket] + delta) % _MODULUS

    def _scrub(self) -> None:
        count = FIRST_SCRUB_KEYS if self._sums is None else SCRUB_KEYS
        state, walk = self._state, self._walk
        keys = list(islice(state.keys.irange(self._cursor, None, (False, True)), count))
        for key in keys:
            bucket = bucket_of(key)
            walk[bucket] = (walk[bucket] + _hash_of(state.get(key))) % _MODULUS
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
    return zlib.crc32(key) % BUCKETS


def _hash_of(entry: Entry | None) -> int:
    return 0 if entry is None else _hash(_encode(entry))


def _hash(raw: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(raw, digest_size=_SUM_BYTES).digest(), "big")
