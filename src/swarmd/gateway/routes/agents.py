"""Agents: deploy, list, show, remove, their instances and logs."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from swarmd.agents.spec import BusRights, check_spec
from swarmd.base.ids import to_text
from swarmd.gateway import shapes
from swarmd.gateway.access.gate import caller_of
from swarmd.gateway.access.rules import Caller
from swarmd.gateway.context import ApiRoute, Context, query_flag
from swarmd.gateway.http import Items, Stream, answer
from swarmd.gateway.services import AgentRecord


class DeployBody(msgspec.Struct, forbid_unknown_fields=True):
    spec: dict[str, Any]
    bundle: bytes
    replace: bool = False


class AgentRoutes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        api = "/api/v1"
        return [
            route(f"{api}/agents", self.list, "agent:read"),
            route(f"{api}/agents", self.deploy, "agent:deploy", methods=["POST"]),
            route(f"{api}/agents/{{name}}/logs", self.logs, "agent:logs"),
            route(f"{api}/agents/{{name}}", self.show, "agent:read"),
            route(f"{api}/agents/{{name}}", self.remove, "agent:remove", methods=["DELETE"]),
            route(f"{api}/instances", self.instances, "agent:read"),
        ]

    async def deploy(self, request: Request) -> Response:
        """Deploy a packed agent; when this is answered its code is safe on a majority."""
        body = await self._context.read(request, DeployBody)
        agents = self._services.need(self._services.agents)
        spec = check_spec(body.spec)
        caller = caller_of(request)
        caller.require("agent:deploy", spec.name)
        for name in spec.secrets:
            caller.require("secret:use", name)
        _require_bus(caller, spec.bus)
        with self._context.noted(request, "agent.deployed", f"{spec.name} {spec.version}"):
            record = await agents.deploy(spec, body.bundle, replace=body.replace)
        return answer(request, _shape(record), status=201)

    async def list(self, request: Request) -> Response:
        agents = self._services.need(self._services.agents)
        may = caller_of(request).may
        found = [one for one in await agents.list() if may("agent:read", one.spec.name)]
        return answer(request, [_shape(one) for one in found])

    async def show(self, request: Request) -> Response:
        name = request.path_params["name"]
        caller_of(request).require("agent:read", name)
        agents = self._services.need(self._services.agents)
        return answer(request, _shape(await agents.get(name)))

    async def remove(self, request: Request) -> Response:
        name = request.path_params["name"]
        caller_of(request).require("agent:remove", name)
        agents = self._services.need(self._services.agents)
        with self._context.noted(request, "agent.removed", name):
            await agents.remove(name)
        return answer(request, shapes.Done(message=f"removed {name}"))

    async def instances(self, request: Request) -> Response:
        """Running copies, asked live from every member; those that do not answer are named."""
        agents = self._services.need(self._services.agents)
        found = await agents.instances()
        name_of, may = self._services.name_of, caller_of(request).may
        shown = [
            shapes.InstanceInfo(
                node=name_of(node),
                agent=one.agent,
                version=one.version,
                pid=one.pid,
                state=str(one.state),
                tasks=[one.task_id] if one.task_id else [],
            )
            for node, one in found.instances
            if may("agent:read", one.agent)
        ]
        missing = [name_of(node) for node in found.missing]
        return answer(request, shapes.Instances(instances=shown, missing=missing))

    async def logs(self, request: Request) -> Stream:
        """Log lines as a stream; with ?follow=1 it goes on as new ones come."""
        name = request.path_params["name"]
        caller_of(request).require("agent:logs", name)
        agents = self._services.need(self._services.agents)
        await agents.get(name)  # An unknown agent is an error, not a silent stream.
        follow = query_flag(request, "follow")
        return self._context.stream(request, self._lines(name, follow))

    async def _lines(self, name: str, follow: bool) -> Items:
        agents = self._services.need(self._services.agents)
        name_of = self._services.name_of
        async for node, line in agents.logs(name, follow=follow):
            if line is None:
                yield shapes.LogLine(node=name_of(node), agent=name, text="", stream="missing")
                continue
            yield shapes.LogLine(
                node=name_of(node),
                agent=name,
                text=line.text,
                task=line.task_id,
                wall_ms=line.wall_ms,
            )


def _require_bus(caller: Caller, rights: BusRights) -> None:
    """Nobody deploys an agent that may do on the bus what they may not themselves."""
    for permission, topics in (
        ("bus:publish", rights.publish),
        ("bus:read", rights.subscribe),
    ):
        for topic in topics:
            if topic.endswith("*"):
                caller.require_below(permission, topic[:-1])
            else:
                caller.require(permission, topic)


def _shape(record: AgentRecord) -> shapes.AgentInfo:
    spec = record.spec
    return shapes.AgentInfo(
        name=spec.name,
        version=spec.version,
        description=spec.description,
        runtime=spec.runtime,
        entry=spec.entry,
        bundle=to_text(record.bundle.hash),
        bundle_bytes=record.bundle.size,
        spec=msgspec.to_builtins(spec) | {"env": record.environment.shown()},
    )
