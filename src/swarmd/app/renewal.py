"""Keeping this node's credential alive, and this node's idea of how late it is.

Every few minutes it asks the coordinator for store time, which tells the trust who has expired,
and from half of its own credential's life on puts its entry `Renew` into the log. Nodes do so
at times of their own, spread over a twentieth of a life. Where nobody talks to it any more, which
is what a node meets that slept while all it knew were replaced, or that has expired, it asks from
outside what it missed (`mesh.catching_up`), and to be renewed (`mesh.renewal`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import trio

from swarmd.base.errors import Conflict, Evicted, SwarmError
from swarmd.base.notes import NOBODY, Notes
from swarmd.base.rng import Rng
from swarmd.identity import authority
from swarmd.identity.authority import Admission
from swarmd.identity.keys import SigningKey
from swarmd.mesh.addresses import Address
from swarmd.mesh.catching_up import catch_up_from_outside
from swarmd.mesh.renewal import renew_from_outside, renewal_of
from swarmd.mesh.trust import Trust
from swarmd.mesh.trust_spread import Alive
from swarmd.observe.log import get_logger
from swarmd.state.raft.messages import AuthorityEntry, Operation, OpResult

CHECK_EVERY_S: Final = 600.0
RETRY_FIRST_S: Final = 5.0
# How long the coordinator is looked for.
_ASK_S: Final = 3.0
_POLL_S: Final = 0.05
# So often nobody may tell the time while members talk to this node, before it asks from outside:
# they may have expired as it has, or been shut out, and not know it either.
_SILENCES_BORNE: Final = 3
# A life has so many checks at least, however short it is.
_CHECKS_PER_LIFE: Final = 60
_SPREAD: Final = 20
_DAY_MS: Final = 86_400_000

_log = get_logger("credential")


class Mesh(Protocol):
    @property
    def membership(self) -> Alive: ...
    def possible_addresses(self) -> tuple[Sequence[Address], Sequence[Address]]:
        """Where members may be: where people said, and where anything else tells."""
        ...


class Store(Protocol):
    def learn_epochs(self, certificates: Sequence[bytes]) -> None: ...
    async def read_time_ms(self, timeout_s: float = 5.0) -> int: ...
    async def propose(
        self, ops: Sequence[Operation], *, timeout_s: float = 5.0
    ) -> Sequence[OpResult]: ...


def renew_at_ms(mine: Admission) -> int:
    """Store time at which a node renews: from half of the life on, each at a place of its own."""
    room_ms = (mine.expires_ms - mine.not_before_ms) // _SPREAD
    return mine.renewable_ms + int.from_bytes(mine.node_id[:4], "big") * room_ms // 2**32


class Renewal:
    """One node's care for its credential. Run it for as long as the node runs."""

    def __init__(
        self,
        mesh: Mesh,
        store: Store,
        trust: Trust,
        key: SigningKey,
        rng: Rng,
        notes: Notes = NOBODY,
    ) -> None:
        self._mesh, self._store, self._trust, self._key = mesh, store, trust, key
        self._rng = rng
        self._silences = 0  # How often in a row nobody told the time.
        self._notes = notes

    async def run(self) -> None:
        """Check and renew until cancelled."""
        every_s = min(CHECK_EVERY_S, authority.CREDENTIAL_MS / 1_000 / _CHECKS_PER_LIFE)
        retry_s = RETRY_FIRST_S
        while True:
            if await self.check():
                pause_s, retry_s = every_s, RETRY_FIRST_S
            else:
                pause_s, retry_s = retry_s, min(2 * retry_s, CHECK_EVERY_S)
            await trio.sleep(min(pause_s, every_s) * self._rng.uniform(0.75, 1.25))

    async def check(self) -> bool:
        """Learn how late it is and renew if it is time to; False if something stood against it."""
        try:
            now_ms = await self._store.read_time_ms(_ASK_S)
        except SwarmError as error:
            return await self._from_outside(error)
        self._silences = 0
        self._trust.tell_time(now_ms)
        mine = self._trust.known(self._key.key_id)
        if mine is None or now_ms < renew_at_ms(mine):
            return True
        try:
            [result] = await self._store.propose(
                [AuthorityEntry(renewal_of(self._trust, self._key))]
            )
            result.raise_for_error()
        except Conflict:
            return True  # It was renewed, and the record is on its way here.
        except SwarmError as error:
            self._complain(mine, now_ms, error)
            self._note(error.code)
            return False
        _log.info("credential renewed")
        self._note("ok")
        return True

    async def _from_outside(self, silence: SwarmError) -> bool:
        self._silences += 1
        alone = self._mesh.membership.alive() in ([], [self._key.key_id])
        if not alone and self._silences <= _SILENCES_BORNE:
            return False  # Members talk to it: perhaps they lack a majority, and only that.
        first, others = self._mesh.possible_addresses()
        others = list(others)
        self._rng.shuffle(others)  # Not the same few at each time.
        addresses = [*first, *others]
        if not addresses or self._trust.known(self._key.key_id) is None:
            return False  # Nobody to ask; or it was evicted, and its daemon is about to end.
        if await self._catch_up(addresses):
            return False  # Who is there now is known: they are met first.
        try:
            await renew_from_outside(addresses, self._trust, self._key)
        except Conflict:
            return False  # It need not be renewed; something else keeps the others away.
        except Evicted as error:
            _log.error("a member says that this node was evicted", why=error.message)
            return False
        except SwarmError as error:
            _log.debug("not renewed from outside", why=error.message, silence=silence.message)
            return False
        _log.info("credential renewed from outside: members talk to this node again")
        self._note("ok", "from outside")
        return True

    def _note(self, outcome: str, details: str = "") -> None:
        mine = self._trust.known(self._key.key_id)
        name = mine.name if mine is not None else ""
        self._notes.note("node.renewed", name, name, outcome, details)

    async def _catch_up(self, addresses: Sequence[Address]) -> bool:
        """Learn from outside what was missed; whether there was anything."""
        if self._trust.epochs is None:
            return False
        try:
            missed = await catch_up_from_outside(addresses, self._trust, self._key)
            self._store.learn_epochs(missed.epochs)
            with trio.move_on_after(_ASK_S):
                while self._trust.epochs.number_of(missed.epoch) is None:  # noqa: ASYNC110
                    await trio.sleep(_POLL_S)
            if not self._trust.adopt(missed.state, missed.certificate) and not missed.epochs:
                return False
        except SwarmError as error:
            _log.debug("nothing was learned from outside", why=error.message)
            return False
        _log.info("caught up from outside", height=self._trust.head[0], epochs=len(missed.epochs))
        return True

    def _complain(self, mine: Admission, now_ms: int, error: SwarmError) -> None:
        left_ms = mine.expires_ms - now_ms
        urgent = left_ms < (mine.expires_ms - mine.not_before_ms) // 4
        say = _log.error if urgent else _log.warning
        say(
            "the credential of this node was not renewed; it is tried again",
            why=error.message,
            days_left=round(left_ms / _DAY_MS, 1),
            todo="see `swarmctl doctor`; once it is over, members refuse this node until it is "
            "renewed, which needs a majority of the voters",
        )
