"""What can be written into the authority log, and how an entry is signed.

An entry is an envelope whose payload is one of the structs below. An admin signs all but two.
`Admit` is signed by the token's key and the new node's own key together: the one shows that
somebody was invited, the other that nobody else is admitted in its name. `Renew` is signed by
the node whose credential it is. Each entry of an admin carries a nonce, so that no two are the
same bytes and none can be played again.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from swarmd.base.errors import MalformedMessage
from swarmd.identity.genesis import NONCE_BYTES
from swarmd.identity.keys import CERTIFICATE_BYTES_MAX, KEY_BYTES, SigningKey
from swarmd.identity.signing import sign_envelope
from swarmd.identity.tokens import Moment, Token, new_token
from swarmd.wire.codec import Family, Message, decode_struct, encode_struct
from swarmd.wire.envelope import Envelope, decode_envelope, encode_envelope

AUTHORITY_DOMAIN: Final = "authority"
ENTRY_BYTES_MAX: Final = 4_096
TOKEN_USES_MAX: Final = 10_000
ROLES_MAX: Final = 8
assert CERTIFICATE_BYTES_MAX < ENTRY_BYTES_MAX


class AddToken(Message, frozen=True, tag=1):
    """Make a token known. `expires_ms` is store time; `role` one of `tokens.TOKEN_ROLES`."""

    token_public: bytes
    role: str
    uses: int
    expires_ms: int
    nonce: bytes


class RevokeToken(Message, frozen=True, tag=2):
    token_id: bytes
    nonce: bytes


class Admit(Message, frozen=True, tag=3):
    """Admit a node by a token. The nonces are the ones both sides drew when they met."""

    token_id: bytes
    public: bytes
    name: str
    certificate_der: bytes
    roles: tuple[str, ...]
    joiner_nonce: bytes
    server_nonce: bytes


class SetRoles(Message, frozen=True, tag=4):
    node_id: bytes
    roles: tuple[str, ...]
    nonce: bytes


class Evict(Message, frozen=True, tag=5):
    """Shut a node out for ever: its id is not used again."""

    node_id: bytes
    nonce: bytes


class AddAdmin(Message, frozen=True, tag=6):
    admin_public: bytes
    nonce: bytes


class RevokeAdmin(Message, frozen=True, tag=7):
    admin_id: bytes
    nonce: bytes


class Policy(Message, frozen=True, tag=8):
    """Raise the lowest protocol version that members may speak; it never falls."""

    min_version: int
    nonce: bytes


class Approve(Message, frozen=True, tag=9):
    """Admit a node without a token: an admin signs the node's own request (`requests`)."""

    request: bytes
    roles: tuple[str, ...]
    nonce: bytes


class Renew(Message, frozen=True, tag=10):
    """Go on for another life. It names the end that it replaces, and so serves once."""

    node_id: bytes
    expires_ms: int


Entry = (
    AddToken
    | RevokeToken
    | Admit
    | SetRoles
    | Evict
    | AddAdmin
    | RevokeAdmin
    | Policy
    | Approve
    | Renew
)

ENTRIES: Final = Family(
    "authority",
    AddToken,
    RevokeToken,
    Admit,
    SetRoles,
    Evict,
    AddAdmin,
    RevokeAdmin,
    Policy,
    Approve,
    Renew,
    message_bytes_max=ENTRY_BYTES_MAX,
)


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One place in the log: an entry, when it was applied (store time, ms), and its past.

    `previous_hash` is the hash of the record before it, or the swarm id before the first.
    """

    height: int
    previous_hash: bytes
    store_time_ms: int
    entry: bytes


RECORD_BYTES_MAX: Final = ENTRY_BYTES_MAX + 64


def encode_record(record: Record) -> bytes:
    return encode_struct(record)


def decode_record(raw: bytes) -> Record:
    """The record in `raw`, in its one encoding. Raises MalformedMessage."""
    if len(raw) > RECORD_BYTES_MAX:
        raise MalformedMessage(f"an authority record of {len(raw)} bytes is too large")
    record: Record = decode_struct(Record, raw)
    if encode_record(record) != raw:
        raise MalformedMessage("an authority record that is not in its one encoding")
    return record


def sign_entry(entry: Message, swarm_id: bytes, *keys: SigningKey) -> bytes:
    """The bytes to propose: `entry` in an envelope signed by `keys`."""
    return encode_envelope(sign_envelope(AUTHORITY_DOMAIN, swarm_id, ENTRIES.encode(entry), *keys))


def open_entry(raw: bytes) -> tuple[Envelope, Entry]:
    """The envelope in `raw` and the entry in it; signatures are not checked here.

    Raises:
        MalformedMessage: anything is wrong with the bytes or a field's size.
    """
    if len(raw) > ENTRY_BYTES_MAX:
        raise MalformedMessage(f"an authority entry of {len(raw)} bytes is too large")
    envelope = decode_envelope(raw, domain=AUTHORITY_DOMAIN)
    entry: Entry = ENTRIES.decode(envelope.payload)
    flaw = _flaw(entry)
    if flaw is not None:
        raise MalformedMessage(f"an authority entry {type(entry).__name__} with {flaw}")
    return envelope, entry


def issue_token(
    swarm_id: bytes,
    made: Moment,
    admin: SigningKey,
    *,
    role: str = "member",
    uses: int,
    expires_ms: int,
) -> tuple[Token, bytes]:
    """A new token and the signed entry that makes the swarm accept it.

    Args:
        made: the history as its maker sees it.
        admin: an admin key of the swarm.
        uses: how many nodes it may admit, 1 to 10,000.
        expires_ms: store time after which it admits nobody, in milliseconds.
    """
    token = new_token(swarm_id, made, role=role, expires_ms=expires_ms)
    entry = AddToken(
        token_public=token.key.public,
        role=role,
        uses=uses,
        expires_ms=expires_ms,
        nonce=fresh_nonce(),
    )
    return token, sign_entry(entry, swarm_id, admin)


def fresh_nonce() -> bytes:
    return os.urandom(NONCE_BYTES)


_FIELD_BYTES: Final = {
    "token_public": KEY_BYTES,
    "token_id": KEY_BYTES,
    "public": KEY_BYTES,
    "node_id": KEY_BYTES,
    "admin_public": KEY_BYTES,
    "admin_id": KEY_BYTES,
    "nonce": NONCE_BYTES,
    "joiner_nonce": NONCE_BYTES,
    "server_nonce": NONCE_BYTES,
}


def _flaw(entry: Entry) -> str | None:
    for field in entry.__struct_fields__:
        expected = _FIELD_BYTES.get(field)
        if expected is not None and len(getattr(entry, field)) != expected:
            return f"a {field} that is not {expected} bytes"
    if isinstance(entry, AddToken) and not 1 <= entry.uses <= TOKEN_USES_MAX:
        return f"{entry.uses} uses; a token has 1 to {TOKEN_USES_MAX}"
    if isinstance(entry, AddToken) and entry.expires_ms < 0:
        return "an expiry before the swarm began"
    if isinstance(entry, Admit | SetRoles | Approve) and not 1 <= len(entry.roles) <= ROLES_MAX:
        return f"{len(entry.roles)} roles"
    if isinstance(entry, Admit | SetRoles | Approve) and len(set(entry.roles)) != len(entry.roles):
        return "a role named twice"
    return None
