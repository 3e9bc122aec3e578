"""What is asked of the index in PostgreSQL. For threads.

A search is mostly one statement, which sees one snapshot: what it tells is of one position. Numbers
of collections are never used again, so a table that is there is the right one.

The nearest that the database tells are some more than were asked for, since it computes in single
precision; their distances are computed again as the embedded index does (`nearest.py`), so that
nodes tell equal distances whatever their index is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from psycopg import sql

from swarmd.base.errors import CorruptFile
from swarmd.memory.vector.nearest import Vectors, doubt, nearest, unit
from swarmd.memory.vector.pg_session import PackedVector, Session
from swarmd.memory.vector.pg_values import (
    HEAD_BYTES,
    decode_payload,
    decode_text,
    decode_vector,
    encode_text,
    kind_ends,
    sortable,
)
from swarmd.memory.vector.rules import Spec
from swarmd.memory.vector.shapes import Condition, Equals, Hit, Metric, OneOf, Query, Range

# Asked for beyond what is wanted, until distances are exact.
_SPARE: Final = 32
_STREAMED: Final = 1_000
# How many are looked at of an index that guesses, the first time and at most.
_LOOKED_AT: Final = 200
_SCANNED_MAX: Final = 2_147_483_647
# On vectors of length 1 products are in the order of angles, and quicker.
_OPERATORS: Final = {Metric.COSINE: "<#>", Metric.DOT: "<#>", Metric.L2: "<->"}
_BOUNDS: Final = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_APART: Final = 5
_WHOLE: Final = sql.SQL("COALESCE(value, head)")
_COLUMNS: Final = "id, payload, created_by, created_at_ms, vector_send(vector)"


def versions(session: Session, number: int, after: str, most: int) -> list[tuple[str, str]]:
    """See `VectorIndex.versions`."""
    rows = session.run(
        "SELECT id, version FROM {} WHERE id > %s ORDER BY id LIMIT %s",
        session.table("entries", number),
        values=(encode_text(after), most),
    )
    return [(decode_text(entry_id), decode_text(version)) for entry_id, version in rows]


def look(session: Session, position: int) -> None:
    """Raises CorruptFile: what is there is of an earlier time than `position`, or nothing."""
    found = session.one("SELECT position FROM {}", session.table("state"))
    _check_position(session, found, position)


def _check_position(session: Session, found: tuple[Any, ...] | None, position: int) -> None:
    if found is None or found[0] < position:
        raise CorruptFile(f"{session.server} has less than it had: it was put back from a copy")


def tune(session: Session) -> None:
    """Have indexes that guess look at so many, and go on where filters leave too few."""
    session.run(
        "SELECT set_config('hnsw.ef_search', %s, false), "
        "set_config('hnsw.max_scan_tuples', %s, false), "
        "set_config('hnsw.iterative_scan', 'strict_order', false)",
        values=(str(_LOOKED_AT), str(_SCANNED_MAX)),
    )


def search(
    session: Session, query: Query, number: int, spec: Spec, position: int, *, guesses: bool
) -> list[Hit]:
    """See `VectorIndex.search`; the query is known to be allowed.

    Args:
        number, spec: of the collection.
        position: what has to be seen at least.
        guesses: may it have an index that misses some?
    """
    return _Search(session, query, number, spec, position).hits(guesses)


class _Search:
    """One search: mostly one statement, which waits for the server once."""

    def __init__(
        self, session: Session, query: Query, number: int, spec: Spec, position: int
    ) -> None:
        self._session, self._number, self._spec, self._query = session, number, spec, query
        self._position = position
        self._vector: Vectors = np.frombuffer(query.vector, "<f4").astype(np.float32)
        if spec.metric is Metric.COSINE:
            self._vector = unit(self._vector)
        self._most = query.k + _SPARE
        self._where, given = _where(session.table("fields", number), query.conditions)
        asked = PackedVector(self._vector.astype("<f4").tobytes())
        self._given = {**given, "asked": asked, "most": self._most}

    def hits(self, guesses: bool) -> list[Hit]:
        rows = self._candidates()
        if guesses and len(rows) < self._most:
            # An index that guesses may end before it has seen all.
            with self._session.connection.transaction():
                self._session.run("SET LOCAL enable_indexscan = off")
                rows = self._candidates()
        vectors = self._vectors(rows)
        if not guesses and self._is_doubtful(rows, vectors):
            # Of one snapshot, as all that is told.
            with self._session.connection.transaction():
                rows = self._candidates()
                vectors = self._vectors(rows)
                if self._is_doubtful(rows, vectors):
                    near = rows[self._query.k - 1][_APART] + doubt(vectors, self._vector)
                    rows = self._nearest_of_all_within(near)
                    vectors = self._vectors(rows)
        return self._told(rows, vectors)

    def _is_doubtful(self, rows: Sequence[tuple[Any, ...]], vectors: Vectors) -> bool:
        """May one that is not among the candidates be nearer than one that is told?"""
        if len(rows) < self._most or self._spec.metric is Metric.L2:
            return False
        ahead: float = rows[-1][_APART] - rows[self._query.k - 1][_APART]
        return ahead < doubt(vectors, self._vector)

    def _candidates(self) -> list[tuple[Any, ...]]:
        """Rows of the nearest, as the database computes that."""
        entries, apart = self._session.table("entries", self._number), self._apart()
        rows: list[tuple[Any, ...]] = self._session.run(
            "WITH near AS MATERIALIZED ("
            "SELECT key, {} AS apart FROM {} WHERE {} ORDER BY {} LIMIT %(most)s) "
            "SELECT {}, apart, s.position FROM {} s "
            "LEFT JOIN (near JOIN {} USING (key)) ON true ORDER BY apart",
            apart,
            entries,
            self._where,
            apart,
            sql.SQL(_COLUMNS),
            self._session.table("state"),
            entries,
            values=self._given,
        ).fetchall()
        _check_position(self._session, (rows[0][-1],) if rows else None, self._position)
        return [row for row in rows if row[0] is not None]

    def _apart(self) -> sql.Composable:
        return sql.SQL("vector {} {}").format(
            sql.SQL(_OPERATORS[self._spec.metric]), sql.Placeholder("asked")
        )

    def _nearest_of_all_within(self, apart_most: float) -> list[tuple[Any, ...]]:
        """Where more are alike than single precision tells apart: of these, the nearest."""
        kept: list[tuple[Any, ...]] = []
        for rows in self._each_within(apart_most):
            kept += rows
            order, _ = self._ranked(self._vectors(kept))
            kept = [kept[at] for at in order]
        return kept

    def _each_within(self, apart_most: float) -> Iterator[list[tuple[Any, ...]]]:
        statement = sql.SQL("SELECT {} FROM {} WHERE {} AND {} <= {}").format(
            sql.SQL(_COLUMNS),
            self._session.table("entries", self._number),
            self._where,
            self._apart(),
            sql.Literal(apart_most),
        )
        with self._session.connection.cursor("near", binary=True) as cursor:
            cursor.execute(statement, self._given)
            while rows := cursor.fetchmany(_STREAMED):
                yield rows

    def _vectors(self, rows: Sequence[tuple[Any, ...]]) -> Vectors:
        dimension = self._spec.dimension
        if not rows:
            return np.empty((0, dimension), np.float32)
        return np.stack([decode_vector(row[4], dimension) for row in rows])

    def _ranked(self, vectors: Vectors) -> tuple[list[int], list[float]]:
        every = np.arange(len(vectors))
        found, apart = nearest(vectors, every, self._vector, self._spec.metric, self._query.k)
        return found.tolist(), apart.tolist()

    def _told(self, rows: Sequence[tuple[Any, ...]], vectors: Vectors) -> list[Hit]:
        hits = []
        for at, apart in zip(*self._ranked(vectors), strict=True):
            entry_id, payload, created_by, created_at_ms = rows[at][:4]
            hits.append(
                Hit(
                    decode_text(entry_id),
                    apart,
                    decode_payload(payload),
                    decode_text(created_by),
                    created_at_ms,
                )
            )
        return sorted(hits, key=lambda hit: (hit.distance, hit.id))


def _where(
    fields: sql.Composable, conditions: tuple[Condition, ...]
) -> tuple[sql.Composable, dict[str, Any]]:
    """What rows of `entries` have to meet, and the values for it."""
    parts: list[sql.Composable] = [sql.SQL("true")]
    given: dict[str, Any] = {}
    for at, condition in enumerate(conditions):
        bounds = _bounds(condition, given, f"{at}_")
        given[f"{at}_name"] = encode_text(condition.field)
        parts.append(
            sql.SQL("key IN (SELECT key FROM {} WHERE name = {} AND {})").format(
                fields,
                sql.Placeholder(f"{at}_name"),
                sql.SQL(" AND ").join(bounds),
            )
        )
    return sql.SQL(" AND ").join(parts), given


def _bounds(condition: Condition, given: dict[str, Any], prefix: str) -> list[sql.Composable]:
    """Conditions on a row of `fields`."""
    match condition:
        case Equals(value=value):
            return _among([sortable(value)], given, prefix)
        case OneOf(values=values):
            return _among([sortable(value) for value in values], given, prefix)
        case Range():
            bounds = condition.bounds()
            begin, end = kind_ends(bounds[0][1])
            found = [(_BOUNDS[name], sortable(value)) for name, value in bounds]
            # What says the same twice has the planner think that it leaves fewer.
            if not any(operator in (">", ">=") for operator, _ in found):
                found.append((">=", begin))
            if not any(operator in ("<", "<=") for operator, _ in found):
                found.append(("<", end))
            return [part for each in found for part in _bound(*each, given, prefix)]


def _bound(
    operator: str, value: bytes, given: dict[str, Any], prefix: str
) -> Iterator[sql.Composable]:
    name = f"{prefix}{len(given)}"
    given[name] = value
    if len(value) < HEAD_BYTES:
        # The head alone tells: of what is longer it is longer than this, and in the same order.
        yield sql.SQL("head {} {}").format(sql.SQL(operator), sql.Placeholder(name))
        return
    given[f"{name}_head"] = value[:HEAD_BYTES]
    loose = operator if operator in (">=", "<=") else f"{operator}="
    yield sql.SQL("head {} {}").format(sql.SQL(loose), sql.Placeholder(f"{name}_head"))
    yield sql.SQL("{} {} {}").format(_WHOLE, sql.SQL(operator), sql.Placeholder(name))


def _among(values: Sequence[bytes], given: dict[str, Any], prefix: str) -> list[sql.Composable]:
    given[f"{prefix}heads"] = [value[:HEAD_BYTES] for value in values]
    found: list[sql.Composable] = [
        sql.SQL("head = ANY({})").format(sql.Placeholder(f"{prefix}heads"))
    ]
    if any(len(value) >= HEAD_BYTES for value in values):
        given[f"{prefix}values"] = list(values)
        found.append(sql.SQL("{} = ANY({})").format(_WHOLE, sql.Placeholder(f"{prefix}values")))
    return found
