"""A node's way into the replicated log, as its shell has it, on virtual time.

Calls get sequences of the node's session when they are made and keep them over every repeat;
calls that are made while others are under way leave together, as one entry of the log. Who
leads proposes, everybody else forwards; who was deposed forwards too, so what a former
coordinator still wants reaches its successor's log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from swarmd.base.ids import digest
from swarmd.base.limits import BATCH_OPERATIONS_MAX
from swarmd.base.rng import Rng
from swarmd.state.raft.messages import SESSION_BYTES, Group, OpenSession, Operation, OpResult
from swarmd.tasks.events import Commit, Propose

BATCHES_MAX: Final = 4
WRITE_TIMEOUT_S: Final = 5.0
RETRY_MIN_S: Final = 0.02
RETRY_MAX_S: Final = 0.25
_GATHER_S: Final = 0.0001

Answers = Sequence[Sequence[OpResult]]


class Here(Protocol):
    """What is needed of the node; timers end with the node's life."""

    def after(self, delay_s: float, function: Callable[..., None], *args: object) -> None: ...

    def submit(self, groups: tuple[Group, ...], done: Callable[[Answers | None], None]) -> None:
        """Propose or forward, once. `done(None)`: it may or may not have happened."""


class Call:
    """Operations that travel together, and who waits for what became of them."""

    __slots__ = ("done", "first", "gone", "ops", "sends", "session")

    def __init__(
        self, ops: tuple[Operation, ...], done: Callable[[Sequence[OpResult] | None], None]
    ) -> None:
        self.ops = ops
        self.done = done
        self.gone = False
        self.sends = 0
        self.first = 0
        self.session: _Session

    def finish(self, results: Sequence[OpResult] | None) -> None:
        """Tell whoever waits, once."""
        if not self.gone:
            self.gone = True
            self.session.outstanding.pop(self.first, None)
            self.done(results)

    def cancel(self) -> None:
        """Nobody waits any more; what is under way may still happen."""
        if not self.gone:
            self.gone = True
            self.session.outstanding.pop(self.first, None)


class _Session:
    def __init__(self, name: bytes) -> None:
        self.name = name
        self.opened = False
        self.next = 0
        self.outstanding: dict[int, Call] = {}

    @property
    def low(self) -> int:
        return next(iter(self.outstanding), self.next)

    def enroll(self, call: Call) -> None:
        call.session, call.first = self, self.next
        self.outstanding[self.next] = call
        self.next += len(call.ops)


