"""Copies of every node's records on every member that may vote: pull, verify, keep.

Who wrote records tells those who keep copies; they pull what they lack. Besides, each compares
what it holds with a random other one every few seconds, so that whatever was lost on the way is
made up for, and a node that is gone is read from those who have it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import trio

from swarmd.audit.chain import Broken, Sealed
from swarmd.audit.machine import Doubt, Want, wants
from swarmd.audit.messages import AUDIT, Held, HeldAsk, HeldLife, News, Page, PullAsk
from swarmd.audit.records import ChainId
from swarmd.audit.shelf import Shelf, may_hold
from swarmd.base.errors import RemoteError, SwarmError, Unavailable
from swarmd.base.ids import NodeId, short
from swarmd.base.rng import Rng
from swarmd.mesh.link import Inbound, Lane, Link
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import DROPPED

COMPARE_S: Final = 4.0
_TIMEOUT_S: Final = 5.0
_HANDLERS_MAX: Final = 16
# Pages of one life in one go; more come with the next one.
_PAGES_MAX: Final = 64
_HELD_PAGES_MAX: Final = 200
# News of one peer is followed this often at most.
_PAUSE_S: Final = 0.1
_NEWS_CHAINS_MAX: Final = 8

_log = get_logger("audit")


class Alive(Protocol):
    def alive(self) -> list[NodeId]: ...


# Told of records of others that are kept now.
Taken = Callable[[list[Sealed]], None]


class Copying:
    """One node's part in it. `growing` are the lives that it writes itself."""

    def __init__(
        self,
        shelf: Shelf,
        link: Link,
        membership: Alive,
        growing: frozenset[ChainId],
        rng: Rng,
        taken: Taken,
    ) -> None:
        self._shelf = shelf
        self._link = link
        self._membership = membership
        self._growing = growing
        self._rng = rng
        self._taken = taken
        self._news: dict[NodeId, dict[ChainId, None]] = {}
        self._heard = trio.Event()
        self._pulling = trio.Lock()

    def tell(self, chain: ChainId, last: int) -> None:
        """Have those who keep copies fetch what this node has just written."""
        for peer in self._holders():
            self._link.send_nowait(AUDIT, peer, News(chain, last), lane=Lane.BULK)

    def _holders(self) -> list[NodeId]:
        trust, me = self._shelf.trust, self._shelf.me
        return [one for one in self._membership.alive() if one != me and may_hold(trust, one)]

    # ---- asking ------------------------------------------------------------------------

    async def compare(self) -> None:
        """Level with somebody else now and then; never ends."""
        while True:
            await trio.sleep(COMPARE_S * self._rng.uniform(0.5, 1.0))
            if not may_hold(self._shelf.trust, self._shelf.me):
                continue
            peers = [one for one in self._membership.alive() if one != self._shelf.me]
            if peers:
                await self._level(self._rng.choice(sorted(peers)))

    async def follow_news(self) -> None:
        """Fetch what others say that they have written; never ends."""
        while True:
            await self._heard.wait()
            self._heard = trio.Event()
            while self._news:
                peer, chains = self._news.popitem()
                if any(chain not in self._shelf.folder.lives for chain in chains):
                    await self._level(peer)  # Of a new life the past comes first.
                else:
                    await self._fetch_all(peer, [Want(chain, -1) for chain in chains])
            await trio.sleep(_PAUSE_S)

    async def _level(self, peer: NodeId) -> None:
        try:
            theirs = await self._ask_held(peer)
        except SwarmError as error:
            _log.debug("audit logs not compared", peer=short(peer), why=error.message)
            return
        shelf = self._shelf
        floors = [floor for floor, _ in list(shelf.folder.floors.values())]
        asked = wants(
            shelf.kept(), floors, theirs, growing=self._growing, before_ms=shelf.before_ms()
        )
        await self._fetch_all(peer, asked)

    async def _ask_held(self, peer: NodeId) -> list[HeldLife]:
        found: list[HeldLife] = []
        after: ChainId | None = None
        for _ in range(_HELD_PAGES_MAX):
            held = await self._ask(peer, HeldAsk(after), Held)
            found += held.lives
            if not held.more or not held.lives:
                break
            after = held.lives[-1].chain
        return found

    async def _fetch_all(self, peer: NodeId, asked: list[Want] | list[Want | Doubt]) -> None:
        async with self._pulling:
            for one in asked:
                try:
                    if isinstance(one, Doubt):
                        await self._look_into(peer, one)
                    else:
                        await self._fetch(peer, one)
                except SwarmError as error:
                    DROPPED.labels("audit", error.code).inc()
                    report = _log.warning if isinstance(error, Broken) else _log.debug
                    report("audit records were not taken", peer=short(peer),
                           of=short(one.chain.node), why=error.message)  # fmt: skip
                    if isinstance(error, Unavailable):
                        return  # It does not answer now; another one will.

    async def _fetch(self, peer: NodeId, want: Want) -> None:
        for _ in range(_PAGES_MAX):
            life = self._shelf.folder.lives.get(want.chain)
            after = life.last if life is not None else max(0, want.after)
            page = await self._ask(peer, PullAsk(want.chain, after), Page)
            if not page.batches:
                return
            fresh = await self._shelf.take(want.chain, page.batches)
            if not fresh:
                return
            self._taken(fresh)

    async def _look_into(self, peer: NodeId, doubt: Doubt) -> None:
        page = await self._ask(peer, PullAsk(doubt.chain, doubt.number - 1), Page)
        if await self._shelf.keep_evidence(doubt.chain, doubt.number, page.batches):
            _log.error("a node signed two different audit records of one number",
                       node=short(doubt.chain.node), number=doubt.number)  # fmt: skip

    async def _ask(self, peer: NodeId, message: Any, kind: type[Any]) -> Any:
        answer = await self._link.request(
            AUDIT, peer, message, timeout_s=_TIMEOUT_S, lane=Lane.BULK
        )
        if not isinstance(answer, kind):
            raise RemoteError("a member answered another question about its audit log")
        return answer

    # ---- answering ---------------------------------------------------------------------

    async def serve(self, inbox: trio.MemoryReceiveChannel[Inbound]) -> None:
        """Answer until cancelled."""
        handlers = trio.Semaphore(_HANDLERS_MAX)

        async def handle(inbound: Inbound) -> None:
            try:
                await inbound.answer(await self._answer(inbound.message))
            except SwarmError as error:
                await inbound.fail(error)
            finally:
                handlers.release()

        async with inbox, trio.open_nursery() as nursery:
            async for inbound in inbox:
                if isinstance(inbound.message, News):
                    self._hear(inbound.peer, inbound.message)
                    continue
                await handlers.acquire()
                nursery.start_soon(handle, inbound)

    def _hear(self, peer: NodeId, news: News) -> None:
        """Of its own records a node tells; of others' nobody does."""
        if news.chain.node != peer or not may_hold(self._shelf.trust, self._shelf.me):
            return
        life = self._shelf.folder.lives.get(news.chain)
        if life is not None and life.last >= news.last:
            return
        chains = self._news.setdefault(peer, {})
        if len(chains) < _NEWS_CHAINS_MAX:
            chains[news.chain] = None
            self._heard.set()

    async def _answer(self, message: Any) -> Held | Page:
        if isinstance(message, HeldAsk):
            return Held(*await self._shelf.held(message.after))
        if isinstance(message, PullAsk):
            return Page(await self._shelf.page(message.chain, message.after))
        raise RemoteError(f"{type(message).__name__} is not a question")
