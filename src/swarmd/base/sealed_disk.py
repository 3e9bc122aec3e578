"""A disk whose files are sealed, over any other; see `base/sealed_file.py` for what they hold."""

from __future__ import annotations

from dataclasses import dataclass

from swarmd.base.disk import BytesReader, Disk
from swarmd.base.errors import DiskFault
from swarmd.base.sealed_file import (
    SealedReader,
    Sealer,
    Sealing,
    sealed_size,
)


@dataclass(slots=True)
class _End:
    """Where a file goes on that this process has written so far, all of it synced."""

    sealing: Sealing
    position: int


class SealedDisk:
    """Implements `base.disk.Disk`. Reading a file raises CorruptFile, too; see `SealedReader`.

    A file is begun as a whole, and one that another process wrote is written anew as a whole before
    anything is added to it: its end may be torn, and no more than in the page cache.

    Args:
        room: what the files are part of; in another room they do not open.
    """

    def __init__(self, disk: Disk, sealer: Sealer, room: str) -> None:
        self._disk = disk
        self._sealer = sealer
        self._room = room
        self._ends: dict[str, _End] = {}
        self._buffers: dict[str, list[bytes]] = {}
        self._failed: set[str] = set()

    @property
    def blocking(self) -> bool:
        return self._disk.blocking

    def read(self, name: str) -> bytes | None:
        durable = self._read(name)
        buffered = b"".join(self._buffers.get(name, ()))
        return buffered or None if durable is None else durable + buffered

    def append(self, name: str, data: bytes) -> None:
        if name in self._failed:
            raise DiskFault(f"{name} had a failed write and must be rewritten before use")
        self._buffers.setdefault(name, []).append(data)

    def sync(self, name: str) -> None:
        """See `Disk`. Raises CorruptFile, too: what another process left of the file is damaged."""
        pending = self._buffers.get(name)
        if not pending:
            return
        data = b"".join(pending)
        pending.clear()
        try:
            self._add(name, data)
        except BaseException:
            # Whatever it was: how far the file goes now is not known any more.
            self._failed.add(name)
            self._ends.pop(name, None)
            raise

    def replace(self, name: str, data: bytes) -> None:
        self._buffers.pop(name, None)
        self._ends.pop(name, None)
        sealing = Sealing(self._sealer, self._room)
        self._disk.replace(name, sealing.whole(data))
        self._ends[name] = _End(sealing, sealed_size(len(data)))
        self._failed.discard(name)

    def rename(self, old: str, new: str) -> None:
        end = self._ends.pop(old, None)
        self._ends.pop(new, None)
        self._buffers.pop(new, None)
        self._disk.rename(old, new)
        if end is not None:
            self._ends[new] = end
        self._failed.discard(new)

    def reader(self, name: str) -> SealedReader | None:
        found = self._disk.reader(name)
        if found is None:
            return None
        try:
            return SealedReader(self._sealer, self._room, found, source=name)
        except BaseException:
            found.close()
            raise

    def remove(self, name: str) -> None:
        self._ends.pop(name, None)
        self._buffers.pop(name, None)
        self._failed.discard(name)
        self._disk.remove(name)

    def names(self) -> list[str]:
        return self._disk.names()

    def _read(self, name: str) -> bytes | None:
        raw = self._disk.read(name)
        if raw is None:
            return None
        reader = SealedReader(self._sealer, self._room, BytesReader(raw), source=name)
        return reader.read(0, reader.size)

    def _add(self, name: str, data: bytes) -> None:
        end = self._ends.get(name)
        if end is None:
            # A file is begun as a whole, too: of a header in a group that was never synced may be
            # left what reads as damage, though nothing durable is lost.
            self.replace(name, (self._read(name) or b"") + data)
            return
        raw = end.sealing.frames(data, end.position, end.position)
        self._disk.append(name, raw)
        self._disk.sync(name)
        end.position += len(raw)
