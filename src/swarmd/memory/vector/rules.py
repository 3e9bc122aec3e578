"""Which changes and queries are allowed. Pure: who feeds an index can ask the same before.

A batch is refused as a whole, before any of it is done: `plan` says what of it is to be done, or
raises. What it decides depends on the changes before it alone, so that all nodes that are fed the
same decide the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

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
from swarmd.base.limits import (
    NAME_BYTES_MAX,
    VECTOR_BATCH_BYTES_MAX,
    VECTOR_BATCH_CHANGES_MAX,
    VECTOR_BYTES_MAX,
    VECTOR_CHOICES_MAX,
    VECTOR_COLLECTIONS_MAX,
    VECTOR_CONDITIONS_MAX,
    VECTOR_DIMENSION_MAX,
    VECTOR_ELEMENT_MAX,
    VECTOR_ENTRIES_MAX,
    VECTOR_FIELD_NAME_BYTES_MAX,
    VECTOR_ID_BYTES_MAX,
    VECTOR_MODEL_BYTES_MAX,
    VECTOR_PAYLOAD_BYTES_MAX,
    VECTOR_PAYLOAD_FIELDS_MAX,
    VECTOR_RESULTS_MAX,
)
from swarmd.base.names import check_name
from swarmd.memory.vector.shapes import (
    Batch,
    Change,
    Condition,
    Define,
    Drop,
    Equals,
    Metric,
    OneOf,
    Query,
    Range,
    Remove,
    Scalar,
    Upsert,
    unpacked,
)

ELEMENT_BYTES: Final = 4
# Shorter ones have no direction that float32 could tell.
_COSINE_LENGTH_MIN: Final = 1e-15
_INTEGERS: Final = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Spec:
    """What a collection is, for ever."""

    dimension: int
    metric: Metric


def plan(batch: Batch, position: int, specs: Mapping[str, Spec]) -> list[Change]:
    """What of a batch is to be done by an index that has come to `position`.

    Raises:
        FeedGap: changes before the batch are missing.
        BadRequest and its kinds: the batch is not in order, or a change is not allowed.
    """
    _check_order(batch)
    if batch.after > position:
        raise FeedGap(
            f"the batch goes on after position {batch.after}, and this index has come to "
            f"{position}: feed what is between first"
        )
    seen = dict(specs)
    planned = [change for change in batch.changes if change.position > position]
    for change in planned:
        try:
            _check_change(change, seen)
        except SwarmError as error:
            raise type(error)(f"position {change.position}: {error.message}") from error
    return planned


def _check_order(batch: Batch) -> None:
    if not 0 <= batch.after <= batch.until or batch.until not in _INTEGERS:
        raise BadRequest(f"a batch from {batch.after} to {batch.until}: positions rise from 0 on")
    if len(batch.changes) > VECTOR_BATCH_CHANGES_MAX:
        raise TooLarge(
            f"a batch of {len(batch.changes)} changes: feed {VECTOR_BATCH_CHANGES_MAX} at most"
        )
    size = sum(len(one.vector) for one in batch.changes if isinstance(one, Upsert))
    if size > VECTOR_BATCH_BYTES_MAX:
        raise TooLarge(
            f"a batch with {size} bytes of vectors: feed {VECTOR_BATCH_BYTES_MAX} at most"
        )
    before = batch.after + 1
    for change in batch.changes:
        if not before <= change.position <= batch.until:
            raise BadRequest(
                f"a change at position {change.position} is out of order: feed changes from "
                f"{batch.after + 1} to {batch.until} in the order of their positions"
            )
        before = change.position


def _check_change(change: Change, seen: dict[str, Spec]) -> None:
    match change:
        case Define():
            _check_define(change, seen)
        case Drop():
            check_name(change.collection, "collection")
            seen.pop(change.collection, None)
        case Upsert():
            spec = _spec_of(change.collection, seen)
            check_entry(change.id, change.vector, change.payload, spec)
            _check_text(change.created_by, "created_by", NAME_BYTES_MAX)
            _check_text(change.version, "a version", NAME_BYTES_MAX, empty=True)
            if not 0 <= change.created_at_ms < 2**63:
                raise BadRequest("created_at_ms is milliseconds since 1970")
        case Remove():
            _spec_of(change.collection, seen)
            check_id(change.id)


def _check_define(change: Define, seen: dict[str, Spec]) -> None:
    check_name(change.collection, "collection")
    check_spec(change.dimension)
    wanted = Spec(change.dimension, change.metric)
    found = seen.setdefault(change.collection, wanted)
    if found != wanted:
        raise Conflict(
            f"the collection is there with dimension {found.dimension} and metric "
            f"{found.metric}: drop it first, or use another name"
        )
    if len(seen) > VECTOR_COLLECTIONS_MAX:
        raise TooLarge(f"there are {VECTOR_COLLECTIONS_MAX} collections: drop one first")


def _spec_of(collection: str, specs: Mapping[str, Spec]) -> Spec:
    check_name(collection, "collection")
    spec = specs.get(collection)
    if spec is None:
        raise NotFound(f"there is no collection {collection!r}: define it first")
    return spec


def check_spec(dimension: int, model: str = "") -> None:
    """Raises BadRequest, TooLarge."""
    if not 1 <= dimension <= VECTOR_DIMENSION_MAX:
        raise BadRequest(f"a dimension is from 1 to {VECTOR_DIMENSION_MAX}, not {dimension}")
    _check_text(model, "a model's name", VECTOR_MODEL_BYTES_MAX, empty=True)


def check_id(entry_id: str) -> None:
    """Raises BadRequest, TooLarge."""
    _check_text(entry_id, "an id", VECTOR_ID_BYTES_MAX)


def check_entry(entry_id: str, vector: bytes, payload: Mapping[str, Scalar], spec: Spec) -> None:
    """Raises WrongDimension, BadVector, BadRequest and its kinds."""
    check_vector(vector, spec)
    check_id(entry_id)
    encoded_payload(payload)


def check_vector(vector: bytes, spec: Spec) -> None:
    """Raises WrongDimension, BadVector."""
    if len(vector) != spec.dimension * ELEMENT_BYTES:
        count, rest = divmod(len(vector), ELEMENT_BYTES)
        found = f"{len(vector)} bytes" if rest else f"{count} elements"
        raise WrongDimension(
            f"the vector has {found}: vectors of this collection have {spec.dimension} elements "
            f"of float32, which are {spec.dimension * ELEMENT_BYTES} bytes"
        )
    elements = unpacked(vector)
    # A sum is not finite where an element is not; those of finite float32 cannot overflow.
    if not math.isfinite(sum(elements)):
        raise BadVector("the vector has elements that are no finite numbers: compute it again")
    if max(max(elements), -min(elements)) > VECTOR_ELEMENT_MAX:
        raise BadVector(f"the vector has elements beyond {VECTOR_ELEMENT_MAX:g}: scale it down")
    if spec.metric is Metric.COSINE and math.hypot(*elements) < _COSINE_LENGTH_MIN:
        raise BadVector("the vector is zero and has no direction: leave it out, or use metric l2")


def encoded_payload(payload: Mapping[str, Scalar]) -> bytes:
    """A payload as msgpack, in the order of field names. Raises BadRequest, TooLarge."""
    if len(payload) > VECTOR_PAYLOAD_FIELDS_MAX:
        raise TooLarge(
            f"a payload of {len(payload)} fields: keep {VECTOR_PAYLOAD_FIELDS_MAX} at most"
        )
    for name, value in payload.items():
        _check_text(name, "a field's name", VECTOR_FIELD_NAME_BYTES_MAX)
        _check_scalar(name, value)
    raw = msgspec.msgpack.encode({name: payload[name] for name in sorted(payload)})
    if len(raw) > VECTOR_PAYLOAD_BYTES_MAX:
        raise ValueTooLarge(
            f"a payload of {len(raw)} bytes: keep {VECTOR_PAYLOAD_BYTES_MAX} at most, and put "
            "what is larger elsewhere, with its name or hash here"
        )
    return raw


def decoded_payload(raw: bytes) -> dict[str, Scalar]:
    """What `encoded_payload` made."""
    return msgspec.msgpack.decode(raw, type=dict[str, Scalar])


def _check_scalar(name: str, value: Scalar) -> None:
    match value:
        case bool():
            return
        case str():
            _check_text(value, f"the field {name!r}", VECTOR_PAYLOAD_BYTES_MAX, empty=True)
        case int():
            if value not in _INTEGERS:
                raise BadRequest(f"the field {name!r} has more than 64 bits: keep it as text")
        case float():
            if not math.isfinite(value):
                raise BadRequest(f"the field {name!r} is no finite number: leave it out")
        case _:
            raise BadRequest(
                f"the field {name!r} is no text, number, true or false: leave it out, or keep "
                "its parts in fields of their own"
            )


def _check_text(text: str, what: str, bytes_max: int, *, empty: bool = False) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise BadRequest(f"{what} is no valid Unicode text") from error
    if size > bytes_max:
        raise TooLarge(f"{what} of {size} bytes: keep {bytes_max} at most")
    if not (size or empty):
        raise BadRequest(f"{what} is empty")


def check_room(
    changes: Iterable[Change],
    entries: Mapping[str, int],
    specs: Mapping[str, Spec],
    holds: Callable[[str, str], bool],
) -> None:
    """Refuse changes, which `plan` let pass, that would lead to more than an index may hold.

    Args:
        entries: how many each collection has before.
        holds: has a collection, before, an entry of this id? Asked only where room is scarce.

    Raises:
        TooLarge: names the position.
    """
    changes = list(changes)
    upserts = Counter(change.collection for change in changes if isinstance(change, Upsert))
    most = {name: entries.get(name, 0) + count for name, count in upserts.items()}
    widths = {name: spec.dimension * ELEMENT_BYTES for name, spec in specs.items()}
    for change in changes:
        if isinstance(change, Define):
            size = change.dimension * ELEMENT_BYTES
            widths[change.collection] = max(size, widths.get(change.collection, 0))
    total = sum(count * widths[name] for name, count in {**entries, **most}.items())
    if max(most.values(), default=0) <= VECTOR_ENTRIES_MAX and total <= VECTOR_BYTES_MAX:
        return
    room = _Room(dict(entries), {name: spec.dimension for name, spec in specs.items()}, holds)
    for change in changes:
        room.perform(change)


class _Room:
    """What changes come to, counted one by one."""

    def __init__(
        self, entries: dict[str, int], widths: dict[str, int], holds: Callable[[str, str], bool]
    ) -> None:
        self._entries = entries
        self._widths = widths
        self._holds = holds
        self._bytes = sum(n * widths[name] * ELEMENT_BYTES for name, n in entries.items())
        self._held: dict[tuple[str, str], bool] = {}
        self._dropped: set[str] = set()

    def perform(self, change: Change) -> None:
        name = change.collection
        match change:
            case Define():
                self._widths.setdefault(name, change.dimension)
                self._entries.setdefault(name, 0)
            case Drop() if name in self._entries:
                self._bytes -= self._entries.pop(name) * self._widths.pop(name) * ELEMENT_BYTES
                self._dropped.add(name)
                self._held = {key: held for key, held in self._held.items() if key[0] != name}
            case Upsert() | Remove():
                self._count(name, change.id, isinstance(change, Upsert), change.position)
            case _:
                pass

    def _count(self, name: str, entry_id: str, wanted: bool, position: int) -> None:
        held = self._held.get((name, entry_id))
        if held is None:
            held = name not in self._dropped and self._holds(name, entry_id)
        self._held[(name, entry_id)] = wanted
        self._entries[name] += wanted - held
        self._bytes += (wanted - held) * self._widths[name] * ELEMENT_BYTES
        if wanted and (self._entries[name] > VECTOR_ENTRIES_MAX or self._bytes > VECTOR_BYTES_MAX):
            raise TooLarge(
                f"position {position}: a collection has {VECTOR_ENTRIES_MAX} entries at most, and "
                f"all their vectors together {VECTOR_BYTES_MAX} bytes: remove some first"
            )


def check_query(query: Query, specs: Mapping[str, Spec]) -> Spec:
    """The spec of the collection that a query is about.

    Raises: NotFound, WrongDimension, BadVector, BadRequest and its kinds.
    """
    spec = _spec_of(query.collection, specs)
    if not 1 <= query.k <= VECTOR_RESULTS_MAX:
        raise BadRequest(f"k is from 1 to {VECTOR_RESULTS_MAX}, not {query.k}")
    check_vector(query.vector, spec)
    if len(query.conditions) > VECTOR_CONDITIONS_MAX:
        raise TooLarge(f"{len(query.conditions)} conditions: use {VECTOR_CONDITIONS_MAX} at most")
    for condition in query.conditions:
        _check_condition(condition)
    return spec


def _check_condition(condition: Condition) -> None:
    _check_text(condition.field, "a field's name", VECTOR_FIELD_NAME_BYTES_MAX)
    match condition:
        case Equals():
            _check_scalar(condition.field, condition.value)
        case OneOf():
            if not 1 <= len(condition.values) <= VECTOR_CHOICES_MAX:
                raise BadRequest(
                    f"{len(condition.values)} values to choose from for {condition.field!r}: "
                    f"give 1 to {VECTOR_CHOICES_MAX}"
                )
            for value in condition.values:
                _check_scalar(condition.field, value)
        case Range():
            _check_range(condition)


def _check_range(condition: Range) -> None:
    values = [value for _, value in condition.bounds()]
    for value in values:
        _check_scalar(condition.field, value)
    if not values or len(_kinds(values)) != 1 or kind_of(values[0]) == KIND_BOOL:
        raise BadRequest(
            f"a range of {condition.field!r} has one bound or more, all of them numbers or all text"
        )


KIND_BOOL: Final = 0
KIND_NUMBER: Final = 1
KIND_TEXT: Final = 2


def kind_of(value: Scalar) -> int:
    """Values of two kinds are never equal, and neither is in a range of the other."""
    if isinstance(value, bool):
        return KIND_BOOL
    return KIND_TEXT if isinstance(value, str) else KIND_NUMBER


def _kinds(values: Iterable[Scalar]) -> set[int]:
    return {kind_of(value) for value in values}
