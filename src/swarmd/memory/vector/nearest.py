"""Which vectors are nearest to another: all of them are looked at, so that none is missed.

Vectors are taken in blocks that stay in a core's cache between one step and the next, without the
interpreter's lock while numbers are computed. Float32 is
exact enough to tell who is among the nearest, but for the last few; so some more are kept, and
their distances computed again in double precision, which decides the order and is what is told.
Where more than these are as near as float32 can tell (many vectors alike, or in nearly one
direction), all are looked at again in double precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from swarmd.memory.vector.shapes import Metric

Vectors = NDArray[np.float32]
Slots = NDArray[np.int64]
Distances = NDArray[np.float64]
# Of single precision or of double.
Floats = NDArray[np.floating[Any]]

_BLOCK_BYTES: Final = 1024 * 1024
# Kept beyond what was asked for, until distances are exact.
_SPARE: Final = 32
# Where one of so many rows is asked for, it is quicker to look at all than to pick.
_DENSE: Final = 3


def unit(vector: Vectors) -> Vectors:
    """The vector of length 1 in the same direction; it is not zero."""
    wide = vector.astype(np.float64)
    return (wide / np.sqrt(wide @ wide)).astype(np.float32)


def nearest(
    vectors: Vectors,
    slots: Slots,
    query: Vectors,
    metric: Metric,
    k: int,
    check: Callable[[], None] = lambda: None,
) -> tuple[Slots, Distances]:
    """The `k` nearest of the vectors at `slots`, the nearest first.

    Args:
        vectors: one a row; for cosine each of length 1, as `query`.
        slots: rows, rising.
        check: called now and then; what it raises ends the search.
    """
    best, rough = _scan(vectors, slots, query, metric, k + _SPARE, check)
    if len(best) < len(slots) and metric is not Metric.L2:
        near = np.partition(rough, (k - 1, len(rough) - 1))
        if near[-1] - near[k - 1] < doubt(vectors[best], query):
            wide = query.astype(np.float64)
            best, _ = _scan(vectors, slots, wide, metric, k + _SPARE, check)
    distances = _exact(vectors[best], query, metric)
    order = np.argsort(distances, kind="stable")[:k]
    return best[order], distances[order]


def doubt(rows: Vectors, query: Vectors) -> float:
    """How far two dot products in float32 may be off together, where rows are that long."""
    longest = np.sqrt(_squares(rows.astype(np.float64)).max())
    length = np.sqrt(np.square(query, dtype=np.float64).sum())
    return float(2 * longest * length * np.sqrt(len(query)) * np.finfo(np.float32).eps)


def _scan(
    vectors: Vectors,
    slots: Slots,
    query: Floats,
    metric: Metric,
    kept: int,
    check: Callable[[], None],
) -> tuple[Slots, Floats]:
    """The `kept` nearest in any order, as far as the query's precision tells, and a number each."""
    step = max(1, _BLOCK_BYTES // (vectors.shape[1] * query.itemsize))
    best = np.empty(0, np.int64)
    rough: Floats = np.empty(0, query.dtype)
    room = np.empty((step, vectors.shape[1]), np.float32)
    # What lies in slots that are not asked for may be anything.
    with np.errstate(all="ignore"):
        start = 0
        while start < len(slots):
            check()
            first = int(slots[start])
            end = int(np.searchsorted(slots, first + step))
            chosen = slots[start:end]
            span = int(chosen[-1]) + 1 - first
            if span <= _DENSE * len(chosen):
                found = _rough(vectors[first : first + span], query, metric, room)[chosen - first]
            else:
                picked = vectors.take(chosen, axis=0, out=room[: len(chosen)], mode="clip")
                found = _rough(picked, query, metric, room)
            best = np.concatenate((best, chosen))
            rough = np.concatenate((rough, found))
            if len(best) > kept:
                near = np.argpartition(rough, kept)[:kept]
                best, rough = best[near], rough[near]
            start = end
    return best, rough


def _rough(block: Vectors, query: Floats, metric: Metric, room: Vectors) -> Floats:
    """A number for each row, that falls as rows get nearer, in the query's precision.

    `room` is written over: memory that is asked for anew for each block costs as much as the rest.
    """
    if metric is Metric.L2:
        # Not by dot products: where vectors are far from the origin these cancel each other out.
        return _squares(np.subtract(block, query, out=room[: len(block)]))
    rows: Floats = block.astype(query.dtype, copy=False)
    return -_products(rows, query)


def _exact(rows: Vectors, query: Vectors, metric: Metric) -> Distances:
    wide, wanted = rows.astype(np.float64), query.astype(np.float64)
    if metric is Metric.L2:
        return np.sqrt(_squares(wide - wanted))
    products: Distances = _products(wide, wanted).astype(np.float64, copy=False)
    if metric is Metric.DOT:
        return -products
    # Rounding to float32 left the lengths a little beside 1.
    lengths = np.sqrt(_squares(wide) * (wanted @ wanted))
    return np.clip(1.0 - products / lengths, 0.0, 2.0)


def _products(rows: Floats, query: Floats) -> Floats:
    # Not `@`: its library splits work over threads of its own, which wait for each other wherever
    # cores are busy, for half a second now and then. This is one thread, and twice as quick.
    products: Floats = np.einsum("ij,j->i", rows, query)
    return products


def _squares(rows: Floats) -> Floats:
    sums: Floats = np.einsum("ij,ij->i", rows, rows)
    return sums
