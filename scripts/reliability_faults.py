"""What is done to the daemons, each kind of fault under a name, chosen by a seed.

A fault begins, is held for some seconds, and ends; then everything is healed and has to work
again before the next. What is chosen is a function of the seed; what comes of it is not, since
real processes and clocks are in play.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Final

from localswarm import Daemon, LocalSwarm, wait_until
from nethosts import Host, NetHosts

from swarmd.base.errors import SwarmError
from swarmd.client import Client

HERE: Final = Path(__file__).resolve().parent
# More than the 64 MiB that a daemon wants to see free at its start.
DISK_MIB: Final = 160
SLOW_SYNC_MS: Final = (50, 400)
HELD_S: Final = (2.0, 6.0)
HEALED_WITHIN_S: Final = 60.0
STOPPED_WITHIN_S: Final = 30.0
LEAVE_WITHIN_S: Final = 30.0
_ASK_TIMEOUT_S: Final = 2.0
_FILL_BYTES: Final = 1024 * 1024
# How often a fault that has a choice takes the coordinator, which holds what can be lost.
_COORDINATOR_CHANCE: Final = 0.6


class NotHealed(Exception):
    """The swarm did not work again in time after everything was healed."""


def compile_shim(folder: Path) -> Path | None:
    """The library that makes syncs fail or take long; None where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    library = folder / "disk_faults.so"
    source = str(HERE / "disk_faults.c")
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), source, "-ldl"]
    subprocess.run(command, check=True)
    return library


