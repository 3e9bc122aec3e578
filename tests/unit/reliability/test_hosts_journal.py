"""What is read of daemons' logs, and that a death which nothing explains is found."""

from __future__ import annotations

import json
from pathlib import Path

from hosts_journal import (
    Excuse,
    Journal,
    Sighting,
    about,
    across,
    known_after_s,
    parse_line,
    unexcused,
)


def line(subject: str, was: str, now: str, second: int = 0, room: str = "swim") -> bytes:
    told = {
        "event": "member",
        "room": room,
        "node": subject,
        "was": was,
        "now": now,
        "timestamp": f"1970-01-01T00:00:{second:02}.500000Z",
    }
    return json.dumps(told).encode() + b"\n"


def dead(at: float, observer: str, subject: str) -> Sighting:
    return Sighting(at, observer, subject, "suspect", "dead")


def test_a_line_tells_who_saw_whom_come_to_be_what() -> None:
    assert parse_line("n1", line("n2", "suspect", "dead", 7)) == dead(7.5, "n1", "n2")


def test_other_lines_tell_nothing() -> None:
    others = [b"", b"{}", b"[]", b"Traceback", b"\xff\n", line("n2", "a", "b", room="mesh")]
    assert [parse_line("n1", one) for one in others] == [None] * len(others)


def test_logs_are_followed_to_their_last_whole_line_and_put_in_order(tmp_path: Path) -> None:
    logs = {name: tmp_path / name for name in ("n1", "n2", "n3")}
    journal = Journal(logs)
    logs["n1"].write_bytes(line("n3", "alive", "suspect", 2) + line("n3", "suspect", "dead", 4)[:9])
    logs["n2"].write_bytes(line("n3", "alive", "suspect", 1))
    assert [one.observer for one in journal.read()] == ["n2", "n1"]
    with logs["n1"].open("ab") as log:
        log.write(line("n3", "suspect", "dead", 4)[9:])
    assert [one.now for one in journal.read()] == ["suspect", "suspect", "dead"]
    assert journal.told("dead", 4.0, 5.0) == [dead(4.5, "n1", "n3")]
    assert journal.told("dead", 5.0, 6.0) == []
    assert not journal.crashed


def test_a_crash_in_a_log_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "n1").write_bytes(b"Traceback (most recent call last):\n")
    journal = Journal({"n1": tmp_path / "n1"})
    journal.read()
    assert journal.crashed == {"n1"}


def test_only_a_death_that_a_fault_explains_is_excused() -> None:
    """A partition explains deaths across it while it lasts, and none on one side of it."""
    excuse = Excuse(10.0, 20.0, across(["n1", "n2"], ["n3", "n4"]))
    explained = [dead(10.0, "n1", "n3"), dead(20.0, "n4", "n2")]
    false = [dead(15.0, "n1", "n2"), dead(9.9, "n1", "n3"), dead(20.1, "n4", "n2")]
    assert unexcused(explained + false, [excuse]) == false
    assert unexcused(explained, []) == explained


def test_who_stands_still_may_be_held_dead_and_may_hold_nobody_dead() -> None:
    excuse = Excuse(0.0, 9.0, about(["n1", "n2", "n3"], ["n2"]))
    deaths = [dead(1.0, "n1", "n2"), dead(1.0, "n3", "n2"), dead(1.0, "n2", "n1")]
    assert unexcused(deaths, [excuse]) == deaths[2:]


def test_a_death_is_known_once_the_last_one_knows_it() -> None:
    deaths = [dead(3.0, "n1", "n3"), dead(12.0, "n1", "n3"), dead(14.0, "n2", "n3")]
    assert known_after_s(deaths, "n3", ["n1", "n2"], 10.0) == 4.0
    assert known_after_s(deaths, "n3", ["n1", "n2", "n4"], 10.0) is None
