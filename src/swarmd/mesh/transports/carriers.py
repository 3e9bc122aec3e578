"""What carries frames between two nodes, once TLS and the hellos are done.

The mesh's plane speaks WebSocket (RFC 6455), which any tool of the trade can follow. The log's
plane, which every write waits for, the bus's and that of blobs put each frame behind its length and
that is all: it takes half the processor time, and two turns of the loop less on the way.

    length (4 bytes), frame            length 0, reason (1 byte), seconds (2 bytes): a goodbye

A goodbye gives its reason and for how many seconds the peer will be away, where it restarts; the
WebSocket has both as words of its closing reason. What stands behind them is ignored: a later
version may say more.

Both carry whole frames in order, end with a reason where the peer gave one, and refuse a frame
above `FRAME_BYTES_MAX` before it is in memory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Protocol, cast

import trio
from trio_websocket import (
    CloseReason,
    ConnectionClosed,
    HandshakeError,
    WebSocketConnection,
    wrap_client_stream,
    wrap_server_stream,
)
from wsproto.utilities import ProtocolError

from swarmd.base.errors import MalformedMessage, Untrusted
from swarmd.base.limits import FRAME_BYTES_MAX, KIB
from swarmd.identity.tls import MESH_ALPN, peer_public_key
from swarmd.mesh.addresses import address_of
from swarmd.mesh.transports import masking
from swarmd.mesh.transports.mux import How

TlsStream = trio.SSLStream[trio.SocketStream]

# Reasons of a goodbye; `PlainCarrier` sends the place in this list.
CLEAN: Final[tuple[How, ...]] = ("idle", "restarting", "leaving")
REASONS: Final[dict[How, str]] = {
    "reset": "the connection was reset",
    "refused": "nobody listens there",
    "silent": "it does not answer",
    "untrusted": "it is not trusted any more",
    "idle": "the connection was closed for being idle",
    "restarting": "it is restarting",
    "leaving": "it is leaving",
}
# Nobody is excused for longer than this, whatever it says.
QUIET_S_MAX: Final = 30
_BUFFER_BYTES: Final = 64 * KIB
_LENGTH_BYTES: Final = 4
_GOODBYE_BYTES: Final = 3

masking.tame()


class Ended(Exception):
    """The peer ended the connection; `how` is `reset` unless it said goodbye.

    `quiet_s`: for how long it will be away as it says, at most QUIET_S_MAX.
    """

    def __init__(self, how: How, quiet_s: int = 0) -> None:
        super().__init__(how)
        self.how: How = how
        self.quiet_s = min(max(quiet_s, 0), QUIET_S_MAX)


# Whatever ends a connection, or its beginning, when the peer or the network does not play along.
CONNECTION_ERRORS: Final = (
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    ConnectionClosed,
    Ended,
    HandshakeError,
    ProtocolError,
    OSError,
    ValueError,
)


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

    async def close(self, how: How, quiet_s: int = 0) -> None:
        """Say goodbye and wait until the peer has heard it, or is gone; bound it from outside.

        Args:
            quiet_s: for how long this node will be away, at most QUIET_S_MAX.

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
    if alpn != MESH_ALPN:
        return PlainCarrier(stream)
    with trio.CancelScope() as scope:
        reading = cast("trio.Nursery", _Reading(nursery, scope))
        if client:
            socket = await wrap_client_stream(
                reading,
                stream,
                "swarmd",
                "/",
                max_message_size=FRAME_BYTES_MAX,
                receive_buffer_size=_BUFFER_BYTES,
            )
        else:
            request = await wrap_server_stream(
                reading,
                stream,
                max_message_size=FRAME_BYTES_MAX,
                receive_buffer_size=_BUFFER_BYTES,
            )
            socket = await request.accept()
        return WebSocketCarrier(socket)
    raise trio.BrokenResourceError("the connection ended before its WebSocket began")


class _Reading:
    """A nursery as the library sees it, which starts its reader there and no other task.

    When that ends before the WebSocket has begun, the library waits on for it to begin.
    """

    def __init__(self, nursery: trio.Nursery, scope: trio.CancelScope) -> None:
        self._nursery, self._scope = nursery, scope

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(self._read, reader)

    async def _read(self, reader: Callable[[], Awaitable[None]]) -> None:
        try:
            await reader()
        finally:
            self._scope.cancel()


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

    async def close(self, how: How, quiet_s: int = 0) -> None:
        """See `Carrier`. Waits for the peer to hang up: who hangs up first may drop the reason."""
        self._closing = True
        said = bytes([CLEAN.index(how)]) + min(quiet_s, QUIET_S_MAX).to_bytes(2, "big")
        with suppress(Ended):
            await self._send(bytes(_LENGTH_BYTES) + said)
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
            said = buffer[_LENGTH_BYTES : _LENGTH_BYTES + _GOODBYE_BYTES]
            if len(said) < _GOODBYE_BYTES:
                return None
            raise Ended(_clean(said[0]), int.from_bytes(said[1:], "big"))
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
            raise _goodbye(closed.reason) from closed
        return raw if isinstance(raw, bytes) else b""

    async def close(self, how: How, quiet_s: int = 0) -> None:
        """See `Carrier`."""
        await self._socket.aclose(1000, f"{how} {min(quiet_s, QUIET_S_MAX)}" if quiet_s else how)

    def over(self) -> None:
        """See `Carrier`. The library's own reader tells `close`."""


def _clean(place: int) -> How:
    return CLEAN[place] if place < len(CLEAN) else "reset"


def _goodbye(reason: CloseReason | None) -> Ended:
    if reason is None or reason.code != 1000:
        return Ended("reset")
    word, _, more = (reason.reason or "").partition(" ")
    seconds = more.partition(" ")[0]
    quiet_s = int(seconds) if len(seconds) <= 5 and seconds.isascii() and seconds.isdigit() else 0
    return next((Ended(how, quiet_s) for how in CLEAN if how == word), Ended("reset"))


def host_of(tcp: trio.SocketStream) -> str:
    """Where a connection comes from; empty if it is broken already."""
    try:
        return address_of(tcp.socket.getpeername())[0]
    except OSError:
        return ""


def local_host_of(tcp: trio.SocketStream) -> str:
    """Which address of this host a connection is at; empty if it is broken already."""
    try:
        return address_of(tcp.socket.getsockname())[0]
    except OSError:
        return ""


def plane_of(stream: TlsStream) -> str:
    """The plane that the handshake agreed on; empty if it was not done or agreed on none."""
    try:
        return cast("str | None", stream.selected_alpn_protocol()) or ""
    except trio.NeedHandshakeError:
        return ""


def public_of(stream: TlsStream) -> bytes:
    """The key that the peer has proven in the handshake. Raises Untrusted: none, or no node's."""
    public = peer_public_key(cast("trio.SSLStream[trio.abc.Stream]", stream))
    if public is None:
        raise Untrusted("it showed no certificate")
    return public
