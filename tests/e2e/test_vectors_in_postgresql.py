"""A daemon whose index of vectors is in PostgreSQL, as somebody types it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from localswarm import Daemon, LocalSwarm, wait_until
from postgres_server import PostgresServer

pytestmark = pytest.mark.long


@pytest.fixture
def daemon(tmp_path: Path, postgres: PostgresServer) -> Iterator[Daemon]:
    password = tmp_path / "password"
    password.write_text(postgres.password + "\n")
    password.chmod(0o600)
    settings = {
        "vectors": {
            "engine": "pgvector",
            "pgvector_host": postgres.host,
            "pgvector_port": postgres.port,
            "pgvector_password_file": str(password),
            "pgvector_tls": "off",
        }
    }
    with LocalSwarm(tmp_path / "swarm", 1, settings=settings) as swarm:
        swarm.form()
        yield swarm[0]


def says(daemon: Daemon, *arguments: str, code: int = 0) -> str:
    done = daemon.ctl(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_it_is_filled_asked_and_told_of_while_the_database_comes_and_goes(
    daemon: Daemon, postgres: PostgresServer
) -> None:
    assert "the database of the index is reached" in says(daemon, "doctor")
    says(daemon, "vector", "create", "docs", "--dimension", "2")
    says(daemon, "vector", "add", "docs", "--id", "east", "--vector", "[1, 0]", "--payload", "n=1")
    assert "east" in says(daemon, "vector", "search", "docs", "--vector", "[1, 0]")
    tables = "SELECT count(*) FROM pg_tables WHERE tablename = 'entries_1'"
    assert postgres.sql(tables).strip() == "1"
    assert not (daemon.folder / "data" / "vectors").exists()

    postgres.stop()
    try:
        says(daemon, "vector", "add", "docs", "--id", "north", "--vector", "[0, 1]")
        told = daemon.ctl("vector", "search", "docs", "--vector", "[1, 0]")
        assert told.returncode != 0
        where = f"the vector database swarmd on 127.0.0.1:{postgres.port} cannot be used"
        assert where in told.stderr
        doctor = daemon.ctl("doctor")
        assert doctor.returncode != 0
        assert "cannot be used" in doctor.stdout
        assert "east" in says(daemon, "vector", "get", "docs", "east")
    finally:
        postgres.start()
    wait_until(
        "the index has what was written meanwhile",
        lambda: "north" in daemon.ctl("vector", "search", "docs", "--vector", "[0, 1]").stdout,
        timeout_s=60.0,
    )
    daemon.kill()
    daemon.start()
    wait_until(
        "it is found again",
        lambda: "east" in daemon.ctl("vector", "search", "docs", "--vector", "[1, 0]").stdout,
        timeout_s=60.0,
    )
    assert postgres.password not in daemon.log.read_text()
    assert daemon.process is not None
    command = Path(f"/proc/{daemon.process.pid}/cmdline").read_text()
    assert postgres.password not in command
    assert postgres.password not in says(daemon, "doctor")
