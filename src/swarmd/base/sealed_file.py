"""Sealed files: without a key that is kept elsewhere they show their size and nothing else.

Layout: a header, then frames.

    header   magic 4, format 2, key id 16, salt 16; a box of `whole` (8)
    frame    magic 4; a box of `position, synced, length` (8 + 8 + 4); a box of the bytes

Boxes are made by a `Sealer`; this module knows no cipher. Each is bound to the room that the file
is in and to the file's salt, and a frame's bytes to their position, too. So no frame can be
changed, moved, repeated, or brought from another file, and none can be dropped but at the end.

What a crash may do decides the rest, as it does for the journal (`state/raft/journal.py`):
- Frames written since the last sync may be lost, torn, or garbage of full length, in any order.
  Nobody was told about them, so they are dropped.
- Each frame says under its seal how far the file was synced before the frame was written
  (`synced`), and the header how much of it appeared at once by a rename (`whole`). What lies below
  the highest of these was durable once: if it does not open there, the disk has lost it. That is
  `CorruptFile`, by name and byte.
- The last group of frames has nothing behind it that vouches for it, so damage to it alone is taken
  for a torn tail. A journal has no more than that without sealing.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from swarmd.base.disk import BytesReader, DiskReader
from swarmd.base.errors import BadSignature, CorruptFile
from swarmd.base.limits import KIB

SEALED_MAGIC: Final = b"SWRS"
# What a box has besides the data, and how a sealer's key is named.
BOX_BYTES_EXTRA: Final = 40
SEALER_ID_BYTES: Final = 16
FRAME_BODY_BYTES_MAX: Final = 256 * KIB
_FORMAT: Final = 1
_SALT_BYTES: Final = 16
_HEAD: Final = struct.Struct(f">4sH{SEALER_ID_BYTES}s{_SALT_BYTES}s")
_WHOLE: Final = struct.Struct(">Q")
HEADER_BYTES: Final = _HEAD.size + _WHOLE.size + BOX_BYTES_EXTRA
_FRAME_MAGIC: Final = b"SWSF"
_PLACE: Final = struct.Struct(">QQI")
_FRAME_HEAD_BYTES: Final = len(_FRAME_MAGIC) + _PLACE.size + BOX_BYTES_EXTRA
# What a frame has besides its bytes.
FRAME_BYTES_EXTRA: Final = _FRAME_HEAD_BYTES + BOX_BYTES_EXTRA
_SCAN_BYTES: Final = 256 * KIB


class Sealer(Protocol):
    """Seals data under one key; implemented in `identity/sealing.py`."""

    @property
    def id(self) -> bytes:
        """Names the key, and tells nothing of it."""
        ...

    def seal(self, data: bytes, about: bytes) -> bytes:
        """A box with `data`, bound to `about`; `BOX_BYTES_EXTRA` longer."""
        ...

    def open(self, box: bytes, about: bytes) -> bytes:
        """What was sealed. Raises BadSignature: by another key, about something else, changed."""
        ...


class Frame(NamedTuple):
    """Where a frame lies in its file, and where its bytes in what the file holds."""

    position: int
    length: int
    start: int

    @property
    def end(self) -> int:
        return self.position + FRAME_BYTES_EXTRA + self.length


class _Place(NamedTuple):
    """What a frame says of itself, under its seal."""

    position: int
    synced: int
    length: int


class Sealing:
    """What seals and opens the parts of one file.

    Args:
        room: what the file is part of; opened as part of another it is damaged.
        salt: the file's own; None begins a file.
    """

    def __init__(self, sealer: Sealer, room: str, salt: bytes | None = None) -> None:
        self._sealer = sealer
        self.salt = os.urandom(_SALT_BYTES) if salt is None else salt
        self._head = _HEAD.pack(SEALED_MAGIC, _FORMAT, sealer.id, self.salt)
        self._about = b"sealed file %b\0" % room.encode() + self.salt

    def header(self, whole: int) -> bytes:
        """The file's beginning. `whole`: its first bytes that appear at once, by a rename."""
        return self._head + self._sealer.seal(_WHOLE.pack(whole), self._about + b"header")

    def frames(self, data: bytes, position: int, synced: int) -> bytes:
        """`data` as frames from `position` on, where all below `synced` is durable already."""
        parts = []
        for start in range(0, len(data), FRAME_BODY_BYTES_MAX):
            body = data[start : start + FRAME_BODY_BYTES_MAX]
            place = _Place(position, synced, len(body))
            parts += [
                _FRAME_MAGIC,
                self._sealer.seal(_PLACE.pack(*place), self._about + b"place"),
                self._sealer.seal(body, self._about_body(place)),
            ]
            position += FRAME_BYTES_EXTRA + len(body)
        return b"".join(parts)

    def whole(self, data: bytes) -> bytes:
        """A file with `data` that appears at once."""
        size = sealed_size(len(data))
        return self.header(size) + self.frames(data, HEADER_BYTES, size)

    def place(self, raw: bytes) -> _Place | None:
        """What the frame says of itself that `raw` begins with; None if none does."""
        if raw[: len(_FRAME_MAGIC)] != _FRAME_MAGIC or len(raw) < _FRAME_HEAD_BYTES:
            return None
        box = raw[len(_FRAME_MAGIC) : _FRAME_HEAD_BYTES]
        try:
            return _Place(*_PLACE.unpack(self._sealer.open(box, self._about + b"place")))
        except BadSignature:
            return None

    def body(self, frame: Frame, box: bytes) -> bytes | None:
        """The bytes of a frame; None if they are damaged."""
        try:
            return self._sealer.open(box, self._about_body(_Place(frame.position, 0, frame.length)))
        except BadSignature:
            return None

    def read_whole(self, raw: bytes) -> int | None:
        """What the header was made with; None if it is damaged."""
        if len(raw) < HEADER_BYTES or raw[: _HEAD.size] != self._head:
            return None
        try:
            opened = self._sealer.open(raw[_HEAD.size : HEADER_BYTES], self._about + b"header")
        except BadSignature:
            return None
        return int(_WHOLE.unpack(opened)[0])

    def _about_body(self, place: _Place) -> bytes:
        return self._about + b"body" + place.position.to_bytes(8, "big")


