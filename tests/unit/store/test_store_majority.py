"""No entry of authority takes so many votes that the rest of the epoch is no majority."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from certifying import now_of
from states import restore, whole
from store_applier import ADMIN_KEY, GENESIS, NODE_KEY, Applier
from store_swarm import Swarm, running_swarm

from swarmd.base.errors import CorruptFile, Forbidden, NoMajorityLeft, NoQuorum
from swarmd.identity.authority import AuthorityState
from swarmd.identity.entries import (
    Admit,
    Evict,
    SetRoles,
    fresh_nonce,
    issue_token,
    sign_entry,
)
from swarmd.identity.epochs import first_epoch
from swarmd.identity.keys import SigningKey
from swarmd.identity.tokens import TOKEN_ROLES
from swarmd.identity.voter import Voter
from swarmd.state.raft import statefile
from swarmd.state.raft.frames import pack
from swarmd.state.raft.messages import AuthorityEntry, Put, Seal
from swarmd.state.raft.statefile import STATE_FORMAT, STATE_KIND
from swarmd.state.raft.statemachine import GENERATION_REVISIONS, StateMachine

KEYS = [SigningKey.from_seed(bytes([number + 1]) * 32) for number in range(9)]
NO_MAJORITY = NoMajorityLeft.code


def evict(number: int) -> AuthorityEntry:
    entry = Evict(KEYS[number].key_id, bytes([number]) * 16)
    return AuthorityEntry(sign_entry(entry, GENESIS.swarm_id, ADMIN_KEY))


def roles(number: int, *names: str) -> AuthorityEntry:
    entry = SetRoles(KEYS[number].key_id, names, fresh_nonce())
    return AuthorityEntry(sign_entry(entry, GENESIS.swarm_id, ADMIN_KEY))


def admitted(applier: Applier, keys: Sequence[SigningKey] = KEYS) -> None:
    token, entry = issue_token(
        GENESIS.swarm_id, now_of(applier.state.authority), ADMIN_KEY, uses=20, expires_ms=10**9
    )
    assert applier.do(AuthorityEntry(entry))[0].ok
    for number, key in enumerate(keys):
        admit = Admit(
            token.token_id,
            key.public,
            f"n{number}",
            key.certificate,
            TOKEN_ROLES["member"],
            bytes([number]) * 16,
            bytes([number]) * 16,
        )
        raw = sign_entry(admit, GENESIS.swarm_id, token.key, key)
        assert applier.do(AuthorityEntry(raw))[0].ok


def sealed_for(applier: Applier, *numbers: int) -> Applier:
    """What goes on in the next epoch, with these voters."""
    seats = tuple(Voter(KEYS[number].public, bytes([number]) * 16) for number in numbers)
    assert applier.do(Seal(applier.state.epoch + 1, seats))[0].ok
    following = Applier()
    restore(following.state, whole(applier.state.sealed_snapshot()))
    return following


def epoch_of(*numbers: int) -> Applier:
    """All nodes are admitted, and these vote."""
    applier = Applier()
    admitted(applier)
    return sealed_for(applier, *numbers)


def do(applier: Applier, entry: AuthorityEntry) -> str | None:
    """The code of what became of it; a refusal must change nothing."""
    before = whole(applier.state.snapshot())
    [result] = applier.do(entry)
    if not result.ok:
        assert whole(applier.state.snapshot()) == before
    return result.code


# ---- the rule ----------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["evicted", "role"])
@pytest.mark.parametrize("second", ["evicted", "role"])
def test_of_two_voters_of_three_only_one_is_taken_away(first: str, second: str) -> None:
    applier = epoch_of(0, 1, 2)
    one = evict(1) if first == "evicted" else roles(1, "worker")
    two = evict(2) if second == "evicted" else roles(2, "worker")
    assert do(applier, one) is None
    [refused] = applier.do(two)
    assert refused.code == NO_MAJORITY
    assert "n2" in refused.message
    assert "1 of 3 voters" in refused.message
    assert not applier.state.authority.may_not_vote(KEYS[2].key_id)
    assert do(applier, roles(2, "observer")) == NO_MAJORITY


@pytest.mark.parametrize(("voters", "may_go"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (7, 3)])
def test_as_many_may_go_as_leave_a_majority(voters: int, may_go: int) -> None:
    applier = epoch_of(*range(voters))
    codes = [do(applier, evict(number)) for number in range(voters)]
    assert codes == [None] * may_go + [NO_MAJORITY] * (voters - may_go)
    assert do(applier, evict(8)) is None, "it has no seat"


def test_the_founder_is_the_only_voter_of_the_first_epoch() -> None:
    applier = Applier()
    assert applier.state.voters == first_epoch(GENESIS).node_ids
    entry = Evict(NODE_KEY.key_id, bytes(16))
    assert do(applier, AuthorityEntry(sign_entry(entry, GENESIS.swarm_id, ADMIN_KEY))) == (
        NO_MAJORITY
    )


def test_what_takes_no_vote_is_never_refused_for_it() -> None:
    applier = epoch_of(0, 1, 2)
    assert do(applier, roles(1, "worker")) is None
    assert do(applier, evict(1)) is None, "it has no vote any more"
    assert do(applier, roles(2, "voter")) is None
    assert do(applier, roles(3, "worker")) is None
    assert do(applier, roles(0, "voter", "worker")) is None
    assert do(applier, evict(0)) == NO_MAJORITY


def test_a_role_that_was_given_back_counts_again() -> None:
    applier = epoch_of(0, 1, 2)
    assert do(applier, roles(1, "worker")) is None
    assert do(applier, evict(2)) == NO_MAJORITY
    assert do(applier, roles(1, "voter")) is None
    assert do(applier, evict(2)) is None


def test_to_ask_again_is_harmless() -> None:
    """The answer to the first one was lost; that there is no room for another is no matter."""
    applier = epoch_of(0, 1, 2)
    [first] = applier.do(evict(1))
    [again] = applier.do(evict(1))
    assert (again.ok, again.value) == (True, first.value)
    [refused] = applier.do(evict(2))
    assert refused.code == applier.do(evict(2))[0].code == NO_MAJORITY


def test_what_is_wrong_besides_comes_first() -> None:
    """Who may not evict is told so, and learns nothing of the voters."""
    applier = epoch_of(0, 1, 2)
    assert do(applier, evict(1)) is None
    forged = sign_entry(Evict(KEYS[2].key_id, bytes(16)), GENESIS.swarm_id, KEYS[0])
    assert do(applier, AuthorityEntry(forged)) == "bad_signature"
    again = sign_entry(Evict(KEYS[1].key_id, bytes(16)), GENESIS.swarm_id, ADMIN_KEY)
    assert do(applier, AuthorityEntry(again)) == "conflict"


def test_the_next_epoch_counts_anew() -> None:
    applier = epoch_of(0, 1, 2)
    assert do(applier, evict(1)) is None
    assert do(applier, evict(0)) == NO_MAJORITY
    following = sealed_for(applier, 0, 2, 3)
    assert following.state.voters == tuple(sorted(KEYS[number].key_id for number in (0, 2, 3)))
    assert do(following, evict(0)) is None
    assert do(following, evict(3)) == NO_MAJORITY


def test_an_entry_behind_the_seal_is_judged_by_the_next_epoch() -> None:
    applier = epoch_of(0, 1, 2)
    assert do(applier, evict(1)) is None
    seats = tuple(Voter(KEYS[number].public, bytes(16)) for number in (0, 2, 3))
    [_, moved] = applier.do(Seal(3, seats), evict(2))
    assert moved.code == "moved"


def test_who_goes_on_alone_may_evict_all_others() -> None:
    """After a recovery: the lost voters' keys may be anywhere."""
    applier = epoch_of(0, 1, 2)
    applier.state.begin_generation()
    alone = Applier()
    mine = Voter(KEYS[0].public, bytes(16))
    restore(alone.state, whole(applier.state.first_snapshot(1_000_000, (mine,))))
    assert alone.state.revision > GENERATION_REVISIONS
    assert alone.state.voters == (KEYS[0].key_id,)
    assert do(alone, evict(1)) is None
    assert do(alone, evict(2)) is None
    assert do(alone, evict(0)) == NO_MAJORITY


