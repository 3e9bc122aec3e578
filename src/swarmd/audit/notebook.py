"""Takes note of events: at once, within everybody's quota, into the lane of their kind."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from swarmd.audit.chain import Note, cut
from swarmd.audit.lane import Lane
from swarmd.audit.quota import Quota
from swarmd.audit.records import Stream, stream_of
from swarmd.base.clock import Clock


class Notebook:
    """See `base.notes.Notes`. What is too long is cut, what is too much is counted."""

    def __init__(self, lanes: Mapping[Stream, Lane], clock: Clock) -> None:
        self._lanes = lanes
        self._clock = clock
        self._quota = Quota()

    def note(
        self, kind: str, actor: str = "", subject: str = "", outcome: str = "ok", details: str = ""
    ) -> None:
        if self._quota.takes(kind, actor, outcome, trio.current_time()):
            self._add(kind, actor, subject, outcome, details)

    def note_counted(self) -> None:
        """Have records tell of what was only counted since."""
        for one in self._quota.counted(trio.current_time()):
            self._add(one.kind, one.actor, "", one.outcome, f"and {one.times} times more")

    def _add(self, kind: str, actor: str, subject: str, outcome: str, details: str) -> None:
        note = Note(self._clock.wall_ms(), *cut((kind, actor, subject, outcome, details)))
        self._lanes[stream_of(kind)].add(note)
