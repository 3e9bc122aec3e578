"""Time as an argument.

Monotonic time is CLOCK_BOOTTIME, which goes on while the machine sleeps: a lease must not
look fresh because its holder was suspended. Wall time is for display and schedules only.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Monotonic seconds."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970, for display."""
        ...


class BootClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000
