"""Locks, elections, barriers and counters.

A request that waits does so for 30 s at most. With `keep` the place stays when its time is
over: the answer is `waiting`, and the next request, at this node or another, goes on with the
answer's `lease` within the TTL. Without it a place that did not get its turn is left, and the
answer is an error that names who holds. `request` makes repeating the first one harmless.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from swarmd.base.errors import (
    BarrierMismatch,
    LockLost,
    TooManyWaiters,
)
from swarmd.gateway import shapes
from swarmd.gateway.access.gate import caller_of
from swarmd.gateway.context import ApiRoute, Context, query_int
from swarmd.gateway.http import answer
from swarmd.state.recipes.records import REQUEST_BYTES_MAX
from swarmd.state.recipes.service import Kind, Line, Place, Recipes, Standing, not_in_time

# Longest wait of one request; clients go on with the next one.
WAIT_MS_MAX: Final = 30_000
TTL_MS: Final = 15_000
_LEASE_MAX: Final = 2**63 - 1
_PATHS: Final = {Kind.LOCK: "locks", Kind.ELECTION: "elections", Kind.BARRIER: "barriers"}

Lease = Annotated[int, Meta(ge=0, le=_LEASE_MAX)]


class EnterBody(msgspec.Struct, forbid_unknown_fields=True):
    """`lease`: go on with the place that has it. `value`: a leader's; `count`: a barrier's."""

    owner: str = ""
    ttl_ms: Annotated[int, Meta(ge=0, le=_LEASE_MAX)] = TTL_MS
    wait_ms: Annotated[int, Meta(ge=0, le=WAIT_MS_MAX)] = 0
    keep: bool = False
    lease: Lease = 0
    request: Annotated[bytes, Meta(max_length=REQUEST_BYTES_MAX)] = b""
    value: bytes = b""
    count: int = 0


class LeaseBody(msgspec.Struct, forbid_unknown_fields=True):
    lease: Lease


class AddBody(msgspec.Struct, forbid_unknown_fields=True):
    delta: int = 1


class RecipeRoutes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        counter = "/api/v1/counters/{name}"
        routes = [
            route(counter, self.count_of, "kv:read"),
            route(counter, self.count, "kv:write", methods=["POST"]),
        ]
        # A counter is a key by its name, and allowed as one.
        for kind, path in _PATHS.items():
            one = f"/api/v1/{path}/{{name}}"
            routes += [
                route(f"/api/v1/{path}", partial(self.list, kind), f"{kind.noun}:read"),
                route(one, partial(self.show, kind), f"{kind.noun}:read"),
                route(one, partial(self.enter, kind), f"{kind.noun}:write", methods=["POST"]),
                route(
                    f"{one}/renew",
                    partial(self.renew, kind),
                    f"{kind.noun}:write",
                    methods=["POST"],
                ),
                route(
                    f"{one}/release",
                    partial(self.release, kind),
                    f"{kind.noun}:write",
                    methods=["POST"],
                ),
            ]
        return routes

    @property
    def _recipes(self) -> Recipes:
        return self._services.need(self._services.recipes)

    # ---- taking part ------------------------------------------------------------------

    async def enter(self, kind: Kind, request: Request) -> Response:
        """Take a place, or go on with one, and wait for its turn."""
        body = await self._context.read(request, EnterBody)
        name, recipes = _named(request, f"{kind.noun}:write"), self._recipes
        turn = partial(_turn, recipes, kind, name, body)
        standing = await self._context.attended(request, turn)
        return answer(request, _standing(standing))

    async def renew(self, kind: Kind, request: Request) -> Response:
        """Give the place its whole TTL again; count it from when this request was sent."""
        body = await self._context.read(request, LeaseBody)
        name = _named(request, f"{kind.noun}:write")
        standing = await self._recipes.resume(kind, name, body.lease)
        return answer(request, shapes.Done(message=f"renewed for {standing.place.ttl_s:g} s"))

    async def release(self, kind: Kind, request: Request) -> Response:
        body = await self._context.read(request, LeaseBody)
        name = _named(request, f"{kind.noun}:write")
        await self._recipes.leave(kind, name, body.lease)
        return answer(request, shapes.Done(message=f"{kind.noun} {name} is given up"))

    # ---- looking ----------------------------------------------------------------------

    async def list(self, kind: Kind, request: Request) -> Response:
        """Those with somebody in them, by name."""
        may = caller_of(request).may
        lines = [one for one in await self._recipes.all(kind) if may(f"{kind.noun}:read", one.name)]
        return answer(request, [_line(line, whole=False) for line in lines])

    async def show(self, kind: Kind, request: Request) -> Response:
        """One line; with `after` and `wait_ms`, as soon as its first has another fence."""
        name, recipes = _named(request, f"{kind.noun}:read"), self._recipes
        wait_ms = query_int(request, "wait_ms", 0, 0, WAIT_MS_MAX)
        if not wait_ms:
            return answer(request, _line(await recipes.look(kind, name), whole=True))
        after = query_int(request, "after", 0, 0, _LEASE_MAX)
        look = partial(recipes.observe, kind, name, after=after, wait_s=wait_ms / 1_000)
        line = await self._context.attended(request, look)
        return answer(request, _line(line, whole=True))

    # ---- counters ---------------------------------------------------------------------

    async def count(self, request: Request) -> Response:
        body = await self._context.read(request, AddBody)
        name = _named(request, "kv:write")
        value = await self._recipes.count(name, body.delta)
        return answer(request, shapes.CounterInfo(name=name, value=value))

    async def count_of(self, request: Request) -> Response:
        name = _named(request, "kv:read")
        value = await self._recipes.count_of(name)
        return answer(request, shapes.CounterInfo(name=name, value=value))


def _named(request: Request, permission: str) -> str:
    """The name that the path gives, if the caller may. Raises Forbidden."""
    name: str = request.path_params["name"]
    caller_of(request).require(permission, name)
    return name


async def _turn(recipes: Recipes, kind: Kind, name: str, body: EnterBody) -> Standing:
    if body.lease:
        standing = await recipes.resume(kind, name, body.lease)
    else:
        standing = await recipes.enter(
            kind,
            name,
            body.owner,
            ttl_s=body.ttl_ms / 1_000,
            value=body.value,
            request=body.request,
            count=body.count,
        )
    place = standing.place
    try:
        standing = await recipes.wait(standing, body.wait_ms / 1_000)
    except LockLost:
        raise
    except (TooManyWaiters, BarrierMismatch):
        recipes.leave_soon(place)
        raise
    except BaseException:
        if not body.keep:
            recipes.leave_soon(place)
        raise
    if not standing.fence and not body.keep:
        recipes.leave_soon(place)
        raise not_in_time(standing)
    return standing


def _standing(standing: Standing) -> shapes.Standing:
    place = standing.place
    got = "open" if place.kind is Kind.BARRIER else "held"
    return shapes.Standing(
        name=place.name,
        state=got if standing.fence else "waiting",
        lease=place.lease,
        key=place.key.decode(),
        ttl_ms=place.ticket.ttl_ms,
        fence=standing.fence,
        ahead=standing.ahead,
        holder=_place(standing.holder) if standing.holder is not None else None,
    )


def _line(line: Line, *, whole: bool) -> shapes.LineInfo:
    """A line as the API tells it; who has passed a barrier is no longer in it."""
    places = [place for place in line.places if not place.ticket.opened]
    return shapes.LineInfo(
        name=line.name,
        holder=_place(places[0]) if places else None,
        waiting=max(len(places) - 1, 0),
        line=[_place(place) for place in places] if whole else [],
        count=places[0].ticket.count if places else 0,
    )


def _place(place: Place) -> shapes.PlaceInfo:
    ticket = place.ticket
    return shapes.PlaceInfo(
        owner=ticket.owner,
        lease=place.lease,
        revision=place.revision,
        ttl_ms=ticket.ttl_ms,
        asked_ms=ticket.asked_ms,
        value=ticket.value,
    )
