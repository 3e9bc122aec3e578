"""What the API answers about users' blobs; see `shapes`."""

from __future__ import annotations

from msgspec import Struct


class PinInfo(Struct, frozen=True, kw_only=True):
    """Until `until_ms` (Unix time) the blob is kept on `copies` nodes, for `owner`."""

    owner: str
    copies: int
    until_ms: int


class UserBlob(Struct, frozen=True, kw_only=True):
    """A blob, the nodes that said they hold it, and who pins it."""

    hash: str
    size: int
    holders: list[str]
    pins: list[PinInfo]
    alone: bool = False
    """There is no other node that could hold it, too."""


class BlobProgress(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a put or a pin is; the last one has the `blob`."""

    held: int = 0
    copies: int = 0
    done_bytes: int = 0
    blob: UserBlob | None = None


class UserBlobs(Struct, frozen=True, kw_only=True):
    blobs: list[UserBlob]
    missing: list[str]
    """Names of members that did not say what they hold."""
