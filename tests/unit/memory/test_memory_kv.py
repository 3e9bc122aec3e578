"""Shared memory: what a namespace holds, for how long, and who may overwrite what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fixed_membership import FixedMembership

from swarmd.base.errors import (
    BadRequest,
    Conflict,
    EmptyKey,
    KeyTooLong,
    MalformedMessage,
    NotFound,
    ValueTooLarge,
)
from swarmd.base.files import FileDisk
from swarmd.base.ids import NodeId
from swarmd.base.limits import CRDT_VALUE_BYTES_MAX
from swarmd.base.rng import make_rng
from swarmd.memory.kv.eventual import BUCKET, EventualMemory
from swarmd.memory.kv.inspecting import EXPIRED
from swarmd.memory.kv.port import ABSENT, LIST_BYTES_MAX, Entry
from swarmd.mesh.transports.memory import MemoryNetwork
from swarmd.sim.crdt_world import SimSigner
from swarmd.state.crdt.service import open_eventual
from swarmd.state.crdt.types.kinds import Kind
from swarmd.state.crdt.types.values import AddTo, Assign, EditText

ME, OTHER = (NodeId(name.ljust(32, b".")) for name in (b"me", b"other"))


class Clock:
    """Wall time as the test says; nothing here waits for the other."""

    def __init__(self) -> None:
        self.wall = 1_000_000

    def now(self) -> float:
        return 0.0

    def wall_ms(self) -> int:
        return self.wall


class Node:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Clock()
        self.alive: list[NodeId] = []
        self.starts = 0

    @asynccontextmanager
    async def open(self, me: NodeId = ME) -> AsyncIterator[EventualMemory]:
        self.starts += 1
        async with open_eventual(
            MemoryNetwork().link(me),
            FixedMembership([me]),
            FileDisk(self.folder),
            SimSigner(me),
            self.clock,
            make_rng(self.starts),
            everyone=lambda: [me],
        ) as store:
            yield EventualMemory(me, store, self.clock, lambda: self.alive)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "crdt")


def told(entry: Entry) -> tuple[Any, ...]:
    return entry.value, entry.created_by, entry.created_at_ms, entry.expires_at_ms, entry.node


async def test_a_value_comes_back_with_who_wrote_it_when_and_until_when(node: Node) -> None:
    async with node.open() as memory:
        for value in ("dark", 7, 1.5, None, True, [1, {"a": "ä"}], {"deep": [None]}):
            written = await memory.set("ns", "k", value, by="ann", ttl_s=2.5)
            assert await memory.get("ns", "k") == written
            assert told(written) == (value, "ann", 1_000_000, 1_002_500, ME)
    async with node.open() as again:
        assert (await again.get("ns", "k")).value == {"deep": [None]}


async def test_namespaces_do_not_see_each_other(node: Node) -> None:
    async with node.open() as memory:
        for namespace, key in (("a", "b/c"), ("a.b", "c"), ("a", "c")):
            await memory.set(namespace, key, f"{namespace} {key}", by="")
        assert [one.key for one in (await memory.list("a"))[0]] == ["b/c", "c"]
        assert [one.key for one in (await memory.list("a.b"))[0]] == ["c"]
        with pytest.raises(NotFound, match=r"a\.b has no key"):
            await memory.get("a.b", "b/c")


async def test_a_list_is_in_order_and_goes_on_where_it_ended(node: Node) -> None:
    async with node.open() as memory:
        for number in (3, 1, 5, 2, 4):
            await memory.set("ns", f"k{number}", number, by="")
        await memory.set("ns", "other", 0, by="")
        first, more = await memory.list("ns", "k", limit=2)
        assert ([one.key for one in first], more) == (["k1", "k2"], True)
        rest, more = await memory.list("ns", "k", after="k2")
        assert ([one.key for one in rest], more) == (["k3", "k4", "k5"], False)


async def test_a_page_ends_with_its_bytes_and_passes_over_what_has_expired(node: Node) -> None:
    async with node.open() as memory:
        for number in range(10):
            await memory.set("ns", f"large{number}", "x" * (CRDT_VALUE_BYTES_MAX - 5), by="ann")
        for number in range(600):
            await memory.set("ns", f"brief{number}", 1, by="", ttl_s=1)
        node.clock.wall += 1_000
        first, more = await memory.list("ns")
        assert more
        assert sum(one.size for one in first) <= LIST_BYTES_MAX
        rest, more = await memory.list("ns", after=first[-1].key)
        assert not more
        assert [one.key for one in first + rest] == [f"large{number}" for number in range(10)]


async def test_what_has_expired_is_absent_at_once_and_removed_by_its_node(node: Node) -> None:
    async with node.open() as memory:
        await memory.set("ns", "brief", 1, by="", ttl_s=1)
        await memory.set("ns", "lasting", 2, by="")
        node.clock.wall += 1_000
        with pytest.raises(NotFound):
            await memory.get("ns", "brief")
        assert [one.key for one in (await memory.list("ns"))[0]] == ["lasting"]
        assert memory._store.keys(BUCKET) == ["ns/brief", "ns/lasting"]
        await memory.look_at_all()
        await memory.sweep_once()
        assert memory._store.keys(BUCKET) == ["ns/lasting"]
        again = await memory.set("ns", "brief", 3, by="", if_version=ABSENT)
        assert again.expires_at_ms == 0


async def test_others_remove_what_expired_only_of_nodes_that_are_gone(node: Node) -> None:
    async with node.open() as memory:
        await memory.set("ns", "brief", 1, by="", ttl_s=1)
    node.clock.wall += 1_000
    node.alive = [ME]
    async with node.open(OTHER) as memory:
        await memory.look_at_all()
        await memory.sweep_once()
        assert memory._store.keys(BUCKET) == ["ns/brief"], "its node does it"
        node.alive = []
        await memory.look_at_all()
        await memory.sweep_once()
        assert memory._store.keys(BUCKET) == []


async def test_a_version_guards_against_writes_that_were_not_seen(node: Node) -> None:
    async with node.open() as memory:
        first = await memory.set("ns", "k", 1, by="", if_version=ABSENT)
        second = await memory.set("ns", "k", 2, by="", if_version=first.version)
        assert second.version != first.version
        for version in (first.version, ABSENT, "nonsense"):
            with pytest.raises(Conflict, match="nothing changed"):
                await memory.set("ns", "k", 3, by="", if_version=version)
            with pytest.raises(Conflict):
                await memory.delete("ns", "k", if_version=version)
        assert await memory.get("ns", "k") == second
        await memory.delete("ns", "k", if_version=second.version)
        with pytest.raises(NotFound):
            await memory.delete("ns", "k")


@pytest.mark.parametrize(
    ("namespace", "key", "value", "ttl_s", "error"),
    [
        ("a/b", "k", 1, None, BadRequest),
        ("", "k", 1, None, BadRequest),
        ("ns", "", 1, None, EmptyKey),
        ("ns", "x" * 900, 1, None, KeyTooLong),
        ("ns", "\ud800", 1, None, BadRequest),
        ("ns", "k", "x" * CRDT_VALUE_BYTES_MAX, None, ValueTooLarge),
        ("ns", "k", 2**70, None, MalformedMessage),
        ("ns", "k", 1, 0, BadRequest),
        ("ns", "k", 1, -1, BadRequest),
        ("ns", "k", 1, float("nan"), BadRequest),
        ("ns", "k", 1, 1e12, BadRequest),
    ],
)
async def test_a_mistake_is_refused_and_nothing_changes(
    node: Node, namespace: str, key: str, value: Any, ttl_s: float | None, error: type[Exception]
) -> None:
    async with node.open() as memory:
        with pytest.raises(error):
            await memory.set(namespace, key, value, by="", ttl_s=ttl_s)
        assert memory._store.keys(BUCKET) == []


async def test_a_key_of_another_type_is_no_value(node: Node) -> None:
    async with node.open() as memory:
        await memory._store.write(BUCKET, "ns/set", AddTo(1))
        assert await memory.list("ns") == ([], False)
        with pytest.raises(Conflict, match="is a set and no register"):
            await memory.set("ns", "set", 1, by="")


async def test_a_watch_tells_keys_of_its_namespace(node: Node) -> None:
    async with node.open() as memory, memory.watch("ns", "k") as watch:
        for namespace, key in (("other", "k"), ("ns", "x"), ("ns", "k1"), ("ns", "k2")):
            await memory.set(namespace, key, 1, by="")
        await memory.delete("ns", "k1")
        assert [await watch.receive() for _ in range(2)] == ["k1", "k2"]


async def test_what_stands_behind_a_key_is_told(node: Node) -> None:
    async with node.open() as memory:
        await memory.set("ns", "k", {"a": 1}, by="ann", ttl_s=1)
        found = memory.inspect("ns", "k")
        assert (found.kind, found.value, found.left_out) == (Kind.REGISTER, {"a": 1}, 0)
        [cell] = found.cells
        assert (cell.node, cell.number, cell.value, cell.created_by) == (ME, 1, {"a": 1}, "ann")
        assert (cell.counts, cell.expires_at_ms) == (True, 1_001_000)
        assert found.seen == [(ME, cell.life, 1)]
        node.clock.wall += 1_000
        found = memory.inspect("ns", "k")
        assert (found.value, found.cells[0].value) == (None, {"a": 1}), "as a get would say"
        assert (found.cells[0].counts, found.cells[0].why) == (False, EXPIRED)
        with pytest.raises(NotFound, match="nothing is held"):
            memory.inspect("ns", "other")
        with pytest.raises(EmptyKey):
            memory.inspect("ns", "")


async def test_what_is_large_or_of_no_build_is_told_by_its_size(node: Node) -> None:
    async with node.open() as memory:
        await memory.set("ns", "large", "x" * 5_000, by="ann")
        [cell] = memory.inspect("ns", "large").cells
        assert (cell.value, cell.created_by, cell.value_bytes > 5_000) == (None, "ann", True)
        await memory._store.write(BUCKET, "ns/odd", Assign("no pair"))
        found = memory.inspect("ns", "odd")
        assert (found.value, found.cells[0].created_by) == ("no pair", None)
        await memory._store.write(BUCKET, "ns/text", EditText(0, "abc"))
        found = memory.inspect("ns", "text")
        assert (found.value, found.cells[0].value) == ("abc", {"puts": 3, "deletes": 0})
