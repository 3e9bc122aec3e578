"""Messages that attempts published with their results: they leave once the result is recorded.

The coordinator says that an attempt is over, and not which way; the task's record does. Only if it
has succeeded under this very fence do the messages leave, in order. So an attempt that failed, or
was replaced, has said nothing, whoever coordinates by now. While the record still waits for this
attempt they stay. They are in memory until then: if this node dies between the record and the
messages they are gone, and the record stands.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from enum import Enum, auto
from typing import Final, Protocol

import trio

from swarmd.agents.attempts import BusMessage
from swarmd.base.errors import SwarmError
from swarmd.mesh.bus.service import Bus, Sender
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import DROPPED
from swarmd.state.raft.messages import Entry
from swarmd.tasks.spec import State, decode_task, task_key

_log = get_logger("tasks")
_LOOK_TRIES: Final = 30
_LOOK_PAUSE_S: Final = 1.0
_EARLY_MAX: Final = 4_096
# Attempts that were said to be over while their records still waited for them.
_KEPT_MAX: Final = 64


class _Verdict(Enum):
    """What a task's record says of an attempt. It is `LATE` while it may yet succeed."""

    RECORDED = auto()
    LATE = auto()
    OTHER = auto()


class Records(Protocol):
    async def get(self, key: bytes, *, stale: bool = False) -> Entry | None: ...


class Release:
    """A worker's; `bus` is None on a node without one, where no attempt has any messages."""

    def __init__(self, records: Records, bus: Bus | None) -> None:
        self._records, self._bus = records, bus
        self._held: dict[int, tuple[str, tuple[BusMessage, ...]]] = {}
        # Settled before there was anything to hold: an attempt may end a moment too late.
        self._early: OrderedDict[int, None] = OrderedDict()
        # Of those held, the ones that wait to be settled another time.
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._leaving = 0
        self._idle = trio.Event()

    def hold(
        self, task_id: str, fence: int, messages: tuple[BusMessage, ...], nursery: trio.Nursery
    ) -> None:
        """Keep what an attempt published until it is `settled`."""
        if messages:
            self._held[fence] = task_id, messages
            if fence in self._early:
                self._start(fence, nursery)

    def settled(self, fences: Sequence[int], nursery: trio.Nursery) -> None:
        """The coordinator is done with these attempts."""
        for fence in fences:
            if fence in self._held:
                self._start(fence, nursery)
            else:
                self._early[fence] = None
        while len(self._early) > _EARLY_MAX:
            self._early.popitem(last=False)

    def _start(self, fence: int, nursery: trio.Nursery) -> None:
        self._leaving += 1
        self._kept.pop(fence, None)
        nursery.start_soon(self._release, fence, *self._held.pop(fence))

    async def finished(self) -> None:
        """Wait until what may leave has left."""
        while self._leaving:
            self._idle = trio.Event()
            await self._idle.wait()

    async def _release(self, fence: int, task_id: str, messages: tuple[BusMessage, ...]) -> None:
        try:
            verdict = await self._look(task_id, fence)
            if verdict is _Verdict.RECORDED:
                await self._publish(task_id, messages)
            elif verdict is _Verdict.LATE:
                self._keep(fence, task_id, messages)
            else:
                DROPPED.labels("bus", "no_result").inc(len(messages))
        except SwarmError as error:
            DROPPED.labels("bus", "no_record").inc(len(messages))
            _log.warning(
                "messages of an attempt are dropped: its record cannot be read",
                task=task_id,
                messages=len(messages),
                why=error.message,
            )
        finally:
            self._leaving -= 1
            self._idle.set()

    def _keep(self, fence: int, task_id: str, messages: tuple[BusMessage, ...]) -> None:
        self._held[fence] = task_id, messages
        self._kept[fence] = None
        while len(self._kept) > _KEPT_MAX:
            oldest, _ = self._kept.popitem(last=False)
            DROPPED.labels("bus", "no_result").inc(len(self._held.pop(oldest)[1]))

    async def _look(self, task_id: str, fence: int) -> _Verdict:
        """What has become of the attempt.

        Raises:
            SwarmError: its record cannot be read.
        """
        for left in reversed(range(_LOOK_TRIES)):
            try:
                entry = await self._records.get(task_key(task_id))
            except SwarmError as error:
                if not error.retryable or not left:
                    raise
                await trio.sleep(_LOOK_PAUSE_S)
                continue
            if entry is None:
                return _Verdict.OTHER
            record = decode_task(entry.value)
            if record.state is State.SUCCEEDED and record.fence == fence:
                return _Verdict.RECORDED
            return _Verdict.OTHER if record.final else _Verdict.LATE
        raise AssertionError("the last try returns or raises")

    async def _publish(self, task_id: str, messages: tuple[BusMessage, ...]) -> None:
        assert self._bus is not None, "without a bus nothing is held"
        try:
            with self._bus.open_sender(messages[0].sender) as sender:
                for one in messages:
                    await self._publish_one(sender, task_id, one)
        except SwarmError as error:  # No lane is free.
            _log.warning("messages of an attempt are dropped", task=task_id, why=error.message)

    async def _publish_one(self, sender: Sender, task_id: str, message: BusMessage) -> None:
        topic = message.topic
        try:
            await sender.publish(topic, message.data)
        except SwarmError as error:
            _log.warning("a message of an attempt", task=task_id, topic=topic, why=error.message)
