"""The voters' part in tests that have no strong store: the founder alone certifies."""

from __future__ import annotations

from collections.abc import Sequence

from swarmd.base.disk import Disk
from swarmd.identity.authority import AuthorityState
from swarmd.identity.epochs import SEAL_DOMAIN, Chain, first_epoch, statement_of
from swarmd.identity.heads import Head, sign_head
from swarmd.identity.keys import SigningKey
from swarmd.identity.signing import sign_envelope
from swarmd.identity.tokens import Moment, moment_of
from swarmd.identity.voter import Voter
from swarmd.mesh.trust import Trust, open_trust
from swarmd.wire.codec import encode_struct
from swarmd.wire.envelope import encode_envelope


def now_of(state: AuthorityState) -> Moment:
    """What a token that is made now names."""
    return moment_of(state.head, first_epoch(state.genesis))


def certificate_of(state: AuthorityState, *voters: SigningKey, chain: Chain | None = None) -> bytes:
    """The signatures of `voters` on the head of `state`, in the newest epoch of `chain`."""
    epoch = first_epoch(state.genesis) if chain is None else chain.head
    return sign_head(Head(epoch.key, *state.head), state.swarm_id, *voters)


def certified(disk: Disk, state: AuthorityState, founder: SigningKey) -> Trust:
    """A trust in which all of `state` counts."""
    certificate = certificate_of(state, founder) if state.head[0] else b""
    trust = open_trust(disk, state.genesis, state.dump(), certificate)
    trust.epochs = Chain(state.genesis)
    return trust


def let_count(
    trust: Trust, records: Sequence[bytes], founder: SigningKey, *, from_peer: bool = False
) -> int:
    """Have `trust` note records and certify them; how many count that did not."""
    if trust.epochs is None:
        trust.epochs = Chain(trust.genesis)
    trust.note(records)
    head = Head(trust.epochs.head.key, *trust.noted)
    certificate = sign_head(head, trust.swarm_id, founder)
    return trust.learn((), certificate, from_peer=from_peer)


def seal(chain: Chain, old: Sequence[SigningKey], new: Sequence[SigningKey]) -> bytes:
    """Go on with the voters `new`; the certificate, which is in `chain` already."""
    epoch = chain.head
    seats = [Voter(key.public, bytes([epoch.number]) * 16) for key in new]
    statement = statement_of(epoch, epoch.number + 1, 1, b"d" * 32, seats)
    envelope = sign_envelope(SEAL_DOMAIN, chain.swarm_id, encode_struct(statement), *old)
    certificate = encode_envelope(envelope)
    assert chain.extend(certificate)
    return certificate
