"""Audit records on disk: a folder of segments, the oldest of which go when there is no room.

What is in a segment: `segments.py`. A batch is durable when `append_file` returned. Each start
begins new segments, so nothing is ever written behind what a crash may have left. What a crash left
torn at the end of a life is cut off when the folder is opened; damage anywhere else stays as it is.

In a sealed data folder what a frame carries is sealed, and so are floors and forks (`sealed.py`).

All that ends in `_file` blocks and is called from one thread at a time.
"""

from __future__ import annotations

import contextlib
import os
import stat
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from swarmd.audit.chain import Sealed
from swarmd.audit.index import (
    FileSeen,
    IndexedLife,
    IndexedSegment,
    read_index,
    unchanged,
    write_index,
)
from swarmd.audit.machine import FLOORS_MAX
from swarmd.audit.records import (
    BATCH_BYTES_MAX,
    ChainId,
    Floor,
    Seal,
    Stream,
    decode_batch,
    decode_floor,
    decode_seal,
    hashes_of,
)
from swarmd.audit.sealed import read_small, write_small
from swarmd.audit.segments import (
    FILE_HEAD,
    Frame,
    chain_name,
    frame_of,
    frames_in,
    name_of,
    opened,
    parse_name,
)
from swarmd.base.disk import open_body, seal_body
from swarmd.base.errors import BadRequest, DiskFault, SwarmError
from swarmd.base.files import sync_folder
from swarmd.base.ids import from_text
from swarmd.base.limits import MIB
from swarmd.base.sealed_file import Sealer
from swarmd.observe.log import get_logger

SEGMENT_BYTES: Final = 1 * MIB
# Of one stream of a node; lives that ended early make small ones.
SEGMENTS_MAX: Final = 3_072
# Holes that a life may have; beyond it nothing more of it is copied.
GAPS_MAX: Final = 64
# That are read at once, whatever their size.
BATCHES_MAX: Final = 1_024
_FLOOR_SUFFIX: Final = ".floor"
_GAP_SUFFIX: Final = ".gap"
_FLOOR_KIND: Final = "auditflr"
_FORK_SUFFIX: Final = ".fork"
_FORK_KIND: Final = "auditfrk"
# Of a node; each is of a life of its own.
FORKS_MAX: Final = 100

_Frames = Mapping[int, list[Frame]]
_NOTHING: Final[_Frames] = MappingProxyType({})

_log = get_logger("audit")


@dataclass(slots=True)
class Segment:
    first: int
    size_bytes: int
    written_ms: int
    changed_ns: int = 0
    """By its file's time, as the folder was opened."""


@dataclass(slots=True)
class Life:
    """What is kept of one life. `first` is the number it is kept from; 0: nothing is kept."""

    chain: ChainId
    parent: bytes
    begin: int
    previous: bytes
    """The hash before `first`."""
    last: int
    hash: bytes
    wall_ms: int
    segments: list[Segment] = field(default_factory=list)
    grows: bool = False
    """Its last segment was begun by this daemon."""
    unreadable: bool = False
    """Nothing of its last segment can be read."""

    @property
    def first(self) -> int:
        return self.segments[0].first if self.segments else 0

    @property
    def size_bytes(self) -> int:
        return sum(one.size_bytes for one in self.segments)


