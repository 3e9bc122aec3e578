"""What daemons logged of their members, and which of it nothing excuses.

A fault excuses that some hold others dead: those whom it takes the hearing, and those of whom it
lets nothing be heard. A death that no fault excuses is a false one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any, Final

# Who holds whom dead: (observer, subject).
Pair = tuple[str, str]
CRASH: Final = "Traceback (most recent call last)"
_LINE_BYTES_MAX: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Sighting:
    """A member came to be in another state, as `observer` saw it; `at` is Unix time in seconds."""

    at: float
    observer: str
    subject: str
    was: str
    now: str

    @property
    def pair(self) -> Pair:
        return self.observer, self.subject


def parse_line(observer: str, line: bytes) -> Sighting | None:
    """The sighting that a line of a JSON log tells; None if it tells of something else."""
    try:
        told: Any = json.loads(line)
        if told["event"] != "member" or told["room"] != "swim":
            return None
        at = datetime.fromisoformat(told["timestamp"]).timestamp()
        return Sighting(at, observer, str(told["node"]), str(told["was"]), str(told["now"]))
    except (ValueError, KeyError, TypeError):
        return None


@dataclass(slots=True)
class Journal:
    """Follows the daemons' logs. `sightings` holds all so far, in the order of their times."""

    logs: Mapping[str, Path]
    sightings: list[Sighting] = field(default_factory=list)
    crashed: set[str] = field(default_factory=set)
    _read: dict[str, int] = field(default_factory=dict)

    def read(self) -> list[Sighting]:
        """Take up what was logged since; all sightings."""
        for name, path in self.logs.items():
            if not path.exists():
                continue
            with path.open("rb") as log:
                log.seek(self._read.get(name, 0))
                while (line := log.readline(_LINE_BYTES_MAX)).endswith(b"\n"):
                    self._read[name] = log.tell()
                    if CRASH.encode() in line:
                        self.crashed.add(name)
                    sighting = parse_line(name, line)
                    if sighting is not None:
                        self.sightings.append(sighting)
        self.sightings.sort(key=lambda one: one.at)
        return self.sightings

    def told(self, now: str, since: float, until: float) -> list[Sighting]:
        """Who came to be `now` within that time."""
        return [one for one in self.read() if one.now == now and since <= one.at <= until]


@dataclass(frozen=True, slots=True)
class Excuse:
    """From `began` to `ended`, in Unix time, a fault makes these hold those dead."""

    began: float
    ended: float
    pairs: frozenset[Pair]

    def covers(self, one: Sighting) -> bool:
        return self.began <= one.at <= self.ended and one.pair in self.pairs


def unexcused(sightings: Iterable[Sighting], excuses: Sequence[Excuse]) -> list[Sighting]:
    """Those that no fault explains."""
    return [one for one in sightings if not any(excuse.covers(one) for excuse in excuses)]


def across(one: Iterable[str], other: Iterable[str]) -> frozenset[Pair]:
    """Each of either side, of each of the other: nothing passes between them."""
    left, right = list(one), list(other)
    return frozenset([*product(left, right), *product(right, left)])


def about(everybody: Iterable[str], some: Iterable[str]) -> frozenset[Pair]:
    """Everybody, of these: nothing is heard of them."""
    return frozenset((a, b) for a, b in product(list(everybody), list(some)) if a != b)


def known_after_s(
    sightings: Sequence[Sighting], subject: str, by: Sequence[str], since: float
) -> float | None:
    """Seconds after `since` when the last of `by` knew that `subject` is dead; None: not all."""
    first: dict[str, float] = {}
    for one in sightings:
        if one.now == "dead" and one.subject == subject and one.at >= since:
            first.setdefault(one.observer, one.at - since)
    times = [first.get(name) for name in by]
    return max((t for t in times if t is not None), default=None) if None not in times else None
