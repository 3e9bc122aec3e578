"""What the whole swarm's simulation found in single machines, told as small as it can be."""

from __future__ import annotations

import pytest

from swarmd.base.ids import node_id_of
from swarmd.base.machine import Effect, Send
from swarmd.base.rng import make_rng
from swarmd.sim.swarm import OFFICE_MUTANTS
from swarmd.state.blobs.messages import BlobRef
from swarmd.tasks.config import TasksConfig
from swarmd.tasks.events import (
    Commit,
    Committed,
    Confirm,
    Confirmed,
    FromWorker,
    Liveness,
    Propose,
    SubmitAsked,
    Tick,
    TookOffice,
)
from swarmd.tasks.machine import CoordinatorMachine
from swarmd.tasks.messages import Assign, AssignItem, HandBack, Heartbeat, Settled
from swarmd.tasks.spec import AgentRun, Inline, Mode, TaskSpec
from swarmd.tasks.worker.machine import FromCoordinator, Start, WorkerMachine

CONFIG = TasksConfig()
WORKER = node_id_of(b"worker")
BOOT = b"boot"
ALONE = AgentRun("alone", "1", BlobRef(b"b" * 32, 1), "m:f", mode=Mode.EXCLUSIVE)
OFFICE = 10


class Bench:
    """A coordinator with one worker; the test commits what it proposes."""

    def __init__(self, machine: type[CoordinatorMachine]) -> None:
        self.machine = machine(node_id_of(b"me"), b"s" * 32, CONFIG, make_rng(1))
        self.now = 100.0
        self.revision = OFFICE
        members = ((WORKER, Liveness.ALIVE),)
        self.machine.handle(TookOffice(OFFICE, 0, agents=(ALONE,), members=members), self.now)

    def beat(self, sequence: int, *queued: int) -> list[Effect]:
        beat = Heartbeat(OFFICE, BOOT, sequence, queued)
        effects = self.machine.handle(FromWorker(WORKER, beat), self.now)
        for effect in effects:
            if isinstance(effect, Confirm):
                self.machine.handle(Confirmed(effect.tag, True), self.now)
        return effects

    def commit(self, effects: list[Effect]) -> list[Effect]:
        [proposal] = [effect for effect in effects if isinstance(effect, Propose)]
        self.revision += 1
        commit = Commit(proposal.tag, True, self.revision)
        return self.machine.handle(Committed((commit,)), self.now)


def sent(effects: list[Effect], kind: type) -> list[object]:
    return [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, kind)]


def a_late_heartbeat_renews_nothing(machine: type[CoordinatorMachine]) -> None:
    """A worker was silent for lease and margin; it is heard again while its attempt is taken back.

    The attempt still waits there for an instance: under a new lease it would begin.
    """
    bench = Bench(machine)
    bench.beat(1)
    spec = TaskSpec("alone", Inline(b"\xc0"), "k")
    out = bench.commit(bench.machine.handle(SubmitAsked(1, (spec,)), bench.now))
    [assign] = sent(out, Assign)
    assert isinstance(assign, Assign)
    fence = assign.items[0].fence
    bench.machine.handle(Tick(), bench.now)
    bench.now += CONFIG.lease_s + CONFIG.lease_margin_s + 0.1
    given_up = bench.machine.handle(Tick(), bench.now)
    assert any(isinstance(effect, Propose) for effect in given_up)
    assert not any(isinstance(effect, Confirm) for effect in bench.beat(2, fence))
    assert sent(bench.commit(given_up), Settled)
    # It has not heard of that yet, or it was lost: told again, and still nothing is renewed.
    again = bench.beat(3, fence)
    assert sent(again, Settled)
    assert not any(isinstance(effect, Confirm) for effect in again)


def test_no_lease_is_renewed_while_an_attempt_is_given_up() -> None:
    a_late_heartbeat_renews_nothing(CoordinatorMachine)


def test_a_worker_that_holds_only_its_own_is_renewed() -> None:
    assert any(isinstance(effect, Confirm) for effect in Bench(CoordinatorMachine).beat(1))


def test_an_attempt_that_was_settled_before_it_came_does_not_begin() -> None:
    """A large assignment waits behind other traffic; what says that it is over does not."""
    machine = WorkerMachine(WORKER, BOOT, CONFIG)
    item = AssignItem("task", 1, 20, Inline(b"\xc0"), ALONE, 10.0, Mode.DEFAULT)
    coordinator = node_id_of(b"me")

    def hear(message: Settled | Assign) -> list[Effect]:
        return machine.handle(FromCoordinator(coordinator, message), 1.0)

    hear(Settled(OFFICE, BOOT, (20,)))
    out = hear(Assign(OFFICE, BOOT, (item,)))
    assert not any(isinstance(effect, Start) for effect in out)
    assert sent(out, HandBack)


@pytest.mark.parametrize("name", OFFICE_MUTANTS)
def test_mutant_is_noticed(name: str) -> None:
    with pytest.raises(AssertionError):
        a_late_heartbeat_renews_nothing(OFFICE_MUTANTS[name])
