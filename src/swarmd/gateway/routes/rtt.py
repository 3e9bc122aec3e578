"""How far members are from each other: the round trip between any two, by their coordinates.

A node knows where a member is that answered one of its own probes, which comes to each in turn; of
any other it asks the member itself, over the mesh. Nobody is asked to measure anything.
"""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from swarmd.base.errors import BadRequest, NotFound, NotReady, RemoteError, SwarmError, Unreachable
from swarmd.base.ids import to_text
from swarmd.gateway.context import ApiRoute, Context
from swarmd.gateway.forward import ask_member, find_member
from swarmd.gateway.http import answer
from swarmd.gateway.services import Mesh
from swarmd.gateway.shapes_members import NodeCoordinate, Place, Rtt
from swarmd.mesh.swim.coordinates import Coordinate, distance_s, is_sane
from swarmd.mesh.swim.events import Member
from swarmd.mesh.swim.messages import MemberState

COORDINATE_PATH: Final = "/api/v1/coordinate"
_DECIMALS: Final = 3


class RttRoutes:
    """Where this node is, and how far two members are from each other."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        return [
            route(COORDINATE_PATH, self.coordinate, "cluster:read"),
            route("/api/v1/rtt", self.rtt, "cluster:read"),
        ]

    async def coordinate(self, request: Request) -> Response:
        services = self._services
        own = services.need(services.mesh).membership.coordinate(services.node_id)
        told = NodeCoordinate(
            node=services.config.node_name,
            node_id=to_text(services.node_id),
            place=None if own is None else _place(own),
        )
        return answer(request, told)

    async def rtt(self, request: Request) -> Response:
        """The round trip between `a` and `b` (this node if it is not named), as estimated."""
        mesh = self._services.need(self._services.mesh)
        a, b = (self._named(mesh, request.query_params.get(name, "")) for name in ("a", "b"))
        if a.node_id == b.node_id:
            raise BadRequest(f"both are {a.name}: name two members, or ask another node")
        here, there = await self._find(mesh, a), await self._find(mesh, b)
        estimated = Rtt(
            a=a.name,
            a_id=to_text(a.node_id),
            b=b.name,
            b_id=to_text(b.node_id),
            rtt_ms=round(distance_s(here, there) * 1_000, _DECIMALS),
            error=round(max(here.error, there.error), _DECIMALS),
        )
        return answer(request, estimated)

    def _named(self, mesh: Mesh, wanted: str) -> Member:
        if wanted:
            return find_member(mesh.membership.members(), wanted)
        me = mesh.membership.get(self._services.node_id)
        assert me is not None
        return me

    async def _find(self, mesh: Mesh, member: Member) -> Coordinate:
        """Where a member is: as it told this node with an answer, or asked for it now.

        Raises:
            NotReady: it has no place yet.
            Unreachable: it could not be asked.
            RemoteError: it knows of no places, or told one that is none.
        """
        known = mesh.membership.coordinate(member.node_id)
        if known is not None:
            return known
        if member.node_id == self._services.node_id:
            raise _no_place(member)
        if member.state is MemberState.DEAD:
            raise Unreachable(f"{member.name} is dead, and never told this node where it is")
        told = await self._ask(mesh, member)
        if told.place is None:
            raise _no_place(member)
        place = _coordinate(told.place)
        if place is None:
            raise RemoteError(f"{member.name} says that it is where nobody can be")
        return place

    async def _ask(self, mesh: Mesh, member: Member) -> NodeCoordinate:
        timeout_s = self._context.config.ask_timeout_s
        try:
            raw = await ask_member(mesh.link, member.node_id, COORDINATE_PATH, timeout_s=timeout_s)
            return msgspec.msgpack.decode(raw, type=NodeCoordinate)
        except NotFound as error:
            raise RemoteError(
                f"{member.name} runs an older version that has no coordinates: upgrade it"
            ) from error
        except SwarmError as error:
            raise Unreachable(
                f"{member.name} could not be asked where it is: {error.message}"
            ) from error
        except msgspec.MsgspecError as error:
            raise RemoteError(f"{member.name} answered something else") from error


def _no_place(member: Member) -> NotReady:
    return NotReady(
        f"{member.name} has no coordinate yet: none of its probes of other members was answered "
        "so far; it probes one each interval, so try again in a few seconds"
    )


def _place(one: Coordinate) -> Place:
    return Place(
        axes_ms=[value * 1_000 for value in one.axes_s],
        height_ms=one.height_s * 1_000,
        adjustment_ms=one.adjustment_s * 1_000,
        error=one.error,
    )


def _coordinate(place: Place) -> Coordinate | None:
    """None if it is none."""
    axes_s = tuple(value / 1_000 for value in place.axes_ms)
    height_s, adjustment_s = place.height_ms / 1_000, place.adjustment_ms / 1_000
    found = Coordinate(axes_s, height_s, adjustment_s, place.error)
    return found if is_sane(found) and found.placed else None
