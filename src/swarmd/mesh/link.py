"""What the rooms above ask of streams: messages, requests and streamed answers to a peer.

`transports.streams` implements it over TLS, `transports.memory` in one process; one
conformance suite holds both to it. Answers come up as return values and bounded inboxes;
nobody registers a callback.

Delivery: messages to one peer on one lane arrive in order, each at most once; a reset loses
what was in flight, and `request` then raises. A full inbox stops the reader of that peer's
stream, so that the sender feels it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from enum import IntEnum
from typing import Any, Protocol

import trio

from swarmd.base.errors import SwarmError
from swarmd.base.ids import NodeId
from swarmd.wire.codec import Family, Message


class Lane(IntEnum):
    """Control goes before bulk, always."""

    CONTROL = 0
    BULK = 1


class Inbound(Protocol):
    """A message that arrived. `message` is of the inbox's family."""

    @property
    def peer(self) -> NodeId: ...

    @property
    def message(self) -> Any: ...

    @property
    def wants_answer(self) -> bool:
        """True if the peer waits in `request` or `request_stream`."""
        ...

    async def answer(self, message: Message, *, more: bool = False) -> None:
        """Answer a request, with the last message unless `more`.

        Waits for room in the peer's queue. A peer that is gone is not an error: nobody waits.
        Without `wants_answer` it does nothing.
        """
        ...

    async def fail(self, error: SwarmError) -> None:
        """End the request with an error, which the peer's call raises by its code."""
        ...


class Streamed(Protocol):
    """The messages of a streamed answer, in order.

    The peer has at most `window` of them on their way (`wire.codec.Message`), and sends more as
    they are done with: taken by iterating, or told to be by `done`.

    Raises, from `anext` and `some`:
        TimedOut: no message came within the request's `timeout_s`.
        SwarmError: whatever the peer, or the connection, ended the answer with.
    """

    def __aiter__(self) -> AsyncIterator[Any]: ...

    async def __anext__(self) -> Any: ...

    async def some(self, most: int) -> list[Any]:
        """Wait for a message; all that have come by then, at most `most`. Empty: it was the last.

        They hold up what comes after them until `done` counts them.
        """
        ...

    def done(self, count: int) -> None:
        """Of those that `some` gave `count` more are done with."""
        ...


class Link(Protocol):
    @property
    def node_id(self) -> NodeId: ...

    def open_inbox(
        self, family: Family, *, size: int = 1_000
    ) -> trio.MemoryReceiveChannel[Inbound]:
        """Receive what peers send in `family`; one inbox per family, opened before traffic."""
        ...

    def send_nowait(
        self, family: Family, peer: NodeId, message: Message, *, lane: Lane = Lane.CONTROL
    ) -> bool:
        """Queue a message; False if the queue is full or the peer is not reachable now.

        Starts a connection in the background when there is none.
        """
        ...

    async def send(
        self, family: Family, peer: NodeId, message: Message, *, lane: Lane = Lane.CONTROL
    ) -> None:
        """Queue a message, waiting for a connection and for room.

        Raises:
            Unreachable: no connection could be made within the transport's connect timeout.
        """
        ...

    async def request(
        self,
        family: Family,
        peer: NodeId,
        message: Message,
        *,
        timeout_s: float,
        lane: Lane = Lane.CONTROL,
    ) -> Any:
        """Send a message and return its answer, a message of the same family.

        To oneself it works too, through the same inbox.

        Raises:
            Unreachable: no connection, or it broke before the answer (outcome unknown).
            TimedOut: no answer within `timeout_s` (outcome unknown).
            SwarmError: whatever the peer failed the request with.
        """
        ...

    def request_stream(
        self,
        family: Family,
        peer: NodeId,
        message: Message,
        *,
        timeout_s: float,
        lane: Lane = Lane.CONTROL,
    ) -> AbstractAsyncContextManager[Streamed]:
        """Like `request`, for an answer in several messages; `timeout_s` is between two of them.

        Leaving the block early tells the peer to stop: its next `answer` does nothing.
        """
        ...

    def connected(self) -> list[NodeId]:
        """Peers with an open connection, in a stable order."""
        ...
