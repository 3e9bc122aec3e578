"""Lines from agents: cut, cleaned, bounded."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from swarmd.agents import logs as module
from swarmd.agents.logs import BATCH_LINES_MAX, LineCutter, LogBook, clean
from swarmd.observe.redaction import Redactor


def test_lines_are_cut_across_reads() -> None:
    cutter = LineCutter(100)
    assert cutter.feed(b"one\ntw") == ["one"]
    assert cutter.feed(b"o\n\n  \nthree") == ["two"]
    assert cutter.finish() == ["three"]
    assert cutter.finish() == []


def test_a_line_without_end_does_not_grow_for_ever() -> None:
    cutter = LineCutter(10)
    assert cutter.feed(b"x" * 11) == ["x" * 10 + "..."]
    assert cutter.feed(b"y\n") == ["y"]


def test_a_flood_keeps_its_end_and_says_how_much_is_missing() -> None:
    lines = LineCutter(100).feed(b"".join(b"%d\n" % n for n in range(1_000)))
    assert len(lines) == BATCH_LINES_MAX
    assert lines[0] == f"({1_000 - BATCH_LINES_MAX + 1} lines left out)"
    assert lines[-1] == "999"


@pytest.mark.parametrize("bad", ["\x1b", "\x00", "\r", "\x9b", "\u202e", "\u2028"])
def test_what_could_move_a_cursor_is_replaced(bad: str) -> None:
    assert clean(f"a{bad}b", 100) == "a\ufffdb"


def book(lines_max: int = 3) -> LogBook:
    made = LogBook(lines_max=lines_max, first_sequence=10)
    for number in range(5):
        made.add("a", 1_000 + number, "t", 1, str(number))
    return made


def test_a_ring_keeps_the_latest() -> None:
    assert [line.text for line in book().lines("a")] == ["2", "3", "4"]
    assert [line.sequence for line in book().lines("a")] == [13, 14, 15]
    assert [line.text for line in book().lines("a", after=14)] == ["4"]
    assert [line.text for line in book().lines("a", limit=2)] == ["3", "4"]
    assert book().lines("nobody") == []


def test_the_number_of_rings_is_bounded() -> None:
    made = LogBook(lines_max=1)
    for number in range(module._AGENTS_MAX + 10):
        made.add(str(number), 0, "", 0, "x")
    assert len(made._rings) == module._AGENTS_MAX


async def test_news_wakes_all_who_wait() -> None:
    made = book()
    woken = 0

    async def wait() -> None:
        nonlocal woken
        await made.news()
        woken += 1

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        made.add("b", 0, "", 0, "new")
        await trio.testing.wait_all_tasks_blocked()
        assert woken == 3


def test_a_value_in_two_reads_or_over_the_cut_of_a_line_is_taken_out() -> None:
    value = "a secret that is long"
    redactor = Redactor([("db", value)])
    for size in range(1, 40):
        cutter = LineCutter(50, redactor)
        text = "x" * 30 + value + "y" * 200 + value + "\n" + value
        raw = text.encode()
        lines = []
        for start in range(0, len(raw), size):
            lines += cutter.feed(raw[start : start + size])
        lines += cutter.finish()
        shown = "".join(lines)
        assert "secret that" not in shown
        assert lines[-1] == "[secret db]"
        assert max(map(len, lines)) <= 50 + len("...")


def test_a_value_that_begins_like_another_one_is_taken_out_whole_over_two_reads() -> None:
    redactor = Redactor([("short", "abcdefgh"), ("long", "abcdefgh-and-more-of-it")])
    raw = b"x" * 90 + b"abcdefgh-and-more-of-it" + b"y" * 90
    for size in range(1, 60):
        cutter = LineCutter(5_000, redactor)
        for start in range(0, len(raw), size):
            assert cutter.feed(raw[start : start + size]) == []
        assert cutter.finish() == ["x" * 90 + "[secret long]" + "y" * 90]


def test_what_was_looked_at_is_not_looked_at_again() -> None:
    """However small the pieces are in which a line without end comes."""
    looked = 0

    class Counting(Redactor):
        def settled(self, data: bytes) -> tuple[bytes, bytes]:
            nonlocal looked
            looked += len(data)
            return super().settled(data)

    redactor = Counting([("db", "a secret that is long")])
    longest = max(map(len, redactor.forms))
    cutter = LineCutter(50_000, redactor)
    for _ in range(4_000):
        cutter.feed(b"x" * 10)
    assert looked <= 4_000 * (10 + longest)
    assert cutter.finish() == ["x" * 40_000]
