"""Lamport time: whatever was heard before something was sent has a lower time (Lamport, "Time,
Clocks, and the Ordering of Events in a Distributed System", 1978).

A member could sign any time, and whoever takes it over could soon send nothing any more. So a clock
follows a time that is near at once, and one that is far ahead only rarely and by a bounded step:
to wear the clock out by steps near takes 2**42 signed events, by far ones two thousand years. No
honest swarm comes near to either, and who was away for long catches up by one far step.
"""

from __future__ import annotations

import math
from typing import Final

from swarmd.mesh.events.messages import TIME_MAX

NEAR: Final = 2**20
FAR: Final = 2**32
FAR_EVERY_S: Final = 60.0

assert NEAR < FAR < TIME_MAX


class LamportClock:
    """`time` is that of the latest event sent or heard."""

    def __init__(self, time: int = 0) -> None:
        self.time = time
        self._far_after = -math.inf

    def tick(self) -> int | None:
        """The time of an event sent now; None at the end of all times."""
        if self.time >= TIME_MAX:
            return None
        self.time += 1
        return self.time

    def witness(self, time: int, now: float) -> bool:
        """Follow a time that was heard; True if this clock has come up to it.

        What is refused may be told again later: the clock has come nearer then.
        """
        if time - self.time > NEAR:
            if now < self._far_after:
                return False
            self._far_after = now + FAR_EVERY_S
        self.time = max(self.time, min(time, self.time + FAR))
        return time <= self.time
