"""Stories of epochs that change while somebody is away."""

from __future__ import annotations

import msgspec
import pytest
import trio
from store_swarm import Swarm, running_swarm

from swarmd.base.errors import NoQuorum, Unavailable
from swarmd.sim.disk import SimDisk
from swarmd.state.raft.agreement import Agreement
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.messages import PIN_PREFIX, Delete, Put
from swarmd.state.raft.wire import DigestPassed


async def _started(swarm: Swarm, *more: int) -> None:
    await swarm.start(0, 1, 2)
    await swarm.voters_are(0, 1, 2)
    await swarm.start(*more)
    await swarm.store(0).propose([Put(b"u/a", b"first")])


async def _leaves(swarm: Swarm, index: int) -> None:
    await swarm.store(index).hand_over_seat()
    swarm.left.add(swarm.id(index))
    await swarm.crash(index)


def _cut_off(swarm: Swarm, index: int) -> None:
    others = [node.node_id for i, node in enumerate(swarm.nodes) if i != index]
    swarm.network.cut(swarm.id(index), others)


async def test_a_client_three_epochs_behind(autojump_clock: trio.testing.MockClock) -> None:
    """Every voter that the sleeper knew has left; it finds the new ones by the chain."""
    async with running_swarm() as swarm:
        await _started(swarm, 3, 4, 5, 6)
        assert await swarm.store(6).get(b"u/a") is not None
        _cut_off(swarm, 6)
        for leaver in (0, 1, 2):
            await _leaves(swarm, leaver)
        with pytest.raises(NoQuorum):
            await swarm.store(6).get(b"u/a", timeout_s=1.0)
        swarm.network.heal()
        start = trio.current_time()
        entry = await swarm.store(6).get(b"u/a")
        assert entry is not None
        assert entry.value == b"first"
        assert trio.current_time() - start < 3.0
        assert (await swarm.store(6).propose([Put(b"u/a", b"second")]))[0].ok
        assert swarm.store(6).status().epoch == 5


