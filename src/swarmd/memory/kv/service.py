"""Shared memory: values by key in namespaces, each of which is eventual or strong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import BadRequest
from swarmd.base.ids import NodeId
from swarmd.memory.kv.eventual import EventualMemory
from swarmd.memory.kv.inspecting import Inspected
from swarmd.memory.kv.namespaces import Namespaces
from swarmd.memory.kv.port import LIST_MAX, Entry, Memory, Watch
from swarmd.memory.kv.records import flight_key
from swarmd.memory.kv.strong import StrongMemory, StrongStore
from swarmd.state.crdt.service import Eventual
from swarmd.state.raft.messages import Delete

__all__ = ["Entry", "SharedMemory", "open_memory"]


class SharedMemory:
    """See `port.Memory`. Made by `open_memory`."""

    def __init__(
        self,
        eventual: EventualMemory,
        strong: StrongMemory,
        namespaces: Namespaces,
        store: StrongStore,
    ) -> None:
        self.eventual, self._strong, self._store = eventual, strong, store
        self.namespaces = namespaces

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
        memory = await self._of(namespace)
        return await memory.set(namespace, key, value, by=by, ttl_s=ttl_s, if_version=if_version)

    async def get(self, namespace: str, key: str) -> Entry:
        memory = await self._of(namespace)
        return await memory.get(namespace, key)

    async def inspect(self, namespace: str, key: str) -> Inspected:
        """Why a key of an eventual namespace holds what it holds.

        Raises NotFound, EmptyKey, KeyTooLong, BadRequest.
        """
        if (await self.namespaces.of(namespace)).is_strong:
            raise BadRequest(
                f"{namespace} is a strong namespace: a majority agrees on its values one by one, "
                "and no two writes of a key stand side by side"
            )
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

    async def _of(self, namespace: str) -> Memory:
        """Who keeps a namespace. Raises BadRequest."""
        found = await self.namespaces.of(namespace)
        return self._strong if found.is_strong else self.eventual

    async def _forget_flight(self, namespace: str, key: str) -> None:
        """Raises NoQuorum. Who computes it now goes on."""
        where = flight_key(namespace, key)
        found = await self._store.get(where)
        if found is not None and not found.lease:  # A lease is who computes it now.
            await self._store.propose([Delete(where, found.mod_revision)])


@asynccontextmanager
async def open_memory(
    me: NodeId,
    eventual: Eventual,
    store: StrongStore,
    clock: Clock,
    alive: Callable[[], Sequence[NodeId]],
) -> AsyncIterator[SharedMemory]:
    """Serve shared memory for as long as the block runs.

    Args:
        alive: who is alive, this node not among them.
    """
    async with trio.open_nursery() as nursery:
        values = EventualMemory(me, eventual, clock, alive)
        strong = StrongMemory(me, store, clock)
        namespaces = Namespaces(me, eventual, values, store, clock, nursery)
        nursery.start_soon(values.sweep)
        nursery.start_soon(strong.sweep)
        try:
            yield SharedMemory(values, strong, namespaces, store)
        finally:
            nursery.cancel_scope.cancel()