class Pipe:
    """One node's calls. `named(session)` is told of each session before it is used."""

    def __init__(self, here: Here, label: str, rng: Rng, named: Callable[[bytes], None]) -> None:
        self._here = here
        self._label = label
        self._rng = rng
        self._named = named
        self._sessions = 0
        self._queue: deque[Call] = deque()
        self._flying = 0
        self._armed = False
        self._session = self._new_session()

    def propose(
        self,
        ops: Sequence[Operation],
        timeout_s: float,
        done: Callable[[Sequence[OpResult] | None], None],
    ) -> Call:
        """Apply `ops` once, in order. `done(None)` after `timeout_s`: the outcome is unknown."""
        call = Call(tuple(ops), done)
        self._session.enroll(call)
        self._queue.append(call)
        self._here.after(timeout_s, call.finish, None)
        self._pump_soon()
        return call

    def _new_session(self) -> _Session:
        self._sessions += 1
        name = digest(b"session", f"{self._label}/{self._sessions}".encode())[:SESSION_BYTES]
        self._named(name)
        session = _Session(name)
        self._open(session, RETRY_MIN_S)
        return session

    def _open(self, session: _Session, delay_s: float) -> None:
        def opened(answers: Answers | None) -> None:
            if answers is not None and answers[0][0].ok:
                session.opened = True
                self._pump_soon()
            else:
                longer_s = min(delay_s * 1.6, RETRY_MAX_S)
                self._here.after(self._jitter(delay_s), self._open, session, longer_s)

        self._here.submit((Group(b"", 0, 0, (OpenSession(session.name),)),), opened)

    def _jitter(self, delay_s: float) -> float:
        return delay_s * self._rng.uniform(0.5, 1.0)

    def _pump_soon(self) -> None:
        if not self._armed:
            self._armed = True
            self._here.after(_GATHER_S, self._pump)

    def _pump(self) -> None:
        self._armed = False
        while self._queue and self._flying < BATCHES_MAX and self._queue[0].session.opened:
            batch: list[Call] = []
            count = 0
            while self._queue and count + len(self._queue[0].ops) <= BATCH_OPERATIONS_MAX:
                call = self._queue.popleft()
                if not call.gone:
                    count += len(call.ops)
                    batch.append(call)
            if batch:
                self._flying += 1
                self._deliver(batch, RETRY_MIN_S)

    def _deliver(self, batch: list[Call], delay_s: float) -> None:
        batch = [call for call in batch if not call.gone]
        if not batch:
            self._landed()
            return
        groups = tuple(Group(c.session.name, c.session.low, c.first, c.ops) for c in batch)
        for call in batch:
            call.sends += 1

        def answered(answers: Answers | None) -> None:
            if answers is None:
                longer_s = min(delay_s * 1.6, RETRY_MAX_S)
                self._here.after(self._jitter(delay_s), self._deliver, batch, longer_s)
                return
            self._landed()
            for call, results in zip(batch, answers, strict=True):
                if results and results[0].code == "session_expired":
                    self._expired(call)
                else:
                    call.finish(results)

        self._here.submit(groups, answered)

    def _landed(self) -> None:
        self._flying -= 1
        if self._queue:
            self._pump_soon()

    def _expired(self, call: Call) -> None:
        """Another session may carry what was certainly never applied, and only that."""
        if call.gone:
            return
        if call.sends > 1:
            call.finish(None)
            return
        call.session.outstanding.pop(call.first, None)
        if call.session is self._session:
            self._session = self._new_session()
        call.sends = 0
        self._session.enroll(call)
        self._queue.append(call)
        self._pump_soon()


class Writer:
    """From a coordinator's proposals to calls: what comes during a write shares the next one."""

    def __init__(
        self,
        here: Here,
        pipe: Pipe,
        collect_s: float,
        committed: Callable[[tuple[Commit, ...]], None],
        failed: Callable[[], None],
    ) -> None:
        self._here = here
        self._pipe = pipe
        self._collect_s = collect_s
        self._committed = committed
        self._failed = failed
        self._waiting: list[Propose] = []
        self._writing = 0
        self._calls: dict[int, Call] = {}
        self._serial = 0
        self._armed = False

    def close(self) -> None:
        """Nothing more is written; what is under way may still happen."""
        self._waiting.clear()
        for call in self._calls.values():
            call.cancel()
        self._calls.clear()

    def put(self, proposal: Propose) -> None:
        """Propose soon."""
        self._waiting.append(proposal)
        if not self._armed:
            self._armed = True
            self._here.after(self._collect_s if self._writing else 0.0, self._flush)

    def _flush(self) -> None:
        self._armed = False
        while self._waiting and self._writing < BATCHES_MAX:
            batch = self._waiting[:BATCH_OPERATIONS_MAX]
            del self._waiting[:BATCH_OPERATIONS_MAX]
            self._writing += 1
            self._write(batch)

    def _write(self, batch: list[Propose]) -> None:
        self._serial += 1
        serial = self._serial

        def done(results: Sequence[OpResult] | None) -> None:
            self._writing -= 1
            self._calls.pop(serial, None)
            if results is None:
                self._failed()
                return
            rows = zip(batch, results, strict=True)
            self._committed(tuple(Commit(p.tag, r.ok, r.revision) for p, r in rows))
            if self._waiting and not self._armed:
                self._armed = True
                self._here.after(0.0, self._flush)

        ops = [proposal.op for proposal in batch]
        self._calls[serial] = self._pipe.propose(ops, WRITE_TIMEOUT_S, done)
