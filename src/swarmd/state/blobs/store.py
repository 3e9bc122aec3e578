"""Blobs on this node's disk: one file per blob, named by its hash, never changed.

A file appears under its name only whole and durable (written aside, fsynced, renamed), so the
index that is read from names at start holds what was once verified. Reading verifies again: a
damaged file is deleted and counts as missing, and its blob is fetched anew from others.
In a sealed data folder a file is one of `base/sealed_file.py` that came at once: how much it holds
is told by its size, and any part of it is opened by itself. Its name is still the blob's hash.

Functions whose names end in `_file` only touch files and may run in a thread; all others
touch the index and belong to the event loop.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swarmd.base.errors import BadRequest, BlobsFull, CorruptFile, DiskFault, MalformedMessage
from swarmd.base.files import FileReader, sync_folder
from swarmd.base.ids import ID_BYTES, from_text, to_text
from swarmd.base.sealed_file import (
    FRAME_BODY_BYTES_MAX,
    HEADER_BYTES,
    Sealer,
    Sealing,
    open_file,
    open_part,
    plain_size,
    seal_file,
    sealed_size,
)
from swarmd.state.blobs.chunkfile import ROOM
from swarmd.state.blobs.naming import HASH_BYTES, Hasher, hash_of

BLOBS_MAX: Final = 1_000_000
_SHARD_CHARS: Final = 2
_UPLOADS: Final = "uploads"

assert HASH_BYTES == ID_BYTES


@dataclass(slots=True)
class _Held:
    size: int
    # Monotonic seconds: when it was last written, offered or asked for by a put.
    touched_at: float


class Upload:
    """A blob that arrives piece by piece, aside of the blobs until it is whole."""

    def __init__(
        self, path: Path, blob_hash: bytes, size: int, now: float, sealer: Sealer | None = None
    ) -> None:
        self.hash = blob_hash
        self.size = size
        self.received_bytes = 0
        self.touched_at = now
        self.busy = False
        self._path = path
        self._hasher = Hasher()
        self._pieces = _Pieces(sealer, size) if sealer is not None else None
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DiskFault(f"cannot write {path}: {error.strerror}") from error

    def append_file(self, offset: int, data: bytes) -> None:
        """Add the piece at `offset`. Raises BadRequest: it is not the next, or too much."""
        if offset != self.received_bytes:
            raise BadRequest(f"a piece at {offset}, expected {self.received_bytes}")
        if offset + len(data) > self.size or (not data and self.size):
            raise BadRequest("a piece that does not fit its blob")
        view = memoryview(data if self._pieces is None else self._pieces.add(data))
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise DiskFault(f"cannot write {self._path}: {error.strerror}") from error
        self._hasher.update(data)
        self.received_bytes += len(data)

    def finish_file(self, path: Path, place: Callable[[Path, Path], None]) -> None:
        """Verify, make durable, `place` at `path`. Raises MalformedMessage, DiskFault."""
        if self._hasher.digest() != self.hash:
            raise MalformedMessage("an upload is not what its hash says")
        try:
            os.fsync(self._fd)
            place(self._path, path)
        except OSError as error:
            raise DiskFault(f"cannot write {path}: {error.strerror}") from error

    def close(self) -> None:
        """Give up what is not finished. Harmless when repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._path.unlink(missing_ok=True)


class _Pieces:
    """A sealed file of `size` bytes in the making; all but the last frame are full."""

    def __init__(self, sealer: Sealer, size: int) -> None:
        self._sealing = Sealing(sealer, ROOM)
        self._whole = sealed_size(size)
        self._position = 0
        self._rest = b""

    def add(self, data: bytes) -> bytes:
        """What is to be written once `data` has come, too."""
        made = b"" if self._position else self._sealing.header(self._whole)
        self._position = self._position or HEADER_BYTES
        pending = self._rest + data
        ends = self._position + sealed_size(len(pending)) - HEADER_BYTES == self._whole
        full = len(pending) if ends else len(pending) // FRAME_BODY_BYTES_MAX * FRAME_BODY_BYTES_MAX
        frames = self._sealing.frames(pending[:full], self._position, self._whole)
        self._position += len(frames)
        self._rest = pending[full:]
        return made + frames


