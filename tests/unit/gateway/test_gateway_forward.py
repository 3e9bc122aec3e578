"""Requests that another member carries out, over links in one process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from gateway_fakes import FakeMesh, FakeTasks, member, node_id
from gateway_pair import blocking, two_nodes

from swarmd.base.clock import BootClock
from swarmd.base.errors import BadRequest, Busy, NotFound, SwarmError, TooLarge, Unreachable
from swarmd.base.ids import to_text
from swarmd.client import Client
from swarmd.gateway.forward import (
    FORWARD,
    PIECE_BYTES,
    UPLOAD_IDLE_S,
    UPLOADS_MAX,
    Part,
    Uploads,
    find_member,
)
from swarmd.mesh.swim.events import Member
from swarmd.mesh.swim.messages import MemberState


async def test_the_named_member_answers(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as pair:
        for name in ("n2", to_text(node_id("n2")), to_text(node_id("n2"))[:8]):
            assert (await blocking(pair.client(name).status)).node == "n2"
        assert (await blocking(pair.client("n1").status)).node == "n1"


async def test_a_kept_connection_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """The server's own disconnect at the end of an answer must not cancel its last write."""
    async with two_nodes(tmp_path) as pair:
        client = pair.client()
        await blocking(client.status)
        began = trio.current_time()
    assert trio.current_time() - began < 1
    client.close()


