"""What gets through between this node and another one: datagrams of each size, and TCP calls.

`examine` tries it for some members at once. To each go datagrams, small ones and ones of full
size, which come back as they were; it is called over TCP anew; and it is asked, over a stream or
through a third member, what came of it there and whether it can call back. So each direction shows
by itself, also where a firewall lets only one of them through.

What others ask for is bounded: one question a second for each asker, `_QUESTIONS_MAX` at a time,
and `_QUESTIONS_EACH_MAX` of them for one peer. Who passes a question on may lie about who asks:
what comes so has a budget of its own, `_RELAYED_MAX` a second, and takes nothing from who asks
itself. Echoes are no larger than what they answer and `_ECHOES_MAX` in `_ECHO_WINDOW_S`; calls and
probes go to members alone, where the mesh itself would look for them.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import trio

from swarmd.base.errors import Busy, MalformedMessage, SwarmError, Unavailable, Unreachable
from swarmd.base.ids import NodeId
from swarmd.base.limits import MEMBERS_MAX
from swarmd.mesh.addresses import Address
from swarmd.mesh.link import Inbound, Link
from swarmd.mesh.reach.knocking import Door
from swarmd.mesh.reach.messages import (
    COUNTS_MAX,
    FULL_BYTES,
    NONCE_BYTES,
    PROBES,
    REACH,
    Answer,
    Echo,
    Outcome,
    Probe,
    Question,
    padded,
)
from swarmd.mesh.transports.roster import Roster, admitted
from swarmd.mesh.transports.sessions import PAYLOAD_BYTES_MAX
from swarmd.observe.metrics import DROPPED

PEERS_MAX: Final = 32
TRIAL_S: Final = 1.5
_SMALL_BYTES: Final = 64
_PAUSES_S: Final = (0.0, 0.1, 0.3, 0.5)
_POLL_S: Final = 0.02
_RELAYS_MAX: Final = 2
# The target answers within a trial, and the question and its answer are on their way meanwhile.
_ANSWER_TIMEOUT_S: Final = 2 * TRIAL_S
_ASK_S: Final = 2 * _ANSWER_TIMEOUT_S
_QUESTIONS_MAX: Final = 16
_QUESTIONS_EACH_MAX: Final = 8
_QUESTION_EVERY_S: Final = 1.0
_RELAYED_MAX: Final = 4
_REFUSALS_MAX: Final = 16
_SEEN_MAX: Final = 256
_ECHOES_MAX: Final = 64
_ECHO_WINDOW_S: Final = 2.0

assert FULL_BYTES == PAYLOAD_BYTES_MAX

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Datagrams(Protocol):
    """`mesh.transports.udp.Datagrams` is one."""

    @property
    def probes(self) -> trio.MemoryReceiveChannel[tuple[NodeId, bytes]]: ...
    def probe(self, peer: NodeId, data: bytes) -> str: ...
    def heard_s(self, peer: NodeId) -> float: ...


@dataclass(slots=True)
class Reach:
    """What was found of one member.

    `small` and `full` are whether datagrams of that size came back; `too_large` that this host
    does not send a full one in one piece; `called` that it sent one of its own accord because it
    was asked; `heard_s` since when nothing at all came. `answer` is what it said, if it was asked;
    `relayed` that this took a third member.
    """

    tcp: Outcome = "silent"
    small: bool = False
    full: bool = False
    too_large: bool = False
    called: bool = False
    heard_s: float = float("inf")
    answer: Answer | None = None
    relayed: bool = False
    unasked: bool = False
    """It is of a build that knows no such questions, nor probes: nothing follows from silence."""

    @property
    def is_whole(self) -> bool:
        """Does everything get through, in both directions?"""
        back = self.answer
        return (
            self.tcp == "ok"
            and self.small
            and self.full
            and back is not None
            and back.tcp == "ok"
            and back.small > 0
            and back.full > 0
        )


@dataclass(slots=True)
class _Seen:
    """What came of another's probes."""

    small: int = 0
    full: int = 0


