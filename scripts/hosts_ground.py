"""Ten daemons on ten hosts, what each of them sees, and whether all is well again."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hosts_journal import Excuse, Journal, Sighting, unexcused
from localswarm import Daemon, LocalSwarm, wait_until
from nethosts import Host, NetHosts

from swarmd.base.errors import SwarmError
from swarmd.client import Client

COUNT: Final = 10
IDLE_CLOSE_S: Final = 3.0
HEALED_WITHIN_S: Final = 60.0
FORMED_WITHIN_S: Final = 120.0
# What else this machine does must not be what is measured: its scheduler prefers the daemons.
NICE: Final = -5
ASK_TIMEOUT_S: Final = 5.0
# A daemon that waits for a core for so much of one second, shortly before or just as something is
# said of it or by it, is late for every answer: other work on this machine did that.
KEPT_S: Final = 0.5
KEPT_BEFORE_S: Final = 4.0
KEPT_AFTER_S: Final = 1.5
_LOOK_EVERY_S: Final = 0.3
_WAITS_KEPT: Final = 4_000
# They listen on every interface that they find, and are told of nobody.
SETTINGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "node": {"log_format": "json"},
    "mesh": {
        "bind": ["0.0.0.0"],
        "mdns": True,
        "interfaces": [],
        "seeds": [],
        "idle_close_s": IDLE_CLOSE_S,
    },
}

# One member as a daemon sees it: its id, name, state, incarnation, addresses, roles, tags.
Seen = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Preferred:
    """A place on a host whose daemon is preferred by the scheduler.

    Where sessions have their turns, and not processes, it is the session that is preferred.
    """

    host: Host

    @property
    def address(self) -> str:
        return self.host.address

    def enter(self, *command: str) -> list[str]:
        session = f"{{ echo {NICE} >/proc/self/autogroup; }} 2>/dev/null"
        return self.host.enter("sh", "-c", f'{session}; exec nice -n {NICE} "$@"', "sh", *command)


@dataclass(slots=True)
class CpuWatch:
    """How long each daemon waited for a core in each second, as the kernel counts it.

    A daemon that had to wait for long was starved by something else on this machine.
    """

    daemons: Sequence[Daemon]
    _waits: dict[str, deque[tuple[float, float]]] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> CpuWatch:
        self._waits = {daemon.name: deque(maxlen=_WAITS_KEPT) for daemon in self.daemons}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def longest_s(self, names: Iterable[str], since: float, until: float) -> float:
        """The most that any of these daemons waited within one second of that time."""
        waits = [one for name in names for one in list(self._waits[name])]
        return max((wait_s for at, wait_s in waits if since <= at <= until), default=0.0)

    def kept(self, one: Sighting) -> bool:
        """Could the one not answer, or the other not ask, because something else ran?"""
        since, until = one.at - KEPT_BEFORE_S, one.at + KEPT_AFTER_S
        return self.longest_s(one.pair, since, until) >= KEPT_S

    def _run(self) -> None:
        last: dict[int, float] = {}
        while not self._over.wait(1.0):
            for daemon in self.daemons:
                process = daemon.process
                if process is None:
                    continue
                with contextlib.suppress(OSError, ValueError, IndexError):
                    text = Path(f"/proc/{process.pid}/schedstat").read_text()
                    waited_s = int(text.split()[1]) / 1e9
                    before_s = last.setdefault(process.pid, waited_s)
                    self._waits[daemon.name].append((time.time(), waited_s - before_s))
                    last[process.pid] = waited_s


@dataclass(slots=True)
class Ground:
    """The swarm, its hosts and what is known of them. Made by `ten_hosts`."""

    swarm: LocalSwarm
    hosts: NetHosts
    journal: Journal
    waits: CpuWatch
    say: Callable[[str], None]
    owner: int
    excuses: list[Excuse] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _ids: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [daemon.name for daemon in self.swarm.daemons]

    def daemon(self, name: str) -> Daemon:
        return self.swarm.by_name(name)

    def host(self, name: str) -> Host:
        return self.hosts[self.swarm.daemons.index(self.daemon(name))]

    def form(self) -> float:
        """Start them all; how long it took until all views were equal, in seconds."""
        began = time.monotonic()
        self.swarm.form(timeout_s=FORMED_WITHIN_S)
        self._ids = {name: one.node_id for name, one in self._seen_by(self.names[0]).items()}
        self.wait_equal()
        return time.monotonic() - began

    # ---- what is seen ----------------------------------------------------------------------

    def states(self, observer: str) -> dict[str, str]:
        """Each member's state as one daemon sees it; empty while that does not answer."""
        try:
            return {name: str(one.state) for name, one in self._seen_by(observer).items()}
        except SwarmError:
            return {}

    def wait_equal(self, within_s: float = HEALED_WITHIN_S) -> tuple[float, float]:
        """Wait until all see all alive, and until all views are the same and true.

        Returns:
            How long either took, in seconds.

        Raises:
            TimeoutError: says who differs.
        """
        began = time.monotonic()
        healed_s: float | None = None
        while True:
            views = self._views()
            now_s = time.monotonic() - began
            if healed_s is None and all(map(self._is_whole, views.values())):
                healed_s = now_s
            differs = self._differs(views)
            if healed_s is not None and not differs:
                return healed_s, now_s
            if now_s > within_s:
                raise TimeoutError(f"views are not equal after {within_s:g} s: {differs}")
            time.sleep(_LOOK_EVERY_S)

    def _seen_by(self, observer: str) -> dict[str, Any]:
        with Client(self.daemon(observer).socket, timeout_s=ASK_TIMEOUT_S) as client:
            return {one.name: one for one in client.members()}

    def _views(self) -> dict[str, frozenset[Seen]]:
        """Everybody's; that of one who does not answer is empty."""
        with ThreadPoolExecutor(COUNT) as pool:
            return dict(zip(self.names, pool.map(self._view, self.names), strict=True))

    def _view(self, observer: str) -> frozenset[Seen]:
        try:
            members = self._seen_by(observer).values()
        except SwarmError:
            return frozenset()
        return frozenset(
            (
                *(one.node_id, one.name, str(one.state), one.incarnation),
                *(tuple(one.addresses), tuple(one.roles), tuple(sorted(one.tags.items()))),
            )
            for one in members
        )

    def _is_whole(self, view: frozenset[Seen]) -> bool:
        return {one[1] for one in view if one[2] == "alive"} == set(self.names)

    def _differs(self, views: Mapping[str, frozenset[Seen]]) -> str:
        """Where a view is not that of the first, or not the truth; empty if all are well."""
        first = views[self.names[0]]
        for name, view in views.items():
            odd = sorted(map(str, view ^ first))
            if odd:
                return f"{name} and {self.names[0]} differ in {odd[:4]}"
        for node_id, name, state, _, addresses, *_ in first:
            wanted = (f"{self.host(name).address}:{self.daemon(name).port}",)
            if (node_id, state, addresses) != (self._ids[name], "alive", wanted):
                return f"all hold {name} {state} at {addresses} as {node_id}"
        return "" if self._is_whole(first) else "nobody answers"

    # ---- what must not be ------------------------------------------------------------------

    def tell_false(self, deaths: Iterable[Sighting]) -> None:
        """Note deaths that nothing excuses, with what can be said of their reason."""
        for one in deaths:
            since = one.at - 30.0
            waits = [f"{n} {self.waits.longest_s([n], since, one.at):.2f} s" for n in one.pair]
            self.problems.append(
                f"{one.observer} held {one.subject} dead, which was well; in one second of the "
                f"30 s before, they waited for a core at most: {', '.join(waits)}"
            )

    def false_deaths(self) -> list[Sighting]:
        """All since the first daemon was started."""
        deaths = [one for one in self.journal.read() if one.now == "dead"]
        return unexcused(deaths, self.excuses)

    def note_ended(self) -> None:
        """Daemons that ended by themselves, or logged a bug."""
        self.journal.read()
        ended = set(self.names) - {daemon.name for daemon in self.swarm.alive()}
        self.problems += [f"{name} ended by itself" for name in sorted(ended)]
        self.problems += [f"{name} logged a traceback" for name in sorted(self.journal.crashed)]


