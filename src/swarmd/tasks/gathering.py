"""The outcomes of a job's items, in their order, as rows and as one value.

Which task holds an item's outcome follows from the job alone: the last of its stages that has
a record. So any voter can answer, also for a job that ended under another coordinator.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

import msgspec
import trio

from swarmd.agents.records import AGENT_PREFIX, decode_agent
from swarmd.base.errors import SwarmError
from swarmd.base.limits import INLINE_BYTES_MAX, KIB
from swarmd.state.blobs.messages import BlobRef
from swarmd.tasks.messages import Row, Rows
from swarmd.tasks.outbox import struct_bytes
from swarmd.tasks.ports import Blobs, Replica, Store
from swarmd.tasks.spec import (
    JOB_PREFIX,
    TASK_PREFIX,
    Inline,
    Item,
    JobRecord,
    State,
    Stored,
    TaskRecord,
    child_id,
    decode_job,
    decode_task,
    task_key,
)

_ROWS_BYTES: Final = 256 * KIB
_FETCHES: Final = 8
_SCAN_PAGE: Final = 250


async def gather_rows(
    replica: Replica, swarm_id: bytes, job: JobRecord, items: Sequence[Item], stage: int
) -> AsyncIterator[Rows]:
    """Outcomes before `stage`, cut into messages; the last one says so."""
    batch: list[Row] = []
    size = 0
    for number, item in enumerate(items):
        row = _row(replica, swarm_id, job, item, number, stage)
        row_bytes = struct_bytes(row)
        if batch and size + row_bytes > _ROWS_BYTES:
            yield Rows(tuple(batch))
            await trio.lowlevel.checkpoint()
            batch, size = [], 0
        batch.append(row)
        size += row_bytes
    yield Rows(tuple(batch), last=True)


def _row(
    replica: Replica, swarm_id: bytes, job: JobRecord, item: Item, number: int, stage: int
) -> Row:
    if stage == 0:
        return Row(item.name, item.payload)
    record = _outcome(replica, swarm_id, job, number, stage)
    if record is None:
        return Row(item.name, None, "expired", "its result is not kept any more")
    if record.state is State.SUCCEEDED and record.result is not None:
        return Row(item.name, record.result)
    return Row(item.name, None, record.code or str(record.state), record.message)


def _outcome(
    replica: Replica, swarm_id: bytes, job: JobRecord, item: int, stage: int
) -> TaskRecord | None:
    for before in reversed(range(stage)):
        found = replica.get(task_key(child_id(swarm_id, job.job_id, before, item)))
        if found is not None:
            record = decode_task(found.value)
            if before == stage - 1 or record.state is not State.SUCCEEDED:
                return record
            return None
    return None


async def compose(rows: Sequence[Row], blobs: Blobs) -> bytes:
    """All outcomes as one msgpack list: values as they are, failures as named rows.

    A failure is `{"name": ..., "failed": code, "message": ...}`.

    Raises:
        Unavailable, NotFound: a blob that holds a value cannot be had now.
    """
    parts: list[bytes] = [b""] * len(rows)
    stored: list[tuple[int, Stored]] = []
    for position, row in enumerate(rows):
        if isinstance(row.value, Inline):
            parts[position] = row.value.data
        elif isinstance(row.value, Stored):
            stored.append((position, row.value))
        else:
            failure = {"name": row.name, "failed": row.code, "message": row.message}
            parts[position] = msgspec.msgpack.encode(failure)

    async def fetch(number: int) -> None:
        position, value = stored[number]
        parts[position] = await blobs.get(value.blob)

    await for_each(len(stored), fetch, at_once=_FETCHES)
    return msgspec.msgpack.encode([msgspec.Raw(part) for part in parts])


async def for_each(count: int, do: Callable[[int], Awaitable[None]], *, at_once: int) -> None:
    """Call `do(0)` to `do(count - 1)`, some at once; a SwarmError stops all and is raised."""
    trouble: SwarmError | None = None
    limiter = trio.CapacityLimiter(at_once)

    async def one(number: int, scope: trio.CancelScope) -> None:
        nonlocal trouble
        async with limiter:
            try:
                await do(number)
            except SwarmError as error:
                trouble = trouble or error
                scope.cancel()

    if count == 1:
        await do(0)
        return
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number, nursery.cancel_scope)
    if trouble is not None:
        raise trouble


async def as_value(data: bytes, blobs: Blobs) -> Inline | Stored:
    """A value that a record may hold: inline if it is small, else durably stored first.

    Raises:
        InsufficientCopies, TooLarge, Busy, DiskFault: it could not be stored.
    """
    if len(data) <= INLINE_BYTES_MAX:
        return Inline(data)
    return Stored(await blobs.put(data))


async def referenced_blobs(replica: Replica) -> set[bytes]:
    """Hashes of all blobs that agents, tasks and jobs of the store refer to."""
    found: set[bytes] = set()
    kinds: tuple[tuple[bytes, Callable[[bytes], Any]], ...] = (
        (AGENT_PREFIX, decode_agent),
        (TASK_PREFIX, decode_task),
        (JOB_PREFIX, decode_job),
    )
    for prefix, decode in kinds:
        after = b""
        while page := replica.range(prefix, after, _SCAN_PAGE):
            for entry in page:
                found.update(ref.hash for ref in _refs_in(decode(entry.value)))
            after = page[-1].key
            await trio.lowlevel.checkpoint()
    return found


async def current_references(store: Store) -> set[bytes] | None:
    """`referenced_blobs` of a state as new as this call; None on a node that is no voter.

    A voter that was cut off for long must not take what it missed for what is not there.

    Raises:
        NoQuorum: this voter cannot know how new its copy is.
        CorruptFile: a record cannot be read.
    """
    if not store.is_voter:
        return None
    await store.read_index()
    replica = store.local
    return await referenced_blobs(replica) if replica is not None else None


def _refs_in(value: object) -> Iterator[BlobRef]:
    """Every blob named anywhere in a record."""
    if isinstance(value, BlobRef):
        yield value
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _refs_in(getattr(value, name))
    elif isinstance(value, tuple):
        for one in value:
            yield from _refs_in(one)
