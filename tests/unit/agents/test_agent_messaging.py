"""The bus as an agent uses it: what its file permits, held until its result, ended with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from agenthouse import House, Open
from fixed_membership import FixedMembership

from swarmd.agents.attempts import BusMessage, Outcome
from swarmd.agents.messaging import HELD_MAX, permits
from swarmd.agents.spec import BusRights, parse_agent
from swarmd.base.clock import BootClock
from swarmd.base.errors import BadRequest
from swarmd.base.ids import node_id_of
from swarmd.base.rng import make_rng
from swarmd.mesh.bus.config import BusConfig
from swarmd.mesh.bus.service import Bus, open_bus
from swarmd.mesh.transports.memory import MemoryNetwork
from swarmd.wire.codec import pack, unpack

ME = node_id_of(bytes(32))
RIGHTS = BusRights(publish=("out/*", "@*"), subscribe=("in/*",))
AGENT = """
import time
from swarmd.sdk import SwarmError

def run(value, context):
    return globals()[value["do"]](context, **value.get("with", {}))

def publish(context, topics, immediate=False, fail=False):
    got = [context.bus.publish(topic, {"to": topic}, immediate=immediate) for topic in topics]
    if fail:
        raise RuntimeError("after all")
    return got

def refused_topic(context, topic):
    codes = []
    for what in (context.bus.publish, lambda one: context.bus.subscribe(one).__enter__()):
        try:
            what(topic)
            codes.append("ok")
        except SwarmError as error:
            codes.append(error.code)
    return codes

def listen(context, topics, count):
    with context.bus.subscribe(*topics) as messages:
        context.bus.publish("out/ready", immediate=True)
        return [[m.topic, m.sender, m.data] for _, m in zip(range(count), messages)]

def wait(context, timeout_s):
    with context.bus.subscribe("in/x") as messages:
        return messages.receive(timeout_s) is None

def listen_until_cancelled(context):
    with context.bus.subscribe("in/x") as messages:
        context.bus.publish("out/ready", immediate=True)
        for message in messages:
            pass
    return context.cancelled

def answer(context):
    with context.bus.mailbox() as messages:
        context.bus.publish("out/ready", context.bus.address, immediate=True)
        asked = next(iter(messages))
        context.bus.send(asked.sender, asked.data * 2, immediate=True)

def sleepy(context, pause_s):
    with context.bus.subscribe("in/x") as messages:
        context.bus.publish("out/ready", immediate=True)
        time.sleep(pause_s)
        return [messages.receive(5).data for _ in range(100)]

def many(context, count):
    try:
        for number in range(count):
            context.bus.publish("out/x", number)
    except SwarmError as error:
        return [number, error.code]