class Field:
    """The swarm, its hosts and its disks: what faults lay hands on, and how all is put right.

    Args:
        hosts: one for each daemon. All but the first get small disks of their own.
        say: called with one line for each thing done.
    """

    def __init__(
        self,
        swarm: LocalSwarm,
        hosts: NetHosts,
        shim: Path | None,
        rng: random.Random,
        say: Callable[[str], None],
    ) -> None:
        self.swarm = swarm
        self.hosts = hosts
        self.rng = rng
        self.say = say
        self.has_shim = shim is not None
        self.problems: list[str] = []
        self._paused: set[str] = set()
        self._leaving: set[str] = set()
        self._probes = 0
        for number, (daemon, host) in enumerate(zip(swarm.daemons, hosts.hosts, strict=True)):
            if number > 0:
                hosts.make_disk(host, daemon.folder / "data", DISK_MIB)
            if shim is not None:
                daemon.environ = {
                    "LD_PRELOAD": str(shim),
                    "DISK_FAULT_FOLDER": str(daemon.folder / "data"),
                    "DISK_FAULT_FILE": str(self._told(daemon)),
                }

    # ---- choosing ------------------------------------------------------------------------

    def host_of(self, daemon: Daemon) -> Host:
        return self.hosts[self.swarm.daemons.index(daemon)]

    def coordinator(self) -> Daemon | None:
        """Whom the daemons that answer name in the highest term."""
        found: tuple[tuple[int, int], str] | None = None
        for daemon in self.swarm.alive():
            if daemon.name in self._paused:
                continue
            with contextlib.suppress(SwarmError), self.client(daemon) as client:
                status = client.status()
                if status.coordinator and status.store is not None:
                    key = (status.store.epoch, status.store.term)
                    found = max(found or (key, status.coordinator), (key, status.coordinator))
        return self.swarm.by_name(found[1]) if found is not None else None

    def victim(self, among: list[Daemon] | None = None) -> Daemon:
        """A daemon, rather the coordinator."""
        choices = among if among is not None else self.swarm.daemons
        preferred = self.coordinator() if self.rng.random() < _COORDINATOR_CHANCE else None
        drawn = self.rng.choice(choices)  # Always drawn, so that later choices do not move.
        return preferred if preferred is not None and preferred in choices else drawn

    def voters(self) -> list[Daemon]:
        """As one that answers names them."""
        for daemon in self.swarm.alive():
            with contextlib.suppress(SwarmError), self.client(daemon) as client:
                store = client.status().store
                if store is not None and store.voters:
                    return [self.swarm.by_name(name) for name in store.voters]
        return []

    def split(self) -> tuple[list[Daemon], list[Daemon]]:
        """A minority that the coordinator is as likely to be in as in the rest, and the rest."""
        count = self.rng.randint(1, (len(self.swarm.daemons) - 1) // 2)
        minority = self.rng.sample(self.swarm.daemons, count)
        return minority, [d for d in self.swarm.daemons if d not in minority]

    def client(self, daemon: Daemon) -> Client:
        return Client(daemon.socket, timeout_s=_ASK_TIMEOUT_S)

    def rest(self, least_s: float, most_s: float) -> None:
        """Let things be as they are for a while."""
        time.sleep(self.rng.uniform(least_s, most_s))

    # ---- doing ---------------------------------------------------------------------------

    def cut(self, one: list[Daemon], other: list[Daemon], *, one_way: bool = False) -> None:
        sides = ([self.host_of(d) for d in side] for side in (one, other))
        self.hosts.cut(*sides, one_way=one_way)

    def pause(self, daemon: Daemon) -> None:
        if daemon.process is not None:
            daemon.pause()
            self._paused.add(daemon.name)

    def resume(self, daemon: Daemon) -> None:
        self._paused.discard(daemon.name)
        if daemon.process is not None:
            daemon.resume()

    def fill(self, daemon: Daemon) -> None:
        """Leave no byte free on the daemon's small disk."""
        block = bytes(_FILL_BYTES)
        with contextlib.suppress(OSError), self._filler(daemon).open("ab", buffering=0) as file:
            while file.write(block):
                pass

    def free(self, daemon: Daemon) -> None:
        self._filler(daemon).unlink(missing_ok=True)

    def tell_disk(self, daemon: Daemon, what: str) -> None:
        """What its syncs do from now on: see disk_faults.c."""
        aside = self._told(daemon).with_suffix(".new")
        aside.write_text(what)
        aside.rename(self._told(daemon))

    def stop(self, daemon: Daemon) -> None:
        """An orderly end, as by a service manager."""
        if daemon.terminate(STOPPED_WITHIN_S) == -9:
            self.problems.append(f"{daemon.name} did not stop within {STOPPED_WITHIN_S:g} s")

    def leave(self, daemon: Daemon) -> str:
        """Ask it to leave. Why it may not; empty if it leaves, or went before its answer."""
        self._leaving.add(daemon.name)
        try:
            with Client(daemon.socket, timeout_s=STOPPED_WITHIN_S) as client:
                client.leave()
        except SwarmError as error:
            gone = daemon.process is not None and daemon.process.poll() == 0
            return "" if gone else error.message
        return ""

    @staticmethod
    def _told(daemon: Daemon) -> Path:
        return daemon.folder / "disk-faults"

    def _filler(self, daemon: Daemon) -> Path:
        inside = self.host_of(daemon).root
        return inside / (daemon.folder / "data" / "filler").relative_to("/")

    # ---- healing -------------------------------------------------------------------------

    def note_ended(self, *, disk_trouble: bool = False) -> None:
        """Daemons that ended by themselves; a fault of the disk excuses it."""
        for daemon in self.swarm.daemons:
            if daemon.process is None or daemon.process.poll() is None:
                continue
            code = daemon.process.returncode
            daemon.process = None
            if code == 0 and daemon.name in self._leaving:
                continue
            self.say(f"{daemon.name} ended by itself (exit code {code})")
            if not disk_trouble:
                self.problems.append(f"{daemon.name} ended by itself (exit code {code})")

    def heal(self) -> None:
        """Undo everything, then wait until every daemon serves again. Raises NotHealed."""
        self.hosts.heal()
        for daemon in self.swarm.daemons:
            self.resume(daemon)
            self.free(daemon)
            if self.has_shim:
                self.tell_disk(daemon, "")
        deadline = time.monotonic() + HEALED_WITHIN_S
        waits_for = dict.fromkeys(daemon.name for daemon in self.swarm.daemons)
        while waits_for:
            for daemon in self.swarm.daemons:
                if daemon.process is None:
                    daemon.start()
                if daemon.name in waits_for and self._serves(daemon):
                    del waits_for[daemon.name]
            if time.monotonic() > deadline:
                raise NotHealed(
                    f"{', '.join(waits_for)} did not serve within {HEALED_WITHIN_S:g} s of healing"
                )
            self.note_ended()
            time.sleep(0.1)
        self._leaving.clear()

    def _serves(self, daemon: Daemon) -> bool:
        """It sees the whole swarm and all voters, and a write through it is acknowledged."""
        voters = min(3, len(self.swarm.daemons))
        try:
            with self.client(daemon) as client:
                status = client.status()
                store = status.store
                whole = status.ready and status.alive == len(self.swarm.daemons)
                if not whole or store is None or len(store.voters) < voters:
                    return False
                self._probes += 1
                client.kv_put(f"probe/{daemon.name}", str(self._probes).encode())
        except SwarmError:
            return False
        return True

    def epoch(self) -> int:
        """How many times the voters have changed, and one."""
        for daemon in self.swarm.alive():
            with contextlib.suppress(SwarmError), self.client(daemon) as client:
                store = client.status().store
                if store is not None:
                    return store.epoch
        return 0


class Fault:
    """One kind of fault. `alone`: it does not go together with another."""

    name: ClassVar[str]
    what: ClassVar[str]
    alone: ClassVar[bool] = False
    of_network: ClassVar[bool] = False
    of_disk: ClassVar[bool] = False
    needs_shim: ClassVar[bool] = False

    def begin(self, field: Field) -> str:
        """Do it; what was done to whom."""
        raise NotImplementedError

    def end(self, field: Field) -> None:
        """Undo it, as far as `Field.heal` shall not."""


class Kill(Fault):
    name = "kill"
    what = "a daemon, rather the coordinator, is killed (SIGKILL) and started again"

    def begin(self, field: Field) -> str:
        victim = field.victim()
        victim.kill()
        return victim.name


class KillAll(Fault):
    name = "kill_all"
    what = "all daemons are killed at once"
    alone = True

    def begin(self, field: Field) -> str:
        for daemon in field.swarm.daemons:
            if daemon.process is not None:
                daemon.process.kill()
        for daemon in field.swarm.daemons:
            daemon.kill()
        return "all"


class Pause(Fault):
    name = "pause"
    what = "a daemon stands still (SIGSTOP) and goes on (SIGCONT)"

    def begin(self, field: Field) -> str:
        self._victim = field.victim()
        field.pause(self._victim)
        return self._victim.name

    def end(self, field: Field) -> None:
        field.resume(self._victim)


class Partition(Fault):
    name = "partition"
    what = "nothing passes between a minority and the rest (nftables)"
    of_network = True

    def begin(self, field: Field) -> str:
        minority, rest = field.split()
        field.cut(minority, rest)
        return f"{_names(minority)} from {_names(rest)}"


class OneWay(Fault):
    name = "one_way"
    what = "nothing passes from one group to another, but all the way back"
    of_network = True

    def begin(self, field: Field) -> str:
        sides = list(field.split())
        field.rng.shuffle(sides)
        field.cut(*sides, one_way=True)
        return f"{_names(sides[0])} to {_names(sides[1])}"


class IsolateCoordinator(Fault):
    name = "isolate"
    what = "the coordinator is cut off from all others"
    of_network = True

    def begin(self, field: Field) -> str:
        victim = field.coordinator() or field.rng.choice(field.swarm.daemons)
        field.cut([victim], [d for d in field.swarm.daemons if d is not victim])
        return victim.name


class DiskFull(Fault):
    name = "disk_full"
    what = f"a daemon's disk, a tmpfs of {DISK_MIB} MiB, is filled up and freed again"
    of_disk = True

    def begin(self, field: Field) -> str:
        self._victim = field.victim(field.swarm.daemons[1:])
        field.fill(self._victim)
        return self._victim.name

    def end(self, field: Field) -> None:
        field.free(self._victim)


class SyncError(Fault):
    name = "sync_error"
    what = "every fsync of a daemon fails (EIO)"
    of_disk = True
    needs_shim = True

    def begin(self, field: Field) -> str:
        self._victim = field.victim()
        field.tell_disk(self._victim, "eio")
        return self._victim.name

    def end(self, field: Field) -> None:
        field.tell_disk(self._victim, "")


class SlowSync(Fault):
    name = "slow_sync"
    what = f"every fsync of a daemon takes {SLOW_SYNC_MS[0]} to {SLOW_SYNC_MS[1]} ms longer"
    of_disk = True
    needs_shim = True

    def begin(self, field: Field) -> str:
        self._victim = field.victim()
        delay_ms = field.rng.randint(*SLOW_SYNC_MS)
        field.tell_disk(self._victim, f"slow {delay_ms}")
        return f"{self._victim.name} by {delay_ms} ms"

    def end(self, field: Field) -> None:
        field.tell_disk(self._victim, "")


class RollingRestart(Fault):
    name = "rolling"
    what = "one daemon after the other is stopped in order (SIGTERM) and started again"
    alone = True

    def begin(self, field: Field) -> str:
        order = field.rng.sample(field.swarm.daemons, len(field.swarm.daemons))
        for daemon in order:
            field.stop(daemon)
            daemon.start()
            wait_until(f"{daemon.name} is ready", lambda d=daemon: _ready(field, d), timeout_s=40)
        return _names(order)


class LeaveAndJoin(Fault):
    name = "leave"
    what = "a voter hands its seat on and leaves; later it joins again"
    alone = True

    def begin(self, field: Field) -> str:
        deadline = time.monotonic() + LEAVE_WITHIN_S
        victim = field.victim(field.voters() or None)
        while (refused := field.leave(victim)) and time.monotonic() < deadline:
            time.sleep(0.5)
        if refused:
            field.problems.append(f"{victim.name} may not leave a healthy swarm: {refused}")
            return f"{victim.name} may not: {refused}"
        assert victim.process is not None
        try:
            victim.process.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            field.problems.append(f"{victim.name} left and did not end")
            victim.kill()
        victim.process = None
        return victim.name


class KillAtLeave(Fault):
    name = "leave_kill"
    what = "a daemon, perhaps itself, is killed within 0.4 s of a voter's asking to leave"
    alone = True

    def begin(self, field: Field) -> str:
        leaving = field.victim(field.voters() or None)
        killed = field.rng.choice(field.swarm.daemons)
        after_s = field.rng.uniform(0.0, 0.4)
        asking = threading.Thread(target=field.leave, args=(leaving,))
        asking.start()
        time.sleep(after_s)
        killed.kill()
        field.rest(0.0, 2.0)
        killed.start()
        asking.join()
        return f"{leaving.name} leaves, {killed.name} is killed {after_s * 1_000:.0f} ms later"


FAULTS: Final[tuple[type[Fault], ...]] = (
    Kill,
    KillAll,
    Pause,
    Partition,
    OneWay,
    IsolateCoordinator,
    DiskFull,
    SyncError,
    SlowSync,
    RollingRestart,
    LeaveAndJoin,
    KillAtLeave,
)
_TOGETHER_CHANCE: Final = 0.3


def left_out(field: Field) -> dict[str, str]:
    """Faults that are not done here, and why."""
    found = {"clock_step": "a running process cannot be given another clock: see scripts/sim"}
    if not field.has_shim:
        found |= {f.name: "there is no C compiler" for f in FAULTS if f.needs_shim}
    return found


class Bag:
    """Kinds of faults in a random order, each once before any comes again."""

    def __init__(self, kinds: list[type[Fault]], rng: random.Random) -> None:
        self._kinds = kinds
        self._rng = rng
        self._left: list[type[Fault]] = []
        self.rounds = 0

    def draw(self) -> list[Fault]:
        """One fault, or two that go together."""
        first = self._next()
        others = [
            kind
            for kind in self._kinds
            if not kind.alone
            and kind is not first
            and not (kind.of_network and first.of_network)
            and not (kind.of_disk and first.of_disk)
        ]
        if first.alone or not others or self._rng.random() > _TOGETHER_CHANCE:
            return [first()]
        return [first(), self._rng.choice(others)()]

    def _next(self) -> type[Fault]:
        if not self._left:
            self._left = self._rng.sample(self._kinds, len(self._kinds))
            self.rounds += 1
        return self._left.pop()

    @property
    def emptied(self) -> bool:
        """Has every kind come at least once?"""
        return self.rounds > 1 or (self.rounds == 1 and not self._left)


def _names(daemons: list[Daemon]) -> str:
    return ", ".join(daemon.name for daemon in daemons)


def _ready(field: Field, daemon: Daemon) -> bool:
    with contextlib.suppress(SwarmError), field.client(daemon) as client:
        return client.ready()
    return False
