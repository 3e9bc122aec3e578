"""The checker of shared memory sees what it is there to see."""

from __future__ import annotations

import pytest
from memory_ledger import Ledger, Told, View


def told() -> Ledger:
    ledger = Ledger()
    ledger.add([Told("a/1", "one", 100), Told("a/2", "two", 101), Told("a/2", None, 101)])
    ledger.add([Told("all/0", "early", 200), Told("all/1", "mine", 300)])
    ledger.add([Told("all/0", "late", 201), Told("all/1", "yours", 300)])
    ledger.add([Told("b/1", "perhaps", None)])
    return ledger


GOOD: View = {"a/1": ("one", "v1"), "all/0": ("late", "v2"), "all/1": ("mine", "v3")}


def test_what_was_acknowledged_and_is_equal_is_fine() -> None:
    ledger = told()
    assert (ledger.acknowledged, ledger.unknown) == (7, 1)
    also = {**GOOD, "b/1": ("perhaps", "v4"), "all/1": ("yours", "v3")}
    for view in (GOOD, also):
        assert ledger.problems({"n1": view, "n2": view}) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"a/1": None}, "n2 holds a/1 = None"),
        ({"a/1": ("other", "v1")}, "n2 holds a/1 = other"),
        ({"a/2": ("two", "v0")}, "n2 holds a/2 = two"),
        ({"all/0": ("early", "v2")}, "n2 holds all/0 = early"),
        ({"all/1": ("yours", "v3")}, "n1 and n2 differ in all/1"),
        ({"all/1": ("mine", "v9")}, "n1 and n2 differ in all/1"),
        ({"b/1": ("perhaps", "v4")}, "n1 and n2 differ in b/1"),
        ({"c/1": ("whence", "v4")}, "n2 holds c/1, which nobody wrote"),
    ],
)
def test_each_loss_is_named(wrong: dict[str, tuple[str, str] | None], said: str) -> None:
    view = {key: held for key, held in {**GOOD, **wrong}.items() if held is not None}
    assert any(line.startswith(said) for line in told().problems({"n1": GOOD, "n2": view}))


def test_a_write_that_was_overtaken_before_it_was_answered_does_not_count() -> None:
    ledger = Ledger()
    ledger.add([Told("k", "first", 0)])
    ledger.add([Told("k", "second", 10)])
    assert ledger.problems({"n1": {"k": ("second", "v")}}) == []
    assert ledger.problems({"n1": {"k": ("first", "v")}})
