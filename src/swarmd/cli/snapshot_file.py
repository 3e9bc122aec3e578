"""Snapshot files: a copy of the store that proves it is whole, written and read in pieces.

Layout: `SWRMSNAP`, format (2 bytes), then records `length, CRC-32, msgpack of a snapshot item`
(4 bytes each, big-endian), then a record of length 0 and the BLAKE2b-256 of all before it. A
file without that end was cut; any damage is named by the byte where its record begins. A file
appears under its name only once it is whole and durable, and only its owner may read it.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from swarmd.base.errors import AlreadyExists, CorruptFile
from swarmd.gateway.shapes import (
    SnapshotAgents,
    SnapshotEnd,
    SnapshotHead,
    SnapshotItem,
    SnapshotKeys,
    SnapshotLater,
)

_MAGIC: Final = b"SWRMSNAP"
_FORMAT: Final = 1
_HEADER: Final = struct.Struct(">8sH")
_RECORD: Final = struct.Struct(">II")
_DIGEST_BYTES: Final = 32
_RECORD_BYTES_MAX: Final = 64 * 1024 * 1024


@dataclass
class Summary:
    """What a file holds. `later` overrides keys that the file tells in order."""

    head: SnapshotHead
    revision: int = 0
    key_count: int = 0
    agents: list[str] = field(default_factory=list)
    later: dict[bytes, bytes | None] = field(default_factory=dict)
    damage: str = ""
    """Where and how it is damaged; empty if it is whole."""


def write(path: Path, items: Iterable[SnapshotItem], *, replace: bool = False) -> Summary:
    """Write the items of a copy to `path`; what was written.

    Raises:
        AlreadyExists: there is such a file, and not `replace`.
        CorruptFile: the items are not a whole copy. Nothing is left at `path`.
        OSError: it cannot be written there.
    """
    if path.exists() and not replace:
        raise AlreadyExists(f"{path} exists: choose another name, or say --force to replace it")
    aside = path.with_name(f"{path.name}.part-{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            summary = _write(file, items)
            file.flush()
            os.fsync(file.fileno())
        os.rename(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return summary


def _write(file: BinaryIO, items: Iterable[SnapshotItem]) -> Summary:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    summary: Summary | None = None

    def put(raw: bytes) -> None:
        digest.update(raw)
        file.write(raw)

    put(_HEADER.pack(_MAGIC, _FORMAT))
    ended = False
    for item in items:
        summary = _note(summary, item)
        raw = msgspec.msgpack.encode(item)
        put(_RECORD.pack(len(raw), zlib.crc32(raw)) + raw)
        ended = isinstance(item, SnapshotEnd)
    if summary is None or not ended:
        raise CorruptFile("the copy broke off before its end")
    put(_RECORD.pack(0, 0))
    file.write(digest.digest())
    return summary


def _note(summary: Summary | None, item: SnapshotItem) -> Summary:
    """Add an item to what is known. Raises CorruptFile: it cannot come here."""
    if isinstance(item, SnapshotHead) == (summary is not None):
        raise CorruptFile("a copy begins with its head, and has one only")
    if isinstance(item, SnapshotHead):
        return Summary(item)
    assert summary is not None
    if isinstance(item, SnapshotKeys):
        summary.key_count += len(item.entries)
    elif isinstance(item, SnapshotLater):
        summary.later.update(item.entries)
    elif isinstance(item, SnapshotAgents):
        summary.agents += [name.decode("utf-8", "replace") for name, _ in item.entries]
    else:
        summary.revision = item.revision
    return summary


# ---- reading --------------------------------------------------------------------------


def check(path: Path, *, force: bool = False) -> Summary:
    """Read all of a file; what it holds. With `force` what comes before damage counts.

    Raises:
        CorruptFile: it is no snapshot, or damaged and not `force`; nothing of it is usable
            without its head.
        OSError: it cannot be read.
    """
    summary: Summary | None = None
    try:
        for item in _items(path):
            summary = _note(summary, item)
    except CorruptFile as error:
        if summary is None or not force:
            raise
        summary.damage = error.message
    if summary is None:
        raise CorruptFile(f"{path} holds nothing")
    return summary


def keys(path: Path, summary: Summary) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a checked file, by key, each as it was at the file's revision."""
    later = summary.later
    told = ((key, value) for key, value in _told(path, summary) if key not in later)
    changed = ((key, value) for key, value in sorted(later.items()) if value is not None)
    return heapq.merge(told, changed)


def _told(path: Path, summary: Summary) -> Iterator[tuple[bytes, bytes]]:
    try:
        for item in _items(path):
            if isinstance(item, SnapshotKeys):
                yield from item.entries
    except CorruptFile:
        if not summary.damage:
            raise


def _items(path: Path) -> Iterator[SnapshotItem]:
    """The items of a file. Raises CorruptFile where it is damaged, after those before."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    decoder = msgspec.msgpack.Decoder(SnapshotItem)
    with path.open("rb") as file:
        raw = file.read(_HEADER.size)
        if len(raw) < _HEADER.size or raw[:8] != _MAGIC:
            raise CorruptFile(f"{path} is no snapshot of swarmd")
        if _HEADER.unpack(raw)[1] != _FORMAT:
            raise CorruptFile(f"{path} has format {_HEADER.unpack(raw)[1]}; this reads {_FORMAT}")
        digest.update(raw)
        while payload := _next_record(file, digest, path):
            try:
                yield decoder.decode(payload)
            except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
                raise CorruptFile(f"{path} holds something else: {error}") from error
        if file.read(_DIGEST_BYTES + 1) != digest.digest():
            raise CorruptFile(f"{path} is damaged: its checksum does not match")


def _next_record(file: BinaryIO, digest: hashlib.blake2b, path: Path) -> bytes:
    """The payload of the next record; empty at the end."""
    at = file.tell()
    head = file.read(_RECORD.size)
    if len(head) < _RECORD.size:
        raise CorruptFile(f"{path} was cut at byte {at}")
    length, checksum = _RECORD.unpack(head)
    if length > _RECORD_BYTES_MAX:
        raise CorruptFile(f"{path} is damaged at byte {at}")
    payload = file.read(length)
    if len(payload) < length:
        raise CorruptFile(f"{path} was cut within the record at byte {at}")
    if zlib.crc32(payload) != checksum:
        raise CorruptFile(f"{path} is damaged at byte {at}")
    digest.update(head + payload)
    return payload