# ---- part of the state -------------------------------------------------------------------


def test_a_copy_of_the_state_knows_the_voters() -> None:
    applier = epoch_of(0, 1, 2)
    assert do(applier, evict(1)) is None
    copy = Applier()
    restore(copy.state, whole(applier.state.snapshot()))
    assert copy.state.voters == applier.state.voters
    assert copy.state.digest() == applier.state.digest()
    assert do(copy, evict(2)) == do(applier, evict(2)) == NO_MAJORITY
    assert whole(copy.state.snapshot()) == whole(applier.state.snapshot())


def test_states_that_differ_in_the_voters_alone_have_other_digests() -> None:
    one, other = epoch_of(0, 1, 2), epoch_of(0, 1, 2)
    assert one.state.digest() == other.state.digest()
    other.state.voters = tuple(sorted(KEYS[number].key_id for number in (0, 1, 3)))
    assert one.state.digest() != other.state.digest()


@pytest.mark.parametrize("voters", [(), (b"n" * 31,), tuple(bytes([i]) * 32 for i in range(10))])
def test_a_state_with_impossible_voters_is_refused(voters: tuple[bytes, ...]) -> None:
    head = statefile._Head(1, voters, 0, 0, (b"", 0), None, 0)
    raw = pack(STATE_KIND, STATE_FORMAT, [statefile._ENCODER.encode(head)])
    with pytest.raises(CorruptFile):
        restore(StateMachine(GENESIS), raw)


