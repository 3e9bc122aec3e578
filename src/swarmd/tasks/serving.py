"""Answers of the node in office to callers' requests, single and streamed."""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec
import trio

from swarmd.base.errors import MalformedMessage, NotCoordinator, SwarmError
from swarmd.base.limits import KIB
from swarmd.mesh.link import Inbound
from swarmd.tasks import events as e
from swarmd.tasks import messages as m
from swarmd.tasks.office import OfficeShell, Watcher
from swarmd.tasks.outbox import struct_bytes
from swarmd.tasks.spec import Inline, TaskRecord

# A stream says at least this often that the coordinator still lives.
PULSE_S: Final = 2.0
_JOB_PAUSE_S: Final = 0.1
_ENDED_RECORDS: Final = 256
_ENDED_BYTES: Final = 384 * KIB


async def serve(office: OfficeShell | None, inbound: Inbound) -> None:
    """Answer one request, whatever comes of it. Never raises SwarmError."""
    try:
        if office is None or not office.open:
            raise NotCoordinator("this node does not coordinate now")
        await _serve(office, inbound)
    except SwarmError as error:
        await inbound.fail(error)


async def _serve(office: OfficeShell, inbound: Inbound) -> None:
    ask = inbound.message
    if isinstance(ask, m.Submit):
        await inbound.answer(await office.ask(lambda tag: e.SubmitAsked(tag, ask.specs)))
    elif isinstance(ask, m.Cancel):
        await inbound.answer(await office.ask(lambda tag: e.CancelAsked(tag, ask.task_ids)))
    elif isinstance(ask, m.SubmitJob):
        await inbound.answer(await office.ask(lambda tag: e.SubmitJobAsked(tag, ask.spec)))
    elif isinstance(ask, m.CancelJob):
        await inbound.answer(await office.ask(lambda tag: e.CancelJobAsked(tag, ask.job_id)))
    elif isinstance(ask, m.Look):
        await inbound.answer(office.showing.look(ask))
    elif isinstance(ask, m.LookJobs):
        await inbound.answer(m.SeenJobs(office.showing.job_views(ask.job_id, ask.limit)))
    elif isinstance(ask, m.Count):
        await inbound.answer(counted(office))
    elif isinstance(ask, m.Watch):
        await _serve_watch(office, inbound)
    elif isinstance(ask, m.WatchJob):
        await _serve_job(office, inbound)
    elif isinstance(ask, m.Gather):
        async for page in office.rows(ask.job_id, ask.stage):
            await inbound.answer(page, more=not page.last)
    else:
        raise MalformedMessage(f"{type(ask).__name__} is no request")


async def _serve_watch(office: OfficeShell, inbound: Inbound) -> None:
    task_ids = tuple(dict.fromkeys(inbound.message.task_ids))
    watcher, missing = office.watch(task_ids)
    try:
        if missing:
            await inbound.answer(m.Ended((), tuple(missing)), more=True)
        while not watcher.finished:
            with trio.move_on_after(PULSE_S):
                await watcher.wake.wait()
            if not office.open:
                raise NotCoordinator("this node does not coordinate any more")
            await _answer_ended(inbound, watcher)
        await inbound.answer(m.Ended(()))
    finally:
        office.unwatch(watcher, task_ids)


async def _answer_ended(inbound: Inbound, watcher: Watcher) -> None:
    """Send what has ended, in messages of bounded size; an empty one says: still here."""
    records: deque[TaskRecord] = deque(watcher.take(_ENDED_RECORDS))
    while True:
        batch: list[TaskRecord] = []
        size = 0
        while records and (not batch or size < _ENDED_BYTES):
            record = _without_payload(records.popleft())
            batch.append(record)
            size += struct_bytes(record)
        await inbound.answer(m.Ended(tuple(batch)), more=True)
        if not records:
            return


def _without_payload(record: TaskRecord) -> TaskRecord:
    if not isinstance(record.spec.payload, Inline) or len(record.spec.payload.data) <= 1:
        return record
    spec = msgspec.structs.replace(record.spec, payload=Inline(b"\xc0"))
    return msgspec.structs.replace(record, spec=spec)


async def _serve_job(office: OfficeShell, inbound: Inbound) -> None:
    job_id = inbound.message.job_id
    while True:
        if not office.open:
            raise NotCoordinator("this node does not coordinate any more")
        [view] = office.showing.job_views(job_id, 1)
        await inbound.answer(m.SeenJobs((view,)), more=not view.final)
        if view.final:
            return
        with trio.move_on_after(PULSE_S):
            await office.next_move(job_id)
        await trio.sleep(_JOB_PAUSE_S)


def counted(office: OfficeShell) -> m.Counted:
    board = office.machine.board
    tasks = {state.value: count for state, count in sorted(board.counts.items())}
    jobs = {"open": board.open_jobs, "ended": len(board.ended_jobs)}
    return m.Counted(tasks, jobs)
