"""One office of a simulated node: a coordinator from taking office to losing it.

As the shell does: it takes the office in the store, reads what the store holds there, runs
the machine, and ends when the machine resigns, when the node stops leading the log, or when
the outcome of a write is unknown. Callers who wait then are told nothing and ask again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Event, Send, SetTimer
from swarmd.sim.swarm_store import Answers, Pipe, Writer
from swarmd.state.raft.messages import Entry, Group, OpResult, Put
from swarmd.state.raft.statemachine import StateMachine
from swarmd.tasks.config import TasksConfig
from swarmd.tasks.events import (
    Answer,
    Collect,
    Collected,
    Commit,
    Committed,
    Confirm,
    Confirmed,
    ItemsNamed,
    Liveness,
    NameItems,
    Propose,
    Refuse,
    Resign,
    TookOffice,
)
from swarmd.tasks.machine import CoordinatorMachine
from swarmd.tasks.spec import (
    ASSIGNMENT_PREFIX,
    JOB_PREFIX,
    OFFICE_KEY,
    TASK_PREFIX,
    AgentRun,
    Inline,
    decode_assignment,
    decode_job,
    decode_task,
)

_BLOB_READ_S: Final = 0.02
_CONFIRM_TIMEOUT_S: Final = 2.0
_ROWS_MAX: Final = 100_000
_NOTHING: Final = Inline(b"\xc0")


class Seat(Protocol):
    """What an office needs of its node. Timers and answers end with the node's life."""

    node_id: NodeId
    pipe: Pipe

    def after(self, delay_s: float, function: Callable[..., None], *args: object) -> None: ...

    def submit(self, groups: tuple[Group, ...], done: Callable[[Answers | None], None]) -> None: ...

    def read(
        self, key: bytes, timeout_s: float, done: Callable[[bool, Entry | None], None]
    ) -> None: ...

    def send_task(self, peer: NodeId, message: Any) -> None: ...

    def liveness(self) -> tuple[tuple[NodeId, Liveness], ...]: ...

    def office_ended(self, reason: str) -> None: ...


class Office:
    """Made when the node begins to lead the log.

    Args:
        machine: made for this office alone.
        replica: the node's own copy of the store.
        agents: what is deployed.
        manifests: the names of each job's items.
    """

    def __init__(
        self,
        seat: Seat,
        machine: CoordinatorMachine,
        replica: StateMachine,
        config: TasksConfig,
        agents: tuple[AgentRun, ...],
        manifests: dict[str, tuple[str, ...]],
    ) -> None:
        self.open = False
        self.machine = machine
        self._seat = seat
        self._replica = replica
        self._agents = agents
        self._manifests = manifests
        self._over = False
        self._tags: dict[int, Callable[[Any], None]] = {}
        self._tag = 0
        self._now: Callable[[], float]
        self._writer = Writer(
            seat,
            seat.pipe,
            config.collect_s,
            self._committed,
            lambda: self.end("a write has an unknown outcome"),
        )

    def take(self, clock: Callable[[], float]) -> None:
        """Ask the store for the office, and begin once it is held."""
        self._now = clock
        self._seat.pipe.propose([Put(OFFICE_KEY, self._seat.node_id)], 5.0, self._taken)

    def _taken(self, results: Sequence[OpResult] | None) -> None:
        if self._over:
            return
        held = self._replica.get(OFFICE_KEY)
        if results is None or held is None or held.mod_revision != results[0].revision:
            self.end("the office could not be taken")
            return
        self.open = True
        rows = self._rows
        self.feed(
            TookOffice(
                results[0].revision,
                max(self._replica.time_ms, int(self._now() * 1_000)),
                tuple((decode_task(e.value), e.mod_revision) for e in rows(TASK_PREFIX)),
                tuple(
                    (decode_assignment(e.value), e.mod_revision) for e in rows(ASSIGNMENT_PREFIX)
                ),
                tuple((decode_job(e.value), e.mod_revision) for e in rows(JOB_PREFIX)),
                self._agents,
                self._seat.liveness(),
            )
        )

    def _rows(self, prefix: bytes) -> list[Entry]:
        return self._replica.range(prefix, b"", _ROWS_MAX)

    def end(self, reason: str) -> None:
        """Stop deciding; nobody is answered any more."""
        if not self._over:
            self._over = True
            self.open = False
            self._tags.clear()
            self._writer.close()
            self._seat.office_ended(reason)

    # ---- steps --------------------------------------------------------------------------

    def feed(self, event: Event) -> None:
        """Step the machine and perform what it asks for."""
        if self._over or not self.open:
            return
        for effect in self.machine.handle(event, self._now()):
            self._perform(effect)
            if self._over:
                return

    def ask(self, make: Callable[[int], Event], answered: Callable[[Any], None]) -> None:
        """A caller's request; `answered(None)` if the machine refuses it."""
        self._tag += 1
        self._tags[self._tag] = answered
        self.feed(make(self._tag))

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            self._seat.send_task(effect.peer, effect.message)
        elif isinstance(effect, Propose):
            self._writer.put(effect)
        elif isinstance(effect, SetTimer):
            self._seat.after(effect.delay_s, self.feed, effect.event)
        elif isinstance(effect, Answer):
            self._answer(effect.tag, effect.message)
        elif isinstance(effect, Refuse):
            self._answer(effect.tag, None)
        elif isinstance(effect, Confirm):
            self._confirm(effect.tag)
        elif isinstance(effect, NameItems):
            named = ItemsNamed(effect.job_id, self._manifests[effect.job_id])
            self._seat.after(_BLOB_READ_S, self.feed, named)
        elif isinstance(effect, Collect):
            self._seat.after(_BLOB_READ_S, self.feed, Collected(effect.job_id, _NOTHING))
        elif isinstance(effect, Resign):
            self.end(f"resigned: {effect.reason}")

    def _answer(self, tag: int, message: Any) -> None:
        waiting = self._tags.pop(tag, None)
        if waiting is not None:
            waiting(message)

    def _committed(self, commits: tuple[Commit, ...]) -> None:
        self.feed(Committed(commits))

    def _confirm(self, tag: int) -> None:
        def done(answered: bool, entry: Entry | None) -> None:
            held = answered and entry is not None and entry.mod_revision == self.machine.office
            self.feed(Confirmed(tag, held))

        self._seat.read(OFFICE_KEY, _CONFIRM_TIMEOUT_S, done)
