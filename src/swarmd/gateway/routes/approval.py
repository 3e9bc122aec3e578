"""Nodes that ask to join without a token, over the API: who waits, and denying one.

To approve one is to sign an entry of the authority log, which happens where the admin key is
(`cli/commands/approval.py`) and goes the way of every entry. What members list is verified
here, so that no line shows a name or a fingerprint that its own key did not sign.
"""

from __future__ import annotations

from typing import Final

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import Response

from swarmd.base.errors import BadRequest, SwarmError
from swarmd.base.ids import NodeId
from swarmd.gateway import shapes
from swarmd.gateway.access.gate import caller_of
from swarmd.gateway.context import ApiRoute, Context
from swarmd.gateway.http import answer
from swarmd.identity.fingerprints import (
    Fingerprint,
    door_of,
    fingerprint_of_node,
    parse_fingerprint,
)
from swarmd.identity.requests import open_request
from swarmd.mesh.approval.messages import Waiting
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import DROPPED

_LISTED_MAX: Final = 256
_HOST_CHARS_MAX: Final = 64
_WAITED_S_MAX: Final = 1e6

log = get_logger("gateway")


class DenyBody(msgspec.Struct, forbid_unknown_fields=True):
    """`fingerprint` in hex or in words, the whole of it."""

    fingerprint: str


class ApprovalRoutes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        api = "/api/v1/join-requests"
        return [
            route(api, self.waiting, "cluster:read"),
            route(f"{api}/deny", self.deny, "node:approve", methods=["POST"]),
        ]

    async def waiting(self, request: Request) -> Response:
        """Who waits at any member; members that do not answer in time are named."""
        found = await self._services.need(self._services.mesh).approvals.waiting()
        by_request: dict[bytes, list[tuple[NodeId, Waiting]]] = {}
        for node, one in found.waiting:
            if one.request in by_request or len(by_request) < _LISTED_MAX:
                by_request.setdefault(one.request, []).append((node, one))
        shown: dict[str, shapes.JoinRequestInfo] = {}
        for raw, heard in by_request.items():
            await trio.lowlevel.checkpoint()
            info = self._shape(raw, heard)
            if info is not None:
                before = shown.get(info.fingerprint)
                if before is None or info.silent_s < before.silent_s:
                    shown[info.fingerprint] = info
        ordered = sorted(shown.values(), key=lambda one: (-one.waited_s, one.fingerprint))
        missing = [self._services.name_of(node) for node in found.missing]
        return answer(request, shapes.JoinRequests(waiting=ordered, missing=missing))

    async def deny(self, request: Request) -> Response:
        """Have every member refuse a node for an hour."""
        body = await self._context.read(request, DenyBody)
        fingerprint = parse_fingerprint(body.fingerprint)
        if not fingerprint.is_whole:
            raise BadRequest("name the node by its whole fingerprint")
        approvals = self._services.need(self._services.mesh).approvals
        with self._context.noted(request, "node.denied", fingerprint.hex):
            waited, missing = await approvals.deny(fingerprint)
        log.info("join request denied", fingerprint=fingerprint.hex, by=caller_of(request).name)
        names = [self._services.name_of(node) for node in missing]
        warnings = [f"{name} did not answer: there it may ask again" for name in names]
        if not waited:
            warnings.append("it was not waiting at any member that answered")
        done = shapes.Done(message=f"{fingerprint.hex} is denied for an hour", warnings=warnings)
        return answer(request, done)

    def _shape(
        self, raw: bytes, heard: list[tuple[NodeId, Waiting]]
    ) -> shapes.JoinRequestInfo | None:
        """None if a member listed what no node signed."""
        door = door_of(self._services.need(self._services.trust).swarm_id)
        try:
            request = open_request(raw, door)
        except SwarmError as error:
            DROPPED.labels("approval", error.code).inc()
            return None
        latest = min((one for _, one in heard), key=lambda one: one.silent_s)
        fingerprint: Fingerprint = fingerprint_of_node(door, request.public)
        return shapes.JoinRequestInfo(
            fingerprint=fingerprint.raw.hex(),
            words=fingerprint.words,
            name=request.name,
            address=latest.host[:_HOST_CHARS_MAX],
            waited_s=max(_sound_s(one.waited_s) for _, one in heard),
            silent_s=_sound_s(latest.silent_s),
            asked=sorted({self._services.name_of(node) for node, _ in heard}),
            request=raw,
        )


def _sound_s(told_s: float) -> float:
    """A time that a member told, within bounds; what is no number becomes the longest."""
    return max(0.0, min(_WAITED_S_MAX, told_s))
