"""Values of caches that somebody computes once in the whole swarm.

A stream is a caller's place: it ends with the value, or it tells the caller's turn to compute it.
Then it goes on for as long as the turn lasts, and the turn is given back when the caller goes. The
result is brought by a request of its own, at any node.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from swarmd.base.errors import ComputeReplaced
from swarmd.gateway.access.among import READ, WRITE, require_in
from swarmd.gateway.access.gate import caller_of
from swarmd.gateway.context import ApiRoute, Context, Watches
from swarmd.gateway.http import Items, Stream, answer
from swarmd.gateway.shapes import Done
from swarmd.gateway.shapes_memory import MemoryTurn
from swarmd.memory.cache.service import COMPUTE_MAX_S, COMPUTE_S, Cache, Hit

_WAIT_S: Final = 60.0
_WAIT_MAX_S: Final = 3_600.0
_ITEMS_MAX: Final = 4


class TurnBody(msgspec.Struct, forbid_unknown_fields=True):
    """How long to wait for somebody else, and how long the caller may take, in seconds."""

    wait_s: Annotated[float, Meta(ge=0, le=_WAIT_MAX_S)] = _WAIT_S
    compute_s: Annotated[float, Meta(gt=0, le=COMPUTE_MAX_S)] = COMPUTE_S


class ResultBody(msgspec.Struct, forbid_unknown_fields=True):
    """What was computed under a fence; with `error`, why it was not."""

    fence: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    value: Any = None
    ttl_s: float | None = None
    error: str | None = None


class MemoryCacheRoutes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services
        self._turns = Watches(context.config.requests_max // 2)

    def routes(self) -> list[ApiRoute]:
        path = "/api/v1/memory-compute/{namespace}/{key:path}"
        route = self._context.route
        return [
            route(path, self.turn, "memory:write", methods=["POST"]),
            route(path, self.finish, "memory:write", methods=["PUT"]),
        ]

    async def turn(self, request: Request) -> Stream:
        """The value, or the caller's turn to compute it, for as long as it reads this."""
        namespace, key = await self._asked(request, READ, WRITE)
        body = await self._context.read(request, TurnBody)
        items = self._items(namespace, key, caller_of(request).name, body)
        return self._context.stream(request, items, items_max=_ITEMS_MAX)

    async def _items(self, namespace: str, key: str, by: str, body: TurnBody) -> Items:
        cache = self._cache()
        with self._turns.one_more():
            got = await cache.turn(namespace, key, by=by, wait_s=body.wait_s)
            if isinstance(got, Hit):
                yield MemoryTurn(state="hit", value=got.value)
                return
            try:
                yield MemoryTurn(state="compute", fence=got.fence)
                await cache.keep(got, body.compute_s)
                raise ComputeReplaced(
                    f"the turn to compute {key!r} is over: it lasts {body.compute_s:g} s, and "
                    "while a majority can be reached"
                )
            finally:
                cache.leave_soon(got)

    async def finish(self, request: Request) -> Response:
        """Keep what was computed, or tell those who wait why it was not."""
        namespace, key = await self._asked(request, WRITE)
        body = await self._context.read(request, ResultBody)
        by, cache = caller_of(request).name, self._cache()
        if body.error is not None:
            call = partial(cache.fail, namespace, key, body.fence, body.error, by=by)
            await self._context.attended(request, call)
            return answer(request, Done(message=f"those who wait for {key} are told"))
        keep = partial(
            cache.finish, namespace, key, body.fence, body.value, by=by, ttl_s=body.ttl_s
        )
        await self._context.attended(request, keep)
        return answer(request, Done(message=f"{key} is kept"))

    def _cache(self) -> Cache:
        return self._services.need(self._services.cache)

    async def _asked(self, request: Request, *permissions: str) -> tuple[str, str]:
        """Raises Forbidden: of the rules it takes one that lets write, of the namespace each."""
        namespace, key = request.path_params["namespace"], request.path_params["key"]
        caller = caller_of(request)
        caller.require(WRITE, namespace)
        record = await self._services.need(self._services.memory).namespaces.of(namespace)
        for permission in permissions:
            require_in(caller, permission, namespace, record)
        return namespace, key