class BlobFolder:
    """The folder and its index.

    Args:
        bytes_max: bound of all blobs, uploads under way included.
        sealer: seals what is written; None: it lies there as it is.
    """

    def __init__(self, folder: Path, *, bytes_max: int, sealer: Sealer | None = None) -> None:
        self._folder = folder
        self._sealer = sealer
        self._bytes_max = bytes_max
        self._held: dict[bytes, _Held] = {}
        self._bytes = 0
        self._reserved = 0
        self._numbers = itertools.count(1)
        # Shards whose own entry is durable: a rename into another would prove nothing.
        self._durable: set[str] = set()

    def open_file(self, now: float) -> None:
        """Read the index from the names on disk; forget uploads of an earlier run."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        uploads = self._folder / _UPLOADS
        uploads.mkdir(exist_ok=True, mode=0o700)
        for path in uploads.iterdir():
            path.unlink()
        sync_folder(self._folder)
        found: list[tuple[int, bytes, int]] = []
        for shard in self._folder.iterdir():
            if len(shard.name) != _SHARD_CHARS or not shard.is_dir():
                continue
            self._durable.add(shard.name)
            for entry in os.scandir(shard):
                blob_hash = hash_in(entry.name)
                status = entry.stat()
                size: int | None = status.st_size
                if self._sealer is not None and size is not None:
                    size = plain_size(size)
                if blob_hash is None or size is None:
                    os.unlink(entry.path)
                else:
                    found.append((status.st_mtime_ns, blob_hash, size))
        for _, blob_hash, size in sorted(found):
            self._add(blob_hash, size, now)

    def path(self, blob_hash: bytes) -> Path:
        name = to_text(blob_hash)
        return self._folder / name[:_SHARD_CHARS] / name

    @property
    def count(self) -> int:
        return len(self._held)

    @property
    def total_bytes(self) -> int:
        return self._bytes

    def size_of(self, blob_hash: bytes) -> int | None:
        held = self._held.get(blob_hash)
        return None if held is None else held.size

    def touch(self, blob_hash: bytes, now: float) -> bool:
        """Keep a blob for another grace period; False if it is not here."""
        held = self._held.pop(blob_hash, None)
        if held is not None:
            held.touched_at = now
            self._held[blob_hash] = held  # The index is in the order of use.
        return held is not None

    def used_file(self, blob_hash: bytes) -> None:
        """Have the next start know that a blob was used."""
        with contextlib.suppress(OSError):
            os.utime(self.path(blob_hash))

    def by_use(self) -> list[tuple[bytes, int, float]]:
        """Hash, size, and when it was touched, of all blobs; least recently used first."""
        return [(blob_hash, held.size, held.touched_at) for blob_hash, held in self._held.items()]

    def lacks(self, size: int) -> int:
        """How many bytes must go before `size` more may be reserved."""
        return max(0, self._bytes + self._reserved + size - self._bytes_max)

    def next_upload(self) -> Path:
        """A name for what is written aside, which no run after this one finds."""
        return self._folder / _UPLOADS / str(next(self._numbers))

    def reserve(self, size: int) -> None:
        """Set room aside. Raises Busy: it would be too much. Undone by `unreserve`."""
        over = self._bytes + self._reserved + size > self._bytes_max
        if over or len(self._held) >= BLOBS_MAX:
            raise BlobsFull(
                f"this node holds {self._bytes} bytes of blobs, and {size} more are over its "
                "blobs.bytes_max: unpin some, raise it, or put them on another node"
            )
        self._reserved += size

    def unreserve(self, size: int) -> None:
        self._reserved -= size

    def added(self, blob_hash: bytes, size: int, now: float) -> None:
        """A file is in place."""
        self._add(blob_hash, size, now)

    def begin_upload(self, blob_hash: bytes, size: int, now: float) -> Upload:
        """Room must be reserved already."""
        return Upload(self.next_upload(), blob_hash, size, now, self._sealer)

    def write_file(self, blob_hash: bytes, data: bytes) -> None:
        """Put a whole blob in place, durably. Raises DiskFault."""
        aside, path = self.next_upload(), self.path(blob_hash)
        if self._sealer is not None:
            data = seal_file(self._sealer, ROOM, data)
        try:
            fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            self.place_file(aside, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise DiskFault(f"cannot write {path}: {error.strerror}") from error

    def place_file(self, aside: Path, path: Path) -> None:
        """Move a file into its shard, durably. Raises OSError."""
        shard = path.parent
        if shard.name not in self._durable:
            shard.mkdir(exist_ok=True, mode=0o700)
            sync_folder(self._folder)
            self._durable.add(shard.name)
        os.rename(aside, path)
        sync_folder(shard)

    def read_file(self, blob_hash: bytes) -> bytes | None:
        """The blob, verified; None if it is missing, damaged or unreadable."""
        try:
            data = self.path(blob_hash).read_bytes()
            if self._sealer is not None:
                data = open_file(self._sealer, ROOM, data, source="a blob")
        except (OSError, CorruptFile):
            return None
        return data if hash_of(data) == blob_hash else None

    def read_part_file(self, blob_hash: bytes, offset: int, length: int) -> bytes | None:
        """Bytes as they are on disk: who fetches verifies the whole."""
        try:
            file = FileReader(self.path(blob_hash))
        except OSError:
            return None
        try:
            if self._sealer is None:
                return file.read(offset, length)
            return open_part(self._sealer, ROOM, file, offset, length, source="a blob")
        except (DiskFault, CorruptFile):
            return None
        finally:
            file.close()

    def drop(self, blob_hash: bytes) -> None:
        """Delete a blob."""
        self.moved(blob_hash)
        with contextlib.suppress(OSError):
            self.path(blob_hash).unlink(missing_ok=True)

    def moved(self, blob_hash: bytes) -> None:
        """A blob's file is not in its place any more."""
        held = self._held.pop(blob_hash, None)
        if held is not None:
            self._bytes -= held.size

    def unused(self, keep: Set[bytes], *, before: float) -> Iterable[bytes]:
        """Blobs not in `keep` and not touched since `before`."""
        return [
            blob_hash
            for blob_hash, held in self._held.items()
            if held.touched_at < before and blob_hash not in keep
        ]

    def untouched_since(self, blob_hash: bytes, before: float) -> bool:
        held = self._held.get(blob_hash)
        return held is not None and held.touched_at < before

    def _add(self, blob_hash: bytes, size: int, now: float) -> None:
        before = self._held.pop(blob_hash, None)
        self._bytes += size - (before.size if before is not None else 0)
        self._held[blob_hash] = _Held(size, now)


def hash_in(name: str) -> bytes | None:
    """The hash that a file is named by; None for a name this module did not write."""
    try:
        raw = from_text(name)
    except BadRequest:
        return None
    return raw if len(raw) == HASH_BYTES and to_text(raw) == name else None
