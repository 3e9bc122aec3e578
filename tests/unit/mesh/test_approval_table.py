"""Who waits to be approved at one member: bounded, forgotten, denied."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from swarmd.base.errors import Busy, Forbidden
from swarmd.mesh.approval.table import (
    DENIED_MAX,
    DENIED_S,
    FORGET_S,
    WAITING_MAX,
    WAITING_PER_ADDRESS_MAX,
    WaitingTable,
)


def mark(number: int) -> bytes:
    return number.to_bytes(10, "big")


@pytest.fixture
def ask() -> Callable[..., WaitingTable]:
    table = WaitingTable()

    def one(number: int, host: str = "", now: float = 0.0) -> WaitingTable:
        at = host or f"10.0.{number // 200}.{number % 200}"
        table.ask(mark(number), b"key", b"request %d" % number, at, now)
        return table

    return one


def test_one_line_each_and_the_first_time_is_kept(ask: Callable[..., WaitingTable]) -> None:
    ask(1, now=10.0)
    ask(2, now=5.0)
    table = ask(1, "10.0.0.9", now=20.0)
    two, one = table.waiting(21.0)
    assert (two.fingerprint, one.fingerprint) == (mark(2), mark(1))
    assert (one.first_s, one.last_s, one.host) == (10.0, 20.0, "10.0.0.9")
    table.remove(mark(1))
    assert [x.fingerprint for x in table.waiting(21.0)] == [mark(2)]


def test_who_asks_no_more_is_forgotten(ask: Callable[..., WaitingTable]) -> None:
    ask(1)
    table = ask(2, now=FORGET_S - 1)
    assert [x.fingerprint for x in table.waiting(FORGET_S - 1)] == [mark(1), mark(2)]
    assert [x.fingerprint for x in table.waiting(FORGET_S)] == [mark(2)]


def test_strangers_fill_no_more_than_their_places(ask: Callable[..., WaitingTable]) -> None:
    for number in range(WAITING_PER_ADDRESS_MAX):
        ask(number, "fe80::1")
    with pytest.raises(Busy, match="of this address"):
        ask(99, "fe80::2")  # The same /64.
    ask(0, "fe80::1", now=1.0)  # Who has a place goes on.
    for number in range(100, 100 + WAITING_MAX - WAITING_PER_ADDRESS_MAX):
        ask(number)
    with pytest.raises(Busy, match="as many nodes wait"):
        ask(999)
    table = ask(100, now=1.0)
    assert len(table.waiting(1.0)) == WAITING_MAX
    with pytest.raises(Busy, match="of this address"):  # Nor does a place move into a full one.
        ask(100, "fe80::3", now=2.0)
    table.remove(mark(101))
    ask(999, now=FORGET_S - 1)
    for number in range(500, 500 + WAITING_MAX - 3):  # Room again for those that ask later.
        ask(number, now=FORGET_S + 0.5)


def test_who_is_denied_is_told_so_for_an_hour(ask: Callable[..., WaitingTable]) -> None:
    table = ask(1)
    assert table.deny(mark(1), 10.0)
    assert table.waiting(10.0) == []
    for now in (11.0, DENIED_S):
        with pytest.raises(Forbidden, match="denied"):
            ask(1, now=now)
    assert not table.deny(mark(2), 10.0), "not here, and denied all the same"
    ask(1, now=DENIED_S + 10.0)
    assert len(table.waiting(DENIED_S + 10.0)) == 1


def test_the_denied_are_bounded_and_the_oldest_goes_first(
    ask: Callable[..., WaitingTable],
) -> None:
    table = ask(9_999)
    for number in range(DENIED_MAX + 1):
        table.deny(mark(number), float(number) / 1_000)
    ask(0, now=1.0)
    with pytest.raises(Forbidden):
        ask(1, now=1.0)
    table.deny(mark(1), 2.0)  # Denied again it is the newest.
    table.deny(mark(10_000), 2.0)
    with pytest.raises(Forbidden):
        ask(1, now=3.0)
