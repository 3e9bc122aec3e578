"""Who held whom to be what, and when, as the logs of swarmd and of serf say."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

_STAMP: Final = "%Y-%m-%dT%H:%M:%S.%fZ"
_SERF_EVENT: Final = re.compile(r"\bserf: EventMember(Join|Failed|Leave): (\S+)")
_SERF_SUSPECT: Final = re.compile(r"\bmemberlist: Suspect (\S+) has failed\b")
_SERF_STATES: Final = {"Join": "alive", "Failed": "dead", "Leave": "left"}


@dataclass(frozen=True)
class Sighting:
    """From `at` on, in seconds of Unix time, `by` held `whom` to be `state`."""

    at: float
    by: str
    whom: str
    state: str


class Record:
    """What was seen, and by whom while it still runs. Any thread may use it."""

    def __init__(self) -> None:
        self._seen: list[Sighting] = []
        self._started: dict[str, float] = {}
        self._lock = threading.Lock()

    def started(self, name: str, at: float) -> None:
        """What `name` saw before was in an earlier life."""
        with self._lock:
            self._started[name] = at

    def add(self, found: Iterable[Sighting | None]) -> None:
        with self._lock:
            self._seen += [one for one in found if one is not None]

    def clear(self) -> None:
        with self._lock:
            self._seen.clear()

    def all(self) -> list[Sighting]:
        with self._lock:
            return list(self._seen)

    def current(self) -> list[Sighting]:
        """Without what was seen in earlier lives."""
        with self._lock:
            starts = self._started
            return [one for one in self._seen if one.at >= starts.get(one.by, one.at)]


def swarmd_event(line: str) -> dict[str, str] | None:
    """An event of a daemon's log, which is in JSON; None for whatever else is printed there."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def seen_by_swarmd(by: str, line: str) -> Sighting | None:
    """What a line of a daemon's log says of a member; its own stamp tells when."""
    event = swarmd_event(line)
    if event is None or event["event"] != "member":
        return None
    at = datetime.strptime(event["timestamp"], _STAMP).replace(tzinfo=UTC).timestamp()
    return Sighting(at, by, event["node"], event["now"])


def seen_by_serf(by: str, at: float, line: str) -> Sighting | None:
    """The same of an agent's. It stamps seconds only: `at` is when the line came.

    `accused`: it suspects somebody itself. It writes nothing of suspicions that it hears of, nor
    of how they end.
    """
    found = _SERF_EVENT.search(line)
    if found is not None:
        return Sighting(at, by, found[2], _SERF_STATES[found[1]])
    suspect = _SERF_SUSPECT.search(line)
    return None if suspect is None else Sighting(at, by, suspect[1], "accused")


def all_see_all_at(sightings: Iterable[Sighting], names: Collection[str]) -> float | None:
    """When each first held all the others alive, all at once; None if that never was."""
    wanted = {(by, whom) for by in names for whom in names if by != whom}
    alive: set[tuple[str, str]] = set()
    for one in sorted(sightings, key=lambda one: one.at):
        pair = one.by, one.whom
        if pair not in wanted or one.state == "accused":
            continue
        if one.state == "alive":
            alive.add(pair)
        else:
            alive.discard(pair)
        if len(alive) == len(wanted):
            return one.at
    return None


def known_to_all_at(
    sightings: Iterable[Sighting], whom: str, state: str, names: Collection[str], since: float
) -> float | None:
    """When the last of all others first held `whom` to be `state` since then; None: not all do."""
    first: dict[str, float] = {}
    for one in sightings:
        if one.whom == whom and one.state == state and one.at >= since:
            first[one.by] = min(one.at, first.get(one.by, one.at))
    others = set(names) - {whom}
    return max(first[by] for by in others) if others <= first.keys() else None


def strangers(sightings: Iterable[Sighting], names: Collection[str]) -> list[tuple[str, str]]:
    """Of which pairs the first does not hold the second alive, after all that was seen."""
    ordered = sorted(sightings, key=lambda one: one.at)
    views = {(one.by, one.whom): one.state for one in ordered if one.state != "accused"}
    pairs = [(by, whom) for by in names for whom in names if by != whom]
    return [pair for pair in pairs if views.get(pair) != "alive"]


def doubts(sightings: Iterable[Sighting], since: float) -> list[Sighting]:
    """Where a member was suspected or held dead since then."""
    return [
        one for one in sightings if one.at >= since and one.state in ("suspect", "accused", "dead")
    ]
