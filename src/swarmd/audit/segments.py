"""Segments as they lie on the disk: what their names say, and the frames in them. Pure.

A segment is named by its chain and its first record, and holds batches of one life, in order:

    magic, kind, format    4 + 8 + 2 bytes
    then for each batch:   magic 4, first 8, last 8, length 4, CRC-32 4, and the batch

A frame that does not fit its checksum is damage. It is shown to whoever reads, as it is, and never
hidden: the seals tell what it was.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from swarmd.audit.chain import Sealed
from swarmd.audit.records import (
    ACCESS,
    BATCH_BYTES_MAX,
    LIFE_BYTES,
    NUMBER_MAX,
    SECURITY,
    WORK,
    ChainId,
    Stream,
)
from swarmd.audit.sealed import open_batch, seal_batch
from swarmd.base.errors import BadRequest
from swarmd.base.ids import ID_BYTES, from_text, to_text
from swarmd.base.sealed_file import BOX_BYTES_EXTRA, Sealer

_HEAD: Final = struct.Struct(">4s8sH")
FILE_HEAD: Final = _HEAD.pack(b"SWRM", b"audit   ", 1)
_FRAME: Final = struct.Struct(">4sQQII")
_FRAME_MAGIC: Final = b"SWAF"
_FRAME_BODY_BYTES_MAX: Final = BATCH_BYTES_MAX + BOX_BYTES_EXTRA
_SUFFIX: Final = ".log"
# Of lives whose names are remembered: a folder's are asked for several times as it is opened.
_NAMES_MAX: Final = 1_024
_LETTERS: Final[dict[str, Stream]] = {"s": SECURITY, "a": ACCESS, "w": WORK}


class Frame(NamedTuple):
    """A batch as it lies on the disk; `first` and `last` are 0 if its frame is damaged."""

    first: int
    last: int
    raw: bytes
    end: int
    """Where it ends in its file."""


# ---- names ---------------------------------------------------------------------------------


def name_of(chain: ChainId, first: int) -> str:
    """The name of the segment of `chain` that begins with the record `first`."""
    return f"{chain_name(chain)}.{first:019d}{_SUFFIX}"


@lru_cache(maxsize=_NAMES_MAX)
def chain_name(chain: ChainId) -> str:
    return f"{to_text(chain.node)}.{chain.stream[0]}.{to_text(chain.life)}"


def parse_name(name: str) -> tuple[ChainId, int] | None:
    """What `name_of` was given; None for any other name."""
    parts = name.removesuffix(_SUFFIX).split(".")
    if not name.endswith(_SUFFIX) or len(parts) != 4 or parts[1] not in _LETTERS:
        return None
    try:
        node, life = from_text(parts[0]), from_text(parts[2])
    except BadRequest:
        return None
    if not (parts[3].isascii() and parts[3].isdigit() and len(parts[3]) == 19):
        return None
    first = int(parts[3])
    if len(node) != ID_BYTES or len(life) != LIFE_BYTES or not 1 <= first <= NUMBER_MAX:
        return None
    chain = ChainId(node, _LETTERS[parts[1]], life)
    return (chain, first) if name_of(chain, first) == name else None


# ---- frames --------------------------------------------------------------------------------


def frame_of(sealed: Sealed, name: str = "", sealer: Sealer | None = None) -> bytes:
    """A batch as it is written into the segment `name`."""
    first, last, raw = sealed.seal.first, sealed.seal.last, sealed.raw
    if sealer is not None:
        raw = seal_batch(sealer, name, first, last, raw)
    return frame_with(first, last, raw)


def frame_with(first: int, last: int, raw: bytes) -> bytes:
    head = _FRAME.pack(_FRAME_MAGIC, first, last, len(raw), 0)
    return head[:-4] + _checksum(head, raw).to_bytes(4, "big") + raw


def opened(sealer: Sealer, name: str, frame: Frame) -> Frame:
    """A frame of a sealed segment with what it carried; as damaged, if that does not open."""
    raw = open_batch(sealer, name, frame.first, frame.last, frame.raw)
    if raw is not None and frame.last:
        return frame._replace(raw=raw)
    if raw is not None:  # It was damaged already when it was sealed.
        return frame._replace(raw=_damaged(raw, 0, len(raw)).raw)
    return Frame(0, 0, frame.raw, frame.end)


def frames_in(raw: bytes, offset: int = 0) -> Iterator[Frame]:
    """The batches of a segment; between sound ones, what does not prove itself, as it is."""
    position = offset
    if not offset and raw[: _HEAD.size] == FILE_HEAD:
        position = _HEAD.size
    sound_at = position
    while position < len(raw):
        frame = _frame_at(raw, position) if position >= sound_at else None
        if frame is None:
            if position >= sound_at:
                sound_at = _next_sound(raw, position + 1)
            frame = _damaged(raw, position, sound_at)
        yield frame
        position = frame.end


def _frame_at(raw: bytes, position: int) -> Frame | None:
    if len(raw) - position < _FRAME.size:
        return None
    head = raw[position : position + _FRAME.size]
    magic, first, last, length, checksum = _FRAME.unpack(head)
    start = position + _FRAME.size
    if magic != _FRAME_MAGIC or length > _FRAME_BODY_BYTES_MAX or start + length > len(raw):
        return None
    if not 1 <= first <= last <= NUMBER_MAX:
        return None
    body = raw[start : start + length]
    return Frame(first, last, body, start + length) if _checksum(head, body) == checksum else None


def _next_sound(raw: bytes, position: int) -> int:
    while (position := raw.find(_FRAME_MAGIC, position)) >= 0:
        if _frame_at(raw, position) is not None:
            return position
        position += 1
    return len(raw)


def _damaged(raw: bytes, position: int, end: int) -> Frame:
    """What stands where a frame should: as a batch, if the length in its head may be right."""
    start = position + _FRAME.size
    if raw[position : position + 4] == _FRAME_MAGIC and start <= end:
        length = _FRAME.unpack_from(raw, position)[3]
        if start + length <= end:
            end = start + length
        return Frame(0, 0, raw[start:end], end)
    return Frame(0, 0, raw[position:end], end)


def _checksum(head: bytes, raw: bytes) -> int:
    return zlib.crc32(raw, zlib.crc32(head[:-4]))
