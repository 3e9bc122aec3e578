"""What idle daemons cost: processor time, and how often their loops wake.

    PYTHONPATH=scripts .venv/bin/python scripts/idle.py        # one daemon
    PYTHONPATH=scripts .venv/bin/python scripts/idle.py 3      # three, all of them voters

Other work on the machine makes each wake-up dearer, by half at times: two versions are compared by
running both at once, each with a network of its own (`scripts/apart COMMAND`).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import psutil
from localswarm import Daemon, LocalSwarm

# What a start leaves to do is done by then.
SETTLE_S = 30.0


def cost(daemon: Daemon) -> tuple[float, int]:
    """Seconds of processor time so far, and wake-ups of the loop's thread."""
    assert daemon.process is not None
    process = psutil.Process(daemon.process.pid)
    return sum(process.cpu_times()[:2]), process.num_ctx_switches().voluntary


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int, nargs="?", default=1)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="swarmd-idle-"))
    try:
        with LocalSwarm(root, options.count) as swarm:
            swarm.form()
            time.sleep(SETTLE_S)
            before = [cost(daemon) for daemon in swarm.daemons]
            began = time.monotonic()
            time.sleep(options.seconds)
            after = [cost(daemon) for daemon in swarm.daemons]
            took_s = time.monotonic() - began
            for daemon, (cpu_s, wakes), (cpu_after_s, wakes_after) in zip(
                swarm.daemons, before, after, strict=True
            ):
                percent = (cpu_after_s - cpu_s) / took_s * 100
                a_second = (wakes_after - wakes) / took_s
                print(f"{daemon.name}: {percent:.2f} % of a core, {a_second:.1f} wake-ups a second")
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
