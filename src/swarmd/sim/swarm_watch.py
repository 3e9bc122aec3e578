"""What the whole swarm has promised, and every contradiction of it.

The watch sees what the voters apply, in the order of the log, and what callers were told. It
keeps its own picture of tasks, fences, offices and values, made from nothing but applied
changes, so that it does not share the machines' mistakes.

Checked at each applied entry:
- every voter applies the same command at the same index with the same outcome, and restores
  only states that were;
- offices and fences rise, also across restarts of everybody, and whatever changes a task or a
  job was proposed by the node in office at that revision;
- a record in a final state never changes; one key keeps one content; a success was made by
  the attempt whose fence is current; attempts are granted within their bound, and never for
  what has ended.

Checked at each attempt: a fence is run at most once, attempts that must not overlap do not,
`at_most_once` starts once. Checked when a caller is told something: it is so.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from swarmd.base.ids import NodeId
from swarmd.identity.genesis import Genesis
from swarmd.sim.world import World
from swarmd.state.raft.messages import Batch, OpResult, decode_batch
from swarmd.state.raft.statefile import Restoring
from swarmd.state.raft.statemachine import Change, StateMachine
from swarmd.tasks.spec import (
    ASSIGNMENT_PREFIX,
    JOB_PREFIX,
    OFFICE_KEY,
    TASK_PREFIX,
    Inline,
    JobRecord,
    Mode,
    State,
    TaskRecord,
    decode_assignment,
    decode_job,
    decode_task,
)

Mark = tuple[int, int, int]
_COMMITTED_LOOKED_AT: Final = 200
_LOST_CODES: Final = frozenset({"node_lost", "handed_back"})


class WatchedState(StateMachine):
    """The replicated state of one voter, under the eyes of the watch."""

    def __init__(self, genesis: Genesis, watch: Watch, host: str) -> None:
        self._watch = watch
        self._host = host
        super().__init__(genesis)

    def apply(self, command: bytes, index: int, term: int) -> list[list[OpResult]]:
        """Apply, then show the watch what came of it."""
        results = super().apply(command, index, term)
        changes = self.drain_changes()
        mark = (self.revision, self.time_ms, len(self))
        self._watch.applied(self._host, index, term, command, mark, results, changes or [])
        return results

    def become(self, made: Restoring) -> None:
        """Become a snapshot's state; it must be one that was."""
        super().become(made)
        self.drain_changes()
        self._watch.restored(self._host, (self.revision, self.time_ms, len(self)))


