"""Shared memory: values by namespace and key, read and written on any node at any time."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from swarmd.base.errors import NotFound
from swarmd.gateway.access.among import READ, WRITE, check_who, require_in
from swarmd.gateway.access.gate import caller_of
from swarmd.gateway.access.rules import Caller
from swarmd.gateway.context import ApiRoute, Context, Watches, query_int
from swarmd.gateway.http import Items, Stream, answer
from swarmd.gateway.shapes_memory import MemoryEntry, MemoryNamespace, MemoryNews, MemoryPage
from swarmd.memory.kv.policies import PolicyChange
from swarmd.memory.kv.port import LIST_MAX
from swarmd.memory.kv.records import Consistency, Namespace, ValueType, Who
from swarmd.memory.kv.service import Entry, SharedMemory

_PATH = "/api/v1/memory/{namespace}"
_NAMESPACES = "/api/v1/memory-namespaces"
_MANAGE = "memory:manage"
_WATCH_ITEMS_MAX = 16
_TOLD_CHARS_MAX = 500


class ValueBody(msgspec.Struct, forbid_unknown_fields=True):
    value: Any
    ttl_s: float | None = None
    if_version: str | None = None


class NamespaceBody(msgspec.Struct, forbid_unknown_fields=True):
    """With `entries_max` it is a cache. What is 0 or empty is not said of it."""

    consistency: Consistency
    entries_max: int = 0
    bytes_max: int = 0
    copies: int = 0
    ttl_s: float = 0.0
    type: ValueType = ValueType.ANY
    readers: Who = ()
    writers: Who = ()

    @property
    def policy(self) -> PolicyChange:
        return PolicyChange(
            ttl_s=self.ttl_s, type=self.type, readers=self.readers, writers=self.writers
        )

    @property
    def says_more(self) -> bool:
        """Whether it says more than what kind of namespace it shall be."""
        bounds = self.bytes_max > 0 and not self.entries_max
        return bool(bounds or self.ttl_s or self.readers or self.writers) or (
            self.type is not ValueType.ANY
        )


class PolicyBody(PolicyChange, frozen=True, forbid_unknown_fields=True):
    """`evict`: let a bound take away what is too much."""

    evict: bool = False


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
            route(_NAMESPACES + "/{namespace}", self.change, _MANAGE, methods=["PATCH"]),
            route(_PATH, self.list, "memory:read"),
            route(_PATH + "/{key:path}", self.get, "memory:read"),
            route(_PATH + "/{key:path}", self.set, "memory:write", methods=["PUT"]),
            route(_PATH + "/{key:path}", self.delete, "memory:write", methods=["DELETE"]),
        ]

    async def set(self, request: Request) -> Response:
        """Write a value; answered when it is on this node's disk, or a majority's."""
        body = await self._context.read(request, ValueBody)
        namespace, key = await self._asked(request, WRITE)
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
        namespace, key = await self._asked(request, READ)
        return answer(request, self._shown(await self._memory().get(namespace, key)))

    async def delete(self, request: Request) -> Response:
        """Delete a value."""
        namespace, key = await self._asked(request, WRITE)
        version = request.query_params.get("if_version")
        call = partial(self._memory().delete, namespace, key, if_version=version)
        await self._context.attended(request, call)
        return answer(request, {})

    async def list(self, request: Request) -> Response:
        """Values in the order of their keys, at most 1,000."""
        namespace = request.path_params["namespace"]
        await self._require(caller_of(request), READ, namespace)
        asked = request.query_params
        limit = query_int(request, "limit", LIST_MAX, 1, LIST_MAX)
        found, more = await self._memory().list(
            namespace, asked.get("prefix", ""), after=asked.get("after", ""), limit=limit
        )
        return answer(request, MemoryPage(entries=[*map(self._shown, found)], more=more))

    async def watch(self, request: Request) -> Stream:
        """Keys as they change, from now on, or from a position that an earlier watch had."""
        namespace = request.path_params["namespace"]
        await self._require(caller_of(request), READ, namespace)
        prefix = request.query_params.get("prefix", "")
        since = request.query_params.get("since", "")
        return self._context.stream(
            request,
            self._news(caller_of(request), namespace, prefix, since),
            items_max=_WATCH_ITEMS_MAX,
        )

    async def _news(self, caller: Caller, namespace: str, prefix: str, since: str) -> Items:
        memory = self._memory()
        with self._watches.one_more():
            async with memory.watch(namespace, prefix, since) as watch:
                lagged, watch.lagged = watch.lagged, False
                yield MemoryNews(namespace=namespace, position=watch.position, lagged=lagged)
                while True:
                    key = await watch.receive()
                    await self._require(caller, READ, namespace)  # It may be another's by now.
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
        """Make a namespace that is strong, a cache, or has a policy; answered when it is."""
        name = request.path_params["namespace"]
        caller_of(request).require(WRITE, name)
        body = await self._context.read(request, NamespaceBody)
        if body.says_more:
            caller_of(request).require(_MANAGE, name)
        await self._check_who(body.readers, body.writers)
        call = partial(
            self._memory().namespaces.make,
            name,
            body.consistency,
            by=caller_of(request).name,
            entries_max=body.entries_max,
            bytes_max=body.bytes_max,
            copies=body.copies,
            policy=body.policy,
        )
        with self._context.noted(request, "memory.made", name, _told(body)):
            made = await self._context.attended(request, call)
        return answer(request, await self._promised(name, made))

    async def change(self, request: Request) -> Response:
        """Change the policy of a namespace; every node in reach follows within two seconds."""
        name = request.path_params["namespace"]
        caller_of(request).require(_MANAGE, name)
        body = await self._context.read(request, PolicyBody)
        await self._check_who(body.readers or (), body.writers or ())
        by = caller_of(request).name
        call = partial(self._memory().change, name, body, by=by, evict=body.evict)
        with self._context.noted(request, "memory.policy", name, _told(body)):
            made = await self._context.attended(request, call)
        return answer(request, await self._promised(name, made))

    async def _check_who(self, readers: Who, writers: Who) -> None:
        """Raises BadRequest."""
        if readers or writers:
            access = self._services.need(self._services.access)
            check_who((*readers, *writers), [one.name for one in await access.keys()])

    async def _promised(self, name: str, found: Namespace) -> MemoryNamespace:
        left_over = await self._memory().namespaces.left_over(name) if found.is_elsewhere else 0
        return MemoryNamespace(
            name=name,
            consistency=found.consistency.value,
            entries_max=found.entries_max,
            bytes_max=found.bytes_max,
            copies=found.copies,
            ttl_s=found.ttl_ms / 1_000,
            type=found.type.value,
            readers=[*found.readers],
            writers=[*found.writers],
            created_by=found.created_by,
            created_at_ms=found.created_ms,
            node=self._services.name_of(found.node),
            left_over=left_over,
        )

    async def _asked(self, request: Request, permission: str) -> tuple[str, str]:
        namespace, key = request.path_params["namespace"], request.path_params["key"]
        await self._require(caller_of(request), permission, namespace)
        return namespace, key

    async def _require(self, caller: Caller, permission: str, namespace: str) -> None:
        """Raises Forbidden, BadRequest."""
        caller.require(permission, namespace)
        require_in(caller, permission, namespace, await self._memory().namespaces.of(namespace))

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


def _told(body: NamespaceBody | PolicyBody) -> str:
    """What is asked for, for the audit log."""
    given = msgspec.to_builtins(body)
    told = " ".join(f"{field}={value}" for field, value in given.items() if value)
    return told[:_TOLD_CHARS_MAX]
