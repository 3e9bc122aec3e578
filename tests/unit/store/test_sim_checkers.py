"""The checkers, held against histories of known verdict and against brute force."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from swarmd.sim.checkers import (
    FOREVER,
    Operation,
    Read,
    Write,
    linearizable,
    linearizable_key,
    register_step,
    revisions,
)


def w(called: float, returned: float, value: Any, key: str = "k") -> Operation:
    return Operation(key, "write", called, returned, value)


def r(called: float, returned: float, value: Any, key: str = "k") -> Operation:
    return Operation(key, "read", called, returned, None, value)


def cas(called: float, returned: float, old: Any, new: Any, did: bool) -> Operation:
    return Operation("k", "cas", called, returned, (old, new), did)


GOOD = {
    "empty": [],
    "one after another": [w(0, 1, 1), r(2, 3, 1)],
    "a read beside a write may see either": [w(0, 10, 1), r(1, 2, None), r(3, 4, 1)],
    "two writes beside each other": [w(0, 10, 1), w(0, 10, 2), r(11, 12, 1), r(13, 14, 1)],
    "an unknown write seen late": [w(0, FOREVER, 1), r(5, 6, None), r(7, 8, 1)],
    "an unknown write never seen": [w(0, FOREVER, 1), r(5, 6, None)],
    "compare-and-set wins once": [w(0, 1, 1), cas(2, 9, 1, 2, True), cas(2, 9, 1, 3, False)],
    "a failed one beside its cause": [w(0, 9, 5), cas(1, 8, None, 2, True), r(10, 11, 5)],
    "a read of what an unknown cas did": [w(0, 1, 1), cas(2, FOREVER, 1, 2, False), r(5, 6, 2)],
}
BAD = {
    "a stale read": [w(0, 1, 1), w(2, 3, 2), r(4, 5, 1)],
    "a lost write": [w(0, 1, 1), r(2, 3, None)],
    "back and forth": [w(0, 10, 1), r(1, 2, 1), r(3, 4, None)],
    "a value from nowhere": [r(0, 1, 7)],
    "two winners": [w(0, 1, 1), cas(2, 9, 1, 2, True), cas(2, 9, 1, 3, True)],
    "reads disagree on the order of two writes": [
        *(w(0, 10, 1), w(0, 10, 2)),
        *(r(11, 12, 1), r(13, 14, 2)),
    ],
    "an unknown write seen, then not": [w(0, FOREVER, 1), r(5, 6, 1), r(7, 8, None)],
}


@pytest.mark.parametrize("name", GOOD)
def test_good_histories(name: str) -> None:
    assert linearizable_key(GOOD[name]) is True
    assert linearizable(GOOD[name]).ok


@pytest.mark.parametrize("name", BAD)
def test_bad_histories(name: str) -> None:
    assert linearizable_key(BAD[name]) is False
    assert not linearizable(BAD[name]).ok


def test_keys_are_judged_apart() -> None:
    history = [w(0, 1, 1, "a"), r(2, 3, 1, "a"), w(0, 1, 1, "b"), r(2, 3, None, "b")]
    assert linearizable(history).problems == ["key 'b': no order explains 2 operations"]


def test_an_undecided_key_is_named() -> None:
    verdict = linearizable([w(0, 100, i) for i in range(20)], steps_max=10)
    assert verdict.undecided == ["k"]
    assert not verdict.ok


def _brute_force(history: list[Operation]) -> bool:
    ended = [o for o in history if o.returned != FOREVER]
    pending = [o for o in history if o.returned == FOREVER]
    for count in range(len(pending) + 1):
        for extra in itertools.combinations(pending, count):
            for order in itertools.permutations([*ended, *extra]):
                if _explains(order):
                    return True
    return False


def _explains(order: tuple[Operation, ...]) -> bool:
    state = None
    for position, operation in enumerate(order):
        if any(later.returned < operation.called for later in order[position + 1 :]):
            return False
        possible, state = register_step(state, operation)
        if not possible:
            return False
    return True


@st.composite
def _histories(draw: st.DrawFn) -> list[Operation]:
    history = []
    for _ in range(draw(st.integers(0, 5))):
        called = draw(st.integers(0, 8))
        returned: float = called + draw(st.integers(1, 6)) + 0.5
        if draw(st.integers(0, 4)) == 0:
            returned = FOREVER
        kind = draw(st.sampled_from(["w", "r", "c"]))
        value = draw(st.sampled_from([None, 1, 2]))
        if kind == "w":
            history.append(w(called, returned, value))
        elif kind == "r":
            history.append(r(called, returned, value))
        else:
            other = draw(st.sampled_from([None, 1, 2]))
            history.append(cas(called, returned, value, other, draw(st.booleans())))
    return history


@settings(max_examples=400, deadline=None)
@given(_histories())
def test_the_search_agrees_with_brute_force(history: list[Operation]) -> None:
    assert linearizable_key(history) is _brute_force(history)


# ---- revisions -------------------------------------------------------------------------


def write(called: float, returned: float, revision: int, **changes: Any) -> Write:
    return Write(called, returned, revision, tuple(changes.items()))


def read(called: float, returned: float, revision: int, **seen: Any) -> Read:
    return Read(called, returned, revision, tuple(seen.items()))


def test_good_revisions() -> None:
    writes = [write(0, 5, 1, a=1, b=1), write(1, 4, 2, a=2), write(6, 7, 3, b=None)]
    reads = [read(2, 3, 1, a=1), read(8, 9, 3, a=2, b=None), read(6.5, 6.6, 2, b=1)]
    assert revisions(writes, reads) == []


@pytest.mark.parametrize(
    ("writes", "reads", "problem"),
    [
        ([write(0, 1, 1, a=1), write(2, 3, 1, a=2)], [], "given twice"),
        ([write(0, 1, 2, a=1), write(2, 3, 1, a=2)], [], "was called after 2"),
        ([write(0, 1, 1, a=1)], [read(2, 3, 0, a=None)], "called after revision 1"),
        ([write(0, 1, 1, a=1)], [read(2, 3, 1, a=9)], "it was 1"),
        ([write(0, 1, 1, a=1, b=1)], [read(2, 3, 1, a=1, b=None)], "it was 1"),
        ([write(0, 9, 1, a=1)], [read(1, 2, 1, a=1), read(3, 4, 0, a=None)], "read at 1"),
    ],
)
def test_bad_revisions(writes: list[Write], reads: list[Read], problem: str) -> None:
    found = revisions(writes, reads)
    assert found
    assert any(problem in text for text in found), found


def test_an_unexplained_value_may_come_from_an_unknown_write() -> None:
    writes, reads = [write(0, 1, 1, a=1)], [read(2, 3, 5, a=9)]
    assert revisions(writes, reads, unknown=True) == []
    stale = [read(4, 5, 2, a=None)]
    assert revisions(writes, stale) != []
