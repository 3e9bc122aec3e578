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
    """What a watch tells. The first one has no key: from then on nothing is missed.

    Another one without a key is there to say that it `lagged`.
    """

    namespace: str | None = None
    key: str | None = None
    entry: MemoryEntry | None = None
    """What the key holds now; left out if it holds nothing."""
    position: str = ""
    """All before it was told; another watch may go on from here, of an eventual namespace on the
    same node.
    """
    lagged: bool = False
    """Not all that changed is told, for it was too much or too long ago: list the keys anew."""


class CrdtCell(Struct, frozen=True, kw_only=True):
    """What one change has put. Its dot is `node`, `life` (which start of it) and `number`."""

    node: str
    life: str
    number: int
    kind: str
    fields: list[str]
    """The way through nested maps."""
    element: Any = None
    """Of a set."""
    value: Any = None
    """What it puts; of a text or list how much; left out where it is larger than 4 KiB."""
    value_bytes: int
    created_by: str | None = None
    written_at_ms: int
    tick: int
    """The counter of the hybrid clock within that millisecond."""
    expires_at_ms: int
    counts: bool
    why: str


class CrdtSeen(Struct, frozen=True, kw_only=True):
    """How far the changes of one start of a node were seen."""

    node: str
    life: str
    number: int


class CrdtKey(Struct, frozen=True, kw_only=True):
    """A key, and why it holds what it holds. `cells`: the latest first, and `left_out` more."""

    namespace: str
    key: str
    kind: str
    value: Any
    cells: list[CrdtCell]
    left_out: int
    shard: int
    seen: list[CrdtSeen]
    """Of the whole shard, which other keys are in, too."""
    early: int
    """Changes that are known to be removed and did not come yet."""


class MemoryNamespace(Struct, frozen=True, kw_only=True):
    """What a namespace promises. One that nobody made is eventual, and has no author."""

    name: str
    consistency: str
    """`eventual` or `strong`."""
    entries_max: int
    """More than 0: it is a cache, of so many values."""
    bytes_max: int
    """How many bytes it may hold; 0: any. What was used, or written, longest ago goes first."""
    copies: int
    """How many nodes hold each value; 0: all, or all voters."""
    ttl_s: float
    """When a value ends whose writer does not say that; 0: never."""
    type: str
    """Of what type values are, as JSON Schema calls them, or `any`."""
    readers: list[str]
    """Who alone may read: roles, `key:NAME`, `user:UID`; empty: everybody whom their rules let."""
    writers: list[str]
    created_by: str
    created_at_ms: int
    node: str
    left_over: int
    """Values under the name of a namespace that is strong or has copies, which it does not show."""


class MemoryTurn(Struct, frozen=True, kw_only=True):
    """What comes of asking for a value that may have to be computed."""

    state: str
    """`hit`: here is the value. `compute`: the caller computes it, under `fence`."""
    value: Any = None
    fence: int = 0
