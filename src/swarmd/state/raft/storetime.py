"""Store time at a coordinator: the last stamp of the state, and the time since it took office.

It never falls and knows no wall clock. It is looked at every second (`leaseclock.py`), so a longer
pause means that the host slept; like a time without a coordinator, that does not count. Else a lid
that was closed for a month would end every lease and credential at once.
"""

from __future__ import annotations

from typing import Final

from swarmd.base.clock import Clock

# A coordinator that has not looked for longer was suspended, and the swarm with it.
PAUSE_MAX_S: Final = 30.0


class StoreTime:
    """See the module."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._looked = clock.now()
        self._base_ms, self._since = 0, self._looked

    def begin(self, base_ms: int) -> None:
        """It is `base_ms` now, and goes on from there."""
        self._base_ms, self._since = base_ms, self._clock.now()
        self._looked = self._since

    def now_ms(self) -> int:
        """Milliseconds."""
        now = self._clock.now()
        self._since += max(0.0, now - self._looked - PAUSE_MAX_S)
        self._looked = now
        return self._base_ms + int((now - self._since) * 1_000)
