"""A client's way into the log: sessions, batches, repeats.

Every call gets sequences of the client's session when it is made and keeps them over every
repeat, so that whatever is lost, doubled or answered twice is applied once. Calls that are
made while others are under way leave together as one batch; at most `BATCHES_MAX` batches are
under way. A call that gave up (its deadline passed, or it was cancelled) lets the session's
`low` pass it, after which the log will not apply it any more.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import (
    Busy,
    Forbidden,
    NoQuorum,
    RemoteError,
    SessionExpired,
    SwarmError,
    TooLarge,
    Unavailable,
)
from swarmd.base.limits import BATCH_BYTES_MAX, BATCH_OPERATIONS_MAX, ENTRY_BYTES_MAX, KIB
from swarmd.base.rng import Rng
from swarmd.state.raft.bounds import operation_bytes, problem_of
from swarmd.state.raft.messages import SESSION_BYTES, Group, OpenSession, Operation, OpResult
from swarmd.state.raft.statemachine import SESSION_TTL_MS

BATCHES_MAX: Final = 2
CALLS_WAITING_MAX: Final = 20_000
RETRY_MIN_S: Final = 0.02
RETRY_MAX_S: Final = 0.25
# A session unused for half its life is not used again: it may have ended.
UNKNOWN: Final = "the outcome is unknown: see `swarmctl status` and repeat with the same key"
UNREAD: Final = "nothing was read or changed: see `swarmctl status` and try again"
_SESSION_IDLE_S: Final = SESSION_TTL_MS / 2_000

Submit = Callable[[tuple[Group, ...]], Awaitable[Sequence[Sequence[OpResult]]]]


class _Session:
    """A session as its client sees it."""

    __slots__ = ("ended", "name", "next", "opened", "outstanding", "used_at")

    def __init__(self, now: float) -> None:
        # From the machine's own entropy: a name must not come twice, not even after a restart.
        self.name = secrets.token_bytes(SESSION_BYTES)
        self.opened = trio.Event()
        self.ended = False
        self.next = 0
        self.outstanding: dict[int, _Call] = {}
        self.used_at = now

    @property
    def low(self) -> int:
        """The oldest sequence whose result is still wanted."""
        return next(iter(self.outstanding), self.next)

    def enroll(self, call: _Call) -> None:
        call.session, call.first, call.sends = self, self.next, 0
        self.outstanding[self.next] = call
        self.next += len(call.ops)


class _Call:
    """Operations that travel together, and what became of them."""

    __slots__ = ("done", "error", "first", "gone", "ops", "results", "sends", "session", "size")

    def __init__(self, ops: tuple[Operation, ...], size: int) -> None:
        self.ops = ops
        self.size = size
        self.done = trio.Event()
        self.results: Sequence[OpResult] = ()
        self.error: SwarmError | None = None
        self.gone = False
        self.sends = 0
        self.first = 0
        self.session: _Session

    def finish(self, results: Sequence[OpResult]) -> None:
        self.results = results
        self.done.set()

    def fail(self, error: SwarmError) -> None:
        self.error = error
        self.done.set()

    def retire(self) -> None:
        self.gone = True
        self.session.outstanding.pop(self.first, None)


class Pipe:
    """Proposes operations through `submit`, which tries once and raises what went wrong."""

    def __init__(self, submit: Submit, *, clock: Clock, rng: Rng, nursery: trio.Nursery) -> None:
        self._submit = submit
        self._clock = clock
        self._rng = rng
        self._nursery = nursery
        self._queue: deque[_Call] = deque()
        self._wake = trio.Event()
        self._slots = trio.Semaphore(BATCHES_MAX)
        self._session: _Session | None = None
        self._trouble: SwarmError | None = None

    async def propose(self, ops: Sequence[Operation], *, timeout_s: float) -> list[OpResult]:
        """See `Store.propose`."""
        calls = _calls(ops)
        if len(self._queue) + len(calls) > CALLS_WAITING_MAX:
            raise Busy(f"{len(self._queue)} calls wait for the strong store")
        enrolled: list[_Call] = []
        try:
            with trio.move_on_after(timeout_s):
                session = await self._ready_session()
                for call in calls:
                    session.enroll(call)
                    enrolled.append(call)
                if len(calls) == 1 and self._is_idle:
                    # Nobody to share a batch with: no task of its own, no turns of the loop.
                    self._slots.acquire_nowait()
                    await self._deliver(calls)
                else:
                    self._queue.extend(calls)
                    self._wake.set()
                for call in calls:
                    await call.done.wait()
                return _results(calls)
        finally:
            for call in enrolled:
                call.retire()
        raise no_quorum(timeout_s, self._trouble)

    @property
    def _is_idle(self) -> bool:
        return not self._queue and self._slots.value == BATCHES_MAX

    async def run(self) -> None:
        """Send what is queued, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            # Whoever is ready to run in this turn may add to the batch.
            await trio.lowlevel.checkpoint()
            while self._queue:
                await self._slots.acquire()
                batch = self._take()
                if batch:
                    self._nursery.start_soon(self._deliver, batch)
                else:
                    self._slots.release()

    def _take(self) -> list[_Call]:
        batch: list[_Call] = []
        operations, size = 0, 0
        while self._queue:
            call = self._queue[0]
            if not call.gone:
                operations += len(call.ops)
                size += call.size
                if batch and (operations > BATCH_OPERATIONS_MAX or size > BATCH_BYTES_MAX):
                    break
                batch.append(call)
            self._queue.popleft()
        return batch

    async def _deliver(self, batch: list[_Call]) -> None:
        delay_s = RETRY_MIN_S
        try:
            while batch:
                batch = await self._attempt(batch)
                if batch:
                    await trio.sleep(delay_s * self._rng.uniform(0.5, 1.0))
                    delay_s = min(delay_s * 1.6, RETRY_MAX_S)
                    batch = [call for call in batch if not call.gone]
        finally:
            self._slots.release()

    async def _attempt(self, batch: list[_Call]) -> list[_Call]:
        """Send once; the calls that have to be sent again."""
        groups = tuple(Group(c.session.name, c.session.low, c.first, c.ops) for c in batch)
        for call in batch:
            call.sends += 1
        try:
            answers = await self._submit(groups)
        except (Unavailable, RemoteError) as error:
            self._trouble = error
            return batch
        except SwarmError as error:
            for call in batch:
                call.fail(error)
            return []
        self._trouble = None
        again = []
        for call, results in zip(batch, answers, strict=True):
            if any(result.code == "moved" for result in results):
                again.append(call)
            elif results and results[0].code == SessionExpired.code:
                self._expired(call)
            elif results and results[0].code == Forbidden.code:
                call.fail(Forbidden(results[0].message))  # The coordinator applied none of it.
            else:
                call.finish(results)
        return again

    def _expired(self, call: _Call) -> None:
        call.session.ended = True
        if call.sends > 1:
            message = "the session ended while the outcome of the operation was unknown"
            call.fail(SessionExpired(message))
        elif not call.gone:
            # Sent once and refused: it was never applied, so another session may carry it.
            self._nursery.start_soon(self._move, call)

    async def _move(self, call: _Call) -> None:
        session = await self._ready_session()
        if not call.gone:
            call.session.outstanding.pop(call.first, None)
            session.enroll(call)
            self._queue.append(call)
            self._wake.set()

    async def _ready_session(self) -> _Session:
        now = self._clock.now()
        session = self._session
        if session is None or session.ended or now - session.used_at > _SESSION_IDLE_S:
            session = self._session = _Session(now)
            self._nursery.start_soon(self._open, session)
        if not session.opened.is_set():
            await session.opened.wait()
        session.used_at = now
        return session

    async def _open(self, session: _Session) -> None:
        groups = (Group(b"", 0, 0, (OpenSession(session.name),)),)
        delay_s = RETRY_MIN_S
        while True:
            try:
                if (await self._submit(groups))[0][0].ok:
                    session.opened.set()
                    return
            except SwarmError as error:
                self._trouble = error
            await trio.sleep(delay_s * self._rng.uniform(0.5, 1.0))
            delay_s = min(delay_s * 1.6, RETRY_MAX_S)


