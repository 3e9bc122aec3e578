"""What befalls replicas of the eventual store in a run; see `crdt_world.py`."""

from __future__ import annotations

import math
from typing import Final

from swarmd.sim.crdt_world import REPLACE_S, CrdtWorld
from swarmd.sim.network import LinkFaults
from swarmd.state.crdt.messages import Leaving, Taken

CALM_S: Final = 60.0
REST_S: Final = 30.0
_COMING_MAX: Final = 3
_LEAVING_MAX: Final = 3
# So many stay while there are other faults.
_STAYING_MIN: Final = 2
# Within this, those that leave at once begin, or change their mind.
_APART_S: Final = 4.0
# So many may go where all is well, each in order.
_GOING_MAX: Final = 8
# Two that are cut off know by then that they are alone.
_ALONE_S: Final = REPLACE_S + 6.0
# What is held up longer than a node takes to serve again what it holds again.
_TAKEN_LATE_S: Final = 4.0
_STAYS_S: Final = 2.5
_NEWS_LATE_S: Final = 3.0
_JUMP_MAX_MS: Final = 90_000
_CRASHES: Final = ("kill", "kill", "power_loss", "power_loss", "disk_lost", "disk_restored")
FAULTS: Final = (
    "loss", "duplicate", "delay", "reorder", "partition", "one_way_cut", "kill", "power_loss",
    "disk_lost", "disk_restored", "clock_jump", "came", "went", "replaced", "seen_apart",
    "leave", "stayed", "crashed_leaving", "left_anew", "left_both",
)  # fmt: skip


def disturb(sim: CrdtWorld) -> None:
    """One fault, or the end of some."""
    rng, world = sim.rng, sim.world
    running = sim.running()
    match rng.randrange(10):
        case 8 if rng.random() < 0.5 and sim.apart is None:
            names = sorted(sim.nodes)
            rng.shuffle(names)
            middle = rng.randrange(1, len(names))
            sim.part(names[:middle], names[middle:])
        case 9 if rng.random() < 0.5:
            come_or_go(sim)
        case 9 if rng.random() < 0.5:
            leave(sim, rng.randint(1, _LEAVING_MAX))
        case 0:
            names = sorted(sim.nodes)
            rng.shuffle(names)
            middle = rng.randrange(1, len(names))
            one_way = rng.random() < 0.3
            sim.network.cut(names[:middle], names[middle:], one_way=one_way)
        case 1 | 2:
            sim.heal()
        case 3 | 4 if len(running) > 1:
            sim.crash(rng.choice(running).name, rng.choice(_CRASHES))
        case 5:
            for node in sim.nodes.values():
                if node.machine is None and not node.is_gone:
                    sim.start(node.name)
        case 6:
            world.count("clock_jump")
            rng.choice(running).skew_ms = rng.randint(-_JUMP_MAX_MS, _JUMP_MAX_MS)
        case 7:
            node = rng.choice(running)
            node.copy = node.disk.copy()


def leave(sim: CrdtWorld, most: int) -> None:
    """So many begin to leave at about the same time; some change their mind, or crash."""
    rng, world = sim.rng, sim.world
    able = [node.name for node in sim.running()]
    rng.shuffle(able)
    for name in able[:most]:
        begin_s = rng.choice((0.0, rng.uniform(0.0, _APART_S)))
        world.after(begin_s, _leave_if_able, sim, name)
        what = rng.random()
        if what < 0.3:
            world.after(begin_s + rng.uniform(0.1, _APART_S), _stay_if_leaving, sim, name)
        elif what < 0.6:
            how = rng.choice(_CRASHES)
            world.after(begin_s + rng.uniform(0.0, _APART_S), _crash_if_leaving, sim, name, how)


def _leave_if_able(sim: CrdtWorld, name: str) -> None:
    node = sim.nodes[name]
    others = [one for one in sim.running() if one is not node and one.leaves_at is None]
    able = node.machine is not None and node.leaves_at is None and not sim.is_peace
    if able and len(others) >= _STAYING_MIN:
        sim.leave(name)


def _stay_if_leaving(sim: CrdtWorld, name: str) -> None:
    if sim.nodes[name] in sim.leaving() and not sim.is_peace:
        sim.world.count("stayed")
        sim.world.count("stayed_after_drop", sim.nodes[name].has_dropped)
        sim.stay(name)


def _crash_if_leaving(sim: CrdtWorld, name: str, how: str) -> None:
    able = sim.nodes[name] in sim.leaving() and not sim.is_peace
    if able and len(sim.running()) > _STAYING_MIN:
        sim.crash(name, how)


def leave_in_order(sim: CrdtWorld) -> None:
    """Where all is well, one after the other leaves, or several at once, and none is refused."""
    sim.is_calm = True
    going = [node.name for node in sim.running()][:-1]
    sim.rng.shuffle(going)
    del going[_GOING_MAX:]
    refused = sim.world.counts["refused"]
    while going:
        for _ in range(sim.rng.randint(1, _LEAVING_MAX)):
            if going:
                sim.leave(going.pop())
        while sim.leaving():
            sim.world.run_for(sim.rng.uniform(0.0, 0.3))
            sim.someone_writes()
    if sim.world.counts["refused"] > refused:
        sim.world.violate("a node could not leave, though all was well")
    sim.world.run_for(REST_S)


