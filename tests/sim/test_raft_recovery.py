"""Going on alone in the simulated world, while the majority that was given up lives elsewhere.

Two generations are at work then, each with callers and a watch of its own: what the old one
acknowledges is held to its own promises as long as it lasts, and is void in the new one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from test_raft_epochs import change, ids, leader, others, quiet, settled, until

from swarmd.identity.epochs import GENERATION_EPOCHS, EpochFork
from swarmd.sim.raft import RaftWorld
from swarmd.sim.raft_epochs import recovery_key
from swarmd.sim.raft_node import Node
from swarmd.state.raft import messages as m

NEW = GENERATION_EPOCHS


@dataclass
class Put:
    """One write of a story, and what came of it."""

    key: bytes
    revision: int | None = None


@dataclass
class Parted:
    """`alone`, with a spare beside it, is cut off from the two others, who go on.

    `kept`: what it must have for ever; `void`: what the others acknowledged behind the cut.
    """

    world: RaftWorld
    alone: Node
    old: list[Node]
    beside: list[str]
    kept: list[Put] = field(default_factory=list)
    void: list[Put] = field(default_factory=list)

    @property
    def rest(self) -> list[str]:
        return others(self.world, *self.beside)

    def serving(self, *, new: bool) -> list[Node]:
        nodes = [n for n in self.world.nodes.values() if n.serving and n.room is not None]
        return [n for n in nodes if (n.room.number >= NEW) is new]  # type: ignore[union-attr]

    def put(self, node: Node, puts: list[Put]) -> Put:
        """Write something new; it is for the caller to wait whether it is acknowledged."""
        made = Put(f"story/{len(self.kept)}.{len(self.void)}".encode())

        def done(results: object) -> None:
            if results is not None:
                made.revision = results[0][0].revision  # type: ignore[index]

        puts.append(made)
        node.propose((m.Group(b"", 0, 0, (m.Put(made.key, b"."),)),), done)
        return made

    def write(self, *, new: bool) -> Put:
        """Write in one of the generations, until it is acknowledged."""
        until(self.world, lambda: self.serving(new=new))
        made = self.put(self.serving(new=new)[0], self.kept if new else self.void)
        until(self.world, lambda: made.revision is not None)
        return made

    def recover(self) -> None:
        """Nobody on the one side reaches the other, callers of either generation included."""
        world = self.world
        old_callers = [caller.name for caller in world.callers]
        world.recover(self.alone.name)
        new_callers = [caller.name for caller in world.callers]
        world.network.cut(self.beside, old_callers)
        world.network.cut(self.rest, new_callers)
        for caller in world.callers:
            caller.start()

    def heal(self) -> None:
        """Nodes find each other again; the new callers stay away from who has not turned yet."""
        world = self.world
        world.network.heal()
        world.network.cut(self.rest, [caller.name for caller in world.callers])


def parted(*, leads: bool = True) -> Parted:
    """Callers are at work on the side of the majority; `alone` led, or followed."""
    world = quiet(spares=3)
    first = leader(world)
    seated = [world.nodes[name] for name in ("v0", "v1", "v2")]
    alone = first if leads else next(node for node in seated if node is not first)
    story = Parted(world, alone, [node for node in seated if node is not alone], [alone.name, "v3"])
    acknowledged = story.put(first, story.kept)
    until(world, lambda: acknowledged.revision is not None)
    world.world.run_for(0.1)  # A follower has it by now.
    callers = [caller.name for caller in world.callers]
    world.network.cut(story.beside, [*story.rest, *callers])
    if leads:
        # In its log, and nowhere else; whoever asked for it was not told that it is lost.
        story.put(first, story.kept)
    until(world, lambda: any(node.serving for node in story.old))
    story.write(new=False)
    return story


def ended(story: Parted) -> None:
    """One history everywhere, and what each generation promised about it."""
    world, network = story.world, story.world.network
    until(world, lambda: all(node.head >= NEW for node in world.nodes.values()), within_s=60.0)
    world.world.run_for(2.0)
    assert not [n.name for n in world.nodes.values() if n.room and n.room.number < NEW]
    network.heal()
    story.write(new=True)
    change(world, *(node.name for node in (story.alone, *story.old)))
    until(world, lambda: all(node.room is not None for node in story.old))
    story.write(new=True)
    settled(world)
    assert len({node.chain.head.key for node in world.nodes.values()}) == 1
    assert len(story.serving(new=True)) == 1
    states = [node.room.state for node in (story.alone, *story.old) if node.room is not None]
    assert len({state.digest() for state in states}) == 1
    for state in states:
        assert [put.key for put in story.kept if state.get(put.key) is None] == []
        assert [put.key for put in story.void if state.get(put.key) is not None] == []
    for node in world.nodes.values():
        epochs = [n for n in node.disk.names() if n.startswith("raft.e")]
        assert [n for n in epochs if not n.startswith(f"raft.e{NEW + 1}.")] == [], node.name


@pytest.mark.parametrize("leads", [True, False], ids=["led", "followed"])
@pytest.mark.parametrize("changes", [0, 1, 2])
def test_a_minority_recovers_while_the_old_majority_lives_on(changes: int, leads: bool) -> None:
    """Goal: two generations live side by side, and after the partition there is the new one.

    Method: the old majority changes its voters meanwhile, or not, so that for one epoch there
    are both a seal and a recovery. Callers are at work on either side, and once the partition
    has healed writes go on being asked of the old voters.
    """
    story = parted(leads=leads)
    world = story.world
    before = {key: world.watch.value(key, world.watch.revision) for key in world.watch.keys}
    assert any(before.values())
    old_callers, old_watch, old_history = world.callers, world.watch, world.history
    told = world.watch.acknowledged
    story.recover()
    seats = [[story.old[0].name, story.old[1].name, "v4"], [story.old[1].name, "v4", "v5"]]
    for names in seats[:changes]:
        until(world, lambda: story.serving(new=False))
        coordinator = story.serving(new=False)[0]
        number = coordinator.head + 1
        coordinator.change_voters(ids(world, *names))
        nodes = [world.nodes[name] for name in names]
        until(world, lambda nodes=nodes, n=number: all(x.head == n for x in nodes))  # type: ignore[misc]
    for _ in range(5):
        voids, news = story.write(new=False), story.write(new=True)
        assert news.revision > voids.revision, "no revision means two things"  # type: ignore[operator]
    world.world.run_for(3.0)
    assert old_watch.acknowledged > told, "it goes on, and cannot know better"
    for caller in old_callers:
        caller.stop()
    world.world.run_for(5.0)
    late: list[Put] = []
    story.heal()
    for _ in range(60):
        for node in story.serving(new=False):
            story.put(node, late)
        world.world.run_for(0.01)
    until(world, lambda: all(node.head >= NEW for node in world.nodes.values()), within_s=60.0)
    # Who has just heard of it ends as soon as its disk holds it.
    until(world, lambda: not story.serving(new=False), within_s=1.0)
    story.void += late
    assert not old_history.verdict().problems
    ended(story)


# Only who goes on alone tells everybody of it, and begins the next epoch; the old voters end.
BEGINS = ("certified", "start.before", "start.after")
ENDS = ("chain.after", "stop.before", "stop.after", "drop.before", "drop.after")


@pytest.mark.parametrize(
    ("point", "side"),
    [
        *((point, side) for point in (*BEGINS, *ENDS) for side in ("alone", "everybody")),
        *((point, "old") for point in ENDS),
    ],
)
def test_a_crash_at_each_point_of_the_turn(point: str, side: str) -> None:
    """Goal: who ends while it turns to the new generation never goes back to the old one."""
    story = parted()
    world = story.world
    nodes = {"alone": [story.alone], "old": story.old, "everybody": [*world.nodes.values()]}
    for node in nodes[side]:
        node.crash_at(point)
    for caller in world.callers:
        caller.stop()
    world.world.run_for(5.0)
    story.recover()
    until(world, lambda: story.serving(new=True))
    story.write(new=True)
    story.heal()
    world.world.run_for(8.0)
    assert world.world.counts[f"seal crash {point}"] >= (2 if side == "old" else 1)
    for node in world.nodes.values():
        node.crash_at(None)
    ended(story)


def test_who_slept_through_both_generations_turns_to_the_new_one() -> None:
    """Method: an old voter ends behind the partition, after a seal that it knows of."""
    story = parted()
    world = story.world
    for caller in world.callers:
        caller.stop()
    world.world.run_for(5.0)
    story.recover()
    sleeper, other = story.old
    story.serving(new=False)[0].change_voters(ids(world, sleeper.name, other.name, "v4"))
    until(world, lambda: sleeper.room is not None and sleeper.room.number == 3)
    story.write(new=False)
    sleeper.crash(power=True)
    story.write(new=False)
    story.heal()
    world.world.run_for(12.0)
    assert world.nodes["v4"].head >= NEW
    assert sleeper.chain.head.number == 3
    world.start(sleeper.name)
    ended(story)


def test_two_that_recover_stop_by_name() -> None:
    """The recovery key signed twice: whoever comes to know of both stops, on either side."""
    story = parted()
    world = story.world
    story.recover()
    until(world, lambda: story.serving(new=True))
    other = next(node for node in story.old if node.room is not None)
    other.recover(recovery_key())
    until(world, lambda: other.head == NEW)
    world.network.heal()

    def agreed() -> bool:
        return len({node.chain.head.key for node in world.nodes.values() if node.up}) <= 1

    until(world, agreed, within_s=60.0)
    stopped = {text.split()[1] for text in world.world.violations if EpochFork.__name__ in text}
    assert stopped == {node.name for node in world.nodes.values() if not node.up}
    assert stopped, world.world.violations
