"""API keys and sessions over the API, and who the API takes somebody for.

A key is drawn where it is to be used, or at the admin's terminal. Only its hash comes here.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from swarmd.gateway import shapes
from swarmd.gateway.access.gate import ANY_CALLER, caller_of
from swarmd.gateway.access.records import KeyRecord
from swarmd.gateway.access.rules import RULES_MAX
from swarmd.gateway.access.service import Access
from swarmd.gateway.context import ApiRoute, Context
from swarmd.gateway.http import answer
from swarmd.identity.sessions import SESSION_S_MAX


class KeyBody(msgspec.Struct, forbid_unknown_fields=True):
    """`hash` is base64 in JSON; `rules` come on top of what the role allows."""

    name: str
    hash: bytes
    role: str = ""
    rules: Annotated[list[str], Meta(max_length=RULES_MAX)] = []
    ttl_s: float = 0.0
    requests_per_min: int = 0


class SessionBody(msgspec.Struct, forbid_unknown_fields=True):
    ttl_s: int = SESSION_S_MAX


class AccessRoutes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        api = "/api/v1"
        return [
            route(f"{api}/keys", self.list, "key:read"),
            route(f"{api}/keys", self.create, "key:manage", methods=["POST"]),
            route(f"{api}/keys/{{name}}", self.revoke, "key:manage", methods=["DELETE"]),
            route(f"{api}/sessions", self.open_session, ANY_CALLER, methods=["POST"]),
            route(f"{api}/caller", self.caller, ANY_CALLER),
        ]

    @property
    def _access(self) -> Access:
        return self._services.need(self._services.access)

    async def list(self, request: Request) -> Response:
        """All keys by name, also those that have expired; never a secret, which nobody has."""
        return answer(request, [self._shape(one) for one in await self._access.keys()])

    async def create(self, request: Request) -> Response:
        """Have the swarm know a key by the hash of its secret."""
        body = await self._context.read(request, KeyBody)
        allows = ", ".join(filter(None, (body.role, *body.rules)))
        with self._context.noted(request, "key.created", body.name, allows):
            record = await self._access.create(
                body.name,
                body.hash,
                role=body.role,
                rules=body.rules,
                ttl_s=body.ttl_s,
                requests_per_min=body.requests_per_min,
                creator=caller_of(request),
            )
        return answer(request, self._shape(record), status=201)

    async def revoke(self, request: Request) -> Response:
        """Have a key count no more, at every node in touch with the majority within moments."""
        name = request.path_params["name"]
        with self._context.noted(request, "key.revoked", name):
            await self._access.revoke(name, caller_of(request).name)
        return answer(request, shapes.Done(message=f"the key {name} counts no more"))

    async def open_session(self, request: Request) -> Response:
        """A token of 15 minutes at most that stands in for whoever asks."""
        body = await self._context.read(request, SessionBody)
        with self._context.noted(request, "session.opened", "", f"for {body.ttl_s} s"):
            text, session = self._access.open_session(caller_of(request), body.ttl_s)
        return answer(
            request, shapes.SessionInfo(token=text, caller=session.sub, expires_s=session.exp)
        )

    async def caller(self, request: Request) -> Response:
        caller = caller_of(request)
        found = shapes.CallerInfo(
            name=caller.name, rules=list(caller.rules), session=caller.session
        )
        return answer(request, found)

    def _shape(self, record: KeyRecord) -> shapes.KeyInfo:
        now_ms = self._services.need(self._services.store).store_time_ms()
        return shapes.KeyInfo(
            name=record.name,
            role=record.role,
            rules=list(record.rules),
            allows=list(record.allows),
            created_ms=self._services.wall_ms_of(record.created_ms),
            expires_ms=self._services.wall_ms_of(record.expires_ms),
            expired=bool(record.expires_ms) and record.expires_ms <= now_ms,
            requests_per_min=record.requests_per_min,
            created_by=record.created_by,
        )
