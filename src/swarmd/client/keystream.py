"""Many operations on keys under way at once, over one connection, each acknowledged by itself.

    with client.key_stream() as keys:
        for name, value in items:
            keys.put(name, value)
        for done in keys.take_all():
            if done.error:
                print(done.id, done.error.message)

An operation gets a number when it is made. What was made is sent when `take` is called, or
when a good deal of it has gathered, and its answer comes out of `take`, in whatever order the
swarm is done with it: two operations under way at once may take effect in either order, so
whoever cares waits for the first one's answer. If the stream breaks, whether the operations
without an answer were carried out is unknown; nothing is repeated.

It blocks, and one thread at a time may use it. It is imported only where it is used: h11 is
not in the standard library, which is all that the rest of this room needs beside msgspec.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Final, Self

import h11
import msgspec

from swarmd.base.errors import MalformedMessage, SwarmError, TimedOut, Unreachable, from_code
from swarmd.gateway.shapes import KeyDone

PATH: Final = "/api/v1/kv-stream"
FRAMES: Final = "application/vnd.swarmd.frames"
# Operations without an answer; the daemon takes no more of one stream at a time.
UNDER_WAY_MAX: Final = 1_024
_GATHER_BYTES: Final = 64 * 1024
_READ_BYTES: Final = 256 * 1024
_HEAD_BYTES_MAX: Final = 64 * 1024
_ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
_HEADERS: Final = (
    ("Host", "localhost"),
    ("Content-Type", FRAMES),
    ("Accept", FRAMES),
    ("Transfer-Encoding", "chunked"),
)
_WOULD_BLOCK: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class _Op(msgspec.Struct, omit_defaults=True):
    id: int
    op: str
    key: str
    value: bytes | None = None
    expect: int | None = None
    stale: bool = False
    lease: int = 0


class _Exchange:
    """The one request of a stream and its answer, as bytes; h11 knows HTTP."""

    def __init__(self, credential: str = "") -> None:
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES_MAX)
        self._body = b""
        self._status = 0
        self.ended = False
        shown = [("Authorization", f"Bearer {credential}")] if credential else []
        request = h11.Request(method="POST", target=PATH, headers=[*_HEADERS, *shown])
        self.request = self._http.send(request) or b""

    def chunk(self, data: bytes) -> bytes:
        """`data` as the next piece of the request's body."""
        return self._http.send(h11.Data(data)) or b""

    def feed(self, data: bytes) -> list[bytes]:
        """The frames of the answer that are whole by now; `data` is empty at the end.

        Raises:
            MalformedMessage: this is no answer of swarmd's.
            SwarmError: what the daemon refused the stream with.
        """
        if self._http.their_state in (h11.CLOSED, h11.ERROR):
            return []
        try:
            self._http.receive_data(data)
            while not self.ended and self._take(self._http.next_event()):
                pass
        except h11.RemoteProtocolError as error:
            if not data:
                return []  # It broke off.
            raise MalformedMessage("what answers is no swarmd of this version") from error
        if self._status >= 400:
            self._refused()
            return []
        return self._take_frames()

    def _take(self, event: object) -> bool:
        """False if more bytes must come first."""
        if isinstance(event, h11.Response):
            self._status = event.status_code
        elif isinstance(event, h11.Data):
            self._body += event.data
        elif isinstance(event, h11.EndOfMessage):
            self.ended = True
        return event not in (h11.NEED_DATA, h11.PAUSED) and not isinstance(
            event, h11.ConnectionClosed
        )

    def _refused(self) -> None:
        if len(self._body) > _ANSWER_BYTES_MAX:
            raise MalformedMessage("an error without end")
        if self.ended:
            raise _error_in(self._body) or MalformedMessage(f"refused with {self._status}")

    def _take_frames(self) -> list[bytes]:
        frames: list[bytes] = []
        body, at = self._body, 0
        while at + 4 <= len(body):
            end = at + 4 + int.from_bytes(body[at : at + 4], "big")
            if end - at > _ANSWER_BYTES_MAX:
                raise MalformedMessage("an answer larger than any value")
            if end > len(body):
                break
            if end - at > 5:  # One byte is a sign of life.
                frames.append(body[at + 4 : end])
            at = end
        self._body = body[at:]
        return frames


def _error_in(raw: bytes) -> SwarmError | None:
    try:
        error = msgspec.msgpack.decode(raw)["error"]
        return from_code(str(error["code"]), str(error["message"]))
    except (msgspec.MsgspecError, KeyError, TypeError, UnicodeDecodeError):
        return None


