"""HTTP as the gateway speaks it: bodies in, answers and streams out, errors with codes.

Bodies are JSON or msgpack by Content-Type, answers by Accept. Streams are NDJSON, or frames
(`application/vnd.swarmd.frames`): a length of 4 bytes, big-endian, then that much msgpack. A
stream without news sends an empty line, or a frame of one byte, every `keepalive_s`. If it
breaks off with an error, the error is its last message: `{"error": {...}}`.

Every request passes the gate (`access.gate`) before its endpoint runs. A browser may not be made
to ask: requests with an Origin, or at a local listener with a Host that is not this machine, are
refused (DNS rebinding).
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from swarmd.base.errors import (
    AlreadyExists,
    BadRequest,
    Busy,
    Compacted,
    Conflict,
    Forbidden,
    MalformedMessage,
    NotFound,
    RateLimited,
    RemoteError,
    ShuttingDown,
    SwarmError,
    TimedOut,
    TokenRefused,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from swarmd.gateway.access.gate import origin_of
from swarmd.wire.codec import pack, unpack

MSGPACK: Final = "application/msgpack"
JSON: Final = "application/json"
FRAMES: Final = "application/vnd.swarmd.frames"
NDJSON: Final = "application/x-ndjson"
LOCAL_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_STREAM_BYTES: Final = 256 * 1024
# Encoded and not yet written; one message at its largest may come on top.
_STREAM_WAITING_BYTES_MAX: Final = 4 * 1024 * 1024
# Set in a request's state once its body is at its end.
_READ: Final = "read"
# Bytes of the budget that the request's body holds.
_HELD: Final = "held"
_DRAIN_S: Final = 5.0
# How long a body may take, and how fast it comes at least beyond that.
_BODY_S: Final = 30.0
_BODY_BYTES_PER_S: Final = 64 * 1024
_KEEPALIVE_FRAME: Final = b"\x00\x00\x00\x01\xc0"

T = TypeVar("T")
Items = AsyncGenerator[Any, None]

# The first that fits decides.
_STATUS: Final[tuple[tuple[type[SwarmError], int], ...]] = (
    (NotFound, 404),
    (TokenRefused, 403),
    (Unauthenticated, 401),
    (Forbidden, 403),
    (TooLarge, 413),
    (Compacted, 410),
    (AlreadyExists, 409),
    (Conflict, 409),
    (BadRequest, 400),
    (MalformedMessage, 400),
    (TimedOut, 504),
    (RateLimited, 429),
    (Unavailable, 503),
    (RemoteError, 502),
)


def status_of(error: SwarmError) -> int:
    """The HTTP status that goes with an error."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def error_body(error: SwarmError) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": error.message, "retryable": error.retryable}}


def swarm_error_in(group: BaseExceptionGroup[BaseException]) -> SwarmError | None:
    """The first SwarmError of a group that holds nothing else; None if there is a bug in it."""
    found: SwarmError | None = None
    for inner in group.exceptions:
        one = swarm_error_in(inner) if isinstance(inner, BaseExceptionGroup) else inner
        if not isinstance(one, SwarmError):
            return None
        found = found or one
    return found


# ---- bodies ---------------------------------------------------------------------------


class Budget:
    """Bounds what requests may hold at once: their number, and the bytes of their bodies."""

    def __init__(self, requests_max: int, bodies_bytes_max: int, body_bytes_max: int) -> None:
        self._requests_left = requests_max
        self._bytes_left = bodies_bytes_max
        self.body_bytes_max = body_bytes_max

    def __enter__(self) -> None:
        if self._requests_left <= 0:
            raise Busy("this node serves as many requests as it may: try again shortly")
        self._requests_left -= 1

    def __exit__(self, *_: object) -> None:
        self._requests_left += 1

    def take(self, count: int) -> None:
        if count > self._bytes_left:
            raise Busy("other requests hold the memory for bodies: try again shortly")
        self._bytes_left -= count

    def give_back(self, count: int) -> None:
        self._bytes_left += count


async def read_body(request: Request, budget: Budget) -> bytes:
    """The whole body, within the bounds. What it takes is given back by `release_body`.

    Raises:
        TooLarge: it has more than `gateway.body_bytes_max` bytes.
        TimedOut: it comes too slowly.
        Busy: the bodies of other requests leave no room.
    """
    parts: list[bytes] = []
    state = request.scope.setdefault("swarmd", {})
    began, held = trio.current_time(), 0
    while not state.get(_READ):
        message = None
        with trio.move_on_at(began + _BODY_S + held / _BODY_BYTES_PER_S):
            message = await request.receive()
        if message is None:
            raise TimedOut("the rest of the request's body did not come in time")
        state[_READ] = not message.get("more_body", False)
        if message["type"] == "http.disconnect":
            raise BadRequest("the request broke off")
        data = message.get("body", b"")
        if held + len(data) > budget.body_bytes_max:
            raise TooLarge(f"a request has at most {budget.body_bytes_max} bytes")
        budget.take(len(data))
        held = state[_HELD] = held + len(data)
        parts.append(data)
    return b"".join(parts)


