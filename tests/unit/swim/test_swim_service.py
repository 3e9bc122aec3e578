"""The shell: real loops over in-memory links and datagrams, on a virtual clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import structlog
import trio
import trio.testing

from swarmd.base.disk import seal_body
from swarmd.base.errors import BadRequest, CorruptFile, SwarmError, TooLarge
from swarmd.base.ids import NodeId, digest, short
from swarmd.base.rng import make_rng
from swarmd.mesh.link import Inbound
from swarmd.mesh.swim.config import SwimConfig, settle
from swarmd.mesh.swim.messages import PACKET_BYTES_MAX, MemberState, Meta, StreamPing, Sync
from swarmd.mesh.swim.service import CHANGES_MAX, Membership, open_membership
from swarmd.mesh.transports.memory import MemoryNetwork
from swarmd.observe.metrics import REGISTRY
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World
from swarmd.wire.codec import Message
from swarmd.wire.version import PROTOCOL_LOWEST, PROTOCOL_VERSION

CONFIG = SwimConfig(profile="local")


def node(name: str) -> NodeId:
    return NodeId(digest(b"node", name.encode()))


class TrioClock:
    def now(self) -> float:
        return trio.current_time()

    def wall_ms(self) -> int:
        return int(trio.current_time() * 1000)


class OpenSigner:
    def sign_rumour(self, statement: bytes) -> bytes:
        return bytes(64)

    def may_be(self, node_id: NodeId) -> tuple[str, ...] | None:
        return None

    def verify_rumour(self, author: NodeId, statement: bytes, signature: bytes) -> bool:
        return True


class Air:
    """Datagrams between the nodes of one test."""

    def __init__(self) -> None:
        self.inboxes: dict[NodeId, trio.MemorySendChannel[tuple[NodeId, bytes]]] = {}
        self.silent: list[NodeId] = []
        self.blocked: list[tuple[NodeId, NodeId]] = []


class AirDatagrams:
    def __init__(self, air: Air, me: NodeId) -> None:
        self._air = air
        self._me = me
        air.inboxes[me], self.inbox = trio.open_memory_channel[tuple[NodeId, bytes]](1_000)

    def send_nowait(
        self, peer: NodeId, addresses: tuple[tuple[str, int], ...], data: bytes
    ) -> bool:
        assert len(data) <= PACKET_BYTES_MAX
        target = self._air.inboxes.get(peer)
        if target is None or peer in self._air.silent or self._me in self._air.silent:
            return False
        if (self._me, peer) in self._air.blocked:
            return True
        target.send_nowait((self._me, data))
        return True


class Town:
    """Nodes by name, opened and closed at will."""

    def __init__(self, network: MemoryNetwork, nursery: trio.Nursery) -> None:
        self.network = network
        self.air = Air()
        self.world = World(1)
        self.called: dict[str, str] = {}
        self.disks: dict[str, SimDisk] = {}
        self._nursery = nursery
        self._stops: dict[str, trio.CancelScope] = {}

    @asynccontextmanager
    async def _open(self, name: str) -> AsyncIterator[Membership]:
        disk = self.disks.setdefault(name, SimDisk(self.world, name))
        async with open_membership(
            link=self.network.link(node(name)),
            datagrams=AirDatagrams(self.air, node(name)),
            disk=disk,
            signer=OpenSigner(),
            meta=Meta(
                self.called.get(name, name),
                addresses=(("127.0.0.1", 7575),),
                roles=("worker",),
                version="1",
                protocol=PROTOCOL_VERSION,
                protocol_lowest=PROTOCOL_LOWEST,
            ),
            config=CONFIG,
            clock=TrioClock(),
            rng=make_rng(name),
        ) as membership:
            yield membership

    async def start(self, name: str, *seeds: str) -> Membership:
        membership: Membership = await self._nursery.start(self._hold, name)
        membership.join(*map(node, seeds))
        return membership

    async def _hold(
        self, name: str, task_status: trio.TaskStatus[Membership] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.CancelScope() as self._stops[name]:
            async with self._open(name) as membership:
                task_status.started(membership)
                await trio.sleep_forever()

    async def kill(self, name: str) -> None:
        self._stops[name].cancel()
        self.network.stop(node(name))
        self.air.inboxes.pop(node(name), None)
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def town() -> AsyncIterator[Town]:
    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(MemoryNetwork().running())
        nursery = await stack.enter_async_context(trio.open_nursery())
        yield Town(network, nursery)
        nursery.cancel_scope.cancel()


async def all_alive(memberships: list[Membership]) -> None:
    for one in memberships:
        for other in memberships:
            await one.seen(other.node_id, MemberState.ALIVE)


async def test_everyone_sees_everyone_within_a_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with town() as t:
        first = await t.start("a")
        nodes = [first, *[await t.start(name, "a") for name in "bcde"]]
        with trio.fail_after(1.0):
            await all_alive(nodes)
        assert [m.name for m in nodes[2].members()] == ["a", "b", "c", "d", "e"]
        assert nodes[2].alive()[0] == nodes[2].node_id


async def test_what_views_take_is_counted(autojump_clock: trio.testing.MockClock) -> None:
    """One who joins tells who it is, and is told who is there; then all know the same."""

    def counted() -> float:
        return REGISTRY.get_sample_value("swarmd_swim_view_bytes_total") or 0.0

    async with town() as t:
        a, before = await t.start("a"), counted()
        [mine] = a._machine.view()
        assert counted() == before
        b = await t.start("b", "a")
        await all_alive([a, b])
        assert counted() - before >= 2 * len(mine)
        await trio.sleep(settle(CONFIG).sync_interval_s)  # Each has asked for user events by then.
        settled = counted()
        await trio.sleep(3 * settle(CONFIG).sync_interval_s)
        assert counted() == settled


async def test_a_leaver_is_left_and_not_dead(autojump_clock: trio.testing.MockClock) -> None:
    async with town() as t:
        a = await t.start("a")
        b = await t.start("b", "a")
        await all_alive([a, b])
        changes = a.subscribe()
        with trio.fail_after(2.0):
            await b.leave()
        await t.kill("b")
        await a.seen(node("b"), MemberState.LEFT)
        await trio.sleep(60.0)
        member = a.get(node("b"))
        assert member is not None
        assert member.state is MemberState.LEFT
        assert [c.left for c in (changes.receive_nowait(),)] == [True]
        with pytest.raises(trio.WouldBlock):
            changes.receive_nowait()


async def test_a_restart_without_join_is_found_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with town() as t:
        a = await t.start("a")
        changes = a.subscribe()
        b = await t.start("b", "a")
        await all_alive([a, b])
        await t.kill("b")
        await a.seen(node("b"), MemberState.DEAD)
        t.disks["b"].remove("members")
        again = await t.start("b")
        await a.seen(node("b"), MemberState.ALIVE)
        await again.seen(node("a"), MemberState.ALIVE)
        said = []
        while len(said) < 3:
            change = await changes.receive()
            said += ["join"] * change.joined + ["fail"] * change.failed
        assert said == ["join", "fail", "join"]


async def test_remembered_members_are_joined_at_the_next_start(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with town() as t:
        a = await t.start("a")
        b = await t.start("b", "a")
        await all_alive([a, b])
        while t.disks["b"].read("members") is None:
            await trio.to_thread.run_sync(int)  # A real thread writes it; virtual time is no help.
        await t.kill("b")
        again = await t.start("b")
        assert [(r.name, r.addresses) for r in again.remembered()] == [
            ("a", (("127.0.0.1", 7575),))
        ]
        with trio.fail_after(1.0):
            await again.seen(node("a"), MemberState.ALIVE)


async def test_a_node_is_where_it_was_when_it_is_started_anew(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with town() as t:
        a, b = await t.start("a"), await t.start("b", "a")
        await trio.sleep(20.0)
        assert a.estimate_s(node("b")) is not None
        place = b.coordinate(node("b"))
        assert place is not None
        await t.kill("b")
        again = await t.start("b")
        found = again.coordinate(node("b"))
        assert found is not None
        assert found.axes_s == pytest.approx(place.axes_s)
        assert found.error == pytest.approx(place.error)
        await t.kill("b")
        t.disks["b"].replace("place", b"junk")
        assert (await t.start("b")).coordinate(node("b")) is None


async def test_a_refused_connection_makes_a_killed_member_dead_within_a_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with town() as t:
        nodes = [await t.start("a"), *[await t.start(name, "a") for name in "bcdefghij"]]
        await all_alive(nodes)
        await t.kill("j")
        with trio.fail_after(1.0):
            nodes[0].stream_closed(node("j"), "reset")
            nodes[0].stream_closed(node("j"), "refused")
            for one in nodes[:-1]:
                await one.seen(node("j"), MemberState.DEAD)


async def test_tags_reach_the_others(autojump_clock: trio.testing.MockClock) -> None:
    async with town() as t:
        a = await t.start("a")
        b = await t.start("b", "a")
        await all_alive([a, b])
        with a.subscribe() as changes, trio.fail_after(2.0):
            b.set_tags({"zone": "x", "gpu": "1"})
            change = await changes.receive()
        assert change.after is not None
        assert change.after.tags == (("gpu", "1"), ("zone", "x"))


async def test_both_of_one_name_log_it(autojump_clock: trio.testing.MockClock) -> None:
    async with town() as t:
        t.called["b"] = "a"
        with structlog.testing.capture_logs() as logs:
            a = await t.start("a")
            b = await t.start("b", "a")
            await all_alive([a, b])
            told = [one for one in logs if "carry one name" in one["event"]]
            ids = ", ".join(sorted(short(one.node_id) for one in (a, b)))
            wanted = {"log_level": "warning", "name": "a", "ids": ids, "own": True}
            assert [wanted.items() <= one.items() for one in told] == [True, True]
            with trio.fail_after(5.0):
                await b.leave()
                await a.seen(b.node_id, MemberState.LEFT)
        assert sum(one["event"] == "name conflict over" for one in logs) == 2


async def test_tags_that_do_not_fit_are_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with town() as t:
        a = await t.start("a")
        with pytest.raises(TooLarge):
            a.set_tags({f"key{n}": "v" * 60 for n in range(10)})
        with pytest.raises(BadRequest):
            a.set_tags({"key": "v" * 65})
        await trio.testing.wait_all_tasks_blocked()
        assert a.members()[0].tags == ()


async def test_a_slow_subscriber_learns_that_it_lagged(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with town() as t:
        a = await t.start("a")
        changes = a.subscribe()
        for n in range(CHANGES_MAX + 5):
            a.set_tags({"n": str(n)})
            await trio.testing.wait_all_tasks_blocked()
        assert changes.lagged
        assert len([changes.receive_nowait() for _ in range(CHANGES_MAX)]) == CHANGES_MAX


async def test_each_start_outranks_the_one_before(autojump_clock: trio.testing.MockClock) -> None:
    async with town() as t:
        incarnations = []
        for _ in range(3):
            a = await t.start("a")
            incarnations.append(a.members()[0].incarnation)
            await t.kill("a")
        assert incarnations == [1 << 32, 2 << 32, 3 << 32]


async def test_damaged_files(autojump_clock: trio.testing.MockClock) -> None:
    async with town() as t:
        disk = t.disks["a"] = SimDisk(t.world, "a")
        disk.replace("members", seal_body("members", 1, b"junk"))
        a = await t.start("a")
        assert a.remembered() == []
        await t.kill("a")
        disk.replace("starts", b"junk")
        with pytest.raises(CorruptFile):
            async with t._open("a"):
                raise AssertionError("opened")


async def test_where_datagrams_do_not_come_through_a_stream_answers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """One direction is enough to stop both pings and acks."""
    async with town() as t:
        a = await t.start("a")
        b = await t.start("b", "a")
        await all_alive([a, b])
        t.air.blocked = [(node("a"), node("b"))]
        with a.subscribe() as changes:
            await trio.sleep(30 * CONFIG.probe_interval_s)
            with pytest.raises(trio.WouldBlock):
                changes.receive_nowait()
        assert a.stream_only() == [node("b")]
        assert b.stream_only() == [node("a")]
        assert a.watched() == [node("b")]
        assert a.keeps(node("b"))
        t.air.blocked = []
        await trio.sleep(10 * CONFIG.probe_interval_s)
        assert a.stream_only() == b.stream_only() == []
        t.network.stop(node("b"))
        t.air.blocked = [(node("a"), node("b"))]
        await a.seen(node("b"), MemberState.DEAD)


class Question:
    """What a peer asks over a stream; its answer waits until `reads` is set."""

    wants_answer = True

    def __init__(self, peer: str, message: StreamPing | Sync) -> None:
        self.peer, self.message = node(peer), message
        self.reads = trio.Event()
        self.answers: list[Message] = []

    async def answer(self, message: Message, *, more: bool = False) -> None:
        self.answers.append(message)
        await self.reads.wait()

    async def fail(self, error: SwarmError) -> None:
        raise AssertionError("it is not failed")


async def test_a_peer_that_does_not_read_holds_no_other_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with town() as t:
        a = await t.start("a")
        put, inbox = trio.open_memory_channel[Inbound](1_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a._serve_syncs, inbox)
            stuck = [Question("x", one) for one in (Sync([]), Sync([]), StreamPing(), StreamPing())]
            ping, sync = Question("y", StreamPing()), Question("y", Sync([]))
            for one in (*stuck, ping, sync):
                put.send_nowait(one)
            await trio.sleep(0.01)
            assert [type(q.answers[0]) for q in (ping, sync)] == [StreamPing, Sync]
            assert [len(q.answers) for q in stuck] == [1, 0, 1, 0], "one of each at a time"
            await trio.sleep(CONFIG.sync_timeout_s)
            again = Question("x", Sync([]))
            put.send_nowait(again)
            await trio.sleep(0.01)
            assert len(again.answers) == 1
            nursery.cancel_scope.cancel()