def test_who_replays_records_needs_no_voters() -> None:
    """Nor does a history in which all first voters were evicted, one after the other."""
    applier = epoch_of(0, 1, 2)
    for number in (0, 1, 2):
        assert do(applier, evict(number)) is None
        seated = range(number + 1, number + 4)
        applier = sealed_for(applier, *seated)
    records = applier.state.authority.dump()
    loaded = AuthorityState.load(GENESIS, records)
    assert loaded.head == applier.state.authority.head
    assert sum(one.evicted for one in loaded.admissions.values()) == 3


# ---- two admins at once ------------------------------------------------------------------


async def _evicts(swarm: Swarm, asked: int, number: int, found: dict[int, str | None]) -> None:
    entry = Evict(swarm.id(number), fresh_nonce())
    raw = sign_entry(entry, swarm.genesis.swarm_id, swarm.admin)
    try:
        [result] = await swarm.store(asked).propose([AuthorityEntry(raw)])
    except Forbidden as error:
        found[number] = error.code
    else:
        found[number] = result.code


@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        ((0, 0), {NO_MAJORITY}),
        ((0, 3), {NO_MAJORITY}),
        # Each through the node that the other one evicts: who is evicted is not heard.
        ((2, 1), {NO_MAJORITY, Forbidden.code}),
    ],
)
async def test_two_admins_evict_two_of_three_voters_at_once(
    autojump_clock: trio.testing.MockClock, asked: tuple[int, int], refused: set[str]
) -> None:
    """Goal: one eviction counts, and the swarm goes on without the evicted node.

    Method: two entries come at once through two nodes, neither of which knows of the other.
    Then the evicted one is gone, and the other two decide on.
    """
    async with running_swarm() as swarm:
        await swarm.start_with_logged_records()
        await swarm.start(3)
        found: dict[int, str | None] = {}
        async with trio.open_nursery() as nursery:
            for asker, number in zip(asked, (1, 2), strict=True):
                nursery.start_soon(_evicts, swarm, asker, number, found)
        [gone] = [number for number, code in found.items() if code is None]
        kept = 3 - gone
        assert found[kept] in refused
        await swarm.crash(gone)
        [result] = await swarm.store(kept).propose([Put(b"u/a", b"1")])
        assert result.ok
        # Its seat goes to a member that may vote, and all is as before.
        await swarm.voters_are(*sorted({0, 1, 2, 3} - {gone}), within_s=60.0)
        assert swarm.trust(kept).evicted() == {swarm.id(gone)}
        assert (await swarm.store(3).propose([Put(b"u/a", b"2")]))[0].ok


async def test_nothing_could_be_decided_without_the_rule(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the rule is for: everybody shuts both out, and who is left seats nobody else."""
    monkeypatch.setattr(AuthorityState, "_keep_a_majority", lambda *_: None)
    async with running_swarm() as swarm:
        await swarm.start_with_logged_records()
        await swarm.start(3, 4)
        found: dict[int, str | None] = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_evicts, swarm, 0, 1, found)
            nursery.start_soon(_evicts, swarm, 3, 2, found)
        assert found == {1: None, 2: None}
        await swarm.crash(1, 2)
        await trio.sleep(600.0)
        with pytest.raises(NoQuorum):
            await swarm.store(0).propose([Put(b"u/a", b"1")])
        assert swarm.store(0).voters == tuple(sorted(map(swarm.id, range(3))))


async def test_a_voter_does_not_begin_an_epoch_as_one_of_other_voters(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_others(state: StateMachine) -> statefile.Frozen:
        assert state.sealed is not None
        return state.first_snapshot(state.sealed.number, (Voter(KEYS[8].public, bytes(16)),))

    monkeypatch.setattr(StateMachine, "sealed_snapshot", of_others)
    async with running_swarm(expects_errors=True) as swarm:
        await swarm.start(0, 1, 2)
        stopped = swarm.nodes[0].stopped
        assert stopped is not None
        with trio.fail_after(10):
            await stopped.wait()
        assert isinstance(swarm.nodes[0].error, ExceptionGroup)
        assert swarm.nodes[0].error.subgroup(CorruptFile) is not None
