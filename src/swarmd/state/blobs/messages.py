"""What nodes say to each other about blobs, and the reference that names one.

Upload: `Offer` -> `Have` or `Want`; then `Piece` after `Piece`, each answered by `Got`, the
last by `Have`, which means: whole, verified and durable. A blob of one piece skips the offer.
Download: `Fetch` -> `Piece`, one per chunk, or the error `not_found`.
Leaving: `MissingAsk` -> `Missing`, page after page, from a voter that knows all references.

Blobs of users travel on a plane of their own, in chunks of 256 KiB:
Holders: `HeldAsk` -> `Held`, which of these blobs are there, whole, and with which pins.
Transfer: `ManifestAsk` -> `ManifestPart`; then `RunAsk` -> `RunPiece` after `RunPiece`, a chunk's
bytes at most on their way: the taker lets as many more be sent as it has written.
Copies: `Take` -> `Taking` while it fetches the blob itself, then `Taken`: whole and durable.
Pins: `Told` -> `Noted`. Damage: `Doubt`, which is not answered: look at your copy.
Lists: `ListAsk` -> `Listing`, page after page.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from swarmd.base.ids import short
from swarmd.base.limits import (
    BLOB_BYTES_MAX,
    BLOB_CHUNK_BYTES,
    BLOB_CHUNKS_MAX,
    BLOB_COPIES_MAX,
    BLOB_PIECE_BYTES,
    NAME_BYTES_MAX,
    STREAMED_BYTES_MAX,
)
from swarmd.state.blobs.naming import HASH_BYTES
from swarmd.wire.codec import Family, Message

MISSING_MAX = 1_000
Hash = Annotated[bytes, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
Size = Annotated[int, Meta(ge=0, le=BLOB_BYTES_MAX)]
Chunk = Annotated[bytes, Meta(max_length=BLOB_CHUNK_BYTES)]


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


# ---- blobs of users -------------------------------------------------------------------

BULK_PLANE = "swarmd-bulk/1"
ASKED_MAX = 64
PINS_MAX = 16
LISTED_MAX = 64
MANIFEST_PART_HASHES = 16_384
CHUNK_PIECES = BLOB_CHUNK_BYTES // BLOB_PIECE_BYTES
StreamedSize = Annotated[int, Meta(ge=0, le=STREAMED_BYTES_MAX)]
Milliseconds = Annotated[int, Meta(ge=0, le=2**53)]


class Pin(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Somebody's wish that a blob be kept on `copies` nodes until `until_ms` (Unix time).

    Its owner has one pin on a blob, so a later one (`set_ms`) stands in for it. One that was taken
    back is remembered as `removed` until it would have ended: a node that was away learns of it.
    """

    owner: Annotated[str, Meta(max_length=NAME_BYTES_MAX)]
    copies: Annotated[int, Meta(ge=1, le=BLOB_COPIES_MAX)]
    until_ms: Milliseconds
    set_ms: Milliseconds
    removed: bool = False


Pins = Annotated[tuple[Pin, ...], Meta(max_length=PINS_MAX)]


class PinnedBlob(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A blob that its teller holds, and the pins that it knows."""

    hash: Hash
    size: StreamedSize
    pins: Pins


class HeldAsk(Message, frozen=True, tag=1):
    hashes: Annotated[tuple[Hash, ...], Meta(max_length=ASKED_MAX)]


class Held(Message, frozen=True, tag=2):
    blobs: Annotated[tuple[PinnedBlob, ...], Meta(max_length=ASKED_MAX)]


class ManifestAsk(Message, frozen=True, tag=3):
    """The hashes of chunks from `first` on."""

    hash: Hash
    first: Annotated[int, Meta(ge=0, le=BLOB_CHUNKS_MAX)]


class ManifestPart(Message, frozen=True, tag=4):
    """`hashes`: joined."""

    size: StreamedSize
    hashes: Annotated[bytes, Meta(max_length=MANIFEST_PART_HASHES * HASH_BYTES)]


class PiecesAsk(Message, frozen=True, tag=5):
    """I want pieces of this blob: opens a pipe.

    Over that the asker sends numbers of pieces, 4 bytes each, and gets these pieces' bytes in that
    order, 128 KiB each but the last. It closes the pipe when it wants no more.
    """

    hash: Hash


class PiecesHere(Message, frozen=True, tag=6):
    """They are of a blob of so many bytes."""

    size: StreamedSize


class Take(Message, frozen=True, tag=7):
    """Fetch this blob, from me or whoever has it, and keep it as these pins say."""

    blob: PinnedBlob


class Taking(Message, frozen=True, tag=8):
    done_bytes: StreamedSize


class Taken(Message, frozen=True, tag=9):
    hash: Hash


class Told(Message, frozen=True, tag=10):
    """What is pinned: to be noted by who holds the blob."""

    blob: PinnedBlob


class Noted(Message, frozen=True, tag=11):
    """`held`: the blob is here, too."""

    held: bool


class Doubt(Message, frozen=True, tag=12):
    """What you sent of this blob is not what it should be."""

    hash: Hash


class ListAsk(Message, frozen=True, tag=13):
    """Which blobs of users, with hashes above `after`, are on your disk?"""

    after: Annotated[bytes, Meta(max_length=HASH_BYTES)]


class Listing(Message, frozen=True, tag=14):
    blobs: Annotated[tuple[PinnedBlob, ...], Meta(max_length=LISTED_MAX)]
    more: bool


BULK = Family(
    "bulk",
    HeldAsk,
    Held,
    ManifestAsk,
    ManifestPart,
    PiecesAsk,
    PiecesHere,
    Take,
    Taking,
    Taken,
    Told,
    Noted,
    Doubt,
    ListAsk,
    Listing,
    alpn=BULK_PLANE,
)
