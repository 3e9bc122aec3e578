"""The simulated world: one event heap, one clock, one source of chance.

Nothing here knows a protocol. Callers schedule plain functions; ties are broken by the order
of scheduling, so a seed fixes the whole run. `trace` hashes what callers note, so that two
runs can be compared. Faults count themselves by name: a sweep in which one never fired
proves nothing about it.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable
from typing import Any

from swarmd.base.rng import Rng, derive, make_rng


class Violation(Exception):
    """A checker found the system breaking a promise."""


class World:
    """Virtual time and seeded chance."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0
        self.rng: Rng = make_rng(seed)
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0
        self._trace = hashlib.blake2b(digest_size=16)

    def rng_for(self, label: str) -> Rng:
        """A generator of one consumer's own."""
        return derive(self.rng, label)

    def after(self, delay_s: float, function: Callable[..., None], *args: Any) -> None:
        """Call `function(*args)` after `delay_s` virtual seconds."""
        assert delay_s >= 0, delay_s
        self._sequence += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._sequence, function, args))

    def run_for(self, duration_s: float) -> None:
        """Let `duration_s` virtual seconds pass."""
        end = self.now + duration_s
        while self._heap and self._heap[0][0] <= end:
            self.now, _, function, args = heapq.heappop(self._heap)
            function(*args)
        self.now = end

    def count(self, what: str, by: int = 1) -> None:
        self.counts[what] += by

    def note(self, *what: object) -> None:
        """Add to the trace."""
        self._trace.update(repr((round(self.now, 9), *what)).encode())

    def trace(self) -> str:
        return self._trace.hexdigest()

    def violate(self, text: str) -> None:
        """Record a broken promise; the run goes on so that its consequences show too."""
        if len(self.violations) < 100:
            self.violations.append(f"t={self.now:.3f} {text}")
