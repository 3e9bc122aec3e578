"""Epochs: how the set of voters changes, by sealing one run of the log and beginning another.

After Lamport, Malkhi and Zhou, *Reconfiguring a State Machine* (2010), the stoppable state
machine: within an epoch the voters are fixed. An epoch ends when its log holds a seal that
names the next voters; the state right after the seal is what the next epoch begins with.

The *seal certificate* is one `Statement` signed by a majority of the old voters, each after
its own durable apply of the seal. The chain of certificates is `identity/epochs.py`'s.

Rules:
- A voter signs only the first seal of its log, so an epoch has at most one successor. Where two
  show up (`EpochFork`) the node stops loudly. Whoever asks for newer epochs compares the newest
  that it has, too.
- Until it holds the certificate an old voter stays an ordinary member of its epoch. From then
  on, durably, it never votes, appends or acknowledges in it.
- A new voter votes only after the sealed state, checked against the certificate's digest, is
  durable here. Where the state came from does not matter.
- What is left of old epochs goes only after a majority of the new voters hold the state.

`decide` says what to do next from what is durable and known. Every step may be repeated, so a
crash anywhere is mended by asking again after the restart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from swarmd.base.errors import Diverged
from swarmd.base.ids import NodeId, short
from swarmd.base.machine import Effect
from swarmd.identity.epochs import SEAL_DOMAIN, Epoch, Statement, decode_statement
from swarmd.identity.keys import SigningKey
from swarmd.identity.signing import sign_envelope, verify_envelope
from swarmd.identity.voter import Voter
from swarmd.wire.codec import encode_struct
from swarmd.wire.envelope import Envelope, decode_envelope, encode_envelope


class Ballot:
    """Signatures on this node's own statement, collected until a majority made it."""

    def __init__(
        self, swarm_id: bytes, epoch: Epoch, statement: Statement, key: SigningKey
    ) -> None:
        self._swarm_id = swarm_id
        self._epoch = epoch
        self._payload = encode_struct(statement)
        self._signatures: dict[bytes, bytes] = {}
        self.own = encode_envelope(sign_envelope(SEAL_DOMAIN, swarm_id, self._payload, key))
        self.add(self.own)

    def add(self, raw: bytes) -> bool:
        """Count a signature; True if it was not counted before. One of another epoch is not.

        Raises:
            Diverged: a voter signed another state for the same seal.
            SwarmError: not an envelope, or not signed by a voter of the epoch.
        """
        envelope = decode_envelope(raw, domain=SEAL_DOMAIN)
        keys: dict[bytes, bytes] = {v.node_id: v.public for v in self._epoch.voters}
        signers = verify_envelope(envelope, self._swarm_id, keys)
        if decode_statement(envelope.payload).before != self._epoch.key:
            return False
        if envelope.payload != self._payload:
            raise Diverged(
                f"voter {short(signers[0])} sealed epoch {self._epoch.number} with another state"
            )
        before = len(self._signatures)
        self._signatures.update(dict(envelope.signatures))
        return len(self._signatures) > before

    def signers(self) -> list[bytes]:
        return sorted(self._signatures)

    def certificate(self) -> bytes | None:
        """The certificate, once a majority signed."""
        if len(self._signatures) < self._epoch.majority:
            return None
        signatures = tuple(sorted(self._signatures.items()))
        return encode_envelope(Envelope(SEAL_DOMAIN, self._payload, signatures))


# ---- what to do next -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step(Effect):
    """Something to do; subclasses say what. Doing it twice is harmless."""


@dataclass(frozen=True, slots=True)
class StopEpoch(Step):
    """Stop taking part in `number` for ever: its certified successor is known durably."""

    number: int


@dataclass(frozen=True, slots=True)
class KeepSealedState(Step):
    """Write the sealed state durably, as the first state of `number`."""

    number: int


@dataclass(frozen=True, slots=True)
class SignSeal(Step):
    """Sign the own statement and send it to `to`."""

    to: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class FetchState(Step):
    """Get the first state of `number` from any of `sources`, check it, write it durably."""

    number: int
    sources: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class StartEpoch(Step):
    number: int


@dataclass(frozen=True, slots=True)
class AskInstalled(Step):
    """Ask `of` whether they hold the first state of `number`."""

    number: int
    of: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class DropEpochs(Step):
    """Delete what is left of `numbers`."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a node knows.

    Attributes:
        head: the newest certified epoch; `before` is the one that ended, None for the first.
        me: this node's key and storage.
        running: the number of the epoch whose log runs here.
        sealed: the number that follows it, once the running epoch applied its seal.
        states: numbers of the epochs whose first state is durable here.
        leftovers: numbers of epochs of which something is on this disk and in which it has no
            part any more: ended ones, and the newest one if it has no seat there.
        installed: voters of `head` known to hold its first state.
    """

    head: Epoch
    before: Epoch | None
    me: Voter
    running: int | None = None
    sealed: int | None = None
    states: frozenset[int] = frozenset()
    leftovers: tuple[int, ...] = ()
    installed: frozenset[NodeId] = field(default_factory=frozenset)


def decide(facts: Facts) -> list[Step]:
    """The next steps, in order; empty if all is as it should be."""
    head, me = facts.head, facts.me
    if facts.running is not None and facts.running < head.number:
        return [StopEpoch(facts.running)]
    if facts.running == head.number:
        if facts.sealed is None:
            return _clean(facts)
        if facts.sealed not in facts.states:
            return [KeepSealedState(facts.sealed)]
        return [SignSeal(head.node_ids)]
    if head.seat_of(me.node_id) != me:
        return _clean(facts)
    if head.digest is None or head.number in facts.states:
        return [StartEpoch(head.number), *_clean(facts)]
    sources = _others(me.node_id, facts.before.node_ids if facts.before else (), head.node_ids)
    return [FetchState(head.number, sources)]


def _clean(facts: Facts) -> list[Step]:
    """Delete old epochs once a majority of the new voters can do without."""
    if not facts.leftovers:
        return []
    head = facts.head
    holders = set(facts.installed)
    if head.number in facts.states and head.seat_of(facts.me.node_id) == facts.me:
        holders.add(facts.me.node_id)
    if len(holders.intersection(head.node_ids)) >= head.majority:
        return [DropEpochs(facts.leftovers)]
    missing = tuple(v for v in head.node_ids if v not in holders)
    return [AskInstalled(head.number, missing)]


def _others(me: NodeId, *groups: Iterable[NodeId]) -> tuple[NodeId, ...]:
    seen: dict[NodeId, None] = {}
    for group in groups:
        for node_id in group:
            if node_id != me:
                seen.setdefault(node_id)
    return tuple(seen)
