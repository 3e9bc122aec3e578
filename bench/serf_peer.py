"""serf as the peer of `bench swim`: agents on loopback, as the package brings them.

Each agent binds an address of 127.0.0.0/8 and nothing else: no mDNS (`-discover`), no interface
of the machine. What an agent prints is stamped as it comes, for it stamps whole seconds.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from sightings import Record, seen_by_serf

PACKAGE: Final = "serf"
_POLICY: Final = Path("/usr/sbin/policy-rc.d")
_FORBID: Final = "#!/bin/sh\nexit 101\n"
_STOP_TIMEOUT_S: Final = 20.0


def installed() -> bool:
    return shutil.which("serf") is not None


def setup() -> None:
    """Install serf by its Debian package, and start nothing. Raises CalledProcessError.

    The package starts an agent on all interfaces, at each boot, too: neither is wanted.
    """
    if installed():
        return
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    with no_services():
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", PACKAGE]
        subprocess.run(command, check=True)
    if shutil.which("systemctl") is not None:
        subprocess.run(["systemctl", "--quiet", "disable", PACKAGE], check=True)
    elif shutil.which("update-rc.d") is not None:
        subprocess.run(["update-rc.d", PACKAGE, "disable"], check=True)


@contextmanager
def no_services(policy: Path = _POLICY) -> Iterator[None]:
    """Have packages start no services meanwhile, whatever the machine's policy is else."""
    kept = policy.with_name(f"{policy.name}.kept-by-bench")
    if policy.exists():
        policy.rename(kept)
    policy.write_text(_FORBID)
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()
        if kept.exists():
            kept.rename(policy)


def agent_command(
    name: str, host: str, seeds: Iterable[str], port: int, rpc_port: int
) -> list[str]:
    """An agent that listens on `host` alone, looks for nobody but its seeds, and logs to stdout."""
    command = ["serf", "agent", f"-node={name}", f"-bind={host}:{port}"]
    command += [f"-rpc-addr={host}:{rpc_port}", "-log-level=info"]
    return command + [f"-retry-join={seed}:{port}" for seed in seeds if seed != host]


class Agents:
    """Agents n1, n2, ... at 127.0.0.1, 127.0.0.2, ..., each with all others as seeds.

    A `Side` of `bench swim`.
    """

    def __init__(self, count: int, port: int, rpc_port: int) -> None:
        self.names = [f"n{number}" for number in range(1, count + 1)]
        self.hosts = {name: f"127.0.0.{number}" for number, name in enumerate(self.names, 1)}
        self.port = port
        self.record = Record()
        self._rpc_port = rpc_port
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._readers: list[threading.Thread] = []

    def start(self, name: str) -> None:
        hosts = self.hosts.values()
        command = agent_command(name, self.hosts[name], hosts, self.port, self._rpc_port)
        self.record.started(name, time.time())
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._processes[name] = process
        reader = threading.Thread(target=self._read, args=(name, process.stdout))
        reader.start()
        self._readers = [one for one in self._readers if one.is_alive()] + [reader]

    def kill(self, name: str) -> None:
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def stop(self, name: str) -> None:
        """By SIGINT, as its unit says: it leaves then."""
        process = self._processes.pop(name)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def unlearn(self) -> None:
        """It writes down nothing, unless it is told to."""

    def follow(self) -> None:
        """Its readers do."""

    def close(self) -> None:
        for name in list(self._processes):
            self.kill(name)
        for reader in self._readers:
            reader.join()

    def _read(self, name: str, output: IO[bytes]) -> None:
        with output:
            for line in output:
                self.record.add([seen_by_serf(name, time.time(), line.decode(errors="replace"))])


@contextmanager
def agents(count: int, port: int, rpc_port: int) -> Iterator[Agents]:
    """Agents that are not started yet; whoever runs at the end of the block is killed."""
    running = Agents(count, port, rpc_port)
    try:
        yield running
    finally:
        running.close()
