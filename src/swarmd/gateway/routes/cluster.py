"""The node and the swarm: health, status, members, doctor, config, stop, leave."""

from __future__ import annotations

import os
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from swarmd.base.errors import NotReady
from swarmd.gateway import doctor, shapes
from swarmd.gateway.access.gate import ANYBODY
from swarmd.gateway.context import ApiRoute, Context
from swarmd.gateway.examination import Health, gather_facts
from swarmd.gateway.http import answer
from swarmd.gateway.status import members, status


class LeaveBody(msgspec.Struct, forbid_unknown_fields=True):
    force: bool = False


class Cluster:
    """The endpoints about the node and its swarm."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        api = "/api/v1"
        return [
            route("/health", self.health, ANYBODY),
            route("/ready", self.ready, ANYBODY),
            route("/metrics", self.metrics, "metrics:read"),
            route(f"{api}/status", self.status, "cluster:read"),
            route(f"{api}/members", self.members, "cluster:read"),
            route(f"{api}/doctor", self.examine, "cluster:read"),
            route(f"{api}/config", self.config, "config:read"),
            route(f"{api}/stop", self.stop, "node:manage", methods=["POST"]),
            route(f"{api}/leave", self.leave, "node:manage", methods=["POST"]),
        ]

    async def health(self, request: Request) -> Response:
        """The process lives. Its wall clock lets others see how far apart clocks are."""
        node = self._services.config.node_name
        return answer(request, Health(node, self._services.clock.wall_ms()))

    async def ready(self, request: Request) -> Response:
        """200 if the node takes work, else 503 with the reason."""
        reason = self._services.control.not_ready()
        if reason:
            raise NotReady(reason)
        return answer(request, shapes.Done(message="ready"))

    async def metrics(self, request: Request) -> Response:
        render = self._services.need(self._services.metrics)
        return PlainTextResponse(render(), media_type="text/plain; version=0.0.4")

    async def status(self, request: Request) -> Response:
        return answer(request, await status(self._services))

    async def members(self, request: Request) -> Response:
        return answer(request, members(self._services))

    async def config(self, request: Request) -> Response:
        found = [
            shapes.SettingInfo(key=one.key, value=one.value, source=one.source)
            for one in self._services.config.describe()
        ]
        return answer(request, found)

    # ---- the end ---------------------------------------------------------------------

    async def stop(self, request: Request) -> Response:
        await self._context.read(request, dict[str, Any])
        self._context.note(request, "node.stop", self._services.config.node_name)
        self._services.control.stop()
        return answer(
            request,
            shapes.Done(message=f"{self._services.config.node_name} stops", pid=os.getpid()),
        )

    async def leave(self, request: Request) -> Response:
        body = await self._context.read(request, LeaveBody)
        with self._context.noted(request, "node.leave", self._services.config.node_name):
            warnings = await self._services.control.leave(force=body.force)
        message = f"{self._services.config.node_name} leaves the swarm"
        done = shapes.Done(message=message, warnings=list(warnings), pid=os.getpid())
        return answer(request, done)

    async def examine(self, request: Request) -> Response:
        """What keeps the node from its work or could; asks members, and takes up to 3 s."""
        facts = await gather_facts(self._services, self._context.config.ask_timeout_s)
        report = shapes.DoctorReport(node=facts.node, checks=doctor.examine(facts))
        return answer(request, report)
