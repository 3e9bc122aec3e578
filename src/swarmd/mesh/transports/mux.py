"""Many conversations over one ordered connection: messages, requests, streamed answers.

The rules, the same on every transport:

- A connection carries *items*: (kind, lane, family, request, payload). A request number is
  the asker's own and means nothing beyond its connection.
- A reader never waits on an answer. A plain request gets one answer, for which there is
  always room; a streamed one starts with `WINDOW` credits and the answerer waits when they
  are used up, so a slow consumer holds up its own stream alone (RFC 9113 section 5.2 has
  the same rule for the same reason).
- A reader does wait on a full inbox: the sender of work is the one who should feel it.
- An asker that stops waiting says so once (`STOP`); an answer to a question nobody has is
  answered with `STOP`, so a lost one mends itself.
- A connection that breaks fails every request that waits on it: the outcome is unknown.
"""

from __future__ import annotations

import itertools
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Literal

import msgspec
import trio

from swarmd.base.errors import (
    Busy,
    MalformedMessage,
    RemoteError,
    ShuttingDown,
    SwarmError,
    TimedOut,
    TooLarge,
    Unavailable,
    Unreachable,
    from_code,
)
from swarmd.base.ids import NodeId, short
from swarmd.mesh.link import Inbound, Lane, Pipe
from swarmd.mesh.transports.pipes import SocketPipe
from swarmd.observe.metrics import DROPPED, MESSAGE_BYTES
from swarmd.wire.codec import Family, Message, decode_struct, encode_struct

WINDOW: Final = 32
_GRANT: Final = WINDOW // 2
_OPEN_REQUESTS_MAX: Final = 10_000
_FAILURE_CHARS_MAX: Final = 1_000
_CLOSED_EVENTS_MAX: Final = 1_000
# What a question that opens a pipe, and its answer, may have.
PIPE_MESSAGE_BYTES_MAX: Final = 1_024

How = Literal["reset", "refused", "silent", "untrusted", "idle", "restarting", "leaving"]


@dataclass(frozen=True, slots=True)
class StreamClosed:
    """A peer's connection ended, or could not be made.

    `how`: `reset` and `refused` hint that the peer's process is gone; `silent` is a connect
    timeout; `untrusted` a failed proof of identity; the others are clean and are no hint.
    `quiet_s`: for how long a peer that says `restarting` will be away.
    """

    peer: NodeId
    how: How
    quiet_s: int = 0


class Kind(IntEnum):
    MESSAGE = 0
    REQUEST = 1
    MORE = 2
    ANSWER = 3
    FAIL = 4
    STOP = 5
    CREDIT = 6


