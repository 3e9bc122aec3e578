"""The coordinator's indexes: tasks, workers, what waits and who has room.

Everything here is found by key or popped from a heap; nothing walks over all tasks. The cost
of placing a task grows with the number of workers only.
"""

from __future__ import annotations

import heapq
import struct
import sys
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from swarmd.base.ids import NodeId
from swarmd.base.rng import Rng
from swarmd.tasks.config import TasksConfig
from swarmd.tasks.events import Liveness
from swarmd.tasks.messages import SubmittedItem
from swarmd.tasks.spec import (
    FINAL,
    TRANSITIONS,
    AgentRun,
    Inline,
    JobRecord,
    Mode,
    Place,
    State,
    TaskRecord,
)
from swarmd.tasks.strategies import STRATEGIES, Candidate, TaskView
from swarmd.tasks.workflow.machine import JobMachine

# Of an ended task: when it was created and ended, in milliseconds, and what its record takes.
_NUMBERS: Final = struct.Struct(">qqI")
# A queue is sifted for dead rows when it has so many rows, or twice as many as it had then.
_SIFT_ROWS: Final = 1_000


def bytes_of(record: TaskRecord) -> int:
    """About what a record takes in memory."""
    values = (record.spec.payload, record.result)
    return 512 + sum(len(value.data) for value in values if isinstance(value, Inline))


@dataclass(slots=True)
class Request:
    """A caller waiting for several outcomes; answered when none is missing."""

    tag: int
    missing: int
    items: list[object]


@dataclass(slots=True)
class Worker:
    """One run of a node's daemon. `boot` is empty until it is heard; `listed` if it is current."""

    node: NodeId
    boot: bytes
    heard_at: float
    listed: bool = True
    heard: bool = False
    draining: bool = False
    greeted_at: float = -1e9
    seats: dict[str, Seat] = field(default_factory=dict)
    fences: dict[int, Entry] = field(default_factory=dict)
    load: int = 0


@dataclass(slots=True)
class Seat:
    """What one worker holds of one agent: attempts in order, the first ones running."""

    worker: Worker
    candidate: Candidate
    out: int = 0
    running: int = 0
    waiting: deque[Entry] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class Entry:
    """A task that goes on. `revision` 0: not in the store yet."""

    task_id: str
    agent: str
    digest: bytes
    created_ms: int
    order: int
    state: State
    record: TaskRecord
    revision: int = 0
    attempt: int = 0
    fence: int = 0
    seat: Seat | None = None
    worker: Worker | None = None
    sent_at: float = -1e9
    busy: bool = False
    cancelling: bool = False
    lost: str = ""
    round: int = 0
    place: Place | None = None
    mode: Mode = Mode.DEFAULT
    avoid: bytes = b""
    creators: list[tuple[Request, int, SubmittedItem]] = field(default_factory=list)
    cancellers: list[tuple[Request, int]] = field(default_factory=list)

    @property
    def final(self) -> bool:
        return self.state in FINAL


class Ended(msgspec.Struct, frozen=True, gc=False):
    """A task that ended; its record is in the store. Made by `ended_of`.

    There are tens of thousands of these, so what is rarely asked for is packed: each number of
    its own would take 32 bytes.
    """

    task_id: str
    agent: str
    state: State
    place: Place | None
    packed: bytes

    @property
    def created_ms(self) -> int:
        return int(_NUMBERS.unpack_from(self.packed)[0])

    @property
    def ended_ms(self) -> int:
        return int(_NUMBERS.unpack_from(self.packed)[1])

    @property
    def kept_bytes(self) -> int:
        return int(_NUMBERS.unpack_from(self.packed)[2])

    @property
    def digest(self) -> bytes:
        return self.packed[_NUMBERS.size :]


def ended_of(record: TaskRecord) -> Ended:
    """What is kept of a task whose record is final."""
    assert record.final, f"task {record.task_id} goes on"
    return Ended(
        record.task_id,
        sys.intern(record.spec.agent),
        record.state,
        record.spec.place,
        _NUMBERS.pack(record.created_ms, record.ended_ms, bytes_of(record)) + record.digest,
    )


