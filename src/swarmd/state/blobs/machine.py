"""One transfer: which chunk is asked of whom, and when it is over. Pure.

The shell shows what happens (`offer`, `lose`, `got`) and asks for each holder's next chunk
(`take`). The rules:

- A holder has one chunk under way, and is asked for the next one when that is written: what a kill
  can lose, and has to come again, is one chunk of each holder. Faster holders carry more by
  themselves, and one that hangs holds up no more than that chunk.
- What a holder failed at goes back in front, for others. Who sent a wrong chunk is asked no more in
  this transfer, nor is who failed `STRIKES` times.
- No chunk is asked for twice at once, and none again that is here.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Final

from swarmd.base.ids import NodeId

STRIKES: Final = 3


class Fetching:
    """See the module.

    Args:
        count: chunks of the blob.
        present: those that an earlier try has left, verified.
    """

    def __init__(self, count: int, present: Iterable[int] = ()) -> None:
        self.count = count
        self._present = bytearray(count)
        for index in present:
            self._present[index] = 1
        self.present_count = sum(self._present)
        self._next = 0
        self._again: list[int] = []
        self._under_way: dict[NodeId, int | None] = {}
        self._strikes: dict[NodeId, int] = {}

    @property
    def is_complete(self) -> bool:
        return self.present_count == self.count

    @property
    def holders(self) -> list[NodeId]:
        """Who is asked, in a stable order."""
        return sorted(self._under_way)

    def has(self, index: int) -> bool:
        return index < self.count and bool(self._present[index])

    def offer(self, holder: NodeId) -> bool:
        """A node has the blob. False: it is asked already, or no more."""
        if holder in self._under_way or self._strikes.get(holder, 0) >= STRIKES:
            return False
        self._under_way[holder] = None
        return True

    def lose(self, holder: NodeId, *, for_good: bool = False) -> None:
        """A node is gone, or failed: others get what it was asked for."""
        self._strikes[holder] = STRIKES if for_good else self._strikes.get(holder, 0) + 1
        index = self._under_way.pop(holder)
        if index is not None:
            heapq.heappush(self._again, index)

    def take(self, holder: NodeId) -> int | None:
        """The next chunk to ask a holder for; None: nothing now (or ever, see `is_asked`)."""
        if self._under_way.get(holder, -1) is not None:
            return None
        index = self._under_way[holder] = self._pick()
        return index

    def is_asked(self, holder: NodeId) -> bool:
        return holder in self._under_way

    def got(self, holder: NodeId, index: int) -> None:
        """The chunk that a holder had under way is here, verified and written."""
        assert self._under_way[holder] == index
        assert not self._present[index]
        self._under_way[holder] = None
        self._present[index] = 1
        self.present_count += 1

    def _pick(self) -> int | None:
        if self._again:
            return heapq.heappop(self._again)
        while self._next < self.count and self._present[self._next]:
            self._next += 1
        if self._next >= self.count:
            return None
        self._next += 1
        return self._next - 1
