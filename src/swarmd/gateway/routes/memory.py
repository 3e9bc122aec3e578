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
from swarmd.gateway.shapes_memory import MemoryEntry, MemoryNews, MemoryPage
from swarmd.memory.kv.service import LIST_MAX, Entry, SharedMemory, key_of

_PATH = "/api/v1/memory/{namespace}"
_WATCH_ITEMS_MAX = 16


class ValueBody(msgspec.Struct, forbid_unknown_fields=True):
    value: Any
    ttl_s: float | None = None
    if_version: str | None = None


class MemoryRoutes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services
        self._watches = Watches(context.config.requests_max // 4)

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        return [
            route("/api/v1/memory-watch/{namespace}", self.watch, "memory:read"),
            route(_PATH, self.list, "memory:read"),
            route(_PATH + "/{key:path}", self.get, "memory:read"),
            route(_PATH + "/{key:path}", self.set, "memory:write", methods=["PUT"]),
            route(_PATH + "/{key:path}", self.delete, "memory:write", methods=["DELETE"]),
        ]

    async def set(self, request: Request) -> Response:
        """Write a value; answered when it is on this node's disk."""
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
        """The value as this node knows it."""
        namespace, key = self._asked(request, "memory:read")
        return answer(request, self._shown(self._memory().get(namespace, key)))

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
        with self._watches.one_more(), memory.watch(namespace, prefix, since) as watch:
            lagged, watch.lagged = watch.lagged, False
            yield MemoryNews(namespace=namespace, position=watch.position, lagged=lagged)
            while True:
                key = key_of(await watch.receive())
                lagged, watch.lagged = watch.lagged, False
                entry = self._found(memory, namespace, key)
                yield MemoryNews(key=key, entry=entry, position=watch.position, lagged=lagged)

    def _found(self, memory: SharedMemory, namespace: str, key: str) -> MemoryEntry | None:
        try:
            return self._shown(memory.get(namespace, key))
        except NotFound:
            return None

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
