"""How the strong store holds API keys: `k/<name>` is one `KeyRecord`.

Of the key itself there is only its hash; whoever reads the store can use none of them.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from swarmd.base.ids import ID_BYTES
from swarmd.base.limits import NAME_BYTES_MAX
from swarmd.base.names import check_name
from swarmd.gateway.access.rules import ROLES, RULE_CHARS_MAX, RULES_MAX
from swarmd.state.raft.messages import ACCESS_PREFIX
from swarmd.wire.codec import decode_stored

KEYS_MAX: Final = 1_000
REQUESTS_PER_MIN_MAX: Final = 1_000_000

Rule = Annotated[str, Meta(max_length=RULE_CHARS_MAX)]


class KeyRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Times are store time in ms. `expires_ms` 0: never; `requests_per_min` 0: the default."""

    name: Annotated[str, Meta(min_length=1, max_length=NAME_BYTES_MAX)]
    hash: Annotated[bytes, Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
    role: Annotated[str, Meta(max_length=32)]
    rules: Annotated[tuple[Rule, ...], Meta(max_length=RULES_MAX)]
    created_ms: int
    expires_ms: int = 0
    requests_per_min: Annotated[int, Meta(ge=0, le=REQUESTS_PER_MIN_MAX)] = 0
    created_by: Annotated[str, Meta(max_length=128)] = ""

    @property
    def allows(self) -> tuple[str, ...]:
        """All that it may. A role or rule that this version does not know allows nothing."""
        return tuple(dict.fromkeys((*ROLES.get(self.role, ()), *self.rules)))


def record_key(name: str) -> bytes:
    """Where the key of this name is. Raises BadRequest: it is no name."""
    check_name(name, "key")
    return ACCESS_PREFIX + name.encode()


def encode_key(record: KeyRecord) -> bytes:
    return msgspec.msgpack.encode(record)


def decode_key(raw: bytes) -> KeyRecord:
    """Raises CorruptFile: the store holds what this version cannot read."""
    record: KeyRecord = decode_stored(KeyRecord, raw, "an API key")
    return record
