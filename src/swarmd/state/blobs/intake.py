"""What reads and writes blobs piece by piece: parts of loops that their callers run in threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from swarmd.base.errors import CorruptFile, DiskFault, RemoteError
from swarmd.base.limits import BLOB_CHUNK_BYTES, BLOB_PIECE_BYTES
from swarmd.state.blobs.chunkfile import ChunkReader, ChunkWriter
from swarmd.state.blobs.manifest import Manifest
from swarmd.state.blobs.naming import Hasher, chunk_hasher, chunk_size, chunks_in, name_of


class Intake:
    """What comes in, hashed and written in whole chunks."""

    def __init__(self, writer: ChunkWriter) -> None:
        self.size = 0
        self._writer = writer
        self._hasher = Hasher()

    def add_file(self, data: bytes) -> None:
        """Some whole chunks, or the last one. Raises DiskFault."""
        self._hasher.update(data)
        for start in range(0, len(data), BLOB_CHUNK_BYTES):
            chunk = data[start : start + BLOB_CHUNK_BYTES]
            self._writer.write((self.size + start) // BLOB_CHUNK_BYTES, chunk)
        self.size += len(data)

    def manifest(self) -> Manifest:
        hashes = self._hasher.hashes()
        return Manifest(name_of(hashes), self.size, hashes)


class Arriving:
    """A chunk that comes in pieces, in order: written as they come, hashed, and judged at its end.

    Args:
        index: of the chunk, in `manifest`.
        begun: how many of its pieces `writer` has from an earlier try.
    """

    def __init__(self, writer: ChunkWriter, manifest: Manifest, index: int, begun: int) -> None:
        self.index = index
        self.begun = begun
        self._writer = writer
        self._manifest = manifest
        self._size = chunk_size(manifest.size, index)
        self._hasher = chunk_hasher(index, manifest.count)
        self._came = begun * BLOB_PIECE_BYTES
        self._written = self._came
        self._hashed = 0
        self._waiting: list[bytes] = []

    @property
    def missing(self) -> int:
        """How many pieces are to come."""
        return -(-(self._size - self._came) // BLOB_PIECE_BYTES)

    @property
    def fits(self) -> bool:
        """Is it, once all has come, what it should be?"""
        return self._hasher.digest() == self._manifest.hash_at(self.index)

    def add(self, pieces: Sequence[bytes]) -> None:
        """The next pieces have come. Raises RemoteError: they are not as long as they should be."""
        for data in pieces:
            if not data or len(data) != min(BLOB_PIECE_BYTES, self._size - self._came):
                raise RemoteError("a piece of a blob is not as long as it should be")
            self._came += len(data)
        self._waiting += pieces

    def keep_file(self, written: Callable[[int], None]) -> None:
        """Write what has come, and tell how many pieces that were; then hash it. Raises DiskFault.

        Each piece is told of before it is hashed, so that the next is on its way meanwhile.
        """
        if not self._writer.takes_parts and self.missing:
            return
        pieces, self._waiting = self._waiting, []
        if not self._hashed and self._written:
            self._hash(self._writer.read(self.index, self._written))
        if not self._writer.takes_parts:
            self._writer.write(self.index, b"".join(pieces))
            written(len(pieces))
        for data in pieces:
            if self._writer.takes_parts:
                self._writer.write_part(self.index, self._written, data)
                self._written += len(data)
                written(1)
            self._hash(data)

    def _hash(self, data: bytes) -> None:
        self._hasher.update(data)
        self._hashed += len(data)


class Check:
    """A blob on the disk that is looked through."""

    def __init__(self, blob_hash: bytes, size: int, known: Manifest | None) -> None:
        self._hash = blob_hash
        self._size = size
        self._known = known
        self._next = 0
        self._hasher = Hasher()

    @property
    def is_done(self) -> bool:
        return self._next == chunks_in(self._size)

    def go_on_file(self, reader: ChunkReader, count: int) -> int:
        """Read the next chunks: how many bytes. Raises CorruptFile, DiskFault."""
        total = 0
        for index in range(self._next, min(self._next + count, chunks_in(self._size))):
            data = reader.read(index)
            total += len(data)
            self._next += 1
            if self._known is None:
                self._hasher.update(data)
            elif not self._known.fits(index, data):
                raise CorruptFile(f"chunk {index} does not fit its hash")
        return total

    def result(self) -> Manifest:
        """Raises CorruptFile."""
        if self._known is not None:
            return self._known
        manifest = Manifest(self._hash, self._size, self._hasher.hashes())
        if not manifest.is_true:
            raise CorruptFile("the whole does not fit its hash")
        return manifest


def read_good_file(reader: ChunkReader, manifest: Manifest, index: int, count: int) -> list[bytes]:
    """The next chunks that are good; fewer than there are: one is not."""
    found: list[bytes] = []
    for one in range(index, min(index + count, manifest.count)):
        try:
            data = reader.read(one)
        except (CorruptFile, DiskFault):
            break
        if not manifest.fits(one, data):
            break
        found.append(data)
    return found
