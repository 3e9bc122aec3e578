"""Leases: keys written with one go when it ends, all under one revision."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from swarmd.base.errors import BadRequest, BadTtl
from swarmd.base.limits import LEASE_TTL_MAX_MS
from swarmd.gateway import shapes
from swarmd.gateway.context import ApiRoute, Context
from swarmd.gateway.http import answer
from swarmd.state.raft.messages import (
    USER_PREFIX,
    GrantLease,
    LeaseInfo,
    Operation,
    OpResult,
    RenewLease,
    RevokeLease,
)

_ID_CHARS_MAX = 19


class GrantBody(msgspec.Struct, forbid_unknown_fields=True):
    ttl_s: float


class LeaseRoutes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        path = "/api/v1/leases"
        return [
            route(path, self.list, "lease:read"),
            route(path, self.grant, "lease:write", methods=["POST"]),
            route(path + "/{id}", self.show, "lease:read"),
            route(path + "/{id}", self.revoke, "lease:write", methods=["DELETE"]),
            route(path + "/{id}/renew", self.renew, "lease:write", methods=["POST"]),
        ]

    async def list(self, request: Request) -> Response:
        """Every lease that lives, the oldest first."""
        store = self._services.need(self._services.store)
        return answer(request, [_shape(one) for one in await store.leases()])

    async def show(self, request: Request) -> Response:
        """One lease and the first 1,000 of its keys."""
        store = self._services.need(self._services.store)
        info, keys = await store.lease(_id(request))
        return answer(request, _shape(info, keys))

    async def grant(self, request: Request) -> Response:
        body = await self._context.read(request, GrantBody)
        # Infinity and NaN have no milliseconds; what is too long is refused in the store's words.
        if not abs(body.ttl_s) * 1_000 <= 2 * LEASE_TTL_MAX_MS:
            raise BadTtl(f"a lease of {body.ttl_s:g} s; allowed are 1 s to 24 h")
        ttl_ms = round(body.ttl_s * 1_000)
        result = await self._propose(GrantLease(ttl_ms))
        return answer(request, _lasting(result.revision, ttl_ms), status=201)

    async def renew(self, request: Request) -> Response:
        lease = _id(request)
        result = await self._propose(RenewLease(lease))
        return answer(request, _lasting(lease, int(result.value or b"0")))

    async def revoke(self, request: Request) -> Response:
        """End the lease; its keys go with it."""
        lease = _id(request)
        await self._propose(RevokeLease(lease))
        return answer(request, shapes.Done(message=f"lease {lease} is revoked"))

    async def _propose(self, op: Operation) -> OpResult:
        store = self._services.need(self._services.store)
        [result] = await store.propose([op])
        return result.raise_for_error()


def _id(request: Request) -> int:
    text = request.path_params["id"]
    if not (text.isascii() and text.isdigit() and len(text) <= _ID_CHARS_MAX):
        raise BadRequest(f"a lease is named by a number, not {text!r}")
    return int(text)


def _lasting(lease: int, ttl_ms: int) -> shapes.LeaseInfo:
    return shapes.LeaseInfo(id=lease, ttl_s=ttl_ms / 1_000, left_s=ttl_ms / 1_000)


def _shape(info: LeaseInfo, keys: tuple[bytes, ...] = ()) -> shapes.LeaseInfo:
    names = [key.decode("utf-8", "replace") for key in keys]
    prefix = USER_PREFIX.decode()
    return shapes.LeaseInfo(
        id=info.id,
        ttl_s=info.ttl_ms / 1_000,
        left_s=info.left_ms / 1_000,
        count=info.keys,
        keys=[name.removeprefix(prefix) for name in names if name.startswith(prefix)],
        others=[name for name in names if not name.startswith(prefix)],
    )
