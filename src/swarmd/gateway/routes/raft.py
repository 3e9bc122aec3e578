"""The strong store's own affairs: how the voters' logs are, and who coordinates.

Every voter tells of itself what only it knows, and the leader what it knows of the others; a
node that is asked asks all of them at once and waits a second at most, so that the answer is
there when some are not. They are named then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import Response

from swarmd.base.errors import NoQuorum, NotFound, RemoteError, SwarmError
from swarmd.base.ids import NodeId, to_text
from swarmd.gateway import shapes
from swarmd.gateway.context import ApiRoute, Context
from swarmd.gateway.export import export
from swarmd.gateway.forward import ask_member, find_member
from swarmd.gateway.http import Stream, answer
from swarmd.gateway.services import Services

OWN_LOG: Final = "/api/v1/raft/own"
ASK_TIMEOUT_S: Final = 1.0


class TransferBody(msgspec.Struct, forbid_unknown_fields=True):
    """`node`: name or id of the voter to hand over to; empty: the one that holds most."""

    node: str = ""


class RaftRoutes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        api = "/api/v1"
        return [
            route(f"{api}/raft", self.status, "cluster:read"),
            route(OWN_LOG, self.own, "cluster:read"),
            route(f"{api}/coordinator", self.coordinator, "cluster:read"),
            route(f"{api}/coordinator/transfer", self.transfer, "cluster:manage", methods=["POST"]),
            route(f"{api}/snapshot", self.snapshot, "snapshot:read"),
        ]

    async def own(self, request: Request) -> Response:
        """This voter's log. 404 on a node that is no voter."""
        found = own_log(self._services)
        if found is None:
            raise NotFound(f"{self._services.config.node_name} is no voter")
        return answer(request, found)

    async def status(self, request: Request) -> Response:
        """Every voter's log, asked live."""
        services = self._services
        store = services.need(services.store)
        found = await self._logs(store.status().voters)
        coordinator = store.coordinator()
        return answer(
            request,
            shapes.RaftStatus(
                node=services.config.node_name,
                epoch=store.status().epoch,
                coordinator=services.name_of(coordinator) if coordinator else "",
                voters=found,
                missing=[one.node for one in found if one.problem],
            ),
        )

    async def coordinator(self, request: Request) -> Response:
        """Who coordinates, and by which fence. 503 if nobody does."""
        store = self._services.need(self._services.store)
        node_id = store.coordinator()
        if node_id is None:
            raise NoQuorum("nobody coordinates now: see `swarmctl raft status`")
        [log] = await self._logs([node_id])
        if log.problem:
            raise NoQuorum(f"{log.node} coordinated last, but tells nothing: {log.problem}")
        epoch = store.status().epoch
        found = shapes.Coordinator(
            node=log.node, node_id=log.node_id, epoch=epoch, term=log.term, fence=log.fence
        )
        return answer(request, found)

    async def transfer(self, request: Request) -> Response:
        """Hand the office to another voter; answered once that one holds it."""
        body = await self._context.read(request, TransferBody)
        services = self._services
        store = services.need(services.store)
        target: NodeId | None = None
        if body.node:
            mesh = services.need(services.mesh)
            target = find_member(mesh.membership.members(), body.node).node_id
        with self._context.noted(request, "coordinator.moved", body.node or "to the best"):
            taken = await store.transfer(target)
        return answer(request, shapes.Done(message=services.name_of(taken)))

    async def snapshot(self, request: Request) -> Stream:
        """A consistent copy of users' keys and agents' records; voters only."""
        self._context.note(request, "snapshot.read", self._services.config.node_name)
        return self._context.stream(request, export(self._services))

    # ---- asking the voters -----------------------------------------------------------

    async def _logs(self, voters: Sequence[NodeId]) -> list[shapes.VoterInfo]:
        """One per voter, by name; those that did not answer say why."""
        found: dict[NodeId, shapes.VoterInfo] = {}

        async def ask(node_id: NodeId) -> None:
            found[node_id] = await self._log_of(node_id)

        async with trio.open_nursery() as nursery:
            for node_id in voters:
                nursery.start_soon(ask, node_id)
        return sorted(with_lags(list(found.values())), key=lambda one: one.node)

    async def _log_of(self, node_id: NodeId) -> shapes.VoterInfo:
        services = self._services
        name = services.name_of(node_id)
        try:
            if node_id == services.node_id:
                own = own_log(services)
                if own is None:
                    raise NotFound("it has not begun to take part")
                return own
            link = services.need(services.mesh).link
            raw = await ask_member(link, node_id, OWN_LOG, timeout_s=ASK_TIMEOUT_S)
            told = msgspec.msgpack.decode(raw, type=shapes.VoterInfo)
        except SwarmError as error:
            return shapes.VoterInfo(node=name, node_id=to_text(node_id), problem=error.message)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            wrong = RemoteError(f"it answers something else: {error}")
            return shapes.VoterInfo(node=name, node_id=to_text(node_id), problem=wrong.message)
        return msgspec.structs.replace(told, node=name, node_id=to_text(node_id))


def own_log(services: Services) -> shapes.VoterInfo | None:
    """This node's log, None if it is no voter."""
    log = services.need(services.store).status().log
    if log is None:
        return None
    return shapes.VoterInfo(
        node=services.config.node_name,
        node_id=to_text(services.node_id),
        role=log.role,
        term=log.term,
        fence=log.fence,
        commit=log.commit,
        applied=log.applied,
        last_index=log.last,
        snapshot_index=log.snapshot,
        journal_bytes=log.journal_bytes,
        fsync_last_ms=round(log.sync_last_s * 1_000, 3),
        fsync_slowest_ms=round(log.sync_slowest_s * 1_000, 3),
        followers=[
            shapes.FollowerInfo(
                node_id=to_text(peer), lag=one.lag, silence_s=round(one.silence_s, 3)
            )
            for peer, one in log.followers.items()
        ],
    )


def with_lags(logs: list[shapes.VoterInfo]) -> list[shapes.VoterInfo]:
    """The same, each with what the leader of the highest term knows of it."""
    leaders = [one for one in logs if one.role == "leader"]
    if not leaders:
        return logs
    leader = max(leaders, key=lambda one: one.term)
    known = {one.node_id: one for one in leader.followers}
    return [
        msgspec.structs.replace(
            one, lag=known[one.node_id].lag, silence_s=known[one.node_id].silence_s
        )
        if one.node_id in known
        else one
        for one in logs
    ]
