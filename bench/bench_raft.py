"""The strong store: writes, reads, and what kills, snapshots and changes of voters cost.

Daemons in the default configuration (fsync, TLS 1.3, a process each), load from processes of
their own (`load.py`), each with a stream of operations to its daemon, every single-key put
acknowledged by itself. etcd runs beside, asked through connections of the same kind, and each
round measures one after the other, so that noise meets both. Parts: see `PARTS`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import etcd_peer
import psutil
from localswarm import Daemon, LocalSwarm, wait_until
from percentiles import at
from run import Figure, Options

from swarmd.client import Client
from swarmd.gateway.shapes import KeyDone

HERE = Path(__file__).resolve().parent
ROUNDS = 5
MEASURE_S = 4.0
WARM_UP_S = 0.7
VALUE_BYTES = 256
CLIENTS = (1, 16, 256)
READERS = 64
KILLS = 20
IDLE_S = 20.0
STALL_S = 30.0
# The daemons' gauge of their longest pass looks this far back.
STALL_WINDOW_S = 20.0
# From when every load process is ready until the first of them begins.
_HEAD_START_S = 0.2

Figures = Iterator[Figure]


@dataclass(frozen=True)
class Load:
    """What the clients of one measurement saw together."""

    per_s: float
    p50_ms: float
    p99_ms: float
    longest_ms: float
    gap_ms: float
    refused: int


# ---- load -----------------------------------------------------------------------------


def swarm_targets(daemons: Sequence[Daemon], **more: Any) -> list[dict[str, Any]]:
    return [{"peer": "swarmd", "socket": str(d.socket), **more} for d in daemons]


def etcd_targets(addresses: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    return [{"peer": "etcd", "address": list(one)} for one in addresses]


def begin_load(
    targets: Sequence[dict[str, Any]], clients: int, op: str, seconds: float
) -> tuple[list[subprocess.Popen[str]], float]:
    """Start a process per target, the clients spread over them; when they begin to count."""
    processes = []
    for index, target in enumerate(targets):
        share = clients // len(targets) + (index < clients % len(targets))
        if not share:
            continue
        plan = {"op": op, "clients": share, "warm_up_s": WARM_UP_S, "value_bytes": VALUE_BYTES}
        plan |= {"prefix": f"bench/{index}"} | target
        command = [sys.executable, str(HERE / "load.py"), json.dumps(plan)]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
    for process in processes:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("a load process ended before it began")
    start = time.monotonic() + _HEAD_START_S + WARM_UP_S
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(json.dumps({"start": start, "end": start + seconds}) + "\n")
        process.stdin.flush()
    return processes, start


def end_load(processes: list[subprocess.Popen[str]], seconds: float) -> Load:
    results = []
    for process in processes:
        output, _ = process.communicate(timeout=seconds + 60)
        if process.returncode:
            raise RuntimeError(f"a load process ended with {process.returncode}")
        results.append(json.loads(output))
    times = sorted(one for result in results for one in result["times_us"])
    return Load(
        per_s=len(times) / seconds,
        p50_ms=at(times, 0.50) / 1000,
        p99_ms=at(times, 0.99) / 1000,
        longest_ms=times[-1] / 1000,
        gap_ms=min(result["longest_gap_s"] for result in results) * 1000,
        refused=sum(result["refused"] for result in results),
    )


def drive(targets: Sequence[dict[str, Any]], clients: int, op: str = "put") -> Load:
    processes, _ = begin_load(targets, clients, op, MEASURE_S)
    return end_load(processes, MEASURE_S)


def middle(loads: Sequence[Load], field: str) -> float | None:
    return statistics.median(getattr(one, field) for one in loads) if loads else None


# ---- writes and reads, beside etcd ----------------------------------------------------


@contextlib.contextmanager
def etcd_beside(root: Path, count: int) -> Iterator[etcd_peer.Cluster | None]:
    if not etcd_peer.installed():
        print("etcd is not installed: scripts/bench --setup-peers", file=sys.stderr)
        yield None
        return
    with etcd_peer.cluster(root, count) as cluster:
        yield cluster


class Beside:
    """Measures swarmd and etcd in turns, and keeps what each round came to."""

    def __init__(self, swarm: LocalSwarm, etcd: etcd_peer.Cluster | None) -> None:
        self._swarm = swarm
        self._etcd = etcd
        self.ours: dict[tuple[str, int], list[Load]] = {}
        self.theirs: dict[tuple[str, int], list[Load]] = {}

    def round(self, number: int, clients: int, op: str = "put") -> None:
        """One measurement of each; they take turns in going first."""
        turns: list[Callable[[], None]] = [
            lambda: self._keep(self.ours, clients, op, self._our_targets(clients)),
            lambda: self._keep(self.theirs, clients, op, self._their_targets(clients)),
        ]
        for turn in turns if number % 2 == 0 else reversed(turns):
            turn()

    def _keep(
        self,
        kept: dict[tuple[str, int], list[Load]],
        clients: int,
        op: str,
        targets: list[dict[str, Any]],
    ) -> None:
        if targets:
            kept.setdefault((op, clients), []).append(drive(targets, clients, op))

    def _our_targets(self, clients: int) -> list[dict[str, Any]]:
        """A single client asks whoever leads; more are spread over all voters."""
        voters = set(self._swarm[0].json("status")["store"]["voters"])
        leader = self._swarm.coordinator()
        if clients == 1 and leader is not None:
            return swarm_targets([leader])
        return swarm_targets([d for d in self._swarm.daemons if d.name in voters])

    def _their_targets(self, clients: int) -> list[dict[str, Any]]:
        if self._etcd is None:
            return []
        leader = self._etcd.leader()
        if clients == 1 and leader is not None:
            return etcd_targets([leader])
        return etcd_targets(self._etcd.clients)

    def figure(self, name: str, op: str, clients: int, field: str) -> Figure:
        ours, theirs = self.ours.get((op, clients), []), self.theirs.get((op, clients), [])
        return Figure(name, middle(ours, field), middle(theirs, field))


def measure(voters: int, root: Path, count: int, rounds: int) -> Iterator[Beside]:
    """A swarm and a cluster of as many voters; yields what has been measured at the end."""
    with LocalSwarm(root / "swarm", count) as swarm, etcd_beside(root, voters) as etcd:
        swarm.form(voters=voters, timeout_s=150)
        beside = Beside(swarm, etcd)
        for clients in CLIENTS:
            beside.round(0, clients)  # Warm up.
        beside.ours.clear()
        beside.theirs.clear()
        for number in range(rounds):
            for clients in CLIENTS:
                beside.round(number, clients)
            beside.round(number, READERS, "get")
        yield beside


def writes(options: Options) -> Figures:
    with folder() as root:
        for beside in measure(3, root, 3, ROUNDS):
            yield beside.figure("write_p50_1_client_ms", "put", 1, "p50_ms")
            yield beside.figure("write_p99_1_client_ms", "put", 1, "p99_ms")
            yield beside.figure("writes_per_s_256_clients", "put", 256, "per_s")
            yield beside.figure("reads_per_s_64_clients", "get", READERS, "per_s")
            yield from details(beside, "")


def five(options: Options) -> Figures:
    """Five voters: a swarm seats them from ten members on, once it has been that large."""
    with folder() as root:
        for beside in measure(5, root, 10, 3):
            yield from details(beside, "five_voters_")


def details(beside: Beside, prefix: str) -> Figures:
    for op, clients in beside.ours:
        what = "write" if op == "put" else "read"
        for field in ("per_s", "p50_ms", "p99_ms"):
            name = f"info_{prefix}{what}s_{clients}_clients_{field}"
            yield beside.figure(name, op, clients, field)


# ---- what it costs to idle ------------------------------------------------------------


def idle(options: Options) -> Figures:
    """What a vote adds to a member: the busiest voter's use less that of one without a seat."""
    with folder() as root, LocalSwarm(root, 4) as swarm:
        swarm.form(voters=3)
        time.sleep(5)
        voters = set(swarm[0].json("status")["store"]["voters"])
        daemons = {d.name: psutil.Process(d.process.pid) for d in swarm.daemons if d.process}
        before = {name: sum(one.cpu_times()[:2]) for name, one in daemons.items()}
        time.sleep(IDLE_S)
        used = {
            name: (sum(one.cpu_times()[:2]) - before[name]) / IDLE_S * 100
            for name, one in daemons.items()
        }
        busiest = max(used[name] for name in voters)
        other = next(used[name] for name in used if name not in voters)
        yield Figure("idle_cpu_percent_per_voter", busiest - other)
        yield Figure("info_idle_cpu_percent_of_the_busiest_voter", busiest)
        yield Figure("info_idle_cpu_percent_of_a_member_without_vote", other)


