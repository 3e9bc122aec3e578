"""Jobs, as the coordinator drives them.

A job is taken by one record. Its tasks are written when they start, under ids that follow from
the job, so that nothing has to be undone when a coordinator dies halfway: the next one reads
which tasks exist, tells the job's machine how they ended, and goes on.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from swarmd.base.errors import SwarmError
from swarmd.base.ids import job_id_of
from swarmd.base.machine import Effect, SetTimer
from swarmd.state.raft.messages import Compare, Put
from swarmd.tasks.board import Ended, Job
from swarmd.tasks.events import (
    Answer,
    Collect,
    Collected,
    ItemsUnreadable,
    JobMoved,
    NameItems,
    NamesDue,
    Refuse,
    Uncollectable,
)
from swarmd.tasks.flow import TaskFlow
from swarmd.tasks.messages import JobView, SeenJobs, StageView, SubmittedJob
from swarmd.tasks.spec import (
    Inline,
    JobRecord,
    JobSpec,
    JobState,
    Place,
    Stored,
    TaskRecord,
    TaskSpec,
    check_job,
    child_id,
    child_key,
    cut_message,
    encode_record,
    job_key,
    width_of,
)
from swarmd.tasks.workflow.machine import JobEnded, JobMachine, Release, Resume, TaskEnded

_MANIFEST_RETRY_S = 1.0


class JobFlow(TaskFlow):
    """The part of the coordinator that drives jobs."""

    # ---- taking -----------------------------------------------------------------------

    def submit_job(self, tag: int, spec: JobSpec) -> None:
        job_id = job_id_of(self.swarm_id, spec.key)
        known = self.board.jobs.get(job_id)
        if known is not None:
            if known.record.digest != spec.content_digest():
                text = f"the key {spec.key!r} belongs to a job with another content"
                self.out.append(Refuse(tag, "idempotency_conflict", text))
            elif known.revision == 0:
                known.creators.append((tag, False))
            else:
                self.out.append(Answer(tag, SubmittedJob(job_id, False)))
            return
        refusal = self._job_refusal(spec)
        if refusal is not None:
            self.out.append(Refuse(tag, *refusal))
            return
        job = self.add_job(JobRecord(job_id, spec, spec.content_digest(), self.wall_ms), 0)
        job.creators.append((tag, True))
        job.busy = True

        def settle(revision: int) -> None:
            job.busy, job.revision = False, revision
            for creator, created in job.creators:
                self.out.append(Answer(creator, SubmittedJob(job_id, created)))
            job.creators.clear()
            self.resume_job(job)

        key = job_key(job_id)
        self.propose((Compare(key, 0),), (Put(key, encode_record(job.record)),), settle)

    def _job_refusal(self, spec: JobSpec) -> tuple[str, str] | None:
        try:
            check_job(spec)
        except SwarmError as error:
            return error.code, error.message
        for stage in spec.stages:
            if not self.board.knows(stage.agent):
                text = f"stage {stage.name!r}: no agent is named {stage.agent!r}: deploy it first"
                return "not_found", text
        if self.board.open_jobs >= self.config.open_jobs_max:
            return "busy", f"{self.config.open_jobs_max} jobs are open already"
        return None

    def add_job(self, record: JobRecord, revision: int) -> Job:
        """Index a job. One that ended keeps its record only."""
        spec = record.spec
        machine = JobMachine(self.swarm_id, record.job_id, spec.stages, spec.item_count)
        job = Job(record, revision, machine, out=[0] * len(spec.stages))
        self.board.jobs[record.job_id] = job
        if record.final:
            machine.cancel()
            self.board.ended_jobs.append((record.ended_ms, record.job_id))
        else:
            self.board.open_jobs += 1
        return job

    def resume_job(self, job: Job) -> None:
        """The job is in the store: read its items' names, then release what is due."""
        if job.names is None:
            self.out.append(NameItems(job.record.job_id, job.record.spec.manifest))
        if job.cancelling:
            self._end_job(job, JobState.CANCELLED, None, "cancelled", "cancelled on request")
        else:
            self.out.append(JobMoved(job.record.job_id))

    def items_named(self, job_id: str, names: tuple[str, ...]) -> None:
        job = self.board.jobs.get(job_id)
        if job is None or job.names is not None or job.record.final:
            return
        if len(names) != job.record.spec.item_count:
            text = f"its manifest has {len(names)} items, not {job.record.spec.item_count}"
            self._end_job(job, JobState.FAILED, None, "bad_request", text)
            return
        job.names = names
        self._perform_job(job, job.machine.handle(Resume(), self.now))

    def items_unreadable(self, event: ItemsUnreadable) -> None:
        job = self.board.jobs.get(event.job_id)
        if job is None or job.record.final:
            return
        if event.final:
            self._end_job(job, JobState.FAILED, None, "bad_request", event.message)
        else:
            self.out.append(SetTimer(_MANIFEST_RETRY_S, NamesDue(event.job_id)))

    def names_due(self, job_id: str) -> None:
        job = self.board.jobs.get(job_id)
        if job is not None and not job.record.final and job.names is None:
            self.out.append(NameItems(job_id, job.record.spec.manifest))

    # ---- driving ----------------------------------------------------------------------

    def task_ended(self, ended: Ended, record: TaskRecord) -> None:
        """A task is final in the store: its job moves on."""
        job = self.board.jobs.get(ended.place.job_id) if ended.place is not None else None
        if job is None or job.record.final:
            super().task_ended(ended, record)
            return
        self._perform_job(job, self.note_ended(job, record))
        self.out.append(JobMoved(job.record.job_id))

    def note_ended(self, job: Job, record: TaskRecord) -> Sequence[Effect]:
        """Tell the job's machine that a task of it has ended."""
        place = record.spec.place
        assert place is not None
        width = width_of(job.record.spec.stages, job.record.spec.item_count, place.stage)
        if width == 1:
            job.results[place.stage] = record
        event = TaskEnded(place.stage, place.item, record.state, record.node, record.attempts)
        return job.machine.handle(event, self.now)

    def _perform_job(self, job: Job, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Release):
                self._release_child(job, effect)
            elif isinstance(effect, JobEnded):
                self._finish_job(job, effect)

    def _release_child(self, job: Job, release: Release) -> None:
        """Let a task of the job wait for room; it is written when it starts."""
        spec, stage, item = job.record.spec, release.stage, release.item
        task_id = child_id(self.swarm_id, job.record.job_id, stage, item)
        if task_id in self.board.tasks:
            return
        assert job.names is not None
        wide = width_of(spec.stages, spec.item_count, stage) == spec.item_count
        task = TaskSpec(
            spec.stages[stage].agent,
            release.payload,
            child_key(job.record.job_id, stage, item),
            name=job.names[item] if wide and item < len(job.names) else spec.stages[stage].name,
            priority=spec.priority,
            place=Place(job.record.job_id, stage, item),
        )
        entry = self.board.add(self._new_record(task_id, task, task.content_digest()), 0)
        job.children.append(task_id)
        self.enqueue(entry)

    def _finish_job(self, job: Job, end: JobEnded) -> None:
        record = job.results.get(end.stage)
        if end.stage < 0:
            self.out.append(Collect(job.record.job_id))
            return
        if end.state is JobState.SUCCEEDED:
            result = record.result if record is not None else None
            self._end_job(job, end.state, result, "", "")
            return
        stage = job.record.spec.stages[end.stage].name
        code = record.code if record is not None else "task_failed"
        cause = record.message if record is not None else ""
        self._end_job(job, end.state, None, code, f"stage {stage!r}: {cause}")

    def collected(self, event: Collected) -> None:
        """The outcomes of a job that has no reduce were put into one value."""
        job = self.board.jobs.get(event.job_id)
        if job is not None and not job.record.final:
            self._end_job(job, JobState.SUCCEEDED, event.value, "", "")

    def uncollectable(self, event: Uncollectable) -> None:
        """They cannot be put into one value: the job must not pass for one that gave nothing."""
        job = self.board.jobs.get(event.job_id)
        if job is not None and not job.record.final:
            self._end_job(job, JobState.FAILED, None, event.code, event.message)

    def _end_job(
        self, job: Job, state: JobState, result: Inline | Stored | None, code: str, message: str
    ) -> None:
        """Write the job's final record; then nothing of it may start any more."""
        if job.busy:
            return  # Another end of it is on its way to the store already.
        machine = job.machine
        final = msgspec.structs.replace(
            job.record,
            state=state,
            ended_ms=self.wall_ms,
            result=result,
            code=code,
            message=cut_message(message),
            failed_items=machine.failed_items,
            stage_done=tuple(machine.done),
            stage_failed=tuple(machine.failed),
            attempts=machine.attempts,
            ended_by=dict(machine.ended_by),
        )
        job.busy = True

        def settle(revision: int) -> None:
            job.busy, job.record, job.revision = False, final, revision
            self._job_over(job)

        key = job_key(job.record.job_id)
        self.propose((Compare(key, job.revision),), (Put(key, encode_record(final)),), settle)

    def _job_over(self, job: Job) -> None:
        board, job_id = self.board, job.record.job_id
        job.machine.cancel()
        job.results.clear()
        board.open_jobs -= 1
        board.ended_jobs.append((job.record.ended_ms, job_id))
        for task_id in job.children:
            found = board.tasks.get(task_id)
            if isinstance(found, Ended):
                board.retire(found)
            elif found is not None:
                self.cancel(found)
        for tag in job.cancellers:
            self.out.append(Answer(tag, SeenJobs((self.job_view(job),))))
        job.cancellers.clear()
        self.out.append(JobMoved(job_id))

    def cancel_job(self, tag: int, job_id: str) -> None:
        job = self.board.jobs.get(job_id)
        if job is None:
            self.out.append(Refuse(tag, "not_found", f"no job has the id {job_id}"))
            return
        if job.record.final:
            self.out.append(Answer(tag, SeenJobs((self.job_view(job),))))
            return
        job.cancellers.append(tag)
        job.cancelling = True
        if not job.busy:
            self._end_job(job, JobState.CANCELLED, None, "cancelled", "cancelled on request")

    # ---- showing ----------------------------------------------------------------------

    def job_view(self, job: Job) -> JobView:
        """The job and its progress, as of now."""
        record, spec, machine = job.record, job.record.spec, job.machine
        done = record.stage_done if record.final else tuple(machine.done)
        failed = record.stage_failed if record.final else tuple(machine.failed)
        stages = tuple(
            StageView(
                stage.name, stage.agent, stage.kind, machine.widths[i], done[i], failed[i],
                max(0, job.out[i]),
            )
            for i, stage in enumerate(spec.stages)
        )  # fmt: skip
        return JobView(
            record.job_id,
            spec.name,
            spec.key,
            record.state,
            record.created_ms,
            record.ended_ms,
            spec.item_count,
            stages,
            record.attempts if record.final else machine.attempts,
            record.failed_items if record.final else machine.failed_items,
            dict(record.ended_by if record.final else machine.ended_by),
            record.result,
            record.code,
            record.message,
        )
