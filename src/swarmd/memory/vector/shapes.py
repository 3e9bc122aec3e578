"""What is fed to a vector index, what it is asked, and what it answers.

A *collection* holds entries whose vectors have one dimension and are compared by one metric. An
*entry* is a vector under an id, with a payload of scalars to filter by.

*Positions* number the changes that are fed, and rise. Changes at one position belong to one
batch. A batch says from where on it goes (`after`) and how far it comes (`until`): there is no
change between the two but its own.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

Scalar = str | int | float | bool


class Metric(StrEnum):
    """How far two vectors are apart: the smaller, the nearer, for each of them."""

    COSINE = "cosine"
    """1 - the cosine of the angle between them: 0 to 2."""
    DOT = "dot"
    """- their dot product."""
    L2 = "l2"
    """Their Euclidean distance."""


@dataclass(frozen=True, slots=True)
class Define:
    """Make a collection. Nothing, if it is there with this dimension and metric."""

    position: int
    collection: str
    dimension: int
    metric: Metric


@dataclass(frozen=True, slots=True)
class Drop:
    """Remove a collection with all its entries. Nothing, if it is not there."""

    position: int
    collection: str


@dataclass(frozen=True, slots=True)
class Upsert:
    """Put an entry in the place of whatever has its id.

    `vector` is float32, little-endian; see `packed`. `created_at_ms` is since 1970. `version` is
    what `VectorIndex.versions` tells of the entry.
    """

    position: int
    collection: str
    id: str
    vector: bytes
    payload: Mapping[str, Scalar]
    created_by: str
    created_at_ms: int
    version: str = ""


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove an entry. Nothing, if it is not there."""

    position: int
    collection: str
    id: str


Change = Define | Drop | Upsert | Remove


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes in the order of their positions, all of them above `after` and up to `until`."""

    after: int
    until: int
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Equals:
    """The field has this value. 1 equals 1.0; true equals neither."""

    field: str
    value: Scalar


@dataclass(frozen=True, slots=True)
class OneOf:
    """The field has one of these values."""

    field: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """The field is within these bounds, all numbers or all text (by code point)."""

    field: str
    gt: str | int | float | None = None
    gte: str | int | float | None = None
    lt: str | int | float | None = None
    lte: str | int | float | None = None

    def bounds(self) -> list[tuple[str, str | int | float]]:
        """The bounds that are set, as (name, value)."""
        named = (("gt", self.gt), ("gte", self.gte), ("lt", self.lt), ("lte", self.lte))
        return [(name, value) for name, value in named if value is not None]


Condition = Equals | OneOf | Range


@dataclass(frozen=True, slots=True)
class Query:
    """The `k` nearest entries of a collection that meet all conditions."""

    collection: str
    vector: bytes
    k: int
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Hit:
    """An entry that was found. `distance`: see `Metric`."""

    id: str
    distance: float
    payload: Mapping[str, Scalar] = field(hash=False)
    created_by: str
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class CollectionView:
    name: str
    dimension: int
    metric: Metric
    entries: int


def packed(elements: Iterable[float]) -> bytes:
    """A vector as `Upsert` and `Query` take it. What is too large for a float32 gets infinite."""
    numbers = array("f", elements)
    if _SWAPPED:
        numbers.byteswap()
    return numbers.tobytes()


def unpacked(vector: bytes) -> array[float]:
    """The elements of a packed vector, whose length is a multiple of four."""
    numbers = array("f")
    numbers.frombytes(vector)
    if _SWAPPED:
        numbers.byteswap()
    return numbers


_SWAPPED = array("H", [1]).tobytes() != b"\x01\x00"
