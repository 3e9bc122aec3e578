"""A node that hardly runs reads late what a suspect answered: it concludes nothing by itself."""

from __future__ import annotations

import pytest
from swim_bench import ALIVE, DEAD, SUSPECT, Bench, node, rumour

from swarmd.mesh.swim.events import PacketIn, StreamClosed, SuspicionDue, SyncIn
from swarmd.mesh.swim.messages import PACKETS, Nack

START = 1 << 32


@pytest.fixture
def bench() -> Bench:
    """Unwell, and one of those whom it knows is suspect."""
    bench = Bench().know("x", "y", "z", "v", "w")
    bench.tell(rumour(SUSPECT, "me", START))
    assert bench.machine.health == 1
    bench.tell(rumour(SUSPECT, "x", 1, by="y"))
    return bench


def longest_s(bench: Bench) -> float:
    return bench.config.suspicion_max_mult * bench.config.suspicion_mult


def hear(bench: Bench) -> None:
    """A packet with nothing in it."""
    bench.handle(PacketIn(node("z"), PACKETS.encode(Nack(1))))


def due(bench: Bench, after_s: float) -> None:
    bench.now = bench.changed_at("x") + after_s
    bench.handle(SuspicionDue(node("x")))


def test_who_is_unwell_and_hears_others_waits_for_longer_but_not_for_ever(bench: Bench) -> None:
    bench.now += 3.0
    hear(bench)
    due(bench, longest_s(bench))
    assert bench.state("x") == (SUSPECT, 1)
    assert bench.timer(SuspicionDue).delay_s == pytest.approx(longest_s(bench))
    due(bench, 2 * longest_s(bench))
    assert bench.state("x") == (DEAD, 1)


def test_an_answer_that_is_read_late_still_counts(bench: Bench) -> None:
    bench.now += 3.0
    hear(bench)
    due(bench, longest_s(bench))
    bench.tell(rumour(ALIVE, "x", 2))
    due(bench, 2 * longest_s(bench))
    assert bench.state("x") == (ALIVE, 2)


def test_who_hears_nobody_concludes_as_ever(bench: Bench) -> None:
    """It is cut off."""
    due(bench, longest_s(bench))
    assert bench.state("x") == (DEAD, 1)


def test_who_is_well_concludes_as_ever() -> None:
    bench = Bench().know("x", "y", "z", "v", "w")
    bench.tell(rumour(SUSPECT, "x", 1, by="y"))
    bench.now += 3.0
    hear(bench)
    due(bench, longest_s(bench))
    assert bench.state("x") == (DEAD, 1)


@pytest.mark.parametrize("before", [True, False])
def test_what_another_confirms_is_not_put_off(bench: Bench, before: bool) -> None:
    bench.now += 3.0
    if not before:
        hear(bench)
        due(bench, longest_s(bench))
        assert bench.state("x") == (SUSPECT, 1)
    for author in ("z", "v"):
        bench.tell(rumour(SUSPECT, "x", 1, by=author))
    for _ in range(2):  # The first time it may be late, for which answers get their time.
        bench.now += 1.0
        bench.handle(SuspicionDue(node("x")))
    assert bench.state("x") == (DEAD, 1)


def test_more_than_silence_is_not_put_off(bench: Bench) -> None:
    """Its host refuses connections."""
    bench.now += 3.0
    bench.handle(StreamClosed(node("x"), "refused"))
    machine = bench.machine
    record = machine._ledger.members.get(node("x"))
    assert record is not None
    machine._ledger.accuse(record, bench.now, within_s=0.3)
    hear(bench)
    bench.now += 0.4
    hear(bench)
    bench.handle(SuspicionDue(node("x")))
    assert bench.state("x") == (DEAD, 1)


def test_whom_a_view_calls_dead_is_not_waited_for_any_longer(bench: Bench) -> None:
    """Others have concluded: it only remains to hear of it."""
    bench.now += 3.0
    hear(bench)
    due(bench, longest_s(bench))
    assert bench.state("x") == (SUSPECT, 1)
    bench.handle(SyncIn(node("y"), (rumour(DEAD, "x", 1, by="y").raw,), answer=True))
    assert bench.timer(SuspicionDue).delay_s == 0.0
    bench.handle(SuspicionDue(node("x")))
    assert bench.state("x") == (DEAD, 1)
