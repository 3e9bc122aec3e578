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

It blocks, and one thread at a time may use it. Only the standard library and msgspec are
imported, as everywhere in this room.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterator
from typing import Final, Self

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
_REQUEST: Final = (
    f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FRAMES}\r\nAccept: {FRAMES}\r\n"
    "Transfer-Encoding: chunked\r\n\r\n"
).encode()


class _Op(msgspec.Struct, omit_defaults=True):
    id: int
    op: str
    key: str
    value: bytes | None = None
    expect: int | None = None
    stale: bool = False


class _Answers:
    """Takes the daemon's bytes apart: a head, chunks (RFC 9112, 7.1), frames."""

    def __init__(self) -> None:
        self._raw = b""
        self._body = b""
        self._status = 0
        self._chunked = False
        self._left = 0
        self.ended = False

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are whole by now.

        Raises:
            MalformedMessage: this is no answer of swarmd's.
            SwarmError: what the daemon refused the stream with.
        """
        self._raw += data
        if not self._status and not self._take_head():
            return []
        while self._take_chunk():
            pass
        if self._status >= 400:
            self._refused()
            return []
        return self._take_frames()

    def _take_head(self) -> bool:
        end = self._raw.find(b"\r\n\r\n")
        if end < 0:
            if len(self._raw) > _HEAD_BYTES_MAX:
                raise MalformedMessage("an answer whose head does not end")
            return False
        head, self._raw = self._raw[:end].decode("latin-1"), self._raw[end + 4 :]
        first, *lines = head.split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise MalformedMessage("what answers is no swarmd of this version")
        self._status = int(rest[:3])
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        self._chunked = fields.get("transfer-encoding", "").lower() == "chunked"
        if not self._chunked:
            length = fields.get("content-length", "")
            if not length.isdigit() or int(length) > _ANSWER_BYTES_MAX:
                raise MalformedMessage("an answer of unknown length")
            self._left = int(length)
        return True

    def _take_chunk(self) -> bool:
        """Move bytes of the body from the wire's framing; False if more must come first."""
        if self.ended:
            return False
        if self._left == 0 and self._chunked:
            line, found, rest = self._raw.partition(b"\r\n")
            if not found:
                return False
            try:
                size = int(line.partition(b";")[0] or b"0", 16) if line else -1
            except ValueError as error:
                raise MalformedMessage("an answer with a bad chunk") from error
            self._raw = rest
            if size <= 0:
                self.ended = size == 0
                return size < 0  # The empty line that ends the chunk before.
            self._left = size
        part = self._raw[: self._left]
        self._raw = self._raw[len(part) :]
        self._body += part
        self._left -= len(part)
        if self._left == 0 and not self._chunked:
            self.ended = True
        return bool(part)

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

    def __init__(self, connection: socket.socket, *, timeout_s: float) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._timeout_s = timeout_s
        self._answers = _Answers()
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(KeyDone).decode
        self._made: list[bytes] = []
        self._made_bytes = 0
        self._to_send = bytearray(_REQUEST)
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

    def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        """Write; with `expect` only if the key's revision is that (0: it does not exist)."""
        return self._make(_Op(self._number + 1, "put", key, value, expect))

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
            self._to_send += b"%x\r\n" % self._made_bytes
            self._to_send += b"".join(self._made) + b"\r\n"
            self._made.clear()
            self._made_bytes = 0

    def _send_now(self) -> None:
        try:
            sent = self._socket.send(self._to_send)
        except BlockingIOError:
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
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._broken() from error
        self._take_answers(data)
        if (not data or self._answers.ended) and self._waiting:
            raise self._broken()

    def _read_last_words(self) -> None:
        """The daemon reads no more: it may have said why."""
        try:
            while data := self._socket.recv(_READ_BYTES):
                self._take_answers(data)
        except OSError:
            return  # It has not.

    def _take_answers(self, data: bytes) -> None:
        for raw in self._answers.feed(data):
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
