"""A vector index by brute force, and changes for it: what every index is held against."""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from swarmd.memory.vector.shapes import (
    Batch,
    Change,
    Condition,
    Define,
    Drop,
    Equals,
    Hit,
    Metric,
    OneOf,
    Query,
    Range,
    Remove,
    Scalar,
    Upsert,
)

OPERATORS = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}


def floats(vector: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(vector) // 4}f", vector)


def distance(metric: Metric, one: tuple[float, ...], other: tuple[float, ...]) -> float:
    product = math.fsum(a * b for a, b in zip(one, other, strict=True))
    if metric is Metric.DOT:
        return -product
    if metric is Metric.L2:
        return math.dist(one, other)
    return min(2.0, max(0.0, 1 - product / (math.hypot(*one) * math.hypot(*other))))


def same_kind(one: Scalar, other: Scalar) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return isinstance(one, bool) and isinstance(other, bool)
    return isinstance(one, str) == isinstance(other, str)


def meets(payload: Mapping[str, Scalar], condition: Condition) -> bool:
    if condition.field not in payload:
        return False
    value = payload[condition.field]
    match condition:
        case Equals(value=wanted):
            return same_kind(value, wanted) and value == wanted
        case OneOf(values=values):
            return any(same_kind(value, one) and value == one for one in values)
        case Range():
            return all(
                same_kind(value, bound) and OPERATORS[name](value, bound)
                for name, bound in condition.bounds()
            )


@dataclass
class Model:
    position: int = 0
    collections: dict[str, tuple[int, Metric, dict[str, Upsert]]] = field(default_factory=dict)

    def apply(self, batch: Batch) -> None:
        for change in batch.changes:
            if change.position > self.position:
                self._perform(change)
        self.position = max(self.position, batch.until)

    def _perform(self, change: Change) -> None:
        match change:
            case Define():
                made = (change.dimension, change.metric, {})
                self.collections.setdefault(change.collection, made)
            case Drop():
                self.collections.pop(change.collection, None)
            case Upsert():
                self.collections[change.collection][2][change.id] = change
            case Remove():
                self.collections[change.collection][2].pop(change.id, None)

    def search(self, query: Query) -> list[tuple[float, Upsert]]:
        """All that meet the conditions, the nearest first."""
        _, metric, entries = self.collections[query.collection]
        wanted = floats(query.vector)
        found = [
            (distance(metric, floats(one.vector), wanted), one)
            for one in entries.values()
            if all(meets(one.payload, condition) for condition in query.conditions)
        ]
        return sorted(found, key=lambda each: (each[0], each[1].id))

    def views(self) -> list[tuple[str, int, Metric, int]]:
        return [
            (name, dimension, metric, len(entries))
            for name, (dimension, metric, entries) in sorted(self.collections.items())
        ]


def check_hits(model: Model, query: Query, hits: Iterable[Hit]) -> None:
    """The hits are the nearest that there are, with what they were given; ties in any order."""
    hits = list(hits)
    expected = model.search(query)
    assert len(hits) == min(query.k, len(expected))
    assert len({hit.id for hit in hits}) == len(hits)
    by_id = {one.id: (apart, one) for apart, one in expected}
    metric = model.collections[query.collection][1]
    wanted = floats(query.vector)
    # Products may cancel each other out: what is left is as exact as the largest of them.
    pairs = (zip(floats(one.vector), wanted, strict=True) for _, one in expected)
    largest = max((abs(a * b) for each in pairs for a, b in each), default=0.0)
    apart_most = max((apart for apart, _ in expected), default=0.0)
    near = {
        Metric.COSINE: 1e-6,
        Metric.DOT: 1e-12 * largest,
        Metric.L2: 1e-12 * apart_most,
    }
    for hit, (best, _) in zip(hits, expected, strict=False):
        assert abs(hit.distance - best) <= near[metric], (hit, best)
        apart, one = by_id[hit.id]
        assert abs(hit.distance - apart) <= near[metric]
        told = (hit.payload, hit.created_by, hit.created_at_ms)
        assert told == (one.payload, one.created_by, one.created_at_ms)
        kinds = {name: type(value) for name, value in hit.payload.items()}
        assert kinds == {name: type(value) for name, value in one.payload.items()}
    assert [(hit.distance, hit.id) for hit in hits] == sorted((h.distance, h.id) for h in hits)
