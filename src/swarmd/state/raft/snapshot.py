"""Snapshots: the state up to an index, in one file of checked frames.

A snapshot is taken a slice at a time: the state gives frames of itself as it was at one moment,
however it changes meanwhile; they are appended to a side file, synced in bounded pieces, and the
file is renamed at the end. One received from a leader is written beside in the same way, checked
frame by frame as it comes, and takes the place of the one that was good only once it is whole
and durable. So nothing holds a second copy of the state in memory, and no step is long. The
journal lets go of entries only after the rename.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

import msgspec

from swarmd.base.disk import Disk, DiskReader
from swarmd.base.errors import CorruptFile, DiskFault, MalformedMessage
from swarmd.base.limits import KIB, MIB
from swarmd.state.raft.frames import FrameReader, FrameWriter, read_frames
from swarmd.wire.codec import decode_struct, encode_struct

SNAPSHOT_FILE: Final = "snapshot"
TAKEN_FILE: Final = "snapshot.new"
RECEIVED_FILE: Final = "snapshot.in"
KIND: Final = "raftsnap"
# Rises whenever the state's own frames change, too: an old file is then named as one.
FORMAT: Final = 5
# A slice ends with the frame that reaches this; takes about a millisecond.
SLICE_BYTES: Final = 32 * KIB
# Written bytes that may wait for a sync.
SYNC_BYTES: Final = 1 * MIB


class SnapshotMeta(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The first frame: state after applying the entry at `index`, of `term`, by these voters."""

    index: int
    term: int
    voters: tuple[str, ...]


class Restoring(Protocol):
    """A state in the making."""

    def take(self, frame: bytes) -> None:
        """Add the next frame; short. Raises CorruptFile: nothing of the state changed."""
        ...

    def finish(self) -> None:
        """Become what the frames made up. Raises CorruptFile: nothing of the state changed."""
        ...


def decode_meta(raw: bytes, *, voters: tuple[str, ...], source: str) -> SnapshotMeta:
    """The first frame of a snapshot. Raises CorruptFile: of another shape, or of other voters."""
    try:
        meta: SnapshotMeta = decode_struct(SnapshotMeta, raw)
    except MalformedMessage as error:
        raise CorruptFile(f"{source} holds no snapshot: {error.message}") from error
    if meta.index < 1 or meta.term < 0:
        raise CorruptFile(f"{source} ends at an impossible entry")
    if meta.voters != voters:
        raise CorruptFile(f"{source} is of other voters than this store's")
    return meta


class SideFile:
    """A file on its way: what is appended here reaches the disk at the next `sync`."""

    def __init__(self, disk: Disk, name: str) -> None:
        self._disk = disk
        self._name = name
        self._fresh = True
        self._pending: list[bytes] = []
        self.pending_bytes = 0
        self.ended = False

    @property
    def wants_sync(self) -> bool:
        return self.pending_bytes >= SYNC_BYTES or (self.ended and self.pending_bytes > 0)

    def append(self, data: bytes) -> None:
        self._pending.append(data)
        self.pending_bytes += len(data)

    def take(self) -> bytes:
        """What is pending, for `write`."""
        data = b"".join(self._pending)
        self._pending.clear()
        self.pending_bytes = 0
        return data

    def write(self, data: bytes) -> None:
        """Write what `take` gave. Raises DiskFault: the file is of no use any more."""
        if self._fresh:
            self._fresh = False
            if self._name in self._disk.names():
                self._disk.remove(self._name)
        self._disk.append(self._name, data)
        self._disk.sync(self._name)

    def sync(self) -> None:
        """Write what is pending. Raises DiskFault: the file is of no use any more."""
        self.write(self.take())

    def take_place_of(self, name: str) -> None:
        """Be the file `name` from now on. Raises DiskFault; then call again."""
        self._disk.rename(self._name, name)


class _Taking:
    def __init__(self, meta: SnapshotMeta, frames: Iterator[bytes], file: SideFile) -> None:
        self.meta = meta
        self.frames = frames
        self.file = file
        self.size = 0
        self.writer = FrameWriter(KIND, FORMAT)
        file.append(self.writer.head() + self.writer.frame(encode_struct(meta)))


