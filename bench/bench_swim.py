"""Membership: how soon all know of who is here and who is gone, and what it costs to idle.

Ten daemons in the default configuration (TLS, fsync, a process each) that have the addresses of
all as seeds, and ten agents of serf likewise, in turns or at the same time, on one loopback
interface: that of a network of the bench's own where the user may make one. The same functions
measure both (`swim_sides.py`), by what either prints. Parts: see `PARTS`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import loopback
import psutil
import serf_peer
from localswarm import Daemon, LocalSwarm, free_port, wait_until
from percentiles import at
from run import Figure, Options
from sightings import doubts
from swim_sides import Side, Swarmd, bootstrap_s, known_dead_s, wait_whole

from swarmd.client import Client

COUNT = 10
SERF_PORT = 7946
SERF_RPC_PORT = 7373
# From when all see all until who died would be noticed as quickly as it ever is.
SETTLE_S = 2.0
IDLE_SETTLE_S = 10.0

Figures = Iterator[Figure]


@dataclass(frozen=True)
class Repeats:
    bootstraps: int = 10
    kills: int = 10
    serf_kills: int = 5  # Each takes it so much longer.
    silences: int = 3
    idle_s: float = 30.0
    mdns: int = 3


FULL = Repeats(bootstraps=200, kills=30, serf_kills=30, silences=20, idle_s=120.0, mdns=20)


@dataclass(frozen=True)
class World:
    """Both sides, formed and whole; `serf` is None where it is not installed."""

    swarm: LocalSwarm
    ours: Side
    serf: Side | None
    repeats: Repeats

    def both(self, measure: Callable[[Side], Any]) -> tuple[Any, Any]:
        """The same of both at the same time: where what counts is waiting."""
        sides = [side for side in (self.ours, self.serf) if side is not None]
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(measure, sides))
        return found[0], found[1] if len(found) > 1 else None


@contextlib.contextmanager
def world(options: Options) -> Iterator[World]:
    with daemons(static=True) as swarm, serf_beside(swarm) as serf:
        yield World(swarm, Swarmd(swarm), serf, repeats(options))


def repeats(options: Options) -> Repeats:
    return FULL if options.full else Repeats()


@contextlib.contextmanager
def daemons(*, static: bool) -> Iterator[LocalSwarm]:
    """A swarm of which each daemon holds all others alive."""
    root = Path(tempfile.mkdtemp(prefix="swarmd-bench-"))
    try:
        settings = {"node": {"log_format": "json"}}
        with LocalSwarm(root, COUNT, static=static, settings=settings) as swarm:
            first, *rest = swarm.daemons
            first.start("--init", "lab")
            wait_until(
                "a first daemon",
                lambda: (first.try_json("status") or {}).get("ready"),
                timeout_s=60,
            )
            token = first.json("token", "create", "--uses", "20", "--ttl", "1h")["token"]
            for daemon in rest:
                daemon.start("--join", "-", stdin=token)
            wait_whole(Swarmd(swarm))
            yield swarm
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def serf_beside(swarm: LocalSwarm) -> Iterator[serf_peer.Agents | None]:
    if not serf_peer.installed():
        print("serf is not installed: scripts/bench --setup-peers", file=sys.stderr)
        yield None
        return
    hosts = [daemon.address for daemon in swarm.daemons]
    port, rpc_port = free_port(hosts, SERF_PORT), free_port(hosts, SERF_RPC_PORT)
    with serf_peer.agents(len(hosts), port, rpc_port) as agents:
        for name in agents.names:
            agents.start(name)
        wait_whole(agents)
        yield agents


# ---- who is here ----------------------------------------------------------------------


def bootstrap(world: World) -> Figures:
    """In turns: what a start takes of both cores would be in the other's way."""
    ours, theirs = [], []
    for _ in range(world.repeats.bootstraps):
        ours.append(bootstrap_s(world.ours))
        if world.serf is not None:
            theirs.append(bootstrap_s(world.serf))
    yield from spread("bootstrap", [a for a, _ in ours], [a for a, _ in theirs])
    between = statistics.median(b for _, b in ours)
    yield Figure("info_bootstrap_sockets_bound_within_p50_s", between)
    world.both(wait_whole)


