"""What a segment's frames carry in a sealed data folder, and how a segment is sealed anew.

A frame keeps its head, which says the numbers of its records, and carries a box instead of the
batch. The box is bound to the segment's name and to these numbers. A frame that does not open is
damage like any other. What was damaged before it was sealed is evidence: it is sealed as it is, in
a frame with the numbers 0, and comes out again as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from swarmd.base.errors import BadSignature
from swarmd.base.files import write_atomically
from swarmd.base.sealed_file import Sealer, open_file, seal_file

ROOM: Final = "audit"


def seal_batch(sealer: Sealer, name: str, first: int, last: int, raw: bytes) -> bytes:
    """What the frame of a batch carries in the segment `name`."""
    return sealer.seal(raw, _about(name, first, last))


def open_batch(sealer: Sealer, name: str, first: int, last: int, box: bytes) -> bytes | None:
    """What was sealed; None: it is damaged, or never was sealed."""
    try:
        return sealer.open(box, _about(name, first, last))
    except BadSignature:
        return None


def open_any(
    sealers: Sequence[Sealer], name: str, first: int, last: int, box: bytes
) -> bytes | None:
    """The same under whichever key."""
    for sealer in sealers:
        raw = open_batch(sealer, name, first, last, box)
        if raw is not None:
            return raw
    return None


def read_small(path: Path, sealer: Sealer | None) -> bytes:
    """A floor or a fork. Raises OSError, CorruptFile."""
    raw = path.read_bytes()
    return raw if sealer is None else open_file(sealer, ROOM, raw, source=path.name)


def write_small(path: Path, body: bytes, sealer: Sealer | None) -> None:
    """Raises DiskFault."""
    write_atomically(path, body if sealer is None else seal_file(sealer, ROOM, body))


def _about(name: str, first: int, last: int) -> bytes:
    return b"audit batch %b\0%d-%d" % (name.encode(), first, last)