def leave_in_a_pair(sim: CrdtWorld) -> None:
    """Two know nobody but each other any more, and both leave at once, or one does."""
    sim.heal()
    for node in sim.running():
        node.skew_ms = 0
    able = [node.name for node in sim.running() if node.leaves_at is None]
    if len(able) < _STAYING_MIN:
        return
    a, b = sim.rng.sample(able, 2)
    sim.part([a, b], [name for name in sim.nodes if name not in (a, b)])
    _write_in(sim, [a, b], _ALONE_S)
    if sim.nodes[a].machine is not None:
        if sim.nodes[b].machine is not None and sim.rng.random() < 0.5:
            _leave_both(sim, a, b)
        else:
            _leave_anew(sim, a, b)
    sim.late_s.clear()
    sim.heal()


def _leave_both(sim: CrdtWorld, a: str, b: str) -> None:
    """Each asks the other to take what it has, before it hears that the other leaves, too."""
    sim.world.count("left_both")
    sim.late_s[Leaving] = _NEWS_LATE_S
    sim.leave(a)
    sim.leave(b)
    sim.world.run_for(_NEWS_LATE_S)


def _leave_anew(sim: CrdtWorld, name: str, other: str) -> None:
    """What was taken when a node left comes to it when it stayed, wrote and left again."""
    sim.world.count("left_anew")
    sim.late_s[Taken] = _TAKEN_LATE_S
    sim.leave(name)
    sim.world.run_for(0.1)
    if sim.nodes[name] in sim.leaving():
        sim.stay(name)
    sim.world.run_for(_STAYS_S)
    if sim.nodes[name].machine is None:
        return
    sim.network.cut([name], [other], one_way=True)
    for _ in range(8):
        sim.write_something(sim.nodes[name], partial=1.0)
    sim.leave(name)
    sim.world.run_for(_TAKEN_LATE_S)


def _write_in(sim: CrdtWorld, names: list[str], for_s: float) -> None:
    """Have some write to what lives on two nodes, and all others as ever."""
    until = sim.world.now + for_s
    while sim.world.now < until:
        sim.world.run_for(sim.rng.uniform(0.0, 1.0))
        sim.write_something(sim.nodes[sim.rng.choice(names)], partial=0.7)


def come_or_go(sim: CrdtWorld) -> None:
    """Somebody new comes, or somebody goes for good."""
    running = sim.running()
    came = sum(name.startswith("c") for name in sim.nodes)
    if sim.rng.random() < 0.5 and came < _COMING_MAX:
        sim.world.count("came")
        sim.come(f"c{came}")
    elif len(running) > 3 + len(sim.leaving()):
        sim.evict(sim.rng.choice(running).name)


def come_back_late(sim: CrdtWorld) -> None:
    """Where all agree, a node is put back to what it was in the midst of the faults.

    Or its disk is lost, with writes that nobody else has, and found when its life is over.
    """
    node = sim.rng.choice(sim.running())
    if node.copy is None or sim.rng.random() < 0.5:
        sim.world.count("found_late")
        sim.network.cut([node.name], [name for name in sim.nodes if name != node.name])
        for _ in range(8):
            sim.write_something(node, partial=0.0)
        sim.crash(node.name, "disk_lost")
        sim.heal()
        sim.start(node.name)
        for _ in range(8):
            sim.world.run_for(sim.rng.uniform(0.0, 1.0))
            sim.write_something(node, partial=0.0)
        sim.world.run_for(CALM_S)
        node.copy = node.lost
    sim.world.count("restored_late")
    sim.crash(node.name, "disk_restored")
    for _ in range(10):
        sim.someone_writes()
        sim.world.run_for(sim.rng.uniform(0.0, 0.5))
    sim.start(node.name)
    sim.someone_writes()
    sim.world.run_for(CALM_S)


def end_no_more(sim: CrdtWorld) -> None:
    """Let the last ends of lives, which are changes like others, reach everybody."""
    for node in sim.running():
        assert node.machine is not None
        node.machine.lives.end_lives_s = math.inf
    sim.world.run_for(REST_S)


def make_peace(sim: CrdtWorld) -> None:
    """Everything runs, nothing is lost, all clocks are right; and somebody new comes."""
    sim.is_peace = True
    sim.heal()
    sim.network.faults = LinkFaults()
    for node in sim.leaving():
        sim.stay(node.name)
    for node in sim.nodes.values():
        node.skew_ms = 0
        if node.machine is None and not node.is_gone:
            sim.start(node.name)
    sim.world.run_for(_JUMP_MAX_MS / 1_000)  # What came from the future is of the past now.
    sim.world.count("newcomer")
    sim.come(f"n{len(sim.nodes)}")