async def test_an_old_voter_healed_after_its_peers_dropped_their_state(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Voter 2 sleeps through two changes in which it keeps its seat; then it catches up."""
    async with running_swarm() as swarm:
        await _started(swarm, 3, 4)
        _cut_off(swarm, 2)
        await _leaves(swarm, 0)
        await swarm.store(1).propose([Put(b"u/a", b"second")])
        await _leaves(swarm, 1)
        await swarm.store(3).propose([Put(b"u/a", b"third")])
        await trio.sleep(10)
        with pytest.raises(NoQuorum):
            await swarm.store(2).get(b"u/a", timeout_s=1.0)
        swarm.network.heal()
        await swarm.voters_are(2, 3, 4)
        await swarm.store(2).read_index()
        local = swarm.store(2).local
        assert local is not None
        entry = local.get(b"u/a")
        assert entry is not None
        assert entry.value == b"third"
        assert not [n for n in swarm.nodes[2].disk.names() if n.startswith("raft.e2.")]


async def test_an_old_voter_without_a_seat_learns_that_it_has_none(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A voter is crashed while the others replace it; back again, it only forwards."""
    async with running_swarm() as swarm:
        await _started(swarm, 3)
        await swarm.crash(2)
        leader = await swarm.coordinator()
        await swarm.store(leader).hand_over_for(swarm.id(2))
        await swarm.voters_are(0, 1, 3)
        await swarm.start(2)
        assert (await swarm.store(2).propose([Put(b"u/a", b"second")]))[0].ok
        await trio.sleep(8)
        assert swarm.store(2).local is None
        assert not [n for n in swarm.nodes[2].disk.names() if ".log." in n]


async def test_the_new_majority_is_missing(autojump_clock: trio.testing.MockClock) -> None:
    """A committed seal is not withdrawn: writes wait, by name, until a new voter is back."""
    async with running_swarm() as swarm:
        await swarm.start(0)
        await swarm.store(0).propose([Put(b"u/a", b"first")])
        await swarm.start(1, 2)
        await swarm.store(0)._keeper.changed()
        await swarm.crash(1, 2)
        with pytest.raises(NoQuorum):
            await swarm.store(0).propose([Put(b"u/a", b"second")], timeout_s=2.0)
        assert swarm.store(0).status().state in ("epoch_waiting", "no_quorum")
        stale = await swarm.store(0).get(b"u/a", stale=True)
        assert stale is not None
        assert stale.value == b"first"
        await swarm.start(1)
        assert (await swarm.store(0).propose([Put(b"u/a", b"third")]))[0].ok
        await swarm.start(2)
        await swarm.voters_are(0, 1, 2)


async def test_seats_are_cared_for_after_everybody_was_restarted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A coordinator that never saw the epoch begin changes voters like any other."""
    async with running_swarm() as swarm:
        await _started(swarm)
        await swarm.crash(0, 1, 2)
        await swarm.start(0, 1, 2)
        await swarm.voters_are(0, 1, 2)
        await swarm.crash(2)
        swarm.nodes[2].disk = SimDisk(swarm.world, "another")
        await swarm.start(2)
        with trio.fail_after(20):
            while True:
                if swarm.store(2).local is not None:
                    break
                await trio.sleep(0.1)


async def test_a_dead_voter_is_replaced_and_comes_back_as_a_spare(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await _started(swarm, 3)
        await swarm.crash(1)
        await trio.sleep(55)
        assert swarm.id(1) in swarm.store(0).voters
        await swarm.voters_are(0, 2, 3, within_s=20)
        await swarm.crash(0)
        assert (await swarm.store(3).propose([Put(b"u/a", b"second")]))[0].ok
        await swarm.start(0, 1)
        await trio.sleep(10)
        await swarm.voters_are(0, 2, 3)
        assert swarm.store(1).local is None
        assert not [n for n in swarm.nodes[1].disk.names() if ".log." in n]


async def test_a_voter_that_only_restarts_keeps_its_seat(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await _started(swarm, 3)
        epoch = swarm.store(0).epoch_number
        for _ in range(5):
            await swarm.crash(1)
            await trio.sleep(50)
            await swarm.start(1)
            await trio.sleep(3)
        assert swarm.store(0).epoch_number == epoch


async def test_a_pinned_member_gets_a_seat_and_keeps_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await _started(swarm, 3, 4)
        await swarm.store(4).propose([Put(PIN_PREFIX + swarm.id(4), b"")])
        await trio.sleep(50)
        assert not swarm.store(4).is_voter, "that can wait"
        await trio.sleep(15)
        assert swarm.store(4).is_voter
        voters = swarm.store(4).voters
        await swarm.crash(4)
        await trio.sleep(120)
        assert swarm.store(0).voters == voters, "it is waited for"
        await swarm.store(0).propose([Delete(PIN_PREFIX + swarm.id(4))])
        await trio.sleep(3)
        assert swarm.id(4) not in swarm.store(0).voters, "it was dead long enough"


async def test_growth_to_five_and_one_leaves(autojump_clock: trio.testing.MockClock) -> None:
    """Ten members for a minute: five seats. Below ten they stay, until a voter leaves."""
    async with running_swarm() as swarm:
        await _started(swarm, *range(3, 10))
        await trio.sleep(55)
        assert len(swarm.store(0).voters) == 3
        await trio.sleep(10)
        voters = swarm.store(0).voters
        assert len(voters) == 5
        await _leaves(swarm, next(i for i in range(3, 10) if swarm.id(i) not in voters))
        await trio.sleep(5)
        assert swarm.store(0).voters == voters
        await _leaves(swarm, next(i for i in range(3, 10) if swarm.id(i) in voters))
        await trio.sleep(5)
        assert len(swarm.store(0).voters) == 3
        entry = await swarm.store(9).get(b"u/a") if swarm.nodes[9].store else None
        assert entry is None or entry.value == b"first"


async def test_the_copied_disk_of_an_old_voter_cannot_start_the_old_epoch(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A voter restored from an old copy of its disk learns the chain and serves nothing old."""
    async with running_swarm() as swarm:
        await swarm.start(0)
        await swarm.store(0).propose([Put(b"u/a", b"first")])
        durable = dict(swarm.nodes[0].disk._durable)
        await swarm.start(1, 2)
        await swarm.voters_are(0, 1, 2)
        await swarm.store(0).propose([Put(b"u/a", b"second")])
        await swarm.crash(0)
        swarm.nodes[0].disk._durable = durable
        await swarm.start(0)
        await trio.sleep(1)
        entry = await swarm.store(0).get(b"u/a")
        assert entry is not None
        assert entry.value == b"second"


async def test_a_disk_restored_from_a_copy_votes_no_more_under_its_old_name(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It has forgotten votes and acknowledgements: it is seated anew, as another voter."""
    async with running_swarm() as swarm:
        await _started(swarm)
        await swarm.crash(2)
        copy = dict(swarm.nodes[2].disk._durable)
        await swarm.start(2)
        await swarm.voters_are(0, 1, 2)
        await _holds(swarm, 2, b"first")
        assert (await swarm.store(0).propose([Put(b"u/a", b"second")]))[0].ok
        epoch = swarm.store(0).epoch_number
        await swarm.crash(2)
        swarm.nodes[2].disk._durable = copy
        await swarm.start(2)
        await trio.sleep(1)
        assert not swarm.store(2).is_voter, "nothing of the old seat"
        await _holds(swarm, 2, b"second")
        await swarm.voters_are(0, 1, 2)
        assert swarm.store(0).epoch_number == epoch + 1


async def test_a_copy_of_a_disk_from_before_the_epoch_began_cannot_vote_in_it_twice(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It would fetch the first state and begin the log anew, under the same name."""
    async with running_swarm() as swarm:
        await _started(swarm, 3)
        await swarm.crash(0)
        copy = dict(swarm.nodes[0].disk._durable)
        await swarm.start(0)
        await swarm.voters_are(0, 1, 2)
        await _leaves(swarm, 2)
        await swarm.voters_are(0, 1, 3)
        await _holds(swarm, 0, b"first")
        await swarm.crash(0)
        swarm.nodes[0].disk._durable = copy
        await swarm.start(0)
        await trio.sleep(2)
        assert not swarm.store(0).is_voter
        await swarm.voters_are(0, 1, 3)
        assert (await swarm.store(0).propose([Put(b"u/a", b"second")]))[0].ok


async def test_everybody_restarts_and_all_take_part_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await _started(swarm)
        for _ in range(3):
            await swarm.crash(0, 1, 2)
            await swarm.start(0)
            await trio.sleep(1)
            assert swarm.store(0).status().state == "epoch_waiting"
            await swarm.start(1, 2)
            await swarm.voters_are(0, 1, 2)


async def test_voters_are_changed_once_the_living_ones_agree_on_the_state(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are lost, so that nobody knows whether one voter differs; then they come again,
    though nobody writes.
    """
    passed, lost = Agreement.on_digest_passed, True

    def unless_lost(agreement: Agreement, peer: str, message: DigestPassed) -> None:
        if not lost:
            passed(agreement, peer, message)

    monkeypatch.setattr(Agreement, "on_digest_passed", unless_lost)
    async with running_swarm(config=RaftConfig(digest_entries=4)) as swarm:
        await _started(swarm, 3)
        leader = await swarm.coordinator()
        leaver = (leader + 1) % 3
        for number in range(8):
            await swarm.store(0).propose([Put(b"u/a", b"%d" % number)])
        epoch = swarm.store(leader).epoch_number
        with pytest.raises(Unavailable, match="compared"):
            await swarm.store(leader).hand_over_for(swarm.id(leaver))
        assert swarm.store(leader).epoch_number == epoch
        lost = False
        start = trio.current_time()
        await swarm.store(leader).hand_over_for(swarm.id(leaver))
        assert trio.current_time() - start < 0.3
        await swarm.voters_are(*(i for i in range(4) if i != leaver))


async def test_a_voter_that_differs_and_stops_holds_no_change_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm(config=RaftConfig(digest_entries=4)) as swarm:
        swarm.expects_errors = True
        await _started(swarm, 3)
        leader = await swarm.coordinator()
        leaver, differs = (i for i in range(3) if i != leader)
        await trio.sleep(0.1)
        state = swarm.store(differs).local
        assert state is not None
        state._entries[b"u/a"] = msgspec.structs.replace(state._entries[b"u/a"], value=b"flipped")
        for number in range(8):
            await swarm.store(leader).propose([Put(b"u/b", b"%d" % number)])
        await trio.sleep(0.1)
        assert swarm.nodes[differs].error is not None
        await swarm.store(leaver).hand_over_seat()
        assert swarm.id(leaver) not in swarm.store(leader).voters


async def _holds(swarm: Swarm, index: int, value: bytes) -> None:
    """Wait until a node votes and has applied `value`."""
    with trio.fail_after(20):
        while True:
            store = swarm.store(index)
            entry = store.local.get(b"u/a") if store.local is not None else None
            if store.is_voter and entry is not None and entry.value == value:
                return
            await trio.sleep(0.1)
