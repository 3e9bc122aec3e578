"""Jobs: submit, look, follow, result, cancel."""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from swarmd.base.errors import BadRequest, Conflict, from_code
from swarmd.gateway import shapes
from swarmd.gateway.access.gate import caller_of
from swarmd.gateway.access.rules import Caller
from swarmd.gateway.context import ApiRoute, Context
from swarmd.gateway.http import Items, Stream, answer, payload_out
from swarmd.gateway.routes.tasks import BlobBody
from swarmd.gateway.services import Services
from swarmd.state.blobs.messages import BlobRef
from swarmd.tasks.messages import JobView
from swarmd.tasks.spec import (
    ITEMS_MAX,
    Item,
    JobSpec,
    JobState,
    Manifest,
    StageKind,
    StageSpec,
    Stored,
    check_stages,
)


class StageBody(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    agent: str
    kind: StageKind = StageKind.MAP


class JobBody(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    stages: list[StageBody]
    priority: int = 0


class ItemBody(msgspec.Struct, forbid_unknown_fields=True):
    name: str = ""
    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    blob: BlobBody | None = None


class SubmitJobBody(msgspec.Struct, forbid_unknown_fields=True):
    job: JobBody
    items: Annotated[list[ItemBody], Meta(max_length=ITEMS_MAX)]
    key: str


class JobRoutes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        path = "/api/v1/jobs"
        return [
            route(path, self.list, "task:read"),
            route(path, self.submit, "task:submit", methods=["POST"]),
            route(f"{path}/{{id}}", self.show, "task:read"),
            route(f"{path}/{{id}}/events", self.events, "task:read"),
            route(f"{path}/{{id}}/result", self.result, "task:read"),
            route(f"{path}/{{id}}/cancel", self.cancel, "task:cancel", methods=["POST"]),
        ]

    async def submit(self, request: Request) -> Response:
        """Submit a job with all its items; answered when it is durable."""
        body = await self._context.read(request, SubmitJobBody)
        for stage in body.job.stages:
            caller_of(request).require("task:submit", stage.agent)
        tasks = self._services.need(self._services.tasks)
        stages = tuple(StageSpec(one.name, one.agent, one.kind) for one in body.job.stages)
        check_stages(stages)
        values = await self._context.values_of(request, [_input(one) for one in body.items])
        items = [Item(one.name, value) for one, value in zip(body.items, values, strict=True)]
        blobs = self._services.need(self._services.blobs)
        manifest = await blobs.put(msgspec.msgpack.encode(Manifest(tuple(items))))
        spec = JobSpec(
            name=body.job.name,
            key=body.key,
            stages=stages,
            manifest=manifest,
            item_count=len(items),
            blobs=tuple(
                dict.fromkeys(one.payload.blob for one in items if isinstance(one.payload, Stored))
            ),
            priority=body.job.priority,
        )
        agents = ", ".join(dict.fromkeys(stage.agent for stage in stages))
        with self._context.noted(request, "job.submitted", agents, f"{len(items)} items"):
            view = await tasks.submit_job(spec)
        return answer(request, shape(self._services, view), status=201)

    async def list(self, request: Request) -> Response:
        tasks = self._services.need(self._services.tasks)
        caller = caller_of(request)
        found = [one for one in await tasks.jobs() if _may(caller, "task:read", one)]
        return answer(request, [shape(self._services, one) for one in found])

    async def show(self, request: Request) -> Response:
        return answer(request, shape(self._services, await self._job(request, "task:read")))

    async def cancel(self, request: Request) -> Response:
        tasks = self._services.need(self._services.tasks)
        job_id = (await self._job(request, "task:cancel")).job_id
        with self._context.noted(request, "job.cancelled", job_id):
            view = await tasks.cancel_job(job_id)
        return answer(request, shape(self._services, view))

    async def _job(self, request: Request, permission: str) -> JobView:
        """The job of the path. Raises NotFound, Forbidden."""
        tasks = self._services.need(self._services.tasks)
        view = await tasks.job(request.path_params["id"])
        caller = caller_of(request)
        if not _may(caller, permission, view):
            raise caller.refusal(permission)
        return view

    async def events(self, request: Request) -> Stream:
        """The job whenever it moved, until it has ended."""
        job_id = (await self._job(request, "task:read")).job_id
        return self._context.stream(request, self._events(job_id))

    async def _events(self, job_id: str) -> Items:
        tasks = self._services.need(self._services.tasks)
        async with aclosing(tasks.job_events(job_id)) as views:  # type: ignore[type-var]
            async for view in views:
                yield shape(self._services, view)

    async def result(self, request: Request) -> Response:
        """What the last stage gave. Refused with the job's state while there is nothing."""
        view = await self._job(request, "task:read")
        if view.state is not JobState.SUCCEEDED or view.result is None:
            cause = f": {view.code}: {view.message}" if view.code else ""
            raise Conflict(f"job {view.job_id} is {view.state} and has no result{cause}")
        raw = await self._context.bytes_of(view.result)
        return answer(request, {"result": payload_out(request, raw)})


def _may(caller: Caller, permission: str, view: JobView) -> bool:
    """A job is its stages' agents: who may not see all of them may not see it."""
    return all(caller.may(permission, stage.agent) for stage in view.stages)


def _input(body: ItemBody) -> tuple[msgspec.Raw | None, BlobRef | None]:
    raw = body.input if isinstance(body.input, msgspec.Raw) else None
    if (raw is None) == (body.blob is None):
        raise BadRequest("an item has either an input or a blob, one of the two")
    return raw, body.blob.ref if body.blob is not None else None


def shape(services: Services, view: JobView) -> shapes.JobInfo:
    """A job as the API shows it."""
    stages = [
        {
            "name": one.name,
            "agent": one.agent,
            "kind": str(one.kind),
            "total": one.total,
            "done": one.done,
            "failed": one.failed,
            "running": one.running,
        }
        for one in view.stages
    ]
    done = sum(one.done for one in view.stages)
    error = None
    if view.code:
        known = from_code(view.code, view.message)
        error = shapes.ErrorInfo(code=view.code, message=view.message, retryable=known.retryable)
    return shapes.JobInfo(
        id=view.job_id,
        name=view.name,
        state=str(view.state),
        total=sum(one.total for one in view.stages),
        done=done,
        failed=sum(one.failed for one in view.stages),
        stages=stages,
        attempts=view.attempts,
        retries=max(0, view.attempts - done),
        created_ms=services.wall_ms_of(view.created_ms),
        ended_ms=services.wall_ms_of(view.ended_ms),
        error=error,
    )