def no_quorum(timeout_s: float, trouble: SwarmError | None, outcome: str = UNKNOWN) -> NoQuorum:
    """`outcome`: what became of what was asked, and what to do next."""
    cause = f" ({trouble.message})" if trouble is not None else ""
    silence = f"no majority of the voters answered within {timeout_s:g} s{cause}"
    return NoQuorum(f"{silence}; {outcome}")


def _calls(ops: Sequence[Operation]) -> list[_Call]:
    """`ops` in order, cut into what fits one batch. Raises BadRequest or TooLarge."""
    calls: list[_Call] = []
    chunk: list[Operation] = []
    size = 0
    for op in ops:
        problem = problem_of(op)
        if problem is not None:
            raise problem
        op_size = operation_bytes(op)
        if op_size > ENTRY_BYTES_MAX - KIB:
            raise TooLarge(f"an operation of {op_size} bytes; at most {ENTRY_BYTES_MAX - KIB} fit")
        full = len(chunk) >= BATCH_OPERATIONS_MAX or size + op_size > BATCH_BYTES_MAX
        if chunk and full:
            calls.append(_Call(tuple(chunk), size))
            chunk, size = [], 0
        chunk.append(op)
        size += op_size
    if chunk:
        calls.append(_Call(tuple(chunk), size))
    return calls


def _results(calls: list[_Call]) -> list[OpResult]:
    results: list[OpResult] = []
    for call in calls:
        if call.error is not None:
            raise call.error
        results.extend(call.results)
    return results
