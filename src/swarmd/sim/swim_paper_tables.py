"""The tables of the Lifeguard paper, as this build comes to them; see `swim_paper`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final

from swarmd.sim.swim_paper import (
    FULL,
    LIFEGUARD,
    OURS,
    PARTS,
    SIZE,
    SWIM,
    SWIM_4,
    Anomalies,
    Latencies,
    Tally,
    percentile,
    run_interval,
    run_threshold,
)
from swarmd.sim.swim_paper_variants import Variant
from swarmd.sim.swim_paper_world import Model

# What is run unless all of it is asked for: every duration, and some of each of the others.
REPRESENTATIVE: Final = (
    Anomalies(4, 128, 1),
    Anomalies(8, 512, 4),
    Anomalies(4, 2_048, 64),
    Anomalies(8, 8_192, 16),
    Anomalies(4, 16_384, 1),
    Anomalies(8, 32_768, 1_024),
)
# The grid of alpha and beta costs twelve variants: it gets a part of that.
TUNING: Final = REPRESENTATIVE[4:5]
THRESHOLDS: Final = (1, 16)
ALPHAS: Final = (2, 3, 4, 5)
BETAS: Final = (2, 4, 6)
_PARTS_SHOWN: Final = (0.5, 0.99, 0.999)
# At most so far apart, two detection times are equal.
EQUAL: Final = 0.05
# So many of SWIM's FP- ours may have.
GOAL: Final = 0.02
# What we know of the paper's Table IV, in % of SWIM: "between 50x and 100x" fewer (section V).
_PUBLISHED: Final = {"SWIM": "100, 100", "Lifeguard": "1 to 2, 1.9"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: `points` with every variant, `tuning` with every alpha and beta."""

    points: tuple[Anomalies, ...] = REPRESENTATIVE
    tuning: tuple[Anomalies, ...] = TUNING
    seeds: tuple[int, ...] = (0,)
    threshold_seeds: tuple[int, ...] = (0, 1, 2)
    model: Model = "messages"


def plan_of(text: str) -> Plan:
    """The plan that a command names: `some`, `full`, or points as in `4,16384,1:8,32768,1024`.

    Raises:
        ValueError: it names none.
    """
    if text == "some":
        return Plan()
    if text == "full":
        return Plan(points=FULL, tuning=FULL)
    points = tuple(Anomalies(*_three(one)) for one in text.split(":"))
    return Plan(points=points, tuning=points[:1])


def _three(text: str) -> tuple[int, int, int]:
    concurrent, blocked_ms, open_ms = map(int, text.split(","))
    if not 1 <= concurrent < SIZE or blocked_ms < 1 or open_ms < 1:
        raise ValueError(f"{text}: fewer than {SIZE} members, and at least 1 ms each")
    return concurrent, blocked_ms, open_ms


@dataclass(slots=True)
class Results:
    """What each variant came to: by anomalies, and how long detection took."""

    plan: Plan
    tallies: dict[Variant, dict[Anomalies, Tally]] = field(default_factory=dict)
    latencies: dict[Variant, Latencies] = field(default_factory=dict)

    def sum(self, variant: Variant, points: Sequence[Anomalies]) -> Tally:
        """All runs of one variant at these points."""
        total = Tally()
        for point in points:
            total.add(self.tallies[variant][point])
        return total

    def first_s(self, variant: Variant) -> float:
        """The median time until a failure is detected, in seconds."""
        return percentile(self.latencies[variant].first_s, 0.5)


def tuned(alpha: int, beta: int) -> Variant:
    """Lifeguard with other suspicions."""
    if (alpha, beta) == (LIFEGUARD.alpha, LIFEGUARD.beta):
        return LIFEGUARD
    return Variant(
        f"Lifeguard {alpha}, {beta}",
        lha_probe=True,
        lha_suspicion=True,
        buddy=True,
        alpha=alpha,
        beta=beta,
    )


def measure(
    plan: Plan,
    pool: Executor,
    *,
    wait: Callable[[dict[Any, Any]], Iterable[Any]] = lambda futures: futures,
) -> Results:
    """Run a plan.

    Args:
        wait: turns the futures into those that are done, in any order, for a progress line.
    """
    results = Results(plan)
    compared = (*PARTS, SWIM_4, OURS)
    grid = [tuned(alpha, beta) for alpha in ALPHAS for beta in BETAS]
    variants = dict.fromkeys((*compared, *grid))
    futures: dict[Any, tuple[Variant, Anomalies | None]] = {}
    for variant in variants:
        results.tallies[variant] = {}
        results.latencies[variant] = Latencies()
        for concurrent, seed in product(THRESHOLDS, plan.threshold_seeds):
            future = pool.submit(run_threshold, variant, concurrent, seed, model=plan.model)
            futures[future] = variant, None
    for point, variant in product(dict.fromkeys((*plan.points, *plan.tuning)), variants):
        if (variant in compared and point in plan.points) or point in plan.tuning:
            results.tallies[variant][point] = Tally()
            for seed in plan.seeds:
                run = pool.submit(run_interval, variant, point, seed, model=plan.model)
                futures[run] = variant, point
    for future in wait(futures):
        variant, where = futures[future]
        if where is None:
            results.latencies[variant].add(future.result())
        else:
            results.tallies[variant][where].add(future.result())
    return results


