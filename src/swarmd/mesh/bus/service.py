"""The shell of the bus: publishers, subscribers, and the streams between them.

Every publisher has a lane of its own while it publishes, so a subscriber with a full inbox holds
up who publishes to it and nobody else. What is on its way is bounded per lane and for the node;
beyond that publishers wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import (
    Busy,
    DeliveryUnknown,
    InboxFull,
    NotFound,
    ShuttingDown,
    SwarmError,
    TooLarge,
)
from swarmd.base.ids import NodeId, short
from swarmd.base.limits import (
    BUS_DATA_BYTES_MAX,
    BUS_FILTERS_MAX,
    BUS_LANES_MAX,
    BUS_SUBSCRIBERS_MAX,
    MIB,
)
from swarmd.base.machine import Event, Send
from swarmd.base.rng import Rng
from swarmd.mesh.bus.config import BusConfig
from swarmd.mesh.bus.events import (
    Arrival,
    Deliver,
    GiveUp,
    Heard,
    Outcome,
    PeerGone,
    PeerUp,
    Publish,
    Reach,
    Spread,
    Subscribe,
    Taken,
    Unsubscribe,
)
from swarmd.mesh.bus.machine import BusMachine
from swarmd.mesh.bus.messages import BUS, PATIENCE_MS_MAX, Posts
from swarmd.mesh.bus.topics import DIRECT, check_filter, check_topic
from swarmd.mesh.driver import Driver
from swarmd.mesh.link import Inbound, Link
from swarmd.mesh.swim.events import Changed, Member
from swarmd.mesh.swim.messages import MemberState
from swarmd.observe.metrics import DROPPED
from swarmd.wire.codec import Message

__all__ = ["Arrival", "Bus", "Receipt", "Sender", "Subscription", "open_bus"]

# Messages of one publisher, and of all of a node, that are on their way.
WINDOW: Final = 256
_OPEN_MAX: Final = 16_384
_OPEN_BYTES_MAX: Final = 64 * MIB
# An outcome has this long to come back after a subscriber's time is over.
_OUTCOME_S: Final = 1.0
_TIMEOUT_MAX_S: Final = PATIENCE_MS_MAX / 1_000
_SPREAD_S: Final = 2.0
_EVENTS_MAX: Final = 100_000
_OUTBOX_MAX: Final = 1_000
_OUTBOX_BYTES_MAX: Final = 64 * MIB
# A subscriber's progress is told to the machine at about this many parts of its inbox.
_INBOX_PARTS: Final = 32
_NAME_CHARS_MAX: Final = 120
_NOWHERE: Final = Reach()


class MemberChanges(Protocol):
    lagged: bool

    async def receive(self) -> Changed: ...


class Membership(Protocol):
    """What the bus asks of membership; see `mesh.swim.service`."""

    def members(self) -> list[Member]: ...
    def get(self, node_id: NodeId) -> Member | None: ...
    def subscribe(self) -> AbstractContextManager[MemberChanges]: ...


class Subscription:
    """One subscriber's inbox, as an async iterator; made by `Bus.subscribe`."""

    def __init__(self, bus: Bus, number: int, inbox_max: int) -> None:
        self._bus = bus
        self._number = number
        self._inbox: deque[Arrival] = deque()
        self._wake = trio.Event()
        self._parts = max(1, inbox_max // _INBOX_PARTS)
        self._taken = 0
        self._taken_bytes = 0
        self.spread = trio.Event()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Arrival:
        return await self.receive()

    async def receive(self) -> Arrival:
        """The next message. Cancelled, it takes none. One task at a time."""
        while not self._inbox:
            self._wake = trio.Event()
            await self._wake.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        return self.receive_nowait()

    def receive_nowait(self) -> Arrival:
        """The next message. Raises trio.WouldBlock if there is none."""
        if not self._inbox:
            raise trio.WouldBlock
        arrival = self._inbox.popleft()
        self._taken += 1
        self._taken_bytes += len(arrival.data)
        if not self._inbox or self._taken >= self._parts:
            taken = Taken(self._number, self._taken, self._taken_bytes)
            self._taken = self._taken_bytes = 0
            self._bus._feed(taken)
        return arrival

    def _put(self, arrival: Arrival) -> None:
        self._inbox.append(arrival)
        self._wake.set()


@dataclass(eq=False)
class Receipt:
    """A message that was handed over. `wait` tells what became of it."""

    bus: Bus
    token: int
    topic: str
    size: int
    timeout_s: float
    room: trio.Semaphore
    settled: trio.Event
    reach: Reach = _NOWHERE
    error: SwarmError | None = None

    async def wait(self) -> int:
        """How many subscribers have the message in their inbox.

        Raises:
            NotFound: it was for one subscriber, which there is not.
            InboxFull: a subscriber, which is named, had no room for `timeout_s`. It does not get
                the message any more; others have it.
            DeliveryUnknown: a node died, was started anew or is out of reach. Its subscribers may
                have the message or not; others have it.
        """
        if not self.settled.is_set():
            with trio.move_on_after(self.timeout_s + _OUTCOME_S):
                await self.settled.wait()
        if not self.settled.is_set():
            self.bus._feed(GiveUp(self.token))
            await self.settled.wait()
        if self.error is not None:
            raise self.error
        self.bus._raise_for(self)
        return self.reach.subscribers


class Sender:
    """Publishes in order: a subscriber gets one sender's messages in the order of the calls."""

    def __init__(self, bus: Bus, lane: int, name: str) -> None:
        self._bus, self._lane, self._name = bus, lane, name
        self._room = trio.Semaphore(WINDOW)

    async def publish(self, topic: str, data: bytes, *, timeout_s: float | None = None) -> int:
        """Publish, and wait until it is in the inbox of each subscriber; how many these are.

        Raises:
            BadName, TooLarge: nothing was published.
            Busy, ShuttingDown: too much waits already, or this node ends; nothing was published.
            NotFound, InboxFull, DeliveryUnknown: see `Receipt.wait`.

        Cancelled, the message may get to subscribers all the same.
        """
        return await (await self.post(topic, data, timeout_s=timeout_s)).wait()

    async def post(self, topic: str, data: bytes, *, timeout_s: float | None = None) -> Receipt:
        """Hand a message over, waiting while as many as may are on their way.

        Raises:
            BadName, TooLarge, Busy: see `publish`. Nothing was handed over.
        """
        with suppress(trio.WouldBlock):
            return self.post_nowait(topic, data, timeout_s=timeout_s)
        wait_s = self._wait_s(timeout_s)
        with trio.move_on_after(wait_s + _OUTCOME_S):
            await self._room.acquire()
            with self._giving_back():
                await self._bus._take_room(len(data))
                self._bus._check_open()
                return self._bus._publish(self._lane, self._name, topic, data, wait_s, self._room)
        raise Busy(f"{WINDOW} messages of one publisher are on their way: nothing was sent")

    @contextmanager
    def _giving_back(self) -> Iterator[None]:
        """A place that was taken belongs to a receipt in the end, or to whoever comes next."""
        try:
            yield
        except BaseException:
            self._room.release()
            raise

    def post_nowait(self, topic: str, data: bytes, *, timeout_s: float | None = None) -> Receipt:
        """Hand a message over at once.

        Raises:
            trio.WouldBlock: as many as may are on their way. Nothing was handed over.
            BadName, TooLarge: see `publish`.
        """
        check_topic(topic)
        if len(data) > BUS_DATA_BYTES_MAX:
            raise TooLarge(
                f"a message has {len(data)} bytes, and at most {BUS_DATA_BYTES_MAX} fit: put them "
                "into a blob or a key, and publish where they are"
            )
        self._bus._check_open()
        if not self._bus._has_room(len(data)):
            raise trio.WouldBlock
        self._room.acquire_nowait()
        with self._giving_back():
            wait_s = self._wait_s(timeout_s)
            return self._bus._publish(self._lane, self._name, topic, data, wait_s, self._room)

    def _wait_s(self, timeout_s: float | None) -> float:
        return self._bus.timeout_s if timeout_s is None else min(timeout_s, _TIMEOUT_MAX_S)


class _Outbox:
    """What waits for room on the way to a peer, in order."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._size = 0

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: Message) -> bool:
        """False if too much waits already."""
        size = _size_of(message)
        full = bool(self._messages) and self._size + size > _OUTBOX_BYTES_MAX
        if full or len(self._messages) >= _OUTBOX_MAX:
            return False
        self._messages.append(message)
        self._size += size
        return True

    def first(self) -> Message:
        return self._messages[0]

    def pop(self) -> None:
        self._size -= _size_of(self._messages.popleft())


class Bus:
    """Made by `open_bus`."""

    def __init__(
        self,
        machine: BusMachine,
        link: Link,
        membership: Membership,
        config: BusConfig,
        clock: Clock,
        nursery: trio.Nursery,
    ) -> None:
        self.timeout_s = config.timeout_s
        self._machine, self._link, self._membership = machine, link, membership
        self._config, self._nursery = config, nursery
        self._subscriptions: dict[int, Subscription] = {}
        self._receipts: dict[int, Receipt] = {}
        self._free_lanes: deque[int] = deque(range(BUS_LANES_MAX))
        self._open_bytes = 0
        self._room = trio.Event()
        self._outboxes: dict[NodeId, _Outbox] = {}
        self._tokens = self._numbers = 0
        self._closed = False
        self._driver = Driver(
            "bus",
            machine,
            {
                Send: self._perform_send,
                Deliver: self._perform_deliver,
                Outcome: self._perform_outcome,
                Spread: self._perform_spread,
            },
            clock=clock,
            inbox_max=_EVENTS_MAX,
        )

    # ---- publishing --------------------------------------------------------------------------

    @contextmanager
    def open_sender(self, name: str = "") -> Iterator[Sender]:
        """Publish in order for as long as the block runs.

        Args:
            name: whom subscribers may answer to, `@` and a subscriber's name; empty for nobody.

        Raises:
            Busy: as many publish here as may.
        """
        if not self._free_lanes:
            raise Busy(f"{BUS_LANES_MAX} publish on this node at once: try again shortly")
        lane = self._free_lanes.popleft()
        try:
            yield Sender(self, lane, name)
        finally:
            self._free_lanes.append(lane)

    async def publish(
        self, topic: str, data: bytes, *, sender: str = "", timeout_s: float | None = None
    ) -> int:
        """Publish one message; see `Sender.publish`."""
        with self.open_sender(sender) as one:
            return await one.publish(topic, data, timeout_s=timeout_s)

    async def _take_room(self, size: int) -> None:
        while not self._has_room(size):
            await self._room.wait()

    def _has_room(self, size: int) -> bool:
        if len(self._receipts) >= _OPEN_MAX:
            return False
        return not self._open_bytes or self._open_bytes + size <= _OPEN_BYTES_MAX

    def _publish(
        self, lane: int, sender: str, topic: str, data: bytes, wait_s: float, room: trio.Semaphore
    ) -> Receipt:
        self._tokens += 1
        token = self._tokens
        self._feed(Publish(token, lane, topic, sender, data, wait_s))
        receipt = Receipt(self, token, topic, len(data), wait_s, room, trio.Event())
        self._receipts[token] = receipt
        self._open_bytes += len(data)
        return receipt

    def _perform_outcome(self, effect: Outcome) -> None:
        receipt = self._receipts.pop(effect.token, None)
        if receipt is not None:  # Else it was told that this node ends.
            receipt.reach = effect.reach
            self._settle(receipt)

    def _settle(self, receipt: Receipt) -> None:
        receipt.settled.set()
        receipt.room.release()
        self._open_bytes -= receipt.size
        self._room.set()
        self._room = trio.Event()

    def _raise_for(self, receipt: Receipt) -> None:
        reach = receipt.reach
        have = f"{reach.subscribers} subscribers have the message"
        if reach.unknown:
            names = ", ".join(map(self._name_of, reach.unknown))
            raise DeliveryUnknown(
                f"{names} did not acknowledge what was published to {receipt.topic}: whether the "
                f"subscribers there have it is unknown; {have}"
            )
        if reach.missed:
            more = reach.missed - len(reach.slow)
            names = ", ".join(reach.slow) + (f" and {more} more" if more else "")
            raise InboxFull(
                f"{names} had no room for what was published to {receipt.topic} for "
                f"{receipt.timeout_s:g} s, and will not get it; {have}"
            )
        if not reach.subscribers and receipt.topic.startswith(DIRECT):
            raise NotFound(f"no subscriber is named {receipt.topic}")

    def _name_of(self, node: NodeId) -> str:
        member = self._membership.get(node)
        return member.name if member is not None else short(node)

    # ---- subscribing -------------------------------------------------------------------------

    @asynccontextmanager
    async def subscribe(
        self, filters: Iterable[str], *, name: str, inbox_max: int | None = None
    ) -> AsyncIterator[Subscription]:
        """Get what is published to topics that fit a filter, for as long as the block runs.

        Whatever is published after the block was entered comes, on members that answered within
        about a second; what was not taken when it ends is dropped.

        Args:
            filters: see `topics`. One that is `@NAME` makes this the subscriber of that name.
            name: who it is, for publishers that wait for it.
            inbox_max: messages that may wait here; at most `bus.inbox_max`, and that by default.

        Raises:
            BadName: a filter is none.
            Busy: there are too many subscribers, or filters, here.
        """
        self._check_open()
        asked = tuple(dict.fromkeys(map(check_filter, filters)))
        many = self._machine.filters_count + len(asked) > BUS_FILTERS_MAX
        if many or len(self._subscriptions) >= BUS_SUBSCRIBERS_MAX:
            raise Busy("this node has as many subscribers as it may: use another one")
        self._numbers += 1
        number = self._numbers
        most = min(inbox_max or self._config.inbox_max, self._config.inbox_max)
        subscription = self._subscriptions[number] = Subscription(self, number, most)
        member = self._membership.get(self._link.node_id)
        told = name[:_NAME_CHARS_MAX] + (f" on {member.name}" if member is not None else "")
        self._feed(Subscribe(number, told, asked, most))
        try:
            with trio.move_on_after(_SPREAD_S):
                await subscription.spread.wait()
            yield subscription
        finally:
            del self._subscriptions[number]
            self._feed(Unsubscribe(number))

    def _perform_deliver(self, effect: Deliver) -> None:
        subscription = self._subscriptions.get(effect.number)
        if subscription is not None:  # Else it has just ended.
            subscription._put(effect.arrival)

    def _perform_spread(self, effect: Spread) -> None:
        subscription = self._subscriptions.get(effect.number)
        if subscription is not None:
            subscription.spread.set()

    # ---- between nodes -------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        if not self._closed:
            self._driver.feed(event)

    def _perform_send(self, effect: Send) -> None:
        outbox = self._outboxes.get(effect.peer)
        if outbox is None:
            if self._link.send_nowait(BUS, effect.peer, effect.message):
                return
            outbox = self._outboxes[effect.peer] = _Outbox()
            self._nursery.start_soon(self._empty, effect.peer, outbox)
        if not outbox.put(effect.message):
            DROPPED.labels("bus", "outbox_full").inc()  # It is asked for, and sent again.

    async def _empty(self, peer: NodeId, outbox: _Outbox) -> None:
        """Send what found no room at once, in order; what comes meanwhile waits behind it."""
        try:
            while outbox:
                await self._link.send(BUS, peer, outbox.first())
                outbox.pop()
        except SwarmError:
            DROPPED.labels("bus", "unreachable").inc(len(outbox))
        finally:
            del self._outboxes[peer]

    async def _receive(self, inbox: trio.MemoryReceiveChannel[Inbound]) -> None:
        async for inbound in inbox:
            try:
                self._driver.feed(Heard(inbound.peer, inbound.message))
            except Busy:
                DROPPED.labels("bus", "busy").inc()  # It is asked for, and sent again.

    async def _watch_members(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with self._membership.subscribe() as changes:
            self._look_around()
            task_status.started()
            while True:
                change = await changes.receive()
                if changes.lagged:
                    changes.lagged = False
                    self._look_around()
                self._note(change)

    def _look_around(self) -> None:
        for member in self._membership.members():
            self._note(Changed(None, member))

    def _note(self, change: Changed) -> None:
        before, after = change.before, change.after
        member = after or before
        if member is None or member.node_id == self._link.node_id:
            return
        if after is None or after.state is MemberState.LEFT:
            self._feed(PeerGone(member.node_id, for_good=True))
        elif after.state is MemberState.DEAD:
            self._feed(PeerGone(after.node_id))
        elif change.joined or before is None or _start_of(before) != _start_of(after):
            self._feed(PeerUp(after.node_id))

    def _check_open(self) -> None:
        if self._closed:
            raise ShuttingDown("this node is stopping: nothing was sent; ask another one")

    def _close(self) -> None:
        """Nobody is left waiting for an outcome."""
        self._closed = True
        for receipt in list(self._receipts.values()):
            receipt.error = ShuttingDown(
                "this node is stopping: whether the message got anywhere is unknown"
            )
            self._settle(receipt)
        self._receipts.clear()


def _size_of(message: Message) -> int:
    """Bytes of the posts that it carries: nothing else is large."""
    return sum(len(one.data) for one in message.posts) if isinstance(message, Posts) else 0


def _start_of(member: Member) -> int:
    """Which start of its daemon an incarnation belongs to."""
    return member.incarnation >> 32


@asynccontextmanager
async def open_bus(
    link: Link, membership: Membership, config: BusConfig, clock: Clock, rng: Rng
) -> AsyncIterator[Bus]:
    """Take part in the swarm's bus for as long as the block runs.

    Publishers that still wait when it ends are told `shutting_down`.
    """
    machine = BusMachine(link.node_id, rng.getrandbits(62) + 1)
    async with link.open_inbox(BUS) as inbox, trio.open_nursery() as nursery:
        bus = Bus(machine, link, membership, config, clock, nursery)
        nursery.start_soon(bus._driver.run)
        nursery.start_soon(partial(bus._receive, inbox))
        # Whoever publishes first does so knowing who is there.
        await nursery.start(bus._watch_members)
        try:
            yield bus
        finally:
            bus._close()
            nursery.cancel_scope.cancel()
