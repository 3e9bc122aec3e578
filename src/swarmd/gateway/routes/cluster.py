"""The node and the swarm: health, status, members, doctor, config, stop, leave."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from swarmd.base.errors import NotReady, SwarmError
from swarmd.gateway import doctor, local_facts, shapes
from swarmd.gateway.access.gate import ANYBODY
from swarmd.gateway.context import ApiRoute, Context
from swarmd.gateway.forward import ask_member
from swarmd.gateway.http import answer
from swarmd.gateway.services import Mesh
from swarmd.gateway.status import members, status
from swarmd.mesh.swim.events import Member
from swarmd.mesh.swim.messages import MemberState

_PEERS_ASKED_MAX = 64


class LeaveBody(msgspec.Struct, forbid_unknown_fields=True):
    force: bool = False


class Health(msgspec.Struct, frozen=True):
    node: str
    wall_ms: int


class Cluster:
    """The endpoints about the node and its swarm."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        api = "/api/v1"
        return [
            route("/health", self.health, ANYBODY),
            route("/ready", self.ready, ANYBODY),
            route("/metrics", self.metrics, "metrics:read"),
            route(f"{api}/status", self.status, "cluster:read"),
            route(f"{api}/members", self.members, "cluster:read"),
            route(f"{api}/doctor", self.examine, "cluster:read"),
            route(f"{api}/config", self.config, "config:read"),
            route(f"{api}/stop", self.stop, "node:manage", methods=["POST"]),
            route(f"{api}/leave", self.leave, "node:manage", methods=["POST"]),
        ]

    async def health(self, request: Request) -> Response:
        """The process lives. Its wall clock lets others see how far apart clocks are."""
        node = self._services.config.node_name
        return answer(request, Health(node, self._services.clock.wall_ms()))

    async def ready(self, request: Request) -> Response:
        """200 if the node takes work, else 503 with the reason."""
        reason = self._services.control.not_ready()
        if reason:
            raise NotReady(reason)
        return answer(request, shapes.Done(message="ready"))

    async def metrics(self, request: Request) -> Response:
        render = self._services.need(self._services.metrics)
        return PlainTextResponse(render(), media_type="text/plain; version=0.0.4")

    async def status(self, request: Request) -> Response:
        return answer(request, await status(self._services))

    async def members(self, request: Request) -> Response:
        return answer(request, members(self._services))

    async def config(self, request: Request) -> Response:
        found = [
            shapes.SettingInfo(key=one.key, value=one.value, source=one.source)
            for one in self._services.config.describe()
        ]
        return answer(request, found)

    # ---- the end ---------------------------------------------------------------------

    async def stop(self, request: Request) -> Response:
        await self._context.read(request, dict[str, Any])
        self._context.note(request, "node.stop", self._services.config.node_name)
        self._services.control.stop()
        return answer(
            request,
            shapes.Done(message=f"{self._services.config.node_name} stops", pid=os.getpid()),
        )

    async def leave(self, request: Request) -> Response:
        body = await self._context.read(request, LeaveBody)
        with self._context.noted(request, "node.leave", self._services.config.node_name):
            warnings = await self._services.control.leave(force=body.force)
        message = f"{self._services.config.node_name} leaves the swarm"
        done = shapes.Done(message=message, warnings=list(warnings), pid=os.getpid())
        return answer(request, done)

    # ---- doctor ----------------------------------------------------------------------

    async def examine(self, request: Request) -> Response:
        facts = await self._facts()
        report = shapes.DoctorReport(node=facts.node, checks=doctor.examine(facts))
        return answer(request, report)

    async def _facts(self) -> doctor.NodeFacts:
        services = self._services
        config = services.config
        local = await trio.to_thread.run_sync(
            partial(
                local_facts.gather,
                data_folder=config.data_folder,
                port=config.mesh.port,
                bind=config.mesh.bind,
                port_is_ours=services.mesh is not None,
            )
        )
        mesh = services.mesh
        found = await status(services)
        return doctor.NodeFacts(
            node=config.node_name,
            not_ready=found.reason,
            swarm=found.swarm,
            local=local,
            mdns=config.mesh.mdns,
            interfaces=_interfaces(mesh) if mesh is not None else (),
            seeds=tuple(config.mesh.seeds),
            seed_problems=_seed_problems(mesh) if mesh is not None else (),
            peers=await self._ask_peers(mesh) if mesh is not None else (),
            store_state=found.store.state if found.store else "",
            voters=tuple(found.store.voters) if found.store else (),
            coordinator=found.coordinator,
            may_lose=found.store.may_lose if found.store else 0,
            next_loss=found.next_loss,
            credential_left_ms=services.credential_left_ms(services.node_id),
        )

    async def _ask_peers(self, mesh: Mesh) -> tuple[doctor.PeerFacts, ...]:
        """Every other member; the living ones are asked for their clock, all at once."""
        others = [
            one
            for one in mesh.membership.members()
            if one.node_id != self._services.node_id and one.state is not MemberState.LEFT
        ]
        skews: dict[bytes, float] = {}

        async def ask(member: Member) -> None:
            try:
                skews[member.node_id] = await self._skew_s(mesh, member)
            except SwarmError:
                return  # It is reported as one that did not answer.

        async with trio.open_nursery() as nursery:
            for one in others[:_PEERS_ASKED_MAX]:
                if one.state is MemberState.ALIVE:
                    nursery.start_soon(ask, one)
        stream_only = set(mesh.membership.stream_only())
        return tuple(
            doctor.PeerFacts(
                name=one.name,
                state=one.state.name.lower(),
                answered=one.node_id in skews or index >= _PEERS_ASKED_MAX,
                skew_s=skews.get(one.node_id, 0.0),
                stream_only=one.node_id in stream_only,
            )
            for index, one in enumerate(others)
        )

    async def _skew_s(self, mesh: Mesh, member: Member) -> float:
        """How far the member's wall clock is ahead of ours, half the round trip allowed for."""
        clock = self._services.clock
        timeout_s = self._context.config.ask_timeout_s
        before_ms = clock.wall_ms()
        raw = await ask_member(mesh.link, member.node_id, "/health", timeout_s=timeout_s)
        after_ms = clock.wall_ms()
        try:
            theirs_ms = msgspec.msgpack.decode(raw, type=Health).wall_ms
        except msgspec.MsgspecError as error:
            raise NotReady(f"{member.name} did not tell its clock") from error
        return (theirs_ms - (before_ms + after_ms) / 2) / 1000


def _interfaces(mesh: Mesh) -> tuple[doctor.InterfaceFacts, ...]:
    return tuple(
        doctor.InterfaceFacts(
            interface=one.interface,
            announced=one.announced,
            heard=one.heard,
            refused=one.refused,
            problem=one.problem,
        )
        for one in mesh.discovery_report()
    )


def _seed_problems(mesh: Mesh) -> tuple[str, ...]:
    return tuple(f"{one.seed}: {one.problem}" for one in mesh.seed_report() if one.problem)