async def body_pieces(request: Request) -> AsyncGenerator[bytes, None]:
    """The body as it comes, of any length; nothing of it is kept.

    Raises:
        TimedOut: nothing came for a while.
        BadRequest: the client went before its end.
    """
    state = request.scope.setdefault("swarmd", {})
    while not state.get(_READ):
        message = None
        with trio.move_on_after(_BODY_S):
            message = await request.receive()
        if message is None:
            raise TimedOut(f"nothing of the request's body came for {_BODY_S:g} s")
        state[_READ] = not message.get("more_body", False)
        if message["type"] == "http.disconnect":
            raise BadRequest("the request broke off")
        if data := message.get("body", b""):
            yield data


async def end_with_client(request: Request, scope: trio.CancelScope) -> None:
    """Cancel `scope` once the client has gone. What is left of the body is dropped meanwhile."""
    state = request.scope.setdefault("swarmd", {})
    is_here = True
    while is_here:
        message = await request.receive()
        is_here = message["type"] != "http.disconnect"
        # Else whoever drains the body at the end would wait for what was taken here.
        state[_READ] = not message.get("more_body", False)
    scope.cancel()


async def drain(request: Request, budget: Budget) -> None:
    """Read and drop what nobody read of the body, within bounds.

    A connection that is closed while the client still sends is reset, and the client loses the
    answer that says why.
    """
    state = request.scope.setdefault("swarmd", {})
    dropped = 0
    with trio.move_on_after(_DRAIN_S):
        while not state.get(_READ) and dropped < budget.body_bytes_max:
            message = await request.receive()
            dropped += len(message.get("body", b""))
            state[_READ] = not message.get("more_body", False)


def leave_body(request: Request) -> None:
    """Have nobody but the answer itself read the body, while it runs."""
    request.scope.setdefault("swarmd", {})[_READ] = True


def release_body(scope: Scope, budget: Budget) -> None:
    """Give back what the request's body took."""
    budget.give_back(scope.get("swarmd", {}).pop(_HELD, 0))


