"""Going on alone after a majority of the voters is lost for ever."""

from __future__ import annotations

from contextlib import aclosing

import pytest
import trio
from store_swarm import Swarm, running_swarm

from swarmd.base.errors import BadSignature, Compacted, Conflict, NotFound, Untrusted
from swarmd.identity.entries import AddToken, sign_entry
from swarmd.identity.epochs import (
    GENERATION_EPOCHS,
    RECOVERY_DOMAIN,
    SEAL_DOMAIN,
    Chain,
    EpochFork,
    recovery_of,
    statement_of,
)
from swarmd.identity.genesis import init_swarm
from swarmd.identity.keys import SigningKey
from swarmd.identity.signing import sign_envelope
from swarmd.identity.voter import Voter
from swarmd.mesh.trust import Trust
from swarmd.state.raft.messages import AuthorityEntry, GrantLease, Put, RenewLease
from swarmd.wire.codec import encode_struct
from swarmd.wire.envelope import encode_envelope

KEYS = [SigningKey.from_seed(bytes([i + 1]) * 32) for i in range(4)]
GENESIS, _, _, RECOVERY = init_swarm("lab", "one", node_key=KEYS[0])
VOTERS = [Voter(k.public, bytes([i]) * 16) for i, k in enumerate(KEYS)]


def signed(statement: object, *keys: SigningKey, domain: str) -> bytes:
    payload = encode_struct(statement)
    return encode_envelope(sign_envelope(domain, GENESIS.swarm_id, payload, *keys))


def grown() -> Chain:
    """Voters 0 to 2, after the founder alone."""
    chain = Chain(GENESIS)
    statement = statement_of(chain.head, 2, 7, b"d" * 32, VOTERS[:3])
    chain.extend(signed(statement, KEYS[0], domain=SEAL_DOMAIN))
    return chain


def recovered(chain: Chain, voter: int = 2, state: bytes = b"r" * 32) -> bytes:
    statement = recovery_of(chain.head, state, VOTERS[voter])
    return signed(statement, RECOVERY, domain=RECOVERY_DOMAIN)


# ---- the chain ---------------------------------------------------------------------------


def test_the_recovery_key_begins_the_next_generation() -> None:
    chain = grown()
    certificate = recovered(chain)
    assert chain.extend(certificate)
    assert not chain.extend(certificate)
    assert (chain.head.number, chain.head.generation) == (GENERATION_EPOCHS, 1)
    assert chain.head.voters == (VOTERS[2],)
    following = statement_of(chain.head, GENERATION_EPOCHS + 1, 9, b"e" * 32, VOTERS[2:4])
    assert chain.extend(signed(following, KEYS[2], domain=SEAL_DOMAIN))
    copy = Chain(GENESIS)
    copy.load(chain.dump(), source="here")
    assert copy.head == chain.head
    assert chain.certificates_from(2)[0] == certificate
    assert len(chain.certificates_from(GENERATION_EPOCHS)) == 1


def test_who_went_on_in_the_old_generation_turns_to_the_new() -> None:
    given_up, chain = grown(), grown()
    meanwhile = statement_of(given_up.head, 3, 9, b"m" * 32, VOTERS[:2])
    old = signed(meanwhile, KEYS[0], KEYS[1], domain=SEAL_DOMAIN)
    certificate = recovered(chain)
    assert given_up.extend(old)
    assert given_up.extend(certificate)
    assert given_up.head.generation == 1
    assert given_up.certificates_from(3) == (certificate,)
    assert chain.extend(certificate)
    assert not chain.extend(old), "void"
    assert chain.head == given_up.head


def test_nobody_else_recovers_and_nothing_else_is_signed() -> None:
    chain = grown()
    statement = recovery_of(chain.head, b"r" * 32, VOTERS[2])
    for key in (KEYS[0], KEYS[1]):
        with pytest.raises(BadSignature):
            chain.extend(signed(statement, key, domain=RECOVERY_DOMAIN))
    with pytest.raises(Untrusted):
        chain.extend(signed(statement, KEYS[0], KEYS[1], domain=SEAL_DOMAIN))
    seal = statement_of(chain.head, 3, 7, b"d" * 32, VOTERS[:3])
    with pytest.raises(BadSignature):
        chain.extend(signed(seal, RECOVERY, domain=SEAL_DOMAIN))
    with pytest.raises(Untrusted):
        chain.extend(signed(seal, RECOVERY, domain=RECOVERY_DOMAIN))
    assert chain.head.number == 2


