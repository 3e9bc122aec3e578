"""What gets through shows in each direction by itself, and what others may ask for is bounded."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from small_swarm import KEYS, FixedRoster, chain, configs, meshes, sees, until

from swarmd.base.errors import Busy, MalformedMessage, SwarmError, Unreachable
from swarmd.base.ids import NodeId
from swarmd.mesh.addresses import Address, AddressBook
from swarmd.mesh.link import Inbound
from swarmd.mesh.reach import service
from swarmd.mesh.reach.knocking import TcpDoor
from swarmd.mesh.reach.messages import (
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
from swarmd.mesh.reach.service import PEERS_MAX, Reach, ReachService, open_reach
from swarmd.mesh.transports.memory import MemoryLink, MemoryNetwork
from swarmd.mesh.transports.sessions import PAYLOAD_BYTES_MAX

A, B, C = (NodeId(key.key_id) for key in KEYS[:3])
NONCE = b"n" * NONCE_BYTES


@dataclass
class Air:
    """Carries datagrams and TCP calls between nodes, but for what `blocks` says."""

    blocks: Callable[[NodeId, NodeId, int], bool] = lambda source, target, size: False
    calls: dict[tuple[NodeId, NodeId], Outcome] = field(default_factory=dict)
    nodes: dict[NodeId, AirDatagrams] = field(default_factory=dict)


class AirDatagrams:
    def __init__(self, air: Air, me: NodeId) -> None:
        self.air, self.me = air, me
        self.sent: list[tuple[NodeId, int]] = []
        self.probes_in, self.probes = trio.open_memory_channel[tuple[NodeId, bytes]](1_000)
        air.nodes[me] = self

    def probe(self, peer: NodeId, data: bytes) -> str:
        self.sent.append((peer, len(data)))
        if not self.air.blocks(self.me, peer, len(data)):
            self.air.nodes[peer].probes_in.send_nowait((self.me, data))
        return "sent"

    def heard_s(self, peer: NodeId) -> float:
        return math.inf


class AirDoor:
    def __init__(self, air: Air, me: NodeId) -> None:
        self.air, self.me = air, me

    async def knock(self, peer: NodeId, timeout_s: float) -> Outcome:
        outcome = self.air.calls.get((self.me, peer), "ok")
        if outcome in ("silent", "stalled"):
            await trio.sleep(timeout_s)
        return outcome

    async def foreign_swarm(self, address: Address, timeout_s: float) -> str:
        raise AssertionError("nobody asks for it here")


@dataclass
class Three:
    air: Air
    network: MemoryNetwork
    links: dict[NodeId, MemoryLink]
    services: dict[NodeId, ReachService]

    def connect(self, one: NodeId, other: NodeId) -> None:
        self.network.connect(self.links[one], other)

    async def try_from(self, one: NodeId, *others: NodeId) -> list[Reach]:
        found = await self.services[one].examine(others)
        return list(found.values())


@asynccontextmanager
async def three() -> AsyncIterator[Three]:
    air, network = Air(), MemoryNetwork()
    roster = FixedRoster(*KEYS[:3])
    async with AsyncExitStack() as stack:
        links = {one: network.link(one) for one in (A, B, C)}
        services = {
            one: await stack.enter_async_context(
                open_reach(links[one], AirDatagrams(air, one), roster, AirDoor(air, one))
            )
            for one in (A, B, C)
        }
        yield Three(air, network, links, services)


async def test_all_gets_through_and_it_takes_no_time(autojump_clock: trio.abc.Clock) -> None:
    async with three() as net:
        net.connect(A, B)
        began = trio.current_time()
        [reach] = await net.try_from(A, B)
        assert reach.is_whole
        assert reach.called
        assert not reach.relayed
        assert trio.current_time() - began < 0.3


async def test_a_wall_that_lets_one_direction_through_shows_which(
    autojump_clock: trio.abc.Clock,
) -> None:
    """Nothing of B's comes to A, so no TCP either way: C passes the question on."""
    async with three() as net:
        net.connect(A, C)
        net.connect(C, B)
        net.air.blocks = lambda source, target, size: (source, target) == (B, A)
        net.air.calls = {(A, B): "silent", (B, A): "silent"}
        [reach] = await net.try_from(A, B)
        assert reach.relayed
        assert reach.answer is not None
        assert reach.answer.small > 0, "B hears A"
        assert reach.answer.tcp == "silent"
        assert not reach.small
        assert not reach.called, "A does not hear B"
        await trio.sleep(2)
        [reach] = await net.try_from(B, A)
        assert reach.answer is not None
        assert reach.answer.small == 0, "A does not hear B"
        assert not reach.small
        assert reach.called, "B hears A"


