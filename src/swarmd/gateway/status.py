"""What `status` and `members` say, made from what the rooms report. Pure but for the asking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from swarmd import __version__
from swarmd.base.errors import SwarmError
from swarmd.base.ids import NodeId, short, to_text
from swarmd.gateway import shapes
from swarmd.gateway.services import Services
from swarmd.identity.fingerprints import door_of, fingerprint_of_swarm
from swarmd.mesh.addresses import format_address
from swarmd.mesh.swim.events import Member
from swarmd.mesh.swim.messages import MemberState
from swarmd.mesh.swim.names import shared_names

# Without a coordinator the rest is told all the same, and soon.
_COUNTS_TIMEOUT_S: Final = 1.0
_STATES: Final = ("pending", "assigned", "running", "succeeded", "failed", "cancelled", "dead",
                  "unknown")  # fmt: skip


async def status(services: Services) -> shapes.Status:
    """The state of the node and of its swarm. It answers without a quorum too."""
    reason = services.control.not_ready()
    notes: list[str] = []
    members = services.mesh.membership.members() if services.mesh is not None else []
    present = [one for one in members if one.state is not MemberState.LEFT]
    alive = [one for one in present if one.state is MemberState.ALIVE]
    counts: dict[str, int] = {}
    if services.tasks is not None:
        try:
            with trio.fail_after(_COUNTS_TIMEOUT_S):
                found = await services.tasks.counts()
            counts = {state: found.get(state, 0) for state in _STATES}
        except trio.TooSlowError:
            notes.append("tasks are unknown: nobody coordinates them now")
        except SwarmError as error:
            notes.append(f"tasks are unknown: {error.message}")
    store = store_status(services)
    voters: Sequence[NodeId] = services.store.status().voters if services.store else ()
    coordinator = services.store.coordinator() if services.store is not None else None
    return shapes.Status(
        node=services.config.node_name,
        node_id=to_text(services.node_id),
        version=__version__,
        ready=not reason,
        reason=reason,
        swarm=services.trust.genesis.name if services.trust is not None else "",
        swarm_id=to_text(services.trust.swarm_id) if services.trust is not None else "",
        swarm_fingerprint=_fingerprint(services),
        alive=len(alive),
        total=len(present),
        coordinator=services.name_of(coordinator) if coordinator else "",
        store=store,
        tasks=counts,
        next_loss=next_loss(present, voters, store) if store is not None else "",
        uptime_s=round(services.clock.now() - services.started_at, 1),
        api=[f"https://{one}" for one in services.listening.addresses],
        api_fingerprint=services.listening.fingerprint(),
        notes=notes + ([f"store: {store.detail}"] if store is not None and store.detail else []),
    )


def _fingerprint(services: Services) -> str:
    """The swarm's fingerprint; empty without a swarm."""
    if services.trust is None:
        return ""
    return fingerprint_of_swarm(door_of(services.trust.swarm_id)).raw.hex()


def store_status(services: Services) -> shapes.StoreStatus | None:
    """What the strong store says of itself, with names for ids."""
    if services.store is None:
        return None
    found = services.store.status()
    return shapes.StoreStatus(
        state=str(found.state),
        detail=found.detail,
        epoch=found.epoch,
        role=str(found.role),
        term=found.term,
        revision=max(0, found.revision),
        voters=sorted(services.name_of(voter) for voter in found.voters),
        may_lose=max(0, found.may_lose),
        copies=found.copies,
    )


def next_loss(
    present: Sequence[Member], voters: Sequence[NodeId], store: shapes.StoreStatus
) -> str:
    """What the loss of one more node would cost, in one sentence."""
    names = {one.node_id: one.name for one in present}
    alive = [one.node_id for one in present if one.state is MemberState.ALIVE]
    away = sorted(names.get(one, short(one)) for one in voters if one not in alive)
    if store.state == "no_quorum":
        return (
            "no majority of the voters answers: nothing is accepted until "
            f"{_some(away) or 'another voter'} {'are' if len(away) > 1 else 'is'} back"
        )
    if len(alive) <= 1 and len(present) <= 1:
        return (
            "this is the only node: losing it stops the swarm, and losing its disk loses "
            "everything; add two more nodes"
        )
    if len(voters) <= 1:
        holder = store.voters[0] if store.voters else "the voter"
        others = [one.name for one in present if one.node_id not in voters]
        disk = "and losing its disk loses all records"
        if store.copies > 1:
            disk = "or until `swarmctl voter recover` goes on with the copy beside it"
        return (
            f"losing {holder}, the only voter, stops the swarm until it is back, {disk}; "
            f"losing {_some(others) or 'another node'} costs only the attempts it runs; from "
            "three nodes on, no single loss matters"
        )
    if store.may_lose == 0:
        return (
            f"{_some(away) or 'a voter'} {'are' if len(away) > 1 else 'is'} away: losing one more "
            "voter stops the swarm until one is back"
        )
    count = store.may_lose
    which = "any one node" if count == 1 else f"any {count} nodes"
    return f"{which} may be lost: its tasks start again elsewhere, nothing acknowledged is lost"


def _some(names: Sequence[str]) -> str:
    shown = list(names[:3])
    if len(names) > 3:
        shown.append(f"{len(names) - 3} more")
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def members(services: Services) -> list[shapes.MemberInfo]:
    """Every member as this node sees it."""
    mesh = services.need(services.mesh)
    voters: Sequence[NodeId] = services.store.status().voters if services.store else ()
    coordinator = services.store.coordinator() if services.store is not None else None
    found = mesh.membership.members()
    shared = {one: ids for ids in shared_names(found).values() for one in ids}
    return [
        shapes.MemberInfo(
            node_id=to_text(one.node_id),
            name=one.name,
            state=str(one.state.name).lower(),
            addresses=[format_address(address) for address in one.addresses],
            roles=list(one.roles),
            version=one.version,
            protocol=one.protocol,
            incarnation=one.incarnation,
            voter=one.node_id in voters,
            coordinator=one.node_id == coordinator,
            itself=one.node_id == services.node_id,
            namesakes=[to_text(x) for x in shared.get(one.node_id, ()) if x != one.node_id],
            tags=dict(one.tags),
            credential_left_s=_seconds(services.credential_left_ms(one.node_id)),
            rtt_ms=_rounded_ms(mesh.membership.estimate_s(one.node_id)),
        )
        for one in found
    ]


def _rounded_ms(rtt_s: float | None) -> float | None:
    return None if rtt_s is None else round(rtt_s * 1_000, 3)


def _seconds(left_ms: int | None) -> float | None:
    return None if left_ms is None else left_ms / 1_000
