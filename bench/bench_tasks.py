"""Durable tasks: how many a second, how long one takes, what the loss of a coordinator costs.

Three daemons in the default configuration (fsync, TLS, a process each), 51 agent instances.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from localswarm import LocalSwarm
from run import Options

from swarmd.client import Client

HERE = Path(__file__).resolve().parent
TASKS = 3_000
BATCH = 500
SINGLE = 200
KILLS = 3


def submit_and_wait(socket: Path, count: int) -> int:
    """Submit `count` no-op tasks in batches through one daemon; how many succeeded."""
    client = Client(socket)
    ids: list[str] = []
    for start in range(0, count, BATCH):
        batch = [
            {"agent": "noop", "input": n, "key": uuid.uuid4().hex}
            for n in range(start, min(start + BATCH, count))
        ]
        ids += [task.id for task in client.submit(batch)]
    return sum(task.state == "succeeded" for task in client.results(ids))


def cpu_seconds(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        for one in [process, *process.children(recursive=True)]:
            times = one.cpu_times()
            total += times.user + times.system
    return total


def throughput(swarm: LocalSwarm) -> Iterator[tuple[str, float]]:
    daemons = [psutil.Process(d.process.pid) for d in swarm.daemons if d.process]
    for daemon in swarm.daemons:
        submit_and_wait(daemon.socket, 300)  # Warm up: every instance has started.
    rates, costs = [], []
    for _ in range(3):
        before, mine = cpu_seconds(daemons), time.process_time()
        began = time.perf_counter()
        with ThreadPoolExecutor() as pool:
            sockets = [d.socket for d in swarm.daemons]
            done = sum(pool.map(lambda s: submit_and_wait(s, TASKS // 3), sockets))
        took = time.perf_counter() - began
        assert done == TASKS, f"{done} of {TASKS} tasks succeeded"
        rates.append(TASKS / took)
        spent = cpu_seconds(daemons) - before + time.process_time() - mine
        costs.append(spent / TASKS * 1000)
    yield "durable_tasks_per_s", statistics.median(rates)
    yield "info_cpu_ms_per_task", statistics.median(costs)
    yield "daemon_rss_mb", max(d.memory_info().rss for d in daemons) / 1e6


def latency(swarm: LocalSwarm) -> Iterator[tuple[str, float]]:
    client = Client(swarm[0].socket)
    times = []
    for _ in range(SINGLE):
        began = time.perf_counter()
        [task] = client.submit([{"agent": "noop", "input": 1, "key": uuid.uuid4().hex}])
        [end] = client.results([task.id])
        assert end.state == "succeeded"
        times.append((time.perf_counter() - began) * 1000)
        time.sleep(0.005)
    yield "single_task_p50_ms", statistics.median(times)
    yield "info_single_task_p99_ms", statistics.quantiles(times, n=100)[98]


def recovery(swarm: LocalSwarm) -> Iterator[tuple[str, float]]:
    times = []
    for _ in range(KILLS):
        coordinator = swarm.coordinator()
        assert coordinator is not None
        other = next(d for d in swarm.daemons if d is not coordinator)
        client = Client(other.socket)
        coordinator.kill()
        began = time.perf_counter()
        [task] = client.submit([{"agent": "noop", "input": 1, "key": uuid.uuid4().hex}])
        [end] = client.results([task.id])
        assert end.state == "succeeded"
        times.append(time.perf_counter() - began)
        swarm.restart(coordinator)
        swarm.wait_whole()
    yield "coordinator_killed_next_task_s", max(times)


def run(options: Options) -> Iterator[tuple[str, float]]:
    root = Path(tempfile.mkdtemp(prefix="swarmd-bench-"))
    try:
        with LocalSwarm(root, 3) as swarm:
            swarm.form()
            idle = [psutil.Process(d.process.pid) for d in swarm.daemons if d.process]
            yield "idle_daemon_rss_mb", max(d.memory_info().rss for d in idle) / 1e6
            swarm[0].json("agent", "deploy", str(HERE / "agents" / "noop.toml"))
            yield from latency(swarm)
            yield from throughput(swarm)
            yield from recovery(swarm)
    finally:
        shutil.rmtree(root, ignore_errors=True)
