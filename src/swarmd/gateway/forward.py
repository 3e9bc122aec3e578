"""Requests carried out by another member (`X-Swarmd-Node`): any node answers for any other.

The node that was asked sends the request over the mesh; the named member runs it through the
same application, as if it had come to its own socket, and streams the answer back. A large
body goes ahead in parts. A forwarded request is never forwarded again.

The node that was asked says who asks, and what that caller may; the one that carries out holds
the request against it. Members are trusted with this: who may join may administer. Still
everything is bounded, and what a peer left half-sent is dropped after a minute.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Any, Final
from urllib.parse import unquote

import msgspec
import trio
from msgspec import Meta
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from swarmd.base.clock import Clock
from swarmd.base.errors import (
    BadRequest,
    Busy,
    NotFound,
    RemoteError,
    SwarmError,
    TimedOut,
    TooLarge,
    Unreachable,
    from_code,
)
from swarmd.base.ids import ID_BYTES, NodeId, to_text
from swarmd.base.limits import KIB, MESSAGE_BYTES_MAX, MIB
from swarmd.gateway.access.gate import Origin, mark
from swarmd.gateway.access.rules import RULE_CHARS_MAX, RULES_MAX, Caller
from swarmd.gateway.config import GatewayConfig
from swarmd.gateway.context import Context
from swarmd.gateway.http import (
    MSGPACK,
    drain,
    error_answer,
    read_body,
    refuse_browsers,
    release_body,
)
from swarmd.gateway.services import Mesh
from swarmd.mesh.link import Inbound, Lane, Link
from swarmd.mesh.swim.events import Member
from swarmd.mesh.swim.messages import MemberState
from swarmd.mesh.swim.names import called
from swarmd.wire.codec import Family, Message

NODE_HEADER: Final = b"x-swarmd-node"
PIECE_BYTES: Final = 256 * KIB
UPLOAD_BYTES: Final = 16
UPLOADS_MAX: Final = 16
UPLOAD_IDLE_S: Final = 60.0
_REQUESTS_MAX: Final = 64
_SHORT_ID_CHARS: Final = 6
assert PIECE_BYTES < MESSAGE_BYTES_MAX

Piece = Annotated[bytes, Meta(max_length=PIECE_BYTES)]
UploadId = Annotated[bytes, Meta(max_length=UPLOAD_BYTES)]
KeyHash = Annotated[bytes, Meta(max_length=ID_BYTES)]
CallerName = Annotated[str, Meta(max_length=128)]
Rules = Annotated[
    tuple[Annotated[str, Meta(max_length=RULE_CHARS_MAX)], ...], Meta(max_length=2 * RULES_MAX)
]
Headers = Annotated[tuple[tuple[bytes, bytes], ...], Meta(max_length=64)]


class Part(Message, frozen=True, tag=1):
    """A part of a body that does not fit the request. Answered by `Taken`."""

    upload: UploadId
    offset: int
    data: Piece


class Taken(Message, frozen=True, tag=2):
    size: int


class Ask(Message, frozen=True, tag=3):
    """A request; its body is `body`, or what was sent ahead under `upload`.

    `caller` asks for it, and may do what `rules` allow; `key` is the hash of the API key that
    it showed or that its `session` was made with. A session ends at `ends_s` (Unix time).

    Answered by a stream of `Head` and then `Body` messages; an empty one is a keep-alive.
    """

    method: str
    path: str
    query: bytes
    headers: Headers
    upload: UploadId
    body: Piece
    caller: CallerName
    rules: Rules
    key: KeyHash
    session: bool
    ends_s: int


class Head(Message, frozen=True, tag=4):
    status: int
    headers: Headers


class Body(Message, frozen=True, tag=5):
    data: Piece
    last: bool = False


FORWARD: Final = Family("forward", Part, Taken, Ask, Head, Body)

_ASKS_MSGPACK: Final = ((b"accept", MSGPACK.encode()),)
_ANSWER_BYTES_MAX: Final = MIB
# What nodes ask each other of their own accord.
_NODE_RULES: Final = ("cluster:read", "node:query")
_PASSED_ON: Final = frozenset({b"accept", b"content-type", b"host"})


def find_member(members: Sequence[Member], wanted: str) -> Member:
    """The member with this name, id, or beginning of an id; whom a name means says `swim.names`.

    Raises:
        NotFound: none, or several; the message names those there are.
    """
    present = [one for one in members if one.state is not MemberState.LEFT]
    found = called(members, wanted) or [
        one
        for one in present
        if len(wanted) >= _SHORT_ID_CHARS and to_text(one.node_id).startswith(wanted.lower())
    ]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(to_text(one.node_id)[:8] for one in found)
        raise NotFound(f"several members are called {wanted!r}: name one by its id ({ids})")
    names = ", ".join(one.name for one in present[:10])
    raise NotFound(f"no member is called {wanted!r}; the members are {names}")


class Forwarder:
    """The application, and in front of it the way to other members."""

    def __init__(self, app: ASGIApp, context: Context) -> None:
        self._app = app
        self._gate = context.gate
        self._context = context
        self._services = context.services
        self._config = context.config
        self._budget = context.budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wanted = _wanted_node(scope) if scope["type"] == "http" else ""
        if not wanted:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            refuse_browsers(request)
            caller = self._gate.identify(request, self._services.access)
            mesh = self._services.need(self._services.mesh)
            member = find_member(mesh.membership.members(), wanted)
            if member.node_id == self._services.node_id:
                await self._app(scope, receive, send)
                return
            if member.state is MemberState.DEAD:
                raise Unreachable(f"{member.name} is dead, as this node sees it")
            with self._budget:
                await self._forward(mesh, member, request, caller, send)
        except SwarmError as error:
            self._context.note_refusal(request, error)
            await drain(request, self._budget)
            await error_answer(request, error)(scope, receive, send)
        finally:
            release_body(scope, self._budget)

    async def _forward(
        self, mesh: Mesh, member: Member, request: Request, caller: Caller, send: Send
    ) -> None:
        """Send the request over and its answer back.

        An error after the answer has begun cannot be told any more: the connection breaks off.
        """
        body = await read_body(request, self._budget)
        scope = request.scope
        upload = b""
        if len(body) > PIECE_BYTES:
            upload = await self._send_ahead(mesh.link, member.node_id, body)
        ask = Ask(
            method=scope["method"],
            path=scope["path"],
            query=scope["query_string"],
            headers=tuple((k, v) for k, v in scope["headers"] if k in _PASSED_ON),
            upload=upload,
            body=b"" if upload else body,
            caller=caller.name,
            rules=caller.rules,
            key=caller.key,
            session=caller.session,
            ends_s=caller.ends_s,
        )
        release_body(scope, self._budget)
        started = False
        last: Body | None = None
        failure: SwarmError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when_gone, request, nursery.cancel_scope)
                async with mesh.link.request_stream(
                    FORWARD, member.node_id, ask, timeout_s=self._config.forward_timeout_s
                ) as answers:
                    async for message in answers:
                        if isinstance(message, Body) and message.last:
                            last = message
                            break
                        started = started or isinstance(message, Head)
                        await _pass_on(message, send)
                nursery.cancel_scope.cancel()
        except* SwarmError as group:
            failure = _first(group)
        # Outside of the block: what is raised in one becomes a group before Python 3.11.4.
        if failure is not None and not started:
            raise failure
        # Outside: at the end of an answer the server reports a disconnect by itself.
        if last is not None:
            await send({"type": "http.response.body", "body": last.data, "more_body": False})

    async def _send_ahead(self, link: Link, peer: NodeId, body: bytes) -> bytes:
        upload = secrets.token_bytes(UPLOAD_BYTES)
        for offset in range(0, len(body), PIECE_BYTES):
            part = Part(upload=upload, offset=offset, data=body[offset : offset + PIECE_BYTES])
            await link.request(
                FORWARD, peer, part, timeout_s=self._config.forward_timeout_s, lane=Lane.BULK
            )
        return upload


async def ask_member(
    link: Link, peer: NodeId, path: str, *, timeout_s: float, query: bytes = b""
) -> bytes:
    """What a member answers to a GET of `path` as msgpack, for the node's own questions.

    Raises:
        SwarmError: it did not answer within `timeout_s`, or answered an error, which is raised.
    """
    ask = Ask(
        method="GET",
        path=path,
        query=query,
        headers=_ASKS_MSGPACK,
        upload=b"",
        body=b"",
        caller="another node",
        rules=_NODE_RULES,
        key=b"",
        session=False,
        ends_s=0,
    )
    status, raw = 0, b""
    with trio.move_on_after(timeout_s):
        async with link.request_stream(FORWARD, peer, ask, timeout_s=timeout_s) as answers:
            async for message in answers:
                if isinstance(message, Head):
                    status = message.status
                elif isinstance(message, Body):
                    raw += message.data
                    if message.last:
                        return _answered(status, raw)
                if len(raw) > _ANSWER_BYTES_MAX:
                    raise TooLarge("the member's answer is larger than it should be")
    raise TimedOut(f"it did not answer within {timeout_s:g} s")


def _answered(status: int, raw: bytes) -> bytes:
    if status == HTTPStatus.OK:
        return raw
    try:
        error = msgspec.msgpack.decode(raw)["error"]
        raise from_code(str(error["code"]), str(error["message"]))
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise RemoteError(f"it answered {status} without saying why") from error


def _first(group: BaseExceptionGroup[SwarmError]) -> SwarmError:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _wanted_node(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == NODE_HEADER:
            return unquote(value.decode("latin-1")).strip()
    return ""


async def _cancel_when_gone(request: Request, scope: trio.CancelScope) -> None:
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            scope.cancel()
            return


async def _pass_on(message: Any, send: Send) -> None:
    """Hand one message of the answer to the client."""
    if isinstance(message, Head):
        head = {"status": message.status, "headers": [*message.headers]}
        await send({"type": "http.response.start", **head})
    elif isinstance(message, Body) and message.data:
        await send({"type": "http.response.body", "body": message.data, "more_body": True})


# ---- the side that carries out --------------------------------------------------------


@dataclass(slots=True)
class _Upload:
    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    touched_at: float = 0.0


class Uploads:
    """Bodies that peers are sending ahead; bounded in number, size and idle time."""

    def __init__(self, body_bytes_max: int, clock: Clock) -> None:
        self._body_bytes_max = body_bytes_max
        self._clock = clock
        self._open: dict[tuple[NodeId, bytes], _Upload] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, peer: NodeId, part: Part) -> int:
        """Take a part; the size so far.

        Raises:
            Busy: too many uploads are open.
            TooLarge: the body would exceed what a request may have; it is forgotten.
            BadRequest: a part is missing before this one; it is forgotten.
        """
        now = self._clock.now()
        for key, upload in list(self._open.items()):
            if now - upload.touched_at > UPLOAD_IDLE_S:
                del self._open[key]
        key = (peer, part.upload)
        if key not in self._open and len(self._open) >= UPLOADS_MAX:
            raise Busy("too many large requests are being forwarded here: try again shortly")
        upload = self._open.setdefault(key, _Upload())
        if part.offset != upload.size:
            del self._open[key]
            raise BadRequest("a part of the forwarded request is missing")
        if upload.size + len(part.data) > self._body_bytes_max:
            del self._open[key]
            raise TooLarge(f"a request has at most {self._body_bytes_max} bytes")
        upload.parts.append(part.data)
        upload.size += len(part.data)
        upload.touched_at = now
        return upload.size

    def take(self, peer: NodeId, upload: bytes) -> bytes:
        """The whole body. Raises BadRequest: nothing was sent ahead, or it was dropped."""
        found = self._open.pop((peer, upload), None)
        if found is None:
            raise BadRequest("the body of the forwarded request did not arrive")
        return b"".join(found.parts)


async def serve_forwarded(
    app: ASGIApp,
    link: Link,
    inbox: trio.MemoryReceiveChannel[Inbound],
    config: GatewayConfig,
    clock: Clock,
) -> None:
    """Carry out what peers forward, until cancelled."""
    uploads = Uploads(config.body_bytes_max, clock)
    limit = trio.Semaphore(_REQUESTS_MAX)
    async with trio.open_nursery() as nursery:
        async for inbound in inbox:
            message = inbound.message
            try:
                if isinstance(message, Part):
                    await inbound.answer(Taken(size=uploads.add(inbound.peer, message)))
                elif isinstance(message, Ask):
                    body = message.body
                    if message.upload:
                        body = uploads.take(inbound.peer, message.upload)
                    limit.acquire_nowait()
                    nursery.start_soon(_serve, app, inbound, message, body, config, limit)
            except SwarmError as error:
                await inbound.fail(error)
            except trio.WouldBlock:
                await inbound.fail(Busy("this member carries out too many requests: try again"))


async def _serve(
    app: ASGIApp,
    inbound: Inbound,
    ask: Ask,
    body: bytes,
    config: GatewayConfig,
    limit: trio.Semaphore,
) -> None:
    """Run one request through the application, telling now and then that it still runs."""
    scope = _scope_of(ask, inbound.peer)
    try:
        async with trio.open_nursery() as nursery:
            answerer = _Answerer(inbound, body, nursery.cancel_scope)
            nursery.start_soon(answerer.keep_alive, config.keepalive_s)
            await app(scope, answerer.receive, answerer.send)
            await answerer.break_off()
            nursery.cancel_scope.cancel()
    except* SwarmError as group:
        await inbound.fail(_first(group))
    finally:
        limit.release()


def _scope_of(ask: Ask, peer: NodeId) -> dict[str, Any]:
    headers = [(k, v) for k, v in ask.headers if k in _PASSED_ON and k != b"host"]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": ask.method,
        "scheme": "http",
        "path": ask.path,
        "raw_path": ask.path.encode(),
        "query_string": ask.query,
        "root_path": "",
        "headers": [*headers, (b"host", b"localhost")],
        "client": None,
        "server": None,
        "state": {},
    }
    caller = Caller(ask.caller, ask.rules, ask.key, ask.session, ask.ends_s)
    mark(scope, Origin(caller=caller, via=bytes(peer)))
    return scope


class _Answerer:
    """ASGI's receive and send over a forwarded request."""

    def __init__(self, inbound: Inbound, body: bytes, scope: trio.CancelScope) -> None:
        self._inbound = inbound
        self._body: bytes | None = body
        self._scope = scope
        self._lock = trio.Lock()
        self._ended = False

    async def receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    async def send(self, message: Any) -> None:
        async with self._lock:
            if not self._inbound.wants_answer:
                self._scope.cancel()
                return
            if message["type"] == "http.response.start":
                headers = tuple((bytes(k), bytes(v)) for k, v in message["headers"])
                head = Head(status=message["status"], headers=headers)
                await self._inbound.answer(head, more=True)
                return
            data = message.get("body", b"")
            more = message.get("more_body", False)
            for start in range(0, max(len(data), 1), PIECE_BYTES):
                piece = bytes(data[start : start + PIECE_BYTES])
                last = not more and start + PIECE_BYTES >= len(data)
                if piece or last:
                    self._ended = self._ended or last
                    await self._inbound.answer(Body(data=piece, last=last), more=not last)

    async def break_off(self) -> None:
        """Tell that no more comes, unless all of it has come."""
        if not self._ended and self._inbound.wants_answer:
            await self._inbound.fail(Unreachable("the answer broke off"))

    async def keep_alive(self, every_s: float) -> None:
        """Empty messages while the application works; ends it when nobody waits any more."""
        while not self._ended:
            await trio.sleep(every_s)
            async with self._lock:
                if self._ended:
                    return
                if not self._inbound.wants_answer:
                    self._scope.cancel()
                    return
                await self._inbound.answer(Body(data=b""), more=True)
