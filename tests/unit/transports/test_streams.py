"""Streams: who gets a connection, which of two stays, how it ends, what strangers can do."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import resource
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psutil
import pytest
import trio
import trio.testing
from small_swarm import KEYS, FixedRoster, until

import swarmd.mesh.transports.streams
from swarmd.base.errors import Busy, SwarmError, Unreachable
from swarmd.base.ids import NodeId
from swarmd.base.limits import MIB
from swarmd.base.rng import make_rng
from swarmd.identity.keys import Exchange, SigningKey
from swarmd.identity.tls import (
    MESH_ALPN,
    PIPE_ALPN,
    RAFT_ALPN,
    client_context,
    join_context,
)
from swarmd.mesh.addresses import AddressBook
from swarmd.mesh.config import MeshConfig
from swarmd.mesh.driver import AHEAD_TURNS
from swarmd.mesh.link import PIPES_PER_PEER_MAX, Inbound, Pipe
from swarmd.mesh.transports.carriers import PlainCarrier, TlsStream
from swarmd.mesh.transports.hello import Hello, receive_part, send_part, sign_hello
from swarmd.mesh.transports.ports import StreamPort
from swarmd.mesh.transports.streams import JoinServer, Streams, open_streams
from swarmd.mesh.transports.tls_pipes import TlsPipe
from swarmd.observe.metrics import REGISTRY
from swarmd.wire.codec import Family, Message
from swarmd.wire.version import PROTOCOL_VERSION


class Say(Message, frozen=True, tag=1):
    number: int


TALK = Family("talk", Say)
RAFT = Family("talk", Say, alpn=RAFT_ALPN)
A, B, C = sorted(KEYS[:3], key=lambda key: key.key_id)


def dropped(reason: str) -> float:
    labels = {"where": "stream", "reason": reason}
    return REGISTRY.get_sample_value("swarmd_dropped_total", labels) or 0.0


@dataclasses.dataclass
class Node:
    streams: Streams
    book: AddressBook
    roster: FixedRoster
    address: tuple[str, int]
    scope: trio.CancelScope


@contextlib.asynccontextmanager
async def node(
    key: SigningKey,
    roster: FixedRoster,
    *,
    config: MeshConfig | None = None,
    join: JoinServer | None = None,
) -> AsyncIterator[Node]:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    book = AddressBook()
    with trio.CancelScope() as scope:
        async with open_streams(
            key,
            roster,
            book,
            [listener],
            config=config or MeshConfig(),
            rng=make_rng(1),
            join=join,
        ) as streams:
            yield Node(streams, book, roster, listener.socket.getsockname(), scope)


def know(one: Node, other: Node) -> None:
    one.book.learn(other.streams.node_id, [other.address])


async def echo(streams: Streams, family: Family = TALK) -> None:
    async for inbound in streams.open_inbox(family):
        await inbound.answer(inbound.message)


@contextlib.asynccontextmanager
async def two(
    *,
    config: MeshConfig | None = None,
    rosters: tuple[FixedRoster, FixedRoster] | None = None,
    serve: Callable[[Streams], Awaitable[None]] = echo,
) -> AsyncIterator[tuple[Node, Node]]:
    """A and B, who know each other; B serves what comes."""
    first, second = rosters or (FixedRoster(A, B, C), FixedRoster(A, B, C))
    async with node(A, first, config=config) as a, node(B, second, config=config) as b:
        know(a, b)
        know(b, a)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, b.streams)
            await trio.testing.wait_all_tasks_blocked()
            yield a, b
            nursery.cancel_scope.cancel()


async def ask(one: Node, other: Node, *, timeout_s: float = 5) -> None:
    answer = await one.streams.request(TALK, other.streams.node_id, Say(1), timeout_s=timeout_s)
    assert answer == Say(1)


async def test_a_member_admitted_late_on_the_other_side_gets_in_soon() -> None:
    rosters = FixedRoster(A, B), FixedRoster(B)
    async with two(rosters=rosters) as (a, b), trio.open_nursery() as nursery:
        started = trio.current_time()
        nursery.start_soon(ask, a, b)
        await trio.sleep(0.4)
        b.roster.become(A, B)
        admitted_at = trio.current_time()
        await until(lambda: a.streams.connected() == [B.key_id])
        assert trio.current_time() - admitted_at < 1.5
        assert admitted_at - started < 1


async def test_a_member_learned_late_on_this_side_is_reached_at_once() -> None:
    """The server's certificate is unknown here: learning it wakes the retry."""
    rosters = FixedRoster(A, B), FixedRoster(A, B)
    async with two(rosters=rosters) as (a, b):
        contexts = a.streams._contexts
        a.roster.become(A, B)
        contexts.client((MESH_ALPN,))
        contexts._made[("client", (MESH_ALPN,))] = client_context(
            A, FixedRoster(A).admissions(), (MESH_ALPN,)
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, a, b)
            await trio.sleep(0.5)
            started = trio.current_time()
            a.roster.become(A, B)
            await until(lambda: a.streams.connected() == [B.key_id])
            assert trio.current_time() - started < 0.3