class Watch:
    """One world's promises. `retries` are those of each agent, by name."""

    def __init__(self, world: World, retries: Mapping[str, int]) -> None:
        self.world = world
        self.sessions: dict[bytes, NodeId] = {}
        self.tasks: dict[str, TaskRecord] = {}
        self.jobs: dict[str, JobRecord] = {}
        self.values: dict[bytes, tuple[bytes, int]] = {}
        self.revision = 0
        self.last = 0
        self.office: tuple[NodeId, int] = (NodeId(b""), 0)
        self._retries = retries
        self._log: dict[int, tuple[int, bytes, Mark]] = {}
        self._marks: set[Mark] = {(0, 0, 0)}
        self._leaders: dict[int, str] = {}
        self._fresh: list[int] = []
        self._committed_by: dict[int, int] = {}
        self._grants: dict[str, int] = {}
        self._fences: dict[str, int] = {}

    # ---- the log ------------------------------------------------------------------------

    def applied(
        self,
        host: str,
        index: int,
        term: int,
        command: bytes,
        mark: Mark,
        results: list[list[OpResult]],
        changes: Sequence[Change],
    ) -> None:
        entry = (term, hashlib.blake2b(command, digest_size=8).digest(), mark)
        known = self._log.get(index)
        if known is not None:
            if known != entry:
                self.world.violate(f"{host} applied another entry, or otherwise, at {index}")
            return
        if index < self.last:
            self.world.violate(f"{host} applied {index}, which others passed over")
            return
        self.last = index
        self._log[index] = entry
        self._fresh.append(index)
        self._marks.add(mark)
        if mark[0] < self.revision:
            self.world.violate(f"the revision fell from {self.revision} to {mark[0]}")
        self.revision = mark[0]
        by = _proposers(decode_batch(command), results)
        for change in changes:
            self._changed(change, self.sessions.get(by.get(change.revision, b"")))
        self.world.note(index, entry[1])

    def restored(self, host: str, mark: Mark) -> None:
        if mark not in self._marks:
            self.world.violate(f"{host} restored a state that never was: revision {mark[0]}")

    def stepped(self, term: int) -> None:
        """What was first applied in the step that ends was committed in `term` or before."""
        for index in self._fresh:
            self._committed_by[index] = term
        self._fresh.clear()

    def leads(
        self, host: str, term: int, term_at: Callable[[int], int | None], applied: int
    ) -> None:
        """A voter leads `term`: it must hold what was committed in the terms before.

        It may be told late that it won, when later terms have committed more: that is not its
        duty to hold (Raft, section 5.4.3, speaks of earlier terms).
        """
        known = self._leaders.get(term)
        if known == host:
            return
        if known is not None:
            self.world.violate(f"{known} and {host} both lead term {term}")
        self._leaders[term] = host
        self.world.count("election")
        for index in sorted(self._committed_by)[-_COMMITTED_LOOKED_AT:]:
            if self._committed_by[index] >= term:
                continue
            held = term_at(index)
            if held != self._log[index][0] and (held is not None or index > applied):
                self.world.violate(f"{host} leads term {term} without committed entry {index}")
                return

    # ---- what changes -------------------------------------------------------------------

    def _changed(self, change: Change, proposer: NodeId | None) -> None:
        key = change.key
        if key == OFFICE_KEY:
            self._office(change)
        elif key.startswith(TASK_PREFIX):
            self._check_proposer(change, proposer)
            self._task(change)
        elif key.startswith(ASSIGNMENT_PREFIX):
            self._check_proposer(change, proposer)
            self._grant(change)
        elif key.startswith(JOB_PREFIX):
            self._check_proposer(change, proposer)
            self._job(change)
        elif change.value is not None:
            if key in self.values:
                self.world.violate(f"{key!r} was written twice for one call")
            self.values[key] = (change.value, change.revision)

    def _check_proposer(self, change: Change, proposer: NodeId | None) -> None:
        if proposer != self.office[0]:
            self.world.violate(f"{change.key!r} was changed by a node that was not in office")

    def _office(self, change: Change) -> None:
        if change.revision <= self.office[1] or change.value is None:
            self.world.violate(f"office {change.revision} does not follow {self.office[1]}")
            return
        self.world.count("office")
        self.office = (NodeId(change.value), change.revision)

    def _task(self, change: Change) -> None:
        task_id = change.key[len(TASK_PREFIX) :].decode()
        if change.value is None:
            self.world.violate(f"{task_id}: its record was removed")
            return
        record = decode_task(change.value)
        old = self.tasks.get(task_id)
        name = f"{record.spec.key!r} ({task_id[:8]})"
        if old is not None:
            if old.final:
                self.world.violate(f"{name}: {old.state} became {record.state}")
            if old.digest != record.digest:
                self.world.violate(f"{name}: one key, two contents")
            if record.attempts < old.attempts:
                self.world.violate(f"{name}: attempts fell to {record.attempts}")
        if record.attempts > self._attempts_max(record):
            self.world.violate(f"{name}: {record.attempts} attempts")
        if record.state is State.SUCCEEDED and self._grants.get(task_id) != _proof(record):
            current = self._grants.get(task_id)
            self.world.violate(f"{name}: fence {_proof(record)} committed under {current}")
        once = record.spec.mode is Mode.AT_MOST_ONCE
        if once and record.state is not State.UNKNOWN and record.code in _LOST_CODES:
            self.world.violate(f"{name}: its only attempt was lost, but it is {record.state}")
        if record.final:
            self.world.count(f"task_{record.state}")
        self.tasks[task_id] = record

    def _grant(self, change: Change) -> None:
        task_id = change.key[len(ASSIGNMENT_PREFIX) :].decode()
        if change.value is None:
            self._grants.pop(task_id, None)
            return
        grant = decode_assignment(change.value)
        record = self.tasks.get(task_id)
        if record is None:
            self.world.violate(f"{task_id}: granted without a record")
        elif record.final:
            self.world.violate(f"{record.spec.key!r}: granted after it was {record.state}")
        elif grant.attempt > self._attempts_max(record):
            self.world.violate(f"{record.spec.key!r}: attempt {grant.attempt} granted")
        if task_id in self._grants:
            self.world.violate(f"{task_id}: granted while an attempt is out")
        if change.revision <= self._fences.get(task_id, 0):
            self.world.violate(f"{task_id}: fences do not rise")
        self._grants[task_id] = self._fences[task_id] = change.revision

    def _job(self, change: Change) -> None:
        job_id = change.key[len(JOB_PREFIX) :].decode()
        if change.value is None:
            self.world.violate(f"job {job_id}: its record was removed")
            return
        record = decode_job(change.value)
        old = self.jobs.get(job_id)
        if old is not None and (old.final or old.digest != record.digest):
            self.world.violate(f"job {record.spec.key!r}: {old.state} became {record.state}")
        if record.final:
            self.world.count(f"job_{record.state}")
        self.jobs[job_id] = record

    def _attempts_max(self, record: TaskRecord) -> int:
        """What the agent or the task allows; kept apart from the machine's own reckoning."""
        if record.spec.mode is Mode.AT_MOST_ONCE:
            return 1
        if record.spec.retries is not None:
            return record.spec.retries + 1
        return self._retries[record.spec.agent] + 1


