"""One transfer: which chunks are asked of whom, and when it is over. Pure.

The shell shows what happens (`offer`, `got`, `again`, `lose`) and asks for each holder's next run
of chunks (`take`), which that holder then sends in order. The rules:

- A run is up to `RUN_CHUNKS` of the first chunks that nobody is asked for. When none are left, it
  is half of what the holder with the most has not begun. So faster holders carry more by
  themselves, and one that hangs holds up no more than the chunk that it has under way.
- What a holder failed at goes to others. Who sent a wrong chunk is asked no more in this transfer,
  nor is who failed `STRIKES` times, or was busy `BUSY_MAX` times.
- A chunk that an earlier try had begun is gone on with, as the first one of a run. If it then does
  not fit, what was there may be at fault: it is fetched anew and nobody is blamed.
- Each chunk is asked of one holder at a time, and none again that is here.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from swarmd.base.ids import NodeId

RUN_CHUNKS: Final = 64
STRIKES: Final = 3
BUSY_MAX: Final = 100


@dataclass(slots=True)
class Run:
    """Chunks that one holder sends: `index`, which is under way, and all up to `end`.

    `begun`: how many pieces of the first of them are here already.
    """

    index: int
    end: int
    begun: int = 0


class Fetching:
    """See the module.

    Args:
        count: chunks of the blob.
        present: those that an earlier try has left, verified.
        begun: of others, how many pieces it has left.
    """

    def __init__(
        self, count: int, present: Iterable[int] = (), begun: Mapping[int, int] | None = None
    ) -> None:
        self.count = count
        self._present = bytearray(count)
        for index in present:
            self._present[index] = 1
        self.present_count = sum(self._present)
        self._begun = dict(begun or {})
        # What nobody is asked for, as (first, end); a chunk that was begun is the first of its own.
        self._missing: list[tuple[int, int]] = []
        self._runs: dict[NodeId, Run | None] = {}
        self._strikes: dict[NodeId, int] = {}
        self._busy: dict[NodeId, int] = {}
        start = 0
        for index in range(count + 1):
            if index == count or self._present[index] or index in self._begun:
                self._put_back(start, index)
                start = index + self.has(index)

    @property
    def is_complete(self) -> bool:
        return self.present_count == self.count

    @property
    def holders(self) -> list[NodeId]:
        """Who is asked, in a stable order."""
        return sorted(self._runs)

    def has(self, index: int) -> bool:
        return index < self.count and bool(self._present[index])

    def offer(self, holder: NodeId) -> bool:
        """A node has the blob. False: it is asked already, or no more."""
        if holder in self._runs or self._strikes.get(holder, 0) >= STRIKES:
            return False
        self._runs[holder] = None
        return True

    def is_asked(self, holder: NodeId) -> bool:
        return holder in self._runs

    def take(self, holder: NodeId) -> Run | None:
        """What to ask a holder for that has nothing under way; None: nothing now.

        What it gives is for reading: `got` moves `index`, and another's `take` may move `end`.
        """
        assert self._runs[holder] is None
        run = self._runs[holder] = self._next_run() if self._missing else self._half()
        return run

    def under_way(self, holder: NodeId) -> Run | None:
        """The run that a holder is asked for."""
        return self._runs[holder]

    def got(self, holder: NodeId) -> bool:
        """The chunk that a holder has under way is here. True: its run goes on with the next."""
        run = self._run(holder)
        assert not self._present[run.index]
        self._present[run.index] = 1
        self.present_count += 1
        run.index, run.begun = run.index + 1, 0
        if run.index == run.end:
            self._runs[holder] = None
        return run.index < run.end

    def again(self, holder: NodeId) -> None:
        """A chunk that an earlier try had begun does not fit: it, and its run, are asked anew."""
        run = self._run(holder)
        assert run.begun
        self._put_back(run.index, run.end)
        self._runs[holder] = None

    def lose(self, holder: NodeId, *, for_good: bool = False, is_busy: bool = False) -> None:
        """A node is gone, or failed, or sent a wrong chunk: others get what it was asked for.

        Nor is one waited for that is busy, but it may be asked again many times.
        """
        if is_busy:
            self._busy[holder] = self._busy.get(holder, 0) + 1
            for_good = for_good or self._busy[holder] >= BUSY_MAX
        if for_good:
            self._strikes[holder] = STRIKES
        elif not is_busy:
            self._strikes[holder] = self._strikes.get(holder, 0) + 1
        run = self._runs.pop(holder)
        if run is not None:
            self._put_back(run.index, run.end)

    def _run(self, holder: NodeId) -> Run:
        run = self._runs[holder]
        assert run is not None
        return run

    def _put_back(self, first: int, end: int) -> None:
        if first < end:
            heapq.heappush(self._missing, (first, end))

    def _next_run(self) -> Run:
        first, end = heapq.heappop(self._missing)
        self._put_back(first + RUN_CHUNKS, end)
        return Run(first, min(end, first + RUN_CHUNKS), self._begun.pop(first, 0))

    def _half(self) -> Run | None:
        """Half of what the one with the most has not begun, from its end."""
        runs = [run for _, run in sorted(self._runs.items()) if run is not None]
        longest = max(runs, key=lambda run: run.end - run.index, default=None)
        rest = 0 if longest is None else longest.end - longest.index - 1
        if longest is None or rest == 0:
            return None
        end = longest.end
        longest.end -= (rest + 1) // 2
        return Run(longest.end, end)
