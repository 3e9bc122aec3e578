"""A simulated host: a disk, two clocks, a process that can be killed, paused and started.

Each host has a monotonic clock that runs a little fast or slow, begins anywhere and never
falls, and a wall clock that somebody may set to anything. What a process scheduled dies with
it: `life` outdates everything of an earlier one. What falls due while a process is paused
happens, in order, when it goes on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

from swarmd.base.errors import CorruptFile, Diverged
from swarmd.sim.disk import PowerLost, SimDisk
from swarmd.sim.network import Network
from swarmd.sim.world import World

RATE_MIN: Final = 0.95
RATE_MAX: Final = 1.05


class HostClock:
    """A `base.clock.Clock` on virtual time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._local = 0.0
        self._since = 0.0
        self.rate = 1.0
        self.wall_offset_ms = 0

    def now(self) -> float:
        return self._local + (self._world.now - self._since) * self.rate

    def wall_ms(self) -> int:
        return int(self._world.now * 1_000) + self.wall_offset_ms

    def set_rate(self, rate: float) -> None:
        """Run faster or slower from now on; nothing jumps."""
        self._local, self._since, self.rate = self.now(), self._world.now, rate

    def begin(self, local: float) -> None:
        """As after a boot: another origin."""
        self._local, self._since = local, self._world.now


class Host(ABC):
    """What a process runs on. Subclasses say what runs."""

    def __init__(self, world: World, network: Network, name: str) -> None:
        self.name = name
        self.world = world
        self.network = network
        self.disk = SimDisk(world, name)
        self.clock = HostClock(world)
        self.rng = world.rng_for(f"host:{name}")
        self.up = False
        self.life = 0
        self.paused_until = 0.0
        self.slow_until = 0.0
        # Why this host's disk may not be started on any more; None: it may.
        self.lost: str | None = None
        # The file of this disk that is damaged.
        self.flipped: str | None = None
        # Has a bit turned over in this process's memory? Then it must stop for it.
        self.state_flipped = False

    @abstractmethod
    def boot(self) -> None:
        """Begin the process on what the disk holds; may raise anything."""

    @abstractmethod
    def receive(self, source: str, message: Any) -> None:
        """Take a message from the network."""

    @abstractmethod
    def ended(self) -> None:
        """The process is gone: forget what was in memory."""

    # ---- life ----------------------------------------------------------------------------

    def begin(self) -> None:
        """Start a life; the caller boots the process."""
        self.life += 1
        self.up = True
        self.network.attach(self.name, self._arrive)

    def crash(self, *, power: bool) -> None:
        """End the process without a word; with `power`, unsynced bytes are gone, too."""
        if self.up:
            self.world.count("crash" if power else "kill")
        self.down()
        if power:
            self.disk.crash()
            self.clock.begin(self.rng.uniform(0.0, 1_000.0))

    def down(self) -> None:
        """The process is gone."""
        if self.up:
            self.up = False
            self.life += 1
            self.network.detach(self.name)
            self.ended()

    def stop_for(self, error: Exception) -> None:
        """The process ended itself, which is a finding, unless its memory was at fault."""
        if self.state_flipped and isinstance(error, Diverged):
            self.world.count("state_flip_found")
            self.lost = str(error)
            self.crash(power=False)
            return
        self.world.violate(f"{self.name} stopped: {type(error).__name__}: {error}")
        self.crash(power=False)

    # ---- what falls due ------------------------------------------------------------------

    def after(self, delay_s: float, function: Callable[..., None], *args: Any) -> None:
        """Like `World.after`, for as long as this process lives, by its own clock."""
        self.world.after(delay_s / self.clock.rate, self._due, self.life, function, args)

    def _due(self, life: int, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.life != life or not self.up:
            return
        if self.paused_until > self.world.now:
            self.world.after(self.paused_until - self.world.now, self._due, life, function, args)
            return
        self.run(function, *args)

    def run(self, function: Callable[..., None], *args: Any) -> None:
        """Run a part of the process; what ends it there is noted."""
        try:
            function(*args)
        except PowerLost as lost:
            self.power_lost(lost)
        except CorruptFile as error:
            self.refuse(error)
        except Exception as error:  # noqa: BLE001 - a machine that stops is a finding
            self.stop_for(error)

    def power_lost(self, lost: PowerLost) -> None:
        """The power went in the middle of writing."""
        self.world.count("crash_in_sync")
        self.crash(power=True)

    def refuse(self, error: CorruptFile) -> None:
        """The process refuses its disk: right if that is damaged, and by the file's name."""
        if self.flipped is None or self.flipped.rpartition(".")[2] not in error.message:
            self.stop_for(error)
        else:
            self.world.count("damage_named")
            self.lost = error.message
            self.down()

    def _arrive(self, source: Any, message: Any) -> None:
        if self.paused_until > self.world.now:
            self._due(self.life, self.receive, (source, message))
        else:
            self.run(self.receive, source, message)
