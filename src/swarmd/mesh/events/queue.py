"""Events that wait to be passed on: fewest transmissions first, each a limited number of times."""

from __future__ import annotations

from collections.abc import Iterable

from swarmd.base.ids import NodeId
from swarmd.base.limits import EVENTS_KEPT_MAX
from swarmd.mesh.events.messages import Key, UserEvent
from swarmd.wire.codec import BYTES_HEAD_MAX


class EventQueue:
    """Bounded by EVENTS_KEPT_MAX: beyond it, the event sent most often goes first.

    `pushed` counts what was ever added.
    """

    def __init__(self) -> None:
        self.pushed = 0
        self._waiting: dict[Key, UserEvent] = {}
        self._sent: dict[Key, int] = {}
        self._fresh: list[UserEvent] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def count_by(self, origin: NodeId) -> int:
        """How many of one sender wait."""
        return sum(event.origin == origin for event in self._waiting.values())

    def push(self, event: UserEvent, *, own: bool = False) -> None:
        if len(self._waiting) >= EVENTS_KEPT_MAX:
            self._drop(max(self._waiting, key=self._sent.__getitem__))
        self._waiting[event.key] = event
        self._sent[event.key] = 0
        self.pushed += 1
        if own:
            self._fresh.append(event)

    def fresh(self) -> tuple[UserEvent, ...]:
        """This node's own that were added since this was last asked."""
        fresh, self._fresh = self._fresh, []
        return tuple(event for event in fresh if event.key in self._waiting)

    def drop_by(self, origins: Iterable[NodeId]) -> None:
        """Tell no more what any of these has sent."""
        shut_out = set(origins)
        for key in [k for k, event in self._waiting.items() if event.origin in shut_out]:
            self._drop(key)

    def clear(self) -> None:
        """Forget all: there is nobody to tell. Who comes back asks by push-pull."""
        self._waiting.clear()
        self._sent.clear()

    def take(
        self, room: int, limit: int, most: int, *, first: tuple[UserEvent, ...] = ()
    ) -> list[bytes]:
        """The events of the next packet, in at most `room` bytes with their heads.

        Args:
            limit: an event that was taken this often is passed on no more.
            most: how many one packet may hold.
            first: goes before all else, as much of it as fits; not counted as passing it on.
        """
        chosen: list[bytes] = []
        told = {event.key for event in first}
        # `sorted` is stable: among equals the oldest goes first, so none waits for ever.
        waiting = sorted(self._waiting, key=self._sent.__getitem__)
        for event in (*first, *(self._waiting[key] for key in waiting if key not in told)):
            if len(chosen) >= most:
                break
            if len(event.raw) + BYTES_HEAD_MAX > room:
                continue
            room -= len(event.raw) + BYTES_HEAD_MAX
            chosen.append(event.raw)
            if event.key not in told:
                self._sent[event.key] += 1
                if self._sent[event.key] >= limit:
                    self._drop(event.key)
        return chosen

    def _drop(self, key: Key) -> None:
        del self._waiting[key], self._sent[key]