# ---- the leader is killed -------------------------------------------------------------


def kills(options: Options) -> Figures:
    """From the kill to the acknowledgement of a put that was begun right after it."""
    times = []
    with folder() as root, LocalSwarm(root, 3) as swarm:
        swarm.form()
        for number in range(KILLS):
            leader = wait_until("a coordinator", swarm.coordinator)
            other = next(d for d in swarm.daemons if d is not leader)
            with Client(other.socket) as client:
                client.kv_put("kill/before", b"")
                leader.kill()
                began = time.perf_counter()
                client.kv_put(f"kill/{number}", b"")
                times.append(time.perf_counter() - began)
            swarm.restart(leader)
            swarm.wait_whole()
    times.sort()
    yield Figure("leader_killed_p95_s", at(times, 0.95))
    yield Figure("info_leader_killed_p50_s", at(times, 0.50))
    yield Figure("info_leader_killed_longest_s", times[-1])


# ---- many keys ------------------------------------------------------------------------


def keys(options: Options) -> Figures:
    yield from with_keys(100_000, "100k")


def million(options: Options) -> Figures:
    if options.full:
        yield from with_keys(1_000_000, "1m")


def with_keys(count: int, label: str) -> Figures:
    """The longest stall of any daemon's loop while snapshots are taken; restarts."""
    with folder() as root, LocalSwarm(root, 3) as swarm:
        swarm.form()
        began = time.perf_counter()
        fill(swarm[0], count)
        yield Figure(f"info_fill_{label}_keys_s", time.perf_counter() - began)
        before = snapshots(swarm)
        # A few clients: the daemons must not wait for a core, or that is what is measured.
        seconds = STALL_WINDOW_S + STALL_S
        processes, start = begin_load(swarm_targets(swarm.daemons), 3, "put", seconds)
        stalls = []
        while time.monotonic() < start + seconds:
            time.sleep(1.0)
            if time.monotonic() > start + STALL_WINDOW_S:
                stalls += [longest_pass_s(daemon) for daemon in swarm.daemons]
        load = end_load(processes, seconds)
        taken = sum(b > a for a, b in zip(before, snapshots(swarm), strict=True))
        yield Figure(f"loop_stall_{label}_keys_ms", max(stalls) * 1000 if taken else None)
        yield Figure(f"info_snapshot_pause_{label}_keys_ms", load.longest_ms if taken else None)
        yield Figure(f"info_snapshot_{label}_keys_voters_that_took_one", taken)
        yield from restart(swarm, count, label)


