"""Every implementation of `VectorIndex` keeps what the protocol promises."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio
from vector_databases import in_schema, schema_for
from vector_model import Model, check_hits

from swarmd.base.errors import (
    BadRequest,
    BadVector,
    Conflict,
    FeedGap,
    NotFound,
    ShuttingDown,
    SwarmError,
    WrongDimension,
)
from swarmd.base.limits import VECTOR_BATCH_CHANGES_MAX, VECTOR_RESULTS_MAX
from swarmd.memory.vector.embedded import open_vector_index
from swarmd.memory.vector.port import VectorIndex
from swarmd.memory.vector.shapes import (
    Batch,
    Change,
    Condition,
    Define,
    Drop,
    Equals,
    Hit,
    Metric,
    OneOf,
    Query,
    Range,
    Remove,
    Upsert,
    packed,
)

Open = Callable[[], AbstractAsyncContextManager[VectorIndex]]


@pytest.fixture(params=["embedded", "pgvector"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """How each of them is opened, at a place where it finds again what it kept."""
    if request.param == "embedded":
        return lambda: open_vector_index(tmp_path)
    return in_schema(request.getfixturevalue("postgres"), schema_for(tmp_path))


DIMENSION = 12
FILTERS: tuple[tuple[Condition, ...], ...] = (
    (),
    (Equals("colour", "red"),),
    (Equals("draft", True), Range("size", gt=10)),
    (OneOf("colour", ("red", "blue", 3)), Range("size", gte=5.0, lt=40)),
    (Range("colour", gte="b", lte="g"),),
    (Equals("colour", "none"),),
)


def made(rng: random.Random, position: int, metric: Metric, ids: int) -> Change:
    name = f"by-{metric}"
    entry_id = f"e{rng.randrange(ids)}"
    if rng.random() < 0.15:
        return Remove(position, name, entry_id)
    vector = packed(rng.gauss(3, 1) for _ in range(DIMENSION))
    payload = {"size": rng.choice([rng.randrange(60), rng.random() * 60])}
    if rng.random() < 0.9:
        payload |= {"colour": rng.choice(["red", "green", "blue", 3])}
    if rng.random() < 0.5:
        payload |= {"draft": rng.random() < 0.5}
    return Upsert(position, name, entry_id, vector, payload, rng.choice("ab"), position)


def batches(count: int, size: int, ids: int) -> list[Batch]:
    rng = random.Random(3)
    defined = tuple(Define(1, f"by-{metric}", DIMENSION, metric) for metric in Metric)
    fed, position = [Batch(0, 1, defined)], 1
    for _ in range(count):
        metrics = [rng.choice(list(Metric)) for _ in range(size)]
        changes = tuple(made(rng, position + n + 1, one, ids) for n, one in enumerate(metrics))
        fed.append(Batch(position, position + size, changes))
        position += size
    return fed


def queries(k: int = 10) -> list[Query]:
    rng = random.Random(4)
    return [
        Query(f"by-{metric}", packed(rng.gauss(3, 1) for _ in range(DIMENSION)), k, filters)
        for metric in Metric
        for filters in FILTERS
    ]


async def compare(index: VectorIndex, model: Model, k: int = 10) -> None:
    assert index.position == model.position
    views = [(one.name, one.dimension, one.metric, one.entries) for one in index.collections()]
    assert views == model.views()
    for query in queries(k):
        check_hits(model, query, await index.search(query))


async def test_it_finds_what_brute_force_finds_and_finds_it_again(opened: Open) -> None:
    model = Model()
    async with opened() as index:
        assert index.position == 0
        assert index.collections() == []
        for batch in batches(12, 100, 300):
            model.apply(batch)
            assert await index.apply(batch) == batch.until
        await compare(index, model)
        await compare(index, model, VECTOR_RESULTS_MAX)
    async with opened() as index:
        await compare(index, model)


async def test_it_goes_on_after_the_last_batch_and_applies_none_twice(opened: Open) -> None:
    model, fed = Model(), batches(8, 30, 50)
    for batch in fed[:5]:
        model.apply(batch)
    async with opened() as index:
        for batch in fed[:5]:
            await index.apply(batch)
    async with opened() as index:
        assert index.position == model.position
        assert await index.apply(fed[2]) == model.position
        with pytest.raises(FeedGap):
            await index.apply(fed[6])
        await compare(index, model)
        # Cut in another way: what was applied is left out.
        rest = Batch(fed[3].after, fed[6].until, sum((one.changes for one in fed[3:7]), ()))
        for batch in fed[5:7]:
            model.apply(batch)
        assert await index.apply(rest) == model.position
        await compare(index, model)
        # There may be nothing for it on the way.
        quiet = Batch(model.position, model.position + 9, ())
        model.apply(quiet)
        assert await index.apply(quiet) == model.position
    async with opened() as index:
        await compare(index, model)


async def test_collections_are_dropped_with_all_and_made_anew(opened: Open) -> None:
    def one(position: int, x: float) -> Upsert:
        return Upsert(position, "c", f"e{position}", packed([x]), {"n": position}, "a", 0)

    async with opened() as index:
        changes = (Define(1, "c", 1, Metric.L2), one(2, 1), one(3, 2), Drop(4, "c"))
        await index.apply(Batch(0, 4, changes))
        assert index.collections() == []
        with pytest.raises(NotFound):
            await index.search(Query("c", packed([0]), 1))
        again = (Drop(5, "c"), Define(6, "c", 2, Metric.DOT), Define(7, "c", 2, Metric.DOT))
        await index.apply(Batch(4, 7, again))
        assert await index.search(Query("c", packed([0, 0]), 1)) == []
        mixed = (Drop(8, "c"), Define(9, "c", 1, Metric.L2), one(10, 5), Remove(11, "c", "no"))
        await index.apply(Batch(7, 11, mixed))
        expected = [Hit("e10", 5.0, {"n": 10}, "a", 0)]
        assert await index.search(Query("c", packed([0]), 9)) == expected
    async with opened() as index:
        assert await index.search(Query("c", packed([0]), 9)) == expected


REFUSED: list[tuple[Change, type[SwarmError]]] = [
    (Define(2, "by-l2", DIMENSION, Metric.DOT), Conflict),
    (Define(2, "by-l2", DIMENSION - 1, Metric.L2), Conflict),
    (Define(2, "bad name", 1, Metric.L2), BadRequest),
    (Upsert(2, "by-l2", "x", packed([1.0]), {}, "a", 0), WrongDimension),
    (Upsert(2, "by-l2", "x", packed([float("nan")] * DIMENSION), {}, "a", 0), BadVector),
    (Upsert(2, "by-cosine", "x", packed([0.0] * DIMENSION), {}, "a", 0), BadVector),
    (Upsert(2, "nobody", "x", packed([0.0] * DIMENSION), {}, "a", 0), NotFound),
    (Remove(2, "nobody", "x"), NotFound),
]


@pytest.mark.parametrize(("change", "kind"), REFUSED)
async def test_a_refused_batch_changes_nothing(
    change: Change, kind: type[SwarmError], opened: Open
) -> None:
    model, (first, second) = Model(), batches(1, VECTOR_BATCH_CHANGES_MAX - 1, 20)
    model.apply(first)
    async with opened() as index:
        await index.apply(first)
        with pytest.raises(kind, match="position 2"):
            await index.apply(Batch(1, second.until, (change, *second.changes)))
        await compare(index, model)
        model.apply(second)
        await index.apply(second)
        await compare(index, model)


async def test_questions_that_make_no_sense_are_refused(opened: Open) -> None:
    async with opened() as index:
        await index.apply(batches(0, 0, 1)[0])
        good = packed([1.0] * DIMENSION)
        for query, kind in (
            (Query("nobody", good, 1), NotFound),
            (Query("by-l2", good[4:], 1), WrongDimension),
            (Query("by-cosine", packed([0.0] * DIMENSION), 1), BadVector),
            (Query("by-l2", good, 0), BadRequest),
            (Query("by-l2", good, VECTOR_RESULTS_MAX + 1), BadRequest),
            (Query("by-l2", good, 1, (Range("size"),)), BadRequest),
        ):
            with pytest.raises(kind):
                await index.search(query)
        assert await index.search(Query("by-l2", good, 1)) == []


async def test_searches_amid_changes_are_each_of_one_position(opened: Open) -> None:
    """Goal: a search sees whole batches only, and at least those whose apply returned.

    Method: each batch moves all of ten entries to one place, which the payload tells, too.
    """

    def moved(batch_number: int) -> Batch:
        start = 1 + batch_number * 10
        place = packed([float(batch_number)])
        return Batch(
            start,
            start + 10,
            tuple(
                Upsert(start + n + 1, "c", f"e{n}", place, {"batch": batch_number}, "a", 0)
                for n in range(10)
            ),
        )

    searched = 0
    async with opened() as index, trio.open_nursery() as nursery:
        await index.apply(Batch(0, 1, (Define(1, "c", 1, Metric.L2),)))
        await index.apply(moved(0))
        done = trio.Event()

        async def search(conditions: tuple[Condition, ...]) -> None:
            nonlocal searched
            while not done.is_set():
                known = (index.position - 11) // 10
                hits = await index.search(Query("c", packed([0.0]), 100, conditions))
                assert len({hit.payload["batch"] for hit in hits}) == 1, hits
                batch_number = hits[0].payload["batch"]
                assert [(hit.id, hit.distance) for hit in hits] == [
                    (f"e{n}", float(batch_number)) for n in range(10)
                ]
                assert batch_number >= known
                searched += 1

        for conditions in ((), (), (Range("batch", gte=0),)):
            nursery.start_soon(search, conditions)
        for batch_number in range(1, 150):
            await index.apply(moved(batch_number))
        done.set()
    assert searched > 30


async def test_many_may_feed_at_once_as_long_as_each_goes_on(opened: Open) -> None:
    """Batches that wait are applied in the order in which they were given."""
    model, fed = Model(), batches(11, 5, 30)
    async with opened() as index:
        async with trio.open_nursery() as nursery:
            for batch in fed:
                nursery.start_soon(index.apply, batch)
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
        for batch in fed:
            model.apply(batch)
        await compare(index, model)


async def test_who_gives_up_may_do_it_again(opened: Open) -> None:
    model, fed = Model(), batches(20, 40, 60)
    async with opened() as index:
        for batch in fed:
            with trio.CancelScope() as scope:
                scope.cancel()
                await index.apply(batch)
            with trio.move_on_after(0.0005):
                await index.apply(batch)
            with trio.move_on_after(0.0005):
                await index.search(queries()[0]) if batch is not fed[0] else None
            assert await index.apply(batch) == batch.until
            model.apply(batch)
        await compare(index, model)


async def test_what_is_closed_says_so(opened: Open) -> None:
    async with opened() as index:
        await index.apply(batches(0, 0, 1)[0])
    with pytest.raises(ShuttingDown):
        await index.apply(Batch(1, 2, ()))
    with pytest.raises(ShuttingDown):
        await index.search(queries()[0])
