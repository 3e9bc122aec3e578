"""Digests of the state by buckets: equal on voters that applied the same entries of the log.

Every entry carries a checksum of itself from the moment it is applied, and a bucket's digest is
the sum of the checksums of its entries. So a change costs one checksum, of bytes that were just
written, whatever the size of the state; what was there before need not be looked at again, which
would cost three times as much, since it is in no cache any more. CRCs do: it is faults that are
looked for, not forgers.

What does not go through the log (a bit that turned over in memory, a bug) a sum does not show. So
a scrub walks through all keys, a few with each digest. It holds every entry against its checksum,
and adds up anew: at the end of each walk both sums must be equal.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import islice
from typing import Any, Final, Protocol
from zlib import crc32

import msgspec
from sortedcontainers import SortedList

from swarmd.base.errors import Diverged
from swarmd.state.raft.messages import Entry

BUCKETS: Final = 64
# Keys that one step of the scrub looks at.
SCRUB_KEYS: Final = 128
# Mixes numbers into 32 bits; the largest prime there, so that none of their bits is lost.
MODULUS: Final = 4_294_967_291
_SUMS: Final = struct.Struct(f">{BUCKETS + 1}Q")
_SUM_BYTES: Final = 8
_SUM_MASK: Final = 2**64 - 1
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
    """The sums of `state`, which is told to have `sums`, and where the walk is.

    Whoever changes an entry calls `replaced`.
    """

    def __init__(self, state: Summed, sums: Sums) -> None:
        self._state = state
        self.sums = sums
        self.walk = sums_of_nothing()
        self.cursor = b""  # The walk has added up the keys up to here.

    def replaced(self, key: bytes, before: Entry | None, after: Entry | None) -> None:
        """`key` had one entry and has another; None: has none."""
        delta = (after.checksum if after else 0) - (before.checksum if before else 0)
        bucket = bucket_of(key)
        self.sums[bucket] += delta
        if key <= self.cursor:
            self.walk[bucket] += delta

    def take(self) -> bytes:
        """The digest of the state now, bucket by bucket.

        Raises:
            Diverged: the state changed otherwise than by its log.
        """
        self._scrub()
        # A damaged checksum may have made a sum negative: the walk is going to say so.
        sums = [one & _SUM_MASK for one in self.sums]
        return _SUMS.pack(*sums, crc32(_encode(self._state.besides())))

    def _scrub(self) -> None:
        walk, get = self.walk, self._state.lookup
        keys = list(islice(self._state.keys.irange(self.cursor, None, (False, True)), SCRUB_KEYS))
        for key in keys:
            entry, bucket = get(key), bucket_of(key)
            if entry is None or entry.checksum != checksum_of(entry):
                self._begin_walk()
                raise _spoilt(bucket)
            walk[bucket] += entry.checksum
        if len(keys) == SCRUB_KEYS:
            self.cursor = keys[-1]
            return
        self._begin_walk()
        if self.sums != walk:
            raise _spoilt(next(n for n in range(BUCKETS) if self.sums[n] != walk[n]))

    def _begin_walk(self) -> None:
        self.walk, self.cursor = sums_of_nothing(), b""


def sums_of_nothing() -> Sums:
    return [0] * BUCKETS


def bucket_of(key: bytes) -> int:
    return crc32(key) % BUCKETS


def checksum_of(entry: Entry) -> int:
    """The checksum that a sound entry carries."""
    return make_checksum(
        crc32(entry.key), entry.value, entry.create_revision, entry.mod_revision, entry.lease
    )


def make_checksum(hashed: int, value: bytes, created: int, modified: int, lease: int) -> int:
    """32 bits over a whole entry, where `hashed` is the CRC of its key."""
    return crc32(value, (hashed + 3 * modified + 5 * created + 7 * lease) % MODULUS)


def first_difference(one: bytes, other: bytes) -> str:
    """What differs between two digests, for people."""
    at = next(n for n in range(len(one)) if n >= len(other) or one[n] != other[n])
    bucket = at // _SUM_BYTES
    return f"bucket {bucket} of the state" if bucket < BUCKETS else "the state beside its keys"


def _spoilt(bucket: int) -> Diverged:
    return Diverged(
        f"bucket {bucket} of the state in memory is not what the log made of it: this"
        " node's memory or its code is at fault; start it again"
    )
