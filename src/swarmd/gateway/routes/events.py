"""User events: send one to all members, list the latest, watch them as they come."""

from __future__ import annotations

from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from swarmd.base.errors import BadRequest
from swarmd.base.ids import to_text
from swarmd.base.names import check_name
from swarmd.gateway.access.gate import caller_of
from swarmd.gateway.context import ApiRoute, Context, Watches
from swarmd.gateway.http import Items, Stream, answer
from swarmd.gateway.shapes_events import EventInfo, EventNews
from swarmd.mesh.events.service import UserEvent, UserEvents, check_event

_NAMES_MAX = 64
# Of a client that does not read; its watch holds more.
_WATCH_ITEMS_MAX = 16


class EventBody(msgspec.Struct, forbid_unknown_fields=True):
    payload: str = ""


class EventRoutes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services
        self._watches = Watches(context.config.requests_max // 4)

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        return [
            route("/api/v1/events", self.latest, "event:read"),
            route("/api/v1/events/watch", self.watch, "event:read"),
            route("/api/v1/events/{name}", self.send, "event:send", methods=["POST"]),
        ]

    async def send(self, request: Request) -> Response:
        """Tell all members; answered when the event is on its way."""
        body = await self._context.read(request, EventBody)
        name = request.path_params["name"]
        check_event(name, body.payload)
        caller_of(request).require("event:send", name)
        with self._context.noted(request, "event.send", name):
            sent = await self._context.attended(
                request, partial(self._events().send, name, body.payload)
            )
        return answer(request, self._shown(sent))

    async def latest(self, request: Request) -> Response:
        """The latest events that this node knows and the caller may read, oldest first."""
        caller = caller_of(request)
        found = [one for one in self._events().recent() if caller.may("event:read", one.name)]
        return answer(request, [self._shown(one) for one in found])

    async def watch(self, request: Request) -> Stream:
        """Events of the names asked for, or of all, from now on."""
        names = list(dict.fromkeys(request.query_params.getlist("name")))
        if len(names) > _NAMES_MAX:
            raise BadRequest(f"name at most {_NAMES_MAX} events")
        caller = caller_of(request)
        for name in names:
            check_name(name, "user event")
            caller.require("event:read", name)
        if not names:
            caller.require("event:read")
        return self._context.stream(request, self._news(names), items_max=_WATCH_ITEMS_MAX)

    async def _news(self, names: list[str]) -> Items:
        events = self._events()
        with self._watches.one_more(), events.watch(*names) as watch:
            yield EventNews(names=names)
            async for event in watch:
                yield EventNews(event=self._shown(event), missed=watch.missed)

    def _events(self) -> UserEvents:
        return self._services.need(self._services.mesh).membership.events

    def _shown(self, event: UserEvent) -> EventInfo:
        return EventInfo(
            name=event.name,
            payload=event.payload,
            time=event.time,
            node=self._services.name_of(event.origin),
            node_id=to_text(event.origin),
            wall_ms=event.wall_ms,
        )
