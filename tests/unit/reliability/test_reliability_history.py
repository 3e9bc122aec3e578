"""Histories as clients note them, good and bad, and what is said of them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from reliability_faults import FAULTS, Bag
from reliability_history import (
    Call,
    acknowledgements,
    check_linearizable,
    check_once,
    check_revisions,
    check_store,
    check_tasks,
    count_outcomes,
    longest_pause_s,
    noticed,
    operations,
    read_history,
    read_ledger,
)

FINAL = Call("final", "final", "once/", 90, 91, None, {})


def put(
    called: float, returned: float | None, value: str, revision: int, key: str = "k/0/0"
) -> Call:
    return Call("a", "put", key, called, returned, value, None, revision)


def get(
    called: float, returned: float, value: str | None, revision: int, key: str = "k/0/0"
) -> Call:
    return Call("b", "get", key, called, returned, None, value, revision)


def swap(called: float, returned: float | None, old: str | None, new: str, did: Any) -> Call:
    revision = int(called) if did else 0
    return Call("a", "cas", "k/0/0", called, returned, [old, new], did, revision)


def seen_together(called: float, **values: tuple[str, int]) -> Call:
    keys = ["g/0/a", "g/0/b"]
    found = {f"g/0/{key}": list(value) for key, value in values.items()}
    return Call("b", "list", "g/0/", called, called + 1, keys, found)


def change(called: float, returned: float | None, old: str | None, did: bool | None) -> Call:
    argument = [["g/0/a", old, "x9"], ["g/0/b", "y9"]]
    revision = int(called) if did else 0
    return Call("a", "txn", "g/0", called, returned, argument, did, revision)


GROUP = [put(0, 1, "x1", 1, "g/0/a"), put(2, 3, "y1", 2, "g/0/b"), put(4, 5, "x2", 3, "g/0/a")]
GOOD = {
    "write, then read": [put(0, 1, "x", 1), get(2, 3, "x", 1)],
    "an unknown write seen": [put(0, None, "x", 0), get(2, 3, "x", 4)],
    "an unknown write not seen": [put(0, None, "x", 0), get(2, 3, None, 0)],
    "deleted and read": [
        put(0, 1, "x", 1),
        Call("a", "delete", "k/0/0", 2, 3, None, True),
        get(4, 5, None, 0),
    ],
    "nothing to delete": [Call("a", "delete", "k/0/0", 2, 3, None, False), get(4, 5, None, 0)],
    "an unknown delete": [
        put(0, 1, "x", 1),
        Call("a", "delete", "k/0/0", 2, None),
        get(4, 5, None, 0),
    ],
    "one of two swaps": [
        put(0, 1, "x", 1),
        swap(2, 9, "x", "y", True),
        swap(2, 9, "x", "z", False),
    ],
    "a group read between two writes": [*GROUP, seen_together(3.5, a=("x1", 1), b=("y1", 2))],
    "a transaction and what it left": [
        *GROUP,
        change(6, 7, "x2", True),
        seen_together(8, a=("x9", 6), b=("y9", 6)),
    ],
    "a transaction that found another value": [
        *GROUP,
        change(6, 7, "x1", False),
        seen_together(8, a=("x2", 3), b=("y1", 2)),
    ],
    "an unknown transaction, seen": [
        *GROUP,
        change(6, None, "x2", None),
        seen_together(8, a=("x9", 6), b=("y9", 6)),
    ],
    "an unknown transaction, not seen": [
        *GROUP,
        change(6, None, "x2", None),
        seen_together(8, a=("x2", 3), b=("y1", 2)),
    ],
    "a stale read": [put(0, 1, "x", 1), Call("b", "stale", "k/0/0", 2, 3, None, None, 0)],
}
BAD = {
    "a lost write": [put(0, 1, "x", 1), get(2, 3, None, 0)],
    "an old value": [put(0, 1, "x", 1), put(2, 3, "y", 2), get(4, 5, "x", 1)],
    "a value from nowhere": [get(2, 3, "x", 1)],
    "a delete that did not happen": [
        put(0, 1, "x", 1),
        Call("a", "delete", "k/0/0", 2, 3, None, True),
        get(4, 5, "x", 1),
    ],
    "both of two swaps": [
        put(0, 1, "x", 1),
        swap(2, 9, "x", "y", True),
        swap(2, 9, "x", "z", True),
    ],
    "half of a transaction": [
        *GROUP,
        change(6, 7, "x2", True),
        seen_together(8, a=("x9", 6), b=("y1", 2)),
    ],
    "half of an unknown transaction": [
        *GROUP,
        change(6, None, "x2", None),
        seen_together(8, a=("x9", 6), b=("y1", 2)),
    ],
    "a transaction that should have been refused": [*GROUP, change(6, 7, "x1", True)],
    "a transaction said to have failed": [*GROUP, change(6, 7, "x2", False)],
    "a swap said to have failed": [swap(2, 3, None, "y", False), get(4, 5, "y", 2)],
}


@pytest.mark.parametrize("name", GOOD)
def test_what_a_correct_store_may_answer_passes(name: str) -> None:
    findings = check_store([*GOOD[name], FINAL])
    assert findings.ok, findings


@pytest.mark.parametrize("name", BAD)
def test_what_none_may_answer_is_found(name: str) -> None:
    assert check_store([*BAD[name], FINAL]).problems


def test_revisions_tell_what_single_keys_do_not() -> None:
    """Each key of the group has an order of its own; together they never were as read."""
    torn = [*GROUP, seen_together(3.5, a=("x2", 3), b=("y1", 2)), seen_together(6, a=("x2", 3))]
    assert any("it was 'y1'" in problem for problem in check_revisions(torn))
    late = [put(0, 1, "x", 5), put(2, 3, "y", 4, "k/0/1")]
    assert check_linearizable(late).ok
    assert any("called after" in problem for problem in check_revisions(late))


def test_a_write_applied_twice_shows_by_its_second_revision() -> None:
    twice = [put(0, None, "x", 0), get(1, 2, "x", 3), put(3, 4, "y", 4), get(5, 6, "x", 5)]
    assert any("applied at revisions [3, 5]" in problem for problem in check_revisions(twice))


def test_an_unknown_write_that_was_seen_is_held_to_its_call() -> None:
    """Its revision is known from the read: it cannot lie before what was over when it was made."""
    early = [put(0, 1, "x", 7, "k/0/1"), put(5, None, "y", 0), get(6, 7, "y", 3)]
    assert any("revision 3 was called after 7" in problem for problem in check_revisions(early))


def test_leaving_out_what_nobody_noticed_keeps_the_verdict() -> None:
    unseen = [put(n, None, f"u{n}", 0) for n in range(40)]
    calls = [*unseen, put(50, 51, "x", 60), get(52, 53, "x", 60), swap(54, 55, "w", "v", False)]
    assert len(noticed(list(operations(calls)))) == 2
    assert check_linearizable(calls).ok
    assert check_linearizable([*calls, get(60, 61, None, 0)]).problems


def once(key: str, returned: float | None, result: bool | None = True) -> Call:
    return Call("a", "once", f"once/{key}", 0, returned, key, result, 1 if returned else 0)


def test_what_was_written_once_is_there_at_the_end() -> None:
    calls = [once("x", 1), once("y", None), once("z", None)]
    assert (
        check_once([*calls, msgspec.structs.replace(FINAL, result={"once/x": "x", "once/z": "z"})])
        == []
    )
    assert check_once([*calls, FINAL]) == ["once/x was acknowledged and is None, not 'x'"]
    strange = msgspec.structs.replace(FINAL, result={"once/x": "x", "once/q": "q"})
    assert check_once([*calls, strange]) == ["once/q='q' is there and was never asked for"]
    assert "applied twice" in check_once([once("x", 1, False), FINAL])[0]
    assert check_once(calls) == ["the keys that were written once were not read at the end"]


def told(returned: float, mark: int, *changes: tuple[str, str, int], who: str = "w.1") -> Call:
    found = [[f"g/0/{key}", value, revision] for key, value, revision in changes]
    return Call(who, "watch", "g/", 0, returned, None, found, mark)


X1, Y1, X2 = ("a", "x1", 1), ("b", "y1", 2), ("a", "x2", 3)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([told(0.5, 0), told(1, 1, X1), told(5, 3, Y1, X2)], ""),
        ([told(0.5, 0), told(1, 1, X1), told(3, 2, Y1), told(9, 3, X2), told(12, 7)], ""),
        ([told(0.5, 1), told(3, 2, Y1)], ""),
        ([told(0.5, 0), told(1, 1, X1), told(5, 3, X2)], "'y1' at 2 was not told by 3"),
        ([told(0.5, 0), told(1, 1, X1), told(5, 3, X1, Y1, X2)], "at 1 was told after 1"),
        ([told(0.5, 0), told(5, 3, X1, X2, Y1)], "at 2 was told after 3"),
        ([told(0.5, 0), told(5, 2, X1, Y1, X2)], "a mark at 2 came after 3"),
        ([told(0.5, 0), told(5, 3, X1, Y1, ("a", "?", 3))], "never asked for"),
        ([told(0.5, 0), told(5, 3, X1, Y1, X2), told(6, 5, ("a", "x2", 5))], "at revisions [3, 5]"),
        ([msgspec.structs.replace(told(7, 2), called=6)], "called after revision 3"),
    ],
)
def test_a_watch_tells_every_change_once_and_in_order(answers: list[Call], expected: str) -> None:
    problems = check_store([*GROUP, *answers, FINAL]).problems
    assert bool(problems) == bool(expected), problems
    assert any(expected in problem for problem in problems) or not expected, problems


def submit(key: str, task_id: str, mode: str = "default") -> Call:
    return Call("a", "submit", key, 0, 1, mode, task_id)


@pytest.mark.parametrize(
    ("calls", "final", "ledger", "expected"),
    [
        ([submit("k", "1")], {"1": ("succeeded", 5)}, "k 5 1", ""),
        ([submit("k", "1")], {"1": ("succeeded", 7)}, "k 5 1\nk 7 2", ""),
        ([submit("k", "1"), submit("k", "1")], {"1": ("dead", 0)}, "k 5 1", ""),
        ([submit("k", "1", "at_most_once")], {"1": ("unknown", 0)}, "k 5 1", ""),
        ([submit("k", "1")], {"1": ("succeeded", 5)}, "k 5 1\nk 7 2", "fence 5 of [5, 7]"),
        ([submit("k", "1")], {"1": ("succeeded", 5)}, "", "fence 5 of []"),
        ([submit("k", "1")], {}, "k 5 1", "was acknowledged and is missing"),
        ([submit("k", "1")], {"1": ("running", 0)}, "k 5 1", "was acknowledged and is running"),
        ([submit("k", "1")], {"1": ("unknown", 0)}, "k 5 1", "is default and ended unknown"),
        ([submit("k", "1", "exclusive")], {"1": ("failed", 0)}, "k 5 1", "ended failed"),
        (
            [submit("k", "1"), submit("k", "2")],
            {"1": ("dead", 0), "2": ("dead", 0)},
            "",
            "is 2 tasks",
        ),
        ([submit("k", "1"), submit("l", "1")], {"1": ("dead", 0)}, "", "are one task"),
        ([submit("k", "1")], {"1": ("succeeded", 5)}, "k 5 1\nk 5 1", "twice under one fence"),
        (
            [submit("k", "1", "at_most_once")],
            {"1": ("succeeded", 7)},
            "k 5 1\nk 7 2",
            "at_most_once and started 2 times",
        ),
        (
            [submit("k", "1"), Call("a", "task", "1", 0, 1, None, ["succeeded", 5])],
            {"1": ("failed", 0)},
            "k 5 1",
            "was ('succeeded', 5) and is ('failed', 0)",
        ),
    ],
)
def test_tasks_are_held_against_the_ledger(
    calls: list[Call], final: dict[str, tuple[str, int]], ledger: str, expected: str
) -> None:
    problems = check_tasks(calls, final, read_ledger(ledger))
    assert bool(problems) == bool(expected)
    assert any(expected in problem for problem in problems) or not expected, problems


def test_the_longest_pause_reaches_into_and_out_of_the_fault() -> None:
    times = [1.0, 2.0, 5.0, 6.0, 7.0, 20.0]
    assert longest_pause_s(times, 3.0, 4.0) == 3.0
    assert longest_pause_s(times, 5.5, 6.5) == 1.0
    assert longest_pause_s(times, 6.5, 25.0) == 13.0
    assert longest_pause_s([], 1.0, 4.0) == 3.0
    calls = [put(0, 1, "x", 1), put(2, None, "y", 0), swap(3, 4, "a", "b", False), FINAL]
    assert acknowledgements(calls) == [1]
    assert count_outcomes(calls)["put"] == {"answered": 1, "unknown": 1}


def test_a_history_reads_as_it_was_noted(tmp_path: Path) -> None:
    calls = [put(5, 6, "x", 1), swap(1, None, None, "y", None), seen_together(2, a=("x1", 1))]
    file = tmp_path / "history"
    file.write_bytes(b"".join(msgspec.json.encode(call) + b"\n" for call in calls))
    assert read_history([file]) == sorted(calls, key=lambda call: call.called)


def test_every_kind_of_fault_comes_before_any_comes_again() -> None:
    def drawn(seed: int) -> list[list[str]]:
        bag = Bag(list(FAULTS), random.Random(seed))
        found = []
        while not bag.emptied:
            found.append([fault.name for fault in bag.draw()])
        return found

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert sorted(names[0] for names in drawn(3)) == sorted(kind.name for kind in FAULTS)
    alone = {kind.name for kind in FAULTS if kind.alone}
    assert all(
        not alone.intersection(names) for s in range(20) for names in drawn(s) if len(names) > 1
    )
