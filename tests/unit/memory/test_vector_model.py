"""Each index beside brute force: any changes, any questions, reopened at any time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgres_server import PostgresServer
from vector_databases import schema_for, server_of
from vector_model import Model, check_hits

from swarmd.memory.vector.engine import Engine
from swarmd.memory.vector.pg_search import search
from swarmd.memory.vector.pg_session import Session
from swarmd.memory.vector.pg_tables import Tables
from swarmd.memory.vector.shapes import (
    Batch,
    CollectionView,
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

DIMENSIONS = {"a": 1, "b": 3, "c": 7}
METRICS = {"a": Metric.L2, "b": Metric.COSINE, "c": Metric.DOT}
COLLECTIONS = st.sampled_from(sorted(DIMENSIONS))
IDS = st.sampled_from(["one", "two", "three", "four", "ünf", "s\0x"])
FIELDS = st.sampled_from(["kind", "size", "ü"])
# As long as what an index of a database takes of a text, or longer.
LONG = "l" * 254
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([2**53, 2**53 + 1, float(2**53), -(2**63), 2**63 - 1, 0.5, -0.0, 1e300]),
)
TEXTS = st.one_of(
    st.sampled_from(["", "a", "b", "ab", "1", "z\0", "z", LONG, LONG + "a", LONG + "b"]),
    st.text(max_size=3),
)
SCALARS = st.one_of(st.booleans(), NUMBERS, TEXTS)
PAYLOADS = st.dictionaries(FIELDS, SCALARS, max_size=3)
ELEMENTS = st.one_of(
    st.integers(-3, 3).map(float), st.floats(-1e4, 1e4, width=32), st.just(1e15), st.just(1e-20)
)


def vectors(collection: str) -> st.SearchStrategy[bytes]:
    size = DIMENSIONS[collection]
    found = st.lists(ELEMENTS, min_size=size, max_size=size)
    if METRICS[collection] is Metric.COSINE:
        found = found.filter(lambda elements: max(map(abs, elements)) > 1e-3)
    return found.map(packed)


def change(collection: str, position: int) -> st.SearchStrategy[object]:
    upsert = st.builds(
        Upsert,
        st.just(position),
        st.just(collection),
        IDS,
        vectors(collection),
        PAYLOADS,
        st.sampled_from(["n1", "n2"]),
        st.integers(0, 2**63 - 1),
    )
    remove = st.builds(Remove, st.just(position), st.just(collection), IDS)
    return st.one_of(upsert, upsert, upsert, remove)


@st.composite
def conditions(draw: st.DrawFn) -> tuple[object, ...]:
    bound = st.one_of(st.none(), NUMBERS), st.one_of(st.none(), TEXTS)
    ranges = st.sampled_from(bound).flatmap(
        lambda kind: st.builds(Range, FIELDS, gt=kind, gte=kind, lt=kind, lte=kind)
    )
    one = st.one_of(
        st.builds(Equals, FIELDS, SCALARS),
        st.builds(OneOf, FIELDS, st.lists(SCALARS, min_size=1, max_size=4).map(tuple)),
        ranges.filter(lambda made: bool(made.bounds())),
    )
    return tuple(draw(st.lists(one, max_size=3)))


FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@FEW
@given(st.data())
def test_whatever_is_fed_and_asked_is_as_by_brute_force(data: st.DataObject) -> None:
    feed_and_ask(data)


@pytest.mark.long
@settings(FEW, max_examples=150)
@given(st.data())
def test_more_of_it(data: st.DataObject) -> None:
    feed_and_ask(data)


class InTables:
    """The index in PostgreSQL, as an engine: without the loop that is around it."""

    def __init__(self, postgres: PostgresServer, place: Path) -> None:
        server, schema = server_of(postgres), schema_for(place)
        self.tables = Tables(Session(server, schema, reads_only=False), guesses=False)
        self.state, wrong = self.tables.prepare()
        assert wrong == ""
        self.reads = Session(server, schema, reads_only=True)
        self.reads.use_schema()

    @property
    def position(self) -> int:
        return self.state.position

    def collections(self) -> list[CollectionView]:
        return self.state.views()

    def apply(self, group: list[Batch]) -> list[int]:
        positions = []
        for batch in group:
            self.state = self.tables.apply(batch, self.state)
            positions.append(self.state.position)
        return positions

    def search(self, query: Query) -> list[Hit]:
        one = self.state.collections[query.collection]
        return search(self.reads, query, one.number, one.spec, self.position, guesses=False)

    def close(self) -> None:
        self.reads.close()
        self.tables.session.close()


@FEW
@given(st.data())
def test_the_same_holds_of_an_index_in_postgresql(
    postgres: PostgresServer, data: st.DataObject
) -> None:
    feed_and_ask(data, partial(InTables, postgres))


@pytest.mark.long
@settings(FEW, max_examples=150)
@given(st.data())
def test_more_of_it_in_postgresql(postgres: PostgresServer, data: st.DataObject) -> None:
    feed_and_ask(data, partial(InTables, postgres))


def feed_and_ask(data: st.DataObject, opened: Callable[[Path], Any] = Engine) -> None:
    """Goal: no order of changes, repeats, restarts and questions tells it from a plain list.

    Method: batches of changes, some fed in part before, in groups; now and then the index is
    opened anew; after each, questions to the index and to the model.
    """
    model, fed = Model(), []
    with tempfile.TemporaryDirectory() as folder:
        engine = opened(Path(folder) / "index")
        try:
            for _ in range(data.draw(st.integers(1, 6))):
                group, positions = [], []
                for _ in range(data.draw(st.integers(1, 3))):
                    group.append(data.draw(batch_after(model, fed)))
                    model.apply(group[-1])
                    positions.append(model.position)
                    fed.append(group[-1])
                assert engine.apply(group) == positions
                if data.draw(st.integers(0, 3)) == 0:
                    engine.close()
                    engine = opened(Path(folder) / "index")
                again = data.draw(st.sampled_from(fed))
                assert engine.apply([again]) == [model.position]
                compare(data, model, engine)
        finally:
            engine.close()


@st.composite
def batch_after(draw: st.DrawFn, model: Model, fed: list[Batch]) -> Batch:
    """A batch that goes on, and may begin with changes that were fed before."""
    known = dict.fromkeys(model.collections)
    made: list[object] = []
    position = model.position
    for _ in range(draw(st.integers(0, 8))):
        position += draw(st.integers(1, 2))
        name = draw(COLLECTIONS)
        if name not in known or draw(st.integers(0, 9)) == 0:
            made.append(Define(position, name, DIMENSIONS[name], METRICS[name]))
            known[name] = None
        elif draw(st.integers(0, 12)) == 0:
            made.append(Drop(position, name))
            known.pop(name)
        else:
            made.append(draw(change(name, position)))
    last = fed[-1] if fed and draw(st.booleans()) else Batch(model.position, model.position, ())
    until = position + draw(st.integers(0, 2))
    return Batch(last.after, until, (*last.changes, *made))


def compare(data: st.DataObject, model: Model, engine: Any) -> None:
    assert engine.position == model.position
    views = [(one.name, one.dimension, one.metric, one.entries) for one in engine.collections()]
    assert views == model.views()
    for name in model.collections:
        k = data.draw(st.integers(1, 5))
        query = Query(name, data.draw(vectors(name)), k, data.draw(conditions()))
        check_hits(model, query, engine.search(query))
        every = Query(name, query.vector, 1_000)
        check_hits(model, every, engine.search(every))
