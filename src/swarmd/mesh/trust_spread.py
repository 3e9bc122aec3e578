"""How members keep their chains of authority records level.

How it spreads: who had a part in certifying records sends them to every member at
once; who learns them from a peer passes them to a few more, and everybody compares heights
with a random member every few seconds. The first makes an admission known in one round trip,
the last makes sure that nobody stays behind whatever was lost (anti-entropy: Demers et al.,
"Epidemic algorithms for replicated database maintenance", 1987, section 1.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import trio

from swarmd.base.errors import MalformedMessage, SwarmError
from swarmd.base.ids import NodeId, short
from swarmd.base.limits import KIB, MESSAGE_BYTES_MAX, MIB
from swarmd.base.rng import Rng, make_rng
from swarmd.identity.authority import RECORDS_MAX
from swarmd.identity.entries import RECORD_BYTES_MAX
from swarmd.identity.heads import HEAD_BYTES_MAX
from swarmd.mesh.link import Inbound, Link
from swarmd.mesh.trust import PAGE_RECORDS_MAX, Trust
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import DROPPED
from swarmd.wire.codec import Family, Message

ASK_INTERVAL_S: Final = 5.0
ASK_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 1.0
PASS_ON_PEERS: Final = 3
PAGE_BYTES_MAX: Final = 256 * KIB
_PAGES_MAX: Final = RECORDS_MAX  # Each page brings at least one record.
_PENDING_ASKS_MAX: Final = 64
# What one member may show before its certificate is seen.
_GATHERED_BYTES_MAX: Final = 128 * MIB
assert PAGE_BYTES_MAX + RECORD_BYTES_MAX + HEAD_BYTES_MAX < MESSAGE_BYTES_MAX

_log = get_logger("trust")


class Ask(Message, frozen=True, tag=1):
    """Send me the records above `height`, which is where I am."""

    height: int


class Records(Message, frozen=True, tag=2):
    """Records in order from `first` on, the sender's height, and the certificate of the head there.

    Also sent unasked. Without records it brings a newer certificate of what is known.
    """

    first: int
    height: int
    records: tuple[bytes, ...]
    certificate: bytes


TRUST: Final = Family("trust", Ask, Records, format_number=2)  # 2: with a certificate.


class Alive(Protocol):
    """What this room needs of membership."""

    def alive(self) -> list[NodeId]:
        """Members thought alive, this node among them."""
        ...


async def serve_trust(
    trust: Trust, link: Link, membership: Alive, *, rng: Rng | None = None
) -> None:
    """Answer, push and compare until cancelled.

    Args:
        rng: picks whom to ask; by default one seeded by the node's id.
    """
    keeper = _Keeper(trust, link, membership, rng or make_rng(bytes(link.node_id)))
    inbox = link.open_inbox(TRUST)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.receive, inbox)
        nursery.start_soon(keeper.push)
        nursery.start_soon(keeper.compare)
        nursery.start_soon(keeper.catch_up)


class _Keeper:
    def __init__(self, trust: Trust, link: Link, membership: Alive, rng: Rng) -> None:
        self._trust = trust
        self._link = link
        self._membership = membership
        self._rng = rng
        self._ahead_send, self._ahead = trio.open_memory_channel[NodeId](_PENDING_ASKS_MAX)

    async def receive(self, inbox: trio.MemoryReceiveChannel[Inbound]) -> None:
        async for inbound in inbox:
            message = inbound.message
            if isinstance(message, Ask):
                # A peer that takes nothing must not keep the others waiting.
                with trio.move_on_after(ANSWER_TIMEOUT_S):
                    await inbound.answer(page(self._trust, message.height))
                if message.height > self._trust.head[0]:
                    self._note_ahead(inbound.peer)
            else:
                self._take(inbound.peer, message)

    async def push(self) -> None:
        """Tell the others as soon as there is news."""
        told = self._trust.head[0]
        version = self._trust.version
        while True:
            version = await self._trust.changed(version)
            height = self._trust.head[0]
            peers = self._peers()
            if not self._trust.learned_here(height) and len(peers) > PASS_ON_PEERS:
                peers = self._rng.sample(peers, PASS_ON_PEERS)
            message = page(self._trust, told)
            for peer in peers:
                self._link.send_nowait(TRUST, peer, message)
            told = height

    async def compare(self) -> None:
        """Ask a random member now and then."""
        while True:
            peers = self._peers()
            if peers:
                await self._ask(self._rng.choice(peers))
            await trio.sleep(ASK_INTERVAL_S * self._rng.uniform(0.8, 1.2))

    async def catch_up(self) -> None:
        """Ask those that turned out to be ahead."""
        async for peer in self._ahead:
            await self._ask(peer)

    async def _ask(self, peer: NodeId) -> None:
        """Get all that counts there in pages, and take it whole: only the head is certified."""
        start = self._trust.head[0]
        pages: list[bytes] = []
        size = 0
        for _ in range(_PAGES_MAX):
            ask = Ask(start + len(pages))
            try:
                answer = await self._link.request(TRUST, peer, ask, timeout_s=ASK_TIMEOUT_S)
            except SwarmError:
                return  # Unreachable now; another member is asked in a few seconds.
            if not isinstance(answer, Records) or not _is_page_of(answer, ask):
                DROPPED.labels("trust", "malformed").inc()
                return
            pages += answer.records
            size += sum(map(len, answer.records))
            if start + len(pages) >= answer.height:
                self._learn(peer, answer.height, pages, answer.certificate)
                return
            if not answer.records or size > _GATHERED_BYTES_MAX:
                return  # It claims what it does not show.

    def _take(self, peer: NodeId, message: Records) -> None:
        last = message.first - 1 + len(message.records)
        if message.first <= self._trust.noted[0] + 1 and last >= message.height:
            self._learn(peer, message.height, message.records, message.certificate)
        if message.height > self._trust.head[0]:
            self._note_ahead(peer)

    def _learn(
        self, peer: NodeId, height: int, records: Sequence[bytes], certificate: bytes
    ) -> None:
        if height < self._trust.head[0] or certificate == self._trust.certificate:
            return
        try:
            if len(records) > RECORDS_MAX:
                raise MalformedMessage("too many authority records")
            self._trust.learn(records, certificate, from_peer=True)
        except SwarmError as error:  # A bad record, or a disk that is full: asked again later.
            DROPPED.labels("trust", error.code).inc()
            _log.warning("authority records refused", peer=short(peer), why=error.message)

    def _note_ahead(self, peer: NodeId) -> None:
        try:
            self._ahead_send.send_nowait(peer)
        except trio.WouldBlock:
            DROPPED.labels("trust", "busy").inc()

    def _peers(self) -> list[NodeId]:
        known = {*self._membership.alive(), *self._link.connected()} - {self._link.node_id}
        return sorted(known)


def page(trust: Trust, height: int) -> Records:
    """The records above `height`, as many as one message takes."""
    records: list[bytes] = []
    size = 0
    first = min(max(0, height), trust.head[0])
    for raw in trust.records_from(first, PAGE_RECORDS_MAX):
        size += len(raw)
        if records and size > PAGE_BYTES_MAX:
            break
        records.append(raw)
    return Records(first + 1, trust.head[0], tuple(records), trust.certificate)


def _is_page_of(page: Records, ask: Ask) -> bool:
    return (
        len(page.records) <= PAGE_RECORDS_MAX
        and page.height <= RECORDS_MAX
        and (page.first == ask.height + 1 or not page.records)
    )
