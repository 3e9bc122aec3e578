"""Questions to all members, or some: asked over streams, gathered until a deadline.

Streams reach every member that can be reached at all, are there or are made at once, and lose
nothing; so nobody relays a question, and none goes by datagram. What comes after the deadline is
dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final
from urllib.parse import quote, urlencode

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import Response

from swarmd.base.errors import SwarmError, TooLarge, Unavailable
from swarmd.base.ids import to_text
from swarmd.base.limits import QUERY_ANSWER_BYTES_MAX
from swarmd.base.names import check_name
from swarmd.gateway.answers import NOBODY_ASKED, Answer, answer_query
from swarmd.gateway.context import ApiRoute, Context
from swarmd.gateway.forward import ask_member, find_member
from swarmd.gateway.http import answer
from swarmd.gateway.services import Mesh
from swarmd.gateway.shapes_events import NodeAnswer, QueryResult
from swarmd.mesh.events.messages import check_payload
from swarmd.mesh.swim.events import Member
from swarmd.mesh.swim.members import PRESENT
from swarmd.mesh.swim.messages import TAGS_MAX, MemberState

ANSWERS_PATH: Final = "/api/v1/answers"
ASKED_MAX: Final = 1_024
_AT_ONCE_MAX: Final = 256
_NODES_MAX: Final = 256


class QueryBody(msgspec.Struct, forbid_unknown_fields=True):
    """`nodes`: names or ids of those to ask; `tags`: what those to ask must tell of themselves."""

    payload: str = ""
    nodes: Annotated[list[str], msgspec.Meta(max_length=_NODES_MAX)] = []
    tags: Annotated[dict[str, str], msgspec.Meta(max_length=TAGS_MAX)] = {}
    timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=60_000)] | None = None


class QueryRoutes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        return [
            route(f"{ANSWERS_PATH}/{{name}}", self.answer, "node:query"),
            route("/api/v1/queries/{name}", self.query, "node:query", methods=["POST"]),
        ]

    async def answer(self, request: Request) -> Response:
        """What this node alone answers."""
        payload = request.query_params.get("payload", "")
        return answer(request, self._own_answer(request.path_params["name"], payload))

    async def query(self, request: Request) -> Response:
        """Ask the members that fit, and gather what they answer in time."""
        body = await self._context.read(request, QueryBody)
        name = request.path_params["name"]
        check_name(name, "query")
        check_payload(body.payload, "a question", NOBODY_ASKED)
        mesh = self._services.need(self._services.mesh)
        chosen = self._chosen(mesh, body)
        default_s = self._context.config.ask_timeout_s
        timeout_s = default_s if body.timeout_ms is None else body.timeout_ms / 1_000

        async def gather() -> list[NodeAnswer]:
            return await self._gather(mesh, chosen, name, body.payload, timeout_s)

        nodes = await self._context.attended(request, gather)
        return answer(
            request,
            QueryResult(
                query=name,
                node=self._services.config.node_name,
                asked=len(nodes),
                acks=sum(one.code not in _SILENT for one in nodes),
                answers=sum(one.answer is not None for one in nodes),
                missing=[one.node for one in nodes if one.code in _SILENT],
                nodes=nodes,
            ),
        )

    def _chosen(self, mesh: Mesh, body: QueryBody) -> list[Member]:
        """Whom to ask: those named, dead or alive, or all that may answer.

        Raises:
            NotFound: somebody named is not known, or several have the name.
            TooLarge: they are more than ASKED_MAX.
        """
        members = mesh.membership.members()
        if body.nodes:
            named = {one.node_id: one for one in (find_member(members, n) for n in body.nodes)}
            chosen = list(named.values())
        else:
            chosen = [one for one in members if one.state in PRESENT]
        wanted = set(body.tags.items())
        chosen = [one for one in chosen if wanted <= set(one.tags)]
        if len(chosen) > ASKED_MAX:
            raise TooLarge(
                f"{len(chosen)} members fit, and at most {ASKED_MAX} are asked at a time: nobody "
                "was asked; choose by names or tags"
            )
        return chosen

    async def _gather(
        self, mesh: Mesh, chosen: Sequence[Member], name: str, payload: str, timeout_s: float
    ) -> list[NodeAnswer]:
        """An answer, or why there is none, of each of them in their order.

        Those held alive are asked first: who is suspected may take up a place until the end.
        """
        late = f"it did not answer within {timeout_s:g} s"
        unasked = f"it was not asked within {timeout_s:g} s: too many others did not answer"
        took_ms = round(timeout_s * 1_000)
        found = [_problem(one, "not_asked", unasked, took_ms) for one in chosen]
        limit = trio.CapacityLimiter(_AT_ONCE_MAX)
        started = trio.current_time()

        async def ask(number: int, member: Member) -> None:
            async with limit:
                found[number] = _problem(member, "timeout", late, took_ms)
                told = await self._ask(mesh, member, name, payload, timeout_s)
            after_ms = round((trio.current_time() - started) * 1_000)
            found[number] = msgspec.structs.replace(told, took_ms=after_ms)

        with trio.move_on_after(timeout_s):
            async with trio.open_nursery() as nursery:
                for number, member in sorted(enumerate(chosen), key=_later_if_suspected):
                    nursery.start_soon(ask, number, member)
                    await trio.lowlevel.checkpoint()
        return found

    async def _ask(
        self, mesh: Mesh, member: Member, name: str, payload: str, timeout_s: float
    ) -> NodeAnswer:
        try:
            if member.node_id == self._services.node_id:
                told = self._own_answer(name, payload)
            elif member.state not in PRESENT:
                return _problem(member, "unreachable", f"it is {member.state}")
            else:
                raw = await ask_member(
                    mesh.link,
                    member.node_id,
                    f"{ANSWERS_PATH}/{quote(name)}",
                    query=urlencode({"payload": payload}).encode() if payload else b"",
                    timeout_s=timeout_s,
                )
                if len(raw) > QUERY_ANSWER_BYTES_MAX:
                    raise TooLarge(f"its answer has {len(raw)} bytes")
                told = msgspec.msgpack.decode(raw, type=Answer)
        except SwarmError as error:
            return _problem(member, error.code, error.message)
        except msgspec.MsgspecError:
            return _problem(member, "peer_misbehaved", "it answered something else")
        return NodeAnswer(node=member.name, node_id=to_text(member.node_id), answer=told)

    def _own_answer(self, name: str, payload: str) -> Answer:
        try:
            return answer_query(self._services, name, payload)
        except OSError as error:
            node = self._services.config.node_name
            raise Unavailable(f"{node} could not find out: {error.strerror}") from error


# Codes of who said nothing.
_SILENT: Final = ("timeout", "unreachable", "not_asked")


def _later_if_suspected(numbered: tuple[int, Member]) -> bool:
    return numbered[1].state is not MemberState.ALIVE


def _problem(member: Member, code: str, problem: str, took_ms: int = 0) -> NodeAnswer:
    return NodeAnswer(
        node=member.name,
        node_id=to_text(member.node_id),
        code=code,
        problem=problem,
        took_ms=took_ms,
    )
