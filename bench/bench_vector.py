"""The vector index beside brute force: 100,000 vectors of 384 elements, clustered and not.

Vectors of embeddings come in clusters, and not around the origin; those by chance alone have hardly
any near ones, which is hard for indexes that guess. Each kind is loaded in batches as they come
from other nodes, asked for the nearest ten with filters and without, then opened by another
process and asked again. What is nearest is computed by numpy in double precision.

The part `swarm` asks real daemons with the default configuration: two nodes, of which one is given
the clustered vectors through its API; then the other is asked, and the first again after it was
killed, each by a client over its socket.

The part `pgvector` gives the clustered vectors to the embedded index, and in the same run to one in
PostgreSQL, whose server is started for it and syncs each commit; then that gets an HNSW index.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import trio
from localswarm import Daemon, LocalSwarm
from postgres_server import PostgresServer, postgres_server
from run import Options

from swarmd.base.errors import SwarmError
from swarmd.client import Client
from swarmd.memory.vector.embedded import open_vector_index
from swarmd.memory.vector.pg_session import Server
from swarmd.memory.vector.pgvector import open_pgvector_index
from swarmd.memory.vector.port import VectorIndex
from swarmd.memory.vector.shapes import (
    Batch,
    Condition,
    Define,
    Equals,
    Metric,
    Query,
    Range,
    Upsert,
)

COUNT = 100_000
DIMENSION = 384
K = 10
BATCH = 500
QUERIES = 300
TOPICS = 10
SIZES = 1_000
# A tenth of all, half of all, a twentieth.
FILTERS: tuple[tuple[Condition, ...], ...] = (
    (Equals("topic", "t3"),),
    (Range("size", gte=250, lt=750),),
    (Equals("topic", "t3"), Range("size", gte=250, lt=750)),
)
# The same as the API takes them.
ASKED: tuple[dict[str, Any], ...] = (
    {"topic": "t3"},
    {"size": {"gte": 250, "lt": 750}},
    {"topic": "t3", "size": {"gte": 250, "lt": 750}},
)
READY_TIMEOUT_S = 600.0
PG_SETTINGS = {"fsync": "on", "shared_buffers": "512MB", "maintenance_work_mem": "512MB"}


@dataclass(frozen=True)
class Data:
    vectors: np.ndarray[Any, np.dtype[np.float32]]
    queries: np.ndarray[Any, np.dtype[np.float32]]
    topics: np.ndarray[Any, np.dtype[np.int64]]
    sizes: np.ndarray[Any, np.dtype[np.int64]]
    metric: Metric


def made(kind: str) -> Data:
    rng = np.random.default_rng(7)
    if kind == "clustered":
        centre = rng.standard_normal(DIMENSION)
        centres = centre + 0.7 * rng.standard_normal((500, DIMENSION))
        # Clusters of very different sizes, as topics have.
        weights = 1 / np.arange(1, 501)
        chosen = rng.choice(500, COUNT + QUERIES, p=weights / weights.sum())
        every = centres[chosen] + 0.25 * rng.standard_normal((COUNT + QUERIES, DIMENSION))
        metric = Metric.COSINE
    else:
        every = rng.standard_normal((COUNT + QUERIES, DIMENSION))
        metric = Metric.L2
    vectors = every.astype(np.float32)
    topics, sizes = rng.integers(0, TOPICS, COUNT), rng.integers(0, SIZES, COUNT)
    return Data(vectors[:COUNT], vectors[COUNT:], topics, sizes, metric)


def run(options: Options) -> Iterator[tuple[str, float]]:
    every = ("clustered", "unclustered", "swarm") + (("pgvector",) if options.full else ())
    for kind in options.only or every:
        root = Path(tempfile.mkdtemp(prefix="swarmd-bench-"))
        try:
            if kind == "swarm":
                yield from swarmed(root)
            elif kind == "pgvector":
                yield from in_postgresql(root)
            else:
                yield from measured(kind, root)
        finally:
            shutil.rmtree(root, ignore_errors=True)


def measured(kind: str, root: Path) -> Iterator[tuple[str, float]]:
    data = made(kind)
    rate, late_ms, fresh = trio.run(load_and_ask, data, open_vector_index(root / "index"))
    yield f"{kind}_inserts_per_s", rate
    yield f"info_{kind}_loop_late_p99_ms", statistics.quantiles(late_ms, n=100)[98]
    nearest = truth(data)
    yield f"{kind}_recall", recall(fresh["found"], nearest)
    yield from times(kind, fresh)
    np.save(root / "queries.npy", data.queries)
    command = [sys.executable, __file__, str(root)]
    opened = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    yield f"{kind}_reopened_recall", recall(opened["found"], nearest)
    yield from times(f"{kind}_reopened", opened)
    yield f"{kind}_open_s", opened["open_s"]
    yield f"{kind}_anonymous_mb", opened["anonymous_mb"]
    yield f"info_{kind}_resident_mb", opened["resident_mb"]
    disk = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    yield f"info_{kind}_disk_mb", disk / 1e6


def in_postgresql(root: Path) -> Iterator[tuple[str, float]]:
    """The embedded index, then one in PostgreSQL: exact, and with an index that guesses."""
    data = made("clustered")
    nearest = truth(data)
    rate, _, asked = trio.run(load_and_ask, data, open_vector_index(root / "index"))
    yield "info_pgvector_embedded_inserts_per_s", rate
    yield from seconds("pgvector_embedded", asked)
    with postgres_server(**PG_SETTINGS) as postgres:
        rate, _, asked = trio.run(load_and_ask, data, in_schema(postgres, guesses=False))
        yield "info_pgvector_inserts_per_s", rate
        yield "pgvector_recall", recall(asked["found"], nearest)
        yield from seconds("pgvector", asked)
        took_s, asked = trio.run(reopen_and_ask, data, in_schema(postgres, guesses=True))
        yield "info_pgvector_hnsw_made_s", took_s
        yield "pgvector_hnsw_recall", recall(asked["found"], nearest)
        yield from seconds("pgvector_hnsw", asked)
        size = postgres.sql("SELECT pg_database_size(current_database())")
        yield "info_pgvector_disk_mb", int(size) / 1e6


def in_schema(
    postgres: PostgresServer, *, guesses: bool
) -> AbstractAsyncContextManager[VectorIndex]:
    server = Server(
        host=postgres.host,
        port=postgres.port,
        database=postgres.database,
        user=postgres.user,
        password=postgres.password,
        ca_file="",
        connect_timeout_s=60.0,
        timeout_s=600.0,
    )
    return open_pgvector_index(server, "bench", guesses=guesses)


def seconds(kind: str, asked: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name in ("filtered", "unfiltered"):
        cuts = statistics.quantiles(asked[f"{name}_ms"], n=100)
        yield f"info_{kind}_{name}_p50_ms", cuts[49]
        yield f"info_{kind}_{name}_p99_ms", cuts[98]


def swarmed(root: Path) -> Iterator[tuple[str, float]]:
    """A node that is given all, a second one that hears of it, and the first after a kill."""
    data = made("clustered")
    nearest = truth(data)
    with LocalSwarm(root, 2) as swarm:
        swarm.form()
        first, second = swarm.daemons
        before_mb = resident_mb(first)
        with client_of(first) as client:
            client.vector_create("bench", DIMENSION, data.metric.value)
            began = time.perf_counter()
            for _ in client.vector_batches("bench", entries(data)):
                pass
            yield "swarm_adds_per_s", COUNT / (time.perf_counter() - began)
        ready_s = wait_ready(second)
        yield "swarm_second_node_behind_s", ready_s
        wait_ready(first)
        yield from asked_over_api("swarm_second_node", second, data, nearest)
        yield from asked_over_api("info_swarm_first_node", first, data, nearest)
        yield "info_swarm_idle_mb", before_mb
        yield "info_swarm_loaded_mb", resident_mb(first)
        first.kill()
        began = time.perf_counter()
        first.start()
        wait_ready(first)
        yield "swarm_restart_s", time.perf_counter() - began
        yield from asked_over_api("swarm_restarted", first, data, nearest)
        yield "info_swarm_restarted_mb", resident_mb(first)
        # The index alone is lost: it is made again from what the node holds.
        first.kill()
        shutil.rmtree(first.folder / "data" / "vectors")
        began = time.perf_counter()
        first.start()
        wait_ready(first)
        yield "info_swarm_reindexed_s", time.perf_counter() - began


def client_of(daemon: Daemon) -> Client:
    return Client(str(daemon.socket), timeout_s=300.0)


def entries(data: Data) -> Iterator[dict[str, Any]]:
    for row in range(COUNT):
        payload = {"topic": f"t{data.topics[row]}", "size": int(data.sizes[row])}
        yield {"id": str(row), "vector": data.vectors[row].tobytes(), "payload": payload}


def wait_ready(daemon: Daemon) -> float:
    """Until a node finds all there is, in seconds."""
    began = time.perf_counter()
    while True:
        with suppress(SwarmError), client_of(daemon) as client:
            found = client.vector_search("bench", [1.0] * DIMENSION, k=1)
            if not found.behind and client.vector_collection("bench").entries == COUNT:
                return time.perf_counter() - began
        if time.perf_counter() - began > READY_TIMEOUT_S:
            raise RuntimeError(f"{daemon.name} does not have all vectors; see {daemon.log}")
        time.sleep(0.1)


def asked_over_api(
    name: str, daemon: Daemon, data: Data, nearest: list[list[list[str]]]
) -> Iterator[tuple[str, float]]:
    found: list[list[list[str]]] = []
    took: dict[str, list[float]] = defaultdict(list)
    with client_of(daemon) as client:
        for number, vector in enumerate(data.queries):
            both = []
            for way, chosen in (("filtered", ASKED[number % len(ASKED)]), ("unfiltered", {})):
                began = time.perf_counter()
                answer = client.vector_search("bench", vector.tobytes(), k=K, filter=chosen)
                took[way].append((time.perf_counter() - began) * 1_000)
                both.append([hit.id for hit in answer.hits])
            found.append(both)
    yield f"{name}_recall", recall(found, nearest)
    for way, times_ms in took.items():
        cuts = statistics.quantiles(times_ms, n=100)
        yield f"info_{name.removeprefix('info_')}_{way}_p50_ms", cuts[49]
        yield f"{name}_{way}_p99_ms", cuts[98]


def resident_mb(daemon: Daemon) -> float:
    assert daemon.process is not None
    return psutil.Process(daemon.process.pid).memory_info().rss / 1e6


def times(kind: str, asked: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name in ("filtered", "unfiltered"):
        cuts = statistics.quantiles(asked[f"{name}_ms"], n=100)
        yield f"{'info_' if 'reopened' in kind else ''}{kind}_{name}_p50_ms", cuts[49]
        yield f"{kind}_{name}_p99_ms", cuts[98]
        yield f"info_{kind}_{name}_cpu_ms", statistics.mean(asked[f"{name}_cpu_ms"])


async def reopen_and_ask(
    data: Data, opened: AbstractAsyncContextManager[VectorIndex]
) -> tuple[float, dict[str, Any]]:
    before = time.perf_counter()
    async with opened as index:
        return time.perf_counter() - before, await ask(index, data.queries)


async def load_and_ask(
    data: Data, opened: AbstractAsyncContextManager[VectorIndex]
) -> tuple[float, list[float], dict[str, Any]]:
    async with opened as index:
        await index.apply(Batch(0, 1, (Define(1, "bench", DIMENSION, data.metric),)))
        batches = [batch_of(data, start) for start in range(0, COUNT, BATCH)]
        late_ms: list[float] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_loop, late_ms)
            before = time.perf_counter()
            for batch in batches:
                await index.apply(batch)
            rate = COUNT / (time.perf_counter() - before)
            nursery.cancel_scope.cancel()
        return rate, late_ms, await ask(index, data.queries)


async def watch_loop(late_ms: list[float]) -> None:
    """How much later than asked for a task goes on, while vectors are fed."""
    while True:
        due = trio.current_time() + 0.005
        await trio.sleep_until(due)
        late_ms.append((trio.current_time() - due) * 1_000)


def batch_of(data: Data, start: int) -> Batch:
    changes = tuple(
        Upsert(
            row + 2,
            "bench",
            str(row),
            data.vectors[row].tobytes(),
            {"topic": f"t{data.topics[row]}", "size": int(data.sizes[row]), "draft": row % 7 == 0},
            "bench",
            1_700_000_000_000 + row,
        )
        for row in range(start, start + BATCH)
    )
    return Batch(start + 1, start + BATCH + 1, changes)


async def ask(index: VectorIndex, queries: np.ndarray[Any, Any]) -> dict[str, Any]:
    """What is found for each query with one of the filters and without, and how long it takes."""
    found: list[list[list[str]]] = []
    took: dict[str, list[float]] = defaultdict(list)
    for number, vector in enumerate(queries):
        both = []
        for name, filters in (("filtered", FILTERS[number % len(FILTERS)]), ("unfiltered", ())):
            query = Query("bench", vector.tobytes(), K, filters)
            before, spent = time.perf_counter(), time.process_time()
            hits = await index.search(query)
            took[f"{name}_ms"].append((time.perf_counter() - before) * 1_000)
            took[f"{name}_cpu_ms"].append((time.process_time() - spent) * 1_000)
            both.append([hit.id for hit in hits])
        found.append(both)
    return {"found": found, **took}


def truth(data: Data) -> list[list[list[str]]]:
    """What should have been found, by looking at everything."""
    vectors, queries = data.vectors.astype(np.float64), data.queries.astype(np.float64)
    products = queries @ vectors.T
    if data.metric is Metric.COSINE:
        apart = -products / np.linalg.norm(vectors, axis=1)
    else:
        apart = (vectors**2).sum(axis=1) - 2 * products
    topic, size = data.topics == 3, (data.sizes >= 250) & (data.sizes < 750)
    masks = (topic, size, topic & size)
    return [
        [nearest_of(apart[number], masks[number % len(masks)]), nearest_of(apart[number])]
        for number in range(len(queries))
    ]


def nearest_of(apart: np.ndarray[Any, Any], mask: np.ndarray[Any, Any] | None = None) -> list[str]:
    rows = np.arange(len(apart)) if mask is None else np.flatnonzero(mask)
    return [str(row) for row in rows[np.argsort(apart[rows])[:K]]]


def recall(found: list[list[list[str]]], nearest: list[list[list[str]]]) -> float:
    """The worse of the two: with filters, without."""
    shares = [
        statistics.mean(
            len({*got[way]} & {*wanted[way]}) / K
            for got, wanted in zip(found, nearest, strict=True)
        )
        for way in (0, 1)
    ]
    return min(shares)


async def reopened(root: Path) -> dict[str, Any]:
    queries = np.load(root / "queries.npy")
    before = time.perf_counter()
    async with open_vector_index(root / "index") as index:
        open_s = time.perf_counter() - before
        asked = await ask(index, queries)
        memory = psutil.Process().memory_info()
    resident_mb, shared_mb = memory.rss / 1e6, memory.shared / 1e6
    return {
        **asked,
        "open_s": open_s,
        "resident_mb": resident_mb,
        "anonymous_mb": resident_mb - shared_mb,
    }


if __name__ == "__main__":
    print(json.dumps(trio.run(partial(reopened, Path(sys.argv[1])))))
