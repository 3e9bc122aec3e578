"""What other nodes ask of this one about users' blobs, and what they are answered."""

from __future__ import annotations

from typing import Final

import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import (
    Busy,
    CorruptFile,
    DiskFault,
    NotFound,
    RemoteError,
    SwarmError,
)
from swarmd.base.ids import short
from swarmd.mesh.link import Inbound
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import BLOB_BYTES_SENT
from swarmd.state.blobs.chunkfile import ChunkReader
from swarmd.state.blobs.holding import Holding, following
from swarmd.state.blobs.messages import (
    LISTED_MAX,
    MANIFEST_PART_HASHES,
    Doubt,
    Held,
    HeldAsk,
    ListAsk,
    Listing,
    ManifestAsk,
    ManifestPart,
    Noted,
    PiecesAsk,
    PiecesHere,
    PinnedBlob,
    Take,
    Taken,
    Taking,
    Told,
)
from swarmd.state.blobs.naming import HASH_BYTES
from swarmd.state.blobs.pieces import Pieces, send_file

_log = get_logger("blobs")
_HANDLERS_MAX: Final = 128
_TAKES_MAX: Final = 8
# Nodes that pieces are sent to at once, each by a thread with a chunk in memory.
_SENDING_MAX: Final = 32
_TAKING_S: Final = 0.5


class Answers:
    """Made by `bulk.Bulk`."""

    def __init__(self, holding: Holding, clock: Clock) -> None:
        self._holding = holding
        self._clock = clock
        self._takes = 0
        self._sending = 0

    async def serve(self, inbox: trio.MemoryReceiveChannel[Inbound]) -> None:
        """Answer what nodes ask, until cancelled."""
        handlers = trio.Semaphore(_HANDLERS_MAX)

        async def handle(inbound: Inbound) -> None:
            try:
                await self._answer(inbound)
            except SwarmError as error:
                await inbound.fail(error)
            finally:
                handlers.release()

        async with inbox, trio.open_nursery() as nursery:
            async for inbound in inbox:
                await handlers.acquire()
                nursery.start_soon(handle, inbound)

    async def _answer(self, inbound: Inbound) -> None:
        message = inbound.message
        if isinstance(message, PiecesAsk):
            await self._answer_pieces(inbound, message)
        elif isinstance(message, HeldAsk):
            held = [self._holding.told(one) for one in dict.fromkeys(message.hashes)]
            await inbound.answer(Held(tuple(one for one in held if one is not None)))
        elif isinstance(message, ManifestAsk):
            await inbound.answer(await self._answer_manifest(message))
        elif isinstance(message, Take):
            await self._answer_take(inbound, message.blob)
        elif isinstance(message, Told):
            await inbound.answer(Noted(await self._holding.note(message.blob)))
        elif isinstance(message, ListAsk):
            await inbound.answer(self._answer_list(message.after))
        elif isinstance(message, Doubt):
            await self._look_again(message.hash)
        else:
            raise RemoteError(f"{type(message).__name__} is not a question")

    def _answer_list(self, after: bytes) -> Listing:
        hashes = [one for one in self._holding.shelf.hashes if one > after]
        blobs = [self._holding.told(one) for one in hashes[:LISTED_MAX]]
        # A page may be empty only if it is the last: what is not here is looked for further on.
        found = tuple(one for one in blobs if one is not None)
        if not found and len(hashes) > LISTED_MAX:
            return self._answer_list(hashes[LISTED_MAX - 1])
        return Listing(found, len(hashes) > LISTED_MAX)

    async def _answer_pieces(self, inbound: Inbound, ask: PiecesAsk) -> None:
        """Send pieces as they are asked for, from a thread; the kernel reads ahead of it."""
        size = self._holding.folder.size_of(ask.hash)
        if size is None:
            raise NotFound(f"blob {short(ask.hash)} is not here")
        if self._sending >= _SENDING_MAX:
            raise Busy("as many nodes are taking blobs from here as may")
        self._sending += 1
        try:
            await self._send_pieces(inbound, ask.hash, size)
        except (CorruptFile, DiskFault) as error:
            await self._look_again(ask.hash)
            raise NotFound(f"blob {short(ask.hash)} is not here any more") from error
        finally:
            self._sending -= 1

    async def _send_pieces(self, inbound: Inbound, blob_hash: bytes, size: int) -> None:
        path, holding = self._holding.folder.path(blob_hash), self._holding
        pieces = self._pieces(await holding.in_thread(ChunkReader, path, holding.sealer))
        try:
            async with inbound.pipe(PiecesHere(size)) as pipe:
                await pipe.run(send_file, pipe, pieces, BLOB_BYTES_SENT.inc)
        finally:
            pieces.close()

    def _pieces(self, reader: ChunkReader) -> Pieces:
        return Pieces(reader)

    async def _answer_manifest(self, message: ManifestAsk) -> ManifestPart:
        size = self._holding.folder.size_of(message.hash)
        if size is None:
            raise NotFound(f"blob {short(message.hash)} is not here")
        self._holding.folder.touch(message.hash, self._clock.now())
        manifest = await self._holding.manifest(message.hash, size)
        first = message.first * HASH_BYTES
        hashes = manifest.hashes[first : first + MANIFEST_PART_HASHES * HASH_BYTES]
        return ManifestPart(size, hashes)

    async def _answer_take(self, inbound: Inbound, blob: PinnedBlob) -> None:
        if self._takes >= _TAKES_MAX:
            raise Busy("as many blobs are being taken here as may")
        self._takes += 1
        try:
            while self._holding.folder.size_of(blob.hash) is None:
                transfer = await self._holding.begin(blob.hash, blob.size)
                if transfer is None:
                    continue
                with following(transfer):
                    while not transfer.ended.is_set() and inbound.wants_answer:
                        with trio.move_on_after(_TAKING_S):
                            await transfer.ended.wait()
                        await inbound.answer(Taking(transfer.done_bytes), more=True)
                if not inbound.wants_answer:
                    return
                if transfer.error is not None:
                    raise transfer.error
            self._holding.folder.touch(blob.hash, self._clock.now())
            await self._holding.note(blob)
            await inbound.answer(Taken(blob.hash))
        finally:
            self._takes -= 1

    async def _look_again(self, blob_hash: bytes) -> None:
        try:
            await self._holding.check(blob_hash)
        except SwarmError as error:
            _log.debug("a doubted blob", blob=short(blob_hash), why=error.message)
