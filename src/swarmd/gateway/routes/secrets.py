"""Secrets over the API: set, listed, deleted. A value goes in and never comes out again."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from swarmd.gateway import shapes
from swarmd.gateway.access.gate import caller_of
from swarmd.gateway.context import ApiRoute, Context, query_flag
from swarmd.gateway.http import answer
from swarmd.state.secrets.service import Secrets

Names = list[str]


class SecretBody(msgspec.Struct, forbid_unknown_fields=True):
    value: str

    def __repr__(self) -> str:
        return "SecretBody(...)"


class SecretRoutes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        one = "/api/v1/secrets/{name}"
        return [
            route("/api/v1/secrets", self.list, "secret:list"),
            route(one, self.set, "secret:set", methods=["PUT"]),
            route(one, self.delete, "secret:delete", methods=["DELETE"]),
        ]

    @property
    def _secrets(self) -> Secrets:
        return self._services.need(self._services.secrets)

    async def list(self, request: Request) -> Response:
        """The secrets by name, and which agents refer to each; never a value."""
        may, secrets = caller_of(request).may, self._secrets
        users = await self._users()
        shown = [
            shapes.SecretInfo(
                name=one.name,
                version=one.version,
                created_ms=self._services.wall_ms_of(one.made_ms),
                set_ms=self._services.wall_ms_of(one.set_ms),
                set_by=one.set_by,
                used_by=users.get(one.name, []),
                readable=secrets.opens(one),
            )
            for one in await secrets.list()
            if may("secret:list", one.name)
        ]
        return answer(request, shown)

    async def set(self, request: Request) -> Response:
        """Give a secret a value; agents that refer to it get it with their next process."""
        name, caller = request.path_params["name"], caller_of(request)
        caller.require("secret:set", name)
        body = await self._context.read(request, SecretBody)
        with self._context.noted(request, "secret.set", name):
            version = await self._secrets.set(name, body.value, caller.name)
        return answer(request, shapes.SecretSet(name=name, version=version))

    async def delete(self, request: Request) -> Response:
        """Delete a secret; refused while agents refer to it, unless with ?force=1."""
        name, caller = request.path_params["name"], caller_of(request)
        caller.require("secret:delete", name)

        async def users() -> Sequence[str]:
            return (await self._users()).get(name, [])

        force = query_flag(request, "force")
        with self._context.noted(request, "secret.deleted", name):
            await self._secrets.delete(name, caller.name, users, force=force)
        return answer(request, shapes.Done(message=f"the secret {name} is deleted"))

    async def _users(self) -> dict[str, Names]:
        """Agents by the secrets that they refer to."""
        found: dict[str, Names] = {}
        for record in await self._services.need(self._services.agents).list():
            for name in record.environment.secrets:
                found.setdefault(name, []).append(record.spec.name)
        return found
