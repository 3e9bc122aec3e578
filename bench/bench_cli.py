"""How long `swarmctl` takes from the shell."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from localswarm import LocalSwarm
from run import Options

RUNS = 15


def run(options: Options) -> Iterator[tuple[str, float]]:
    root = Path(tempfile.mkdtemp(prefix="swarmd-bench-"))
    try:
        with LocalSwarm(root, 1) as swarm:
            swarm.form()
            daemon = swarm[0]
            for arguments in (["status"], ["members"], ["task", "list"]):
                daemon.ctl(*arguments)
                times = []
                for _ in range(RUNS):
                    began = time.perf_counter()
                    done = daemon.ctl(*arguments)
                    times.append((time.perf_counter() - began) * 1000)
                    assert done.returncode == 0, done.stderr
                yield f"{'_'.join(arguments)}_ms", statistics.median(times)
    finally:
        shutil.rmtree(root, ignore_errors=True)
