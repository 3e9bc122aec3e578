"""The swarm's bus as an agent uses it: `context.bus`.

    context.bus.publish("orders/paid", {"number": 17})
    with context.bus.subscribe("orders/*") as messages:
        for message in messages:
            ...

What is published leaves when the attempt's result is recorded, so that an attempt that failed, or
was replaced, has said nothing; with `immediate=True` it leaves at once. An agent publishes and
subscribes to what its file permits, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

import msgpack

from swarmd.sdk.protocol import DATA_BYTES_MAX, HELD, PUBLISH, SUBSCRIBE

_DIRECT = "@"
_EVERYBODY = "*"


class Wire(Protocol):
    """What the worker process does for a bus."""

    def call(self, kind: int, *fields: object) -> int:
        """Ask the daemon; its answer. Raises the SwarmError that is the answer."""
        ...

    def take(self, number: int, deadline_s: float | None) -> tuple[str, str, bytes] | None:
        """The next message of a subscription; None when it is late, or the attempt cancelled."""
        ...

    def close(self, number: int) -> None: ...


class Message:
    """One message. `sender` can be given to `Bus.send` if it is not empty."""

    __slots__ = ("data", "sender", "topic")

    def __init__(self, topic: str, sender: str, data: object) -> None:
        self.topic = topic
        self.sender = sender
        self.data = data

    def __repr__(self) -> str:
        return f"Message(topic={self.topic!r}, sender={self.sender!r}, data={self.data!r})"


class Bus:
    """Made by `Context.bus`. Usable from any thread of the agent."""

    __slots__ = ("_numbers", "_wire", "address")

    def __init__(self, wire: Callable[[], Wire], task_id: str) -> None:
        self._wire = wire
        self._numbers = 0
        self.address = _DIRECT + task_id
        """Under which others `send` to this attempt, if it has a `mailbox`."""

    def publish(
        self, topic: str, data: object = None, *, immediate: bool = False, timeout_s: float = 5.0
    ) -> int | None:
        """Publish `data`, any value that a result may be, of at most 64 KiB.

        Args:
            immediate: now, whatever becomes of the attempt. Otherwise it leaves once the
                attempt's result is recorded, after what was published before.
            timeout_s: longest wait for a subscriber whose inbox is full.

        Returns:
            With `immediate` how many subscribers have it in their inbox; else None.

        Raises:
            SwarmError: by its `code`: `forbidden`: the agent's file does not permit the topic;
                with `immediate` also `inbox_full`, `delivery_unknown` and, of a message for one
                subscriber, `not_found`.
        """
        packed: bytes = msgpack.packb(data, use_bin_type=True)
        if len(packed) > DATA_BYTES_MAX:
            raise ValueError(f"a message has {len(packed)} bytes; at most {DATA_BYTES_MAX} fit")
        wait_ms = round(timeout_s * 1_000)
        reached = self._wire().call(PUBLISH, _text(topic), packed, bool(immediate), wait_ms)
        return None if reached == HELD else reached

    def send(
        self, to: str, data: object = None, *, immediate: bool = False, timeout_s: float = 5.0
    ) -> int | None:
        """Publish to one subscriber: a message's `sender`, or an `address`. See `publish`."""
        to = _text(to)
        topic = to if to.startswith(_DIRECT) else _DIRECT + to
        return self.publish(topic, data, immediate=immediate, timeout_s=timeout_s)

    def broadcast(
        self, data: object = None, *, immediate: bool = False, timeout_s: float = 5.0
    ) -> int | None:
        """Publish to everybody who subscribes to anything. See `publish`."""
        return self.publish(_EVERYBODY, data, immediate=immediate, timeout_s=timeout_s)

    def subscribe(self, *topics: str) -> Subscription:
        """Get what is published to the topics, for the length of a `with` block.

        A topic may end with `*`. Once the block is entered nothing is missed; up to 1,000
        messages wait, then those who publish do.

        Raises:
            SwarmError: `forbidden`: the agent's file does not permit a topic.
        """
        self._numbers += 1
        return Subscription(self._wire(), self._numbers, tuple(map(_text, topics)))

    def mailbox(self) -> Subscription:
        """Get what is sent to this attempt's `address`. See `subscribe`."""
        return self.subscribe(self.address)


class Subscription:
    """Made by `Bus.subscribe`. Iterating ends when the attempt is cancelled."""

    __slots__ = ("_number", "_topics", "_wire")

    def __init__(self, wire: Wire, number: int, topics: tuple[str, ...]) -> None:
        self._wire = wire
        self._number = number
        self._topics = topics

    def __enter__(self) -> Subscription:
        self._wire.call(SUBSCRIBE, self._number, "\n".join(self._topics))
        return self

    def __exit__(self, *_: object) -> None:
        self._wire.close(self._number)

    def __iter__(self) -> Iterator[Message]:
        while (message := self.receive()) is not None:
            yield message

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """The next message; None if none came in time, or the attempt was cancelled."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        found = self._wire.take(self._number, deadline_s)
        if found is None:
            return None
        topic, sender, packed = found
        return Message(topic, sender, msgpack.unpackb(packed, raw=False, strict_map_key=False))


def _text(topic: str) -> str:
    if not isinstance(topic, str):
        raise TypeError(f"a topic is a str, not {type(topic).__name__}")
    return topic
