"""How fast a blob of 1 GiB moves between two daemons, with how much memory, and after a kill.

One daemon holds it; a pin with two copies has the other one fetch it. The time ends when it is
verified, synced and pinned on both. Beside it, taking turns: the same file over TLS by trio alone.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import loopback
from localswarm import Daemon, LocalSwarm, wait_until
from run import Figure, Options
from tls_copy import copy_s

from swarmd.base.limits import BLOB_CHUNK_BYTES, MIB
from swarmd.client import Client

SIZE: Final = 1024 * MIB
RUNS: Final = 3
KILLS: Final = 3
SETTINGS: Final = {"blobs": {"bytes_max": 8 * SIZE, "scrub_bytes_per_s": 0}}


def run(options: Options) -> Iterator[Figure]:
    if not loopback.enter_own_network():
        print("no network of its own: the machine's loopback is used", file=sys.stderr)
    root = Path(tempfile.mkdtemp(prefix="swarmd-bench-"))
    yield Figure("info_load_before", os.getloadavg()[0])
    try:
        with LocalSwarm(root, 2, settings=SETTINGS) as swarm:
            swarm.form()
            yield from measure(swarm, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def measure(swarm: LocalSwarm, root: Path) -> Iterator[Figure]:
    n1, n2 = swarm.daemons
    ours, theirs, grown, puts = [], [], [], []
    file = root / "file"
    blob_hash = ""
    for _ in range(RUNS):
        make(file)
        warm(root)
        theirs.append(copy_s(file, root / "copy"))
        (root / "copy").unlink()
        before = [resting(one) for one in swarm.daemons]
        began = time.perf_counter()
        blob_hash = n1.json("blob", "put", str(file), "--copies", "1")["hash"]
        puts.append(time.perf_counter() - began)
        warm(root)
        began = time.perf_counter()
        copy(n1, blob_hash)
        ours.append(time.perf_counter() - began)
        grown += [peak(one) - was for one, was in zip(swarm.daemons, before, strict=True)]
        assert blob(n2, blob_hash).stat().st_size == SIZE
        for one in swarm.daemons:
            empty(one)
    yield Figure("info_trio_tls_mb_per_s", mb_per_s(theirs))
    yield Figure("info_put_mb_per_s", mb_per_s(puts))
    yield Figure("transfer_mb_per_s", mb_per_s(ours), mb_per_s(theirs))
    yield Figure("extra_memory_mib", max(grown) / MIB)
    yield Figure("resent_chunks", resume(swarm, file))


def mb_per_s(times: list[float]) -> float:
    return SIZE / 1e6 / statistics.median(times)


def make(file: Path) -> None:
    with file.open("wb") as opened:
        for _ in range(SIZE // (16 * MIB)):
            opened.write(os.urandom(16 * MIB))


def warm(root: Path) -> None:
    """Have memory for a file that the machine was given already.

    A virtual machine may have to be given a page of memory when it is first used, and gives it
    back some seconds after it is free: to write to such pages took ten times as long, and whoever
    came second had more of them.
    """
    scratch = root / "scratch"
    with scratch.open("wb") as opened:
        for _ in range(SIZE // MIB):
            opened.write(bytes(MIB))
    scratch.unlink()


def copy(daemon: Daemon, blob_hash: str) -> None:
    """Have both hold it. Raises what the daemon says."""
    with Client(str(daemon.socket)) as client:
        last = list(client.blob_pin(blob_hash, copies=2, ttl_s=3_600))[-1]
    assert last.blob is not None
    assert len(last.blob.holders) == 2


def resume(swarm: LocalSwarm, file: Path) -> float:
    """How much was sent twice, in chunks, of transfers whose takers were killed in their middle.

    The most of some tries. The sender counts what it puts on its way.
    """
    return max(resent(swarm, file) for _ in range(KILLS))


def resent(swarm: LocalSwarm, file: Path) -> float:
    n1, n2 = swarm.daemons
    make(file)
    blob_hash = n1.json("blob", "put", str(file), "--copies", "1")["hash"]
    before = n1.sent_blob_bytes()
    with Client(str(n1.socket)) as client:
        items = client.blob_pin(blob_hash, copies=2, ttl_s=3_600)
        next(one for one in items if one.done_bytes > SIZE // 3)
        n2.kill()
        items.close()
    swarm.restart(n2)
    swarm.wait_whole()
    wait_until("it is whole", lambda: try_copy(n1, blob_hash), timeout_s=60, every_s=0.5)
    for one in swarm.daemons:
        empty(one)
    return (n1.sent_blob_bytes() - before - SIZE) / BLOB_CHUNK_BYTES


def try_copy(daemon: Daemon, blob_hash: str) -> bool:
    done = daemon.ctl("blob", "pin", blob_hash, "--copies", "2", timeout_s=300.0)
    return bool(done.returncode == 0)


def blob(daemon: Daemon, blob_hash: str) -> Path:
    return daemon.folder / "data" / "blobs" / blob_hash[:2] / blob_hash


def empty(daemon: Daemon) -> None:
    """Let the files' room go; the daemon finds out when it needs them."""
    for path in (daemon.folder / "data" / "blobs").glob("??/*"):
        path.write_bytes(b"")


def resting(daemon: Daemon) -> int:
    """What it takes now; from here on `peak` counts anew (proc(5), clear_refs)."""
    assert daemon.process is not None
    Path(f"/proc/{daemon.process.pid}/clear_refs").write_text("5")
    return _status(daemon, "VmRSS")


def peak(daemon: Daemon) -> int:
    return _status(daemon, "VmHWM")


def _status(daemon: Daemon, name: str) -> int:
    assert daemon.process is not None
    text = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1]) * 1024