def fill(daemon: Daemon, count: int) -> None:
    with Client(daemon.socket).key_stream() as stream:
        value = b"v" * VALUE_BYTES
        for number in range(count):
            stream.put(f"many/{number:07d}", value)
            if number % 1_000 == 0:
                check(stream.take())
        check(stream.take_all())


def check(answers: Iterable[KeyDone]) -> None:
    for done in answers:
        assert done.error is None, done


def snapshots(swarm: LocalSwarm) -> list[int]:
    """The index at which each voter's snapshot ends."""
    found = swarm[0].json("raft", "status")["voters"]
    return [voter["snapshot_index"] for voter in found]


def longest_pass_s(daemon: Daemon) -> float:
    with Client(daemon.socket) as client:
        for line in client.metrics().splitlines():
            if line.startswith("swarmd_loop_longest_pass_seconds "):
                return float(line.split()[1])
    raise AssertionError("the daemon does not tell its longest pass")


def restart(swarm: LocalSwarm, count: int, label: str) -> Figures:
    """From the start of a killed voter until its own copy holds the last write."""
    leader = swarm.coordinator()
    voter = next(d for d in swarm.daemons if d is not leader)
    other = next(d for d in swarm.daemons if d is not voter)
    voter.kill()
    with Client(other.socket) as client:
        client.kv_put("restart", label.encode())
        wanted = applied_at(client, other)
    began = time.perf_counter()
    voter.start()

    def holds_it() -> bool:
        # Its own word of its own log: a read would be answered by others until it is there.
        with Client(voter.socket) as client:
            return client.ready() and applied_at(client, voter) >= wanted

    wait_until("the voter is back", lambda: quiet(holds_it), timeout_s=120 + count / 2_000)
    yield Figure(f"info_restart_{label}_keys_s", time.perf_counter() - began)


def applied_at(client: Client, daemon: Daemon) -> int:
    """The index of the log's last entry that a voter has applied; 0 if it does not tell."""
    rows = client.raft_status().voters
    return next((row.applied for row in rows if row.node == daemon.name), 0)


def quiet(ask: Callable[[], bool]) -> bool:
    from swarmd.base.errors import SwarmError

    try:
        return ask()
    except SwarmError:
        return False  # Not yet; whoever waits has a deadline.


# ---- voters change --------------------------------------------------------------------


def change(options: Options) -> Figures:
    """Under load a voter leaves, then the coordinator; the longest write of any client."""
    seconds = 20.0
    with folder() as root, LocalSwarm(root, 5) as swarm:
        swarm.form(voters=3)
        voters = set(swarm[0].json("status")["store"]["voters"])
        leader = wait_until("a coordinator", swarm.coordinator)
        follower = next(d for d in swarm.daemons if d.name in voters and d is not leader)
        leaving = (follower, leader)
        staying = [d for d in swarm.daemons if d not in leaving]
        processes, start = begin_load(swarm_targets(staying), 16, "put", seconds)
        time.sleep(max(0.0, start + 2 - time.monotonic()))
        for daemon in leaving:
            done = daemon.ctl("leave")
            assert done.returncode == 0, done.stderr
            time.sleep(3)
        load = end_load(processes, seconds)
        yield Figure("voter_change_longest_write_s", load.longest_ms / 1000)
        yield Figure("info_voter_change_writes_per_s", load.per_s)


# ---- all of it ------------------------------------------------------------------------

PARTS: dict[str, Callable[[Options], Figures]] = {
    "writes": writes,
    "idle": idle,
    "kills": kills,
    "change": change,
    "keys": keys,
    "million": million,
    "five": five,
}


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="swarmd-bench-"))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def run(options: Options) -> Figures:
    for name, part in PARTS.items():
        if not options.only or name in options.only:
            yield from part(options)
