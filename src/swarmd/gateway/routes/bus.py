"""The bus: publish to topics and to single subscribers, and watch topics."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from swarmd.base.errors import BadName, BadRequest, MalformedMessage
from swarmd.gateway.access.gate import caller_of
from swarmd.gateway.access.rules import Caller
from swarmd.gateway.context import ApiRoute, Context, Watches
from swarmd.gateway.http import Items, Stream, answer, payload_in, payload_out
from swarmd.gateway.shapes_bus import BusMessage, BusReached
from swarmd.mesh.bus.topics import DIRECT, check_filter, check_topic
from swarmd.wire.codec import unpack

_NIL = b"\xc0"
_TOPICS_MAX = 64
# Of a client that does not read; its inbox holds more.
_WATCH_ITEMS_MAX = 16


class PublishBody(msgspec.Struct, forbid_unknown_fields=True):
    """`sender`: the name of the subscriber to answer to, which begins with an @."""

    data: msgspec.Raw = msgspec.Raw(_NIL)
    sender: str = ""
    timeout_ms: Annotated[int, Meta(ge=1, le=60_000)] | None = None


class BusRoutes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services
        self._watches = Watches(context.config.requests_max // 4)

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        return [
            route("/api/v1/bus", self.watch, "bus:read"),
            route("/api/v1/bus/{topic:path}", self.publish, "bus:publish", methods=["POST"]),
        ]

    async def publish(self, request: Request) -> Response:
        """Publish; answered when every subscriber has the message in its inbox."""
        body = await self._context.read(request, PublishBody)
        topic, caller = check_topic(request.path_params["topic"]), caller_of(request)
        caller.require("bus:publish", topic)
        if body.sender:
            if not check_topic(body.sender).startswith(DIRECT):
                raise BadName("a sender is the name of a subscriber: @ and a name")
            caller.require("bus:read", body.sender)
        bus = self._services.need(self._services.bus)
        data = _NIL if bytes(body.data) in (b"", _NIL) else payload_in(request, body.data)
        call = partial(
            bus.publish,
            topic,
            data,
            sender=body.sender,
            timeout_s=None if body.timeout_ms is None else body.timeout_ms / 1_000,
        )
        reached = await self._context.attended(request, call)
        return answer(request, BusReached(topic=topic, reached=reached))

    async def watch(self, request: Request) -> Stream:
        """What is published to topics that fit one of `topic`, from now on."""
        topics = list(dict.fromkeys(request.query_params.getlist("topic")))
        if not 0 < len(topics) <= _TOPICS_MAX:
            raise BadRequest(
                f"name 1 to {_TOPICS_MAX} topics: ?topic=NAME, perhaps with a * at its end"
            )
        caller = caller_of(request)
        for topic in topics:
            _require_read(caller, check_filter(topic))
        items = self._messages(request, topics, f"a watch by {caller.name}")
        return self._context.stream(request, items, items_max=_WATCH_ITEMS_MAX)

    async def _messages(self, request: Request, topics: list[str], name: str) -> Items:
        bus = self._services.need(self._services.bus)
        with self._watches.one_more():
            async with bus.subscribe(topics, name=name) as subscription:
                yield BusMessage(topics=topics)
                async for one in subscription:
                    data = _shown(request, one.data)
                    yield BusMessage(topic=one.topic, sender=one.sender, data=data)


def _require_read(caller: Caller, topic: str) -> None:
    if topic.endswith("*"):
        caller.require_below("bus:read", topic[:-1])
    else:
        caller.require("bus:read", topic)


def _shown(request: Request, data: bytes) -> Any:
    """A message's value; what is none, as another member may have sent it, as bytes."""
    try:
        unpack(data)
    except MalformedMessage:
        return data
    return payload_out(request, data)
