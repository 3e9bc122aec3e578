"""Epochs: certificates, the chain, and what to do next from any state of affairs."""

from __future__ import annotations

import itertools

import pytest

from swarmd.base.errors import BadSignature, CorruptFile, Diverged, MalformedMessage, Untrusted
from swarmd.base.ids import node_id_of
from swarmd.identity.epochs import (
    SEAL_DOMAIN,
    Chain,
    Epoch,
    EpochFork,
    first_epoch,
    founder_storage,
    statement_of,
)
from swarmd.identity.genesis import init_swarm
from swarmd.identity.keys import SigningKey
from swarmd.identity.signing import sign_envelope
from swarmd.identity.voter import Voter
from swarmd.state.raft import epoch as e
from swarmd.state.raft.epoch import Ballot, Facts, decide
from swarmd.wire.codec import encode_struct
from swarmd.wire.envelope import encode_envelope

KEYS = [SigningKey.from_seed(bytes([i + 1]) * 32) for i in range(6)]
GENESIS = init_swarm("lab", "one", node_key=KEYS[0])[0]
VOTERS = [Voter(k.public, bytes([i]) * 16) for i, k in enumerate(KEYS)]
DIGEST = b"d" * 32


def certificate(
    before: Epoch,
    voters: list[Voter],
    signers: list[int],
    *,
    number: int | None = None,
    digest: bytes = DIGEST,
    swarm_id: bytes = GENESIS.swarm_id,
    domain: str = SEAL_DOMAIN,
) -> bytes:
    statement = statement_of(before, number or before.number + 1, 7, digest, voters)
    keys = [KEYS[i] for i in signers]
    return encode_envelope(sign_envelope(domain, swarm_id, encode_struct(statement), *keys))


@pytest.fixture
def chain() -> Chain:
    return Chain(GENESIS)


@pytest.fixture
def grown(chain: Chain) -> Chain:
    chain.extend(certificate(chain.head, VOTERS[:3], [0]))
    return chain


def test_the_first_epoch_follows_from_the_genesis(chain: Chain) -> None:
    assert chain.head.node_ids == (node_id_of(KEYS[0].public),)
    assert chain.head.voters[0].storage == founder_storage(GENESIS.swarm_id)
    assert chain.certificates_from(1) == ()


def test_a_chain_grows_and_knows_what_it_has(grown: Chain) -> None:
    second = certificate(grown.head, VOTERS[1:4], [0, 2])
    assert grown.extend(second)
    assert not grown.extend(second)
    assert grown.head.number == 3
    assert grown.number_of(grown.head.key) == 3
    assert grown.certificates_from(2) == (second,)
    other_signers = certificate(grown.epoch(2), VOTERS[1:4], [0, 1, 2])  # type: ignore[arg-type]
    assert not grown.extend(other_signers), "the same epoch, signed by others"


def test_a_chain_survives_its_file(grown: Chain) -> None:
    copy = Chain(GENESIS)
    copy.load(grown.dump(), source="here")
    assert copy.head == grown.head
    with pytest.raises(CorruptFile, match="here does not hold a chain"):
        Chain(init_swarm("other", "x")[0]).load(grown.dump(), source="here")


@pytest.mark.parametrize(
    ("signers", "error"),
    [([0], BadSignature), ([0, 4], BadSignature), ([3, 4, 5], BadSignature)],
)
def test_a_majority_of_the_old_voters_must_sign(
    grown: Chain, signers: list[int], error: type[Exception]
) -> None:
    with pytest.raises(error):
        grown.extend(certificate(grown.head, VOTERS[3:6], signers))
    assert grown.head.number == 2