def test_two_recoveries_of_one_generation_are_a_fork() -> None:
    chain = grown()
    one, other = recovered(chain), recovered(chain, voter=1)
    chain.extend(one)
    with pytest.raises(EpochFork):
        chain.extend(other)


def test_who_asks_for_newer_epochs_finds_a_fork_of_the_newest() -> None:
    one, other, before = grown(), grown(), grown()
    one.extend(recovered(before))
    other.extend(recovered(before, voter=1))
    answer = other.certificates_from(one.asks_from)
    assert len(answer) == 1
    with pytest.raises(EpochFork):
        one.extend(answer[0])
    assert Chain(GENESIS).asks_from == 1


# ---- in a swarm --------------------------------------------------------------------------


async def _recover(swarm: Swarm, index: int) -> None:
    store = swarm.store(index)
    plan = await store.recovery.plan()
    await store.recovery.begin(_sign(swarm, plan.statement))


def _sign(swarm: Swarm, statement: bytes) -> bytes:
    envelope = sign_envelope(RECOVERY_DOMAIN, swarm.genesis.swarm_id, statement, swarm.recovery)
    return encode_envelope(envelope)


async def _value(swarm: Swarm, index: int, key: bytes) -> bytes | None:
    entry = await swarm.store(index).get(key)
    return entry.value if entry is not None else None


async def test_a_survivor_of_three_goes_on_and_three_vote_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0, 1, 2)
        await swarm.voters_are(0, 1, 2)
        leader = await swarm.coordinator()
        survivor = next(i for i in range(3) if i != leader)
        for number in range(20):
            await swarm.store(leader).propose([Put(b"u/k%d" % number, b"v")])
        await trio.sleep(0.2)
        with pytest.raises(Conflict, match="nothing to recover"):
            await swarm.store(survivor).recovery.plan()
        await swarm.crash(*(i for i in range(3) if i != survivor))
        await swarm.start(3)
        await _recover(swarm, survivor)
        assert await _value(swarm, survivor, b"u/k19") == b"v"
        assert (await swarm.store(3).propose([Put(b"u/after", b"1")]))[0].ok
        await swarm.crash(survivor)
        await swarm.start(survivor)
        assert await _value(swarm, survivor, b"u/after") == b"1"
        await swarm.start(*(i for i in range(3) if i != survivor))
        with trio.fail_after(30):
            while True:
                if len(swarm.store(3).voters) == 3:
                    break
                await trio.sleep(0.1)
        await swarm.voters_are(*map(swarm.index_of, swarm.store(3).voters))
        for index in range(4):
            assert await _value(swarm, index, b"u/k0") == b"v"
            assert not [n for n in swarm.nodes[index].disk.names() if n.startswith("raft.e2.")]


async def test_the_learner_goes_on_for_a_lone_voter_whose_disk_is_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0, 1)
        await swarm.store(0).propose([Put(b"u/a", b"1")])
        with trio.fail_after(10):
            while True:
                if swarm.store(1).status().copies == 2:
                    break
                await trio.sleep(0.05)
        await swarm.store(0).propose([Put(b"u/a", b"2")])
        await swarm.crash(0)
        await swarm.crash(1)
        await swarm.start(1)
        await _recover(swarm, 1)
        assert await _value(swarm, 1, b"u/a") == b"2"
        assert swarm.store(1).voters == (swarm.id(1),)


async def test_what_is_not_the_plan_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0, 1, 2)
        await swarm.voters_are(0, 1, 2)
        await swarm.start(3)
        await swarm.crash(0, 1)
        with pytest.raises(NotFound, match="holds nothing"):
            await swarm.store(3).recovery.plan()
        plan = await swarm.store(2).recovery.plan()
        store = swarm.store(2)
        with pytest.raises(Conflict, match="another node"):
            await swarm.store(3).recovery.begin(_sign(swarm, plan.statement))
        with pytest.raises(BadSignature):
            await store.recovery.begin(
                encode_envelope(
                    sign_envelope(
                        RECOVERY_DOMAIN, swarm.genesis.swarm_id, plan.statement, swarm.admin
                    )
                )
            )
        with pytest.raises(Untrusted):
            await store.recovery.begin(b"junk")
        assert store.epoch_number == 2
        await store.recovery.begin(_sign(swarm, plan.statement))
        with pytest.raises(Conflict):
            await store.recovery.begin(_sign(swarm, plan.statement))


