"""A disk that forgets what was not synced."""

from __future__ import annotations

from swarmd.base.errors import DiskFault
from swarmd.sim.world import World


class SimDisk:
    """Implements `base.disk.Disk` in memory; survives a simulated crash as a real disk would."""

    def __init__(self, world: World, label: str) -> None:
        self._world = world
        self._rng = world.rng_for(f"disk:{label}")
        self._durable: dict[str, bytes] = {}
        self._pending: dict[str, bytes] = {}
        self.full = False

    def read(self, name: str) -> bytes | None:
        if name not in self._durable and name not in self._pending:
            return None
        return self._durable.get(name, b"") + self._pending.get(name, b"")

    def append(self, name: str, data: bytes) -> None:
        self._pending[name] = self._pending.get(name, b"") + data

    def sync(self, name: str) -> None:
        data = self._pending.pop(name, b"")
        if not data:
            return
        if self.full:
            raise DiskFault(f"cannot write {name}: No space left on device")
        self._durable[name] = self._durable.get(name, b"") + data

    def replace(self, name: str, data: bytes) -> None:
        if self.full:
            raise DiskFault(f"cannot write {name}: No space left on device")
        self._pending.pop(name, None)
        self._durable[name] = data

    def remove(self, name: str) -> None:
        self._pending.pop(name, None)
        self._durable.pop(name, None)

    def names(self) -> list[str]:
        return sorted({*self._durable, *self._pending})

    def crash(self) -> None:
        """Power loss: unsynced bytes go, except that a torn prefix of them may stay."""
        for name, data in sorted(self._pending.items()):
            if data and self._rng.random() < 0.5:
                kept = data[: self._rng.randrange(len(data) + 1)]
                self._durable[name] = self._durable.get(name, b"") + kept
                self._world.count("torn_write")
            elif data:
                self._world.count("lost_write")
        self._pending.clear()
