"""Users' keys in the strong store. They live under a prefix of their own."""

from __future__ import annotations

from functools import partial
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from swarmd.base.errors import BadRequest, EmptyKey, KeyTooLong, NotFound
from swarmd.base.limits import KEY_BYTES_MAX
from swarmd.gateway import shapes
from swarmd.gateway.context import Context, query_flag, query_int
from swarmd.gateway.http import answer, guarded, is_msgpack, read_body
from swarmd.gateway.services import StoreEntry
from swarmd.state.raft.messages import Delete, Operation, OpResult, Put

PREFIX: Final = b"u/"
_LIST_MAX: Final = 10_000
_OCTETS: Final = "application/octet-stream"


class PutBody(msgspec.Struct, forbid_unknown_fields=True):
    """`value` is base64 in JSON; `text` is taken as UTF-8."""

    value: bytes | None = None
    text: str | None = None
    expect: int | None = None


class Kv:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[Route]:
        make = partial(guarded, budget=self._context.budget)
        path = "/api/v1/kv/{key:path}"
        return [
            Route("/api/v1/kv", make(self.list)),
            Route(path, make(self.get)),
            Route(path, make(self.put), methods=["PUT"]),
            Route(path, make(self.delete), methods=["DELETE"]),
        ]

    async def list(self, request: Request) -> Response:
        """Entries whose key begins with `prefix`, in order, after `after`."""
        store = self._services.need(self._services.store)
        after = request.query_params.get("after", "")
        found = await store.range(
            PREFIX + _encode(request.query_params.get("prefix", "")),
            after=PREFIX + _encode(after) if after else b"",
            limit=query_int(request, "limit", 1_000, 1, _LIST_MAX),
            stale=query_flag(request, "stale"),
        )
        return answer(request, [_shape(one) for one in found])

    async def get(self, request: Request) -> Response:
        store = self._services.need(self._services.store)
        key = request.path_params["key"]
        found = await store.get(user_key(key), stale=query_flag(request, "stale"))
        if found is None:
            raise NotFound(f"there is no key {key!r}")
        return answer(request, _shape(found))

    async def put(self, request: Request) -> Response:
        """Write a value: raw octets with ?expect=, or a `PutBody`."""
        key = request.path_params["key"]
        raw_key = user_key(key)
        if request.headers.get("content-type", "") == _OCTETS and not is_msgpack(request):
            value = await read_body(request, self._context.budget)
            expect = _expect(request)
        else:
            body = await self._context.read(request, PutBody)
            if (body.value is None) == (body.text is None):
                raise BadRequest("give either value or text, one of the two")
            value = body.value if body.value is not None else (body.text or "").encode()
            expect = body.expect
        result = await self._propose(Put(raw_key, value, expect))
        return answer(
            request,
            shapes.KvEntry(key=key, value=value, create_revision=0, mod_revision=result.revision),
        )

    async def delete(self, request: Request) -> Response:
        key = request.path_params["key"]
        store = self._services.need(self._services.store)
        expect = _expect(request)
        if expect is None and await store.get(user_key(key)) is None:
            raise NotFound(f"there is no key {key!r}")
        await self._propose(Delete(user_key(key), expect))
        return answer(request, shapes.Done(message=f"{key} is deleted"))

    async def _propose(self, op: Operation) -> OpResult:
        store = self._services.need(self._services.store)
        [result] = await store.propose([op])
        return result.raise_for_error()


def _expect(request: Request) -> int | None:
    if not request.query_params.get("expect"):
        return None
    return query_int(request, "expect", 0, 0, 2**63 - 1)


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest("a key is valid Unicode text") from error


def user_key(text: str) -> bytes:
    """Where a user's key is in the store. Raises EmptyKey, KeyTooLong, BadRequest."""
    if not text:
        raise EmptyKey("a key has at least one character")
    raw = PREFIX + _encode(text)
    if len(raw) > KEY_BYTES_MAX:
        raise KeyTooLong(f"a key has at most {KEY_BYTES_MAX - len(PREFIX)} bytes")
    return raw


def _shape(entry: StoreEntry) -> shapes.KvEntry:
    return shapes.KvEntry(
        key=entry.key[len(PREFIX) :].decode("utf-8", "replace"),
        value=entry.value,
        create_revision=entry.create_revision,
        mod_revision=entry.mod_revision,
    )