def _segment(first: int, file: FileSeen) -> Segment:
    return Segment(first, file.size_bytes, file.changed_ns // 1_000_000, file.changed_ns)


def _life(indexed: IndexedLife) -> Life:
    return Life(
        indexed.chain,
        indexed.parent,
        indexed.begin,
        indexed.previous,
        indexed.last,
        indexed.hash,
        indexed.wall_ms,
        [_segment(*one) for one in indexed.segments],
    )


def _indexed(life: Life) -> IndexedLife:
    return IndexedLife(
        life.chain,
        life.parent,
        life.begin,
        life.previous,
        life.last,
        life.hash,
        life.wall_ms,
        tuple(
            IndexedSegment(one.first, FileSeen(one.size_bytes, one.changed_ns))
            for one in life.segments
        ),
    )


class AuditFolder:
    """See the module. `sealer`: of the data folder, if it is sealed."""

    def __init__(self, path: Path, sealer: Sealer | None = None) -> None:
        self._path = path
        self._sealer = sealer
        self.lives: dict[ChainId, Life] = {}
        self.version = 0
        """Another one after each change of what is held."""
        self.floors: dict[ChainId, tuple[Floor, bytes]] = {}
        """What was dropped of each life, and its signed form."""
        self.gaps: dict[ChainId, dict[int, bytes]] = {}
        """Signed, by number: what was never here."""
        self._forks: dict[bytes, int] = {}

    # ---- opening -----------------------------------------------------------------------

    def open_file(self) -> None:
        """Find what is there. Raises DiskFault."""
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            files = {
                entry.name: FileSeen(status.st_size, status.st_mtime_ns)
                for entry in os.scandir(self._path)
                if stat.S_ISREG((status := entry.stat(follow_symlinks=False)).st_mode)
            }
        except OSError as error:
            raise DiskFault(f"cannot use the folder {self._path}: {error.strerror}") from error
        indexed = read_index(self._path, self._sealer)
        known, rest = unchanged(indexed, files)
        found = self._sort_out(rest)
        for life in known:
            if life.chain in found:  # It has been gone on with.
                found[life.chain] += [_segment(*one) for one in life.segments]
            else:
                self.lives[life.chain] = _life(life)
        is_old = len(known) < len(indexed)
        for chain, segments in found.items():
            segments.sort(key=lambda one: one.first)
            read = self._find_life(chain, segments)
            if read is not None:
                self.lives[chain] = read
                is_old = True
        if is_old:
            self._write_index()

    def _sort_out(self, files: Mapping[str, FileSeen]) -> dict[ChainId, list[Segment]]:
        """Segments by their lives; what else there is, is taken note of."""
        found: dict[ChainId, list[Segment]] = {}
        for name, file in sorted(files.items()):
            if name.endswith(_FORK_SUFFIX):
                self._count_fork(name)
            elif name.endswith((_FLOOR_SUFFIX, _GAP_SUFFIX)):
                self._read_floor(name)
            elif place := parse_name(name):  # Else another version's, or what a write left.
                found.setdefault(place[0], []).append(_segment(place[1], file))
        return found

    def _write_index(self) -> None:
        """Have the next start read less. Files that change meanwhile are read then."""
        lives = [_indexed(life) for life in self.lives.values() if not life.unreadable]
        try:
            write_index(self._path, lives, self._sealer)
        except DiskFault as error:
            _log.warning("the next start looks through all audit records", why=error.message)

    def _read_floor(self, name: str) -> None:
        try:
            raw = open_body(
                _FLOOR_KIND, 1, read_small(self._path / name, self._sealer), source=name
            )
            floor = decode_floor(raw)[1]
        except (SwarmError, OSError) as error:
            _log.error("a floor of audit records is unreadable", file=name, why=str(error))
            return
        self._remember_floor(floor, raw)

    def _remember_floor(self, floor: Floor, raw: bytes) -> None:
        if floor.dropped:
            self.floors[floor.chain] = floor, raw
        else:
            self.gaps.setdefault(floor.chain, {})[floor.number] = raw

    def _find_life(self, chain: ChainId, segments: list[Segment]) -> Life | None:
        """What is there of a life, the torn end of its last segment cut off."""
        frames = self._cut_torn(chain, segments)
        if not segments:
            return None
        newest = next(
            (seal for one in reversed(segments) for seal in self._seals_back(chain, one, frames)),
            None,
        )
        oldest = next((seal for one in segments for seal in self._seals(chain, one, frames)), None)
        if newest is None or oldest is None:
            _log.error("audit records are unreadable", chain=name_of(chain, segments[0].first))
            life = Life(chain, b"", 1, bytes(32), segments[-1].first, bytes(32), 0, segments)
            life.unreadable = True
            return life
        return Life(
            chain,
            newest.parent,
            newest.begin,
            oldest.previous,
            newest.last,
            newest.hash,
            newest.wall_ms,
            segments,
        )

    def _cut_torn(self, chain: ChainId, segments: list[Segment]) -> _Frames:
        """The last segment as it is then: most lives have one, which is read only once."""
        segment = segments[-1]
        path = self._path / name_of(chain, segment.first)
        raw = self._read(chain, segment)
        frames = list(frames_in(raw))
        sound = [frame for frame in frames if frame.last]
        end = sound[-1].end if sound else 0
        if sound and end == len(raw):
            return {segment.first: [self._shown(path.name, frame) for frame in frames]}
        _log.warning("audit records that were being written are cut off", file=path.name,
                     cut_bytes=len(raw) - end)  # fmt: skip
        try:
            if not sound:
                path.unlink()
                segments.pop()
            else:
                os.truncate(path, end)
                segment.size_bytes = end
            sync_folder(self._path)
        except OSError as error:
            raise DiskFault(f"cannot mend {path}: {error.strerror}") from error
        return {}

    def _seals(self, chain: ChainId, segment: Segment, read: _Frames = _NOTHING) -> Iterator[Seal]:
        """`read`: frames that were read already, by the first record of their segment."""
        for frame in read.get(segment.first) or self._frames(chain, segment):
            with contextlib.suppress(SwarmError):
                yield decode_seal(decode_batch(frame.raw).seal)[1]

    def _seals_back(
        self, chain: ChainId, segment: Segment, read: _Frames = _NOTHING
    ) -> Iterator[Seal]:
        for frame in reversed(read.get(segment.first) or list(self._frames(chain, segment))):
            with contextlib.suppress(SwarmError):
                yield decode_seal(decode_batch(frame.raw).seal)[1]

    # ---- writing -----------------------------------------------------------------------

    def append_file(self, chain: ChainId, batches: Sequence[Sealed], now_ms: int) -> None:
        """Keep batches of one life, in order, each following the one before. All or none.

        Raises:
            DiskFault: nothing is kept of them; try again with the same ones.
        """
        life = self.lives.get(chain)
        grows = life is not None and life.grows and life.segments[-1].size_bytes < SEGMENT_BYTES
        first = batches[0].seal.first
        begun = life.segments[-1] if life is not None and grows else None
        segment = begun or Segment(first, 0, now_ms)
        name = name_of(chain, segment.first)
        data = b"".join([frame_of(one, name, self._sealer) for one in batches])
        if begun is None:
            data = FILE_HEAD + data
        self._write(chain, segment, data)
        segment.size_bytes += len(data)
        segment.written_ms = now_ms
        newest = batches[-1].seal
        if life is None:
            life = self.lives[chain] = Life(
                chain, newest.parent, newest.begin, batches[0].seal.previous, 0, b"", 0
            )
        if not grows:
            life.segments.append(segment)
            life.grows = True
        life.last, life.hash, life.wall_ms = newest.last, newest.hash, newest.wall_ms
        self.version += 1

    def _write(self, chain: ChainId, segment: Segment, data: bytes) -> None:
        path = self._path / name_of(chain, segment.first)
        fresh = segment.size_bytes == 0
        # What a failed try left of a fresh one goes; and nothing is written behind a torn frame.
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if fresh else 0)
        try:
            fd = os.open(path, flags, 0o600)
            try:
                os.ftruncate(fd, segment.size_bytes)
                view, offset = memoryview(data), segment.size_bytes
                while view:
                    written = os.pwrite(fd, view, offset)
                    view, offset = view[written:], offset + written
                os.fdatasync(fd)
            finally:
                os.close(fd)
            if fresh:
                sync_folder(self._path)
        except OSError as error:
            raise DiskFault(f"cannot write {path}: {error.strerror}") from error

    # ---- reading -----------------------------------------------------------------------

    def read_file(self, chain: ChainId, after: int, bytes_max: int) -> list[bytes]:
        """Batches with records above `after`, in order, at least one if there is any.

        Up to `bytes_max` bytes, or one batch; damaged ones are left out.
        """
        life = self.lives.get(chain)
        if life is None:
            return []
        found: list[bytes] = []
        size = 0
        index = bisect_right([one.first for one in life.segments], after + 1) - 1
        for segment in life.segments[max(0, index) :]:
            for frame in self._frames(chain, segment):
                if frame.last <= after:
                    continue
                size += len(frame.raw)
                if found and (size > bytes_max or len(found) >= BATCHES_MAX):
                    return found
                found.append(frame.raw)
        return found

    def read_raw_file(
        self, chain: ChainId, place: tuple[int, int], bytes_max: int
    ) -> tuple[list[bytes], tuple[int, int]]:
        """What lies on the disk from `place` on, damaged or not, and where to go on.

        Args:
            place: the number that a segment begins with, and an offset in it; (0, 0) is the
                beginning, and is where to go on at the end.
        """
        life = self.lives.get(chain)
        found: list[bytes] = []
        size = 0
        for segment in life.segments if life is not None else ():
            if segment.first < place[0]:
                continue
            offset = place[1] if segment.first == place[0] else 0
            for frame in self._frames(chain, segment, offset):
                size += len(frame.raw)
                if found and (size > bytes_max or len(found) >= BATCHES_MAX):
                    return found, (segment.first, offset)
                found.append(frame.raw[:BATCH_BYTES_MAX])
                offset = frame.end
        return found, (0, 0)

    def first_seal_file(self, chain: ChainId, segment: Segment) -> Seal | None:
        """The first seal of a segment that can be read."""
        return next(self._seals(chain, segment), None)

    def read_back_file(self, chain: ChainId, below: int) -> list[bytes]:
        """All batches of the newest segment that begins below the number `below`, in order."""
        life = self.lives.get(chain)
        if life is None:
            return []
        older = [one for one in life.segments if one.first < below]
        if not older:
            return []
        return [frame.raw for frame in self._frames(chain, older[-1]) if frame.last]

    def _frames(self, chain: ChainId, segment: Segment, offset: int = 0) -> Iterator[Frame]:
        """The batches of a segment, what is damaged as it lies there."""
        name = name_of(chain, segment.first)
        for frame in frames_in(self._read(chain, segment), offset):
            yield self._shown(name, frame)

    def _shown(self, name: str, frame: Frame) -> Frame:
        if self._sealer is not None:
            frame = opened(self._sealer, name, frame)
        # Longer than any batch: in clear only, and nobody's.
        return frame if len(frame.raw) <= BATCH_BYTES_MAX else frame._replace(first=0, last=0)

    def _read(self, chain: ChainId, segment: Segment) -> bytes:
        path = self._path / name_of(chain, segment.first)
        try:
            with open(path, "rb") as opened:
                return opened.read(segment.size_bytes)
        except FileNotFoundError:
            return b""  # Somebody removed it: who checks the chain sees the hole.
        except OSError as error:
            raise DiskFault(f"cannot read {path}: {error.strerror}") from error

    def hash_of_file(self, chain: ChainId, number: int) -> bytes | None:
        """The hash of a record that is here; None: it is not, or cannot be read."""
        with contextlib.suppress(SwarmError):
            for raw in self.read_file(chain, number - 1, 1):
                batch = decode_batch(raw)
                seal = decode_seal(batch.seal)[1]
                if seal.first <= number <= seal.last:
                    return hashes_of(seal.previous, batch.records)[number - seal.first]
        return None

    # ---- what is too old ---------------------------------------------------------------

    def lives_of(self, node: bytes, stream: Stream) -> list[Life]:
        """What is kept of one stream of one node."""
        return [
            one
            for one in self.lives.values()
            if (one.chain.node, one.chain.stream) == (node, stream) and one.segments
        ]

    def oldest(self, node: bytes, stream: Stream) -> tuple[Life, Segment] | None:
        """The segment that goes first; None: nothing is kept."""
        found = [(life, life.segments[0]) for life in self.lives_of(node, stream)]
        return min(found, key=lambda one: (one[1].written_ms, one[1].first), default=None)

    def end_of_file(self, life: Life, segment: Segment) -> tuple[int, bytes] | None:
        """Number and hash of the last record of `segment`; None: it is unreadable."""
        seal = next(self._seals_back(life.chain, segment), None)
        return (seal.last, seal.hash) if seal is not None else None

    def drop_file(self, life: Life, segment: Segment, raw_floor: bytes | None) -> None:
        """Delete the oldest segment of a life, once its floor is durable. Raises DiskFault."""
        assert life.segments[0] is segment, "the oldest goes first"
        if raw_floor is not None:
            self.put_floor_file(raw_floor)
        try:
            (self._path / name_of(life.chain, segment.first)).unlink(missing_ok=True)
        except OSError as error:
            raise DiskFault(f"cannot delete audit records: {error.strerror}") from error
        if raw_floor is not None:
            self._drop_gaps_file(life.chain, self.floors[life.chain][0].number)
        life.segments.pop(0)
        if not life.segments:
            del self.lives[life.chain]
        elif raw_floor is not None:
            life.previous = self.floors[life.chain][0].hash
        self.version += 1

    def _drop_gaps_file(self, chain: ChainId, number: int) -> None:
        gaps = self.gaps.get(chain, {})
        for one in [one for one in gaps if one <= number]:
            self._unlink(f"{chain_name(chain)}.{one:019d}{_GAP_SUFFIX}")
            del gaps[one]
        if not gaps:
            self.gaps.pop(chain, None)

    def put_floor_file(self, raw: bytes) -> None:
        """Write a floor down. Raises DiskFault."""
        floor = decode_floor(raw)[1]
        suffix = _FLOOR_SUFFIX if floor.dropped else f".{floor.number:019d}{_GAP_SUFFIX}"
        path = self._path / (chain_name(floor.chain) + suffix)
        write_small(path, seal_body(_FLOOR_KIND, 1, raw), self._sealer)
        self._remember_floor(floor, raw)

    def drop_floors_file(self) -> None:
        """Delete floors and gaps that tell nothing: of lives that nothing is kept of, and nothing
        that is kept goes on from. The latest floors stay, so that their lives stay away.
        """
        needed = {
            ChainId(one.chain.node, one.chain.stream, one.parent or one.chain.life)
            for one in self.lives.values()
        } | set(self.lives)
        for chain in list(self.gaps):
            if chain not in needed:
                for number in self.gaps.pop(chain):
                    self._unlink(f"{chain_name(chain)}.{number:019d}{_GAP_SUFFIX}")
        counts: Counter[tuple[bytes, Stream]] = Counter()
        for floor, _ in sorted(self.floors.values(), key=lambda one: -one[0].wall_ms):
            chain = floor.chain
            if chain in needed:
                continue
            counts[chain.node, chain.stream] += 1
            if counts[chain.node, chain.stream] > FLOORS_MAX:
                self._unlink(chain_name(chain) + _FLOOR_SUFFIX)
                del self.floors[chain]

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self._path / name).unlink(missing_ok=True)

    # ---- forks -------------------------------------------------------------------------

    def put_fork_file(self, chain: ChainId, raw: bytes) -> bool:
        """Keep a batch that contradicts what is kept of its life.

        False: one is kept already, or as many of its node as are needed to show it up.
        """
        path = self._path / (chain_name(chain) + _FORK_SUFFIX)
        if path.exists() or self._forks.get(chain.node, 0) >= FORKS_MAX:
            return False
        write_small(path, seal_body(_FORK_KIND, 1, raw), self._sealer)
        self._forks[chain.node] = self._forks.get(chain.node, 0) + 1
        return True

    def _count_fork(self, name: str) -> None:
        with contextlib.suppress(BadRequest):
            node = from_text(name.partition(".")[0])
            self._forks[node] = self._forks.get(node, 0) + 1

    def forks_file(self) -> list[bytes]:
        """The batches that contradict what is kept: of each node the first, then as many as fit."""
        found: list[bytes] = []
        paths = sorted(self._path.glob("*" + _FORK_SUFFIX))
        nodes = [path.name.partition(".")[0] for path in paths]
        firsts = [nodes.index(node) == index for index, node in enumerate(nodes)]
        chosen = sorted(zip(firsts, paths, strict=True), key=lambda one: (not one[0], one[1]))
        for _, path in chosen[:FORKS_MAX]:
            try:
                raw = read_small(path, self._sealer)
                found.append(open_body(_FORK_KIND, 1, raw, source=path.name))
            except (OSError, SwarmError) as error:
                _log.error("evidence of a fork is unreadable", file=path.name, why=str(error))
        return found
