"""Large values by their hash: kept on enough nodes, fetched from any.

A blob that a record is about to name is first made durable where the record will be: on
floor(voters / 2) + 1 voters, so that any majority that can answer for the record includes a
node with the blob. A swarm of two has one voter, and there both nodes must have it; a node
alone is enough for itself. Members that do not answer count as existing: a swarm of two whose
other node is down is not a swarm of one.

Nothing is believed: every fetched blob is hashed before it is used or kept, every stored one
before it is read. Blobs that nothing names are deleted after a grace period which an offer
renews, so that "I have it already" stays true until the record that names it is committed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence, Set
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import (
    Busy,
    DiskFault,
    InsufficientCopies,
    MalformedMessage,
    NotFound,
    RemoteError,
    SwarmError,
    TooLarge,
    Unavailable,
)
from swarmd.base.ids import NodeId, short
from swarmd.base.limits import BLOB_BYTES_MAX, BLOB_CHUNK_BYTES, MIB
from swarmd.base.pace import pause
from swarmd.base.sealed_file import Sealer
from swarmd.mesh.link import Inbound, Lane, Link
from swarmd.observe.log import get_logger
from swarmd.state.blobs.bulk import Bulk
from swarmd.state.blobs.config import BlobsConfig
from swarmd.state.blobs.custody import Custody, Referenced
from swarmd.state.blobs.mending import Mending
from swarmd.state.blobs.messages import (
    BLOB,
    BULK,
    BlobRef,
    Fetch,
    Got,
    Have,
    MissingAsk,
    Offer,
    Piece,
    Want,
)
from swarmd.state.blobs.naming import hash_of
from swarmd.state.blobs.shelf import Shelf
from swarmd.state.blobs.store import BlobFolder, Upload

__all__ = ["BlobRef", "Blobs", "open_blobs"]

_log = get_logger("blobs")
_INLINE_HASH_BYTES: Final = MIB
_HANDLERS_MAX: Final = 64
_DISK_THREADS: Final = 8
# How long failed placements are tried elsewhere, and missing blobs asked for again.
_RETRY_S: Final = 3.0
_PAUSE_S: Final = 0.2
# The last piece is answered after an fsync of the whole blob.
_LAST_PIECE_FACTOR: Final = 4
_SWEEP_S: Final = 5.0

Nodes = Callable[[], Sequence[NodeId]]


class Blobs:
    """Made by `open_blobs`."""

    def __init__(
        self,
        link: Link,
        folder: BlobFolder,
        bulk: Bulk,
        mending: Mending,
        config: BlobsConfig,
        clock: Clock,
        *,
        voters: Nodes,
        members: Nodes,
        alive: Nodes,
        referenced: Referenced,
    ) -> None:
        self.custody = Custody(link.node_id, self, voters=voters, referenced=referenced)
        self._link = link
        self._folder = folder
        self.bulk = bulk
        self._mending = mending
        self._config = config
        self._clock = clock
        self._voters = voters
        self._members = members
        self._alive = alive
        self._uploads: dict[tuple[NodeId, bytes], Upload] = {}
        self._fetching: dict[bytes, trio.Event] = {}
        self._sending = trio.CapacityLimiter(config.transfers_max)
        self._receiving = trio.CapacityLimiter(config.transfers_max)
        self._disk = bulk.disk

    async def put(self, data: bytes) -> BlobRef:
        """Make `data` durable here and on enough nodes, so that a record may name it.

        Raises:
            TooLarge: more than 64 MiB.
            InsufficientCopies: too few nodes took it; some may have, which does no harm.
            Busy, DiskFault: this node's own disk has no room or failed.

        Cancellation: some nodes may hold the blob; nothing names it, so it will be deleted.
        """
        if len(data) > BLOB_BYTES_MAX:
            raise TooLarge(f"a blob of {len(data)} bytes; at most {BLOB_BYTES_MAX} fit")
        if len(data) > _INLINE_HASH_BYTES:
            blob_hash = await trio.to_thread.run_sync(hash_of, data, limiter=self._disk)
        else:
            blob_hash = hash_of(data)
        if not self._folder.touch(blob_hash, self._clock.now()):
            await self._store(blob_hash, data)
        await self._place(blob_hash, data)
        return BlobRef(blob_hash, len(data))

    async def get(self, ref: BlobRef) -> bytes:
        """The blob's bytes, from here or from whichever node has it; then it is kept here.

        Raises:
            NotFound: every member answered, and none has it.
            Unavailable: those who might have it do not answer now.
        """
        held = self._folder.size_of(ref.hash)
        if held is not None and held != ref.size:  # It may be one that fits no memory.
            raise MalformedMessage(f"{ref} has {held} bytes")
        while True:
            data = await self._read(ref.hash)
            if data is not None:
                if len(data) != ref.size:
                    raise MalformedMessage(f"{ref} has {len(data)} bytes")
                return data
            fetching = self._fetching.get(ref.hash)
            if fetching is None:
                return await self._fetch(ref.hash, ref.size)
            await fetching.wait()

    def has(self, blob_hash: bytes) -> bool:
        """True if the blob is on this node's disk."""
        return self._folder.size_of(blob_hash) is not None

    async def ensure(self, blob_hash: bytes) -> None:
        """Return once the blob is on this node's disk. Raises as `get` does."""
        while not self._folder.touch(blob_hash, self._clock.now()):
            fetching = self._fetching.get(blob_hash)
            if fetching is None:
                await self._fetch(blob_hash, None)
                return
            await fetching.wait()
        await trio.lowlevel.checkpoint()

    async def keep(self, hashes: Set[bytes]) -> int:
        """Delete blobs not in `hashes` that were not touched for the grace period: how many.

        Those of users stay until their room is needed.
        """
        before = self._clock.now() - self._config.grace_s
        count = 0
        for blob_hash in self._folder.unused(hashes, before=before):
            await trio.lowlevel.checkpoint()
            # An offer may have renewed it while this loop gave way.
            users = self.bulk.holding.shelf.blob(blob_hash) is not None
            if not users and self._folder.untouched_since(blob_hash, before):
                self.bulk.holding.drop(blob_hash)
                count += 1
        return count

    async def repair(self, hashes: Set[bytes]) -> int:
        """Fetch those blobs that are missing here: how many still are.

        For a voter, after the voters changed; see `Custody`.
        """
        missing = 0
        for blob_hash in sorted(hashes):
            try:
                await self.ensure(blob_hash)
            except SwarmError as error:
                missing += 1
                _log.warning("blob missing", blob=short(blob_hash), code=error.code)
        return missing

    async def give(self, peer: NodeId, blob_hash: bytes) -> None:
        """Have `peer` store a blob of this node, if it is whole. Raises SwarmError."""
        data = await self._read(blob_hash)
        if data is not None:
            async with self._sending:
                await self._push(peer, blob_hash, data)

    async def hand_over(self, timeout_s: float) -> None:
        """Return once nothing is lost if this node leaves. Raises WouldLoseData."""
        await self.custody.hand_over(timeout_s)
        await self._mending.hand_over(timeout_s)

    @property
    def count(self) -> int:
        return self._folder.count

    @property
    def total_bytes(self) -> int:
        return self._folder.total_bytes

    # ---- this node's disk -------------------------------------------------------------

    async def _store(self, blob_hash: bytes, data: bytes) -> None:
        await self.bulk.holding.make_room(len(data))
        self._folder.reserve(len(data))
        try:
            await trio.to_thread.run_sync(
                self._folder.write_file, blob_hash, data, limiter=self._disk
            )
            self._folder.added(blob_hash, len(data), self._clock.now())
        finally:
            self._folder.unreserve(len(data))

    async def _read(self, blob_hash: bytes) -> bytes | None:
        if not self._folder.touch(blob_hash, self._clock.now()):
            await trio.lowlevel.checkpoint()
            return None
        data = await trio.to_thread.run_sync(self._folder.read_file, blob_hash, limiter=self._disk)
        if data is None:
            await self.bulk.holding.set_aside(blob_hash)
        return data

    # ---- placing ----------------------------------------------------------------------

    def _wanted(self) -> tuple[int, list[NodeId]]:
        """How many other nodes must take a blob, and which may, the likeliest first."""
        me = self._link.node_id
        voters = list(self._voters())
        # A voter that was stopped says goodbye like one that leaves, and keeps its seat.
        others = sorted({*self._members(), *voters}.difference({me}))
        if not others:
            return 0, []
        if len(others) == 1:
            return 1, others
        if not voters:
            raise InsufficientCopies("this node does not know the voters yet; try again")
        alive = set(self._alive())
        candidates = sorted((v for v in voters if v != me), key=lambda v: (v not in alive, v))
        return len(voters) // 2 + 1 - (me in voters), candidates

    async def _place(self, blob_hash: bytes, data: bytes) -> None:
        """Return once enough nodes confirmed the blob."""
        confirmed: set[NodeId] = set()
        give_up_at = trio.current_time() + _RETRY_S
        with trio.move_on_after(self._config.put_timeout_s):
            while True:
                # Asked anew each round: the voters change, and so may the number.
                needed, candidates = self._wanted()
                missing = needed - len(confirmed.intersection(candidates))
                if missing <= 0:
                    return
                rest = [node for node in candidates if node not in confirmed]
                await self._push_round(rest, missing, blob_hash, data, confirmed)
                if needed <= len(confirmed.intersection(candidates)):
                    continue
                if trio.current_time() >= give_up_at:
                    break
                await trio.sleep(_PAUSE_S)
        needed, _ = self._wanted()
        raise InsufficientCopies(
            f"{len(confirmed)} of {needed} other nodes took the data; are enough of them up?"
        )

    async def _push_round(
        self,
        candidates: list[NodeId],
        missing: int,
        blob_hash: bytes,
        data: bytes,
        confirmed: set[NodeId],
    ) -> None:
        """Offer to `missing` candidates at once, to the next whenever one fails."""
        queue = iter(candidates)

        async def push_until_one_takes_it() -> None:
            for peer in queue:
                try:
                    async with self._sending:
                        await self._push(peer, blob_hash, data)
                    confirmed.add(peer)
                    return
                except SwarmError as error:
                    _log.debug("blob refused", peer=short(peer), code=error.code)

        async with trio.open_nursery() as nursery:
            for _ in range(missing):
                nursery.start_soon(push_until_one_takes_it)

    async def _push(self, peer: NodeId, blob_hash: bytes, data: bytes) -> None:
        """Have one node store the blob. Raises SwarmError if it did not confirm."""
        size = len(data)
        if size > BLOB_CHUNK_BYTES:
            answer = await self.ask(peer, Offer(blob_hash, size))
            if isinstance(answer, Have):
                return
        offset = 0
        while True:
            piece = data[offset : offset + BLOB_CHUNK_BYTES]
            last = offset + len(piece) == size
            answer = await self.ask(peer, Piece(blob_hash, size, offset, piece), last=last)
            offset += len(piece)
            if isinstance(answer, Have):
                if answer.hash != blob_hash:
                    raise RemoteError("a node confirmed another blob")
                return
            if last or not isinstance(answer, Got) or answer.received_bytes != offset:
                raise RemoteError("a node lost its place in an upload")

    async def ask(self, peer: NodeId, message: Any, *, last: bool = False) -> Any:
        """One question to a peer and its answer. Raises SwarmError."""
        timeout_s = self._config.chunk_timeout_s * (_LAST_PIECE_FACTOR if last else 1)
        return await self._link.request(BLOB, peer, message, timeout_s=timeout_s, lane=Lane.BULK)

    # ---- fetching ---------------------------------------------------------------------

    async def _fetch(self, blob_hash: bytes, size: int | None) -> bytes:
        """One fetch per blob at a time; others wait for it and look again."""
        done = self._fetching[blob_hash] = trio.Event()
        try:
            async with self._receiving:
                data = await self._fetch_from_any(blob_hash, size)
            try:
                await self._store(blob_hash, data)
            except (Busy, DiskFault) as error:
                _log.warning("blob not kept", blob=short(blob_hash), code=error.code)
                if size is None:
                    raise
            return data
        finally:
            del self._fetching[blob_hash]
            done.set()

    async def _fetch_from_any(self, blob_hash: bytes, size: int | None) -> bytes:
        give_up_at = trio.current_time() + _RETRY_S
        while True:
            unsure = False
            for peer in self._holders(blob_hash):
                try:
                    return await self._fetch_from(peer, blob_hash, size)
                except NotFound:
                    continue
                except SwarmError as error:
                    _log.debug("blob not fetched", peer=short(peer), code=error.code)
                    unsure = True
            if not unsure:
                raise NotFound(f"no member has blob {short(blob_hash)}")
            if trio.current_time() >= give_up_at:
                raise Unavailable(f"no reachable member has blob {short(blob_hash)}")
            await trio.sleep(_PAUSE_S)

    def _holders(self, blob_hash: bytes) -> list[NodeId]:
        """Whom to ask, in order: voters first, the living first, spread by the blob's hash."""
        me = self._link.node_id
        voters, alive = set(self._voters()), set(self._alive())
        everyone = {node for node in (*self._members(), *voters) if node != me}
        return sorted(
            everyone,
            key=lambda node: (
                node not in alive,
                node not in voters,
                bytes(a ^ b for a, b in zip(node, blob_hash, strict=True)),
            ),
        )

    async def _fetch_from(self, peer: NodeId, blob_hash: bytes, size: int | None) -> bytes:
        pieces: list[bytes] = []
        offset = 0
        while True:
            answer = await self.ask(peer, Fetch(blob_hash, offset))
            if not isinstance(answer, Piece) or answer.offset != offset:
                raise RemoteError("a node answered another question")
            size = answer.size if size is None else size
            pieces.append(answer.data)
            offset += len(answer.data)
            if offset >= size or answer.size != size or not answer.data:
                break
        data = b"".join(pieces)
        found = await trio.to_thread.run_sync(hash_of, data, limiter=self._disk)
        if found != blob_hash:
            raise RemoteError("a node sent something else than its hash says")
        return data

    # ---- answering --------------------------------------------------------------------

    async def _serve(self, inbox: trio.MemoryReceiveChannel[Inbound]) -> None:
        handlers = trio.Semaphore(_HANDLERS_MAX)

        async def handle(inbound: Inbound) -> None:
            try:
                await inbound.answer(await self._answer(inbound.peer, inbound.message))
            except SwarmError as error:
                await inbound.fail(error)
            finally:
                handlers.release()

        async with inbox, trio.open_nursery() as nursery:
            async for inbound in inbox:
                await handlers.acquire()
                nursery.start_soon(handle, inbound)

    async def _answer(self, peer: NodeId, message: Any) -> Any:
        if isinstance(message, Fetch):
            return await self._answer_fetch(message)
        if isinstance(message, Offer):
            held = self._folder.touch(message.hash, self._clock.now())
            return Have(message.hash) if held else Want(message.hash)
        if isinstance(message, Piece):
            return await self._take(peer, message)
        if isinstance(message, MissingAsk):
            return await self.custody.missing(message.after)
        raise RemoteError(f"{type(message).__name__} is not a question")

    async def _answer_fetch(self, message: Fetch) -> Piece:
        size = self._folder.size_of(message.hash)
        if size is None:
            raise NotFound(f"blob {short(message.hash)} is not here")
        data = await trio.to_thread.run_sync(
            self._folder.read_part_file,
            message.hash,
            message.offset,
            BLOB_CHUNK_BYTES,
            limiter=self._disk,
        )
        if data is None or (not data and message.offset < size):
            raise NotFound(f"blob {short(message.hash)} is not here any more")
        return Piece(message.hash, size, message.offset, data)

    async def _take(self, peer: NodeId, piece: Piece) -> Have | Got:
        """Add a piece to an upload; the last one makes it a blob."""
        key = (peer, piece.hash)
        if self._folder.touch(piece.hash, self._clock.now()):
            begun = self._uploads.get(key)
            if begun is None or not begun.busy:  # Else a thread writes to it, and ends it.
                self._forget(key)
            return Have(piece.hash)
        if piece.offset == 0:
            await self.bulk.holding.make_room(piece.size)
            self._begin(key, piece)
        upload = self._uploads.get(key)
        if upload is None or upload.size != piece.size:
            raise RemoteError("a piece of an upload that is not open")
        if upload.busy:
            raise RemoteError("a piece before the answer to the last one")
        upload.busy = True
        upload.touched_at = self._clock.now()
        try:
            await trio.to_thread.run_sync(
                upload.append_file, piece.offset, piece.data, limiter=self._disk
            )
            if upload.received_bytes < upload.size:
                return Got(piece.hash, upload.received_bytes)
            path = self._folder.path(piece.hash)
            await trio.to_thread.run_sync(
                upload.finish_file, path, self._folder.place_file, limiter=self._disk
            )
        except SwarmError:
            self._forget(key)
            raise
        finally:
            upload.busy = False
        self._folder.added(piece.hash, piece.size, self._clock.now())
        self._forget(key)
        return Have(piece.hash)

    def _begin(self, key: tuple[NodeId, bytes], piece: Piece) -> None:
        """Open an upload in place of one that its sender gave up."""
        before = self._uploads.get(key)
        if before is not None and before.busy:
            raise RemoteError("an upload begun twice at once")
        self._forget(key)
        if len(self._uploads) >= self._config.uploads_max:
            raise Busy(f"{len(self._uploads)} uploads are open here already")
        self._folder.reserve(piece.size)
        try:
            self._uploads[key] = self._folder.begin_upload(
                piece.hash, piece.size, self._clock.now()
            )
        except DiskFault:
            self._folder.unreserve(piece.size)
            raise

    def _forget(self, key: tuple[NodeId, bytes]) -> None:
        upload = self._uploads.pop(key, None)
        if upload is not None:
            self._folder.unreserve(upload.size)
            upload.close()

    def _forget_all(self) -> None:
        for key in list(self._uploads):
            self._forget(key)

    async def _sweep(self) -> None:
        """Drop uploads that their senders left."""
        while True:
            await pause(_SWEEP_S)
            before = self._clock.now() - self._config.upload_idle_s
            for key, upload in list(self._uploads.items()):
                if upload.touched_at < before and not upload.busy:
                    self._forget(key)


