"""Tasks and jobs, for callers on any node.

Every node has the same face: it asks the coordinator over the mesh (itself too, through the
same inbox) and asks again when the coordinator changes. Submits are idempotent by key, so
asking again is harmless; results and events are streams that go on under the next
coordinator with what is still missing.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import (
    BadRequest,
    Busy,
    NoQuorum,
    NotCoordinator,
    NotFound,
    RemoteError,
    ShuttingDown,
    SwarmError,
    Unavailable,
)
from swarmd.base.ids import NodeId
from swarmd.base.limits import INLINE_BYTES_MAX, KIB, SUBMIT_TASKS_MAX
from swarmd.base.rng import Rng, derive
from swarmd.mesh.bus.service import Bus
from swarmd.mesh.link import Inbound, Link
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import DROPPED
from swarmd.tasks import messages as m
from swarmd.tasks.config import TasksConfig
from swarmd.tasks.gathering import as_value, current_references, for_each
from swarmd.tasks.messages import TASK, JobView, SubmittedItem, TaskView
from swarmd.tasks.office import OfficeShell
from swarmd.tasks.outbox import Outbox, struct_bytes
from swarmd.tasks.ports import Blobs, Membership, Store, Supervisor
from swarmd.tasks.serving import serve
from swarmd.tasks.spec import Inline, JobSpec, TaskRecord, TaskSpec, check_job, check_task
from swarmd.tasks.worker.release import Release
from swarmd.tasks.worker.service import WorkerShell

__all__ = ["Tasks", "open_tasks"]

_CHUNK_TASKS: Final = 500
_CHUNK_BYTES: Final = 384 * KIB
_CHUNKS_AT_ONCE: Final = 4
_LOOK_TASKS: Final = 200
_ATTEMPT_TIMEOUT_S: Final = 3.0
_NO_COORDINATOR: Final = (
    "no coordinator answers ({}): start the voters that are away, then ask again"
)
_RETRY_MIN_S: Final = 0.02
_RETRY_MAX_S: Final = 0.25
_REQUESTS_MAX: Final = 2_000
_SILENCE_S: Final = 6.0
_STOPS: Final = "this node stops: ask another one, or this one later"
_log = get_logger("tasks")


class Tasks:
    """Made by `open_tasks`."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: Blobs,
        link: Link,
        membership: Membership,
        supervisor: Supervisor | None,
        swarm_id: bytes,
        config: TasksConfig,
        clock: Clock,
        rng: Rng,
        nursery: trio.Nursery,
        bus: Bus | None = None,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._link = link
        self._membership = membership
        self._swarm_id = swarm_id
        self._config = config
        self._clock = clock
        self._rng = derive(rng, "tasks")
        self._nursery = nursery
        self._outbox = Outbox(link)
        self._office: OfficeShell | None = None
        self._requests = 0
        self._closed = False
        self._worker: WorkerShell | None = None
        if supervisor is not None:
            self._worker = WorkerShell(
                link.node_id,
                secrets.token_bytes(8),
                config,
                clock=clock,
                outbox=self._outbox,
                blobs=blobs,
                supervisor=supervisor,
                gather=self._gather,
                release=Release(store, bus),
            )

    # ---- tasks ------------------------------------------------------------------------

    async def submit(self, specs: Sequence[TaskSpec]) -> list[SubmittedItem]:
        """Submit tasks; returns when each is durable, or refused with a code of its own.

        Payloads above 64 KiB are stored as blobs first. Submitting again under the same keys
        is harmless, also after an error.

        Raises:
            BadRequest: a spec cannot be; nothing was submitted.
            NoQuorum: nobody could take them in time; some may have been taken.
            InsufficientCopies: a large payload could not be stored.

        Cancellation: some may have been taken.
        """
        if len(specs) > SUBMIT_TASKS_MAX:
            raise BadRequest(f"at most {SUBMIT_TASKS_MAX} tasks can be submitted at once")
        ready = [await self._stored(spec) for spec in specs]
        for spec in ready:
            check_task(spec)
        chunks = list(_chunks(ready))
        answers: list[Sequence[SubmittedItem]] = [()] * len(chunks)

        async def send(position: int) -> None:
            answer = await self._ask(m.Submit(chunks[position]), m.Submitted)
            answers[position] = answer.items

        await for_each(len(chunks), send, at_once=_CHUNKS_AT_ONCE)
        return [item for answer in answers for item in answer]

    async def _stored(self, spec: TaskSpec) -> TaskSpec:
        if isinstance(spec.payload, Inline) and len(spec.payload.data) > INLINE_BYTES_MAX:
            value = await as_value(spec.payload.data, self._blobs)
            return msgspec.structs.replace(spec, payload=value)
        return spec

    async def get(self, task_id: str) -> TaskView:
        """One task, with its result. Raises NotFound, NoQuorum."""
        seen = await self._ask(m.Look(task_ids=(task_id,)), m.Seen)
        if not seen.tasks:
            raise NotFound(f"no task has the id {task_id}")
        view: TaskView = seen.tasks[0]
        return view

    async def list(
        self,
        *,
        state: str = "",
        agent: str = "",
        job_id: str = "",
        after: str = "",
        limit: int = 0,
    ) -> tuple[Sequence[TaskView], str]:
        """A page without payloads and results, newest first, and where the next one begins."""
        ask = m.Look((), state, agent, job_id, after, min(limit or 100, m.PAGE_MAX))
        seen = await self._ask(ask, m.Seen)
        return seen.tasks, seen.after

    async def cancel(self, task_ids: Sequence[str]) -> Sequence[TaskView]:
        """Cancel tasks; returns what became of them. One that has ended stays as it is.

        Raises:
            NotFound: a task is unknown; the others were cancelled.
        """
        answer = await self._ask(m.Cancel(tuple(task_ids)), m.Cancelled)
        for item in answer.items:
            if item.code == "not_found":
                raise NotFound(item.message)
        views: list[TaskView] = []
        for start in range(0, len(task_ids), _LOOK_TASKS):
            page = tuple(task_ids[start : start + _LOOK_TASKS])
            seen = await self._ask(m.Look(task_ids=page, limit=_LOOK_TASKS), m.Seen)
            views.extend(seen.tasks)
        return views

    async def results(self, task_ids: Sequence[str]) -> AsyncIterator[TaskRecord]:
        """Each task's final record as it ends; unknown ids are left out. Close it after use.

        Raises:
            ShuttingDown: this node stops; nothing is said of the tasks not told yet.
        """
        left = dict.fromkeys(task_ids)

        def take(answer: m.Ended) -> Sequence[TaskRecord]:
            for task_id in answer.missing:
                left.pop(task_id, None)
            return [r for r in answer.records if left.pop(r.task_id, self) is None]

        def ask() -> m.Watch | None:
            return m.Watch(tuple(left)[:SUBMIT_TASKS_MAX]) if left else None

        send, receive = trio.open_memory_channel[TaskRecord](0)
        scope = trio.CancelScope()
        self._start_pump(scope, ask, take, send)
        try:
            async with receive:
                async for record in receive:
                    yield record
        finally:
            scope.cancel()
        if left:
            raise ShuttingDown(_STOPS)

    async def counts(self) -> Mapping[str, int]:
        """Tasks by state. Raises NoQuorum."""
        counted = await self._ask(m.Count(), m.Counted)
        tasks: Mapping[str, int] = counted.tasks
        return tasks

    # ---- jobs -------------------------------------------------------------------------

    async def submit_job(self, spec: JobSpec) -> JobView:
        """Start a job whose manifest is stored already; returns when it is durable.

        Raises:
            BadRequest, IdempotencyConflict, NotFound: the job cannot be, or an agent is
                missing; nothing was taken.
            NoQuorum: nobody could take it in time; it may have been taken.
        """
        check_job(spec)
        taken = await self._ask(m.SubmitJob(spec), m.SubmittedJob)
        return await self.job(taken.job_id)

    async def job(self, job_id: str) -> JobView:
        """A job and its progress. Raises NotFound, NoQuorum."""
        seen = await self._ask(m.LookJobs(job_id), m.SeenJobs)
        view: JobView = seen.jobs[0]
        return view

    async def jobs(self) -> Sequence[JobView]:
        """The newest jobs."""
        seen = await self._ask(m.LookJobs(limit=200), m.SeenJobs)
        views: Sequence[JobView] = seen.jobs
        return views

    async def cancel_job(self, job_id: str) -> JobView:
        """Cancel a job and its tasks; one that has ended stays as it is. Raises NotFound."""
        seen = await self._ask(m.CancelJob(job_id), m.SeenJobs)
        view: JobView = seen.jobs[0]
        return view

    async def job_events(self, job_id: str) -> AsyncIterator[JobView]:
        """The job now, whenever it moved, and when it has ended.

        Raises NotFound at first, and ShuttingDown where this node stops.
        """
        last: JobView | None = await self.job(job_id)

        def take(answer: m.SeenJobs) -> Sequence[JobView]:
            nonlocal last
            fresh = [view for view in answer.jobs if view != last]
            last = answer.jobs[0] if answer.jobs else last
            return fresh

        def ask() -> m.WatchJob | None:
            return None if last is not None and last.final else m.WatchJob(job_id)

        assert last is not None
        yield last
        send, receive = trio.open_memory_channel[JobView](0)
        scope = trio.CancelScope()
        self._start_pump(scope, ask, take, send)
        try:
            async with receive:
                async for view in receive:
                    yield view
        finally:
            scope.cancel()

    # ---- the node ---------------------------------------------------------------------

    def close(self) -> None:
        """Begin no stream any more: the block of `open_tasks` ends."""
        self._closed = True

    async def drain(self, timeout_s: float) -> bool:
        """Finish or hand back what runs here. True if nothing was left within `timeout_s`."""
        if self._worker is None:
            return True
        return await self._worker.drain(timeout_s)

    @property
    def in_office(self) -> bool:
        """Whether this node coordinates tasks now."""
        return self._office is not None and self._office.open

    # ---- asking the coordinator -------------------------------------------------------

    async def _ask(self, message: Any, kind: type) -> Any:
        """The coordinator's answer; asks again while there is none. Raises NoQuorum."""
        trouble: SwarmError = NotCoordinator("no coordinator is known")
        deadline = trio.current_time() + self._config.coordinator_timeout_s
        delay_s = _RETRY_MIN_S
        while True:
            left_s = deadline - trio.current_time()
            if left_s <= 0:
                raise NoQuorum(_NO_COORDINATOR.format(trouble.message))
            with trio.move_on_after(left_s):
                try:
                    return await self._ask_once(message, kind, min(left_s, _ATTEMPT_TIMEOUT_S))
                except (Unavailable, RemoteError) as error:
                    trouble = error
                await self._relocate()
                await trio.sleep(delay_s * self._rng.uniform(0.5, 1.0))
                delay_s = min(delay_s * 1.6, _RETRY_MAX_S)

    async def _ask_once(self, message: Any, kind: type, timeout_s: float) -> Any:
        answer = await self._link.request(TASK, self._target(), message, timeout_s=timeout_s)
        if not isinstance(answer, kind):
            raise RemoteError(f"{type(answer).__name__} is no answer to {type(message).__name__}")
        return answer

    def _target(self) -> NodeId:
        target = self._store.coordinator()
        if target is None:
            raise NotCoordinator("no coordinator is known")
        return target

    async def _relocate(self) -> None:
        """A node that holds no copy of the store learns who leads by asking it something."""
        if self._store.is_voter:
            return
        try:
            await self._store.read_index(timeout_s=1.0)
        except SwarmError as error:
            _log.debug("the store does not answer", error=error.message)

    def _start_pump(self, scope: trio.CancelScope, *args: Any) -> None:
        if self._closed:
            raise ShuttingDown(_STOPS)
        self._nursery.start_soon(self._pump, scope, *args)

    async def _pump(
        self,
        scope: trio.CancelScope,
        ask: Callable[[], Any],
        take: Callable[[Any], Sequence[Any]],
        send: trio.MemorySendChannel[Any],
    ) -> None:
        """Feed a stream from the coordinator to `send`, from one coordinator to the next."""
        delay_s = _RETRY_MIN_S
        with scope:
            async with send:
                while (message := ask()) is not None:
                    try:
                        async with self._link.request_stream(
                            TASK, self._target(), message, timeout_s=_SILENCE_S
                        ) as answers:
                            async for answer in answers:
                                delay_s = _RETRY_MIN_S
                                for one in take(answer):
                                    await send.send(one)
                    except (Unavailable, RemoteError) as error:
                        _log.debug("a stream broke", error=error.message)
                        await self._relocate()
                    except NotFound:
                        return
                    except trio.BrokenResourceError:
                        return
                    if ask() is not None:
                        await trio.sleep(delay_s)
                        delay_s = min(delay_s * 1.6, _RETRY_MAX_S)

    async def _gather(self, job_id: str, stage: int) -> Sequence[m.Row]:
        """Rows of a job, from whoever coordinates. Raises NotFound, TimedOut-like errors."""
        deadline = trio.current_time() + 12 * self._config.coordinator_timeout_s
        while True:
            rows: list[m.Row] = []
            try:
                async with self._link.request_stream(
                    TASK, self._target(), m.Gather(job_id, stage), timeout_s=_SILENCE_S
                ) as answers:
                    async for answer in answers:
                        rows.extend(answer.rows)
                        if answer.last:
                            return rows
                raise RemoteError("the rows of a job ended early")
            except (Unavailable, RemoteError):
                if trio.current_time() > deadline:
                    raise
            await self._relocate()
            await trio.sleep(_RETRY_MAX_S)

    # ---- running ----------------------------------------------------------------------

    async def _receive(self, inbox: trio.MemoryReceiveChannel[Inbound]) -> None:
        async for inbound in inbox:
            message = inbound.message
            if isinstance(message, m.Hello | m.Assign | m.Settled | m.Renewed):
                if self._worker is not None:
                    self._worker.hear(inbound.peer, message)
            elif isinstance(message, m.Heartbeat | m.Results | m.HandBack):
                if self._office is not None and self._office.open:
                    self._office.hear(inbound.peer, message)
            elif self._requests >= _REQUESTS_MAX:
                DROPPED.labels("tasks", "requests").inc()
                error = Busy(f"{_REQUESTS_MAX} requests are being answered here")
                self._nursery.start_soon(inbound.fail, error)
            elif inbound.wants_answer:
                self._requests += 1
                self._nursery.start_soon(self._serve, inbound)

    async def _serve(self, inbound: Inbound) -> None:
        try:
            await serve(self._office, inbound)
        finally:
            self._requests -= 1

    async def _hold_offices(self) -> None:
        """Coordinate whenever this node leads the store."""
        while True:
            held = self._store.office
            if held is None:
                await self._store.office_changed()
                continue
            office = OfficeShell(
                self._link.node_id,
                self._swarm_id,
                self._config,
                store=self._store,
                blobs=self._blobs,
                membership=self._membership,
                outbox=self._outbox,
                clock=self._clock,
                rng=derive(self._rng, "office"),
            )
            self._office = office
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_with, held, office)
                try:
                    await office.run()
                except SwarmError as error:
                    _log.info("the office could not be taken", error=error.message)
                nursery.cancel_scope.cancel()
            self._office = None
            await trio.sleep(_RETRY_MIN_S)

    async def _end_with(self, held: object, office: OfficeShell) -> None:
        """End this office when the store's ends."""
        while self._store.office == held:
            await self._store.office_changed()
        office.end("this node does not lead the store any more")

    async def _sweep_blobs(self) -> None:
        """On voters, which know every record: delete blobs that none refers to any more."""
        while True:
            await trio.sleep(self._config.blob_sweep_s)
            try:
                hashes = await current_references(self._store)
                count = await self._blobs.keep(hashes) if hashes is not None else 0
            except SwarmError as error:
                _log.warning("blobs were not swept", error=error.message)
            else:
                if count:
                    _log.info("deleted blobs that nothing refers to", count=count)

    async def run(self, inbox: trio.MemoryReceiveChannel[Inbound]) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._outbox.run)
            nursery.start_soon(self._hold_offices)
            nursery.start_soon(self._sweep_blobs)
            if self._worker is not None:
                nursery.start_soon(self._worker.run)
            await self._receive(inbox)


