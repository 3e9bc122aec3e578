"""The embedded index for a trio loop: one thread applies, a few search.

A thread of its own applies for as long as the index is open, since trio's pool costs more, and
since batches that came while it was busy are then committed together.

The index can be made again from what it was fed with. So what does not prove itself when it is
opened is moved aside, by name, and an empty index takes its place, which is fed from 0 on.
"""

from __future__ import annotations

import contextlib
import queue
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from swarmd.base.errors import Busy, CorruptFile, DiskFault, ShuttingDown, SwarmError
from swarmd.base.files import sync_folder
from swarmd.memory.vector.engine import Engine
from swarmd.memory.vector.shapes import Batch, CollectionView, Hit, Query
from swarmd.observe.log import get_logger

# Batches that may wait, and how many of them one commit takes along.
_WAITING_MAX: Final = 16
_GROUP_MAX: Final = 16
# More at once would only take turns on a small machine's cores.
_SEARCHES_MAX: Final = 4
# Longest wait for the commit under way when the index is closed.
_END_TIMEOUT_S: Final = 10.0
_INDEX: Final = "index"
_DAMAGED: Final = "damaged"

_log = get_logger("memory")


@asynccontextmanager
async def open_vector_index(folder: Path) -> AsyncIterator[EmbeddedIndex]:
    """An index in `folder` for as long as the block runs; it implements `VectorIndex`.

    What lies there is not sealed: where a data folder is, `folder` has to be in memory.

    Raises:
        DiskFault: the folder cannot be used.

    Cancellation: what is being applied is waited for, within `_END_TIMEOUT_S`.
    """
    engine = await trio.to_thread.run_sync(open_engine, folder)
    index = EmbeddedIndex(engine)
    try:
        yield index
    finally:
        with trio.CancelScope(shield=True):
            await index.aclose()


def open_engine(folder: Path) -> Engine:
    """The index as it was left; an empty one where it is damaged, which goes aside."""
    place = folder / _INDEX
    try:
        return Engine(place)
    except CorruptFile as error:
        aside = folder / _DAMAGED
        _log.warning(
            "the vector index is damaged, and is made anew from its entries",
            fault=error.message,
            moved_to=str(aside),
        )
    try:
        # One is kept to be looked at, not each of them.
        shutil.rmtree(aside, ignore_errors=True)
        place.rename(aside)
        sync_folder(folder)
    except OSError as error:
        raise DiskFault(f"cannot move {place} to {aside}: {error.strerror}") from error
    return Engine(place)


class EmbeddedIndex:
    """Implements `VectorIndex`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._jobs: queue.Queue[_Job | None] = queue.Queue(_WAITING_MAX)
        self._searches = trio.CapacityLimiter(_SEARCHES_MAX)
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="vectors", daemon=True)
        self._thread.start()

    @property
    def position(self) -> int:
        return self._engine.position

    def collections(self) -> list[CollectionView]:
        return self._engine.collections()

    async def apply(self, batch: Batch) -> int:
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise ShuttingDown("the vector index closes: apply the batch once it is open again")
        job = _Job(batch)
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise Busy(f"{_WAITING_MAX} batches wait to be applied: repeat this one") from None
        await job.done.wait()
        if isinstance(job.result, int):
            return job.result
        raise job.result

    async def search(self, query: Query) -> list[Hit]:
        if self._closed:
            raise ShuttingDown("the vector index is closed: search once it is open again")
        return await trio.to_thread.run_sync(
            self._engine.search, query, trio.from_thread.check_cancelled, limiter=self._searches
        )

    async def versions(self, collection: str, after: str, most: int) -> list[tuple[str, str]]:
        if self._closed:
            raise ShuttingDown("the vector index is closed")
        return await trio.to_thread.run_sync(
            self._engine.versions, collection, after, most, limiter=self._searches
        )

    async def check(self) -> None:
        await self.versions("", "", 1)

    async def aclose(self) -> None:
        """Let what is under way end, and apply no more. Nobody may call any more."""
        self._closed = True
        for _ in range(_SEARCHES_MAX):
            await self._searches.acquire_on_behalf_of(object())
        await trio.to_thread.run_sync(self._end)

    def _end(self) -> None:
        with contextlib.suppress(queue.Full):
            self._jobs.put(None, timeout=_END_TIMEOUT_S)
            self._thread.join(_END_TIMEOUT_S)
        if self._thread.is_alive():
            _log.warning("the disk holds up the vector index: it is left as it is")
        else:
            self._engine.close()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs, last = [job], False
            while len(jobs) < _GROUP_MAX and not last:
                try:
                    another = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if another is None:
                    last = True
                else:
                    jobs.append(another)
            self._apply(jobs)
            if last:
                return

    def _apply(self, jobs: list[_Job]) -> None:
        results: list[int | BaseException]
        try:
            if self._closed:
                raise ShuttingDown("the vector index closes: apply the batch once it is open again")
            results = [*self._engine.apply([job.batch for job in jobs])]
        except SwarmError as error:
            results = [type(error)(error.message) for _ in jobs]
        except Exception as error:  # noqa: BLE001 - a bug, raised where the batch was given
            results = [error for _ in jobs]
        for job, result in zip(jobs, results, strict=True):
            job.settle(result)


class _Job:
    """A batch that waits for its outcome."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.done = trio.Event()
        self.result: int | BaseException = ShuttingDown("never settled")
        self._token = trio.lowlevel.current_trio_token()

    def settle(self, result: int | BaseException) -> None:
        self.result = result
        try:
            self._token.run_sync_soon(self.done.set)
        except trio.RunFinishedError:
            return  # The loop is gone: nobody waits.
