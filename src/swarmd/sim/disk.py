"""A disk that forgets what was not synced, refuses, lies and rots as real ones do.

Bytes are in one of three places: durable; written and not synced, which a killed process
leaves to the kernel and a power loss takes away or tears; or *dropped* by a sync that failed,
which can still be read until the power goes and never reach the platter, whatever a later
sync says.
"""

from __future__ import annotations

from typing import Final

from swarmd.base.disk import BytesReader
from swarmd.base.errors import DiskFault
from swarmd.sim.world import World


class PowerLost(Exception):
    """The power went in the middle of an operation: nothing after it happened."""


class SimDisk:
    """Implements `base.disk.Disk` in memory; survives a simulated crash as a real disk would.

    Attributes:
        full: while set, nothing more fits.
        syncs_to_fail: how many of the next writes to a file's end do not become durable.
        fuse: operations until the power goes in the middle of one; None: it stays.
    """

    blocking: Final = False

    def __init__(self, world: World, label: str) -> None:
        self._world = world
        self._rng = world.rng_for(f"disk:{label}")
        self._durable: dict[str, bytes] = {}
        self._pending: dict[str, bytes] = {}
        self._dropped: dict[str, bytes] = {}
        self.full = False
        self.syncs_to_fail = 0
        self.fuse: int | None = None

    def read(self, name: str) -> bytes | None:
        if name not in self.names():
            return None
        unsynced = self._dropped.get(name, b"") + self._pending.get(name, b"")
        return self._durable.get(name, b"") + unsynced

    def append(self, name: str, data: bytes) -> None:
        self._pending[name] = self._pending.get(name, b"") + data

    def sync(self, name: str) -> None:
        data = self._pending.get(name, b"")
        if not data:
            return
        self._burn()
        del self._pending[name]
        if self.full or self.syncs_to_fail > 0:
            # The kernel marks the pages clean: the next sync has nothing to say about them.
            self._dropped[name] = self._dropped.get(name, b"") + data
            self._refuse_if_full(name)
            self.syncs_to_fail -= 1
            self._world.count("failed_sync")
            raise DiskFault(f"cannot write {name}: Input/output error")
        self._durable[name] = self._durable.get(name, b"") + data

    def replace(self, name: str, data: bytes) -> None:
        self._burn()
        self._refuse_if_full(name)
        self._forget(name)
        self._durable[name] = data

    def rename(self, old: str, new: str) -> None:
        self._burn()
        self._refuse_if_full(old)
        self._forget(new)
        for files in (self._durable, self._pending, self._dropped):
            if old in files:
                files[new] = files.pop(old)

    def reader(self, name: str) -> BytesReader | None:
        content = self.read(name)
        return None if content is None else BytesReader(content)

    def remove(self, name: str) -> None:
        self._burn()
        self._forget(name)
        self._durable.pop(name, None)

    def names(self) -> list[str]:
        return sorted({*self._durable, *self._pending, *self._dropped})

    def _forget(self, name: str) -> None:
        self._pending.pop(name, None)
        self._dropped.pop(name, None)

    def _refuse_if_full(self, name: str) -> None:
        if self.full:
            raise DiskFault(f"cannot write {name}: No space left on device")

    def _burn(self) -> None:
        if self.fuse is None:
            return
        self.fuse -= 1
        if self.fuse < 0:
            self.fuse = None
            raise PowerLost

    # ---- what happens to a disk --------------------------------------------------------

    def crash(self) -> None:
        """Power loss: unsynced bytes go, except that a torn prefix of them may stay."""
        for name, data in sorted(self._pending.items()):
            if data and self._rng.random() < 0.5 and name not in self._dropped:
                kept = data[: self._rng.randrange(len(data) + 1)]
                self._durable[name] = self._durable.get(name, b"") + kept
                self._world.count("torn_write")
            elif data:
                self._world.count("lost_write")
        self._pending.clear()
        self._dropped.clear()
        self.fuse = None

    def lose(self) -> None:
        """The disk is replaced by an empty one."""
        for files in (self._durable, self._pending, self._dropped):
            files.clear()
        self.full, self.syncs_to_fail, self.fuse = False, 0, None
        self._world.count("disk_loss")

    def flip_bit(self, name: str, at: int) -> None:
        """One bit of a durable file's byte `at` turns over."""
        raw = bytearray(self._durable[name])
        raw[at] ^= 1 << self._rng.randrange(8)
        self._durable[name] = bytes(raw)
        self._world.count("bit_flip")

    def copy(self) -> dict[str, bytes]:
        """An image of what is durable, as a backup program would take it."""
        return dict(self._durable)

    def put_back(self, image: dict[str, bytes]) -> None:
        """Restore an image: the disk forgets everything since."""
        self._durable = dict(image)
        self._pending.clear()
        self._dropped.clear()
