"""Snapshots: the state up to an index, in one checked file.

A snapshot is taken in two halves. The state hands over a frozen copy of itself, which is
cheap, while the machine is stepped; it is encoded and written when the machine syncs. One
received from a leader is verified whole (checksum, shape, voters) before it takes the place
of the one that was good. The file is replaced atomically; the journal lets go of entries
only after that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from swarmd.base.disk import Disk, open_body, seal_body
from swarmd.base.errors import CorruptFile, MalformedMessage
from swarmd.wire.codec import decode_struct, encode_struct

SNAPSHOT_FILE: Final = "snapshot"
_KIND: Final = "raftsnap"
_FORMAT: Final = 1


class Snapshot(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """State after applying the entry at `index`, of `term`, by these voters."""

    index: int
    term: int
    voters: tuple[str, ...]
    state: bytes


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """The snapshot as the content of a checked file."""
    return seal_body(_KIND, _FORMAT, encode_struct(snapshot))


def decode_snapshot(raw: bytes, *, voters: tuple[str, ...], source: str) -> Snapshot:
    """The snapshot in a checked file.

    Raises:
        CorruptFile: damaged, of another shape, or of other voters; names `source`.
    """
    try:
        snapshot: Snapshot = decode_struct(Snapshot, open_body(_KIND, _FORMAT, raw, source=source))
    except MalformedMessage as error:
        raise CorruptFile(f"{source} holds no snapshot: {error.message}") from error
    if snapshot.index < 1 or snapshot.term < 0:
        raise CorruptFile(f"{source} ends at an impossible entry")
    if snapshot.voters != voters:
        raise CorruptFile(f"{source} is of other voters than this store's")
    return snapshot


@dataclass(frozen=True, slots=True)
class _Staged:
    index: int
    term: int
    encode: Callable[[], bytes]


class SnapshotStore:
    """One voter's latest snapshot, and at most one on its way to the disk."""

    def __init__(self, disk: Disk, voters: tuple[str, ...], name: str = SNAPSHOT_FILE) -> None:
        self._disk = disk
        self._name = name
        self._voters = voters
        self._staged: _Staged | None = None
        self.index = 0
        self.term = 0

    @property
    def dirty(self) -> bool:
        """True while a snapshot waits to be written."""
        return self._staged is not None

    def load(self) -> Snapshot | None:
        """The snapshot on disk, or None where there is none. Raises CorruptFile."""
        raw = self._disk.read(self._name)
        if raw is None:
            return None
        snapshot = decode_snapshot(raw, voters=self._voters, source=self._name)
        self.index, self.term = snapshot.index, snapshot.term
        return snapshot

    def content(self) -> bytes:
        """The file as it is sent to a follower, verified first. Raises CorruptFile."""
        raw = self._disk.read(self._name)
        if raw is None:
            raise CorruptFile(f"{self._name} has vanished")
        decode_snapshot(raw, voters=self._voters, source=self._name)
        return raw

    def stage(self, index: int, term: int, frozen: Callable[[], bytes]) -> None:
        """Have `frozen()`, the state's own encoding, written at the next sync."""
        voters = self._voters

        def encode() -> bytes:
            return encode_snapshot(Snapshot(index, term, voters, frozen()))

        self._staged = _Staged(index, term, encode)

    def stage_file(self, index: int, term: int, content: bytes) -> None:
        """Have a snapshot file received from a leader written at the next sync."""
        self._staged = _Staged(index, term, lambda: content)

    def sync(self) -> None:
        """Write what is staged. Raises DiskFault; then it stays staged and the old one good."""
        staged = self._staged
        if staged is None:
            return
        self._disk.replace(self._name, staged.encode())
        self.index, self.term = staged.index, staged.term
        self._staged = None
