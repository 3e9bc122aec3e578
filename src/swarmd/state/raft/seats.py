"""The shell of `seat_machine`: shows it the members and the epoch, asks and proposes for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import NotCoordinator, SwarmError, from_code
from swarmd.base.ids import NodeId, to_text
from swarmd.base.pace import pause
from swarmd.mesh.driver import Driver
from swarmd.mesh.link import Link
from swarmd.mesh.trust import Trust
from swarmd.observe.log import get_logger
from swarmd.state.raft import epoch_messages as emsg
from swarmd.state.raft import messages as m
from swarmd.state.raft import seat_machine as sm
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.copies import Copies
from swarmd.state.raft.keeper import Keeper, MembersView
from swarmd.state.raft.replica import Replica
from swarmd.state.raft.statemachine import StateMachine
from swarmd.state.raft.voters import Candidate

CHECK_S: Final = 0.5
LEAVE_CHECK_S: Final = 0.1
ENLIST_TIMEOUT_S: Final = 1.0
_log = get_logger("raft")


class _Leaver:
    """Someone who waits until a seat is given away."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: SwarmError | None = None


class Seats:
    """Runs on every voter; acts only while `serving` gives the coordinator's replica."""

    def __init__(
        self,
        *,
        keeper: Keeper,
        copies: Copies,
        link: Link,
        membership: MembersView,
        trust: Trust,
        clock: Clock,
        config: RaftConfig,
        serving: Callable[[], Replica | None],
        propose: Callable[[Replica, m.Operation], Awaitable[m.OpResult]],
        nursery: trio.Nursery,
    ) -> None:
        self._keeper = keeper
        self._copies = copies
        self._link = link
        self._membership = membership
        self._trust = trust
        self._serving = serving
        self._propose = propose
        self._leavers: dict[int, _Leaver] = {}
        self._seen: sm.Looked | None = None
        self._tag = 0
        self._driver = Driver(
            "seats",
            sm.SeatMachine(config.replace_dead_s),
            {
                sm.AskSeat: lambda effect: nursery.start_soon(self._ask_seat, effect),
                sm.Follow: lambda effect: copies.tell(effect.peer, effect.number),
                sm.ProposeSeal: lambda effect: nursery.start_soon(self._seal, effect),
                sm.LeaveEnded: self._leave_ended,
                sm.Stays: lambda effect: _log.info("the voters stay as they are", why=effect.why),
            },
            clock=clock,
        )

    async def run(self) -> None:
        """Look every half second whether the seats are as they should be."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._driver.run)
            while True:
                self._look()
                await pause(CHECK_S)

    async def hand_over(self, leaving: NodeId) -> None:
        """On the coordinator: propose the epoch in which `leaving` has no seat.

        Raises:
            WouldLoseData: nobody alive can take over what `leaving` holds.
            NotCoordinator: ask another node.
            SwarmError: the seal did not commit, or not within the caller's patience.
        """
        if self._serving() is None:
            raise NotCoordinator("this node does not lead the strong store now")
        self._look()
        self._tag += 1
        tag, leaver = self._tag, _Leaver()
        self._driver.feed(sm.Leaves(tag, leaving))
        self._leavers[tag] = leaver
        try:
            while not leaver.done.is_set():
                with trio.move_on_after(LEAVE_CHECK_S):
                    await leaver.done.wait()
                    break
                self._look()  # What it waits for may have come about.
        finally:
            self._leavers.pop(tag, None)
        if leaver.error is not None:
            raise leaver.error

    # ---- what is to be seen --------------------------------------------------------------

    def _look(self) -> None:
        replica = self._serving()
        number = self._keeper.chain.head.number
        seen = sm.Looked(tuple(self._candidates()), self._coordinated(replica), number)
        if seen.epoch is None and seen == self._seen:
            return  # For how long it is so the machine knows by itself.
        self._driver.feed(seen)
        self._seen = seen

    def _coordinated(self, replica: Replica | None) -> sm.Coordinated | None:
        if replica is None:
            return None
        status = replica.status()
        progress = [sm.Progress(self._link.node_id, 0.0, 0)]
        for voter in replica.epoch.node_ids:
            name = to_text(voter)
            if voter != self._link.node_id:
                behind = max(0, status.last_index - status.matched.get(name, 0))
                silence_s = status.silence_s.get(name, 0.0)
                agrees = name in status.agreeing
                progress.append(sm.Progress(voter, silence_s, behind, agrees))
        for peer in self._copies.followers(replica.epoch.number):
            lag = self._copies.lag(peer, replica.epoch.number, status.last_index)
            if lag is not None:
                progress.append(sm.Progress(peer, *lag))
        return sm.Coordinated(
            replica.epoch.number, replica.epoch.voters, tuple(progress), len(replica.state)
        )

    def _candidates(self) -> list[Candidate]:
        seated = self._keeper.chain.head.node_ids
        alive = set(self._membership.alive())
        known = {
            member.node_id: member
            for member in self._membership.members()
            if str(member.state) != "left"
        }
        pins, evicted = self._pins(), self._trust.evicted()
        candidates = []
        for node_id in sorted({*known, *seated}):
            admission = self._trust.admission(node_id)
            if node_id in evicted or (admission is None and node_id not in seated):
                continue  # Shut out, or its record has not arrived here yet.
            capable = admission is None or "voter" in admission.roles
            host = _host_of(known.get(node_id))
            candidates.append(Candidate(node_id, node_id in alive, capable, node_id in pins, host))
        return candidates

    def _pins(self) -> set[bytes]:
        replica = self._keeper.replica
        return set(pinned(replica.state)) if replica is not None else set()

    # ---- effects -------------------------------------------------------------------------

    async def _ask_seat(self, effect: sm.AskSeat) -> None:
        voter = None
        try:
            answer = await self._link.request(
                emsg.EPOCH, effect.peer, emsg.Enlist(), timeout_s=ENLIST_TIMEOUT_S
            )
        except SwarmError:
            pass  # Missing: the machine passes it over, or names it.
        else:
            if isinstance(answer, emsg.Enlisted):
                voter = answer.voter
        self._driver.feed(sm.SeatAnswered(effect.tag, voter))

    async def _seal(self, effect: sm.ProposeSeal) -> None:
        replica = self._serving()
        try:
            if replica is None or replica.epoch.number + 1 != effect.number:
                raise NotCoordinator("this node does not lead the strong store now")
            result = await self._propose(replica, m.Seal(effect.number, effect.voters))
        except SwarmError as error:
            self._driver.feed(sm.SealEnded(effect.tag, error.code, error.message))
        else:
            self._driver.feed(sm.SealEnded(effect.tag, result.code, result.message))

    def _leave_ended(self, effect: sm.LeaveEnded) -> None:
        leaver = self._leavers.get(effect.tag)
        if leaver is None:
            return
        if effect.code is not None:
            leaver.error = from_code(effect.code, effect.message)
        leaver.done.set()


def pinned(state: StateMachine) -> list[NodeId]:
    """Whom the state names as pinned to a seat; the lowest ids, if they are too many."""
    entries = state.range(m.PIN_PREFIX, limit=m.PINS_MAX)
    return [NodeId(entry.key[len(m.PIN_PREFIX) :]) for entry in entries]


def _host_of(member: Any) -> str:
    """What tells hosts apart: the first address that a member tells."""
    addresses = getattr(member, "addresses", ())
    return str(addresses[0][0]) if addresses else ""
