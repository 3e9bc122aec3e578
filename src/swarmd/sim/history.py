"""What callers of the strong store did and saw, kept for the two checkers of `checkers.py`.

One record serves both: each write, read and compare-and-set of a key by itself, for the search
per key; and with the revisions that the store gave out, for transactions and ranges. Nothing
here knows how the store works, so the same record is made of simulated and of real calls.

Every value written is to be written once: then a value names the write that it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from swarmd.sim.checkers import (
    FOREVER,
    Operation,
    Read,
    Verdict,
    Write,
    linearizable,
    revisions,
)

Changes = Sequence[tuple[bytes, bytes | None]]


@dataclass
class History:
    """Calls as their callers saw them. Times are of one clock, `FOREVER`: outcome unknown."""

    operations: list[Operation] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    maybe: list[Write] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.writes) + len(self.reads) + len(self.maybe)

    def wrote(self, called: float, returned: float, revision: int, changes: Changes) -> None:
        """A put, a delete of something that was there, or a transaction took `revision`."""
        self.writes.append(Write(called, returned, revision, tuple(changes)))
        self._write_keys(called, returned, changes)

    def deleted(self, called: float, returned: float, key: bytes) -> None:
        """A delete succeeded, whether or not there was anything: it has no revision of its own."""
        self._write_keys(called, returned, [(key, None)])
        self.maybe.append(Write(called, returned, 0, ((key, None),)))

    def may_have_written(self, called: float, changes: Changes) -> None:
        """Nobody said what became of it."""
        self.maybe.append(Write(called, FOREVER, 0, tuple(changes)))
        self._write_keys(called, FOREVER, changes)

    def compared(
        self, called: float, returned: float, key: bytes, old: bytes | None, new: bytes | None
    ) -> None:
        """A compare-and-set of one key found something else than `old`: nothing changed."""
        self.operations.append(Operation(key, "cas", called, returned, (old, new), False))

    def swapped(
        self,
        called: float,
        returned: float,
        revision: int,
        key: bytes,
        old: bytes | None,
        new: bytes | None,
    ) -> None:
        """A compare-and-set of one key found `old`, and set `new`."""
        self.operations.append(Operation(key, "cas", called, returned, (old, new), True))
        self.writes.append(Write(called, returned, revision, ((key, new),)))

    def may_have_swapped(
        self, called: float, key: bytes, old: bytes | None, new: bytes | None
    ) -> None:
        """Nobody said what became of a compare-and-set."""
        self.operations.append(Operation(key, "cas", called, FOREVER, (old, new)))
        self.maybe.append(Write(called, FOREVER, 0, ((key, new),)))

    def read(
        self,
        called: float,
        returned: float,
        revision: int,
        seen: Iterable[tuple[bytes, bytes | None, int]],
    ) -> None:
        """Keys were seen to hold values of modification revisions (absent: None, 0)."""
        rows = tuple(seen)
        for key, value, _ in rows:
            self.operations.append(Operation(key, "read", called, returned, None, value))
        pairs = tuple((key, value) for key, value, _ in rows)
        modified = tuple(at for _, _, at in rows)
        self.reads.append(Read(called, returned, revision, pairs, modified))

    def _write_keys(self, called: float, returned: float, changes: Changes) -> None:
        for key, value in changes:
            self.operations.append(Operation(key, "write", called, returned, value))

    def verdict(self, steps_max: int = 200_000) -> Verdict:
        """What both checkers say."""
        verdict = linearizable(self.operations, steps_max=steps_max)
        verdict.problems += revisions(self.writes, self.reads, maybe=self.maybe)
        return verdict