async def test_packets_of_full_size_are_missed_apart(autojump_clock: trio.abc.Clock) -> None:
    async with three() as net:
        net.connect(A, B)
        net.air.blocks = lambda source, target, size: size > 1_000
        [reach] = await net.try_from(A, B)
        assert reach.small
        assert not reach.full
        assert reach.answer is not None
        assert (reach.answer.small > 0, reach.answer.full) == (True, 0)


async def test_who_is_gone_is_silent_and_holds_nobody_up(autojump_clock: trio.abc.Clock) -> None:
    async with three() as net:
        net.air.blocks = lambda source, target, size: True
        net.air.calls = {(A, B): "silent"}
        began = trio.current_time()
        [reach] = await net.try_from(A, B)
        assert reach == Reach(tcp="silent")
        assert trio.current_time() - began <= 2 * service.TRIAL_S


async def test_no_more_than_some_are_tried_at_once(autojump_clock: trio.abc.Clock) -> None:
    async with three() as net:
        air = net.air
        strangers = [NodeId(os.urandom(32)) for _ in range(3 * PEERS_MAX)]
        for one in strangers:
            AirDatagrams(air, one)
        assert len(await net.services[A].examine(strangers)) == PEERS_MAX


@pytest.mark.parametrize(
    ("question", "error"),
    [
        (Question(NONCE, b"x" * 32, B), MalformedMessage),  # Of a stranger.
        (Question(NONCE, B, B), MalformedMessage),  # Of itself.
        (Question(NONCE, C, A), MalformedMessage),  # Passed on twice.
        (Question(NONCE, A, C), Unreachable),  # To who is not connected.
        (Answer(1, 1, "ok"), MalformedMessage),
    ],
)
async def test_what_nobody_may_ask_is_refused(
    question: Question | Answer, error: type[SwarmError], autojump_clock: trio.abc.Clock
) -> None:
    async with three() as net:
        net.connect(A, B)
        with pytest.raises(error):
            await net.links[A].request(REACH, B, question, timeout_s=5)
        assert net.air.nodes[B].sent == []


async def test_one_question_a_second_is_answered(autojump_clock: trio.abc.Clock) -> None:
    async with three() as net:
        net.connect(A, B)
        net.connect(C, B)
        ask = net.links[A].request
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: ask(REACH, B, Question(NONCE, A, B), timeout_s=5))
            await trio.sleep(0.1)
            with pytest.raises(Busy):
                await ask(REACH, B, Question(NONCE, A, B), timeout_s=5)
            with pytest.raises(Busy):  # Nor through somebody else.
                await net.links[C].request(REACH, B, Question(NONCE, A, B), timeout_s=5)
        assert len(net.air.nodes[B].sent) == 2
        await ask(REACH, B, Question(NONCE, A, B), timeout_s=5)


async def test_who_passes_questions_on_takes_nothing_from_who_asks(
    autojump_clock: trio.abc.Clock,
) -> None:
    """C says that A asks, and A does not."""
    async with three() as net:
        net.connect(A, B)
        net.connect(C, B)
        ask = net.links[A].request
        relayed = Question(NONCE, A, B)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: net.links[C].request(REACH, B, relayed, timeout_s=5))
            await trio.sleep(0.1)
            assert isinstance(await ask(REACH, B, Question(NONCE, A, B), timeout_s=5), Answer)


