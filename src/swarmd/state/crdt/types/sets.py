"""Sets in which adding wins over removing at the same time (optimised OR-set).

An element is its msgpack, so 1 and 1.0 and "1" are three.
"""

from __future__ import annotations

from typing import Any

from swarmd.base.errors import MalformedMessage
from swarmd.state.crdt.types.kinds import Edit, Live, Put
from swarmd.wire.codec import pack, unpack


def add(live: Live, element: Any) -> Edit:
    """Raises MalformedMessage: msgpack cannot carry the element."""
    packed = pack(element)
    return Edit(Put(packed, b""), tuple(d for d, c in live.items() if c.element == packed))


def discard(live: Live, element: Any) -> Edit:
    """Remove an element as far as it was seen; nothing if it is not there."""
    packed = pack(element)
    return Edit(None, tuple(d for d, c in live.items() if c.element == packed))


def read(live: Live) -> list[Any]:
    """The elements, in the order of their bytes."""
    elements = []
    for packed in sorted({cell.element for cell in live.values()}):
        try:
            elements.append(unpack(packed))
        except MalformedMessage:  # A member put bytes there that no build of swarmd writes.
            continue
    return elements
