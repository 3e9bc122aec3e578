"""Vector memory: the index follows the store, whatever happened to either, and nothing is lost."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from vector_nodes import DIMENSION, Node, VectorSwarm, entries, entry, hits_on, ids_on, node_id
from vector_nodes import until as until_holds

from swarmd.base.errors import (
    BadRequest,
    BadVector,
    Conflict,
    NotFound,
    NotReady,
    SwarmError,
    TooLarge,
    ValueTooLarge,
    WrongDimension,
)
from swarmd.base.limits import MIB, VECTOR_RESULTS_MAX
from swarmd.memory.vector import feeder as feeding
from swarmd.memory.vector.config import VectorsConfig
from swarmd.memory.vector.feeder import Feeder
from swarmd.memory.vector.opening import open_embedded
from swarmd.memory.vector.port import VectorIndex
from swarmd.memory.vector.records import BUCKET, collection_of
from swarmd.memory.vector.service import NewEntry
from swarmd.memory.vector.shapes import Equals, Metric, Range, packed
from swarmd.state.crdt.types.kinds import Kind
from swarmd.state.crdt.types.values import Assign


@pytest.fixture
def swarm(tmp_path: Path) -> VectorSwarm:
    return VectorSwarm(tmp_path)


async def made(node: Node, name: str = "docs", dimension: int = DIMENSION) -> None:
    await node.vectors.create(name, dimension, Metric.COSINE, by="ann")


async def agree(*nodes: Node, ids: list[str]) -> None:
    """All nodes find these, with the same distances."""
    with trio.fail_after(20.0):
        while True:
            first, *rest = [await hits_on(node) for node in nodes]
            if sorted(hit.id for hit in first) == ids and all(hits == first for hits in rest):
                return
            await trio.sleep(0.02)


# ---- what is promised of one node ------------------------------------------------------------


async def test_what_was_added_is_found_at_once_with_all_that_belongs_to_it(
    swarm: VectorSwarm,
) -> None:
    async with swarm.node("a", alone=True) as a:
        await made(a)
        [version] = await a.vectors.add("docs", [entry("x/1", 1, 2, topic="ä", n=3)], by="ben")
        [hit] = await hits_on(a)
        assert (hit.id, hit.payload, hit.created_by) == ("x/1", {"topic": "ä", "n": 3}, "ben")
        got = a.vectors.get("docs", "x/1")
        assert (got.version, got.record.vector) == (version, packed([1, 2, 1, 1]))
        assert (got.node, got.created_at_ms) == (node_id("a"), hit.created_at_ms)
        await a.vectors.add("docs", [entry("x/1", 5, topic="b")], by="ben")
        assert [hit.payload for hit in await hits_on(a)] == [{"topic": "b"}]
        assert a.vectors.get("docs", "x/1").version != version
        await a.vectors.delete("docs", "x/1")
        assert await hits_on(a) == []
        with pytest.raises(NotFound, match=r"docs has no entry 'x/1'"):
            a.vectors.get("docs", "x/1")


async def test_a_filter_chooses_before_the_nearest_are(swarm: VectorSwarm) -> None:
    async with swarm.node("a", alone=True) as a:
        await made(a)
        rng = random.Random(1)
        given = entries(rng, [f"e{n}" for n in range(60)])
        await a.vectors.add("docs", given, by="")
        asked = packed([1.0] * DIMENSION)
        found = await a.vectors.search("docs", asked, 60, (Range("n", gte=2, lt=5),))
        wanted = sorted(one.id for one in given if 2 <= int(one.payload["n"]) < 5)
        assert sorted(hit.id for hit in found.hits) == wanted != []


REFUSED: list[tuple[NewEntry, type[SwarmError]]] = [
    (NewEntry("x", packed([1.0] * (DIMENSION + 1)), {}), WrongDimension),
    (NewEntry("x", b"", {}), WrongDimension),
    (NewEntry("x", packed([math.nan, 1, 1, 1]), {}), BadVector),
    (NewEntry("x", packed([math.inf, 1, 1, 1]), {}), BadVector),
    (NewEntry("x", packed([1e16, 1, 1, 1]), {}), BadVector),
    (NewEntry("x", packed([0.0] * DIMENSION), {}), BadVector),
    (NewEntry("x", packed([1.0] * DIMENSION), {"text": "x" * 5_000}), TooLarge),
    (NewEntry("x", packed([1.0] * DIMENSION), dict.fromkeys("ab", "x" * 3_000)), ValueTooLarge),
    (NewEntry("x", packed([1.0] * DIMENSION), {"deep": [1]}), BadRequest),  # type: ignore[dict-item]
    (NewEntry("", packed([1.0] * DIMENSION), {}), BadRequest),
    (NewEntry("x" * 257, packed([1.0] * DIMENSION), {}), TooLarge),
    (NewEntry("good", packed([1.0] * DIMENSION), {}), BadRequest),
]


@pytest.mark.parametrize(("bad", "kind"), REFUSED)
async def test_one_bad_entry_has_all_of_them_refused_and_changes_nothing(
    swarm: VectorSwarm, bad: NewEntry, kind: type[SwarmError]
) -> None:
    async with swarm.node("a", alone=True) as a:
        await made(a)
        with pytest.raises(kind, match="nothing changed"):
            await a.vectors.add("docs", [entry("good"), bad], by="ann")
        assert a.store.keys(BUCKET) == ["docs"]


async def test_mistakes_about_collections_and_queries_are_told(swarm: VectorSwarm) -> None:
    asked = packed([1.0] * DIMENSION)
    async with swarm.node("a", alone=True) as a:
        vectors = a.vectors
        for call in (
            vectors.search("docs", asked, 1),
            vectors.add("docs", [entry("x")], by=""),
            vectors.drop("docs"),
            vectors.collection("docs"),
        ):
            with pytest.raises(NotFound, match="no collection 'docs'"):
                await call
        await made(a)
        await made(a)
        with pytest.raises(Conflict, match="dimension 4, metric cosine and no model"):
            await vectors.create("docs", DIMENSION, Metric.L2, by="")
        for name, dimension in (("a/b", 3), ("", 3), ("ok", 0), ("ok", 4_097)):
            with pytest.raises(BadRequest):
                await vectors.create(name, dimension, Metric.DOT, by="")
        with pytest.raises(WrongDimension):
            await vectors.search("docs", asked + asked, 1)
        for k in (0, VECTOR_RESULTS_MAX + 1):
            with pytest.raises(BadRequest, match="k is from"):
                await vectors.search("docs", asked, k)
        with pytest.raises(BadRequest, match="range"):
            await vectors.search("docs", asked, 1, (Range("n"),))
        with pytest.raises(TooLarge):
            await vectors.add("docs", [entry(str(n)) for n in range(1_001)], by="")
        assert [info.collection.name for info in await vectors.collections()] == ["docs"]


async def test_a_node_takes_no_more_than_it_is_told_to(tmp_path: Path) -> None:
    swarm = VectorSwarm(tmp_path, VectorsConfig(bytes_max=MIB))
    async with swarm.node("a", alone=True) as a:
        await made(a, dimension=4_096)
        some = [NewEntry(str(n), packed([1.0] * 4_096), {}) for n in range(64)]
        await a.vectors.add("docs", some, by="")
        found = await a.vectors.search("docs", some[0].vector, 100)
        assert len(found.hits) == 64
        with pytest.raises(TooLarge, match=r"vectors.bytes_max is 1048576: nothing changed"):
            await a.vectors.add("docs", [NewEntry("more", some[0].vector, {})], by="")


async def test_a_node_without_vectors_opens_no_index(swarm: VectorSwarm) -> None:
    async with swarm.node("a", alone=True) as a:
        assert await a.vectors.collections() == []
        await trio.sleep(0.05)
        assert not (swarm.folder / "a" / "vectors").exists()


# ---- the index and the store -----------------------------------------------------------------


async def test_after_a_restart_only_what_differs_is_fed(
    swarm: VectorSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[int] = []
    apply = Feeder._apply_batch

    async def counted(self: Feeder, index: object, changes: list[object]) -> object:
        fed.append(len(changes))
        return await apply(self, index, changes)  # type: ignore[arg-type]

    monkeypatch.setattr(Feeder, "_apply_batch", counted)
    async with swarm.node("a", alone=True) as a:
        await made(a)
        await a.vectors.add("docs", entries(random.Random(1), [f"e{n}" for n in range(40)]), by="")
        before = await hits_on(a)
    fed.clear()
    async with swarm.node("a", alone=True) as a:
        assert await hits_on(a) == before
        assert fed == []
        await a.vectors.add("docs", [entry("new")], by="")
        await a.vectors.delete("docs", "e7")
        assert await ids_on(a) == sorted({"new", *(hit.id for hit in before)} - {"e7"})
        assert sum(fed) == 2


async def test_an_index_that_is_gone_damaged_or_of_another_time_ends_up_the_same(
    swarm: VectorSwarm,
) -> None:
    rng = random.Random(2)
    async with swarm.node("a", alone=True) as a:
        await made(a)
        await made(a, "old", 3)
        await a.vectors.add("docs", entries(rng, ["kept", "changed", "deleted"]), by="")
    swarm.copy("a", "vectors", "older-index")
    async with swarm.node("a", alone=True) as a:
        await a.vectors.add("docs", entries(rng, ["changed", "added"]), by="")
        await a.vectors.delete("docs", "deleted")
        await a.vectors.drop("old")
        before = await hits_on(a)
        assert sorted(hit.id for hit in before) == ["added", "changed", "kept"]
    for how in ("gone", "older", "damaged"):
        if how == "gone":
            swarm.wipe_index("a")
        elif how == "older":
            swarm.put_back("a", "vectors", "older-index")
        else:
            [file, *_] = sorted((swarm.folder / "a" / "vectors" / "index").glob("*.f32"))
            file.write_bytes(b"\xff" * file.stat().st_size)
        async with swarm.node("a", alone=True) as a:
            assert await hits_on(a) == before, how
            assert [one.collection.name for one in await a.vectors.collections()] == ["docs"]


async def test_an_index_that_is_ahead_of_its_store_goes_back(swarm: VectorSwarm) -> None:
    """What a crash leaves where the index was quicker to the disk, or an old disk was put back."""
    rng = random.Random(3)
    async with swarm.node("a", alone=True) as a:
        await made(a)
        await a.vectors.add("docs", entries(rng, ["kept", "changed", "deleted"]), by="")
        before = await hits_on(a)
    swarm.copy("a", "crdt", "older-store")
    async with swarm.node("a", alone=True) as a:
        await a.vectors.add("docs", entries(rng, ["changed", "added"]), by="")
        await a.vectors.delete("docs", "deleted")
        await made(a, "later")
        await a.vectors.add("later", entries(rng, ["x"]), by="")
        assert await ids_on(a) == ["added", "changed", "kept"]
    swarm.put_back("a", "crdt", "older-store")
    async with swarm.node("a", alone=True) as a:
        assert await hits_on(a) == before
        assert [one.collection.name for one in await a.vectors.collections()] == ["docs"]


async def test_it_catches_up_when_more_changes_than_a_watch_keeps(
    swarm: VectorSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmd.state.crdt.watching._WATCHED_MAX", 20)
    monkeypatch.setattr(feeding, "_BATCH", 7)
    monkeypatch.setattr(feeding, "_PAGE", 10)
    ids = sorted(f"e{n}" for n in range(300))
    async with swarm.node("a", alone=True) as a:
        await made(a)
        await a.vectors.add("docs", entries(random.Random(4), ids), by="")
        assert await ids_on(a) == ids
        for one in ids[::3]:
            await a.vectors.delete("docs", one)
        await a.vectors.add("docs", entries(random.Random(5), ids[1::3]), by="")
        await a.vectors.add("docs", entries(random.Random(6), ["z", "A", "ä", "\U0001f600"]), by="")
        wanted = sorted({*ids, "z", "A", "ä", "\U0001f600"} - {*ids[::3]})
        assert await ids_on(a) == wanted
        found = {hit.id: hit.payload for hit in await hits_on(a)}
        assert found == {one: dict(a.vectors.get("docs", one).record.payload) for one in wanted}
    async with swarm.node("a", alone=True) as a:
        assert await ids_on(a) == wanted


async def test_a_search_waits_for_no_more_than_the_pass_that_an_opening_index_begins_with(
    swarm: VectorSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the watch lagged before there was an index: one pass sees all of that."""
    monkeypatch.setattr("swarmd.state.crdt.watching._WATCHED_MAX", 5)
    may_open = trio.Event()

    @asynccontextmanager
    async def held_up(folder: Path) -> AsyncIterator[VectorIndex]:
        await may_open.wait()
        async with open_embedded(folder) as index:
            yield index

    monkeypatch.setattr("vector_nodes.open_embedded", held_up)
    ids = sorted(f"e{n}" for n in range(20))
    async with swarm.node("a", alone=True) as a, trio.open_nursery() as nursery:
        await made(a)
        await a.vectors.add("docs", entries(random.Random(4), ids), by="")
        found: list[str] = []

        async def ask() -> None:
            found.extend(await ids_on(a))

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert found == []
        may_open.set()
    assert found == ids


