"""The callers of a simulated swarm: what they ask for, through whom, and what they were told.

A caller picks a node, asks, and asks another one under the same key when that one dies or
gives up. What it is told is checked at once against what was applied; what it was promised is
checked again at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from swarmd.base.ids import job_id_of, task_id_of
from swarmd.sim.swarm_host import Host
from swarmd.sim.swarm_watch import Watch
from swarmd.sim.world import World
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.raft.messages import Entry, OpResult, Put
from swarmd.tasks.messages import (
    Cancel,
    CancelJob,
    Cancelled,
    SeenJobs,
    Submit,
    SubmitJob,
    Submitted,
    SubmittedJob,
)
from swarmd.tasks.spec import (
    Inline,
    JobRecord,
    JobSpec,
    JobState,
    StageKind,
    StageSpec,
    State,
    TaskSpec,
    task_key,
)

TASKS: Final = 440
LAST_TASKS: Final = 30
VALUES: Final = 60
JOBS: Final = 3
JOB_ITEMS: Final = 12
_PATIENCE_S: Final = 5.0
_BLOB: Final = BlobRef(b"m" * 32, 1)


class Callers:
    """All callers of one world."""

    def __init__(self, world: World, watch: Watch, hosts: Sequence[Host], swarm_id: bytes) -> None:
        self.manifests: dict[str, tuple[str, ...]] = {}
        self._world = world
        self._watch = watch
        self._hosts = hosts
        self._swarm_id = swarm_id
        self._rng = world.rng_for("callers")
        self._waiting: dict[str, None] = {}
        self._acknowledged: dict[str, str] = {}
        self._cancelled: dict[str, str] = {}
        self._jobs: dict[str, None] = {}
        self._values: dict[bytes, int] = {}

    # ---- what is asked --------------------------------------------------------------------

    def plan(self, until_s: float) -> None:
        """Spread everything over the time from now to `until_s` from now."""
        rng, after = self._rng, self._world.after
        number = 0
        while number < TASKS:
            count = min(TASKS - number, rng.choice((1, 1, 1, 2, 4, 15)))
            specs = tuple(self._task(number + i) for i in range(count))
            number += count
            at = rng.uniform(0.0, until_s)
            after(at, self._submit, specs)
            if rng.random() < 0.15:
                after(at + rng.uniform(0.0, 3.0), self._submit, specs)
            if rng.random() < 0.25:
                after(at + rng.uniform(0.0, 1.0), self._cancel, specs[0].key)
            if rng.random() < 0.06:
                rival = msgspec.structs.replace(specs[0], payload=Inline(b"rival"))
                after(at + rng.uniform(0.0, 2.0), self._submit_rival, rival)
        for value in range(VALUES):
            after(rng.uniform(0.0, until_s), self._put, f"u/{value}".encode())
        for job in range(JOBS):
            at = rng.uniform(0.0, until_s - 10.0)
            spec = self._job(job)
            after(at, self._submit_job, spec)
            if job == JOBS - 1:
                after(at + rng.uniform(0.1, 3.0), self._cancel_job, spec)

    def rush(self) -> None:
        """So many tasks at once that every node has some."""
        for number in range(LAST_TASKS):
            self._submit((self._task(TASKS + number),))

    def _task(self, number: int) -> TaskSpec:
        agent = self._rng.choice(("quick", "quick", "quick", "flaky", "alone", "once"))
        return TaskSpec(agent, Inline(str(number).encode()), f"k{number}")

    def _job(self, number: int) -> JobSpec:
        stages = (
            StageSpec("one", "quick", StageKind.MAP),
            StageSpec("two", "quick", StageKind.MAP),
            StageSpec("all", "merge", StageKind.REDUCE),
        )
        spec = JobSpec(f"job{number}", f"j{number}", stages[: 3 - number % 2], _BLOB, JOB_ITEMS)
        job_id = job_id_of(self._swarm_id, spec.key)
        self.manifests[job_id] = tuple(f"item{i}" for i in range(JOB_ITEMS))
        return spec

    def _host(self) -> Host | None:
        ups = [host for host in self._hosts if host.up and not host.stopping]
        return self._rng.choice(ups) if ups else None

    def _persist(self, name: str, ask: Callable[[Host, Callable[[bool], None]], None]) -> None:
        """Ask through changing nodes until it is answered; `name` is open until then."""
        self._waiting[name] = None
        turn = 0

        def done(of: int, ok: bool) -> None:
            nonlocal turn
            if ok:
                self._waiting.pop(name, None)
            if of != turn:
                return
            turn += 1
            if not ok:
                self._world.after(self._rng.uniform(0.05, 0.5), again)

        def again() -> None:
            mine = turn
            host = self._host()
            if host is not None:
                ask(host, lambda ok: done(mine, ok))
            self._world.after(_PATIENCE_S + 1.0, done, mine, False)

        again()

    # ---- tasks ----------------------------------------------------------------------------

    def _submit(self, specs: tuple[TaskSpec, ...]) -> None:
        self._world.count("operation", len(specs))

        def ask(host: Host, done: Callable[[bool], None]) -> None:
            def answered(message: Any) -> None:
                if isinstance(message, Submitted):
                    for spec, item in zip(specs, message.items, strict=True):
                        if item.code == "":
                            self._acknowledge(item.task_id, spec)
                    done(all(item.code in ("", "idempotency_conflict") for item in message.items))
                else:
                    done(False)

            host.call(Submit(specs), self._world.now + _PATIENCE_S, answered)

        self._persist(f"submit of {specs[0].key}..{specs[-1].key}", ask)

    def _acknowledge(self, task_id: str, spec: TaskSpec) -> None:
        record = self._watch.tasks.get(task_id)
        if task_id != task_id_of(self._swarm_id, spec.key):
            self._world.violate(f"{spec.key}: acknowledged as {task_id}")
        if record is None:
            self._world.violate(f"{spec.key}: acknowledged but not in the store")
        elif record.digest != spec.content_digest():
            self._world.violate(f"{spec.key}: acknowledged for another content")
        if task_id not in self._acknowledged:
            self._world.count("acknowledged")
        self._acknowledged[task_id] = spec.key

    def _submit_rival(self, spec: TaskSpec) -> None:
        """The same key for something else: only one of the two can ever be acknowledged."""
        host = self._host()
        if host is None:
            return

        def answered(message: Any) -> None:
            if not isinstance(message, Submitted):
                return
            if message.items[0].code == "idempotency_conflict":
                self._world.count("conflict_refused")
            elif not message.items[0].code:
                self._acknowledge(message.items[0].task_id, spec)

        host.call(Submit((spec,)), self._world.now + _PATIENCE_S, answered)

    def _cancel(self, key: str) -> None:
        host = self._host()
        if host is None:
            return
        self._world.count("operation")
        task_id = task_id_of(self._swarm_id, key)

        def answered(message: Any) -> None:
            if isinstance(message, Cancelled) and message.items[0].state:
                self._world.count("cancel_answered")
                state = self._cancelled.setdefault(task_id, message.items[0].state)
                record = self._watch.tasks.get(task_id)
                if record is None or record.state != state:
                    self._world.violate(f"{key}: cancel was answered {state}")

        host.call(Cancel((task_id,)), self._world.now + _PATIENCE_S, answered)

    def _submit_job(self, spec: JobSpec) -> None:
        self._world.count("operation")
        job_id = job_id_of(self._swarm_id, spec.key)

        def ask(host: Host, done: Callable[[bool], None]) -> None:
            def answered(message: Any) -> None:
                if isinstance(message, SubmittedJob):
                    if job_id not in self._watch.jobs:
                        self._world.violate(f"job {spec.key}: acknowledged but not in the store")
                    self._jobs[job_id] = None
                    done(True)
                else:
                    done(False)

            host.call(SubmitJob(spec), self._world.now + _PATIENCE_S, answered)

        self._persist(f"job {spec.key}", ask)

    def _cancel_job(self, spec: JobSpec) -> None:
        host = self._host()
        if host is None:
            return
        self._world.count("operation")
        job_id = job_id_of(self._swarm_id, spec.key)

        def answered(message: Any) -> None:
            if isinstance(message, SeenJobs):
                self._world.count("job_cancel_answered")
                state = message.jobs[0].state
                record = self._watch.jobs.get(job_id)
                if record is None or not record.final or record.state is not state:
                    self._world.violate(f"job {spec.key}: cancel was answered {state}")

        host.call(CancelJob(job_id), self._world.now + _PATIENCE_S, answered)

    # ---- values ---------------------------------------------------------------------------

    def _put(self, key: bytes) -> None:
        """Write a value once, from any node; then read it, from any node."""
        self._world.count("operation")
        host = self._host()
        if host is None:
            return

        def done(results: Sequence[OpResult] | None) -> None:
            if results is None:
                return
            if not results[0].ok:
                self._world.violate(f"{key!r} was applied twice: {results[0].code}")
                return
            known = self._watch.values.get(key)
            if known is None or known[1] != results[0].revision:
                self._world.violate(f"{key!r}: acknowledged at {results[0].revision}, not so")
            self._world.count("acknowledged")
            self._values[key] = results[0].revision
            self._world.after(self._rng.uniform(0.0, 0.5), self._read, key)

        host.pipe.propose([Put(key, key, 0)], _PATIENCE_S, done)

    def _read(self, key: bytes) -> None:
        host = self._host()
        if host is None:
            return

        def done(answered: bool, entry: Entry | None) -> None:
            if answered:
                self._world.count("read")
                if entry is None or entry.mod_revision != self._values[key]:
                    self._world.violate(f"{key!r}: a later read does not see it")

        host.read(key, _PATIENCE_S, done)

    # ---- the end --------------------------------------------------------------------------

    def open_ends(self) -> list[str]:
        """What callers still wait for, and what has not ended."""
        found = [f"nobody answers the {name}" for name in self._waiting]
        for record in self._watch.tasks.values():
            if not record.final:
                found.append(f"{record.spec.key!r} is still {record.state}")
        for job in self._watch.jobs.values():
            if not job.final:
                found.append(f"job {job.spec.key} is still {job.state}")
        return found

    def check_end(self) -> None:
        """Everything that was promised, once more, against every replica."""
        for host in self._hosts:
            replica = host.replica
            if replica is None:
                continue
            for task_id, key in self._acknowledged.items():
                if replica.get(task_key(task_id)) is None:
                    self._world.violate(f"{key}: acknowledged and lost on {host.name}")
            for name, revision in self._values.items():
                entry = replica.get(name)
                if entry is None or entry.mod_revision != revision:
                    self._world.violate(f"{name!r}: acknowledged and lost on {host.name}")
        for task_id, state in self._cancelled.items():
            record = self._watch.tasks.get(task_id)
            if record is None or record.state != state:
                self._world.violate(f"{task_id}: {state}, then {record and record.state}")
            self._world.count("cancelled", state == State.CANCELLED)
        for job in self._watch.jobs.values():
            if job.state is JobState.SUCCEEDED:
                self._check_job(job)

    def _check_job(self, job: JobRecord) -> None:
        """A job that succeeded has a final task for every item, and a reduce if it has one."""
        for stage, spec in enumerate(job.spec.stages):
            ended = sum(
                record.spec.place is not None
                and record.spec.place.job_id == job.job_id
                and record.spec.place.stage == stage
                for record in self._watch.tasks.values()
            )
            failed_before = sum(job.stage_failed[:stage])
            wanted = 1 if spec.kind is StageKind.REDUCE else JOB_ITEMS - failed_before
            counted = job.stage_done[stage] + job.stage_failed[stage]
            if ended != wanted or counted != wanted:
                text = f"stage {spec.name} has {ended} tasks, counted {counted}, not {wanted}"
                self._world.violate(f"job {job.spec.key}: {text}")