# ---- tables ---------------------------------------------------------------------------------

Row = tuple[str, ...]


def tables(results: Results) -> dict[str, list[Row]]:
    """The paper's tables IV to VII, and what they come to, by title; first rows are headings."""
    return {
        "False positives (the paper's Table IV)": false_positives(results),
        "Detection and dissemination, s (Table V)": latencies(results),
        "Message load (Table VI)": load(results),
        "Alpha and beta of Lifeguard, in % of SWIM (Table VII)": tuning(results),
        "At equal detection time": verdict(results),
    }


def false_positives(results: Results) -> list[Row]:
    """FP and FP- of each variant."""
    points = results.plan.points
    base = results.sum(SWIM, points)
    rows: list[Row] = [("", "FP", "FP-", "FP % of SWIM", "FP- % of SWIM", "published, FP, FP-")]
    for variant in (*PARTS, SWIM_4, OURS):
        one = results.sum(variant, points)
        published = _PUBLISHED.get(variant.name, "-")
        shares = _share(one.fp, base.fp), _share(one.fp_healthy, base.fp_healthy)
        rows.append((variant.name, f"{one.fp:,}", f"{one.fp_healthy:,}", *shares, published))
    return rows


def latencies(results: Results) -> list[Row]:
    """The median and the tails of detection and of dissemination."""
    rows: list[Row] = [("", *(f"{what} {_name(part)}" for what in ("first", "all")
                              for part in _PARTS_SHOWN))]  # fmt: skip
    for variant in (*PARTS, SWIM_4, OURS):
        times = results.latencies[variant]
        values = [percentile(t, p) for t in (times.first_s, times.all_s) for p in _PARTS_SHOWN]
        rows.append((variant.name, *(f"{value:.2f}" for value in values)))
    return rows


def load(results: Results) -> list[Row]:
    """Packets and their bytes over all interval experiments."""
    points = results.plan.points
    base = results.sum(SWIM, points)
    rows: list[Row] = [("", "packets", "MB", "packets % of SWIM", "bytes % of SWIM")]
    for variant in (*PARTS, SWIM_4, OURS):
        one = results.sum(variant, points)
        shares = _share(one.packets, base.packets), _share(one.packet_bytes, base.packet_bytes)
        rows.append((variant.name, f"{one.packets:,}", f"{one.packet_bytes / 1e6:,.1f}", *shares))
    return rows


def tuning(results: Results) -> list[Row]:
    """Lifeguard's latencies and false positives by alpha and beta, against SWIM at alpha 5."""
    points = results.plan.tuning
    base, base_times = results.sum(SWIM, points), results.latencies[SWIM]
    rows: list[Row] = [("alpha", "beta", "median first", "median all", "FP", "FP-")]
    for alpha in ALPHAS:
        for beta in BETAS:
            variant = tuned(alpha, beta)
            one, times = results.sum(variant, points), results.latencies[variant]
            rows.append(
                (
                    str(alpha),
                    str(beta),
                    _share(percentile(times.first_s, 0.5), percentile(base_times.first_s, 0.5)),
                    _share(percentile(times.all_s, 0.5), percentile(base_times.all_s, 0.5)),
                    _share(one.fp, base.fp),
                    _share(one.fp_healthy, base.fp_healthy),
                )
            )
    return rows


def verdict(results: Results) -> list[Row]:
    """Ours against SWIM where both take as long: the goal is 2 % of the FP-."""
    points = results.plan.points
    times = results.first_s(OURS), results.first_s(SWIM_4)
    apart = abs(times[0] / times[1] - 1)
    counts = results.sum(OURS, points).fp_healthy, results.sum(SWIM_4, points).fp_healthy
    reached = apart <= EQUAL and counts[0] <= GOAL * counts[1]
    return [
        ("", "median first, s", "apart", "FP-", "FP- % of SWIM", "goal: 2 % at most"),
        (
            f"{OURS.name} against {SWIM_4.name}",
            f"{times[0]:.2f}, {times[1]:.2f}",
            f"{apart:.1%}",
            f"{counts[0]:,}, {counts[1]:,}",
            _share(counts[0], counts[1]),
            _said(reached, of_theirs=counts[1]),
        ),
    ]


def _said(reached: bool, *, of_theirs: int) -> str:
    if not of_theirs:
        return "nothing to compare with"
    return "reached" if reached else "missed"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2f}" if whole else "-"


def _name(part: float) -> str:
    return "median" if part == 0.5 else f"{100 * part:g} %"


def text(tables_: dict[str, list[Row]]) -> str:
    """Tables as Markdown."""
    parts: list[str] = []
    for title, (head, *rows) in tables_.items():
        lines = [f"**{title}**", "", _line(head), "|" + "---|" * len(head), *map(_line, rows)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _line(row: Row) -> str:
    return "| " + " | ".join(row) + " |"