@dataclass(slots=True, eq=False)
class Job:
    """A job. `names` is None until its manifest was read; `record.final` ends it."""

    record: JobRecord
    revision: int
    machine: JobMachine
    names: tuple[str, ...] | None = None
    busy: bool = False
    cancelling: bool = False
    children: list[str] = field(default_factory=list)
    out: list[int] = field(default_factory=list)
    results: dict[int, TaskRecord] = field(default_factory=dict)
    creators: list[tuple[int, bool]] = field(default_factory=list)
    cancellers: list[int] = field(default_factory=list)


class Desk:
    """One agent's queue and its seats at all workers.

    A row of the heap names a task, and holds nothing of it: who ended while it waited behind others
    that nobody has room for leaves a row that is found to be dead later.

    Args:
        live: the task of an id, if it goes on.
    """

    def __init__(self, name: str, live: Callable[[str], Entry | None]) -> None:
        self.name = name
        self.run: AgentRun | None = None
        self.heap: list[tuple[int, int, int, int, str]] = []
        self._live = live
        self._sift_at = _SIFT_ROWS
        self.seats: dict[NodeId, Seat] = {}
        self.ran_s: float | None = None
        self.turn = 0

    def limit(self, config: TasksConfig) -> int:
        """Attempts that one worker may hold: its instances, and what hides the way to it."""
        if self.run is None:
            return 0
        concurrency = self.run.concurrency
        if self.ran_s is None or config.prefetch_s == 0:
            return concurrency
        ahead = concurrency * config.prefetch_s / max(self.ran_s, 1e-4)
        return concurrency + min(config.prefetch_max, round(ahead))

    def note_duration(self, ran_s: float) -> None:
        """Learn how long attempts take: an average that follows the last ten or so."""
        self.ran_s = ran_s if self.ran_s is None else 0.9 * self.ran_s + 0.1 * ran_s

    def push(self, entry: Entry) -> None:
        """Later stages of a job go first, so that items come through instead of piling up."""
        record = entry.record
        stage = entry.place.stage if entry.place is not None else 0
        row = (-record.spec.priority, -stage, entry.order, entry.round, entry.task_id)
        heapq.heappush(self.heap, row)
        if len(self.heap) > self._sift_at:
            self.heap = [row for row in self.heap if self._waiting(row) is not None]
            heapq.heapify(self.heap)
            self._sift_at = max(_SIFT_ROWS, 2 * len(self.heap))

    def pop(self) -> Entry | None:
        """The next task that really waits; what was overtaken by events is dropped."""
        while self.heap:
            entry = self._waiting(heapq.heappop(self.heap))
            if entry is not None and not entry.busy and not entry.cancelling:
                return entry
        return None

    def _waiting(self, row: tuple[int, int, int, int, str]) -> Entry | None:
        """The task of a row, if it still waits by that row."""
        _, _, order, round_number, task_id = row
        entry = self._live(task_id)
        if entry is None or (entry.order, entry.round) != (order, round_number):
            return None
        return entry if entry.state is State.PENDING else None


