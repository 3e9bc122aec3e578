"""Rumours waiting to be passed on: fewest transmissions first, each sent a limited number of times.

One rumour per subject: the newest takes the place of what was waiting about the same member, as
it outranks it (SWIM, section 4.1).
"""

from __future__ import annotations

from typing import Final

from swarmd.base.ids import NodeId
from swarmd.mesh.swim.messages import (
    PACKET_BYTES_MAX,
    PACKET_HEADER_BYTES_MAX,
    PACKET_RUMOURS_MAX,
    Rumour,
)
from swarmd.wire.codec import BYTES_HEAD_MAX

QUEUE_MAX: Final = 4_096
RUMOUR_BUDGET_BYTES: Final = PACKET_BYTES_MAX - PACKET_HEADER_BYTES_MAX


class _Waiting:
    __slots__ = ("rumour", "sent")

    def __init__(self, rumour: Rumour) -> None:
        self.rumour = rumour
        self.sent = 0


class BroadcastQueue:
    """Bounded by QUEUE_MAX: beyond it, the rumour sent most often goes first.

    `pushed` counts what was ever added.
    """

    def __init__(self) -> None:
        self.pushed = 0
        self._waiting: dict[NodeId, _Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, subject: NodeId) -> bool:
        return subject in self._waiting

    def rumours(self) -> list[Rumour]:
        """What waits, oldest first."""
        return [waiting.rumour for waiting in self._waiting.values()]

    def push(self, rumour: Rumour) -> None:
        """Add `rumour` at the end, instead of what waited about its subject."""
        self._waiting.pop(rumour.subject, None)
        if len(self._waiting) >= QUEUE_MAX:
            most = max(self._waiting, key=lambda subject: self._waiting[subject].sent)
            del self._waiting[most]
        self._waiting[rumour.subject] = _Waiting(rumour)
        self.pushed += 1

    def drop(self, subject: NodeId) -> None:
        self._waiting.pop(subject, None)

    def drop_by(self, authors: frozenset[NodeId]) -> None:
        """Tell no more what any of these has said."""
        for subject, waiting in list(self._waiting.items()):
            if waiting.rumour.author in authors:
                del self._waiting[subject]

    def take(
        self, limit: int, *, first: tuple[Rumour, ...] = (), room: int = RUMOUR_BUDGET_BYTES
    ) -> list[bytes]:
        """The bytes of what goes into the next packet, `first` before all else.

        Args:
            limit: a rumour that was taken this often is forgotten.
            first: what this packet must say whatever waits; not counted as a transmission.
            room: in bytes, the heads of the rumours included.
        """
        chosen: list[bytes] = []
        for rumour in first:
            room -= len(rumour.raw) + BYTES_HEAD_MAX
            if room < 0:
                return chosen
            chosen.append(rumour.raw)
        if not self._waiting:
            return chosen
        spent: list[NodeId] = []
        # `sorted` is stable: among equals the oldest goes first, so none waits for ever.
        for waiting in sorted(self._waiting.values(), key=lambda w: w.sent):
            size = len(waiting.rumour.raw) + BYTES_HEAD_MAX
            if size > room or waiting.rumour in first:
                continue
            room -= size
            chosen.append(waiting.rumour.raw)
            waiting.sent += 1
            if waiting.sent >= limit:
                spent.append(waiting.rumour.subject)
            if len(chosen) >= PACKET_RUMOURS_MAX:
                break
        for subject in spent:
            del self._waiting[subject]
        return chosen