def test_what_does_not_follow_is_refused(chain: Chain, grown: Chain) -> None:
    head = grown.head
    foreign = Epoch(0, head.number, b"x" * 16, head.voters, DIGEST)
    for bad in (
        certificate(head, VOTERS[:3], [0, 1], number=5),
        certificate(foreign, VOTERS[:3], [0, 1]),
        certificate(Epoch(1, head.number, head.key, head.voters, DIGEST), VOTERS[:3], [0, 1]),
    ):
        with pytest.raises(Untrusted):
            grown.extend(bad)


def test_certificates_of_other_swarms_and_domains_are_refused(grown: Chain) -> None:
    with pytest.raises(BadSignature):
        grown.extend(certificate(grown.head, VOTERS[:3], [0, 1], swarm_id=b"o" * 32))
    with pytest.raises(MalformedMessage):
        grown.extend(certificate(grown.head, VOTERS[:3], [0, 1], domain="other"))


@pytest.mark.parametrize(
    ("voters", "digest"),
    [
        ([], DIGEST),
        ([VOTERS[0], VOTERS[0]], DIGEST),
        ([Voter(b"short", b"s" * 16)], DIGEST),
        (VOTERS[:3], b"short"),
    ],
)
def test_impossible_contents_are_refused(grown: Chain, voters: list[Voter], digest: bytes) -> None:
    with pytest.raises(MalformedMessage):
        grown.extend(certificate(grown.head, voters, [0, 1], digest=digest))


def test_two_successors_are_a_fork(grown: Chain) -> None:
    before = grown.head
    grown.extend(certificate(before, VOTERS[:3], [0, 1]))
    with pytest.raises(EpochFork, match="two successors"):
        grown.extend(certificate(before, VOTERS[:2], [0, 1]))


# ---- ballots -----------------------------------------------------------------------------


def ballot(epoch: Epoch, signer: int, digest: bytes = DIGEST) -> Ballot:
    statement = statement_of(epoch, epoch.number + 1, 7, digest, VOTERS[2:5])
    return Ballot(GENESIS.swarm_id, epoch, statement, KEYS[signer])


def test_a_ballot_becomes_a_certificate_with_a_majority(grown: Chain) -> None:
    mine, other = ballot(grown.head, 0), ballot(grown.head, 1)
    assert mine.certificate() is None
    assert mine.add(other.own)
    assert not mine.add(other.own), "a voter counts once"
    certified = mine.certificate()
    assert certified is not None
    assert grown.extend(certified)


def test_a_lone_voter_certifies_at_once(chain: Chain) -> None:
    certified = ballot(chain.head, 0).certificate()
    assert certified is not None
    assert chain.extend(certified)


def test_a_ballot_counts_voters_only(grown: Chain) -> None:
    mine = ballot(grown.head, 0)
    with pytest.raises(BadSignature):
        mine.add(ballot(grown.head, 4).own)
    assert mine.certificate() is None


def test_a_signature_of_another_epoch_is_not_counted(chain: Chain) -> None:
    first = chain.head
    old = ballot(first, 0)
    chain.extend(certificate(first, VOTERS[:3], [0]))
    assert not ballot(chain.head, 1).add(old.own)


def test_another_state_at_the_same_seal_is_divergence(grown: Chain) -> None:
    mine = ballot(grown.head, 0)
    with pytest.raises(Diverged):
        mine.add(ballot(grown.head, 1, digest=b"e" * 32).own)


# ---- what to do next ---------------------------------------------------------------------

ONE = first_epoch(GENESIS)
TWO = Epoch(0, 2, b"2" * 16, tuple(VOTERS[:3]), DIGEST)
THREE = Epoch(0, 3, b"3" * 16, tuple(VOTERS[3:6]), DIGEST)
IDS = [v.node_id for v in VOTERS]


def facts(**changes: object) -> Facts:
    values: dict[str, object] = {"head": TWO, "before": ONE, "me": VOTERS[0]}
    return Facts(**{**values, **changes})  # type: ignore[arg-type]


def test_the_founder_starts_without_a_state() -> None:
    founder = ONE.voters[0]
    assert decide(Facts(ONE, None, founder)) == [e.StartEpoch(1)]


