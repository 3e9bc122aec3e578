"""What the API takes and answers about vector memory; see `shapes`."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

# A vector: its elements, or float32, little-endian, in base64.
GivenVector = list[float] | str


class CollectionShape(Struct, frozen=True, kw_only=True):
    """A collection. `entries` is null while the node has no index; `model` empty where callers
    make the vectors.
    """

    name: str
    dimension: int
    metric: str
    model: str
    entries: int | None
    created_by: str
    created_at_ms: int


class GivenEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry to be added. Either `vector` or `text`, of which this node makes one."""

    id: str
    vector: GivenVector | None = None
    text: str | None = None
    payload: dict[str, Any] = {}


class AddBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    entries: list[GivenEntry]


class AddedEntry(Struct, frozen=True, kw_only=True):
    id: str
    version: str
    """Another one after each write."""


class VectorEntry(Struct, frozen=True, kw_only=True):
    """An entry, and of whom it is. Times are milliseconds since 1970."""

    collection: str
    id: str
    vector: list[float]
    payload: dict[str, Any]
    version: str
    created_by: str
    created_at_ms: int
    node: str
    """Which node took the write."""


class VectorHit(Struct, frozen=True, kw_only=True):
    """`distance`: the smaller, the nearer; 1 - cosine, - dot product, or Euclidean."""

    id: str
    distance: float
    payload: dict[str, Any]
    created_by: str
    created_at_ms: int


class VectorsFound(Struct, frozen=True, kw_only=True):
    """`behind`: about how many changes the node had when it was asked, and its index had not."""

    hits: list[VectorHit]
    behind: int
