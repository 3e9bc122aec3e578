"""Blobs of users: any size, streamed, pinned for a while, on as many nodes as was asked for.

A put is written here as it comes, then taken by other nodes, which fetch it themselves
(`transfer.py`); only when enough of them hold it durably is it pinned and acknowledged. Every
holder keeps the pins beside its blob and tells them to the others. A get is served from here while
it still comes from others. What fewer nodes hold than its pins want is mended by `mending.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import (
    BadRequest,
    InsufficientCopies,
    NotFound,
    RemoteError,
    SwarmError,
    TooLarge,
    Unavailable,
)
from swarmd.base.ids import NodeId, short, to_text
from swarmd.base.limits import STREAMED_BYTES_MAX
from swarmd.base.sealed_file import Sealer
from swarmd.mesh.link import PIPES_PER_PEER_MAX, Inbound, Lane, Link, Pipe
from swarmd.observe.log import get_logger
from swarmd.state.blobs.answers import Answers
from swarmd.state.blobs.config import PIN_TTL_MAX_S, BlobsConfig
from swarmd.state.blobs.custody import Referenced
from swarmd.state.blobs.holding import Holding
from swarmd.state.blobs.messages import (
    ASKED_MAX,
    BULK,
    Held,
    HeldAsk,
    ListAsk,
    Listing,
    Noted,
    Pin,
    PinnedBlob,
    Take,
    Taken,
    Taking,
    Told,
)
from swarmd.state.blobs.pins import joined, pinned, unpinned
from swarmd.state.blobs.placing import copies_wanted, ranked
from swarmd.state.blobs.shelf import Shelf
from swarmd.state.blobs.store import BlobFolder
from swarmd.state.blobs.turns import Turns

_log = get_logger("blobs")
_LIST_MAX: Final = 10_000
_RETRY_S: Final = 3.0
_PAUSE_S: Final = 0.2
# Holders that blobs come from at once, each by a thread.
_PIPES_MAX: Final = 32

Nodes = Callable[[], Sequence[NodeId]]


@dataclass(frozen=True, slots=True)
class Shown:
    """A blob of a user as the swarm knows it; `pins` without those that were taken back."""

    hash: bytes
    size: int
    holders: tuple[NodeId, ...]
    pins: tuple[Pin, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far copies are: of `copies` nodes `held` have the blob, the slowest `done_bytes`."""

    held: int
    copies: int
    done_bytes: int