class Item(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One message of a conversation. `payload` is encoded by the family."""

    kind: Kind
    lane: Lane
    family: str
    request: int
    payload: bytes


class _Failure(msgspec.Struct, frozen=True, array_like=True):
    code: str
    message: str


class Call:
    """A request of ours that waits for its answer."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.ended = False
        self._waiting: deque[Item | SwarmError] = deque()
        self._wake = trio.Event()

    def feed(self, item: Item) -> None:
        """Take an answer. A peer that ignores its credit ends its own answer."""
        if self.ended:
            return
        if len(self._waiting) >= WINDOW + 1:
            self.end(MalformedMessage("the peer sent more answers than it was asked for"))
            return
        self.ended = item.kind is not Kind.MORE
        self._waiting.append(item)
        self._wake.set()

    def end(self, error: SwarmError) -> None:
        """What has arrived is still read; then comes `error`."""
        if not self.ended:
            self.ended = True
            self._waiting.append(error)
            self._wake.set()

    async def next(self) -> tuple[Any, bool]:
        """The next message, and whether it is the last. Raises what the request failed with."""
        while not self._waiting:
            self._wake = trio.Event()
            await self._wake.wait()
        item = self._waiting.popleft()
        if isinstance(item, SwarmError):
            raise item
        if item.kind is Kind.FAIL:
            failure: _Failure = decode_struct(_Failure, item.payload)
            raise from_code(failure.code, failure.message)
        return self.family.decode(item.payload), item.kind is Kind.ANSWER


class Port(ABC):
    """One end of a connection, open or about to be."""

    def __init__(self, peer: NodeId) -> None:
        self.peer = peer
        self.calls: dict[int, Call] = {}
        self.asked: weakref.WeakValueDictionary[int, MuxInbound] = weakref.WeakValueDictionary()
        self._numbers = itertools.count(1)

    @abstractmethod
    def put_nowait(self, item: Item, *, force: bool = False) -> bool:
        """Queue an item; False if there is no room. `force` is for items that free room."""

    @abstractmethod
    async def put(self, item: Item) -> None:
        """Queue an item, waiting for the connection and for room. Raises Unreachable."""

    def open_call(self, family: Family) -> tuple[int, Call]:
        """Raises Busy when too many requests wait on this connection."""
        if len(self.calls) >= _OPEN_REQUESTS_MAX:
            raise Busy(f"{_OPEN_REQUESTS_MAX} requests wait for {short(self.peer)}")
        number = next(self._numbers)
        call = self.calls[number] = Call(family)
        return number, call

    def drop_call(self, number: int, *, lane: Lane) -> None:
        """Forget a call; tell the peer if it has not ended."""
        call = self.calls.pop(number, None)
        if call is not None and not call.ended:
            self.put_nowait(Item(Kind.STOP, lane, "", number, b""), force=True)

    def as_pipe(self) -> AbstractAsyncContextManager[SocketPipe]:
        """This end as a pipe, until the block ends.

        Raises RemoteError: the connection is not for one question alone.
        """
        raise RemoteError(f"{short(self.peer)} asks without a pipe what is answered by one")

    def fail_calls(self, reason: str) -> None:
        """The connection broke: every request that waits on it fails."""
        for call in list(self.calls.values()):
            call.end(Unreachable(f"{short(self.peer)}: {reason}"))
        for inbound in list(self.asked.values()):
            inbound.stop()


class PipeEnd(Port):
    """One end of a connection that is for one question, and a pipe once it is answered."""

    @staticmethod
    def fitted(item: Item) -> Item:
        """What is answered in its place, if it is too large for an answer here."""
        if item.kind is Kind.FAIL or len(item.payload) <= PIPE_MESSAGE_BYTES_MAX:
            return item
        error = TooLarge("that answer does not fit in front of a pipe: ask without one")
        failure = encode_struct(_Failure(error.code, error.message))
        return Item(Kind.FAIL, item.lane, "", item.request, failure)

    @abstractmethod
    async def receive(self, link: MuxLink) -> None:
        """Have the link deliver what comes next: the question, or its answer.

        Raises Unreachable, MalformedMessage, BadSignature.
        """

    @abstractmethod
    async def discard(self) -> None:
        """Let go of the connection."""


class MuxInbound:
    """See `mesh.link.Inbound`."""

    __slots__ = ("__weakref__", "_credit", "_family", "_lane", "_port", "_request", "_wake",
                 "message", "peer", "wants_answer")  # fmt: skip

    def __init__(self, port: Port, family: Family, item: Item, message: Any) -> None:
        self.peer = port.peer
        self.message = message
        self.wants_answer = item.kind is Kind.REQUEST
        self._port = port
        self._family = family
        self._lane = item.lane
        self._request = item.request
        self._credit = WINDOW
        self._wake: trio.Event | None = None

    async def answer(self, message: Message, *, more: bool = False) -> None:
        """See `mesh.link.Inbound`. Cancelled, the answer may or may not have been queued."""
        await self._wait_for_credit(more)
        if not self.wants_answer:
            await trio.lowlevel.checkpoint()
            return
        payload = _encoded(self._family, message)
        await self._put(Kind.MORE if more else Kind.ANSWER, payload)

    async def fail(self, error: SwarmError) -> None:
        """See `mesh.link.Inbound`."""
        if not self.wants_answer:
            await trio.lowlevel.checkpoint()
            return
        failure = _Failure(error.code, error.message[:_FAILURE_CHARS_MAX])
        await self._put(Kind.FAIL, encode_struct(failure))

    @asynccontextmanager
    async def pipe(self, message: Message) -> AsyncIterator[Pipe]:
        """See `mesh.link.Inbound`."""
        async with self._port.as_pipe() as pipe:
            await self.answer(message)
            yield pipe

    def stop(self) -> None:
        """The asker is gone."""
        self.wants_answer = False
        self._notify()

    def grant(self, credit: int) -> None:
        self._credit = min(WINDOW, self._credit + credit)
        self._notify()

    def _notify(self) -> None:
        if self._wake is not None:
            self._wake.set()

    async def _wait_for_credit(self, more: bool) -> None:
        while more and self._credit == 0 and self.wants_answer:
            self._wake = trio.Event()
            await self._wake.wait()

    async def _put(self, kind: Kind, payload: bytes) -> None:
        if kind is Kind.MORE:
            self._credit -= 1
        else:
            self.wants_answer = False
        try:
            await self._port.put(Item(kind, self._lane, "", self._request, payload))
        except Unreachable:
            self.wants_answer = False


class MuxLink(ABC):
    """`mesh.link.Link` over ports. A transport adds how a peer is reached."""

    def __init__(self, node_id: NodeId) -> None:
        self._node_id = node_id
        self._inboxes: dict[str, tuple[Family, trio.MemorySendChannel[Inbound]]] = {}
        self._closed_in, self.closed = trio.open_memory_channel[StreamClosed](_CLOSED_EVENTS_MAX)

    @property
    def node_id(self) -> NodeId:
        return self._node_id

    @abstractmethod
    def _port(self, peer: NodeId, alpn: str) -> Port:
        """The port to a peer, opened in the background if need be. Raises Unreachable."""

    @abstractmethod
    async def _connect_pipe(self, peer: NodeId) -> PipeEnd:
        """A connection to a peer of its own. Raises Unreachable."""

    def _port_nowait(self, peer: NodeId, alpn: str) -> Port:
        """The same for one who does not wait: raises Unreachable while it looks hopeless."""
        return self._port(peer, alpn)

    @abstractmethod
    def connected(self) -> list[NodeId]:
        """See `mesh.link.Link`."""

    def open_inbox(
        self, family: Family, *, size: int = 1_000
    ) -> trio.MemoryReceiveChannel[Inbound]:
        """See `mesh.link.Link`. May be opened again once its reader has closed it."""
        known = self._inboxes.get(family.name)
        assert known is None or known[1].statistics().open_receive_channels == 0, (
            f"the inbox of {family.name} is open already"
        )
        sender, receiver = trio.open_memory_channel[Inbound](size)
        self._inboxes[family.name] = (family, sender)
        return receiver

    def send_nowait(
        self, family: Family, peer: NodeId, message: Message, *, lane: Lane = Lane.CONTROL
    ) -> bool:
        """See `mesh.link.Link`."""
        item = Item(Kind.MESSAGE, lane, family.name, 0, _encoded(family, message))
        try:
            return self._port_nowait(peer, family.alpn).put_nowait(item)
        except Unreachable:
            return False

    async def send(
        self, family: Family, peer: NodeId, message: Message, *, lane: Lane = Lane.CONTROL
    ) -> None:
        """See `mesh.link.Link`."""
        item = Item(Kind.MESSAGE, lane, family.name, 0, _encoded(family, message))
        await self._port(peer, family.alpn).put(item)

    async def request(
        self,
        family: Family,
        peer: NodeId,
        message: Message,
        *,
        timeout_s: float,
        lane: Lane = Lane.CONTROL,
    ) -> Any:
        """See `mesh.link.Link`. Cancelled, the peer is told to stop; it may have acted."""
        payload = _encoded(family, message)
        port = self._port(peer, family.alpn)
        number, call = port.open_call(family)
        try:
            with trio.fail_after(timeout_s):
                await port.put(Item(Kind.REQUEST, lane, family.name, number, payload))
                answer, _ = await call.next()
        except trio.TooSlowError as error:
            raise _no_answer(family, peer, timeout_s) from error
        finally:
            port.drop_call(number, lane=lane)
        return answer

    def request_stream(
        self,
        family: Family,
        peer: NodeId,
        message: Message,
        *,
        timeout_s: float,
        lane: Lane = Lane.CONTROL,
    ) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        """See `mesh.link.Link`."""
        return self._request_stream(family, peer, message, timeout_s, lane)

    @asynccontextmanager
    async def _request_stream(
        self, family: Family, peer: NodeId, message: Message, timeout_s: float, lane: Lane
    ) -> AsyncIterator[AsyncIterator[Any]]:
        payload = _encoded(family, message)
        port = self._port(peer, family.alpn)
        number, call = port.open_call(family)
        try:
            try:
                with trio.fail_after(timeout_s):
                    await port.put(Item(Kind.REQUEST, lane, family.name, number, payload))
            except trio.TooSlowError as error:
                raise _no_answer(family, peer, timeout_s) from error
            yield _Answers(port, number, call, timeout_s, lane)
        finally:
            port.drop_call(number, lane=lane)

    @asynccontextmanager
    async def open_pipe(
        self, family: Family, peer: NodeId, message: Message, *, timeout_s: float
    ) -> AsyncIterator[Pipe]:
        """See `mesh.link.Link`."""
        payload = _encoded(family, message)
        if len(payload) > PIPE_MESSAGE_BYTES_MAX:
            raise TooLarge(f"a question of {len(payload)} bytes does not fit in front of a pipe")
        async with AsyncExitStack() as stack:
            try:
                with trio.fail_after(timeout_s):
                    port = await self._connect_pipe(peer)
                    stack.push_async_callback(port.discard)
                    number, call = port.open_call(family)
                    await port.put(Item(Kind.REQUEST, Lane.BULK, family.name, number, payload))
                    await port.receive(self)
                    answer, _ = await call.next()
            except trio.TooSlowError as error:
                raise _no_answer(family, peer, timeout_s) from error
            pipe = await stack.enter_async_context(port.as_pipe())
            pipe.opened(answer, timeout_s)
            yield pipe

    async def deliver(self, port: Port, item: Item) -> None:
        """Take an item that arrived on `port`, waiting for room in its inbox."""
        taken = self._take(port, item)
        if taken is not None:
            channel, inbound = taken
            try:
                await channel.send(inbound)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._refuse(port, item, ShuttingDown("nobody serves this any more"), "no_inbox")

    def deliver_nowait(self, port: Port, item: Item) -> bool:
        """Like `deliver`; False, and nothing taken, if its inbox has no room."""
        taken = self._take(port, item)
        if taken is not None:
            channel, inbound = taken
            try:
                channel.send_nowait(inbound)
            except trio.WouldBlock:
                return False
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._refuse(port, item, ShuttingDown("nobody serves this any more"), "no_inbox")
        return True

    def report_closed(self, peer: NodeId, how: How, quiet_s: int = 0) -> None:
        """Tell the reader of `closed`; one that lags loses hints, never more."""
        try:
            self._closed_in.send_nowait(StreamClosed(peer, how, quiet_s))
        except trio.WouldBlock:
            DROPPED.labels("closed_events", "full").inc()

    def _take(
        self, port: Port, item: Item
    ) -> tuple[trio.MemorySendChannel[Inbound], MuxInbound] | None:
        if item.kind not in (Kind.MESSAGE, Kind.REQUEST):
            _feed_conversation(port, item)
            return None
        known = self._inboxes.get(item.family)
        if known is None:
            text = "this node does not serve that family of messages"
            self._refuse(port, item, Unavailable(text), "no_inbox")
            return None
        family, channel = known
        try:
            inbound = MuxInbound(port, family, item, family.decode(item.payload))
        except MalformedMessage as error:
            self._refuse(port, item, error, "malformed")
            return None
        if item.kind is Kind.REQUEST:
            if item.request in port.asked or len(port.asked) >= _OPEN_REQUESTS_MAX:
                self._refuse(port, item, Busy("too many requests at once"), "requests_full")
                return None
            port.asked[item.request] = inbound
        return channel, inbound

    def _refuse(self, port: Port, item: Item, error: SwarmError, reason: str) -> None:
        DROPPED.labels("stream", reason).inc()
        if item.kind is Kind.REQUEST:
            failure = encode_struct(_Failure(error.code, error.message[:_FAILURE_CHARS_MAX]))
            port.put_nowait(Item(Kind.FAIL, item.lane, "", item.request, failure), force=True)


class _Answers:
    """The messages of one streamed answer."""

    def __init__(self, port: Port, number: int, call: Call, timeout_s: float, lane: Lane) -> None:
        self._port, self._number, self._call = port, number, call
        self._timeout_s, self._lane = timeout_s, lane
        self._read = 0
        self._last = False

    def __aiter__(self) -> _Answers:
        return self

    async def __anext__(self) -> Any:
        if self._last:
            raise StopAsyncIteration
        try:
            with trio.fail_after(self._timeout_s):
                message, self._last = await self._call.next()
        except trio.TooSlowError as error:
            raise _no_answer(self._call.family, self._port.peer, self._timeout_s) from error
        self._read += 1
        if self._read % _GRANT == 0 and not self._last:
            credit = _GRANT.to_bytes(2, "big")
            item = Item(Kind.CREDIT, self._lane, "", self._number, credit)
            self._port.put_nowait(item, force=True)
        return message


def _encoded(family: Family, message: Message) -> bytes:
    """To be sent, and counted as such."""
    payload = family.encode(message)
    MESSAGE_BYTES.counts[family.name] += len(payload)
    return payload


def _feed_conversation(port: Port, item: Item) -> None:
    if item.kind in (Kind.STOP, Kind.CREDIT):
        inbound = port.asked.get(item.request)
        if inbound is None:
            return  # Answered in the meantime.
        if item.kind is Kind.STOP:
            inbound.stop()
        else:
            inbound.grant(int.from_bytes(item.payload[:2], "big"))
        return
    call = port.calls.get(item.request)
    if call is not None:
        call.feed(item)
    elif item.kind is Kind.MORE:
        port.put_nowait(Item(Kind.STOP, item.lane, "", item.request, b""), force=True)


def _no_answer(family: Family, peer: NodeId, timeout_s: float) -> TimedOut:
    return TimedOut(f"{short(peer)} did not answer {family.name} within {timeout_s:g} s")
