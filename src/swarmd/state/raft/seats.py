"""The coordinator's care for the seats: grows the set of voters and hands seats over.

Whom to seat is `voters.choose_voters`'s; this asks the chosen whether they are there and under
which storage, and proposes the seal. What follows, each node does by itself (`keeper`). A
member that stopped keeps its seat and is expected back; only one that leaves gives it away. One
that is alive and yet takes no part may have lost its disk: then its seat is given to the storage
that it has now, which is another voter.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import (
    Conflict,
    Moved,
    NotCoordinator,
    SwarmError,
    Unavailable,
    WouldLoseData,
)
from swarmd.base.ids import NodeId, short, to_text
from swarmd.mesh.link import Link
from swarmd.mesh.trust import Trust
from swarmd.observe.log import get_logger
from swarmd.state.raft import messages as m
from swarmd.state.raft.keeper import Keeper, MembersView
from swarmd.state.raft.replica import Replica
from swarmd.state.raft.voters import Candidate, choose_voters, seats_for

CHECK_S: Final = 0.5
ENLIST_TIMEOUT_S: Final = 1.0
# After an attempt, so that a flapping member cannot make epochs follow each other.
PAUSE_S: Final = 2.0
# A voter that is alive is expected to answer its leader within this.
MUTE_AFTER_S: Final = 5.0
_CHOICES_MAX: Final = 4
_log = get_logger("raft")


class Seats:
    """Runs on every voter; acts only while `serving` gives the coordinator's replica."""

    def __init__(
        self,
        *,
        keeper: Keeper,
        link: Link,
        membership: MembersView,
        trust: Trust,
        clock: Clock,
        serving: Callable[[], Replica | None],
        propose: Callable[[Replica, m.Operation], Awaitable[m.OpResult]],
    ) -> None:
        self._keeper = keeper
        self._link = link
        self._membership = membership
        self._trust = trust
        self._clock = clock
        self._serving = serving
        self._propose = propose
        self._size: tuple[int, float] = (0, clock.now())
        self._lock = trio.Lock()

    async def run(self) -> None:
        """Look every half second whether the seats are as they should be."""
        while True:
            await trio.sleep(CHECK_S)
            members = self._candidates()
            held_s = self._size_held_s(len(members))
            replica = self._serving()
            if replica is None or not self._keeper.settled:
                continue
            try:
                if await self._change(replica, members, size_held_s=held_s):
                    await trio.sleep(PAUSE_S)
            except SwarmError as error:
                _log.info("the voters stay as they are", why=error.message)
                await trio.sleep(PAUSE_S)

    async def hand_over(self, leaving: NodeId) -> None:
        """On the coordinator: propose the epoch in which `leaving` has no seat.

        Raises:
            WouldLoseData: nobody alive can take over what `leaving` holds.
            NotCoordinator: ask another node.
            SwarmError: the seal did not commit, or not within the caller's patience.
        """
        replica = self._serving()
        if replica is None:
            raise NotCoordinator("this node does not lead the strong store now")
        if leaving not in replica.epoch.node_ids:
            return
        if not await self._change(replica, self._candidates(), leaving=leaving):
            raise WouldLoseData(
                f"node {short(leaving)} cannot leave: no living members can hold the swarm's "
                f"{len(replica.state)} keys without it; start or join other nodes first"
            )

    def _candidates(self) -> list[Candidate]:
        seated = self._keeper.chain.head.node_ids
        alive = set(self._membership.alive())
        known = {
            member.node_id for member in self._membership.members() if str(member.state) != "left"
        }
        candidates = []
        for node_id in sorted(known.union(seated)):
            admission = self._trust.admission(node_id)
            if admission is None and node_id not in seated:
                continue  # Its record has not arrived here yet.
            if admission is None or not admission.evicted:
                capable = admission is None or "voter" in admission.roles
                candidates.append(Candidate(node_id, node_id in alive, capable))
        return candidates

    def _size_held_s(self, count: int) -> float:
        now = self._clock.now()
        if self._size[0] != seats_for(count):
            self._size = (seats_for(count), now)
        return now - self._size[1]

    async def _change(
        self,
        replica: Replica,
        members: list[Candidate],
        *,
        leaving: NodeId | None = None,
        size_held_s: float = 0.0,
    ) -> bool:
        """Propose the seal that `choose_voters` calls for; False if it calls for none.

        A member that seems alive and does not answer is passed over.
        """
        current = replica.epoch.node_ids
        async with self._lock:
            for _ in range(_CHOICES_MAX):
                chosen = choose_voters(members, current, leaving=leaving, size_held_s=size_held_s)
                if chosen == current and not self._some_are_mute(replica):
                    return False
                enlisted = await self._enlist(chosen)
                if chosen == current and set(enlisted.values()) <= set(replica.epoch.voters):
                    return False
                silent = [v for v in chosen if v not in enlisted]
                if not silent or self._can_do_without(silent, chosen, current):
                    await self._seal(replica, chosen, enlisted)
                    return True
                members = [replace(c, alive=c.alive and c.node_id not in silent) for c in members]
            raise Unavailable(f"voters do not answer: {', '.join(map(short, silent))}")

    @staticmethod
    def _can_do_without(
        silent: list[NodeId], chosen: tuple[NodeId, ...], current: tuple[NodeId, ...]
    ) -> bool:
        """Old voters may be away, new ones not; and a majority must be there."""
        return set(silent) <= set(current) and len(silent) <= (len(chosen) - 1) // 2

    async def _seal(
        self,
        replica: Replica,
        chosen: tuple[NodeId, ...],
        enlisted: dict[NodeId, m.Voter],
    ) -> None:
        number = replica.epoch.number + 1
        seats = tuple(enlisted.get(v) or _seat(replica, v) for v in chosen)
        result = await self._propose(replica, m.Seal(number, seats))
        if result.code == Moved.code:
            raise Moved(result.message)
        if not result.ok:
            raise Conflict(f"epoch {number} was not begun: {result.message}")

    def _some_are_mute(self, replica: Replica) -> bool:
        """Does a voter that is alive take no part?"""
        silence_s = replica.status().silence_s
        return any(
            silence_s.get(to_text(voter), 0.0) > MUTE_AFTER_S
            for voter in self._membership.alive()
            if voter in replica.epoch.node_ids
        )

    async def _enlist(self, chosen: tuple[NodeId, ...]) -> dict[NodeId, m.Voter]:
        enlisted: dict[NodeId, m.Voter] = {}

        async def ask(peer: NodeId) -> None:
            try:
                answer = await self._link.request(
                    m.EPOCH, peer, m.Enlist(), timeout_s=ENLIST_TIMEOUT_S
                )
            except SwarmError:
                return  # Missing, and named so by the caller.
            if isinstance(answer, m.Enlisted) and answer.voter.node_id == peer:
                enlisted[peer] = answer.voter

        async with trio.open_nursery() as nursery:
            for peer in chosen:
                nursery.start_soon(ask, peer)
        return enlisted


def _seat(replica: Replica, node_id: NodeId) -> m.Voter:
    seat = replica.epoch.seat_of(node_id)
    assert seat is not None
    return seat
