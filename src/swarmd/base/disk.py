"""Durable bytes: a small disk interface, and files that prove their own content.

A `Disk` is a folder of named files. `append` is buffered and durable only once `sync`
returned; `replace` is atomic and durable on return. The simulator has its own `Disk` that
loses what was not synced. After a failed sync the descriptor is not used again (a retry
could report success for pages the kernel has dropped): the call raises `DiskFault` and the
file refuses further appends until it is replaced.

A *checked file* is `magic, kind, format, length, BLAKE2b-256, body`: what it is, which
layout, and whether it is whole.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final, Protocol

from swarmd.base.errors import CorruptFile
from swarmd.base.limits import CHECKED_FILE_BYTES_MAX

_MAGIC: Final = b"SWRM"
_HEADER: Final = struct.Struct(">4s8sHQ32s")


class DiskReader(Protocol):
    """A file opened for reading; its content does not change."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on. Raises DiskFault."""
        ...

    def close(self) -> None: ...


class BytesReader:
    """Implements `DiskReader` over what is in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)

    def read(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]

    def close(self) -> None:
        self._content = b""


class Disk(Protocol):
    @property
    def blocking(self) -> bool:
        """Do calls wait for hardware, so that a long one belongs in a thread?"""
        ...

    def read(self, name: str) -> bytes | None:
        """All durable and buffered bytes of a file, or None where there is none."""
        ...

    def append(self, name: str, data: bytes) -> None:
        """Add bytes to the end; durable only after `sync`."""
        ...

    def sync(self, name: str) -> None:
        """Return once everything appended is durable. Raises DiskFault."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Give the file new content, atomically and durably. Raises DiskFault."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Let a file that was synced take the place of `new`, atomically and durably.

        Raises:
            DiskFault: it may or may not have come about; call again.
        """
        ...

    def reader(self, name: str) -> DiskReader | None:
        """The file as it is now, to be read in pieces, or None where there is none.

        What replaces the file later does not show. Whoever asked closes it.
        """
        ...

    def remove(self, name: str) -> None:
        """Delete a file if it is there, durably. Raises DiskFault."""
        ...

    def names(self) -> list[str]:
        """Names of all files, sorted."""
        ...


def seal_body(kind: str, format_number: int, body: bytes) -> bytes:
    """`body` as a checked file. `kind` is at most 8 ASCII characters."""
    raw_kind = kind.encode("ascii").ljust(8)
    assert len(raw_kind) == 8, kind
    checksum = hashlib.blake2b(raw_kind + body, digest_size=32).digest()
    return _HEADER.pack(_MAGIC, raw_kind, format_number, len(body), checksum) + body


def open_body(kind: str, format_number: int, raw: bytes, *, source: str) -> bytes:
    """The body of a checked file.

    Raises:
        CorruptFile: not such a file, of another format, truncated or damaged; names `source`.
    """
    if len(raw) < _HEADER.size or raw[:4] != _MAGIC:
        raise CorruptFile(f"{source} is not a swarmd file")
    _, raw_kind, found_format, length, checksum = _HEADER.unpack_from(raw)
    body = raw[_HEADER.size :]
    if raw_kind.rstrip() != kind.encode("ascii"):
        raise CorruptFile(f"{source} is not a {kind} file")
    if found_format != format_number:
        raise CorruptFile(f"{source} has format {found_format}; this version reads {format_number}")
    if length != len(body) or length > CHECKED_FILE_BYTES_MAX:
        raise CorruptFile(f"{source} is truncated: {len(body)} of {length} bytes")
    if hashlib.blake2b(raw_kind + body, digest_size=32).digest() != checksum:
        raise CorruptFile(f"{source} is damaged: its checksum does not match")
    return body