async def test_who_is_never_admitted_is_unreachable_within_the_timeout() -> None:
    rosters = FixedRoster(A, B), FixedRoster(B)
    config = MeshConfig(connect_timeout_s=0.6)
    before = dropped("handshake")
    async with two(config=config, rosters=rosters) as (a, b):
        started = trio.current_time()
        with pytest.raises(Unreachable, match="handshake"):
            await ask(a, b)
        assert 0.3 < trio.current_time() - started < 1.5
    assert dropped("handshake") > before


async def test_another_member_at_the_address_is_noticed_and_the_address_forgotten() -> None:
    config = MeshConfig(connect_timeout_s=0.5)
    roster = FixedRoster(A, B, C)
    async with two(config=config) as (a, b), node(C, roster) as c:
        a.book.forget(C.key_id)
        a.book.learn(C.key_id, [b.address])
        with pytest.raises(Unreachable):
            await a.streams.request(TALK, C.key_id, Say(1), timeout_s=5)
        assert a.book.lookup(C.key_id) == []
        a.book.learn(C.key_id, [b.address, c.address])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, c.streams)
            await trio.testing.wait_all_tasks_blocked()
            await a.streams.request(TALK, C.key_id, Say(1), timeout_s=5)
            nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("carried")
async def test_an_evicted_member_loses_its_connection_at_once() -> None:
    async with two() as (a, b):
        await ask(a, b)
        b.roster.become(B, C)
        await until(lambda: b.streams.connected() == [])
        await until(lambda: a.streams.connected() == [])
        a.roster.become(A, C)
        with pytest.raises(Unreachable, match="not a member"):
            await ask(a, b)


@pytest.mark.parametrize("plane", [MESH_ALPN, RAFT_ALPN])
async def test_who_is_evicted_between_tls_and_its_hello_gets_no_connection(plane: str) -> None:
    async with two() as (a, b):
        stream = await proven_stream(C, b, plane)
        await trio.testing.wait_all_tasks_blocked(0.05)
        b.roster.become(A, B)
        await trio.testing.wait_all_tasks_blocked(0.05)
        said = Hello(PROTOCOL_VERSION, B.key_id, plane, Exchange().public, b"boot", 1, 1)
        await send_part(stream, sign_hello(said, b.roster.swarm_id, C))
        with pytest.raises(trio.BrokenResourceError):
            await receive_part(stream)
        assert (C.key_id, plane) not in b.streams._ports
        await ask(a, b)


@pytest.mark.usefixtures("carried")
async def test_an_outdated_member_loses_its_connection_at_once_and_gets_no_other() -> None:
    async with two(config=MeshConfig(connect_timeout_s=0.5)) as (a, b):
        await ask(a, b)
        b.roster.raise_version(PROTOCOL_VERSION + 1)
        await until(lambda: b.streams.connected() == [])
        await until(lambda: a.streams.connected() == [])
        before = dropped("outdated")
        with pytest.raises(Unreachable, match="it refused: outdated"):
            await ask(a, b)
        assert dropped("outdated") > before
        b.roster.raise_version(PROTOCOL_VERSION)
        await ask(a, b)


async def test_an_outdated_member_is_not_reached_either() -> None:
    async with two(config=MeshConfig(connect_timeout_s=0.5)) as (a, b):
        a.roster.raise_version(PROTOCOL_VERSION + 1)
        with pytest.raises(Unreachable, match="protocol version 1, which is too low"):
            await ask(a, b)


