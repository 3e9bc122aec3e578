"""Members as they change, their tags, and who keeps streams to whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import Response

from swarmd.base.errors import BadRequest, SwarmError
from swarmd.base.ids import NodeId, to_text
from swarmd.gateway.context import ApiRoute, Context
from swarmd.gateway.forward import ask_member
from swarmd.gateway.http import Items, Stream, answer
from swarmd.gateway.services import Mesh
from swarmd.gateway.shapes import MemberInfo
from swarmd.gateway.shapes_members import MembersNews, NodeLinks, NodeTags, Topology, TopologyNode
from swarmd.gateway.status import members
from swarmd.mesh.swim.events import Member
from swarmd.mesh.swim.messages import TAGS_MAX, MemberState

LINKS_PATH: Final = "/api/v1/links"
# Changes come in bursts; who coordinates changes without one.
_SETTLE_S: Final = 0.1
_LOOK_EVERY_S: Final = 2.0
_ASKED_MAX: Final = 256
_ASKED_AT_ONCE_MAX: Final = 32


class TagsBody(msgspec.Struct, forbid_unknown_fields=True):
    put: Annotated[dict[str, str], msgspec.Meta(max_length=TAGS_MAX)] = {}
    remove: Annotated[list[str], msgspec.Meta(max_length=TAGS_MAX)] = []


class Members:
    """The endpoints about the members beyond a list of them."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        return [
            route("/api/v1/members/watch", self.watch, "cluster:read"),
            route(LINKS_PATH, self.links, "cluster:read"),
            route("/api/v1/topology", self.topology, "cluster:read"),
            route("/api/v1/tags", self.change_tags, "node:manage", methods=["POST"]),
        ]

    async def watch(self, request: Request) -> Stream:
        """All members, and then those that change as they do, as a stream."""
        mesh = self._services.need(self._services.mesh)
        return self._context.stream(request, self._watched(mesh), items_max=16)

    async def _watched(self, mesh: Mesh) -> Items:
        told: dict[str, MemberInfo] = {}
        first = True
        while True:
            now = {one.node_id: one for one in members(self._services)}
            news = [one for one in now.values() if told.get(one.node_id) != _lasting(one)]
            gone = [node_id for node_id in told if node_id not in now]
            if news or gone or first:
                told = {node_id: _lasting(one) for node_id, one in now.items()}
                yield MembersNews(members=news, gone=gone, first=first)
                first = False
                await trio.sleep(_SETTLE_S)
                continue
            with trio.move_on_after(_LOOK_EVERY_S):
                await mesh.membership.changed()

    async def change_tags(self, request: Request) -> Response:
        """Change what this node tells of itself, until it is started anew."""
        body = await self._context.read(request, TagsBody)
        if twice := sorted(body.put.keys() & set(body.remove)):
            raise BadRequest(f"nothing is changed: {twice[0]!r} is both to be put and removed")
        services = self._services
        membership = services.need(services.mesh).membership
        name = services.config.node_name
        changed = [*(f"+{key}" for key in body.put), *(f"-{key}" for key in body.remove)]
        with self._context.noted(request, "node.tags", name, " ".join(changed)):
            kept = {k: v for k, v in membership.own_tags.items() if k not in body.remove}
            membership.set_tags(kept | body.put)
        tags = membership.own_tags
        return answer(request, NodeTags(node=name, node_id=to_text(services.node_id), tags=tags))

    async def links(self, request: Request) -> Response:
        return answer(request, self._links())

    def _links(self) -> NodeLinks:
        services = self._services
        mesh = services.need(services.mesh)
        return NodeLinks(
            node=services.config.node_name,
            node_id=to_text(services.node_id),
            peers=[to_text(peer) for peer in mesh.link.connected()],
        )

    async def topology(self, request: Request) -> Response:
        """Who keeps streams to whom, asked of every living member, 256 of them at most."""
        services = self._services
        mesh = services.need(services.mesh)
        present = [m for m in mesh.membership.members() if m.state is not MemberState.LEFT]
        told = await self._ask(mesh, present)
        coordinator = services.store.coordinator() if services.store is not None else None
        nodes = [
            TopologyNode(
                node=one.name,
                node_id=to_text(one.node_id),
                state=one.state.name.lower(),
                coordinator=one.node_id == coordinator,
                peers=list(found) if isinstance(found := told[one.node_id], tuple) else [],
                problem=found if isinstance(found, str) else "",
            )
            for one in present
        ]
        swarm = services.trust.genesis.name if services.trust is not None else ""
        return answer(request, Topology(node=services.config.node_name, swarm=swarm, nodes=nodes))

    async def _ask(
        self, mesh: Mesh, present: Sequence[Member]
    ) -> dict[NodeId, tuple[str, ...] | str]:
        """The peers of each, or why it did not tell. Streams made only to ask are left out."""
        found: dict[NodeId, tuple[str, ...] | str] = {}
        me, before = to_text(self._services.node_id), mesh.link.connected()
        limit = trio.CapacityLimiter(_ASKED_AT_ONCE_MAX)
        timeout_s = self._context.config.ask_timeout_s

        async def ask(member: Member) -> None:
            async with limit:
                try:
                    raw = await ask_member(
                        mesh.link, member.node_id, LINKS_PATH, timeout_s=timeout_s
                    )
                    told = msgspec.msgpack.decode(raw, type=NodeLinks)
                    mine = member.node_id in before
                    found[member.node_id] = tuple(p for p in told.peers if mine or p != me)
                except SwarmError as error:
                    found[member.node_id] = error.message
                except msgspec.MsgspecError:
                    found[member.node_id] = "it answered something else"

        asked = 0
        async with trio.open_nursery() as nursery:
            for one in present:
                if one.node_id == self._services.node_id:
                    found[one.node_id] = tuple(self._links().peers)
                elif one.state is not MemberState.ALIVE:
                    found[one.node_id] = f"it is {one.state.name.lower()}"
                elif asked >= _ASKED_MAX:
                    found[one.node_id] = f"not asked: {_ASKED_MAX} members are"
                else:
                    asked += 1
                    nursery.start_soon(ask, one)
        return found


def _lasting(member: MemberInfo) -> MemberInfo:
    """What is news when it changes: not a second less of a credential, nor a microsecond's way."""
    return msgspec.structs.replace(member, credential_left_s=None, rtt_ms=None)
