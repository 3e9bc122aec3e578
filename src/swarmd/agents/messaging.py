"""What one attempt publishes on the swarm's bus, and is told from it.

Rules:
- An agent publishes and subscribes to what its file permits (`spec.BusRights`). Everybody is
  published to by who may publish everywhere; what is sent to the attempt's own address it may read.
- What is published is held here until the attempt's result is recorded (`tasks.worker.release`), so
  an attempt that failed or was replaced has said nothing. `immediate` messages leave at once.
- All that an attempt publishes at once goes by one sender, in order.
- The process is sent as much of a subscription as it has room for; the rest waits in the inbox.
- What the attempt has subscribed to ends with it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import trio

from swarmd.agents.attempts import BusMessage
from swarmd.agents.holdings import Answer
from swarmd.agents.spec import BusRights
from swarmd.base.errors import AgentCancelled, BadRequest, Busy, Forbidden, NotReady, SwarmError
from swarmd.base.limits import BUS_DATA_BYTES_MAX, MIB
from swarmd.mesh.bus.service import Bus, Receipt, Sender, Subscription
from swarmd.mesh.bus.topics import DIRECT, EVERYBODY, check_topic
from swarmd.sdk.protocol import CREDIT_BYTES, CREDIT_MESSAGES, HELD

HELD_MAX: Final = 1_000
HELD_BYTES_MAX: Final = MIB
SUBSCRIPTIONS_MAX: Final = 16
# Publishes of one attempt that wait for subscribers; beyond it the agent is not even read.
_PUBLISHING_MAX: Final = 64
_TOPICS_MAX: Final = 32

# (subscription, topic, sender, data)
Push = Callable[[int, str, str, bytes], Awaitable[None]]


@dataclass(eq=False)
class _Reader:
    """One subscription, and what of it is on its way to the process."""

    scope: trio.CancelScope
    sizes: list[int]
    room: trio.Event

    @property
    def is_full(self) -> bool:
        return len(self.sizes) >= CREDIT_MESSAGES or sum(self.sizes) >= CREDIT_BYTES


class Messaging:
    """One attempt's.

    Args:
        rights: what the agent's file permits; None: nothing.
        address: the attempt's own, which is the sender of what it publishes.
        owner: who subscribes, for people.
        answer: sends one answer; must not raise.
        push: sends one message to the process; must not raise.
        refused: told of each topic that the agent may not use.
    """

    def __init__(
        self,
        bus: Bus | None,
        rights: BusRights | None,
        address: str,
        owner: str,
        nursery: trio.Nursery,
        answer: Answer,
        push: Push,
        refused: Callable[[str, str], None],
    ) -> None:
        self._bus, self._rights = bus, rights or BusRights()
        self._address, self._owner, self._nursery = address, owner, nursery
        self._answer, self._push, self._refused = answer, push, refused
        self._open = ExitStack()
        self._sender: Sender | None = None
        self._held: list[BusMessage] = []
        self._held_bytes = 0
        self._readers: dict[int, _Reader] = {}
        self._room = trio.Semaphore(_PUBLISHING_MAX)
        # Of those that wait for subscribers.
        self._scopes: dict[trio.CancelScope, None] = {}
        self._cancelled = False

    @property
    def held(self) -> tuple[BusMessage, ...]:
        """What is to be published once the attempt's result is recorded, in order."""
        return tuple(self._held)

    def cancel(self) -> None:
        """The attempt is cancelled: nothing is waited for any more."""
        self._cancelled = True
        for scope in self._scopes:
            scope.cancel()

    def close(self) -> None:
        """The attempt has ended."""
        self.cancel()
        for reader in list(self._readers.values()):
            reader.scope.cancel()
        self._open.close()

    # ---- publishing ----------------------------------------------------------------------

    async def publish(
        self, ask: int, topic: str, data: bytes, immediate: bool, wait_ms: int
    ) -> None:
        """Answer one publish; wait while too many are being answered."""
        try:
            if self._cancelled:
                raise AgentCancelled("cancelled")
            self._check(check_topic(topic), self._rights.publish, "publish to")
            if not immediate:
                self._hold(topic, data)
                await self._answer(ask, "", "", HELD, 0)
                return
            # It is on its way before anything else is done: who listens waits for it.
            receipt = await self._sender_of().post(topic, data, timeout_s=max(wait_ms, 1) / 1_000)
        except SwarmError as error:
            await self._answer(ask, error.code, error.message, 0, 0)
            return
        await self._room.acquire()
        self._nursery.start_soon(self._acknowledge, ask, receipt)

    async def _acknowledge(self, ask: int, receipt: Receipt) -> None:
        answer: tuple[str, str, int, int] = (AgentCancelled.code, "cancelled", 0, 0)
        try:
            with trio.CancelScope() as scope:
                self._scopes[scope] = None
                try:
                    answer = ("", "", await receipt.wait(), 0)
                finally:
                    del self._scopes[scope]
        except SwarmError as error:
            answer = (error.code, error.message, 0, 0)
        try:
            await self._answer(ask, *answer)
        finally:
            self._room.release()

    def _hold(self, topic: str, data: bytes) -> None:
        if len(data) > BUS_DATA_BYTES_MAX:
            raise BadRequest(f"a message has at most {BUS_DATA_BYTES_MAX} bytes")
        if len(self._held) >= HELD_MAX or self._held_bytes + len(data) > HELD_BYTES_MAX:
            raise Busy(
                f"an attempt may publish {HELD_MAX} messages or {HELD_BYTES_MAX} bytes with its "
                "result: publish the others with immediate=True"
            )
        self._held.append(BusMessage(topic, self._address, data))
        self._held_bytes += len(data)

    def _sender_of(self) -> Sender:
        if self._sender is None:
            self._sender = self._open.enter_context(self._need().open_sender(self._address))
        return self._sender

    # ---- subscribing ---------------------------------------------------------------------

    async def subscribe(self, ask: int, number: int, topics: str) -> None:
        """Answer one question for a subscription, in a task of its own."""
        try:
            asked = [one for one in topics.split("\n") if one]
            if self._cancelled:
                raise AgentCancelled("cancelled")
            if not 0 < len(asked) <= _TOPICS_MAX:
                raise BadRequest(f"name 1 to {_TOPICS_MAX} topics to subscribe to")
            if number in self._readers or len(self._readers) >= SUBSCRIPTIONS_MAX:
                raise Busy(f"an attempt has at most {SUBSCRIPTIONS_MAX} subscriptions at once")
            for topic in asked:
                if topic != self._address:
                    self._check(topic, self._rights.subscribe, "subscribe to")
            bus = self._need()
        except SwarmError as error:
            await self._answer(ask, error.code, error.message, 0, 0)
            return
        reader = self._readers[number] = _Reader(trio.CancelScope(), [], trio.Event())
        self._nursery.start_soon(self._read, bus, reader, ask, number, asked)

    def unsubscribe(self, number: int) -> None:
        reader = self._readers.get(number)
        if reader is not None:
            reader.scope.cancel()

    def taken(self, number: int, count: int) -> None:
        """The process has taken so many messages of a subscription."""
        reader = self._readers.get(number)
        if reader is not None:
            del reader.sizes[: max(count, 0)]
            reader.room.set()

    async def _read(
        self, bus: Bus, reader: _Reader, ask: int, number: int, topics: list[str]
    ) -> None:
        answered = False
        try:
            with reader.scope:
                async with bus.subscribe(topics, name=self._owner) as subscription:
                    await self._answer(ask, "", "", 0, 0)
                    answered = True
                    await self._pass_on(reader, number, subscription)
        except SwarmError as error:
            answered = True
            await self._answer(ask, error.code, error.message, 0, 0)
        finally:
            self._readers.pop(number, None)
        if not answered:
            await self._answer(ask, AgentCancelled.code, "cancelled", 0, 0)

    async def _pass_on(self, reader: _Reader, number: int, subscription: Subscription) -> None:
        async for one in subscription:
            reader.sizes.append(len(one.data))
            await self._push(number, one.topic, one.sender, one.data)
            while reader.is_full:
                reader.room = trio.Event()
                await reader.room.wait()

    # ---- both ----------------------------------------------------------------------------

    def _need(self) -> Bus:
        if self._bus is None:
            raise NotReady("this node has no bus")
        return self._bus

    def _check(self, topic: str, allowed: tuple[str, ...], what: str) -> None:
        if permits(allowed, topic):
            return
        self._refused(f"{what} {topic}", Forbidden.code)
        key = "publish" if what.startswith("publish") else "subscribe"
        raise Forbidden(
            f"the agent's file does not permit it to {what} {topic}: add it to {key} in its [bus]"
        )


def permits(allowed: tuple[str, ...], topic: str) -> bool:
    """Whether a topic, or all that a filter fits, is among what is allowed.

    `*` allows everything but single subscribers, which `@*` allows, or their names.
    """
    direct = topic.startswith(DIRECT)
    beginning = topic[:-1] if topic.endswith("*") else topic
    return any(
        one == topic
        or (
            topic != EVERYBODY
            and one.endswith("*")
            and one.startswith(DIRECT) == direct
            and beginning.startswith(one[:-1])
        )
        for one in allowed
    )