def sealed_size(size: int) -> int:
    """How long a file is that holds `size` bytes that came at once."""
    count = -(-size // FRAME_BODY_BYTES_MAX)
    return HEADER_BYTES + count * FRAME_BYTES_EXTRA + size


def plain_size(size: int) -> int | None:
    """How much a file of `size` bytes holds that came at once; None: no such file is that long."""
    rest = size - HEADER_BYTES
    count = -(-rest // (FRAME_BODY_BYTES_MAX + FRAME_BYTES_EXTRA))
    held = rest - count * FRAME_BYTES_EXTRA
    return held if rest >= 0 and held >= 0 and sealed_size(held) == size else None


def seal_file(sealer: Sealer, room: str, data: bytes) -> bytes:
    """The content of a file that holds `data`, to be written at once."""
    return Sealing(sealer, room).whole(data)


def seal_pieces(sealer: Sealer, room: str, reader: DiskReader) -> Iterator[bytes]:
    """The same of what `reader` reads, in pieces."""
    sealing, size = Sealing(sealer, room), sealed_size(reader.size)
    yield sealing.header(size)
    position = HEADER_BYTES
    for offset in range(0, reader.size, FRAME_BODY_BYTES_MAX):
        raw = sealing.frames(reader.read(offset, FRAME_BODY_BYTES_MAX), position, size)
        position += len(raw)
        yield raw


def open_part(
    sealer: Sealer, room: str, file: DiskReader, offset: int, size: int, *, source: str
) -> bytes:
    """Up to `size` bytes from `offset` on of a file that came at once; no more of it is opened.

    Raises:
        CorruptFile: what is asked for is damaged, or it is no such file.
        DiskFault: it cannot be read.
    """
    sealing, _ = read_header(sealer, room, file.read(0, HEADER_BYTES), source=source)
    held = plain_size(file.size) or 0
    stop = min(offset + size, held)
    parts = []
    while offset < stop:
        number, begin = divmod(offset, FRAME_BODY_BYTES_MAX)
        position = sealed_size(number * FRAME_BODY_BYTES_MAX)
        start = number * FRAME_BODY_BYTES_MAX
        frame = Frame(position, min(FRAME_BODY_BYTES_MAX, held - start), start)
        box = file.read(position + _FRAME_HEAD_BYTES, frame.length + BOX_BYTES_EXTRA)
        body = sealing.body(frame, box)
        if body is None:
            raise CorruptFile(f"{source} is damaged at byte {position}")
        parts.append(body[begin : begin + stop - offset])
        offset += len(parts[-1])
    return b"".join(parts)


def open_file(sealer: Sealer, room: str, raw: bytes, *, source: str) -> bytes:
    """What a file holds, without a torn tail. Raises CorruptFile; names `source`."""
    reader = SealedReader(sealer, room, BytesReader(raw), source=source)
    return reader.read(0, reader.size)


def sealer_id_in(head: bytes) -> bytes | None:
    """The id of the key that a file is sealed under; None: it does not begin as a sealed file."""
    if not head.startswith(SEALED_MAGIC) or len(head) < _HEAD.size:
        return None
    return bytes(_HEAD.unpack_from(head)[2])


def read_header(sealer: Sealer, room: str, raw: bytes, *, source: str) -> tuple[Sealing, int]:
    """What opens the parts of the file that `raw` begins, and how much of it came at once.

    Raises:
        CorruptFile: it is no sealed file, of another format, under another key, or damaged.
    """
    if not raw.startswith(SEALED_MAGIC):
        raise CorruptFile(f"{source} is not sealed, in a data folder that is: it was put there")
    if len(raw) < HEADER_BYTES:
        raise CorruptFile(f"{source} is damaged at byte 0: its header is cut short")
    _, found_format, key_id, salt = _HEAD.unpack_from(raw)
    if found_format != _FORMAT:
        raise CorruptFile(f"{source} is sealed in format {found_format}; this reads {_FORMAT}")
    if key_id != sealer.id:
        raise CorruptFile(f"{source} is sealed under another key, {key_id.hex()[:8]}")
    sealing = Sealing(sealer, room, salt)
    whole = sealing.read_whole(raw)
    if whole is None:
        raise CorruptFile(f"{source} is damaged at byte 0: its header does not open")
    return sealing, whole


class SealedReader:
    """What a sealed file holds, read in pieces; a frame is opened when something of it is read.

    Args:
        file: is closed with this one. A torn tail of it does not show.

    Raises:
        CorruptFile: what was durable once is damaged; when it is made, or when it is read.
        DiskFault: the file cannot be read.
    """

    def __init__(self, sealer: Sealer, room: str, file: DiskReader, *, source: str) -> None:
        self._file = file
        self._source = source
        self._frames: list[Frame] = []
        self._starts: list[int] = []
        self._opened: tuple[int, bytes] = (-1, b"")
        self.size = 0
        head = file.read(0, HEADER_BYTES)
        # Less than a header: a crash while the file was begun. Nothing of it was ever durable.
        if len(head) == HEADER_BYTES or not SEALED_MAGIC.startswith(head[: len(SEALED_MAGIC)]):
            self._sealing, synced = read_header(sealer, room, head, source=source)
            self._find(synced)

    @property
    def end(self) -> int:
        """Where the last frame ends in the file."""
        return self._frames[-1].end if self._frames else HEADER_BYTES

    def read(self, offset: int, size: int) -> bytes:
        stop = min(offset + size, self.size)
        parts = []
        index = bisect_right(self._starts, offset) - 1
        while offset < stop:
            body = self._body(index)
            begin = offset - self._starts[index]
            parts.append(body[begin : begin + stop - offset])
            offset += len(parts[-1])
            index += 1
        return b"".join(parts)

    def close(self) -> None:
        self._file.close()
        self._opened = (-1, b"")

    def _body(self, index: int) -> bytes:
        if self._opened[0] != index:
            frame = self._frames[index]
            body = self._open(frame)
            if body is None:
                raise self._damaged(frame.position)
            self._opened = index, body
        return self._opened[1]

    def _open(self, frame: Frame) -> bytes | None:
        size = frame.length + BOX_BYTES_EXTRA
        return self._sealing.body(frame, self._file.read(frame.position + _FRAME_HEAD_BYTES, size))

    def _find(self, synced: int) -> None:
        """Where the frames are that count; `synced` is what the header vouches for."""
        position, start = HEADER_BYTES, 0
        while position < self._file.size:
            place = self._sealing.place(self._file.read(position, _FRAME_HEAD_BYTES))
            if place is None or place.position != position:
                break
            synced = max(synced, place.synced)
            frame = Frame(position, place.length, start)
            if frame.end > self._file.size:
                break
            self._frames.append(frame)
            position, start = frame.end, start + frame.length
        if position < self._file.size:
            for place in self._places_from(position):
                synced = max(synced, place.synced)
        if position < synced:
            raise self._damaged(position)
        self._drop_torn(synced)
        self._starts = [frame.start for frame in self._frames]
        self.size = self._frames[-1].start + self._frames[-1].length if self._frames else 0

    def _drop_torn(self, synced: int) -> None:
        """Of what nobody vouches for, keep what opens up to the first that does not."""
        first = bisect_right(self._frames, synced - 1, key=lambda frame: frame.position)
        for index in range(first, len(self._frames)):
            if self._open(self._frames[index]) is None:
                del self._frames[index:]
                return

    def _places_from(self, position: int) -> Iterator[_Place]:
        """What frames say that are found from `position` on.

        Raises CorruptFile: one of this file is somewhere else than it was written.
        """
        while position < self._file.size:
            raw = self._file.read(position, _SCAN_BYTES + _FRAME_HEAD_BYTES)
            at = raw.find(_FRAME_MAGIC)
            while 0 <= at < _SCAN_BYTES:
                place = self._sealing.place(raw[at : at + _FRAME_HEAD_BYTES])
                if place is not None and place.position != position + at:
                    raise self._damaged(position + at)
                if place is not None:
                    yield place
                at = raw.find(_FRAME_MAGIC, at + 1)
            position += _SCAN_BYTES

    def _damaged(self, position: int) -> CorruptFile:
        return CorruptFile(
            f"{self._source} is damaged at byte {position} of what was durable, or was changed;"
            " restore it, or replace this node"
        )
