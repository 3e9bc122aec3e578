"""Users' blobs: put and get as streams of bytes, show, list, pin, unpin.

Bodies are the bytes themselves (`application/octet-stream`). A put is answered by a stream, as the
copies are made; its last message has the blob. A get that breaks off after it began ends short of
its Content-Length.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from swarmd.base.errors import BadRequest, ShuttingDown, SwarmError
from swarmd.base.ids import from_text, to_text
from swarmd.base.limits import BLOB_COPIES_MAX, STREAMED_BYTES_MAX
from swarmd.gateway.access.gate import caller_of
from swarmd.gateway.context import ApiRoute, Context, query_int
from swarmd.gateway.http import (
    Items,
    Running,
    Stream,
    answer,
    body_pieces,
    end_with_client,
    error_answer,
    swarm_error_in,
)
from swarmd.gateway.shapes_blobs import BlobProgress, PinInfo, UserBlob, UserBlobs
from swarmd.observe.log import get_logger
from swarmd.state.blobs.bulk import Bulk, Progress, Shown
from swarmd.state.blobs.naming import HASH_BYTES

OCTETS: Final = "application/octet-stream"
_TTL_MAX_S: Final = 10 * 365 * 24 * 3_600
_log = get_logger("gateway")


class PinBody(msgspec.Struct, forbid_unknown_fields=True):
    """None leaves the number of copies as it is, and the time as `blobs.pin_ttl_s` says."""

    copies: int | None = None
    ttl_s: float | None = None


class BlobRoutes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        one = "/api/v1/blobs/{hash}"
        return [
            route("/api/v1/blobs", self.list, "blob:read", methods=["GET"]),
            route("/api/v1/blobs", self.put, "blob:write", methods=["PUT"]),
            route(one, self.show, "blob:read", methods=["GET"]),
            route(f"{one}/data", self.get, "blob:read", methods=["GET"]),
            route(f"{one}/pin", self.pin, "blob:write", methods=["POST"]),
            route(f"{one}/pin", self.unpin, "blob:write", methods=["DELETE"]),
        ]

    @property
    def _bulk(self) -> Bulk:
        return self._services.need(self._services.blobs).bulk

    async def put(self, request: Request) -> Stream:
        """Store the body; `?copies=` and `?ttl_s=` say how, `?size=` how much it is."""
        bulk = self._bulk
        copies = query_int(request, "copies", 0, 1, BLOB_COPIES_MAX) or None
        ttl_s = query_int(request, "ttl_s", 0, 1, _TTL_MAX_S) or None
        size_text = request.query_params.get("size", "")
        size = query_int(request, "size", 0, 0, STREAMED_BYTES_MAX) if size_text else None
        bulk.check_put(copies, ttl_s, size)
        owner = caller_of(request).name
        async with aclosing(body_pieces(request)) as pieces:
            blob_hash, size = await bulk.receive(pieces, size)
        items = bulk.spread(blob_hash, size, owner, copies=copies, ttl_s=ttl_s)
        return self._context.stream(request, self._noted(request, "blob.put", blob_hash, items))

    async def get(self, request: Request) -> Bytes:
        """The blob's bytes, as they come from wherever they are."""
        return Bytes(request, self._bulk, hash_of_path(request), self._context.stopping)

    async def show(self, request: Request) -> Response:
        return answer(request, self._shape(await self._bulk.show(hash_of_path(request))))

    async def list(self, request: Request) -> Response:
        """Blobs of users on all members that answer."""
        shown, missing = await self._bulk.list_all()
        name_of = self._services.name_of
        blobs = [self._shape(one) for one in shown]
        return answer(request, UserBlobs(blobs=blobs, missing=[name_of(one) for one in missing]))

    async def pin(self, request: Request) -> Stream:
        """Pin a blob, or pin it anew; answered as a put."""
        body = await self._context.read(request, PinBody)
        bulk, blob_hash = self._bulk, hash_of_path(request)
        if body.copies is not None and not 1 <= body.copies <= BLOB_COPIES_MAX:
            raise BadRequest(f"copies must be from 1 to {BLOB_COPIES_MAX}, not {body.copies}")
        bulk.check_put(body.copies, body.ttl_s, None)
        owner = caller_of(request).name
        items = bulk.pin(blob_hash, owner, copies=body.copies, ttl_s=body.ttl_s)
        return self._context.stream(request, self._noted(request, "blob.pinned", blob_hash, items))

    async def unpin(self, request: Request) -> Response:
        """Take the caller's pin back."""
        blob_hash = hash_of_path(request)
        with self._context.noted(request, "blob.unpinned", to_text(blob_hash)):
            shown = await self._bulk.unpin(blob_hash, caller_of(request).name)
        return answer(request, self._shape(shown))

    async def _noted(
        self,
        request: Request,
        kind: str,
        blob_hash: bytes,
        items: AsyncGenerator[Progress | Shown, None],
    ) -> Items:
        with self._context.noted(request, kind, to_text(blob_hash)):
            async with aclosing(items):
                async for item in items:
                    yield self._progress(item)

    def _progress(self, item: Progress | Shown) -> BlobProgress:
        if isinstance(item, Shown):
            return BlobProgress(blob=self._shape(item))
        return BlobProgress(held=item.held, copies=item.copies, done_bytes=item.done_bytes)

    def _shape(self, one: Shown) -> UserBlob:
        mesh = self._services.mesh
        members = 1 if mesh is None else len(mesh.membership.members())
        return UserBlob(
            hash=to_text(one.hash),
            size=one.size,
            holders=[self._services.name_of(node) for node in one.holders],
            pins=[
                PinInfo(owner=pin.owner, copies=pin.copies, until_ms=pin.until_ms)
                for pin in one.pins
            ],
            alone=members == 1,
        )


class Bytes(Running):
    """A blob as a response. An error before its first byte gets its own status."""

    def __init__(
        self, request: Request, bulk: Bulk, blob_hash: bytes, stopping: trio.Event
    ) -> None:
        self._request = request
        self._bulk = bulk
        self._hash = blob_hash
        self._stopping = stopping
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failure: SwarmError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(end_with_client, self._request, nursery.cancel_scope)
                nursery.start_soon(self._until_stopped)
                await self._send(send)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            failure = swarm_error_in(group)
            if failure is None:
                raise
        if failure is None:
            return
        if not self._started:
            await error_answer(self._request, failure)(scope, receive, send)
            return
        # It cannot be said any more: the connection ends short of the body's length.
        _log.warning("a blob broke off", blob=to_text(self._hash), why=failure.message)

    async def _send(self, send: Send) -> None:
        async with self._bulk.open(self._hash) as (size, chunks):
            async for data in chunks:
                await self._start(send, size)
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await self._start(send, size)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start(self, send: Send, size: int) -> None:
        if self._started:
            return
        self._started = True
        headers = [
            (b"content-type", OCTETS.encode()),
            (b"content-length", str(size).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _until_stopped(self) -> None:
        await self._stopping.wait()
        raise ShuttingDown("this node is stopping: ask another one")


def hash_of_path(request: Request) -> bytes:
    """The hash in the path. Raises BadRequest."""
    text = request.path_params["hash"]
    try:
        found = from_text(text)
    except BadRequest:
        found = b""
    if len(found) != HASH_BYTES:
        raise BadRequest(
            f"{text[:80]!r} is no hash of a blob: one has 52 letters and digits, as "
            "`swarmctl blob put` and `blob list` show it"
        )
    return found
