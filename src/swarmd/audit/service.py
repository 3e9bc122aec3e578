"""The audit log of a node: what happened here, and copies of what happened elsewhere.

To take note of something is to append to a list, within bounds; all else goes on elsewhere. A
thread makes records of what came together, seals them and syncs them: what concerns security
within 50 ms, everything else within a quarter of a second. Only then are they told to others. So
what a crash takes is what came in the last moment; what the disk refuses waits, and beyond the
bound it is lost, which is itself recorded. Nothing that is asked of a node waits for its audit log.

Where to look: events on their way, `notebook.py`, `quota.py`, `lane.py`; what a record and a seal
are, `records.py`, `chain.py`; files, `store.py`, by way of `shelf.py`; copies, `machine.py`,
`copying.py`; what people read, `reading.py`, `following.py`; what is checked, `verify.py`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from swarmd.audit.anchors import Anchors, Store, read_anchors
from swarmd.audit.chain import Sealed
from swarmd.audit.config import AuditConfig
from swarmd.audit.copying import Alive, Copying
from swarmd.audit.following import Followers
from swarmd.audit.lane import Lane
from swarmd.audit.messages import AUDIT, HeldLife
from swarmd.audit.notebook import Notebook
from swarmd.audit.reading import Entry, Position, Query, entries_of, newest
from swarmd.audit.records import ACCESS, SECURITY, STREAMS, WORK, ChainId, Stream
from swarmd.audit.shelf import Shelf, Trust
from swarmd.audit.store import AuditFolder
from swarmd.base.clock import Clock
from swarmd.base.errors import Busy, DiskFault, SwarmError
from swarmd.base.pace import pause
from swarmd.base.rng import Rng, derive
from swarmd.base.sealed_file import Sealer
from swarmd.identity.keys import SigningKey
from swarmd.mesh.link import Link
from swarmd.observe.log import get_logger

__all__ = ["Audit", "Entry", "Position", "Query", "open_audit"]

LINGER_S: Final = {SECURITY: 0.05, ACCESS: 0.25, WORK: 0.25}
COUNTED_S: Final = 10.0
PRUNE_S: Final = 30.0
_END_S: Final = 3.0
_RAW_BYTES: Final = 256 * 1024

_log = get_logger("audit")


class Audit:
    """Made by `open_audit`."""

    def __init__(
        self,
        shelf: Shelf,
        lanes: Mapping[Stream, Lane],
        notebook: Notebook,
        followers: Followers,
        anchors: Anchors,
        store: Store,
    ) -> None:
        self._shelf = shelf
        self._lanes = lanes
        self._notebook = notebook
        self._followers = followers
        self._anchors = anchors
        self._store = store

    def note(
        self, kind: str, actor: str = "", subject: str = "", outcome: str = "ok", details: str = ""
    ) -> None:
        """See `base.notes.Notes`."""
        self._notebook.note(kind, actor, subject, outcome, details)

    # ---- reading -----------------------------------------------------------------------

    async def newest(
        self, query: Query, before: Position | None = None, limit: int = 100
    ) -> tuple[list[Entry], Position | None]:
        """Records of all nodes that are kept here, the newest first.

        Returns:
            Up to `limit` of them, perhaps none though there are more; and where to go on, None at
            the end.

        Raises:
            DiskFault: the disk cannot be read.
        """
        return await newest(self._shelf, query, before, limit)

    async def follow(self, query: Query, backlog: int) -> AsyncGenerator[Entry, None]:
        """Up to `backlog` of the newest records, the oldest first, and then all that come.

        Raises:
            Busy: too many follow already, or this reader is too slow.
        """
        told: dict[ChainId, int] = {}
        with self._followers.join() as batches:
            if backlog:
                for entry in reversed((await self.newest(query, None, backlog))[0]):
                    told[entry.chain] = max(told.get(entry.chain, 0), entry.record.number)
                    yield entry
            async for sealed in batches:
                chain = sealed.seal.chain
                if not query.takes_chain(chain):
                    continue
                for entry in entries_of(chain, sealed.raw):
                    if entry.record.number > told.get(chain, 0) and query.takes(entry):
                        yield entry
        raise Busy("this reader is too slow for the audit log: follow it anew")

    async def held(self, after: ChainId | None = None) -> tuple[tuple[HeldLife, ...], bool]:
        """A page of the lives that are kept here, and whether there are more."""
        return await self._shelf.held(after)

    def floors(self) -> list[bytes]:
        """All that this node says it dropped, or never had."""
        folder = self._shelf.folder
        gaps = [raw for one in list(folder.gaps.values()) for raw in list(one.values())]
        return [raw for _, raw in list(folder.floors.values())] + gaps

    async def forks(self) -> list[bytes]:
        """Batches that contradict what is kept here, as they were signed."""
        return await self._shelf.run(self._shelf.folder.forks_file)

    async def raw(
        self, chain: ChainId, place: tuple[int, int]
    ) -> tuple[list[bytes], tuple[int, int]]:
        """What lies on the disk of a life, damaged or not, and where to go on ((0, 0): nowhere)."""
        return await self._shelf.run(self._shelf.folder.read_raw_file, chain, place, _RAW_BYTES)

    async def anchors(self) -> list[bytes]:
        """The seals that the strong store names. Raises NoQuorum."""
        return await read_anchors(self._store)

    # ---- running -----------------------------------------------------------------------

    async def tell_counted(self) -> None:
        """Record now and then what was only counted; never ends."""
        while True:
            await pause(COUNTED_S)
            self._notebook.note_counted()

    async def prune(self) -> None:
        """Drop what is too old or too much, now and then; never ends."""
        while True:
            try:
                count = await self._shelf.prune()
                if count:
                    _log.debug("old audit records are dropped", segments=count)
            except SwarmError as error:
                _log.warning("old audit records are not dropped", why=error.message)
            await trio.sleep(PRUNE_S)

    async def settle(self) -> None:
        """Write what was noted, and name it in the store.

        Raises:
            DiskFault: it is not written.
            NoQuorum: it is not named; it may be yet.
        """
        self._notebook.note_counted()
        for lane in self._lanes.values():
            await lane.flush()
        await self._anchors.name()

    async def flush(self) -> None:
        """Write what was noted; an error is logged."""
        self._notebook.note_counted()
        try:
            for lane in self._lanes.values():
                await lane.flush()
        except DiskFault as error:
            _log.error("the last audit records are lost", why=error.message)


@asynccontextmanager
async def open_audit(
    folder: Path,
    key: SigningKey,
    trust: Trust,
    link: Link,
    membership: Alive,
    store: Store,
    config: AuditConfig,
    clock: Clock,
    rng: Rng,
    sealer: Sealer | None = None,
) -> AsyncIterator[Audit]:
    """Keep the audit log for as long as the block runs; what was noted by its end is written.

    Args:
        sealer: of the data folder, if it is sealed.

    Raises:
        DiskFault: the folder cannot be used.
    """
    files = AuditFolder(folder, sealer)
    await trio.to_thread.run_sync(files.open_file)
    shelf = Shelf(files, trust, key, config, clock)
    writers = {stream: shelf.new_writer(stream) for stream in STREAMS}
    growing = frozenset(writer.chain for writer in writers.values())
    followers = Followers()
    copying = Copying(shelf, link, membership, growing, derive(rng, "copying"), followers.publish)

    def written(batches: list[Sealed]) -> None:
        followers.publish(batches)
        copying.tell(batches)

    lanes: dict[Stream, Lane] = {}
    for stream, writer in writers.items():
        past = await shelf.newest_before(writer)
        lanes[stream] = Lane(
            writer, past, shelf, clock, store.store_time_ms, written,
            linger_s=LINGER_S[stream], waiting_max=config.waiting_max,
        )  # fmt: skip
    notebook = Notebook(lanes, clock)
    anchors = Anchors(store, shelf, list(lanes.values()), notebook)
    audit = Audit(shelf, lanes, notebook, followers, anchors, store)
    inbox = link.open_inbox(AUDIT)
    loops = (copying.compare, copying.follow_news, audit.prune, audit.tell_counted)
    try:
        async with trio.open_nursery() as nursery:
            for loop in (*(lane.run for lane in lanes.values()), *loops):
                nursery.start_soon(loop)
            nursery.start_soon(copying.serve, inbox)
            nursery.start_soon(anchors.keep, config.anchor_s, derive(rng, "anchors"))
            try:
                yield audit
            finally:
                nursery.cancel_scope.cancel()
    finally:
        # Only now does no lane write any more.
        with trio.move_on_after(_END_S, shield=True):
            await audit.flush()
