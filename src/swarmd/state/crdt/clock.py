"""Hybrid logical time: near the wall clock, and never behind what was seen (Kulkarni et al.,
"Logical physical clocks", 2014).

A stamp is one integer: milliseconds since 1970 in the upper 48 bits, a counter in the lower 16.
So stamps of causally ordered writes are ordered, and those of others are by their clocks.
"""

from __future__ import annotations

from typing import Final

COUNTER_BITS: Final = 16
STAMP_MAX: Final = 2**63 - 1


def ms_of(stamp: int) -> int:
    """Milliseconds since 1970."""
    return stamp >> COUNTER_BITS


def stamp_at(wall_ms: int) -> int:
    """The first stamp of a millisecond."""
    return wall_ms << COUNTER_BITS


class HybridClock:
    """`latest` is the highest stamp that was given out or seen."""

    def __init__(self, latest: int = 0) -> None:
        self.latest = latest

    def tick(self, wall_ms: int) -> int:
        """The stamp of a write that happens now. A full counter borrows from the next ms."""
        self.latest = max(self.latest + 1, stamp_at(wall_ms))
        assert self.latest <= STAMP_MAX, "the end of all times"
        return self.latest

    def witness(self, stamp: int) -> None:
        """Follow a stamp that was seen; whether it may be believed, its taker decides."""
        self.latest = max(self.latest, stamp)
