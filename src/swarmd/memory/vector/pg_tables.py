"""The index in PostgreSQL: its tables, and what is asked of them. For threads.

A node has a schema of its own, and in it for each collection two tables: `entries_N`, and
`fields_N` with a row for each field of each payload, to filter by. `state` and `collections` say
up to where changes were applied, and what there is. A batch is one transaction.

Reading is in `pg_search.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Final

import numpy as np
from psycopg import errors, sql

from swarmd.base.errors import CorruptFile
from swarmd.memory.vector.nearest import unit
from swarmd.memory.vector.pg_session import PackedVector, Session
from swarmd.memory.vector.pg_values import encode_text, sortable, split
from swarmd.memory.vector.rules import (
    Spec,
    check_room,
    encoded_payload,
    plan,
)
from swarmd.memory.vector.shapes import (
    Batch,
    CollectionView,
    Define,
    Drop,
    Metric,
    Remove,
    Upsert,
)

FORMAT: Final = 1
_EXTENSION: Final = "swarmd extension"
# Beyond these pgvector has no index for a column.
_INDEXED_DIMENSION_MAX: Final = 2_000
# Before this version a filter could leave fewer than there are.
_HNSW_SINCE: Final = (0, 8)
# Plans rest on what is known of the tables: so often it is found out anew.
_ANALYSE_CHANGES_MIN: Final = 1_000
_ANALYSE_PART: Final = 5
_CLASSES: Final = {
    Metric.COSINE: "vector_ip_ops",
    Metric.DOT: "vector_ip_ops",
    Metric.L2: "vector_l2_ops",
}


@dataclass(frozen=True, slots=True)
class Held:
    number: int
    name: str
    spec: Spec
    entries: int


@dataclass(frozen=True, slots=True)
class State:
    """`collections`: by name. `next_number` and `next_key` were never used."""

    position: int
    next_number: int
    next_key: int
    collections: Mapping[str, Held]

    def views(self) -> list[CollectionView]:
        return [
            CollectionView(name, one.spec.dimension, one.spec.metric, one.entries)
            for name, one in sorted(self.collections.items())
        ]


class Tables:
    """The tables of a session's schema, to be changed. Raises psycopg.Error from any call.

    Args:
        guesses: is the nearest looked up in an index that misses some (HNSW)?
    """

    def __init__(self, session: Session, *, guesses: bool) -> None:
        self.session = session
        self._connection = session.connection
        self._schema = session.schema
        self._guesses = guesses
        # By collection: changes since its tables were analysed.
        self._changes: dict[int, int] = {}

    # ---- opening -------------------------------------------------------------------------

    def prepare(self) -> tuple[State, str]:
        """Make what is missing, and take what is sound.

        Returns:
            What there is, and what was found wrong, for which all was made anew; or nothing.

        Raises:
            VectorDatabaseUnavailable: the database has no pgvector, or an old one.
        """
        self._need_extension()
        with self._connection.transaction():
            self._lock(self._schema)
            self.session.run("CREATE SCHEMA IF NOT EXISTS {}", sql.Identifier(self._schema))
        self.session.use_schema()
        with self._connection.transaction():
            self._lock(self._schema)
            state, wrong = self._sound()
            if state is None:
                state = self._make()
        return state, wrong

    def _lock(self, name: str) -> None:
        """Of two that make the same thing at once one would fail: they take turns."""
        self.session.run("SELECT pg_advisory_xact_lock(hashtext(%s))", values=(name,))

    def _need_extension(self) -> None:
        server = self.session.server
        try:
            with self._connection.transaction():
                self._lock(_EXTENSION)
                self.session.run("CREATE EXTENSION IF NOT EXISTS vector")
        except (errors.FeatureNotSupported, errors.UndefinedFile) as error:
            raise server.unavailable(
                "its server has no pgvector: install that there (docs/vectors.md)"
            ) from error
        except errors.InsufficientPrivilege as error:
            raise server.unavailable(
                f"{server.user} may not make its extension: run `CREATE EXTENSION vector` in "
                f"{server.database} as a superuser"
            ) from error
        found = self.session.one("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
        version = "" if found is None else str(found[0])
        if self._guesses and _numbers(version) < _HNSW_SINCE:
            raise server.unavailable(
                f'it has pgvector {version}, and vectors.pgvector_index = "hnsw" needs 0.8: '
                "upgrade it, or have all entries be looked at"
            )

    def _sound(self) -> tuple[State | None, str]:
        """What there is, if it is all there; else None and what is wrong."""
        if not self.session.is_there("state"):
            return None, ""
        try:
            with self._connection.transaction():  # A savepoint: what fails in it is undone.
                if self.session.one(
                    "SELECT format FROM {} FOR UPDATE", self.session.table("state")
                ) != (FORMAT,):
                    return None, "it is of another format"
                state = self._load()
                for one in state.collections.values():
                    self.session.run(
                        "SELECT FROM {} LIMIT 1", self.session.table("fields", one.number)
                    )
                    entries = self.session.one(
                        "SELECT count(*) FROM {}", self.session.table("entries", one.number)
                    )
                    if entries != (one.entries,):
                        return None, f"{one.name} should have {one.entries} entries"
        except (errors.UndefinedTable, errors.UndefinedColumn, CorruptFile) as error:
            return None, str(error).splitlines()[0]
        return state, ""

    def _make(self) -> State:
        self.session.run("DROP SCHEMA {} CASCADE", sql.Identifier(self._schema))
        self.session.run("CREATE SCHEMA {}", sql.Identifier(self._schema))
        self.session.run(
            "CREATE TABLE {} (format int NOT NULL, position bigint NOT NULL, "
            "next_number int NOT NULL, next_key bigint NOT NULL)",
            self.session.table("state"),
        )
        self.session.run(
            "INSERT INTO {} VALUES (%s, 0, 1, 1)", self.session.table("state"), values=(FORMAT,)
        )
        self.session.run(
            "CREATE TABLE {} (number int PRIMARY KEY, name text NOT NULL UNIQUE, "
            "dimension int NOT NULL, metric text NOT NULL, entries bigint NOT NULL)",
            self.session.table("collections"),
        )
        return State(0, 1, 1, {})

    def fit(self, state: State) -> None:
        """Make or drop indexes of vectors, as the settings say now; that may take minutes."""
        for one in state.collections.values():
            is_there = self.session.is_there(f"near_{one.number}")
            if is_there == self._is_indexed(one.spec):
                continue
            with self._connection.transaction():
                self.session.run("SET LOCAL statement_timeout = 0")
                if is_there:
                    self.session.run("DROP INDEX {}", self.session.table("near", one.number))
                else:
                    self._index(one.number, one.spec)

    def _is_indexed(self, spec: Spec) -> bool:
        return self._guesses and spec.dimension <= _INDEXED_DIMENSION_MAX

    def _index(self, number: int, spec: Spec) -> None:
        self.session.run(
            "CREATE INDEX {} ON {} USING hnsw (vector {})",
            sql.Identifier(f"near_{number}"),
            self.session.table("entries", number),
            sql.Identifier(_CLASSES[spec.metric]),
        )

    def _load(self) -> State:
        found = self.session.one(
            "SELECT position, next_number, next_key FROM {}", self.session.table("state")
        )
        if found is None:
            raise CorruptFile(f"{self.session.server} has no state of this node's index")
        rows = self.session.run(
            "SELECT number, name, dimension, metric, entries FROM {} ORDER BY number",
            self.session.table("collections"),
        )
        try:
            held = [Held(n, name, Spec(d, Metric(m)), e) for n, name, d, m, e in rows]
        except ValueError as error:
            raise CorruptFile(f"{self.session.server} has no such metric: {error}") from error
        position, next_number, next_key = found
        return State(position, next_number, next_key, {one.name: one for one in held})

    # ---- applying ------------------------------------------------------------------------

    def apply(self, batch: Batch, known: State | None) -> State:
        """Apply a batch in one transaction.

        Args:
            known: what the last batch led to; None where its outcome is unknown.

        Returns:
            What there is now.

        Raises:
            BadRequest and its kinds: see `rules.plan`; nothing changed.
            CorruptFile: somebody else has written to these tables; nothing changed.
        """
        with self._connection.transaction():
            found = self.session.one(
                "SELECT position FROM {} FOR UPDATE", self.session.table("state")
            )
            if found is None or (known is not None and found[0] != known.position):
                raise CorruptFile(
                    f"{self.session.server} is not as this node left it: somebody else wrote to "
                    f"{self._schema}, or it was put back from a copy"
                )
            before = known or self._load()
            after = self._applied(batch, before)
            if after != before:
                self.session.run(
                    "UPDATE {} SET position = %s, next_number = %s, next_key = %s",
                    self.session.table("state"),
                    values=(after.position, after.next_number, after.next_key),
                )
        for name in {change.collection for change in batch.changes} & after.collections.keys():
            self._analyse(after.collections[name])
        return after

    def _applied(self, batch: Batch, state: State) -> State:
        specs = {name: one.spec for name, one in state.collections.items()}
        changes = plan(batch, state.position, specs)
        entries = {name: one.entries for name, one in state.collections.items()}

        def holds(name: str, entry_id: str) -> bool:
            one = state.collections.get(name)
            return one is not None and self._holds(one, entry_id)

        check_room(changes, entries, specs, holds)
        group = _Group(state)
        # By collection and id: what stands there in the end.
        pending: dict[str, dict[str, Upsert | None]] = {}
        for change in changes:
            match change:
                case Define():
                    if change.collection not in group.collections:
                        self._define(group, change)
                case Drop():
                    pending.pop(change.collection, None)
                    self._drop(group, change.collection)
                case Upsert():
                    pending.setdefault(change.collection, {})[change.id] = change
                case Remove():
                    pending.setdefault(change.collection, {})[change.id] = None
        for name, by_id in pending.items():
            self._put(group, name, by_id)
        return State(
            max(state.position, batch.until), group.next_number, group.next_key, group.collections
        )

    def _holds(self, one: Held, entry_id: str) -> bool:
        table = self.session.table("entries", one.number)
        return (
            self.session.one("SELECT FROM {} WHERE id = %s", table, values=(encode_text(entry_id),))
            is not None
        )

    def _define(self, group: _Group, change: Define) -> None:
        one = Held(
            group.next_number, change.collection, Spec(change.dimension, change.metric), entries=0
        )
        group.next_number += 1
        group.collections[one.name] = one
        self.session.run(
            "INSERT INTO {} VALUES (%s, %s, %s, %s, 0)",
            self.session.table("collections"),
            values=(one.number, one.name, one.spec.dimension, one.spec.metric.value),
        )
        entries, fields = (
            self.session.table("entries", one.number),
            self.session.table("fields", one.number),
        )
        self.session.run(
            "CREATE TABLE {} (key bigint PRIMARY KEY, id bytea NOT NULL UNIQUE, "
            "version bytea NOT NULL, created_by bytea NOT NULL, created_at_ms bigint NOT NULL, "
            "payload bytea NOT NULL, vector vector({}) NOT NULL)",
            entries,
            sql.Literal(one.spec.dimension),
        )
        # No time goes to tries to compress them.
        self.session.run("ALTER TABLE {} ALTER payload SET STORAGE EXTERNAL", entries)
        self.session.run(
            "CREATE TABLE {} (key bigint NOT NULL, name bytea NOT NULL, head bytea NOT NULL, "
            "value bytea)",
            fields,
        )
        self.session.run("CREATE INDEX ON {} (name, head)", fields)
        self.session.run("CREATE INDEX ON {} (key)", fields)
        if self._is_indexed(one.spec):
            self._index(one.number, one.spec)

    def _drop(self, group: _Group, name: str) -> None:
        one = group.collections.pop(name, None)
        if one is None:
            return
        collections = self.session.table("collections")
        self.session.run("DELETE FROM {} WHERE number = %s", collections, values=(one.number,))
        for kind in ("entries", "fields"):
            self.session.run("DROP TABLE IF EXISTS {}", self.session.table(kind, one.number))

    def _put(self, group: _Group, name: str, by_id: Mapping[str, Upsert | None]) -> None:
        one = group.collections[name]
        entries, fields = (
            self.session.table("entries", one.number),
            self.session.table("fields", one.number),
        )
        gone = self.session.run(
            "DELETE FROM {} WHERE id = ANY(%s) RETURNING key",
            entries,
            values=([encode_text(each) for each in by_id],),
        ).fetchall()
        if gone:
            keys = [key for (key,) in gone]
            self.session.run("DELETE FROM {} WHERE key = ANY(%s)", fields, values=(keys,))
        new = [each for each in by_id.values() if each is not None]
        if new:
            keyed = list(zip(count(group.next_key), new, strict=False))
            self._copy(entries, _ENTRY_TYPES, (_row(key, each, one.spec) for key, each in keyed))
            self._copy(
                fields, _FIELD_TYPES, (row for key, each in keyed for row in _fields(key, each))
            )
            group.next_key += len(new)
        group.collections[name] = replace(one, entries=one.entries + len(new) - len(gone))
        self.session.run(
            "UPDATE {} SET entries = %s WHERE number = %s",
            self.session.table("collections"),
            values=(group.collections[name].entries, one.number),
        )
        self._changes[one.number] = self._changes.get(one.number, 0) + len(by_id)

    def _copy(
        self, table: sql.Composable, types: Sequence[str], rows: Iterable[tuple[Any, ...]]
    ) -> None:
        statement = sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(table)
        with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(types)
            for row in rows:
                copy.write_row(row)

    def _analyse(self, one: Held) -> None:
        wanted = max(_ANALYSE_CHANGES_MIN, one.entries // _ANALYSE_PART)
        if self._changes.get(one.number, 0) < wanted:
            return
        self._changes[one.number] = 0
        for kind in ("entries", "fields"):
            self.session.run("ANALYZE {}", self.session.table(kind, one.number))


_ENTRY_TYPES: Final = ("int8", "bytea", "bytea", "bytea", "int8", "bytea", "vector")
_FIELD_TYPES: Final = ("int8", "bytea", "bytea", "bytea")


class _Group:
    """What a batch comes to, until it is committed."""

    def __init__(self, state: State) -> None:
        self.collections = dict(state.collections)
        self.next_number, self.next_key = state.next_number, state.next_key


def _row(key: int, change: Upsert, spec: Spec) -> tuple[Any, ...]:
    """An entry as its table has it."""
    vector = change.vector
    if spec.metric is Metric.COSINE:
        vector = unit(np.frombuffer(vector, "<f4")).astype("<f4").tobytes()
    return (
        key,
        encode_text(change.id),
        encode_text(change.version),
        encode_text(change.created_by),
        change.created_at_ms,
        encoded_payload(change.payload),
        PackedVector(vector),
    )


def _fields(key: int, change: Upsert) -> Iterable[tuple[Any, ...]]:
    for name, value in change.payload.items():
        yield (key, encode_text(name), *split(sortable(value)))


def _numbers(version: str) -> tuple[int, ...]:
    found = []
    for part in version.split("."):
        with contextlib.suppress(ValueError):
            found.append(int(part))
    return tuple(found)
