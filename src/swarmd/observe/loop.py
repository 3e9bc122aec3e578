"""How long the node's one loop was held up.

A pass of the loop begins when it has looked for news from outside and ends when it looks
again. While a pass lasts nothing else moves: no heartbeat leaves, no request is read. So the
longest pass of late is what tells of work that should have been cut into slices, or of a disk
that holds everybody up.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Final

import trio

from swarmd.observe.metrics import LOOP_LONGEST_PASS

# Longer than the usual interval between two scrapes, so that none is missed.
WINDOW_S: Final = 20.0
# Shorter passes are not worth remembering.
_LEAST_S: Final = 0.001


class LoopWatch(trio.abc.Instrument):
    """Install with `trio.lowlevel.add_instrument`. Costs about a microsecond a pass."""

    def __init__(self) -> None:
        self._began: float | None = None
        # (when, how long) of passes that no later one has surpassed: the first is the longest.
        self._longest: deque[tuple[float, float]] = deque()
        LOOP_LONGEST_PASS.set_function(self.longest_s)

    def longest_s(self) -> float:
        """Seconds of the longest pass that ended within the last 20 s."""
        self._forget(time.perf_counter())
        return self._longest[0][1] if self._longest else 0.0

    def after_io_wait(self, timeout: float) -> None:
        self._began = time.perf_counter()

    def before_io_wait(self, timeout: float) -> None:
        if self._began is None:
            return
        now = time.perf_counter()
        took = now - self._began
        if took < _LEAST_S:
            return
        longest = self._longest
        while longest and longest[-1][1] <= took:
            longest.pop()
        longest.append((now, took))
        self._forget(now)

    def _forget(self, now: float) -> None:
        while self._longest and self._longest[0][0] < now - WINDOW_S:
            self._longest.popleft()