async def test_a_member_that_is_ahead_is_welcome(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two() as (a, b):
        b.roster.raise_version(PROTOCOL_VERSION + 1)
        monkeypatch.setattr("swarmd.mesh.transports.streams.PROTOCOL_VERSION", PROTOCOL_VERSION + 2)
        await ask(a, b)


async def test_raft_is_refused_to_who_is_no_voter() -> None:
    class Workers(FixedRoster):
        def admissions(self):  # type: ignore[no-untyped-def]
            return [dataclasses.replace(x, roles=("worker",)) for x in super().admissions()]

    config = MeshConfig(connect_timeout_s=0.5)
    async with two(config=config, rosters=(FixedRoster(A, B), Workers(A, B))) as (a, b):
        await ask(a, b)
        before = dropped("untrusted")
        with pytest.raises(Unreachable):
            await a.streams.request(RAFT, B.key_id, Say(1), timeout_s=5)
        assert dropped("untrusted") > before
        with pytest.raises(Unreachable, match="voter"):
            await b.streams.request(RAFT, A.key_id, Say(1), timeout_s=5)


@pytest.fixture(params=["websocket", "plain"])
def carried(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test is about what carries frames: hold it against either."""

    async def plain(
        alpn: str, nursery: trio.Nursery, stream: TlsStream, *, client: bool
    ) -> PlainCarrier:
        return PlainCarrier(stream)

    if request.param == "plain":
        monkeypatch.setattr("swarmd.mesh.transports.streams.open_carrier", plain)


@pytest.mark.usefixtures("carried")
async def test_a_goodbye_gives_its_reason_and_what_was_queued_arrives() -> None:
    async with two() as (a, b):
        inbox = a.streams.open_inbox(Family("late", Say))
        await ask(b, b)
        await a.streams.request(TALK, B.key_id, Say(1), timeout_s=5)
        for number in range(100):
            assert b.streams.send_nowait(Family("late", Say), A.key_id, Say(number))
        await b.streams.goodbye("restarting", 12)
        with trio.fail_after(5):
            got = [(await inbox.receive()).message.number for _ in range(100)]
            closed = await a.streams.closed.receive()
        assert got == list(range(100))
        assert (closed.peer, closed.how, closed.quiet_s) == (B.key_id, "restarting", 12)
        assert b.streams.closed.statistics().current_buffer_used == 0
        with pytest.raises(Unreachable, match="leaving"):
            await ask(a, b)


@pytest.mark.usefixtures("carried")
@pytest.mark.parametrize("other", ["leaves too", "drops the connection"])
async def test_a_goodbye_that_meets_the_other_sides_end_is_one_all_the_same(other: str) -> None:
    for _ in range(6):
        async with two() as (a, b), trio.open_nursery() as nursery:
            a.streams.open_inbox(Family("late", Say))
            await a.streams.request(TALK, B.key_id, Say(1), timeout_s=5)
            for number in range(900):
                b.streams.send_nowait(Family("late", Say), A.key_id, Say(number))
                a.streams.send_nowait(TALK, B.key_id, Say(number))
            nursery.start_soon(b.streams.goodbye, "restarting")
            await trio.sleep(0.001)
            if other == "leaves too":
                nursery.start_soon(a.streams.goodbye, "restarting")
            else:
                a.streams.drop(B.key_id, "it is gone")


@pytest.mark.usefixtures("carried")
async def test_an_idle_connection_is_closed_and_comes_back_when_used() -> None:
    async with two(config=MeshConfig(idle_close_s=0.2)) as (a, b):
        await ask(a, b)
        await until(lambda: not a.streams.connected() and not b.streams.connected())
        hows = set()
        for streams in (a.streams, b.streams):
            with contextlib.suppress(trio.WouldBlock):
                while True:
                    hows.add(streams.closed.receive_nowait().how)
        assert hows <= {"idle"}
        await ask(a, b)


@pytest.mark.usefixtures("carried")
async def test_a_waiting_request_keeps_its_connection_from_being_idle() -> None:
    slow = Family("slow", Say)
    async with two(config=MeshConfig(idle_close_s=0.1)) as (a, b):
        inbox = b.streams.open_inbox(slow)

        async def answer_late() -> None:
            inbound = await inbox.receive()
            await trio.sleep(1.5)
            await inbound.answer(inbound.message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_late)
            assert await a.streams.request(slow, B.key_id, Say(1), timeout_s=5) == Say(1)


async def test_a_refused_connection_is_reported_and_tried_less_and_less() -> None:
    async with two() as (a, b):
        b.scope.cancel()
        await trio.sleep(0.05)
        started = trio.current_time()
        with pytest.raises(Unreachable):
            await ask(a, b)
        assert trio.current_time() - started < 1
        assert (await a.streams.closed.receive()).how == "refused"
        assert not a.streams.send_nowait(TALK, B.key_id, Say(1))
        for _ in range(5):
            with pytest.raises(Unreachable):
                await ask(a, b)
        assert 0.1 < a.streams._pause(B.key_id) <= 1.0
        a.streams.retry_now(B.key_id)
        assert a.streams._pause(B.key_id) == 0


@pytest.mark.usefixtures("carried")
async def test_a_restarted_peer_replaces_its_old_connection() -> None:
    """A half-open connection must not keep the peer out."""
    async with two() as (a, b):
        await ask(a, b)
        old = b.streams._ports[A.key_id, MESH_ALPN]
        del a.streams._ports[B.key_id, MESH_ALPN]  # As if A had lost it without a trace.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, a, b)
            await until(lambda: old.broken)
        assert b.streams._ports[A.key_id, MESH_ALPN].is_open


# ---- which of two connections stays ---------------------------------------------------


def hello(boot: bytes = b"boot", number: int = 10) -> Hello:
    return Hello(PROTOCOL_VERSION, A.key_id, MESH_ALPN, bytes(32), boot, number, 1)


@pytest.mark.parametrize(
    ("stage", "me_smaller", "verdict"),
    [
        ("waiting", True, None),
        ("dialing", True, None),
        ("hello", True, "duplicate"),
        ("hello", False, None),
        ("broken", True, None),
    ],
)
async def test_while_opening_the_smaller_ids_hello_wins(
    stage: str, me_smaller: bool, verdict: str | None
) -> None:
    me, peer = (A, B) if me_smaller else (B, A)
    async with node(me, FixedRoster(A, B)) as one:
        port = StreamPort(peer.key_id, MESH_ALPN)
        port.stage = stage  # type: ignore[assignment]
        one.streams._ports[peer.key_id, MESH_ALPN] = port
        assert one.streams._judge(peer.key_id, MESH_ALPN, hello()) == verdict


@pytest.mark.parametrize(
    ("boot", "number", "verdict"),
    [(b"boot", 10, "duplicate"), (b"boot", 9, "duplicate"), (b"boot", 11, None), (b"new", 1, None)],
)
async def test_an_open_connection_yields_to_newer_hellos_only(
    boot: bytes, number: int, verdict: str | None
) -> None:
    async with node(A, FixedRoster(A, B)) as one:
        port = StreamPort(B.key_id, MESH_ALPN)
        port.stage, port.boot, port.number = "open", b"boot", 10
        one.streams._ports[B.key_id, MESH_ALPN] = port
        assert one.streams._judge(B.key_id, MESH_ALPN, hello(boot, number)) == verdict


async def test_a_dial_that_fails_as_the_peers_own_connection_comes_harms_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both are dealt with in one turn of the loop: what ends the dial cannot be called off."""
    async with two() as (a, b), trio.open_nursery() as nursery:
        failing, adopt = trio.Event(), b.streams._adopt

        async def dial(*_: Any, **__: Any) -> Any:
            await failing.wait()
            raise ConnectionRefusedError

        def adopt_as_it_fails(peer: NodeId, alpn: str, hello: Hello) -> StreamPort:
            failing.set()
            return adopt(peer, alpn, hello)

        with monkeypatch.context() as patch:
            patch.setattr(swarmd.mesh.transports.streams, "dial_tcp", dial)
            nursery.start_soon(echo, a.streams)
            nursery.start_soon(ask, b, a)
            await until(lambda: (A.key_id, MESH_ALPN) in b.streams._ports)
            await trio.testing.wait_all_tasks_blocked()
        monkeypatch.setattr(b.streams, "_adopt", adopt_as_it_fails)
        await ask(a, b)
        assert b.streams._ports[A.key_id, MESH_ALPN].is_open
        assert b.streams._failures == {}
        assert len(a.streams._ports) == 1
        nursery.cancel_scope.cancel()


async def test_who_is_dropped_just_after_its_hello_stays_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two() as (a, b):
        make = swarmd.mesh.transports.streams.make_session

        def drop(*args: Any, **named: Any) -> Any:
            if not named["opener"]:
                b.streams.drop(A.key_id, "the test")
            return make(*args, **named)

        monkeypatch.setattr(swarmd.mesh.transports.streams, "make_session", drop)
        with pytest.raises(Unreachable):
            await ask(a, b)
        monkeypatch.undo()
        assert b.streams.connected() == []
        await ask(a, b)


@pytest.mark.usefixtures("carried")
async def test_opening_at_once_many_times_leaves_one_connection_and_loses_nothing() -> None:
    async with two() as (a, b), trio.open_nursery() as nursery:
        nursery.start_soon(echo, a.streams)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(20):
            async with trio.open_nursery() as both:
                both.start_soon(ask, a, b)
                both.start_soon(ask, b, a)
            assert len(a.streams._ports) == len(b.streams._ports) == 1
            a.streams.drop(B.key_id, "again")
            await until(lambda: not a.streams._ports and not b.streams._ports)
        nursery.cancel_scope.cancel()


# ---- strangers ------------------------------------------------------------------------


async def test_junk_instead_of_tls_is_dropped_and_counted() -> None:
    async with two() as (a, b):
        before = dropped("handshake")
        for junk in (b"GET / HTTP/1.1\r\n\r\n", bytes(500), b"\x16\x03\x01\xff\xff" + bytes(99)):
            stream = await trio.open_tcp_stream(*b.address)
            await stream.send_all(junk)
            with contextlib.suppress(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass
        await until(lambda: dropped("handshake") == before + 3)
        await ask(a, b)


async def test_a_stranger_who_says_nothing_is_dropped_in_time() -> None:
    config = MeshConfig(handshake_timeout_s=0.2)
    async with two(config=config) as (_, b):
        before = dropped("unproven_timeout")
        stream = await trio.open_tcp_stream(*b.address)
        with trio.fail_after(3), contextlib.suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b""
        assert dropped("unproven_timeout") == before + 1
        assert b.streams._unproven.taken == 0


async def test_strangers_may_hold_so_many_connections_only() -> None:
    config = MeshConfig(unproven_connections_max=2, handshake_timeout_s=1.0)
    async with two(config=config) as (a, b):
        before = dropped("unproven_full")
        held = [await trio.open_tcp_stream(*b.address) for _ in range(2)]
        await until(lambda: b.streams._unproven.taken == 2)
        third = await trio.open_tcp_stream(*b.address)
        with trio.fail_after(0.5), contextlib.suppress(trio.BrokenResourceError):
            assert await third.receive_some() == b""
        assert dropped("unproven_full") == before + 1
        for stream in held:
            await stream.aclose()
        await until(lambda: b.streams._unproven.taken == 0)
        await ask(a, b)


async def stranger(to: Node, host: str) -> trio.SocketStream:
    """A connection that says nothing, from an address of the loopback."""
    sock = trio.socket.socket()
    await sock.bind((host, 0))
    await sock.connect(to.address)
    return trio.SocketStream(sock)


async def is_closed(stream: trio.SocketStream, within_s: float) -> bool:
    with trio.move_on_after(within_s):
        with contextlib.suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b""
        return True
    return False


@contextlib.asynccontextmanager
async def a_thousand_idle(to: Node, host: str) -> AsyncIterator[None]:
    """All there is room for stay open, and the others were closed, when the block is entered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4_096)), hard))
    before = dropped("unproven_address_full")
    per_address = MeshConfig().unproven_per_address_max
    async with contextlib.AsyncExitStack() as opened:
        held = [await stranger(to, host) for _ in range(1_000)]
        for one in held:
            opened.push_async_callback(trio.aclose_forcefully, one)
        await until(lambda: dropped("unproven_address_full") == before + 1_000 - per_address)
        assert to.streams._unproven.taken == per_address
        yield


async def test_idle_connections_from_one_address_keep_no_member_at_another_out() -> None:
    async with two() as (a, b):
        memory = psutil.Process().memory_info().rss
        async with a_thousand_idle(b, "127.0.0.7"):
            grown = psutil.Process().memory_info().rss - memory
            assert grown < 8 * MIB
            started = trio.current_time()
            await ask(a, b)
            assert trio.current_time() - started < 1
            assert b.streams._unproven.taken == MeshConfig().unproven_per_address_max


async def test_a_member_at_the_address_of_a_flood_gets_in_once_a_place_is_free() -> None:
    config = MeshConfig(handshake_timeout_s=1.0)
    async with two(config=config) as (a, b), a_thousand_idle(b, "127.0.0.1"):
        started = trio.current_time()
        await ask(a, b)
        assert trio.current_time() - started < 3


async def test_connections_of_members_take_no_place() -> None:
    config = MeshConfig(unproven_per_address_max=1)
    async with two(config=config) as (a, b), node(C, FixedRoster(A, B, C)) as c:
        know(c, b)
        for one in (a, c):
            await ask(one, b)
        assert b.streams.connected() == sorted([A.key_id, C.key_id])
        assert b.streams._unproven.taken == 0
        first = await stranger(b, "127.0.0.1")
        await until(lambda: b.streams._unproven.taken == 1)
        before = dropped("unproven_address_full")
        assert await is_closed(await stranger(b, "127.0.0.1"), 0.5)
        assert dropped("unproven_address_full") == before + 1
        for one in (a, c):
            await ask(one, b)
        assert not await is_closed(first, 0.1)


async def test_an_address_has_places_whatever_others_hold_until_all_are_taken() -> None:
    config = MeshConfig(unproven_connections_max=5, unproven_per_address_max=2)
    async with two(config=config) as (_, b):
        full, address_full = dropped("unproven_full"), dropped("unproven_address_full")
        streams = [await stranger(b, f"127.0.0.{n}") for n in (3, 3, 3, 4, 4, 4, 5, 5, 6)]
        await until(lambda: dropped("unproven_full") == full + 2)
        assert dropped("unproven_address_full") == address_full + 2
        assert b.streams._unproven.taken == 5
        for stream in streams:
            await stream.aclose()
        await until(lambda: b.streams._unproven.taken == 0)
        assert not b.streams._unproven._taken, "an address that holds nothing is not kept"


async def test_joiners_of_one_address_leave_places_to_others() -> None:
    turned_away = 0

    async def serve(stream: trio.SSLStream[trio.SocketStream], crowded: bool) -> None:
        nonlocal turned_away
        turned_away += crowded
        await trio.sleep(0 if crowded else float("inf"))

    async def join(to: Node, host: str) -> trio.SocketStream:
        tcp = await stranger(to, host)
        await trio.SSLStream(tcp, join_context()).do_handshake()
        return tcp

    async with node(A, FixedRoster(A), join=serve) as one:
        before = dropped("joiners_full")
        for _ in range(12):
            await join(one, "127.0.0.7")
        await until(lambda: dropped("joiners_full") == before + 4)
        await join(one, "127.0.0.8")
        door = one.streams._join
        assert door is not None
        await until(lambda: door.taken == 9)
        assert dropped("joiners_full") == before + 4
        assert turned_away == 4
        await until(lambda: one.streams._unproven.taken == 0)


async def proven_stream(
    key: SigningKey, to: Node, plane: str = MESH_ALPN
) -> trio.SSLStream[trio.SocketStream]:
    tcp = await trio.open_tcp_stream(*to.address)
    stream = trio.SSLStream(tcp, client_context(key, to.roster.admissions(), (plane,)))
    await stream.do_handshake()
    return stream


@pytest.mark.parametrize("raw", [b"", b"junk", b"\x01" + bytes(100), b"\x02\xff"])
async def test_a_member_whose_hello_is_junk_is_dropped_and_counted(raw: bytes) -> None:
    async with two() as (a, b):
        before = dropped("untrusted")
        stream = await proven_stream(C, b)
        await send_part(stream, raw)
        with pytest.raises(trio.BrokenResourceError):
            await receive_part(stream)
        assert dropped("untrusted") == before + 1
        await ask(a, b)


@pytest.mark.usefixtures("carried")
async def test_a_frame_that_is_not_the_next_ends_the_connection() -> None:
    async with two() as (a, b):
        await ask(a, b)
        before = dropped("bad_frame")
        port = a.streams._ports[B.key_id, MESH_ALPN]
        await a.streams._carriers[port].send(b"x" * 100)
        await until(lambda: dropped("bad_frame") == before + 1)
        await until(lambda: port.broken)
        await ask(a, b)


async def test_without_a_certificate_there_is_only_the_joiners_plane() -> None:
    async with two() as (_, b):
        before = dropped("untrusted")
        context = join_context()
        context.set_alpn_protocols([MESH_ALPN])
        stream = trio.SSLStream(await trio.open_tcp_stream(*b.address), context)
        await stream.do_handshake()
        with pytest.raises((trio.BrokenResourceError, ssl.SSLError)):
            await receive_part(stream)
        await until(lambda: dropped("untrusted") == before + 1)


async def test_the_joiners_plane_is_handed_on() -> None:
    served = []

    async def serve(stream: trio.SSLStream[trio.SocketStream], crowded: bool) -> None:
        assert not crowded
        served.append(await stream.receive_some(4))
        await stream.send_all(b"no")

    async with node(A, FixedRoster(A), join=serve) as one:
        stream = trio.SSLStream(await trio.open_tcp_stream(*one.address), join_context())
        await stream.do_handshake()
        await stream.send_all(b"join")
        assert await stream.receive_some() == b"no"
        assert served == [b"join"]


async def test_without_a_server_for_joiners_they_are_dropped() -> None:
    async with node(A, FixedRoster(A)) as one:
        before = dropped("no_joins")
        stream = trio.SSLStream(await trio.open_tcp_stream(*one.address), join_context())
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.do_handshake()
            await stream.receive_some()
        await until(lambda: dropped("no_joins") == before + 1)


async def test_what_is_sent_on_the_logs_plane_is_on_its_way_after_so_many_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a voter counts on when it lets appends leave before its own sync holds the loop up."""
    written: list[bytes] = []
    send_all = trio.SocketStream.send_all

    async def note(stream: trio.SocketStream, data: bytes) -> None:
        written.append(data)
        await send_all(stream, data)

    async with two() as (a, b):
        inbox = b.streams.open_inbox(Family("ahead", Say, alpn=RAFT_ALPN))
        family = Family("ahead", Say, alpn=RAFT_ALPN)
        await a.streams.send(family, B.key_id, Say(0))
        await inbox.receive()
        monkeypatch.setattr(trio.SocketStream, "send_all", note)
        for number in range(20):
            await trio.testing.wait_all_tasks_blocked()
            written.clear()
            assert a.streams.send_nowait(family, B.key_id, Say(number))
            for _ in range(AHEAD_TURNS):
                await trio.lowlevel.checkpoint()
            assert len(written) == 1
            await inbox.receive()


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: swarmd\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
MASK = bytes(4)
AFTER_HELLO = {
    "nothing": b"",
    "noise": bytes(range(256)) * 4,
    "no upgrade": b"GET / HTTP/1.1\r\n\r\n",
    "post": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    "no key": UPGRADE.replace(b"Sec-WebSocket-Key", b"X"),
    "other version": UPGRADE.replace(b"Version: 13", b"Version: 99"),
    "bad header": UPGRADE.replace(b"Host: swarmd", b"Host: \xff\xfe\x00"),
    "endless header": b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000,
    "unmasked": UPGRADE + b"\x82\x01a",
    "reserved bits": UPGRADE + b"\xf2\x81" + MASK + b"a",
    "unknown opcode": UPGRADE + b"\x8b\x81" + MASK + b"a",
    "text": UPGRADE + b"\x81\x81" + MASK + b"a",
    "bad text": UPGRADE + b"\x81\x82" + MASK + b"\xff\xff",
    "huge": UPGRADE + b"\x82\xff" + b"\x7f" * 8 + MASK,
    "too long": UPGRADE + b"\x82\xff" + (2**21).to_bytes(8, "big") + MASK + bytes(2**21),
    "continuation": UPGRADE + b"\x80\x81" + MASK + b"a",
    "fragments": UPGRADE + (b"\x02\x81" + MASK + b"a") * 2,
    "bad close": UPGRADE + b"\x88\x81" + MASK + b"a",
    "bad close code": UPGRADE + b"\x88\x82" + MASK + b"\x00\x01",
    "bad close text": UPGRADE + b"\x88\x84" + MASK + b"\x03\xe8\xff\xff",
    "long ping": UPGRADE + b"\x89\xfe\x00\xff" + MASK + bytes(255),
    "pings": UPGRADE + (b"\x89\x81" + MASK + b"a") * 500,
    "empty": UPGRADE + b"\x82\x80" + MASK,
}


AFTER_HELLO_TO_THE_LOG = {
    "an upgrade": UPGRADE,
    "noise": bytes(range(1, 256)) * 4,
    "too long": b"\xff" * 100,
    "no frame": (100).to_bytes(4, "big") + b"x" * 100,
    "a short frame": (1).to_bytes(4, "big") + b"x",
    "a goodbye": bytes(5),
    "an unknown goodbye": b"\0\0\0\0\xff",
}
AFTER_HELLO_OF_A_PIPE = {
    "an upgrade": UPGRADE,
    "noise": bytes(range(1, 256)) * 4,
    "too long": b"\xff" * 100,
    "no frame": (100).to_bytes(2, "big") + b"x" * 100,
    "an empty frame": bytes(2),
    "half a frame": (100).to_bytes(2, "big") + b"x",
}
WORDS = {
    MESH_ALPN: AFTER_HELLO,
    RAFT_ALPN: AFTER_HELLO_TO_THE_LOG,
    PIPE_ALPN: AFTER_HELLO_OF_A_PIPE,
}
SPOKEN = [(plane, name) for plane, words in WORDS.items() for name in sorted(words)]


@pytest.mark.parametrize(("plane", "name"), SPOKEN)
async def test_a_member_that_speaks_another_protocol_harms_nobody(plane: str, name: str) -> None:
    config = MeshConfig(handshake_timeout_s=0.3)
    async with two(config=config) as (a, b):
        stream = await proven_stream(C, b, plane)
        said = Hello(PROTOCOL_VERSION, B.key_id, plane, Exchange().public, b"boot", 1, 1)
        await send_part(stream, sign_hello(said, b.roster.swarm_id, C))
        await receive_part(stream)
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(WORDS[plane][name])
            with trio.move_on_after(0.1):
                while await stream.receive_some():
                    pass
        await trio.aclose_forcefully(stream)
        await until(lambda: (C.key_id, plane) not in b.streams._ports)
        await until(lambda: not b.streams._pipes)
        await ask(a, b)


async def test_what_a_stranger_opened_is_freed_at_once_and_not_by_the_collector() -> None:
    """What the TLS library keeps for a connection is seen by no collector: it must not wait."""
    async with two() as (a, b):
        gc.collect()
        gc.disable()
        try:
            before = sum(isinstance(one, trio.SSLStream) for one in gc.get_objects())
            for _ in range(20):
                tcp = await trio.open_tcp_stream(*a.address)
                await tcp.aclose()
            await until(lambda: a.streams._unproven.taken == 0)
            await trio.testing.wait_all_tasks_blocked()
            after = sum(isinstance(one, trio.SSLStream) for one in gc.get_objects())
        finally:
            gc.enable()
    assert after <= before
    assert b.streams.connected() == []


async def test_a_kept_connection_is_not_closed_for_being_idle() -> None:
    async with two(config=MeshConfig(idle_close_s=0.1)) as (a, b):
        a.streams.keeps = lambda peer: peer == B.key_id
        b.streams.keeps = lambda peer: peer == A.key_id
        a.streams.keep(B.key_id)
        a.streams.keep(C.key_id)  # Whose address nobody knows: nothing to keep.
        await until(lambda: a.streams.connected() == [B.key_id])
        await trio.sleep(1.5)
        assert a.streams.connected() == [B.key_id]
        b.streams.keeps = lambda peer: False
        await until(lambda: not a.streams.connected())
        assert (await a.streams.closed.receive()).how == "idle"


async def test_a_connection_to_keep_that_fails_is_tried_less_and_less() -> None:
    async with two() as (a, b):
        b.scope.cancel()
        await trio.sleep(0.05)
        tried = 0
        for _ in range(150):
            a.streams.keep(B.key_id)
            await trio.sleep(0.02)
            with contextlib.suppress(trio.WouldBlock):
                while a.streams.closed.receive_nowait().how == "refused":
                    tried += 1
        assert 2 <= tried <= 5


# ---- pipes ------------------------------------------------------------------------------


async def hold(streams: Streams) -> None:
    """Answer questions, and keep their pipes until the other side closes them."""
    inbox = streams.open_inbox(TALK)

    async def handle(inbound: Inbound) -> None:
        try:
            async with inbound.pipe(inbound.message) as pipe:
                await pipe.run(pipe.read, 1)
        except SwarmError as error:
            await inbound.fail(error)

    async with trio.open_nursery() as nursery:
        async for inbound in inbox:
            nursery.start_soon(handle, inbound)


def two_with_pipes() -> contextlib.AbstractAsyncContextManager[tuple[Node, Node]]:
    return two(serve=hold)


def pipe_to(one: Node, other: Node) -> contextlib.AbstractAsyncContextManager[Pipe]:
    return one.streams.open_pipe(TALK, other.streams.node_id, Say(1), timeout_s=5)


async def breaks_off(one: Node, other: Node, how: Callable[[], object]) -> None:
    """Whoever waits at either end of a pipe is told at once."""
    with trio.fail_after(5):
        async with pipe_to(one, other) as pipe, trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(Unreachable):
                    await pipe.run(pipe.read_into, memoryview(bytearray(1)))

            nursery.start_soon(wait)
            await trio.sleep(0.05)
            how()
        await until(lambda: not one.streams._pipes and not other.streams._pipes)


async def test_the_pipe_of_an_evicted_member_is_broken_off_at_once() -> None:
    async with two_with_pipes() as (a, b):
        await breaks_off(a, b, lambda: b.roster.become(B, C))
        with pytest.raises(Unreachable):
            async with pipe_to(a, b):
                pytest.fail("it is open")


async def test_a_pipe_breaks_with_its_peer_and_with_its_address() -> None:
    async with two_with_pipes() as (a, b):
        await breaks_off(a, b, lambda: a.streams.drop(B.key_id, "it is known to be gone"))
        await breaks_off(a, b, lambda: b.streams.drop(A.key_id, "it is known to be gone"))
        await breaks_off(a, b, lambda: a.streams.drop_from({"127.0.0.1"}))
        a.streams.drop(C.key_id, "somebody else")
        async with pipe_to(a, b) as pipe:
            assert pipe.answer == Say(1)


async def test_one_peer_has_so_many_pipes_only() -> None:
    async with two_with_pipes() as (a, b):
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(PIPES_PER_PEER_MAX):
                await stack.enter_async_context(pipe_to(a, b))
            with pytest.raises(Busy, match="as many pipes"):
                async with pipe_to(a, b):
                    pytest.fail("it is open")
        await until(lambda: not b.streams._pipes)
        async with pipe_to(a, b) as pipe:
            assert pipe.answer == Say(1)


async def test_who_leaves_opens_no_pipe_and_takes_none() -> None:
    async with two_with_pipes() as (a, b):
        b.streams.open_no_more()
        with pytest.raises(Unreachable, match="leaving"):
            async with pipe_to(a, b):
                pytest.fail("it is open")
        with pytest.raises(Unreachable, match="shutting down"):
            async with pipe_to(b, a):
                pytest.fail("it is open")


async def test_who_is_dropped_while_a_pipe_is_dialled_gets_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dial = swarmd.mesh.transports.streams.dial_tcp

    async with two_with_pipes() as (a, b):

        async def dial_and_drop(*known: Any, **rest: Any) -> Any:
            made = await dial(*known, **rest)
            a.streams.drop(B.key_id, "it is known to be gone")
            return made

        monkeypatch.setattr(swarmd.mesh.transports.streams, "dial_tcp", dial_and_drop)
        with pytest.raises(Unreachable, match="is over"):
            async with pipe_to(a, b):
                pytest.fail("it is open")
        await until(lambda: not a.streams._pipes and not b.streams._pipes)


@pytest.mark.parametrize("fails_first", [True, False], ids=["asked", "asker"])
async def test_a_pipe_without_a_descriptor_left_for_it_fails(
    monkeypatch: pytest.MonkeyPatch, fails_first: bool
) -> None:
    dup, calls = os.dup, 0

    def none_left(fd: int) -> int:
        nonlocal calls
        calls += 1
        if (calls == 1) == fails_first:
            raise OSError(24, "Too many open files")
        return dup(fd)

    async with two_with_pipes() as (a, b):
        monkeypatch.setattr("os.dup", none_left)
        with pytest.raises(Unreachable, match="Too many open files"):
            async with pipe_to(a, b):
                pytest.fail("it is open")
        monkeypatch.undo()
        await until(lambda: not a.streams._pipes and not b.streams._pipes)
        async with pipe_to(a, b) as pipe:
            assert pipe.answer == Say(1)


async def test_what_tls_has_to_answer_is_sent_before_a_pipe_waits() -> None:
    """Goal: who asks TLS to answer, and never reads, cannot fill this node's memory."""
    async with two_with_pipes() as (a, b), pipe_to(a, b) as pipe:
        assert isinstance(pipe, TlsPipe)
        pipe._outgoing.write(bytes(100_000))
        with pytest.raises(Unreachable):  # The peer ends it: that was no TLS.
            await pipe.run(pipe.read_into, memoryview(bytearray(1)))
        assert not pipe._outgoing.pending
