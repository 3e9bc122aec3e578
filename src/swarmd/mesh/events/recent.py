"""The latest events: what is known, so that none is told twice, and what others are given of it.

They are the highest by `Key`, as many as fit both bounds. What fell out, and whatever is older than
that, is refused. So members that heard of the same events hold the same ones, whatever the order
was in which they came.

Where events are forgotten because their sender was evicted, there is room again for older ones, and
members that still hold some give them to the others: nobody is told of those, as nobody knows
whether they were told before.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import ClassVar, Final

from swarmd.base.ids import NodeId
from swarmd.base.limits import EVENTS_KEPT_BYTES_MAX, EVENTS_KEPT_MAX
from swarmd.mesh.events.messages import SUM_BYTES, Key, UserEvent

NO_KEY: Final[Key] = (0, b"")


class Recent:
    """At most `kept_max` events of EVENTS_KEPT_BYTES_MAX bytes together."""

    kept_max: ClassVar[int] = EVENTS_KEPT_MAX

    def __init__(self) -> None:
        self._keys: list[Key] = []
        self._events: dict[Key, UserEvent] = {}
        self._bytes = 0
        self._sum = 0
        self.floor: Key = NO_KEY
        """The highest that fell out: up to there nothing is taken."""
        self.told: Key = NO_KEY
        """Up to there all was told that will be, whether it is kept or not; never below `floor`."""

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: Key) -> bool:
        return key in self._events

    def events(self) -> list[UserEvent]:
        """Oldest first."""
        return [self._events[key] for key in self._keys]

    def sum(self) -> bytes:
        """The same for the same events."""
        return self._sum.to_bytes(SUM_BYTES, "big")

    def is_old(self, key: Key) -> bool:
        return key <= self.floor

    def is_told(self, key: Key) -> bool:
        return key <= self.told

    def add(self, event: UserEvent) -> None:
        """Keep an event that is not old, and drop the oldest beyond the bounds."""
        if event.key in self._events:
            return
        self._events[event.key] = event
        insort(self._keys, event.key)
        self._account(event, 1)
        while len(self._keys) > self.kept_max or self._bytes > EVENTS_KEPT_BYTES_MAX:
            self.floor = self._keys.pop(0)
            self.told = max(self.told, self.floor)
            self._account(self._events.pop(self.floor), -1)

    def drop_by(self, origins: Iterable[NodeId]) -> bool:
        """Forget what any of these has sent; True if there was anything."""
        gone = [event for event in self._events.values() if event.origin in set(origins)]
        for event in gone:
            del self._keys[bisect_left(self._keys, event.key)]
            self._account(self._events.pop(event.key), -1)
        if gone:
            self.floor = NO_KEY
        return bool(gone)

    def _account(self, event: UserEvent, sign: int) -> None:
        self._bytes += sign * len(event.raw)
        self._sum ^= int.from_bytes(event.key[1][:SUM_BYTES], "big")
