"""Strong namespaces: values in the strong store, agreed upon by a majority of the voters.

Rules:
- Every read is linearizable, and every write is compared where it is applied: a version is the
  revision that wrote it. Who cannot reach a majority gets NoQuorum, never an older value.
- A value ends by store time, whoever reads. A new coordinator's time may begin below what the last
  one told, so who finds a value that has ended removes it before it says so: it stays ended.
- What nobody asks for is removed by the coordinator, which walks through a part of all at a time.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Protocol

from swarmd.base.clock import Clock
from swarmd.base.errors import (
    Busy,
    Compacted,
    Conflict,
    CorruptFile,
    MalformedMessage,
    NotFound,
    SwarmError,
    ValueTooLarge,
)
from swarmd.base.ids import NodeId
from swarmd.base.limits import BATCH_OPERATIONS_MAX, MEMORY_STRONG_VALUE_BYTES_MAX, MIB
from swarmd.base.pace import pause
from swarmd.memory.kv.port import ABSENT, LIST_MAX, Entry, Watch
from swarmd.memory.kv.records import (
    Stored,
    decode_value,
    encode_ending,
    end_ms,
    value_key,
    values_below,
)
from swarmd.memory.kv.rules import author, check_namespace, ttl_ms
from swarmd.observe.log import get_logger
from swarmd.state.raft.messages import (
    MEMORY_FLIGHT_PREFIX,
    MEMORY_VALUE_PREFIX,
    Change,
    Delete,
    Operation,
    OpResult,
    Put,
)
from swarmd.state.raft.messages import Entry as StoreEntry
from swarmd.wire.codec import pack, unpack

_RACES_MAX: Final = 8
# What one read of a list takes at most, of values of the size met so far, and one answer.
_STEP_FIRST: Final = 16
_STEP_MAX: Final = 256
_STEP_BYTES: Final = 4 * MIB
_LIST_BYTES_MAX: Final = 16 * MIB
_REVISION_DIGITS_MAX: Final = 18
# The coordinator looks through so many records at a time, and between two rounds waits longer.
_SWEEP_S: Final = 0.25
_SWEEP_RECORDS: Final = 2_000
_ROUNDS_S: Final = 1.0
# An office that was lost unnoticed could be this far ahead of the next one's time.
_SWEEP_GRACE_MS: Final = 5_000

_log = get_logger("memory")


class LocalState(Protocol):
    """A voter's copy."""

    @property
    def revision(self) -> int: ...
    def range(self, prefix: bytes, after: bytes, limit: int) -> Sequence[StoreEntry]: ...


class StrongStore(Protocol):
    """What shared memory asks of the strong store; see `state.raft.service.Store`."""

    async def propose(
        self, ops: Sequence[Operation], *, timeout_s: float = 5.0
    ) -> Sequence[OpResult]: ...
    async def get(self, key: bytes, *, timeout_s: float = 5.0) -> StoreEntry | None: ...
    async def range(
        self, prefix: bytes, after: bytes = b"", limit: int = 1_000
    ) -> Sequence[StoreEntry]: ...
    async def read_time_ms(self) -> int: ...
    def watch(
        self, prefix: bytes, from_revision: int | None = None
    ) -> AsyncGenerator[tuple[list[Change], int], None]: ...
    def store_time_ms(self) -> int: ...
    @property
    def office(self) -> object | None: ...
    @property
    def local(self) -> LocalState | None: ...


