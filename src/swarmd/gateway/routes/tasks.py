"""Tasks: submit in batches, look, cancel, and results as a stream. And blobs for large inputs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from swarmd.base.errors import BadRequest, NotFound, SwarmError, from_code
from swarmd.base.limits import SUBMIT_TASKS_MAX
from swarmd.gateway import shapes
from swarmd.gateway.access.gate import caller_of
from swarmd.gateway.context import ApiRoute, Context, query_int
from swarmd.gateway.http import Items, Stream, answer, payload_out
from swarmd.state.blobs.messages import BlobRef, Hash, Size
from swarmd.tasks.messages import PAGE_MAX, TaskView
from swarmd.tasks.spec import Inline, Mode, State, Stored, TaskRecord, TaskSpec

_STATES: Final = ", ".join(State)


class BlobBody(msgspec.Struct, forbid_unknown_fields=True):
    hash: Hash
    size: Size

    @property
    def ref(self) -> BlobRef:
        return BlobRef(self.hash, self.size)


class TaskBody(msgspec.Struct, forbid_unknown_fields=True):
    """One task. `input` is any JSON or msgpack value; `blob` one that was stored before."""

    agent: str
    key: str
    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    blob: BlobBody | None = None
    name: str = ""
    priority: int | None = None
    timeout_s: float | None = None
    retries: int | None = None
    mode: Mode | None = None
    strategy: str | None = None


class SubmitBody(msgspec.Struct, forbid_unknown_fields=True):
    tasks: Annotated[list[TaskBody], Meta(min_length=1, max_length=SUBMIT_TASKS_MAX)]


class IdsBody(msgspec.Struct, forbid_unknown_fields=True):
    ids: Annotated[list[str], Meta(max_length=SUBMIT_TASKS_MAX)]


class PutBlobBody(msgspec.Struct, forbid_unknown_fields=True):
    data: bytes


class TaskRoutes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        api = "/api/v1"
        return [
            route(f"{api}/blobs", self.put_blob, "blob:write", methods=["POST"]),
            route(f"{api}/tasks", self.list, "task:read"),
            route(f"{api}/tasks", self.submit, "task:submit", methods=["POST"]),
            route(f"{api}/tasks/results", self.results, "task:read", methods=["POST"]),
            route(f"{api}/tasks/cancel", self.cancel_many, "task:cancel", methods=["POST"]),
            route(f"{api}/tasks/{{id}}", self.show, "task:read"),
            route(f"{api}/tasks/{{id}}/cancel", self.cancel, "task:cancel", methods=["POST"]),
        ]

    async def put_blob(self, request: Request) -> Response:
        """Store a payload ahead of the request that names it: one msgpack value."""
        body = await self._context.read(request, PutBlobBody)
        ref = await self._services.need(self._services.blobs).put(body.data)
        return answer(request, shapes.BlobInfo(hash=ref.hash, size=ref.size))

    # ---- submit ----------------------------------------------------------------------

    async def submit(self, request: Request) -> Response:
        """Submit tasks. Answered when all that are accepted are durable; refused ones say why."""
        body = await self._context.read(request, SubmitBody)
        for agent in {one.agent for one in body.tasks}:
            caller_of(request).require("task:submit", agent)
        tasks = self._services.need(self._services.tasks)
        payloads = await self._context.values_of(request, [_input(one) for one in body.tasks])
        specs = [_spec(one, value) for one, value in zip(body.tasks, payloads, strict=True)]
        agents = sorted({one.agent for one in body.tasks})
        with self._context.noted(
            request, "task.submitted", ", ".join(agents), _count(len(specs), "task")
        ):
            answers = await tasks.submit(specs)
        copies = self._services.need(self._services.store).status().copies
        shown = [
            shapes.Submitted(
                id=one.task_id,
                created=one.created,
                copies=0 if one.code else copies,
                error=_error_info(from_code(one.code, one.message)) if one.code else None,
            )
            for one in answers
        ]
        return answer(request, shown)

    # ---- look ------------------------------------------------------------------------

    async def list(self, request: Request) -> Response:
        """A page of tasks without results, newest first; `after` of the answer continues."""
        query = request.query_params
        state = query.get("state", "")
        if state and state not in list(State):
            raise BadRequest(f"state {state!r} does not exist: one of {_STATES}")
        caller_of(request).require("task:read", query.get("agent") or None)
        tasks = self._services.need(self._services.tasks)
        found, after = await tasks.list(
            state=state,
            agent=query.get("agent", ""),
            job_id=query.get("job", ""),
            after=query.get("after", ""),
            limit=query_int(request, "limit", 100, 1, PAGE_MAX),
        )
        return answer(request, shapes.TaskPage(tasks=[self.shape(v) for v in found], after=after))

    async def show(self, request: Request) -> Response:
        """One task, with its result."""
        tasks = self._services.need(self._services.tasks)
        view = await tasks.get(request.path_params["id"])
        caller_of(request).require("task:read", view.record.spec.agent)
        return answer(request, self.shape(view, await self._result(request, view.record)))

    async def results(self, request: Request) -> Stream:
        """Each task once, as it ends. An unknown id comes with state "missing"."""
        body = await self._context.read(request, IdsBody)
        return self._context.stream(request, self._results(request, body.ids))

    async def _results(self, request: Request, ids: Sequence[str]) -> Items:
        tasks = self._services.need(self._services.tasks)
        left = dict.fromkeys(ids)
        async with aclosing(tasks.results(list(left))) as records:  # type: ignore[type-var]
            async for record in records:
                left.pop(record.task_id, None)
                caller_of(request).require("task:read", record.spec.agent)
                yield self.shape(_ended(record), await self._result(request, record))
        for missing in left:
            yield shapes.TaskInfo(
                id=missing,
                agent="",
                state="missing",
                error=_error_info(NotFound(f"there is no task {missing}")),
            )

    async def _result(self, request: Request, record: TaskRecord) -> Any:
        if record.result is None:
            return None
        return payload_out(request, await self._context.bytes_of(record.result))

    # ---- cancel ----------------------------------------------------------------------

    async def cancel(self, request: Request) -> Response:
        [view] = await self._cancel(request, [request.path_params["id"]])
        return answer(request, view)

    async def cancel_many(self, request: Request) -> Response:
        body = await self._context.read(request, IdsBody)
        return answer(request, await self._cancel(request, body.ids))

    async def _cancel(self, request: Request, ids: Sequence[str]) -> Sequence[shapes.TaskInfo]:
        tasks, caller = self._services.need(self._services.tasks), caller_of(request)
        if not caller.may("task:cancel"):  # It may on some: which these are must be seen first.
            for one in ids:
                caller.require("task:cancel", (await tasks.get(one)).record.spec.agent)
        subject = ids[0] if len(ids) == 1 else ""
        with self._context.noted(request, "task.cancelled", subject, _count(len(ids), "task")):
            views = await tasks.cancel(list(dict.fromkeys(ids)))
        return [self.shape(view) for view in views]

    # ---- shapes ----------------------------------------------------------------------

    def shape(self, view: TaskView, result: Any = None) -> shapes.TaskInfo:
        """A task as the API shows it."""
        record = view.record
        name_of = self._services.name_of
        return shapes.TaskInfo(
            id=record.task_id,
            agent=record.spec.agent,
            state=str(view.state),
            name=record.spec.name,
            key="" if record.spec.place else record.spec.key,
            node=name_of(view.node),
            attempts=view.attempts,
            fence=view.fence,
            job=record.spec.place.job_id if record.spec.place else "",
            created_ms=self._services.wall_ms_of(record.created_ms),
            ended_ms=self._services.wall_ms_of(record.ended_ms),
            error=_error_info(from_code(record.code, record.message), record.code)
            if record.code
            else None,
            result=result,
            story=[
                f"attempt {note.attempt} on {name_of(note.node)}: {note.code}: {note.message}"
                for note in record.story
            ],
        )


def _count(count: int, what: str) -> str:
    return f"{count} {what}" + ("s" if count != 1 else "")


def _input(body: TaskBody) -> tuple[msgspec.Raw | None, BlobRef | None]:
    raw = body.input if isinstance(body.input, msgspec.Raw) else None
    if raw is not None and body.blob is not None:
        raise BadRequest("a task has either an input or a blob, not both")
    return raw, body.blob.ref if body.blob is not None else None


def _spec(body: TaskBody, payload: Inline | Stored) -> TaskSpec:
    return TaskSpec(
        agent=body.agent,
        payload=payload,
        key=body.key,
        name=body.name,
        priority=body.priority or 0,
        timeout_s=body.timeout_s,
        retries=body.retries,
        mode=body.mode,
        strategy=body.strategy,
    )


def _ended(record: TaskRecord) -> TaskView:
    return TaskView(
        record=record,
        state=record.state,
        attempts=record.attempts,
        node=record.node,
        fence=record.fence,
    )


def _error_info(error: SwarmError, code: str = "") -> shapes.ErrorInfo:
    return shapes.ErrorInfo(
        code=code or error.code, message=error.message, retryable=error.retryable
    )
