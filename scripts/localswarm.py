"""Real daemons on this machine, for the demo, the benches and the tests.

Each daemon is the installed `swarmd` with a folder, an address (of the loopback, or of a host of
`nethosts`) and a socket of its own, and is spoken to through the installed `swarmctl` and the
HTTP API alone. Everything started here is ended here, by process id.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from swarmd.client import Client

BIN = Path(sys.executable).parent
PORT = 7575


def wait_until(
    what: str, condition: Callable[[], Any], *, timeout_s: float = 30.0, every_s: float = 0.05
) -> Any:
    """The first true value of `condition`. Raises TimeoutError naming `what`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(every_s)


def free_port(addresses: Iterable[str], preferred: int = PORT) -> int:
    """A port that is free for TCP and UDP on all `addresses`; `preferred` if it is."""
    candidates = [preferred, *range(20_000 + os.getpid() % 5_000, 32_000)]
    for port in candidates:
        try:
            for address in addresses:
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    with socket.socket(socket.AF_INET, kind) as probe:
                        probe.bind((address, port))
        except OSError:
            continue
        return port
    raise OSError("no free port")


def let_agents_through(folder: Path) -> None:
    """Agents of daemons that root starts are users of their own; temporary folders are ours."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in (folder, *folder.parents):
        if not part.is_relative_to(tempfile.gettempdir()) or part == Path(tempfile.gettempdir()):
            return
        part.chmod(part.stat().st_mode | 0o011)


def agents_get_through() -> bool:
    """Can users other than this one run what is installed here?"""
    parts = {part for start in (BIN, Path(__file__)) for part in start.resolve().parents}
    return all(part.stat().st_mode & 0o001 for part in parts)


def file_for_agents(path: Path) -> Path:
    """An empty file that agents may write to, as whomever they run."""
    let_agents_through(path.parent)
    path.touch()
    path.chmod(0o666)
    return path


class Place(Protocol):
    """Where a daemon may run instead of beside the others: a host of `nethosts`."""

    @property
    def address(self) -> str: ...
    def enter(self, *command: str) -> list[str]: ...


@dataclass
class Daemon:
    """One `swarmd` process and how to talk to it."""

    name: str
    folder: Path
    address: str
    port: int
    hide: list[Path] = field(default_factory=list)
    place: Place | None = None
    environ: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "swarmd.sock"

    @property
    def log(self) -> Path:
        return self.folder / "swarmd.log"

    def write_config(self, **settings: Mapping[str, Any]) -> None:
        """The daemon's swarmd.toml; `settings` are sections that override or extend it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sections: dict[str, dict[str, Any]] = {
            "node": {
                "name": self.name,
                "data_folder": str(self.folder / "data"),
                "keys_folder": str(self.folder / "keys"),
            },
            "mesh": {
                "bind": [self.address],
                "port": self.port,
                "interfaces": ["lo" if self.place is None else "eth0"],
            },
            "gateway": {"socket": str(self.socket)},
        }
        if not agents_get_through():
            sections["agents"] = {"user": "daemon"}
        for section, values in settings.items():
            sections.setdefault(section, {}).update(values)
        lines = []
        for section, values in sections.items():
            lines.append(f"[{section}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        (self.folder / "swarmd.toml").write_text("\n".join(lines) + "\n")

    def start(self, *arguments: str, stdin: str | None = None) -> None:
        """Run `swarmd` with these arguments; its output goes to the daemon's log."""
        command = [str(BIN / "swarmd"), "--config", str(self.folder / "swarmd.toml"), *arguments]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("SWARM")}
        environ.update(self.environ)
        command = hidden_from(self.hide, command)
        if self.place is not None:
            command = self.place.enter(*command)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                start_new_session=True,
            )
        if stdin is not None:
            assert self.process.stdin is not None
            self.process.stdin.write(stdin.encode())
            self.process.stdin.close()

    def kill(self) -> None:
        """SIGKILL, and reap."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def terminate(self, timeout_s: float = 15.0) -> int:
        """SIGTERM; the exit code. SIGKILL after `timeout_s`, answered as -9."""
        if self.process is None:
            return 0
        self.process.terminate()
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.process = None
        return code

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def ctl(self, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run `swarmctl` against this daemon."""
        return subprocess.run(
            [str(BIN / "swarmctl"), *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, "SWARMCTL_SOCKET": str(self.socket), "NO_COLOR": "1"},
            check=False,
        )

    def sent_bytes(self) -> float:
        """What this daemon has sent over streams so far."""
        sent = ('transport="stream"', 'direction="sent"')
        return self.counted("swarmd_transport_bytes_total{", *sent)

    def sent_blob_bytes(self) -> float:
        """What this daemon has sent of users' blobs so far."""
        return self.counted("swarmd_blob_sent_bytes_total ")

    def counted(self, begins: str, *holds: str) -> float:
        """The sum of those of its metrics whose lines begin so, and hold these words."""
        with Client(str(self.socket)) as client:
            lines = client.metrics().splitlines()
        return sum(
            float(line.split()[-1])
            for line in lines
            if line.startswith(begins) and all(word in line for word in holds)
        )

    def json(self, *arguments: str, timeout_s: float = 60.0) -> Any:
        """What `swarmctl ARGUMENTS --json` prints. Raises RuntimeError with its error line."""
        done = self.ctl(*arguments, "--json", timeout_s=timeout_s)
        if done.returncode != 0:
            raise RuntimeError(f"swarmctl {' '.join(arguments)}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def try_json(self, *arguments: str) -> Any:
        """Like `json`, but None while the daemon does not answer."""
        try:
            return self.json(*arguments, timeout_s=10)
        except (RuntimeError, ValueError, subprocess.TimeoutExpired):
            return None


def hidden_from(hide: list[Path], command: list[str]) -> list[str]:
    """`command` in a mount namespace of its own in which the folders `hide` are empty."""
    if not hide:
        return command
    mounts = " && ".join(f"mount -t tmpfs -o mode=0000,size=4k none '{path}'" for path in hide)
    unshare = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "-rm"]
    return [*unshare, "sh", "-c", f'{mounts} && exec "$@"', "sh", *command]


