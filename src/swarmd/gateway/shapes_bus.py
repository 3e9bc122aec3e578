"""What the API answers about the bus; see `shapes`."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class BusReached(Struct, frozen=True, kw_only=True):
    """A message is in the inbox of so many subscribers."""

    topic: str
    reached: int


class BusMessage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message of a watched topic. The first one of a watch has `topics` and nothing else."""

    topic: str = ""
    sender: str = ""
    """Whom to answer, if not empty."""
    data: Any = None
    topics: list[str] = []
    """What is watched, from now on."""
