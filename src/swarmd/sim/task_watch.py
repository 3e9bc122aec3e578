"""What the simulated task queue promises, checked at each change of its ledger."""

from __future__ import annotations

from collections import Counter
from typing import Final

from swarmd.sim.world import World
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.raft.messages import Put, Txn
from swarmd.tasks.spec import (
    ASSIGNMENT_PREFIX,
    TASK_PREFIX,
    AgentRun,
    Inline,
    Mode,
    State,
    TaskRecord,
    decode_assignment,
    decode_task,
    task_key,
)

SWARM: Final = b"s" * 32
BLOB: Final = BlobRef(b"b" * 32, 1)
AGENTS: Final = (
    AgentRun("quick", "1", BLOB, "m:f", concurrency=3, retries=4),
    AgentRun("alone", "1", BLOB, "m:f", concurrency=2, retries=4, mode=Mode.EXCLUSIVE),
    AgentRun("once", "1", BLOB, "m:f", concurrency=2, mode=Mode.AT_MOST_ONCE),
    AgentRun("flaky", "1", BLOB, "m:f", concurrency=2, retries=1),
    AgentRun("merge", "1", BLOB, "m:f", concurrency=1, retries=8),
)


class Ledger:
    """The strong store as one place: keys with revisions, transactions one at a time."""

    def __init__(self, world: World) -> None:
        self.data: dict[bytes, tuple[bytes, int]] = {}
        self.revision = 0
        self._world = world
        self._fences: dict[bytes, int] = {}

    def apply(self, op: Txn | Put) -> tuple[bool, int]:
        if isinstance(op, Put):
            op = Txn((), (op,))
        for compare in op.compares:
            if self.data.get(compare.key, (b"", 0))[1] != compare.revision:
                return False, self.revision
        self.revision += 1
        for change in op.then:
            if isinstance(change, Put):
                self._check_put(change)
                self.data[change.key] = (change.value, self.revision)
            else:
                self.data.pop(change.key, None)
        return True, self.revision

    def rows(self, prefix: bytes) -> list[tuple[bytes, bytes, int]]:
        return [(k, v, r) for k, (v, r) in sorted(self.data.items()) if k.startswith(prefix)]

    def task(self, task_id: str) -> TaskRecord | None:
        found = self.data.get(task_key(task_id))
        return decode_task(found[0]) if found is not None else None

    def _check_put(self, change: Put) -> None:
        if change.key.startswith(TASK_PREFIX):
            self._check_record(change)
        elif change.key.startswith(ASSIGNMENT_PREFIX):
            self._check_grant(change)

    def _check_record(self, change: Put) -> None:
        record = decode_task(change.value)
        before = self.data.get(change.key)
        name = record.spec.key
        if before is not None:
            old = decode_task(before[0])
            if old.final:
                self._world.violate(f"{name}: {old.state} became {record.state}")
            if old.digest != record.digest:
                self._world.violate(f"{name}: one key, two tasks")
            if record.attempts < old.attempts:
                self._world.violate(f"{name}: attempts fell to {record.attempts}")
        if record.attempts > attempts_max(record):
            self._world.violate(f"{name}: {record.attempts} attempts")
        if record.state is State.SUCCEEDED:
            grant = self.data.get(ASSIGNMENT_PREFIX + change.key[2:])
            proof = proven_fence(record)
            if grant is None or grant[1] != proof:
                self._world.violate(f"{name}: fence {proof} committed under {grant and grant[1]}")
        if record.final:
            self._world.count(f"task_{record.state}")

    def _check_grant(self, change: Put) -> None:
        grant = decode_assignment(change.value)
        record = self.task(grant.task_id)
        if record is not None and record.final:
            self._world.violate(f"{record.spec.key}: assigned after it was {record.state}")
        if record is not None and grant.attempt > attempts_max(record):
            self._world.violate(f"{record.spec.key}: attempt {grant.attempt} granted")
        if self.revision <= self._fences.get(change.key, 0):
            self._world.violate(f"{grant.task_id}: fences do not rise")
        self._fences[change.key] = self.revision


def proven_fence(record: TaskRecord) -> int:
    """The fence that the attempt itself wrote into its result."""
    result = record.result
    return int.from_bytes(result.data[:8]) if isinstance(result, Inline) else -1


def attempts_max(record: TaskRecord) -> int:
    """What the agent or the task allows; kept apart from the machine's own reckoning."""
    if record.spec.mode is Mode.AT_MOST_ONCE:
        return 1
    if record.spec.retries is not None:
        return record.spec.retries + 1
    return next(run.retries or 0 for run in AGENTS if run.name == record.spec.agent) + 1


class Runs:
    """Every attempt that runs anywhere, to see overlaps."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.live: dict[tuple[str, int, int], int] = {}
        self.starts: Counter[str] = Counter()
        self._serial = 0

    def start(self, task_id: str, fence: int, mode: Mode) -> tuple[str, int, int]:
        self._serial += 1
        self.starts[task_id] += 1
        self._world.count("attempt")
        if mode is not Mode.DEFAULT:
            if any(run[0] == task_id for run in self.live):
                self._world.violate(f"{task_id}: two attempts overlap in mode {mode}")
            if mode is Mode.AT_MOST_ONCE and self.starts[task_id] > 1:
                self._world.violate(f"{task_id}: started twice in mode {mode}")
        if any(run[:2] == (task_id, fence) for run in self.live):
            self._world.violate(f"{task_id}: fence {fence} runs twice")
        run = (task_id, fence, self._serial)
        self.live[run] = self._serial
        return run

    def stop(self, run: tuple[str, int, int]) -> None:
        self.live.pop(run, None)
