"""Shared memory: values by key in namespaces, each of which is eventual or strong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from difflib import get_close_matches
from typing import Any

import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import BadRequest, NotFound, PolicyConflict, SwarmError, WouldLoseData
from swarmd.base.ids import NodeId
from swarmd.memory.kv.bounds import Bounds
from swarmd.memory.kv.eventual import BUCKET, EventualMemory
from swarmd.memory.kv.inspecting import Inspected
from swarmd.memory.kv.messages import MEMORY
from swarmd.memory.kv.namespaces import BUCKET as NAMESPACES
from swarmd.memory.kv.namespaces import Namespaces
from swarmd.memory.kv.partial import PartialMemories
from swarmd.memory.kv.policies import (
    PolicyChange,
    changed,
    check_fits,
    check_value,
    held_bytes,
    is_of,
    ttl_of,
)
from swarmd.memory.kv.port import LIST_MAX, Entry, Memory, Watch
from swarmd.memory.kv.records import Namespace, flight_key
from swarmd.memory.kv.rules import author, size_of
from swarmd.memory.kv.strong import StrongMemory, StrongStore
from swarmd.mesh.link import Link
from swarmd.state.crdt.service import Eventual
from swarmd.state.raft.messages import Delete

__all__ = ["Entry", "SharedMemory", "open_memory"]


class SharedMemory:
    """See `port.Memory`. Made by `open_memory`."""

    def __init__(
        self,
        eventual: EventualMemory,
        strong: StrongMemory,
        partial: PartialMemories,
        namespaces: Namespaces,
        bounds: Bounds,
        store: StrongStore,
        me: NodeId,
        clock: Clock,
    ) -> None:
        self.eventual, self._strong, self._store = eventual, strong, store
        self._partial = partial
        self.namespaces, self.bounds = namespaces, bounds
        self._me, self._clock = me, clock

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
        record = await self.namespaces.of(namespace)
        check_value(namespace, record, value)
        memory, ttl_s = self._by(record), ttl_of(record, ttl_s)
        if record.bytes_max:
            size = size_of([value, author(by)])
            check_fits(namespace, record, held_bytes(f"{namespace}/{key}", size))
        written = await memory.set(namespace, key, value, by=by, ttl_s=ttl_s, if_version=if_version)
        if record.bytes_max:
            with suppress(SwarmError):  # It is written; others remove what is too much.
                await self.bounds.keep(namespace, key)
        return written

    async def get(self, namespace: str, key: str) -> Entry:
        memory = await self._of(namespace)
        return await memory.get(namespace, key)

    async def inspect(self, namespace: str, key: str) -> Inspected:
        """Why a key of an eventual namespace holds what it holds.

        Raises NotFound, EmptyKey, KeyTooLong, BadRequest; NotHeld: to be asked of another node.
        """
        record = await self.namespaces.of(namespace)
        if record.is_strong:
            raise BadRequest(
                f"{namespace} is a strong namespace: a majority agrees on its values one by one, "
                "and no two writes of a key stand side by side"
            )
        if record.copies:
            return self._partial.of(record.copies).inspect(namespace, key)
        return self.eventual.inspect(namespace, key)

    async def list(
        self, namespace: str, prefix: str = "", *, after: str = "", limit: int = LIST_MAX
    ) -> tuple[list[Entry], bool]:
        memory = await self._of(namespace)
        return await memory.list(namespace, prefix, after=after, limit=limit)

    async def delete(self, namespace: str, key: str, *, if_version: str | None = None) -> None:
        """As `port.Memory` says. Of a cache it takes a majority: what was computed just now would
        be had from the strong store again.
        """
        memory = await self._of(namespace)
        if (await self.namespaces.of(namespace)).is_cache:
            await self._forget_flight(namespace, key)
        await memory.delete(namespace, key, if_version=if_version)

    @asynccontextmanager
    async def watch(
        self, namespace: str, prefix: str = "", since: str = ""
    ) -> AsyncIterator[Watch]:
        memory = await self._of(namespace)
        async with memory.watch(namespace, prefix, since) as watch:
            yield watch

    async def change(
        self, namespace: str, change: PolicyChange, *, by: str, evict: bool = False
    ) -> Namespace:
        """Change the policy of a namespace that was made, or that holds something.

        Every node that reaches a majority follows it within two seconds. Values that are there keep
        the end that they have.

        Args:
            evict: let a bound take away what is too much.

        Raises:
            BadRequest: there is no such policy, or not for such a namespace; nothing changed.
            NotFound: nobody made the namespace, and it holds nothing.
            PolicyConflict: it holds a value of another type, as far as this node knows; nothing
                changed.
            WouldLoseData: it holds more than the bound, as far as this node knows; nothing changed.
            NoQuorum: whether it changed is unknown; repeat it.
        """

        async def decide(before: Namespace | None) -> Namespace:
            if before is None and not (await self.eventual.list(namespace, limit=1))[0]:
                raise self._no_namespace(namespace)
            made = before or Namespace(
                created_by=author(by), created_ms=self._clock.wall_ms(), node=self._me
            )
            wanted = changed(made, change)
            await self._check_held(namespace, made, wanted, evict=evict)
            return wanted

        return await self.namespaces.record(namespace, decide)

    def _no_namespace(self, namespace: str) -> NotFound:
        known = self.namespaces.names()
        close = get_close_matches(namespace, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "make it first"
        return NotFound(f"nobody made the namespace {namespace}, and it holds nothing: {hint}")

    async def _check_held(
        self, namespace: str, before: Namespace, wanted: Namespace, *, evict: bool
    ) -> None:
        """Raises PolicyConflict, WouldLoseData: the namespace holds what it may not."""
        is_smaller = 0 < wanted.bytes_max < (before.bytes_max or wanted.bytes_max + 1)
        counts = is_smaller and not evict and not wanted.is_cache
        if wanted.type is before.type and not counts:
            return
        memory, after, more, held = self._by(wanted), "", True, 0
        while more:
            entries, more = await memory.list(namespace, after=after)
            for one in entries:
                after = one.key
                held += held_bytes(f"{namespace}/{one.key}", one.size)
                if not is_of(wanted.type, one.value):
                    raise PolicyConflict(
                        f"{one.key!r} in {namespace} is no {wanted.type.value}: nothing changed; "
                        "delete it, or use another namespace"
                    )
        if counts and held > wanted.bytes_max:
            raise WouldLoseData(
                f"{namespace} holds {held} bytes, more than {wanted.bytes_max}: nothing changed; "
                "delete some, or say that what was written longest ago may go"
            )

    async def _of(self, namespace: str) -> Memory:
        """Who keeps a namespace. Raises BadRequest."""
        return self._by(await self.namespaces.of(namespace))

    def _by(self, record: Namespace) -> Memory:
        if record.copies:
            return self._partial.of(record.copies)
        return self._strong if record.is_strong else self.eventual

    async def _forget_flight(self, namespace: str, key: str) -> None:
        """Raises NoQuorum. Who computes it now goes on."""
        where = flight_key(namespace, key)
        found = await self._store.get(where)
        if found is not None and not found.lease:  # A lease is who computes it now.
            await self._store.propose([Delete(where, found.mod_revision)])


@asynccontextmanager
async def open_memory(
    link: Link,
    eventual: Eventual,
    store: StrongStore,
    clock: Clock,
    alive: Callable[[], Sequence[NodeId]],
) -> AsyncIterator[SharedMemory]:
    """Serve shared memory for as long as the block runs.

    Args:
        alive: who is alive, this node not among them.
    """
    me = link.node_id

    def values_in(bucket: str) -> EventualMemory:
        return EventualMemory(me, eventual, clock, alive, bucket)

    with eventual.watch(NAMESPACES) as told:
        async with link.open_inbox(MEMORY) as inbox, trio.open_nursery() as nursery:
            values, partial = values_in(BUCKET), PartialMemories(link, eventual, values_in, alive)
            strong = StrongMemory(me, store, clock)
            namespaces = Namespaces(me, eventual, told, values, store, clock, nursery)
            bounds = Bounds(me, eventual, namespaces, clock, alive)
            for one in (values, *(each.values for each in partial.all())):
                nursery.start_soon(one.sweep)
            nursery.start_soon(partial.serve, inbox)
            nursery.start_soon(strong.sweep)
            nursery.start_soon(bounds.follow)
            try:
                yield SharedMemory(values, strong, partial, namespaces, bounds, store, me, clock)
            finally:
                nursery.cancel_scope.cancel()
