"""What an index knows beside its vectors: entries, the fields to filter by, its position. SQLite.

The entries' table proves itself: its `State`, which is written with every commit, holds for each
collection a sum of checksums of its rows, those of `fields` included, and a row holds the checksum
of its vector. `verify` computes all of that anew.

Keys of rows are collection and slot in one number. All fields of all payloads are in one table,
ordered by collection, name, kind and value; so a condition is a stretch of it, or a few.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import msgspec
import numpy as np

from swarmd.base.disk import open_body, seal_body
from swarmd.base.errors import CorruptFile, DiskFault, SwarmError
from swarmd.memory.vector.nearest import Slots
from swarmd.memory.vector.rules import decoded_payload, kind_of
from swarmd.memory.vector.shapes import Condition, Equals, Metric, OneOf, Range, Scalar

FORMAT: Final = 1
_KIND: Final = "vectors"
_SLOT_BITS: Final = 32
_SLOT_MASK: Final = (1 << _SLOT_BITS) - 1
assert _SLOT_MASK == 4294967295  # As it stands in `_SLOTS`.
_SUM_MASK: Final = (1 << 63) - 1
_SCHEMA: Final = """
CREATE TABLE state (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE entries (
    key INTEGER PRIMARY KEY, collection INTEGER NOT NULL, id TEXT NOT NULL, payload BLOB NOT NULL,
    created_by TEXT NOT NULL, created_at_ms INTEGER NOT NULL, vector_crc INTEGER NOT NULL,
    version TEXT NOT NULL
);
CREATE UNIQUE INDEX entries_by_id ON entries (collection, id);
CREATE TABLE fields (
    collection INTEGER, name TEXT, kind INTEGER, value BLOB, key INTEGER,
    PRIMARY KEY (collection, name, kind, value, key)
) WITHOUT ROWID;
"""
_ROWS: Final = (
    "SELECT key, collection, id, payload, created_by, created_at_ms, vector_crc, version "
    "FROM entries"
)
_SLOTS: Final = (
    "SELECT group_concat(key & 4294967295) FROM fields WHERE collection = ? AND name = ? AND "
)
_OPERATORS: Final = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
# What a disk or a system refuses; all else that SQLite finds wrong is the file's fault.
_REFUSED: Final = (
    "SQLITE_FULL", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_BUSY", "SQLITE_LOCKED",
    "SQLITE_NOMEM", "SQLITE_PERM", "SQLITE_INTERRUPT", "SQLITE_AUTH", "SQLITE_NOLFS",
    "SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_DIR_FSYNC", "SQLITE_IOERR_TRUNCATE",
    "SQLITE_IOERR_LOCK", "SQLITE_IOERR_NOMEM", "SQLITE_IOERR_DELETE", "SQLITE_IOERR_SHMOPEN",
    "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_SHMMAP", "SQLITE_IOERR_SHMLOCK",
)  # fmt: skip


class Held(msgspec.Struct, array_like=True):
    """A collection as the state tells it."""

    number: int
    name: str
    dimension: int
    metric: Metric
    entries: int = 0
    checksum: int = 0


class State(msgspec.Struct, array_like=True):
    position: int = 0
    next_number: int = 1
    collections: list[Held] = []


@dataclass(frozen=True, slots=True)
class Row:
    """An entry but for its vector."""

    key: int
    collection: int
    id: str
    payload: bytes
    created_by: str
    created_at_ms: int
    vector_crc: int
    version: str

    @property
    def slot(self) -> int:
        return self.key & _SLOT_MASK

    def values(self) -> tuple[int, int, str, bytes, str, int, int, str]:
        """As the table has them."""
        own = (self.key, self.collection, self.id, self.payload, self.created_by)
        return (*own, self.created_at_ms, self.vector_crc, self.version)

    def own_checksum(self) -> int:
        return _crc(self.values())

    def checksum(self) -> int:
        """Of the row and of the rows of `fields` that it stands for."""
        return self.own_checksum() + sum(map(_crc, self.fields()))

    def fields(self) -> list[tuple[int, str, int, Scalar, int]]:
        return [
            (self.collection, name, kind_of(value), _stored(value), self.key)
            for name, value in decoded_payload(self.payload).items()
        ]


def _stored(value: Scalar) -> Scalar:
    return int(value) if isinstance(value, bool) else value


def _crc(values: tuple[object, ...]) -> int:
    return crc32(msgspec.msgpack.encode(values))


def key_of(collection: int, slot: int) -> int:
    return collection << _SLOT_BITS | slot


def fault_of(error: sqlite3.Error | OSError, path: Path) -> SwarmError:
    """What an error of SQLite or the system means: the disk refused, or the file is damaged."""
    if isinstance(error, OSError):
        return DiskFault(f"cannot use {path}: {error.strerror or error}")
    name = getattr(error, "sqlite_errorname", "")
    if isinstance(error, sqlite3.ProgrammingError) and not name:
        raise error  # A bug of ours, such as a closed connection.
    if name.startswith(_REFUSED):
        return DiskFault(f"cannot use {path}: {error} ({name})")
    return CorruptFile(f"{path} is damaged: {error}")


class Database:
    """One connection, used by one thread at a time. Raises sqlite3.Error from any call.

    To open one raises DiskFault, too.

    A writer commits durably: the write-ahead log is synced at every commit.
    """

    def __init__(self, path: Path, *, writes: bool) -> None:
        self._connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=5.0
        )
        self._log = path.with_name(path.name + "-wal")
        try:
            self._set_up(path, writes=writes)
        except BaseException:
            self.close()
            raise

    def _set_up(self, path: Path, *, writes: bool) -> None:
        if writes:
            path.chmod(0o600)
            if self._run("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
                raise DiskFault(f"the file system of {path} has no room for a write-ahead log")
            self._run("PRAGMA synchronous = FULL")
            self._run("PRAGMA journal_size_limit = 67108864")
            self._run("PRAGMA cache_size = -16384")
            if not self._run("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall():
                # At once with its first state: a crash leaves an empty file, or all of it.
                self._connection.executescript("BEGIN IMMEDIATE;" + _SCHEMA)
                self.write_state(State())
                self.commit()
        else:
            self._run("PRAGMA query_only = 1")
            self._run("PRAGMA cache_size = -4096")

    def close(self) -> None:
        self._connection.close()

    def begin(self) -> None:
        self._run("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self._run("COMMIT")

    def rollback(self) -> None:
        if self._connection.in_transaction:
            self._run("ROLLBACK")

    def log_bytes(self) -> int:
        """Size of the write-ahead log, which is begun anew only where nobody reads."""
        return self._log.stat().st_size

    def empty_log(self) -> None:
        """Take the log into the file, and cut it off. Nobody may read."""
        self._run("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def pin(self) -> None:
        """Read, until `rollback`, what is committed now."""
        self._run("BEGIN")
        self._run("SELECT id FROM state").fetchall()

    def read_state(self, path: Path) -> State:
        """Raises CorruptFile."""
        found = self._run("SELECT body FROM state WHERE id = 0").fetchone()
        if found is None or not isinstance(found[0], bytes):
            raise CorruptFile(f"{path} has no state")
        body = open_body(_KIND, FORMAT, found[0], source=str(path))
        try:
            return msgspec.msgpack.decode(body, type=State)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise CorruptFile(f"{path} has a state of another kind: {error}") from error

    def write_state(self, state: State) -> None:
        body = seal_body(_KIND, FORMAT, msgspec.msgpack.encode(state))
        self._run("INSERT OR REPLACE INTO state VALUES (0, ?)", (body,))

    def row(self, collection: int, entry_id: str) -> Row | None:
        asked = (collection, entry_id)
        found = self._run(_ROWS + " WHERE collection = ? AND id = ?", asked).fetchone()
        return None if found is None else Row(*found)

    def row_at(self, collection: int, slot: int) -> Row | None:
        found = self._run(_ROWS + " WHERE key = ?", (key_of(collection, slot),)).fetchone()
        return None if found is None else Row(*found)

    def insert(self, row: Row) -> None:
        self._run("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row.values())
        self._connection.executemany("INSERT INTO fields VALUES (?, ?, ?, ?, ?)", row.fields())

    def delete(self, row: Row) -> None:
        self._run("DELETE FROM entries WHERE key = ?", (row.key,))
        self._connection.executemany(
            "DELETE FROM fields WHERE collection = ? AND name = ? AND kind = ? AND value = ? "
            "AND key = ?",
            row.fields(),
        )

    def delete_collection(self, collection: int) -> None:
        self._run(
            "DELETE FROM entries WHERE key BETWEEN ? AND ?",
            (key_of(collection, 0), key_of(collection, _SLOT_MASK)),
        )
        self._run("DELETE FROM fields WHERE collection = ?", (collection,))

    def slots_where(self, collection: int, condition: Condition) -> Slots:
        """Slots of the entries that meet a condition, in any order."""
        sql, values = _stretch(condition)
        # One text for all of them: a row each would take and leave the interpreter a million times.
        found = self._run(
            _SLOTS + sql,
            (collection, condition.field, *values),
        ).fetchone()[0]
        if found is None:
            return np.empty(0, np.int64)
        return np.fromstring(str(found), dtype=np.int64, sep=",")

    def rows(self) -> Iterator[Row]:
        """All entries, in the order of their slots."""
        return (Row(*found) for found in self._run(_ROWS + " ORDER BY key"))

    def versions(self, collection: int, after: str, most: int) -> list[tuple[str, str]]:
        """Ids after one, in order, and their versions."""
        sql = "SELECT id, version FROM entries WHERE collection = ? AND id > ? ORDER BY id LIMIT ?"
        return self._run(sql, (collection, after, most)).fetchall()

    def field_checksums(self) -> dict[int, int]:
        """What the rows of `fields` sum up to, by collection."""
        sums: dict[int, int] = {}
        for found in self._run("SELECT collection, name, kind, value, key FROM fields"):
            sums[found[0]] = sums.get(found[0], 0) + _crc(found)
        return sums

    def integrity(self) -> str:
        """What SQLite finds wrong with the file's structure; empty: nothing."""
        found = self._run("PRAGMA integrity_check(1)").fetchone()
        return "" if found == ("ok",) else str(found[0] if found else "no answer")

    def _run(self, sql: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        return self._connection.execute(sql, values)


def summed(total: int, part: int) -> int:
    """A collection's checksum with a row's added, or, negative, taken away."""
    return (total + part) & _SUM_MASK


def _stretch(condition: Condition) -> tuple[str, list[Scalar]]:
    """Rows of `fields` that meet a condition, beside its collection and name."""
    match condition:
        case Equals(value=value):
            return "kind = ? AND value = ?", [kind_of(value), _stored(value)]
        case OneOf(values=values):
            each = ", ".join("(?, ?)" for _ in values)
            pairs = [part for one in values for part in (kind_of(one), _stored(one))]
            return f"(kind, value) IN (VALUES {each})", pairs
        case Range():
            bounds = condition.bounds()
            each = "".join(f" AND value {_OPERATORS[name]} ?" for name, _ in bounds)
            values_of = [_stored(value) for _, value in bounds]
            return f"kind = ?{each}", [kind_of(bounds[0][1]), *values_of]
