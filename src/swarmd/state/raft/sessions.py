"""Sessions of the replicated state: what clients' operations came to, so that none runs twice.

The unit that is repeated is the group: who sends operations again sends the same ones under the
same first sequence. A group is applied whole or not at all, since a seal comes in none.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile
from typing import Final

import msgspec

from swarmd.state.raft.messages import OpResult

SESSION_RESULTS_MAX: Final = 65_536

Results = list[OpResult]


class SessionDump(msgspec.Struct, frozen=True, array_like=True):
    session: bytes
    used_ms: int
    low: int
    results: list[tuple[int, Results]]


class Session:
    """One client's recent results by the first sequence of their group, oldest first."""

    __slots__ = ("_count", "low", "results", "used_ms")

    def __init__(self, used_ms: int, low: int = 0) -> None:
        self.used_ms = used_ms
        self.low = low
        self.results: dict[int, Results] = {}
        self._count = 0

    def forget_below(self, low: int) -> None:
        """The client knows what came of every sequence below `low`."""
        if low <= self.low:
            return
        self.low = low
        # Groups enter nearly in order; one that stands behind a later one goes with it. One
        # walk finds all that go: a dict is slow to find its first key behind those removed.
        for oldest in list(takewhile(lambda first: first < low, self.results)):
            self._count -= len(self.results.pop(oldest))

    def restore(self, results: Iterable[tuple[int, Results]]) -> None:
        """Take what a snapshot holds, or a part of it."""
        for first, found in results:
            self.results[first] = found
            self._count += len(found)

    def keep(self, first: int, results: Results) -> None:
        """Remember what the group whose first sequence is `first` came to."""
        self.results[first] = results
        self._count += len(results)
        while self._count > SESSION_RESULTS_MAX:
            oldest = min(self.results)
            found = self.results.pop(oldest)
            self._count -= len(found)
            self.low = max(self.low, oldest + len(found))
