"""The vectors of one collection: a file of float32, as many places (*slots*) as it has room for.

Nothing is written where a vector is that anybody may read: an entry that changes takes another
slot, and its old one is used again only once no search runs that began before the change was
committed. So a crash leaves what was committed as it was, and searches need no lock. Which slots
hold something, and what, is said by the database (`database.py`).

The file is mapped into memory to be read, and written through its descriptor; so its pages are the
system's, which takes them back when it needs them. A disk that cannot read one of them kills the
process (SIGBUS), which is then found when the index is opened, by reading all of it.
"""

from __future__ import annotations

import heapq
import os
from pathlib import Path
from typing import Final

import numpy as np

from swarmd.memory.vector.nearest import Vectors

_GROWTH_SLOTS_MIN: Final = 256


class SlotFile:
    """One writer; what `vectors` was given to goes on reading what it was given.

    Raises OSError from any call that touches the file.
    """

    def __init__(self, path: Path, dimension: int, *, fresh: bool) -> None:
        self._dimension = dimension
        self.slot_bytes: Final = dimension * 4
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_TRUNC if fresh else 0)
        self.path = path
        self._fd = os.open(path, flags, 0o600)
        self.capacity = os.fstat(self._fd).st_size // self.slot_bytes
        self.vectors: Vectors = self._mapped()
        self._free: list[int] = []
        self._next = 0
        # What searches may still read, by the commit that freed it.
        self._limbo: list[tuple[int, list[int]]] = []

    def set_used(self, slots: set[int]) -> None:
        """Say which slots hold something, once it is open."""
        self._next = max(slots, default=-1) + 1
        self._free = [slot for slot in range(self._next) if slot not in slots]

    def reserve(self, count: int, reusable_before: int) -> None:
        """Have room for so many more.

        Args:
            reusable_before: slots freed by commits up to this one are read by nobody.
        """
        while self._limbo and self._limbo[0][0] <= reusable_before:
            for slot in self._limbo.pop(0)[1]:
                heapq.heappush(self._free, slot)
        lacking = self._next + count - len(self._free) - self.capacity
        if lacking > 0:
            more = max(lacking, self.capacity // 4, _GROWTH_SLOTS_MIN)
            wanted = (self.capacity + more) * self.slot_bytes
            # Not `ftruncate`: a hole that the disk has no room for kills who reads it.
            os.posix_fallocate(self._fd, 0, wanted)
            self.capacity += more
            self.vectors = self._mapped()

    def write(self, vector: bytes) -> int:
        """Put a vector into the lowest free slot, which it returns; `reserve` made room."""
        slot = self._free[0] if self._free else self._next
        written = os.pwrite(self._fd, vector, slot * self.slot_bytes)
        if written != self.slot_bytes:
            raise OSError(0, "a write was cut short")
        if self._free:
            heapq.heappop(self._free)
        self._next = max(self._next, slot + 1)
        return slot

    def read(self, slot: int) -> bytes:
        """As it is on the disk. Shorter than a slot where the file ends."""
        return os.pread(self._fd, self.slot_bytes, slot * self.slot_bytes)

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def undo(self, slots: list[int]) -> None:
        """What was written into these is not committed: nobody reads it."""
        for slot in slots:
            heapq.heappush(self._free, slot)

    def release(self, slots: list[int], commit: int) -> None:
        """These held what commit number `commit` took away."""
        if slots:
            self._limbo.append((commit, slots))

    def close(self, *, delete: bool = False) -> None:
        """Who was given `vectors` may go on reading."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if delete:
                self.path.unlink(missing_ok=True)

    def _mapped(self) -> Vectors:
        if not self.capacity:
            return np.empty((0, self._dimension), np.float32)
        shape = (self.capacity, self._dimension)
        return np.memmap(self.path, dtype="<f4", mode="r", shape=shape).view(np.ndarray)
