"""Heads: counted once a majority of the newest epoch's voters signed one, and by nobody else."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from certifying import seal

from swarmd.base.errors import BadSignature, MalformedMessage, Untrusted
from swarmd.identity.epochs import Chain
from swarmd.identity.genesis import init_swarm
from swarmd.identity.heads import WAITING_MAX, Head, HeadVotes, head_of, sign_head, verify_head
from swarmd.identity.keys import SigningKey

KEYS = [SigningKey.from_seed(bytes([i + 1]) * 32) for i in range(6)]
GENESIS = init_swarm("lab", "one", node_key=KEYS[0])[0]
SWARM = GENESIS.swarm_id


def chain_of(*epochs: Sequence[SigningKey]) -> Chain:
    """The founder alone, then these voters, one set after the other."""
    chain, before = Chain(GENESIS), KEYS[:1]
    for voters in epochs:
        seal(chain, before, voters)
        before = list(voters)
    return chain


def head(chain: Chain, height: int, record_hash: bytes = b"h" * 32) -> Head:
    return Head(chain.head.key, height, record_hash)


@pytest.mark.parametrize(
    ("voters", "signers", "enough"),
    [(3, 1, False), (3, 2, True), (3, 3, True), (5, 2, False), (5, 3, True), (2, 1, False)],
)
def test_a_majority_certifies(voters: int, signers: int, enough: bool) -> None:
    chain = chain_of(KEYS[:voters])
    certificate = sign_head(head(chain, 3), SWARM, *KEYS[:signers])
    if enough:
        assert verify_head(certificate, chain) == head(chain, 3)
    else:
        with pytest.raises(BadSignature, match=f"{signers} of {voters} voters"):
            verify_head(certificate, chain)


def test_what_others_sign_does_not_count() -> None:
    chain = chain_of(KEYS[:3])
    for signers in ((KEYS[0], KEYS[5]), (KEYS[3], KEYS[4], KEYS[5])):
        with pytest.raises(BadSignature):
            verify_head(sign_head(head(chain, 3), SWARM, *signers), chain)
    with pytest.raises(BadSignature):
        verify_head(sign_head(head(chain, 3), b"x" * 32, *KEYS[:3]), chain)


def test_voters_who_were_replaced_certify_nothing_to_those_who_know() -> None:
    chain = chain_of(KEYS[:3])
    old = sign_head(head(chain, 3), SWARM, *KEYS[:3])
    assert verify_head(old, chain).height == 3
    seal(chain, KEYS[:3], KEYS[3:6])
    with pytest.raises(Untrusted, match="ended before epoch 3"):
        verify_head(old, chain)
    new = sign_head(head(chain, 3), SWARM, *KEYS[3:5])
    assert verify_head(new, chain).height == 3
    with pytest.raises(Untrusted, match="not known here"):
        verify_head(new, chain_of(KEYS[:3]))


@pytest.mark.parametrize(
    "wrong",
    [
        Head(b"e" * 15, 1, b"h" * 32),
        Head(b"e" * 16, 0, b"h" * 32),
        Head(b"e" * 16, -1, b"h" * 32),
        Head(b"e" * 16, 1, b"h" * 31),
    ],
)
def test_an_impossible_head_is_refused(wrong: Head) -> None:
    with pytest.raises(MalformedMessage):
        head_of(sign_head(wrong, SWARM, KEYS[0]))
    with pytest.raises(MalformedMessage):
        head_of(b"x" * 3_000)


def test_votes_are_counted_by_head_and_voter() -> None:
    chain = chain_of(KEYS[:3])
    votes = HeadVotes(SWARM, chain.head)
    other = head(chain, 3, b"o" * 32)
    for one in (sign_head(head(chain, 3), SWARM, KEYS[0]), sign_head(other, SWARM, KEYS[1])):
        votes.add(one)
        votes.add(one)
    assert votes.certificate(0, 9) is None
    votes.add(sign_head(head(chain, 3), SWARM, KEYS[2]))
    certificate = votes.certificate(0, 9)
    assert certificate is not None
    assert verify_head(certificate, chain) == head(chain, 3)
    assert votes.certificate(3, 9) is None
    assert votes.certificate(0, 2) is None
    votes.forget(3)
    assert votes.certificate(0, 9) is None


def test_votes_of_strangers_and_of_other_epochs_are_refused() -> None:
    chain = chain_of(KEYS[:3])
    votes = HeadVotes(SWARM, chain.head)
    with pytest.raises(BadSignature):
        votes.add(sign_head(head(chain, 3), SWARM, KEYS[4]))
    with pytest.raises(Untrusted):
        votes.add(sign_head(Head(b"e" * 16, 3, b"h" * 32), SWARM, KEYS[0]))


def test_a_voter_that_signs_without_end_costs_no_more_than_its_share() -> None:
    chain = chain_of(KEYS[:3])
    votes = HeadVotes(SWARM, chain.head)
    for height in range(1, 3 * WAITING_MAX):
        votes.add(sign_head(head(chain, height), SWARM, KEYS[0]))
    assert len(votes._signatures) == WAITING_MAX
    votes.add(sign_head(head(chain, 1), SWARM, KEYS[1]))
    assert votes.certificate(0, 10**6) is None, "that signature was dropped"
    votes.add(sign_head(head(chain, 3 * WAITING_MAX - 1), SWARM, KEYS[1]))
    certificate = votes.certificate(0, 10**6)
    assert certificate is not None
    assert head_of(certificate).height == 3 * WAITING_MAX - 1