@contextlib.contextmanager
def ten_hosts(folder: Path, say: Callable[[str], None] = print, owner: int = 0) -> Iterator[Ground]:
    """Ten hosts on one bridge with a daemon each, not started yet.

    Args:
        folder: for everything; the caller removes it.
        owner: whose control groups these are; see `hosts_quota`. 0: this process's.
    """
    with NetHosts(COUNT, own_folders=()) as hosts:
        places = [Preferred(host) for host in hosts.hosts]
        swarm = LocalSwarm(folder, COUNT, static=False, settings=SETTINGS, places=places)
        journal = Journal({daemon.name: daemon.log for daemon in swarm.daemons})
        with swarm, CpuWatch(swarm.daemons) as waits:
            ground = Ground(swarm, hosts, journal, waits, say, owner or os.getpid())
            try:
                yield ground
            finally:
                for daemon in swarm.alive():
                    daemon.resume()


def wait_seen(ground: Ground, subject: str, state: str, by: Iterable[str], within_s: float) -> None:
    """Wait until each of `by` holds `subject` so. Raises TimeoutError naming who does not."""
    for observer in by:
        wait_until(
            f"{observer} holds {subject} {state}",
            lambda o=observer: ground.states(o).get(subject) == state,
            timeout_s=within_s,
            every_s=0.1,
        )
