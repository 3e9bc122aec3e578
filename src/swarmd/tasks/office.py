"""The coordinator's shell: one object per office, from taking it to losing it.

It takes the office in the store, reads what the store holds, runs the machine, and ends when
the machine resigns, when the node stops leading, or when the outcome of a write is unknown.
Callers who wait then are told `not_coordinator` and ask again; the next office starts from
the store.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
import trio

from swarmd.agents.records import AGENT_PREFIX, AgentRecord, decode_agent
from swarmd.agents.spec import BusRights
from swarmd.base.clock import Clock
from swarmd.base.errors import (
    BadRequest,
    Busy,
    CorruptFile,
    MalformedMessage,
    NotCoordinator,
    NotFound,
    SwarmError,
    Unavailable,
    from_code,
)
from swarmd.base.ids import NodeId
from swarmd.base.machine import Event, Send
from swarmd.base.pace import pause
from swarmd.base.rng import Rng
from swarmd.mesh.driver import Driver
from swarmd.mesh.swim.events import Member
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import DROPPED, TASKS
from swarmd.state.raft.messages import Put
from swarmd.tasks import events as e
from swarmd.tasks.board import Entry
from swarmd.tasks.config import TasksConfig
from swarmd.tasks.gathering import as_value, compose, gather_rows
from swarmd.tasks.machine import CoordinatorMachine
from swarmd.tasks.messages import (
    Assign,
    AssignItem,
)
from swarmd.tasks.outbox import Outbox
from swarmd.tasks.ports import Blobs, Membership, Replica, Store
from swarmd.tasks.showing import Showing
from swarmd.tasks.spec import (
    ASSIGNMENT_PREFIX,
    JOB_PREFIX,
    OFFICE_KEY,
    TASK_PREFIX,
    AgentRun,
    FromItem,
    FromTask,
    Item,
    Manifest,
    Mode,
    Payload,
    State,
    TaskRecord,
    decode_assignment,
    decode_job,
    decode_task,
)
from swarmd.tasks.writer import Writer
from swarmd.wire.codec import decode_struct

_PAGE: Final = 500
_CONFIRM_TIMEOUT_S: Final = 2.0
_TROUBLE_PAUSE_S: Final = 1.0
_GAUGE_S: Final = 1.0
_MISSED_PAUSE_S: Final = 0.01
_log = get_logger("tasks")


class Watcher:
    """Somebody who waits for tasks to end. `take` gives what ended since the last time."""

    def __init__(self, missing: int) -> None:
        self.missing = missing
        self.wake = trio.Event()
        self._ended: list[TaskRecord] = []

    def tell(self, record: TaskRecord) -> None:
        self._ended.append(record)
        self.missing -= 1
        self.wake.set()

    def take(self, limit: int) -> list[TaskRecord]:
        taken, self._ended = self._ended[:limit], self._ended[limit:]
        if not self._ended:
            self.wake = trio.Event()
        return taken

    @property
    def finished(self) -> bool:
        return self.missing == 0 and not self._ended


class OfficeShell:
    """Made when the node begins to lead; `run` once, then throw it away."""

    def __init__(
        self,
        me: NodeId,
        swarm_id: bytes,
        config: TasksConfig,
        *,
        store: Store,
        blobs: Blobs,
        membership: Membership,
        outbox: Outbox,
        clock: Clock,
        rng: Rng,
    ) -> None:
        self.machine = CoordinatorMachine(me, swarm_id, config, rng)
        self.showing = Showing(self.machine, store)
        self.job_moved: dict[str, trio.Event] = {}
        self._holds = False
        self._me = me
        self._swarm_id = swarm_id
        self._store = store
        self._blobs = blobs
        self._membership = membership
        self._outbox = outbox
        self._scope = trio.CancelScope()
        self._tags = itertools.count(1)
        self._asking: dict[int, _Asking] = {}
        self._watchers: dict[str, list[Watcher]] = {}
        self._waiting: list[Watcher] = []
        self._items: dict[str, tuple[Item, ...]] = {}
        # Assignments of jobs whose items are not known yet; gone with the job or the office.
        self._held: dict[str, list[tuple[NodeId, Assign]]] = {}
        self._writer = Writer(store, config.collect_s, self._committed, self._unknown)
        self._nursery: trio.Nursery | None = None
        self._driver = Driver(
            "coordinator",
            self.machine,
            {
                e.Propose: self._writer.put,
                Send: self._send,
                e.Answer: lambda effect: self._answer(effect.tag, effect.message, None),
                e.Refuse: lambda effect: self._answer(
                    effect.tag, None, from_code(effect.code, effect.message)
                ),
                e.TaskDone: self._task_done,
                e.JobMoved: self._on_job_moved,
                e.Confirm: lambda effect: self._soon(self._confirm, effect.tag),
                e.NameItems: lambda effect: self._soon(self._name_items, effect),
                e.Collect: lambda effect: self._soon(self._collect, effect.job_id),
                e.Resign: lambda effect: self.end(effect.reason),
            },
            clock=clock,
            inbox_max=100_000,
        )

    # ---- life -------------------------------------------------------------------------

    async def run(self) -> None:
        """Hold the office until it is lost.

        Raises:
            Unavailable: the office could not be taken now.
        """
        with self._scope:
            try:
                await self._take_and_hold()
            finally:
                self._close()

    @property
    def open(self) -> bool:
        """Whether it can be asked: it holds the office, and knows what the store holds.

        Asked in the moment between the two, it would deny tasks that were acknowledged.
        """
        return self._holds and self.machine.office != 0

    def end(self, reason: str) -> None:
        """Stop deciding."""
        if not self._scope.cancel_called:
            _log.info("left the office", reason=reason)
        self._scope.cancel()

    def _close(self) -> None:
        self._holds = False
        for tag in list(self._asking):
            self._answer(tag, None, NotCoordinator("this node is not in office any more"))
        for watcher in self._waiting:
            watcher.wake.set()
        for moved in self.job_moved.values():
            moved.set()
        for state in State:
            TASKS.labels(state.value).set(0)

    async def _take_and_hold(self) -> None:
        # Fed at once, and held by no name: an office is long, and these are all the records.
        self.feed(await self._take())
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._holds = True
            nursery.start_soon(self._driver.run)
            nursery.start_soon(self._writer.run)
            nursery.start_soon(self._follow_members)
            nursery.start_soon(self._follow_agents)
            nursery.start_soon(self._show_gauges)

    async def _take(self) -> e.TookOffice:
        """Take the office; from here on nobody else changes what is read now."""
        results = await self._store.propose([Put(OFFICE_KEY, self._me)])
        office = results[0].raise_for_error().revision
        replica = self._store.local
        held = replica.get(OFFICE_KEY) if replica is not None else None
        if replica is None or held is None or held.mod_revision != office:
            raise Unavailable("the office was taken by another node")
        tasks = tuple([row async for row in _scan(replica, TASK_PREFIX, decode_task)])
        _log.info("took office", fence=office, tasks=len(tasks))
        members = self._membership.members()
        return e.TookOffice(
            office,
            self._store.store_time_ms(),
            tasks,
            tuple([row async for row in _scan(replica, ASSIGNMENT_PREFIX, decode_assignment)]),
            tuple([row async for row in _scan(replica, JOB_PREFIX, decode_job)]),
            tuple([run_of(r) async for r, _ in _scan(replica, AGENT_PREFIX, decode_agent)]),
            tuple((m.node_id, _liveness(m)) for m in members if _works(m)),
        )

    def feed(self, event: Event) -> None:
        """Raises Busy: too many events wait."""
        self._driver.feed(event)

    def _tell(self, event: Event) -> None:
        """What may not be lost: where there is no room for it, the next office reads it."""
        try:
            self.feed(event)
        except Busy as error:
            self.end(error.message)

    def hear(self, peer: NodeId, message: Any) -> None:
        """A message from a worker."""
        try:
            self.feed(e.FromWorker(peer, message))
        except Busy:
            DROPPED.labels("coordinator", "busy").inc()

    def _soon(self, function: Callable[..., Any], *args: Any) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(function, *args)

    # ---- what the machine asks for ----------------------------------------------------

    def _send(self, effect: Send) -> None:
        message = effect.message
        if isinstance(message, Assign):
            items = []
            for item in message.items:
                if self._waits_for_manifest(item):
                    alone = msgspec.structs.replace(message, items=(item,))
                    self._held.setdefault(item.job_id, []).append((effect.peer, alone))
                else:
                    items.append(self._with_payload(item))
            if not items:
                return
            message = msgspec.structs.replace(message, items=tuple(items))
        self._outbox.put(effect.peer, message)

    def _waits_for_manifest(self, item: AssignItem) -> bool:
        """A new office assigns at once, but may still be reading what the items are."""
        return isinstance(item.payload, FromItem) and item.job_id not in self._items

    def _send_held(self, job_id: str) -> None:
        """The job's items are known: send what waited for them, unless it is outdated."""
        for peer, message in self._held.pop(job_id, ()):
            entry = self.machine.board.live(message.items[0].task_id)
            if entry is not None and entry.fence == message.items[0].fence:
                self._send(Send(peer, message))

    def _with_payload(self, item: AssignItem) -> AssignItem:
        payload = self._resolve(item.payload, item.job_id)
        if payload is item.payload:
            return item
        return msgspec.structs.replace(item, payload=payload)

    def _resolve(self, payload: Payload, job_id: str) -> Payload:
        """What the payload refers to; itself if that is not there."""
        if isinstance(payload, FromTask):
            record = self.showing.record(payload.task_id)
            return record.result or payload if record is not None else payload
        if isinstance(payload, FromItem):
            items = self._items.get(job_id, ())
            return items[payload.item].payload if payload.item < len(items) else payload
        return payload

    def _committed(self, results: tuple[e.Commit, ...]) -> None:
        self._tell(e.Committed(results))

    def _unknown(self, error: SwarmError) -> None:
        self.end(f"a write has an unknown outcome: {error.message}")

    async def _confirm(self, tag: int) -> None:
        try:
            entry = await self._store.get(OFFICE_KEY, timeout_s=_CONFIRM_TIMEOUT_S)
            held = entry is not None and entry.mod_revision == self.machine.office
        except SwarmError:
            held = False
        self._tell(e.Confirmed(tag, held))

    async def _name_items(self, effect: e.NameItems) -> None:
        try:
            items = decode_manifest(await self._blobs.get(effect.manifest))
        except MalformedMessage as error:
            self._tell(e.ItemsUnreadable(effect.job_id, error.message, final=True))
        except SwarmError as error:
            self._tell(e.ItemsUnreadable(effect.job_id, error.message, final=False))
        else:
            self._items[effect.job_id] = items
            self._send_held(effect.job_id)
            self._tell(e.ItemsNamed(effect.job_id, tuple(item.name for item in items)))

    async def _collect(self, job_id: str) -> None:
        """Until it works: the job cannot succeed before its outcomes are stored."""
        job = self.machine.board.jobs[job_id]
        stage = len(job.record.spec.stages)
        while not job.record.final:
            try:
                rows = [row async for page in self.rows(job_id, stage) for row in page.rows]
                value = await as_value(await compose(rows, self._blobs), self._blobs)
            except SwarmError as error:
                _log.warning("outcomes of a job cannot be stored", job=job_id, error=error.message)
                if not error.retryable and not isinstance(error, NotFound):
                    self._tell(e.Uncollectable(job_id, error.code, error.message))
                    return
                await trio.sleep(_TROUBLE_PAUSE_S)
            else:
                self._tell(e.Collected(job_id, value))
                return

    # ---- what happens around ----------------------------------------------------------

    async def _follow_members(self) -> None:
        with self._membership.subscribe() as changes:
            self._tell_all_members()
            async for change in changes:
                if changes.lagged:
                    changes.lagged = False
                    self._tell_all_members()
                member = change.after or change.before
                worked = change.before is not None and _works(change.before)
                if member is not None and (worked or _works(member)):
                    gone = change.after is None or not _works(change.after)
                    liveness = e.Liveness.LEFT if gone else _liveness(member)
                    self._tell(e.MemberChanged(member.node_id, liveness))

    def _tell_all_members(self) -> None:
        held = self.machine.board.members
        working = {m.node_id: _liveness(m) for m in self._membership.members() if _works(m)}
        for node_id, liveness in working.items():
            if held.get(node_id) is not liveness:
                self._tell(e.MemberChanged(node_id, liveness))
        for node_id, liveness in held.items():
            if node_id not in working and liveness is not e.Liveness.LEFT:
                self._tell(e.MemberChanged(node_id, e.Liveness.LEFT))

    async def _follow_agents(self) -> None:
        """Deployed and removed agents, as the store changes."""
        while True:
            try:
                changes = self._store.changes()
            except SwarmError as error:
                _log.debug("the store's changes cannot be followed", error=error.message)
                await trio.sleep(_TROUBLE_PAUSE_S)
                continue
            async with changes:
                await self._tell_all_agents()
                async for batch in changes:
                    for change in batch:
                        if change.key.startswith(AGENT_PREFIX):
                            self._tell_agent(change.key, change.value)
            await trio.sleep(_MISSED_PAUSE_S)  # Subscribe again, then read anew.

    def _tell_agent(self, key: bytes, value: bytes | None) -> None:
        name = key[len(AGENT_PREFIX) :].decode(errors="replace")
        try:
            run = run_of(decode_agent(value)) if value is not None else None
        except CorruptFile as error:
            _log.error("an agent is left alone", agent=name, error=error.message)
            return
        if self.machine.board.desk(name).run != run:
            self._tell(e.AgentChanged(name, run))

    async def _tell_all_agents(self) -> None:
        replica = self._store.local
        if replica is None:
            return
        names = {name for name, desk in self.machine.board.desks.items() if desk.run is not None}
        for entry in replica.range(AGENT_PREFIX, b"", 100_000):
            names.discard(entry.key[len(AGENT_PREFIX) :].decode(errors="replace"))
            self._tell_agent(entry.key, entry.value)
        for name in sorted(names):
            self._tell_agent(AGENT_PREFIX + name.encode(), None)
        await trio.lowlevel.checkpoint()

    async def _show_gauges(self) -> None:
        while True:
            for state in State:
                TASKS.labels(state.value).set(self.machine.board.counts[state])
            for job_id in [j for j in self._items if self._job_over(j)]:
                del self._items[job_id]
            for job_id in [j for j in self._held if self._job_over(j)]:
                del self._held[job_id]
            await pause(_GAUGE_S)

    def _job_over(self, job_id: str) -> bool:
        job = self.machine.board.jobs.get(job_id)
        return job is None or job.record.final

    # ---- callers ----------------------------------------------------------------------

    async def ask(self, make: Callable[[int], Event]) -> Any:
        """Put a request to the machine and wait for its answer.

        Raises:
            NotCoordinator: the office was lost meanwhile; the outcome is unknown.
            SwarmError: whatever the machine refused it with.
        """
        tag = next(self._tags)
        asking = self._asking[tag] = _Asking()
        try:
            self.feed(make(tag))
            await asking.done.wait()
        finally:
            self._asking.pop(tag, None)
        if asking.error is not None:
            raise asking.error
        return asking.answer

    def _answer(self, tag: int, message: Any, error: SwarmError | None) -> None:
        asking = self._asking.get(tag)
        if asking is not None:
            asking.answer, asking.error = message, error
            asking.done.set()

    def watch(self, task_ids: Sequence[str]) -> tuple[Watcher, list[str]]:
        """Wait for tasks to end; those that have are told at once. Second: unknown ids."""
        known = [self.machine.board.tasks.get(task_id) for task_id in task_ids]
        missing = [t for t, entry in zip(task_ids, known, strict=True) if entry is None]
        entries = [entry for entry in known if entry is not None]
        watcher = Watcher(len(entries))
        self._waiting.append(watcher)
        for entry in entries:
            if isinstance(entry, Entry):
                self._watchers.setdefault(entry.task_id, []).append(watcher)
            elif (record := self.showing.record(entry.task_id)) is not None:
                watcher.tell(record)
            else:
                watcher.missing -= 1  # Removed in this moment.
        return watcher, missing

    def unwatch(self, watcher: Watcher, task_ids: Iterable[str]) -> None:
        """Forget somebody who waited for these."""
        self._waiting.remove(watcher)
        for task_id in task_ids:
            waiting = self._watchers.get(task_id)
            if waiting is not None and watcher in waiting:
                waiting.remove(watcher)
                if not waiting:
                    del self._watchers[task_id]

    def _task_done(self, effect: e.TaskDone) -> None:
        for watcher in self._watchers.pop(effect.record.task_id, ()):
            watcher.tell(effect.record)

    def _on_job_moved(self, effect: e.JobMoved) -> None:
        moved = self.job_moved.pop(effect.job_id, None)
        if moved is not None:
            moved.set()

    async def next_move(self, job_id: str) -> None:
        """Wait until the job moves next."""
        await self.job_moved.setdefault(job_id, trio.Event()).wait()

    # ---- showing ----------------------------------------------------------------------

    async def rows(self, job_id: str, stage: int) -> Any:
        """Pages of a job's outcomes before `stage`; an async generator of `Rows`."""
        job = self.machine.board.jobs.get(job_id)
        replica = self._store.local
        if job is None or replica is None:
            raise NotFound(f"no job has the id {job_id}")
        if not 0 <= stage <= len(job.record.spec.stages):
            raise BadRequest(f"job {job_id} has no stage {stage}")
        items = self._items.get(job_id)
        if items is None:
            items = decode_manifest(await self._blobs.get(job.record.spec.manifest))
        async for page in gather_rows(replica, self._swarm_id, job.record, items, stage):
            yield page