@asynccontextmanager
async def open_blobs(
    link: Link,
    folder: Path,
    config: BlobsConfig,
    clock: Clock,
    *,
    voters: Nodes,
    members: Nodes,
    alive: Nodes,
    referenced: Referenced,
    sealer: Sealer | None = None,
) -> AsyncIterator[Blobs]:
    """Keep and serve blobs for as long as the block runs.

    Args:
        voters: the voters of the current epoch.
        members: every member that has not left, dead ones and this node included.
        alive: the members that answer.
        referenced: every blob that a record names, read after whatever was acknowledged
            before; None where no copy of the records is. It raises SwarmError if it cannot tell.
        sealer: of the data folder, if it is sealed.
    """
    store = BlobFolder(folder, bytes_max=config.bytes_max, sealer=sealer)
    shelf = Shelf(folder, sealer)
    await trio.to_thread.run_sync(store.open_file, clock.now())
    await trio.to_thread.run_sync(shelf.open_file, lambda blob: store.size_of(blob) is not None)
    # At the very end no thread writes to uploads any more.
    async with AsyncExitStack() as last, trio.open_nursery() as nursery:
        disk = trio.CapacityLimiter(_DISK_THREADS)
        bulk = Bulk(
            link,
            store,
            shelf,
            config,
            clock,
            disk,
            members=members,
            alive=alive,
            referenced=referenced,
            sealer=sealer,
            nursery=nursery,
        )
        mending = Mending(bulk, alive, config.scrub_bytes_per_s)
        blobs = Blobs(
            link,
            store,
            bulk,
            mending,
            config,
            clock,
            voters=voters,
            members=members,
            alive=alive,
            referenced=referenced,
        )
        last.callback(blobs._forget_all)
        try:
            nursery.start_soon(blobs._serve, link.open_inbox(BLOB))
            nursery.start_soon(bulk.serve, link.open_inbox(BULK))
            nursery.start_soon(blobs._sweep)
            nursery.start_soon(blobs.custody.run)
            nursery.start_soon(mending.run)
            nursery.start_soon(mending.scrub)
            nursery.start_soon(mending.sweep)
            yield blobs
        finally:
            nursery.cancel_scope.cancel()