async def test_an_index_that_has_a_collection_of_another_time_blames_no_query(
    swarm: VectorSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with swarm.node("a", alone=True) as a:
        await made(a)
        await a.vectors.add("docs", [entry("x")], by="")
        assert await ids_on(a) == ["x"]

    async def sees_nothing(self: Feeder, index: object, name: str, keys: list[str]) -> None:
        pass

    async with swarm.node("a", alone=True) as a:
        await hits_on(a)
        with monkeypatch.context() as patch:
            patch.setattr(Feeder, "_look_at", sees_nothing)
            await a.vectors.drop("docs")
            await made(a, dimension=DIMENSION + 1)
            wide = packed([1.0] * (DIMENSION + 1))
            with pytest.raises(NotReady, match="not in this node's index yet"):
                await a.vectors.search("docs", wide, 1)


async def test_damage_that_a_search_finds_has_the_index_made_anew(
    swarm: VectorSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "_AGAIN_MIN_S", 0.01)
    async with swarm.node("a", alone=True) as a:
        await made(a)
        await a.vectors.add("docs", entries(random.Random(1), ["x", "y"]), by="")
        before = await hits_on(a)
        index = a.vectors._feeder.index
        assert index is not None
        place = swarm.folder / "a" / "vectors" / "index" / "1.f32"
        place.write_bytes(b"\x01" * place.stat().st_size)
        a.vectors._feeder.damaged()
        await until_holds(lambda: a.vectors._feeder.index not in (None, index))
        assert await hits_on(a) == before
        assert (swarm.folder / "a" / "vectors" / "damaged").exists()


# ---- what several nodes do -------------------------------------------------------------------


async def test_what_one_adds_others_find_and_who_was_away_catches_up(swarm: VectorSwarm) -> None:
    rng = random.Random(1)
    async with swarm.node("a") as a:
        await made(a)
        await a.vectors.add("docs", entries(rng, ["one", "two"]), by="ann")
        async with swarm.node("b") as b:
            await until_holds(lambda: "docs" in b.store.keys(BUCKET))
            await agree(a, b, ids=["one", "two"])
            await b.vectors.add("docs", entries(rng, ["three"]), by="ben")
            await a.vectors.delete("docs", "one")
            await agree(a, b, ids=["three", "two"])
        await a.vectors.delete("docs", "two")
        await a.vectors.add("docs", entries(rng, ["four"]), by="ann")
        swarm.wipe_index("b")
        async with swarm.node("b") as b, swarm.node("c") as c:
            await until_holds(lambda: "docs" in c.store.keys(BUCKET))
            await agree(a, b, c, ids=["four", "three"])


async def test_of_an_entry_added_and_deleted_at_once_all_say_the_same(swarm: VectorSwarm) -> None:
    rng = random.Random(1)
    async with swarm.node("a") as a, swarm.node("b") as b:
        await made(a)
        await a.vectors.add("docs", entries(rng, ["x", "y"]), by="")
        await until_holds(lambda: len(b.store.keys(BUCKET)) == 3)
    async with swarm.node("a", alone=True) as a:
        await a.vectors.delete("docs", "x")
        await a.vectors.add("docs", entries(rng, ["y"]), by="ann")
    async with swarm.node("b", alone=True) as b:
        await b.vectors.add("docs", entries(rng, ["x"]), by="ben")
        await b.vectors.add("docs", entries(rng, ["y"]), by="ben")
    async with swarm.node("a") as a, swarm.node("b") as b:
        await agree(a, b, ids=["x", "y"])
        assert [hit.created_by for hit in await hits_on(a)] == ["ben", "ben"]


@pytest.mark.parametrize("same", [True, False])
async def test_collections_made_at_once_end_alike(swarm: VectorSwarm, same: bool) -> None:
    """Of the same kind both count, with all entries; else the earlier one does, everywhere."""
    async with swarm.node("a", alone=True) as a:
        await made(a)
        await a.vectors.add("docs", [entry("of-a")], by="")
    async with swarm.node("b", alone=True) as b:
        await made(b, dimension=DIMENSION if same else DIMENSION + 1)
        wide = NewEntry("of-b", packed([1.0] * (DIMENSION + 1)), {})
        await b.vectors.add("docs", [entry("of-b") if same else wide], by="")
    async with swarm.node("a") as a, swarm.node("b") as b:
        await until_holds(lambda: a.store.keys(BUCKET) == b.store.keys(BUCKET) != [])
        await until_holds(lambda: len(a.store.keys(BUCKET)) == 3)
        await until_holds(lambda: a.vectors.need("docs") == b.vectors.need("docs"))
        assert b.vectors.need("docs").spec.dimension == DIMENSION
        await agree(a, b, ids=["of-a", "of-b"] if same else ["of-a"])
        await b.vectors.add("docs", [entry("later")], by="")
        await agree(a, b, ids=["later", "of-a", "of-b"] if same else ["later", "of-a"])
        # What does not count is kept, and is nobody's to sweep.
        for one in (a, b):
            await one.vectors.sweep_once()
        assert "docs/of-b" in a.store.keys(BUCKET)


async def test_what_was_dropped_is_gone_at_once_and_does_not_come_back(swarm: VectorSwarm) -> None:
    rng = random.Random(1)
    async with swarm.node("a") as a, swarm.node("b") as b:
        await made(a)
        await a.vectors.add("docs", entries(rng, ["x", "y"]), by="")
        await until_holds(lambda: len(b.store.keys(BUCKET)) == 3)
    async with swarm.node("b", alone=True) as b:
        await b.vectors.add("docs", entries(rng, ["of-b"]), by="")
    async with swarm.node("a", alone=True) as a:
        swarm.alive = []
        await a.vectors.drop("docs")
        assert await a.vectors.collections() == []
        await made(a)
        assert await ids_on(a) == []
        await a.vectors.add("docs", entries(rng, ["new"]), by="")
        assert await ids_on(a) == ["new"]
    swarm.alive = [node_id("a"), node_id("b")]
    async with swarm.node("a") as a, swarm.node("b") as b:
        await agree(a, b, ids=["new"])
        # Each removes what it wrote.
        for one in (a, b):
            await until_holds(lambda one=one: one.store.keys(BUCKET) == ["docs", "docs/new"])


async def test_what_a_node_that_is_gone_left_behind_another_removes(swarm: VectorSwarm) -> None:
    async with swarm.node("a") as a, swarm.node("b") as b:
        await made(a)
        await until_holds(lambda: b.store.keys(BUCKET) == ["docs"])
        await b.vectors.add("docs", [entry("of-b")], by="")
        await until_holds(lambda: "docs/of-b" in a.store.keys(BUCKET))
    swarm.alive = [node_id("b")]
    async with swarm.node("a") as a:
        await a.vectors.drop("docs")
        await a.vectors._feeder.settle(5.0)
        await a.vectors.sweep_once()
        assert a.store.keys(BUCKET) == ["docs/of-b"]
        swarm.alive = []
        await a.vectors.sweep_once()
        assert a.store.keys(BUCKET) == []


async def test_entries_that_come_before_their_collection_wait_for_it(swarm: VectorSwarm) -> None:
    """Nobody takes them for what belongs to nothing."""
    async with swarm.node("a", alone=True) as a:
        await made(a)
        await a.vectors.add("docs", [entry("x")], by="")
        value = a.store.get(BUCKET, "docs/x")
    async with swarm.node("b", alone=True) as b:
        await b.store.write(BUCKET, "docs/x", Assign(value))
        await b.vectors._feeder.settle(5.0)
        await b.vectors.sweep_once()
        assert b.store.keys(BUCKET) == ["docs/x"]
        with pytest.raises(NotFound):
            await hits_on(b)


async def test_what_no_build_writes_is_passed_over(swarm: VectorSwarm) -> None:
    """Any member may put anything into the bucket."""
    rng = random.Random(9)
    async with swarm.node("a", alone=True) as a:
        await made(a)
        await a.vectors.add("docs", entries(rng, ["x"]), by="")
        good = list(a.store.get(BUCKET, "docs/x"))
        nan = [*good[:2], packed([math.nan] * DIMENSION), {}, "eve"]
        deep = [*good[:3], {"a": {"b": 1}}, "eve"]
        for key, value in (
            ("docs/nan", nan),
            ("docs/deep", deep),
            ("docs/short", [*good[:2], b"123", {}, "eve"]),
            ("docs/none", None),
            ("docs/", good),
            ("docs/" + "y" * 300, good),
            ("no name/x", good),
            ("other", {"dimension": 3}),
        ):
            await a.store.write(BUCKET, key, Assign(value))
        await a.store.write(
            BUCKET, "bad name", Assign([b"12345678", 3, "dot", "", "eve"], Kind.MULTI)
        )
        assert await ids_on(a) == ["x"]
        assert collection_of("other", a.store.cells(BUCKET, "other")) is None
        await a.vectors.add("docs", entries(rng, ["y"]), by="")
        assert await ids_on(a) == ["x", "y"]
        found = await a.vectors.search("docs", packed([1.0] * 4), 5, (Equals("n", 99),))
        assert found.hits == []
    async with swarm.node("a", alone=True) as a:
        assert await ids_on(a) == ["x", "y"]


async def test_what_takes_an_entrys_place_and_is_none_leaves_nothing_to_be_found(
    swarm: VectorSwarm,
) -> None:
    """All nodes say the same then, whether they had heard of the entry before or not."""
    rng = random.Random(9)
    async with swarm.node("a", alone=True) as a:
        await made(a)
        await a.vectors.add("docs", entries(rng, ["x", "y"]), by="")
        assert await ids_on(a) == ["x", "y"]
        good = list(a.store.get(BUCKET, "docs/x"))
        nan = [*good[:2], packed([math.nan] * DIMENSION), {}, "eve"]
        await a.store.write(BUCKET, "docs/x", Assign(nan))
        assert await ids_on(a) == ["y"]
        with pytest.raises(NotFound, match="no entry 'x'"):
            a.vectors.get("docs", "x")
    async with swarm.node("a", alone=True) as a:
        assert await ids_on(a) == ["y"]
        await a.vectors.delete("docs", "x")
        assert a.store.keys(BUCKET) == ["docs", "docs/y"]