class Board:
    """All of it, with the few operations that keep the indexes in step."""

    def __init__(self, config: TasksConfig, rng: Rng) -> None:
        self.config = config
        self.tasks: dict[str, Entry | Ended] = {}
        self.jobs: dict[str, Job] = {}
        self.desks: dict[str, Desk] = {}
        self.workers: dict[tuple[NodeId, bytes], Worker] = {}
        self.current: dict[NodeId, Worker] = {}
        self.members: dict[NodeId, Liveness] = {}
        self.counts: Counter[State] = Counter()
        self.open_jobs = 0
        self.ended: deque[Ended] = deque()
        self.ended_bytes = 0
        self.ended_jobs: deque[tuple[int, str]] = deque()
        self._rng = rng
        self._order = 0

    # ---- tasks ------------------------------------------------------------------------

    @property
    def open_tasks(self) -> int:
        return sum(self.counts[s] for s in (State.PENDING, State.ASSIGNED, State.RUNNING))

    def add(self, record: TaskRecord, revision: int) -> Entry:
        """Index a task that goes on."""
        self._order += 1
        entry = Entry(
            record.task_id,
            record.spec.agent,
            record.digest,
            record.created_ms,
            self._order,
            record.state,
            record,
            revision=revision,
            attempt=record.attempts,
            place=record.spec.place,
            mode=record.spec.mode or Mode.DEFAULT,
        )
        self.tasks[record.task_id] = entry
        self.counts[record.state] += 1
        return entry

    def add_ended(self, record: TaskRecord) -> Ended:
        """Index a task that ended before this office."""
        ended = self.tasks[record.task_id] = ended_of(record)
        self.counts[record.state] += 1
        return ended

    def live(self, task_id: str) -> Entry | None:
        """The task if it goes on; None: it ended, or is unknown."""
        found = self.tasks.get(task_id)
        return found if isinstance(found, Entry) else None

    def end(self, entry: Entry, record: TaskRecord) -> Ended:
        """The task ended, by its final `record`: little is kept of it, in the same place."""
        self.move(entry, record.state)
        ended = self.tasks[entry.task_id] = ended_of(record)
        return ended

    def retire(self, ended: Ended) -> None:
        """The task is in nobody's way: retention may remove it, oldest first."""
        self.ended.append(ended)
        self.ended_bytes += ended.kept_bytes

    def take_expired(self, oldest_ms: int, limit: int) -> list[str]:
        """Up to `limit` tasks that retention no longer covers; they count no more."""
        config, names = self.config, list[str]()
        while self.ended and len(names) < limit:
            oldest = self.ended[0]
            known = self.tasks.get(oldest.task_id) is oldest  # Else it went with its job.
            covered = (
                oldest.ended_ms > oldest_ms
                and len(self.ended) <= config.retention_tasks_max
                and self.ended_bytes <= config.retention_bytes_max
            )
            if known and covered:
                break
            self.ended.popleft()
            self.ended_bytes -= oldest.kept_bytes
            if known:
                names.append(oldest.task_id)
        return names

    def drop(self, entry: Entry | Ended) -> None:
        del self.tasks[entry.task_id]
        self.counts[entry.state] -= 1

    def move(self, entry: Entry, state: State) -> None:
        """Change a task's state, along the table."""
        before = entry.state
        if before is state:
            return
        assert state in TRANSITIONS.get(before, frozenset()), (entry.task_id, before, state)
        self.counts[before] -= 1
        self.counts[state] += 1
        entry.state = state
        job = self.jobs.get(entry.place.job_id) if entry.place is not None else None
        if job is not None and entry.place is not None:
            was_out = before in (State.ASSIGNED, State.RUNNING)
            is_out = state in (State.ASSIGNED, State.RUNNING)
            job.out[entry.place.stage] += is_out - was_out

    def attempts_max(self, record: TaskRecord) -> int:
        """How many attempts the task may have in all."""
        if record.spec.mode is Mode.AT_MOST_ONCE:
            return 1
        if record.spec.retries is not None:
            return record.spec.retries + 1
        run = self.desk(record.spec.agent).run
        retries = run.retries if run is not None and run.retries is not None else None
        return (self.config.retries if retries is None else retries) + 1

    # ---- agents and workers -----------------------------------------------------------

    def desk(self, agent: str) -> Desk:
        found = self.desks.get(agent)
        if found is None:
            found = self.desks[agent] = Desk(agent, self.live)
        return found

    def knows(self, agent: str) -> bool:
        found = self.desks.get(agent)
        return found is not None and found.run is not None

    def worker(self, node: NodeId, boot: bytes, now: float) -> Worker:
        """The named run of a node's daemon, new if it was unknown; it becomes no one's current."""
        found = self.workers.get((node, boot))
        if found is None:
            found = self.workers[node, boot] = Worker(node, boot, now, listed=False)
        return found

    def list_worker(self, worker: Worker) -> Worker | None:
        """Make this the node's current run; returns the one it replaces."""
        before = self.current.get(worker.node)
        if before is worker:
            return None
        if before is not None:
            before.listed = False
            for agent in before.seats:
                self.desk(agent).seats.pop(worker.node, None)
        worker.listed = True
        self.current[worker.node] = worker
        for agent, seat in worker.seats.items():
            self.desk(agent).seats[worker.node] = seat
        return before

    def forget_worker(self, worker: Worker) -> None:
        """Drop a run that holds nothing any more."""
        assert not worker.fences, worker.fences
        assert not worker.load, worker.load
        del self.workers[worker.node, worker.boot]
        if self.current.get(worker.node) is worker:
            del self.current[worker.node]
            for agent in worker.seats:
                self.desk(agent).seats.pop(worker.node, None)

    def usable(self, worker: Worker, now: float) -> bool:
        """Whether work may go there."""
        return (
            worker.listed
            and worker.heard
            and not worker.draining
            and self.members.get(worker.node) is Liveness.ALIVE
            and now <= worker.heard_at + self.config.lease_s
        )

    def choose(self, entry: Entry, now: float) -> Seat | None:
        """A seat for the task, by its strategy; None when nobody has room."""
        desk = self.desk(entry.agent)
        run = desk.run
        if run is None:
            return None
        limit = desk.limit(self.config)
        view: list[Candidate] = []
        for node, worker in self.current.items():
            if not self.usable(worker, now):
                continue
            seat = desk.seats.get(node)
            if seat is None:
                seat = self.seat(worker, entry.agent)
            if seat.out < limit:
                candidate = seat.candidate
                candidate.here, candidate.load = seat.out, worker.load
                candidate.idle = run.concurrency - seat.out
                view.append(candidate)
        if not view:
            return None
        record = entry.record
        choose = STRATEGIES.get(record.spec.strategy or self.config.strategy)
        assert choose is not None, record.spec.strategy
        node_id = choose(TaskView(entry.agent, record.spec.priority, entry.avoid), view, self._rng)
        return desk.seats[node_id] if node_id is not None else None

    def seat(self, worker: Worker, agent: str) -> Seat:
        found = worker.seats.get(agent)
        if found is None:
            found = worker.seats[agent] = Seat(worker, Candidate(worker.node))
            if worker.listed:
                self.desk(agent).seats[worker.node] = found
        return found

    def occupy(self, entry: Entry, seat: Seat) -> None:
        """Reserve room at a seat."""
        desk = self.desk(entry.agent)
        desk.turn += 1
        seat.candidate.turn = desk.turn
        seat.out += 1
        seat.worker.load += 1
        entry.seat = seat
        entry.worker = seat.worker

    def start(self, entry: Entry) -> bool:
        """The attempt was sent: whether an instance is free to run it at once."""
        seat = entry.seat
        assert seat is not None
        run = self.desk(entry.agent).run
        if seat.running < (run.concurrency if run is not None else 1):
            seat.running += 1
            return True
        seat.waiting.append(entry)
        return False

    def vacate(self, entry: Entry) -> Entry | None:
        """Give the room back; returns a task that an instance is now free for."""
        seat = entry.seat
        if seat is None:
            return None
        entry.seat = None
        seat.out -= 1
        seat.worker.load -= 1
        if entry.state is not State.RUNNING:
            return None
        seat.running -= 1
        while seat.waiting:
            following = seat.waiting.popleft()
            if following.seat is seat and following.state is State.ASSIGNED:
                seat.running += 1
                return following
        return None

    def saw_running(self, entry: Entry) -> None:
        """A heartbeat named the attempt as running."""
        if entry.state is State.ASSIGNED:
            if entry.seat is not None:
                entry.seat.running += 1
            self.move(entry, State.RUNNING)
