"""The checkers, held against histories of known verdict and against brute force."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
from histories import (
    BAD,
    BAD_REVISIONS,
    GOOD,
    GOOD_REVISIONS,
    cas,
    maybe,
    r,
    read,
    w,
    write,
)
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
from swarmd.sim.history import History


@pytest.mark.parametrize("name", GOOD)
def test_good_histories(name: str) -> None:
    assert linearizable_key(GOOD[name]) is True
    assert linearizable(GOOD[name]).ok


@pytest.mark.parametrize("name", BAD)
def test_bad_histories(name: str) -> None:
    assert linearizable_key(BAD[name]) is False
    assert not linearizable(BAD[name]).ok


@pytest.mark.parametrize("name", [n for n in GOOD if len(GOOD[n]) < 9])
def test_the_bank_of_good_histories_is_right(name: str) -> None:
    assert _brute_force(GOOD[name])


@pytest.mark.parametrize("name", [n for n in BAD if len(BAD[n]) < 9])
def test_the_bank_of_bad_histories_is_right(name: str) -> None:
    assert not _brute_force(BAD[name])


def test_keys_are_judged_apart() -> None:
    history = [w(0, 1, 1, "a"), r(2, 3, 1, "a"), w(0, 1, 1, "b"), r(2, 3, None, "b")]
    assert linearizable(history).problems == ["key 'b': no order explains 2 operations"]


def test_an_undecided_key_is_named() -> None:
    verdict = linearizable([w(0, 100, i) for i in range(20)], steps_max=10)
    assert verdict.undecided == ["k"]
    assert not verdict.ok


def test_many_unknown_outcomes_do_not_make_the_search_endless() -> None:
    """Goal: writes that never ended stay in question for ever, but not exponentially so.

    Method: 200 of them beside 200 that ended; half were seen, and one read is stale or not.
    """
    rng = random.Random(5)
    history: list[Operation] = []
    for n in range(200):
        at = n * 10
        history += [w(at, at + 1, n), r(at + 2, at + 3, n), w(at + 4, FOREVER, f"u{n}")]
        if rng.random() < 0.5:
            history.append(r(at + 5, at + 6, f"u{n}"))
        history.append(cas(at + 7, at + 8, "nothing", 1, False))
    assert linearizable_key(history, steps_max=20_000) is True
    assert linearizable_key([*history, r(1_999.5, 1_999.6, 3)], steps_max=200_000) is False


# ---- other objects: the queue of Herlihy and Wing (1990), figure 1 -----------------------


def _queue_step(state: Any, operation: Operation) -> tuple[bool, Any]:
    queue = state or ()
    if operation.kind == "enqueue":
        return True, (*queue, operation.argument)
    return bool(queue) and queue[0] == operation.result, queue[1:]


def _enqueue(called: float, returned: float, item: str) -> Operation:
    return Operation("q", "enqueue", called, returned, item)


def _dequeue(called: float, returned: float, item: str) -> Operation:
    return Operation("q", "dequeue", called, returned, None, item)


@pytest.mark.parametrize(
    ("history", "verdict"),
    [
        # Two overlapping enqueues may come in either order.
        (
            [
                *(_enqueue(0, 3, "x"), _enqueue(1, 2, "y"), _dequeue(4, 7, "x")),
                *(_dequeue(5, 6, "y"), _enqueue(8, 9, "z")),
            ],
            True,
        ),
        # x was there before y, so y may not come out first.
        ([_enqueue(0, 1, "x"), _enqueue(2, 3, "y"), _dequeue(4, 5, "y")], False),
        # An enqueue may take effect before it returns.
        ([_enqueue(0, 9, "x"), _dequeue(1, 2, "x")], True),
        # One item comes out twice.
        (
            [
                *(_enqueue(0, 3, "x"), _enqueue(1, 2, "y")),
                *(_dequeue(4, 7, "y"), _dequeue(5, 6, "y")),
            ],
            False,
        ),
    ],
)
def test_a_queue(history: list[Operation], verdict: bool) -> None:
    assert linearizable_key(history, step=_queue_step) is verdict


# ---- against brute force -----------------------------------------------------------------


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
    for _ in range(draw(st.integers(0, 6))):
        called = draw(st.integers(0, 8))
        returned: float = called + draw(st.integers(1, 6)) + 0.5
        if draw(st.integers(0, 3)) == 0:
            returned = FOREVER
        kind = draw(st.sampled_from(["w", "r", "c"]))
        value = draw(st.sampled_from([None, 1, 2, 3]))
        if kind == "w":
            history.append(w(called, returned, value))
        elif kind == "r":
            history.append(r(called, returned, value))
        else:
            other = draw(st.sampled_from([None, 1, 2, 3]))
            history.append(cas(called, returned, value, other, draw(st.booleans())))
    return history


@settings(max_examples=1_000, deadline=None)
@given(_histories())
def test_the_search_agrees_with_brute_force(history: list[Operation]) -> None:
    assert linearizable_key(history) is _brute_force(history)


class _Register:
    """A register that really is linearizable: every call takes effect within its interval."""

    def __init__(self, rng: random.Random, count: int, width: float) -> None:
        moments = []
        for number in range(count):
            called = rng.uniform(0, count)
            returned = called + rng.uniform(0.1, width)
            unknown = rng.random() < 0.15
            moments.append((rng.uniform(called, returned), called, returned, unknown, number))
        state: Any = None
        self.history: list[Operation] = []
        for _, called, returned, unknown, number in sorted(moments):
            end = FOREVER if unknown else returned
            kind = rng.choice(("write", "write", "read", "read", "cas"))
            old = state if rng.random() < 0.6 else rng.randrange(count)
            argument = {"write": number, "read": None, "cas": (old, number)}[kind]
            operation = Operation("k", kind, called, end, argument)
            happens = not unknown or rng.random() < 0.5
            did = state == old
            result = {"write": None, "read": state, "cas": did}[kind]
            if happens and kind != "read":
                state = number if kind == "write" or did else state
            self.history.append(replace(operation, result=result))


def _spoilt(rng: random.Random, history: list[Operation]) -> list[Operation]:
    """The same with one fault: a read of another time, a win that was none, a call moved."""
    at = rng.randrange(len(history))
    one = history[at]
    if one.kind == "read":
        others = [o.argument for o in history if o.kind == "write"]
        spoilt = replace(one, result=rng.choice([*others, None]))
    elif one.kind == "cas":
        spoilt = replace(one, result=not one.result)
    elif one.returned == FOREVER:
        spoilt = replace(one, returned=one.called + 0.1)
    else:
        spoilt = replace(one, called=one.called + 3, returned=one.returned + 3)
    return [*history[:at], spoilt, *history[at + 1 :]]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_what_a_linearizable_register_does_is_accepted_and_a_fault_is_not(seed: int) -> None:
    rng = random.Random(seed)
    history = _Register(rng, rng.randrange(1, 7), rng.choice((0.5, 2.0, 6.0))).history
    assert linearizable_key(history) is True
    spoilt = _spoilt(rng, history)
    assert linearizable_key(spoilt) is _brute_force(spoilt)


@pytest.mark.parametrize("seed", range(20))
def test_long_histories_of_a_linearizable_register_are_accepted(seed: int) -> None:
    rng = random.Random(seed)
    history = _Register(rng, 600, 5.0).history
    assert linearizable_key(history, steps_max=200_000) is True


def test_most_faults_in_long_histories_are_found() -> None:
    """A stale read in a thousand operations is found, and quickly."""
    found = 0
    for seed in range(20):
        rng = random.Random(seed)
        history = _Register(rng, 300, 3.0).history
        late = max(o.returned for o in history if o.returned != FOREVER)
        first = next(o.argument for o in history if o.kind == "write" and o.returned != FOREVER)
        spoilt = [*history, r(late + 1, late + 2, first)]
        found += linearizable_key(spoilt, steps_max=500_000) is False
    assert found == 20


# ---- revisions ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOOD_REVISIONS)
def test_good_revisions(name: str) -> None:
    writes, reads, unknown = GOOD_REVISIONS[name]
    assert revisions(writes, reads, maybe=unknown) == []


@pytest.mark.parametrize("name", BAD_REVISIONS)
def test_bad_revisions(name: str) -> None:
    writes, reads, unknown, problem = BAD_REVISIONS[name]
    found = revisions(writes, reads, maybe=unknown)
    assert found
    assert any(problem in text for text in found), found


def test_an_unexplained_value_may_come_from_an_unknown_write() -> None:
    writes, reads = [write(0, 1, 1, a=1)], [read(2, 3, 5, a=9)]
    assert revisions(writes, reads, unknown=True) == []
    assert revisions(writes, reads) != []
    stale = [read(4, 5, 2, a=None)]
    assert revisions(writes, stale, unknown=True) != []


class _Store:
    """A store that really is strictly serializable, and what its callers were told."""

    KEYS = "abc"

    def __init__(self, rng: random.Random, count: int) -> None:
        self.writes: list[Write] = []
        self.reads: list[Read] = []
        self.unknown: list[Write] = []
        state: dict[str, tuple[Any, int]] = dict.fromkeys(self.KEYS, (None, 0))
        revision = 0
        points = sorted(
            (rng.uniform(0, count), rng.uniform(0, 3), number) for number in range(count)
        )
        for at, width, number in points:
            called, returned = at - width * rng.random(), at + width * rng.random()
            keys = rng.sample(self.KEYS, rng.randrange(1, 4))
            if rng.random() < 0.5:
                seen = tuple((key, state[key][0]) for key in keys)
                modified = tuple(state[key][1] for key in keys)
                self.reads.append(Read(called, returned, revision, seen, modified))
                continue
            changes = tuple((key, (number, key)) for key in keys)
            lost, happens = rng.random() < 0.2, rng.random() < 0.5
            if lost:
                self.unknown.append(Write(called, FOREVER, 0, changes))
            if lost and not happens:
                continue
            revision += 1
            state.update({key: (value, revision) for key, value in changes})
            if not lost:
                self.writes.append(Write(called, returned, revision, changes))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_what_a_serializable_store_does_is_accepted_and_a_changed_read_is_not(seed: int) -> None:
    rng = random.Random(seed)
    store = _Store(rng, rng.randrange(2, 60))
    assert revisions(store.writes, store.reads, maybe=store.unknown) == []
    if not store.reads or not store.writes:
        return
    at = rng.randrange(len(store.reads))
    one = store.reads[at]
    (key, value), *rest = one.seen
    other = rng.choice([v for wrote in store.writes for k, v in wrote.changes] + [None])
    if other == value:
        return
    spoilt = Read(one.called, one.returned, one.revision, ((key, other), *rest), one.modified)
    reads = [*store.reads[:at], spoilt, *store.reads[at + 1 :]]
    assert revisions(store.writes, reads, maybe=store.unknown) != []


# ---- both, from one record -----------------------------------------------------------------


def test_a_history_goes_through_both_checkers() -> None:
    history = History()
    history.wrote(0, 1, 1, [(b"a", b"1"), (b"b", b"1")])
    history.swapped(2, 3, 2, b"a", b"1", b"2")
    history.compared(4, 5, b"a", b"1", b"3")
    history.may_have_swapped(6, b"b", b"1", b"4")
    history.may_have_written(6, [(b"c", b"5")])
    history.deleted(7, 8, b"a")
    history.read(9, 10, 4, [(b"a", None, 0), (b"b", b"4", 3), (b"c", None, 0)])
    assert history.verdict().ok
    history.read(11, 12, 2, [(b"a", b"2", 2)])
    texts = "\n".join(history.verdict().problems)
    assert "no order explains" in texts
    assert "called after a read at 4" in texts


def test_maybe_is_a_write_without_a_revision() -> None:
    assert maybe(1, a=2) == Write(1, FOREVER, 0, (("a", 2),))
