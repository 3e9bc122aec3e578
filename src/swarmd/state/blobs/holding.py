"""What this node's disk holds of users' blobs: written as it comes, read as it is verified.

Nothing of a blob is in memory but some chunks. A blob that is read while it still comes from others
is served from what is here already. What is found damaged is moved aside, where all its good chunks
count when it is fetched again. What nobody pins or refers to goes when room is needed, least
recently used first.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import (
    BadRequest,
    Busy,
    CorruptFile,
    DiskFault,
    NotFound,
    SwarmError,
    TooLarge,
)
from swarmd.base.ids import short, to_text
from swarmd.base.limits import BLOB_CHUNK_BYTES, MIB, STREAMED_BYTES_MAX
from swarmd.base.sealed_file import Sealer
from swarmd.observe.log import get_logger
from swarmd.state.blobs.chunkfile import ChunkReader, ChunkWriter
from swarmd.state.blobs.config import BlobsConfig
from swarmd.state.blobs.custody import Referenced
from swarmd.state.blobs.intake import Check, Intake, read_good_file
from swarmd.state.blobs.manifest import Manifest
from swarmd.state.blobs.messages import PinnedBlob
from swarmd.state.blobs.naming import chunks_in
from swarmd.state.blobs.pins import copies_of, joined
from swarmd.state.blobs.placing import Kept, to_evict
from swarmd.state.blobs.shelf import Shelf
from swarmd.state.blobs.store import BlobFolder
from swarmd.state.blobs.transfer import Asking, Transfer

_log = get_logger("blobs")
# Chunks that one turn in a thread reads or writes.
_BATCH: Final = 4
# What comes in from a client of unknown length is given room in steps.
_ROOM_STEP_BYTES: Final = 16 * MIB


class Holding:
    """Made by `bulk.Bulk`, which asks other nodes for it."""

    def __init__(
        self,
        node: Asking,
        folder: BlobFolder,
        shelf: Shelf,
        config: BlobsConfig,
        clock: Clock,
        *,
        referenced: Referenced,
        sealer: Sealer | None,
        nursery: trio.Nursery,
    ) -> None:
        self.folder = folder
        self.shelf = shelf
        self.sealer = sealer
        # Set when what is pinned, or whole, has changed: copies may be missing.
        self.changed = trio.Event()
        self._node = node
        self._config = config
        self._clock = clock
        self._referenced = referenced
        self._nursery = nursery
        self._transfers: dict[bytes, Transfer] = {}
        self._pinning = trio.Lock()
        self._evicting = trio.Lock()

    # ---- coming in -----------------------------------------------------------------------

    async def receive(self, pieces: AsyncIterable[bytes], size: int | None) -> tuple[bytes, int]:
        """Write what comes, whole and durable, on this node: its hash and size.

        Args:
            pieces: of any size; they are taken only as fast as the disk takes them.
            size: how many bytes will come, if that is known.

        Raises:
            TooLarge, BlobsFull, DiskFault: nothing of it is kept.
            BadRequest: `size` is not what came.

        Cancellation: nothing of it is kept.
        """
        room = _Room(self, size)
        path = self.folder.next_upload()
        writer = await self.in_thread(ChunkWriter, path, size, self.sealer)
        try:
            return await self._receive(pieces, size, room, writer)
        finally:
            writer.close()
            path.unlink(missing_ok=True)
            room.give_back()

    async def _receive(
        self, pieces: AsyncIterable[bytes], size: int | None, room: _Room, writer: ChunkWriter
    ) -> tuple[bytes, int]:
        intake = Intake(writer)
        rest = bytearray()
        async for piece in pieces:
            rest += piece
            if intake.size + len(rest) > STREAMED_BYTES_MAX:
                raise TooLarge(f"a blob has at most {STREAMED_BYTES_MAX} bytes")
            if len(rest) >= _BATCH * BLOB_CHUNK_BYTES:
                full = len(rest) // BLOB_CHUNK_BYTES * BLOB_CHUNK_BYTES
                await room.take(intake.size + full)
                await self.in_thread(intake.add_file, bytes(rest[:full]))
                del rest[:full]
        await room.take(intake.size + len(rest))
        await self.in_thread(intake.add_file, bytes(rest))
        if size is not None and intake.size != size:
            raise BadRequest(f"{size} bytes were announced and {intake.size} came")
        manifest = intake.manifest()
        if not self.folder.touch(manifest.hash, self._clock.now()):
            await self.in_thread(writer.finish, manifest.size)
            await self._place(writer.path, manifest)
        if self.shelf.blob(manifest.hash) is None:
            await self.note(PinnedBlob(manifest.hash, manifest.size, ()))
        return manifest.hash, manifest.size

    async def _place(self, path: Path, manifest: Manifest) -> None:
        """A whole and synced file becomes a blob."""
        await self.in_thread(self.shelf.write_manifest_file, manifest)
        final = self.folder.path(manifest.hash)
        try:
            await self.in_thread(self.folder.place_file, path, final)
        except OSError as error:
            raise DiskFault(f"cannot write {final}: {error.strerror}") from error
        self.folder.added(manifest.hash, manifest.size, self._clock.now())

    async def ensure(self, blob_hash: bytes, size: int) -> None:
        """Return once the blob is whole on this disk. Raises as a transfer does."""
        while self.folder.size_of(blob_hash) is None:
            transfer = await self.begin(blob_hash, size)
            if transfer is None:
                continue
            with following(transfer):
                await transfer.ended.wait()
            if transfer.error is not None:
                raise transfer.error
        self.folder.touch(blob_hash, self._clock.now())

    async def begin(self, blob_hash: bytes, size: int) -> Transfer | None:
        """The transfer of a blob that is not here, one at a time; None: it is here by now.

        Follow it before anything else is awaited. Raises Busy, BlobsFull.
        """
        while True:
            transfer = self._transfers.get(blob_hash)
            if transfer is None:
                await self.make_room(size)
                if blob_hash not in self._transfers:
                    break
            elif not transfer.scope.cancel_called:
                return transfer
            else:
                await transfer.ended.wait()
        if self.folder.size_of(blob_hash) is not None:
            return None
        if len(self._transfers) >= self._config.transfers_max * 4:
            raise Busy("as many blobs are on their way here as may")
        self.folder.reserve(size)
        path = self.shelf.partial(blob_hash)
        transfer = Transfer(blob_hash, size, path, self.sealer, self._node, self._place)
        self._transfers[blob_hash] = transfer
        self._nursery.start_soon(self._run, transfer)
        return transfer

    async def _run(self, transfer: Transfer) -> None:
        try:
            await transfer.run()
        finally:
            self.folder.unreserve(transfer.size)
            if self._transfers.get(transfer.hash) is transfer:
                del self._transfers[transfer.hash]
        if transfer.error is not None:
            _log.info("blob not fetched", blob=short(transfer.hash), why=transfer.error.message)
        elif self.shelf.blob(transfer.hash) is None:
            try:
                await self.note(PinnedBlob(transfer.hash, transfer.size, ()))
            except SwarmError as error:
                _log.warning("pins not kept", blob=short(transfer.hash), why=error.message)

    # ---- what is here --------------------------------------------------------------------

    def told(self, blob_hash: bytes) -> PinnedBlob | None:
        size = self.folder.size_of(blob_hash)
        return None if size is None else PinnedBlob(blob_hash, size, self.shelf.pins(blob_hash))

    async def note(self, blob: PinnedBlob) -> bool:
        """Join pins to those that are kept here, durably; False: the blob is not here."""
        if self.folder.size_of(blob.hash) is None and self.shelf.blob(blob.hash) is None:
            return False
        async with self._pinning:
            known = self.shelf.blob(blob.hash)
            pins = joined(() if known is None else known.pins, blob.pins, self._clock.wall_ms())
            # What is here says how large it is, whatever others say.
            held = self.folder.size_of(blob.hash)
            size = blob.size if known is None else known.size
            new = PinnedBlob(blob.hash, size if held is None else held, pins)
            if new != known:
                await self.in_thread(self.shelf.write_pins_file, new)
                self.shelf.note(new)
                self.changed.set()
        return self.folder.size_of(blob.hash) is not None

    def is_pinned(self, blob_hash: bytes) -> bool:
        return copies_of(self.shelf.pins(blob_hash), self._clock.wall_ms()) > 0

    def copies(self, blob_hash: bytes) -> int:
        return copies_of(self.shelf.pins(blob_hash), self._clock.wall_ms())

    async def chunks(self, blob_hash: bytes, size: int) -> AsyncGenerator[bytes, None]:
        index, count = 0, chunks_in(size)
        while index < count:
            if self.folder.size_of(blob_hash) is None:
                transfer = await self.begin(blob_hash, size)
                if transfer is None:
                    continue
                with following(transfer):
                    while index < count and (data := await transfer.chunk(index)) is not None:
                        yield data
                        index += 1
                    await transfer.ended.wait()
                if transfer.error is not None and index < count:
                    raise transfer.error
                continue
            async with aclosing(self._local_chunks(blob_hash, index)) as chunks:
                async for data in chunks:
                    yield data
                    index += 1

    async def _local_chunks(self, blob_hash: bytes, index: int) -> AsyncGenerator[bytes, None]:
        """Chunks on this disk, until one is damaged: then the blob is moved aside."""
        self.folder.touch(blob_hash, self._clock.now())
        size = self.folder.size_of(blob_hash)
        assert size is not None
        try:
            manifest = await self.manifest(blob_hash, size)
            reader = await self.in_thread(ChunkReader, self.folder.path(blob_hash), self.sealer)
        except (NotFound, CorruptFile):
            return
        except DiskFault as error:
            if not _means_damage(error):
                raise
            await self.set_aside(blob_hash)
            return
        try:
            while index < manifest.count:
                batch = await self.in_thread(read_good_file, reader, manifest, index, _BATCH)
                for data in batch:
                    yield data
                if len(batch) < min(_BATCH, manifest.count - index):
                    await self.set_aside(blob_hash)
                    return
                index += len(batch)
        finally:
            reader.close()
        await self.in_thread(self.folder.used_file, blob_hash)

    async def manifest(self, blob_hash: bytes, size: int) -> Manifest:
        if size <= BLOB_CHUNK_BYTES:
            return Manifest(blob_hash, size, blob_hash if size else b"")
        found = await self.in_thread(self.shelf.read_manifest_file, blob_hash, size)
        return found if found is not None else await self.check(blob_hash)

    async def check(self, blob_hash: bytes, pause: Callable[[int], Any] | None = None) -> Manifest:
        """Look through a blob on this disk: its manifest, which is made if there is none.

        Args:
            pause: awaited after each few chunks, with how many bytes they were.

        Raises:
            NotFound: it is not here.
            CorruptFile: it is damaged, and has been moved aside.
        """
        size = self.folder.size_of(blob_hash)
        if size is None:
            raise NotFound(f"blob {short(blob_hash)} is not here")
        known = await self.in_thread(self.shelf.read_manifest_file, blob_hash, size)
        if size <= BLOB_CHUNK_BYTES:
            known = Manifest(blob_hash, size, blob_hash if size else b"")
        check = Check(blob_hash, size, known)
        try:
            reader = await self.in_thread(ChunkReader, self.folder.path(blob_hash), self.sealer)
            try:
                while not check.is_done:
                    count = await self.in_thread(check.go_on_file, reader, _BATCH)
                    if pause is not None:
                        await pause(count)
            finally:
                reader.close()
            manifest = check.result()
        except (CorruptFile, DiskFault) as error:
            if not _means_damage(error):
                raise
            await self.set_aside(blob_hash)
            raise CorruptFile(f"blob {short(blob_hash)} is damaged on this disk") from error
        if known is None:
            await self.in_thread(self.shelf.write_manifest_file, manifest)
        return manifest

    async def set_aside(self, blob_hash: bytes) -> None:
        """A blob here is damaged: it counts as missing, and is fetched again if it is a user's."""
        size = self.folder.size_of(blob_hash)
        if size is None:
            return
        self.folder.moved(blob_hash)
        aside = await self.in_thread(
            self.shelf.set_aside_file, blob_hash, self.folder.path(blob_hash)
        )
        _log.warning("blob damaged", blob=to_text(blob_hash), aside=str(aside))
        self.changed.set()

    # ---- room ----------------------------------------------------------------------------

    async def make_room(self, size: int) -> None:
        """Let go of what nobody needs until `size` bytes more fit, if that is possible."""
        async with self._evicting:
            need = self.folder.lacks(size)
            if not need:
                return
            try:
                referenced = await self._referenced()
            except SwarmError:
                referenced = None
            before = self._clock.now() - self._config.grace_s
            kept = [
                Kept(
                    blob_hash,
                    blob_size,
                    self.is_pinned(blob_hash) or blob_hash in self._transfers,
                    touched_at >= before,
                    self.shelf.blob(blob_hash) is not None,
                )
                for blob_hash, blob_size, touched_at in self.folder.by_use()
            ]
            for blob_hash in to_evict(kept, referenced, need) or ():
                _log.info("blob evicted", blob=short(blob_hash))
                self.drop(blob_hash)

    async def drop_old_partials(self) -> None:
        """Let go of what has come of blobs that nobody goes on with."""
        under_way = frozenset(self._transfers) | self.shelf.pinned_hashes
        try:
            await self.in_thread(self.shelf.drop_old_partials_file, under_way)
        except OSError as error:
            _log.warning("partial blobs not deleted", why=error.strerror)

    def drop(self, blob_hash: bytes) -> None:
        """Let go of a blob and what lies beside it."""
        self.folder.drop(blob_hash)
        self.shelf.forget(blob_hash)

    async def in_thread(self, call: Callable[..., Any], *args: Any) -> Any:
        return await trio.to_thread.run_sync(partial(call, *args), limiter=self._node.disk)


class _Room:
    """Room that is reserved for what comes in, in steps where its size is not known."""

    def __init__(self, holding: Holding, size: int | None) -> None:
        self._holding = holding
        self._size = size
        self._reserved = 0

    async def take(self, size: int) -> None:
        """Raises BlobsFull."""
        while self._reserved < size:
            step = self._size if self._size and not self._reserved else _ROOM_STEP_BYTES
            await self._holding.make_room(step)
            self._holding.folder.reserve(step)
            self._reserved += step

    def give_back(self) -> None:
        self._holding.folder.unreserve(self._reserved)


class following:
    """Somebody waits for a transfer; when the last one goes it is cancelled."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer

    def __enter__(self) -> None:
        self._transfer.followers += 1

    def __exit__(self, *_: object) -> None:
        self._transfer.followers -= 1
        if not self._transfer.followers:
            self._transfer.scope.cancel()


def _means_damage(error: SwarmError) -> bool:
    """Is the file bad or gone, or is only this process unable to read it now?"""
    cause = error.__cause__
    if isinstance(error, DiskFault) and isinstance(cause, OSError):
        return cause.errno in (errno.EIO, errno.ENOENT, errno.ENODATA)
    return isinstance(error, CorruptFile)
