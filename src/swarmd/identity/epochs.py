"""Epochs: who votes, and so who may certify what the swarm decided.

An epoch is a run of the log with fixed voters. It ends with a *seal certificate*: one `Statement`
that names the next voters, signed by a majority of the old ones. Certificates form a chain that
begins at the genesis, whose first node is the only voter of epoch 1, so that anybody can verify
who votes now.

- Two majorities of one epoch share a voter, and a voter signs only the first seal of its log, so
  an epoch has at most one successor. Two valid certificates for one number mean that keys or
  disks were copied, or that the recovery key signed twice: `EpochFork`.
- When a majority of an epoch is lost for ever, the recovery key that the genesis names may sign a
  successor instead: of the next generation, whose epochs have higher numbers than any of the one
  before. The highest generation wins; what the old one did meanwhile is void.

How epochs end and begin is `state/raft/epoch.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from swarmd.base.errors import (
    BadSignature,
    CorruptFile,
    MalformedMessage,
    SwarmError,
    Untrusted,
)
from swarmd.base.ids import NodeId, digest, node_id_of
from swarmd.identity.genesis import Genesis
from swarmd.identity.signing import verify_envelope
from swarmd.identity.voter import PUBLIC_BYTES, STORAGE_BYTES, VOTERS_MAX, Voter
from swarmd.wire.codec import decode_struct, encode_struct
from swarmd.wire.envelope import Envelope, decode_envelope

SEAL_DOMAIN: Final = "seal"
RECOVERY_DOMAIN: Final = "recover"
# Numbers of a generation begin at its multiple of this.
GENERATION_EPOCHS: Final = 1_000_000
GENERATIONS_MAX: Final = 1_000_000
CHAIN_EPOCHS_MAX: Final = 100_000
EPOCH_KEY_BYTES: Final = 16


class EpochFork(SwarmError):
    """Two certified successors of one epoch: the swarm's history has split. Nothing changed."""

    code = "epoch_fork"


