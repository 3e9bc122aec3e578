"""The audit log over the API: what people read, and what whoever checks it needs, as it lies there.

What is read here is what this node keeps: its own records, and where it may vote those of all.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from swarmd.audit.records import LIFE_BYTES, NUMBER_MAX, STREAMS, ChainId, Stream
from swarmd.audit.service import Audit, Entry, Position, Query
from swarmd.base.errors import BadRequest
from swarmd.base.ids import ID_BYTES, NodeId, from_text, to_text
from swarmd.gateway.context import ApiRoute, Context, query_int
from swarmd.gateway.forward import find_member
from swarmd.gateway.http import Items, answer
from swarmd.gateway.http import Stream as StreamAnswer
from swarmd.gateway.shapes_audit import AuditHeld, AuditLife, AuditPage, AuditRaw, AuditRecord

_PAGE_MAX: Final = 1_000
_PAGE: Final = 100


class AuditRoutes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        path, needs = "/api/v1/audit", "audit:read"
        return [
            route(path, self.list, needs),
            route(f"{path}/follow", self.follow, needs),
            route(f"{path}/held", self.held, needs),
            route(f"{path}/raw", self.raw, needs),
            route(f"{path}/anchors", self.anchors, needs),
        ]

    @property
    def _audit(self) -> Audit:
        return self._services.need(self._services.audit)

    # ---- for people --------------------------------------------------------------------

    async def list(self, request: Request) -> Response:
        """A page, the newest first; `before` of the answer continues, also if it has no records."""
        text = request.query_params.get("before", "")
        before = _read_position(text) if text else None
        limit = query_int(request, "limit", _PAGE, 1, _PAGE_MAX)
        found, after = await self._audit.newest(self._query(request), before, limit)
        page = AuditPage(
            records=[self._shape(one) for one in found],
            before=_position_text(after) if after is not None else "",
        )
        return answer(request, page)

    async def follow(self, request: Request) -> StreamAnswer:
        """The newest `backlog` records, and then all that come, as a stream."""
        backlog = query_int(request, "backlog", 0, 0, _PAGE_MAX)
        return self._context.stream(request, self._followed(self._query(request), backlog))

    async def _followed(self, query: Query, backlog: int) -> Items:
        async with aclosing(self._audit.follow(query, backlog)) as entries:
            async for entry in entries:
                yield self._shape(entry)

    def _query(self, request: Request) -> Query:
        given = request.query_params
        return Query(
            kind=given.get("kind", ""),
            actor=given.get("actor", ""),
            node=self._node_of(given.get("of", "")),
            stream=_stream(given["stream"]) if given.get("stream") else None,
            since_ms=query_int(request, "since_ms", 0, 0, NUMBER_MAX),
        )

    def _node_of(self, wanted: str) -> bytes:
        """A node by its name or id: a member, or one that was."""
        if not wanted:
            return b""
        trust = self._services.need(self._services.trust)
        known = trust.admissions_by_id()
        named = [one.node_id for one in known.values() if one.name == wanted]
        begins = [one for one in known if len(wanted) >= 6 and to_text(one).startswith(wanted)]
        if len(found := {*named, *begins}) == 1:
            return bytes(found.pop())
        membership = self._services.need(self._services.mesh).membership
        return bytes(find_member(membership.members(), wanted).node_id)

    def _shape(self, entry: Entry) -> AuditRecord:
        chain, record = entry.chain, entry.record
        return AuditRecord(
            node=self._name_of(chain.node),
            node_id=to_text(chain.node),
            stream=chain.stream,
            life=to_text(chain.life),
            number=record.number,
            wall_ms=record.wall_ms,
            store_ms=entry.store_ms,
            kind=record.kind,
            actor=record.actor,
            subject=record.subject,
            outcome=record.outcome,
            details=record.details,
        )

    def _name_of(self, node: bytes) -> str:
        """The name by the authority log: one that was evicted is no member any more."""
        trust = self._services.trust
        admission = trust.admissions_by_id().get(NodeId(node)) if trust is not None else None
        return admission.name if admission is not None else self._services.name_of(node)

    # ---- for whoever checks ------------------------------------------------------------

    async def held(self, request: Request) -> Response:
        """A page of the lives that are kept here; `floors` are what was dropped for its age."""
        text = request.query_params.get("after", "")
        lives, more = await self._audit.held(_read_chain(text) if text else None)
        found = AuditHeld(
            node_id=to_text(self._services.node_id),
            lives=[
                AuditLife(
                    chain=_chain_text(one.chain),
                    first=one.first,
                    last=one.last,
                )
                for one in lives
            ],
            floors=self._audit.floors() if not text else [],
            forks=await self._audit.forks() if not text else [],
            after=_chain_text(lives[-1].chain) if more else "",
        )
        return answer(request, found)

    async def raw(self, request: Request) -> Response:
        """What lies on the disk of one life, from `place` on; damaged or not."""
        chain = _read_chain(request.query_params.get("chain", ""))
        first, _, offset = request.query_params.get("place", "0.0").partition(".")
        if not all(one.isascii() and one.isdigit() and len(one) < 20 for one in (first, offset)):
            raise BadRequest("place is what the answer before said")
        batches, place = await self._audit.raw(chain, (int(first), int(offset)))
        after = f"{place[0]}.{place[1]}" if place != (0, 0) else ""
        return answer(request, AuditRaw(batches=batches, place=after))

    async def anchors(self, request: Request) -> Response:
        """The seals that the strong store names, to be verified by whoever reads them."""
        return answer(request, await self._audit.anchors())


# ---- places and chains as text -------------------------------------------------------------


def _chain_text(chain: ChainId) -> str:
    return f"{to_text(chain.node)}.{chain.stream}.{to_text(chain.life)}"


def _read_chain(text: str) -> ChainId:
    """What `_chain_text` wrote. Raises BadRequest."""
    parts = text.split(".")
    if len(parts) != 3:
        raise BadRequest(f"{text[:200]!r} names no chain of audit records")
    node, life = from_text(parts[0]), from_text(parts[2])
    if len(node) != ID_BYTES or len(life) != LIFE_BYTES:
        raise BadRequest(f"{text[:200]!r} names no chain of audit records")
    return ChainId(node, _stream(parts[1]), life)


def _position_text(place: Position) -> str:
    return f"{place.wall_ms}.{place.number}.{_chain_text(place.chain)}"


def _read_position(text: str) -> Position:
    """What `_position_text` wrote. Raises BadRequest."""
    parts = text.split(".", 2)
    numbers = parts[:2]
    if len(parts) != 3 or not all(x.isascii() and x.isdigit() and len(x) < 20 for x in numbers):
        raise BadRequest("before is what the page before said")
    return Position(int(parts[0]), _read_chain(parts[2]), int(parts[1]))


def _stream(text: str) -> Stream:
    for stream in STREAMS:
        if text == stream:
            return stream
    raise BadRequest(f"stream {text[:50]!r} does not exist: one of {', '.join(STREAMS)}")
