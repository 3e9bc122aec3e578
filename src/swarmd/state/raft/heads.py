"""A voter's part in certifying the authority log: it notes, signs, and counts the others.

What the log applied is noted on disk (`mesh/trust.py`) before its head is signed, so that a
voter signs one hash per height whatever happens to it. Every height is signed, so that voters
that apply in different portions still sign the same; of what was there before the epoch began,
the head alone. Signatures go to the other voters of the epoch; whoever holds a majority of them
has the records count, and tells everybody (`mesh/trust_spread.py`). What was lost is mended by
sending the newest again, until it is certified by this epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from swarmd.base.errors import SwarmError
from swarmd.base.ids import NodeId
from swarmd.identity.epochs import Epoch
from swarmd.identity.heads import Head, HeadVotes, sign_head
from swarmd.identity.keys import SigningKey
from swarmd.mesh.link import Inbound, Link
from swarmd.mesh.trust import Trust
from swarmd.mesh.trust_spread import TRUST, page
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import DROPPED
from swarmd.state.raft.epoch_messages import HEADS, HEADS_AT_ONCE_MAX, HeadSigned
from swarmd.state.raft.replica import Replica

AGAIN_S: Final = 0.5
# Records that wait so long for signatures are worth telling people of.
OVERDUE_S: Final = 5.0

_log = get_logger("raft")


class Heads:
    """See the module. `overdue`: what was applied here has waited long to be certified."""

    def __init__(self, trust: Trust, key: SigningKey, link: Link) -> None:
        self._trust = trust
        self._key = key
        self._link = link
        self._replica: Replica | None = None
        self._votes: HeadVotes | None = None
        self._signed = 0  # Up to here in the epoch of `_votes`.
        self.overdue = False
        self._failing = False  # The last try to note something was in vain.
        self._told: dict[NodeId, float] = {}  # Voters that were told of a certificate, and when.
        self._moved = trio.Event()

    def state_moved(self, replica: Replica | None) -> None:
        """The replica applied something, or another one runs now, or none."""
        if replica is None:
            self._replica = self._votes = None
            return
        if replica is not self._replica:
            self._replica = replica
            self._votes = HeadVotes(self._trust.swarm_id, replica.epoch)
            self._signed = 0
            self._told = {}
            self._moved.set()
        if replica.state.authority.head[0] > self._signed and not self._failing:
            self._moved.set()
            self._advance(replica)

    async def receive(self, inbox: trio.MemoryReceiveChannel[Inbound]) -> None:
        """Count what other voters signed, until cancelled."""
        async for inbound in inbox:
            votes = self._votes
            if votes is None or votes.epoch.seat_of(inbound.peer) is None:
                DROPPED.labels("heads", "no_voter").inc()
                continue
            try:
                heights = [votes.add(signed).height for signed in inbound.message.signed]
                if heights and min(heights) <= self._trust.head[0]:
                    self._tell(votes, inbound.peer, max(heights))
            except SwarmError as error:
                DROPPED.labels("heads", error.code).inc()
            self._count(votes)

    async def run(self) -> None:
        """Try again what is not certified by this epoch yet, until cancelled."""
        while True:
            await self._moved.wait()
            self._moved = trio.Event()
            began = trio.current_time()
            while not self._is_done():
                await trio.sleep(AGAIN_S)
                self._try_again()
                self.overdue = trio.current_time() - began >= OVERDUE_S
            self.overdue = False

    @property
    def waiting(self) -> int:
        """How many records were applied or noted here that do not count yet."""
        known = self._trust.noted[0]
        if self._replica is not None:
            known = max(known, self._replica.state.authority.head[0])
        return known - self._trust.head[0]

    def _is_done(self) -> bool:
        if self._votes is None:
            return True
        return self.waiting <= 0 and self._trust.certifies(self._votes.epoch.key)

    def _try_again(self) -> None:
        replica, votes = self._replica, self._votes
        if replica is None or votes is None or self._is_done():
            return
        self._advance(replica)
        height, noted_hash = self._trust.noted
        if 0 < height <= self._signed:
            self._send(votes.epoch, [self._sign(votes.epoch, height, noted_hash)])
        self._count(votes)

    def _advance(self, replica: Replica) -> None:
        """Note what the log applied, then sign it."""
        votes = self._votes
        assert votes is not None
        authority, trust = replica.state.authority, self._trust
        height, head_hash = authority.head
        try:
            trust.note(authority.records_from(trust.noted[0]))
        except SwarmError as error:
            if not self._failing:
                _log.error("records of the store were not taken", error=error.message)
            self._failing = True
            return
        differs = trust.noted_hash_at(height) != head_hash
        if differs and not self._failing:
            _log.error("the store's authority log is not the one that counts here", height=height)
        self._failing = differs
        if differs or height <= self._signed:
            return
        signed = []
        for one in range(self._first_to_sign(votes.epoch, height), height + 1):
            noted_hash = trust.noted_hash_at(one)
            assert noted_hash is not None
            signed.append(self._sign(votes.epoch, one, noted_hash))
            votes.add(signed[-1])
        self._signed = height
        if signed:
            self._send(votes.epoch, signed)
            self._count(votes)

    def _first_to_sign(self, epoch: Epoch, height: int) -> int:
        """Each since the last, unless it is certified; of what was there before, the head alone."""
        first = self._signed + 1 if self._signed else height
        if self._trust.certified_by == epoch.key:
            first = max(first, self._trust.head[0] + 1)
        return max(first, height - HEADS_AT_ONCE_MAX + 1)

    def _sign(self, epoch: Epoch, height: int, record_hash: bytes) -> bytes:
        return sign_head(Head(epoch.key, height, record_hash), self._trust.swarm_id, self._key)

    def _send(self, epoch: Epoch, signed: Sequence[bytes]) -> None:
        message = HeadSigned(tuple(signed))
        for peer in epoch.node_ids:
            if peer != self._link.node_id:
                self._link.send_nowait(HEADS, peer, message)

    def _count(self, votes: HeadVotes) -> None:
        """Have count what a majority signed, this node among them or not."""
        trust, key = self._trust, votes.epoch.key
        if trust.epochs is None or trust.epochs.head.key != key:
            return  # What this epoch certifies counts no more.
        # A head that counts by an earlier epoch's word is to be certified by this one, too.
        above = trust.head[0] - (0 if trust.certified_by == key else 1)
        certificate = votes.certificate(above, trust.noted[0])
        if certificate is None:
            return
        try:
            trust.learn((), certificate)
        except SwarmError as error:
            _log.error("a certified head was not taken", error=error.message)
            return
        votes.forget(trust.head[0] - 1)

    def _tell(self, votes: HeadVotes, peer: NodeId, height: int) -> None:
        """Who still sends signatures on what is certified does not know that it is."""
        now = trio.current_time()
        if self._trust.certified_by != votes.epoch.key:
            return
        if now - self._told.get(peer, -AGAIN_S) < AGAIN_S:
            return
        self._told[peer] = now  # At most one for each voter of the epoch.
        self._link.send_nowait(TRUST, peer, page(self._trust, height))
