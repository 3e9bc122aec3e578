"""Experiments with membership at scale: each is one run of one swarm, and gives its figures.

`run(experiment, count, seed)` makes one. Figures are seconds, or per member and second; infinity
where something did not happen in the time that was waited for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from swarmd.base.ids import NodeId
from swarmd.mesh.swim.events import Changed, Member
from swarmd.mesh.swim.members import DEAD_MAX
from swarmd.mesh.swim.messages import MemberState
from swarmd.sim.swim_scale import ScaleMember, ScaleWorld, many_objects

Figures = dict[str, float]
Made = tuple[ScaleWorld, Figures]

AWARE: Final = 0.9999
LOSSES: Final = (0.0, 0.1, 0.25, 0.5)
# From here on no promise is made that nobody is declared dead by mistake.
HOPELESS_LOSS: Final = 0.5
PARTITION_S: Final = 600.0
HEAL_S: Final = 60.0
HOUR_S: Final = 3_600.0
STARVED: Final = 0.2
FLAPPING: Final = 0.01
_BUSY_S: Final = 10


class Spread:
    """When how many of the running came to hold something of one member."""

    def __init__(
        self, sim: ScaleWorld, subject: NodeId, holds: Callable[[Member], bool], but: int = 1
    ) -> None:
        self._sim = sim
        self._subject = subject
        self._holds = holds
        self._known: set[int] = set()
        self._began = sim.world.now
        self._all = len(sim.up()) - but
        self._enough = math.ceil(AWARE * self._all)
        self.enough_s = self.all_s = math.inf
        sim.watches.append(self.watch)

    def watch(self, member: ScaleMember, change: Changed) -> None:
        after = change.after
        if after is None or after.node_id != self._subject or not self._holds(after):
            return
        if member.node_id == self._subject or member.number in self._known:
            return
        self._known.add(member.number)
        took_s = self._sim.world.now - self._began
        if len(self._known) == self._enough:
            self.enough_s = took_s
        if len(self._known) == self._all:
            self.all_s = took_s

    def done(self) -> bool:
        return self.all_s < math.inf

    def end(self) -> None:
        self._sim.watches.remove(self.watch)


def change(count: int, seed: int, loss: float = 0.0) -> Made:
    """One member changes its tags."""
    sim = ScaleWorld(seed, count, loss=loss)
    sim.hopeless = loss >= HOPELESS_LOSS
    sim.start_warm()
    sim.run_for(2.0 + sim.rng.random())
    subject = sim.rng.choice(sim.members)
    spread = Spread(sim, subject.node_id, lambda member: member.tags != ())
    sim.change_something(subject, "new")
    sim.run_until(spread.done, 60.0)
    return sim, {f"aware_{loss:g}_s": spread.enough_s, f"aware_all_{loss:g}_s": spread.all_s}


def death(count: int, seed: int) -> Made:
    """A host is unplugged."""
    sim = _settled(count, seed)
    return sim, {"silent_death_s": _death(sim, reset=False), "false_deaths": sim.false_deaths}


def kill(count: int, seed: int) -> Made:
    """A process is killed, and its host resets its connections."""
    sim = _settled(count, seed)
    return sim, {"kill_s": _death(sim, reset=True), "false_deaths": sim.false_deaths}


def _settled(count: int, seed: int, **settings: float) -> ScaleWorld:
    sim = ScaleWorld(seed, count, **settings)  # type: ignore[arg-type]
    sim.start_warm()
    sim.run_for(2.0 + sim.rng.random())
    return sim


def _death(sim: ScaleWorld, *, reset: bool) -> float:
    subject = sim.rng.choice(sim.members)
    spread = Spread(sim, subject.node_id, lambda member: member.state is MemberState.DEAD)
    sim.kill(subject, reset=reset)
    sim.run_until(spread.done, 300.0)
    spread.end()
    return spread.all_s


def bootstrap(count: int, seed: int) -> Made:
    """All start at once with three static seeds, until all see all."""
    sim = ScaleWorld(seed, count)
    sim.start_cold()
    took_s = sim.run_until(sim.agreed, 120.0, step_s=0.05)
    return sim, {"all_see_all_s": took_s, "false_deaths": sim.false_deaths}


def join(count: int, seed: int) -> Made:
    """One more joins a settled swarm: until it knows all, and all know it."""
    sim = ScaleWorld(seed, count)
    sim.start_warm(but=1)
    sim.run_for(2.0 + sim.rng.random())
    sim.start(sim.members[-1])
    return sim, {"join_s": sim.run_until(sim.agreed, 300.0, step_s=0.05)}


def load(count: int, seed: int) -> Made:
    """What a member sends, with nothing to say and with one change a second in the swarm."""
    sim = _settled(count, seed)
    # Within the first interval each compares views once, however many there are: later less often.
    interval_s = sim.config.sync_interval_s
    idle = _sent(sim, lambda: sim.run_for(interval_s), interval_s)

    def busy() -> None:
        for second in range(_BUSY_S):
            sim.change_something(sim.rng.choice(sim.members), str(second))
            sim.run_for(1.0)

    told = _sent(sim, busy, _BUSY_S)
    return sim, {
        "idle_packets": idle[0], "idle_bytes": idle[1],
        "busy_packets": told[0], "busy_bytes": told[1],
        "false_deaths": sim.false_deaths,
    }  # fmt: skip


def _sent(sim: ScaleWorld, act: Callable[[], None], lasts_s: float) -> tuple[float, float]:
    packets = sum(member.packets_out for member in sim.members)
    sent = sum(member.bytes_out for member in sim.members)
    act()
    share = len(sim.members) * lasts_s
    packets = sum(member.packets_out for member in sim.members) - packets
    return packets / share, (sum(member.bytes_out for member in sim.members) - sent) / share


def lossy(count: int, seed: int, loss: float) -> Made:
    """A minute in which packets are lost: of streams, too, which then take too long for a probe."""
    sim = ScaleWorld(seed, count, loss=loss)
    sim.hopeless = loss >= HOPELESS_LOSS
    sim.start_warm()
    sim.run_for(60.0)
    return sim, {f"false_deaths_{loss:g}": sim.false_deaths}


def deaf(count: int, seed: int) -> Made:
    """Nothing reaches one member, and what it says reaches all; later it hears again."""
    sim = _settled(count, seed)
    subject = sim.rng.choice(sim.members)
    subject.excused = subject.blind = True
    others = [member.number for member in sim.members if member is not subject]
    spread = Spread(sim, subject.node_id, lambda member: member.state is MemberState.DEAD)
    sim.cut(others, [subject.number], one_way=True)
    sim.run_until(spread.done, 300.0)
    spread.end()
    sim.heal()
    healed_s = sim.run_until(sim.agreed, 120.0)
    return sim, {
        "deaf_s": spread.all_s,
        "deaf_healed_s": healed_s,
        "false_deaths": sim.false_deaths,
    }


def flapping(count: int, seed: int) -> Made:
    """One in a hundred is killed and started again by turns, for a minute; then all stay."""
    sim = _settled(count, seed)
    ends_at, last_at = sim.world.now + 60.0, 0.0
    some = sim.rng.sample(sim.members[3:], max(1, round(FLAPPING * count)))

    def down(member: ScaleMember) -> None:
        sim.kill(member)
        sim.world.after(sim.rng.uniform(1.0, 20.0), up, member)

    def up(member: ScaleMember) -> None:
        nonlocal last_at
        last_at = sim.world.now
        sim.start(member)
        if sim.world.now < ends_at:
            sim.world.after(sim.rng.uniform(5.0, 20.0), down, member)

    for member in some:
        sim.world.after(sim.rng.uniform(0.0, 10.0), down, member)
    sent = _sent(sim, lambda: sim.run_for(60.0), 60.0)
    sim.run_until(lambda: len(sim.up()) == count, 60.0)
    waited_s = sim.run_until(sim.agreed, 120.0)
    agreed_s = sim.world.now - last_at if waited_s < math.inf else math.inf
    return sim, {
        "flapping_packets": sent[0],
        "flapping_bytes": sent[1],
        "flapping_agreed_s": agreed_s,
        "false_deaths": sim.false_deaths,
    }


def partition(count: int, seed: int) -> Made:
    """Half of the members are cut off for ten minutes, and all remember a thousand dead."""
    sim = ScaleWorld(seed, count)
    sim.start_warm(dead=DEAD_MAX)
    sim.run_for(2.0 + sim.rng.random())
    for member in sim.members:
        member.excused = member.blind = True
    half = range(count // 2)
    sim.cut(half, range(count // 2, count))
    sim.run_for(PARTITION_S)
    views = [member.machine.present_count() for member in sim.members if member.machine]
    assert max(views) <= count - count // 2, "each half has buried the other"
    sim.heal()
    return sim, {"healed_s": sim.run_until(sim.agreed, 2 * HEAL_S)}


def starved(count: int, seed: int, lasts_s: float = HOUR_S) -> Made:
    """10 % loss, and a fifth of the members stand still now and then, for up to half a minute."""
    sim = ScaleWorld(seed, count, loss=0.1)
    sim.start_warm()
    some = sim.rng.sample(sim.members, round(STARVED * count))

    def stall(member: ScaleMember) -> None:
        sim.stall(member)
        lasts_s = math.exp(sim.rng.uniform(math.log(0.1), math.log(30.0)))
        sim.world.after(lasts_s, go_on, member)

    def go_on(member: ScaleMember) -> None:
        sim.go_on(member)
        sim.world.after(sim.rng.uniform(1.0, 60.0), stall, member)

    for member in some:
        member.excused = True
        sim.world.after(sim.rng.uniform(0.0, 30.0), stall, member)
    sim.run_for(lasts_s)
    return sim, {"starved_false_deaths": sim.false_deaths, "starved_for_s": lasts_s}


def _with_loss(experiment: Callable[..., Made], loss: float) -> Callable[..., Made]:
    return lambda count, seed: experiment(count, seed, loss)


EXPERIMENTS: Final[Mapping[str, Callable[..., Made]]] = MappingProxyType(
    {
        **{f"change_{loss:g}": _with_loss(change, loss) for loss in LOSSES},
        **{f"lossy_{loss:g}": _with_loss(lossy, loss) for loss in LOSSES[1:]},
        "death": death,
        "kill": kill,
        "bootstrap": bootstrap,
        "join": join,
        "load": load,
        "deaf": deaf,
        "flapping": flapping,
        "partition": partition,
        "starved": starved,
        "starved_minutes": lambda count, seed: starved(count, seed, 300.0),
    }
)


def run(experiment: str, count: int, seed: int) -> tuple[Figures, list[str]]:
    """One run of one experiment: its figures, and what was violated."""
    with many_objects():
        sim, figures = EXPERIMENTS[experiment](count, seed)
    return figures, sim.world.violations