class KeyStream:
    """See the module. Made by `Client.key_stream`; takes the connected socket over."""

    def __init__(
        self, connection: socket.socket, *, timeout_s: float, credential: str = ""
    ) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._timeout_s = timeout_s
        self._exchange = _Exchange(credential)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(KeyDone).decode
        self._made: list[bytes] = []
        self._made_bytes = 0
        self._to_send = bytearray(self._exchange.request)
        self._done: list[KeyDone] = []
        self._waiting: set[int] = set()
        self._number = 0
        self._closing = False
        self._poll = selectors.DefaultSelector()
        self._poll.register(connection, selectors.EVENT_READ)
        self._wanted = selectors.EVENT_READ

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Break the stream off. Operations without an answer may be carried out or not."""
        self._poll.close()
        self._socket.close()

    @property
    def under_way(self) -> int:
        """Operations whose answer has not been taken yet."""
        return len(self._waiting) + len(self._done)

    # ---- operations --------------------------------------------------------------------

    def put(self, key: str, value: bytes, *, expect: int | None = None, lease: int = 0) -> int:
        """Write; with `expect` only if the key's revision is that (0: it does not exist).

        With `lease` the key goes when that lease ends.
        """
        return self._make(_Op(self._number + 1, "put", key, value, expect, lease=lease))

    def get(self, key: str, *, stale: bool = False) -> int:
        """Read; the answer's value is None and its error `not_found` if there is no such key."""
        return self._make(_Op(self._number + 1, "get", key, stale=stale))

    def delete(self, key: str, *, expect: int | None = None) -> int:
        """Remove; removing an absent key succeeds."""
        return self._make(_Op(self._number + 1, "delete", key, expect=expect))

    def take(self) -> list[KeyDone]:
        """Send what was made and return the answers that are there, at least one.

        Empty only if no operation is without an answer.

        Raises:
            TimedOut, Unreachable: the stream broke; see the module.
            SwarmError: the daemon ended the stream, for the reason given.
        """
        self._gather()
        deadline = time.monotonic() + self._timeout_s
        while not self._done and self._waiting:
            self._pump(deadline)
        done, self._done = self._done, []
        return done

    def take_all(self) -> Iterator[KeyDone]:
        """Every answer that is still to come, as they come."""
        while self.under_way:
            yield from self.take()

    def _make(self, op: _Op) -> int:
        self._number = op.id
        self._waiting.add(op.id)
        raw = self._encode(op)
        self._made.append(len(raw).to_bytes(4, "big") + raw)
        self._made_bytes += len(raw) + 4
        if self._made_bytes >= _GATHER_BYTES:
            self._gather()
            self._send_now()
        deadline = time.monotonic() + self._timeout_s if len(self._waiting) > UNDER_WAY_MAX else 0.0
        while len(self._waiting) > UNDER_WAY_MAX:
            self._gather()
            self._pump(deadline)
        return op.id

    # ---- bytes -------------------------------------------------------------------------

    def _gather(self) -> None:
        if self._made:
            self._to_send += self._exchange.chunk(b"".join(self._made))
            self._made.clear()
            self._made_bytes = 0

    def _send_now(self) -> None:
        try:
            sent = self._socket.send(self._to_send)
        except _WOULD_BLOCK:
            return
        except OSError as error:
            self._read_last_words()
            raise self._broken() from error
        del self._to_send[:sent]

    def _pump(self, deadline: float) -> None:
        """Send and receive what can be; wait until something can."""
        if self._to_send:
            self._send_now()
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._to_send else 0)
        if wanted != self._wanted:
            self._poll.modify(self._socket, wanted)
            self._wanted = wanted
        ready = self._poll.select(max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimedOut(
                f"no answer within {self._timeout_s:g} s; whether {len(self._waiting)} "
                "operations were carried out is unknown"
            )
        if ready[0][1] & selectors.EVENT_READ:
            self._receive()

    def _receive(self) -> None:
        while True:
            try:
                data = self._socket.recv(_READ_BYTES)
            except _WOULD_BLOCK:
                return
            except OSError as error:
                raise self._broken() from error
            self._take_answers(data)
            if (not data or self._exchange.ended) and self._waiting:
                raise self._broken()
            # What TLS has read ahead wakes no selector.
            if not data or not isinstance(self._socket, ssl.SSLSocket):
                return

    def _read_last_words(self) -> None:
        """The daemon reads no more: it may have said why."""
        try:
            while data := self._socket.recv(_READ_BYTES):
                self._take_answers(data)
        except OSError:
            return  # It has not.

    def _take_answers(self, data: bytes) -> None:
        for raw in self._exchange.feed(data):
            try:
                done = self._decode(raw)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise _error_in(raw) or MalformedMessage("not an answer of swarmd's") from error
            if done.id in self._waiting:
                self._waiting.remove(done.id)
                self._done.append(done)

    def _broken(self) -> Unreachable:
        return Unreachable(
            f"the stream broke off; whether {len(self._waiting)} operations were carried out "
            "is unknown"
        )
