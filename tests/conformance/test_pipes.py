"""What every transport promises of pipes (`mesh.link.Pipe`), held against each of them."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest
import trio
from link_nodes import HARNESSES, Nodes

from swarmd.base.errors import (
    Conflict,
    RemoteError,
    ShuttingDown,
    TimedOut,
    TooLarge,
    Unavailable,
    Unreachable,
)
from swarmd.base.ids import NodeId
from swarmd.mesh.link import PIPES_PER_PEER_MAX, Inbound, Pipe
from swarmd.mesh.transports.mux import MuxLink
from swarmd.observe.metrics import REGISTRY
from swarmd.wire.codec import Family, Message

MIB = 1024 * 1024


class Ask(Message, tag=1):
    text: str


class Answer(Message, tag=2):
    text: str


class Twisted(Message, tag=7):
    text: str


TALK = Family("talk", Ask, Answer)
UNSERVED = Family("unserved", Ask)
TALK_TWISTED = Family("talk", Ask, Twisted)

Handle = Callable[[Inbound], Awaitable[None]]


@pytest.fixture(params=["memory", "websocket"])
async def nodes(request: pytest.FixtureRequest) -> AsyncIterator[Nodes]:
    async with HARNESSES[request.param]() as three:
        yield three


def serving(nursery: trio.Nursery, link: MuxLink, handle: Handle) -> None:
    inbox = link.open_inbox(TALK)

    async def serve() -> None:
        async for inbound in inbox:
            nursery.start_soon(handle, inbound)

    nursery.start_soon(serve)


def piped(call: Callable[[Pipe], None]) -> Handle:
    """Answers a question, and has a thread at the pipe's end until that is through with it."""

    async def handle(inbound: Inbound) -> None:
        async with inbound.pipe(Answer(inbound.message.text.upper())) as pipe:
            await pipe.run(call, pipe)

    return handle


def echo(pipe: Pipe) -> None:
    while data := pipe.read(100_000):
        pipe.write(data)


def swallow(pipe: Pipe) -> None:
    while pipe.read(100_000):
        pass


