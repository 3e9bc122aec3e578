"""Which index a node has, as its settings say; its libraries are loaded when it is opened."""

from __future__ import annotations

import importlib.util
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from swarmd.base.errors import ConfigError, DiskFault, SwarmError, VectorDatabaseUnavailable
from swarmd.base.ids import NodeId, to_text
from swarmd.identity.keys import read_private_file
from swarmd.memory.vector.config import VectorsConfig
from swarmd.memory.vector.feeder import OpenIndex
from swarmd.memory.vector.port import VectorIndex
from swarmd.observe.log import hide

# Where systems keep what they trust as one file, which the library that is asked need not know.
_TRUSTED: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)

ReadSecret = Callable[[str], Awaitable[str]]


def index_opener(
    config: VectorsConfig, folder: Path, me: NodeId, read_secret: ReadSecret
) -> OpenIndex:
    """What opens the index that the settings name, which `config.check` found sound.

    Args:
        folder: where the embedded index lies.
        read_secret: gives the value of a secret of the swarm.

    Raises:
        ConfigError: it needs a package that is not installed.
    """
    if config.engine == "embedded":
        return lambda: open_embedded(folder)
    if importlib.util.find_spec("psycopg") is None:
        raise ConfigError(
            'vectors.engine is "pgvector", and the package psycopg is not installed beside swarmd: '
            "install it (`pip install 'swarmd[pgvector]'`), or leave the engine \"embedded\""
        )
    return lambda: open_pgvector(config, me, read_secret)


@asynccontextmanager
async def open_embedded(folder: Path) -> AsyncIterator[VectorIndex]:
    """The embedded index in `folder`. Raises DiskFault."""

    def load() -> Any:
        from swarmd.memory.vector.embedded import open_vector_index

        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise DiskFault(f"cannot make {folder}: {error.strerror}") from error
        return open_vector_index

    open_index = await trio.to_thread.run_sync(load)
    async with open_index(folder) as index:
        yield index


@asynccontextmanager
async def open_pgvector(
    config: VectorsConfig, me: NodeId, read_secret: ReadSecret
) -> AsyncIterator[VectorIndex]:
    """The index in PostgreSQL, in this node's schema. Raises VectorDatabaseUnavailable."""

    def load() -> tuple[Any, Any]:
        from swarmd.memory.vector.pg_session import Server
        from swarmd.memory.vector.pgvector import open_pgvector_index

        return Server, open_pgvector_index

    password = await _read_password(config, read_secret)
    # To load it takes a while, of the interpreter's time.
    make_server, open_index = await trio.to_thread.run_sync(load)
    server = make_server(
        host=config.pgvector_host,
        port=config.pgvector_port,
        database=config.pgvector_database,
        user=config.pgvector_user,
        password=password,
        ca_file=ca_file_of(config),
        connect_timeout_s=config.pgvector_connect_timeout_s,
        timeout_s=config.pgvector_timeout_s,
    )
    guesses = config.pgvector_index == "hnsw"
    async with open_index(server, schema_of(me), guesses=guesses) as index:
        yield index


def schema_of(me: NodeId) -> str:
    """A node's own schema: no two nodes of any swarm have the same."""
    return f"swarmd_{to_text(me)}"


async def _read_password(config: VectorsConfig, read_secret: ReadSecret) -> str:
    secret, file = config.pgvector_password_secret, config.pgvector_password_file
    try:
        if secret:
            return await read_secret(secret)
        if not file:
            return ""
        raw = await trio.to_thread.run_sync(
            lambda: read_private_file(Path(file).expanduser(), given=True)
        )
    except SwarmError as error:
        raise _unavailable(config, f"its password cannot be read: {error.message}") from error
    password = raw.decode(errors="replace").strip()
    if not password:
        raise _unavailable(config, f"there is no password in {file}")
    hide("vectors.pgvector_password_file", password)
    return password


def ca_file_of(config: VectorsConfig) -> str:
    """Certificates that the server's is checked against; empty: it is reached without TLS."""
    if config.pgvector_tls == "off" or config.pgvector_host.startswith("/"):
        return ""
    trusted = (ssl.get_default_verify_paths().cafile, *_TRUSTED)
    found = config.pgvector_ca_file or next((one for one in trusted if one and _is_file(one)), "")
    if not found:
        raise _unavailable(
            config, "this system names no certificates that it trusts: set vectors.pgvector_ca_file"
        )
    return str(Path(found).expanduser())


def _is_file(path: str) -> bool:
    return Path(path).is_file()


def _unavailable(config: VectorsConfig, why: str) -> VectorDatabaseUnavailable:
    return VectorDatabaseUnavailable(
        f"the vector database {config.pgvector_database} on {config.pgvector_host} cannot be used: "
        f"{why}. Entries are kept by the swarm; search on another node meanwhile"
    )