async def test_bodies_of_any_size_arrive(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as pair:
        client = pair.client()
        for size in (0, 10, PIECE_BYTES, 3 * PIECE_BYTES + 7):
            ref = await blocking(client.put_blob, b"x" * size)
            assert ref.size == size
        assert len(pair.there.blobs.kept) == 4  # type: ignore[union-attr]
        assert pair.here.blobs.kept == {}  # type: ignore[union-attr]


async def test_streams_come_back_whole(tmp_path: Path) -> None:
    """Larger than a piece, and silent for longer than the link's patience in between."""
    async with two_nodes(tmp_path) as pair:
        client = pair.client()
        big = b"x" * (2 * PIECE_BYTES)
        tasks = [{"agent": "echo", "input": big}, {"agent": "slow"}]
        ids = [one.id for one in await blocking(client.submit, tasks)]
        ended: list[Any] = []
        async with trio.open_nursery() as nursery:

            async def follow() -> None:
                ended.extend(await blocking(lambda: list(client.results(ids))))

            nursery.start_soon(follow)
            await trio.sleep(1.5)
            assert isinstance(pair.there.tasks, FakeTasks)
            await pair.there.tasks.cancel([ids[1]])
        assert [one.state for one in ended] == ["succeeded", "cancelled"]
        assert ended[0].result == big


async def test_errors_come_back_with_their_code(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as pair:
        with pytest.raises(NotFound, match="no key"):
            await blocking(pair.client().kv_get, "nonesuch")
        with pytest.raises(NotFound, match="the members are n1, n2"):
            await blocking(pair.client("n9").status)


async def test_a_member_out_of_reach_is_named(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as pair:
        pair.network.cut(node_id("n1"), node_id("n2"))
        with pytest.raises(SwarmError) as caught:
            await blocking(pair.client().status)
        assert caught.value.code in ("unreachable", "timeout")
        assert isinstance(pair.here.mesh, FakeMesh)
        pair.here.mesh.membership.found[1] = member("n2", MemberState.DEAD)
        with pytest.raises(Unreachable, match="n2 is dead"):
            await blocking(pair.client().status)


async def test_an_asker_that_goes_away_ends_the_work(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as pair:
        client = pair.client()
        [one] = await blocking(client.submit, [{"agent": "slow"}])
        ended = trio.Event()
        tasks = pair.there.tasks
        assert isinstance(tasks, FakeTasks)
        results = tasks.results

        async def watched(task_ids: Any) -> AsyncIterator[Any]:
            try:
                async for record in results(task_ids):
                    yield record
            finally:
                ended.set()

        tasks.results = watched  # type: ignore[method-assign]
        with pytest.raises(SwarmError):
            await blocking(
                lambda: list(
                    Client(client.sockets, node="n2", timeout_s=0.05).results([one.id], retry_s=0.0)
                )
            )
        with trio.fail_after(5):
            await ended.wait()


async def test_the_doctor_measures_clocks(tmp_path: Path) -> None:
    class LateClock(BootClock):
        def wall_ms(self) -> int:
            return super().wall_ms() - 120_000

    async with two_nodes(tmp_path) as pair:
        fine = {one.name: one for one in (await blocking(pair.client("n1").doctor)).checks}
        assert fine["clock"].verdict == "ok"
        assert fine["members"].finding == "1 others alive and reached"
        pair.there.clock = LateClock()
        late = {one.name: one for one in (await blocking(pair.client("n1").doctor)).checks}
        assert late["clock"].verdict == "fail"
        assert "120.0 s ahead of n2" in late["clock"].finding


def test_members_are_found_by_name_or_unambiguous_id() -> None:
    members = [member("a"), member("b"), member("b2", MemberState.LEFT)]
    assert find_member(members, "a").name == "a"
    with pytest.raises(NotFound):
        find_member(members, "b2")
    with pytest.raises(NotFound):
        find_member(members, to_text(node_id("a"))[:5])  # Too short to mean an id.


def called_a(seed: str, state: MemberState = MemberState.ALIVE) -> Member:
    return replace(member(seed, state), name="a")


def test_a_name_means_the_living_one_before_the_dead() -> None:
    old, new = called_a("old", MemberState.DEAD), called_a("new", MemberState.SUSPECT)
    gone = called_a("gone", MemberState.LEFT)
    assert find_member([old, new, gone], "a") is new
    assert find_member([old, gone], "a") is old
    with pytest.raises(NotFound, match="no member is called 'a'"):
        find_member([gone], "a")


def test_a_name_of_two_living_members_means_neither_and_both_ids_are_told() -> None:
    one, two = called_a("one"), called_a("two", MemberState.SUSPECT)
    with pytest.raises(NotFound, match="several members are called 'a'") as caught:
        find_member([one, two, called_a("old", MemberState.DEAD)], "a")
    for living in (one, two):
        assert to_text(living.node_id)[:8] in caught.value.message
        assert find_member([one, two], to_text(living.node_id)[:8]) is living
    assert to_text(node_id("old"))[:8] not in caught.value.message


class ManualClock:
    time_s = 0.0

    def now(self) -> float:
        return self.time_s

    def wall_ms(self) -> int:
        return 0


def test_uploads_are_bounded_and_forgotten() -> None:
    clock = ManualClock()
    uploads = Uploads(10, clock)
    peer = node_id("a")
    for n in range(UPLOADS_MAX):
        uploads.add(peer, Part(upload=bytes([n]), offset=0, data=b"1234"))
    with pytest.raises(Busy):
        uploads.add(peer, Part(upload=b"more", offset=0, data=b"1"))
    assert uploads.add(peer, Part(upload=b"\x00", offset=4, data=b"56")) == 6
    with pytest.raises(TooLarge):
        uploads.add(peer, Part(upload=b"\x00", offset=6, data=b"78901"))
    with pytest.raises(BadRequest, match="missing"):
        uploads.add(peer, Part(upload=b"\x01", offset=9, data=b"7"))
    assert uploads.take(peer, b"\x02") == b"1234"
    with pytest.raises(BadRequest, match="did not arrive"):
        uploads.take(peer, b"\x02")
    clock.time_s = UPLOAD_IDLE_S + 1
    uploads.add(peer, Part(upload=b"new", offset=0, data=b"1"))
    assert len(uploads) == 1


def test_what_peers_send_is_bounded_by_its_type() -> None:
    with pytest.raises(SwarmError):
        FORWARD.decode(b"\x01" + b"\x94\x01\xc4\x11" + b"x" * 17 + b"\x00\xc4\x00")
