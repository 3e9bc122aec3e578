"""What nodes say to each other about blobs, and the reference that names one.

Upload: `Offer` -> `Have` or `Want`; then `Piece` after `Piece`, each answered by `Got`, the
last by `Have`, which means: whole, verified and durable. A blob of one piece skips the offer.
Download: `Fetch` -> `Piece`, one per chunk, or the error `not_found`.
Leaving: `MissingAsk` -> `Missing`, page after page, from a voter that knows all references.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta

from swarmd.base.ids import short
from swarmd.base.limits import BLOB_BYTES_MAX, BLOB_CHUNK_BYTES
from swarmd.wire.codec import Family, Message

HASH_BYTES = 32
MISSING_MAX = 1_000
Hash = Annotated[bytes, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
Size = Annotated[int, Meta(ge=0, le=BLOB_BYTES_MAX)]
Chunk = Annotated[bytes, Meta(max_length=BLOB_CHUNK_BYTES)]


def hash_of(data: bytes) -> bytes:
    """The name of a blob: BLAKE2b-256 of its bytes."""
    return hashlib.blake2b(data, digest_size=HASH_BYTES).digest()


class BlobRef(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A blob's hash and its size in bytes; what records hold in its place."""

    hash: Hash
    size: Size

    def __str__(self) -> str:
        return f"blob {short(self.hash)} ({self.size} bytes)"


class Offer(Message, frozen=True, tag=1):
    hash: Hash
    size: Size


class Have(Message, frozen=True, tag=2):
    """The blob is here, whole, verified and durable."""

    hash: Hash


class Want(Message, frozen=True, tag=3):
    hash: Hash


class Piece(Message, frozen=True, tag=4):
    """`data` begins at `offset` of a blob of `size` bytes."""

    hash: Hash
    size: Size
    offset: Size
    data: Chunk


class Got(Message, frozen=True, tag=5):
    """The upload has `received_bytes` so far."""

    hash: Hash
    received_bytes: Size


class Fetch(Message, frozen=True, tag=6):
    hash: Hash
    offset: Size


class MissingAsk(Message, frozen=True, tag=7):
    """Which blobs with hashes above `after` do records name that are not on your disk?"""

    after: Annotated[bytes, Meta(max_length=HASH_BYTES)]


class Missing(Message, frozen=True, tag=8):
    hashes: Annotated[tuple[Hash, ...], Meta(max_length=MISSING_MAX)]
    more: bool


BLOB = Family("blob", Offer, Have, Want, Piece, Got, Fetch, MissingAsk, Missing)
