"""What befalls ten hosts, each kind under a name, and how it is told whether they bore it.

A scenario begins, lasts, and ends; then everything is put right and all views have to be equal and
true again within a minute. Several may be under way at once: each says whom it excuses for holding
whom dead, and that has to be so when it ends, so that a fault that did nothing proves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, ClassVar, Final

from hosts_ground import COUNT, IDLE_CLOSE_S, Ground, wait_seen
from hosts_journal import Excuse, Pair, Sighting, about, across, known_after_s, unexcused
from hosts_quota import Quota

from swarmd.base.errors import SwarmError
from swarmd.client import Client

# A voter takes its time where the cores have much to do.
STOPPED_WITHIN_S: Final = 30.0
STARTED_WITHIN_S: Final = 30.0
# What a daemon takes that has nothing to do; a voter takes 2.5 %.
STARVED_CORES: Final = 0.01
# For this part of the time they wanted to run and might not, at least.
_THROTTLED_LEAST: Final = 0.01
# News that comes within so long of the same is the same.
_NEWS_S: Final = 1.0
_NONE: Final[frozenset[Pair]] = frozenset()
# An idle stream is closed by then, however much the daemons have to say to each other.
_CLOSED_WITHIN_S: Final = 30.0


@dataclass
class Scenario:
    """One of them, and for how long it lasts, in seconds.

    `excused`: who may hold whom dead, from its beginning until all is well again. `dead`: who must,
    by its end. `unsuspected`: whom nobody may even suspect while it lasts, unless that is excused.
    """

    name: ClassVar[str]
    held_s: float = 0.0

    def excused(self, ground: Ground) -> frozenset[Pair]:
        return _NONE

    def dead(self, ground: Ground) -> frozenset[Pair]:
        return _NONE

    def unsuspected(self, ground: Ground) -> list[str]:
        return []

    def begin(self, ground: Ground) -> None:
        """Do it."""

    def check(self, ground: Ground) -> list[str]:
        """What of it did not come to pass, shortly before its end."""
        return []

    def end(self, ground: Ground) -> None:
        """Put it right."""


@dataclass
class Partition(Scenario):
    """Nothing passes between the first five and the others."""

    name = "partition 5|5"
    held_s: float = 60.0

    def excused(self, ground: Ground) -> frozenset[Pair]:
        return across(ground.names[: COUNT // 2], ground.names[COUNT // 2 :])

    dead = excused

    def begin(self, ground: Ground) -> None:
        hosts = ground.hosts.hosts
        ground.hosts.cut(hosts[: COUNT // 2], hosts[COUNT // 2 :])

    def end(self, ground: Ground) -> None:
        ground.hosts.heal()


@dataclass
class OneWay(Scenario):
    """Nothing passes from one to another, and all the other way: others answer for them."""

    name = "one way cut"
    held_s: float = 20.0
    source: str = "n7"
    target: str = "n8"

    def unsuspected(self, ground: Ground) -> list[str]:
        return [self.source, self.target]

    def begin(self, ground: Ground) -> None:
        source, target = ground.host(self.source), ground.host(self.target)
        ground.hosts.cut([source], [target], one_way=True)

    def check(self, ground: Ground) -> list[str]:
        source, target = ground.host(self.source), ground.host(self.target)
        call = ["timeout", "1", "bash", "-c"]
        passed = [
            source.run(*call, f"echo >/dev/tcp/{one.address}/{ground.daemon(self.target).port}")
            for one in (target, ground.host("n6"))
        ]
        well = passed[0].returncode != 0 and passed[1].returncode == 0
        return [] if well else [f"the cut from {self.source} to {self.target} is none"]

    def end(self, ground: Ground) -> None:
        ground.host(self.target).do("nft flush ruleset")


@dataclass
class Deaf(Scenario):
    """One member hears nobody, and everybody hears it: what it says of others is not true."""

    name = "deaf member"
    held_s: float = 25.0
    victim: str = "n4"

    def excused(self, ground: Ground) -> frozenset[Pair]:
        return across([self.victim], [n for n in ground.names if n != self.victim])

    def dead(self, ground: Ground) -> frozenset[Pair]:
        return about(ground.names, [self.victim])

    def begin(self, ground: Ground) -> None:
        others = [host for host in ground.hosts.hosts if host is not ground.host(self.victim)]
        ground.hosts.cut(others, [ground.host(self.victim)], one_way=True)

    def end(self, ground: Ground) -> None:
        ground.host(self.victim).do("nft flush ruleset")


@dataclass
class InterfaceDown(Scenario):
    """A host's only interface goes down, and comes up again."""

    name = "interface down"
    held_s: float = 15.0
    victim: str = "n3"

    def excused(self, ground: Ground) -> frozenset[Pair]:
        return across([self.victim], [n for n in ground.names if n != self.victim])

    def dead(self, ground: Ground) -> frozenset[Pair]:
        return about(ground.names, [self.victim])

    def begin(self, ground: Ground) -> None:
        ground.host(self.victim).do("ip link set eth0 down")

    def end(self, ground: Ground) -> None:
        ground.host(self.victim).do("ip link set eth0 up")
        ground.host(self.victim).do("ip route replace 224.0.0.0/4 dev eth0")


