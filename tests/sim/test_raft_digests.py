"""A bit that turns over in a voter's memory is found, and stops that voter and no other."""

from __future__ import annotations

import pytest

from swarmd.sim.network import LinkFaults
from swarmd.sim.raft import RaftWorld
from swarmd.sim.raft_faults import flip_state
from swarmd.state.raft.digests import SCRUB_KEYS
from swarmd.state.raft.guards import Guard
from swarmd.state.raft.messages import Add, Group, Put

KEYS = tuple(b"cold/%d" % n for n in range(20))


def _busy(seed: int, *, removed: tuple[str, ...] = ()) -> RaftWorld:
    """Three voters that serve callers, and hold keys that nobody writes again.

    No packet is lost: who lags is sent a snapshot, which may heal a flipped key, or spread it.
    """
    world = RaftWorld(seed, voters=3, spares=0, removed_guards=removed)
    world.network.faults = LinkFaults()
    for caller in world.callers:
        caller.start()
    world.world.run_for(3.0)
    [serving] = [node for node in world.nodes.values() if node.serving]
    answers: list[object] = []
    ops = tuple(Put(key, b"as written") for key in KEYS)
    serving.propose((Group(b"", 0, 0, ops),), answers.append)
    world.world.run_for(5.0)
    assert answers
    assert not world.world.violations
    return world


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("leads", [True, False])
def test_a_flipped_key_is_found(seed: int, leads: bool) -> None:
    """Goal: no voter goes on with a state that its log did not make.

    Method: once digests are known, flip a bit of a key that nobody touches, in the memory of
    the leader or of another voter; within 30 s that voter has stopped by itself, and no other.
    """
    world = _busy(seed)
    voter = next(node for node in world.nodes.values() if node.serving is leads)
    flip_state(voter, KEYS[seed])
    world.world.run_for(30.0)
    assert world.world.counts["state_flip_found"] == 1
    assert voter.lost is not None
    assert "bucket" in voter.lost
    assert not world.world.violations


def test_a_number_that_is_added_to_is_found_too() -> None:
    """What was flipped is gone; what it was made into is not what the others hold.

    Until it is found that voter applies otherwise, as the watch of the simulation sees, too.
    """
    world = _busy(9, removed=(Guard.D2_SCRUB_STATE,))
    voter = next(node for node in world.nodes.values() if not node.serving)
    [serving] = [node for node in world.nodes.values() if node.serving]
    serving.propose((Group(b"", 0, 0, (Put(KEYS[0], b"40"),)),), lambda _: None)
    world.world.run_for(5.0)
    flip_state(voter, KEYS[0])
    serving.propose((Group(b"", 0, 0, (Add(KEYS[0], 1),)),), lambda _: None)
    world.world.run_for(20.0)
    assert voter.lost is not None
    assert world.world.counts["state_flip_found"] == 1


def test_a_key_that_is_written_again_is_sound_again() -> None:
    world = _busy(9, removed=(Guard.D2_SCRUB_STATE,))
    voter = next(node for node in world.nodes.values() if not node.serving)
    flip_state(voter, KEYS[0])
    [serving] = [node for node in world.nodes.values() if node.serving]
    serving.propose((Group(b"", 0, 0, (Put(KEYS[0], b"anew"),)),), lambda _: None)
    world.world.run_for(20.0)
    assert voter.lost is None
    assert voter.room is not None
    state = voter.room.state
    for _ in range(2 * len(state) // SCRUB_KEYS + 2):
        state.digest()  # Two walks at least.
    assert not world.world.violations


def test_without_the_guards_nobody_notices() -> None:
    world = _busy(1, removed=(Guard.D1_COMPARE_DIGESTS, Guard.D2_SCRUB_STATE))
    voter = next(node for node in world.nodes.values() if not node.serving)
    flip_state(voter, KEYS[0])
    world.world.run_for(30.0)
    assert world.world.counts["state_flip_found"] == 0
    assert voter.lost is None
