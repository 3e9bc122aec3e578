"""The table of figures of membership at scale, beside those that others have published.

`PLAN` says how often each experiment is run with how many members, and so what a figure rests on;
what would take too long is not run, and its cell stays empty.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.suspicion import suspicion_min_s
from swarmd.sim.swim_figures import AWARE

COUNTS: Final = (10, 100, 1_000, 10_000)
_LABEL_CHARS: Final = 41
_CELL_CHARS: Final = 9

# Runs of each experiment, up to so many members; none above the last.
PLAN: Final[Mapping[str, tuple[tuple[int, int], ...]]] = MappingProxyType(
    {
        "change_0": ((10, 200), (100, 10), (1_000, 3), (10_000, 1)),
        "change_0.1": ((10, 50), (100, 10), (1_000, 2), (10_000, 1)),
        "change_0.25": ((10, 50), (100, 10), (1_000, 2), (10_000, 1)),
        "change_0.5": ((10, 50), (100, 10), (1_000, 2), (10_000, 1)),
        "bootstrap": ((10, 200), (100, 200), (2_000, 1)),
        "join": ((10, 50), (100, 3), (1_000, 3), (10_000, 1)),
        "death": ((10, 100), (100, 10), (1_000, 3), (10_000, 1)),
        "kill": ((10, 30), (100, 5), (1_000, 3), (10_000, 1)),
        "load": ((10, 1), (100, 1), (1_000, 1), (10_000, 1)),
        "lossy_0.1": ((10, 3), (100, 1)),
        "lossy_0.25": ((10, 3), (100, 1), (1_000, 1)),
        "lossy_0.5": ((10, 3), (100, 1), (1_000, 1)),
        "deaf": ((10, 5), (100, 2), (1_000, 1)),
        "flapping": ((10, 3), (100, 2), (1_000, 1)),
        "partition": ((10, 2), (100, 1)),
        "starved": ((10, 1), (100, 1)),
        "starved_minutes": ((999, 0), (1_000, 1)),
    }
)


def runs_of(experiment: str, count: int) -> int:
    """How often an experiment is run with so many members."""
    return next((runs for most, runs in PLAN[experiment] if count <= most), 0)


def tasks(
    count: int, only: Iterable[str] = PLAN, runs: int | None = None
) -> Iterator[tuple[str, int, int]]:
    """Every run with so many members: experiment, members, seed. `runs`: instead of the plan's."""
    for experiment in only:
        for seed in range(runs or runs_of(experiment, count)):
            yield experiment, count, seed


# ---- what others have published ---------------------------------------------------------


def serf_simulator_s(count: int, loss: float) -> float:
    """When serf's convergence simulator shows 99.99 %, in seconds.

    It draws the logistic curve of an epidemic, in rounds of 0.2 s with a fanout of 3
    (hashicorp/serf, docs/internals/simulator, at 1e5befc's parent).
    """
    contact = 3 * (1 - loss) * 0.5
    rounds = 0
    while 1 / (1 + (count + 1) * math.exp(-contact * rounds)) < AWARE:
        rounds += 1
    return rounds * 0.2


def shortest_suspicion_s(count: int) -> float:
    """How long memberlist suspects at least, with its LAN settings; ours are the same."""
    return suspicion_min_s(SwimConfig().suspicion_mult, count, SwimConfig().probe_interval_s)


# ---- rows -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """A line: the figure of that name over all runs, or what was `published` for a count."""

    label: str
    figure: str = ""
    take: Callable[[Sequence[float]], float] = max
    digits: int = 2
    published: Callable[[int], float] | None = None


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


def _published(loss: float) -> Callable[[int], float]:
    return lambda count: serf_simulator_s(count, loss)


