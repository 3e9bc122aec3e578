"""How requests are made: one connection, the next socket, errors by their code, streams.

A request that finds its daemon gone is repeated through the next socket where that is safe;
one that is not safe to repeat only if no byte of it was sent.
"""

from __future__ import annotations

import copy
import http.client
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from swarmd.base import folders
from swarmd.base.errors import (
    BadRequest,
    MalformedMessage,
    SwarmError,
    TimedOut,
    Unreachable,
)
from swarmd.base.tls_http import SCHEME, TlsConnection, connect, read_fingerprints
from swarmd.base.unix_http import UnixConnection, why_broken

API: Final = "/api/v1"
MSGPACK: Final = "application/msgpack"
OCTETS: Final = "application/octet-stream"
FRAMES: Final = "application/vnd.swarmd.frames"
NODE_HEADER: Final = "X-Swarmd-Node"
# No single message of a stream may make the client allocate more than this.
FRAME_BYTES_MAX: Final = 256 * 1024 * 1024
RETRY_PAUSE_S: Final = 0.2
_ERROR_BYTES_MAX: Final = 1024 * 1024
_NOT_SWARMD: Final = "what answers at {} is no swarmd of this version; see --socket"

T = TypeVar("T")


class DaemonDown(Unreachable):
    """No daemon answered on any of the sockets; the message says what was tried."""

    code = "daemon_down"


class ApiError(SwarmError):
    """An error with a code that this client does not know; the message begins with it."""

    code = "api_error"


def segment(name: str) -> str:
    """A name as one part of a path. Raises BadRequest: it would be none, or several."""
    if not name or "/" in name:
        raise BadRequest(f"{name!r} is the name of nothing here: no name is empty or has a '/'")
    return quote(name, safe="")


def default_socket(environ: Mapping[str, str] | None = None) -> str:
    """SWARMCTL_SOCKET, else the socket of the daemon of this user."""
    environ = os.environ if environ is None else environ
    return environ.get("SWARMCTL_SOCKET") or str(folders.runtime_folder(environ) / "swarmd.sock")


