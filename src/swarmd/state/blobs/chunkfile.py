"""A blob's file, chunk by chunk, in clear or sealed; every function here may run in a thread.

A chunk is just what a frame of a sealed file holds (`base/sealed_file.py`), so in both forms any
chunk is read or written by itself, in any order. In clear it may also be written part by part, from
its beginning on; bytes that were not written read as zeros. What lies there already is found by
reading it: chunks are verified by their hashes, and no other account of them is kept that could be
wrong.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from swarmd.base.errors import CorruptFile, DiskFault
from swarmd.base.files import FileReader
from swarmd.base.limits import BLOB_CHUNK_BYTES
from swarmd.base.sealed_file import (
    FRAME_BODY_BYTES_MAX,
    HEADER_BYTES,
    Sealer,
    Sealing,
    open_part,
    plain_size,
    read_header,
    sealed_size,
)

ROOM: Final = "blobs"

assert BLOB_CHUNK_BYTES == FRAME_BODY_BYTES_MAX


class ChunkWriter:
    """A blob's file in the making.

    Args:
        size: of the blob, if it is known before; else `finish` tells it.
        resume: go on with what is at `path`, if it can be read.

    Raises:
        DiskFault: here and in every function: the disk is full, or refuses.
    """

    def __init__(
        self, path: Path, size: int | None, sealer: Sealer | None, *, resume: bool = False
    ) -> None:
        self.path = path
        self._sealer = sealer
        self._whole = 0 if size is None or sealer is None else sealed_size(size)
        self._sealing: Sealing | None = None
        self._closing = threading.Lock()
        # The chunks that no sync has gone over; None: all that is there.
        self._unsynced: set[int] | None = set() if resume else None
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(path, flags | (0 if resume else os.O_TRUNC), 0o600)
            if sealer is not None:
                self._sealing = self._begin(sealer)
        except OSError as error:
            raise self._fault(error) from error

    @property
    def takes_parts(self) -> bool:
        """False where only whole chunks can be written: they are sealed as such."""
        return self._sealer is None

    def write(self, index: int, data: bytes) -> None:
        """Put a chunk in its place."""
        if self._sealing is None:
            self.write_part(index, 0, data)
            return
        position = sealed_size(index * BLOB_CHUNK_BYTES)
        # Nothing vouches for a frame but the header, once the whole is there.
        self._write_of(index, self._sealing.frames(data, position, 0), position)

    def write_part(self, index: int, offset: int, data: bytes | memoryview) -> None:
        """Put a part of a chunk in its place, `offset` bytes from the chunk's beginning."""
        assert self.takes_parts
        self._write_of(index, data, index * BLOB_CHUNK_BYTES + offset)

    def begun(self, index: int, size: int) -> int:
        """How many bytes of a chunk of `size` bytes were written for sure, from its beginning on.

        Parts are written in order, so all of them before the last byte that is not zero. Whatever
        was there before, or came after a crash of the machine, may make this wrong.
        """
        return len(self.read(index, size).rstrip(b"\0")) if self.takes_parts else 0

    def read(self, index: int, size: int) -> bytes:
        """A chunk of `size` bytes as it lies there; fewer, or others, if it does not.

        Nothing once it is closed: who reads along does not know when that is.
        """
        offset = index * BLOB_CHUNK_BYTES
        with self._closing:
            if self._fd < 0:
                return b""
            try:
                if self._sealer is None:
                    return os.pread(self._fd, size, offset)
                # As if it ended with this chunk, which says how long the chunk's frame is.
                reader = _Descriptor(self._fd, sealed_size(offset + size))
                return open_part(self._sealer, ROOM, reader, offset, size, source="a blob")
            except CorruptFile:
                return b""
            except OSError as error:
                raise self._fault(error) from error

    def sync(self) -> None:
        """Have what is written by now on the disk; nothing vouches for it yet."""
        try:
            self._sync(os.fdatasync)
        except OSError as error:
            raise self._fault(error) from error

    def finish(self, size: int) -> None:
        """Make it durable as a blob of `size` bytes; its name is not, yet."""
        try:
            if self._sealing is not None:
                self._write(self._sealing.header(sealed_size(size)), 0)
                size = sealed_size(size)
            os.ftruncate(self._fd, size)
            self._sync(os.fsync)
        except OSError as error:
            raise self._fault(error) from error

    def close(self) -> None:
        """Harmless when repeated. The file stays."""
        with self._closing:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _begin(self, sealer: Sealer) -> Sealing:
        """The sealing of what is there, or of a file begun anew."""
        try:
            return read_header(sealer, ROOM, os.pread(self._fd, HEADER_BYTES, 0), source="a blob")[
                0
            ]
        except CorruptFile:
            os.ftruncate(self._fd, 0)
        sealing = Sealing(sealer, ROOM)
        self._sealing = sealing
        self._write(sealing.header(self._whole), 0)
        return sealing

    def _write(self, data: bytes | memoryview, position: int) -> None:
        view = memoryview(data)
        try:
            while view:
                count = os.pwrite(self._fd, view, position)
                view, position = view[count:], position + count
        except OSError as error:
            raise self._fault(error) from error

    def _write_of(self, index: int, data: bytes | memoryview, position: int) -> None:
        """Write bytes of a chunk; a sync may begin before, and end after it."""
        self._note(index)
        self._write(data, position)
        self._note(index)

    def _note(self, index: int) -> None:
        if self._unsynced is not None:
            self._unsynced.add(index)

    def _sync(self, sync: Callable[[int], None]) -> None:
        going = self._unsynced
        self._unsynced = None if going is None else set()
        try:
            sync(self._fd)
        except OSError:
            self._forget(going)
            raise

    def _forget(self, lost: set[int] | None) -> None:
        """Have nobody go on with chunks that a sync lost: they can be read until the machine stops.

        The next sync would say that they are there (Rebello et al., *Can Applications Recover from
        fsync Failures?*, 2020, section 3). What was durable before may be all that is left of the
        blob, and stays; so does a sealed file's header, which `finish` writes anew in any case.
        """
        try:
            if lost is None or self._unsynced is None:
                self.path.unlink()
                return
            end = os.fstat(self._fd).st_size
            for index in lost | self._unsynced:
                start, stop = self._span(index)
                self._write(bytes(max(0, min(stop, end) - start)), start)
        except (OSError, DiskFault):
            with suppress(OSError):
                self.path.unlink()

    def _span(self, index: int) -> tuple[int, int]:
        """Where a chunk lies in the file."""
        start, stop = index * BLOB_CHUNK_BYTES, (index + 1) * BLOB_CHUNK_BYTES
        return (start, stop) if self._sealer is None else (sealed_size(start), sealed_size(stop))

    def _fault(self, error: OSError) -> DiskFault:
        return DiskFault(f"cannot write {self.path}: {error.strerror}")


