"""Messages to peers, gathered: what one turn of the loop sends to a peer leaves as few messages.

Machines send attempt by attempt; a wire message costs far more than one more item in it. The
outbox keeps items of one kind for one peer together until the loop has come round, and cuts
them by size. Nothing is promised: a message that finds no room is counted and dropped, and
the machines repeat what matters.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import trio

from swarmd.base.errors import SwarmError
from swarmd.base.ids import NodeId
from swarmd.base.limits import KIB
from swarmd.mesh.link import Lane, Link
from swarmd.observe.metrics import DROPPED
from swarmd.tasks.messages import TASK, Assign, AssignItem, HandBack, ResultItem, Results, Settled
from swarmd.tasks.spec import Inline
from swarmd.wire.codec import Message

_BATCH_BYTES: Final = 384 * KIB
_BATCH_ITEMS: Final = 512
_CONTROL_BYTES: Final = 32 * KIB
_DELAYED_MAX: Final = 256
_DELAY_MAX_S: Final = 5.0
_BATCHED: Final = (Assign, Results, Settled, HandBack)


class Outbox:
    """One per node. `put` never waits; `run` sends."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._singles: list[tuple[NodeId, Message]] = []
        self._batches: dict[tuple[NodeId, type, int, bytes], list[Any]] = {}
        self._wake = trio.Event()
        self._delayed = 0
        self._nursery: trio.Nursery | None = None

    def put(self, peer: NodeId, message: Any) -> None:
        """Send soon; items of like messages join each other."""
        if isinstance(message, _BATCHED):
            key = (peer, type(message), message.office, message.boot)
            self._batches.setdefault(key, []).extend(message.items)
        else:
            self._singles.append((peer, message))
        self._wake.set()

    async def run(self) -> None:
        """Send what is put, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                singles, self._singles = self._singles, []
                batches, self._batches = self._batches, {}
                for peer, message in singles:
                    self._send(peer, message, 0)
                for (peer, kind, office, boot), items in batches.items():
                    self._send_batch(peer, kind, office, boot, items)

    def _send_batch(
        self, peer: NodeId, kind: type, office: int, boot: bytes, items: list[Any]
    ) -> None:
        batch: list[Any] = []
        size = 0
        for item in items:
            item_bytes = size_of(item)
            if batch and (size + item_bytes > _BATCH_BYTES or len(batch) >= _BATCH_ITEMS):
                self._send(peer, kind(office, boot, tuple(batch)), size)
                batch, size = [], 0
            batch.append(item)
            size += item_bytes
        if batch:
            self._send(peer, kind(office, boot, tuple(batch)), size)

    def _send(self, peer: NodeId, message: Message, size: int) -> None:
        lane = Lane.BULK if size > _CONTROL_BYTES else Lane.CONTROL
        if self._link.send_nowait(TASK, peer, message, lane=lane):
            return
        if self._delayed < _DELAYED_MAX and self._nursery is not None:
            self._delayed += 1
            self._nursery.start_soon(self._send_later, peer, message, lane)
        else:
            DROPPED.labels("tasks", "outbox_full").inc()

    async def _send_later(self, peer: NodeId, message: Message, lane: Lane) -> None:
        """Wait for a connection and for room, but not for ever."""
        try:
            with trio.move_on_after(_DELAY_MAX_S):
                await self._link.send(TASK, peer, message, lane=lane)
        except SwarmError:
            DROPPED.labels("tasks", "unreachable").inc()
        finally:
            self._delayed -= 1


def size_of(item: Any) -> int:
    """About how many bytes an item takes in a message."""
    if isinstance(item, AssignItem):
        return 256 + item.run.environment.bytes_estimate + _value_bytes(item.payload)
    if isinstance(item, ResultItem):
        return 96 + len(item.message) * 4 + _value_bytes(item.result)
    return 48


def _value_bytes(value: object) -> int:
    return len(value.data) if isinstance(value, Inline) else 64


def struct_bytes(value: msgspec.Struct) -> int:
    """Exactly how many bytes a struct takes; for those too varied to estimate."""
    return len(msgspec.msgpack.encode(value))