class Statement(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What old voters sign. `before` is the key of the epoch that ends, `number` of the next.

    `index` is the seal's place in the old log, `digest` that of the state right after it.
    """

    generation: int
    number: int
    before: bytes
    index: int
    digest: bytes
    voters: tuple[Voter, ...]


@dataclass(frozen=True, slots=True)
class Epoch:
    """One run of the log. `key` names it in every packet; `digest` is of its first state."""

    generation: int
    number: int
    key: bytes
    voters: tuple[Voter, ...]
    digest: bytes | None

    @property
    def majority(self) -> int:
        return len(self.voters) // 2 + 1

    @property
    def node_ids(self) -> tuple[NodeId, ...]:
        """The voters' node ids, sorted."""
        return tuple(sorted(v.node_id for v in self.voters))

    @property
    def keys(self) -> dict[bytes, bytes]:
        """The voters' public keys by node id."""
        return {v.node_id: v.public for v in self.voters}

    def seat_of(self, node_id: bytes) -> Voter | None:
        return next((v for v in self.voters if v.node_id == node_id), None)


def founder_storage(swarm_id: bytes) -> bytes:
    """The storage of the first node's seat in epoch 1, which nobody certifies."""
    return digest(b"founder", swarm_id)[:STORAGE_BYTES]


def first_epoch(genesis: Genesis) -> Epoch:
    swarm_id = genesis.swarm_id
    voter = Voter(genesis.first_node_public, founder_storage(swarm_id))
    return Epoch(0, 1, digest(b"epoch", swarm_id)[:EPOCH_KEY_BYTES], (voter,), None)


def statement_of(
    epoch: Epoch, number: int, index: int, state: bytes, voters: Sequence[Voter]
) -> Statement:
    """The statement that ends `epoch`; `state` is the digest of the sealed state."""
    return Statement(epoch.generation, number, epoch.key, index, state, tuple(voters))


def recovery_of(epoch: Epoch, state: bytes, voter: Voter) -> Statement:
    """What the recovery key signs to have `voter` go on alone after `epoch` is lost.

    `state` is the digest of the state it goes on with.
    """
    generation = epoch.generation + 1
    return Statement(generation, recovery_number(epoch), epoch.key, 0, state, (voter,))


def recovery_number(epoch: Epoch) -> int:
    """The number of the first epoch of the generation after `epoch`'s."""
    return (epoch.generation + 1) * GENERATION_EPOCHS


class Chain:
    """Verified epochs, from the first to the newest known."""

    def __init__(self, genesis: Genesis) -> None:
        self.swarm_id = genesis.swarm_id
        self._recovery = {bytes(node_id_of(genesis.recovery_public)): genesis.recovery_public}
        self._epochs = [first_epoch(genesis)]
        self._positions = {1: 0}
        self._certificates: list[bytes] = []
        self._numbers = {self.head.key: 1}

    @property
    def head(self) -> Epoch:
        return self._epochs[-1]

    @property
    def before_head(self) -> Epoch | None:
        """The epoch that the newest one followed, or took the place of; None for the first."""
        return self._epochs[-2] if len(self._epochs) > 1 else None

    def epoch(self, number: int) -> Epoch | None:
        position = self._positions.get(number)
        return None if position is None else self._epochs[position]

    @property
    def asks_from(self) -> int:
        """What to ask others for certificates above of: so the newest is compared with theirs."""
        before = self.before_head
        return self.head.number if before is None else before.number

    def number_of(self, key: bytes) -> int | None:
        """The number of the known epoch that `key` names."""
        return self._numbers.get(key)

    def certificates_from(self, number: int, limit: int = CHAIN_EPOCHS_MAX) -> tuple[bytes, ...]:
        """Certificates of the epochs above `number`, in order."""
        start = sum(epoch.number <= number for epoch in self._epochs[1:])
        return tuple(self._certificates[start : start + limit])

    def extend(self, certificate: bytes) -> bool:
        """Take a certificate; True if it was the next one, False if it was known.

        Raises:
            EpochFork: it is valid and contradicts a known one.
            Untrusted: it does not follow the newest known epoch.
            BadSignature: not signed by a majority of the old voters.
            MalformedMessage: no such certificate. Nothing changed in any of these cases.
        """
        envelope, statement, before = self._verified(certificate)
        following = _epoch_of(statement, envelope.payload)
        known = self.epoch(statement.number)
        if known is None:
            if following.number < self.head.number:
                return False  # Of a generation that was given up since: void.
            self._positions[following.number] = len(self._epochs)
            self._epochs.append(following)
            self._certificates.append(certificate)
            self._numbers[following.key] = following.number
            return True
        if known != following:
            raise EpochFork(
                f"epoch {before.number} has two successors: keys or disks were copied, or two "
                "nodes were recovered; stop all nodes and compare their data folders"
            )
        return False

    def _verified(self, certificate: bytes) -> tuple[Envelope, Statement, Epoch]:
        """A sound certificate, what it says, and the epoch that it ends. Raises as `extend`."""
        if is_recovery(certificate):
            return self._verified_recovery(certificate)
        envelope = decode_envelope(certificate, domain=SEAL_DOMAIN)
        statement = decode_statement(envelope.payload)
        before = self.epoch(statement.number - 1)
        if before is None:
            raise Untrusted(f"epoch {statement.number} does not follow epoch {self.head.number}")
        if statement.before != before.key or statement.generation != before.generation:
            raise Untrusted(f"the certificate of epoch {statement.number} is of another history")
        verify_majority(envelope, self.swarm_id, before, f"the end of epoch {before.number}")
        return envelope, statement, before

    def _verified_recovery(self, certificate: bytes) -> tuple[Envelope, Statement, Epoch]:
        envelope = decode_envelope(certificate, domain=RECOVERY_DOMAIN)
        verify_envelope(envelope, self.swarm_id, self._recovery)
        statement = decode_statement(envelope.payload)
        ended = self.number_of(statement.before)
        before = None if ended is None else self.epoch(ended)
        if before is None:
            raise Untrusted("a recovery from an epoch that is not known here")
        if statement.number != recovery_number(before) or (
            statement.generation != before.generation + 1
        ):
            raise Untrusted("a recovery that does not begin the next generation")
        return envelope, statement, before

    def dump(self) -> bytes:
        """All certificates, for a checked file."""
        return msgspec.msgpack.encode(self._certificates)

    def load(self, body: bytes, *, source: str) -> None:
        """Take the certificates that `dump` wrote. Raises CorruptFile naming `source`."""
        try:
            for certificate in decode_struct(list[bytes], body):
                self.extend(certificate)
        except SwarmError as error:
            raise CorruptFile(f"{source} does not hold a chain of epochs: {error}") from error


def is_recovery(certificate: bytes) -> bool:
    """Does `certificate` say that it is signed by the recovery key? Raises MalformedMessage."""
    try:
        decode_envelope(certificate, domain=RECOVERY_DOMAIN)
    except MalformedMessage:
        return False
    return True


def decode_statement(payload: bytes) -> Statement:
    """The statement in an envelope's payload. Raises MalformedMessage."""
    statement: Statement = decode_struct(Statement, payload)
    voters = statement.voters
    sound = (
        1 <= len(voters) <= VOTERS_MAX
        and all(len(v.public) == PUBLIC_BYTES for v in voters)
        and all(len(v.storage) == STORAGE_BYTES for v in voters)
        and len({v.public for v in voters}) == len(voters)
        and 2 <= statement.number <= GENERATIONS_MAX * GENERATION_EPOCHS
        and len(statement.digest) == 32
        and encode_struct(statement) == payload
    )
    if not sound:
        raise MalformedMessage("a seal certificate with impossible contents")
    return statement


def verify_majority(envelope: Envelope, swarm_id: bytes, epoch: Epoch, what: str) -> None:
    """Raise BadSignature unless a majority of the epoch's voters signed `what`."""
    signers = verify_envelope(envelope, swarm_id, epoch.keys)
    if len(signers) < epoch.majority:
        raise BadSignature(
            f"{len(signers)} of {len(epoch.voters)} voters signed {what}; "
            f"{epoch.majority} are needed"
        )


def _epoch_of(statement: Statement, payload: bytes) -> Epoch:
    key = digest(b"epoch", statement.before, payload)[:EPOCH_KEY_BYTES]
    return Epoch(statement.generation, statement.number, key, statement.voters, statement.digest)
