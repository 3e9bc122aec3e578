"""How the process of a daemon treats its memory."""

from __future__ import annotations

import gc
from typing import Final

_COLLECT_OBJECTS: Final = 20_000
_COLLECT_OLDER: Final = (20, 50)


def calm_collector() -> None:
    """Look for cycles of garbage less often, and never among what is imported by now.

    A batch of tasks makes thousands of objects that live until it is committed, and none is
    part of a cycle; the default thresholds have the collector walk over them several times,
    and now and then over every task that the node knows.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_OBJECTS, *_COLLECT_OLDER)
