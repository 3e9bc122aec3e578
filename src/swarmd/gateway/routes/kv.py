"""Users' keys in the strong store: one by one, in transactions, and watched.

They live under a prefix of their own, which nobody outside sees.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from swarmd.base.errors import BadRequest, EmptyKey, KeyTooLong, NotFound, UnknownOperation
from swarmd.base.limits import KEY_BYTES_MAX
from swarmd.gateway import shapes
from swarmd.gateway.access.gate import ANY_CALLER, caller_of
from swarmd.gateway.access.rules import Caller
from swarmd.gateway.context import ApiRoute, Context, Watches, query_flag, query_int
from swarmd.gateway.http import Items, Stream, answer, is_msgpack, read_body
from swarmd.gateway.services import StoreEntry
from swarmd.state.raft.messages import (
    RAN_OTHERWISE,
    USER_PREFIX,
    Change,
    Compare,
    Delete,
    Operation,
    OpResult,
    Put,
    Txn,
)

_NUMBER_MAX: Final = 2**63 - 1
# Of a client that does not read; each may hold a value of the largest size.
_WATCH_ITEMS_MAX: Final = 16
_LIST_MAX: Final = 10_000
_OCTETS: Final = "application/octet-stream"


class PutBody(msgspec.Struct, forbid_unknown_fields=True):
    """`value` is base64 in JSON; `text` is taken as UTF-8."""

    value: bytes | None = None
    text: str | None = None
    expect: int | None = None
    lease: int = 0


class Kv:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services
        self._watches = Watches(context.config.requests_max // 2)

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        path = "/api/v1/kv/{key:path}"
        return [
            route("/api/v1/txn", self.txn, ANY_CALLER, methods=["POST"]),
            route("/api/v1/watch", self.watch, "kv:read"),
            route("/api/v1/kv", self.list, "kv:read"),
            route(path, self.get, "kv:read"),
            route(path, self.put, "kv:write", methods=["PUT"]),
            route(path, self.delete, "kv:write", methods=["DELETE"]),
        ]

    async def list(self, request: Request) -> Response:
        """Entries whose key begins with `prefix`, in order, after `after`."""
        prefix = request.query_params.get("prefix", "")
        caller_of(request).require_below("kv:read", prefix)
        store = self._services.need(self._services.store)
        after = request.query_params.get("after", "")
        found = await store.range(
            USER_PREFIX + _encode(prefix),
            after=USER_PREFIX + _encode(after) if after else b"",
            limit=query_int(request, "limit", 1_000, 1, _LIST_MAX),
            stale=query_flag(request, "stale"),
        )
        return answer(request, [_shape(one) for one in found])

    async def get(self, request: Request) -> Response:
        key = request.path_params["key"]
        caller_of(request).require("kv:read", key)
        store = self._services.need(self._services.store)
        found = await store.get(user_key(key), stale=query_flag(request, "stale"))
        if found is None:
            raise NotFound(f"there is no key {key!r}")
        return answer(request, _shape(found))

    async def put(self, request: Request) -> Response:
        """Write a value: raw octets with ?expect=, or a `PutBody`."""
        key = request.path_params["key"]
        caller_of(request).require("kv:write", key)
        raw_key = user_key(key)
        if request.headers.get("content-type", "") == _OCTETS and not is_msgpack(request):
            value = await read_body(request, self._context.budget)
            expect = _expect(request)
            lease = query_int(request, "lease", 0, 0, _NUMBER_MAX)
        else:
            body = await self._context.read(request, PutBody)
            value = _value(body.value, body.text)
            expect, lease = body.expect, body.lease
        result = await self._propose(Put(raw_key, value, expect, lease))
        entry = shapes.KvEntry(
            key=key, value=value, create_revision=0, mod_revision=result.revision, lease=lease
        )
        return answer(request, entry)

    async def delete(self, request: Request) -> Response:
        key = request.path_params["key"]
        caller_of(request).require("kv:write", key)
        store = self._services.need(self._services.store)
        expect = _expect(request)
        if expect is None and await store.get(user_key(key)) is None:
            raise NotFound(f"there is no key {key!r}")
        await self._propose(Delete(user_key(key), expect))
        return answer(request, shapes.Done(message=f"{key} is deleted"))

    # ---- transactions ----------------------------------------------------------------

    async def txn(self, request: Request) -> Response:
        """All of `then` if every compare holds, else all of `else`, under one revision."""
        body = await self._context.read(request, shapes.KvTxn)
        _require_txn(caller_of(request), body)
        store = self._services.need(self._services.store)
        txn = Txn(
            tuple(map(_compare, body.compares)),
            tuple(map(_operation, body.then)),
            tuple(map(_operation, body.otherwise)),
        )
        [result] = await store.propose([txn])
        if result.value == RAN_OTHERWISE:
            ran = shapes.KvTxnDone(branch="else", revision=result.revision, unmet=result.message)
        else:
            result.raise_for_error()
            ran = shapes.KvTxnDone(branch="then", revision=result.revision)
        return answer(request, ran)

    # ---- watching --------------------------------------------------------------------

    async def watch(self, request: Request) -> Stream:
        """Changes of keys that begin with `prefix`, from the revision `from` or from now on."""
        asked = request.query_params.get("prefix", "")
        caller_of(request).require_below("kv:read", asked)
        prefix = USER_PREFIX + _encode(asked)
        begin = query_int(request, "from", 0, 1, _NUMBER_MAX) or None
        return self._context.stream(
            request, self._changes(prefix, begin), items_max=_WATCH_ITEMS_MAX
        )

    async def _changes(self, prefix: bytes, begin: int | None) -> Items:
        store = self._services.need(self._services.store)
        with self._watches.one_more():
            async with aclosing(store.watch(prefix, begin)) as pairs:
                async for changes, revision in pairs:
                    told = [_change(one) for one in changes]
                    yield shapes.KvChanges(revision=revision, changes=told)

    async def _propose(self, op: Operation) -> OpResult:
        store = self._services.need(self._services.store)
        [result] = await store.propose([op])
        return result.raise_for_error()


def _require_txn(caller: Caller, body: shapes.KvTxn) -> None:
    """What holds of a key tells what is in it, so to compare is to read."""
    for compare in body.compares:
        caller.require("kv:read", compare.key)
    for operation in (*body.then, *body.otherwise):
        caller.require("kv:write", operation.key)


def _expect(request: Request) -> int | None:
    if not request.query_params.get("expect"):
        return None
    return query_int(request, "expect", 0, 0, _NUMBER_MAX)


def _value(value: bytes | None, text: str | None) -> bytes:
    if (value is None) == (text is None):
        raise BadRequest("give either value or text, one of the two")
    return value if value is not None else _encode(text or "")


def _compare(body: shapes.KvCompare) -> Compare:
    key = user_key(body.key)
    given = [one for one in (body.revision, body.value, body.text) if one is not None]
    if body.exists is not None:
        if given:
            raise BadRequest(f"the compare of {body.key!r} says exists: then it says nothing else")
        return Compare(key, None if body.exists else 0)
    if not given:
        raise BadRequest(f"the compare of {body.key!r} needs revision, value, text or exists")
    if body.value is None and body.text is None:
        return Compare(key, body.revision)
    return Compare(key, body.revision, _value(body.value, body.text))


def _operation(body: shapes.KvOperation) -> Put | Delete:
    key = user_key(body.key)
    if body.op == "put":
        return Put(key, _value(body.value, body.text), body.expect, body.lease)
    if body.op == "delete":
        if body.value is not None or body.text is not None or body.lease:
            raise BadRequest(f"the delete of {body.key!r} takes neither a value nor a lease")
        return Delete(key, body.expect)
    raise UnknownOperation(f"operation {body.op!r} does not exist: one of put, delete")


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest("keys and texts are valid Unicode") from error


def user_key(text: str) -> bytes:
    """Where a user's key is in the store. Raises EmptyKey, KeyTooLong, BadRequest."""
    if not text:
        raise EmptyKey("a key has at least one character")
    raw = USER_PREFIX + _encode(text)
    if len(raw) > KEY_BYTES_MAX:
        raise KeyTooLong(f"a key has at most {KEY_BYTES_MAX - len(USER_PREFIX)} bytes")
    return raw


def _name(key: bytes) -> str:
    return key[len(USER_PREFIX) :].decode("utf-8", "replace")


def _change(change: Change) -> shapes.KvChange:
    return shapes.KvChange(key=_name(change.key), value=change.value, revision=change.revision)


def _shape(entry: StoreEntry) -> shapes.KvEntry:
    return shapes.KvEntry(
        key=_name(entry.key),
        value=entry.value,
        create_revision=entry.create_revision,
        mod_revision=entry.mod_revision,
        lease=entry.lease,
    )
