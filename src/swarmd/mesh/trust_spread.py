"""How members keep their chains of authority records level.

How it spreads: who had a part in certifying records sends them to every member at
once; who learns them from a peer passes them to a few more, and everybody compares heights
with a random member every few seconds. The first makes an admission known in one round trip,
the last makes sure that nobody stays behind whatever was lost (anti-entropy: Demers et al.,
"Epidemic algorithms for replicated database maintenance", 1987, section 1.3).
"""

from __future__ import annotations

from typing import Final, Protocol

import trio

from swarmd.base.errors import MalformedMessage, SwarmError, TimedOut, Untrusted
from swarmd.base.ids import NodeId, short
from swarmd.base.limits import KIB, MESSAGE_BYTES_MAX
from swarmd.base.pace import pause
from swarmd.base.rng import Rng, make_rng
from swarmd.identity.authority import RECORDS_MAX, AuthorityState
from swarmd.identity.entries import RECORD_BYTES_MAX, decode_record
from swarmd.identity.heads import HEAD_BYTES_MAX, Head, UnknownEpoch
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
_PAGE_TRIES: Final = 3
# So long one peer may take to show all that it has, and so many are asked at a time.
CATCH_UP_TIMEOUT_S: Final = 120.0
_ASKING_MAX: Final = 8
_REPLAYED_AT_ONCE: Final = 16
# An epoch is told of as soon as its voters are, but by another way.
EPOCH_WAIT_S: Final = 5.0
EPOCH_POLL_S: Final = 0.2
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
    inbox = link.open_inbox(TRUST)
    async with trio.open_nursery() as nursery:
        keeper = _Keeper(trust, link, membership, rng or make_rng(bytes(link.node_id)), nursery)
        nursery.start_soon(keeper.receive, inbox)
        nursery.start_soon(keeper.push)
        nursery.start_soon(keeper.compare)


class _Keeper:
    def __init__(
        self, trust: Trust, link: Link, membership: Alive, rng: Rng, nursery: trio.Nursery
    ) -> None:
        self._trust = trust
        self._link = link
        self._membership = membership
        self._rng = rng
        self._nursery = nursery
        self._asking: set[NodeId] = set()

    async def receive(self, inbox: trio.MemoryReceiveChannel[Inbound]) -> None:
        async for inbound in inbox:
            message = inbound.message
            if isinstance(message, Ask):
                # A peer that takes nothing must not keep the others waiting.
                with trio.move_on_after(ANSWER_TIMEOUT_S):
                    await inbound.answer(page(self._trust, message.height))
                if message.height > self._trust.head[0]:
                    self._ask_soon(inbound.peer)
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
            if not self._trust.made_here and len(peers) > PASS_ON_PEERS:
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
                self._ask_soon(self._rng.choice(peers))
            await pause(ASK_INTERVAL_S * self._rng.uniform(0.8, 1.2))

    def _take(self, peer: NodeId, message: Records) -> None:
        """What was pushed: taken if it leads to its certificate, else its sender is asked."""
        if message.certificate == self._trust.certificate:
            return
        last = message.first - 1 + len(message.records)
        try:
            if message.first <= self._trust.noted[0] + 1 and last >= message.height:
                self._trust.learn(message.records, message.certificate, from_peer=True)
                return
        except SwarmError as error:  # A bad record, or a disk that is full: asked again later.
            self._refused(peer, error)
        if message.height >= self._trust.head[0]:
            self._ask_soon(peer)

    def _ask_soon(self, peer: NodeId) -> None:
        """Catch up with `peer`, beside others that are asked; no more than one may keep busy."""
        if peer in self._asking or len(self._asking) >= _ASKING_MAX:
            return
        self._asking.add(peer)
        self._nursery.start_soon(self._ask, peer)

    async def _ask(self, peer: NodeId) -> None:
        try:
            with trio.move_on_after(CATCH_UP_TIMEOUT_S):
                await self._catch_up_with(peer)
        except SwarmError as error:
            self._refused(peer, error)
        finally:
            self._asking.discard(peer)

    async def _catch_up_with(self, peer: NodeId) -> None:
        """Get what counts there, page by page, and take it whole: only its head is certified.

        Raises SwarmError: what it shows is not in order.
        """
        trust = self._trust
        state, anew = trust.what_counts(), False
        for _ in range(_PAGES_MAX):
            answer = await self._page_of(peer, state.head[0])
            if answer is None or answer.certificate == trust.certificate or not answer.height:
                return
            head = await self._verified(answer.certificate)
            if head.height != answer.height:
                raise MalformedMessage("a page that claims another height than is certified")
            if not _goes_on(state, head, answer):
                if anew:
                    raise Untrusted("its records do not follow from the genesis")
                if trust.certified_by == head.epoch and head.height <= trust.head[0]:
                    return  # It is behind.
                # Its history is another one from some record on: which, only the whole can tell.
                state, anew = AuthorityState(trust.genesis), True
                continue
            for number, raw in enumerate(answer.records):
                state.replay(raw)
                if number % _REPLAYED_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
            if state.head[0] == head.height:
                trust.adopt(state, answer.certificate)
                return
            if not answer.records:
                raise MalformedMessage("a page without the records that it claims")

    async def _page_of(self, peer: NodeId, height: int) -> Records | None:
        """None: it does not answer, and another member is asked in a few seconds."""
        for _ in range(_PAGE_TRIES):
            try:
                ask = Ask(height)
                answer = await self._link.request(TRUST, peer, ask, timeout_s=ASK_TIMEOUT_S)
            except TimedOut:
                continue
            except SwarmError:
                return None
            if not isinstance(answer, Records) or len(answer.records) > PAGE_RECORDS_MAX:
                raise MalformedMessage("not a page of authority records")
            return answer
        return None

    async def _verified(self, certificate: bytes) -> Head:
        """Waits for an epoch that is on its way. Raises SwarmError."""
        with trio.move_on_after(EPOCH_WAIT_S):
            while True:
                try:
                    return self._trust.verify(certificate)
                except UnknownEpoch:
                    await trio.sleep(EPOCH_POLL_S)
        return self._trust.verify(certificate)

    def _refused(self, peer: NodeId, error: SwarmError) -> None:
        DROPPED.labels("trust", error.code).inc()
        # An epoch that is heard of by another way a moment later is nothing to warn of.
        say = _log.debug if isinstance(error, UnknownEpoch) else _log.warning
        say("authority records refused", peer=short(peer), why=error.message)

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


def _goes_on(state: AuthorityState, head: Head, page: Records) -> bool:
    """Does a page go on from `state` on the way to a certified head?"""
    height = state.head[0]
    if head.height < height:
        return False
    if head.height == height:
        return head.hash == state.head[1]
    if not page.records:
        return True
    first = decode_record(page.records[0])
    follows = first.height == height + 1 and first.previous_hash == state.head[1]
    return follows and height + len(page.records) <= head.height
