"""A task's way through its states, as the coordinator drives it.

Rules:
- One proposal per task is under way at a time (`busy`). What happens meanwhile is noted on the
  entry (`cancelling`, `lost`) and looked at when the proposal has settled.
- Every transaction compares the office and what it rests on: the task's revision before an
  attempt, the attempt's fence after. So a proposal that comes late, from a deposed coordinator
  or an old attempt, changes nothing.
- A conflict means that this office's picture is wrong: it resigns and begins anew from the
  store. So does a proposal whose outcome stays unknown.
- Nothing is told to anybody before it is durable: an attempt is sent after its assignment is
  committed, a result is settled and shown after its record is.

`GUARDS` names the checks that promises rest on, so that tests can take each away and see
what breaks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from swarmd.base.errors import SwarmError
from swarmd.base.ids import NodeId, task_id_of
from swarmd.base.machine import Effect, Send, SetTimer
from swarmd.base.rng import Rng
from swarmd.state.raft.messages import Compare, Delete, Put, Txn
from swarmd.tasks.board import Board, Ended, Entry, Request, Seat
from swarmd.tasks.config import TasksConfig
from swarmd.tasks.events import Answer, Propose, Resign, RetryDue, TaskDone
from swarmd.tasks.messages import (
    Assign,
    AssignItem,
    Cancelled,
    CancelledItem,
    HandedItem,
    ResultItem,
    Settled,
    Submitted,
    SubmittedItem,
)
from swarmd.tasks.spec import (
    OFFICE_KEY,
    STORY_NOTES_MAX,
    Assignment,
    AttemptNote,
    Inline,
    Mode,
    State,
    TaskRecord,
    TaskSpec,
    assignment_key,
    check_task,
    cut_message,
    encode_record,
    task_key,
)
from swarmd.tasks.strategies import STRATEGIES

GUARDS: Final = frozenset(
    {
        "office_check",
        "fence_check",
        "stale_timer",
        "lease_margin",
        "lease_confirm",
        "boot_check",
        "attempt_bound",
        "at_most_once",
        "idempotent_create",
        "content_check",
        "cancel_finality",
        "assign_repeat",
    }
)

# Failures that another attempt cannot mend.
PERMANENT_CODES: Final = frozenset(
    {"permanent", "result_refused", "too_large", "bad_request", "secret_unreadable"}
)
_EMPTY: Final = Inline(b"\xc0")

Settle = Callable[[int], None]


class TaskFlow:
    """The part of the coordinator that moves single tasks. Effects gather in `self.out`."""

    def __init__(
        self,
        me: NodeId,
        swarm_id: bytes,
        config: TasksConfig,
        rng: Rng,
        *,
        removed_guards: frozenset[str] = frozenset(),
    ) -> None:
        assert removed_guards <= GUARDS, removed_guards - GUARDS
        self.me = me
        self.swarm_id = swarm_id
        self.config = config
        self.board = Board(config, rng)
        self.office = 0
        self.resigned = False
        self.out: list[Effect] = []
        self.now = 0.0
        self._rng = rng
        self._guards = GUARDS - removed_guards
        self._wall_offset_ms = 0.0
        self._tag = 0
        self._settling: dict[int, Settle] = {}
        self._stirred: dict[str, None] = {}

    # ---- proposals --------------------------------------------------------------------

    @property
    def wall_ms(self) -> int:
        return int(self.now * 1000 + self._wall_offset_ms)

    def propose(
        self, compares: tuple[Compare, ...], then: tuple[Put | Delete, ...], settle: Settle
    ) -> None:
        """Ask for a transaction of this office; `settle(revision)` runs once it is durable."""
        if "office_check" in self._guards:
            compares = (Compare(OFFICE_KEY, self.office), *compares)
        self._tag += 1
        self._settling[self._tag] = settle
        self.out.append(Propose(self._tag, Txn(compares, then)))

    def _propose_for(
        self,
        entry: Entry,
        compares: tuple[Compare, ...],
        then: tuple[Put | Delete, ...],
        settle: Settle,
    ) -> None:
        """A task's own proposal; afterwards what was wished meanwhile is looked at."""
        assert not entry.busy, entry.task_id
        entry.busy = True

        def settled(revision: int) -> None:
            entry.busy = False
            settle(revision)
            self.consider(entry)

        self.propose(compares, then, settled)

    def resign(self, reason: str) -> None:
        """Stop deciding: the shell begins anew from the store."""
        if not self.resigned:
            self.resigned = True
            self.out.append(Resign(reason))

    def stir(self, agent: str) -> None:
        """The agent's queue should be looked at before this step ends."""
        self._stirred[agent] = None

    def schedule_stirred(self) -> None:
        """Place waiting tasks while somebody has room."""
        while self._stirred and not self.resigned:
            agents, self._stirred = list(self._stirred), {}
            for agent in agents:
                self._schedule(agent)

    def _schedule(self, agent: str) -> None:
        desk = self.board.desk(agent)
        while desk.heap:
            entry = desk.pop()
            if entry is None:
                return
            seat = self.board.choose(entry, self.now)
            if seat is None:
                desk.push(entry)
                return
            self._assign(entry, seat)

    # ---- creation ---------------------------------------------------------------------

    def submit(self, tag: int, specs: tuple[TaskSpec, ...]) -> None:
        request = Request(tag, len(specs), [None] * len(specs))
        if not specs:
            self.out.append(Answer(tag, Submitted(())))
        for index, spec in enumerate(specs):
            self._submit_one(request, index, spec)

    def _submit_one(self, request: Request, index: int, spec: TaskSpec) -> None:
        task_id = task_id_of(self.swarm_id, spec.key)
        known = self.board.tasks.get(task_id)
        digest = spec.content_digest()
        if known is not None:
            if "content_check" in self._guards and known.digest != digest:
                text = f"the key {spec.key!r} belongs to a task with another content"
                item = SubmittedItem(task_id, code="idempotency_conflict", message=text)
            elif isinstance(known, Entry) and known.revision == 0 and known.busy:
                known.creators.append((request, index, SubmittedItem(task_id)))
                return
            else:
                item = SubmittedItem(task_id)
            self._fill_submit(request, index, item)
            return
        refusal = self._refusal(spec)
        if refusal is not None:
            code, text = refusal
            self._fill_submit(request, index, SubmittedItem(task_id, code=code, message=text))
            return
        entry = self.board.add(self._new_record(task_id, spec, digest), 0)
        entry.creators.append((request, index, SubmittedItem(task_id, created=True)))
        self._create(entry)

    def _new_record(self, task_id: str, spec: TaskSpec, digest: bytes) -> TaskRecord:
        """The mode is fixed now: what a lost attempt means may not change while it is out."""
        if spec.mode is None:
            run = self.board.desk(spec.agent).run
            spec = msgspec.structs.replace(spec, mode=run.mode if run else Mode.DEFAULT)
        return TaskRecord(task_id, spec, digest, self.wall_ms)

    def _refusal(self, spec: TaskSpec) -> tuple[str, str] | None:
        try:
            check_task(spec)
        except SwarmError as error:
            return error.code, error.message
        if not self.board.knows(spec.agent):
            return "not_found", f"no agent is named {spec.agent!r}: deploy it first"
        if spec.strategy is not None and spec.strategy not in STRATEGIES:
            return "bad_request", f"no strategy is named {spec.strategy!r}"
        if self.board.open_tasks >= self.config.open_tasks_max:
            return "busy", f"{self.config.open_tasks_max} tasks are open already"
        return None

    def _fill_submit(self, request: Request, index: int, item: SubmittedItem) -> None:
        request.items[index] = item
        request.missing -= 1
        if request.missing == 0:
            self.out.append(Answer(request.tag, Submitted(tuple(request.items))))  # type: ignore[arg-type]

    def _create(self, entry: Entry) -> None:
        """Write a new task, with its first assignment if it can start at once."""
        desk = self.board.desk(entry.agent)
        seat = None if desk.heap else self.board.choose(entry, self.now)
        if seat is not None:
            self._assign(entry, seat)
            return

        def settle(revision: int) -> None:
            entry.revision = revision
            self._created(entry)
            self.enqueue(entry)

        self._propose_for(
            entry,
            self._absent(entry),
            (Put(task_key(entry.task_id), encode_record(entry.record)),),
            settle,
        )

    def _absent(self, entry: Entry) -> tuple[Compare, ...]:
        if "idempotent_create" not in self._guards:
            return ()
        return (Compare(task_key(entry.task_id), 0),)

    def _created(self, entry: Entry) -> None:
        creators, entry.creators = entry.creators, []
        for request, index, item in creators:
            self._fill_submit(request, index, item)

    def enqueue(self, entry: Entry) -> None:
        """The task waits for room."""
        self.board.desk(entry.agent).push(entry)
        self.stir(entry.agent)

    # ---- attempts ---------------------------------------------------------------------

    def _assign(self, entry: Entry, seat: Seat) -> None:
        """Grant an attempt; its fence is the revision of the grant."""
        worker = seat.worker
        record = entry.record
        fresh = entry.revision == 0
        self.board.occupy(entry, seat)
        attempt = record.attempts + 1
        grant = Assignment(entry.task_id, attempt, worker.node, worker.boot)
        puts: tuple[Put | Delete, ...] = (Put(assignment_key(entry.task_id), encode_record(grant)),)
        if fresh:
            compares = self._absent(entry)
            puts = (Put(task_key(entry.task_id), encode_record(record)), *puts)
        else:
            compares = (Compare(task_key(entry.task_id), entry.revision),)

        def settle(revision: int) -> None:
            if fresh:
                entry.revision = revision
            entry.attempt = attempt
            entry.fence = revision
            worker.fences[revision] = entry
            self.board.move(entry, State.ASSIGNED)
            if fresh:
                self._created(entry)
            if not entry.cancelling:
                self._send_attempt(entry)

        self._propose_for(entry, compares, puts, settle)

    def _send_attempt(self, entry: Entry) -> None:
        self.send_assign(entry)
        if entry.seat is not None and self.board.start(entry):
            self.board.move(entry, State.RUNNING)

    def send_assign(self, entry: Entry) -> None:
        """Send the attempt that is out to its worker, for the first time or again."""
        run = self.board.desk(entry.agent).run
        worker, record = entry.worker, entry.record
        if run is None or worker is None:
            return
        entry.sent_at = self.now
        item = AssignItem(
            entry.task_id,
            entry.attempt,
            entry.fence,
            record.spec.payload,
            run,
            record.spec.timeout_s or run.timeout_s,
            entry.mode,
            record.spec.place.job_id if record.spec.place is not None else "",
        )
        self.out.append(Send(worker.node, Assign(self.office, worker.boot, (item,))))

    def take_result(self, node: NodeId, boot: bytes, item: ResultItem) -> None:
        """An attempt ended. A result whose fence is not the current one is settled unread."""
        entry = self.board.live(item.task_id)
        if entry is None or not self._is_current(entry, item.fence):
            self.settle_fence(node, boot, item.fence)
            return
        if entry.busy or entry.worker is None:
            return  # The worker repeats what was not settled.
        if item.ok:
            self.board.desk(entry.agent).note_duration(item.ran_s)
            self._end(entry, State.SUCCEEDED, result=item.result)
        else:
            self._fail(entry, item.code or "task_failed", item.message)

    def _is_current(self, entry: Entry, fence: int) -> bool:
        if entry.fence == 0:
            return False
        return entry.fence == fence or "fence_check" not in self._guards

    def take_back(self, node: NodeId, boot: bytes, item: HandedItem) -> None:
        """A worker gave an attempt back unfinished."""
        entry = self.board.live(item.task_id)
        if entry is None or not self._is_current(entry, item.fence):
            self.settle_fence(node, boot, item.fence)
        elif entry.busy:
            return
        elif item.started:
            self.lose(entry, "handed_back", "its node was stopped while it ran")
        else:
            self._release(entry, entry.attempt - 1, None, 0.0)

    def settle_fence(self, node: NodeId, boot: bytes, fence: int) -> None:
        self.out.append(Send(node, Settled(self.office, boot, (fence,))))

    def lose(self, entry: Entry, code: str, message: str) -> None:
        """The attempt that is out will not be waited for."""
        if entry.busy:
            entry.lost = code
            return
        entry.lost = ""
        if entry.mode is Mode.AT_MOST_ONCE and "at_most_once" in self._guards:
            self._end(entry, State.UNKNOWN, code=code, message=message)
        else:
            self._retry(entry, code, message, 0.0)

    def _fail(self, entry: Entry, code: str, message: str) -> None:
        """The agent's code failed, or could not be run."""
        once = entry.mode is Mode.AT_MOST_ONCE and "at_most_once" in self._guards
        if once or code in PERMANENT_CODES:
            self._end(entry, State.FAILED, code=code, message=message)
        else:
            self._retry(entry, code, message, self._retry_delay_s(entry.attempt))

    def _retry(self, entry: Entry, code: str, message: str, delay_s: float) -> None:
        attempts_max = self.board.attempts_max(entry.record)
        if entry.attempt >= attempts_max and "attempt_bound" in self._guards:
            state = State.DEAD if attempts_max > 1 else State.FAILED
            self._end(entry, state, code=code, message=message)
            return
        node = entry.worker.node if entry.worker is not None else b""
        note = AttemptNote(entry.attempt, node, code, cut_message(message))
        self._release(entry, entry.attempt, note, delay_s)

    def _retry_delay_s(self, attempt: int) -> float:
        delay = min(self.config.retry_delay_max_s, self.config.retry_delay_s * 2.0 ** (attempt - 1))
        return delay * (1 + self._rng.random() / 2)

    def _release(
        self, entry: Entry, attempts: int, note: AttemptNote | None, delay_s: float
    ) -> None:
        """Take the attempt back; the task waits again, after `delay_s` seconds."""
        self._free_room(entry)
        record = entry.record
        story = record.story if note is None else (*record.story, note)[-STORY_NOTES_MAX:]
        record = msgspec.structs.replace(record, attempts=attempts, story=story)
        if note is not None:
            entry.avoid = note.node

        def settle(revision: int) -> None:
            entry.record, entry.revision = record, revision
            self._forget_attempt(entry)
            self.board.move(entry, State.PENDING)
            entry.round += 1
            if delay_s > 0:
                self.out.append(SetTimer(delay_s, RetryDue(entry.task_id, entry.round)))
            else:
                self.enqueue(entry)

        self._propose_for(
            entry,
            self._holds(entry),
            (
                Put(task_key(entry.task_id), encode_record(record)),
                Delete(assignment_key(entry.task_id)),
            ),
            settle,
        )

    def retry_due(self, event: RetryDue) -> None:
        entry = self.board.live(event.task_id)
        if entry is None or entry.busy or entry.state is not State.PENDING:
            return
        if "stale_timer" in self._guards and entry.round != event.round:
            return  # Armed for a pause that has ended since.
        self.enqueue(entry)

    def _holds(self, entry: Entry) -> tuple[Compare, ...]:
        """What must still be so: the attempt's fence, or the waiting task's revision."""
        if entry.fence:
            return (Compare(assignment_key(entry.task_id), entry.fence),)
        return (Compare(task_key(entry.task_id), entry.revision),)

    def _free_room(self, entry: Entry) -> None:
        following = self.board.vacate(entry)
        if following is not None:
            self.board.move(following, State.RUNNING)
        self.stir(entry.agent)

    def _forget_attempt(self, entry: Entry) -> None:
        """The attempt is over in the store: tell its worker, so that it stops and forgets."""
        worker, fence = entry.worker, entry.fence
        entry.worker, entry.fence = None, 0
        if worker is not None:
            worker.fences.pop(fence, None)
            self.settle_fence(worker.node, worker.boot, fence)

    # ---- ends -------------------------------------------------------------------------

    def _end(
        self,
        entry: Entry,
        state: State,
        *,
        result: Any = None,
        code: str = "",
        message: str = "",
    ) -> None:
        """Write the task's final record."""
        self._free_room(entry)
        record = entry.record
        out = entry.fence != 0
        final = msgspec.structs.replace(
            record,
            state=state,
            attempts=entry.attempt if out else record.attempts,
            ended_ms=self.wall_ms,
            node=entry.worker.node if entry.worker is not None else b"",
            fence=entry.fence,
            result=result,
            code=code,
            message=cut_message(message),
            spec=self._spec_to_keep(record.spec, state),
        )
        ops: tuple[Put | Delete, ...] = (Put(task_key(entry.task_id), encode_record(final)),)
        if out:
            ops = (*ops, Delete(assignment_key(entry.task_id)))

        def settle(revision: int) -> None:
            self._forget_attempt(entry)
            ended = self.board.end(entry, final)
            self.out.append(TaskDone(final))
            self.task_ended(ended, final)

        self._propose_for(entry, self._holds(entry), ops, settle)

    def _spec_to_keep(self, spec: TaskSpec, state: State) -> TaskSpec:
        """A task that succeeded does not need its payload any more."""
        if state is State.SUCCEEDED and isinstance(spec.payload, Inline):
            return msgspec.structs.replace(spec, payload=_EMPTY)
        return spec

    def task_ended(self, ended: Ended, record: TaskRecord) -> None:
        """A task is final in the store. Jobs extend this."""
        self.board.retire(ended)

    # ---- cancel -----------------------------------------------------------------------

    def cancel_tasks(self, tag: int, task_ids: tuple[str, ...]) -> None:
        request = Request(tag, len(task_ids), [None] * len(task_ids))
        if not task_ids:
            self.out.append(Answer(tag, Cancelled(())))
        for index, task_id in enumerate(task_ids):
            found = self.board.tasks.get(task_id)
            if found is None:
                item = CancelledItem(task_id, "", "not_found", f"no task has the id {task_id}")
                self._fill_cancel(request, index, item)
            elif isinstance(found, Ended) and "cancel_finality" in self._guards:
                self._fill_cancel(request, index, CancelledItem(task_id, found.state.value))
            else:
                assert isinstance(found, Entry), f"task {task_id} has ended"
                found.cancellers.append((request, index))
                self.cancel(found)

    def cancel(self, entry: Entry) -> None:
        """End the task `cancelled`; if it was about to end, the store decides which came first."""
        entry.cancelling = True
        if entry.busy:
            return
        if entry.revision == 0 and not entry.cancellers:
            self.board.drop(entry)  # Of a job that is over, and in no store: nobody asks for it.
            return
        self._end(entry, State.CANCELLED, code="cancelled", message="cancelled on request")

    def _answer_cancellers(self, entry: Entry) -> None:
        cancellers, entry.cancellers = entry.cancellers, []
        for request, index in cancellers:
            item = CancelledItem(entry.task_id, entry.state.value)
            self._fill_cancel(request, index, item)

    def _fill_cancel(self, request: Request, index: int, item: CancelledItem) -> None:
        request.items[index] = item
        request.missing -= 1
        if request.missing == 0:
            self.out.append(Answer(request.tag, Cancelled(tuple(request.items))))  # type: ignore[arg-type]

    # ---- afterwards -------------------------------------------------------------------

    def consider(self, entry: Entry) -> None:
        """A proposal of the task has settled: do what was wished meanwhile."""
        if entry.final:
            entry.cancelling = False
            self._answer_cancellers(entry)
        elif entry.busy:
            return
        elif entry.cancelling:
            self.cancel(entry)
        elif entry.lost and entry.fence:
            code = entry.lost
            self.lose(entry, code, "its node was lost")
        else:
            entry.lost = ""