def _chunks(specs: Sequence[TaskSpec]) -> Iterator[tuple[TaskSpec, ...]]:
    chunk: list[TaskSpec] = []
    size = 0
    for spec in specs:
        spec_bytes = struct_bytes(spec)
        if chunk and (len(chunk) >= _CHUNK_TASKS or size + spec_bytes > _CHUNK_BYTES):
            yield tuple(chunk)
            chunk, size = [], 0
        chunk.append(spec)
        size += spec_bytes
    if chunk:
        yield tuple(chunk)


@asynccontextmanager
async def open_tasks(
    *,
    store: Store,
    blobs: Blobs,
    link: Link,
    membership: Membership,
    supervisor: Supervisor | None,
    swarm_id: bytes,
    config: TasksConfig,
    clock: Clock,
    rng: Rng,
    bus: Bus | None = None,
) -> AsyncIterator[Tasks]:
    """Take part in the swarm's work for as long as the block runs.

    Args:
        supervisor: runs attempts here; None: this node runs none.
        bus: where messages go that attempts publish with their results.

    Leaving the block kills what still runs: `drain` first.
    """
    async with trio.open_nursery() as nursery:
        tasks = Tasks(
            store=store,
            blobs=blobs,
            link=link,
            membership=membership,
            supervisor=supervisor,
            swarm_id=swarm_id,
            config=config,
            clock=clock,
            rng=rng,
            nursery=nursery,
            bus=bus,
        )
        inbox = link.open_inbox(TASK, size=10_000)
        nursery.start_soon(tasks.run, inbox)
        try:
            yield tasks
        finally:
            tasks.close()
        nursery.cancel_scope.cancel()
