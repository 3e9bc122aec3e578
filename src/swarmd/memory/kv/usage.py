"""What a bounded namespace holds, and what goes first when that is too much. Pure.

What was used longest ago goes first, as this node knows it. Where reads count as uses, which is in
caches, its own count at once, those of others as they tell them, within a minute or so. When there
is too much, a twentieth more than that goes, so that the next values find room.
"""

from __future__ import annotations

from heapq import nsmallest
from typing import Final

_SPARE: Final = 20


class Usage:
    """Sizes and last uses of the keys of a namespace.

    Args:
        entries_max, bytes_max: how much it may hold.
    """

    def __init__(self, entries_max: int, bytes_max: int) -> None:
        self._entries_max, self._bytes_max = entries_max, bytes_max
        self._keys: dict[str, tuple[int, int]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._keys)

    def hold(self, key: str, size: int, used_ms: int) -> None:
        """The namespace holds a key, of `size` bytes; it was used at `used_ms` or later."""
        before = self._keys.get(key, (0, 0))
        self.bytes += size - before[0]
        self._keys[key] = (size, max(before[1], used_ms))

    def forget(self, key: str) -> None:
        """The namespace holds a key no more."""
        self.bytes -= self._keys.pop(key, (0, 0))[0]

    def used(self, key: str, used_ms: int) -> int | None:
        """A key was used; when it was before. None: the namespace does not hold it."""
        before = self._keys.get(key)
        if before is None:
            return None
        self._keys[key] = (before[0], max(before[1], used_ms))
        return before[1]

    def excess(self) -> list[str]:
        """Keys to remove, those used longest ago first; none if it holds what it may."""
        if len(self._keys) <= self._entries_max and self.bytes <= self._bytes_max:
            return []
        count = len(self._keys) - (self._entries_max - self._entries_max // _SPARE)
        size = self.bytes - (self._bytes_max - self._bytes_max // _SPARE)
        found: list[str] = []
        for key in self._oldest(max(count, 1)):
            if len(found) >= count and size <= 0:
                break
            found.append(key)
            size -= self._keys[key][0]
        return found

    def _oldest(self, count: int) -> list[str]:
        """All keys if bytes are too many, for who knows how many it takes; else so many."""
        if self.bytes > self._bytes_max:
            return sorted(self._keys, key=self._age)
        return nsmallest(count, self._keys, key=self._age)

    def _age(self, key: str) -> tuple[int, str]:
        return self._keys[key][1], key