@dataclass
class NewAddresses(Scenario):
    """One gets an address that nobody had, and another one gets the first one's old address."""

    name = "new addresses"
    mover: str = "n9"
    heir: str = "n10"
    free: str = "10.77.0.99"

    def begin(self, ground: Ground) -> None:
        left = ground.host(self.mover).address
        ground.hosts.move(ground.host(self.mover), self.free)
        ground.hosts.move(ground.host(self.heir), left)
        for (
            host
        ) in ground.hosts.hosts:  # As a host tells the link that takes an address (RFC 5227).
            host.do("ip neigh flush dev eth0")


@dataclass
class Paused(Scenario):
    """A process stands still (SIGSTOP), and goes on."""

    name = "process stopped"
    held_s: float = 30.0
    victim: str = "n2"

    def excused(self, ground: Ground) -> frozenset[Pair]:
        return about(ground.names, [self.victim])

    dead = excused

    def begin(self, ground: Ground) -> None:
        ground.daemon(self.victim).pause()

    def end(self, ground: Ground) -> None:
        ground.daemon(self.victim).resume()


@dataclass
class RollingRestart(Scenario):
    """One daemon after the other is stopped in order and started again."""

    name = "rolling restart"

    def unsuspected(self, ground: Ground) -> list[str]:
        return ground.names

    def begin(self, ground: Ground) -> None:
        for name in ground.names:
            code = ground.daemon(name).terminate(STOPPED_WITHIN_S)
            if code != 0:
                ground.problems.append(f"{name} ended with {code} when it was told to stop")
            ground.daemon(name).start()
            wait_seen(ground, name, "alive", ground.names, STARTED_WITHIN_S)


@dataclass
class IdleStreams(Scenario):
    """Everybody has a stream with everybody; those that nobody keeps are closed, being idle."""

    name = "idle streams"
    held_s: float = 2 * IDLE_CLOSE_S + 3.0
    before: int = field(default=0, init=False)

    def unsuspected(self, ground: Ground) -> list[str]:
        return ground.names

    def begin(self, ground: Ground) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda pair: self._talk(ground, *pair), combinations(ground.names, 2)))
        self.before = self._streams(ground)

    def check(self, ground: Ground) -> list[str]:
        """Whoever has something to say just then keeps a stream open: look until one is closed."""
        most = (COUNT - 1) * (COUNT - 2) // 2
        until = time.monotonic() + _CLOSED_WITHIN_S
        while (after := self._streams(ground)) == self.before and time.monotonic() < until:
            time.sleep(1.0)
        well = after < self.before == most
        return [] if well else [f"of {most} streams {self.before} were there, and then {after}"]

    @staticmethod
    def _talk(ground: Ground, one: str, other: str) -> None:
        with Client(ground.daemon(one).socket, node=other) as client:
            client.status()

    @staticmethod
    def _streams(ground: Ground) -> int:
        """Pairs that have a stream; those of the first daemon, which asks, do not count."""
        with Client(ground.daemon(ground.names[0]).socket) as client:
            nodes = client.topology().nodes
        asker = next(one.node_id for one in nodes if one.node == ground.names[0])
        pairs = {frozenset((one.node_id, peer)) for one in nodes for peer in one.peers}
        return sum(asker not in pair for pair in pairs)


