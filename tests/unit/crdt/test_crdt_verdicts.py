"""Why a cell of a key counts, or does not."""

from __future__ import annotations

from crdt_replicas import Group, actor

from swarmd.state.crdt.cells import Cell
from swarmd.state.crdt.types import documents
from swarmd.state.crdt.types.kinds import Kind
from swarmd.state.crdt.types.values import AddTo, Assign, Count, EditText, Operation
from swarmd.state.crdt.types.verdicts import verdicts
from swarmd.wire.codec import pack


def said(*operations: Operation, fields: tuple[str, ...] = ()) -> list[tuple[str, bool, str]]:
    """Of what as many replicas wrote at once: who, whether it counts, and why."""
    group = Group(max(2, len(operations)))
    for number, operation in enumerate(operations):
        group.write(number, operation, fields=fields)
    group.settle()
    return [
        (one.dot[0][:2].decode(), one.counts, one.why)
        for one in verdicts(group.replicas[0].cells.at("k"))
    ]


def cell(value: object, stamp: int, kind: Kind = Kind.REGISTER) -> Cell:
    return Cell((), kind, b"", pack(value), stamp)


def test_a_write_alone_counts() -> None:
    assert said(Assign(1)) == [("n0", True, "no other write stands beside it")]
    assert verdicts({}) == []


def test_the_latest_of_writes_at_once_counts() -> None:
    first, second, third = said(Assign(1), Assign(2), Assign(3))
    assert first == (
        "n2", True, "of writes that had not seen each other, its stamp is the latest"
    )  # fmt: skip
    assert second[:2] == ("n1", False)
    assert third[2] == "its stamp is earlier, and its writer had not seen the latest write"


def test_of_equal_stamps_the_greater_dot_counts() -> None:
    live = {(actor(name), 1): cell(name, 7) for name in ("a", "b")}
    first, second = verdicts(live)
    assert (first.dot[0], first.counts) == (actor("b"), True)
    assert "its dot is the greatest" in first.why
    assert not second.counts
    assert "its dot is less" in second.why


def test_of_two_kinds_the_lower_counts() -> None:
    first, second = said(Assign(1), AddTo(2))
    assert first == ("n1", False, "of two kinds that were put here at once the register counts")
    assert second == ("n0", True, "no other write stands beside it")


def test_what_stands_side_by_side_all_counts() -> None:
    for operations, why in (
        ((Assign(1, Kind.MULTI), Assign(2, Kind.MULTI)), "none of these writes had seen another"),
        ((AddTo(1), AddTo(1)), "added by several at once"),
        ((AddTo(1), AddTo(2)), "not removed by anybody"),
        ((Count(1), Count(2)), "the sum of all"),
        ((EditText(0, "a"), EditText(0, "b")), "each is in the document"),
    ):
        for fields in ((), ("x", "y")):
            for _, counts, told in said(*operations, fields=fields):
                assert counts
                assert why in told


def test_bytes_that_no_build_writes_count_nowhere() -> None:
    dot = (actor("a"), 1)
    for kind in (Kind.REGISTER, Kind.MULTI, Kind.COUNTER, Kind.TEXT, Kind.LIST):
        [one] = verdicts({dot: Cell((), kind, b"", b"\xc1", 1)})
        assert not one.counts
        assert "no build of swarmd writes such bytes" in one.why
    [one] = verdicts({dot: Cell((), Kind.SET, b"\xc1", b"", 1)})
    assert not one.counts
    text = documents.edit({}, dot, 1, 0, 0, "a").put
    assert text is not None
    [one] = verdicts({dot: Cell((), Kind.LIST, b"", text.value, 1)})
    assert not one.counts, "a text in a list is not read"