def _proposers(batch: Batch, results: list[list[OpResult]]) -> dict[int, bytes]:
    """Which session each new revision of the batch is due to."""
    by: dict[int, bytes] = {}
    for group, outcome in zip(batch.groups, results, strict=True):
        for result in outcome:
            if result.ok:
                by.setdefault(result.revision, group.session)
    return by


def _proof(record: TaskRecord) -> int:
    """The fence that the attempt itself wrote into its result."""
    result = record.result
    return int.from_bytes(result.data[:8], "big") if isinstance(result, Inline) else -1


Run = tuple[str, int, str]


class Runs:
    """Every attempt that runs anywhere, named by task, fence and host."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._live: dict[str, dict[Run, Mode]] = {}
        self._frozen: set[Run] = set()
        self._fences: Counter[tuple[str, int]] = Counter()
        self._starts: Counter[str] = Counter()

    def start(self, run: Run, mode: Mode) -> None:
        task_id, fence, host = run
        self._world.count("attempt")
        self._starts[task_id] += 1
        self._fences[task_id, fence] += 1
        if self._fences[task_id, fence] > 1:
            self._world.violate(f"{task_id[:8]}: fence {fence} was started again, on {host}")
        if mode is Mode.AT_MOST_ONCE and self._starts[task_id] > 1:
            self._world.violate(f"{task_id[:8]}: started twice in mode {mode}")
        self._live.setdefault(task_id, {})[run] = mode
        self._check_alone(run, mode)

    def stop(self, run: Run) -> None:
        runs = self._live.get(run[0], {})
        runs.pop(run, None)
        if not runs:
            self._live.pop(run[0], None)
        self._frozen.discard(run)

    def freeze(self, run: Run) -> None:
        """Its host stands still, and it with it."""
        self._frozen.add(run)

    def thaw(self, run: Run) -> None:
        mode = self._live.get(run[0], {}).get(run)
        if mode is not None:
            self._frozen.discard(run)
            self._check_alone(run, mode)

    def _check_alone(self, run: Run, mode: Mode) -> None:
        if mode is Mode.DEFAULT:
            return
        for other in self._live[run[0]]:
            if other != run and other not in self._frozen:
                text = f"{run[0][:8]}: runs on {run[2]} and {other[2]} at once in mode {mode}"
                self._world.violate(text)
