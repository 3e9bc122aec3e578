"""What is asked of the index in PostgreSQL. For threads.

A search is one transaction that sees one snapshot, so what it tells is of one position. The nearest
that the database tells are some more than were asked for, since it computes in single precision;
their distances are computed again as the embedded index does (`nearest.py`), so that nodes tell
equal distances whatever their index is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from psycopg import errors, sql

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
from swarmd.memory.vector.rules import Spec, check_query
from swarmd.memory.vector.shapes import Condition, Equals, Hit, Metric, OneOf, Query, Range, Scalar

# Asked for beyond what is wanted, until distances are exact.
_SPARE: Final = 32
_STREAMED: Final = 1_000
# How many are looked at of an index that guesses, the first time and at most.
_EF_MIN: Final = 200
_EF_MAX: Final = 1_000
_SCANNED_MAX: Final = 2_147_483_647
# On vectors of length 1 products are in the order of angles, and quicker.
_OPERATORS: Final = {Metric.COSINE: "<#>", Metric.DOT: "<#>", Metric.L2: "<->"}
_BOUNDS: Final = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
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


def search(session: Session, query: Query, position: int, *, guesses: bool) -> list[Hit]:
    """See `VectorIndex.search`.

    Args:
        position: what has to be seen at least.
        guesses: may an index be used that misses some?
    """
    try:
        return _search(session, query, position, guesses)
    except errors.UndefinedTable:
        # Tables are no part of a snapshot: one was dropped in between, or is damaged.
        return _search(session, query, position, guesses)


def _search(session: Session, query: Query, position: int, guesses: bool) -> list[Hit]:
    with session.connection.transaction():
        found = session.one(
            "SELECT s.position, c.number, c.dimension, c.metric "
            "FROM {} s LEFT JOIN {} c ON c.name = %s",
            session.table("state"),
            session.table("collections"),
            values=(query.collection,),
        )
        _check_position(session, found, position)
        assert found is not None
        _, number, dimension, metric = found
        specs = {} if number is None else {query.collection: Spec(dimension, Metric(metric))}
        spec = check_query(query, specs)
        return _Search(session, number, spec, query).hits(guesses)


class _Search:
    """One search, within its transaction."""

    def __init__(self, session: Session, number: int, spec: Spec, query: Query) -> None:
        self._session, self._number, self._spec, self._query = session, number, spec, query
        self._vector: Vectors = np.frombuffer(query.vector, "<f4").astype(np.float32)
        if spec.metric is Metric.COSINE:
            self._vector = unit(self._vector)
        self._most = query.k + _SPARE
        self._where, given = _where(session.table("fields", number), query.conditions)
        asked = PackedVector(self._vector.astype("<f4").tobytes())
        self._given = {**given, "asked": asked, "most": self._most}

    def hits(self, may_guess: bool) -> list[Hit]:
        guesses = may_guess and self._guess()
        rows = self._candidates()
        if guesses and len(rows) < self._most:
            # An index that guesses may end before it has seen all.
            self._session.run("SET LOCAL enable_indexscan = off")
            guesses, rows = False, self._candidates()
        vectors, k = self._vectors(rows), self._query.k
        if not guesses and len(rows) == self._most and self._spec.metric is not Metric.L2:
            margin = doubt(vectors, self._vector)
            if rows[-1][5] - rows[k - 1][5] < margin:
                rows = self._nearest_of_all_within(rows[k - 1][5] + margin)
                vectors = self._vectors(rows)
        return self._told(rows, vectors)

    def _guess(self) -> bool:
        """Is there an index that guesses? It is told how hard to look, in this transaction."""
        if not self._session.is_there(f"near_{self._number}"):
            return False
        wanted = (str(max(_EF_MIN, min(_EF_MAX, 2 * self._most))), str(_SCANNED_MAX))
        self._session.run(
            "SELECT set_config('hnsw.ef_search', %s, true), "
            "set_config('hnsw.max_scan_tuples', %s, true), "
            "set_config('hnsw.iterative_scan', 'strict_order', true)",
            values=wanted,
        )
        return True

    def _candidates(self) -> list[tuple[Any, ...]]:
        """Rows of the nearest, as the database computes that."""
        entries, apart = self._session.table("entries", self._number), self._apart()
        rows: list[tuple[Any, ...]] = self._session.run(
            "WITH near AS MATERIALIZED ("
            "SELECT key, {} AS apart FROM {} WHERE {} ORDER BY {} LIMIT %(most)s) "
            "SELECT {}, apart FROM near JOIN {} USING (key) ORDER BY apart",
            apart,
            entries,
            self._where,
            apart,
            sql.SQL(_COLUMNS),
            entries,
            values=self._given,
        ).fetchall()
        return rows

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
    """Conditions on a row of `fields`: first on what is indexed, then on all of the value."""
    full = sql.SQL("COALESCE(value, head)")

    def bound(operator: str, value: bytes) -> Iterable[sql.Composable]:
        name = f"{prefix}{len(given)}"
        given[name] = value
        given[f"{name}_head"] = value[:HEAD_BYTES]
        # The head of what is below a value may equal that of the value, and is not above it.
        loose = operator if operator in (">=", "<=") else f"{operator}="
        yield sql.SQL("head {} {}").format(sql.SQL(loose), sql.Placeholder(f"{name}_head"))
        yield sql.SQL("{} {} {}").format(full, sql.SQL(operator), sql.Placeholder(name))

    match condition:
        case Equals(value=value):
            return _among([value], full, given, prefix)
        case OneOf(values=values):
            return _among(values, full, given, prefix)
        case Range():
            set_bounds = condition.bounds()
            begin, end = kind_ends(set_bounds[0][1])
            found = [*bound(">=", begin), *bound("<", end)]
            for name, value in set_bounds:
                found += bound(_BOUNDS[name], sortable(value))
            return found


def _among(
    values: Sequence[Scalar], full: sql.Composable, given: dict[str, Any], prefix: str
) -> list[sql.Composable]:
    every = [sortable(value) for value in values]
    given[f"{prefix}values"] = every
    given[f"{prefix}heads"] = [value[:HEAD_BYTES] for value in every]
    return [
        sql.SQL("head = ANY({})").format(sql.Placeholder(f"{prefix}heads")),
        sql.SQL("{} = ANY({})").format(full, sql.Placeholder(f"{prefix}values")),
    ]
