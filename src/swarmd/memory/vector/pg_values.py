"""How the tables of an index in PostgreSQL hold scalars and vectors. Pure.

A scalar is held as bytes whose order is that of the values: PostgreSQL's own texts cannot hold a
zero, nor does it compare an integer with a double exactly. Text is UTF-8, whose bytes are in the
order of code points. A number is its nearest double, turned so that its bytes are in order, and
then how far it is from that, which for integers may be up to 512.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec
import numpy as np

from swarmd.base.errors import CorruptFile
from swarmd.memory.vector.nearest import Vectors
from swarmd.memory.vector.rules import KIND_BOOL, KIND_TEXT, decoded_payload, kind_of
from swarmd.memory.vector.shapes import Scalar

# What of a value stands in an index of the database, which takes up to 2,704 bytes a row.
HEAD_BYTES: Final = 255
_SIGN: Final = 1 << 63
_ALL: Final = (1 << 64) - 1
_REST_ZERO: Final = 1 << 15
_WIRE_HEADER: Final = struct.Struct(">HH")


def sortable(value: Scalar) -> bytes:
    """Bytes that are equal where values are, and in their order within one kind."""
    kind = kind_of(value)
    if kind == KIND_BOOL:
        return bytes((kind, bool(value)))
    if kind == KIND_TEXT:
        return bytes((kind,)) + str(value).encode()
    assert not isinstance(value, str)
    near = float(value) + 0.0  # The negative zero equals the other.
    bits = int.from_bytes(struct.pack(">d", near), "big")
    turned = bits ^ _ALL if bits & _SIGN else bits | _SIGN
    rest = value - int(near) if isinstance(value, int) else 0
    return bytes((kind,)) + struct.pack(">QH", turned, rest + _REST_ZERO)


def kind_ends(value: Scalar) -> tuple[bytes, bytes]:
    """Where the values of this one's kind begin, and where those of the next kind do."""
    kind = kind_of(value)
    return bytes((kind,)), bytes((kind + 1,))


def split(value: bytes) -> tuple[bytes, bytes | None]:
    """What of a value is indexed, and all of it where that is not all."""
    return value[:HEAD_BYTES], value if len(value) > HEAD_BYTES else None


def encode_vector(vector: bytes) -> bytes:
    """A packed vector as pgvector takes it: two numbers of 16 bits, then floats, all big-endian."""
    swapped = np.frombuffer(vector, "<f4").astype(">f4").tobytes()
    return _WIRE_HEADER.pack(len(swapped) // 4, 0) + swapped


def decode_vector(raw: bytes, dimension: int) -> Vectors:
    """The elements of what pgvector sent. Raises CorruptFile: it is no vector of that dimension."""
    if len(raw) != _WIRE_HEADER.size + 4 * dimension or raw[:2] != dimension.to_bytes(2, "big"):
        raise CorruptFile(f"the database gave {len(raw)} bytes for a vector of {dimension}")
    return np.frombuffer(raw, ">f4", offset=_WIRE_HEADER.size).astype(np.float32)


def encode_text(text: str) -> bytes:
    """A text as the tables hold it: in the order of code points, with zeros where it has some."""
    return text.encode()


def decode_text(raw: bytes) -> str:
    """What `encode_text` made. Raises CorruptFile."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise CorruptFile("the database holds a text that is none") from error


def decode_payload(raw: bytes) -> dict[str, Scalar]:
    """What `rules.encoded_payload` made. Raises CorruptFile."""
    try:
        return decoded_payload(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptFile(f"the database holds a payload that is none: {error}") from error
