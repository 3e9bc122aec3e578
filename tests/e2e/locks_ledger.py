"""What holders wrote down while they held: a file that every host of a test can append to."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localswarm import BIN, Daemon, wait_until

# Writes "begin FENCE NS" when it starts and "alive FENCE NS" every 20 ms, so that its last line
# tells until when it ran, however it ended. Python, because a shell cannot tell the time finely.
WORKER = """
import os, sys, time
ledger = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
end = time.monotonic() + float(sys.argv[2])
def note(word):
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    os.write(ledger, b"%s %s %d\\n" % (word, os.environb[b"SWARM_FENCE"], now))
note(b"begin")
while time.monotonic() < end:
    time.sleep(0.02)
    note(b"alive")
"""


@dataclass(frozen=True)
class Run:
    """One run of a command under a lock, in nanoseconds since the machine's start."""

    fence: int
    begin: int
    end: int


def read_ledger(path: Path) -> list[Run]:
    """The runs in the order in which they began."""
    begins: dict[int, int] = {}
    ends: dict[int, int] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        word, fence, now = line.split()
        if word == "begin":
            assert int(fence) not in begins, f"two runs under fence {fence}"
            begins[int(fence)] = int(now)
        ends[int(fence)] = int(now)
    runs = [Run(fence, begin, ends[fence]) for fence, begin in begins.items()]
    return sorted(runs, key=lambda run: run.begin)


def check_ledger(path: Path) -> list[Run]:
    """No two runs overlap, and fences rise."""
    runs = read_ledger(path)
    for before, after in itertools.pairwise(runs):
        assert before.end < after.begin, f"{before} and {after} overlap"
        assert before.fence < after.fence, f"the fence fell from {before} to {after}"
    return runs


def worker(ledger: Path, seconds: float) -> list[str]:
    """The command of a holder."""
    import sys

    return [sys.executable, "-c", WORKER, str(ledger), str(seconds)]


class Holder:
    """A `swarmctl lock` or `elect` beside the daemons; ended by `stop` at the latest."""

    def __init__(self, daemons: Sequence[Daemon], *arguments: str, verb: str = "lock") -> None:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("SWARM")}
        sockets = [part for one in daemons for part in ("--socket", str(one.socket))]
        self.process = subprocess.Popen(
            [str(BIN / "swarmctl"), verb, *sockets, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
            start_new_session=True,
        )

    def ended(self, timeout_s: float = 60.0) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        out, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out, err

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.communicate()


def wait_runs(path: Path, count: int, timeout_s: float = 30.0) -> list[Run]:
    """Wait until so many runs have begun."""
    return wait_until(
        f"{count} runs in {path.name}",
        lambda: runs if len(runs := read_ledger(path)) >= count else None,
        timeout_s=timeout_s,
    )


def nothing_runs(path: Path, for_s: float = 0.3) -> bool:
    """True if nobody writes to the ledger for a while."""
    size = path.stat().st_size
    time.sleep(for_s)
    return path.stat().st_size == size