class Requests:
    """What `Client` is built on; it tells the arguments."""

    def __init__(
        self,
        sockets: str | Path | Sequence[str | Path] | None = None,
        *,
        node: str | None = None,
        timeout_s: float = 60.0,
        api_key: str = "",
        fingerprint: str = "",
    ) -> None:
        if sockets is None:
            sockets = default_socket()
        paths = [sockets] if isinstance(sockets, str | Path) else sockets
        self._sockets = [str(path) for path in paths]
        if not self._sockets:
            raise BadRequest("a client needs at least one socket")
        for path in self._sockets:
            if "://" in path and not path.startswith(SCHEME):
                raise BadRequest(f"{path!r}: a daemon is a socket's path, or https://HOST:PORT")
        self._node = node
        self._timeout_s = timeout_s
        self._credential = _checked_credential(api_key)
        self._fingerprints = read_fingerprints(fingerprint)
        self._current = 0
        self._connection: UnixConnection | TlsConnection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _another(self) -> Self:
        """Another one like it, with a connection of its own."""
        other = copy.copy(self)
        other._connection = None
        return other

    @property
    def sockets(self) -> list[str]:
        return list(self._sockets)

    # ---- one request -----------------------------------------------------------------

    def _get(self, path: str, kind: type[T], query: Mapping[str, str] | None = None) -> T:
        return self._call("GET", path, kind=kind, query=query, safe=True)

    def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        kind: type[T],
        query: Mapping[str, str] | None = None,
        safe: bool = False,
        retry_s: float = 0.0,
        prefix: str = API,
    ) -> T:
        deadline = time.monotonic() + retry_s
        broke = False
        while True:
            try:
                response = self._open(method, path, body, query=query, safe=safe, prefix=prefix)
                raw = self._read(response)
            except SwarmError as error:
                first_break = not broke and error.code == Unreachable.code
                broke = broke or first_break
                if not safe or not error.retryable:
                    raise
                if not first_break and time.monotonic() >= deadline:
                    raise
                self._next_socket()
                time.sleep(RETRY_PAUSE_S)
                continue
            return _decode(raw, kind, self._path)

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read()
        except TimeoutError as error:
            self.close()
            raise TimedOut(f"the daemon gave no answer within {self._timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unreachable(f"the daemon at {self._path} went away before its answer") from error

    def _open(
        self,
        method: str,
        path: str,
        body: Any,
        *,
        query: Mapping[str, str] | None = None,
        accept: str = MSGPACK,
        safe: bool = False,
        prefix: str = API,
    ) -> http.client.HTTPResponse:
        """Send a request; on a broken connection go on to the next socket where that is safe."""
        target = prefix + path + ("?" + urlencode(query) if query else "")
        raw = None if body is None else msgspec.msgpack.encode(body)
        headers = self._headers(accept)
        if not safe:
            self.close()  # A kept connection that breaks leaves it open whether it was carried out.
        tried: list[str] = []
        broke = ""
        # One extra round: a kept connection may have been closed since its last use.
        for _ in range(len(self._sockets) + 1):
            fresh = self._connection is None
            try:
                response = self._send(method, target, raw, headers)
            except (OSError, http.client.HTTPException) as error:
                connection, self._connection = self._connection, None
                sent = connection is not None and connection.sent
                if isinstance(error, TimeoutError) and sent:
                    assert connection is not None
                    connection.close()
                    raise TimedOut(
                        f"the daemon at {self._path} gave no answer within {self._timeout_s:g} s"
                    ) from error
                if connection is not None:
                    connection.close()
                if sent and not safe and fresh:
                    raise Unreachable(
                        f"the daemon at {self._path} went away during the request: "
                        "whether it was carried out is unknown"
                    ) from error
                if fresh and sent:
                    broke = self._path
                if fresh:
                    tried.append(f"{self._path} ({why_broken(error)})")
                    self._current = (self._current + 1) % len(self._sockets)
                if len(tried) == len(self._sockets):
                    break
                continue
            if response.status >= 400:
                self._raise(response)
            return response
        if broke:
            raise Unreachable(f"the daemon at {broke} went away during the request")
        raise DaemonDown("no swarmd answers at " + ", ".join(tried))

    def _connect(self) -> socket.socket:
        """A socket of its own to the first daemon that answers. Raises DaemonDown."""
        tried: list[str] = []
        for path in self._sockets[self._current :] + self._sockets[: self._current]:
            try:
                connection = self._connect_to(path)
            except OSError as error:
                tried.append(f"{path} ({why_broken(error)})")
            else:
                return connection
        raise DaemonDown("no swarmd answers at " + ", ".join(tried))

    def _connect_to(self, path: str) -> socket.socket:
        """Raises OSError, Untrusted."""
        if path.startswith(SCHEME):
            return connect(path, self._timeout_s, self._fingerprints)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(self._timeout_s)
        try:
            connection.connect(path)
        except OSError:
            connection.close()
            raise
        return connection

    @property
    def _path(self) -> str:
        return self._sockets[self._current]

    def _send(
        self, method: str, target: str, raw: bytes | None, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        if self._connection is None:
            self._connection = self._new_connection()
        self._connection.request(method, target, raw, dict(headers))
        try:
            return self._connection.getresponse()
        except (http.client.BadStatusLine, http.client.LineTooLong) as error:
            if isinstance(error, http.client.RemoteDisconnected):
                raise
            self.close()
            raise MalformedMessage(_NOT_SWARMD.format(self._path)) from error

    def _new_connection(self) -> UnixConnection | TlsConnection:
        if self._path.startswith(SCHEME):
            return TlsConnection(self._path, self._timeout_s, self._fingerprints)
        return UnixConnection(self._path, self._timeout_s)

    def _raise(self, response: http.client.HTTPResponse) -> None:
        raw = response.read(_ERROR_BYTES_MAX)
        try:
            error = msgspec.msgpack.decode(raw)["error"]
            raised = _error_of(error)
        except (msgspec.MsgspecError, KeyError, TypeError):
            self.close()
            raise MalformedMessage(
                f"the daemon at {self._path} answered {response.status} without saying why"
            ) from None
        raise raised

    def _next_socket(self) -> None:
        self.close()
        self._current = (self._current + 1) % len(self._sockets)

    def _stream(
        self,
        method: str,
        path: str,
        body: Any,
        kind: type[T],
        query: Mapping[str, str] | None = None,
    ) -> Iterator[T]:
        """The answers of a stream. Closing the iterator early closes the connection."""
        return self._frames(
            self._open(method, path, body, query=query, accept=FRAMES, safe=True), kind
        )

    def _upload(
        self, path: str, pieces: Iterable[bytes], size: int | None, query: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        """PUT what `pieces` give, which can be given once: only who answers is sent anything.

        A daemon that refuses says so before it has read all, and may stop reading.
        """
        headers = self._headers(FRAMES) | {"Content-Type": OCTETS}
        how = {"Transfer-Encoding": "chunked"} if size is None else {"Content-Length": str(size)}
        target = API + path + ("?" + urlencode(query) if query else "")
        self.close()
        tried: list[str] = []
        for _ in self._sockets:
            connection = self._new_connection()
            try:
                connection.connect()
            except OSError as error:
                tried.append(f"{self._path} ({why_broken(error)})")
                self._current = (self._current + 1) % len(self._sockets)
                continue
            self._connection = connection
            break
        else:
            raise DaemonDown("no swarmd answers at " + ", ".join(tried))
        try:
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(
                    "PUT", target, pieces, headers | how, encode_chunked=size is None
                )
            response = connection.getresponse()
        except TimeoutError as error:
            self.close()
            raise TimedOut(f"the daemon took nothing for {self._timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unreachable(f"the daemon at {self._path} went away; nothing is pinned") from error
        except BaseException:
            self.close()  # The source failed, or the user: half of a body is no request.
            raise
        if response.status >= 400:
            try:
                self._raise(response)
            finally:
                self.close()
        return response

    def _headers(self, accept: str) -> dict[str, str]:
        headers = {"Accept": accept, "Content-Type": MSGPACK}
        if self._node:
            headers[NODE_HEADER] = quote(self._node, safe="")
        if self._credential:
            headers["Authorization"] = f"Bearer {self._credential}"
        return headers

    def _frames(self, response: http.client.HTTPResponse, kind: type[T]) -> Iterator[T]:
        whole = False
        try:
            while raw := _read_frame(response):
                if len(raw) > 1:  # One byte is a keep-alive.
                    yield _decode(raw, kind, self._path)
            whole = True
        except TimeoutError as error:
            raise TimedOut(f"the daemon was silent for {self._timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable("the daemon went away during the answer") from error
        finally:
            if not whole:
                self.close()


def _checked_credential(text: str) -> str:
    """Raises BadRequest: what a header cannot hold, without repeating it."""
    found = text.strip()
    if not found.isascii() or any(one.isspace() for one in found):
        raise BadRequest("an API key or session is one word of plain letters and digits")
    return found


def _read_frame(response: http.client.HTTPResponse) -> bytes | None:
    head = response.read(4)
    if not head:
        return None
    size = int.from_bytes(head, "big")
    if len(head) < 4 or size > FRAME_BYTES_MAX:
        raise Unreachable("the daemon's answer broke off")
    raw = response.read(size)
    if len(raw) < size:
        raise Unreachable("the daemon's answer broke off")
    return raw


def _decode(raw: bytes, kind: type[T], path: str) -> T:
    """Decode an answer. A frame that carries an error raises it."""
    try:
        if raw[:1] == b"\x81" and raw[1:7] == b"\xa5error":
            error = msgspec.msgpack.decode(raw)["error"]
            raise _error_of(error)
        return msgspec.msgpack.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise MalformedMessage(f"{_NOT_SWARMD.format(path)} ({error})") from error


def _error_of(error: Mapping[str, Any]) -> SwarmError:
    code, message = str(error["code"]), str(error["message"])
    kind = SwarmError.by_code.get(code)
    return kind(message) if kind is not None else ApiError(f"{code}: {message}")
