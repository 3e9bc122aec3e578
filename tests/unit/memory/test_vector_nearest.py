"""Every nearest vector is found, whatever lies around it."""

from __future__ import annotations

import numpy as np
import pytest

from swarmd.memory.vector.nearest import nearest, unit
from swarmd.memory.vector.shapes import Metric

COUNT = 2_000


def expected(rows: np.ndarray, query: np.ndarray, metric: Metric) -> np.ndarray:
    wide, wanted = rows.astype(np.float64), query.astype(np.float64)
    if metric is Metric.L2:
        return np.linalg.norm(wide - wanted, axis=1)
    products = wide @ wanted
    if metric is Metric.DOT:
        return -products
    return 1 - products / np.linalg.norm(wide, axis=1) / np.linalg.norm(wanted)


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("offset", [0.0, 1_000.0])
@pytest.mark.parametrize("share", [1.0, 0.6, 0.02])
@pytest.mark.parametrize("dimension", [3, 700])
def test_the_nearest_are_found_in_many_blocks(
    metric: Metric, offset: float, share: float, dimension: int
) -> None:
    """Far from the origin, too, where sums of squares in float32 would tell nothing apart."""
    rng = np.random.default_rng(5)
    rows = (offset + rng.standard_normal((COUNT, dimension))).astype(np.float32)
    query = (offset + rng.standard_normal(dimension)).astype(np.float32)
    if metric is Metric.COSINE:
        query = unit(query)
        rows = np.stack([unit(row) for row in rows])
    chosen = np.flatnonzero(rng.random(COUNT) < share)
    rows[np.setdiff1d(np.arange(COUNT), chosen)] = np.nan  # What nobody asks for is not looked at.
    found, distances = nearest(rows, chosen, query, metric, 20)
    apart = expected(rows[chosen], query, metric)
    order = np.argsort(apart, kind="stable")[:20]
    assert distances == pytest.approx(apart[order], rel=1e-6, abs=1e-14)
    assert len(set(found.tolist()) & set(chosen[order].tolist())) >= 19
    assert set(found.tolist()) <= set(chosen.tolist())


def test_of_few_all_are_told() -> None:
    rows = np.eye(3, dtype=np.float32)
    found, _ = nearest(rows, np.array([0, 2]), rows[2], Metric.L2, 10)
    assert found.tolist() == [2, 0]
    found, _ = nearest(rows, np.array([], np.int64), rows[2], Metric.L2, 10)
    assert found.tolist() == []


def test_a_search_ends_where_it_is_told_to() -> None:
    asked = []

    def check() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise TimeoutError

    rows = np.zeros((4 * COUNT, 700), np.float32)
    with pytest.raises(TimeoutError):
        nearest(rows, np.arange(4 * COUNT), rows[0], Metric.L2, 1, check)
    assert len(asked) == 3
