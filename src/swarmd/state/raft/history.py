"""The latest changes of watched keys: what a watch can go back to.

Rules:
- It is part of the replicated state: which changes are kept is a function of the log alone,
  so every voter answers a watch alike and snapshots and epochs carry it.
- Only keys under `WATCHED_PREFIXES` are kept, so that the churn of task records does not push
  users' changes out.
- Changes are dropped by whole revisions, oldest first, and the newest revision never. What is
  at or below `compacted` may be gone; above it nothing is missing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from swarmd.base.errors import Compacted
from swarmd.base.limits import HISTORY_BYTES_MAX, HISTORY_CHANGES_MAX
from swarmd.state.raft.messages import WATCHED_PREFIXES, Change


class History:
    """See the module."""

    def __init__(self, compacted: int = 0, changes: Iterable[Change] = ()) -> None:
        self.compacted = compacted
        self._changes = deque(changes)
        self._bytes = sum(map(_size, self._changes))

    @property
    def newest(self) -> int:
        """The revision of the newest change that is or was kept."""
        return self._changes[-1].revision if self._changes else self.compacted

    def note(self, changes: Iterable[Change]) -> None:
        """Keep what is watched of `changes`, and drop what is then too much."""
        kept, size = self._changes, self._bytes
        for change in changes:
            if change.key.startswith(WATCHED_PREFIXES):
                kept.append(change)
                size += len(change.key) + len(change.value or b"")
        self._bytes = size
        while self._bytes > HISTORY_BYTES_MAX or len(kept) > HISTORY_CHANGES_MAX:
            oldest = kept[0].revision
            if oldest == kept[-1].revision:
                return
            self.compacted = oldest
            while kept[0].revision == oldest:
                self._bytes -= _size(kept.popleft())

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
        found: list[Change] = []
        for change in reversed(self._changes):
            if change.revision < revision:
                break
            if change.key.startswith(prefix):
                found.append(change)
        found.reverse()
        return found

    def at(self, revision: int, key: bytes) -> Change | None:
        """The change of `key` at `revision`, if it is kept."""
        for change in reversed(self._changes):
            if change.revision < revision:
                break
            if change.revision == revision and change.key == key:
                return change
        return None

    def dump(self) -> list[Change]:
        return list(self._changes)


def _size(change: Change) -> int:
    return len(change.key) + len(change.value or b"")