@dataclass
class Starved(Scenario):
    """Some daemons get little of a core, by a quota: they are late in all they do."""

    name = "2 of 10 starved"
    held_s: float = 60.0
    victims: tuple[str, ...] = ("n2", "n8")
    cores: float = STARVED_CORES
    _quotas: dict[str, Quota] = field(default_factory=dict, init=False)

    def excused(self, ground: Ground) -> frozenset[Pair]:
        return about(ground.names, self.victims)

    def begin(self, ground: Ground) -> None:
        for name in self.victims:
            process = ground.daemon(name).process
            assert process is not None
            self._quotas[name] = Quota(ground.owner, name, self.cores)
            self._quotas[name].take(process.pid)

    def check(self, ground: Ground) -> list[str]:
        throttled = {name: quota.throttled_s() for name, quota in self._quotas.items()}
        told = ", ".join(f"{name} for {time_s:.0f} s" for name, time_s in throttled.items())
        ground.say(f"  kept from running: {told}")
        least_s = _THROTTLED_LEAST * self.held_s
        return [f"{n} was not starved" for n, time_s in throttled.items() if time_s < least_s]

    def end(self, ground: Ground) -> None:
        for quota in self._quotas.values():
            quota.close()
        self._quotas.clear()


# ---- playing ------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What came of scenarios that were under way together, in the seconds of the run."""

    name: str
    held_s: float
    known_s: float | None
    healed_s: float | None
    equal_s: float | None
    deaths: int
    false_deaths: int
    suspicions: int
    false_suspicions: int
    waited_s: float
    """The longest that a daemon waited for a core within one second: how busy this machine was."""


def play(ground: Ground, *scenarios: Scenario | tuple[float, Scenario]) -> Outcome:
    """Let scenarios come, each so many seconds after the first begins, and see all well again.

    What goes wrong is added to the problems of `ground`.
    """
    timed = [one if isinstance(one, tuple) else (0.0, one) for one in scenarios]
    name = ", ".join(scenario.name for _, scenario in timed)
    ground.say(f"{name}: for {max(after + one.held_s for after, one in timed):g} s")
    began = time.time()
    excused = frozenset[Pair]().union(*(one.excused(ground) for _, one in timed))
    # The excuse stands until all views are equal; how long that takes is not known yet.
    ground.excuses.append(Excuse(began, float("inf"), excused))
    spans = _run(ground, timed)
    ended = time.time()
    healed_s: float | None = None
    equal_s: float | None = None
    try:
        healed_s, equal_s = ground.wait_equal()
    except TimeoutError as error:
        ground.problems.append(f"{name}: {error}")
    now = time.time()
    ground.excuses[-1] = Excuse(began, now, excused)
    for scenario, (since, until) in spans:
        ground.problems += _suspected(ground, scenario, since, until)
    return _judge(ground, timed, name, (began, ended, now), (healed_s, equal_s))


def _run(
    ground: Ground, timed: Sequence[tuple[float, Scenario]]
) -> list[tuple[Scenario, tuple[float, float]]]:
    """Begin and end each at its time, and check it just before; from when to when each lasted."""
    began, began_at = time.monotonic(), time.time()
    spans = []
    steps: list[tuple[float, int, Scenario]] = []
    for after_s, scenario in timed:
        steps += [(after_s, 0, scenario), (after_s + scenario.held_s, 1, scenario)]
    for due_s, ends, scenario in sorted(steps, key=lambda step: step[:2]):
        time.sleep(max(0.0, began + due_s - time.monotonic()))
        try:
            if ends:
                ground.problems += [f"{scenario.name}: {one}" for one in _missing(ground, scenario)]
                scenario.end(ground)
                spans.append((scenario, (began_at + due_s - scenario.held_s, time.time())))
            else:
                scenario.begin(ground)
        except (TimeoutError, SwarmError) as error:
            ground.problems.append(f"{scenario.name}: {error}")
    return spans


