"""Voters certify the authority log: what one of them says alone counts nowhere."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from store_swarm import Swarm, running_swarm

from swarmd.base.errors import BadSignature, Untrusted
from swarmd.identity.entries import Policy, encode_record, fresh_nonce, sign_entry
from swarmd.identity.heads import Head, sign_head
from swarmd.mesh.trust import Trust
from swarmd.state.raft.messages import AuthorityEntry


def policy(swarm: Swarm, version: int) -> bytes:
    entry = Policy(version, fresh_nonce())
    return sign_entry(entry, swarm.genesis.swarm_id, swarm.admin)


async def all_count(swarm: Swarm, *indexes: int, within_s: float = 5.0) -> None:
    """Wait until what the first has noted counts at all of them, by the newest epoch's word."""
    first = swarm.trust(indexes[0])
    with trio.fail_after(within_s):
        for index in indexes:
            trust = swarm.trust(index)
            while trust.head != first.noted or trust.certified_by != _newest(trust):
                await trust.changed(trust.version)


def _newest(trust: Trust) -> bytes:
    assert trust.epochs is not None
    return trust.epochs.head.key


async def test_a_lone_voter_certifies_by_itself(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        swarm.records = []
        await swarm.start(0)
        assert (await swarm.store(0).propose([AuthorityEntry(policy(swarm, 1))]))[0].ok
        assert swarm.trust(0).head[0] == 1
        assert swarm.trust(0).min_version == 1


async def test_a_record_counts_once_two_of_three_signed_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start_with_logged_records()
        await all_count(swarm, 0, 1, 2)
        assert (await swarm.store(1).propose([AuthorityEntry(policy(swarm, 1))]))[0].ok
        await all_count(swarm, 0, 1, 2)
        assert [swarm.trust(index).min_version for index in range(3)] == [1, 1, 1]


async def test_a_voter_cut_off_certifies_what_it_missed_when_it_is_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start_with_logged_records()
        await all_count(swarm, 0, 1, 2)
        cut = next(i for i in range(3) if swarm.store(i).serving() is None)
        others = [i for i in range(3) if i != cut]
        swarm.network.cut(swarm.id(cut), [swarm.id(i) for i in others])
        for version in range(1, 100):
            entry = AuthorityEntry(policy(swarm, version))
            assert (await swarm.store(others[0]).propose([entry]))[0].ok
        await all_count(swarm, *others)
        assert swarm.trust(cut).min_version == 0
        swarm.network.heal()
        await all_count(swarm, others[0], cut, within_s=30)


async def test_one_voters_word_is_not_enough(autojump_clock: trio.testing.MockClock) -> None:
    """It holds a valid entry, writes a record of it, and signs that: root on one of three hosts."""
    async with running_swarm() as swarm:
        await swarm.start_with_logged_records()
        await all_count(swarm, 0, 1, 2)
        victim, epochs = swarm.trust(1), swarm.trust(1).epochs
        assert epochs is not None
        log = victim._state.copy()
        record = encode_record(log.apply(policy(swarm, 7), log.store_time_ms))
        head = Head(epochs.head.key, *log.head)
        forged = sign_head(head, log.swarm_id, swarm.nodes[0].key)
        with pytest.raises(BadSignature, match="1 of 3"):
            victim.learn([record], forged, from_peer=True)
        first = epochs.epoch(1)
        assert first is not None
        founding = sign_head(Head(first.key, *log.head), log.swarm_id, swarm.nodes[0].key)
        with pytest.raises(Untrusted, match="ended before"):
            victim.learn([record], founding, from_peer=True)
        assert victim.min_version == 0
        assert victim.noted == victim.head
        # The place in the log is free still: a fork would have taken it for ever.
        assert (await swarm.store(2).propose([AuthorityEntry(policy(swarm, 1))]))[0].ok
        await all_count(swarm, 0, 1, 2)
        assert victim.min_version == 1


async def test_the_voters_of_each_epoch_certify_anew_and_a_restart_changes_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start_with_logged_records()
        await all_count(swarm, 0, 1, 2)
        before = swarm.trust(0).certificate
        await swarm.crash(0)
        await swarm.start(0)
        assert swarm.trust(0).certificate == before
        await all_count(swarm, 0, 1, 2)
        key = swarm.trust(0).certified_by
        await swarm.start(3)
        await swarm.crash(2)
        await swarm.voters_are(0, 1, 3, within_s=600)
        await all_count(swarm, 0, 1, 3)
        assert swarm.trust(3).certified_by != key


async def test_a_disk_that_was_full_for_a_while_is_written_when_there_is_room(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Nothing else is asked of the store meanwhile."""
    async with running_swarm() as swarm:
        swarm.records = []
        await swarm.start(0)
        swarm.nodes[0].trust_disk.full = True
        assert (await swarm.store(0).propose([AuthorityEntry(policy(swarm, 1))]))[0].ok
        await trio.sleep(5)
        assert swarm.trust(0).head[0] == 0
        await trio.sleep(5)
        assert swarm.store(0).status().state == "uncertified"
        swarm.nodes[0].trust_disk.full = False
        await trio.sleep(5)
        assert swarm.trust(0).head[0] == 1


async def test_signatures_that_were_lost_are_sent_again(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_swarm() as swarm:
        await swarm.start_with_logged_records()
        await all_count(swarm, 0, 1, 2)
        with monkeypatch.context() as lossy:
            lossy.setattr("swarmd.state.raft.heads.Heads._send", lambda *_: None)
            assert (await swarm.store(1).propose([AuthorityEntry(policy(swarm, 1))]))[0].ok
            await trio.sleep(5)
            assert {swarm.trust(index).min_version for index in range(3)} == {0}
        await all_count(swarm, 0, 1, 2)
        assert {swarm.trust(index).min_version for index in range(3)} == {1}


async def test_who_slept_while_all_voters_were_replaced_twice_verifies_forward(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Five voters, each of which hands its seat on, and then each of those that took them."""
    async with running_swarm() as swarm:
        await swarm.start_with_logged_records()
        sleeper, *rest = range(3, 12)
        await swarm.start(sleeper)
        await all_count(swarm, 0, 1, 2, sleeper, within_s=30)
        before = swarm.trust(sleeper).head
        await swarm.crash(sleeper)
        await swarm.start(*rest)
        awake = [0, 1, 2, *rest]
        with trio.fail_after(600):
            while len(swarm.store(0).voters) < 5:  # noqa: ASYNC110 - nothing to wait on
                await trio.sleep(1)
        sealed = swarm.store(0).epoch_number
        for generation in (1, 2):
            for voter in [swarm.index_of(one) for one in swarm.store(0).voters]:
                await swarm.store(voter).hand_over_seat(timeout_s=120)
                entry = AuthorityEntry(policy(swarm, generation))
                assert (await swarm.store(voter).propose([entry], timeout_s=60))[0].ok
                swarm.store(voter).stay()
                assert len(swarm.store(voter).voters) == 5
        with trio.fail_after(60):
            while swarm.store(0).epoch_number < sealed + 10:  # noqa: ASYNC110 - as above
                await trio.sleep(1)
        await all_count(swarm, *awake, within_s=60)
        await swarm.start(sleeper)
        assert swarm.trust(sleeper).head == before
        await all_count(swarm, awake[0], sleeper, within_s=60)
        assert swarm.trust(sleeper).head[0] == before[0] + 10
        assert swarm.store(sleeper).epoch_number >= sealed + 10
