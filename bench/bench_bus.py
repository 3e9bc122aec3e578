"""How long a message takes from an agent on one node to an agent on another, over loopback."""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from localswarm import LocalSwarm
from run import Options

from swarmd.client import Client, TaskInput

AGENT = Path(__file__).parent / "agents" / "talk" / "talk.toml"
WARM_UP = 200
COUNT = 3_000
PAUSE_S = 0.003


def run(options: Options) -> Iterator[tuple[str, float]]:
    root = Path(tempfile.mkdtemp(prefix="swarmd-bench-"))
    try:
        with LocalSwarm(root, 2) as swarm:
            swarm.form()
            ages, took = measure(swarm)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    for name, times in (("agent_to_agent", ages), ("info_acknowledged", took)):
        cuts = statistics.quantiles(times, n=100)
        yield f"{name}_p50_ms", cuts[49]
        yield f"{name}_p99_ms", cuts[98]


def measure(swarm: LocalSwarm) -> tuple[list[float], list[float]]:
    """Ages of messages, and times of publishes, in ms."""
    done = swarm[0].ctl("agent", "deploy", str(AGENT))
    assert done.returncode == 0, done.stderr
    client = Client(str(swarm[0].socket))
    # One runs on a node at a time, so they are on two.
    roles = {"role": "listen"}, {"role": "talk", "count": WARM_UP + COUNT, "pause_s": PAUSE_S}
    tasks = client.submit([TaskInput(agent="talk", input=dict(role), retries=0) for role in roles])
    ended = {task.id: task for task in client.results([one.id for one in tasks])}
    found = []
    for one in tasks:
        task = ended[one.id]
        assert task.state == "succeeded", task.error
        assert len(task.result) == WARM_UP + COUNT
        found.append([us / 1_000 for us in task.result[WARM_UP:]])
    nodes = {ended[one.id].node for one in tasks}
    assert len(nodes) == 2, f"both ran on {nodes}"
    return found[0], found[1]
