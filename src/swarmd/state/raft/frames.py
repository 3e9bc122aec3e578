"""Large things as streams of checked frames: written, sent and read a bounded piece at a time.

Layout: `magic, kind, format`; then frames `length, CRC-32, body`; then an end record: a length
of zero, and BLAKE2b-256 over everything before it. So damage is seen at the frame that it is
in, before anything further is believed, and a stream that lacks frames does not end well. The
end's hash is the stream's digest: equal frames, equal digest.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from swarmd.base.disk import Disk
from swarmd.base.errors import CorruptFile
from swarmd.base.limits import ENTRY_BYTES_MAX, KIB

# One value at its largest fits a frame; most frames are far smaller.
FRAME_BODY_BYTES_MAX: Final = 2 * ENTRY_BYTES_MAX
READ_BYTES: Final = 256 * KIB
DIGEST_BYTES: Final = 32
_MAGIC: Final = b"SWRF"
_HEAD: Final = struct.Struct(">4s8sH")
_FRAME: Final = struct.Struct(">II")
_END: Final = _FRAME.pack(0, 0)


class FrameWriter:
    """Makes the bytes of a stream, in order: `head`, any number of `frame`s, `end`."""

    def __init__(self, kind: str, format_number: int) -> None:
        raw_kind = kind.encode("ascii").ljust(8)
        assert len(raw_kind) == 8, kind
        self._head = _HEAD.pack(_MAGIC, raw_kind, format_number)
        self._hash = hashlib.blake2b(digest_size=DIGEST_BYTES)

    def head(self) -> bytes:
        return self._add(self._head)

    def frame(self, body: bytes) -> bytes:
        assert 0 < len(body) <= FRAME_BODY_BYTES_MAX, len(body)
        return self._add(_FRAME.pack(len(body), zlib.crc32(body)) + body)

    def end(self) -> bytes:
        self._add(_END)
        return _END + self.digest

    @property
    def digest(self) -> bytes:
        """Of the whole stream, once it has ended."""
        return self._hash.digest()

    def _add(self, raw: bytes) -> bytes:
        self._hash.update(raw)
        return raw


class FrameReader:
    """Takes a stream in pieces of any size and gives the bodies of its frames.

    Args:
        source: what the stream is, for errors.
    """

    def __init__(self, kind: str, format_number: int, *, source: str) -> None:
        self._kind = kind
        self._format = format_number
        self._source = source
        self._hash = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._rest = b""
        self._position = 0
        self._in_frames = False
        self.digest: bytes | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """Bodies that are whole now.

        Raises:
            CorruptFile: it is no such stream, or is damaged here; no body of this piece counts.
        """
        raw = self._rest + data
        bodies: list[bytes] = []
        at = 0
        if not self._in_frames:
            if len(raw) < _HEAD.size:
                self._rest = raw
                return []
            self._check_head(raw)
            self._in_frames = True
            at = self._passed(raw, 0, _HEAD.size)
        while at + _FRAME.size <= len(raw):
            if self.digest is not None:
                raise CorruptFile(f"{self._source} goes on behind its end")
            length, checksum = _FRAME.unpack_from(raw, at)
            if length == 0:
                if at + _FRAME.size + DIGEST_BYTES > len(raw):
                    break
                at = self._end(raw, at)
                continue
            if length > FRAME_BODY_BYTES_MAX:
                raise self._damaged()
            end = at + _FRAME.size + length
            if end > len(raw):
                break
            body = raw[at + _FRAME.size : end]
            if zlib.crc32(body) != checksum:
                raise self._damaged()
            at = self._passed(raw, at, end)
            bodies.append(body)
        self._rest = raw[at:]
        if self.digest is not None and self._rest:
            raise CorruptFile(f"{self._source} goes on behind its end")
        return bodies

    def finish(self) -> bytes:
        """The digest of the stream. Raises CorruptFile if it has not ended."""
        if self.digest is None:
            raise CorruptFile(f"{self._source} is truncated behind byte {self._position}")
        return self.digest

    def _check_head(self, raw: bytes) -> None:
        magic, kind, found_format = _HEAD.unpack_from(raw)
        if magic != _MAGIC:
            raise CorruptFile(f"{self._source} is not a swarmd file of frames")
        if kind.rstrip() != self._kind.encode("ascii"):
            raise CorruptFile(f"{self._source} is not a {self._kind} file")
        if found_format != self._format:
            raise CorruptFile(
                f"{self._source} has format {found_format}; this version reads {self._format}"
            )

    def _end(self, raw: bytes, at: int) -> int:
        at = self._passed(raw, at, at + _FRAME.size)
        digest = raw[at : at + DIGEST_BYTES]
        if digest != self._hash.digest():
            raise CorruptFile(f"{self._source} is damaged: its checksum does not match")
        self.digest = digest
        return at + DIGEST_BYTES

    def _passed(self, raw: bytes, start: int, end: int) -> int:
        self._hash.update(memoryview(raw)[start:end])
        self._position += end - start
        return end

    def _damaged(self) -> CorruptFile:
        return CorruptFile(f"{self._source} is damaged in the frame at byte {self._position}")


def read_frames(disk: Disk, name: str, kind: str, format_number: int) -> Iterator[bytes]:
    """The bodies of a file's frames, read and checked a piece at a time.

    Raises:
        CorruptFile: where the damage is met; what came before it was sound.
        DiskFault: it cannot be read.
    """
    reader = FrameReader(kind, format_number, source=name)
    for bodies in _pieces(disk, name, reader):
        yield from bodies


def stream_digest(disk: Disk, name: str, kind: str, format_number: int) -> bytes:
    """The digest of a file of frames, each of which is checked. Raises CorruptFile, DiskFault."""
    reader = FrameReader(kind, format_number, source=name)
    for _ in _pieces(disk, name, reader):
        pass
    return reader.finish()


def _pieces(disk: Disk, name: str, reader: FrameReader) -> Iterator[list[bytes]]:
    found = disk.reader(name)
    if found is None:
        raise CorruptFile(f"{name} has vanished")
    try:
        for offset in range(0, found.size, READ_BYTES):
            yield reader.feed(found.read(offset, READ_BYTES))
        reader.finish()
    finally:
        found.close()


def pack(kind: str, format_number: int, bodies: Iterable[bytes]) -> bytes:
    """A whole stream at once, for what is small."""
    writer = FrameWriter(kind, format_number)
    return b"".join((writer.head(), *map(writer.frame, bodies), writer.end()))


def unpack(kind: str, format_number: int, raw: bytes, *, source: str) -> list[bytes]:
    """The bodies in a whole stream. Raises CorruptFile."""
    reader = FrameReader(kind, format_number, source=source)
    bodies = reader.feed(raw)
    reader.finish()
    return bodies
