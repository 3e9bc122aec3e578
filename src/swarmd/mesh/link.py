"""What the rooms above ask of streams: messages, requests and streamed answers to a peer.

`transports.streams` implements it over TLS, `transports.memory` in one process; one
conformance suite holds both to it. Answers come up as return values and bounded inboxes;
nobody registers a callback.

Delivery: messages to one peer on one lane arrive in order, each at most once; a reset loses
what was in flight, and `request` then raises. A full inbox stops the reader of that peer's
stream, so that the sender feels it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from enum import IntEnum
from typing import Any, Final, Protocol, TypeVar

import trio

from swarmd.base.errors import SwarmError
from swarmd.base.ids import NodeId
from swarmd.wire.codec import Family, Message

T = TypeVar("T")
# Pipes that one peer may have open to this node.
PIPES_PER_PEER_MAX: Final = 8


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

    def pipe(self, message: Message) -> AbstractAsyncContextManager[Pipe]:
        """Answer a question that opened a pipe, and have this end of it until the block ends.

        Raises:
            RemoteError: the question did not come by `Link.open_pipe`.
        """
        ...


class Pipe(Protocol):
    """Bytes both ways between a worker thread here and one at the peer, over their own connection.

    For what is too much for messages. Nothing is framed, and nothing is queued but what the
    kernel holds. `read_into`, `read` and `write` block, so they are called in `run`.

    Raises, from these three:
        Unreachable: the connection broke, or was broken off.
        TimedOut: the call was not done within the asker's `timeout_s`, or 30 s at the end that
            answered; or twice that, where bytes trickle.
    """

    @property
    def peer(self) -> NodeId: ...

    @property
    def answer(self) -> Any:
        """To the question that opened it, at the end that asked."""
        ...

    def read_into(self, view: memoryview) -> None:
        """Fill `view`. Raises Unreachable, too, where the peer has closed the pipe."""
        ...

    def read(self, most: int) -> bytes:
        """What has come, at least a byte and `most` at most; empty: the peer has closed it."""
        ...

    def write(self, data: bytes | memoryview) -> None:
        """Return once the kernel has taken all of it."""
        ...

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """Call something in a worker thread, which is this pipe's own; one call at a time.

        How many pipes there are is the caller's to bound. Cancelled, it breaks the connection off
        and waits for the call to end.
        """
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
    ) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        """Like `request`, for an answer in several messages; `timeout_s` is between two of them.

        Leaving the block early tells the peer to stop: its next `answer` does nothing.
        """
        ...

    def open_pipe(
        self, family: Family, peer: NodeId, message: Message, *, timeout_s: float
    ) -> AbstractAsyncContextManager[Pipe]:
        """Ask over a connection of its own, which is a pipe once the answer is here.

        At the peer the question is in the family's inbox as all are; `Inbound.pipe` answers it.
        The question, and its answer, have 1 KiB at most. To oneself it works too.

        Raises:
            TooLarge: one of them has more.
            Busy: the peer has `PIPES_PER_PEER_MAX` pipes from here.
            Unreachable, TimedOut: no connection, or no answer, within `timeout_s`.
            SwarmError: whatever the peer failed the question with.
        """
        ...

    def connected(self) -> list[NodeId]:
        """Peers with an open connection, in a stable order."""
        ...
