"""How long to doubt: local health and suspicion (Dadgar, Phillips and Currey, "Lifeguard", 2018).

A suspicion starts long and shortens as others confirm it independently, because one accuser
may itself be the one that is slow. A member that misses answers, or hears that it is doubted,
holds itself to be unwell: it probes more slowly, and what nobody confirms it doubts for longer.
"""

from __future__ import annotations

import math
from typing import Final

from swarmd.base.ids import NodeId

HEALTH_MAX: Final = 8
# How often in succession a timer that came late waits once more for answers that may be behind it:
# where all timers are late, something is concluded nevertheless.
HOLDS_MAX: Final = 3
# So many times longer lasts what a node that reads late suspects alone: not for longer than a
# partition may take to heal.
STRETCH: Final = 2.0
_NEVER: Final = 0.0


def retransmit_limit(mult: int, member_count: int) -> int:
    """How often one rumour is sent: mult x ceil(log10(n + 1))."""
    return mult * math.ceil(math.log10(member_count + 1))


def suspicion_min_s(mult: int, member_count: int, interval_s: float) -> float:
    """The shortest suspicion in seconds: mult x max(1, log10 n) x interval."""
    return mult * max(1.0, math.log10(max(1, member_count))) * interval_s


def sync_scale(member_count: int) -> int:
    """By what the push-pull interval grows: 1 up to 32 members, then ceil(log2 n - 5) + 1."""
    if member_count <= 32:
        return 1
    return math.ceil(math.log2(member_count) - 5) + 1


def confirmations_wanted(mult: int, member_count: int) -> int:
    """How many other accusers make a suspicion as short as it gets; 0 where there are too few."""
    wanted = mult - 2
    return wanted if wanted > 0 and member_count - 2 >= wanted else 0


def suspicion_s(confirmed: int, wanted: int, min_s: float, max_s: float) -> float:
    """How long a suspicion lasts in all: max - (max - min) x ln(c + 1) / ln(k + 1)."""
    if wanted < 1:
        return min_s
    fraction = math.log(confirmed + 1) / math.log(wanted + 1)
    return max(min_s, max_s - (max_s - min_s) * fraction)


class Suspicion:
    """One member under suspicion.

    Args:
        accuser: who said so first.
        now: when, in monotonic seconds.
        wanted: how many confirmations shorten it fully (k).
    """

    __slots__ = (
        "_accusers", "_enough", "_holds", "_max_s", "_min_s", "_not_before", "_stretch", "_wanted",
        "started_at",
    )  # fmt: skip

    def __init__(
        self, accuser: NodeId, now: float, *, wanted: int, min_s: float, max_s: float
    ) -> None:
        self.started_at = now
        self._accusers = [accuser]
        self._wanted = wanted
        self._min_s = min_s
        self._max_s = max_s
        self._not_before = now
        self._stretch = 1.0
        self._enough = 1  # So many confirmations that it is not stretched any more.
        self._holds = 0

    @property
    def confirmed(self) -> int:
        return len(self._accusers) - 1

    def would_confirm(self, accuser: NodeId) -> bool:
        return self.confirmed < self._wanted and accuser not in self._accusers

    def confirm(self, accuser: NodeId) -> bool:
        """Count another accuser. False if it is not news: heard before, or enough have spoken."""
        if not self.would_confirm(accuser):
            return False
        self._accusers.append(accuser)
        return True

    def shut_out(self, evicted: frozenset[NodeId], *, instead: NodeId) -> bool:
        """Count none of these; `instead` accuses if nobody else does. True if any was counted."""
        kept = [accuser for accuser in self._accusers if accuser not in evicted]
        counted = len(kept) < len(self._accusers)
        self._accusers = kept or [instead]
        return counted

    def shorten(self, max_s: float) -> None:
        """Let it last `max_s` from its start at most: there is more than silence against it."""
        if self._stretch > 1.0:  # It may have lasted longer than it would have, and is not over.
            self._not_before = max(self._not_before, self.started_at + min(max_s, self._lasts_s()))
        self._stretch = _NEVER
        self._min_s = min(self._min_s, max_s)
        self._max_s = min(self._max_s, max_s)

    def hold(self, until: float) -> bool:
        """Let it not become certainty before `until`; False if it was held HOLDS_MAX times."""
        if self._holds == HOLDS_MAX:
            return False
        self._holds += 1
        self._not_before = max(self._not_before, until)
        return True

    def stretch(self, *, late: bool) -> bool:
        """Let it last twice as long unless somebody confirms it.

        False if somebody has, if too few are left to do so, if there is more than silence against
        it (see `shorten`), or if it lasts so long already.

        Args:
            late: this node was late meanwhile. It takes as many to confirm it then as are wanted:
                fewer may be late for the same reason.
        """
        enough = self._wanted if late else min(1, self._wanted)
        if self.confirmed >= enough or self._stretch != 1.0:
            return False
        self._stretch, self._enough = STRETCH, enough
        return True

    def stretch_no_more(self) -> bool:
        """Others hold it dead. False if it was not stretched anyway."""
        stretched = self._stretch > 1.0
        self._stretch = _NEVER
        return stretched

    def due_at(self) -> float:
        """When it becomes certainty, in monotonic seconds."""
        return max(self.started_at + self._lasts_s(), self._not_before)

    def _lasts_s(self) -> float:
        lasts_s = suspicion_s(self.confirmed, self._wanted, self._min_s, self._max_s)
        return lasts_s if self.confirmed >= self._enough else lasts_s * max(1.0, self._stretch)


class LocalHealth:
    """How unwell this node holds itself to be: 0 is well, HEALTH_MAX - 1 is worst."""

    __slots__ = ("_most", "score")

    def __init__(self, health_max: int = HEALTH_MAX) -> None:
        self._most = health_max - 1
        self.score = 0

    def adjust(self, delta: int) -> None:
        self.score = min(self._most, max(0, self.score + delta))

    def scale(self, base_s: float) -> float:
        """(score + 1) x base."""
        return (self.score + 1) * base_s
