"""Pipes between hosts: connections of their own, begun as every other.

    TCP -> TLS -> signed hellos -> a question -> its answer -> bytes, both ways

Question and answer are frames of one item, tagged as all frames are. What follows is protected by
TLS alone, whose keys were proven, and has no shape but what the two rooms give it: they verify what
they get, as blobs are by their hashes.

TLS begins as trio's, for only its handshake tells what a connection is for. Then the thread goes on
with the same TLS object and its buffers, which are private in trio's stream: trio is pinned, and
every test of pipes would fail without them.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from swarmd.base.errors import Busy, MalformedMessage, RemoteError, Unreachable
from swarmd.base.ids import NodeId, short
from swarmd.base.limits import KIB
from swarmd.identity.tls import PIPE_ALPN, discard
from swarmd.mesh.transports.carriers import CONNECTION_ERRORS, TlsStream, local_host_of
from swarmd.mesh.transports.hello import Refused, Session, receive_part, send_part
from swarmd.mesh.transports.mux import How, Item, MuxLink, PipeEnd
from swarmd.mesh.transports.pipes import SocketPipe
from swarmd.mesh.transports.ports import StreamPort
from swarmd.observe.metrics import BYTES, DROPPED

# For so long the room that is asked may take to answer.
_ANSWER_S: Final = 30.0
_BUFFER_BYTES: Final = 256 * KIB
# A message of 1 KiB, or a failure of a thousand letters, in its frame.
_PART_BYTES_MAX: Final = 8 * KIB


class TlsPipe(SocketPipe):
    """See the module: takes over a stream that nobody else reads or writes any more."""

    def __init__(self, peer: NodeId, stream: TlsStream) -> None:
        super().__init__(peer, _own_socket(peer, stream))
        private: Any = stream
        self._tls: ssl.SSLObject = private._ssl_object
        self._incoming: ssl.MemoryBIO = private._incoming
        self._outgoing: ssl.MemoryBIO = private._outgoing
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._received = BYTES.labels("stream", "received")
        self._sent = BYTES.labels("stream", "sent")

    def _receive_into(self, view: memoryview) -> int:
        while True:
            try:
                return self._tls.read(len(view), view)  # type: ignore[return-value]
            except ssl.SSLWantReadError:
                # What TLS itself has to answer goes out first, or whoever asks for it without end
                # would fill the memory.
                self._flush()
                count = self._from_socket(self._buffer)
                if not count:
                    return 0
                self._received.inc(count)
                self._incoming.write(self._buffer[:count])
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return 0

    def _send(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:  # OpenSSL takes a record at a time.
            view = view[self._tls.write(view) :]
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:
            raw = self._outgoing.read()
            self._socket.sendall(raw)
            self._sent.inc(len(raw))


def _own_socket(peer: NodeId, stream: TlsStream) -> socket.socket:
    """Raises Unreachable: there are no descriptors left."""
    try:
        fd = os.dup(stream.transport_stream.socket.fileno())
        try:
            return socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            raise
    except OSError as error:
        raise Unreachable(f"{short(peer)}: {error.strerror}") from error


class TlsPipePort(StreamPort, PipeEnd):
    """A pipe's end between hosts. Its lanes stay empty; it breaks off as other ports do.

    Args:
        known: it is among these until it is over.
        asks: this side opened it.
    """

    def __init__(self, peer: NodeId, known: set[TlsPipePort], *, asks: bool) -> None:
        super().__init__(peer, PIPE_ALPN)
        self.asks = asks
        self._known = known
        known.add(self)
        self._stream: TlsStream | None = None
        self._session: Session | None = None
        self._pipe: TlsPipe | None = None
        self._answered = trio.Event()
        self._ended = trio.Event()
        self._refusal: Item | None = None

    async def dial(
        self, attempt: Callable[[StreamPort], Awaitable[tuple[TlsStream, Session]]]
    ) -> None:
        """Have a connection made by `attempt`. Raises Unreachable; Busy: the peer has too many."""
        made: tuple[TlsStream, Session] | None = None
        try:
            with trio.CancelScope() as scope:
                self.stop_dialing = scope.cancel
                made = await attempt(self)
            if made is None:
                raise Unreachable(f"{short(self.peer)}: the connection is over")
            self.connect(*made)
        except (*CONNECTION_ERRORS, RemoteError) as error:
            if isinstance(error, Refused) and error.message == Busy.code:
                text = f"{short(self.peer)} has as many pipes from here as may be"
                raise Busy(text) from error
            raise Unreachable(f"{short(self.peer)}: {error}") from error
        finally:
            if not self.is_open:
                self.break_off("reset", "the connection was not made")
                if made is not None:
                    await discard(made[0])

    def connect(self, stream: TlsStream, session: Session) -> None:
        """The hellos are done. Raises Unreachable: it was broken off meanwhile."""
        if self._ended.is_set():
            raise Unreachable(f"{short(self.peer)}: the connection is over")
        self._stream, self._session = stream, session
        self.local_host = local_host_of(stream.transport_stream)
        self.opened(trio.current_time())

    def put_nowait(self, item: Item, *, force: bool = False) -> bool:
        """Only a refusal comes this way; `serve` writes it."""
        self._refusal = item
        self._answered.set()
        return True

    async def put(self, item: Item) -> None:
        """Write the question, or its answer. Raises Unreachable."""
        stream, session = self._connected()
        try:
            raw = session.sealer.seal([self.fitted(item)])
            await send_part(stream, raw, bytes_max=_PART_BYTES_MAX)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Unreachable(f"{short(self.peer)}: the connection broke") from error
        finally:
            self._answered.set()
            if self._pipe is None:
                self._ended.set()

    @asynccontextmanager
    async def as_pipe(self) -> AsyncIterator[TlsPipe]:
        """See `Port`."""
        stream, _ = self._connected()
        self._pipe = TlsPipe(self.peer, stream)
        try:
            yield self._pipe
        finally:
            self._pipe.close()
            self._ended.set()

    async def receive(self, link: MuxLink) -> None:
        """See `PipeEnd`."""
        stream, session = self._connected()
        try:
            raw = await receive_part(stream, bytes_max=_PART_BYTES_MAX)
            items = session.opener.open(raw)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Unreachable(f"{short(self.peer)}: the connection broke") from error
        if len(items) != 1:
            raise MalformedMessage("a pipe begins with one question and its answer")
        await link.deliver(self, items[0])

    async def serve(
        self, link: MuxLink, stream: TlsStream, session: Session, timeout_s: float
    ) -> None:
        """Have a question answered that comes within a time; return when its pipe is closed.

        Raises MalformedMessage, BadSignature: what came is no question.
        """
        try:
            self.connect(stream, session)
            with trio.fail_after(timeout_s):
                await self.receive(link)
            with trio.move_on_after(_ANSWER_S):
                await self._answered.wait()
            if self._refusal is not None:
                await self.put(self._refusal)
            elif self._answered.is_set():
                await self._ended.wait()
        except (Unreachable, trio.TooSlowError):
            DROPPED.labels("stream", "no_question").inc()
        finally:
            self.break_off("idle", "the pipe was closed")

    async def discard(self) -> None:
        """See `PipeEnd`."""
        self.break_off("idle", "the pipe was closed")
        if self._stream is not None:
            await discard(self._stream)

    def break_off(self, how: How, reason: str) -> None:
        super().break_off(how, reason)
        if self._pipe is not None:
            self._pipe.break_off(reason)
        self._known.discard(self)
        self._answered.set()
        self._ended.set()

    def _connected(self) -> tuple[TlsStream, Session]:
        if self._stream is None or self._session is None or self.broken:
            raise Unreachable(f"{short(self.peer)}: the connection is over")
        return self._stream, self._session