class ReachService:
    """Asks and answers. Made by `open_reach`."""

    def __init__(self, link: Link, datagrams: Datagrams, roster: Roster, door: Door) -> None:
        self._link, self._datagrams, self._roster, self._door = link, datagrams, roster, door
        self._inbox = link.open_inbox(REACH, size=_QUESTIONS_MAX)
        self._trials: dict[bytes, tuple[NodeId, Reach]] = {}
        self._seen: OrderedDict[tuple[NodeId, bytes], _Seen] = OrderedDict()
        self._asked_at: OrderedDict[NodeId, float] = OrderedDict()
        self._relayed_for: OrderedDict[NodeId, float] = OrderedDict()
        self._relayed_by: OrderedDict[NodeId, float] = OrderedDict()
        self._relayed: deque[float] = deque(maxlen=_RELAYED_MAX)
        self._echoed: OrderedDict[NodeId, tuple[float, int]] = OrderedDict()
        self._answering: Counter[NodeId] = Counter()
        self._refusing = 0
        self._examining = trio.Lock()

    # ---- asking -----------------------------------------------------------------------

    async def examine(self, peers: Sequence[NodeId]) -> Mapping[NodeId, Reach]:
        """Try to reach members, PEERS_MAX of them at most.

        It is over at once where all gets through, after a trial where somebody is away, and after
        `_ASK_S` where members that should answer do not.

        One examination runs at a time: another one waits for it.
        """
        found = {peer: Reach() for peer in peers[:PEERS_MAX]}
        async with self._examining, trio.open_nursery() as nursery:
            for peer, reach in found.items():
                nursery.start_soon(self._try, peer, reach)
        return found

    async def foreign_swarm(self, address: Address) -> str:
        """The name of the other swarm whose node answers at an address; empty if none does."""
        return await self._door.foreign_swarm(address, TRIAL_S)

    async def _try(self, peer: NodeId, reach: Reach) -> None:
        nonce = os.urandom(NONCE_BYTES)
        self._trials[nonce] = (peer, reach)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ask, peer, nonce, reach)
                nursery.start_soon(self._knock, peer, reach)
                await self._probe(peer, nonce, reach)
            reach.heard_s = self._datagrams.heard_s(peer)
        finally:
            del self._trials[nonce]

    async def _probe(self, peer: NodeId, nonce: bytes, reach: Reach) -> None:
        small = padded(Probe(nonce, True, b""), _SMALL_BYTES)
        full = padded(Probe(nonce, True, b""), FULL_BYTES)
        with trio.move_on_after(TRIAL_S):
            for pause_s in _PAUSES_S:
                await trio.sleep(pause_s)
                if reach.small and reach.full:
                    return
                self._datagrams.probe(peer, small)
                if self._datagrams.probe(peer, full) == "too_large":
                    reach.too_large = True
            while not (reach.small and reach.full):  # noqa: ASYNC110 - it ends with the trial
                await trio.sleep(_POLL_S)

    async def _knock(self, peer: NodeId, reach: Reach) -> None:
        reach.tcp = await self._door.knock(peer, TRIAL_S)

    async def _ask(self, peer: NodeId, nonce: bytes, reach: Reach) -> None:
        """Ask it, over the stream there is, or else through members that have one to it."""
        with trio.move_on_after(_ASK_S):
            await self._ask_each_way(peer, nonce, reach)

    async def _ask_each_way(self, peer: NodeId, nonce: bytes, reach: Reach) -> None:
        question = Question(nonce, self._link.node_id, peer)
        connected = self._link.connected()
        ways = [peer] * 2 if peer in connected else []
        ways += [one for one in connected if one != peer][:_RELAYS_MAX]
        failed: set[NodeId] = set()
        for way in ways:
            if way in failed:
                continue
            try:
                reach.answer = await self._request(way, question)
            except Busy:  # It has just answered another question of ours.
                await trio.sleep(_QUESTION_EVERY_S)
                continue
            except SwarmError as error:
                if way == peer and type(error) is Unavailable:
                    reach.unasked = True
                    return
                failed.add(way)
                continue
            reach.relayed = way != peer
            return

    async def _request(self, way: NodeId, question: Question) -> Answer:
        answer = await self._link.request(REACH, way, question, timeout_s=_ANSWER_TIMEOUT_S)
        if not isinstance(answer, Answer):
            raise MalformedMessage("a question was answered with something else")
        return answer

    # ---- answering --------------------------------------------------------------------

    async def serve(self) -> None:
        """Take part until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_probes)
            async for inbound in self._inbox:
                try:
                    self._check(inbound)
                except SwarmError as error:
                    self._refuse(nursery, inbound, error)
                    continue
                nursery.start_soon(self._serve, inbound)

    def _refuse(self, nursery: trio.Nursery, inbound: Inbound, error: SwarmError) -> None:
        """Say so in the background: who asks may not read."""
        if self._refusing >= _REFUSALS_MAX:
            DROPPED.labels("reach", "too_many").inc()
            return
        self._refusing += 1
        nursery.start_soon(self._fail, inbound, error)

    async def _fail(self, inbound: Inbound, error: SwarmError) -> None:
        try:
            with trio.move_on_after(_ANSWER_TIMEOUT_S):
                await inbound.fail(error)
        finally:
            self._refusing -= 1

    def _check(self, inbound: Inbound) -> None:
        """Take a place for a question. Raises Busy, MalformedMessage, Unreachable."""
        question = inbound.message
        if not isinstance(question, Question):
            raise MalformedMessage("this is no question")
        asker, target = NodeId(question.asker), NodeId(question.target)
        mine = target == self._link.node_id
        if admitted(self._roster, asker) is None or asker == self._link.node_id:
            raise MalformedMessage("nobody who may ask asked this")
        if not mine and inbound.peer != asker:
            raise MalformedMessage("a question is passed on once")
        if not mine and target not in self._link.connected():
            raise Unreachable("this member has no connection there either")
        under_way = self._answering
        if under_way.total() >= _QUESTIONS_MAX or under_way[inbound.peer] >= _QUESTIONS_EACH_MAX:
            raise Busy("too much is being asked here: try again")
        if mine:
            self._count(asker, inbound.peer)
        self._answering[inbound.peer] += 1

    def _count(self, asker: NodeId, peer: NodeId) -> None:
        """Count a question to this node, which `peer` asks or passes on. Raises Busy."""
        now = trio.current_time()
        if _is_soon(self._asked_at, asker, now):
            raise Busy("one question a second is answered")
        if peer == asker:
            _remember(self._asked_at, asker, now, MEMBERS_MAX)
            return
        if _is_soon(self._relayed_for, asker, now) or _is_soon(self._relayed_by, peer, now):
            raise Busy("one question a second is answered")
        if len(self._relayed) == _RELAYED_MAX and now - self._relayed[0] < _QUESTION_EVERY_S:
            raise Busy(f"{_RELAYED_MAX} questions a second are answered that others pass on")
        self._relayed.append(now)
        _remember(self._relayed_for, asker, now, MEMBERS_MAX)
        _remember(self._relayed_by, peer, now, MEMBERS_MAX)

    async def _serve(self, inbound: Inbound) -> None:
        try:
            with trio.move_on_after(_ASK_S):  # Who asks may not read.
                try:
                    await inbound.answer(await self._find_answer(inbound.message))
                except SwarmError as error:
                    await inbound.fail(error)
        finally:
            self._answering[inbound.peer] -= 1
            if not self._answering[inbound.peer]:
                del self._answering[inbound.peer]

    async def _find_answer(self, question: Question) -> Answer:
        if question.target == self._link.node_id:
            return await self._report(NodeId(question.asker), question.nonce)
        return await self._request(NodeId(question.target), question)

    async def _report(self, asker: NodeId, nonce: bytes) -> Answer:
        """Call back, wait for the probes, and say what came."""
        outcome: list[Outcome] = []

        async def knock() -> None:
            outcome.append(await self._door.knock(asker, TRIAL_S))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(knock)
            for _ in range(2):
                self._datagrams.probe(asker, padded(Probe(nonce, False, b""), _SMALL_BYTES))
            seen = _Seen()
            with trio.move_on_after(TRIAL_S):
                while not (seen.small and seen.full):
                    await trio.sleep(_POLL_S)
                    seen = self._seen.get((asker, nonce), seen)
        return Answer(min(seen.small, COUNTS_MAX), min(seen.full, COUNTS_MAX), outcome[0])

    async def _take_probes(self) -> None:
        async for peer, data in self._datagrams.probes:
            try:
                message = PROBES.decode(data)
            except MalformedMessage:
                DROPPED.labels("reach", "malformed").inc()
                continue
            if isinstance(message, Probe):
                self._note_probe(peer, message, len(data))
            else:
                self._note_echo(peer, message, len(data))

    def _note_probe(self, peer: NodeId, probe: Probe, size: int) -> None:
        mine = self._trials.get(probe.nonce)
        if mine is not None and mine[0] == peer:
            mine[1].called = True
            return
        seen = self._seen.get((peer, probe.nonce)) or _Seen()
        _remember(self._seen, (peer, probe.nonce), seen, _SEEN_MAX)
        if size == FULL_BYTES:
            seen.full += 1
        else:
            seen.small += 1
        if probe.echo and self._may_echo(peer):
            self._datagrams.probe(peer, padded(Echo(probe.nonce, b""), size))

    def _may_echo(self, peer: NodeId) -> bool:
        now = trio.current_time()
        since, count = self._echoed.get(peer, (now, 0))
        if now - since > _ECHO_WINDOW_S:
            since, count = now, 0
        if count >= _ECHOES_MAX:
            DROPPED.labels("reach", "too_many").inc()
            return False
        _remember(self._echoed, peer, (since, count + 1), MEMBERS_MAX)
        return True

    def _note_echo(self, peer: NodeId, echo: Echo, size: int) -> None:
        mine = self._trials.get(echo.nonce)
        if mine is None or mine[0] != peer:
            DROPPED.labels("reach", "stale").inc()
        elif size == FULL_BYTES:
            mine[1].full = True
        else:
            mine[1].small = True


def _is_soon(kept: Mapping[NodeId, float], key: NodeId, now: float) -> bool:
    return now - kept.get(key, float("-inf")) < _QUESTION_EVERY_S


def _remember(kept: OrderedDict[_Key, _Value], key: _Key, value: _Value, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)


@asynccontextmanager
async def open_reach(
    link: Link, datagrams: Datagrams, roster: Roster, door: Door
) -> AsyncIterator[ReachService]:
    """Answer what members ask for as long as the block runs."""
    service = ReachService(link, datagrams, roster, door)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.serve)
        try:
            yield service
        finally:
            nursery.cancel_scope.cancel()
