"""What a share of measurements does not exceed."""

from __future__ import annotations

import math
from collections.abc import Sequence


def at(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of them, in rising order, do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
