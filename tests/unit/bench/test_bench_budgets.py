"""The bench's verdicts: whatever is missing is not ok."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path

import pytest
from run import NAMES, Figure, judge

BENCH = Path(__file__).resolve().parents[3] / "bench"
BESIDE = {"ratio_min": 2, "min": 100, "peer": "etcd", "unit": "1/s"}


def test_a_budget_is_a_bound_in_the_figures_own_unit() -> None:
    line = judge(Figure("a", 5.0), {"max": 5, "unit": "ms"})
    assert line == {"name": "a", "value": 5.0, "unit": "ms", "budget": 5, "ok": True}
    assert not judge(Figure("a", 5.1), {"max": 5, "unit": "ms"})["ok"]
    assert not judge(Figure("a", 4.9), {"min": 5, "unit": "ms"})["ok"]


def test_beside_a_peer_the_stricter_bound_counts() -> None:
    line = judge(Figure("a", 150.0, 60.0), BESIDE)
    assert (line["budget"], line["ok"], line["ratio"]) == (120, True, 2.5)
    assert (line["peer"], line["peer_value"]) == ("etcd", 60.0)
    assert judge(Figure("a", 90.0, 40.0), BESIDE)["budget"] == 100
    assert not judge(Figure("a", 90.0, 40.0), BESIDE)["ok"]
    slow = judge(Figure("a", 2.6, 1.0), {"ratio_max": 2.5, "peer": "etcd", "unit": "ms"})
    assert (slow["budget"], slow["ok"]) == (2.5, False)


def test_what_is_missing_is_not_ok() -> None:
    assert not judge(Figure("a", None), {"max": 5, "unit": "ms"})["ok"]
    assert not judge(Figure("a", 5.0), None)["ok"]
    assert not judge(Figure("a", 500.0, None), BESIDE)["ok"]
    assert not judge(Figure("a", None, 60.0), BESIDE)["ok"]


def test_every_bench_has_budgets() -> None:
    budgets = tomllib.loads((BENCH / "budgets.toml").read_text())
    assert set(budgets) == set(NAMES)
    for bench in budgets.values():
        for budget in bench.values():
            assert {"max", "min", "ratio_max", "ratio_min"}.intersection(budget)
            assert budget["unit"]


@pytest.mark.parametrize("name", NAMES)
def test_every_bench_finds_what_it_takes_of_swarmd(name: str) -> None:
    assert callable(importlib.import_module(f"bench_{name}").run)
