"""Agents: deploy, list, show, remove, their instances and logs."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from swarmd.agents.spec import check_spec
from swarmd.base.ids import to_text
from swarmd.gateway import shapes
from swarmd.gateway.context import Context, query_flag
from swarmd.gateway.http import Items, Stream, answer, guarded
from swarmd.gateway.services import AgentRecord


class DeployBody(msgspec.Struct, forbid_unknown_fields=True):
    spec: dict[str, Any]
    bundle: bytes
    replace: bool = False


class AgentRoutes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[Route]:
        make = partial(guarded, budget=self._context.budget)
        api = "/api/v1"
        return [
            Route(f"{api}/agents", make(self.list)),
            Route(f"{api}/agents", make(self.deploy), methods=["POST"]),
            Route(f"{api}/agents/{{name}}/logs", make(self.logs)),
            Route(f"{api}/agents/{{name}}", make(self.show)),
            Route(f"{api}/agents/{{name}}", make(self.remove), methods=["DELETE"]),
            Route(f"{api}/instances", make(self.instances)),
        ]

    async def deploy(self, request: Request) -> Response:
        """Deploy a packed agent; when this is answered its code is safe on a majority."""
        body = await self._context.read(request, DeployBody)
        agents = self._services.need(self._services.agents)
        spec = check_spec(body.spec)
        record = await agents.deploy(spec, body.bundle, replace=body.replace)
        return answer(request, _shape(record), status=201)

    async def list(self, request: Request) -> Response:
        agents = self._services.need(self._services.agents)
        return answer(request, [_shape(one) for one in await agents.list()])

    async def show(self, request: Request) -> Response:
        agents = self._services.need(self._services.agents)
        return answer(request, _shape(await agents.get(request.path_params["name"])))

    async def remove(self, request: Request) -> Response:
        agents = self._services.need(self._services.agents)
        name = request.path_params["name"]
        await agents.remove(name)
        return answer(request, shapes.Done(message=f"removed {name}"))

    async def instances(self, request: Request) -> Response:
        """Running copies, asked live from every member; those that do not answer are named."""
        agents = self._services.need(self._services.agents)
        found = await agents.instances()
        name_of = self._services.name_of
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
        ]
        missing = [name_of(node) for node in found.missing]
        return answer(request, shapes.Instances(instances=shown, missing=missing))

    async def logs(self, request: Request) -> Stream:
        """Log lines as a stream; with ?follow=1 it goes on as new ones come."""
        agents = self._services.need(self._services.agents)
        name = request.path_params["name"]
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
        spec=msgspec.to_builtins(spec),
    )
