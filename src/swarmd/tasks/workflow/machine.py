"""One job: which of its tasks may start now, and when it is over.

Rules:
- `map` stages are chained per item: an item enters the next stage as soon as its own task of
  the stage before has succeeded. Items do not wait for each other.
- `reduce` starts when every item has come to its end, by success or failure, and is given all
  outcomes in the order of the items; a failed item is a named row there, not a failed job.
  After it the job is one item wide.
- A task that ends badly where the job is one item wide ends the job, as does the last task.

Nothing here is stored: progress follows from which tasks have ended, so that a new
coordinator feeds the machine the job's tasks in any order and has the same job again.
Dean and Ghemawat, "MapReduce", OSDI 2004, is where stages of this kind come from.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarmd.base.machine import Effect, Event
from swarmd.tasks.spec import (
    FromItem,
    FromTask,
    Gathered,
    JobState,
    Payload,
    StageKind,
    StageSpec,
    State,
    child_id,
    width_of,
)


@dataclass(frozen=True, slots=True)
class TaskEnded(Event):
    """A task of the job reached its final state; a repeat is ignored."""

    stage: int
    item: int
    state: State
    node: bytes = b""
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Resume(Event):
    """Everything that ended before is known: release what is due."""


@dataclass(frozen=True, slots=True)
class Release(Effect):
    """This task may start, with this payload."""

    stage: int
    item: int
    payload: Payload


@dataclass(frozen=True, slots=True)
class JobEnded(Effect):
    """`stage` and `item` name the task whose result or error is the job's; -1: none."""

    state: JobState
    stage: int
    item: int


class JobMachine:
    """Events in, effects out. Until `Resume` it only takes notes of what has ended."""

    def __init__(
        self, swarm_id: bytes, job_id: str, stages: tuple[StageSpec, ...], item_count: int
    ) -> None:
        self.job_id = job_id
        self.stages = stages
        self.item_count = item_count
        self.widths = [width_of(stages, item_count, s) for s in range(len(stages))]
        self.done = [0] * len(stages)
        self.failed = [0] * len(stages)
        self.attempts = 0
        self.ended_by: dict[bytes, int] = {}
        self.state = JobState.RUNNING
        self._swarm_id = swarm_id
        self._reduce = next(
            (i for i, s in enumerate(stages) if s.kind is StageKind.REDUCE), len(stages)
        )
        # Per item of the map part: the stage it is in now, `_reduce` when through, -1 if failed.
        self._at = [0] * item_count
        self._settled = item_count if self._reduce == 0 else 0
        self._ended: dict[tuple[int, int], bool] = {}
        self._released: set[tuple[int, int]] = set()
        self._live = False

    @property
    def failed_items(self) -> int:
        """Items whose chain of map stages ended badly."""
        return sum(self.failed[: self._reduce])

    def handle(self, event: Event, now: float) -> list[Effect]:
        if self.state is not JobState.RUNNING:
            return []
        if isinstance(event, TaskEnded):
            return self._on_ended(event)
        if isinstance(event, Resume) and not self._live:
            return self._on_resume()
        return []

    def cancel(self) -> None:
        """The job's record says that it was cancelled; nothing is released any more."""
        self.state = JobState.CANCELLED

    def _on_resume(self) -> list[Effect]:
        self._live = True
        effects: list[Effect] = []
        for item, stage in enumerate(self._at):
            if 0 <= stage < self._reduce:
                effects.extend(self._release(stage, item))
        return effects + self._advance_narrow()

    def _on_ended(self, event: TaskEnded) -> list[Effect]:
        place = (event.stage, event.item)
        if place in self._ended or not self._is_place(*place):
            return []
        good = event.state is State.SUCCEEDED
        self._ended[place] = good
        (self.done if good else self.failed)[event.stage] += 1
        self.attempts += event.attempts
        if event.node:
            self.ended_by[event.node] = self.ended_by.get(event.node, 0) + 1
        if event.stage >= self._reduce:
            return self._advance_narrow()
        return self._advance_item(event.item)

    def _is_place(self, stage: int, item: int) -> bool:
        return 0 <= stage < len(self.stages) and 0 <= item < self.widths[stage]

    def _advance_item(self, item: int) -> list[Effect]:
        """Move an item as far as its ended tasks say; they may be fed in any order."""
        stage = before = self._at[item]
        while 0 <= stage < self._reduce and (stage, item) in self._ended:
            stage = stage + 1 if self._ended[stage, item] else -1
        if stage == before:
            return []
        self._at[item] = stage
        if 0 <= stage < self._reduce:
            return self._release(stage, item)
        self._settled += 1
        return self._advance_narrow()

    def _advance_narrow(self) -> list[Effect]:
        """Past the map part the job is one item wide, and each step may end it."""
        if not self._live or self._settled < self.item_count:
            return []
        last = len(self.stages) - 1
        if self._reduce > last:
            return self._end(JobState.SUCCEEDED, -1, -1)
        for stage in range(self._reduce, last + 1):
            if (stage, 0) not in self._ended:
                return self._release(stage, 0)
            if not self._ended[stage, 0]:
                return self._end(JobState.FAILED, stage, 0)
        return self._end(JobState.SUCCEEDED, last, 0)

    def _release(self, stage: int, item: int) -> list[Effect]:
        if not self._live or (stage, item) in self._released:
            return []
        self._released.add((stage, item))
        return [Release(stage, item, self._payload(stage, item))]

    def _payload(self, stage: int, item: int) -> Payload:
        if self.stages[stage].kind is StageKind.REDUCE and stage == self._reduce:
            return Gathered(stage)
        if stage == 0:
            return FromItem(item)
        return FromTask(child_id(self._swarm_id, self.job_id, stage - 1, item))

    def _end(self, state: JobState, stage: int, item: int) -> list[Effect]:
        self.state = state
        return [JobEnded(state, stage, item)]
