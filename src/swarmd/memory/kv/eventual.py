"""Eventual namespaces: values in the eventual store, and who wrote what, until when.

A value is a register: of writes that did not see each other the later one counts. What has expired
is read as absent at once, and removed by the node that wrote it, or by another if that is gone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from heapq import heappop, heappush
from itertools import islice
from typing import Any, Final

import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import MalformedMessage, NotFound, SwarmError, ValueTooLarge
from swarmd.base.ids import NodeId, digest, to_text
from swarmd.base.limits import CRDT_VALUE_BYTES_MAX
from swarmd.base.pace import pause
from swarmd.memory.kv.inspecting import Inspected, inspect
from swarmd.memory.kv.port import ABSENT, LIST_BYTES_MAX, LIST_MAX, Entry, Watch
from swarmd.memory.kv.rules import author, check_namespace, key_of, name_of, ttl_ms
from swarmd.observe.log import get_logger
from swarmd.state.crdt.cells import Cell
from swarmd.state.crdt.clock import ms_of
from swarmd.state.crdt.dots import Actor, Dot, node_of
from swarmd.state.crdt.messages import shard_of
from swarmd.state.crdt.placement import copies_of
from swarmd.state.crdt.service import Eventual
from swarmd.state.crdt.types.kinds import Kind
from swarmd.state.crdt.types.registers import winner
from swarmd.state.crdt.types.values import Assign, Remove, kind_of
from swarmd.state.crdt.watching import KeyWatch
from swarmd.wire.codec import pack, unpack

BUCKET: Final = "memory"
_SWEEP_S: Final = 5.0
# How many keys one turn removes at most.
_SWEEP_REMOVES_MAX: Final = 500
# How many keys are looked at before others have their turn.
_TURN: Final = 500
# When what others should remove is looked at again, and how many may wait that have changed since.
_LOOK_AGAIN_MS: Final = 10_000
_STALE_MAX: Final = 1_000
_VERSION_BYTES: Final = 10

# No change has this number.
_NOWHERE: Final[Dot] = (Actor(b""), 0)

_log = get_logger("memory")


class EventualMemory:
    """See `port.Memory`.

    Args:
        alive: who is alive, this node not among them.
        bucket: where the values are; of one that not all nodes hold, those that this one holds.
    """

    def __init__(
        self,
        me: NodeId,
        store: Eventual,
        clock: Clock,
        alive: Callable[[], Sequence[NodeId]],
        bucket: str = BUCKET,
    ) -> None:
        self._bucket = bucket
        self._me, self._store, self._clock, self._alive = me, store, clock, alive
        # Keys that expire, and when; and which of them to look at when, soonest first.
        self._expiring: dict[str, int] = {}
        self._due: list[tuple[int, str]] = []

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
        """Write a value; returns once it is on this node's disk. Others have it within a second.

        `if_version` is held against what this node knows. Another node may write at the same time
        all the same.

        Raises:
            WrongType, ClockSkew, DiskFault, TimedOut: see `Eventual.write`.
            See `port.Memory` for others.
        """
        name = name_of(namespace, key)
        expires_ms = 0 if ttl_s is None else self._clock.wall_ms() + ttl_ms(ttl_s)
        packed = [value, author(by)]
        if len(pack(value)) > CRDT_VALUE_BYTES_MAX:
            raise ValueTooLarge(
                f"a value has at most {CRDT_VALUE_BYTES_MAX} bytes: put it into a blob, and keep "
                "its hash here"
            )
        await self._store.write(
            self._bucket,
            name,
            Assign(packed),
            expires_ms=expires_ms,
            expects=self._expected(name, if_version),
        )
        written = self._entry(name, expired_too=True)
        if written is None:
            raise NotFound(f"{key!r} was written, and deleted by somebody else since")
        return written

    async def get(self, namespace: str, key: str) -> Entry:
        """The value as this node knows it."""
        found = self.known(namespace, key)
        if found is None:
            raise NotFound(f"{namespace} has no key {key!r}")
        return found

    def known(self, namespace: str, key: str) -> Entry | None:
        """The value as this node knows it; None if there is none."""
        return self._entry(name_of(namespace, key))

    def inspect(self, namespace: str, key: str) -> Inspected:
        """Why a key holds what it holds. Raises NotFound, EmptyKey, KeyTooLong, BadRequest."""
        return inspect(self._store, self._bucket, name_of(namespace, key), self._clock.wall_ms())

    async def list(
        self,
        namespace: str,
        prefix: str = "",
        *,
        after: str = "",
        limit: int = LIST_MAX,
        shards: frozenset[int] | None = None,
        bytes_max: int = LIST_BYTES_MAX,
    ) -> tuple[list[Entry], bool]:
        """As `port.Memory` says; of these shards alone, if any are given, and so many bytes."""
        check_namespace(namespace)
        found: list[Entry] = []
        room, last = bytes_max, f"{namespace}/{after}" if after else ""
        below = f"{namespace}/{prefix}"
        while True:
            names = islice(self._store.keys_after(self._bucket, below, last, shards), _TURN)
            last = ""
            for last in names:
                entry = self._entry(last)
                if entry is None:
                    continue
                room -= entry.size
                if len(found) >= limit or (found and room < 0):
                    return found, True
                found.append(entry)
            if not last:
                return found, False
            # What has expired is passed over, however many that are.
            await trio.lowlevel.checkpoint()

    async def delete(self, namespace: str, key: str, *, if_version: str | None = None) -> None:
        """Delete a value. Raises NotFound, and what `set` raises; nothing changed then."""
        name = name_of(namespace, key)
        await self.get(namespace, key)
        expects = self._expected(name, if_version)
        await self._store.write(self._bucket, name, Remove(), expects=expects)

    @asynccontextmanager
    async def watch(
        self, namespace: str, prefix: str = "", since: str = ""
    ) -> AsyncIterator[Watch]:
        check_namespace(namespace)
        with self._store.watch(self._bucket, f"{namespace}/{prefix}", since) as watch:
            yield _Watch(watch)

    async def sweep(self) -> None:
        """Remove what has expired, for as long as this runs."""
        with self._store.watch(self._bucket) as watch:
            watch.lagged = True  # What was there before.
            while True:
                if watch.lagged:
                    watch.lagged = False
                    await self.look_at_all()
                for name in watch.drain():
                    self._look_at(name)
                more = False
                try:
                    more = await self.sweep_once()
                except SwarmError as error:
                    _log.debug("what has expired is not removed yet", why=error.message)
                await pause(0.0 if more else _SWEEP_S)

    async def look_at_all(self) -> None:
        """Find what expires."""
        self._expiring.clear()
        self._due.clear()
        async for name in self._store.expiring_keys(self._bucket):
            self._look_at(name)

    def _look_at(self, name: str) -> None:
        found = self._winner(name)
        if found is None or not found[1].expires_ms:
            self._expiring.pop(name, None)
        elif self._expiring.get(name) != found[1].expires_ms:
            self._expiring[name] = found[1].expires_ms
            heappush(self._due, (found[1].expires_ms, name))
        if len(self._due) > 2 * len(self._expiring) + _STALE_MAX:
            self._due = sorted((at_ms, name) for name, at_ms in self._expiring.items())

    async def sweep_once(self) -> bool:
        """Remove some of what has expired and is this node's to remove; is there more?

        Raises SwarmError.
        """
        now_ms, alive = self._clock.wall_ms(), self._alive()
        later = []
        try:
            for _ in range(_SWEEP_REMOVES_MAX):
                if not self._due or self._due[0][0] > now_ms:
                    return False
                _, name = heappop(self._due)
                found = self._winner(name)
                if found is None or not 0 < found[1].expires_ms <= now_ms:
                    continue
                # It is looked at again, should it still be there.
                later.append((now_ms + _LOOK_AGAIN_MS, name))
                if self._removes(name, node_of(found[0][0]), alive):
                    await self._store.write(self._bucket, name, Remove(), expects=found[0])
                    self._look_at(name)
            return True
        finally:
            for one in later:
                heappush(self._due, one)

    def _removes(self, name: str, author: NodeId, alive: Sequence[NodeId]) -> bool:
        """Whether it is for this node to remove what has expired, which `author` wrote."""
        if copies_of(self._bucket):
            holders = self._store.holders(self._bucket, shard_of(name))
            return self._me == next((o for o in holders if o == self._me or o in alive), None)
        return author == self._me or (author not in alive and self._me == min((self._me, *alive)))

    def _winner(self, name: str) -> tuple[Dot, Cell] | None:
        live = self._store.cells(self._bucket, name)
        return winner(live) if kind_of(live) is Kind.REGISTER else None

    def _entry(self, name: str, *, expired_too: bool = False) -> Entry | None:
        found = self._winner(name)
        if found is None:
            return None
        dot, cell = found
        if not expired_too and 0 < cell.expires_ms <= self._clock.wall_ms():
            return None
        try:
            value = unpack(cell.value)
        except MalformedMessage:
            value = None
        if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], str):
            return None  # Not of any build of swarmd.
        namespace, _, key = name.partition("/")
        return Entry(
            namespace,
            key,
            value[0],
            _version_of(dot),
            value[1],
            ms_of(cell.stamp),
            cell.expires_ms,
            node_of(dot[0]),
            len(cell.value),
        )

    def _expected(self, name: str, version: str | None) -> Dot | tuple[()] | None:
        """What the machine shall find there; a version that is not known is nowhere."""
        if version is None:
            return None
        live = self._store.cells(self._bucket, name)
        found = winner(live) if live else None
        over = found is not None and 0 < found[1].expires_ms <= self._clock.wall_ms()
        if version == ABSENT:
            return found[0] if found is not None and over else ()
        if found is not None and not over and _version_of(found[0]) == version:
            return found[0]
        return _NOWHERE


def _version_of(dot: Dot) -> str:
    return f"{to_text(digest(dot[0])[:_VERSION_BYTES])}-{dot[1]}"


class _Watch:
    """Keys without their namespace."""

    def __init__(self, watch: KeyWatch) -> None:
        self._watch = watch

    @property
    def lagged(self) -> bool:
        return self._watch.lagged

    @lagged.setter
    def lagged(self, lagged: bool) -> None:
        self._watch.lagged = lagged

    @property
    def position(self) -> str:
        return self._watch.position

    async def receive(self) -> str:
        return key_of(await self._watch.receive())
