"""Settings of the bus."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class BusConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[bus]"""

    # Messages that one subscriber may have waiting, 8 MiB of them at most. Then those who publish
    # to it wait. More lets subscribers be busy for longer, and takes memory.
    inbox_max: Annotated[int, Meta(ge=1, le=1_000)] = 1_000
    # Longest that a publisher waits for room in an inbox unless it says how long itself. Then it is
    # told who was slow. Longer bears with longer pauses of subscribers.
    timeout_s: Annotated[float, Meta(gt=0, le=60)] = 5.0
