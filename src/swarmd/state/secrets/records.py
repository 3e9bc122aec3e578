"""How the strong store holds secrets: `s/v/<name>` is one `SecretRecord`, `s/ring` the keys' names.

Of a key of the ring there is only its id, a hash; whoever reads the store can open nothing of it.
What a box is about is part of what seals it: the swarm, and whose value it is. So a box that is
moved to another name, put back after a later one, or taken to another swarm does not open.

`s/uses` changes with every record that begins to refer to a secret, so that a secret is deleted
only as long as nobody began to refer to it since that was looked at.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from swarmd.base.errors import BadRequest, TooLarge
from swarmd.base.ids import digest
from swarmd.base.limits import ENVIRONMENT_BYTES_MAX, KIB, NAME_BYTES_MAX, SECRET_BYTES_MAX
from swarmd.base.names import check_name
from swarmd.state.raft.messages import SECRET_RING_KEY, SECRET_USES_KEY, SECRET_VALUE_PREFIX
from swarmd.wire.codec import decode_stored

VALUE_PREFIX: Final = SECRET_VALUE_PREFIX
RING_KEY: Final = SECRET_RING_KEY
USES_KEY: Final = SECRET_USES_KEY
RING_KEYS_MAX: Final = 16
KEY_ID_BYTES: Final = 16
# A sealed environment or secret; more than either has, also with what they are encoded and
# sealed with.
BOX_BYTES_MAX: Final = ENVIRONMENT_BYTES_MAX + 16 * KIB

KeyId = Annotated[bytes, Meta(min_length=KEY_ID_BYTES, max_length=KEY_ID_BYTES)]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_BYTES_MAX)]


class _Stored(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


class Box(_Stored, frozen=True):
    """Something sealed, and the id of the key that it was sealed under."""

    key: KeyId
    sealed: Annotated[bytes, Meta(max_length=BOX_BYTES_MAX)]


class RingKey(_Stored, frozen=True):
    """`made_ms` is store time."""

    id: KeyId
    made_ms: int


class RingRecord(_Stored, frozen=True):
    """The keys that something is sealed under; the newest, the last one, seals.

    `evicted` is how many had been shut out of the swarm when the newest was made.
    """

    keys: Annotated[tuple[RingKey, ...], Meta(min_length=1, max_length=RING_KEYS_MAX)]
    evicted: int = 0

    @property
    def newest(self) -> RingKey:
        return self.keys[-1]

    @property
    def ids(self) -> frozenset[bytes]:
        return frozenset(key.id for key in self.keys)


class SecretRecord(_Stored, frozen=True):
    """`version` counts from 1, anew for one that is set after it was deleted.

    `made_ms` and `set_ms` are store time, of the first and of the present version.
    """

    name: Name
    version: Annotated[int, Meta(ge=1)]
    made_ms: int
    set_ms: int
    set_by: Annotated[str, Meta(max_length=128)]
    box: Box


def secret_key(name: str) -> bytes:
    """Where the secret of this name is. Raises BadRequest: it is no name."""
    check_name(name, "secret")
    return VALUE_PREFIX + name.encode()


def check_value(value: str) -> bytes:
    """A secret's value as it is sealed: what an environment can hold.

    Raises:
        BadRequest: it is empty, or no text. It is never shown.
        TooLarge: over 32 KiB.
    """
    if not value:
        raise BadRequest("a secret has at least one character")
    if "\0" in value:
        raise BadRequest("a secret is text without NUL characters: encode what is none, as base64")
    try:
        raw = value.encode()
    except UnicodeEncodeError:
        raise BadRequest("a secret is text that UTF-8 can hold") from None
    if len(raw) > SECRET_BYTES_MAX:
        raise TooLarge(f"a secret has at most {SECRET_BYTES_MAX} bytes")
    return raw


def about_secret(swarm_id: bytes, name: str, version: int, made_ms: int) -> bytes:
    """What the box of a secret's value is bound to."""
    numbers = (version.to_bytes(8, "big"), made_ms.to_bytes(8, "big", signed=True))
    return digest(b"secret", swarm_id, name.encode(), *numbers)


def about_environment(swarm_id: bytes, agent: str) -> bytes:
    """What the box of an agent's plain environment is bound to."""
    return digest(b"environment", swarm_id, agent.encode())


def decode_secret(raw: bytes) -> SecretRecord:
    """Raises CorruptFile: the store holds what this version cannot read."""
    record: SecretRecord = decode_stored(SecretRecord, raw, "a secret")
    return record


def decode_ring(raw: bytes) -> RingRecord:
    """Raises CorruptFile: the store holds what this version cannot read."""
    record: RingRecord = decode_stored(RingRecord, raw, "the secrets' ring of keys")
    return record