async def test_what_is_passed_on_has_a_bound_for_each_and_for_all(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with three() as net:
        count = net.services[B]._count
        some = [NodeId(bytes([n]) * 32) for n in range(20)]
        count(some[0], some[10])
        with pytest.raises(Busy):
            count(some[1], some[10])
        with pytest.raises(Busy):
            count(some[0], some[11])
        for n in range(1, 4):
            count(some[n], some[10 + n])
        with pytest.raises(Busy):
            count(some[4], some[14])
        count(some[4], some[4])
        await trio.sleep(1)
        count(some[4], some[14])


async def test_a_question_for_an_answer_is_no_answer(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork()
    links = {one: network.link(one) for one in (A, B)}
    network.connect(links[A], B)
    air = Air()
    AirDatagrams(air, B)
    inbox = links[B].open_inbox(REACH)
    asks = ReachService(links[A], AirDatagrams(air, A), FixedRoster(*KEYS[:3]), AirDoor(air, A))

    async def mock() -> None:
        async for inbound in inbox:
            await inbound.answer(inbound.message)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mock)
        found = await asks.examine([B])
        nursery.cancel_scope.cancel()
    assert found[B].answer is None
    assert not found[B].is_whole


@dataclass
class Unread:
    """What a peer asks that does not read what comes back."""

    message: Question | Answer
    peer: NodeId = A
    wants_answer: bool = True

    async def answer(self, message: object, *, more: bool = False) -> None:
        await trio.sleep_forever()

    async def fail(self, error: SwarmError) -> None:
        await trio.sleep_forever()


async def test_who_does_not_read_holds_nobody_up(autojump_clock: trio.abc.Clock) -> None:
    network, air = MemoryNetwork(), Air()
    links = {one: network.link(one) for one in (A, B)}
    AirDatagrams(air, A)
    serves = ReachService(links[B], AirDatagrams(air, B), FixedRoster(*KEYS[:3]), AirDoor(air, B))
    put, serves._inbox = trio.open_memory_channel[Inbound](1_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serves.serve)
        for _ in range(100):
            put.send_nowait(Unread(Answer(1, 1, "ok")))
        put.send_nowait(Unread(Question(NONCE, A, B)))
        await trio.sleep(0.1)
        assert serves._refusing == 16
        assert serves._answering == {A: 1}
        await trio.sleep(10)
        assert serves._refusing == 0
        assert serves._answering == {}
        nursery.cancel_scope.cancel()


async def test_who_asks_twice_within_a_second_waits(autojump_clock: trio.abc.Clock) -> None:
    async with three() as net:
        net.connect(A, B)
        assert [r.is_whole for r in await net.try_from(A, B)] == [True]
        assert [r.is_whole for r in await net.try_from(A, B)] == [True]


async def test_a_build_of_before_is_blamed_for_nothing(autojump_clock: trio.abc.Clock) -> None:
    air, network = Air(blocks=lambda source, target, size: True), MemoryNetwork()
    links = {one: network.link(one) for one in (A, B)}
    network.connect(links[A], B)
    AirDatagrams(air, B)
    roster = FixedRoster(*KEYS[:3])
    async with open_reach(links[A], AirDatagrams(air, A), roster, AirDoor(air, A)) as asks:
        found = await asks.examine([B])
    assert found[B].unasked


async def test_no_echo_is_larger_than_its_probe_and_floods_bring_few(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with three() as net:
        air = net.air
        for size in (30, 64, 300, 500, PAYLOAD_BYTES_MAX):
            before = len(air.nodes[B].sent)
            probe = padded(Probe(os.urandom(8), True, b""), size)
            air.nodes[A].probe(B, probe)
            await trio.sleep(0.1)
            [(peer, answered)] = air.nodes[B].sent[before:]
            assert peer == A
            assert answered <= len(probe) <= size
        await trio.sleep(service._ECHO_WINDOW_S)
        before = len(air.nodes[B].sent)
        for number in range(600):
            air.nodes[A].probe(B, PROBES.encode(Probe(number.to_bytes(8, "big"), True, b"")))
        await trio.sleep(0.1)
        assert len(air.nodes[B].sent) - before <= service._ECHOES_MAX
        assert len(net.services[B]._seen) <= service._SEEN_MAX


async def test_anything_at_all_may_come_in_a_probe(autojump_clock: trio.abc.Clock) -> None:
    async with three() as net:
        nodes = net.air.nodes
        for raw in (b"", b"\x01", os.urandom(40), PROBES.encode(Echo(NONCE, b""))):
            nodes[A].probe(B, raw)
        await trio.sleep(0.1)
        assert nodes[B].sent == []
        net.connect(A, B)
        assert [r.is_whole for r in await net.try_from(A, B)] == [True]


# ---- over real sockets ------------------------------------------------------------------


async def test_real_nodes_reach_each_other_with_packets_of_full_size(tmp_path: Path) -> None:
    state, _ = chain(2)
    async with meshes(tmp_path, configs(2), state) as nodes:
        (a, _), (b, _) = nodes
        await until(lambda: sees(a) == 2 == sees(b))
        facts = await a.facts([b.link.node_id])
        reach = facts.reach[b.link.node_id]
        assert reach.is_whole, reach
        assert not reach.too_large
        assert reach.heard_s < 5


async def test_a_door_tells_who_opens_it(tmp_path: Path) -> None:
    state, _ = chain(3)
    async with meshes(tmp_path, configs(2), state) as nodes:
        (a, _), (b, _) = nodes
        await until(lambda: sees(a) == 2 == sees(b))
        book = AddressBook()
        there = b.local_addresses[0]
        door = TcpDoor(KEYS[0], FixedRoster(*KEYS[:3]), book, ())
        assert await door.knock(b.link.node_id, 2) == "nowhere"
        book.learn(b.link.node_id, [there])
        assert await door.knock(b.link.node_id, 2) == "ok"
        book.learn(C, [there])
        assert await door.knock(C, 2) == "other"
        book.forget(C)
        book.learn(C, [("127.0.0.99", 1)])
        assert await door.knock(C, 2) == "refused"


async def test_a_door_behind_which_nobody_answers(nursery: trio.Nursery) -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    book = AddressBook()
    book.learn(C, [listener.socket.getsockname()[:2]])
    door = TcpDoor(KEYS[0], FixedRoster(*KEYS[:3]), book, ())
    assert await door.knock(C, 0.3) == "stalled"
    await listener.aclose()