class _Asking:
    __slots__ = ("answer", "done", "error")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: Any = None
        self.error: SwarmError | None = None


async def _scan(replica: Replica, prefix: bytes, decode: Callable[[bytes], Any]) -> Any:
    """Every record under `prefix` with its revision; unreadable ones are named and passed."""
    after = b""
    while True:
        page = replica.range(prefix, after, _PAGE)
        for entry in page:
            try:
                yield decode(entry.value), entry.mod_revision
            except CorruptFile as error:
                _log.error("a record is left alone", key=repr(entry.key), error=error.message)
        if len(page) < _PAGE:
            return
        after = page[-1].key
        await trio.lowlevel.checkpoint()


def _liveness(member: Member) -> e.Liveness:
    return e.Liveness(str(member.state))


def _works(member: Member) -> bool:
    return "worker" in member.roles


def run_of(record: AgentRecord) -> AgentRun:
    """What workers need of a deployed agent."""
    spec = record.spec
    return AgentRun(
        spec.name,
        spec.version,
        record.bundle,
        spec.entry,
        spec.concurrency,
        spec.timeout_s,
        spec.retries,
        Mode(spec.mode),
        record.environment,
        spec.bus if spec.bus != BusRights() else None,
    )


def decode_manifest(raw: bytes) -> tuple[Item, ...]:
    """The items of a job. Raises MalformedMessage."""
    manifest: Manifest = decode_struct(Manifest, raw)
    return manifest.items