async def eventually(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - nothing to wait on
            await trio.sleep(0.005)


async def test_an_answer_comes_first_and_then_bytes_both_ways(
    nodes: Nodes, nursery: trio.Nursery
) -> None:
    a, b, _ = nodes.links
    serving(nursery, b, piped(echo))

    def talk(pipe: Pipe) -> bytes:
        buffer = bytearray(10)
        for word in (b"one two si", b"x", b"seventeen"):
            pipe.write(word)
        with memoryview(buffer) as view:
            pipe.read_into(view)
        return bytes(buffer) + pipe.read(1) + pipe.read(1)

    async with a.open_pipe(TALK, b.node_id, Ask("hello"), timeout_s=5) as pipe:
        assert pipe.answer == Answer("HELLO")
        assert pipe.peer == b.node_id
        assert await pipe.run(talk, pipe) == b"one two sixs"
        assert await pipe.run(lambda: pipe.read(100)) == b"eventeen"


@pytest.mark.parametrize("size", [1, 16 * 1024 + 1, 20 * MIB])
async def test_whatever_goes_in_comes_out(nodes: Nodes, nursery: trio.Nursery, size: int) -> None:
    a, b, _ = nodes.links
    data = os.urandom(size)
    seen = hashlib.sha256()

    def take(pipe: Pipe) -> None:
        view = memoryview(bytearray(size))
        pipe.read_into(view)
        seen.update(view)
        pipe.write(view)

    def talk(pipe: Pipe) -> bytes:
        pipe.write(memoryview(data))
        view = memoryview(bytearray(size))
        pipe.read_into(view)
        return bytes(view)

    serving(nursery, b, piped(take))
    async with a.open_pipe(TALK, b.node_id, Ask(""), timeout_s=60) as pipe:
        assert await pipe.run(talk, pipe) == data
    assert seen.digest() == hashlib.sha256(data).digest()


async def test_many_at_once_do_not_hold_up_each_other_or_messages(
    nodes: Nodes, nursery: trio.Nursery
) -> None:
    a, b, _ = nodes.links
    done = []

    async def handle(inbound: Inbound) -> None:
        if inbound.message.text == "plain":
            await inbound.answer(Answer("plain"))
        else:
            await piped(echo)(inbound)

    serving(nursery, b, handle)

    async def use(number: int) -> None:
        async with a.open_pipe(TALK, b.node_id, Ask(str(number)), timeout_s=5) as pipe:
            await pipe.run(pipe.write, b"%d" % number)
            assert await a.request(TALK, b.node_id, Ask("plain"), timeout_s=5) == Answer("plain")
            assert await pipe.run(pipe.read, 10) == b"%d" % number
            done.append(number)

    async with trio.open_nursery() as users:
        for number in range(PIPES_PER_PEER_MAX):
            users.start_soon(use, number)
    assert sorted(done) == list(range(PIPES_PER_PEER_MAX))


async def test_a_pipe_to_oneself(nodes: Nodes, nursery: trio.Nursery) -> None:
    a = nodes.links[0]
    serving(nursery, a, piped(echo))
    async with a.open_pipe(TALK, a.node_id, Ask("me"), timeout_s=5) as pipe:
        await pipe.run(pipe.write, b"x" * 10)
        assert await pipe.run(pipe.read, 20) == b"x" * 10


async def test_who_closes_first_is_the_end_of_it(nodes: Nodes, nursery: trio.Nursery) -> None:
    a, b, _ = nodes.links
    ends: list[str] = []

    def until_the_end(pipe: Pipe) -> None:
        while pipe.read(10):
            pass
        ends.append("the asker closed it")

    serving(nursery, b, piped(until_the_end))
    async with a.open_pipe(TALK, b.node_id, Ask(""), timeout_s=5) as pipe:
        await pipe.run(pipe.write, b"some")
    await eventually(lambda: bool(ends))

    c = nodes.links[2]
    serving(nursery, c, piped(lambda pipe: pipe.write(b"good")))
    async with a.open_pipe(TALK, c.node_id, Ask(""), timeout_s=5) as pipe:
        assert await pipe.run(pipe.read, 10) == b"good"
        assert await pipe.run(pipe.read, 10) == b""
        with pytest.raises(Unreachable):
            await pipe.run(pipe.read_into, memoryview(bytearray(1)))


async def test_a_question_that_fails_opens_nothing(nodes: Nodes, nursery: trio.Nursery) -> None:
    a, b, _ = nodes.links

    async def refuse(inbound: Inbound) -> None:
        await inbound.fail(Conflict("not today"))

    serving(nursery, b, refuse)
    with pytest.raises(Conflict, match="not today"):
        async with a.open_pipe(TALK, b.node_id, Ask(""), timeout_s=5):
            pytest.fail("it is open")


async def test_an_answer_without_a_pipe_ends_it(nodes: Nodes, nursery: trio.Nursery) -> None:
    a, b, _ = nodes.links

    async def answer(inbound: Inbound) -> None:
        await inbound.answer(Answer("that is all"))

    serving(nursery, b, answer)
    async with a.open_pipe(TALK, b.node_id, Ask(""), timeout_s=0.3) as pipe:
        assert pipe.answer == Answer("that is all")
        with pytest.raises((Unreachable, TimedOut)):
            await pipe.run(pipe.read_into, memoryview(bytearray(1)))


async def test_what_is_too_large_for_the_front_of_a_pipe_fails(
    nodes: Nodes, nursery: trio.Nursery
) -> None:
    """Goal: a member that opens a pipe for what is answered at length harms nobody."""
    a, b, _ = nodes.links

    async def answer(inbound: Inbound) -> None:
        if inbound.message.text == "fail":
            await inbound.fail(Conflict("\N{SNOWMAN}" * 5_000))
        else:
            await inbound.answer(Answer("x" * 100_000))

    serving(nursery, b, answer)
    with pytest.raises(TooLarge, match="ask without one"):
        async with a.open_pipe(TALK, b.node_id, Ask("answer"), timeout_s=5):
            pytest.fail("it is open")
    with pytest.raises(Conflict):
        async with a.open_pipe(TALK, b.node_id, Ask("fail"), timeout_s=5):
            pytest.fail("it is open")
    with pytest.raises(TooLarge, match="a question of"):
        async with a.open_pipe(TALK, b.node_id, Ask("x" * 2_000), timeout_s=5):
            pytest.fail("it is open")
    answer_of = await a.request(TALK, b.node_id, Ask(""), timeout_s=5)
    assert len(answer_of.text) == 100_000


async def test_a_plain_question_gets_no_pipe(nodes: Nodes, nursery: trio.Nursery) -> None:
    a, b, _ = nodes.links
    refused: list[str] = []

    async def handle(inbound: Inbound) -> None:
        try:
            async with inbound.pipe(Answer("")):
                pytest.fail("it is a pipe")
        except RemoteError as error:
            refused.append(error.message)
            await inbound.fail(error)

    serving(nursery, b, handle)
    with pytest.raises(RemoteError):
        await a.request(TALK, b.node_id, Ask(""), timeout_s=5)
    assert refused


async def test_a_family_nobody_serves(nodes: Nodes) -> None:
    a, b, _ = nodes.links
    with pytest.raises(Unavailable):
        async with a.open_pipe(TALK, b.node_id, Ask(""), timeout_s=5):
            pytest.fail("it is open")
    b.open_inbox(TALK).close()
    with pytest.raises(ShuttingDown):
        async with a.open_pipe(TALK, b.node_id, Ask(""), timeout_s=5):
            pytest.fail("it is open")


async def test_a_malformed_question_is_refused_and_counted(nodes: Nodes) -> None:
    a, b, _ = nodes.links
    b.open_inbox(TALK)

    def dropped() -> float:
        labels = {"where": "stream", "reason": "malformed"}
        return REGISTRY.get_sample_value("swarmd_dropped_total", labels) or 0.0

    before = dropped()
    with pytest.raises(RemoteError):
        async with a.open_pipe(TALK_TWISTED, b.node_id, Twisted(""), timeout_s=5):
            pytest.fail("it is open")
    assert dropped() == before + 1


async def test_no_answer_in_time(nodes: Nodes) -> None:
    a, b, _ = nodes.links
    b.open_inbox(TALK)
    with trio.fail_after(5), pytest.raises(TimedOut, match=r"did not answer talk within 0\.2 s"):
        async with a.open_pipe(TALK, b.node_id, Ask(""), timeout_s=0.2):
            pytest.fail("it is open")


async def test_a_peer_that_is_silent_is_not_waited_for(nodes: Nodes, nursery: trio.Nursery) -> None:
    a, b, _ = nodes.links
    serving(nursery, b, piped(swallow))
    async with a.open_pipe(TALK, b.node_id, Ask(""), timeout_s=0.5) as pipe:
        with trio.fail_after(5), pytest.raises(TimedOut, match=r"too little .* within 0\.5 s"):
            await pipe.run(pipe.read, 1)


async def test_bytes_that_trickle_are_not_waited_for_without_end(
    nodes: Nodes, nursery: trio.Nursery
) -> None:
    a, b, _ = nodes.links

    def trickle(pipe: Pipe) -> None:
        with suppress(Unreachable):
            while True:
                pipe.write(b"x")
                time.sleep(0.1)

    serving(nursery, b, piped(trickle))
    async with a.open_pipe(TALK, b.node_id, Ask(""), timeout_s=0.5) as pipe:
        with trio.fail_after(5), pytest.raises(TimedOut, match=r"too little .* within 0\.5 s"):
            await pipe.run(pipe.read_into, memoryview(bytearray(1_000)))


async def test_an_unknown_peer_is_unreachable(nodes: Nodes) -> None:
    with trio.fail_after(5), pytest.raises(Unreachable):
        async with nodes.links[0].open_pipe(TALK, NodeId(bytes(32)), Ask(""), timeout_s=5):
            pytest.fail("it is open")


async def test_a_killed_peer_ends_a_thread_that_waits(nodes: Nodes, nursery: trio.Nursery) -> None:
    a, b, _ = nodes.links
    serving(nursery, b, piped(swallow))
    async with a.open_pipe(TALK, b.node_id, Ask(""), timeout_s=30) as pipe:
        await pipe.run(pipe.write, b"some")
        with trio.fail_after(5):
            async with trio.open_nursery() as waiting:

                async def wait() -> None:
                    with pytest.raises(Unreachable):
                        await pipe.run(pipe.read_into, memoryview(bytearray(1)))

                waiting.start_soon(wait)
                await trio.sleep(0.05)
                nodes.kill(1)


async def test_cancelled_it_is_broken_off_at_both_ends(nodes: Nodes, nursery: trio.Nursery) -> None:
    a, b, _ = nodes.links
    ended = trio.Event()

    async def handle(inbound: Inbound) -> None:
        await piped(swallow)(inbound)
        ended.set()

    serving(nursery, b, handle)
    with trio.fail_after(5):
        async with a.open_pipe(TALK, b.node_id, Ask(""), timeout_s=30) as pipe:
            with trio.move_on_after(0.1) as scope:
                await pipe.run(pipe.read, 1)
            assert scope.cancelled_caught
            await ended.wait()
            with pytest.raises(Unreachable, match="nobody waits for it any more"):
                await pipe.run(pipe.read_into, memoryview(bytearray(1)))


async def test_what_a_call_raises_comes_as_it_is(nodes: Nodes, nursery: trio.Nursery) -> None:
    a, b, _ = nodes.links
    serving(nursery, b, piped(echo))

    def fail() -> None:
        raise Conflict("as it is")

    async with a.open_pipe(TALK, b.node_id, Ask(""), timeout_s=5) as pipe:
        with pytest.raises(Conflict, match="as it is"):
            await pipe.run(fail)
        await pipe.run(pipe.write, b"x")
        assert await pipe.run(pipe.read, 1) == b"x"


async def test_nothing_is_left_behind(nodes: Nodes, nursery: trio.Nursery) -> None:
    a, b, _ = nodes.links
    serving(nursery, b, piped(swallow))

    async def use() -> None:
        async with a.open_pipe(TALK, b.node_id, Ask(""), timeout_s=5) as pipe:
            await pipe.run(pipe.write, b"x" * 1_000)

    await use()
    await trio.sleep(0.1)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        await use()
        for of in (a, b):
            with pytest.raises(Unavailable):
                async with a.open_pipe(UNSERVED, of.node_id, Ask(""), timeout_s=5):
                    pytest.fail("it is open")
    await eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)