async def read(request: Request, kind: type[T], budget: Budget) -> T:
    """The body as `kind`. Raises BadRequest naming what is wrong with it."""
    raw = await read_body(request, budget)
    try:
        if is_msgpack(request):
            return msgspec.msgpack.decode(raw, type=kind)
        return msgspec.json.decode(raw or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the request's body is wrong: {error}") from error


def is_msgpack(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith(MSGPACK)


def payload_in(request: Request, raw: msgspec.Raw) -> bytes:
    """A payload out of a body as msgpack. Raises BadRequest: msgpack cannot hold it."""
    if is_msgpack(request):
        return bytes(raw)
    try:
        return pack(msgspec.json.decode(raw))
    except (MalformedMessage, msgspec.MsgspecError, RecursionError) as error:
        raise BadRequest(f"the input {error}") from error


# ---- answers --------------------------------------------------------------------------


def wants_msgpack(request: Request) -> bool:
    accept = request.headers.get("accept", "")
    return MSGPACK in accept or FRAMES in accept


def payload_out(request: Request, raw: bytes) -> Any:
    """A msgpack payload as what `answer` and `stream` encode for this request."""
    return msgspec.Raw(raw) if wants_msgpack(request) else plain(unpack(raw))


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: keys become text, NaN and infinities null, bytes base64."""
    if isinstance(value, dict):
        return {_key(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float | bool | bytes):
        return value
    return str(value)


def _key(key: Any) -> str:
    if isinstance(key, bytes):
        return key.decode("utf-8", "backslashreplace")
    return key if isinstance(key, str) else str(key)


def answer(request: Request, value: Any, *, status: int = 200) -> Response:
    """`value` encoded as the request accepts it."""
    if wants_msgpack(request):
        return Response(msgspec.msgpack.encode(value), status, media_type=MSGPACK)
    return Response(msgspec.json.encode(value), status, media_type=JSON)


def error_answer(request: Request, error: SwarmError) -> Response:
    response = answer(request, error_body(error), status=status_of(error))
    if isinstance(error, Unauthenticated):
        response.headers["WWW-Authenticate"] = 'Bearer realm="swarmd"'
    elif isinstance(error, RateLimited):
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    return response


class Running:
    """A response that goes on for long: it counts as a request until it has ended."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError


class Stream(Running):
    """An answer in many messages; an ASGI response.

    It starts with the first message, so that an error before it gets its own status. It ends
    when `items` end, the client goes, or the gateway stops. `items` is always closed, in the
    task that ran it.
    """

    def __init__(
        self,
        request: Request,
        items: Items,
        *,
        keepalive_s: float,
        stopping: trio.Event,
        items_max: int = 256,
    ) -> None:
        self._request = request
        self._items = items
        self._frames = FRAMES in request.headers.get("accept", "")
        self._keepalive_s = keepalive_s
        self._stopping = stopping
        self._items_max = items_max
        self._started = False
        self._waiting_bytes = 0
        self._written = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender, receiver = trio.open_memory_channel[bytes](self._items_max)
        failure: list[SwarmError] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_with_client, self._request, nursery.cancel_scope)
            nursery.start_soon(self._watch_stop, sender.clone(), failure)
            nursery.start_soon(self._produce, sender, failure)
            await self._forward(receiver, send, failure)
            nursery.cancel_scope.cancel()
        if failure and not self._started:
            await error_answer(self._request, failure[0])(scope, receive, send)
            return
        if failure:
            await self._send(send, self._encode(error_body(failure[0])))
        elif not self._started:
            await self._send(send, b"")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _produce(
        self, sender: trio.MemorySendChannel[bytes], failure: list[SwarmError]
    ) -> None:
        try:
            async with aclosing(self._items) as items:
                async for item in items:
                    raw = self._encode(item)
                    while self._waiting_bytes > _STREAM_WAITING_BYTES_MAX:
                        await self._written.wait()
                    self._waiting_bytes += len(raw)
                    await sender.send(raw)
        except SwarmError as error:
            failure.append(error)
        except BaseExceptionGroup as group:
            found = swarm_error_in(group)
            if found is None:
                raise
            failure.append(found)
        await sender.send(b"")

    async def _forward(
        self,
        receiver: trio.MemoryReceiveChannel[bytes],
        send: Send,
        failure: list[SwarmError],
    ) -> None:
        """Pass messages on, as many at a time as wait, until an empty one ends them."""
        while True:
            parts: list[bytes] = []
            with trio.move_on_after(self._keepalive_s):
                parts.append(await receiver.receive())
            if not parts:
                await self._send(send, _KEEPALIVE_FRAME if self._frames else b"\n")
                continue
            count = len(parts[0])
            try:
                while parts[-1] and count < _STREAM_BYTES:
                    parts.append(receiver.receive_nowait())
                    count += len(parts[-1])
            except trio.WouldBlock:
                pass
            if count:
                await self._send(send, b"".join(parts))
                self._waiting_bytes -= count
                self._written.set()
                self._written = trio.Event()
            if not parts[-1]:
                return

    def _encode(self, item: Any) -> bytes:
        if not self._frames:
            return msgspec.json.encode(item) + b"\n"
        raw = msgspec.msgpack.encode(item)
        return len(raw).to_bytes(4, "big") + raw

    async def _send(self, send: Send, body: bytes) -> None:
        if not self._started:
            self._started = True
            kind = FRAMES if self._frames else NDJSON
            headers = [(b"content-type", kind.encode()), (b"cache-control", b"no-store")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _watch_stop(
        self, sender: trio.MemorySendChannel[bytes], failure: list[SwarmError]
    ) -> None:
        await self._stopping.wait()
        failure.append(ShuttingDown("this node is stopping: ask another one"))
        await sender.send(b"")


# ---- guards around the application ----------------------------------------------------


def refuse_browsers(request: Request) -> None:
    """Raises Forbidden for what a web page could make a browser send.

    Where other hosts come in, Host may be any name: a page cannot show a credential.
    """
    if "origin" in request.headers:
        raise Forbidden("requests of web pages are not served")
    if origin_of(request.scope).remote:
        return
    try:
        host = urlsplit("//" + request.headers.get("host", "localhost")).hostname
    except ValueError:
        host = None
    if host not in LOCAL_HOSTS:
        raise Forbidden("the Host of a request must be localhost")


Endpoint = Callable[[Request], Awaitable[Any]]


def guarded(
    endpoint: Endpoint,
    budget: Budget,
    admit: Callable[[Request], None],
    until_over: Callable[[Request], Awaitable[None]],
    refused: Callable[[Request, SwarmError], None],
) -> Endpoint:
    """`endpoint` behind the gate and within the budget, with its errors turned into answers.

    `refused` is told of errors; which of them matter it knows itself.

    A stream's request counts until the stream has ended, and the stream breaks off when
    `until_over` returns: what its caller showed counts no more.
    """

    async def call(request: Request) -> Any:
        response = await attempt(request)
        await drain(request, budget)
        return response

    async def attempt(request: Request) -> Any:
        try:
            refuse_browsers(request)
            admit(request)
            with budget:
                try:
                    response = await endpoint(request)
                    if isinstance(response, Running):
                        release_body(request.scope, budget)
                        return _Counted(response, budget, partial(until_over, request))
                    return response
                finally:
                    release_body(request.scope, budget)
        except SwarmError as error:
            refused(request, error)
            return error_answer(request, error)
        except BaseExceptionGroup as group:
            found = swarm_error_in(group)
            if found is None:
                raise
            refused(request, found)
            return error_answer(request, found)

    return call


class _Counted:
    """A stream that counts as a request while it runs, which is while its caller may."""

    def __init__(
        self, stream: Running, budget: Budget, until_over: Callable[[], Awaitable[None]]
    ) -> None:
        self._stream = stream
        self._budget = budget
        self._until_over = until_over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def end(running: trio.CancelScope) -> None:
            await self._until_over()
            running.cancel()

        with self._budget:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(end, nursery.cancel_scope)
                await self._stream(scope, receive, send)
                nursery.cancel_scope.cancel()