class ChunkReader:
    """A blob's file that is read by chunks; it stays readable when it is deleted meanwhile.

    Raises:
        DiskFault: there is none, or it cannot be read.
        CorruptFile: it is not as long as any blob, or does not open.
    """

    def __init__(self, path: Path, sealer: Sealer | None) -> None:
        self._sealer = sealer
        self._path = path
        try:
            self._file = FileReader(path)
        except OSError as error:
            raise DiskFault(f"cannot read {path}: {error.strerror}") from error
        size = self._file.size if sealer is None else plain_size(self._file.size)
        if size is None:
            self._file.close()
            raise CorruptFile(f"{path} is damaged: no blob is as long")
        self.size = size

    def read(self, index: int) -> bytes:
        """The chunk as it lies there; its caller verifies it."""
        offset = index * BLOB_CHUNK_BYTES
        if self._sealer is None:
            return self._file.read(offset, BLOB_CHUNK_BYTES)
        source = str(self._path)
        return open_part(self._sealer, ROOM, self._file, offset, BLOB_CHUNK_BYTES, source=source)

    def close(self) -> None:
        self._file.close()


class _Descriptor:
    """A file under way as what it will be: `base.disk.DiskReader`."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self.size = size

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def close(self) -> None:
        """The descriptor belongs to its writer."""
