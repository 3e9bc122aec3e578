"""What other nodes ask of this one about users' blobs, and what they are answered."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
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
    TimedOut,
)
from swarmd.base.ids import short
from swarmd.base.limits import BLOB_PIECE_BYTES
from swarmd.mesh.link import Inbound
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import BLOB_BYTES_SENT
from swarmd.state.blobs.chunkfile import ChunkReader
from swarmd.state.blobs.holding import Holding, following
from swarmd.state.blobs.messages import (
    CHUNK_PIECES,
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
    PinnedBlob,
    RunAsk,
    RunPiece,
    Take,
    Taken,
    Taking,
    Told,
)
from swarmd.state.blobs.naming import HASH_BYTES, chunk_size

_log = get_logger("blobs")
_HANDLERS_MAX: Final = 128
_TAKES_MAX: Final = 8
# Runs that are sent at once, each with as many chunks in memory; others wait.
_RUNS_MAX: Final = 32
_BATCH: Final = 4
# A taker that writes nothing for so long has hung.
_STALLED_S: Final = 30.0
_TAKING_S: Final = 0.5


class Answers:
    """Made by `bulk.Bulk`."""

    def __init__(self, holding: Holding, clock: Clock) -> None:
        self._holding = holding
        self._clock = clock
        self._takes = 0
        self._runs = trio.Semaphore(_RUNS_MAX)

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
        if isinstance(message, RunAsk):
            await self._answer_run(inbound, message)
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

    async def _answer_run(self, inbound: Inbound, ask: RunAsk) -> None:
        """Send pieces as they are asked for; the kernel reads ahead of this."""
        size = self._holding.folder.size_of(ask.hash)
        if size is None:
            raise NotFound(f"blob {short(ask.hash)} is not here")
        if (ask.first + ask.count - 1) * BLOB_PIECE_BYTES >= size:
            raise NotFound(f"blob {short(ask.hash)} has no such pieces")
        async with self._runs, aclosing(self._pieces(ask, size)) as pieces:
            left = ask.count
            async for data in pieces:
                left -= 1
                with trio.move_on_after(_STALLED_S) as scope:
                    await inbound.answer(RunPiece(data), more=left > 0)
                if scope.cancelled_caught:
                    raise TimedOut(f"nothing of what was sent was written for {_STALLED_S:g} s")
                if left and not inbound.wants_answer:
                    return
                BLOB_BYTES_SENT.inc(len(data))

    async def _pieces(self, ask: RunAsk, size: int) -> AsyncGenerator[bytes, None]:
        """As they lie on the disk: who takes them verifies them, and says so if one is wrong."""
        path, holding = self._holding.folder.path(ask.hash), self._holding
        chunk, piece = divmod(ask.first, CHUNK_PIECES)
        left = ask.count
        try:
            reader = await holding.in_thread(ChunkReader, path, holding.sealer)
            try:
                while left:
                    for data in await holding.in_thread(reader.read_some, chunk, _BATCH):
                        if len(data) != chunk_size(size, chunk):
                            raise CorruptFile(f"chunk {chunk} is cut short")
                        for start in range(piece * BLOB_PIECE_BYTES, len(data), BLOB_PIECE_BYTES):
                            yield data[start : start + BLOB_PIECE_BYTES]
                            left -= 1
                            if not left:
                                return
                        chunk, piece = chunk + 1, 0
            finally:
                reader.close()
        except (CorruptFile, DiskFault) as error:
            await self._look_again(ask.hash)
            raise NotFound(f"blob {short(ask.hash)} is not here any more") from error

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
