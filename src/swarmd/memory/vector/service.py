"""Vector memory: collections of vectors that every node holds, and searches by itself.

The truth is in a bucket of the eventual store (`records.py`); what is searched is an index that is
made from it on each node (`feeder.py`). A write is acknowledged once it is on this node's disk, a
search waits a little for the index to have what the store has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from swarmd.base.errors import (
    BadRequest,
    Conflict,
    CorruptFile,
    DiskFault,
    NoEmbedder,
    NotFound,
    NotReady,
    ShuttingDown,
    SwarmError,
    TooLarge,
    Unavailable,
    WrongDimension,
)
from swarmd.base.ids import NodeId
from swarmd.base.limits import (
    NAME_BYTES_MAX,
    VECTOR_BATCH_BYTES_MAX,
    VECTOR_BATCH_CHANGES_MAX,
    VECTOR_COLLECTIONS_MAX,
    VECTOR_ENTRIES_MAX,
)
from swarmd.base.names import check_name
from swarmd.base.rng import Rng
from swarmd.memory.vector.config import VectorsConfig
from swarmd.memory.vector.embedding import Embedder
from swarmd.memory.vector.feeder import Feeder, OpenIndex
from swarmd.memory.vector.port import VectorIndex
from swarmd.memory.vector.records import (
    BUCKET,
    MADE_BYTES,
    Collection,
    CollectionRecord,
    Entry,
    EntryRecord,
    collection_of,
    entry_of,
    key_of,
    values_of,
)
from swarmd.memory.vector.rules import (
    ELEMENT_BYTES,
    Spec,
    check_entry,
    check_id,
    check_query,
    check_spec,
)
from swarmd.memory.vector.shapes import Condition, Hit, Metric, Query, Scalar
from swarmd.observe.log import get_logger
from swarmd.state.crdt.dots import node_of
from swarmd.state.crdt.service import Eventual
from swarmd.state.crdt.types.kinds import Kind
from swarmd.state.crdt.types.values import Assign, Operation, Remove

_SWEEP_S: Final = 1.0
# How many strays one turn looks at, and how many writes of one call are under way at once.
_SWEEP_MAX: Final = 2_000
_WRITES_MAX: Final = 500
_CHECKED_MAX: Final = 50

_log = get_logger("memory")


@dataclass(frozen=True, slots=True)
class NewEntry:
    """`vector`: see `shapes.packed`."""

    id: str
    vector: bytes
    payload: Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection. `entries`: as this node's index has it; None while it has no index."""

    collection: Collection
    entries: int | None


@dataclass(frozen=True, slots=True)
class Found:
    """`behind`: about how many changes this node had, and its index had not."""

    hits: list[Hit]
    behind: int


@dataclass(frozen=True, slots=True)
class IndexFacts:
    """This node's index. `entries`: None while it is made, or has a `problem`, which says why."""

    engine: str
    entries: int | None
    problem: str


