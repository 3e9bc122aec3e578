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
    """What a watch tells. The first one has `namespace` alone: from then on nothing is missed."""

    namespace: str | None = None
    key: str | None = None
    entry: MemoryEntry | None = None
    """What the key holds now; left out if it holds nothing."""
    lagged: bool = False
    """More changed than could be kept for this watch: list the keys anew."""


class MemoryNamespace(Struct, frozen=True, kw_only=True):
    """What a namespace promises. One that nobody made is eventual, and has no author."""

    name: str
    consistency: str
    """`eventual` or `strong`."""
    entries_max: int
    """More than 0: it is a cache, of so many values and `bytes_max` bytes."""
    bytes_max: int
    created_by: str
    created_at_ms: int
    node: str
    left_over: int
    """Eventual values under the name of a strong namespace, which it does not show."""


class MemoryTurn(Struct, frozen=True, kw_only=True):
    """What comes of asking for a value that may have to be computed."""

    state: str
    """`hit`: here is the value. `compute`: the caller computes it, under `fence`."""
    value: Any = None
    fence: int = 0
