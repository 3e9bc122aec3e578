"""Each guard keeps a promise: the promise holds with it and breaks without it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from taskbench import BLOB, BOOT, CONFIG, A, B, Bench, assigned, id_of, sends, spec, timers

from swarmd.base.machine import Effect
from swarmd.sim.tasks import GUARDS, MUTANTS
from swarmd.state.raft.messages import Compare
from swarmd.tasks.events import CancelAsked, Confirm, Confirmed, Liveness, RetryDue, SubmitAsked
from swarmd.tasks.messages import (
    Assign,
    AssignItem,
    HandBack,
    Heartbeat,
    Hello,
    Renewed,
    ResultItem,
    Results,
    Settled,
)
from swarmd.tasks.spec import OFFICE_KEY, AgentRun, Inline, Mode, State, task_key
from swarmd.tasks.worker.machine import (
    AttemptEnded,
    Beat,
    FromCoordinator,
    Kill,
    LeaseDue,
    Start,
    WorkerMachine,
)

CHECKS: dict[str, Callable[[tuple[str, ...]], None]] = {}


def guards(name: str) -> Callable[[Callable[[tuple[str, ...]], None]], None]:
    """Register a check by the guard that it needs."""

    def register(check: Callable[[tuple[str, ...]], None]) -> None:
        CHECKS[name] = check

    return register


@pytest.mark.parametrize("name", sorted(GUARDS))
def test_guard(name: str) -> None:
    CHECKS[name](())
    with pytest.raises(AssertionError):
        CHECKS[name]((name,))


def test_every_guard_is_named_with_what_catches_its_absence() -> None:
    assert set(MUTANTS) == set(GUARDS) == set(CHECKS)


# ---- coordinator ----------------------------------------------------------------------


@guards("office_check")
def _(removed: tuple[str, ...]) -> None:
    bench = Bench(*removed)
    bench.beat()
    bench.hold = True
    bench.feed(_submit_event("k"))
    assert Compare(OFFICE_KEY, bench.office) in bench.held[0].op.compares


@guards("idempotent_create")
def _(removed: tuple[str, ...]) -> None:
    bench = Bench(*removed)
    bench.hold = True
    bench.feed(_submit_event("k"))
    assert Compare(task_key(id_of("k")), 0) in bench.held[0].op.compares


@guards("content_check")
def _(removed: tuple[str, ...]) -> None:
    bench = Bench(*removed)
    bench.submit(spec("k"))
    [item] = bench.submit(msgspec.structs.replace(spec("k"), payload=Inline(b"\x02")))
    assert item.code == "idempotency_conflict"


@guards("fence_check")
def _(removed: tuple[str, ...]) -> None:
    bench = Bench(*removed)
    bench.beat()
    bench.submit(spec("k"))
    old = bench.fence("k")
    bench.member(B, Liveness.SUSPECT)
    bench.beat(A)
    assert bench.fence("k") > old
    out = bench.result("k", old)
    assert bench.record("k").state is State.PENDING
    assert sends(out, Settled) == [(B, Settled(bench.office, BOOT, (old,)))]


@guards("stale_timer")
def _(removed: tuple[str, ...]) -> None:
    bench = Bench(*removed)
    bench.beat()
    bench.submit(spec("k"))
    out = bench.result("k", bench.fence("k"), ok=False)
    [(_, first)] = timers(out, RetryDue)
    bench.feed(first)
    out = bench.result("k", bench.fence("k"), ok=False)
    [(_, second)] = timers(out, RetryDue)
    assert assigned(bench.feed(first)) == []
    assert len(assigned(bench.feed(second))) == 1


@guards("lease_margin")
def _(removed: tuple[str, ...]) -> None:
    bench = Bench(*removed)
    bench.beat()
    bench.beat(A)
    bench.submit(spec("k", "alone"))
    fence = bench.fence("k")
    bench.member(B, Liveness.DEAD)
    bench.member(A, Liveness.DEAD)
    bench.wait(CONFIG.lease_s + 0.9 * CONFIG.lease_margin_s)
    assert bench.fence("k") == fence
    bench.wait(0.2 * CONFIG.lease_margin_s)
    assert bench.fence("k") == 0


@guards("lease_confirm")
def _(removed: tuple[str, ...]) -> None:
    bench = Bench(*removed)
    out = bench.beat(sequence=7)
    assert sends(out, Renewed) == []
    [confirm] = [effect for effect in out if isinstance(effect, Confirm)]
    refused = bench.feed(Confirmed(confirm.tag, False))
    assert sends(refused, Renewed) == []
    [again] = [effect for effect in bench.beat(sequence=8) if isinstance(effect, Confirm)]
    granted = bench.feed(Confirmed(again.tag, True))
    assert sends(granted, Renewed) == [(B, Renewed(bench.office, BOOT, 8))]


@guards("boot_check")
def _(removed: tuple[str, ...]) -> None:
    bench = Bench(*removed)
    bench.beat()
    bench.submit(spec("k"))
    fence = bench.fence("k")
    out = bench.beat(boot=b"next")
    assert [item.fence > fence for _, item in assigned(out)] == [True]
    assert [message.boot for _, message in sends(out, Assign)] == [b"next"]


@guards("attempt_bound")
def _(removed: tuple[str, ...]) -> None:
    bench = Bench(*removed)
    bench.beat()
    bench.submit(spec("k", retries=1))
    for _ in range(2):
        out = bench.result("k", bench.fence("k"), ok=False)
        for _, due in timers(out, RetryDue):
            bench.feed(due)
    record = bench.record("k")
    assert (record.state, record.attempts, record.code) == (State.DEAD, 2, "agent_raised")


@guards("at_most_once")
def _(removed: tuple[str, ...]) -> None:
    bench = Bench(*removed)
    bench.beat()
    bench.submit(spec("k", "once"))
    bench.member(B, Liveness.DEAD)
    assert bench.record("k").state is State.PENDING
    bench.wait(CONFIG.lease_s + CONFIG.lease_margin_s + 0.1)
    assert bench.record("k").state is State.UNKNOWN


@guards("cancel_finality")
def _(removed: tuple[str, ...]) -> None:
    bench = Bench(*removed)
    bench.beat()
    bench.submit(spec("k"))
    bench.result("k", bench.fence("k"))
    bench.feed(CancelAsked(5, (id_of("k"),)))
    assert bench.record("k").state is State.SUCCEEDED


@guards("assign_repeat")
def _(removed: tuple[str, ...]) -> None:
    bench = Bench(*removed)
    bench.beat()
    bench.submit(spec("k"))
    fence = bench.fence("k")
    bench.now += 1.0
    assert assigned(bench.beat()) == []  # It may still be on its way.
    bench.now += 1.0
    assert [item.fence for _, item in assigned(bench.beat())] == [fence]
    bench.now += 2.0
    assert assigned(bench.beat(running=(fence,))) == []


def _submit_event(key: str) -> SubmitAsked:
    return SubmitAsked(1, (spec(key),))


# ---- worker ---------------------------------------------------------------------------

RUN = AgentRun("quick", "1", BLOB, "m:f", concurrency=1)


def item(fence: int, mode: Mode = Mode.DEFAULT) -> AssignItem:
    return AssignItem(f"t{fence}", 1, fence, Inline(b"\x01"), RUN, 60.0, mode)


class WorkerBench:
    def __init__(self, removed: tuple[str, ...]) -> None:
        self.machine = WorkerMachine(B, BOOT, CONFIG, removed_guards=frozenset(removed))
        self.now = 100.0
        self.hear(Hello(10))

    def hear(self, message: object, peer: object = A) -> list[Effect]:
        event = FromCoordinator(peer, message)  # type: ignore[arg-type]
        return self.machine.handle(event, self.now)

    def assign(self, *items: AssignItem, boot: bytes = BOOT, office: int = 10) -> list[Effect]:
        return self.hear(Assign(office, boot, items))


def started(effects: list[Effect]) -> list[int]:
    return [effect.item.fence for effect in effects if isinstance(effect, Start)]


@guards("worker_boot_check")
def _(removed: tuple[str, ...]) -> None:
    bench = WorkerBench(removed)
    out = bench.assign(item(20), boot=b"past")
    assert started(out) == []
    assert len(sends(out, Heartbeat)) == 1


@guards("repeated_assign")
def _(removed: tuple[str, ...]) -> None:
    bench = WorkerBench(removed)
    assert started(bench.assign(item(20))) == [20]
    assert bench.assign(item(20)) == []
    bench.machine.handle(AttemptEnded(ResultItem("t20", 20, True, Inline(b"\x01"))), bench.now)
    bench.hear(Settled(10, BOOT, (20,)))
    out = bench.assign(item(20))
    assert started(out) == []
    assert [message.items[0].started for _, message in sends(out, HandBack)] == [True]


@guards("lease_lapse")
def _(removed: tuple[str, ...]) -> None:
    bench = WorkerBench(removed)
    assert started(bench.assign(item(20, Mode.EXCLUSIVE))) == []
    bench.now += 0.5
    out = bench.hear(Renewed(10, BOOT, 1))
    assert started(out) == [20]
    [(delay_s, _)] = timers(out, LeaseDue)
    assert delay_s == CONFIG.lease_s - CONFIG.lease_margin_s - 0.5
    bench.now += delay_s
    out = bench.machine.handle(LeaseDue(), bench.now)
    assert [effect.fence for effect in out if isinstance(effect, Kill)] == [20]
    assert [m.items[0].code for _, m in sends(out, Results)] == ["lease_lapsed"]


@guards("stale_office")
def _(removed: tuple[str, ...]) -> None:
    bench = WorkerBench(removed)
    bench.hear(Hello(12), peer=B)
    assert bench.assign(item(20), office=10) == []
    assert bench.machine.office == 12


@guards("result_repeat")
def _(removed: tuple[str, ...]) -> None:
    bench = WorkerBench(removed)
    bench.assign(item(20))
    ended = AttemptEnded(ResultItem("t20", 20, True, Inline(b"\x01")))
    assert len(sends(bench.machine.handle(ended, bench.now), Results)) == 1
    bench.now += 2.0
    assert len(sends(bench.machine.handle(Beat(), bench.now), Results)) == 1
    bench.hear(Settled(10, BOOT, (20,)))
    bench.now += 2.0
    assert sends(bench.machine.handle(Beat(), bench.now), Results) == []