def test_who_has_no_seat_does_nothing() -> None:
    assert decide(facts(me=VOTERS[5])) == []


def test_another_storage_is_another_voter() -> None:
    assert decide(facts(me=Voter(KEYS[0].public, b"new disk........"))) == []


def test_a_sealed_voter_keeps_the_state_before_it_signs() -> None:
    sealed = facts(running=2, sealed=3, states=frozenset({2}))
    assert decide(sealed) == [e.KeepSealedState(3)]
    kept = facts(running=2, sealed=3, states=frozenset({2, 3}))
    assert decide(kept) == [e.SignSeal(TWO.node_ids)]


def test_a_certificate_stops_the_old_epoch_first() -> None:
    step = decide(facts(head=THREE, before=TWO, running=2, sealed=3, states=frozenset({2, 3})))
    assert step == [e.StopEpoch(2)]


def test_a_new_voter_fetches_before_it_starts() -> None:
    me = VOTERS[3]
    missing = decide(facts(head=THREE, before=TWO, me=me))
    assert isinstance(missing[0], e.FetchState)
    assert missing[0].number == 3
    assert set(missing[0].sources) == {*TWO.node_ids, *THREE.node_ids} - {me.node_id}
    held = decide(facts(head=THREE, before=TWO, me=me, states=frozenset({3})))
    assert held == [e.StartEpoch(3)]


def test_old_epochs_go_only_after_a_majority_installed() -> None:
    old = {"head": THREE, "before": TWO, "leftovers": (2, 3), "states": frozenset({2, 3})}
    asked = decide(facts(**old, installed=frozenset({IDS[3]})))
    assert isinstance(asked[0], e.AskInstalled)
    assert set(asked[0].of) == {IDS[4], IDS[5]}
    assert decide(facts(**old, installed=frozenset({IDS[3], IDS[5]}))) == [e.DropEpochs((2, 3))]


def test_strangers_do_not_count_as_installed() -> None:
    old = {"head": THREE, "before": TWO, "leftovers": (2,)}
    steps = decide(facts(**old, installed=frozenset({IDS[0], IDS[1], IDS[3]})))
    assert isinstance(steps[0], e.AskInstalled)


def test_every_situation_leads_somewhere_and_ends() -> None:
    """From every combination of facts, performing the steps reaches rest or a wait."""
    for index, running, sealed, kept in itertools.product(
        range(6), (None, 2, 3), (None, 3, 4), itertools.product((False, True), repeat=2)
    ):
        if (running, sealed) in ((None, 3), (None, 4), (3, 3), (2, 4)):
            continue
        if (index < 3 and running == 3) or (index >= 3 and running == 2):
            continue  # It has no seat there.
        states = frozenset(n for n, k in zip((2, 3), kept, strict=True) if k)
        situation = facts(
            head=THREE,
            before=TWO,
            me=VOTERS[index],
            running=running,
            sealed=sealed,
            states=states,
            leftovers=(2,) if index < 3 else (),
            installed=frozenset(IDS[3:5]),
        )
        for _ in range(10):
            steps = decide(situation)
            if not steps or isinstance(steps[-1], e.SignSeal):
                break
            situation = _perform(situation, steps)
        else:
            raise AssertionError(situation)
        seated = index >= 3
        assert (situation.running is not None) == seated
        assert situation.leftovers == ()


def _perform(situation: Facts, steps: list[e.Step]) -> Facts:
    values = {name: getattr(situation, name) for name in Facts.__slots__}
    for step in steps:
        match step:
            case e.StopEpoch():
                values["running"] = values["sealed"] = None
            case e.KeepSealedState(number) | e.FetchState(number, _):
                values["states"] = values["states"] | {number}
            case e.StartEpoch(number):
                values["running"] = number
            case e.DropEpochs():
                values["leftovers"] = ()
    return Facts(**values)
