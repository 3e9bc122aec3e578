"""The latest changes of watched keys: what a watch can go back to.

Rules:
- It is part of the replicated state: which changes are kept is a function of the log alone,
  so every voter answers a watch alike and snapshots and epochs carry it.
- Only keys under `WATCHED_PREFIXES` are kept, so that the churn of task records does not push
  users' changes out.
- Changes are dropped by whole revisions, oldest first, and the newest revision never. What is
  at or below `compacted` may be gone; above it nothing is missing.
- They are held by the run of `RUN_REVISIONS` revisions, and a run that is a small part of all
  goes as a whole: to look at each change once more, after so long, costs more than to make it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from swarmd.base.errors import Compacted
from swarmd.base.limits import HISTORY_BYTES_MAX, HISTORY_CHANGES_MAX
from swarmd.state.raft.messages import ROOT_BYTES, WATCHED_PREFIXES, Change

RUN_REVISIONS: Final = 64
# A run goes as a whole if it is no more than this part of what may be kept.
_PART: Final = 1 / 16


class Run(NamedTuple):
    """Changes that lie together, and the bytes of their keys and values."""

    changes: Sequence[Change]
    size: int

    def cut(self) -> Iterator[Run]:
        """Each change by itself."""
        for change in self.changes:
            yield Run((change,), _size(change))


class _Run:
    """The changes of the revisions from `number` times `RUN_REVISIONS` on."""

    __slots__ = ("changes", "number", "size")

    def __init__(self, number: int) -> None:
        self.number = number
        self.changes: list[Change] = []
        self.size = 0


class History:
    """See the module."""

    def __init__(self, compacted: int = 0, changes: Iterable[Change] = ()) -> None:
        self.compacted = compacted
        self._runs: deque[_Run] = deque()
        self._bytes = 0
        self._count = 0
        self._add(changes)

    @property
    def newest(self) -> int:
        """The revision of the newest change that is or was kept."""
        return self._runs[-1].changes[-1].revision if self._runs else self.compacted

    def note(self, changes: Iterable[Change]) -> None:
        """Keep what is watched of `changes`, and drop what is then too much."""
        self._add(changes)
        while self._bytes > HISTORY_BYTES_MAX or self._count > HISTORY_CHANGES_MAX:
            if not self._drop_oldest():
                return

    def _add(self, changes: Iterable[Change]) -> None:
        runs, count, total = self._runs, 0, 0
        run, end = None, -1
        for change in changes:
            revision, key, value = change.revision, change.key, change.value
            if not key.startswith(WATCHED_PREFIXES):
                continue
            if run is None or revision >= end:
                number = revision // RUN_REVISIONS
                if not runs or runs[-1].number != number:
                    runs.append(_Run(number))
                run, end = runs[-1], (number + 1) * RUN_REVISIONS
            run.changes.append(change)
            size = len(key) + len(value) if value else len(key)
            run.size += size
            total += size
            count += 1
        self._count += count
        self._bytes += total

    def _drop_oldest(self) -> bool:
        """Drop some of the oldest; False if all that is left is the newest revision."""
        run = self._runs[0]
        small = len(run.changes) <= HISTORY_CHANGES_MAX * _PART
        if small and run.size <= HISTORY_BYTES_MAX * _PART and len(self._runs) > 1:
            gone, self.compacted = run.changes, run.changes[-1].revision
            self._runs.popleft()
            size = run.size
        else:
            oldest = run.changes[0].revision
            if oldest == self.newest:
                return False
            self.compacted = oldest
            gone = [change for change in run.changes if change.revision == oldest]
            size = sum(map(_size, gone))
            del run.changes[: len(gone)]
            run.size -= size
            if not run.changes:
                self._runs.popleft()
        self._count -= len(gone)
        self._bytes -= size
        return True

    def since(self, revision: int, prefix: bytes) -> list[Change]:
        """Changes of keys under `prefix` from `revision` on, in order.

        Raises:
            Compacted: some of them are no longer kept.
        """
        if revision <= self.compacted:
            raise Compacted(
                f"changes up to revision {self.compacted} are no longer kept; the oldest that "
                f"can be had is {self.compacted + 1}: read the keys, then watch from there"
            )
        found = [change for change in self._back_to(revision) if change.key.startswith(prefix)]
        found.reverse()
        return found

    def roots_since(self, revision: int) -> set[bytes]:
        """Which of the watched prefixes have changes that are kept, from `revision` on."""
        return {change.key[:ROOT_BYTES] for change in self._back_to(revision)}

    def at(self, revision: int, key: bytes) -> Change | None:
        """The change of `key` at `revision`, if it is kept."""
        for change in self._back_to(revision):
            if change.revision == revision and change.key == key:
                return change
        return None

    def _back_to(self, revision: int) -> Iterator[Change]:
        """Changes from the newest back to the first at or above `revision`."""
        for run in reversed(self._runs):
            for change in reversed(run.changes):
                if change.revision < revision:
                    return
                yield change

    def runs(self) -> list[Run]:
        """All of it as it is now, in order."""
        return [Run(run.changes.copy(), run.size) for run in self._runs]


def _size(change: Change) -> int:
    return len(change.key) + len(change.value or b"")
