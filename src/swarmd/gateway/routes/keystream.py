"""Users' keys by the stream: many operations in one request, each acknowledged by itself.

A put costs one request of the API otherwise, which is most of what it costs. Here a client
that keeps many operations under way pays for the operations only: those that arrive together
travel to the coordinator together and share an entry of the log, yet each has its own result,
as if it had come alone. Reads that arrive together share one read round.
"""

from __future__ import annotations

from functools import partial

import msgspec
from starlette.requests import Request

from swarmd.base.errors import BadRequest, NotFound, SwarmError, UnknownOperation
from swarmd.gateway.access.gate import ANY_CALLER, caller_of
from swarmd.gateway.access.rules import Caller
from swarmd.gateway.context import ApiRoute, Context
from swarmd.gateway.duplex import Duplex
from swarmd.gateway.routes.kv import user_key
from swarmd.gateway.services import Store, StoreEntry
from swarmd.gateway.shapes import ErrorInfo, KeyDone
from swarmd.state.raft.bounds import problem_of
from swarmd.state.raft.messages import Delete, Operation, OpResult, Put, error_of


class KeyOp(msgspec.Struct, forbid_unknown_fields=True):
    """One operation: a put, a get or a delete.

    `value` is base64 in JSON; `text` is taken as UTF-8. With `lease` a key goes when that ends.
    """

    id: int
    op: str
    key: str
    value: bytes | None = None
    text: str | None = None
    expect: int | None = None
    stale: bool = False
    lease: int = 0


class KeyStreams:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        return [route("/api/v1/kv-stream", self.run, ANY_CALLER, methods=["POST"])]

    async def run(self, request: Request) -> Duplex[KeyOp]:
        """Operations in, their results out in the order in which they are done."""
        self._services.need(self._services.store)
        context = self._context
        return Duplex(
            request,
            KeyOp,
            partial(self._carry_out, caller_of(request)),
            budget=context.budget,
            keepalive_s=context.config.keepalive_s,
            stopping=context.stopping,
        )

    async def _carry_out(self, caller: Caller, lot: list[KeyOp]) -> list[KeyDone]:
        done: list[KeyDone] = []
        writes: list[tuple[KeyOp, Operation]] = []
        reads: dict[bool, list[tuple[KeyOp, bytes]]] = {}
        for item in lot:
            try:
                caller.require("kv:read" if item.op == "get" else "kv:write", item.key)
                if item.lease and item.op in ("get", "delete"):
                    raise BadRequest(f"the {item.op} of {item.key!r} takes no lease")
                if item.op == "get":
                    reads.setdefault(item.stale, []).append((item, user_key(item.key)))
                else:
                    writes.append((item, _operation(item)))
            except SwarmError as error:
                done.append(_failed(item, error))
        store = self._services.need(self._services.store)
        if writes and not reads:
            return done + await _write(store, writes)
        for stale, wanted in reads.items():
            done += await _read(store, wanted, stale)
        return done + (await _write(store, writes) if writes else [])


async def _write(store: Store, writes: list[tuple[KeyOp, Operation]]) -> list[KeyDone]:
    try:
        results = await store.propose([op for _, op in writes])
    except SwarmError as error:
        return [_failed(item, error) for item, _ in writes]
    return [_written(item, result) for (item, _), result in zip(writes, results, strict=True)]


def _written(item: KeyOp, result: OpResult) -> KeyDone:
    if result.ok:
        return KeyDone(id=item.id, revision=result.revision)
    return _failed(item, error_of(result))


async def _read(store: Store, wanted: list[tuple[KeyOp, bytes]], stale: bool) -> list[KeyDone]:
    try:
        found = await _entries(store, [key for _, key in wanted], stale)
    except SwarmError as error:
        return [_failed(item, error) for item, _ in wanted]
    done = []
    for (item, _), entry in zip(wanted, found, strict=True):
        if entry is None:
            done.append(_failed(item, NotFound(f"there is no key {item.key!r}")))
        else:
            done.append(KeyDone(id=item.id, revision=entry.mod_revision, value=entry.value))
    return done


async def _entries(store: Store, keys: list[bytes], stale: bool) -> list[StoreEntry | None]:
    """The entries of `keys`. A voter reads all of them from its own copy after one round."""
    if store.local is None:
        return [await store.get(key, stale=stale) for key in keys]
    if not stale:
        await store.read_index()
    local = store.local
    if local is None:  # It gave its seat away meanwhile.
        return [await store.get(key, stale=stale) for key in keys]
    return [local.get(key) for key in keys]


def _operation(item: KeyOp) -> Operation:
    """What the store is asked to do. Raises what forbids it."""
    key = user_key(item.key)
    op: Operation
    if item.op == "delete":
        op = Delete(key, item.expect)
    elif item.op != "put":
        raise UnknownOperation(f"operation {item.op!r} does not exist: one of put, get, delete")
    elif (item.value is None) == (item.text is None):
        raise BadRequest("give either value or text, one of the two")
    else:
        value = item.value if item.value is not None else (item.text or "").encode()
        op = Put(key, value, item.expect, item.lease)
    problem = problem_of(op)
    if problem is not None:
        raise problem
    return op


def _failed(item: KeyOp, error: SwarmError) -> KeyDone:
    info = ErrorInfo(code=error.code, message=error.message, retryable=error.retryable)
    return KeyDone(id=item.id, error=info)
