"""Gathering what the doctor goes by: the rooms of this node are asked, and the members."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Final

import msgspec
import trio

from swarmd import __version__
from swarmd.base.errors import NotReady, SwarmError
from swarmd.base.ids import NodeId, short
from swarmd.gateway import local_facts
from swarmd.gateway.doctor.facts import NodeFacts, PeerFacts
from swarmd.gateway.forward import ask_member
from swarmd.gateway.services import Mesh, Services
from swarmd.gateway.status import status
from swarmd.memory.vector.service import IndexFacts
from swarmd.mesh.facts import MeshFacts
from swarmd.mesh.reach.service import PEERS_MAX
from swarmd.mesh.swim.events import Member
from swarmd.mesh.swim.messages import MemberState
from swarmd.mesh.swim.names import shared_names
from swarmd.wire.version import PROTOCOL_VERSION

_CLOCKS_MAX: Final = 64
# The driver of a database is loaded at first, and a server that is gone takes its time.
_INDEX_TIMEOUT_S: Final = 10.0


class Health(msgspec.Struct, frozen=True):
    """The answer of `/health`."""

    node: str
    wall_ms: int


async def gather_facts(services: Services, ask_timeout_s: float) -> NodeFacts:
    """Everything that a running daemon can find out, asking members at the same time.

    Args:
        ask_timeout_s: how long a member may take to tell its clock.
    """
    config, mesh = services.config, services.mesh
    local = await trio.to_thread.run_sync(
        partial(
            local_facts.gather,
            data_folder=config.data_folder,
            port=config.mesh.port,
            bind=config.mesh.bind,
            port_is_ours=mesh is not None,
        )
    )
    found = await status(services)
    asked = None if mesh is None else await _ask(services, mesh, ask_timeout_s)
    index = await _index(services)
    return NodeFacts(
        node=config.node_name,
        not_ready=found.reason,
        swarm=found.swarm,
        local=local,
        mesh=None if asked is None else asked[0],
        peers=() if asked is None else asked[1],
        store_state=found.store.state if found.store else "",
        voters=tuple(found.store.voters) if found.store else (),
        coordinator=found.coordinator,
        may_lose=found.store.may_lose if found.store else 0,
        next_loss=found.next_loss,
        version=__version__,
        protocol=PROTOCOL_VERSION,
        credential_left_ms=services.credential_left_ms(services.node_id),
        shared_names={} if mesh is None else _shared_names(mesh),
        index=index,
    )


async def _index(services: Services) -> IndexFacts | None:
    """How the index of vectors is; one whose database does not answer in time is unwell."""
    vectors = services.vectors
    if vectors is None:
        return None
    with trio.move_on_after(_INDEX_TIMEOUT_S):
        return await vectors.examine()
    late = f"the index of vectors gave no answer within {_INDEX_TIMEOUT_S:g} s"
    return IndexFacts(vectors.engine, None, late)


def _shared_names(mesh: Mesh) -> dict[str, list[str]]:
    shared = shared_names(mesh.membership.members())
    return {name: [short(one) for one in ids] for name, ids in shared.items()}


async def _ask(
    services: Services, mesh: Mesh, ask_timeout_s: float
) -> tuple[MeshFacts, tuple[PeerFacts, ...]]:
    """What the mesh finds, and every other member; the living ones are asked for their clock."""
    others = [
        one
        for one in mesh.membership.members()
        if one.node_id != services.node_id and one.state is not MemberState.LEFT
    ]
    names = Counter([services.config.node_name, *(one.name for one in others)])
    skews: dict[NodeId, float] = {}
    found: list[MeshFacts] = []

    async def ask_clock(member: Member) -> None:
        try:
            skews[member.node_id] = await _skew_s(services, mesh, member, ask_timeout_s)
        except SwarmError:
            return  # It is reported as one that did not answer.

    async def ask_mesh() -> None:
        found.append(await mesh.facts(_tried(others)))

    alive = [one for one in others if one.state is MemberState.ALIVE]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_mesh)
        for one in alive[:_CLOCKS_MAX]:
            nursery.start_soon(ask_clock, one)
    stream_only = set(mesh.membership.stream_only())
    unasked = {one.node_id for one in alive[_CLOCKS_MAX:]}
    return found[0], tuple(
        PeerFacts(
            name=one.name if names[one.name] == 1 else f"{one.name} {short(one.node_id)}",
            state=one.state.name.lower(),
            answered=one.node_id in skews or one.node_id in unasked,
            skew_s=skews.get(one.node_id, 0.0),
            hosts=tuple(host for host, _ in one.addresses),
            version=one.version,
            protocol=one.protocol,
            reach=found[0].reach.get(one.node_id),
            state_s=services.clock.now() - one.changed_at,
            stream_only=one.node_id in stream_only,
        )
        for one in others
    )


def _tried(others: Sequence[Member]) -> list[NodeId]:
    """Whom to call anew: who is missed first, and of the others as many as there is room for."""
    missed = [one.node_id for one in others if one.state is not MemberState.ALIVE]
    well = [one.node_id for one in others if one.state is MemberState.ALIVE]
    return [*missed[: PEERS_MAX // 2], *well][:PEERS_MAX]


async def _skew_s(services: Services, mesh: Mesh, member: Member, timeout_s: float) -> float:
    """How far the member's wall clock is ahead of ours, half the round trip allowed for."""
    clock = services.clock
    before_ms = clock.wall_ms()
    raw = await ask_member(mesh.link, member.node_id, "/health", timeout_s=timeout_s)
    after_ms = clock.wall_ms()
    try:
        theirs_ms = msgspec.msgpack.decode(raw, type=Health).wall_ms
    except msgspec.MsgspecError as error:
        raise NotReady(f"{member.name} did not tell its clock") from error
    return (theirs_ms - (before_ms + after_ms) / 2) / 1000
