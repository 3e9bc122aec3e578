"""A connection to PostgreSQL with pgvector: how it is made, what its faults mean, how it is cut.

A session is used by one thread at a time. `cut` is for all others: it ends whatever the thread
waits for, also where the server hangs or the network swallows what is sent.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from psycopg import errors, pq, sql
from psycopg.adapt import Dumper
from psycopg.types import TypeInfo

from swarmd.base.errors import CorruptFile, SwarmError, VectorDatabaseUnavailable
from swarmd.memory.vector.pg_values import encode_vector

_TOLD_CHARS_MAX: Final = 200
# The first libpq that can be told never to show a password to a server that asks for it in clear.
_REQUIRE_AUTH_SINCE: Final = 160_000
# It warns of each connection that we cut; what is wrong is told by whoever asked.
logging.getLogger("psycopg").setLevel(logging.ERROR)
# Whatever of these a statement raises: the tables are not as they were made.
_DAMAGE: Final = (
    errors.UndefinedTable,
    errors.UndefinedColumn,
    errors.UndefinedObject,
    errors.UndefinedFunction,
    errors.InvalidSchemaName,
    errors.DatatypeMismatch,
    errors.WrongObjectType,
    errors.IntegrityError,
    errors.DataError,
    errors.DataCorrupted,
    errors.IndexCorrupted,
)


@dataclass(frozen=True, slots=True)
class Server:
    """Where the database is, and how it is spoken to.

    `host` is a name, an address, or the folder of a socket. `ca_file` holds the certificates that
    the server's is checked against; empty: no TLS. `timeout_s` bounds each statement.
    """

    host: str
    port: int
    database: str
    user: str
    password: str = field(repr=False)
    ca_file: str
    connect_timeout_s: float
    timeout_s: float

    def __str__(self) -> str:
        where = f"in {self.host}" if self.host.startswith("/") else f"on {self.host}:{self.port}"
        return f"the vector database {self.database} {where}"

    def unavailable(self, why: str) -> VectorDatabaseUnavailable:
        """What callers are told while it cannot be used."""
        return VectorDatabaseUnavailable(
            f"{self} cannot be used: {why}. Entries are kept by the swarm, and are in the index "
            "soon after it answers again; see that it runs and takes vectors.pgvector_user, or "
            "search on another node"
        )


class PackedVector(bytes):
    """A vector, as `shapes.packed` makes it, that is given to the database."""


class Session:
    """A connection. Raises psycopg.Error from any call, and from being made.

    Args:
        schema: whose tables it is for.
        reads_only: for a snapshot in each transaction, and no writes.
    """

    def __init__(self, server: Server, schema: str, *, reads_only: bool) -> None:
        self.server, self.schema = server, schema
        # Was the connection found to be ended, by the server or on the way?
        self.lost = False
        self.connection: psycopg.Connection[Any] = psycopg.connect(
            **_parameters(server), autocommit=True, prepare_threshold=None
        )
        # A descriptor of our own: that of the connection may be closed and taken by another.
        self._socket = socket.socket(fileno=os.dup(self.connection.fileno()))
        try:
            if reads_only:
                self.connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                self.connection.read_only = True
            self.connection.execute(
                "SELECT set_config('statement_timeout', %s, false), "
                "set_config('jit', 'off', false)",
                (str(math.ceil(server.timeout_s * 1_000)),),
            )
        except BaseException:
            self.close()
            raise

    def use_schema(self) -> None:
        """Look for names in its schema first from here on, and know the type of vectors."""
        found = self.connection.execute(
            "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
            "WHERE e.extname = 'vector'"
        ).fetchone()
        if found is None:
            raise errors.UndefinedObject("the extension vector is not there")
        path = sql.SQL("SET search_path = {}, {}").format(
            sql.Identifier(self.schema), sql.Identifier(found[0])
        )
        self.connection.execute(path)
        info = TypeInfo.fetch(self.connection, "vector")
        if info is None:
            raise errors.UndefinedObject("the extension vector has no type vector")
        info.register(self.connection)
        vector_oid = info.oid

        class Wired(Dumper):
            format = pq.Format.BINARY
            oid = vector_oid

            def dump(self, obj: bytes) -> bytes:
                return encode_vector(obj)

        self.connection.adapters.register_dumper(PackedVector, Wired)

    def run(self, text: str, *parts: sql.Composable, values: Any = None) -> psycopg.Cursor[Any]:
        """Run a statement, which takes `parts` in its braces and `values` at its placeholders."""
        cursor = self.connection.cursor(binary=True)
        return cursor.execute(sql.SQL(text).format(*parts), values)

    def one(self, text: str, *parts: sql.Composable, values: Any = None) -> tuple[Any, ...] | None:
        """The first row of what a statement gives."""
        found: tuple[Any, ...] | None = self.run(text, *parts, values=values).fetchone()
        return found

    def table(self, kind: str, number: int | None = None) -> sql.Identifier:
        """A table of its schema; with a number that of a collection."""
        return sql.Identifier(self.schema, kind if number is None else f"{kind}_{number}")

    def is_there(self, name: str) -> bool:
        """Does its schema have a table or an index of that name?"""
        found = self.one("SELECT to_regclass(%s)", values=(f"{self.schema}.{name}",))
        return found != (None,)

    def cut(self) -> None:
        """Have the thread that waits for the server end. For any thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """No thread may use it any more."""
        self.connection.close()
        self._socket.close()


def _parameters(server: Server) -> dict[str, Any]:
    """All that libpq would take from the environment otherwise is said."""
    given: dict[str, Any] = {
        "host": server.host,
        "port": server.port,
        "dbname": server.database,
        "user": server.user,
        "application_name": "swarmd",
        "client_encoding": "UTF8",
        "connect_timeout": max(2, math.ceil(server.connect_timeout_s)),
        "tcp_user_timeout": math.ceil(server.timeout_s * 1_000),
        "target_session_attrs": "read-write",
        "gssencmode": "disable",
        "sslmode": "verify-full" if server.ca_file else "disable",
        "options": "",
    }
    if server.ca_file:
        given["sslrootcert"] = server.ca_file
    if server.password:
        given["password"] = server.password
    if pq.version() >= _REQUIRE_AUTH_SINCE:
        given["require_auth"] = "!password"
    return given


def fault_of(error: psycopg.Error, server: Server) -> SwarmError:
    """What an error of the database means: it cannot be used now, or the index is damaged.

    Raises: the error itself, where only a bug of ours explains it.
    """
    if isinstance(error, errors.SyntaxError):
        raise error
    why = _told(error, server)
    if isinstance(error, _DAMAGE):
        return CorruptFile(f"{server} does not hold this node's index as it was made: {why}")
    return server.unavailable(why)


def _told(error: psycopg.Error, server: Server) -> str:
    """The first line of what the driver says, without the password."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if server.password:
        text = text.replace(server.password, "***")
    return "".join(c if c.isprintable() else " " for c in text)[:_TOLD_CHARS_MAX].rstrip(". ")
