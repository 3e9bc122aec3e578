"""Keeps this node's index as the eventual store is, whatever of the two is ahead of the other.

Nothing of the index is believed but the version that it has of each entry. When it is opened, and
when more changed than the watch could keep, all versions are held against the store, and what
differs is fed; else the keys that changed are. So an index that is new, behind, ahead of a store
that lost what was not synced, or of another time altogether, ends up the same.

The index is opened with the first key, and not before: what it needs takes memory.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from itertools import islice
from typing import Final

import trio

from swarmd.base.errors import BadRequest, Busy, CorruptFile, DiskFault, SwarmError, Unavailable
from swarmd.base.limits import VECTOR_BATCH_BYTES_MAX
from swarmd.memory.vector.port import VectorIndex
from swarmd.memory.vector.records import (
    BUCKET,
    Collection,
    collection_of,
    entry_of,
    is_stray,
    key_of,
)
from swarmd.memory.vector.rules import Spec
from swarmd.memory.vector.shapes import Batch, Change, Define, Drop, Remove, Upsert
from swarmd.observe.log import get_logger
from swarmd.state.crdt.dots import Dot
from swarmd.state.crdt.service import Eventual
from swarmd.state.crdt.watching import KeyWatch

# Changes of one batch, which is one commit, and keys that are looked at in one go.
_BATCH: Final = 500
_LOOK: Final = 250
_PAGE: Final = 5_000
_AGAIN_MIN_S: Final = 0.25
_AGAIN_MAX_S: Final = 30.0
_REFUSALS_LOGGED_MAX: Final = 20

_log = get_logger("memory")

OpenIndex = Callable[[], AbstractAsyncContextManager[VectorIndex]]


class Feeder:
    """Args:
    open_index: opens the index, empty where it was damaged.
    on_stray: is told of entries that belong to nothing any more.
    """

    def __init__(
        self, store: Eventual, open_index: OpenIndex, on_stray: Callable[[str], None]
    ) -> None:
        self._store, self._open_index, self._on_stray = store, open_index, on_stray
        self._watch: KeyWatch | None = None
        self._index: VectorIndex | None = None
        self._damaged = trio.Event()
        # Of keys that changed: how many were taken, and how many of these are in the index.
        self._taken = self._done = 0
        # How often all of the index was held against the store, and does it happen now?
        self._passes = 0
        self._passing = False
        self._complete = False
        # Was there never anything to index?
        self._unused = True
        self._looked = self._to_look = 0
        self._moved = trio.Event()
        self._refused = 0
        self._fault: SwarmError | None = None

    @property
    def fault(self) -> SwarmError | None:
        """Why the index cannot be used, for as long as it cannot."""
        return self._fault

    @property
    def unused(self) -> bool:
        """Was there nothing to index yet, so that the index was never opened?"""
        return self._unused

    @property
    def index(self) -> VectorIndex | None:
        """None before it has all that was there when it was opened."""
        return self._index if self._complete else None

    def damaged(self) -> None:
        """Have the index be opened anew: a search found it damaged."""
        self._damaged.set()

    async def settle(self, timeout_s: float) -> int:
        """Wait for the index to have what the store has now, until the time is up.

        Returns:
            About how many changes of these it lacks still.
        """
        mark = passes = 0
        with trio.move_on_after(timeout_s):
            while self._watch is None:
                await self._moved.wait()
            if self._unused and not self._is_used():
                return 0
            mark = self._taken + len(self._watch)
            # The first pass of an index sees what the watch lagged behind before that, too.
            wanted = max(self._watch.lagged + self._passing, not self._complete)
            passes = self._passes + wanted
            while (self._done < mark or self._passes < passes) and self._fault is None:
                await self._moved.wait()
        looking = max(1, self._to_look - self._looked) if self._passes < passes else 0
        return looking + max(0, mark - self._done)

    async def run(self) -> None:
        """Keep the index as the store is, until cancelled."""
        with self._store.watch(BUCKET) as watch:
            self._unused = not self._is_used()
            self._watch = watch
            self._move()
            if self._unused:
                await watch.wait()
                self._unused = False
            pause_s = _AGAIN_MIN_S
            while True:
                began = trio.current_time()
                try:
                    await self._keep_open(watch)
                except CorruptFile as error:
                    _log.warning("the vector index is opened anew", fault=error.message)
                except (DiskFault, Unavailable) as error:
                    self._note_fault(error)
                finally:
                    self._index, self._complete, self._passing = None, False, False
                    self._move()
                if trio.current_time() - began > _AGAIN_MAX_S:
                    pause_s = _AGAIN_MIN_S
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, _AGAIN_MAX_S)

    def _is_used(self) -> bool:
        return any(True for _ in self._store.keys_after(BUCKET))

    async def _keep_open(self, watch: KeyWatch) -> None:
        self._damaged = trio.Event()
        async with self._open_index() as self._index, trio.open_nursery() as nursery:
            if self._fault is not None:
                _log.info("the vector index can be used again")
                self._fault = None
            nursery.start_soon(self._follow, self._index, watch)
            await self._damaged.wait()
            nursery.cancel_scope.cancel()

    async def _follow(self, index: VectorIndex, watch: KeyWatch) -> None:
        try:
            watch.lagged = True
            while True:
                if watch.lagged:
                    watch.lagged = False
                    await self._look_at_all(index)
                elif len(watch):
                    keys = watch.take(_BATCH)
                    self._taken += len(keys)
                    await self._feed(index, keys)
                    self._done = self._taken
                    self._move()
                else:
                    await watch.wait()
        except SwarmError as error:
            self._note_fault(error)
            self._damaged.set()

    def _note_fault(self, error: SwarmError) -> None:
        """It is told once, however often it is tried again."""
        if self._fault is None or self._fault.message != error.message:
            _log.warning("the vector index cannot be used", why=error.message)
        if isinstance(error, DiskFault | Unavailable):
            self._fault = error
        self._move()

    def _move(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    # ---- all of it -----------------------------------------------------------------------

    async def _look_at_all(self, index: VectorIndex) -> None:
        self._passing = True
        keys: dict[str, list[str]] = {view.name: [] for view in index.collections()}
        self._looked = self._to_look = 0
        async for key in self._store.each_key(BUCKET):
            name, slash, _ = key.partition("/")
            of_name = keys.setdefault(name, [])
            if slash:
                of_name.append(key)
                self._to_look += 1
        # All that was taken before now is seen by this.
        taken = self._taken
        for name, of_name in sorted(keys.items()):
            await self._look_at(index, name, of_name)
        self._looked = self._to_look = 0
        self._done = max(self._done, taken)
        self._passing, self._complete = False, True
        self._passes += 1
        self._move()

    async def _look_at(self, index: VectorIndex, name: str, keys: list[str]) -> None:
        """Make one collection of the index what the store says."""
        collection = self._collection(name)
        defined = _specs_in(index).get(name)
        changes: list[Change] = []
        if defined is not None and (collection is None or collection.spec != defined):
            changes.append(Drop(0, name))
        if collection is not None and collection.spec != defined:
            spec = collection.spec
            changes.append(Define(0, name, spec.dimension, spec.metric))
        await self._apply(index, changes)
        if collection is not None and _specs_in(index).get(name) == collection.spec:
            await self._compare(index, collection, await _in_order(keys))
            return
        for number, key in enumerate(keys):
            if number % _LOOK == 0:
                await trio.lowlevel.checkpoint()
            self._note_if_stray(key)
            self._looked += self._passing

    async def _compare(self, index: VectorIndex, collection: Collection, keys: list[str]) -> None:
        """Feed what differs. Both sides are read in the order of ids, a page at a time."""
        name, after, at = collection.name, "", 0
        while True:
            page = await index.versions(name, after, _PAGE)
            held = dict(page)
            is_last = len(page) < _PAGE
            end = len(keys) if is_last else bisect_right(keys, key_of(name, page[-1][0]), at)
            ids = [key[len(name) + 1 :] for key in keys[at:end]]
            ids += held.keys() - set(ids)
            for begin in range(0, len(ids), _BATCH):
                chosen = ids[begin : begin + _BATCH]
                found = (self._change(collection, one, held.get(one)) for one in chosen)
                await self._apply(index, [change for change in found if change is not None])
                await trio.lowlevel.checkpoint()
                self._looked += len(chosen) if self._passing else 0
            if is_last:
                return
            at, after = end, page[-1][0]

    # ---- what changed --------------------------------------------------------------------

    async def _feed(self, index: VectorIndex, keys: list[str]) -> None:
        changed: dict[str, list[str]] = {key: [] for key in sorted(keys) if "/" not in key}
        if changed:
            async for key in self._store.each_key(BUCKET):
                name, slash, _ = key.partition("/")
                if slash and name in changed:
                    changed[name].append(key)
        for name, of_name in changed.items():
            await self._look_at(index, name, of_name)
        specs = _specs_in(index)
        changes: list[Change] = []
        known: dict[str, Collection | None] = {}
        for key in keys:
            name, slash, entry_id = key.partition("/")
            if not slash:
                continue
            if name not in known:
                known[name] = self._collection(name)
            collection = known[name]
            # Where they differ the collection's own key has changed, and comes.
            if collection is not None and specs.get(name) == collection.spec:
                change = self._change(collection, entry_id, None)
                changes.append(change or Remove(0, name, entry_id))
            else:
                self._note_if_stray(key)
        await self._apply(index, changes)

    def _change(self, collection: Collection, entry_id: str, held: str | None) -> Change | None:
        """What makes an entry of the index what it is in the store.

        Args:
            held: the version that the index has; None: it has none.
        """
        key = key_of(collection.name, entry_id)
        entry = entry_of(collection, entry_id, self._store.cells(BUCKET, key))
        if entry is None:
            self._note_if_stray(key)
            return None if held is None else Remove(0, collection.name, entry_id)
        if entry.version == held:
            return None
        record = entry.record
        return Upsert(
            0,
            collection.name,
            entry_id,
            record.vector,
            record.payload,
            record.created_by,
            entry.created_at_ms,
            entry.version,
        )

    def _collection(self, name: str) -> Collection | None:
        return collection_of(name, self._store.cells(BUCKET, name))

    def is_stray(self, key: str) -> bool:
        """Whether an entry belongs to nothing any more."""
        cells = self._store.cells(BUCKET, key)
        name, _, _ = key.partition("/")

        def has_seen(dot: Dot) -> bool:
            return self._store.has_seen(BUCKET, name, dot)

        return is_stray(self._store.cells(BUCKET, name), cells, has_seen)

    def _note_if_stray(self, key: str) -> None:
        if self.is_stray(key):
            self._on_stray(key)

    # ---- applying ------------------------------------------------------------------------

    async def _apply(self, index: VectorIndex, changes: list[Change]) -> None:
        """Apply changes in bounded batches, however long the disk refuses.

        An entry that is refused is taken out: what was in its place is no more, either.
        """
        batch: list[Change] = []
        refused: list[Change] = []
        size = 0
        for change in changes:
            more = len(change.vector) if isinstance(change, Upsert) else 0
            if batch and (len(batch) >= _BATCH or size + more > VECTOR_BATCH_BYTES_MAX):
                refused += await self._apply_batch(index, batch)
                batch, size = [], 0
            batch.append(change)
            size += more
        if batch:
            refused += await self._apply_batch(index, batch)
        gone: list[Change] = [
            Remove(0, one.collection, one.id) for one in refused if isinstance(one, Upsert)
        ]
        if gone:
            await self._apply_batch(index, gone)

    async def _apply_batch(self, index: VectorIndex, changes: list[Change]) -> list[Change]:
        """Returns those that can never be applied."""
        try:
            await self._persevere(lambda: index.apply(_numbered(index.position, changes)))
        except BadRequest as error:
            if len(changes) > 1:
                # One of them is to blame, and the others count.
                half = len(changes) // 2
                refused = await self._apply_batch(index, changes[:half])
                return refused + await self._apply_batch(index, changes[half:])
            self._refused += 1
            if self._refused <= _REFUSALS_LOGGED_MAX:
                _log.warning("the vector index refuses what was replicated", why=error.message)
            return changes
        return []

    async def _persevere(self, call: Callable[[], Awaitable[int]]) -> None:
        pause_s = _AGAIN_MIN_S
        while True:
            try:
                await call()
                return
            except (Busy, DiskFault) as error:
                if pause_s == _AGAIN_MIN_S:
                    _log.warning("the vector index takes no changes now", why=error.message)
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, _AGAIN_MAX_S)


async def _in_order(keys: list[str]) -> list[str]:
    """Keys sorted, in steps that do not hold up the loop, however many there are."""
    runs: list[list[str]] = []
    for begin in range(0, len(keys), _PAGE):
        runs.append(sorted(keys[begin : begin + _PAGE]))
        await trio.lowlevel.checkpoint()
    found: list[str] = []
    merged = heapq.merge(*runs)
    while more := list(islice(merged, _PAGE)):
        found += more
        await trio.lowlevel.checkpoint()
    return found


def _numbered(position: int, changes: Iterable[Change]) -> Batch:
    numbered = tuple(replace(one, position=position + n) for n, one in enumerate(changes, 1))
    return Batch(position, position + len(numbered), numbered)


def _specs_in(index: VectorIndex) -> dict[str, Spec]:
    return {view.name: Spec(view.dimension, view.metric) for view in index.collections()}