def can_hide() -> bool:
    """Whether this user may make mount namespaces here."""
    if shutil.which("unshare") is None:
        return False
    probe = hidden_from([Path("/mnt")], ["true"])
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


class LocalSwarm:
    """Daemons n1, n2, ... on 127.0.0.1, 127.0.0.2, ...

    Args:
        root: folder for everything; the caller removes it.
        count: how many daemons.
        static: find each other by static seeds instead of mDNS on `lo`.
        isolate: hide the daemons' folders from each other.
        settings: sections for every daemon's configuration.
        places: hosts to run on, one for each daemon, instead of this one's loopback.
    """

    def __init__(
        self,
        root: Path,
        count: int = 3,
        *,
        static: bool = True,
        isolate: bool = False,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        places: Sequence[Place] = (),
    ) -> None:
        addresses = [p.address for p in places] or [f"127.0.0.{n}" for n in range(1, count + 1)]
        port = PORT if places else free_port(addresses)
        self.root = root
        let_agents_through(root)
        let_agents_through(Path(__file__).parent)
        self.static = static
        self.daemons = [
            Daemon(f"n{n}", root / f"n{n}", address, port) for n, address in enumerate(addresses, 1)
        ]
        for daemon, place in zip(self.daemons, places, strict=False):
            daemon.place = place
        for daemon in self.daemons:
            mesh: dict[str, Any] = {"mdns": not static}
            if static:
                mesh["seeds"] = [f"{d.address}:{port}" for d in self.daemons if d is not daemon]
            merged = {key: dict(value) for key, value in (settings or {}).items()}
            merged["mesh"] = {**mesh, **merged.get("mesh", {})}
            daemon.write_config(**merged)
        if isolate:
            for daemon in self.daemons:
                daemon.hide = [d.folder for d in self.daemons if d is not daemon]

    def __getitem__(self, index: int) -> Daemon:
        return self.daemons[index]

    def __enter__(self) -> LocalSwarm:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def by_name(self, name: str) -> Daemon:
        return next(d for d in self.daemons if d.name == name)

    def alive(self) -> list[Daemon]:
        return [d for d in self.daemons if d.process is not None and d.process.poll() is None]

    def form(self, *, voters: int | None = None, timeout_s: float = 30.0) -> None:
        """Make the swarm with the first daemon, let the others join, wait until it is whole."""
        first, *rest = self.daemons
        first.start("--init", "lab")
        self._wait_first(first, timeout_s)
        token = first.json("token", "create", "--uses", "20", "--ttl", "1h")["token"]
        for daemon in rest:
            daemon.start("--join", "-", stdin=token)
        self.wait_whole(voters=voters, timeout_s=timeout_s)

    def _wait_first(self, first: Daemon, timeout_s: float) -> None:
        def ready() -> bool:
            assert first.process is not None
            if first.process.poll() is not None:
                raise RuntimeError(f"swarmd ended: {first.log.read_text()[-500:]}")
            return (first.try_json("status") or {}).get("ready", False)

        wait_until("first daemon ready", ready, timeout_s=timeout_s)

    def wait_whole(self, *, voters: int | None = None, timeout_s: float = 30.0) -> None:
        """Wait until every daemon sees every other alive, a coordinator, and the voters."""
        count = len(self.daemons)
        want = voters if voters is not None else (1 if count < 3 else 3)

        def whole(daemon: Daemon) -> bool:
            status = daemon.try_json("status")
            return bool(
                status
                and status["alive"] == count
                and status["coordinator"]
                and len(status["store"]["voters"]) == want
            )

        for daemon in self.daemons:
            wait_until(
                f"{daemon.name} sees the whole swarm",
                lambda d=daemon: whole(d),
                timeout_s=timeout_s,
            )

    def restart(self, daemon: Daemon) -> None:
        daemon.start()

    def coordinator(self) -> Daemon | None:
        """The daemon that coordinates, as the living ones say."""
        for daemon in self.alive():
            status = daemon.try_json("status")
            if status and status.get("coordinator"):
                return self.by_name(status["coordinator"])
        return None

    def stop(self) -> None:
        """SIGTERM to all at once, SIGKILL to who stays."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(Daemon.terminate, self.daemons))