def spread(name: str, ours: Sequence[float], theirs: Sequence[float] | None = None) -> Figures:
    """The figure is the 99th percentile; the median and the longest are told, too."""
    for suffix, share in (("p99", 0.99), ("p50", 0.5), ("longest", 1.0)):
        prefix = "" if suffix == "p99" else "info_"
        peer = at(sorted(theirs), share) if theirs else None
        yield Figure(f"{prefix}{name}_{suffix}_s", at(sorted(ours), share), peer)


def mdns(options: Options) -> Figures:
    """The same without seeds: each announces itself, and looks up who is announced."""
    with daemons(static=False) as swarm:
        side = Swarmd(swarm)
        took = sorted(bootstrap_s(side)[0] for _ in range(repeats(options).mdns))
    yield Figure("info_bootstrap_by_mdns_p50_s", at(took, 0.5))
    yield Figure("info_bootstrap_by_mdns_longest_s", took[-1])


# ---- who is gone ----------------------------------------------------------------------


def kills(world: World) -> Figures:
    """One after the other: from SIGKILL until all others hold it dead."""

    def measure(side: Side) -> list[float]:
        count = world.repeats.kills if side is world.ours else world.repeats.serf_kills
        return [gone(side, name, side.kill, side.start) for name in rounds(side, count)]

    yield from spread("killed", *world.both(measure))


def silence(world: World) -> Figures:
    """The same from SIGSTOP: its host answers, and it does not."""

    def measure(side: Side) -> list[float]:
        def pause(name: str) -> None:
            os.kill(side.pid(name), signal.SIGSTOP)

        def resume(name: str) -> None:
            os.kill(side.pid(name), signal.SIGCONT)

        count = world.repeats.silences
        return [gone(side, name, pause, resume) for name in rounds(side, count)]

    yield from spread("silent", *world.both(measure))


def gone(side: Side, name: str, end: Callable[[str], None], begin: Callable[[str], None]) -> float:
    took_s = known_dead_s(side, name, end)
    begin(name)
    wait_whole(side)
    time.sleep(SETTLE_S)
    return took_s


def rounds(side: Side, count: int) -> list[str]:
    return [side.names[(COUNT - 1 - number) % COUNT] for number in range(count)]


def rolling(world: World) -> Figures:
    """One after the other is stopped, as its service manager would, and started anew."""

    def measure(side: Side) -> int:
        began_at = time.time()
        for name in side.names:
            side.stop(name)
            side.start(name)
            wait_whole(side)
        time.sleep(IDLE_SETTLE_S)
        side.follow()
        return len(doubts(side.record.all(), began_at))

    ours, theirs = world.both(measure)
    yield Figure("rolling_restart_suspicions", ours, theirs)


# ---- what it costs to idle ------------------------------------------------------------


@dataclass(frozen=True)
class Quiet:
    """What members of one side did while nothing happened, each; bytes with their IP headers."""

    packets_per_s: float
    datagram_bytes_per_s: float
    stream_bytes_per_s: float
    cpu_percent: dict[str, float]
    rss_mb: float
    doubts: int


def observe(sides: Sequence[Side], seconds: float) -> list[Quiet]:
    """Raises OSError where packets cannot be counted, or not all of them."""
    began_at = time.time()
    before = [cpu_s(side) for side in sides]
    with loopback.counting([side.port for side in sides]) as count:
        began = time.monotonic()
        time.sleep(seconds)
        took_s = time.monotonic() - began
    found = []
    for side, cpu in zip(sides, before, strict=True):
        udp, tcp = count.of(side.port, "udp"), count.of(side.port, "tcp")
        now = cpu_s(side)
        side.follow()
        found.append(
            Quiet(
                udp.packets / COUNT / took_s,
                udp.bytes / COUNT / took_s,
                tcp.bytes / COUNT / took_s,
                {name: (now[name] - cpu[name]) / took_s * 100 for name in side.names},
                max(psutil.Process(side.pid(n)).memory_info().rss for n in side.names) / 1e6,
                len(doubts(side.record.all(), began_at)),
            )
        )
    return found


