"""Handing the coordinator's office from one voter to another, asked for on any node.

The log's leader does the work (`transfer.py`); here a target is chosen, and who asked is told
who coordinates once that is known. A node that stops in order or gives its seat away hands its
office over first, so that nobody waits for an election.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final

import trio

from swarmd.base.errors import BadRequest, RemoteError, SwarmError, Unavailable
from swarmd.base.ids import NodeId, short, to_text
from swarmd.observe.log import get_logger
from swarmd.state.raft import messages as m
from swarmd.state.raft.caller import ATTEMPT_TIMEOUT_S, Caller
from swarmd.state.raft.keeper import MembersView
from swarmd.state.raft.replica import Replica

GIVE_UP_TIMEOUT_S: Final = 2.0
_log = get_logger("raft")


class Handing:
    """Used by every node; acts by itself only where `serving` gives the coordinator's replica."""

    def __init__(
        self,
        me: NodeId,
        membership: MembersView,
        caller: Caller,
        serving: Callable[[], Replica | None],
    ) -> None:
        self._me = me
        self._membership = membership
        self._caller = caller
        self._serving = serving

    async def try_transfer(self, target: NodeId | None, asked: set[NodeId]) -> NodeId:
        """One try, here or at the coordinator; who coordinates then.

        `asked` keeps whom earlier tries asked: where another coordinates since, the answer was
        lost and not the transfer.
        """
        here = self._serving() is not None
        coordinator = self._me if here else await self._caller.locate()
        if asked and coordinator not in asked and target in (None, coordinator):
            return coordinator
        asked.add(coordinator)
        if here:
            return await self.transfer_here(target)
        answer = await self._caller.ask_coordinator(m.TransferAsk(target or b""))
        if not isinstance(answer, m.Transferred):
            raise RemoteError("not the outcome of a transfer")
        return NodeId(answer.node)

    async def transfer_here(self, target: NodeId | None) -> NodeId:
        """On the coordinator: hand over, and wait until somebody is known to lead.

        Raises:
            BadRequest: `target` is no voter, or there is no other voter.
            Unavailable: the office is where it was, or another voter took it.
        """
        replica = self._serving()
        if replica is None:
            raise Unavailable("this node does not lead the strong store now")
        chosen = target or self._best_successor(replica)
        if chosen == self._me:
            return chosen
        await replica.transfer(chosen)
        with trio.move_on_after(ATTEMPT_TIMEOUT_S):
            while replica.leader in (None, self._me):
                await replica.office_changed()
        leader = replica.leader
        if leader is None or (target is not None and leader != target):
            found = "nobody" if leader is None else short(leader)
            raise Unavailable(f"{short(chosen)} was asked to coordinate, but {found} does")
        return leader

    def _best_successor(self, replica: Replica) -> NodeId:
        """The voter alive that holds the most of the log; of those the one heard of last."""
        alive = set(self._membership.alive())
        status = replica.status()
        others = [v for v in replica.epoch.node_ids if v != self._me]
        if not others:
            raise BadRequest("there is no other voter that could coordinate")
        living = [v for v in others if v in alive] or others

        def fitness(voter: NodeId) -> tuple[int, float]:
            name = to_text(voter)
            return status.matched.get(name, 0), -status.silence_s.get(name, inf)

        return max(living, key=fitness)

    async def give_up(self) -> None:
        """Before an orderly stop, or before the seat is given away: hand the office over, if it
        is here and somebody can take it.
        """
        replica = self._serving()
        alive = set(self._membership.alive()) - {self._me}
        if replica is None or alive.isdisjoint(replica.epoch.node_ids):
            return
        try:
            with trio.move_on_after(GIVE_UP_TIMEOUT_S):
                successor = await self.transfer_here(None)
                _log.info("handed the coordinator's office over", to=short(successor))
        except SwarmError as error:
            _log.info("the office stays here until others elect", why=error.message)
