"""The embedded index: what `VectorIndex` promises, for threads. One applies, any may search.

*Order of a commit*: vectors into free slots; these synced; then the database, whose commit is the
moment at which all of it counts; then what searches see. *A search* takes what is seen and a
snapshot of the database under one lock, which a commit holds too: so both are of one position.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from swarmd.base.errors import CorruptFile, SwarmError
from swarmd.base.files import sync_folder
from swarmd.base.limits import MIB
from swarmd.memory.vector.database import Database, Held, Row, State, fault_of, key_of, summed
from swarmd.memory.vector.nearest import Slots, Vectors, nearest, unit
from swarmd.memory.vector.rules import (
    Spec,
    check_query,
    check_room,
    decoded_payload,
    encoded_payload,
    plan,
)
from swarmd.memory.vector.shapes import (
    Batch,
    Change,
    CollectionView,
    Condition,
    Define,
    Drop,
    Hit,
    Metric,
    Query,
    Remove,
    Upsert,
)
from swarmd.memory.vector.slots import SlotFile
from swarmd.memory.vector.verify import verify

_DATABASE: Final = "index.db"
_SUFFIX: Final = ".f32"
_LOG_BYTES_MAX: Final = 64 * MIB
# Longest that searches are kept waiting for those under way, so that the log can be emptied.
_DRAIN_TIMEOUT_S: Final = 5.0
_RESTART: Final = "Restart this node: it makes the index anew"


@dataclass(frozen=True, slots=True)
class _Seen:
    """A collection as searches see it; nothing in it changes."""

    number: int
    spec: Spec
    vectors: Vectors
    # By slot: is there an entry?
    live: NDArray[np.bool_]
    entries: int


@dataclass(slots=True)
class _Collection:
    """A collection as the writer has it; `taken` and `freed` are slots of the group under way."""

    held: Held
    file: SlotFile
    live: NDArray[np.bool_]
    taken: list[int] = field(default_factory=list)
    freed: list[int] = field(default_factory=list)

    def seen(self) -> _Seen:
        spec = Spec(self.held.dimension, self.held.metric)
        return _Seen(self.held.number, spec, self.file.vectors, self.live, self.held.entries)


class Engine:
    """An index in a folder of its own.

    Raises:
        CorruptFile: what is there does not prove itself. Nothing was changed.
        DiskFault: the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / _DATABASE
        # Held while a commit is made and shown, and while a search takes what it will look at.
        self._lock = threading.Condition()
        # Searches that begin wait, until those under way are over and the log is emptied.
        self._draining = False
        self._seen: dict[str, _Seen] = {}
        self._position = 0
        self._next_number = 1
        self._commits = 0
        # By search under way: the commit that it saw last.
        self._searches: dict[object, int] = {}
        self._idle: list[Database] = []
        self._collections: dict[str, _Collection] = {}
        with self._faults():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if _is_empty(self._path) and any(folder.glob(f"*{_SUFFIX}")):
                raise CorruptFile(f"{self._path} is gone or empty, and files of vectors are there")
            self._writer = Database(self._path, writes=True)
        try:
            with self._faults():
                self._open()
        except BaseException:
            self.close()
            raise

    @property
    def position(self) -> int:
        return self._position

    def collections(self) -> list[CollectionView]:
        return [
            CollectionView(name, one.spec.dimension, one.spec.metric, one.entries)
            for name, one in sorted(self._seen.items())
        ]

    def close(self) -> None:
        """No call may be under way."""
        for database in (*self._idle, self._writer):
            database.close()
        self._idle.clear()
        for collection in self._collections.values():
            collection.file.close()

    def _open(self) -> None:
        state = self._writer.read_state(self._path)
        for held in state.collections:
            file = SlotFile(self._file_path(held.number), held.dimension, fresh=False)
            self._collections[held.name] = _Collection(held, file, np.zeros(0, np.bool_))
        by_number = {one.held.number: one for one in self._collections.values()}
        live = verify(
            self._writer,
            self._path,
            {number: (one.held, one.file) for number, one in by_number.items()},
        )
        for number, one in by_number.items():
            one.live = live[number]
            one.file.set_used(set(np.flatnonzero(one.live).tolist()))
        known = {one.file.path for one in by_number.values()}
        for path in self._folder.glob(f"*{_SUFFIX}"):
            if path not in known:
                path.unlink()  # Dropped, or of a collection that was never committed.
        self._position, self._next_number = state.position, state.next_number
        self._seen = {name: one.seen() for name, one in self._collections.items()}

    def _file_path(self, number: int) -> Path:
        return self._folder / f"{number}{_SUFFIX}"

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise fault_of(error, self._path) from error

    # ---- applying ------------------------------------------------------------------------

    def apply(self, batches: Sequence[Batch]) -> list[int | SwarmError]:
        """Apply batches in one commit: for each of them the position then, or why it is refused.

        Only one thread applies.

        Raises:
            DiskFault, CorruptFile: none of them was applied.
        """
        group = _Group(self._collections, self._position, self._next_number)
        results: list[int | SwarmError] = []
        try:
            with self._faults():
                self._writer.begin()
                for batch in batches:
                    results.append(self._apply(group, batch))
                self._commit(group)
        except BaseException:
            self._undo(group)
            raise
        self._settle(group)
        self._bound_log()
        return results

    def _apply(self, group: _Group, batch: Batch) -> int | SwarmError:
        specs = {
            name: Spec(one.held.dimension, one.held.metric)
            for name, one in group.collections.items()
        }
        try:
            changes = plan(batch, group.position, specs)
            entries = {name: one.held.entries for name, one in group.collections.items()}
            check_room(changes, entries, specs, group.holder(self._writer))
        except SwarmError as error:
            return error
        for change in changes:
            self._perform(group, change)
        group.position = max(group.position, batch.until)
        return group.position

    def _perform(self, group: _Group, change: Change) -> None:
        match change:
            case Define():
                if change.collection not in group.collections:
                    self._define(group, change)
            case Drop():
                dropped = group.collections.pop(change.collection, None)
                if dropped is not None:
                    self._writer.delete_collection(dropped.held.number)
                    group.dropped.append(dropped)
            case Upsert():
                self._upsert(group.changing(change.collection), change)
            case Remove():
                one = group.changing(change.collection)
                row = self._writer.row(one.held.number, change.id)
                if row is not None:
                    self._take_out(one, row)

    def _define(self, group: _Group, change: Define) -> None:
        number = group.next_number
        group.next_number += 1
        # What an earlier run left under this number was never committed.
        file = SlotFile(self._file_path(number), change.dimension, fresh=True)
        held = Held(number, change.collection, change.dimension, change.metric)
        one = _Collection(held, file, np.zeros(0, np.bool_))
        group.collections[change.collection] = one
        group.made.append(one)
        group.changed[number] = one

    def _upsert(self, one: _Collection, change: Upsert) -> None:
        vector = change.vector
        if one.held.metric is Metric.COSINE:
            vector = unit(np.frombuffer(vector, "<f4")).astype("<f4").tobytes()
        before = self._writer.row(one.held.number, change.id)
        if before is not None:
            self._take_out(one, before)
        one.file.reserve(1, self._unread_before())
        slot = one.file.write(vector)
        one.taken.append(slot)
        row = Row(
            key_of(one.held.number, slot),
            one.held.number,
            change.id,
            encoded_payload(change.payload),
            change.created_by,
            change.created_at_ms,
            crc32(vector),
            change.version,
        )
        self._writer.insert(row)
        one.held.entries += 1
        one.held.checksum = summed(one.held.checksum, row.checksum())

    def _take_out(self, one: _Collection, row: Row) -> None:
        self._writer.delete(row)
        one.freed.append(row.slot)
        one.held.entries -= 1
        one.held.checksum = summed(one.held.checksum, -row.checksum())

    def _unread_before(self) -> int:
        """The newest commit such that no search runs that saw less than it."""
        with self._lock:
            return min(self._searches.values(), default=self._commits)

    def _commit(self, group: _Group) -> None:
        if group.position == self._position and not group.changed and not group.dropped:
            self._writer.rollback()  # Nothing was new.
            return
        for one in group.changed.values():
            one.file.sync()
        if group.made:
            sync_folder(self._folder)
        held = [one.held for one in group.collections.values()]
        self._writer.write_state(State(group.position, group.next_number, held))
        shown = {name: self._shown(one) for name, one in group.collections.items()}
        with self._lock:
            self._writer.commit()
            self._seen = shown
            self._commits += 1
            self._position = group.position

    def _shown(self, one: _Collection) -> _Seen:
        if one.taken or one.freed or len(one.live) != one.file.capacity:
            live = np.zeros(one.file.capacity, np.bool_)
            live[: len(one.live)] = one.live
            live[one.taken] = True
            live[one.freed] = False
            one.live = live
        return one.seen()

    def _settle(self, group: _Group) -> None:
        """What was committed, to be gone on from."""
        for one in group.changed.values():
            one.file.release(one.freed, self._commits)
            one.taken, one.freed = [], []
        self._collections = group.collections
        self._next_number = group.next_number
        for one in group.dropped:
            with contextlib.suppress(OSError):  # Else it goes when the index is opened again.
                one.file.close(delete=True)

    def _bound_log(self) -> None:
        """Empty the database's log where searches without a pause kept it from being."""
        with contextlib.suppress(sqlite3.Error, OSError):  # Else after the next commit.
            if self._writer.log_bytes() <= _LOG_BYTES_MAX:
                return
            with self._lock:
                self._draining = True
                try:
                    if self._lock.wait_for(lambda: not self._searches, _DRAIN_TIMEOUT_S):
                        self._writer.empty_log()
                finally:
                    self._draining = False
                    self._lock.notify_all()

    def _undo(self, group: _Group) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._writer.rollback()
        for one in group.changed.values():
            one.file.undo(one.taken)
        for one in group.made:
            with contextlib.suppress(OSError):
                one.file.close(delete=True)

    # ---- reading -------------------------------------------------------------------------

    def versions(self, collection: str, after: str, most: int) -> list[tuple[str, str]]:
        """See `VectorIndex.versions`."""
        with self._faults(), self._snapshot() as (database, seen):
            found = seen.get(collection)
            return [] if found is None else database.versions(found.number, after, most)

    def search(self, query: Query, check: Callable[[], None] = lambda: None) -> list[Hit]:
        """See `VectorIndex.search`. `check` is called now and then; what it raises ends it."""
        with self._faults(), self._snapshot() as (database, seen):
            check_query(query, {name: one.spec for name, one in seen.items()})
            return self._hits(database, seen[query.collection], query, check)

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[tuple[Database, dict[str, _Seen]]]:
        """All of one commit, which stays as it is for as long as the block runs."""
        with self._lock:
            database = self._idle.pop() if self._idle else None
        database = database or Database(self._path, writes=False)
        token = object()
        try:
            with self._lock:
                self._lock.wait_for(lambda: not self._draining)
                seen = self._seen
                self._searches[token] = self._commits
                database.pin()
            yield database, seen
            database.rollback()
        except SwarmError:
            database.rollback()
            self._idle.append(database)
            raise
        except BaseException:
            database.close()
            raise
        finally:
            with self._lock:
                del self._searches[token]
                self._lock.notify_all()
        self._idle.append(database)

    def _hits(
        self, database: Database, one: _Seen, query: Query, check: Callable[[], None]
    ) -> list[Hit]:
        slots = self._matching(database, one, query.conditions)
        vector: Vectors = np.frombuffer(query.vector, "<f4").astype(np.float32)
        if one.spec.metric is Metric.COSINE:
            vector = unit(vector)
        found, distances = nearest(one.vectors, slots, vector, one.spec.metric, query.k, check)
        hits = []
        for slot, distance in zip(found.tolist(), distances.tolist(), strict=True):
            row = database.row_at(one.number, slot)
            if row is None:
                raise CorruptFile(f"{self._path} is damaged: an entry is missing. {_RESTART}")
            payload = decoded_payload(row.payload)
            hits.append(Hit(row.id, distance, payload, row.created_by, row.created_at_ms))
        hits.sort(key=lambda hit: (hit.distance, hit.id))
        return hits

    def _matching(self, database: Database, one: _Seen, conditions: tuple[Condition, ...]) -> Slots:
        """Slots of the entries that meet all conditions, rising."""
        chosen = one.live
        for condition in conditions:
            slots = database.slots_where(one.number, condition)
            if len(slots) and not 0 <= slots.min() <= slots.max() < len(chosen):
                raise CorruptFile(f"{self._path} is damaged: a field of no entry. {_RESTART}")
            met = np.zeros(len(chosen), np.bool_)
            met[slots] = True
            chosen = chosen & met
            if not chosen.any():
                break
        return np.flatnonzero(chosen)


def _is_empty(path: Path) -> bool:
    return not path.exists() or path.stat().st_size == 0


class _Group:
    """What batches that are committed together come to, until they are."""

    def __init__(
        self, collections: dict[str, _Collection], position: int, next_number: int
    ) -> None:
        self.collections = dict(collections)
        self.position = position
        self.next_number = next_number
        self.changed: dict[int, _Collection] = {}
        self.made: list[_Collection] = []
        self.dropped: list[_Collection] = []

    def holder(self, database: Database) -> Callable[[str, str], bool]:
        """Whether a collection that is there now has an entry of an id."""

        def holds(name: str, entry_id: str) -> bool:
            one = self.collections.get(name)
            return one is not None and database.row(one.held.number, entry_id) is not None

        return holds

    def changing(self, name: str) -> _Collection:
        """The collection, to be changed: what is undone with the group is a copy."""
        one = self.collections[name]
        number = one.held.number
        if number not in self.changed:
            held = Held(number, name, one.held.dimension, one.held.metric, one.held.entries,
                        one.held.checksum)  # fmt: skip
            self.changed[number] = self.collections[name] = _Collection(held, one.file, one.live)
        return self.changed[number]
