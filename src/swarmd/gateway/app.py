"""The API as one ASGI application. A bug in a request is logged and costs that request only."""

from __future__ import annotations

import difflib

from starlette.requests import Request
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from swarmd.base.errors import BadRequest, NotFound, SwarmError
from swarmd.gateway.access.gate import ANY_CALLER
from swarmd.gateway.context import ApiRoute, Context
from swarmd.gateway.http import drain, error_answer, refuse_browsers
from swarmd.gateway.routes.access import AccessRoutes
from swarmd.gateway.routes.agents import AgentRoutes
from swarmd.gateway.routes.approval import ApprovalRoutes
from swarmd.gateway.routes.audit import AuditRoutes
from swarmd.gateway.routes.authority import Authority
from swarmd.gateway.routes.blobs import BlobRoutes
from swarmd.gateway.routes.bus import BusRoutes
from swarmd.gateway.routes.cluster import Cluster
from swarmd.gateway.routes.crdt import CrdtRoutes
from swarmd.gateway.routes.events import EventRoutes
from swarmd.gateway.routes.jobs import JobRoutes
from swarmd.gateway.routes.keystream import KeyStreams
from swarmd.gateway.routes.kv import Kv
from swarmd.gateway.routes.leases import LeaseRoutes
from swarmd.gateway.routes.members import Members
from swarmd.gateway.routes.memory import MemoryRoutes
from swarmd.gateway.routes.memory_cache import MemoryCacheRoutes
from swarmd.gateway.routes.queries import QueryRoutes
from swarmd.gateway.routes.raft import RaftRoutes
from swarmd.gateway.routes.recipes import RecipeRoutes
from swarmd.gateway.routes.rtt import RttRoutes
from swarmd.gateway.routes.secrets import SecretRoutes
from swarmd.gateway.routes.tasks import TaskRoutes
from swarmd.gateway.routes.vectors import VectorRoutes
from swarmd.gateway.routes.voters import Voters
from swarmd.observe.log import get_logger

log = get_logger("gateway")


class _Bug(SwarmError):
    """Something that must not happen did; the log of the node has the story."""

    code = "internal"


class Api:
    """The routes, and what happens where none fits."""

    def __init__(self, context: Context) -> None:
        self._context = context
        # They are tried in this order: what is asked most comes first.
        self.routes: list[ApiRoute] = [
            *TaskRoutes(context).routes(),
            *Cluster(context).routes(),
            *Members(context).routes(),
            *RttRoutes(context).routes(),
            *Authority(context).routes(),
            *ApprovalRoutes(context).routes(),
            *Kv(context).routes(),
            *KeyStreams(context).routes(),
            *BlobRoutes(context).routes(),
            *BusRoutes(context).routes(),
            *LeaseRoutes(context).routes(),
            *RecipeRoutes(context).routes(),
            *AgentRoutes(context).routes(),
            *JobRoutes(context).routes(),
            *RaftRoutes(context).routes(),
            *Voters(context).routes(),
            *AccessRoutes(context).routes(),
            *SecretRoutes(context).routes(),
            *AuditRoutes(context).routes(),
            *EventRoutes(context).routes(),
            *MemoryRoutes(context).routes(),
            *CrdtRoutes(context).routes(),
            *MemoryCacheRoutes(context).routes(),
            *VectorRoutes(context).routes(),
            *QueryRoutes(context).routes(),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        started = False

        async def watched(message: object) -> None:
            nonlocal started
            started = True
            await send(message)  # type: ignore[arg-type]

        try:
            await self._dispatch(scope, receive, watched)
        except Exception as error:
            log.exception("bug in a request", path=scope["path"], error=type(error).__name__)
            if not started:
                bug = _Bug("this is a bug of swarmd; the log of the node tells more")
                request = Request(scope, receive)
                await drain(request, self._context.budget)
                await error_answer(request, bug)(scope, receive, send)

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        for route in self.routes:
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope.update(found)
                await route.handle(scope, receive, send)
                return
        request = Request(scope, receive)
        error = self._unknown(scope["path"])
        try:
            # Nobody learns what there is before it is known who asks.
            refuse_browsers(request)
            self._context.gate.admit(request, ANY_CALLER, self._context.services.access)
        except SwarmError as refusal:
            error = refusal
            self._context.note_refusal(request, refusal)
        await drain(request, self._context.budget)
        await error_answer(request, error)(scope, receive, send)

    def _unknown(self, path: str) -> SwarmError:
        methods = {m for r in self.routes if r.path_regex.match(path) for m in r.methods or ()}
        if methods:
            return BadRequest(f"{path} takes {', '.join(sorted(methods))}")
        paths = sorted({route.path for route in self.routes})
        close = difflib.get_close_matches(path, paths, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return NotFound(f"the API has no {path}{hint}")


def make_app(context: Context) -> ASGIApp:
    return Api(context)