class StrongMemory:
    """See `port.Memory`."""

    def __init__(self, me: NodeId, store: StrongStore, clock: Clock) -> None:
        self._me, self._store, self._clock = me, store, clock

    async def set(
        self,
        namespace: str,
        key: str,
        value: Any,
        *,
        by: str,
        ttl_s: float | None = None,
        if_version: str | None = None,
    ) -> Entry:
        """Write a value; returns once a majority of the voters has it on disk."""
        where, packed = value_key(namespace, key), pack(value)
        if len(packed) > MEMORY_STRONG_VALUE_BYTES_MAX:
            raise ValueTooLarge(
                f"a value of a strong namespace has at most {MEMORY_STRONG_VALUE_BYTES_MAX} bytes: "
                "put it into a blob, and keep its hash here"
            )
        now_ms = 0 if ttl_s is None else await self._store.read_time_ms()
        ends_ms = 0 if ttl_s is None else now_ms + ttl_ms(ttl_s)
        stored = Stored(packed, author(by), self._clock.wall_ms(), self._me)
        raw = encode_ending(stored, ends_ms)
        done = await self._guarded(where, key, if_version, lambda expect: Put(where, raw, expect))
        return self._entry(StoreEntry(where, raw, 0, done.revision), now_ms)

    async def get(self, namespace: str, key: str) -> Entry:
        """The value that a majority agreed upon last, at some moment of this call."""
        found, now_ms = await self._look(value_key(namespace, key))
        if found is None:
            raise NotFound(f"{namespace} has no key {key!r}")
        return self._entry(found, now_ms)

    async def list(
        self, namespace: str, prefix: str = "", *, after: str = "", limit: int = LIST_MAX
    ) -> tuple[list[Entry], bool]:
        """As `port.Memory` says; linearizable some 256 keys at a time, and 16 MiB at most."""
        check_namespace(namespace)
        below = values_below(namespace, prefix)
        at = values_below(namespace, after) if after else b""
        found: list[Entry] = []
        step, now_ms, size = _STEP_FIRST, 0, 0
        while True:
            page = await self._store.range(below, after=at, limit=step)
            for one in page:
                ends_ms = end_ms(one.value)
                if ends_ms and not now_ms:
                    now_ms = await self._store.read_time_ms()
                if 0 < ends_ms <= now_ms:
                    continue
                if len(found) >= limit or size >= _LIST_BYTES_MAX:
                    return found, True
                size += len(one.value)
                with suppress(CorruptFile):  # Not of any build of swarmd.
                    found.append(self._entry(one, now_ms))
            if len(page) < step:
                return found, False
            at = page[-1].key
            largest = max(len(one.value) for one in page)
            step = max(1, min(_STEP_MAX, _STEP_BYTES // (largest + 1)))

    async def delete(self, namespace: str, key: str, *, if_version: str | None = None) -> None:
        """Delete a value; returns once a majority of the voters has that on disk."""
        where = value_key(namespace, key)
        if (await self._look(where))[0] is None:
            raise NotFound(f"{namespace} has no key {key!r}")
        await self._guarded(where, key, if_version, lambda expect: Delete(where, expect))

    @asynccontextmanager
    async def watch(
        self, namespace: str, prefix: str = "", since: str = ""
    ) -> AsyncIterator[Watch]:
        """See `port.Memory`; a position is good on every node. Raises NoQuorum: it cannot begin."""
        check_namespace(namespace)
        watch = _Watch(self._store, values_below(namespace, prefix))
        await watch.begin(since)
        try:
            yield watch
        finally:
            await watch.end()

    # ---- reading and comparing ----------------------------------------------------------------

    async def _look(self, where: bytes) -> tuple[StoreEntry | None, int]:
        """The entry that lives, and store time in ms if it ends; what has ended is removed."""
        for _ in range(_RACES_MAX):
            found = await self._store.get(where)
            if found is None or not end_ms(found.value):
                return found, 0
            now_ms = await self._store.read_time_ms()
            if now_ms < end_ms(found.value):
                return found, now_ms
            [gone] = await self._store.propose([Delete(where, found.mod_revision)])
            if gone.ok:
                return None, now_ms
        raise Busy("the key is written by many at once: try again shortly")

    async def _guarded(
        self,
        where: bytes,
        key: str,
        if_version: str | None,
        make: Callable[[int | None], Operation],
    ) -> OpResult:
        """Propose what `make` makes of the revision that must be there. Raises Conflict."""
        expect: int | None = None
        if if_version is not None:
            found, _ = await self._look(where)
            there = ABSENT if found is None else _version_of(found)
            if there != if_version:
                raise Conflict(f"{key!r} has another version by now, {there}: nothing changed")
            expect = 0 if found is None else found.mod_revision
        [result] = await self._store.propose([make(expect)])
        if result.code == Conflict.code:
            raise Conflict(f"{key!r} has another version by now: nothing changed")
        return result.raise_for_error()

    def _entry(self, found: StoreEntry, now_ms: int) -> Entry:
        """Raises CorruptFile: the store holds what this version cannot read."""
        ends_ms = end_ms(found.value)
        _, _, namespace, key = found.key.decode("utf-8", "replace").split("/", 3)
        try:
            stored = decode_value(found.value)
            value = unpack(stored.value)
        except (CorruptFile, MalformedMessage) as error:
            raise CorruptFile(
                f"{key!r} of {namespace} holds what this version cannot read, or a member put "
                "there: set it anew, or delete it"
            ) from error
        return Entry(
            namespace,
            key,
            value,
            _version_of(found),
            stored.by,
            stored.created_ms,
            ends_ms and self._clock.wall_ms() + ends_ms - now_ms,
            NodeId(stored.node),
            len(found.value),
        )

    # ---- removing what has ended --------------------------------------------------------------

    async def sweep(self) -> None:
        """Remove what has ended wherever this node coordinates, for as long as this runs."""
        place = _Place()
        while True:
            await pause(_SWEEP_S if place.is_under_way else _ROUNDS_S)
            try:
                await self.sweep_once(place)
            except SwarmError as error:
                _log.debug("what has ended is not removed yet", why=error.message)

    async def sweep_once(self, place: _Place) -> None:
        """Look through the next records and remove those that have ended. Raises SwarmError."""
        state = self._store.local
        if self._store.office is None or state is None:
            place.begin_anew()
            return
        over_ms = self._store.store_time_ms() - _SWEEP_GRACE_MS
        if place.begins_in_vain(state.revision, over_ms):
            return
        records = state.range(place.prefix, place.after, _SWEEP_RECORDS)
        place.passed(records)
        ended = [
            Delete(one.key, one.mod_revision) for one in records if 0 < end_ms(one.value) <= over_ms
        ]
        for begin in range(0, len(ended), BATCH_OPERATIONS_MAX):
            await self._store.propose(ended[begin : begin + BATCH_OPERATIONS_MAX])


class _Place:
    """How far the walk through what may end has come.

    A round without an end goes through two prefixes. One in a state that has not changed since the
    last began finds what that found: it is spared until the first of those ends.
    """

    _PREFIXES: Final = (MEMORY_VALUE_PREFIX, MEMORY_FLIGHT_PREFIX)

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        self._turn, self.after = 0, b""
        self._began_at = -1  # The state's revision when the last round began.
        self._first_end_ms = math.inf

    @property
    def prefix(self) -> bytes:
        return self._PREFIXES[self._turn]

    @property
    def is_under_way(self) -> bool:
        return bool(self._turn or self.after)

    def begins_in_vain(self, revision: int, over_ms: int) -> bool:
        """Where a round is about to begin: would it find nothing that ended by `over_ms`?"""
        if self.is_under_way:
            return False
        if revision == self._began_at and over_ms < self._first_end_ms:
            return True
        self._began_at, self._first_end_ms = revision, math.inf
        return False

    def passed(self, records: Sequence[StoreEntry]) -> None:
        ends = [end for one in records if (end := end_ms(one.value))]
        self._first_end_ms = min([self._first_end_ms, *ends])
        if len(records) < _SWEEP_RECORDS:
            self._turn, self.after = 1 - self._turn, b""
        else:
            self.after = records[-1].key


class _Watch:
    """Keys of a strong namespace as they change."""

    def __init__(self, store: StrongStore, below: bytes) -> None:
        self.lagged = False
        self._store, self._below = store, below
        self._changes: AsyncGenerator[tuple[list[Change], int], None]
        # Keys that are not told yet, with the revision of each one's first change, and up to which
        # revision the store has told.
        self._changed: dict[str, int] = {}
        self._revision = 0

    @property
    def position(self) -> str:
        return str(next(iter(self._changed.values()), self._revision + 1) - 1)

    async def begin(self, since: str = "") -> None:
        """From when this returns on nothing is missed. Raises Busy, NoQuorum."""
        self._changes = self._store.watch(self._below)
        _, self._revision = await anext(self._changes)
        if not since:
            return
        sound = since.isascii() and since.isdigit() and len(since) <= _REVISION_DIGITS_MAX
        if not sound or int(since) > self._revision:
            self.lagged = True  # It is of another namespace, or of another swarm.
            return
        await self._changes.aclose()
        self._revision = int(since)
        self._changes = self._store.watch(self._below, self._revision + 1)

    async def end(self) -> None:
        await self._changes.aclose()

    async def receive(self) -> str | None:
        while not self._changed:
            try:
                changes, self._revision = await anext(self._changes)
            except Compacted:
                self.lagged = True
                await self.begin()
                return None
            for one in changes:
                key = one.key.decode("utf-8", "replace").split("/", 3)[3]
                self._changed.setdefault(key, one.revision)
        key = next(iter(self._changed))
        del self._changed[key]
        return key


def _version_of(found: StoreEntry) -> str:
    return str(found.mod_revision)
