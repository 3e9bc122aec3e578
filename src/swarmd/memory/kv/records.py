"""How the strong store holds shared memory: namespaces, values, and what is being computed.

Rules:
- What ends by itself begins with when, as store time in ms (8 bytes; 0: never), so that whoever
  sweeps need not decode it.
- A namespace's record never changes its consistency, its copies, nor whether it is a cache. What
  else it says may change, and each change has a higher number than the one before.
"""

from __future__ import annotations

import struct
from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from swarmd.base.limits import (
    CACHE_BYTES_MAX,
    CACHE_ENTRIES_MAX,
    CRDT_COPIES_MAX,
    NAMESPACE_WHO_CHARS_MAX,
    NAMESPACE_WHO_MAX,
)
from swarmd.memory.kv.rules import encoded, name_of
from swarmd.state.raft.messages import (
    MEMORY_FLIGHT_PREFIX,
    MEMORY_NAMESPACE_PREFIX,
    MEMORY_VALUE_PREFIX,
)
from swarmd.wire.codec import decode_stored, encode_struct

_END: Final = struct.Struct(">Q")


class Consistency(StrEnum):
    EVENTUAL = "eventual"
    STRONG = "strong"


class ValueType(StrEnum):
    """What values may be, by the names of JSON Schema."""

    ANY = "any"
    STRING = "string"
    NUMBER = "number"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    ARRAY = "array"
    OBJECT = "object"


Who = Annotated[
    tuple[Annotated[str, Meta(min_length=1, max_length=NAMESPACE_WHO_CHARS_MAX)], ...],
    Meta(max_length=NAMESPACE_WHO_MAX),
]
"""Roles and callers, as `gateway.access.among` reads them; none: everybody whom their rules let."""


class Namespace(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a namespace promises. It is a cache if the number of its values has a bound.

    Args:
        bytes_max: how much it may hold, 0: any; what goes first, `bounds` says.
        change: how often the record was changed.
        ttl_ms: when a value ends of which its writer does not say that; 0: never.
        copies: how many nodes hold each value; 0: all.
    """

    consistency: Consistency = Consistency.EVENTUAL
    entries_max: Annotated[int, Meta(ge=0, le=CACHE_ENTRIES_MAX)] = 0
    bytes_max: Annotated[int, Meta(ge=0, le=CACHE_BYTES_MAX)] = 0
    created_by: str = ""
    created_ms: int = 0
    node: bytes = b""
    change: Annotated[int, Meta(ge=0)] = 0
    ttl_ms: Annotated[int, Meta(ge=0)] = 0
    type: ValueType = ValueType.ANY
    readers: Who = ()
    writers: Who = ()
    copies: Annotated[int, Meta(ge=0, le=CRDT_COPIES_MAX)] = 0

    @property
    def is_strong(self) -> bool:
        return self.consistency is Consistency.STRONG

    @property
    def is_elsewhere(self) -> bool:
        """Whether its values are not where those of other namespaces are: on all nodes."""
        return self.is_strong or self.copies > 0

    @property
    def is_cache(self) -> bool:
        return self.entries_max > 0

    def promises(self) -> Namespace:
        """What counts of it, whoever made or changed it."""
        return msgspec.structs.replace(self, created_by="", created_ms=0, node=b"", change=0)


class Stored(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A value of a strong namespace, as msgpack."""

    value: bytes
    by: str
    created_ms: int
    node: bytes


class State(StrEnum):
    COMPUTING = "computing"
    DONE = "done"
    FAILED = "failed"


class Flight(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A value on its way into a cache.

    `fence` is the revision of the record that claimed it; 0 in that record itself.
    `value` is msgpack, of what was computed; `message` says why it was not.
    """

    state: State
    by: str
    node: bytes
    fence: int = 0
    value: bytes = b""
    message: str = ""


def namespace_key(namespace: str) -> bytes:
    return MEMORY_NAMESPACE_PREFIX + namespace.encode()


def namespace_of(key: bytes) -> str:
    """Raises UnicodeDecodeError: no build of swarmd wrote that key."""
    return key.removeprefix(MEMORY_NAMESPACE_PREFIX).decode()


def value_key(namespace: str, key: str) -> bytes:
    """Raises BadRequest, EmptyKey, KeyTooLong."""
    return MEMORY_VALUE_PREFIX + name_of(namespace, key).encode()


def values_below(namespace: str, prefix: str) -> bytes:
    """What keys of a namespace begin with. Raises BadRequest."""
    return MEMORY_VALUE_PREFIX + namespace.encode() + b"/" + encoded(prefix)


def flight_key(namespace: str, key: str) -> bytes:
    """Raises BadRequest, EmptyKey, KeyTooLong."""
    return MEMORY_FLIGHT_PREFIX + name_of(namespace, key).encode()


def end_ms(raw: bytes) -> int:
    """When a record ends, in store time; 0: never, or it is no such record."""
    return int(_END.unpack_from(raw)[0]) if len(raw) >= _END.size else 0


def encode_ending(record: Stored | Flight, ends_ms: int) -> bytes:
    return _END.pack(ends_ms) + encode_struct(record)


def decode_value(raw: bytes) -> Stored:
    """Raises CorruptFile."""
    found: Stored = decode_stored(Stored, raw[_END.size :], "a value of shared memory")
    return found


def decode_flight(raw: bytes) -> Flight:
    """Raises CorruptFile."""
    found: Flight = decode_stored(Flight, raw[_END.size :], "a value on its way into a cache")
    return found


def decode_namespace(raw: bytes) -> Namespace:
    """Raises CorruptFile."""
    found: Namespace = decode_stored(Namespace, raw, "a namespace of shared memory")
    return found
