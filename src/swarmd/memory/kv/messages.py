"""What nodes ask of those who hold the values of a namespace that not all hold."""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

from msgspec import Meta

from swarmd.base.ids import ID_BYTES
from swarmd.base.limits import (
    CRDT_CELL_BYTES_MAX,
    CRDT_COPIES_MAX,
    CRDT_COPIES_MIN,
    CRDT_KEY_BYTES_MAX,
    CRDT_MESSAGE_BYTES_MAX,
    CRDT_SHARDS,
    NAME_BYTES_MAX,
)
from swarmd.memory.kv.port import LIST_MAX
from swarmd.wire.codec import Family, Message

KEYS_MAX: Final = 256
VERSION_CHARS_MAX: Final = 128
_AUTHOR_BYTES_MAX: Final = 1_024

_Copies = Annotated[int, Meta(ge=CRDT_COPIES_MIN, le=CRDT_COPIES_MAX)]
_Namespace = Annotated[str, Meta(min_length=1, max_length=NAME_BYTES_MAX)]
_Key = Annotated[str, Meta(max_length=CRDT_KEY_BYTES_MAX)]
_Value = Annotated[bytes, Meta(max_length=CRDT_CELL_BYTES_MAX)]
_Version = Annotated[str, Meta(max_length=VERSION_CHARS_MAX)]
_Author = Annotated[str, Meta(max_length=_AUTHOR_BYTES_MAX)]
_Ms = Annotated[int, Meta(ge=0, le=2**62)]
_Shards = Annotated[
    tuple[Annotated[int, Meta(ge=0, lt=CRDT_SHARDS)], ...],
    Meta(min_length=1, max_length=CRDT_SHARDS),
]


class SetAsk(Message, frozen=True, tag=1):
    """Write a value, which is msgpack, that ends after `ttl_ms`; 0: never. Answered by `Found`."""

    copies: _Copies
    namespace: _Namespace
    key: _Key
    value: _Value
    by: _Author
    ttl_ms: _Ms
    if_version: _Version | None


class GetAsk(Message, frozen=True, tag=2):
    """Answered by `Found`."""

    copies: _Copies
    namespace: _Namespace
    key: _Key


class DeleteAsk(Message, frozen=True, tag=3):
    """Answered by a `Found` of nothing."""

    copies: _Copies
    namespace: _Namespace
    key: _Key
    if_version: _Version | None


class ListAsk(Message, frozen=True, tag=4):
    """Values in these shards, by key. Answered by `Found`."""

    copies: _Copies
    namespace: _Namespace
    prefix: _Key
    after: _Key
    limit: Annotated[int, Meta(ge=1, le=LIST_MAX)]
    shards: _Shards


class WatchAsk(Message, frozen=True, tag=5):
    """Keys in these shards as they change. Answered by a stream of `Changed`, the first at once."""

    copies: _Copies
    namespace: _Namespace
    prefix: _Key
    shards: _Shards


class Told(NamedTuple):
    """A value; see `port.Entry`."""

    key: _Key
    value: _Value
    version: _Version
    by: _Author
    created_at_ms: _Ms
    expires_at_ms: _Ms
    node: Annotated[bytes, Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
    size: _Ms


class Found(Message, frozen=True, tag=6):
    entries: Annotated[tuple[Told, ...], Meta(max_length=LIST_MAX)]
    more: bool = False


class Changed(Message, frozen=True, tag=7):
    """`lagged`: some that changed are not told."""

    keys: Annotated[tuple[_Key, ...], Meta(max_length=KEYS_MAX)]
    lagged: bool = False


MEMORY: Final = Family(
    "memory",
    SetAsk,
    GetAsk,
    DeleteAsk,
    ListAsk,
    WatchAsk,
    Found,
    Changed,
    message_bytes_max=CRDT_MESSAGE_BYTES_MAX,
)
