"""The audit log of a node: what happened here, and copies of what happened elsewhere.

To take note of something is to append to a list, within bounds; all else goes on elsewhere. A
thread makes records of what came together, seals them and syncs them: what concerns security
within 50 ms, everything else within a quarter of a second. Only then are they told to others. So
what a crash takes is what came in the last moment; what the disk refuses waits, and beyond the
bound it is lost, which is itself recorded. Nothing that is asked of a node waits for its audit log.

Files: `store.py`; what is a record and a seal: `records.py`, `chain.py`; copies: `copying.py`,
`machine.py`; what people read: `reading.py`; what is checked, and by whom: `verify.py`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from swarmd.audit.anchors import GONE_KIND, Anchors, Store, read_anchors
from swarmd.audit.chain import Note, Place, Sealed, Writer, cut, open_sealed
from swarmd.audit.config import AuditConfig
from swarmd.audit.copying import Alive, Copying
from swarmd.audit.lane import Lane
from swarmd.audit.messages import AUDIT, HeldLife
from swarmd.audit.quota import Quota
from swarmd.audit.reading import Entry, Query, entries_of, newest
from swarmd.audit.reading import Place as Position
from swarmd.audit.records import (
    ACCESS,
    LIFE_BYTES,
    SECURITY,
    STREAMS,
    WORK,
    ChainId,
    Seal,
    Stream,
    stream_of,
)
from swarmd.audit.shelf import Shelf, Trust
from swarmd.audit.store import AuditFolder
from swarmd.base.clock import Clock
from swarmd.base.errors import Busy, DiskFault, SwarmError
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
_FOLLOWERS_MAX: Final = 16
# Batches that wait for a reader; one that reads more slowly is told so.
_FOLLOWER_BATCHES_MAX: Final = 128
_RAW_BYTES: Final = 256 * 1024

_log = get_logger("audit")


class Audit:
    """Made by `open_audit`."""

    def __init__(
        self,
        shelf: Shelf,
        lanes: dict[Stream, Lane],
        copying: Copying,
        store: Store,
        anchors: Anchors,
        clock: Clock,
    ) -> None:
        self._shelf = shelf
        self._lanes = lanes
        self._copying = copying
        self._store = store
        self._anchors = anchors
        self._wall_ms = clock.wall_ms
        self._quota = Quota()
        self._followers: set[trio.MemorySendChannel[Sealed]] = set()

    def note(
        self, kind: str, actor: str = "", subject: str = "", outcome: str = "ok", details: str = ""
    ) -> None:
        """See `base.notes.Notes`. What is too long is cut, what is too much is counted."""
        if self._quota.takes(kind, actor, outcome, trio.current_time()):
            self._add(kind, actor, subject, outcome, details)

    def _add(self, kind: str, actor: str, subject: str, outcome: str, details: str) -> None:
        note = Note(self._wall_ms(), *cut((kind, actor, subject, outcome, details)))
        self._lanes[stream_of(kind)].add(note)

    def note_counted(self) -> None:
        """Have records tell of what was counted since."""
        for one in self._quota.counted(trio.current_time()):
            self._add(one.kind, one.actor, "", one.outcome, f"and {one.times} times more")

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
        if len(self._followers) >= _FOLLOWERS_MAX:
            raise Busy(f"{_FOLLOWERS_MAX} readers follow the audit log of this node already")
        send, receive = trio.open_memory_channel[Sealed](_FOLLOWER_BATCHES_MAX)
        self._followers.add(send)
        told: dict[ChainId, int] = {}
        try:
            if backlog:
                for entry in reversed((await self.newest(query, None, backlog))[0]):
                    told[entry.chain] = max(told.get(entry.chain, 0), entry.record.number)
                    yield entry
            async for sealed in receive:
                chain = sealed.seal.chain
                if not query.takes_chain(chain):
                    continue
                for entry in entries_of(chain, sealed.raw):
                    if entry.record.number > told.get(chain, 0) and query.takes(entry):
                        yield entry
            raise Busy("this reader is too slow for the audit log: follow it anew")
        finally:
            self._followers.discard(send)
            send.close()
            receive.close()

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

    def publish(self, batches: list[Sealed]) -> None:
        """Tell those who follow what is on the disk now."""
        for follower in list(self._followers):
            try:
                for sealed in batches:
                    follower.send_nowait(sealed)
            except trio.WouldBlock:
                self._followers.discard(follower)
                follower.close()
            except trio.BrokenResourceError:
                self._followers.discard(follower)

    async def tell_counted(self) -> None:
        """Record now and then what was only counted; never ends."""
        while True:
            await trio.sleep(COUNTED_S)
            self.note_counted()

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
        self.note_counted()
        for lane in self._lanes.values():
            await lane.flush()
        await self._anchors.name()

    async def flush(self) -> None:
        """Write what was noted; an error is logged."""
        self.note_counted()
        try:
            for lane in self._lanes.values():
                await lane.flush()
        except DiskFault as error:
            _log.error("the last audit records are lost", why=error.message)


def _writer_of(folder: AuditFolder, key: SigningKey, swarm_id: bytes, stream: Stream) -> Writer:
    """A new life of a stream, after the one on this disk that nothing goes on from yet.

    Only on a disk that was restored there are several; then it is the newest.
    """
    lives = [
        life
        for life in folder.lives.values()
        if (life.chain.node, life.chain.stream) == (key.key_id, stream)
        if life.segments and not life.unreadable
    ]
    parents = {life.parent for life in lives}
    ends = [life for life in lives if life.chain.life not in parents]
    newest = max(ends, key=lambda one: (one.wall_ms, one.last), default=None)
    parent = Place(newest.chain.life, newest.last, newest.hash) if newest is not None else None
    return Writer(key, swarm_id, stream, os.urandom(LIFE_BYTES), parent)


def _newest_file(
    folder: AuditFolder, shelf: Shelf, key: SigningKey, writer: Writer
) -> Sealed | None:
    """The batch that a new life goes on from; None: there is none, or it cannot be read."""
    chain = writer.parent
    if chain is None:
        return None
    for raw in folder.read_file(chain, writer.last - 1, 1):
        with contextlib.suppress(SwarmError):
            return open_sealed(raw, shelf.trust.swarm_id, {chain.node: key.public})
    return None


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
    writers = {one: _writer_of(files, key, trust.swarm_id, one) for one in STREAMS}
    growing = frozenset(writer.chain for writer in writers.values())
    published: list[Callable[[list[Sealed]], None]] = []

    def taken(batches: list[Sealed]) -> None:
        for publish in published:
            publish(batches)

    copying = Copying(shelf, link, membership, growing, derive(rng, "copying"), taken)

    def written(batches: list[Sealed]) -> None:
        taken(batches)
        copying.tell(batches)

    lanes = {
        stream: Lane(
            writer,
            shelf,
            clock,
            store.store_time_ms,
            written,
            linger_s=LINGER_S[stream],
            waiting_max=config.waiting_max,
        )
        for stream, writer in writers.items()
    }
    for one, writer in writers.items():
        lanes[one].newest = await shelf.run(_newest_file, files, shelf, key, writer)

    def gone(seal: Seal) -> None:
        _log.error("the strong store names audit records that are gone from this disk",
                   stream=seal.chain.stream, number=seal.last)  # fmt: skip
        subject = f"{seal.chain.stream} up to record {seal.last}"
        audit.note(GONE_KIND, "", subject, "lost", "named in the strong store, gone from this disk")

    anchors = Anchors(
        store,
        trust.swarm_id,
        {bytes(key.key_id): key.public},
        lambda: [one.newest for one in lanes.values() if one.newest is not None],
        shelf.goes_on,
        shelf.before_ms,
        gone,
    )
    audit = Audit(shelf, lanes, copying, store, anchors, clock)
    published.append(audit.publish)
    inbox = link.open_inbox(AUDIT)
    anchors_rng = derive(rng, "anchors")
    try:
        async with trio.open_nursery() as nursery:
            for lane in lanes.values():
                nursery.start_soon(lane.run)
            for loop in (copying.compare, copying.follow_news, audit.prune, audit.tell_counted):
                nursery.start_soon(loop)
            nursery.start_soon(copying.serve, inbox)
            nursery.start_soon(anchors.keep, config.anchor_s, anchors_rng)
            try:
                yield audit
            finally:
                nursery.cancel_scope.cancel()
    finally:
        # Only now does no lane write any more.
        with trio.move_on_after(_END_S, shield=True):
            await audit.flush()
