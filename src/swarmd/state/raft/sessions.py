"""Sessions of the replicated state: what clients' operations came to, so that none runs twice."""

from __future__ import annotations

from itertools import takewhile
from typing import Final

import msgspec

from swarmd.state.raft.messages import OpResult

SESSION_RESULTS_MAX: Final = 65_536


class SessionDump(msgspec.Struct, frozen=True, array_like=True):
    session: bytes
    used_ms: int
    low: int
    results: list[tuple[int, OpResult]]


class Session:
    """One client's recent results, oldest first."""

    __slots__ = ("low", "results", "used_ms")

    def __init__(self, used_ms: int, low: int = 0) -> None:
        self.used_ms = used_ms
        self.low = low
        self.results: dict[int, OpResult] = {}

    def forget_below(self, low: int) -> None:
        if low <= self.low:
            return
        self.low = low
        # Sequences enter nearly in order; one that stands behind a later one goes with it. One
        # walk finds all that go: a dict is slow to find its first key behind those removed.
        for oldest in list(takewhile(lambda sequence: sequence < low, self.results)):
            del self.results[oldest]

    def keep(self, sequence: int, result: OpResult) -> None:
        self.results[sequence] = result
        if len(self.results) > SESSION_RESULTS_MAX:
            oldest = min(self.results)
            del self.results[oldest]
            self.low = max(self.low, oldest + 1)
