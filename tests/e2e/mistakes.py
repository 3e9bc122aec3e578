"""What the tests of bad input share: start a daemon that is to refuse, read what it says."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from localswarm import BIN, Daemon, LocalSwarm

# Members on one machine notice a death within a second.
QUICK = {"swim": {"profile": "local"}}


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for a unix socket's; gone afterwards."""
    root = Path(tempfile.mkdtemp(prefix="swarmd-"))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def beside(swarm: LocalSwarm, name: str, number: int) -> Daemon:
    """A daemon that is no member yet, on a loopback address of its own, with seeds."""
    first = swarm[0]
    daemon = Daemon(name, swarm.root / name, f"127.0.0.{number}", first.port)
    seeds = [f"{first.address}:{first.port}"]
    daemon.write_config(mesh={"mdns": False, "seeds": seeds}, **QUICK)
    return daemon


def start_refused(
    daemon: Daemon, *arguments: str, stdin: str = "", under: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run `swarmd` to its end, which must come by itself within 20 s.

    Args:
        under: a command that is given swarmd's as its last arguments.
    """
    config = str(daemon.folder / "swarmd.toml")
    return subprocess.run(
        [*under, str(BIN / "swarmd"), "--config", config, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=20,
        env={key: value for key, value in os.environ.items() if not key.startswith("SWARM")},
        check=False,
    )


def sentence(done: subprocess.CompletedProcess[str], program: str) -> str:
    """The one line with which the program said what is wrong; fails if it said more, or broke.

    What a daemon logs while it starts comes before that line.
    """
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout == "", done.stdout
    *before, last = done.stderr.splitlines()
    assert last.startswith(f"{program}: "), done.stderr
    assert all("[info " in line or "warning: a token" in line for line in before), done.stderr
    assert 20 < len(last) < 420, last
    return last.removeprefix(f"{program}: ")


def refused(daemon: Daemon, *arguments: str, stdin: str = "", code: int = 2) -> str:
    """What `swarmd` says when it refuses to start with these arguments."""
    done = start_refused(daemon, *arguments, stdin=stdin)
    assert done.returncode == code, (done.returncode, done.stderr)
    return sentence(done, "swarmd")


def failing(daemon: Daemon, *arguments: str, code: int) -> str:
    """What `swarmctl` says when it ends with `code`."""
    done = daemon.ctl(*arguments)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return sentence(done, "swarmctl")


def pid_of(daemon: Daemon) -> int:
    """The process of a daemon that lives."""
    assert daemon.process is not None
    assert daemon.process.poll() is None, daemon.log.read_text()[-2_000:]
    return daemon.process.pid
