"""How the strong store holds recipes: names, keys, and what a key in a line says.

Rules:
- Whoever takes part in a recipe has one key, `c/<kind>/<name>/<lease as 16 hex digits>`, that
  goes with their lease. The order of create revisions is the line.
- The holder of a lock, and the leader of an election, is the key of the lowest create
  revision. Later keys get higher revisions, so nobody ever enters the line before anybody.
- A key of a line is written once. So its revision is the fence, and comparing that one key with
  the fence in a transaction refuses a write of whoever holds no more.
- A barrier opens by writing the keys of all that it lets through under one revision, the fence.
- `c/ask/<request>` names the place that a request got, and goes with the same lease: however
  often and wherever the request is repeated, it stands in line once.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from swarmd.base.errors import BadRequest, CorruptFile, MalformedMessage
from swarmd.base.limits import (
    BARRIER_COUNT_MAX,
    KIB,
    RECIPE_VALUE_BYTES_MAX,
)
from swarmd.base.names import checked_name
from swarmd.state.raft.messages import RECIPE_PREFIX, USER_PREFIX
from swarmd.wire.codec import decode_struct, encode_struct

OWNER_BYTES_MAX: Final = 1 * KIB
REQUEST_BYTES_MAX: Final = 32
_ASK: Final = RECIPE_PREFIX + b"ask/"
_LEASE_DIGITS: Final = 16
_LEASE_MAX: Final = 2**63 - 1


class Kind(StrEnum):
    """The recipes that have a line."""

    LOCK = "lock"
    ELECTION = "elect"
    BARRIER = "barrier"

    @property
    def noun(self) -> str:
        """What people call it."""
        return "election" if self is Kind.ELECTION else self.value


class Ticket(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a key of a line says.

    `owner` is for people, `value` for programs (where a leader can be reached). `request` is
    the caller's name for this one place. `asked_ms` is wall time, for display. `count` is how
    many a barrier waits for; `opened` is set once it has let this one through.
    """

    owner: str
    ttl_ms: int
    asked_ms: int
    value: bytes = b""
    request: bytes = b""
    count: Annotated[int, Meta(ge=0)] = 0
    opened: bool = False


def encode_ticket(ticket: Ticket) -> bytes:
    return encode_struct(ticket)


def decode_ticket(raw: bytes) -> Ticket:
    """Raises CorruptFile: the store holds what this version cannot read."""
    try:
        ticket: Ticket = decode_struct(Ticket, raw)
    except MalformedMessage as error:
        raise CorruptFile(f"a key of a recipe is unreadable: {error}") from error
    return ticket


# ---- keys -----------------------------------------------------------------------------


def kind_prefix(kind: Kind) -> bytes:
    """Where every line of a kind begins."""
    return RECIPE_PREFIX + kind.value.encode() + b"/"


def line_of(kind: Kind, name: str) -> bytes:
    """Where the keys of one line begin. Raises BadName."""
    return kind_prefix(kind) + checked_name(name) + b"/"


def place_key(kind: Kind, name: str, lease: int) -> bytes:
    """Raises BadName, BadRequest."""
    if not 0 < lease <= _LEASE_MAX:
        raise BadRequest(f"{lease} is no lease: give the one that the answer named")
    return line_of(kind, name) + b"%016x" % lease


def read_place(key: bytes) -> tuple[str, int]:
    """The name and the lease in the key of a place. Raises CorruptFile."""
    try:
        _, _, name, digits = key.split(b"/")
        if len(digits) != _LEASE_DIGITS:
            raise ValueError
        return name.decode(), int(digits, 16)
    except ValueError as error:
        raise CorruptFile("a key of a recipe with a wrong name") from error


def request_key(request: bytes) -> bytes:
    """Raises BadRequest."""
    if not 0 < len(request) <= REQUEST_BYTES_MAX:
        raise BadRequest(f"a request is named by 1 to {REQUEST_BYTES_MAX} bytes")
    return _ASK + request.hex().encode()


def counter_key(name: str) -> bytes:
    """Counters are users' keys. Raises BadName."""
    return USER_PREFIX + checked_name(name)


# ---- what callers give ----------------------------------------------------------------


def checked_owner(owner: str) -> str:
    """Raises BadRequest."""
    try:
        raw = owner.encode()
    except UnicodeEncodeError as error:
        raise BadRequest("an owner is valid Unicode text") from error
    if not 0 < len(raw) <= OWNER_BYTES_MAX:
        raise BadRequest(f"an owner has 1 to {OWNER_BYTES_MAX} bytes: say who asks")
    return owner


def checked_value(value: bytes) -> bytes:
    """Raises BadRequest."""
    if len(value) > RECIPE_VALUE_BYTES_MAX:
        raise BadRequest(
            f"a leader's value has at most {RECIPE_VALUE_BYTES_MAX} bytes, not {len(value)}"
        )
    return value


def checked_count(count: int) -> int:
    """Raises BadRequest."""
    if not 1 <= count <= BARRIER_COUNT_MAX:
        raise BadRequest(f"a barrier waits for 1 to {BARRIER_COUNT_MAX}, not {count}")
    return count
