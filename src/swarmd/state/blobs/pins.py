"""What pins mean, and how what two holders know of them becomes one. Pure.

Every holder keeps the pins of its blobs and tells them to the others, in any order and more than
once, so joining is commutative, associative and idempotent: of one owner's pins the latest counts,
and of two set at once the one that was taken back.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from swarmd.base.errors import CorruptFile, MalformedMessage, TooLarge
from swarmd.state.blobs.messages import PINS_MAX, Pin, PinnedBlob
from swarmd.wire.codec import decode_struct, encode_struct

_MAGIC: Final = b"SWBP"
_FORMAT: Final = 1
_HEAD: Final = struct.Struct(">4sB")
_CHECKSUM_BYTES: Final = 32


def joined(known: Iterable[Pin], told: Iterable[Pin], now_ms: int) -> tuple[Pin, ...]:
    """All that both know, by owner, without what has ended; at most `PINS_MAX`, latest ends first
    to stay.
    """
    latest: dict[str, Pin] = {}
    for pin in (*known, *told):
        before = latest.get(pin.owner)
        if before is None or _rank(pin) > _rank(before):
            latest[pin.owner] = pin
    current = [pin for pin in latest.values() if pin.until_ms > now_ms]
    current.sort(key=lambda pin: (pin.removed, -pin.until_ms, pin.owner))
    return tuple(sorted(current[:PINS_MAX], key=lambda pin: pin.owner))


def _rank(pin: Pin) -> tuple[int, bool, int, int]:
    return pin.set_ms, pin.removed, pin.until_ms, pin.copies


def copies_of(pins: Iterable[Pin], now_ms: int) -> int:
    """On how many nodes a blob must be; 0: nobody pins it."""
    return max((p.copies for p in pins if not p.removed and p.until_ms > now_ms), default=0)


def pinned(
    pins: Sequence[Pin], owner: str, *, copies: int, until_ms: int, now_ms: int
) -> tuple[Pin, ...]:
    """`pins` with a new one of `owner` in place of its last.

    Raises:
        TooLarge: as many others have pinned the blob as may.
    """
    mine = next((pin for pin in pins if pin.owner == owner), None)
    live = [pin for pin in pins if not pin.removed and pin.until_ms > now_ms]
    if len(live) >= PINS_MAX and mine not in live:
        raise TooLarge(f"{len(live)} owners have pinned this blob, which is as many as may")
    set_ms = max(now_ms, mine.set_ms + 1 if mine is not None else 0)
    return joined(pins, [Pin(owner, copies, until_ms, set_ms)], now_ms)


def unpinned(pins: Sequence[Pin], owner: str, now_ms: int) -> tuple[Pin, ...] | None:
    """`pins` with the one of `owner` taken back; None: it has none."""
    for pin in pins:
        if pin.owner == owner and not pin.removed and pin.until_ms > now_ms:
            gone = Pin(owner, pin.copies, pin.until_ms, max(now_ms, pin.set_ms + 1), removed=True)
            return joined(pins, [gone], now_ms)
    return None


def encode_pins(blob: PinnedBlob) -> bytes:
    """What the file beside a blob of a user holds."""
    body = _HEAD.pack(_MAGIC, _FORMAT) + encode_struct(blob)
    return body + _checksum(body)


def decode_pins(raw: bytes, *, source: str) -> PinnedBlob:
    """The pins in a file. Raises CorruptFile naming `source`."""
    body, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    if len(body) < _HEAD.size or _checksum(body) != checksum:
        raise CorruptFile(f"{source} is damaged: its checksum does not fit")
    if _HEAD.unpack_from(body) != (_MAGIC, _FORMAT):
        raise CorruptFile(f"{source} holds no pins of format {_FORMAT}")
    try:
        blob: PinnedBlob = decode_struct(PinnedBlob, body[_HEAD.size :])
    except (MalformedMessage, msgspec.MsgspecError) as error:
        raise CorruptFile(f"{source} is damaged: {error}") from error
    return blob


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES).digest()
