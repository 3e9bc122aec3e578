"""The worker's shell: fetches payloads, runs attempts through the supervisor, stores results."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from swarmd.agents.attempts import AttemptRun, Outcome
from swarmd.base.clock import Clock
from swarmd.base.errors import BadRequest, Busy, SwarmError
from swarmd.base.ids import NodeId
from swarmd.base.machine import Send
from swarmd.mesh.driver import Driver
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import DROPPED
from swarmd.tasks.config import TasksConfig
from swarmd.tasks.gathering import as_value, compose
from swarmd.tasks.messages import Assign, AssignItem, Hello, Renewed, ResultItem, Row, Settled
from swarmd.tasks.outbox import Outbox
from swarmd.tasks.ports import Blobs, Supervisor
from swarmd.tasks.spec import Gathered, Inline, Stored, cut_message
from swarmd.tasks.worker.machine import (
    AttemptEnded,
    AttemptNotBegun,
    Begin,
    Drain,
    Drained,
    FromCoordinator,
    Kill,
    Over,
    Start,
    WorkerMachine,
)
from swarmd.tasks.worker.release import Release

_log = get_logger("tasks")
_STORE_TRIES: Final = 20
_STORE_PAUSE_S: Final = 0.5
# So long an attempt that cannot begin is kept from being given out again.
_NOT_BEGUN_PAUSE_S: Final = 1.0

GatherRows = Callable[[str, int], Awaitable[Sequence[Row]]]


class WorkerShell:
    """Runs one `WorkerMachine`.

    `gather(job_id, stage)` asks the coordinator for rows; `release` has what attempts published.
    """

    def __init__(
        self,
        me: NodeId,
        boot: bytes,
        config: TasksConfig,
        *,
        clock: Clock,
        outbox: Outbox,
        blobs: Blobs,
        supervisor: Supervisor,
        gather: GatherRows,
        release: Release,
    ) -> None:
        self.machine = WorkerMachine(me, boot, config)
        self._outbox = outbox
        self._blobs = blobs
        self._supervisor = supervisor
        self._gather = gather
        self._release = release
        self._scopes: dict[int, trio.CancelScope] = {}
        self._drained = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._driver = Driver(
            "worker",
            self.machine,
            {
                Send: lambda effect: outbox.put(effect.peer, effect.message),
                Start: self._start,
                Kill: self._kill,
                Over: self._over,
                Drained: lambda _: self._drained.set(),
            },
            clock=clock,
            inbox_max=100_000,
        )

    async def run(self) -> None:
        """Work until cancelled; then attempts that still run are killed."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._driver.feed(Begin())
            nursery.start_soon(self._driver.run)

    def hear(self, peer: NodeId, message: Hello | Assign | Settled | Renewed) -> None:
        """A message from a coordinator."""
        try:
            self._driver.feed(FromCoordinator(peer, message))
        except Busy:
            DROPPED.labels("worker", "busy").inc()

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing more; wait until nothing is left. True if so within `timeout_s`."""
        self._driver.feed(Drain(max(0.0, timeout_s - 1.0)))
        with trio.move_on_after(timeout_s):
            await self._drained.wait()
            await self._release.finished()
        return self._drained.is_set()

    # ---- attempts ---------------------------------------------------------------------

    def _start(self, effect: Start) -> None:
        assert self._nursery is not None
        scope = self._scopes[effect.item.fence] = trio.CancelScope()
        self._nursery.start_soon(self._attempt, effect.item, scope)

    def _kill(self, effect: Kill) -> None:
        scope = self._scopes.get(effect.fence)
        if scope is not None:
            scope.cancel()

    def _over(self, effect: Over) -> None:
        assert self._nursery is not None
        self._release.settled(effect.fences, self._nursery)

    async def _attempt(self, item: AssignItem, scope: trio.CancelScope) -> None:
        with scope:
            try:
                result = await self._make(item)
            except SwarmError as error:
                result = _failure(item, error.code, error.message)
            if result is None:
                await trio.sleep(_NOT_BEGUN_PAUSE_S)
                self._driver.feed(AttemptNotBegun(item.fence))
            else:
                self._driver.feed(AttemptEnded(result))
        self._scopes.pop(item.fence, None)

    async def _make(self, item: AssignItem) -> ResultItem | None:
        """Make the attempt. None: it could not begin."""
        payload = await self._payload(item)
        run = item.run
        outcome = await self._supervisor.run(
            AttemptRun(
                task_id=item.task_id,
                attempt=item.attempt,
                fence=item.fence,
                agent=run.name,
                version=run.version,
                bundle=run.bundle,
                entry=run.entry,
                payload=payload,
                timeout_s=item.timeout_s,
                concurrency=run.concurrency,
                environment=run.environment,
                bus=run.bus,
            )
        )
        if outcome.not_begun:
            _log.warning("an attempt is handed back", agent=run.name, why=outcome.message)
            return None
        result = await self._report(item, outcome)
        assert self._nursery is not None
        self._release.hold(item.task_id, item.fence, outcome.messages, self._nursery)
        return result

    async def _payload(self, item: AssignItem) -> bytes:
        payload = item.payload
        if isinstance(payload, Inline):
            return payload.data
        if isinstance(payload, Stored):
            return await self._blobs.get(payload.blob)
        if isinstance(payload, Gathered):
            rows = await self._gather(item.job_id, payload.stage)
            return await compose(rows, self._blobs)
        raise BadRequest("the payload refers to something that is not there any more")

    async def _report(self, item: AssignItem, outcome: Outcome) -> ResultItem:
        if not outcome.ok:
            return _failure(item, outcome.code or "task_failed", outcome.message, outcome.ran_s)
        value = await self._value(outcome.result if outcome.result is not None else b"\xc0")
        return ResultItem(item.task_id, item.fence, True, value, ran_s=outcome.ran_s)

    async def _value(self, data: bytes) -> Inline | Stored:
        """Store a large result, however long too few nodes are there to take it."""
        for _ in range(_STORE_TRIES):
            try:
                return await as_value(data, self._blobs)
            except SwarmError as error:
                if not error.retryable:
                    raise
            await trio.sleep(_STORE_PAUSE_S)
        return await as_value(data, self._blobs)


def _failure(item: AssignItem, code: str, message: str, ran_s: float = 0.0) -> ResultItem:
    text = cut_message(message)
    return ResultItem(item.task_id, item.fence, False, code=code, message=text, ran_s=ran_s)
