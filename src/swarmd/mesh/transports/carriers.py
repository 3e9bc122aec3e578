"""What carries frames between two nodes, once TLS and the hellos are done.

The mesh's plane speaks WebSocket (RFC 6455), which any tool of the trade can follow. The log's
plane, which every write waits for, and the bus's put each frame behind its length and that is all:
it takes half the processor time, and two turns of the loop less on the way.

    length (4 bytes), frame            length 0, reason (1 byte): a goodbye

Both carry whole frames in order, end with a reason where the peer gave one, and refuse a frame
above `FRAME_BYTES_MAX` before it is in memory.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final, Protocol, cast

import trio
from trio_websocket import (
    CloseReason,
    ConnectionClosed,
    WebSocketConnection,
    wrap_client_stream,
    wrap_server_stream,
)
from wsproto.utilities import ProtocolError

from swarmd.base.errors import MalformedMessage
from swarmd.base.limits import FRAME_BYTES_MAX, KIB
from swarmd.identity.tls import BUS_ALPN, RAFT_ALPN
from swarmd.mesh.transports import masking
from swarmd.mesh.transports.mux import How

TlsStream = trio.SSLStream[trio.SocketStream]

# Reasons of a goodbye; `PlainCarrier` sends the place in this list.
CLEAN: Final[tuple[How, ...]] = ("idle", "restarting", "leaving")
_BUFFER_BYTES: Final = 64 * KIB
_LENGTH_BYTES: Final = 4

masking.tame()


class Ended(Exception):
    """The peer ended the connection; `how` is `reset` unless it said goodbye."""

    def __init__(self, how: How) -> None:
        super().__init__(how)
        self.how: How = how


class Carrier(Protocol):
    """One open connection. One task may send and one receive at a time; anybody may close."""

    async def send(self, frame: bytes) -> None:
        """Write a frame, which is not empty.

        Raises:
            Ended: by either side, or it broke while this was written. Where `receive` does not
                tell how, nothing more will come or go: break it off.
        """
        ...

    async def receive(self) -> bytes:
        """The next frame, of any bytes.

        Raises:
            Ended: by the peer, or by `close`.
            MalformedMessage: the peer announced what no frame is.
        """
        ...

    async def close(self, how: How) -> None:
        """Say goodbye and wait until the peer has heard it, or is gone; bound it from outside.

        Nothing can be sent any more. Never raises Ended: to be over is what was wanted.
        """
        ...

    def over(self) -> None:
        """Nobody receives any more: let go of who waits in `close`."""
        ...


async def open_carrier(
    alpn: str, nursery: trio.Nursery, stream: TlsStream, *, client: bool
) -> Carrier:
    """What carries the frames of a plane. `nursery` gets what runs beside, and ends it.

    Raises what trio and trio-websocket raise when the peer does not play along.
    """
    if alpn in (RAFT_ALPN, BUS_ALPN):
        return PlainCarrier(stream)
    if client:
        socket = await wrap_client_stream(
            nursery,
            stream,
            "swarmd",
            "/",
            max_message_size=FRAME_BYTES_MAX,
            receive_buffer_size=_BUFFER_BYTES,
        )
    else:
        request = await wrap_server_stream(
            nursery,
            stream,
            max_message_size=FRAME_BYTES_MAX,
            receive_buffer_size=_BUFFER_BYTES,
        )
        socket = await request.accept()
    return WebSocketCarrier(socket)


class PlainCarrier:
    """Frames behind their length."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._sending = trio.Lock()
        self._closing = False
        self._over = trio.Event()

    async def send(self, frame: bytes) -> None:
        """See `Carrier`."""
        assert frame
        if self._closing:
            raise Ended("reset")
        await self._send(len(frame).to_bytes(_LENGTH_BYTES, "big") + frame)

    async def receive(self) -> bytes:
        """See `Carrier`. A frame that is there already is returned without a checkpoint."""
        while (frame := self._take()) is None:
            try:
                more = await self._stream.receive_some(_BUFFER_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise Ended("reset") from error
            if not more:
                raise Ended("reset")
            self._buffer += more
        return frame

    async def close(self, how: How) -> None:
        """See `Carrier`. Waits for the peer to hang up: who hangs up first may drop the reason."""
        self._closing = True
        with suppress(Ended):
            await self._send(bytes(_LENGTH_BYTES) + bytes([CLEAN.index(how)]))
            await self._over.wait()

    def over(self) -> None:
        """See `Carrier`."""
        self._over.set()

    async def _send(self, raw: bytes) -> None:
        # Free, the lock costs no turn of the loop this way.
        try:
            self._sending.acquire_nowait()
        except trio.WouldBlock:
            await self._sending.acquire()
        try:
            await self._stream.send_all(raw)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Ended("reset") from error
        finally:
            self._sending.release()

    def _take(self) -> bytes | None:
        """The frame at the head of the buffer, once it is whole."""
        buffer = self._buffer
        if len(buffer) <= _LENGTH_BYTES:
            return None
        length = int.from_bytes(buffer[:_LENGTH_BYTES], "big")
        if length == 0:
            raise Ended(_clean(buffer[_LENGTH_BYTES]))
        if length > FRAME_BYTES_MAX:
            raise MalformedMessage(f"a frame of {length} bytes")
        end = _LENGTH_BYTES + length
        if len(buffer) < end:
            return None
        with memoryview(buffer) as view:
            frame = bytes(view[_LENGTH_BYTES:end])
        del buffer[:end]
        return frame


class WebSocketCarrier:
    """Frames as binary messages of a WebSocket."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self._socket = socket

    async def send(self, frame: bytes) -> None:
        """See `Carrier`."""
        try:
            await self._socket.send_message(frame)
        except (ConnectionClosed, ProtocolError) as error:
            raise Ended("reset") from error

    async def receive(self) -> bytes:
        """See `Carrier`. A text message is returned empty, which no frame is."""
        try:
            raw = await self._socket.get_message()
        except ConnectionClosed as closed:
            raise Ended(_how(closed.reason)) from closed
        return raw if isinstance(raw, bytes) else b""

    async def close(self, how: How) -> None:
        """See `Carrier`."""
        await self._socket.aclose(1000, how)

    def over(self) -> None:
        """See `Carrier`. The library's own reader tells `close`."""


def _clean(place: int) -> How:
    return CLEAN[place] if place < len(CLEAN) else "reset"


def _how(reason: CloseReason | None) -> How:
    for how in CLEAN:
        if reason is not None and reason.code == 1000 and reason.reason == how:
            return how
    return "reset"


def host_of(tcp: trio.SocketStream) -> str:
    """Where a connection comes from; empty if it is broken already."""
    try:
        return cast(str, tcp.socket.getpeername()[0])
    except OSError:
        return ""


def plane_of(stream: TlsStream) -> str:
    """The plane that the handshake agreed on; empty if it was not done or agreed on none."""
    try:
        return cast("str | None", stream.selected_alpn_protocol()) or ""
    except trio.NeedHandshakeError:
        return ""
