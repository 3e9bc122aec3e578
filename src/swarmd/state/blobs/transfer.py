"""One blob on its way to this node, from whoever has it. What to ask of whom: `machine.Fetching`.

Chunks come from several holders at once. Each is written where it belongs before its holder is
asked for the next one, then verified, and the hash of the whole goes through them in order, from
memory. What an earlier try left on the disk is read, verified and not fetched again: after a kill
one chunk of each holder comes twice at most. At the end the whole must be what its name says; else
whoever told its manifest is not asked again.

Somebody may read the blob while it comes (`chunk`), but for its end, which waits for that. When
nobody follows any more it is cancelled, and what has come stays for the next try.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import trio

from swarmd.base.errors import (
    DiskFault,
    NotFound,
    RemoteError,
    SwarmError,
    TimedOut,
    Unavailable,
    Unreachable,
)
from swarmd.base.ids import NodeId, short
from swarmd.base.sealed_file import Sealer
from swarmd.observe.log import get_logger
from swarmd.state.blobs.chunkfile import ChunkWriter
from swarmd.state.blobs.machine import Fetching
from swarmd.state.blobs.manifest import Manifest, chunk_size, chunks_in
from swarmd.state.blobs.messages import (
    HASH_BYTES,
    ChunkAsk,
    ChunkData,
    Doubt,
    ManifestAsk,
    ManifestPart,
)

_log = get_logger("blobs")
# For how long nobody may have the blob before the transfer is given up.
RETRY_S: Final = 3.0
PAUSE_S: Final = 0.2
# Who else has come to have the blob is looked up this often.
_LOOK_S: Final = 5.0
# A holder may have to read the whole blob to tell its manifest.
_MANIFEST_TIMEOUT_S: Final = 120.0
_MANIFESTS_MAX: Final = 3
_BATCH: Final = 8


class Asking(Protocol):
    """What a transfer needs of the node."""

    @property
    def disk(self) -> trio.CapacityLimiter: ...

    async def ask(self, peer: NodeId, message: Any, timeout_s: float | None = None) -> Any: ...

    def tell(self, peer: NodeId, message: Any) -> None: ...

    async def holders(self, blob_hash: bytes) -> tuple[list[NodeId], bool]:
        """Who says that it has the blob; and whether everybody who might was heard."""
        ...


class _Arrival:
    """A chunk that came; whether it fits is known once it was looked at."""

    __slots__ = ("data", "fits", "holder", "index")

    def __init__(self, holder: NodeId, index: int, data: bytes) -> None:
        self.holder = holder
        self.index = index
        self.data = data
        self.fits = False


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
        # How many manifests were believed; what was read under one that was false is void.
        self.manifests = 0
        self._path = path
        self._sealer = sealer
        self._node = node
        self._place = place
        self._fetching = Fetching(chunks_in(size))
        self._manifest = Manifest(blob_hash, size, b"")
        self._writer: ChunkWriter | None = None
        self._state = hashlib.blake2b(digest_size=HASH_BYTES)
        self._hashed = 0
        self._arrived: deque[_Arrival] = deque()
        # Verified, and waiting for the whole's hash to come to them.
        self._ready: dict[int, bytes] = {}
        self._changed = trio.Event()
        self._writing = trio.Lock()
        self._false: set[NodeId] = set()

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
            self._ready.clear()
            self._arrived.clear()
            self.ended.set()
            self._wake()

    async def past(self, index: int) -> bool:
        """Wait until chunk `index` can be read; False: the transfer has ended before."""
        while self._hashed <= index and not self.ended.is_set():
            await self._changed.wait()
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
        for _ in range(_MANIFESTS_MAX):
            holder = await self._get_manifest()
            self.manifests += 1
            await self._open()
            await self._fetch()
            if self._state.digest() == self.hash:
                writer, self._writer = self._writer, None
                assert writer is not None
                try:
                    await self._in_thread(writer.finish, self.size)
                finally:
                    writer.close()
                await self._place(self._path, self._manifest)
                return
            # Every chunk was what the manifest says, so the manifest is wrong.
            _log.warning("a manifest was false", blob=short(self.hash), holder=short(holder))
            self._false.add(holder)
            await self._in_thread(self._path.unlink, True)
        raise RemoteError(f"{_MANIFESTS_MAX} nodes told false manifests of blob {short(self.hash)}")

    async def _get_manifest(self) -> NodeId:
        """The chunks' hashes, and who told them."""
        give_up_at = trio.current_time() + RETRY_S
        while True:
            found, sure = await self._node.holders(self.hash)
            for holder in found:
                if holder in self._false:
                    continue
                try:
                    self._manifest = await self._manifest_of(holder)
                except SwarmError as error:
                    _log.debug("no manifest", peer=short(holder), code=error.code)
                    sure = False
                else:
                    return holder
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
        if not manifest.is_whole:
            raise RemoteError("a node told more chunks than there are")
        return manifest

    async def _open(self) -> None:
        """Begin the file, or go on with it: verify what is there."""
        self._state = hashlib.blake2b(digest_size=HASH_BYTES)
        self._hashed = 0
        if self._writer is not None:
            self._writer.close()
        self._writer = await self._in_thread(
            lambda: ChunkWriter(self._path, self.size, self._sealer, resume=True)
        )
        present = await self._in_thread(self._scan_file)
        self._fetching = Fetching(self._manifest.count, present)
        self._fetching.hashed(self._hashed)
        self._wake()

    def _scan_file(self) -> list[int]:
        """Which chunks are there; the whole's hash goes through the first of them at once."""
        assert self._writer is not None
        present: list[int] = []
        try:
            end = chunks_in(self._path.stat().st_size)
        except OSError as error:
            raise DiskFault(f"cannot read {self._path}: {error.strerror}") from error
        for index in range(min(end, self._manifest.count)):
            data = self._writer.read(index, chunk_size(self.size, index))
            if self._manifest.fits(index, data):
                present.append(index)
                if index == self._hashed:
                    self._state.update(data)
                    self._hashed += 1
        return present

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

            nursery.start_soon(guarded, partial(self._find, ask), scope)
            await guarded(self._keep, scope)
            scope.cancel()
        if failure:
            raise failure[0]

    async def _find(self, ask: Callable[[NodeId], None]) -> None:
        """Have all who hold the blob send of it; give up when nobody does for a while."""
        fetching, give_up_at = self._fetching, trio.current_time() + RETRY_S
        while not fetching.is_complete:
            found, sure = await self._node.holders(self.hash)
            for holder in found:
                if holder not in self._false and fetching.offer(holder):
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
        """One chunk after the other of one holder. Raises DiskFault."""
        while not self._fetching.is_complete and self._fetching.is_asked(holder):
            full = len(self._arrived) >= _BATCH
            index = None if full else self._fetching.take(holder)
            if index is None:
                await self._changed.wait()
            elif not await self._ask(holder, index):
                return

    async def _ask(self, holder: NodeId, index: int) -> bool:
        """Fetch one chunk and write it, right or wrong. False: the holder is lost."""
        try:
            answer = await self._node.ask(holder, ChunkAsk(self.hash, index))
            if not isinstance(answer, ChunkData) or answer.index != index:
                raise RemoteError("a node answered another question")
        except SwarmError as error:
            _log.debug("chunk not fetched", peer=short(holder), code=error.code)
            self._fetching.lose(holder, for_good=not isinstance(error, TimedOut | Unreachable))
            self._wake()
            return False
        # One after the other: what is refused below must not land on what another one sent since.
        async with self._writing:
            if not self._fetching.is_asked(holder):
                return False
            if len(answer.data) == chunk_size(self.size, index):
                assert self._writer is not None
                await self._in_thread(self._writer.write, index, answer.data)
        self._fetching.arrived(holder, index)
        self._arrived.append(_Arrival(holder, index, answer.data))
        self._wake()
        return True

    async def _keep(self) -> None:
        """Verify what comes, as much at once as has come; it ends when the whole is hashed.

        One turn in a thread for several chunks: turns cost more than chunks.
        """
        while self._hashed < self._manifest.count:
            batch = [self._arrived.popleft() for _ in range(min(_BATCH, len(self._arrived)))]
            if not batch and not self._fetching.has(self._hashed):
                await self._changed.wait()
                continue
            await self._in_thread(self._keep_file, batch)
            for arrival in batch:
                self._judge(arrival)
            self._fetching.hashed(self._hashed)
            self._wake()

    def _judge(self, arrival: _Arrival) -> None:
        if arrival.fits:
            self._fetching.got(arrival.index)
            return
        if self._fetching.is_asked(arrival.holder):  # Else it was told already.
            _log.warning("a chunk was wrong", blob=short(self.hash), holder=short(arrival.holder))
            self._node.tell(arrival.holder, Doubt(self.hash))
        self._fetching.refused(arrival.holder, arrival.index)

    def _keep_file(self, batch: list[_Arrival]) -> None:
        """Verify chunks, and have the whole's hash go through all that it can."""
        assert self._writer is not None
        for arrival in batch:
            arrival.fits = self._manifest.fits(arrival.index, arrival.data)
            if arrival.fits and not self._fetching.has(arrival.index):
                self._ready[arrival.index] = arrival.data
        while self._hashed in self._ready:
            self._state.update(self._ready.pop(self._hashed))
            self._hashed += 1
        for _ in range(_BATCH):
            if self._hashed in self._ready or not self._fetching.has(self._hashed):
                break
            # It was left by an earlier try.
            size = chunk_size(self.size, self._hashed)
            self._state.update(self._writer.read(self._hashed, size))
            self._hashed += 1

    async def _in_thread(self, call: Callable[..., Any], *args: Any) -> Any:
        return await trio.to_thread.run_sync(call, *args, limiter=self._node.disk)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _nobody(blob_hash: bytes, certain: bool) -> SwarmError:
    if certain:
        return NotFound(f"no member has blob {short(blob_hash)}")
    return Unavailable(f"no member that answers can send blob {short(blob_hash)}")