def idle(world: World) -> Figures:
    """What a member sends and takes while nothing happens.

    Datagrams are membership's alone: they are counted as they pass on the interface. Views go
    over streams that others use, too: of these the daemons say how many bytes they have sent.
    What the processor does for membership is not told apart: it is at most what it does for a
    daemon without a vote. All that an agent of serf does and sends is membership.
    """
    time.sleep(IDLE_SETTLE_S)
    sides = [side for side in (world.ours, world.serf) if side is not None]
    voters, views = voting(world.swarm), view_bytes(world.swarm)
    began = time.monotonic()
    try:
        all_rooms, *serf = observe(sides, world.repeats.idle_s)
    except OSError as error:
        print(f"packets were not counted, which takes root: {error}", file=sys.stderr)
        return
    voters |= voting(world.swarm)
    views_per_s = (view_bytes(world.swarm) - views) / COUNT / (time.monotonic() - began)
    used = all_rooms.cpu_percent
    others = {name: percent for name, percent in used.items() if name not in voters}
    ours = replace(all_rooms, stream_bytes_per_s=views_per_s, cpu_percent=others)
    rows: list[tuple[str, Callable[[Quiet], float]]] = [
        ("idle_packets_per_s", lambda one: one.packets_per_s),
        ("idle_bytes_per_s", lambda one: one.datagram_bytes_per_s + one.stream_bytes_per_s),
        ("idle_cpu_percent", lambda one: max(one.cpu_percent.values())),
        ("info_idle_stream_bytes_per_s", lambda one: one.stream_bytes_per_s),
        ("info_idle_rss_mb", lambda one: one.rss_mb),
        ("info_idle_suspicions", lambda one: one.doubts),
    ]
    for name, value in rows:
        yield Figure(name, *map(value, [ours, *serf]))
    yield Figure("info_idle_stream_bytes_per_s_of_all_rooms", all_rooms.stream_bytes_per_s)
    yield Figure("info_idle_cpu_percent_of_the_busiest", max(used.values()))


def cpu_s(side: Side) -> dict[str, float]:
    """Processor time that each member has taken."""
    return {name: sum(psutil.Process(side.pid(name)).cpu_times()[:2]) for name in side.names}


def voting(swarm: LocalSwarm) -> set[str]:
    return set(swarm[0].json("status")["store"]["voters"])


def view_bytes(swarm: LocalSwarm) -> float:
    """Bytes of views that all daemons together have sent."""
    return sum(metric(daemon, "swarmd_swim_view_bytes_total") for daemon in swarm.daemons)


def metric(daemon: Daemon, name: str) -> float:
    with Client(daemon.socket) as client:
        for line in client.metrics().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
    raise LookupError(f"{daemon.name} has no metric {name}")


# And `mdns`: with --full, or if it is asked for.
PARTS: dict[str, Callable[[World], Figures]] = {
    "bootstrap": bootstrap,
    "kills": kills,
    "silence": silence,
    "rolling": rolling,
    "idle": idle,
}


def run(options: Options) -> Figures:
    if not loopback.enter_own_network():
        print("no network of its own: the machine's loopback is used", file=sys.stderr)
    yield Figure("info_load_before", os.getloadavg()[0])
    wanted = [part for name, part in PARTS.items() if not options.only or name in options.only]
    if wanted:
        with world(options) as made:
            for part in wanted:
                yield from part(made)
    if "mdns" in options.only or (options.full and not options.only):
        yield from mdns(options)
    yield Figure("info_load_after", os.getloadavg()[0])
