"""The experiments of the Lifeguard paper, with its failure detectors and ours, from seeds.

Dadgar, Phillips and Currey, "Lifeguard: Local Health Awareness for More Accurate Failure
Detection" (2018), section V. In a swarm of 128:

- *threshold*: C members stand still at once and stay so. How long does it take until the first of
  the others declares each of them dead, and until all of them know?
- *interval*: C members at once stand still for D ms and go on for I ms, again and again for two
  minutes. What is declared dead that never stood still is a *false positive* (FP); of these, FP-
  are the ones raised at members that never stood still either. Each member that holds one such
  death counts, as in the paper each agent's event does.

A run is a function of its seed; all variants meet the same anomalies at the same members.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Final

from swarmd.base.rng import make_rng
from swarmd.sim.swim_paper_variants import Variant
from swarmd.sim.swim_paper_world import Cluster, Model

SIZE: Final = 128
LASTS_S: Final = 120.0
# What the paper's grid consists of, as far as we know.
CONCURRENT: Final = (1, 4, 8, 12, 16, 20, 24, 28, 32)
BLOCKED_MS: Final = (128, 512, 2_048, 8_192, 16_384, 32_768)
OPEN_MS: Final = (1, 4, 16, 64, 256, 1_024, 4_096, 16_384)
_THRESHOLD_MAX_S: Final = 90.0
_THRESHOLD_STEP_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Anomalies:
    """So many members at once stand still for `blocked_ms` and go on for `open_ms`, and again."""

    concurrent: int
    blocked_ms: int
    open_ms: int


FULL: Final = tuple(Anomalies(*point) for point in product(CONCURRENT, BLOCKED_MS, OPEN_MS))

SWIM: Final = Variant("SWIM")
LIFEGUARD: Final = Variant("Lifeguard", lha_probe=True, lha_suspicion=True, buddy=True)
PARTS: Final = (
    SWIM,
    Variant("LHA-Probe", lha_probe=True),
    Variant("LHA-Suspicion", lha_suspicion=True),
    Variant("Buddy System", buddy=True),
    LIFEGUARD,
)
# The defaults of this build, beside a SWIM that takes as long to find a failure.
SWIM_4: Final = Variant("SWIM, alpha 4", alpha=4)
OURS: Final = Variant("swarmd", production=True, alpha=4)


@dataclass(slots=True)
class Tally:
    """What the runs of one variant came to. `fp`, `fp_healthy`: see the top of this file."""

    runs: int = 0
    fp: int = 0
    fp_healthy: int = 0
    packets: int = 0
    packet_bytes: int = 0

    def add(self, other: Tally) -> None:
        self.runs += other.runs
        self.fp += other.fp
        self.fp_healthy += other.fp_healthy
        self.packets += other.packets
        self.packet_bytes += other.packet_bytes


@dataclass(slots=True)
class Latencies:
    """Seconds from the beginning of each anomaly; infinite for what did not happen in time.

    `first_s`: until the first of those that are well declared the member dead; `all_s`: until all
    of them knew.
    """

    first_s: list[float] = field(default_factory=list)
    all_s: list[float] = field(default_factory=list)

    def add(self, other: Latencies) -> None:
        self.first_s += other.first_s
        self.all_s += other.all_s


def run_interval(
    variant: Variant,
    anomalies: Anomalies,
    seed: int,
    *,
    model: Model = "messages",
    size: int = SIZE,
    lasts_s: float = LASTS_S,
) -> Tally:
    """One interval experiment."""
    cluster = Cluster(seed, variant, size=size, model=model)
    chosen = _chosen(anomalies.concurrent, seed, size)
    end = cluster.now + lasts_s
    while cluster.now < end:
        cluster.stall(chosen)
        cluster.run_for(min(anomalies.blocked_ms / 1_000, end - cluster.now))
        cluster.wake(chosen)
        cluster.run_for(min(anomalies.open_ms / 1_000, max(0.0, end - cluster.now)))
    false = [death for death in cluster.deaths if death.about not in chosen]
    healthy = sum(death.at not in chosen for death in false)
    return Tally(1, len(false), healthy, cluster.packets, cluster.packet_bytes)


def run_threshold(
    variant: Variant, concurrent: int, seed: int, *, model: Model = "messages", size: int = SIZE
) -> Latencies:
    """One threshold experiment."""
    cluster = Cluster(seed, variant, size=size, model=model)
    chosen = _chosen(concurrent, seed, size)
    begun = cluster.now
    cluster.stall(chosen)
    knows: dict[int, dict[int, float]] = {number: {} for number in chosen}
    seen = 0
    while cluster.now < begun + _THRESHOLD_MAX_S:
        cluster.run_for(_THRESHOLD_STEP_S)
        for death in cluster.deaths[seen:]:
            if death.about in knows and death.at not in knows:
                knows[death.about].setdefault(death.at, death.at_s - begun)
        seen = len(cluster.deaths)
        if all(len(times) == size - concurrent for times in knows.values()):
            break
    whole = [times for times in knows.values() if len(times) == size - concurrent]
    missing = [math.inf] * (len(knows) - len(whole))
    return Latencies(
        [min(times.values(), default=math.inf) for times in knows.values()],
        [max(times.values()) for times in whole] + missing,
    )


def _chosen(concurrent: int, seed: int, size: int) -> list[int]:
    """Who stands still: the same members whatever the variant."""
    return sorted(make_rng(f"anomalous:{seed}:{concurrent}").sample(range(size), concurrent))


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest of `values` that `part` of them (0 to 1) do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]
