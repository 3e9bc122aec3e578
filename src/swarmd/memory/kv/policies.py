"""What a namespace's policy says of a write, and how a policy is changed. Pure.

A policy is declared once for all nodes: it is a part of the namespace's record, see `records`. Who
may read and write is the gateway's to judge, which knows the caller.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from swarmd.base.errors import BadRequest, ValueTooLarge, WrongType
from swarmd.base.limits import (
    CACHE_BYTES_MAX,
    CACHE_ENTRIES_MAX,
    CRDT_COPIES_MAX,
    CRDT_COPIES_MIN,
    NAMESPACE_BYTES_MIN,
)
from swarmd.memory.kv.records import Namespace, ValueType, Who
from swarmd.memory.kv.rules import ttl_ms

_TYPES: Final[dict[ValueType, tuple[type, ...]]] = {
    ValueType.STRING: (str,),
    ValueType.NUMBER: (int, float),
    ValueType.INTEGER: (int,),
    ValueType.BOOLEAN: (bool,),
    ValueType.ARRAY: (list,),
    ValueType.OBJECT: (dict,),
}


class PolicyChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What of a namespace's policy shall be another; what is not given stays.

    `ttl_s` and `bytes_max` may be 0: none; `readers` and `writers` empty: everybody whom their
    rules let.
    """

    ttl_s: float | UnsetType = UNSET
    entries_max: int | UnsetType = UNSET
    bytes_max: int | UnsetType = UNSET
    type: ValueType | UnsetType = UNSET
    readers: Who | UnsetType = UNSET
    writers: Who | UnsetType = UNSET


def changed(before: Namespace, change: PolicyChange) -> Namespace:
    """The record with a changed policy; the same one where that says nothing else.

    Raises:
        BadRequest: there is no such policy, or not for such a namespace.
    """
    given = {
        field: value
        for field in ("entries_max", "bytes_max", "type", "readers", "writers")
        if (value := getattr(change, field)) is not UNSET
    }
    if change.ttl_s is not UNSET:
        given["ttl_ms"] = ttl_ms(change.ttl_s) if change.ttl_s else 0
    after = msgspec.structs.replace(before, **given)
    if after.is_cache != before.is_cache:
        raise BadRequest("a cache stays one, and no other namespace becomes one: nothing changed")
    check_bounds(after)
    if after == before:
        return before
    return msgspec.structs.replace(after, change=before.change + 1)


def check_bounds(record: Namespace) -> None:
    """Raises BadRequest: no namespace of its kind has such bounds."""
    if record.copies and not CRDT_COPIES_MIN <= record.copies <= CRDT_COPIES_MAX:
        raise BadRequest(
            f"{CRDT_COPIES_MIN} to {CRDT_COPIES_MAX} nodes hold a value, or all: nothing changed"
        )
    if record.copies and record.is_strong:
        raise BadRequest("values of a strong namespace are on all voters: nothing changed")
    if not record.entries_max and not record.bytes_max:
        return
    if record.copies:
        raise BadRequest(
            "a cache, and a namespace with a bound, lives on all nodes, for a node weighs what it "
            "holds alone: nothing changed"
        )
    if record.is_strong:
        raise BadRequest(
            "a cache is eventual, as any namespace with a bound, for nothing is promised of what "
            "has to go: nothing changed"
        )
    least = NAMESPACE_BYTES_MIN if not record.entries_max else 1
    if not 0 <= record.entries_max <= CACHE_ENTRIES_MAX:
        raise BadRequest(f"a cache holds 1 to {CACHE_ENTRIES_MAX} values: nothing changed")
    if not least <= record.bytes_max <= CACHE_BYTES_MAX:
        raise BadRequest(f"a bound is from {least} to {CACHE_BYTES_MAX} bytes: nothing changed")


def ttl_of(record: Namespace, ttl_s: float | None) -> float | None:
    """How long a value lasts whose writer says this, in seconds; None: for ever."""
    if ttl_s is None and record.ttl_ms:
        return record.ttl_ms / 1_000
    return ttl_s


def is_of(type_: ValueType, value: Any) -> bool:
    """Whether a value is of a type."""
    if type_ is ValueType.ANY:
        return True
    if isinstance(value, bool):
        return type_ is ValueType.BOOLEAN
    return isinstance(value, _TYPES[type_])


def check_value(namespace: str, record: Namespace, value: Any) -> None:
    """Raises WrongType."""
    if not is_of(record.type, value):
        raise WrongType(
            f"a value of {namespace} is of the type {record.type.value}, not "
            f"{type(value).__name__}: nothing changed"
        )


def check_fits(namespace: str, record: Namespace, size: int) -> None:
    """Raises ValueTooLarge: a key with its value takes more than all of the namespace may."""
    if record.bytes_max and not record.is_cache and size > record.bytes_max:
        raise ValueTooLarge(
            f"{size} bytes are more than {namespace} may hold, which is {record.bytes_max}: "
            "nothing changed"
        )


def held_bytes(name: str, size: int) -> int:
    """What a key takes of its namespace's bound."""
    return size + len(name)
