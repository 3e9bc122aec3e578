"""Types of the eventual store: what every one of them keeps, in any order and with any loss."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
from crdt_replicas import Group, Step, actor, run, try_runs
from hypothesis import settings

from swarmd.base.errors import BadRequest, MalformedMessage, NotFound, WrongType
from swarmd.state.crdt.cells import Cell, Cells, Change, Gap
from swarmd.state.crdt.clock import HybridClock, ms_of
from swarmd.state.crdt.dots import Context
from swarmd.state.crdt.types.counters import SUM_MAX
from swarmd.state.crdt.types.kinds import Kind
from swarmd.state.crdt.types.values import (
    AddTo,
    Assign,
    Count,
    Remove,
    TakeFrom,
    change,
    kind_of,
    read,
)

KINDS = [Kind.REGISTER, Kind.MULTI, Kind.TALLY, Kind.COUNTER, Kind.SET, Kind.MAP]
FEW = settings(max_examples=150, deadline=None)
MANY = settings(max_examples=10_000, deadline=None)


def holds(kind: Kind, count: int, steps: list[Step]) -> None:
    """All that is promised of a type, of one run."""
    group = run(kind, count, steps)
    a, b, c = (one.cells for one in group.replicas[:3])
    is_a_join(a, b, c)
    group.settle()
    first = group.replicas[0].cells
    for replica in group.replicas[1:]:
        assert replica.cells == first, "replicas that have seen the same hold the same"
    assert group.held() == group.expected()
    assert not first.context.beyond, "what came early has come"
    if kind in (Kind.TALLY, Kind.COUNTER) and not any(
        isinstance(event.operation, Remove) for event in group.events.values()
    ):
        steps_sum = sum(e.operation.by for e in group.events.values())  # type: ignore[union-attr]
        assert (_value(first) or 0) == steps_sum


def is_a_join(a: Cells, b: Cells, c: Cells) -> None:
    def joined(*parts: Cells) -> Cells:
        whole = Cells()
        for part in parts:
            whole.join(part)
        return whole

    assert joined(a, b) == joined(b, a), "commutative"
    assert joined(joined(a, b), c) == joined(a, joined(b, c)), "associative"
    assert joined(a, a) == joined(a) == a, "idempotent, and above nothing"
    twice = joined(a, b)
    assert twice.join(b) == set()
    assert twice.join(a) == set()


def _value(cells: Cells) -> object:
    try:
        return read(cells.at("k"))
    except NotFound:
        return None


@pytest.mark.parametrize("kind", KINDS)
def test_a_type_converges_and_loses_nothing(kind: Kind) -> None:
    try_runs(FEW, partial(holds, kind))


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_type_converges_in_ten_thousand_cases(kind: Kind) -> None:
    try_runs(MANY, partial(holds, kind))


# ---- what others once had wrong ------------------------------------------------------------


def test_an_element_that_two_add_and_a_third_removes_is_in_where_one_was_not_seen() -> None:
    group = Group(3)
    group.write(0, AddTo("x"))
    group.catch_up(2, 0)
    group.write(1, AddTo("x"))
    assert group.write(2, TakeFrom("x"))
    group.settle()
    assert _value(group.replicas[0].cells) == ["x"]
    assert {dot[0] for dot in group.held()["k"]} == {group.replicas[1].me}


def test_an_element_that_was_removed_and_added_again_is_not_removed_by_the_old_news() -> None:
    group = Group(3)
    for _ in range(2):
        group.write(0, AddTo("x"))
        group.write(0, TakeFrom("x"))
    group.write(0, AddTo("x"))
    group.join(1, 0)
    for _ in range(2):  # All of it once more, in order.
        group.catch_up(1, 0)
    assert _value(group.replicas[1].cells) == ["x"]
    late = group.replicas[2]
    late.cells.join(group.replicas[1].cells)
    assert _value(late.cells) == ["x"]


def test_a_removal_that_comes_before_what_it_removes_holds() -> None:
    group = Group(3)
    group.write(0, AddTo("x"))
    group.catch_up(1, 0)
    group.write(1, TakeFrom("x"))
    group.catch_up(2, 1)
    assert group.replicas[2].cells.context.beyond
    assert _value(group.replicas[2].cells) is None
    group.catch_up(2, 0)
    assert _value(group.replicas[2].cells) is None
    assert not group.replicas[2].cells.context.beyond


def test_a_field_that_is_removed_and_changed_at_once_keeps_the_change_alone() -> None:
    group = Group(3)
    group.write(0, AddTo("old"), fields=("tags",))
    group.catch_up(1, 0)
    group.write(0, Remove(), fields=("tags",))
    group.write(1, AddTo("new"), fields=("tags",))
    group.settle()
    assert _value(group.replicas[0].cells) == {"tags": ["new"]}


def test_a_new_life_of_a_node_whose_disk_was_lost_writes_under_another_name() -> None:
    """Under its old name its first change would pass for one that others have seen."""
    group = Group(3)
    group.write(0, Assign("before"))
    group.join(1, 0)
    group.replicas[0].cells = Cells()
    group.replicas[0].me = actor("n0-again")
    group.logs[group.replicas[0].me] = []
    group.write(0, Assign("after"))
    group.join(1, 0)
    group.join(0, 1)
    assert _value(group.replicas[1].cells) == _value(group.replicas[0].cells) == "after"


def test_who_comes_back_from_an_old_copy_brings_nothing_back() -> None:
    group = Group(3)
    group.write(0, AddTo("x"))
    group.join(1, 0)
    copy = deepcopy(group.replicas[1].cells)
    group.write(0, TakeFrom("x"))
    group.join(1, 0)
    group.replicas[2].cells = copy
    for a, b in ((1, 2), (2, 1)):
        group.join(a, b)
        assert _value(group.replicas[a].cells) is None


# ---- what values mean ----------------------------------------------------------------------


def test_the_latest_write_of_a_register_counts_and_all_of_a_multi_register_stand() -> None:
    for kind, expected in ((Kind.REGISTER, 2), (Kind.MULTI, [1, 2])):
        group = Group(3)
        group.write(0, Assign(1, kind))
        group.write(1, Assign(2, kind))
        group.settle()
        assert _value(group.replicas[2].cells) == expected
        group.write(2, Assign(3, kind))
        group.settle()
        assert _value(group.replicas[0].cells) == (3 if kind is Kind.REGISTER else [3])


def test_a_key_has_one_type_and_so_has_a_field() -> None:
    group = Group(3)
    group.write(0, Count(1), fields=("hits",))
    live = group.replicas[0].cells.at("k")

    def refused(operation: object, *fields: str) -> str:
        with pytest.raises(WrongType) as caught:
            change(live, "k", operation, actor=actor("n0"), stamp=9, fields=fields)  # type: ignore[arg-type]
        return caught.value.message

    assert "k is a map and no register" in refused(Assign(1))
    assert "k / hits is a counter and no set" in refused(AddTo(1), "hits")
    assert "k / hits is a counter and no map" in refused(Assign(1), "hits", "deep")
    assert group.write(0, Remove(), fields=("hits",))
    assert group.write(0, AddTo(1), fields=("hits",))


def test_two_types_put_at_one_key_at_once_leave_the_same_one_everywhere() -> None:
    group = Group(3)
    group.write(0, AddTo("x"))
    group.write(1, Assign("y"))
    group.settle()
    assert [_value(one.cells) for one in group.replicas] == ["y"] * 3
    assert kind_of(group.replicas[0].cells.at("k")) is Kind.REGISTER
    group.write(2, Remove())
    group.settle()
    assert _value(group.replicas[0].cells) is None
    assert group.held() == {}


def test_elements_are_told_apart_by_their_type() -> None:
    group = Group(1)
    for element in (1, "1", 1.0, True):
        group.write(0, AddTo(element))
    group.write(0, TakeFrom(1))
    assert _value(group.replicas[0].cells) in (["1", 1.0, True], [True, "1", 1.0], [True, 1.0, "1"])


def test_a_counter_counts_within_what_can_be_carried() -> None:
    group = Group(1)
    assert group.write(0, Count(SUM_MAX))
    assert not group.write(0, Count(1))
    assert _value(group.replicas[0].cells) == SUM_MAX
    with pytest.raises(BadRequest, match="only grows"):
        change({}, "k", Count(-1, Kind.TALLY), actor=actor("n0"), stamp=1)


def test_bytes_that_no_build_writes_are_read_as_nothing() -> None:
    dot = (actor("n0"), 1)
    for kind, nothing in (
        (Kind.REGISTER, None), (Kind.MULTI, []), (Kind.COUNTER, 0), (Kind.TALLY, 0),
    ):  # fmt: skip
        for value in (b"", b"\xc1", b"\xcb" + bytes(3), b"\xa1\xff"):
            cells = Cells()
            cells.apply(dot, Change("k", Cell((), kind, b"", value, 1), ()))
            assert _value(cells) == nothing
    cells = Cells()
    cells.apply(dot, Change("k", Cell((), Kind.SET, b"\xc1", b"", 1), ()))
    assert _value(cells) == []


# ---- how cells are kept ----------------------------------------------------------------------


def _kept(stamp: int, **more: Any) -> Change:
    cell = Cell(more.pop("fields", ()), Kind.REGISTER, b"", b"\1", stamp, **more)
    return Change(f"k{stamp}", cell, ())


def test_cells_come_back_as_they_were_whatever_is_in_them() -> None:
    cells = Cells()
    shapes = [_kept(1), _kept(2, expires_ms=5), _kept(3, fields=("a", "b")), _kept(2**60)]
    for number, one in enumerate(shapes):
        cells.apply((actor(f"n{number % 2}"), number // 2 + 1), one)
    cells.apply((actor("n1"), 3), Change("k1", Cell((), Kind.SET, b"\2", b"", 4), ()))
    assert [cells.at(one.key)[actor(f"n{n % 2}"), n // 2 + 1] for n, one in enumerate(shapes)] == [
        one.cell for one in shapes
    ]
    assert len(cells.at("k1")) == 2
    actors, lone, several = cells.kept()
    again = Cells()
    again.context.join(cells.context)
    again.restore(actors, lone)
    for key, dot, cell in several:
        again.hold(key, dot, cell)
    assert again == cells
    assert list(again) == list(cells) == sorted(one.key for one in shapes)
    assert list(again.keys_from("k2")) == ["k2", "k3"]
    assert again.expiring() == ["k2", "k3"], "of a nested one it is not told without a look"
    assert again.latest == cells.latest == 2**60


def test_places_of_actors_that_put_nothing_any_more_are_used_again() -> None:
    cells = Cells()
    for number in range(3):
        cells.apply((actor(f"n{number}"), 1), _kept(number + 1))
    cells.apply((actor("n1"), 2), Change("k2", None, ((actor("n1"), 1),)))
    again = Cells()
    again.context.join(cells.context)
    again.restore(*cells.kept()[:2])
    again.apply((actor("n7"), 1), _kept(9))
    actors, lone, _ = again.kept()
    assert set(actors) == {actor("n0"), actor("n2"), actor("n7")}
    assert {key: dict(again.at(key)) for key, _ in lone} == {
        "k1": {(actor("n0"), 1): _kept(1).cell},
        "k3": {(actor("n2"), 1): _kept(3).cell},
        "k9": {(actor("n7"), 1): _kept(9).cell},
    }


@pytest.mark.parametrize("packed", [b"", b"\xc1", b"\x95\1\1\1\xc4\1a\1", b"\x95\0\2\1\xc4\1a\1"])
def test_a_packed_cell_that_no_build_writes_is_refused(packed: bytes) -> None:
    cells = Cells()
    cells.context.see((actor("n0"), 1))
    with pytest.raises(MalformedMessage):
        cells.restore([actor("n0")], [("k", packed)])


# ---- dots and clocks -----------------------------------------------------------------------


def test_a_change_before_those_that_precede_it_is_refused_and_changes_nothing() -> None:
    cells = Cells()
    with pytest.raises(Gap):
        cells.apply((actor("n0"), 2), Change("k", Cell((), Kind.REGISTER, b"", b"\1", 1), ()))
    assert cells == Cells()


def test_a_removal_at_another_key_does_not_reach_what_comes_later() -> None:
    """Where it came the other way round it did not either: replicas stay equal."""
    put = Change("k", Cell((), Kind.REGISTER, b"", b"\1", 1), ())
    stray = Change("other", None, ((actor("a"), 1),))
    one, two = Cells(), Cells()
    for cells, order in ((one, "pr"), (two, "rp")):
        for which in order:
            if which == "p":
                cells.apply((actor("a"), 1), put)
            else:
                cells.apply((actor("b"), 1), stray)
    assert one == two
    assert _value(one) == 1


def test_a_context_covers_what_either_has_seen() -> None:
    a, b = actor("a"), actor("b")
    one = Context({a: 3}, {(b, 2): "k"})
    one.join(Context({b: 2, a: 1}))
    assert one == Context({a: 3, b: 2})
    assert one.has_seen((b, 2))
    assert not one.has_seen((b, 3))


def test_stamps_rise_and_follow_what_was_seen() -> None:
    clock = HybridClock()
    stamps = [clock.tick(5), clock.tick(5), clock.tick(4)]
    assert stamps == sorted(set(stamps))
    assert ms_of(stamps[0]) == 5
    clock.witness(HybridClock().tick(9_000))
    assert ms_of(clock.tick(6)) == 9_000
