"""Settings of the room that keeps large values by their hash."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from swarmd.base.limits import BLOB_BYTES_MAX, MIB

PIN_TTL_MAX_S: Final = 10 * 365 * 24 * 3_600.0

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


class BlobsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[blobs]"""

    # Bytes of blobs kept on this node. At the bound, what nobody pins or refers to goes, least
    # recently used first; if that is not enough new blobs are refused here ("blobs_full"), so that
    # the disk of the strong store is never filled by payloads.
    bytes_max: Annotated[int, Meta(ge=BLOB_BYTES_MAX)] = 16 * 1024 * MIB
    # A blob that nothing names is deleted this long after it was last written or offered. It
    # must be longer than any submit takes between its upload and its commit.
    grace_s: Annotated[float, Meta(ge=60)] = 3_600.0
    # Time to place one blob on enough nodes before the submit is refused with
    # "insufficient_copies". A 64 MiB blob takes 2 s at 1 Gbit/s to two nodes.
    put_timeout_s: Seconds = 30.0
    # Longest wait for a chunk of 256 KiB, or a piece of one, before the next holder is tried.
    chunk_timeout_s: Seconds = 5.0
    # Transfers in each direction at once; each may hold up to 64 MiB in memory while it runs.
    transfers_max: Count = 8
    # An upload that a peer began and left is dropped after this long.
    upload_idle_s: Seconds = 30.0
    # Uploads that peers may have open here at once; beyond it they are told "busy".
    uploads_max: Count = 64
    # For how long a blob is pinned if whoever puts or pins it does not say.
    pin_ttl_s: Annotated[float, Meta(ge=60, le=PIN_TTL_MAX_S)] = 7 * 24 * 3_600.0
    # How fast blobs on the disk are looked through for damage; 0 looks only at what is read.
    scrub_bytes_per_s: Annotated[int, Meta(ge=0)] = 4 * MIB
