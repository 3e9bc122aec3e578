"""What was acknowledged is done once, whichever daemons are killed."""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from localswarm import LocalSwarm, file_for_agents, wait_until

from swarmd.base.errors import SwarmError
from swarmd.client import Client

AGENTS = Path(__file__).parent / "agents"
BATCH = 50
SUBMIT_PATIENCE_S = 60.0


def item(ledger: Path, key: str, ms: int, body: bytes = b"") -> dict[str, Any]:
    payload = {"ledger": str(ledger), "key": key, "ms": ms, "body": body}
    return {"agent": "ledger", "input": payload, "key": key}


def submit_durably(sockets: list[Path], batch: list[dict[str, Any]]) -> list[str]:
    """Submit through the first socket, else the next, with the same keys, until acknowledged."""
    deadline = time.monotonic() + SUBMIT_PATIENCE_S
    turn = 0
    while True:
        try:
            return [task.id for task in Client(sockets[turn % len(sockets)]).submit(batch)]
        except (SwarmError, OSError):
            if time.monotonic() > deadline:
                raise
            turn += 1
            time.sleep(0.05)


def starts_by_key(ledger: Path) -> dict[str, list[int]]:
    """Fences of the attempts that started, by key, in order."""
    starts: dict[str, list[int]] = defaultdict(list)
    for line in ledger.read_text().splitlines():
        key, fence, _ = line.split()
        starts[key].append(int(fence))
    return starts


def check_against_ledger(swarm: LocalSwarm, ids: dict[str, str], ledger: Path) -> None:
    """Every key one task, one final state, and the committed fence the highest that started."""
    tasks = {t.id: t for t in Client(swarm[0].socket).results(list(ids.values()))}
    assert set(tasks) == set(ids.values()), "an acknowledged task is missing"
    assert {t.state for t in tasks.values()} == {"succeeded"}
    starts = starts_by_key(ledger)
    for key, task_id in ids.items():
        committed = tasks[task_id].result["fence"]
        assert committed == max(starts[key]), f"{key}: {committed} of {starts[key]}"
        assert tasks[task_id].key == key


def done_count(swarm: LocalSwarm) -> int:
    for daemon in swarm.alive():
        status = daemon.try_json("status")
        if status:
            return int(status["tasks"].get("succeeded", 0))
    return 0


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_daemon_loses_no_acknowledged_task(folder: Path, victim: int) -> None:
    """2,000 tasks through each daemon in turn; one daemon is killed midway and restarted."""
    ledger = file_for_agents(folder / "ledger")
    with LocalSwarm(folder / "s", 3) as swarm:
        swarm.form()
        swarm[0].json("agent", "deploy", str(AGENTS / "ledger.toml"))
        keys = [f"{victim}-{n}-{uuid.uuid4().hex[:8]}" for n in range(2_000)]
        ids: dict[str, str] = {}

        def submit_all() -> None:
            for start in range(0, len(keys), BATCH):
                turn = start // BATCH
                sockets = [swarm[(turn + n) % 3].socket for n in range(3)]
                batch = [item(ledger, key, 30) for key in keys[start : start + BATCH]]
                ids.update(
                    zip(keys[start : start + BATCH], submit_durably(sockets, batch), strict=True)
                )

        submitter = threading.Thread(target=submit_all)
        submitter.start()
        wait_until("500 tasks done", lambda: done_count(swarm) >= 500, timeout_s=120)
        assert done_count(swarm) <= 1_500, "the kill came too late to prove anything"
        swarm[victim].kill()
        submitter.join()
        assert len(ids) == 2_000
        assert len(set(ids.values())) == 2_000, "two keys made one task"
        time.sleep(1)
        swarm.restart(swarm[victim])
        swarm.wait_whole()
        check_against_ledger(swarm, ids, ledger)


@pytest.mark.alone
@pytest.mark.long
def test_work_resumes_after_all_daemons_were_killed(folder: Path) -> None:
    """All three die with hundreds of tasks pending; restarted, they go on by themselves."""
    ledger = file_for_agents(folder / "ledger")
    with LocalSwarm(folder / "s", 3) as swarm:
        swarm.form()
        swarm[0].json("agent", "deploy", str(AGENTS / "ledger.toml"))
        keys = [f"all-{n}" for n in range(1_500)]
        batch = [item(ledger, key, 100) for key in keys]
        ids = dict(zip(keys, submit_durably([swarm[1].socket], batch), strict=True))
        wait_until("some tasks done", lambda: done_count(swarm) >= 50, timeout_s=60)
        status = swarm[0].json("status")["tasks"]
        assert sum(status.get(s, 0) for s in ("pending", "assigned", "running")) >= 500
        for daemon in swarm.daemons:
            daemon.kill()
        began = time.monotonic()
        before = len(ledger.read_text().splitlines())
        for daemon in swarm.daemons:
            swarm.restart(daemon)
        wait_until(
            "work resumed", lambda: len(ledger.read_text().splitlines()) > before, timeout_s=10
        )
        assert time.monotonic() - began < 10
        check_against_ledger(swarm, ids, ledger)


@pytest.mark.long
def test_acknowledged_work_needs_neither_its_submitter_nor_its_files(folder: Path) -> None:
    """The agent's folder and the large inputs are gone, and so is the node they came through."""
    ledger = file_for_agents(folder / "ledger")
    source = folder / "agents"
    shutil.copytree(AGENTS, source)
    with LocalSwarm(folder / "s", 3) as swarm:
        swarm.form()
        submitter = swarm[2]
        submitter.json("agent", "deploy", str(source / "ledger.toml"))
        shutil.rmtree(source)
        body = bytes(range(256)) * 4 * 512  # 512 KiB: stored as a blob.
        keys = [f"big-{n}" for n in range(20)]
        batch = [item(ledger, key, 200, body + key.encode()) for key in keys]
        ids = dict(zip(keys, submit_durably([submitter.socket], batch), strict=True))
        submitter.kill()
        results = list(Client(swarm[0].socket).results(list(ids.values())))
        assert {task.state for task in results} == {"succeeded"}
        assert {task.result["size"] for task in results} >= {len(body) + len("big-0")}
        swarm.restart(submitter)
        check_against_ledger(swarm, ids, ledger)
