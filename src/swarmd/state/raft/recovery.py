"""Going on alone after a majority of the voters is lost for ever.

The node that goes on takes what it has: a voter its whole log, also what may never have been
acknowledged, for some of it was; a learner its copy. The recovery key signs that state's digest
and this node's seat, as the first epoch of the next generation. What the lost voters
acknowledged and this node never got is lost; should some of them live on elsewhere, they turn
to the new generation as soon as they hear of it, and what they did meanwhile is void.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

import trio

from swarmd.base.errors import Conflict, NoQuorum, NotFound, SwarmError, Untrusted
from swarmd.identity.epochs import Chain, is_recovery, recovery_number, recovery_of
from swarmd.identity.genesis import Genesis
from swarmd.mesh.trust import Trust
from swarmd.observe.log import get_logger
from swarmd.state.raft.keeper import Keeper
from swarmd.state.raft.statefile import encode_state, restore_state, state_digest
from swarmd.state.raft.statemachine import StateMachine
from swarmd.wire.codec import encode_struct

# A majority that answers within this is there.
LOOK_S: Final = 2.0
BEGIN_TIMEOUT_S: Final = 10.0
_log = get_logger("raft")


@dataclass(frozen=True, slots=True)
class RecoveryPlan:
    """What this node would go on with.

    `source`: voter (its log) or learner (its copy). `statement` is what the recovery key signs,
    in the domain `epochs.RECOVERY_DOMAIN`.
    """

    source: str
    epoch: int
    revision: int
    keys: int
    statement: bytes


class Recovery:
    """Plans and begins the next generation on this node.

    Args:
        read_index: the store's.
        trust: what this node knows of the authority log.
    """

    def __init__(
        self,
        keeper: Keeper,
        genesis: Genesis,
        read_index: Callable[[float], Awaitable[int]],
        trust: Trust,
    ) -> None:
        self._keeper = keeper
        self._genesis = genesis
        self._read_index = read_index
        self._trust = trust
        self._planned: tuple[int, bytes] | None = None  # The head that the last plan goes on with.

    async def plan(self) -> RecoveryPlan:
        """Keep the state to go on with, durably, and say what is to be signed.

        Raises:
            Conflict: a majority of the voters answers; there is nothing to recover from.
            NotFound: this node holds no state of the newest epoch.
            DiskFault: the state could not be kept.
        """
        try:
            await self._read_index(LOOK_S)
        except NoQuorum:
            return await self._plan()
        raise Conflict("a majority of the voters answers: there is nothing to recover from")

    async def _plan(self) -> RecoveryPlan:
        head = self._keeper.chain.head
        source, state = await self._state_to_go_on_with()
        revision = state.revision
        self._planned = state.authority.head
        state.begin_generation()
        number, seat = recovery_number(head), self._keeper.seat
        body = encode_state(state.first_snapshot(number, (seat,)))
        self._keeper.keep_recovered(number, body)
        statement = encode_struct(recovery_of(head, state_digest(body), seat))
        return RecoveryPlan(source, head.number, revision, len(state), statement)

    async def _state_to_go_on_with(self) -> tuple[str, StateMachine]:
        """The newest state, with the records of authority that members were told of.

        The lost voters acknowledged these, also where this node's log never got them. Where the
        part of the log of which it is not known whether it was committed says something else,
        it was not, and is left out.
        """
        source, state = await _newest_state(self._keeper, self._genesis)
        try:
            self._take_records(state)
        except SwarmError as error:
            _log.warning("the end of the log was never committed", why=error.message)
            source, state = await _newest_state(self._keeper, self._genesis, whole=False)
            self._take_records(state)
        return source, state

    def _take_records(self, state: StateMachine) -> None:
        """Raises Untrusted: they do not follow from those of the state."""
        height, record_hash = state.authority.head
        if self._trust.noted_hash_at(height) not in (None, record_hash):
            raise Untrusted(f"authority record {height} of the log is not the one known here")
        for record in self._trust.noted_from(height):
            state.authority.replay(record)

    async def begin(self, certificate: bytes) -> None:
        """Go on alone with the state of the last plan.

        Raises:
            BadSignature, MalformedMessage, Untrusted: not what the recovery key of this swarm
                signs.
            Conflict: it is for another node, state or moment: plan again.
            NoQuorum: the new epoch did not begin in time; it still may.
        """
        keeper = self._keeper
        if not is_recovery(certificate):
            raise Untrusted("that is not signed as a recovery")
        scratch = Chain(self._genesis)
        for known in keeper.chain.certificates_from(1):
            scratch.extend(known)
        ended = scratch.head
        if not scratch.extend(certificate) or scratch.before_head != ended:
            raise Conflict("the swarm has moved on since: plan the recovery again")
        if scratch.head.voters != (keeper.seat,) or not keeper.holds_state(scratch.head):
            raise Conflict("that recovery is for another node or another state: plan it again")
        if self._planned is None or self._trust.noted[0] > self._planned[0]:
            raise Conflict("the authority log has gone on since: plan the recovery again")
        keeper.recover(certificate)
        with trio.move_on_after(BEGIN_TIMEOUT_S):
            while keeper.replica is None or keeper.replica.epoch != scratch.head:
                await keeper.changed()
            return
        raise NoQuorum("the next generation has not begun yet: see `swarmctl status`")


async def _newest_state(
    keeper: Keeper, genesis: Genesis, *, whole: bool = True
) -> tuple[str, StateMachine]:
    """`whole`: with the end of a voter's log, which may not have been committed."""
    head, replica = keeper.chain.head, keeper.replica
    if replica is not None and replica.epoch == head:
        tail = replica.unapplied() if whole else ()
        return "voter", copy_with(genesis, replica.state, tail)
    copied = await keeper.copier.state_of(head.number)
    if copied is None:
        raise NotFound(
            f"this node holds nothing of epoch {head.number}: recover on a voter or on the "
            "learner (`swarmctl --node NAME voter recover`)"
        )
    return "learner", copy_with(genesis, copied)


def copy_with(
    genesis: Genesis, state: StateMachine, commands: Iterable[bytes] = ()
) -> StateMachine:
    """Another state machine, in the state that `state` has after `commands`."""
    made = StateMachine(genesis)
    restore_state(made, encode_state(state.snapshot()))
    for command in commands:
        made.apply(command, 0, 0)
    return made