def _suspected(ground: Ground, scenario: Scenario, since: float, until: float) -> list[str]:
    """Those who were suspected although nothing was wrong with them.

    Who said it first is asked for the reason: all others have it from there.
    """
    names = scenario.unsuspected(ground)
    told = unexcused(ground.journal.told("suspect", since, until), ground.excuses)
    found: list[str] = []
    last: dict[str, float] = {}
    for one in told:
        heard = one.at - last.get(one.subject, 0.0) < _NEWS_S
        last[one.subject] = one.at
        if heard or one.subject not in names:
            continue
        kept = ground.waits.kept(one)
        ground.say(f"  {one.observer} suspected {one.subject}{', kept from running' * kept}")
        if not kept:
            found.append(f"{scenario.name}: {one.observer} suspected {one.subject}")
    return found


def _missing(ground: Ground, scenario: Scenario) -> list[str]:
    """What should have come of it by now."""
    found = scenario.check(ground)
    wanted = scenario.dead(ground)
    for observer in sorted({observer for observer, _ in wanted}):
        states = ground.states(observer)
        alive = [s for o, s in wanted if o == observer and states.get(s) != "dead"]
        if alive:
            found.append(f"{observer} does not hold {', '.join(sorted(alive))} dead")
    return found


def _judge(
    ground: Ground,
    timed: Sequence[tuple[float, Scenario]],
    name: str,
    times: tuple[float, float, float],
    took: tuple[float | None, float | None],
) -> Outcome:
    began, ended, now = times
    deaths = ground.journal.told("dead", began, now)
    suspicions = ground.journal.told("suspect", began, now)
    false_deaths = unexcused(deaths, ground.excuses)
    false_suspicions = unexcused(suspicions, ground.excuses)
    ground.tell_false(false_deaths)
    outcome = Outcome(
        name,
        *(round(ended - began, 1), _known_s(ground, timed, deaths, began), *took),
        *(len(deaths) - len(false_deaths), len(false_deaths)),
        *(len(suspicions) - len(false_suspicions), len(false_suspicions)),
        ground.waits.longest_s(ground.names, began, now),
    )
    ground.say(f"  {tell(outcome)}")
    return outcome


def _known_s(
    ground: Ground,
    timed: Sequence[tuple[float, Scenario]],
    deaths: Sequence[Sighting],
    began: float,
) -> float | None:
    """When all who had to know knew of the first scenario's deaths, after it began."""
    after_s, scenario = timed[0]
    wanted = scenario.dead(ground)
    times = [
        known_after_s(deaths, subject, [o for o, s in wanted if s == subject], began + after_s)
        for subject in {subject for _, subject in wanted}
    ]
    return max((t for t in times if t is not None), default=None)


def tell(outcome: Outcome) -> str:
    """A line about it."""
    if outcome.equal_s is None or outcome.healed_s is None:
        return "NOT equal again"
    known = "" if outcome.known_s is None else f"all knew after {outcome.known_s:.1f} s; "
    return (
        f"{known}healed in {outcome.healed_s:.1f} s, equal in {outcome.equal_s:.1f} s; "
        f"{outcome.false_deaths} false deaths, {outcome.false_suspicions} false suspicions; "
        f"waited for a core for {outcome.waited_s:.2f} s of a second at most"
    )


def all_of(*, long: bool) -> list[Scenario]:
    """Those that `scripts/hosts` plays, in turn; two of them for ten minutes, if `long`."""
    return [
        IdleStreams(),
        OneWay(),
        Deaf(),
        InterfaceDown(),
        NewAddresses(),
        Paused(),
        RollingRestart(),
        Starved(held_s=600.0 if long else 60.0),
        Partition(held_s=600.0 if long else 60.0),
    ]


def figures(outcome: Outcome) -> dict[str, Any]:
    """As `--json` prints them."""
    return {
        key: round(value, 2) if isinstance(value, float) else value
        for key, value in vars(outcome).items()
    }
