"""The coordinator of tasks: decides what runs where, and what the store is asked to record.

What it knows of a task is what the store holds; what it knows of a worker is its heartbeats.
Rules about workers:
- A worker is one run of a daemon, named by node and boot. A heartbeat from another boot means
  that the attempts of the earlier run are gone with it.
- A worker's lease counts for the worker from when it sent a heartbeat, and here from when that
  heartbeat came, which is later; a heartbeat is answered only after a round to the voters has
  shown that this office still held when it came, so no deposed coordinator renews a lease;
  nor is one renewed while its worker holds an attempt that is being given up (Gray and
  Cheriton, "Leases", SOSP 1989; the fence is Kleppmann's, "How to do distributed locking",
  2016).
- Attempts in mode `default` are given up when the worker is suspected or its lease has lapsed;
  all others only when lease and margin have passed since it was last heard.

Taking office means: start from what the store holds, greet everyone, and give workers a full
lease to show themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Event, Send, SetTimer
from swarmd.state.raft.messages import Delete
from swarmd.tasks.board import Ended, Entry, Worker
from swarmd.tasks.events import (
    AgentChanged,
    CancelAsked,
    CancelJobAsked,
    Collected,
    Committed,
    Confirm,
    Confirmed,
    FromWorker,
    ItemsNamed,
    ItemsUnreadable,
    Liveness,
    MemberChanged,
    NamesDue,
    RetryDue,
    SubmitAsked,
    SubmitJobAsked,
    Tick,
    TookOffice,
    Uncollectable,
)
from swarmd.tasks.jobflow import JobFlow
from swarmd.tasks.messages import HandBack, Heartbeat, Hello, Renewed, Results
from swarmd.tasks.spec import Mode, State, job_key, task_key

_PURGE_TASKS_PER_WRITE: Final = 200
_PURGE_WRITES_PER_TICK: Final = 25
_SILENT_HEARTBEATS: Final = 2.0
# Every second tick: two are a hair less than two heartbeats apart at times, since beats tell them.
_GREET_HEARTBEATS: Final = 1.5
_REPEAT_HEARTBEATS: Final = 1.5


class CoordinatorMachine(JobFlow):
    """Events in, effects out. Feed `TookOffice` first; throw it away after `Resign`.

    A worker that stops being heard costs nothing; a member that never greets back is greeted
    again each second heartbeat.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unconfirmed: dict[tuple[NodeId, bytes], int] = {}
        self._confirming: dict[tuple[NodeId, bytes], int] | None = None
        self._confirm_tag = 0
        self._greeted: dict[NodeId, float] = {}
        self._purging = 0
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            TookOffice: self._on_office,
            MemberChanged: self._on_member,
            AgentChanged: self._on_agent,
            FromWorker: self._on_worker,
            SubmitAsked: lambda e: self.submit(e.tag, e.specs),
            CancelAsked: lambda e: self.cancel_tasks(e.tag, e.task_ids),
            SubmitJobAsked: lambda e: self.submit_job(e.tag, e.spec),
            CancelJobAsked: lambda e: self.cancel_job(e.tag, e.job_id),
            ItemsNamed: lambda e: self.items_named(e.job_id, e.names),
            ItemsUnreadable: self.items_unreadable,
            NamesDue: lambda e: self.names_due(e.job_id),
            Collected: self.collected,
            Uncollectable: self.uncollectable,
            Committed: self._on_committed,
            Confirmed: self._on_confirmed,
            RetryDue: self.retry_due,
            Tick: self._on_tick,
        }

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Decide. After `Resign` nothing more comes out."""
        if self.resigned:
            return []
        self.now = now
        self._handlers[type(event)](event)
        self.schedule_stirred()
        effects, self.out = self.out, []
        return effects

    # ---- taking office ----------------------------------------------------------------

    def _on_office(self, event: TookOffice) -> None:
        self.office = event.office
        self._wall_offset_ms = event.wall_ms - self.now * 1000
        self.board.members = dict(event.members)
        for run in event.agents:
            self.board.desk(run.name).run = run
        for job_record, revision in sorted(event.jobs, key=lambda row: row[0].ended_ms):
            self.add_job(job_record, revision)
        self._take_tasks(event)
        for job in self.board.jobs.values():
            if not job.record.final:
                self.resume_job(job)
        for node, liveness in self.board.members.items():
            if liveness is Liveness.ALIVE:
                self._greet(node)
        self.out.append(SetTimer(self.config.heartbeat_s, Tick(), on_beat=True))

    def _take_tasks(self, event: TookOffice) -> None:
        board = self.board
        orphans: list[Entry] = []
        retired: list[Ended] = []
        for record, revision in sorted(
            event.tasks, key=lambda row: (row[0].created_ms, row[0].task_id)
        ):
            place = record.spec.place
            job = board.jobs.get(place.job_id) if place is not None else None
            if job is not None:
                job.children.append(record.task_id)
            goes_on = job is not None and not job.record.final
            if record.final:
                ended = board.add_ended(record)
                if job is not None and goes_on:
                    self.note_ended(job, record)
                else:
                    retired.append(ended)
                continue
            entry = board.add(record, revision)
            if place is not None and not goes_on:
                orphans.append(entry)  # Its job has ended: it may not go on.
        for ended in sorted(retired, key=lambda one: (one.ended_ms, one.task_id)):
            board.retire(ended)
        for grant, revision in event.assignments:
            held = board.live(grant.task_id)
            if held is None:
                continue  # Its task's record could not be read, and is left alone with it.
            worker = board.worker(NodeId(grant.node), grant.boot, self.now)
            held.attempt, held.fence, held.worker = grant.attempt, revision, worker
            worker.fences[revision] = held
            board.occupy(held, board.seat(worker, held.agent))
            board.move(held, State.ASSIGNED)
        for waiting in board.tasks.values():
            if isinstance(waiting, Entry) and waiting.state is State.PENDING:
                self.enqueue(waiting)
        for entry in orphans:
            self.cancel(entry)

    # ---- members, agents --------------------------------------------------------------

    def _on_member(self, event: MemberChanged) -> None:
        self.board.members[event.node] = event.liveness
        if event.liveness is Liveness.ALIVE:
            self._greet(event.node)
        if event.liveness in (Liveness.DEAD, Liveness.LEFT) and (
            event.node not in self.board.current
        ):
            del self.board.members[event.node]
        for worker in self._runs_of(event.node):
            self._lapse(worker)
        self._stir_all()

    def _runs_of(self, node: NodeId) -> list[Worker]:
        return [w for w in self.board.workers.values() if w.node == node]

    def _greet(self, node: NodeId) -> None:
        self._greeted[node] = self.now
        self.out.append(Send(node, Hello(self.office)))

    def _on_agent(self, event: AgentChanged) -> None:
        desk = self.board.desk(event.name)
        desk.run = event.run
        desk.ran_s = None
        self.stir(event.name)

    def _stir_all(self) -> None:
        for name, desk in self.board.desks.items():
            if desk.heap:
                self.stir(name)

    # ---- workers ----------------------------------------------------------------------

    def _on_worker(self, event: FromWorker) -> None:
        message = event.message
        if message.office != self.office:
            return  # Meant for another coordinator; a greeting is on its way.
        if isinstance(message, Heartbeat):
            self._on_heartbeat(event.peer, message)
        elif isinstance(message, Results):
            for item in message.items:
                self.take_result(event.peer, message.boot, item)
        elif isinstance(message, HandBack):
            for handed in message.items:
                self.take_back(event.peer, message.boot, handed)

    def _on_heartbeat(self, peer: NodeId, beat: Heartbeat) -> None:
        worker = self._heard(peer, beat.boot)
        if worker is None:
            return
        worker.draining = beat.draining
        held = {*beat.queued, *beat.running, *beat.ended}
        for fence in beat.running:
            entry = worker.fences.get(fence)
            if entry is not None:
                self.board.saw_running(entry)
        for fence in sorted(held):
            if fence not in worker.fences:
                self.settle_fence(peer, beat.boot, fence)
        self._repeat_missing(worker, held)
        if not self._holds_disowned(worker, beat):
            self._unconfirmed[peer, beat.boot] = beat.sequence
        self._confirm()
        self._stir_all()

    def _holds_disowned(self, worker: Worker, beat: Heartbeat) -> bool:
        """Whether it holds an attempt that is being given up, or was and it does not know yet.

        Its lease is not renewed until it has let go: under a new lease it would begin, or run
        on with, what is granted to another worker at the same time.
        """
        for fence in (*beat.queued, *beat.running):
            entry = worker.fences.get(fence)
            if entry is None or entry.busy or entry.lost:
                return True
        return False

    def _heard(self, peer: NodeId, boot: bytes) -> Worker | None:
        """The run that spoke, made current; None for one that was replaced already."""
        board = self.board
        if "boot_check" not in self._guards and peer in board.current:
            worker = board.current[peer]
        else:
            worker = board.worker(peer, boot, self.now)
        current = board.current.get(peer)
        if not worker.listed and worker.heard and current is not None:
            return None  # A late word of an earlier run.
        worker.heard, worker.heard_at = True, self.now
        replaced = board.list_worker(worker)
        if replaced is not None:
            self._lapse(replaced)
        for other in self._runs_of(peer):
            if other is not worker:
                self._lapse(other)
        return worker

    def _repeat_missing(self, worker: Worker, held: set[int]) -> None:
        """Send again what the worker does not hold, unless it is still on its way."""
        patience_s = _REPEAT_HEARTBEATS * self.config.heartbeat_s
        for fence, entry in worker.fences.items():
            if fence in held or entry.busy or self.now - entry.sent_at < patience_s:
                continue
            if "assign_repeat" in self._guards:
                self.send_assign(entry)

    def _confirm(self) -> None:
        """Renew leases only after the voters have shown that this office still holds."""
        if self._confirming is not None or not self._unconfirmed:
            return
        self._confirming, self._unconfirmed = self._unconfirmed, {}
        self._confirm_tag += 1
        if "lease_confirm" in self._guards:
            self.out.append(Confirm(self._confirm_tag))
        else:
            self._renew()

    def _on_confirmed(self, event: Confirmed) -> None:
        if event.tag != self._confirm_tag or self._confirming is None:
            return
        if event.ok:
            self._renew()
        else:
            self._confirming = None
        self._confirm()

    def _renew(self) -> None:
        renewed, self._confirming = self._confirming or {}, None
        for (node, boot), sequence in renewed.items():
            self.out.append(Send(node, Renewed(self.office, boot, sequence)))

    def _lapse(self, worker: Worker) -> None:
        """Give up those attempts of a worker whose time is over."""
        liveness = self.board.members.get(worker.node, Liveness.DEAD)
        silent_s = self.now - worker.heard_at
        replaced = not worker.listed and worker.node in self.board.current
        doubted = liveness is not Liveness.ALIVE or replaced or silent_s > self.config.lease_s
        if not doubted:
            return
        gone = silent_s > self.config.lease_s + self.config.lease_margin_s
        careful = "lease_margin" in self._guards
        for entry in list(worker.fences.values()):
            if gone or entry.mode is Mode.DEFAULT or not careful:
                self.lose(entry, "node_lost", f"its node is {liveness.value} or was restarted")

    # ---- time -------------------------------------------------------------------------

    def _on_tick(self, event: Tick) -> None:
        board, now = self.board, self.now
        for worker in list(board.workers.values()):
            self._lapse(worker)
            silent_s = now - worker.heard_at
            if not worker.fences and not worker.load and silent_s > 2 * self.config.lease_s:
                board.forget_worker(worker)
        silence_s = _SILENT_HEARTBEATS * self.config.heartbeat_s
        pause_s = _GREET_HEARTBEATS * self.config.heartbeat_s
        for node, liveness in board.members.items():
            current = board.current.get(node)
            silent = current is None or now - current.heard_at > silence_s
            due = now - self._greeted.get(node, -1e9) >= pause_s
            if liveness is Liveness.ALIVE and silent and due:
                self._greet(node)
        self._purge()
        self._stir_all()
        self.out.append(SetTimer(self.config.heartbeat_s, Tick(), on_beat=True))

    def _purge(self) -> None:
        """Remove what retention no longer covers, oldest first."""
        board, config = self.board, self.config
        if self._purging:
            return
        oldest_ms = self.wall_ms - int(config.retention_s * 1000)
        for _ in range(_PURGE_WRITES_PER_TICK):
            names = board.take_expired(oldest_ms, _PURGE_TASKS_PER_WRITE)
            if not names:
                break
            self._purge_tasks(names)
        while board.ended_jobs:
            ended_ms, job_id = board.ended_jobs[0]
            if ended_ms > oldest_ms and len(board.ended_jobs) <= config.retention_jobs_max:
                break
            # Its tasks go first: under the same key the job may come again, and so do their ids.
            children = [t for t in board.jobs[job_id].children if t in board.tasks]
            if children:
                ended = [t for t in children if isinstance(board.tasks[t], Ended)]
                for start in range(0, len(ended), _PURGE_TASKS_PER_WRITE):
                    self._purge_tasks(ended[start : start + _PURGE_TASKS_PER_WRITE])
                break
            board.ended_jobs.popleft()
            self._purge_job(job_id)

    def _purge_tasks(self, names: list[str]) -> None:
        self._purging += 1

        def settle(revision: int) -> None:
            self._purging -= 1
            for name in names:
                ended = self.board.tasks.get(name)
                if isinstance(ended, Ended):
                    self.board.drop(ended)

        self.propose((), tuple(Delete(task_key(name)) for name in names), settle)

    def _purge_job(self, job_id: str) -> None:
        self._purging += 1

        def settle(revision: int) -> None:
            self._purging -= 1
            self.board.jobs.pop(job_id, None)

        self.propose((), (Delete(job_key(job_id)),), settle)

    # ---- commits ----------------------------------------------------------------------

    def _on_committed(self, event: Committed) -> None:
        for commit in event.results:
            settle = self._settling.pop(commit.tag)
            if not commit.ok:
                self.resign("the store differs from what this office believed")
                return
            settle(commit.revision)
