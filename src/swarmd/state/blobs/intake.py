"""What reads and writes blobs piece by piece: parts of loops that their callers run in threads."""

from __future__ import annotations

from swarmd.base.errors import CorruptFile, DiskFault
from swarmd.base.limits import BLOB_CHUNK_BYTES
from swarmd.state.blobs.chunkfile import ChunkReader, ChunkWriter
from swarmd.state.blobs.manifest import Manifest
from swarmd.state.blobs.naming import Hasher, chunks_in, name_of


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
