"""What the audit folder held when it was opened last, so that not every file is read again.

It is believed of a life of which no file has another size or time, and none came or went; all else
is read. It proves nothing: whatever is shown, copied or checked is read from the segments. Without
it, or damaged, it costs time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from msgspec import Meta

from swarmd.audit.records import BeforeNumber, ChainId, Hash, Ms, Number, Parent, Part
from swarmd.audit.sealed import read_small, write_small
from swarmd.audit.segments import name_of
from swarmd.base.disk import open_body, seal_body
from swarmd.base.errors import SwarmError
from swarmd.base.sealed_file import Sealer
from swarmd.observe.log import get_logger
from swarmd.wire.codec import decode_struct, encode_struct

INDEX: Final = "lives.index"
_KIND: Final = "auditidx"
_FORMAT: Final = 1
# Lives beyond these are read at each start.
INDEXED_MAX: Final = 100_000
_SEGMENTS_MAX: Final = 10_000

_log = get_logger("audit")


class FileSeen(NamedTuple):
    """A file as the folder lists it."""

    size_bytes: Annotated[int, Meta(ge=0, le=2**62)]
    changed_ns: Annotated[int, Meta(ge=-(2**62), le=2**63 - 1)]


class IndexedSegment(NamedTuple):
    first: Number
    file: FileSeen


class IndexedLife(Part, frozen=True):
    """See `store.Life`."""

    chain: ChainId
    parent: Parent
    begin: Number
    previous: Hash
    last: BeforeNumber
    hash: Hash
    wall_ms: Ms
    segments: Annotated[tuple[IndexedSegment, ...], Meta(min_length=1, max_length=_SEGMENTS_MAX)]


class _Index(Part, frozen=True):
    lives: Annotated[tuple[IndexedLife, ...], Meta(max_length=INDEXED_MAX)]


def encode_index(lives: Iterable[IndexedLife]) -> bytes:
    """As many of them as it may hold."""
    return encode_struct(_Index(tuple(islice(lives, INDEXED_MAX))))


def decode_index(raw: bytes) -> tuple[IndexedLife, ...]:
    """Raises MalformedMessage."""
    index: _Index = decode_struct(_Index, raw)
    return index.lives


def read_index(folder: Path, sealer: Sealer | None) -> tuple[IndexedLife, ...]:
    """Nothing, if there is none that can be read."""
    path = folder / INDEX
    try:
        return decode_index(open_body(_KIND, _FORMAT, read_small(path, sealer), source=path.name))
    except FileNotFoundError:
        return ()
    except (SwarmError, OSError) as error:
        _log.info("all audit records are looked through", why=str(error))
        return ()


def write_index(folder: Path, lives: Iterable[IndexedLife], sealer: Sealer | None) -> None:
    """Raises DiskFault."""
    write_small(folder / INDEX, seal_body(_KIND, _FORMAT, encode_index(lives)), sealer)


def unchanged(
    indexed: Iterable[IndexedLife], files: Mapping[str, FileSeen]
) -> tuple[list[IndexedLife], dict[str, FileSeen]]:
    """Lives whose files are as they were, and the files of all others."""
    rest = dict(files)
    same: list[IndexedLife] = []
    for life in indexed:
        names = [name_of(life.chain, one.first) for one in life.segments]
        if all(rest.get(name) == one.file for name, one in zip(names, life.segments, strict=True)):
            same.append(life)
            for name in names:
                del rest[name]
    return same, rest
