"""What an index refuses, and what each refusal says; nothing of it changes anything."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import pytest

from swarmd.base import limits
from swarmd.base.errors import (
    BadRequest,
    BadVector,
    Conflict,
    FeedGap,
    NotFound,
    SwarmError,
    TooLarge,
    ValueTooLarge,
    WrongDimension,
)
from swarmd.memory.vector import rules
from swarmd.memory.vector.engine import Engine
from swarmd.memory.vector.rules import Spec, check_query, check_room, plan
from swarmd.memory.vector.shapes import (
    Batch,
    Change,
    Define,
    Drop,
    Equals,
    Metric,
    OneOf,
    Query,
    Range,
    Remove,
    Upsert,
    packed,
    unpacked,
)

SPECS = {"c": Spec(2, Metric.COSINE), "l": Spec(2, Metric.L2), "d": Spec(2, Metric.DOT)}
GOOD = packed([1, 2])


def upsert(collection: str = "c", vector: bytes = GOOD, **other: Any) -> Upsert:
    given = {"id": "one", "payload": {}, "created_by": "n1", "created_at_ms": 1} | other
    return Upsert(1, collection, vector=vector, **given)


def define(name: str = "x", dimension: int = 2, metric: Metric = Metric.L2) -> Define:
    return Define(1, name, dimension, metric)


REFUSED: list[tuple[Change, type[SwarmError], str]] = [
    (upsert(vector=packed([1])), WrongDimension, "2 elements of float32, which are 8"),
    (upsert(vector=packed([1, 2, 3])), WrongDimension, "has 3 elements"),
    (upsert(vector=GOOD[:7]), WrongDimension, "has 7 bytes"),
    (upsert(vector=b""), WrongDimension, "has 0 elements"),
    (upsert(vector=packed([math.nan, 1])), BadVector, "no finite numbers"),
    (upsert(vector=packed([math.inf, 1])), BadVector, "no finite numbers"),
    (upsert(vector=packed([math.inf, -math.inf])), BadVector, "no finite numbers"),
    (upsert("l", packed([-math.inf, 1])), BadVector, "no finite numbers"),
    (upsert("d", packed([2e15, 1])), BadVector, "scale it down"),
    (upsert("d", packed([1, -2e15])), BadVector, "scale it down"),
    (upsert(vector=packed([0, -0.0])), BadVector, "no direction"),
    (upsert(vector=packed([1e-20, 0])), BadVector, "no direction"),
    (upsert("nobody"), NotFound, "no collection 'nobody': define it first"),
    (Remove(1, "nobody", "one"), NotFound, "define it first"),
    (upsert("../c"), BadRequest, "is not a collection name"),
    (upsert(id=""), BadRequest, "an id is empty"),
    (upsert(id="x" * (limits.VECTOR_ID_BYTES_MAX + 1)), TooLarge, "257 bytes"),
    (upsert(id="\ud800"), BadRequest, "valid Unicode"),
    (Remove(1, "c", ""), BadRequest, "an id is empty"),
    (upsert(created_by=""), BadRequest, "created_by is empty"),
    (upsert(created_at_ms=-1), BadRequest, "milliseconds since 1970"),
    (upsert(created_at_ms=2**63), BadRequest, "milliseconds since 1970"),
    (upsert(payload={"t": "x" * limits.VECTOR_PAYLOAD_BYTES_MAX}), ValueTooLarge, "elsewhere"),
    (upsert(payload={str(n): n for n in range(33)}), TooLarge, "33 fields"),
    (upsert(payload={"": 1}), BadRequest, "name is empty"),
    (upsert(payload={"n" * 65: 1}), TooLarge, "65 bytes"),
    (upsert(payload={"n": 2**63}), BadRequest, "keep it as text"),
    (upsert(payload={"n": math.nan}), BadRequest, "no finite number"),
    (upsert(payload={"n": "\udfff"}), BadRequest, "valid Unicode"),
    (upsert(payload={"n": None}), BadRequest, "leave it out"),
    (upsert(payload={"n": [1]}), BadRequest, "fields of their own"),
    (upsert(payload={"n": b"x"}), BadRequest, "fields of their own"),
    (define(dimension=0), BadRequest, "from 1 to 4096, not 0"),
    (define(dimension=4097), BadRequest, "not 4097"),
    (define(name="a/b"), BadRequest, "is not a collection name"),
    (define("c"), Conflict, "drop it first, or use another name"),
    (define("c", 3, Metric.COSINE), Conflict, "dimension 2 and metric cosine"),
]


@pytest.mark.parametrize(("change", "kind", "said"), REFUSED)
def test_a_change_that_is_not_allowed_is_named_and_changes_nothing(
    change: Change, kind: type[SwarmError], said: str, tmp_path: Path
) -> None:
    engine = Engine(tmp_path / "index")
    defined = tuple(Define(1, name, one.dimension, one.metric) for name, one in SPECS.items())
    assert engine.apply([Batch(0, 1, defined)]) == [1]
    before = files(tmp_path)
    good = Upsert(2, "c", "good", GOOD, {}, "n1", 1)
    moved = type(change)(3, *(getattr(change, name) for name in change.__slots__[1:]))
    (error,) = engine.apply([Batch(1, 3, (good, moved))])
    assert type(error) is kind
    assert error.message.startswith("position 3: ")
    assert said in error.message
    assert engine.position == 1
    assert [one.entries for one in engine.collections()] == [0, 0, 0]
    assert engine.search(Query("c", GOOD, 10)) == []
    assert files(tmp_path) == before
    assert engine.apply([Batch(1, 2, (good,))]) == [2]
    engine.close()


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.rglob("*.f32")}


def query(vector: bytes = GOOD, k: int = 10, *conditions: Any, collection: str = "c") -> Query:
    return Query(collection, vector, k, conditions)


@pytest.mark.parametrize(
    ("asked", "kind", "said"),
    [
        (query(collection="nobody"), NotFound, "define it first"),
        (query(collection="x" * 10_000), BadRequest, "at most 128 characters"),
        (query(packed([1])), WrongDimension, "2 elements"),
        (query(packed([math.nan, 1])), BadVector, "no finite numbers"),
        (query(packed([0, 0])), BadVector, "no direction"),
        (query(k=0), BadRequest, "from 1 to 1000, not 0"),
        (query(k=1_001), BadRequest, "not 1001"),
        (query(GOOD, 1, *[Equals("a", 1)] * 17), TooLarge, "17 conditions"),
        (query(GOOD, 1, Equals("", 1)), BadRequest, "name is empty"),
        (query(GOOD, 1, Equals("a", None)), BadRequest, "leave it out"),
        (query(GOOD, 1, Equals("a", math.inf)), BadRequest, "no finite number"),
        (query(GOOD, 1, OneOf("a", ())), BadRequest, "give 1 to 256"),
        (query(GOOD, 1, OneOf("a", (1,) * 257)), BadRequest, "give 1 to 256"),
        (query(GOOD, 1, OneOf("a", (1, 2**64))), BadRequest, "keep it as text"),
        (query(GOOD, 1, Range("a")), BadRequest, "one bound or more"),
        (query(GOOD, 1, Range("a", gt=1, lt="b")), BadRequest, "all text"),
        (query(GOOD, 1, Range("a", gt=True)), BadRequest, "all of them numbers"),
    ],
)
def test_a_question_that_is_not_allowed_is_named(
    asked: Query, kind: type[SwarmError], said: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=said) as caught:
        check_query(asked, SPECS)
    assert type(caught.value) is kind
    engine = Engine(tmp_path / "index")
    defined = tuple(Define(1, name, one.dimension, one.metric) for name, one in SPECS.items())
    engine.apply([Batch(0, 1, defined)])
    with pytest.raises(kind, match=said):
        engine.search(asked)
    assert engine.search(query()) == []
    engine.close()


def test_what_is_at_a_bound_is_allowed() -> None:
    largest = {f"{n:0>63}": "x" * 59 for n in range(32)}
    assert len(rules.encoded_payload(largest)) < limits.VECTOR_PAYLOAD_BYTES_MAX
    assert rules.decoded_payload(rules.encoded_payload(largest)) == largest
    elements = [1.0, 0.0] * (limits.VECTOR_DIMENSION_MAX // 2)
    spec = Spec(limits.VECTOR_DIMENSION_MAX, Metric.COSINE)
    rules.check_vector(packed(elements), spec)
    rules.check_vector(packed([1e15, -1e15]), SPECS["d"])
    rules.check_vector(packed([0, 0]), SPECS["l"])
    changes = tuple(Remove(1, "c", "one") for _ in range(limits.VECTOR_BATCH_CHANGES_MAX))
    assert len(plan(Batch(0, 1, changes), 0, SPECS)) == len(changes)


@pytest.mark.parametrize(
    ("batch", "kind"),
    [
        (Batch(6, 7, ()), FeedGap),
        (Batch(-1, 7, ()), BadRequest),
        (Batch(5, 4, ()), BadRequest),
        (Batch(5, 2**63, ()), BadRequest),
        (Batch(3, 7, (Drop(3, "c"),)), BadRequest),
        (Batch(3, 7, (Drop(8, "c"),)), BadRequest),
        (Batch(3, 7, (Drop(7, "c"), Drop(6, "c"))), BadRequest),
        (Batch(3, 7, (Drop(7, "c"),) * 1_001), TooLarge),
        (Batch(0, 1, (upsert(vector=bytes(limits.MIB)),) * 5), TooLarge),
    ],
)
def test_a_batch_out_of_order_is_refused(batch: Batch, kind: type[SwarmError]) -> None:
    with pytest.raises(kind) as caught:
        plan(batch, 5, SPECS)
    assert type(caught.value) is kind


def test_what_was_applied_is_left_out_and_not_judged_again() -> None:
    gone = Remove(5, "dropped-since", "one")
    assert plan(Batch(0, 7, (gone, Drop(6, "c"))), 5, SPECS) == [Drop(6, "c")]


def test_there_are_so_many_collections_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "VECTOR_COLLECTIONS_MAX", 3)
    with pytest.raises(TooLarge, match="drop one first"):
        plan(Batch(0, 1, (define(),)), 0, SPECS)
    plan(Batch(0, 1, (Drop(1, "c"), define())), 0, SPECS)


def test_room_is_counted_by_what_is_there_after_each_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rules, "VECTOR_ENTRIES_MAX", 2)
    held = {("c", "a"), ("c", "b")}

    def check(*changes: Change) -> None:
        entries = {"c": 2, "l": 0, "d": 0}
        check_room(changes, entries, SPECS, lambda name, one: (name, one) in held)

    check(upsert(id="a"), upsert(id="b"), upsert(id="a"))
    check(Remove(1, "c", "a"), upsert(id="new"))
    check(Drop(1, "c"), define("c"), upsert(id="a"), upsert(id="new"))
    for changes in (
        (upsert(id="new"),),
        (Remove(1, "c", "other"), upsert(id="new")),
        (Remove(1, "c", "a"), upsert(id="a"), upsert(id="new")),
        (Drop(1, "c"), define("c"), upsert(id="1"), upsert(id="2"), upsert(id="a")),
    ):
        with pytest.raises(TooLarge, match="remove some first"):
            check(*changes)
    monkeypatch.setattr(rules, "VECTOR_ENTRIES_MAX", 9)
    monkeypatch.setattr(rules, "VECTOR_BYTES_MAX", 3 * 8)
    check(upsert("l"))
    with pytest.raises(TooLarge, match="position 1"):
        check(upsert("l", id="1"), upsert("d", id="2"))


def test_vectors_are_little_endian_float32() -> None:
    assert packed([1.5, -2.0]) == struct.pack("<2f", 1.5, -2.0)
    assert list(unpacked(struct.pack("<2f", 1.5, -2.0))) == [1.5, -2.0]
