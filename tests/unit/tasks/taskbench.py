"""The coordinator's machine on a bench: a ledger that commits at once, and everything it said."""

from __future__ import annotations

from typing import Any

from swarmd.base.ids import NodeId, node_id_of, task_id_of
from swarmd.base.machine import Effect, Event, Send, SetTimer
from swarmd.base.rng import make_rng
from swarmd.sim.task_watch import Ledger
from swarmd.sim.world import World
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.raft.messages import Put
from swarmd.tasks.config import TasksConfig
from swarmd.tasks.events import (
    Answer,
    Commit,
    Committed,
    FromWorker,
    Liveness,
    MemberChanged,
    Propose,
    SubmitAsked,
    Tick,
    TookOffice,
)
from swarmd.tasks.machine import CoordinatorMachine
from swarmd.tasks.messages import AssignItem, Heartbeat, ResultItem, Results, SubmittedItem
from swarmd.tasks.spec import (
    ASSIGNMENT_PREFIX,
    JOB_PREFIX,
    OFFICE_KEY,
    TASK_PREFIX,
    AgentRun,
    Inline,
    Mode,
    TaskRecord,
    TaskSpec,
    Value,
    decode_assignment,
    decode_job,
    decode_task,
)

SWARM = b"s" * 32
BLOB = BlobRef(b"b" * 32, 1)
CONFIG = TasksConfig(heartbeat_s=1.0, lease_s=6.0, lease_margin_s=1.0, retry_delay_s=1.0)
A, B, C = (node_id_of(name.encode()) for name in "abc")
BOOT = b"boot"
AGENTS = (
    AgentRun("quick", "1", BLOB, "m:f", concurrency=2, retries=2),
    AgentRun("alone", "1", BLOB, "m:f", concurrency=2, retries=2, mode=Mode.EXCLUSIVE),
    AgentRun("once", "1", BLOB, "m:f", concurrency=2, mode=Mode.AT_MOST_ONCE),
)


def spec(key: str, agent: str = "quick", **fields: Any) -> TaskSpec:
    return TaskSpec(agent, Inline(b"\x01"), key, **fields)


def id_of(key: str) -> str:
    return task_id_of(SWARM, key)


class Bench:
    """Feeds one machine; proposals commit at once unless `hold` is set."""

    def __init__(
        self,
        *removed: str,
        ledger: Ledger | None = None,
        config: TasksConfig = CONFIG,
        members: tuple[NodeId, ...] = (A, B),
        agents: tuple[AgentRun, ...] = AGENTS,
    ) -> None:
        self.world = World(1)
        self.ledger = ledger or Ledger(self.world)
        self.now = 0.0
        self.hold = False
        self.held: list[Propose] = []
        self.effects: list[Effect] = []
        self.machine = CoordinatorMachine(
            A, SWARM, config, make_rng(1), removed_guards=frozenset(removed)
        )
        _, self.office = self.ledger.apply(Put(OFFICE_KEY, A))
        self.feed(
            TookOffice(
                self.office,
                1_000_000,
                tuple((decode_task(v), r) for _, v, r in self.ledger.rows(TASK_PREFIX)),
                tuple((decode_assignment(v), r) for _, v, r in self.ledger.rows(ASSIGNMENT_PREFIX)),
                tuple((decode_job(v), r) for _, v, r in self.ledger.rows(JOB_PREFIX)),
                agents,
                tuple((node, Liveness.ALIVE) for node in members),
            )
        )

    def feed(self, event: Event) -> list[Effect]:
        """What came out, proposals left aside; `effects` keeps all of it."""
        out = self.machine.handle(event, self.now)
        said = [effect for effect in out if not isinstance(effect, Propose)]
        self.held.extend(effect for effect in out if isinstance(effect, Propose))
        self.effects.extend(said)
        return said if self.hold else said + self.commit()

    def commit(self) -> list[Effect]:
        """Commit what was proposed; what comes out of that."""
        proposals, self.held = self.held, []
        if not proposals:
            return []
        results = [(p.tag, *self.ledger.apply(p.op)) for p in proposals]
        return self.feed(Committed(tuple(Commit(*row) for row in results)))

    # ---- what others do ---------------------------------------------------------------

    def submit(self, *specs: TaskSpec) -> tuple[SubmittedItem, ...]:
        out = self.feed(SubmitAsked(99, specs))
        [answer] = [e for e in out if isinstance(e, Answer)]
        items: tuple[SubmittedItem, ...] = answer.message.items  # type: ignore[attr-defined]
        return items

    def beat(self, node: NodeId = B, boot: bytes = BOOT, **held: Any) -> list[Effect]:
        sequence = held.pop("sequence", 1)
        return self.feed(FromWorker(node, Heartbeat(self.office, boot, sequence, **held)))

    def result(
        self,
        key: str,
        fence: int,
        *,
        ok: bool = True,
        value: Value | None = None,
        code: str = "agent_raised",
        node: NodeId = B,
    ) -> list[Effect]:
        shown = (value or Inline(fence.to_bytes(8))) if ok else None
        item = ResultItem(id_of(key), fence, ok, shown, "" if ok else code, "", 10.0)
        return self.feed(FromWorker(node, Results(self.office, BOOT, (item,))))

    def member(self, node: NodeId, liveness: Liveness) -> list[Effect]:
        return self.feed(MemberChanged(node, liveness))

    def wait(self, seconds: float) -> list[Effect]:
        """Let time pass, then tick."""
        self.now += seconds
        return self.feed(Tick())

    # ---- what is seen -----------------------------------------------------------------

    def record(self, key: str) -> TaskRecord:
        record = self.ledger.task(id_of(key))
        assert record is not None
        return record

    def fence(self, key: str) -> int:
        """The fence of the attempt that is out; 0 if none is."""
        return self.ledger.data.get(ASSIGNMENT_PREFIX + id_of(key).encode(), (b"", 0))[1]


def sends(effects: list[Effect], kind: type) -> list[tuple[NodeId, Any]]:
    """Messages of a kind, with whom they go to."""
    return [(e.peer, e.message) for e in effects if isinstance(e, Send) and type(e.message) is kind]


def assigned(effects: list[Effect]) -> list[tuple[NodeId, AssignItem]]:
    return [
        (e.peer, item)
        for e in effects
        if isinstance(e, Send) and type(e.message).__name__ == "Assign"
        for item in e.message.items
    ]


def timers(effects: list[Effect], kind: type) -> list[tuple[float, Any]]:
    return [
        (e.delay_s, e.event) for e in effects if isinstance(e, SetTimer) and type(e.event) is kind
    ]