ROWS: Final[tuple[Row | str, ...]] = (
    "one change known to 99.99 %, s",
    Row("median", "aware_0_s", statistics.median),
    Row("slowest", "aware_0_s"),
    Row("serf's simulator", published=_published(0.0), digits=1),
    Row("10 % of packets lost, slowest", "aware_0.1_s"),
    Row("serf's simulator", published=_published(0.1), digits=1),
    Row("25 % lost, slowest", "aware_0.25_s"),
    Row("serf's simulator", published=_published(0.25), digits=1),
    Row("50 % lost, slowest", "aware_0.5_s"),
    Row("serf's simulator", published=_published(0.5), digits=1),
    "joining, s",
    Row("all at once, all see all: median", "all_see_all_s", statistics.median),
    Row("99 of 100", "all_see_all_s", _p99),
    Row("slowest", "all_see_all_s"),
    Row("one more knows all, and all know it", "join_s"),
    "a death known to all, s",
    Row("killed, connections reset: slowest", "kill_s"),
    Row("silent: median", "silent_death_s", statistics.median),
    Row("99 of 100", "silent_death_s", _p99),
    Row("slowest", "silent_death_s"),
    Row("memberlist's shortest suspicion", published=shortest_suspicion_s, digits=1),
    Row("of one that hears nobody: slowest", "deaf_s"),
    Row("it hears again: all agree after", "deaf_healed_s"),
    "sent per member and second",
    Row("idle: packets", "idle_packets"),
    Row("bytes, headers and signatures counted", "idle_bytes", digits=0),
    Row("one change a second: packets", "busy_packets"),
    Row("bytes", "busy_bytes", digits=0),
    Row("1 in 100 dies and returns: packets", "flapping_packets"),
    Row("bytes", "flapping_bytes", digits=0),
    "back to one view, s",
    Row("after flapping: slowest", "flapping_agreed_s"),
    Row("halves cut for 10 min, 1,024 stale dead", "healed_s"),
    "deaths of members that were well",
    Row("in all of the above", "false_deaths", sum, 0),
    Row("in a minute, 10 % of packets lost", "false_deaths_0.1", sum, 0),
    Row("25 % lost", "false_deaths_0.25", sum, 0),
    Row("50 % lost (no promise)", "false_deaths_0.5", sum, 0),
    Row("10 % lost, 1 in 5 starved", "starved_false_deaths", sum, 0),
    Row("for so many minutes", "starved_for_s", lambda values: sum(values) / 60, 0),
)  # fmt: skip

Samples = Mapping[str, Mapping[int, Sequence[float]]]


def gather(results: Sequence[tuple[int, Mapping[str, float]]]) -> Samples:
    """Figures of runs (members, figures) by name and number of members."""
    samples: dict[str, dict[int, list[float]]] = {}
    for count, figures in results:
        for name, value in figures.items():
            samples.setdefault(name, {}).setdefault(count, []).append(value)
    return samples


def lines(samples: Samples, counts: Sequence[int]) -> list[str]:
    """The table, of 80 characters at most where there are up to four counts."""
    shown = [f"{'members':{_LABEL_CHARS}}" + "".join(f"{n:>{_CELL_CHARS},}" for n in counts)]
    for row in ROWS:
        if isinstance(row, str):
            shown += ["", row]
            continue
        cells = "".join(f"{_cell(row, samples, n):>{_CELL_CHARS}}" for n in counts)
        shown.append(f"  {row.label:{_LABEL_CHARS - 2}}{cells}".rstrip())
    return shown


def _cell(row: Row, samples: Samples, count: int) -> str:
    value = value_of(row, samples, count)
    if value is None:
        return ""
    return "never" if math.isinf(value) else f"{value:,.{row.digits}f}"


def value_of(row: Row, samples: Samples, count: int) -> float | None:
    """What a cell shows; None if nothing was run for it."""
    if row.published is not None:
        return row.published(count)
    values = samples.get(row.figure, {}).get(count)
    return row.take(values) if values else None


# ---- budgets ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Budget:
    """`figure` may be `most` in the worst run of so many members; `most` may follow from them."""

    figure: str
    most: float | Callable[[int], float]
    counts: tuple[int, ...] = COUNTS


BUDGETS: Final = (
    Budget("aware_0_s", 3.0),
    Budget("all_see_all_s", 1.0, (10,)),
    Budget("all_see_all_s", 5.0, (100,)),
    Budget("all_see_all_s", 15.0, (1_000, 2_000)),
    Budget("kill_s", 1.0, (10,)),
    Budget("idle_packets", 2.2),
    Budget("idle_bytes", 400.0),
    Budget("healed_s", 60.0),
    Budget("deaf_healed_s", 60.0),
    Budget("flapping_agreed_s", 60.0),
    Budget("false_deaths", 0.0),
    Budget("false_deaths_0.1", 0.0),
    Budget("false_deaths_0.25", 0.0),
    Budget("starved_false_deaths", 0.0),
)


def broken(samples: Samples) -> list[str]:
    """Which budgets are exceeded, in a sentence each."""
    said: list[str] = []
    for budget in BUDGETS:
        for count, values in sorted(samples.get(budget.figure, {}).items()):
            most = budget.most(count) if callable(budget.most) else budget.most
            if count in budget.counts and max(values) > most:
                said.append(f"{budget.figure} of {count:,} is {max(values):.2f}, over {most:g}")
    if silent := samples.get("silent_death_s", {}).get(10):
        most = shortest_suspicion_s(10) + 2.5
        late = sum(value > most for value in silent)
        if late > len(silent) // 100:
            said.append(f"{late} of {len(silent)} silent deaths of 10 take longer than {most:g} s")
    return said