async def test_an_old_majority_behind_a_partition_turns_to_the_new_generation(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What it acknowledged meanwhile is void, and it says so by having it no more."""
    async with running_swarm() as swarm:
        await swarm.start(0, 1, 2)
        await swarm.voters_are(0, 1, 2)
        await swarm.store(0).propose([Put(b"u/a", b"1")])
        await trio.sleep(0.2)
        swarm.network.cut(swarm.id(2), [swarm.id(0), swarm.id(1)])
        await trio.sleep(2)
        await swarm.store(0).propose([Put(b"u/old", b"1")])
        await _recover(swarm, 2)
        await swarm.store(2).propose([Put(b"u/new", b"1")])
        swarm.network.heal()
        await swarm.voters_are(0, 1, 2, within_s=30)
        for index in range(3):
            assert swarm.store(index).epoch_number > GENERATION_EPOCHS
            assert await _value(swarm, index, b"u/a") == b"1"
            assert await _value(swarm, index, b"u/new") == b"1"
            assert await _value(swarm, index, b"u/old") is None


def _another_token(swarm: Swarm, letter: bytes) -> AuthorityEntry:
    token = SigningKey.from_seed(letter * 32)
    entry = AddToken(token.public, "member", 100, 10**12, letter * 16)
    return AuthorityEntry(sign_entry(entry, swarm.genesis.swarm_id, swarm.admin))


async def _told_to_members(swarm: Swarm) -> tuple[bytes, list[Trust]]:
    """A record that counts at two of three voters and never got to the last, which is cut off."""
    await swarm.start_with_logged_records()
    swarm.network.cut(swarm.id(2), [swarm.id(0), swarm.id(1)])
    await trio.sleep(2)
    told = (await swarm.store(0).propose([_another_token(swarm, b"a")]))[0].value
    assert told is not None
    trusts = [swarm.trust(index) for index in range(3)]
    while trusts[0].head != trusts[0].noted:
        await trusts[0].changed(trusts[0].version)
    return told, trusts


async def test_a_record_that_members_were_told_of_outlives_the_voters_that_logged_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Else no member would ever take the next record, which has the same height."""
    async with running_swarm() as swarm:
        told, trusts = await _told_to_members(swarm)
        trusts[2].learn([told], trusts[0].certificate, from_peer=True)
        await _recover(swarm, 2)
        assert (await swarm.store(2).propose([_another_token(swarm, b"b")]))[0].ok
        swarm.network.heal()
        await swarm.voters_are(0, 1, 2, within_s=30)
        await trio.sleep(1)
        assert trusts[2].head[0] == len(swarm.records) + 2
        assert {trust.head for trust in trusts} == {trusts[2].head}


async def test_no_revision_means_two_things_in_two_generations(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Revisions are fences, names of leases, and what a watch has come to."""
    async with running_swarm() as swarm:
        await swarm.start(0, 1, 2)
        await swarm.voters_are(0, 1, 2)
        kept = (await swarm.store(0).propose([Put(b"u/a", b"1")]))[0].revision
        await trio.sleep(0.2)
        swarm.network.cut(swarm.id(2), [swarm.id(0), swarm.id(1)])
        await trio.sleep(2)
        voids = [await swarm.store(0).propose([GrantLease(60_000)]) for _ in range(20)]
        plan = await swarm.store(2).recovery.plan()
        assert kept <= plan.revision < voids[-1][0].revision, "what is shown can be compared"
        await swarm.store(2).recovery.begin(_sign(swarm, plan.statement))
        new = (await swarm.store(2).propose([GrantLease(60_000)]))[0].revision
        assert new > voids[-1][0].revision
        swarm.network.heal()
        await swarm.voters_are(0, 1, 2, within_s=30)
        renewed = await swarm.store(2).propose([RenewLease(voids[-1][0].revision)])
        assert renewed[0].code == "lease_expired"
        async with aclosing(swarm.store(0).watch(b"u/", voids[-1][0].revision + 1)) as watched:
            with pytest.raises(Compacted), trio.fail_after(10):
                await anext(watched)
        assert (await swarm.store(1).propose([Put(b"u/a", b"2", kept)]))[0].ok


async def test_a_plan_that_authority_has_gone_beyond_is_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Else the next record would contradict one that members were told of, for ever."""
    async with running_swarm() as swarm:
        told, trusts = await _told_to_members(swarm)
        plan = await swarm.store(2).recovery.plan()
        trusts[2].learn([told], trusts[0].certificate, from_peer=True)
        with pytest.raises(Conflict, match="authority log has gone on"):
            await swarm.store(2).recovery.begin(_sign(swarm, plan.statement))
        await _recover(swarm, 2)
        assert (await swarm.store(2).propose([_another_token(swarm, b"b")]))[0].ok