class SnapshotStore:
    """One voter's latest snapshot, one being taken, and one being received.

    `index`, `term` and `size` in bytes are of the latest. Only `sync`, `load` and `reader`
    touch the disk.
    """

    def __init__(self, disk: Disk, voters: tuple[str, ...]) -> None:
        self._disk = disk
        self._voters = voters
        self._taking: _Taking | None = None
        self._received: SideFile | None = None
        self._arriving: SnapshotMeta | None = None
        self.index = 0
        self.term = 0
        self.size = 0
        self.failures = 0
        self._received_bytes = 0

    @property
    def dirty(self) -> bool:
        """True while something waits to be written, or to take the old one's place."""
        if self._arriving is not None:
            return True
        files = (self._taking.file if self._taking else None, self._received)
        return any(file is not None and file.wants_sync for file in files)

    @property
    def taking(self) -> bool:
        return self._taking is not None

    @property
    def has_more(self) -> bool:
        """True while the snapshot being taken has frames to come."""
        return self._taking is not None and not self._taking.file.ended

    def load(self, restoring: Restoring) -> SnapshotMeta | None:
        """Read the snapshot into `restoring`; None where there is none. Raises CorruptFile."""
        for name in self._disk.names():
            if name in (TAKEN_FILE, RECEIVED_FILE):
                self._disk.remove(name)  # Of a life that ended in the middle.
        if SNAPSHOT_FILE not in self._disk.names():
            return None
        meta: SnapshotMeta | None = None
        for body in read_frames(self._disk, SNAPSHOT_FILE, KIND, FORMAT):
            self.size += len(body)
            if meta is None:
                meta = decode_meta(body, voters=self._voters, source=SNAPSHOT_FILE)
            else:
                restoring.take(body)
        if meta is None:
            raise CorruptFile(f"{SNAPSHOT_FILE} holds no snapshot")
        restoring.finish()
        self.index, self.term = meta.index, meta.term
        return meta

    def reader(self) -> DiskReader:
        """The file, to be sent to a follower. Raises CorruptFile."""
        found = self._disk.reader(SNAPSHOT_FILE)
        if found is None:
            raise CorruptFile(f"{SNAPSHOT_FILE} has vanished")
        return found

    # ---- taking one ----------------------------------------------------------------------

    def begin(self, index: int, term: int, frames: Iterator[bytes]) -> None:
        """Take a snapshot of what `frames` gives, in place of one that is being taken."""
        self.abandon()
        meta = SnapshotMeta(index, term, self._voters)
        self._taking = _Taking(meta, frames, SideFile(self._disk, TAKEN_FILE))

    def advance(self) -> None:
        """Take a slice."""
        taking = self._taking
        if taking is None or taking.file.ended:
            return
        size = 0
        while size < SLICE_BYTES:
            body = next(taking.frames, None)
            if body is None:
                taking.file.append(taking.writer.end())
                taking.file.ended = True
                return
            taking.file.append(taking.writer.frame(body))
            size += len(body)
            taking.size += len(body)

    def abandon(self) -> None:
        """Let go of the snapshot that is being taken."""
        if self._taking is not None:
            close = getattr(self._taking.frames, "close", None)
            if close is not None:
                close()
            self._taking = None

    # ---- receiving one -------------------------------------------------------------------

    def receive_anew(self) -> None:
        """Begin to receive; what was received before is let go of."""
        self._received = SideFile(self._disk, RECEIVED_FILE)
        self._received_bytes = 0

    def receive(self, data: bytes, *, last: bool) -> None:
        """Write a piece beside."""
        assert self._received is not None
        self._received.append(data)
        self._received_bytes += len(data)
        self._received.ended = last

    @property
    def receiving(self) -> bool:
        """False also once a piece could not be written."""
        return self._received is not None

    @property
    def received(self) -> bool:
        """True once everything received is durable."""
        file = self._received
        return file is not None and file.ended and file.pending_bytes == 0

    def forget_received(self) -> None:
        self._received = None

    def install(self, index: int, term: int) -> None:
        """Have what was received take the place of the old one at the next sync."""
        assert self.received
        self.abandon()
        self._received = None
        self._arriving = SnapshotMeta(index, term, self._voters)

    # ---- the disk ------------------------------------------------------------------------

    def sync(self) -> None:
        """Write what waits.

        A snapshot that cannot be written is let go of, and counted: the old one is still good.

        Raises:
            DiskFault: what was received does not take the old one's place yet; call again.
        """
        if self._arriving is not None:
            self._disk.rename(RECEIVED_FILE, SNAPSHOT_FILE)
            self.index, self.term = self._arriving.index, self._arriving.term
            self.size = self._received_bytes
            self._arriving = None
        try:
            if self._received is not None and self._received.wants_sync:
                self._received.sync()
        except DiskFault:
            self.failures += 1
            self._received = None
        taking = self._taking
        try:
            if taking is not None and taking.file.wants_sync:
                taking.file.sync()
                if taking.file.ended:
                    taking.file.take_place_of(SNAPSHOT_FILE)
                    self.index, self.term = taking.meta.index, taking.meta.term
                    self.size = taking.size
                    self._taking = None
        except DiskFault:
            self.failures += 1
            self.abandon()


class SnapshotReader:
    """Takes a snapshot in pieces: its meta frame, then the frames of the state."""

    def __init__(self, voters: tuple[str, ...], source: str) -> None:
        self._voters = voters
        self._source = source
        self._frames = FrameReader(KIND, FORMAT, source=source)
        self.meta: SnapshotMeta | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """Frames of the state that are whole now. Raises CorruptFile."""
        bodies = self._frames.feed(data)
        if bodies and self.meta is None:
            self.meta = decode_meta(bodies.pop(0), voters=self._voters, source=self._source)
        return bodies

    def finish(self) -> SnapshotMeta:
        """What it was of. Raises CorruptFile if it is not whole."""
        self._frames.finish()
        if self.meta is None:
            raise CorruptFile(f"{self._source} holds no snapshot")
        return self.meta
