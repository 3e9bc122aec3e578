"""Vector indexes in a PostgreSQL of the tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from postgres_server import PostgresServer

from swarmd.memory.vector.pg_session import Server
from swarmd.memory.vector.pgvector import PgvectorIndex, open_pgvector_index


def server_of(postgres: PostgresServer, **changes: Any) -> Server:
    """How a node reaches it, but for what is changed."""
    server = Server(
        host=postgres.host,
        port=postgres.port,
        database=postgres.database,
        user=postgres.user,
        password=postgres.password,
        ca_file="",
        connect_timeout_s=5.0,
        timeout_s=30.0,
    )
    return replace(server, **changes)


def schema_for(path: Path) -> str:
    """A schema that belongs to a test's folder."""
    return "swarmd_" + hashlib.sha256(str(path).encode()).hexdigest()[:20]


def in_schema(
    postgres: PostgresServer, schema: str, *, guesses: bool = False, **changes: Any
) -> Callable[[], AbstractAsyncContextManager[PgvectorIndex]]:
    return lambda: open_pgvector_index(server_of(postgres, **changes), schema, guesses=guesses)