class VectorMemory:
    """Args:
    open_index: see `Feeder`.
    alive: who is alive, this node not among them.
    embedder: what makes vectors of texts on this node.
    """

    def __init__(
        self,
        me: NodeId,
        store: Eventual,
        open_index: OpenIndex,
        config: VectorsConfig,
        rng: Rng,
        alive: Callable[[], Sequence[NodeId]],
        embedder: Embedder | None = None,
    ) -> None:
        self._me, self._store, self._config = me, store, config
        self._rng, self._alive = rng, alive
        self._embedder = embedder
        self._open_index = open_index
        self._strays: dict[str, None] = {}
        self._has_strays = trio.Event()
        self._feeder = Feeder(store, open_index, self._note_stray)

    async def run(self) -> None:
        """Keep the index, and remove what belongs to nothing any more, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._feeder.run)
            nursery.start_soon(self._sweep)

    # ---- collections -----------------------------------------------------------------------

    async def create(
        self, name: str, dimension: int, metric: Metric, model: str = "", *, by: str
    ) -> Collection:
        """Make a collection, on this node's disk when it returns; nothing if it is there as such.

        Where another node makes one of this name at the same time that is something else, the
        earlier one counts everywhere, once the two have heard of each other.

        Args:
            model: what makes vectors of texts for it.

        Raises:
            BadRequest: the name, dimension or model is not allowed; nothing changed.
            Conflict: there is one with another dimension, metric or model; nothing changed.
            TooLarge: there are as many as may be; nothing changed.
            ClockSkew, DiskFault, Busy, TimedOut: see `Eventual.write`.
        """
        check_name(name, "collection")
        check_spec(dimension, model)
        found = self._found(name)
        if found is not None:
            _check_same(found, Spec(dimension, metric), model)
            return found
        if len(await self._names()) >= VECTOR_COLLECTIONS_MAX:
            raise TooLarge(
                f"there are {VECTOR_COLLECTIONS_MAX} collections: nothing changed; drop one first"
            )
        made = self._rng.randbytes(MADE_BYTES)
        record = CollectionRecord(made, dimension, metric, model, _author(by))
        await self._store.write(BUCKET, name, Assign(values_of(record), Kind.MULTI))
        found = self._found(name)
        if found is None:
            raise NotFound(f"the collection {name} was made, and dropped by somebody else since")
        _check_same(found, Spec(dimension, metric), model)
        return found

    async def collections(self) -> list[CollectionInfo]:
        """All collections, by name."""
        await self._feeder.settle(self._config.settle_timeout_s)
        found = (self._found(name) for name in await self._names())
        return [self._info(one) for one in found if one is not None]

    async def collection(self, name: str) -> CollectionInfo:
        """Raises NotFound."""
        found = self.need(name)
        await self._feeder.settle(self._config.settle_timeout_s)
        return self._info(found)

    async def drop(self, name: str) -> None:
        """Delete a collection: it is gone at once, and its entries are removed bit by bit.

        Raises: NotFound, and what `Eventual.write` raises.
        """
        self.need(name)
        await self._store.write(BUCKET, name, Remove())

    def need(self, name: str) -> Collection:
        """The collection. Raises NotFound, BadRequest: that is no name."""
        check_name(name, "collection")
        found = self._found(name)
        if found is None:
            raise NotFound(
                f"there is no collection {name!r}: nothing changed; create it first, or wait "
                "until this node has heard of it"
            )
        return found

    # ---- texts -------------------------------------------------------------------------------

    async def create_for_texts(
        self, name: str, dimension: int | None, metric: Metric, *, by: str
    ) -> Collection:
        """Make a collection for this node's model, which is asked for a dimension not given.

        Raises: NoEmbedder, EmbeddingFailed, and what `create` raises; nothing changed.
        """
        check_name(name, "collection")
        embedder = self._need_embedder()
        if dimension is None:
            [vector] = await embedder.embed([name])
            dimension = len(vector) // ELEMENT_BYTES
        return await self.create(name, dimension, metric, embedder.model, by=by)

    async def vectors_of(self, name: str, texts: Sequence[str]) -> list[bytes]:
        """A vector of each text, for a collection.

        Raises:
            NotFound, NoEmbedder, BadRequest, EmbeddingFailed: nothing changed.
        """
        collection = self.need(name)
        embedder = self._need_embedder()
        if collection.model != embedder.model:
            made_for = f"the model {collection.model}" if collection.model else "no model"
            raise NoEmbedder(
                f"the collection {name} is for {made_for}, and this node has {embedder.model}: "
                "nothing changed; give vectors, or ask a node with its model"
            )
        return await embedder.embed(texts)

    def _need_embedder(self) -> Embedder:
        if self._embedder is None:
            raise NoEmbedder(
                "this node makes no vectors of texts: nothing changed; give vectors, or set "
                "vectors.embedder and restart its daemon"
            )
        return self._embedder

    # ---- entries ---------------------------------------------------------------------------

    async def add(self, name: str, entries: Sequence[NewEntry], *, by: str) -> list[str]:
        """Put entries in the place of whatever has their ids; on this node's disk on return.

        All are looked at before one is written.

        Returns:
            The versions they have now; empty for what somebody else deleted since.

        Raises:
            NotFound, WrongDimension, BadVector, BadRequest, TooLarge: nothing changed. The message
                names the entry.
            ClockSkew, DiskFault, Busy, TimedOut: see `Eventual.write`. Some may be written: add
                all of them again.

        Cancelled, some may be written.
        """
        collection = self.need(name)
        await self._check(collection, entries)
        author = _author(by)
        writes = [
            (key_of(name, one.id), Assign(values_of(_record(collection, one, author))))
            for one in entries
        ]
        await self._write_all(writes)
        now = self._found(name)
        found = [None if now is None else self._entry(now, one.id) for one in entries]
        return ["" if one is None else one.version for one in found]

    async def _check(self, collection: Collection, entries: Sequence[NewEntry]) -> None:
        if not 1 <= len(entries) <= VECTOR_BATCH_CHANGES_MAX:
            raise TooLarge(f"add 1 to {VECTOR_BATCH_CHANGES_MAX} entries at once: nothing changed")
        size = sum(len(one.vector) for one in entries)
        if size > VECTOR_BATCH_BYTES_MAX:
            raise TooLarge(
                f"{size} bytes of vectors at once: nothing changed; add "
                f"{VECTOR_BATCH_BYTES_MAX} at most"
            )
        if len({one.id for one in entries}) < len(entries):
            raise BadRequest("an id stands twice among these entries: nothing changed")
        for number, one in enumerate(entries):
            if number % _CHECKED_MAX == 0:
                await trio.lowlevel.checkpoint()
            try:
                check_entry(one.id, one.vector, one.payload, collection.spec)
            except SwarmError as error:
                raise type(error)(
                    f"entry {one.id[:80]!r}: {error.message}; nothing changed"
                ) from error
        self._check_room(collection.name, len(entries), size)

    def _check_room(self, name: str, more: int, more_bytes: int) -> None:
        index = self._feeder.index
        if index is None:
            return
        views = index.collections()
        held = sum(view.entries * view.dimension * ELEMENT_BYTES for view in views)
        if held + more_bytes > self._config.bytes_max:
            raise TooLarge(
                f"all vectors together take {held} bytes here, and vectors.bytes_max is "
                f"{self._config.bytes_max}: nothing changed; delete some, or raise it on all nodes"
            )
        if any(v.name == name and v.entries + more > VECTOR_ENTRIES_MAX for v in views):
            raise TooLarge(
                f"a collection has {VECTOR_ENTRIES_MAX} entries at most: nothing changed; "
                "delete some, or use another collection"
            )

    def get(self, name: str, entry_id: str) -> Entry:
        """An entry as this node knows it. Raises NotFound, BadRequest."""
        found = self._need_entry(name, entry_id)
        record = found.record
        try:
            check_entry(entry_id, record.vector, record.payload, self.need(name).spec)
        except BadRequest as error:
            raise NotFound(
                f"{name} has no entry {entry_id[:80]!r}: what a member put there is none "
                f"({error.message})"
            ) from error
        return found

    async def delete(self, name: str, entry_id: str) -> None:
        """Delete an entry. Raises NotFound, BadRequest, and what `Eventual.write` raises."""
        self._need_entry(name, entry_id)
        await self._store.write(BUCKET, key_of(name, entry_id), Remove())

    def _need_entry(self, name: str, entry_id: str) -> Entry:
        """What the store has under an id, whether the index would take it or not."""
        check_id(entry_id)
        found = self._entry(self.need(name), entry_id)
        if found is None:
            raise NotFound(f"{name} has no entry {entry_id[:80]!r}")
        return found

    # ---- searching -------------------------------------------------------------------------

    async def search(
        self, name: str, vector: bytes, k: int, conditions: tuple[Condition, ...] = ()
    ) -> Found:
        """The nearest entries that meet all conditions, of what this node has.

        Raises:
            NotFound, WrongDimension, BadVector, BadRequest and its kinds: see `check_query`.
            NotReady: the index is being made.
            VectorDatabaseUnavailable, DiskFault: the index cannot be used now; the message says
                why, and what to do.
        """
        collection = self.need(name)
        query = Query(name, vector, k, conditions)
        check_query(query, {name: collection.spec})
        behind = await self._feeder.settle(self._config.settle_timeout_s)
        self._check_usable()
        index = self._feeder.index
        if index is None:
            raise NotReady(
                f"this node makes its index of vectors, and has {behind} to look at: search again "
                "shortly, or on another node"
            )
        try:
            return Found(await index.search(query), behind)
        except CorruptFile as error:
            self._feeder.damaged()
            raise NotReady(f"{error.message}; it is made anew: search again shortly") from error
        except ShuttingDown as error:
            self._check_usable()
            raise NotReady("the index of vectors is being opened: search again shortly") from error
        except (NotFound, WrongDimension) as error:
            # The collection's: the query is known to fit what the store has.
            raise NotReady(
                f"the collection {name} is not in this node's index yet: search again shortly"
            ) from error

    def _check_usable(self) -> None:
        fault = self._feeder.fault
        if fault is not None:
            raise type(fault)(fault.message)

    @property
    def engine(self) -> str:
        """What the index is made of."""
        return self._config.engine

    async def examine(self) -> IndexFacts:
        """How this node's index is."""
        index, fault = self._feeder.index, self._feeder.fault
        try:
            if index is not None:
                await index.check()
            elif fault is not None:
                raise fault
            elif self._feeder.unused and self.engine != "embedded":
                # So that settings can be tried before there is anything to index.
                async with self._open_index() as opened:
                    await opened.check()
        except SwarmError as error:
            return IndexFacts(self.engine, None, error.message)
        if index is None and not self._feeder.unused:
            return IndexFacts(self.engine, None, "")
        views = [] if index is None else index.collections()
        return IndexFacts(self.engine, sum(view.entries for view in views), "")

    # ---- what belongs to nothing -------------------------------------------------------------

    def _note_stray(self, key: str) -> None:
        self._strays[key] = None
        self._has_strays.set()

    async def _sweep(self) -> None:
        """Remove entries of collections that are no more."""
        while True:
            if not self._strays:
                self._has_strays = trio.Event()
                await self._has_strays.wait()
            await trio.sleep(_SWEEP_S)
            try:
                await self.sweep_once()
            except (Unavailable, DiskFault, Conflict) as error:
                _log.debug("entries of dropped collections stay for now", why=error.message)

    async def sweep_once(self) -> None:
        """Remove some of what belongs to nothing and is this node's to remove."""
        alive = set(self._alive())
        lowest = min((self._me, *alive)) == self._me
        mine: list[tuple[str, Operation]] = []
        chosen = list(self._strays)[:_SWEEP_MAX]
        for key in chosen:
            del self._strays[key]
            if not self._feeder.is_stray(key):
                continue
            cells = self._store.cells(BUCKET, key)
            authors = {node_of(dot[0]) for dot in cells}
            if self._me in authors or (lowest and not authors & alive):
                mine.append((key, Remove()))
            else:
                self._strays[key] = None  # Whoever wrote it does; or this node, if that is gone.
        try:
            await self._write_all(mine)
        except SwarmError:
            self._strays |= dict.fromkeys(key for key, _ in mine)
            raise

    # ---- parts -----------------------------------------------------------------------------

    async def _write_all(self, writes: Sequence[tuple[str, Operation]]) -> None:
        """Write keys, many at once: they share a sync."""
        errors: list[SwarmError] = []

        async def write(key: str, operation: Operation) -> None:
            try:
                await self._store.write(BUCKET, key, operation)
            except SwarmError as error:
                errors.append(error)

        for begin in range(0, len(writes), _WRITES_MAX):
            async with trio.open_nursery() as nursery:
                for key, operation in writes[begin : begin + _WRITES_MAX]:
                    nursery.start_soon(write, key, operation)
            if errors:
                raise errors[0]

    def _found(self, name: str) -> Collection | None:
        return collection_of(name, self._store.cells(BUCKET, name))

    async def _names(self) -> list[str]:
        return sorted([key async for key in self._store.each_key(BUCKET) if "/" not in key])

    def _info(self, collection: Collection) -> CollectionInfo:
        views = {} if self._feeder.index is None else _by_name(self._feeder.index)
        return CollectionInfo(collection, views.get(collection.name))

    def _entry(self, collection: Collection, entry_id: str) -> Entry | None:
        cells = self._store.cells(BUCKET, key_of(collection.name, entry_id))
        return entry_of(collection, entry_id, cells)


def _by_name(index: VectorIndex) -> dict[str, int]:
    return {view.name: view.entries for view in index.collections()}


def _record(collection: Collection, one: NewEntry, by: str) -> EntryRecord:
    made, creation = collection.made, collection.creation
    return EntryRecord(made, creation, one.vector, dict(one.payload), by)


def _check_same(found: Collection, spec: Spec, model: str) -> None:
    if (found.spec, found.model) != (spec, model):
        raise Conflict(
            f"the collection {found.name} is there with dimension {found.spec.dimension}, metric "
            f"{found.spec.metric} and {f'model {found.model}' if found.model else 'no model'}: "
            "nothing changed; drop it first, or use another name"
        )


def _author(by: str) -> str:
    """A caller's name, cut so that it is none too long."""
    return by.encode(errors="replace")[:NAME_BYTES_MAX].decode(errors="ignore") or "unknown"
