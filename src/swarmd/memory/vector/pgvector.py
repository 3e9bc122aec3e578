"""The index in PostgreSQL for a trio loop: one session applies, a few search.

Sessions are used in threads. Each call has a time, and where that is up, or its caller gives up,
the session's connection is cut, which ends the thread: so nothing waits for a server that hangs.

The database may be away for long, be emptied, or be put back from a copy. What cannot be reached
raises `VectorDatabaseUnavailable`; what is not as this node left it raises `CorruptFile`, and is
sound again once it was opened anew and held against the store, as any index is.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final, TypeVar

import psycopg
import trio

from swarmd.base.errors import (
    Busy,
    CorruptFile,
    ShuttingDown,
    SwarmError,
    VectorDatabaseUnavailable,
)
from swarmd.memory.vector import pg_search
from swarmd.memory.vector.pg_session import Server, Session, fault_of
from swarmd.memory.vector.pg_tables import State, Tables
from swarmd.memory.vector.rules import check_query
from swarmd.memory.vector.shapes import Batch, CollectionView, Hit, Query
from swarmd.observe.log import get_logger

_WAITING_MAX: Final = 16
_SEARCHES_MAX: Final = 4
# The server is told the time, too, and says more of why it was up; so it comes first.
_GRACE_S: Final = 1.0
# To make indexes that guess for all that is there.
_FIT_TIMEOUT_S: Final = 3_600.0

_log = get_logger("memory")

T = TypeVar("T")


@asynccontextmanager
async def open_pgvector_index(
    server: Server, schema: str, *, guesses: bool
) -> AsyncIterator[PgvectorIndex]:
    """An index in `schema`, which is this node's alone; it implements `VectorIndex`.

    Args:
        guesses: is the nearest looked up in an index that misses some (HNSW)?

    Raises:
        VectorDatabaseUnavailable: it cannot be used now; the message says why.

    Cancellation: what is under way is cut off.
    """
    index = PgvectorIndex(server, schema, guesses=guesses)
    try:
        await index.prepare()
        yield index
    finally:
        with trio.CancelScope(shield=True):
            await index.aclose()


class PgvectorIndex:
    """Implements `VectorIndex`."""

    def __init__(self, server: Server, schema: str, *, guesses: bool) -> None:
        self._server, self._schema, self._guesses = server, schema, guesses
        self._threads = trio.CapacityLimiter(_SEARCHES_MAX + 1)
        self._searches = trio.CapacityLimiter(_SEARCHES_MAX)
        self._turn = trio.Lock()
        self._waiting = 0
        self._writer: Tables | None = None
        self._idle: list[Session] = []
        # In whose hands a session is now, so that it can be cut.
        self._busy: set[Session] = set()
        self._state = State(0, 1, 1, {})
        # False where a batch may have been applied or not.
        self._sure = True
        self._closed = False

    async def prepare(self) -> None:
        """Make what is missing in the database. Raises: see `open_pgvector_index`."""
        tables = await self._connect_writer()
        try:
            self._state, wrong = await self._call(tables.session, tables.prepare)
            if wrong:
                _log.warning(
                    "the vector index is damaged, and is made anew from its entries",
                    database=str(self._server),
                    fault=wrong,
                )
            state = self._state
            await self._call(tables.session, lambda: tables.fit(state), timeout_s=_FIT_TIMEOUT_S)
        except BaseException:
            tables.session.close()
            raise
        self._writer = tables

    @property
    def position(self) -> int:
        return self._state.position

    def collections(self) -> list[CollectionView]:
        return self._state.views()

    # ---- applying ------------------------------------------------------------------------

    async def apply(self, batch: Batch) -> int:
        await trio.lowlevel.checkpoint()
        self._check_open()
        if self._waiting >= _WAITING_MAX:
            raise Busy(f"{_WAITING_MAX} batches wait to be applied: repeat this one")
        self._waiting += 1
        try:
            async with self._turn:
                self._check_open()
                return await self._apply(batch)
        finally:
            self._waiting -= 1

    async def _apply(self, batch: Batch) -> int:
        kept, self._writer = self._writer, None
        if kept is not None:
            try:
                return await self._apply_over(kept, batch)
            except VectorDatabaseUnavailable:
                # It may have been ended while nobody used it; what was applied is left out.
                if not kept.session.lost:
                    raise
        tables = await self._connect_writer()
        await self._call(tables.session, tables.session.use_schema)
        return await self._apply_over(tables, batch)

    async def _apply_over(self, tables: Tables, batch: Batch) -> int:
        known, self._sure = (self._state if self._sure else None), False
        try:
            self._state = await self._call(tables.session, lambda: tables.apply(batch, known))
        except VectorDatabaseUnavailable:
            raise
        except SwarmError:
            # Refused, all of it.
            self._sure, self._writer = known is not None, tables
            raise
        self._sure, self._writer = True, tables
        return self._state.position

    # ---- reading -------------------------------------------------------------------------

    async def search(self, query: Query) -> list[Hit]:
        self._check_open()
        while True:
            state = self._state
            spec = check_query(query, {name: c.spec for name, c in state.collections.items()})
            number = state.collections[query.collection].number
            ask = partial(
                pg_search.search,
                query=query,
                number=number,
                spec=spec,
                position=state.position,
                guesses=self._guesses,
            )
            try:
                return await self._read(ask)
            except CorruptFile:
                async with self._turn:  # A batch that is applied now may have dropped it.
                    now = self._state.collections.get(query.collection)
                if now is not None and now.number == number:
                    raise

    async def versions(self, collection: str, after: str, most: int) -> list[tuple[str, str]]:
        self._check_open()
        one = self._state.collections.get(collection)
        if one is None:
            return []
        number = one.number
        return await self._read(lambda session: pg_search.versions(session, number, after, most))

    async def check(self) -> None:
        self._check_open()
        position = self.position
        await self._read(lambda session: pg_search.look(session, position))

    async def _read(self, ask: Callable[[Session], T]) -> T:
        async with self._searches:
            self._check_open()
            while self._idle:
                session = self._idle.pop()
                try:
                    return await self._read_over(session, ask)
                except VectorDatabaseUnavailable:
                    # It may have been ended while nobody used it, with all the others.
                    if not session.lost:
                        raise
            session = await self._connect(reads_only=True)
            await self._call(session, partial(self._set_up, session))
            return await self._read_over(session, ask)

    async def _read_over(self, session: Session, ask: Callable[[Session], T]) -> T:
        try:
            found = await self._call(session, lambda: ask(session))
        except VectorDatabaseUnavailable:
            raise
        except SwarmError:
            self._idle.append(session)
            raise
        self._idle.append(session)
        return found

    def _set_up(self, session: Session) -> None:
        session.use_schema()
        if self._guesses:
            pg_search.tune(session)

    # ---- sessions ------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise ShuttingDown("the vector index is closed: ask once it is open again")

    async def _connect_writer(self) -> Tables:
        return Tables(await self._connect(reads_only=False), guesses=self._guesses)

    async def _connect(self, *, reads_only: bool) -> Session:
        unwanted = threading.Event()

        def connect() -> Session:
            session = Session(self._server, self._schema, reads_only=reads_only)
            if unwanted.is_set():
                session.close()
            return session

        # A host has several addresses at times, and each is tried for that long.
        timeout_s = 2 * self._server.connect_timeout_s + _GRACE_S
        try:
            with trio.fail_after(timeout_s):
                return await trio.to_thread.run_sync(connect, abandon_on_cancel=True)
        except trio.TooSlowError:
            unwanted.set()
            raise self._server.unavailable(f"no connection within {timeout_s:g} s") from None
        except trio.Cancelled:
            unwanted.set()
            raise
        except psycopg.Error as error:
            raise fault_of(error, self._server) from None

    async def _call(
        self, session: Session, call: Callable[[], T], timeout_s: float | None = None
    ) -> T:
        """Call in a thread, within a time; one whose session is of no more use closes it."""
        bound_s = (timeout_s or self._server.timeout_s) + _GRACE_S
        results: list[T] = []
        faults: list[BaseException] = []
        is_late = False

        def run() -> None:
            try:
                results.append(call())
            except Exception as error:  # noqa: BLE001 - raised below, in the caller's task
                faults.append(error)

        async def watch() -> None:
            nonlocal is_late
            try:
                await trio.sleep(bound_s)
                is_late = True
            finally:
                if not (results or faults):
                    session.cut()

        self._busy.add(session)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                await trio.to_thread.run_sync(run, limiter=self._threads)
                nursery.cancel_scope.cancel()
        except BaseException:
            session.close()  # Given up: what came of it is not told to anybody.
            raise
        finally:
            self._busy.discard(session)
        if results:
            return results[0]
        if not isinstance(faults[0], SwarmError):
            session.lost = session.connection.closed and not is_late
            session.close()
        raise self._fault(faults[0], bound_s if is_late else None)

    def _fault(self, error: BaseException, late_s: float | None) -> BaseException:
        if isinstance(error, psycopg.Error | OSError) and self._closed:
            return ShuttingDown("the vector index is closed: ask once it is open again")
        if late_s is not None and isinstance(error, psycopg.Error):
            return self._server.unavailable(f"no answer within {late_s:g} s")
        return fault_of(error, self._server) if isinstance(error, psycopg.Error) else error

    async def aclose(self) -> None:
        """Cut off what is under way, and close all sessions."""
        self._closed = True
        for session in self._busy:
            session.cut()
        for _ in range(_SEARCHES_MAX):
            await self._searches.acquire_on_behalf_of(object())
        async with self._turn:
            writer = [] if self._writer is None else [self._writer.session]
            for session in (*self._idle, *writer):
                with suppress(psycopg.Error, OSError):
                    session.close()
            self._idle, self._writer = [], None
