"""Hostile bytes: sound samples that were bent, spliced or rebuilt with wrong values, and noise.

Two kinds of bending. Bytes are changed, cut out, doubled or put in wherever chance has it. And,
for what is msgpack inside, the value itself is changed in a few places and encoded again, so that
the input is well formed and only its meaning is wrong: that is how one gets past the first check.
All of it follows from one seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgpack

INPUT_BYTES_MAX: Final = 64 * 1024
_EDITS_MAX: Final = 4
_NOISE_BYTES_MAX: Final = 200
_NUMBERS: Final = (0, 1, -1, 2, 7, 127, 128, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1,
                   2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**31), -(2**63))  # fmt: skip
_VALUES: Final = (*_NUMBERS, None, True, False, 0.0, -0.0, 1e308, float("inf"), float("nan"), "",
                  "a", "\0", "\N{SNOWMAN}", "../../etc/passwd", "a" * 300, b"", b"\0", b"\xff" * 32,
                  b"x" * 16, b"x" * 65, b"x" * 2_000, [], {}, [[]], {"": {}}, {b"": 0},
                  {"__proto__": 1})  # fmt: skip
# What lies about its length, or has no end.
_BOMBS: Final = (
    b"\x91" * 5_000,
    b"\x81\xa1a" * 3_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\x7f\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\x01" + b"\x92" * 2_000,
    b"[" * 20_000,
    b'{"a":' * 5_000,
    b"\xff" * 4_096,
    bytes(4_096),
    b"9" * 5_000,
    b"1e999999999",
    b"\xed\xa0\x80",
    b"a" * INPUT_BYTES_MAX,
)


class Inputs:
    """An endless stream of inputs.

    Args:
        samples: sound inputs, at least one.
        dress: makes an input of a msgpack value, as a peer that means ill would; None: values
            are no use here.
        values: what sound inputs of `dress` are made of.
    """

    def __init__(
        self,
        rng: random.Random,
        samples: Sequence[bytes],
        *,
        dress: Callable[[Any], bytes] | None = None,
        values: Sequence[Any] = (),
    ) -> None:
        self._rng = rng
        self._samples = samples
        self._dress = dress
        self._values = values

    def next(self) -> bytes:
        draw = self._rng.random()
        if self._dress is not None and self._values and draw < 0.5:
            return self._rebuilt(self._dress)
        if draw < 0.85:
            return self._bent()
        if draw < 0.93:
            return self._spliced()
        if draw < 0.999:
            return self._rng.randbytes(self._rng.randrange(_NOISE_BYTES_MAX))
        bomb = self._rng.choice(_BOMBS)
        return self._rng.choice(self._samples)[: self._rng.randrange(40)] + bomb

    def _rebuilt(self, dress: Callable[[Any], bytes]) -> bytes:
        value = self._rng.choice(self._values)
        for _ in range(self._rng.randint(1, _EDITS_MAX)):
            value = self._changed(value)
        try:
            return dress(value)
        except (OverflowError, ValueError, TypeError):
            return self._bent()  # No encoding has it.

    def _changed(self, value: Any, depth: int = 0) -> Any:
        """The value with one place of it changed; the original stays as it is."""
        rng = self._rng
        is_list, is_map = isinstance(value, list | tuple), isinstance(value, dict)
        if not (is_list or is_map) or not value or depth > 8 or rng.random() < 0.15:
            return self._another(value)
        if is_map:
            key = rng.choice(list(value))
            return {**value, key: self._changed(value[key], depth + 1)}
        items = list(value)
        at = rng.randrange(len(items))
        edit = rng.random()
        if edit < 0.08:
            del items[at]
        elif edit < 0.16:
            items.insert(at, rng.choice(_VALUES))
        elif edit < 0.2:
            items += items[: rng.randint(1, 60)]
        else:
            items[at] = self._changed(items[at], depth + 1)
        return items

    def _another(self, value: Any) -> Any:
        rng = self._rng
        if isinstance(value, bytes) and value and rng.random() < 0.5:
            return self._bend(value)
        if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.5:
            return value + rng.choice((-1, 1, 2, 255))
        if rng.random() < 0.05:
            for _ in range(rng.randint(1, 300)):
                value = [value]
            return value
        return rng.choice(_VALUES)

    def _bent(self) -> bytes:
        return self._bend(self._rng.choice(self._samples))

    def _bend(self, sound: bytes) -> bytes:
        rng, raw = self._rng, bytearray(sound)
        for _ in range(rng.randint(1, _EDITS_MAX)):
            at = rng.randrange(len(raw) + 1)
            edit = rng.randrange(7)
            if edit == 0 and at < len(raw):
                raw[at] ^= 1 << rng.randrange(8)
            elif edit == 1 and at < len(raw):
                raw[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            elif edit == 2:
                del raw[at : at + rng.randint(1, 40)]
            elif edit == 3:
                raw[at:at] = rng.randbytes(rng.randint(1, 8))
            elif edit == 4:
                raw[at:at] = raw[at : at + rng.randint(1, 60)]
            elif edit == 5:
                number = rng.choice(_NUMBERS) & 0xFFFF_FFFF
                raw[at : at + 4] = number.to_bytes(4, rng.choice(("big", "little")))
            elif rng.random() < 0.3:
                del raw[at:]
        return bytes(raw[:INPUT_BYTES_MAX])

    def _spliced(self) -> bytes:
        first, second = self._rng.choice(self._samples), self._rng.choice(self._samples)
        cut = self._rng.randrange(len(first) + 1)
        return (first[:cut] + second[self._rng.randrange(len(second) + 1) :])[:INPUT_BYTES_MAX]


def packed(value: Any) -> bytes:
    """`value` as msgpack. Raises ValueError, TypeError, OverflowError: msgpack cannot hold it."""
    made: bytes = msgpack.packb(value, use_bin_type=True)
    return made


def unpacked(raw: bytes) -> Any:
    """The value in sound msgpack."""
    return msgpack.unpackb(raw, raw=False, strict_map_key=False)
