"""One blob on its way to this node, from whoever has it. What to ask of whom: `machine.Fetching`.

Chunks come from several holders at once, each over a pipe that a worker thread at either end
carries (`pieces`). Each holder sends those of its run one after the other, in pieces, which are
written where they belong as they come. The next is asked for once one is written, so no more of a
holder than a chunk is ever on its way. What an earlier try left on the disk is read, verified and
not fetched again, and a chunk that was begun is gone on with: after a kill one chunk of each holder
comes twice at most.

Somebody may read the blob while it comes (`chunk`). When nobody follows any more it is cancelled,
and what has come stays for the next try.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import trio

from swarmd.base.errors import (
    Busy,
    DiskFault,
    NotFound,
    RemoteError,
    SwarmError,
    TimedOut,
    Unavailable,
    Unreachable,
)
from swarmd.base.ids import NodeId, short
from swarmd.base.limits import BLOB_PIECE_BYTES
from swarmd.base.sealed_file import Sealer
from swarmd.mesh.link import Pipe
from swarmd.observe.log import get_logger
from swarmd.state.blobs.chunkfile import ChunkWriter
from swarmd.state.blobs.machine import Fetching, Run
from swarmd.state.blobs.manifest import Manifest
from swarmd.state.blobs.messages import Doubt, ManifestAsk, ManifestPart, PiecesAsk, PiecesHere
from swarmd.state.blobs.naming import HASH_BYTES, chunk_size, chunks_in
from swarmd.state.blobs.pieces import Taking
from swarmd.state.blobs.turns import Turn, Turns

_log = get_logger("blobs")
# For how long nobody may have the blob before the transfer is given up.
RETRY_S: Final = 3.0
PAUSE_S: Final = 0.2
# What has come is synced this often.
SYNC_S: Final = 0.1
# Who else has come to have the blob is looked up this often.
_LOOK_S: Final = 5.0
# A holder may have to read the whole blob to tell its manifest.
_MANIFEST_TIMEOUT_S: Final = 120.0


class Asking(Protocol):
    """What a transfer needs of the node."""

    @property
    def disk(self) -> trio.CapacityLimiter: ...

    @property
    def turns(self) -> Turns:
        """How many pipes may be open."""
        ...

    async def ask(self, peer: NodeId, message: Any, timeout_s: float | None = None) -> Any: ...

    def pipe(self, peer: NodeId, message: Any) -> AbstractAsyncContextManager[Pipe]: ...

    def tell(self, peer: NodeId, message: Any) -> None: ...

    async def holders(self, blob_hash: bytes) -> tuple[list[NodeId], bool]:
        """Who says that it has the blob; and whether everybody who might was heard."""
        ...


class Transfer:
    """See the module.

    Args:
        path: where the blob is written while it comes.
        place: puts the finished file in its place, given the manifest; it may raise SwarmError.
    """

    def __init__(
        self,
        blob_hash: bytes,
        size: int,
        path: Path,
        sealer: Sealer | None,
        node: Asking,
        place: Callable[[Path, Manifest], Awaitable[None]],
    ) -> None:
        self.hash = blob_hash
        self.size = size
        self.followers = 0
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.error: SwarmError | None = None
        self._path = path
        self._sealer = sealer
        self._node = node
        self._place = place
        self._fetching = Fetching(chunks_in(size))
        self._manifest = Manifest(blob_hash, size, b"")
        self._writer: ChunkWriter | None = None
        self._changed = trio.Event()
        # Who waits for a chunk is told of each; others only when a holder's part ends.
        self._readers = 0
        # Worker threads ask `_fetching`, too.
        self._lock = threading.Lock()
        self._token = trio.lowlevel.current_trio_token()

    @property
    def done_bytes(self) -> int:
        """How much of the blob is here and verified."""
        return min(self.size, self._fetching.present_count * chunk_size(self.size, 0))

    async def run(self) -> None:
        """Fetch the blob and put it in place; how it ended is in `error`."""
        try:
            with self.scope:
                await self._run()
        except SwarmError as error:
            self.error = error
        finally:
            if self.scope.cancelled_caught:
                self.error = Unavailable(f"nobody waits for blob {short(self.hash)} any more")
            if self._writer is not None:
                self._writer.close()
            self.ended.set()
            self._wake()

    async def past(self, index: int) -> bool:
        """Wait until chunk `index` can be read; False: the transfer has ended before."""
        self._readers += 1
        try:
            while not self._fetching.has(index) and not self.ended.is_set():
                await self._changed.wait()
        finally:
            self._readers -= 1
        return not self.ended.is_set()

    async def chunk(self, index: int) -> bytes | None:
        """A chunk that is here; None: the transfer has ended, look where the blob is now."""
        if not await self.past(index) or self._writer is None:
            return None
        writer, size = self._writer, chunk_size(self.size, index)
        data = await trio.to_thread.run_sync(writer.read, index, size, limiter=self._node.disk)
        return data if self._manifest.fits(index, data) else None

    # ---- the course of it ----------------------------------------------------------------

    async def _run(self) -> None:
        self._manifest = await self._get_manifest()
        await self._open()
        await self._fetch()
        writer, self._writer = self._writer, None
        assert writer is not None
        try:
            await self._in_thread(writer.finish, self.size)
        finally:
            writer.close()
        await self._place(self._path, self._manifest)

    async def _get_manifest(self) -> Manifest:
        give_up_at = trio.current_time() + RETRY_S
        while True:
            found, sure = await self._node.holders(self.hash)
            for holder in found:
                try:
                    return await self._manifest_of(holder)
                except SwarmError as error:
                    _log.debug("no manifest", peer=short(holder), why=error.message)
                    sure = False
            if trio.current_time() >= give_up_at or (sure and not found):
                raise _nobody(self.hash, sure and not found)
            await trio.sleep(PAUSE_S)

    async def _manifest_of(self, holder: NodeId) -> Manifest:
        count = chunks_in(self.size)
        hashes = self.hash if count == 1 else b""
        while len(hashes) < count * HASH_BYTES:
            ask = ManifestAsk(self.hash, len(hashes) // HASH_BYTES)
            answer = await self._node.ask(holder, ask, _MANIFEST_TIMEOUT_S)
            if not isinstance(answer, ManifestPart) or answer.size != self.size:
                raise RemoteError("a node told another blob's manifest")
            if not answer.hashes or len(answer.hashes) % HASH_BYTES:
                raise RemoteError("a node told half a manifest")
            hashes += answer.hashes
        manifest = Manifest(self.hash, self.size, hashes)
        if not manifest.is_true:
            raise RemoteError("a node told a false manifest")
        return manifest

    async def _open(self) -> None:
        """Begin the file, or go on with it: verify what is there."""
        self._writer = await self._in_thread(
            lambda: ChunkWriter(self._path, self.size, self._sealer, resume=True)
        )
        self._fetching = await self._in_thread(self._scan_file)
        self._wake()

    def _scan_file(self) -> Fetching:
        """What is there does not come again."""
        writer = self._writer
        assert writer is not None
        present: list[int] = []
        begun: dict[int, int] = {}
        try:
            end = chunks_in(self._path.stat().st_size)
        except OSError as error:
            raise DiskFault(f"cannot read {self._path}: {error.strerror}") from error
        for index in range(min(end, self._manifest.count)):
            size = chunk_size(self.size, index)
            if self._manifest.fits(index, writer.read(index, size)):
                present.append(index)
            elif BLOB_PIECE_BYTES <= (written := writer.begun(index, size)) < size:
                begun[index] = written // BLOB_PIECE_BYTES
        return Fetching(self._manifest.count, present, begun)

    async def _fetch(self) -> None:
        failure: list[SwarmError] = []

        async def guarded(call: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
            try:
                await call()
            except SwarmError as error:
                failure.append(error)
                scope.cancel()

        async with trio.open_nursery() as nursery:
            scope = nursery.cancel_scope

            def ask(holder: NodeId) -> None:
                nursery.start_soon(guarded, partial(self._ask_one, holder), scope)

            nursery.start_soon(guarded, self._sync_along, scope)
            await guarded(partial(self._find, ask), scope)
            scope.cancel()
        if failure:
            raise failure[0]

    async def _sync_along(self) -> None:
        """Have the disk write what has come while more comes. Raises DiskFault.

        One sync at the end would be waited for, and would hold up every other one of the node, the
        log's too, for as long as the disk takes for a whole blob. On a disk that is slower than
        the network each takes long: so it has a thread of its own.
        """
        assert self._writer is not None
        thread, synced = trio.CapacityLimiter(1), self._fetching.present_count
        while True:
            await trio.sleep(SYNC_S)
            if self._fetching.present_count != synced:
                synced = self._fetching.present_count
                await trio.to_thread.run_sync(self._writer.sync, limiter=thread)

    async def _find(self, ask: Callable[[NodeId], None]) -> None:
        """Have all who hold the blob send of it; give up when nobody does for a while."""
        fetching, give_up_at = self._fetching, trio.current_time() + RETRY_S
        while not fetching.is_complete:
            found, sure = await self._node.holders(self.hash)
            for holder in found:
                with self._lock:
                    is_new = fetching.offer(holder)
                if is_new:
                    ask(holder)
            if fetching.holders:
                give_up_at = trio.current_time() + RETRY_S
                with trio.move_on_after(_LOOK_S):
                    await self._alone()
                continue
            if trio.current_time() >= give_up_at or (sure and not found):
                raise _nobody(self.hash, sure and not found)
            await trio.sleep(PAUSE_S)

    async def _alone(self) -> None:
        """Return when the last holder is lost, or all is here."""
        while self._fetching.holders and not self._fetching.is_complete:
            await self._changed.wait()

    async def _ask_one(self, holder: NodeId) -> None:
        """One run after the other of one holder, over a pipe. Raises DiskFault."""
        while not self._fetching.is_complete and self._fetching.is_asked(holder):
            async with self._node.turns.turn(holder) as turn:
                run = self._run_of(holder)
                error = None if run is None else await self._ask_for(holder, run, turn)
            if error is not None:
                if isinstance(error, Busy):
                    await trio.sleep(PAUSE_S)
                # Nothing may be awaited behind it: the holder may be asked anew, by another task.
                self._lose(holder, error)
                self._wake()
                return
            if run is None:
                await self._changed.wait()
            else:
                self._wake()

    async def _ask_for(self, holder: NodeId, run: Run, turn: Turn) -> SwarmError | None:
        """What kept it from going on, if anything did. Raises DiskFault."""
        async with AsyncExitStack() as stack:
            try:
                pipe = await stack.enter_async_context(
                    self._node.pipe(holder, PiecesAsk(self.hash))
                )
                if pipe.answer != PiecesHere(self.size):
                    return RemoteError("a node has another blob of that name")
            except SwarmError as error:
                return error
            try:
                await pipe.run(self._take_runs, holder, run, pipe, turn)
            except (Unreachable, TimedOut) as error:
                return error
        return None

    def _run_of(self, holder: NodeId) -> Run | None:
        with self._lock:
            return self._fetching.under_way(holder) or self._fetching.take(holder)

    # ---- in the worker thread of a pipe ----------------------------------------------------

    def _take_runs(self, holder: NodeId, first: Run, pipe: Pipe, turn: Turn) -> None:
        """Take chunks until none is left for this holder, one is wrong, or others wait."""
        assert self._writer is not None
        taking = Taking(pipe, self._writer, self._manifest)
        run: Run | None = first
        while run is not None:
            run = self._judge(holder, run, taking.take_file(run))
            if self._readers:
                self._token.run_sync_soon(self._wake)
            if turn.is_over():
                return

    def _judge(self, holder: NodeId, run: Run, fits: bool) -> Run | None:
        """A chunk has come. What its holder goes on with."""
        with self._lock:
            if fits and self._fetching.got(holder):
                return run
            if fits:
                return self._fetching.take(holder)
            if run.begun:
                self._fetching.again(holder)
                return self._fetching.take(holder)
            self._fetching.lose(holder, for_good=True)
        _log.warning("a chunk was wrong", blob=short(self.hash), holder=short(holder))
        self._token.run_sync_soon(self._node.tell, holder, Doubt(self.hash))
        return None

    # ---- on the loop again -----------------------------------------------------------------

    def _lose(self, holder: NodeId, error: SwarmError) -> None:
        _log.debug("chunks not fetched", peer=short(holder), why=error.message)
        may_return = isinstance(error, Busy | TimedOut | Unreachable)
        with self._lock:
            self._fetching.lose(holder, for_good=not may_return, is_busy=isinstance(error, Busy))

    async def _in_thread(self, call: Callable[..., Any], *args: Any) -> Any:
        return await trio.to_thread.run_sync(call, *args, limiter=self._node.disk)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _nobody(blob_hash: bytes, certain: bool) -> SwarmError:
    if certain:
        return NotFound(f"no member has blob {short(blob_hash)}")
    return Unavailable(f"no member that answers can send blob {short(blob_hash)}")