"""


@dataclass
class Swarm:
    house: House
    bus: Bus

    async def run(self, do: str, rights: BusRights | None = RIGHTS, **more: Any) -> Any:
        return value_of(await self.house.run({"do": do, "with": more}, bus=rights))


@pytest.fixture
async def swarm(house: Open) -> AsyncIterator[Swarm]:
    async with swarm_of(house) as one:
        yield one


@asynccontextmanager
async def swarm_of(open_house: Open, config: BusConfig | None = None) -> AsyncIterator[Swarm]:
    network, membership = MemoryNetwork(), FixedMembership([ME])
    async with (
        network.running(),
        open_bus(
            network.link(ME), membership, config or BusConfig(), BootClock(), make_rng(1)
        ) as bus,
        open_house(AGENT, bus=bus) as house,
    ):
        yield Swarm(house, bus)


def value_of(outcome: Outcome) -> Any:
    assert outcome.ok, outcome.message
    assert outcome.result is not None
    return unpack(outcome.result)


async def test_what_an_attempt_publishes_waits_for_its_result(swarm: Swarm) -> None:
    async with swarm.bus.subscribe(["out/*"], name="test") as subscription:
        value = {"do": "publish", "with": {"topics": ["out/a", "out/b"]}}
        outcome = await swarm.house.run(value, bus=RIGHTS)
        assert value_of(outcome) == [None, None]
        assert outcome.messages == tuple(
            BusMessage(topic, "@task-1", pack({"to": topic})) for topic in ("out/a", "out/b")
        )
        with pytest.raises(trio.WouldBlock):
            subscription.receive_nowait()
        value["with"] = {"topics": ["out/a"], "fail": True}
        outcome = await swarm.house.run(value, bus=RIGHTS)
        assert (outcome.ok, outcome.messages) == (False, ())
        again = await swarm.house.run({"do": "publish", "with": {"topics": []}}, bus=RIGHTS)
        assert again.messages == (), "nothing is left for the next attempt"


async def test_immediate_messages_leave_at_once_and_count_who_has_them(swarm: Swarm) -> None:
    async with swarm.bus.subscribe(["out/*"], name="test") as subscription:
        topics = ["out/a", "out/b", "out/c"]
        reached = await swarm.run("publish", topics=topics, immediate=True)
        assert reached == [1, 1, 1]
        got = [await subscription.receive() for _ in topics]
        assert [one.topic for one in got] == topics
        assert {one.sender for one in got} == {"@task-1"}
    assert await swarm.run("publish", topics=["out/a"], immediate=True) == [0]


@pytest.mark.parametrize(
    ("topic", "codes"),
    [
        ("out/a", ["ok", "forbidden"]),
        ("in/a", ["forbidden", "ok"]),
        ("in/*", ["bad_name", "ok"]),
        ("*", ["forbidden", "forbidden"]),
        ("@bob", ["ok", "forbidden"]),
        ("a b", ["bad_name", "forbidden"]),
    ],
)
async def test_an_agent_may_what_its_file_permits(
    swarm: Swarm, topic: str, codes: list[str]
) -> None:
    assert await swarm.run("refused_topic", topic=topic) == codes
    nothing = await swarm.run("refused_topic", rights=None, topic=topic)
    assert "ok" not in nothing


async def test_messages_come_to_an_agent_in_order(swarm: Swarm) -> None:
    async with trio.open_nursery() as nursery, swarm.bus.subscribe(["out/*"], name="t") as ready:
        got: list[Any] = []

        async def listen() -> None:
            got.extend(await swarm.run("listen", topics=["in/a", "in/b"], count=300))

        nursery.start_soon(listen)
        await ready.receive()
        with swarm.bus.open_sender("@me") as sender:
            for number in range(300):
                topic = f"in/{'ab'[number % 2]}"
                assert await sender.publish(topic, pack(number)) == 1
    assert got == [[f"in/{'ab'[number % 2]}", "@me", number] for number in range(300)]
    assert await swarm.bus.publish("in/a", b"\x01") == 0


async def test_an_agent_that_does_not_read_is_held_back_by_its_inbox(house: Open) -> None:
    async with (
        swarm_of(house, BusConfig(inbox_max=10)) as swarm,
        swarm.bus.subscribe(["out/*"], name="t") as ready,
        trio.open_nursery() as nursery,
    ):
        got: list[Any] = []

        async def sleep() -> None:
            got.append(await swarm.run("sleepy", pause_s=0.5))

        nursery.start_soon(sleep)
        await ready.receive()
        began = trio.current_time()
        for number in range(100):
            assert await swarm.bus.publish("in/x", pack(number)) == 1
        assert trio.current_time() - began > 0.2
    assert got == [list(range(100))]


async def test_a_timeout_and_a_cancel_end_the_wait(swarm: Swarm) -> None:
    assert await swarm.run("wait", timeout_s=0.05) is True
    async with swarm.bus.subscribe(["out/*"], name="t") as ready:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(swarm.run, "listen_until_cancelled")
                await ready.receive()
                scope.cancel()
    assert await swarm.bus.publish("in/x", b"\x01") == 0
    assert len(swarm.house.supervisor.instances()) == 1, "it has ended by itself, not been killed"


async def test_agents_are_sent_messages_and_answer(swarm: Swarm) -> None:
    async with (
        swarm.bus.subscribe(["out/ready"], name="t") as ready,
        swarm.bus.subscribe(["@me"], name="me") as mine,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(swarm.run, "answer")
        arrival = await ready.receive()
        address = unpack(arrival.data)
        assert address == arrival.sender == "@task-1"
        assert await swarm.bus.publish(address, pack(21), sender="@me") == 1
        assert unpack((await mine.receive()).data) == 42


async def test_an_attempt_holds_back_so_much_and_no_more(swarm: Swarm) -> None:
    assert await swarm.run("many", count=HELD_MAX + 10) == [HELD_MAX, "busy"]


@pytest.mark.parametrize(
    ("allowed", "topic", "may"),
    [
        (["a"], "a", True),
        (["a/*"], "a/b", True),
        (["a/*"], "a/b/*", True),
        (["a/b"], "a/*", False),
        (["*"], "a", True),
        (["*"], "*", True),
        (["a*"], "*", False),
        (["*"], "@bob", False),
        (["@*"], "@bob", True),
        (["@*"], "bob", False),
        ([], "a", False),
    ],
)
def test_what_is_permitted(allowed: list[str], topic: str, may: bool) -> None:
    assert permits(tuple(allowed), topic) is may


def test_an_agent_file_says_what_its_agent_may() -> None:
    text = 'name = "a"\nversion = "1"\nentry = "a:run"\n[bus]\npublish = ["out/*"]\n'
    assert parse_agent(text).bus == BusRights(publish=("out/*",))
    with pytest.raises(BadRequest, match=r"agent:4: bus: .*spaces"):
        parse_agent(text.replace("out/*", "o ut"))
    with pytest.raises(BadRequest, match="publishes: no such key"):
        parse_agent(text.replace("publish", "publishes"))
