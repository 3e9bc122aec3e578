"""What every transport promises: the contract of `mesh.link`, held against each of them."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable

import pytest
import trio
import trio.testing
from link_nodes import HARNESSES, Nodes

from swarmd.base.errors import (
    Conflict,
    MalformedMessage,
    TimedOut,
    TooLarge,
    Unavailable,
    Unreachable,
)
from swarmd.base.ids import node_id_of
from swarmd.mesh.link import Inbound, Lane
from swarmd.mesh.transports.mux import WINDOW, MuxLink
from swarmd.observe.metrics import REGISTRY
from swarmd.wire.codec import Family, Message


class Say(Message, tag=1):
    number: int
    data: bytes = b""


class Other(Message, tag=2):
    text: str


TALK = Family("talk", Say)
TALK_TWISTED = Family("talk", Other)
SIDE = Family("side", Say)
RAFT = Family("raft-test", Say, alpn="swarmd-raft/1")
BIG = bytes(200_000)


@pytest.fixture(params=sorted(HARNESSES))
async def nodes(request: pytest.FixtureRequest) -> AsyncIterator[Nodes]:
    async with HARNESSES[request.param]() as three:
        yield three


def dropped(reason: str) -> float:
    labels = {"where": "stream", "reason": reason}
    return REGISTRY.get_sample_value("swarmd_dropped_total", labels) or 0.0


async def echo(link: MuxLink, family: Family = TALK, *, size: int = 1_000) -> None:
    async with trio.open_nursery() as nursery:
        async for inbound in link.open_inbox(family, size=size):
            nursery.start_soon(inbound.answer, inbound.message)


async def take(inbox: trio.MemoryReceiveChannel[Inbound]) -> Inbound:
    with trio.fail_after(5):
        return await inbox.receive()


async def eventually(condition: Callable[[], bool], *, within_s: float = 5.0) -> None:
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - nothing to wait on
            await trio.sleep(0.005)


async def test_messages_arrive_in_order(nodes: Nodes) -> None:
    a, b, _ = nodes.links
    inbox = b.open_inbox(TALK)
    for number in range(500):
        if number % 2:
            await a.send(TALK, b.node_id, Say(number))
        else:
            assert a.send_nowait(TALK, b.node_id, Say(number))
    got = [await take(inbox) for _ in range(500)]
    assert [inbound.message.number for inbound in got] == list(range(500))
    assert {inbound.peer for inbound in got} == {a.node_id}
    assert not any(inbound.wants_answer for inbound in got)


async def test_answering_a_plain_message_does_nothing(nodes: Nodes) -> None:
    a, b, _ = nodes.links
    inbox = b.open_inbox(TALK)
    await a.send(TALK, b.node_id, Say(1))
    inbound = await take(inbox)
    await inbound.answer(Say(2))
    await inbound.fail(Conflict("no"))


async def test_request_and_answer(nodes: Nodes, nursery: trio.Nursery) -> None:
    a, b, _ = nodes.links
    nursery.start_soon(echo, b)
    await trio.testing.wait_all_tasks_blocked()
    assert await a.request(TALK, b.node_id, Say(7, b"x"), timeout_s=5) == Say(7, b"x")


async def test_many_requests_at_once_each_get_their_own_answer(
    nodes: Nodes, nursery: trio.Nursery
) -> None:
    links = nodes.links
    got: list[tuple[int, int]] = []

    async def ask(source: MuxLink, target: MuxLink, number: int) -> None:
        answer = await source.request(TALK, target.node_id, Say(number), timeout_s=20)
        got.append((number, answer.number))

    for link in links:
        nursery.start_soon(echo, link)
    await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(20):
        async with trio.open_nursery() as asking:
            for number in range(300):
                source, target = links[number % 3], links[number // 3 % 3]
                asking.start_soon(ask, source, target, number)
    assert len(got) == 300
    assert all(asked == answered for asked, answered in got)


async def test_request_to_oneself(nodes: Nodes, nursery: trio.Nursery) -> None:
    a = nodes.links[0]
    nursery.start_soon(echo, a)
    await trio.testing.wait_all_tasks_blocked()
    assert await a.request(TALK, a.node_id, Say(3), timeout_s=5) == Say(3)
    assert a.node_id not in a.connected()


async def test_an_error_comes_back_as_its_class(nodes: Nodes, nursery: trio.Nursery) -> None:
    a, b, _ = nodes.links
    inbox = b.open_inbox(TALK)

    async def refuse() -> None:
        await (await take(inbox)).fail(Conflict("the value has changed"))

    nursery.start_soon(refuse)
    with pytest.raises(Conflict, match="the value has changed"):
        await a.request(TALK, b.node_id, Say(1), timeout_s=5)


async def test_no_answer_in_time(nodes: Nodes) -> None:
    a, b, _ = nodes.links
    inbox = b.open_inbox(TALK)
    with pytest.raises(TimedOut):
        await a.request(TALK, b.node_id, Say(1), timeout_s=0.5)
    inbound = await take(inbox)
    await eventually(lambda: not inbound.wants_answer)
    await inbound.answer(Say(2))  # Nobody waits: nothing happens.


async def test_streamed_answer(nodes: Nodes, nursery: trio.Nursery) -> None:
    a, b, _ = nodes.links
    inbox = b.open_inbox(TALK)
    count = 5 * WINDOW

    async def serve() -> None:
        inbound = await take(inbox)
        for number in range(count):
            await inbound.answer(Say(number), more=True)
        await inbound.answer(Say(count))

    nursery.start_soon(serve)
    got = []
    async with a.request_stream(TALK, b.node_id, Say(0), timeout_s=5) as answers:
        async for message in answers:
            got.append(message.number)
    assert got == list(range(count + 1))


async def test_streamed_answer_that_fails_midway(nodes: Nodes, nursery: trio.Nursery) -> None:
    a, b, _ = nodes.links
    inbox = b.open_inbox(TALK)

    async def serve() -> None:
        inbound = await take(inbox)
        await inbound.answer(Say(1), more=True)
        await inbound.fail(Conflict("midway"))

    nursery.start_soon(serve)
    async with a.request_stream(TALK, b.node_id, Say(0), timeout_s=5) as answers:
        assert await anext(answers) == Say(1)
        with pytest.raises(Conflict):
            await anext(answers)


async def test_a_silent_stream_times_out_between_messages(
    nodes: Nodes, nursery: trio.Nursery
) -> None:
    a, b, _ = nodes.links
    inbox = b.open_inbox(TALK)
    held = []

    async def serve() -> None:
        held.append(await take(inbox))
        await held[0].answer(Say(1), more=True)

    nursery.start_soon(serve)
    async with a.request_stream(TALK, b.node_id, Say(0), timeout_s=0.4) as answers:
        await anext(answers)
        with pytest.raises(TimedOut):
            await anext(answers)


async def test_leaving_a_stream_early_stops_the_answerer(
    nodes: Nodes, nursery: trio.Nursery
) -> None:
    a, b, _ = nodes.links
    inbox = b.open_inbox(TALK)
    done = trio.Event()

    async def serve() -> None:
        inbound = await take(inbox)
        number = 0
        while inbound.wants_answer:
            await inbound.answer(Say(number), more=True)
            number += 1
        done.set()

    nursery.start_soon(serve)
    async with a.request_stream(TALK, b.node_id, Say(0), timeout_s=5) as answers:
        await anext(answers)
    with trio.fail_after(5):
        await done.wait()


async def test_a_slow_consumer_holds_up_only_its_own_stream(
    nodes: Nodes, nursery: trio.Nursery
) -> None:
    a, b, _ = nodes.links
    inbox = b.open_inbox(TALK)
    sent = []

    async def serve() -> None:
        inbound = await take(inbox)
        while inbound.wants_answer:
            await inbound.answer(Say(len(sent)), more=True)
            sent.append(1)

    nursery.start_soon(serve)
    nursery.start_soon(echo, b, SIDE)
    async with a.request_stream(TALK, b.node_id, Say(0), timeout_s=5) as answers:
        await anext(answers)
        await eventually(lambda: len(sent) >= WINDOW)
        assert await a.request(SIDE, b.node_id, Say(5), timeout_s=5) == Say(5)
        assert len(sent) <= WINDOW


async def test_a_full_inbox_is_felt_by_the_sender(nodes: Nodes) -> None:
    a, b, _ = nodes.links
    inbox = b.open_inbox(TALK, size=2)
    big = Say(1, BIG)
    for _ in range(5_000):
        if not a.send_nowait(TALK, b.node_id, big):
            break
        await trio.lowlevel.checkpoint()
    else:
        pytest.fail("the sender never felt that nobody reads")
    for _ in range(2):
        await take(inbox)


async def test_a_family_nobody_serves(nodes: Nodes) -> None:
    a, b, _ = nodes.links
    before = dropped("no_inbox")
    with pytest.raises(Unavailable):
        await a.request(TALK, b.node_id, Say(1), timeout_s=5)
    assert dropped("no_inbox") == before + 1


async def test_a_reader_that_went_away_fails_requests_and_may_come_back(nodes: Nodes) -> None:
    a, b, _ = nodes.links
    b.open_inbox(TALK).close()
    with pytest.raises(Unavailable):
        await a.request(TALK, b.node_id, Say(1), timeout_s=5)
    inbox = b.open_inbox(TALK)
    await a.send(TALK, b.node_id, Say(9))
    assert (await take(inbox)).message == Say(9)


async def test_one_inbox_per_family(nodes: Nodes) -> None:
    inbox = nodes.links[0].open_inbox(TALK)
    with pytest.raises(AssertionError, match="talk"):
        nodes.links[0].open_inbox(TALK)
    inbox.close()


async def test_malformed_requests_are_refused_and_counted(nodes: Nodes) -> None:
    a, b, _ = nodes.links
    inbox = b.open_inbox(TALK)
    before = dropped("malformed")
    with pytest.raises(MalformedMessage):
        await a.request(TALK_TWISTED, b.node_id, Other("?"), timeout_s=5)
    assert dropped("malformed") == before + 1
    await a.send(TALK, b.node_id, Say(1))
    assert (await take(inbox)).message == Say(1)


async def test_too_large_is_refused_before_it_is_sent(nodes: Nodes) -> None:
    a, b, _ = nodes.links
    with pytest.raises(TooLarge):
        await a.send(TALK, b.node_id, Say(1, bytes(800_000)))


async def test_an_unknown_peer_is_unreachable(nodes: Nodes) -> None:
    a = nodes.links[0]
    stranger = node_id_of(b"s" * 32)
    with pytest.raises(Unreachable):
        await a.request(TALK, stranger, Say(1), timeout_s=5)
    with pytest.raises(Unreachable):
        await a.send(TALK, stranger, Say(1))
    assert not a.send_nowait(TALK, stranger, Say(1))


async def test_a_killed_peer_fails_what_waits_and_is_reported(nodes: Nodes) -> None:
    a, b, _ = nodes.links
    inbox = b.open_inbox(TALK)

    async def kill_when_asked() -> None:
        await take(inbox)
        nodes.kill(1)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_when_asked)
            with pytest.raises(Unreachable):
                await a.request(TALK, b.node_id, Say(1), timeout_s=5)
        closed = await a.closed.receive()
    assert closed.peer == b.node_id
    assert closed.how == "reset"
    with pytest.raises(Unreachable):
        await a.request(TALK, b.node_id, Say(1), timeout_s=5)
    assert b.node_id not in a.connected()


async def test_connected_names_both_ends(nodes: Nodes, nursery: trio.Nursery) -> None:
    a, b, c = nodes.links
    nursery.start_soon(echo, b)
    nursery.start_soon(echo, c)
    await trio.testing.wait_all_tasks_blocked()
    assert a.connected() == []
    for peer in (b, c):
        await a.request(TALK, peer.node_id, Say(1), timeout_s=5)
    assert a.connected() == sorted([b.node_id, c.node_id])
    assert b.connected() == [a.node_id]


async def test_planes_work_side_by_side(nodes: Nodes, nursery: trio.Nursery) -> None:
    a, b, _ = nodes.links
    nursery.start_soon(echo, b)
    nursery.start_soon(echo, b, RAFT)
    await trio.testing.wait_all_tasks_blocked()
    assert await a.request(TALK, b.node_id, Say(1), timeout_s=5) == Say(1)
    assert await a.request(RAFT, b.node_id, Say(2), timeout_s=5) == Say(2)
    assert a.connected() == [b.node_id]


async def test_bulk_does_not_hold_up_control(nodes: Nodes, nursery: trio.Nursery) -> None:
    a, b, _ = nodes.links
    bulk = b.open_inbox(SIDE)
    nursery.start_soon(echo, b)
    for number in range(40):
        await a.send(SIDE, b.node_id, Say(number, BIG), lane=Lane.BULK)
    with trio.fail_after(5):
        assert await a.request(TALK, b.node_id, Say(1), timeout_s=5) == Say(1)
    got = [(await take(bulk)).message.number for _ in range(40)]
    assert got == list(range(40))


async def test_both_sides_open_at_once(nodes: Nodes, nursery: trio.Nursery) -> None:
    links = nodes.links
    answers = []

    async def ask(source: MuxLink, target: MuxLink) -> None:
        answers.append(await source.request(TALK, target.node_id, Say(1), timeout_s=10))

    for link in links:
        nursery.start_soon(echo, link)
    await trio.testing.wait_all_tasks_blocked()
    async with trio.open_nursery() as asking:
        for source in links:
            for target in links:
                asking.start_soon(ask, source, target)
    assert len(answers) == 9
    for source in links:
        for target in links:
            await ask(source, target)


async def test_a_forgotten_request_leaves_nothing_behind(nodes: Nodes) -> None:
    a, b, _ = nodes.links
    inbox = b.open_inbox(TALK)
    with trio.move_on_after(0.3):
        await a.request(TALK, b.node_id, Say(1), timeout_s=5)
    inbound = await take(inbox)
    port = inbound._port  # type: ignore[attr-defined]
    assert len(port.asked) == 1
    del inbound
    gc.collect()
    assert len(port.asked) == 0
