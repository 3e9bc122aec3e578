"""What the bus promises, over every transport that carries it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio
import trio.testing
from bus_nodes import Buses, open_buses, open_one
from fixed_membership import FixedMembership
from link_nodes import HARNESSES

from swarmd.base.errors import (
    BadName,
    Busy,
    DeliveryUnknown,
    InboxFull,
    NotFound,
    ShuttingDown,
    SwarmError,
    TooLarge,
)
from swarmd.base.limits import BUS_DATA_BYTES_MAX, MIB
from swarmd.mesh.bus import service
from swarmd.mesh.bus.messages import Post, Posts
from swarmd.mesh.bus.service import WINDOW, Bus, Subscription


@pytest.fixture(params=sorted(HARNESSES))
async def buses(request: pytest.FixtureRequest) -> AsyncIterator[Buses]:
    async with open_buses(request.param) as three:
        yield three


async def take(subscription: Subscription, count: int) -> list[int]:
    with trio.fail_after(30):
        return [int((await subscription.receive()).data) for _ in range(count)]


async def test_a_publish_reaches_subscribers_on_all_nodes_and_counts_them(buses: Buses) -> None:
    a, b, c = buses.buses
    assert await a.publish("orders/paid", b"nobody") == 0
    async with (
        b.subscribe(["orders/*"], name="one") as one,
        c.subscribe(["orders/paid", "x"], name="two") as two,
        a.subscribe(["orders"], name="other") as other,
        a.subscribe(["*"], name="all") as everything,
    ):
        assert await a.publish("orders/paid", b"1", sender="@me") == 3
        for subscription in (one, two, everything):
            arrival = await subscription.receive()
            assert (arrival.topic, arrival.sender, arrival.data) == ("orders/paid", "@me", b"1")
        assert await c.publish("orders", b"2") == 2
        assert (await other.receive()).data == b"2"
        with pytest.raises(trio.WouldBlock):
            one.receive_nowait()
    assert await a.publish("orders/paid", b"gone") == 0


async def test_a_broadcast_reaches_everybody_and_a_direct_message_one(buses: Buses) -> None:
    a, b, c = buses.buses
    async with (
        b.subscribe(["@bob"], name="bob") as bob,
        c.subscribe(["news"], name="carol") as carol,
        c.subscribe(["*"], name="all") as everything,
    ):
        assert await a.publish("*", b"1") == 3
        assert await take(bob, 1) == await take(carol, 1) == await take(everything, 1) == [1]
        assert await a.publish("@bob", b"2") == 1
        assert await take(bob, 1) == [2]
        with pytest.raises(NotFound, match="@carol"):
            await a.publish("@carol", b"3")


async def test_what_is_no_topic_or_too_large_is_refused(buses: Buses) -> None:
    for topic in ("", "a*b", "a/*", "@", "a b", "x" * 201, "a\n", "\ud800"):
        with pytest.raises(BadName):
            await buses[0].publish(topic, b"")
    for topic in ("", "a*b", "@", "a b"):
        with pytest.raises(BadName):
            async with buses[0].subscribe([topic], name="x"):
                pass
    with pytest.raises(TooLarge, match=str(BUS_DATA_BYTES_MAX)):
        await buses[0].publish("a", bytes(BUS_DATA_BYTES_MAX + 1))
    async with buses[1].subscribe(["a"], name="x") as one:
        assert await buses[0].publish("a", bytes(BUS_DATA_BYTES_MAX)) == 1
        assert len((await one.receive()).data) == BUS_DATA_BYTES_MAX


async def send_all(bus: Bus, topic: str, first: int, count: int) -> None:
    with bus.open_sender() as sender:
        receipts = []
        for number in range(first, first + count):
            receipts.append(await sender.post(topic, b"%d" % number, timeout_s=30))
            if len(receipts) == WINDOW:
                assert await receipts.pop(0).wait() == 1
        for receipt in receipts:
            assert await receipt.wait() == 1


async def run_through_breaks(buses: Buses, count: int, breaks: int) -> None:
    """Two senders, one subscriber, and the connections reset again and again."""
    done = [0, 0]
    got: list[list[int]] = [[], []]

    async def read(subscription: Subscription) -> None:
        while len(got[0]) + len(got[1]) < 2 * count:
            number = int((await subscription.receive()).data)
            which = number // count
            got[which].append(number % count)
            done[which] += 1

    async def disturb() -> None:
        for one in range(breaks):
            while sum(done) < (one + 1) * 2 * count // (breaks + 1):  # noqa: ASYNC110
                await trio.sleep(0.001)
            for sender in (0, 1):
                buses.break_link(2, sender)

    async with (
        buses[2].subscribe(["t"], name="reader") as subscription,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(read, subscription)
        nursery.start_soon(disturb)
        nursery.start_soon(partial(send_all, buses[0], "t", 0, count))
        nursery.start_soon(partial(send_all, buses[1], "t", count, count))
    assert got == [list(range(count)), list(range(count))]


async def test_nothing_is_lost_nor_comes_twice_nor_out_of_order_when_connections_break(
    buses: Buses,
) -> None:
    with trio.fail_after(60):
        await run_through_breaks(buses, 2_000, 5)


async def test_a_full_inbox_holds_up_its_publisher_and_nobody_else(buses: Buses) -> None:
    a, b, _ = buses.buses
    async with (
        b.subscribe(["slow"], name="snail", inbox_max=3) as snail,
        b.subscribe(["*"], name="quick") as quick,
    ):
        with a.open_sender() as sender:
            for number in range(3):
                assert await sender.publish("slow", b"%d" % number) == 2
            with pytest.raises(InboxFull, match=r"snail on n2 had no room .* 1 subscribers have"):
                await sender.publish("slow", b"3", timeout_s=0.2)
            assert await a.publish("other", b"4") == 1
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(sender.publish, "slow", b"5", timeout_s=10))
                await trio.sleep(0.05)
                assert await a.publish("other", b"6") == 1
                assert await take(snail, 1) == [0]
            assert await take(snail, 3) == [1, 2, 5]
            assert await take(quick, 7) == [0, 1, 2, 3, 4, 5, 6]


class Call:
    """A publish in the background, and what came of it."""

    def __init__(self, nursery: trio.Nursery, bus: Bus, topic: str, data: bytes) -> None:
        self.reached: int | None = None
        self.error: SwarmError | None = None
        self.over = trio.Event()
        nursery.start_soon(self._run, bus, topic, data)

    async def _run(self, bus: Bus, topic: str, data: bytes) -> None:
        try:
            self.reached = await bus.publish(topic, data, timeout_s=30)
        except SwarmError as error:
            self.error = error
        self.over.set()

    async def outcome(self) -> int | SwarmError | None:
        with trio.fail_after(10):
            await self.over.wait()
        return self.reached if self.error is None else self.error


async def test_who_waits_for_an_inbox_goes_on_when_its_subscriber_ends(
    buses: Buses, nursery: trio.Nursery
) -> None:
    a, b, _ = buses.buses
    async with b.subscribe(["t"], name="snail", inbox_max=1):
        assert await a.publish("t", b"1") == 1
        call = Call(nursery, a, "t", b"2")
        await trio.sleep(0.1)
        assert not call.over.is_set()
    assert await call.outcome() == 0
    assert await a.publish("t", b"3") == 0


async def test_what_a_dead_node_has_not_acknowledged_is_unknown(
    buses: Buses, nursery: trio.Nursery
) -> None:
    a, b, c = buses.buses
    async with (
        b.subscribe(["t"], name="snail", inbox_max=1),
        c.subscribe(["t"], name="other") as other,
    ):
        assert await a.publish("t", b"1") == 2
        call = Call(nursery, a, "t", b"2")
        await trio.sleep(0.1)
        buses.kill(1)
        error = await call.outcome()
        assert isinstance(error, DeliveryUnknown)
        assert error.message.startswith("n2 did not acknowledge what was published to t")
        assert error.message.endswith("1 subscribers have the message")
        assert await take(other, 2) == [1, 2]
        assert await a.publish("t", b"3") == 1


async def test_a_receiver_that_was_started_anew_leaves_doubt_and_begins_again() -> None:
    async with HARNESSES["memory"]() as nodes, trio.open_nursery() as nursery:
        membership = FixedMembership([link.node_id for link in nodes.links])
        async with open_one(nodes, membership, 0) as a:
            async with (
                open_one(nodes, membership, 1) as b,
                b.subscribe(["t"], name="snail", inbox_max=1),
            ):
                assert await a.publish("t", b"1") == 1
                call = Call(nursery, a, "t", b"2")
                await trio.sleep(0.1)
                b._closed = True  # As by SIGKILL: it says nothing of its end.
            async with (
                open_one(nodes, membership, 1, seed=1) as b,
                b.subscribe(["t"], name="again") as again,
            ):
                assert isinstance(await call.outcome(), DeliveryUnknown)
                for number in range(3, 6):
                    assert await a.publish("t", b"%d" % number) == 1
                assert await take(again, 3) == [3, 4, 5]


async def test_a_sender_that_was_started_anew_has_numbers_of_its_own() -> None:
    async with HARNESSES["memory"]() as nodes:
        membership = FixedMembership([link.node_id for link in nodes.links])
        async with (
            open_one(nodes, membership, 0) as a,
            a.subscribe(["t"], name="reader") as reader,
        ):
            for seed in range(3):
                async with open_one(nodes, membership, 1, seed) as b:
                    for number in range(10):
                        assert await b.publish("t", b"%d" % number) == 1
            assert await take(reader, 30) == [*range(10)] * 3


async def test_who_waits_when_the_bus_closes_is_told(nursery: trio.Nursery) -> None:
    async with HARNESSES["memory"]() as nodes:
        membership = FixedMembership([link.node_id for link in nodes.links])
        async with open_one(nodes, membership, 0) as a, a.subscribe(["t"], name="x", inbox_max=1):
            assert await a.publish("t", b"1") == 1
            call = Call(nursery, a, "t", b"2")
            await trio.sleep(0.05)
        assert isinstance(await call.outcome(), ShuttingDown)
        with pytest.raises(ShuttingDown):
            await a.publish("t", b"3")


async def test_one_publisher_has_so_many_messages_on_their_way_and_no_more() -> None:
    async with (
        open_buses("memory") as buses,
        buses[1].subscribe(["t"], name="snail", inbox_max=1),
    ):
        with buses[0].open_sender() as sender:
            for number in range(1 + WINDOW):
                await sender.post("t", b"%d" % number, timeout_s=30)
            with pytest.raises(Busy, match="256 messages of one publisher"):
                await sender.post("t", b"", timeout_s=0.05)


@pytest.mark.parametrize("how", ["timed out", "cancelled", "closed"])
async def test_a_publisher_that_got_no_room_keeps_its_window(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_OPEN_BYTES_MAX", 10)
    async with HARNESSES["memory"]() as nodes, trio.open_nursery() as nursery:
        membership = FixedMembership([link.node_id for link in nodes.links])
        async with (
            open_one(nodes, membership, 0) as bus,
            bus.subscribe(["t"], name="snail", inbox_max=1),
        ):
            with bus.open_sender() as one, bus.open_sender() as other:
                await one.publish("t", b"1")
                await one.post("t", bytes(8), timeout_s=30)
                if how == "timed out":
                    with pytest.raises(Busy):
                        await other.post("t", bytes(8), timeout_s=0.01)
                elif how == "cancelled":
                    with trio.move_on_after(0.05):
                        await other.post("t", bytes(8), timeout_s=30)
                else:

                    async def wait() -> None:
                        with pytest.raises(ShuttingDown):
                            await other.post("t", bytes(8), timeout_s=30)

                    nursery.start_soon(wait)
                    await trio.testing.wait_all_tasks_blocked()
                    assert other._room.value == WINDOW - 1
                    bus._close()
                    await trio.testing.wait_all_tasks_blocked()
                assert other._room.value == WINDOW


async def test_what_the_machine_is_too_busy_for_takes_no_room() -> None:
    async with open_buses("memory") as buses:
        bus = buses[0]
        with bus.open_sender() as sender:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(bus._driver, "_inbox_max", 0)
                with pytest.raises(Busy):
                    await sender.post("t", b"1")
            assert (sender._room.value, bus._open_bytes, bus._receipts) == (WINDOW, 0, {})
            assert await sender.publish("t", b"2") == 0


async def test_a_node_that_takes_no_part_says_nothing(autojump_clock: object) -> None:
    async with open_buses("memory") as buses:
        await trio.sleep(60)
        assert all(not link.connected() for link in buses.nodes.links)


@pytest.mark.parametrize(
    ("count", "breaks"),
    [(20_000, 5), pytest.param(1_000_000, 20, marks=pytest.mark.long)],
)
async def test_very_many_messages_over_tls_and_forced_reconnects(count: int, breaks: int) -> None:
    async with open_buses("websocket") as buses:
        with trio.fail_after(60 + count / 500):
            await run_through_breaks(buses, count // 2, breaks)


def test_what_waits_on_the_way_to_a_peer_is_bounded_in_bytes() -> None:
    outbox = service._Outbox()
    one = Post(0, 1, 0, "t", "", bytes(BUS_DATA_BYTES_MAX), 0)
    message = Posts(1, 1, 1, (one,) * 4)
    taken = 0
    while outbox.put(message):
        taken += 1
    assert taken * 4 * BUS_DATA_BYTES_MAX == 64 * MIB
    outbox.pop()
    assert outbox.put(message)
    assert not outbox.put(message)
