"""The worker's machine: instances, leases, stopping."""

from __future__ import annotations

from taskbench import BLOB, BOOT, CONFIG, A, B, sends, timers

from swarmd.base.machine import Effect, SetTimer
from swarmd.tasks.messages import (
    Assign,
    AssignItem,
    HandBack,
    HandedItem,
    Heartbeat,
    Hello,
    Renewed,
    ResultItem,
    Results,
    Settled,
)
from swarmd.tasks.spec import AgentRun, Inline, Mode
from swarmd.tasks.worker import machine as worker_machine
from swarmd.tasks.worker.machine import (
    AttemptEnded,
    AttemptNotBegun,
    Beat,
    Begin,
    Drain,
    DrainDue,
    Drained,
    FromCoordinator,
    Kill,
    LeaseDue,
    Over,
    Start,
    WorkerMachine,
)


class Bench:
    def __init__(self) -> None:
        self.machine = WorkerMachine(B, BOOT, CONFIG)
        self.now = 100.0

    def feed(self, event: object) -> list[Effect]:
        return self.machine.handle(event, self.now)  # type: ignore[arg-type]

    def hear(self, message: object, peer: object = A) -> list[Effect]:
        return self.feed(FromCoordinator(peer, message))  # type: ignore[arg-type]

    def assign(self, *items: AssignItem) -> list[Effect]:
        return self.hear(Assign(10, BOOT, items))

    def end(self, fence: int) -> list[Effect]:
        return self.feed(AttemptEnded(ResultItem(f"t{fence}", fence, True, Inline(b"\x01"))))


def item(
    fence: int, mode: Mode = Mode.DEFAULT, agent: str = "quick", at_once: int = 2
) -> AssignItem:
    run = AgentRun(agent, "1", BLOB, "m:f", concurrency=at_once)
    return AssignItem(f"t{fence}", 1, fence, Inline(b"\x01"), run, 60.0, mode)


def started(effects: list[Effect]) -> list[int]:
    return [effect.item.fence for effect in effects if isinstance(effect, Start)]


def ready() -> Bench:
    bench = Bench()
    bench.hear(Hello(10))
    return bench


def test_a_worker_is_silent_until_a_coordinator_greets_it() -> None:
    bench = Bench()
    assert bench.feed(Begin())[0] == bench.feed(Beat())[-1]
    assert sends(bench.feed(Beat()), Heartbeat) == []
    [beat, *_] = sends(bench.hear(Hello(10)), Heartbeat)
    assert beat == (A, Heartbeat(10, BOOT, 1))


def test_attempts_beyond_the_instances_wait_in_order_for_their_own_agent() -> None:
    bench = ready()
    out = bench.assign(item(20), item(21), item(22), item(23), item(30, agent="other"))
    assert started(out) == [20, 21, 30]
    assert started(bench.end(21)) == [22]
    [(_, beat)] = sends(bench.feed(Beat()), Heartbeat)
    assert (beat.queued, beat.running, beat.ended) == ((23,), (20, 22, 30), (21,))


def test_a_new_coordinator_is_told_at_once_what_is_held_and_what_ended() -> None:
    bench = ready()
    bench.assign(item(20), item(21))
    bench.end(20)
    out = bench.hear(Hello(12), peer=B)
    told = [(peer, m.ended, m.running) for peer, m in sends(out, Heartbeat)]
    assert told == [(B, (20,), (21,))]
    assert [(peer, m.office, m.items[0].fence) for peer, m in sends(out, Results)] == [(B, 12, 20)]


def test_what_is_settled_while_it_runs_is_killed_and_makes_room() -> None:
    bench = ready()
    bench.assign(item(20), item(21), item(22))
    out = bench.hear(Settled(10, BOOT, (20, 99)))
    assert [e.fence for e in out if isinstance(e, Kill)] == [20]
    assert started(out) == [22]
    assert bench.end(20) == []


def test_only_the_coordinator_in_office_says_that_attempts_of_this_boot_are_over() -> None:
    bench = ready()
    bench.assign(item(20))
    for message in (Settled(9, BOOT, (20,)), Settled(10, b"another", (20,))):
        assert [one for one in bench.hear(message, peer=A) if isinstance(one, Over)] == []
    out = bench.hear(Settled(10, BOOT, (20, 99)))
    assert [one for one in out if isinstance(one, Over)] == [Over((20, 99))]


def test_what_could_not_begin_is_handed_back_until_that_is_settled() -> None:
    bench = ready()
    bench.assign(item(20), item(21), item(22))
    out = bench.feed(AttemptNotBegun(20))
    assert [m.items[0] for _, m in sends(out, HandBack)] == [HandedItem("t20", 20, False)]
    assert started(out) == [22]
    bench.now += 60
    assert [m.items[0].fence for _, m in sends(bench.feed(Beat()), HandBack)] == [20]
    bench.hear(Settled(10, BOOT, (20,)))
    assert bench.machine.held_count == 2
    assert bench.feed(AttemptNotBegun(20)) == []


def test_what_is_settled_while_it_waits_never_starts() -> None:
    bench = ready()
    bench.assign(item(20), item(21), item(22))
    assert bench.hear(Settled(10, BOOT, (22,))) == [Over((22,))]
    assert started(bench.end(20)) == []


