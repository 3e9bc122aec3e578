"""What the API answers about shared memory; see `shapes`."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class MemoryEntry(Struct, frozen=True, kw_only=True):
    """A value, and of whom it is. Times are milliseconds since 1970; `expires_at_ms` 0 is never."""

    namespace: str
    key: str
    value: Any
    version: str
    """Another one after each write."""
    created_by: str
    created_at_ms: int
    expires_at_ms: int
    node: str
    """Which node took the write."""


class MemoryPage(Struct, frozen=True, kw_only=True):
    """`more`: there are others after the last key."""

    entries: list[MemoryEntry]
    more: bool


class MemoryNews(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a watch tells. The first one has no key: from then on nothing is missed."""

    namespace: str | None = None
    key: str | None = None
    entry: MemoryEntry | None = None
    """What the key holds now; left out if it holds nothing."""
    position: str = ""
    """All before it was told; a watch on the same node may go on from here."""
    lagged: bool = False
    """Not all that changed is told, for it was too much or too long ago: list the keys anew."""
