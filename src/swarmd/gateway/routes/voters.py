"""Who votes, who could, and who is pinned to a seat.

A pin is a key of the strong store that the coordinator respects when it chooses voters: who is
pinned gets a seat before others and is not moved. It takes effect at the coordinator's next
change of voters, within about a minute.

A recovery is in two steps, so that the recovery key never comes near a daemon: the node says
what it would go on with, and takes that back signed.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from swarmd.base.errors import BadRequest, Conflict
from swarmd.base.ids import NodeId, to_text
from swarmd.gateway import shapes
from swarmd.gateway.context import ApiRoute, Context
from swarmd.gateway.forward import find_member
from swarmd.gateway.http import answer
from swarmd.mesh.swim.events import Member
from swarmd.mesh.swim.messages import MemberState
from swarmd.state.raft.messages import PIN_PREFIX, PINS_MAX, Delete, Put


class RecoveryBody(msgspec.Struct, forbid_unknown_fields=True):
    certificate: bytes


class Voters:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        pin = "/api/v1/voters/{node}/pin"
        return [
            route("/api/v1/voters", self.seats, "cluster:read"),
            route("/api/v1/recovery", self.plan, "recovery:manage"),
            route("/api/v1/recovery", self.recover, "recovery:manage", methods=["POST"]),
            route(pin, self.pin, "cluster:manage", methods=["PUT"]),
            route(pin, self.unpin, "cluster:manage", methods=["DELETE"]),
        ]

    async def seats(self, request: Request) -> Response:
        """Members that vote, could or are pinned; those with a seat first."""
        store = self._services.need(self._services.store)
        membership = self._services.need(self._services.mesh).membership
        seated, pins = list(store.status().voters), await self._pins()
        known = {one.node_id: one for one in membership.members()}
        could = [
            one.node_id
            for one in known.values()
            if "voter" in one.roles and one.state is not MemberState.LEFT
        ]
        found = [
            self._seat(node_id, known.get(node_id), node_id in seated, node_id in pins)
            for node_id in dict.fromkeys([*seated, *could, *pins])
        ]
        return answer(request, sorted(found, key=lambda one: (not one.seat, one.node)))

    def _seat(
        self, node_id: NodeId, member: Member | None, seated: bool, pinned: bool
    ) -> shapes.VoterSeat:
        return shapes.VoterSeat(
            node=self._services.name_of(node_id),
            node_id=to_text(node_id),
            state=member.state.name.lower() if member is not None else "unknown",
            seat=seated,
            pinned=pinned,
            coordinator=node_id == self._services.need(self._services.store).coordinator(),
            host=member.addresses[0][0] if member is not None and member.addresses else "",
        )

    async def pin(self, request: Request) -> Response:
        """Give a member a seat before others. 409 beyond seven."""
        store = self._services.need(self._services.store)
        member = self._member(request)
        if "voter" not in member.roles:
            raise BadRequest(f"{member.name} may not vote: its roles are {_words(member.roles)}")
        pins = await self._pins()
        if member.node_id not in pins and len(pins) >= PINS_MAX:
            raise Conflict(f"{PINS_MAX} nodes are pinned, as many as ever vote: unpin one first")
        with self._context.noted(request, "voter.pinned", member.name):
            [result] = await store.propose([Put(PIN_PREFIX + member.node_id, b"")])
            result.raise_for_error()
        seated = member.node_id in store.status().voters
        return answer(request, self._seat(member.node_id, member, seated, pinned=True))

    async def unpin(self, request: Request) -> Response:
        """Let a member's seat be given away again. It keeps it until there is a reason."""
        store = self._services.need(self._services.store)
        node_id = self._pinned(await self._pins(), request.path_params["node"])
        if node_id is None:
            node_id = self._member(request).node_id
        with self._context.noted(request, "voter.unpinned", self._services.name_of(node_id)):
            [result] = await store.propose([Delete(PIN_PREFIX + node_id)])
            result.raise_for_error()
        member = self._services.need(self._services.mesh).membership.get(node_id)
        seated = node_id in store.status().voters
        return answer(request, self._seat(node_id, member, seated, pinned=False))

    def _pinned(self, pins: list[NodeId], wanted: str) -> NodeId | None:
        """Who is pinned and meant, also if it is no member any more."""
        names = {self._services.name_of(one): one for one in pins}
        return names.get(wanted) or {to_text(one): one for one in pins}.get(wanted.lower())

    def _member(self, request: Request) -> Member:
        membership = self._services.need(self._services.mesh).membership
        return find_member(membership.members(), request.path_params["node"])

    # ---- recovery ----------------------------------------------------------------------

    async def plan(self, request: Request) -> Response:
        """What this node would go on with alone. 409 while a majority of the voters answers."""
        services = self._services
        store, trust = services.need(services.store), services.need(services.trust)
        found = await store.recovery.plan()
        known = {one.node_id: one for one in services.need(services.mesh).membership.members()}
        return answer(
            request,
            shapes.RecoveryPlan(
                node=services.config.node_name,
                node_id=to_text(services.node_id),
                swarm=trust.genesis.name,
                swarm_id=bytes(trust.swarm_id),
                source=found.source,
                epoch=found.epoch,
                revision=found.revision,
                keys=found.keys,
                statement=found.statement,
                voters=[
                    self._seat(one, known.get(one), seated=True, pinned=False)
                    for one in store.status().voters
                ],
            ),
        )

    async def recover(self, request: Request) -> Response:
        """Go on alone with what was planned, signed by the recovery key."""
        body = await self._context.read(request, RecoveryBody)
        store = self._services.need(self._services.store)
        with self._context.noted(request, "recovery.begun", self._services.config.node_name):
            await store.recovery.begin(body.certificate)
        return answer(request, shapes.Done(message=f"{self._services.config.node_name} goes on"))

    async def _pins(self) -> list[NodeId]:
        store = self._services.need(self._services.store)
        entries = await store.range(PIN_PREFIX, limit=PINS_MAX)
        return [NodeId(entry.key[len(PIN_PREFIX) :]) for entry in entries]


def _words(roles: tuple[str, ...]) -> str:
    return ", ".join(roles) or "none"
