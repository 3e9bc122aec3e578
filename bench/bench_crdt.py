"""The eventual store: merging, what a sync costs, how soon all hold the same, and a million keys.

Daemons have the default configuration (TLS, fsync, a process each). What needs a partition runs on
hosts of network namespaces, which takes root; the rest on the loopback. Parts: see `PARTS`.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import crdt_filling
import crdt_merges
import crdt_peers
import loopback
import memory_load
import nethosts
import psutil
from localswarm import Daemon, LocalSwarm, wait_until
from memory_load import NAMESPACE
from percentiles import at
from run import Figure, Options

from swarmd.base.errors import SwarmError
from swarmd.base.limits import MIB
from swarmd.client import Client
from swarmd.client.requests import DaemonDown

SYNC_KEYS = 10_000
SYNC_STEP = 100  # Every hundredth differs.
CONVERGE_NODES = 10
CONVERGE_KEYS = 100_000
CONVERGE_TIMEOUT_S = 300.0
LATENCY_NODES = 5
LATENCY_SETS = 400
GETS = 2_000
IDLE_S = 20.0
MILLION = 1_000_000
PAGES = 60

Figures = Iterator[Figure]


@contextmanager
def folder() -> Iterator[Path]:
    prefix = "swarmd-bench-"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name:
        yield Path(name)


# ---- merging --------------------------------------------------------------------------------


def merges() -> Figures:
    """In this process; see `crdt_merges`."""
    yield from crdt_merges.measure()


# ---- what a sync costs ----------------------------------------------------------------------


def sync() -> Figures:
    """Two daemons of 10,000 keys, of which 1 % was written anew while one of them was away.

    What is counted are the messages of the store that both have sent from the other's start until
    it holds them all: before frames, TLS and TCP, as the libraries' bytes are.
    """
    with folder() as root, LocalSwarm(root, 2) as swarm:
        swarm.form()
        n1, n2 = swarm.daemons
        memory_load.write_all([n1.socket], [(0, SYNC_KEYS)])
        equal([n1, n2], SYNC_KEYS)
        yield Figure("idle_cpu_percent_10k_keys", idle_cpu(n2))
        n2.terminate()
        memory_load.write_all([n1.socket], [(0, SYNC_KEYS)], text="other", step=SYNC_STEP)
        before = said_bytes(n1)
        swarm.restart(n2)
        equal([n1, n2], SYNC_KEYS)
        ours = said_bytes(n1) - before + said_bytes(n2)
        last = SYNC_KEYS - SYNC_STEP
        got = memory_load.Connection(str(n2.socket)).get(NAMESPACE, memory_load.key_of(last))
        assert got == memory_load.value_of(last, "other")
    given = [[(memory_load.key_of(n), memory_load.value_of(n, "value")) for n in range(SYNC_KEYS)]]
    for package in crdt_peers.PACKAGES:
        library = crdt_peers.library_of(package)
        theirs = None
        if library is not None:
            library.make(given)
            others = [
                (key, memory_load.value_of(n, "other")) for n, (key, _) in enumerate(given[0])
            ]
            theirs = library.difference_bytes(others[::SYNC_STEP]) / 1024
        yield Figure(f"sync_kib_beside_{package}", ours / 1024, theirs)


def said_bytes(daemon: Daemon) -> float:
    """What it has sent of the eventual store since its start."""
    return metric(daemon, 'swarmd_message_bytes_total{family="crdt"}')


def metric(daemon: Daemon, name: str) -> float:
    """0 where it is not there yet."""
    return daemon.counted(f"{name} ")


def equal(daemons: Sequence[Daemon], keys: int, *, timeout_s: float = 120.0) -> float:
    """Wait until all have seen the same and hold so many keys; how long that took."""
    began = time.perf_counter()

    def same() -> bool:
        held: set[tuple[float, ...]] = set()
        for daemon in daemons:
            try:
                held.add(
                    tuple(metric(daemon, f"swarmd_crdt_{what}") for what in ("keys", "digest"))
                )
            except DaemonDown:
                return False  # It is on its way.
            if len(held) > 1:
                return False
        return {one[0] for one in held} == {keys}

    wait_until("all hold the same", same, timeout_s=timeout_s, every_s=0.1)
    return time.perf_counter() - began


def idle_cpu(daemon: Daemon) -> float:
    """Percent of a core that a daemon takes while nothing happens."""
    assert daemon.process is not None
    process = psutil.Process(daemon.process.pid)
    time.sleep(10.0)  # Turns of anti-entropy become rare.
    before = sum(process.cpu_times()[:2])
    time.sleep(IDLE_S)
    return (sum(process.cpu_times()[:2]) - before) / IDLE_S * 100


@contextmanager
def parted(count: int) -> Iterator[tuple[LocalSwarm, nethosts.NetHosts]]:
    """A swarm on hosts that can be cut off."""
    with (
        folder() as root,
        nethosts.NetHosts(count) as hosts,
        LocalSwarm(root, count, places=hosts.hosts) as swarm,
    ):
        swarm.form(timeout_s=90.0)
        yield swarm, hosts


# ---- after a partition ----------------------------------------------------------------------


def converge() -> Figures:
    """Ten daemons in two halves, in each of which one wrote half of the keys; then they meet."""
    missing = nethosts.missing_tools()
    if missing:
        print(f"not measured after a partition: {missing}", file=sys.stderr)
        return
    with parted(CONVERGE_NODES) as (swarm, hosts):
        half = CONVERGE_NODES // 2
        left, right = swarm.daemons[:half], swarm.daemons[half:]
        hosts.cut(hosts.hosts[:half], hosts.hosts[half:])
        middle = CONVERGE_KEYS // 2
        spans = (range(middle), range(middle, CONVERGE_KEYS))
        for writer, span in zip((left[0], right[0]), spans, strict=True):
            writer.terminate()
            crdt_filling.write(writer.folder / "data", span)
            writer.start()
        for side in (left, right):
            equal(side, middle, timeout_s=CONVERGE_TIMEOUT_S)
        before = sum(map(said_bytes, swarm.daemons))
        cpu = cpu_s(swarm.daemons)
        hosts.heal()
        took_s = equal(swarm.daemons, CONVERGE_KEYS, timeout_s=CONVERGE_TIMEOUT_S)
        yield Figure("info_converge_cpu_s", cpu_s(swarm.daemons) - cpu)
        sent = sum(map(said_bytes, swarm.daemons)) - before
        yield Figure("info_converge_mib_sent", sent / MIB)
        for daemon in swarm.daemons:
            connection = memory_load.Connection(str(daemon.socket))
            for number in range(0, CONVERGE_KEYS, CONVERGE_KEYS // 97):
                value = connection.get(NAMESPACE, memory_load.key_of(number))
                assert value == memory_load.value_of(number, "value")
        yield Figure("converge_10_nodes_100k_keys_s", took_s)
        stall = max(metric(one, "swarmd_loop_longest_pass_seconds") for one in swarm.daemons)
        yield Figure("info_converge_longest_pass_ms", stall * 1_000)


def cpu_s(daemons: Sequence[Daemon]) -> float:
    return sum(
        sum(psutil.Process(one.process.pid).cpu_times()[:2]) for one in daemons if one.process
    )


# ---- how soon others have it ----------------------------------------------------------------


def latency() -> Figures:
    """Five daemons: a value set on one of them, until another has told who watches there."""
    with folder() as root, LocalSwarm(root, LATENCY_NODES) as swarm:
        swarm.form()
        times = []
        first, *others = swarm.daemons
        for other in others:
            times += list(seen_after_s(first, other, LATENCY_SETS // len(others)))
        times.sort()
        yield Figure("set_to_readable_p50_ms", at(times, 0.5) * 1_000)
        yield Figure("set_to_readable_p99_ms", at(times, 0.99) * 1_000)
        yield Figure("info_set_to_readable_longest_ms", times[-1] * 1_000)
        connection = memory_load.Connection(str(first.socket))
        connection.set(NAMESPACE, "one", "value")
        took = []
        for _ in range(GETS):
            began = time.perf_counter()
            assert connection.get(NAMESPACE, "one") == "value"
            took.append(time.perf_counter() - began)
        took.sort()
        yield Figure("get_local_p50_ms", at(took, 0.5) * 1_000)
        yield Figure("info_get_local_p99_ms", at(took, 0.99) * 1_000)


def seen_after_s(one: Daemon, other: Daemon, count: int) -> Iterator[float]:
    """From just before a set on one until a get on the other would have it."""
    told: dict[str, float] = {}
    came, watching = threading.Event(), threading.Event()

    def watch() -> None:
        with contextlib.suppress(SwarmError):  # The daemon stops in the end.
            for news in Client(other.socket).memory_watch(NAMESPACE):
                if news.key is None:
                    watching.set()
                elif news.entry is not None:
                    told[news.entry.value] = time.perf_counter()
                    came.set()

    threading.Thread(target=watch, daemon=True).start()
    assert watching.wait(10.0)
    connection = memory_load.Connection(str(one.socket))
    for number in range(count):
        value = f"{other.name} {number}"
        came.clear()
        began = time.perf_counter()
        connection.set(NAMESPACE, f"seen/{other.name}", value)
        while value not in told:
            assert came.wait(10.0), f"{other.name} did not get it within 10 s"
            came.clear()
        yield told[value] - began
        time.sleep(0.01)


# ---- a million keys -------------------------------------------------------------------------


def million() -> Figures:
    """One daemon whose disk holds a million keys: its start, its memory, and its loop."""
    with folder() as root, LocalSwarm(root, 1) as swarm:
        swarm.form()
        [daemon] = swarm.daemons
        daemon.terminate()
        empty_s = start_s(daemon)
        empty_mb = pss_mb(daemon)
        daemon.terminate()
        began = time.perf_counter()
        crdt_filling.fill(daemon.folder / "data" / "crdt", MILLION)
        yield Figure("info_filling_s", time.perf_counter() - began)
        disk = sum(one.stat().st_size for one in (daemon.folder / "data" / "crdt").iterdir())
        yield Figure("info_disk_mb", disk / 1e6)
        took_s = start_s(daemon)
        assert metric(daemon, "swarmd_crdt_keys") == MILLION
        yield Figure("info_start_empty_s", empty_s)
        yield Figure("million_keys_start_s", took_s)
        yield Figure("million_keys_start_longest_pass_ms", longest_pass_ms(daemon))
        time.sleep(10.0)
        yield Figure("million_keys_memory_mb", pss_mb(daemon) - empty_mb)
        yield Figure("million_keys_idle_cpu_percent", idle_cpu(daemon))
        yield from listing(daemon)
        time.sleep(21.0)  # `longest_pass_ms` is of the last 20 s.
        yield from rewriting(daemon)


def start_s(daemon: Daemon) -> float:
    """From its start until it is ready."""
    began = time.perf_counter()
    daemon.start()

    def ready() -> bool:
        try:
            with Client(daemon.socket) as client:
                return bool(client.status().ready)
        except Exception:  # noqa: BLE001 - it does not answer yet
            return False

    wait_until("ready", ready, timeout_s=120.0, every_s=0.02)
    return time.perf_counter() - began


def pss_mb(daemon: Daemon) -> float:
    assert daemon.process is not None
    return float(psutil.Process(daemon.process.pid).memory_full_info().pss) / 1e6


def longest_pass_ms(daemon: Daemon) -> float:
    return metric(daemon, "swarmd_loop_longest_pass_seconds") * 1_000


def listing(daemon: Daemon) -> Figures:
    """Pages of a thousand, from all over the namespace; and one key after the other."""
    took = []
    with Client(daemon.socket) as client:
        for number in range(PAGES):
            after = memory_load.key_of(number * (MILLION // PAGES))
            began = time.perf_counter()
            page = client.memory_list(NAMESPACE, after=after)
            took.append(time.perf_counter() - began)
            assert len(page.entries) == 1_000
    took.sort()
    yield Figure("million_keys_page_p50_ms", at(took, 0.5) * 1_000)
    yield Figure("info_million_keys_page_p99_ms", at(took, 0.99) * 1_000)
    connection = memory_load.Connection(str(daemon.socket))
    times = []
    for number in range(0, MILLION, MILLION // GETS):
        began = time.perf_counter()
        assert connection.get(NAMESPACE, memory_load.key_of(number)) is not None
        times.append(time.perf_counter() - began)
    yield Figure("info_million_keys_get_p50_ms", statistics.median(times) * 1_000)


def rewriting(daemon: Daemon) -> Figures:
    """Write until the log is long, so that every shard is written whole; others go on meanwhile."""
    crdt = daemon.folder / "data" / "crdt"
    connection = memory_load.Connection(str(daemon.socket))
    connection.set(NAMESPACE, "large/0", "x")  # There is no log before the first write.
    logs = {one.name for one in crdt.glob("log-*")}
    number, took = 0, []
    while {one.name for one in crdt.glob("log-*")} & logs:
        began = time.perf_counter()
        connection.set(NAMESPACE, f"large/{number % 50}", "x" * 200_000)
        took.append(time.perf_counter() - began)
        number += 1
        assert number < 2_000, "the log is never written anew"
    yield Figure("million_keys_rewritten_longest_pass_ms", longest_pass_ms(daemon))
    yield Figure("info_rewritten_longest_set_ms", max(took) * 1_000)


PARTS: dict[str, Callable[[], Figures]] = {
    "merges": merges,
    "sync": sync,
    "converge": converge,
    "latency": latency,
    "million": million,
}


def run(options: Options) -> Figures:
    if not loopback.enter_own_network():
        print("no network of its own: the machine's loopback is used", file=sys.stderr)
    yield Figure("info_load_before", os.getloadavg()[0])
    for name, part in PARTS.items():
        if not options.only or name in options.only:
            yield from part()
    yield Figure("info_load_after", os.getloadavg()[0])
