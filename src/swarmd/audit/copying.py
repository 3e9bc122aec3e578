"""Copies of every node's records on every member that may vote: pull, verify, keep.

Who wrote records sends them to those who keep copies. They verify and write what came, many with
one sync, and pull what is missing before it. Besides, each compares what it holds with a random
other one every few seconds, so that whatever was lost on the way is made up for, and a node that is
gone is read from those who have it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import trio

from swarmd.audit.chain import Broken, Sealed
from swarmd.audit.machine import Doubt, Want, wants
from swarmd.audit.messages import (
    AUDIT,
    PAGE_BYTES,
    Held,
    HeldAsk,
    HeldLife,
    News,
    Page,
    PullAsk,
)
from swarmd.audit.records import ChainId
from swarmd.audit.shelf import Shelf, may_hold
from swarmd.base.errors import RemoteError, SwarmError, Unavailable
from swarmd.base.ids import NodeId, short
from swarmd.base.limits import MIB
from swarmd.base.pace import pause
from swarmd.base.rng import Rng
from swarmd.mesh.link import Inbound, Lane, Link
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import DROPPED

COMPARE_S: Final = 4.0
_TIMEOUT_S: Final = 5.0
_HANDLERS_MAX: Final = 16
# Pages of one life in one go; more come with the next one.
_PAGES_MAX: Final = 64
_HELD_PAGES_MAX: Final = 100
# Longest that one peer is asked before others have their turn.
_LEVEL_S: Final = 20.0
# Times that peers lack the beginning of what is wanted, before it is done without.
SKIP_LOOKS: Final = 10
_LOOKED_MAX: Final = 10_000
# Of whom and what it was logged that records were not taken.
_REPORTED_MAX: Final = 1_000
# What comes meanwhile is taken with one sync.
_PAUSE_S: Final = 0.5
# Of what waits to be taken; what is beyond it is pulled instead.
_NEWS_BYTES_MAX: Final = 4 * MIB
_NEWS_CHAINS_MAX: Final = 1_000

_log = get_logger("audit")


class Alive(Protocol):
    def alive(self) -> list[NodeId]: ...


# Told of records of others that are kept now.
Taken = Callable[[list[Sealed]], None]


@dataclass(slots=True)
class _Coming:
    """What a node says that it wrote of one life, and as much of it as came along."""

    last: int = 0
    batches: list[bytes] = field(default_factory=list)


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
        self._news: dict[ChainId, _Coming] = {}
        self._news_bytes = 0
        self._heard = trio.Event()
        self._pulling = trio.Lock()
        self._reported: set[tuple[NodeId, ChainId]] = set()
        self._looked: Counter[ChainId] = Counter()

    def tell(self, written: Sequence[Sealed]) -> None:
        """Have those who keep copies keep what this node has just written."""
        seal = written[-1].seal
        fits = sum(len(one.raw) for one in written) <= PAGE_BYTES
        news = News(seal.chain, seal.last, tuple(one.raw for one in written) if fits else ())
        for peer in self._holders():
            self._link.send_nowait(AUDIT, peer, news, lane=Lane.BULK)

    def _holders(self) -> list[NodeId]:
        trust, me = self._shelf.trust, self._shelf.me
        return [one for one in self._membership.alive() if one != me and may_hold(trust, one)]

    # ---- asking ------------------------------------------------------------------------

    async def compare(self) -> None:
        """Level with somebody else now and then; never ends."""
        while True:
            await pause(COMPARE_S * self._rng.uniform(0.5, 1.0))
            if not may_hold(self._shelf.trust, self._shelf.me):
                continue
            peers = [one for one in self._membership.alive() if one != self._shelf.me]
            if peers:
                await self._level(self._rng.choice(sorted(peers)))

    async def follow_news(self) -> None:
        """Keep what others say that they have written; never ends."""
        while True:
            await self._heard.wait()
            self._heard = trio.Event()
            news, self._news, self._news_bytes = self._news, {}, 0
            for chain, coming in news.items():
                peer = NodeId(chain.node)
                if self._has_past(chain, coming):
                    await self._take(peer, chain, coming)
                else:
                    await self._level(peer)
            await trio.sleep(_PAUSE_S)

    def _has_past(self, chain: ChainId, coming: _Coming) -> bool:
        """Of a new life the past comes first. Mostly it is here already."""
        if chain in self._shelf.folder.lives:
            return True
        return bool(coming.batches) and self._shelf.goes_on_here(coming.batches[0])

    async def _take(self, peer: NodeId, chain: ChainId, coming: _Coming) -> None:
        """Keep what was sent, and fetch what that does not hold."""
        async with self._pulling:
            try:
                fresh = await self._shelf.take(chain, coming.batches) if coming.batches else []
            except SwarmError as error:
                self._report(peer, chain, error)
                return
        if fresh:
            self._taken(fresh)
        life = self._shelf.folder.lives.get(chain)
        if life is not None and life.last < coming.last:
            await self._fetch_all(peer, [Want(chain, life.last, coming.last)])

    async def _level(self, peer: NodeId) -> None:
        with trio.move_on_after(_LEVEL_S):
            try:
                theirs = await self._ask_held(peer)
            except SwarmError as error:
                _log.debug("audit logs not compared", peer=short(peer), why=error.message)
                return
            if theirs:
                await self._fetch_all(peer, await self._wanted(theirs))

    async def _wanted(self, theirs: list[HeldLife]) -> list[Want | Doubt]:
        """In a thread: there may be tens of thousands of lives."""

        def want_file() -> list[Want | Doubt]:
            shelf = self._shelf
            known = shelf.trust.admissions_by_id()
            some = [one for one in theirs if one.chain.node in known]
            floors = [floor for floor, _ in list(shelf.folder.floors.values())]
            return wants(
                shelf.kept(), floors, some, growing=self._growing, before_ms=shelf.before_ms()
            )

        return await self._shelf.run(want_file)

    async def _ask_held(self, peer: NodeId) -> list[HeldLife]:
        """What a peer holds; nothing, if that is what is held here."""
        found: list[HeldLife] = []
        after: ChainId | None = None
        known_sum = await self._shelf.sum()
        for _ in range(_HELD_PAGES_MAX):
            held = await self._ask(peer, HeldAsk(after, known_sum), Held)
            known_sum = b""
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
                    self._report(peer, one.chain, error)
                    if isinstance(error, Unavailable):
                        return  # It does not answer now; another one will.

    async def _fetch(self, peer: NodeId, want: Want) -> None:
        """Raises SwarmError: `peer` gave no more, or what is wrong."""
        if want.skips and self._looked[want.chain] < SKIP_LOOKS:
            if len(self._looked) >= _LOOKED_MAX:
                self._looked.clear()
            self._looked[want.chain] += 1
            return  # Another one may have what is missing there.
        if want.skips:
            del self._looked[want.chain]
        for _ in range(_PAGES_MAX):
            life = self._shelf.folder.lives.get(want.chain)
            after = life.last if life is not None else max(0, want.after)
            page = await self._ask(peer, PullAsk(want.chain, after), Page)
            if not page.batches:
                return
            fresh = await self._shelf.take(want.chain, page.batches, skips=want.skips)
            if not fresh:
                return
            self._taken(fresh)
            if fresh[-1].seal.last >= want.until:
                return

    def _report(self, peer: NodeId, chain: ChainId, error: SwarmError) -> None:
        DROPPED.labels("audit", error.code).inc()
        fresh = (peer, chain) not in self._reported and len(self._reported) < _REPORTED_MAX
        if fresh and isinstance(error, Broken):
            self._reported.add((peer, chain))
        report = _log.warning if fresh and isinstance(error, Broken) else _log.debug
        why, whose = error.message, short(chain.node)
        report("audit records were not taken", peer=short(peer), of=whose, why=why)

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
        if news.chain not in self._news and len(self._news) >= _NEWS_CHAINS_MAX:
            return
        coming = self._news.setdefault(news.chain, _Coming())
        coming.last = max(coming.last, news.last)
        size = sum(map(len, news.batches))
        if self._news_bytes + size <= _NEWS_BYTES_MAX:
            self._news_bytes += size
            coming.batches += news.batches
        self._heard.set()

    async def _answer(self, message: Any) -> Held | Page:
        if isinstance(message, HeldAsk):
            return Held(*await self._shelf.held(message.after, message.sum))
        if isinstance(message, PullAsk):
            return Page(await self._shelf.page(message.chain, message.after))
        raise RemoteError(f"{type(message).__name__} is not a question")
