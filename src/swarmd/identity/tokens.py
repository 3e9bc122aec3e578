"""Join tokens: a line of text that lets its bearer ask to be admitted.

The token carries a seed. The swarm logs only the public half of the key that the seed makes,
so a leak of the swarm's state yields no tokens. It also names the head of the authority log at
its making, and the epoch whose voters certified it: a chain that ends before it, or was gone on
with by voters that had been replaced by then, is an old one, served by somebody who was left out
since, and the bearer refuses it.

The text is lower-case base32 (RFC 4648) of exactly 125 bytes, so that each character counts,
and its last six bytes are a checksum: a mistyped token is told from a refused one.
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from swarmd.base.errors import TokenRefused
from swarmd.base.ids import NodeId, digest
from swarmd.identity.epochs import GENERATION_EPOCHS, GENERATIONS_MAX, Chain, Epoch
from swarmd.identity.keys import KEY_BYTES, SigningKey

TOKEN_VERSION: Final = 2
_LAYOUT: Final = struct.Struct(">B32sQ5s32s32sBQ")
_CHECKSUM_BYTES: Final = 6
TOKEN_TEXT_CHARS: Final = (_LAYOUT.size + _CHECKSUM_BYTES) * 8 // 5
_EPOCH_BYTES: Final = 5
assert (_LAYOUT.size + _CHECKSUM_BYTES) % 5 == 0, "each base32 character must count"
assert GENERATIONS_MAX * GENERATION_EPOCHS < 256**_EPOCH_BYTES

# What a token's bearer may become; the number is the role's place on the wire.
TOKEN_ROLES: Final[dict[str, tuple[str, ...]]] = {
    "member": ("voter", "worker"),
    "worker": ("worker",),
    "observer": ("observer",),
}
_ROLE_ORDER: Final = ("member", "worker", "observer")


@dataclass(frozen=True)
class Token:
    """`expires_ms` is store time.

    `head_height` and `epoch` name a record of the log and the epoch of then, by number; `history`
    is the hash of both.
    """

    swarm_id: bytes
    head_height: int
    epoch: int
    history: bytes
    seed: bytes
    role: str
    expires_ms: int
    version: int = TOKEN_VERSION

    def __repr__(self) -> str:
        return f"Token(role={self.role!r}, expires_ms={self.expires_ms})"

    @cached_property
    def key(self) -> SigningKey:
        """The key that signs the bearer's request."""
        return SigningKey.from_seed(self.seed)

    @property
    def token_id(self) -> NodeId:
        """How the log and `token list` name it: the id of its key."""
        return self.key.key_id

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles its bearer asks for."""
        return TOKEN_ROLES[self.role]


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in the swarm's history: a record of the authority log, and the epoch of then."""

    height: int
    record_hash: bytes
    epoch: int
    epoch_key: bytes

    @property
    def history(self) -> bytes:
        """One hash for all that was before."""
        return digest(b"token", self.record_hash, self.epoch_key)


def moment_of(head: tuple[int, bytes], epoch: Epoch) -> Moment:
    """The moment at which `head` is the newest record and `epoch` the newest epoch."""
    return Moment(*head, epoch.number, epoch.key)


def new_token(swarm_id: bytes, made: Moment, *, role: str = "member", expires_ms: int) -> Token:
    """A token with a fresh seed; worth nothing until its public half is logged."""
    assert role in TOKEN_ROLES, role
    seed = os.urandom(KEY_BYTES)
    return Token(swarm_id, made.height, made.epoch, made.history, seed, role, expires_ms)


def is_later_history(token: Token, record_hash: bytes | None, chain: Chain) -> bool:
    """Does a history go on from the moment at which `token` was made?

    Args:
        record_hash: of its record at the token's height, None if it has none there.
        chain: its epochs.
    """
    epoch = chain.epoch(token.epoch)
    if record_hash is None or epoch is None:
        return False
    return Moment(token.head_height, record_hash, epoch.number, epoch.key).history == token.history


def encode_token(token: Token) -> str:
    """The token's text, of `TOKEN_TEXT_CHARS` characters."""
    body = _LAYOUT.pack(
        token.version,
        token.swarm_id,
        token.head_height,
        token.epoch.to_bytes(_EPOCH_BYTES, "big"),
        token.history,
        token.seed,
        _ROLE_ORDER.index(token.role),
        token.expires_ms,
    )
    return base64.b32encode(body + _checksum(body)).decode("ascii").lower()


def decode_token(text: str) -> Token:
    """The token in `text`; white space around and inside it, and its case, do not matter.

    Raises:
        TokenRefused: with one sentence on what is wrong: empty, cut off, mistyped, or made
            by another version.
    """
    compact = "".join(text[: 4 * TOKEN_TEXT_CHARS].split()).upper()
    if not compact:
        raise TokenRefused("the join token is empty")
    raw = _from_base32(compact)
    body, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    if not body or _checksum(body) != checksum:
        if len(compact) != TOKEN_TEXT_CHARS:
            raise TokenRefused(
                f"the join token has {len(compact)} characters instead of {TOKEN_TEXT_CHARS}: "
                "it was not copied whole"
            )
        raise TokenRefused("the join token is mistyped: its checksum does not match; copy it again")
    if body[0] != TOKEN_VERSION:
        raise TokenRefused(
            f"the join token has version {body[0]}, this swarmd reads {TOKEN_VERSION}: "
            "use the same swarmd version as the swarm"
        )
    if len(body) != _LAYOUT.size:
        raise TokenRefused("the join token has the wrong length for its version")
    _, swarm_id, height, epoch, history, seed, role, expires_ms = _LAYOUT.unpack(body)
    if role >= len(_ROLE_ORDER):
        raise TokenRefused("the join token grants a role that this swarmd does not know")
    number = int.from_bytes(epoch, "big")
    return Token(swarm_id, height, number, history, seed, _ROLE_ORDER[role], expires_ms)


def _from_base32(compact: str) -> bytes:
    for position, letter in enumerate(compact, start=1):
        if letter not in "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567":
            raise TokenRefused(
                f"the join token is mistyped: {letter.lower()!r} at character {position} "
                "is not a letter or a digit 2 to 7"
            )
    if len(compact) % 8:
        return b""  # No whole token has such a length; the caller says so.
    return base64.b32decode(compact)


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES, person=b"swarmd token").digest()
