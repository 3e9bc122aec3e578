"""Pieces of a blob over a pipe: what the worker threads at its two ends do.

The taker sends numbers of pieces, and gets their bytes in that order. It asks for another one as
soon as one is written, so that no more of them are ever on their way than make up a chunk: after a
kill that much comes twice.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from swarmd.base.errors import CorruptFile, MalformedMessage, Unreachable
from swarmd.base.limits import BLOB_CHUNK_BYTES, BLOB_PIECE_BYTES
from swarmd.mesh.link import Pipe
from swarmd.state.blobs.chunkfile import ChunkReader, ChunkWriter
from swarmd.state.blobs.machine import Run
from swarmd.state.blobs.manifest import Manifest
from swarmd.state.blobs.messages import CHUNK_PIECES
from swarmd.state.blobs.naming import chunk_hasher, chunk_size

_NUMBER: Final = struct.Struct(">I")


def pieces_in(size: int) -> int:
    """How many pieces a blob of `size` bytes has."""
    return -(-size // BLOB_PIECE_BYTES)


class Pieces:
    """A blob's pieces as they lie on the disk: who takes them verifies them."""

    def __init__(self, reader: ChunkReader) -> None:
        self.count = pieces_in(reader.size)
        self._reader = reader
        self._index = -1
        self._chunk = memoryview(b"")

    def read_file(self, number: int) -> memoryview:
        """Raises CorruptFile, DiskFault."""
        index, piece = divmod(number, CHUNK_PIECES)
        if index != self._index:
            chunk = self._reader.read(index)
            if len(chunk) != chunk_size(self._reader.size, index):
                raise CorruptFile(f"chunk {index} is cut short")
            self._index, self._chunk = index, memoryview(chunk)
        start = piece * BLOB_PIECE_BYTES
        return self._chunk[start : start + BLOB_PIECE_BYTES]

    def close(self) -> None:
        self._reader.close()


def send_file(pipe: Pipe, pieces: Pieces, sends: Callable[[int], None]) -> None:
    """Send what the taker asks for until it closes the pipe; tell how many bytes, before each.

    Raises:
        MalformedMessage: it asks for what is not there.
        CorruptFile, DiskFault: the blob cannot be read.
        TimedOut: it asks for nothing, or takes nothing, for too long.
    """
    raw = memoryview(bytearray(_NUMBER.size))
    with suppress(Unreachable):
        while True:
            pipe.read_into(raw)
            [number] = _NUMBER.unpack(raw)
            if number >= pieces.count:
                raise MalformedMessage(f"the blob has no piece {number}")
            data = pieces.read_file(number)
            sends(len(data))
            pipe.write(data)


class Taking:
    """The taker's end of a pipe, for one run of chunks after the other."""

    def __init__(self, pipe: Pipe, writer: ChunkWriter, manifest: Manifest) -> None:
        self._pipe, self._writer, self._manifest = pipe, writer, manifest
        self._count = pieces_in(manifest.size)
        # The numbers of the pieces that are on their way.
        self._asked: deque[int] = deque()
        self._buffer = memoryview(bytearray(BLOB_CHUNK_BYTES))

    def take_file(self, run: Run) -> bool:
        """Have the chunk that is under way in a run: True if it is now here as it should be.

        Each piece is written, and the next asked for, before it is hashed.

        Raises:
            DiskFault: it cannot be written.
            Unreachable, TimedOut: the pipe broke, or nothing moved.
        """
        index, start = run.index, run.begun * BLOB_PIECE_BYTES
        size = chunk_size(self._manifest.size, index)
        hasher = chunk_hasher(index, self._manifest.count)
        if start:
            hasher.update(self._writer.read(index, start))
        while start < size:
            number = index * CHUNK_PIECES + start // BLOB_PIECE_BYTES
            view = self._buffer[start : min(start + BLOB_PIECE_BYTES, size)]
            self._receive(number, run, view)
            if self._writer.takes_parts:
                self._writer.write_part(index, start, view)
                self._ask(number + 1, run)
            hasher.update(view)
            start += len(view)
        if not self._writer.takes_parts:
            self._writer.write(index, bytes(self._buffer[:size]))
        return hasher.digest() == self._manifest.hash_at(index)

    def _receive(self, number: int, run: Run, view: memoryview) -> None:
        """Have the bytes of a piece."""
        while self._asked and self._asked[0] != number:
            self._skip()  # It was of a run that another holder has taken the rest of.
        if not self._asked:
            self._ask(number, run)
        self._pipe.read_into(view)
        self._asked.popleft()

    def _ask(self, number: int, run: Run) -> None:
        """Have as many more sent as may be on their way, of the run's pieces from `number` on."""
        first = self._asked[-1] + 1 if self._asked else number
        end = min(run.end * CHUNK_PIECES, self._count, first + CHUNK_PIECES - len(self._asked))
        if first < end:
            self._pipe.write(b"".join(map(_NUMBER.pack, range(first, end))))
            self._asked.extend(range(first, end))

    def _skip(self) -> None:
        start = self._asked.popleft() * BLOB_PIECE_BYTES
        size = min(BLOB_PIECE_BYTES, self._manifest.size - start)
        self._pipe.read_into(memoryview(bytearray(size)))