class Bulk:
    """Made by `service.open_blobs`."""

    def __init__(
        self,
        link: Link,
        folder: BlobFolder,
        shelf: Shelf,
        config: BlobsConfig,
        clock: Clock,
        disk: trio.CapacityLimiter,
        *,
        members: Nodes,
        alive: Nodes,
        referenced: Referenced,
        sealer: Sealer | None,
        nursery: trio.Nursery,
    ) -> None:
        self.disk = disk
        self.turns = Turns(_PIPES_MAX, PIPES_PER_PEER_MAX)
        self.me = link.node_id
        self.holding = Holding(
            self,
            folder,
            shelf,
            config,
            clock,
            referenced=referenced,
            sealer=sealer,
            nursery=nursery,
        )
        self._answers = Answers(self.holding, clock)
        self._link = link
        self._config = config
        self._clock = clock
        self._members = members
        self._alive = alive
        self._pinning = trio.Lock()

    async def serve(self, inbox: trio.MemoryReceiveChannel[Inbound]) -> None:
        """Answer what nodes ask, until cancelled."""
        await self._answers.serve(inbox)

    # ---- what users ask ------------------------------------------------------------------

    def receive(
        self, pieces: AsyncIterable[bytes], size: int | None
    ) -> Awaitable[tuple[bytes, int]]:
        """See `Holding.receive`."""
        return self.holding.receive(pieces, size)

    def check_put(self, copies: int | None, ttl_s: float | None, size: int | None) -> None:
        """Raises what a put would be refused with, before anything of it is read."""
        copies_wanted(copies, len({*self._members(), self.me}))
        self._until_ms(ttl_s)
        if size is not None and size > STREAMED_BYTES_MAX:
            raise TooLarge(f"a blob of {size} bytes; at most {STREAMED_BYTES_MAX} fit")

    async def spread(
        self, blob_hash: bytes, size: int, owner: str, *, copies: int | None, ttl_s: float | None
    ) -> AsyncGenerator[Progress | Shown, None]:
        """Have enough nodes hold the blob, then pin it; the last item is `Shown`.

        Args:
            copies: on how many nodes; None: two, or one where a node is alone.
            ttl_s: for how long it is pinned; None: `blobs.pin_ttl_s`.

        Raises:
            InsufficientCopies: too few nodes took it. It is not pinned; what took it keeps it for
                the grace period, so that repeating the put sends only what is missing.
        """
        wanted = copies_wanted(copies, len({*self._members(), self.me}))
        until_ms = self._until_ms(ttl_s)
        holders: set[NodeId] = set()
        async with aclosing(self._copies(blob_hash, size, wanted, holders)) as rounds:
            async for progress in rounds:
                yield progress
        async with self._pinning:
            known = await self._known_pins(blob_hash)
            pins = pinned(
                known, owner, copies=wanted, until_ms=until_ms, now_ms=self._clock.wall_ms()
            )
        noted = await self._tell_all(PinnedBlob(blob_hash, size, pins), holders)
        if len(noted) < wanted:
            raise InsufficientCopies(_too_few(len(noted), wanted))
        yield Shown(blob_hash, size, tuple(ranked(blob_hash, noted)), self._live(pins))

    async def pin(
        self, blob_hash: bytes, owner: str, *, copies: int | None, ttl_s: float | None
    ) -> AsyncGenerator[Progress | Shown, None]:
        """Pin a blob that some node holds; as `spread`. Raises NotFound, too."""
        shown = await self.show(blob_hash)
        mine = next((pin.copies for pin in shown.pins if pin.owner == owner), None)
        async with aclosing(
            self.spread(blob_hash, shown.size, owner, copies=copies or mine, ttl_s=ttl_s)
        ) as items:
            async for item in items:
                yield item

    async def unpin(self, blob_hash: bytes, owner: str) -> Shown:
        """Take the owner's pin back. Raises NotFound: no such blob, or no such pin."""
        shown = await self.show(blob_hash)
        async with self._pinning:
            pins = unpinned(await self._known_pins(blob_hash), owner, self._clock.wall_ms())
        if pins is None:
            raise NotFound(f"{owner} has no pin on blob {short(blob_hash)}")
        await self._tell_all(PinnedBlob(blob_hash, shown.size, pins), set(shown.holders))
        return Shown(blob_hash, shown.size, shown.holders, self._live(pins))

    async def show(self, blob_hash: bytes) -> Shown:
        """Who holds a blob and who pins it. Raises NotFound, Unavailable."""
        found, heard = await self.ask_held([blob_hash])
        told = found.get(blob_hash, {})
        if not told:
            raise _unknown(blob_hash, heard.issuperset(self._members()))
        pins = joined((), [pin for one in told.values() for pin in one.pins], self._clock.wall_ms())
        # Whoever says another size than the most is wrong, or lies.
        size = statistics.mode(told[node].size for node in sorted(told))
        return Shown(blob_hash, size, tuple(ranked(blob_hash, told)), self._live(pins))

    async def list_all(self) -> tuple[list[Shown], list[NodeId]]:
        """Blobs of users on the living members, at most 10,000; and who did not answer."""
        told: dict[bytes, dict[NodeId, PinnedBlob]] = {}
        missing: list[NodeId] = []

        async def ask(node: NodeId) -> None:
            try:
                await self._list_of(node, told)
            except SwarmError as error:
                _log.debug("blobs not listed", peer=short(node), code=error.code)
                missing.append(node)

        async with trio.open_nursery() as nursery:
            for node in {*self._alive(), self.me}:
                nursery.start_soon(ask, node)
        now_ms = self._clock.wall_ms()
        shown = [
            Shown(
                blob_hash,
                by_node[min(by_node)].size,
                tuple(ranked(blob_hash, by_node)),
                self._live(joined((), [p for one in by_node.values() for p in one.pins], now_ms)),
            )
            for blob_hash, by_node in sorted(told.items())[:_LIST_MAX]
        ]
        return shown, sorted(missing)

    @asynccontextmanager
    async def open(self, blob_hash: bytes) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """A blob's size and its chunks, each verified, from here or as they come from others.

        Raises:
            NotFound, Unavailable: here or between two chunks: no holder can be found any more.
        """
        size = self.holding.folder.size_of(blob_hash)
        if size is None:
            size = (await self.show(blob_hash)).size
        async with aclosing(self.holding.chunks(blob_hash, size)) as chunks:
            yield size, chunks

    # ---- what others of this room ask ------------------------------------------------------

    async def holders(self, blob_hash: bytes) -> tuple[list[NodeId], bool]:
        """Who else says that it has the blob; and whether everybody was heard."""
        found, heard = await self.ask_held([blob_hash])
        told = found.get(blob_hash, {})
        others = [node for node in ranked(blob_hash, told) if node != self.me]
        return others, heard.issuperset(self._members())

    async def ask_held(
        self, hashes: Sequence[bytes]
    ) -> tuple[dict[bytes, dict[NodeId, PinnedBlob]], set[NodeId]]:
        """Who holds which of these, of the living; and who was heard."""
        assert len(hashes) <= ASKED_MAX
        found: dict[bytes, dict[NodeId, PinnedBlob]] = {}
        alive = {*self._alive(), self.me}
        heard: set[NodeId] = set()

        async def ask(node: NodeId) -> None:
            try:
                answer = await self.ask(node, HeldAsk(tuple(hashes)))
            except SwarmError as error:
                _log.debug("not told who holds blobs", peer=short(node), code=error.code)
                return
            if isinstance(answer, Held):
                heard.add(node)
                for blob in answer.blobs:
                    if blob.hash in hashes:
                        found.setdefault(blob.hash, {})[node] = blob

        async with trio.open_nursery() as nursery:
            for node in sorted(alive):
                nursery.start_soon(ask, node)
        return found, heard

    async def have_taken(self, peer: NodeId, blob: PinnedBlob) -> AsyncGenerator[int, None]:
        """Have a peer fetch a blob and keep it: how many bytes it has. Raises SwarmError."""
        async with self._link.request_stream(
            BULK,
            peer,
            Take(blob),
            timeout_s=4 * self._config.chunk_timeout_s,
            lane=Lane.BULK,
        ) as answers:
            async for answer in answers:
                if isinstance(answer, Taken) and answer.hash == blob.hash:
                    return
                if not isinstance(answer, Taking):
                    break
                yield answer.done_bytes
        raise RemoteError(f"{short(peer)} did not say that it took a blob")

    async def ask(self, peer: NodeId, message: Any, timeout_s: float | None = None) -> Any:
        """One question to a node and its answer. Raises SwarmError."""
        timeout_s = timeout_s or self._config.chunk_timeout_s
        return await self._link.request(BULK, peer, message, timeout_s=timeout_s, lane=Lane.BULK)

    def pipe(self, peer: NodeId, message: Any) -> AbstractAsyncContextManager[Pipe]:
        """One question to a node, whose answer is a pipe. Raises SwarmError."""
        return self._link.open_pipe(BULK, peer, message, timeout_s=self._config.chunk_timeout_s)

    def tell(self, peer: NodeId, message: Any) -> None:
        """What may be lost."""
        self._link.send_nowait(BULK, peer, message)

    # ---- copies --------------------------------------------------------------------------

    async def _copies(
        self, blob_hash: bytes, size: int, wanted: int, holders: set[NodeId]
    ) -> AsyncGenerator[Progress, None]:
        """Until `wanted` nodes hold the blob; who they are goes into `holders`."""
        give_up_at = trio.current_time() + _RETRY_S
        while True:
            found, _ = await self.ask_held([blob_hash])
            holders.update(found.get(blob_hash, ()))
            self.holding.folder.touch(blob_hash, self._clock.now())
            if len(holders) >= wanted:
                yield Progress(len(holders), wanted, size)
                return
            rest = [n for n in ranked(blob_hash, self._alive()) if n not in holders]
            blob = PinnedBlob(blob_hash, size, self.holding.shelf.pins(blob_hash))
            before = len(holders)
            async with aclosing(self._round(blob, rest, wanted, holders)) as rounds:
                async for progress in rounds:
                    yield progress
            if len(holders) >= wanted:
                continue
            if len(holders) > before:
                give_up_at = trio.current_time() + _RETRY_S
            if trio.current_time() >= give_up_at:
                raise InsufficientCopies(_too_few(len(holders), wanted))
            await trio.sleep(_PAUSE_S)

    async def _round(
        self, blob: PinnedBlob, nodes: Sequence[NodeId], wanted: int, holders: set[NodeId]
    ) -> AsyncGenerator[Progress, None]:
        """Have as many take it at once as are missing, and the next whenever one fails."""
        queue = iter(nodes)
        done: dict[NodeId, int] = {}
        sender, receiver = trio.open_memory_channel[None](1)

        async def until_one_takes_it(sender: trio.MemorySendChannel[None]) -> None:
            async with sender:
                for peer in queue:
                    done[peer] = 0
                    try:
                        async with aclosing(self.have_taken(peer, blob)) as steps:
                            async for done[peer] in steps:
                                _poke(sender)
                        holders.add(peer)
                        done[peer] = blob.size
                        _poke(sender)
                        return
                    except SwarmError as error:
                        _log.info("blob not taken", peer=short(peer), why=error.message)
                        del done[peer]

        async with trio.open_nursery() as nursery:
            for _ in range(wanted - len(holders)):
                nursery.start_soon(until_one_takes_it, sender.clone())
            sender.close()
            async with receiver:
                async for _ in receiver:
                    yield Progress(len(holders), wanted, min(done.values(), default=0))
            nursery.cancel_scope.cancel()

    async def _known_pins(self, blob_hash: bytes) -> tuple[Pin, ...]:
        found, _ = await self.ask_held([blob_hash])
        told = [pin for one in found.get(blob_hash, {}).values() for pin in one.pins]
        return joined(self.holding.shelf.pins(blob_hash), told, self._clock.wall_ms())

    async def _tell_all(self, blob: PinnedBlob, holders: set[NodeId]) -> list[NodeId]:
        """Have holders note the pins: those that did, and hold the blob."""
        noted: list[NodeId] = []

        async def tell(node: NodeId) -> None:
            try:
                answer = await self.ask(node, Told(blob))
            except SwarmError as error:
                _log.info("pins not noted", peer=short(node), why=error.message)
            else:
                if isinstance(answer, Noted) and answer.held:
                    noted.append(node)

        async with trio.open_nursery() as nursery:
            for node in holders:
                nursery.start_soon(tell, node)
        return noted

    async def _list_of(self, node: NodeId, told: dict[bytes, dict[NodeId, PinnedBlob]]) -> None:
        after, more, count = b"", True, 0
        while more and count < _LIST_MAX:
            answer = await self.ask(node, ListAsk(after))
            if not isinstance(answer, Listing) or (answer.more and not answer.blobs):
                raise RemoteError("not a list of blobs")
            for blob in answer.blobs:
                told.setdefault(blob.hash, {})[node] = blob
                after = max(after, blob.hash)
            count += len(answer.blobs)
            more = answer.more

    def _live(self, pins: Sequence[Pin]) -> tuple[Pin, ...]:
        now_ms = self._clock.wall_ms()
        return tuple(pin for pin in pins if not pin.removed and pin.until_ms > now_ms)

    def _until_ms(self, ttl_s: float | None) -> int:
        ttl_s = self._config.pin_ttl_s if ttl_s is None else ttl_s
        if not 1.0 <= ttl_s <= PIN_TTL_MAX_S:
            raise BadRequest(f"a pin lasts from 1 s to 10 years, not {ttl_s:g} s")
        return self._clock.wall_ms() + int(ttl_s * 1_000)


def _poke(sender: trio.MemorySendChannel[None]) -> None:
    with suppress(trio.WouldBlock, trio.BrokenResourceError):
        sender.send_nowait(None)


def _too_few(held: int, wanted: int) -> str:
    return (
        f"{held} of {wanted} nodes hold the blob; it is not pinned. See that enough nodes are up "
        "and have room, and repeat: what is there is not sent again"
    )


def _unknown(blob_hash: bytes, certain: bool) -> SwarmError:
    if certain:
        return NotFound(f"no node holds a blob {to_text(blob_hash)}")
    return Unavailable(
        f"no node that answers holds blob {short(blob_hash)}; some do not answer: try again later"
    )
