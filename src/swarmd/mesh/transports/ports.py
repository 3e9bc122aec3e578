"""A peer's lanes on one plane: what waits to be written, and the states of its connection.

A port lives from the wish to reach a peer until its connection ends, and is then replaced;
it is never revived, so an order or an answer cannot leak from one connection to the next.

    waiting <-> dialing -> hello -> open -> broken
           `-------------`-> accepted (the peer opened it) -> open

Control goes before bulk: a frame takes all control items that fit; where bulk waits too, every
other frame is one of bulk, of one item or a few small ones. So a control item waits for one
bulk frame at most, and bulk never starves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Literal

import trio

from swarmd.base.errors import Unreachable
from swarmd.base.ids import NodeId, short
from swarmd.base.limits import (
    CRDT_MESSAGE_BYTES_MAX,
    FRAME_BYTES_MAX,
    FRAME_MESSAGES_MAX,
    KIB,
    LANE_MESSAGES_MAX,
    MIB,
)
from swarmd.mesh.link import Lane
from swarmd.mesh.transports.mux import How, Item, Port

LANE_BYTES_MAX: Final = 8 * MIB
# Who is turned out is heard no more at once, and cut off after this. The record that says why
# leaves meanwhile.
_TURN_OUT_S: Final = 0.1
_TURN_OUT_MAX_S: Final = 0.5
# What frees room elsewhere may exceed a lane by this, which its senders bound themselves.
_FORCED_MESSAGES_MAX: Final = 20_000
# A batch stops growing here; its first item may be larger.
_BATCH_BYTES: Final = {Lane.CONTROL: 192 * KIB, Lane.BULK: 64 * KIB}
# An item's kind, lane, family and request number, encoded.
_ITEM_BYTES_EXTRA: Final = 64

_BATCH_BYTES_EXTRA: Final = FRAME_MESSAGES_MAX * _ITEM_BYTES_EXTRA + 64

assert max(CRDT_MESSAGE_BYTES_MAX, *_BATCH_BYTES.values()) + _BATCH_BYTES_EXTRA <= FRAME_BYTES_MAX

Stage = Literal["waiting", "dialing", "hello", "accepted", "open", "broken"]


class StreamPort(Port):
    """See the module.

    `boot`, `number` and `version` are of the peer's hello, or answer, that opened it (`version` is
    None before); `closing` is the reason that this side is about to give; a peer that is
    `turned_out` is heard no more.
    """

    def __init__(self, peer: NodeId, alpn: str) -> None:
        super().__init__(peer)
        self.alpn = alpn
        self.stage: Stage = "waiting"
        self.how: How = "silent"
        self.boot = b""
        self.number = 0
        self.version: int | None = None
        self.stop_dialing: Callable[[], None] = _nothing
        self.stop_running: Callable[[], None] = _nothing
        self.opened_or_broken = trio.Event()
        self.last_traffic = 0.0
        self.local_host = ""
        self.closing: How | None = None
        self.turned_out = False
        self.closed_cleanly = trio.Event()
        self._reason = ""
        self._lanes: tuple[deque[Item], deque[Item]] = (deque(), deque())
        self._bytes = [0, 0]
        self._bulk_next = False
        self._filled = trio.Event()
        self._room = trio.Event()

    @property
    def broken(self) -> bool:
        return self.stage == "broken"

    @property
    def is_open(self) -> bool:
        return self.stage == "open"

    @property
    def is_connected(self) -> bool:
        """It has a connection, which is open or about to be."""
        return self.stage in ("accepted", "open")

    @property
    def queued(self) -> int:
        return len(self._lanes[0]) + len(self._lanes[1])

    def put_nowait(self, item: Item, *, force: bool = False) -> bool:
        if self.stage == "broken":
            return False
        lane = self._lanes[item.lane]
        if force:
            if len(lane) >= _FORCED_MESSAGES_MAX:
                return False
        elif self._full(item.lane):
            return False
        lane.append(item)
        self._bytes[item.lane] += len(item.payload)
        self._filled.set()
        return True

    async def put(self, item: Item) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self.opened_or_broken.is_set():
            await self.opened_or_broken.wait()
        while not self.put_nowait(item):
            if self.stage == "broken":
                raise Unreachable(f"{short(self.peer)}: {self._reason}")
            if self._room.is_set():
                self._room = trio.Event()
            await self._room.wait()

    def dials(self, stage: Literal["waiting", "dialing", "hello"]) -> None:
        """How far dialing has come: no matter any more if another end came of it meanwhile."""
        if not self.is_connected and not self.broken:
            self.stage = stage

    def opened(self, now: float) -> None:
        self.stage = "open"
        self.last_traffic = now
        self.opened_or_broken.set()

    def break_off(self, how: How, reason: str) -> None:
        """The connection is over, or never came to be. What waits is dropped and fails."""
        if self.stage == "broken":
            return
        self.stage = "broken"
        self.how = how
        self._reason = reason
        for lane in self._lanes:
            lane.clear()
        self.opened_or_broken.set()
        self._room.set()
        self.fail_calls(reason)
        self.stop_dialing()
        self.stop_running()

    async def turn_out(self, why: str) -> None:
        """Break the connection off; what is said to the peer until then is why."""
        with trio.move_on_after(_TURN_OUT_MAX_S):
            await trio.sleep(_TURN_OUT_S)
            while self.queued:  # noqa: ASYNC110 - the writer owns the lanes' events
                await trio.sleep(0.005)
        self.break_off("untrusted", why)

    async def wait_filled(self) -> None:
        """Return when there is something to write."""
        while not self.queued:
            self._filled = trio.Event()
            await self._filled.wait()

    def take(self) -> list[Item]:
        """The next frame's items; empty if nothing waits."""
        control, bulk = self._lanes
        self._bulk_next = bool(bulk) and (self._bulk_next or not control)
        lane = Lane.BULK if self._bulk_next else Lane.CONTROL
        items = _take_batch(self._lanes[lane], _BATCH_BYTES[lane])
        self._bulk_next = not self._bulk_next
        self._bytes[lane] -= sum(len(item.payload) for item in items)
        self._room.set()
        return items

    def _full(self, lane: Lane) -> bool:
        waiting = len(self._lanes[lane])
        return waiting >= LANE_MESSAGES_MAX or self._bytes[lane] >= LANE_BYTES_MAX


def _take_batch(lane: deque[Item], room: int) -> list[Item]:
    """The first item, and those after it that fit."""
    items: list[Item] = []
    while lane and len(items) < FRAME_MESSAGES_MAX:
        room -= len(lane[0].payload)
        if items and room < 0:
            break
        items.append(lane.popleft())
    return items


def _nothing() -> None:
    return None
