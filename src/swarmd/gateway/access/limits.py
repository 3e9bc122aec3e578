"""How often somebody may ask: a token bucket for each (Turner 1986). Pure.

A bucket holds a minute's worth of requests and fills at that rate, so that a burst passes and a
stream of them does not. Who has not asked for long has a full bucket, which need not be kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

BUCKETS_MAX: Final = 10_000


class Buckets:
    """Buckets by whom they are for. The one that was used longest ago makes room for another."""

    def __init__(self, buckets_max: int = BUCKETS_MAX) -> None:
        self._max = buckets_max
        self._left: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._left)

    def wait_s(self, whose: Hashable, per_min: int, now: float) -> float:
        """Take one out; 0.0, or the seconds until there will be one.

        Args:
            per_min: what it holds, and gets in a minute; at least 1.
            now: seconds on a clock that does not fall.
        """
        left, at = self._left.pop(whose, (float(per_min), now))
        left = min(float(per_min), left + (now - at) * per_min / 60.0)
        taken = left >= 1.0
        self._left[whose] = (left - 1.0 if taken else left, now)
        if len(self._left) > self._max:
            self._left.popitem(last=False)
        return 0.0 if taken else (1.0 - left) * 60.0 / per_min