def test_the_lease_runs_from_when_the_heartbeat_was_sent() -> None:
    bench = ready()
    bench.feed(Beat())
    bench.now += 3.0
    bench.hear(Renewed(10, BOOT, 2))
    assert bench.machine.lease_until == 100.0 + CONFIG.lease_s
    bench.hear(Renewed(10, BOOT, 77))
    assert bench.machine.lease_until == 100.0 + CONFIG.lease_s


def test_a_renewed_lease_spares_what_runs_and_default_attempts_need_none() -> None:
    bench = ready()
    bench.hear(Renewed(10, BOOT, 1))
    assert started(bench.assign(item(20, Mode.EXCLUSIVE), item(21))) == [20, 21]
    bench.now += 4.0
    bench.feed(Beat())
    bench.hear(Renewed(10, BOOT, 2))
    bench.now += 1.5
    assert bench.feed(LeaseDue()) == [SetTimer(3.5, LeaseDue())]
    bench.now += 3.5
    out = bench.feed(LeaseDue())
    assert [e.fence for e in out if isinstance(e, Kill)] == [20]


def test_heartbeats_are_on_the_beat_and_the_end_of_the_lease_is_not() -> None:
    bench = ready()
    for event in (Begin(), Beat()):
        assert SetTimer(CONFIG.heartbeat_s, Beat(), on_beat=True) in bench.feed(event)
    [lease] = bench.hear(Renewed(10, BOOT, 1))
    assert isinstance(lease, SetTimer)
    assert not lease.on_beat


def test_one_timer_awaits_the_lease_however_often_it_is_renewed() -> None:
    bench = ready()
    rings_at: list[float] = []

    def keep(out: list[Effect]) -> list[Effect]:
        rings_at.extend(bench.now + delay_s for delay_s, _ in timers(out, LeaseDue))
        return out

    keep(bench.hear(Renewed(10, BOOT, 1)))
    for sequence in range(2, 30):
        bench.now += 1.0
        bench.feed(Beat())
        if bench.now >= rings_at[0]:
            rings_at.pop()
            keep(bench.feed(LeaseDue()))
        keep(bench.hear(Renewed(10, BOOT, sequence)))
        assert len(rings_at) == 1
    bench.assign(item(20, Mode.EXCLUSIVE))
    due = bench.machine.lease_until - CONFIG.lease_margin_s
    while rings_at:
        bench.now = rings_at.pop()
        assert bench.now <= due
        out = keep(bench.feed(LeaseDue()))
    assert bench.now == due
    assert [e.fence for e in out if isinstance(e, Kill)] == [20]


def test_a_lease_that_lapsed_is_awaited_anew_once_it_is_renewed() -> None:
    bench = ready()
    bench.hear(Renewed(10, BOOT, 1))
    bench.now += 5.0
    assert bench.feed(LeaseDue()) == []
    bench.feed(Beat())
    bench.now += 0.5
    assert bench.hear(Renewed(10, BOOT, 2)) == [SetTimer(4.5, LeaseDue())]


def test_a_timer_that_rings_a_little_too_soon_is_set_for_what_is_left() -> None:
    bench = ready()
    bench.hear(Renewed(10, BOOT, 1))
    bench.assign(item(20, Mode.EXCLUSIVE))
    bench.now = 104.875
    assert bench.feed(LeaseDue()) == [SetTimer(0.125, LeaseDue())]


def test_without_a_lease_exclusive_attempts_wait_and_others_overtake() -> None:
    bench = ready()
    assert started(bench.assign(item(20, Mode.AT_MOST_ONCE), item(21))) == [21]
    assert started(bench.hear(Renewed(10, BOOT, 1))) == [20]


def test_a_fence_below_all_that_is_remembered_is_handed_back(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(worker_machine, "_REMEMBERED_MAX", 3)
    bench = ready()
    for fence in range(20, 26):
        bench.assign(item(fence))
        bench.end(fence)
        bench.hear(Settled(10, BOOT, (fence,)))
    out = bench.assign(item(21))
    assert started(out) == []
    assert [m.items[0].started for _, m in sends(out, HandBack)] == [True]


def test_draining_hands_back_what_waits_then_what_runs() -> None:
    bench = ready()
    bench.assign(item(20), item(21), item(22))
    out = bench.feed(Drain(5.0))
    assert [m.items[0].fence for _, m in sends(out, HandBack)] == [22]
    assert timers(out, DrainDue) == [(5.0, DrainDue())]
    assert sends(out, Heartbeat)[0][1].draining
    refused = bench.assign(item(23))
    assert [m.items[0].started for _, m in sends(refused, HandBack)] == [False]
    bench.end(20)
    out = bench.feed(DrainDue())
    assert [e.fence for e in out if isinstance(e, Kill)] == [21]
    assert [m.items[0].started for _, m in sends(out, HandBack)] == [True]
    assert bench.hear(Settled(10, BOOT, (20, 22))) == [Over((20, 22))]
    assert bench.hear(Settled(10, BOOT, (21,))) == [Over((21,)), Drained()]


def test_an_idle_worker_is_drained_at_once() -> None:
    assert Drained() in ready().feed(Drain(5.0))
