"""What callers see of tasks and jobs: by id, or page by page."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from swarmd.base.errors import BadRequest, NotFound
from swarmd.base.limits import KIB
from swarmd.tasks.board import Ended, Entry
from swarmd.tasks.machine import CoordinatorMachine
from swarmd.tasks.messages import JobView, Look, Seen, TaskView
from swarmd.tasks.outbox import struct_bytes
from swarmd.tasks.ports import Store
from swarmd.tasks.spec import Inline, State, TaskRecord, decode_task, task_key

# What one answer may hold: a page ends earlier when its tasks are large.
_PAGE_BYTES: Final = 384 * KIB
_LIST_MESSAGE_CHARS: Final = 200
_STAMP_DIGITS: Final = 20
_NOTHING: Final = Inline(b"\xc0")


class Showing:
    """Of the machine in office; what ended is read from the store."""

    def __init__(self, machine: CoordinatorMachine, store: Store) -> None:
        self._machine = machine
        self._store = store

    def record(self, task_id: str) -> TaskRecord | None:
        """The task as the store holds it."""
        replica = self._store.local
        found = replica.get(task_key(task_id)) if replica is not None else None
        return decode_task(found.value) if found is not None else None

    def look(self, ask: Look) -> Seen:
        """Tasks by name, or a page of them, newest first; alone, a task comes with its values."""
        tasks = self._machine.board.tasks
        if ask.task_ids:
            found = [tasks[task_id] for task_id in ask.task_ids if task_id in tasks]
            return Seen(tuple(self._views(found[: ask.limit], whole=len(ask.task_ids) == 1)))
        page: list[TaskView] = []
        size = 0
        last: Entry | Ended | None = None
        for entry in self._older_than(ask.after):
            if not _matches(entry, ask):
                continue
            if last is not None and (len(page) >= ask.limit or size >= _PAGE_BYTES):
                return Seen(tuple(page), f"{last.created_ms}-{last.task_id}")
            for view in self._views([entry]):
                page.append(view)
                size += struct_bytes(view)
            last = entry
        return Seen(tuple(page))

    def _older_than(self, after: str) -> Iterable[Entry | Ended]:
        tasks = self._machine.board.tasks
        newest_first = reversed(tasks.values())
        if not after:
            return newest_first
        created, _, task_id = after.partition("-")
        last = tasks.get(task_id)
        if last is not None:
            from_last_on = itertools.dropwhile(lambda entry: entry is not last, newest_first)
            return itertools.islice(from_last_on, 1, None)
        if not (created.isascii() and created.isdigit() and len(created) <= _STAMP_DIGITS):
            raise BadRequest("this is no place where a page of tasks ended")
        created_ms = int(created)
        return (entry for entry in newest_first if entry.created_ms < created_ms)

    def _views(
        self, entries: Sequence[Entry | Ended], *, whole: bool = False
    ) -> Iterable[TaskView]:
        for entry in entries:
            record = entry.record if isinstance(entry, Entry) else self.record(entry.task_id)
            if record is None:
                continue
            if not whole:
                record = _for_lists(record)
            if isinstance(entry, Entry):
                out = entry.state is not State.PENDING
                node = entry.worker.node if out and entry.worker is not None else b""
                attempts = entry.attempt if out else record.attempts
                yield TaskView(record, entry.state, attempts, node, entry.fence)
            else:
                yield TaskView(record, entry.state, record.attempts, record.node, record.fence)

    def job_views(self, job_id: str, limit: int) -> tuple[JobView, ...]:
        """The job named, or the newest ones. Raises NotFound."""
        jobs = self._machine.board.jobs
        if job_id:
            if job_id not in jobs:
                raise NotFound(f"no job has the id {job_id}")
            return (self._machine.job_view(jobs[job_id]),)
        views: list[JobView] = []
        size = 0
        for job in sorted(jobs.values(), key=lambda job: -job.record.created_ms)[:limit]:
            view = self._machine.job_view(job)
            size += struct_bytes(view)
            if views and size > _PAGE_BYTES:
                break
            views.append(view)
        return tuple(views)


def _for_lists(record: TaskRecord) -> TaskRecord:
    """The record without what may be large."""
    spec = msgspec.structs.replace(record.spec, payload=_NOTHING)
    message = record.message[:_LIST_MESSAGE_CHARS]
    return msgspec.structs.replace(record, spec=spec, result=None, story=(), message=message)


def _matches(entry: Entry | Ended, ask: Look) -> bool:
    if ask.state and entry.state != ask.state:
        return False
    if ask.agent and entry.agent != ask.agent:
        return False
    return not ask.job_id or (entry.place is not None and entry.place.job_id == ask.job_id)
