"""What `bench swim` does to ten members, be they of swarmd or of serf: one way for both."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from localswarm import Daemon, LocalSwarm
from loopback import read_bound_hosts
from sightings import Record, all_see_all_at, known_to_all_at, seen_by_swarmd, strangers

# What takes longer counts as so long, and the next measurement begins.
LONGEST_S: Final = 60.0
_LOOK_EVERY_S: Final = 0.05
_BOUND_EVERY_S: Final = 0.002


class Side(Protocol):
    """Members of one kind, named n1, n2, ..."""

    names: list[str]
    hosts: dict[str, str]
    port: int
    record: Record

    def start(self, name: str) -> None: ...
    def kill(self, name: str) -> None: ...
    def stop(self, name: str) -> None:
        """As a service manager stops it."""

    def pid(self, name: str) -> int: ...
    def unlearn(self) -> None:
        """Have all, none of whom runs, forget where the others are."""

    def follow(self) -> None:
        """Bring the record up to date."""


class Swarmd:
    """Daemons of one swarm; what they see is read from their logs, which are in JSON."""

    def __init__(self, swarm: LocalSwarm) -> None:
        self._swarm = swarm
        self.names = [daemon.name for daemon in swarm.daemons]
        self.hosts = {daemon.name: daemon.address for daemon in swarm.daemons}
        self.port = swarm[0].port
        self.record = Record()
        self._logs = [_Log(daemon) for daemon in swarm.daemons]

    def start(self, name: str) -> None:
        self.record.started(name, time.time())
        self._swarm.by_name(name).start()

    def kill(self, name: str) -> None:
        self._swarm.by_name(name).kill()

    def stop(self, name: str) -> None:
        code = self._swarm.by_name(name).terminate(30)
        if code != 0:
            raise RuntimeError(f"{name} ended with {code}")

    def pid(self, name: str) -> int:
        process = self._swarm.by_name(name).process
        assert process is not None
        return process.pid

    def unlearn(self) -> None:
        known = [daemon.folder / "data" / "mesh" / "members" for daemon in self._swarm.daemons]
        assert any(path.exists() for path in known), "members are remembered elsewhere by now"
        for path in known:
            path.unlink(missing_ok=True)

    def follow(self) -> None:
        for log in self._logs:
            self.record.add(seen_by_swarmd(log.name, line) for line in log.read())


class _Log:
    """The lines of a daemon's log, as they come."""

    def __init__(self, daemon: Daemon) -> None:
        self.name = daemon.name
        self._path = daemon.log
        self._offset = 0

    def read(self) -> list[str]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._offset += end
        return data[:end].decode(errors="replace").splitlines()


class _Bindings:
    """Watches, from before they are started, until all have bound their sockets."""

    def __init__(self, side: Side) -> None:
        self._port, self._hosts = side.port, set(side.hosts.values())
        self._ended = threading.Event()
        self.first_at = self.last_at = 0.0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def wait(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)
        self._ended.set()
        self._thread.join()
        if not self.last_at:
            raise TimeoutError(f"not all have bound port {self._port} after {timeout_s:g} s")

    def _watch(self) -> None:
        before_at = time.time()
        while not self._ended.is_set():
            at = time.time()
            bound = self._hosts & read_bound_hosts(self._port)
            if bound and not self.first_at:
                self.first_at = before_at
            if bound == self._hosts:
                # When it was not so yet: what follows is never taken for shorter than it was.
                self.last_at = before_at
                return
            before_at = at
            time.sleep(_BOUND_EVERY_S)


def wait_for(side: Side, look: Callable[[], float | bool | None]) -> float | None:
    """What `look` finds in the record; None after LONGEST_S."""
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        side.follow()
        found = look()
        if found:
            return float(found)
        time.sleep(_LOOK_EVERY_S)
    return None


def wait_whole(side: Side) -> None:
    """Until each holds all others alive. Raises TimeoutError."""
    if wait_for(side, lambda: not strangers(side.record.current(), side.names)) is None:
        pairs = ", ".join(f"{a}-{b}" for a, b in strangers(side.record.current(), side.names))
        raise TimeoutError(f"strangers after {LONGEST_S:g} s at port {side.port}: {pairs}")


def kill_all(side: Side) -> None:
    for name in side.names:
        os.kill(side.pid(name), signal.SIGSTOP)  # None sees another die.
    for name in side.names:
        side.kill(name)
    side.follow()
    side.record.clear()


def bootstrap_s(side: Side) -> tuple[float, float]:
    """All are killed and started at once, knowing nobody but seeds: from the last socket bound
    until each holds all others alive, and how long the sockets took to be bound."""
    kill_all(side)
    side.unlearn()
    bindings = _Bindings(side)
    for name in side.names:
        side.start(name)
    bindings.wait(LONGEST_S)
    at = wait_for(side, lambda: all_see_all_at(side.record.current(), side.names))
    took_s = LONGEST_S if at is None else max(0.0, at - bindings.last_at)
    return took_s, bindings.last_at - bindings.first_at


def known_dead_s(side: Side, name: str, end: Callable[[str], None]) -> float:
    """From the end of a member until each other holds it dead."""
    since = time.time()
    end(name)
    at = wait_for(
        side, lambda: known_to_all_at(side.record.current(), name, "dead", side.names, since)
    )
    return LONGEST_S if at is None else at - since
