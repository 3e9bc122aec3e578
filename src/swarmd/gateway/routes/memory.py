"""Shared memory: values by namespace and key, read and written on any node at any time."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from swarmd.base.errors import NotFound
from swarmd.gateway.access.gate import caller_of
from swarmd.gateway.context import ApiRoute, Context, Watches, query_int
from swarmd.gateway.http import Items, Stream, answer
from swarmd.gateway.shapes_memory import MemoryEntry, MemoryNamespace, MemoryNews, MemoryPage
from swarmd.memory.kv.port import LIST_MAX
from swarmd.memory.kv.records import Consistency, Namespace
from swarmd.memory.kv.service import Entry, SharedMemory

_PATH = "/api/v1/memory/{namespace}"
_NAMESPACES = "/api/v1/memory-namespaces"
_WATCH_ITEMS_MAX = 16


class ValueBody(msgspec.Struct, forbid_unknown_fields=True):
    value: Any
    ttl_s: float | None = None
    if_version: str | None = None


class NamespaceBody(msgspec.Struct, forbid_unknown_fields=True):
    """With bounds it is a cache."""

    consistency: Consistency
    entries_max: int = 0
    bytes_max: int = 0


class MemoryRoutes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services
        self._watches = Watches(context.config.requests_max // 4)

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        return [
            route("/api/v1/memory-watch/{namespace}", self.watch, "memory:read"),
            route(_NAMESPACES, self.namespaces, "memory:read"),
            route(_NAMESPACES + "/{namespace}", self.namespace, "memory:read"),
            route(_NAMESPACES + "/{namespace}", self.make, "memory:write", methods=["PUT"]),
            route(_PATH, self.list, "memory:read"),
            route(_PATH + "/{key:path}", self.get, "memory:read"),
            route(_PATH + "/{key:path}", self.set, "memory:write", methods=["PUT"]),
            route(_PATH + "/{key:path}", self.delete, "memory:write", methods=["DELETE"]),
        ]

    async def set(self, request: Request) -> Response:
        """Write a value; answered when it is on this node's disk, or a majority's."""
        body = await self._context.read(request, ValueBody)
        namespace, key = self._asked(request, "memory:write")
        call = partial(
            self._memory().set,
            namespace,
            key,
            body.value,
            by=caller_of(request).name,
            ttl_s=body.ttl_s,
            if_version=body.if_version,
        )
        return answer(request, self._shown(await self._context.attended(request, call)))

    async def get(self, request: Request) -> Response:
        """The value as this node knows it, or as a majority does."""
        namespace, key = self._asked(request, "memory:read")
        return answer(request, self._shown(await self._memory().get(namespace, key)))

    async def delete(self, request: Request) -> Response:
        """Delete a value."""
        namespace, key = self._asked(request, "memory:write")
        version = request.query_params.get("if_version")
        call = partial(self._memory().delete, namespace, key, if_version=version)
        await self._context.attended(request, call)
        return answer(request, {})

    async def list(self, request: Request) -> Response:
        """Values in the order of their keys, at most 1,000."""
        namespace = request.path_params["namespace"]
        caller_of(request).require("memory:read", namespace)
        asked = request.query_params
        limit = query_int(request, "limit", LIST_MAX, 1, LIST_MAX)
        found, more = await self._memory().list(
            namespace, asked.get("prefix", ""), after=asked.get("after", ""), limit=limit
        )
        return answer(request, MemoryPage(entries=[*map(self._shown, found)], more=more))

    async def watch(self, request: Request) -> Stream:
        """Keys as they change, from now on, or from a position that an earlier watch had."""
        namespace = request.path_params["namespace"]
        caller_of(request).require("memory:read", namespace)
        prefix = request.query_params.get("prefix", "")
        since = request.query_params.get("since", "")
        return self._context.stream(
            request, self._news(namespace, prefix, since), items_max=_WATCH_ITEMS_MAX
        )

    async def _news(self, namespace: str, prefix: str, since: str) -> Items:
        memory = self._memory()
        with self._watches.one_more():
            async with memory.watch(namespace, prefix, since) as watch:
                lagged, watch.lagged = watch.lagged, False
                yield MemoryNews(namespace=namespace, position=watch.position, lagged=lagged)
                while True:
                    key = await watch.receive()
                    lagged, watch.lagged = watch.lagged, False
                    entry = None if key is None else await self._found(memory, namespace, key)
                    yield MemoryNews(key=key, entry=entry, position=watch.position, lagged=lagged)

    async def _found(self, memory: SharedMemory, namespace: str, key: str) -> MemoryEntry | None:
        try:
            return self._shown(await memory.get(namespace, key))
        except NotFound:
            return None

    # ---- namespaces -------------------------------------------------------------------

    async def namespaces(self, request: Request) -> Response:
        """Those that were made, by name, as a majority knows them."""
        may = caller_of(request).may
        found = await self._memory().namespaces.all()
        shown = [
            await self._promised(name, one)
            for name, one in found.items()
            if may("memory:read", name)
        ]
        return answer(request, shown)

    async def namespace(self, request: Request) -> Response:
        """What a namespace promises."""
        name = request.path_params["namespace"]
        caller_of(request).require("memory:read", name)
        found = await self._memory().namespaces.of(name)
        return answer(request, await self._promised(name, found))

    async def make(self, request: Request) -> Response:
        """Make a namespace that is strong, or a cache; answered when every node knows."""
        name = request.path_params["namespace"]
        caller_of(request).require("memory:write", name)
        body = await self._context.read(request, NamespaceBody)
        call = partial(
            self._memory().namespaces.make,
            name,
            body.consistency,
            by=caller_of(request).name,
            entries_max=body.entries_max,
            bytes_max=body.bytes_max,
        )
        made = await self._context.attended(request, call)
        return answer(request, await self._promised(name, made))

    async def _promised(self, name: str, found: Namespace) -> MemoryNamespace:
        left_over = await self._memory().namespaces.left_over(name) if found.is_strong else 0
        return MemoryNamespace(
            name=name,
            consistency=found.consistency.value,
            entries_max=found.entries_max,
            bytes_max=found.bytes_max,
            created_by=found.created_by,
            created_at_ms=found.created_ms,
            node=self._services.name_of(found.node),
            left_over=left_over,
        )

    def _asked(self, request: Request, permission: str) -> tuple[str, str]:
        namespace, key = request.path_params["namespace"], request.path_params["key"]
        caller_of(request).require(permission, namespace)
        return namespace, key

    def _memory(self) -> SharedMemory:
        return self._services.need(self._services.memory)

    def _shown(self, entry: Entry) -> MemoryEntry:
        return MemoryEntry(
            namespace=entry.namespace,
            key=entry.key,
            value=entry.value,
            version=entry.version,
            created_by=entry.created_by,
            created_at_ms=entry.created_at_ms,
            expires_at_ms=entry.expires_at_ms,
            node=self._services.name_of(entry.node),
        )
