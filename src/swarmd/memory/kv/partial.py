"""Namespaces of which each value lives on a few nodes: any node asks one that holds it.

- A key is asked for where it is, here or at a holder, by rank. Who does not answer, or holds it no
  more, is followed by the next; after `_DEADLINE_S` no round begins any more. Then it is told who
  should have answered, and whether anything may have changed.
- A write that may have happened is repeated at the next holder, which makes no difference to what
  stands there then; one that expects a version is not: it would find its own.
- A list takes the pages of as few nodes as hold all shards, and goes as far as all of them do.
- A watch has a stream from each of these. Where one breaks, or shards move, all begin anew, and it
  is told that it `lagged`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, Final, Protocol

import trio

from swarmd.base.errors import (
    Busy,
    ClockSkew,
    DiskFault,
    KeyTooLong,
    NoHolder,
    NotFound,
    NotHeld,
    SwarmError,
    Unavailable,
)
from swarmd.base.ids import NodeId, short
from swarmd.base.limits import (
    CRDT_COPIES_MAX,
    CRDT_COPIES_MIN,
    CRDT_SHARDS,
    KIB,
    MEMORY_KEY_BYTES_MAX,
)
from swarmd.memory.kv.eventual import BUCKET, EventualMemory
from swarmd.memory.kv.inspecting import Inspected
from swarmd.memory.kv.messages import (
    KEYS_MAX,
    MEMORY,
    VERSION_CHARS_MAX,
    Changed,
    DeleteAsk,
    Found,
    GetAsk,
    ListAsk,
    SetAsk,
    Told,
    WatchAsk,
)
from swarmd.memory.kv.port import LIST_MAX, Entry, Watch
from swarmd.memory.kv.rules import author, check_namespace, encoded, name_of, ttl_ms
from swarmd.mesh.link import Inbound, Lane, Link
from swarmd.observe.log import get_logger
from swarmd.state.crdt.messages import shard_of
from swarmd.state.crdt.placement import bucket_on
from swarmd.state.crdt.service import Eventual
from swarmd.wire.codec import Message, pack, unpack

_DEADLINE_S: Final = 5.0
_ANSWER_S: Final = 2.0
_AGAIN_S: Final = 0.2
# A stream of a watch says at least so often that it goes on.
_KEEPALIVE_S: Final = 2.0
_ALL_SHARDS: Final = list(range(CRDT_SHARDS))
_PAGE_BYTES: Final = 256 * KIB
_SERVED_MAX: Final = 128
_WATCHED_MAX: Final = 10_000
# Of these it is sure that nothing changed there.
_UNCHANGED: Final = (NotHeld, Busy, DiskFault, ClockSkew)

_log = get_logger("memory")


_Page = tuple[list[Entry], bool]
_Nodes = list[NodeId]
_Shards = list[int]
_Groups = dict[NodeId, _Shards]
_Failed = dict[int, set[NodeId]]


class Nodes(Protocol):
    def __call__(self) -> Sequence[NodeId]: ...


class PartialMemory:
    """See `port.Memory`.

    Args:
        alive: who is alive, this node not among them.
    """

    def __init__(
        self, copies: int, link: Link, store: Eventual, values: EventualMemory, alive: Nodes
    ) -> None:
        self._copies, self._link, self._store, self._alive = copies, link, store, alive
        self._bucket = bucket_on(BUCKET, copies)
        self.values = values

    async def set(
        self,
        namespace: str,
        key: str,
        value: Any,
        *,
        by: str,
        ttl_s: float | None = None,
        if_version: str | None = None,
    ) -> Entry:
        """Write a value; returns once it is on the disk of one that holds it. Raises NoHolder."""
        name = name_of(namespace, key)
        here = partial(
            self.values.set, namespace, key, value, by=by, ttl_s=ttl_s, if_version=if_version
        )
        ends_ms = 0 if ttl_s is None else ttl_ms(ttl_s)
        ask = SetAsk(
            self._copies, namespace, key, pack(value), author(by), ends_ms, _cut(if_version)
        )
        found = await self._ask(name, here, ask, repeats=if_version is None)
        return found if isinstance(found, Entry) else _one(found, namespace, key)

    async def get(self, namespace: str, key: str) -> Entry:
        """The value as a node that holds it knows it. Raises NotFound, NoHolder."""
        here = partial(self.values.get, namespace, key)
        ask = GetAsk(self._copies, namespace, key)
        found = await self._ask(name_of(namespace, key), here, ask)
        return found if isinstance(found, Entry) else _one(found, namespace, key)

    async def delete(self, namespace: str, key: str, *, if_version: str | None = None) -> None:
        """Delete a value. Raises NotFound, NoHolder."""
        here = partial(self.values.delete, namespace, key, if_version=if_version)
        ask = DeleteAsk(self._copies, namespace, key, _cut(if_version))
        await self._ask(name_of(namespace, key), here, ask, repeats=if_version is None)

    def inspect(self, namespace: str, key: str) -> Inspected:
        """Why a key holds what it holds. Raises NotHeld: to be asked of another node."""
        name = name_of(namespace, key)
        if not self._store.serves(self._bucket, shard_of(name)):
            who = ", ".join(map(short, self._store.holders(self._bucket, shard_of(name))))
            raise NotHeld(f"{key!r} is held by other nodes: ask one of {who}")
        return self.values.inspect(namespace, key)

    async def _ask(
        self,
        name: str,
        here: Callable[[], Awaitable[Any]],
        ask: Message,
        *,
        repeats: bool = True,
    ) -> Any:
        """What a holder answers; `repeats`: also if another may have carried it out."""
        shard, is_unknown = shard_of(name), False
        deadline = trio.current_time() + _DEADLINE_S
        while trio.current_time() < deadline:
            for holder in self._who_may_answer(shard):
                try:
                    if holder == self._link.node_id:
                        return await here()
                    return await self._request(holder, ask)
                except NotFound:
                    if is_unknown and isinstance(ask, DeleteAsk):
                        return None  # It was deleted by the one that did not answer.
                    raise
                except _UNCHANGED as error:
                    _log.debug("a holder does not serve", node=short(holder), why=error.message)
                except Unavailable as error:
                    is_unknown = not isinstance(ask, GetAsk)
                    if is_unknown and not repeats:
                        raise self._nobody(shard, is_unknown=True) from error
            await trio.sleep(_AGAIN_S)
        raise self._nobody(shard, is_unknown=is_unknown)

    def _nobody(self, shard: int, *, is_unknown: bool) -> NoHolder:
        who = ", ".join(map(short, self._store.holders(self._bucket, shard)))
        end = "whether it changed is unknown: read it" if is_unknown else "nothing changed"
        return NoHolder(f"none of {who}, which hold it, answers: {end}; try again shortly")

    def _who_may_answer(self, shard: int) -> _Nodes:
        """This node if it serves a shard, then the others that hold it and live, by rank."""
        me, alive = self._link.node_id, self._alive()
        found = [one for one in self._store.holders(self._bucket, shard) if one in alive]
        return [me, *found] if self._store.serves(self._bucket, shard) else found

    async def _request(self, holder: NodeId, ask: Message) -> Any:
        lane = Lane.BULK if isinstance(ask, SetAsk) else Lane.CONTROL
        return await self._link.request(MEMORY, holder, ask, timeout_s=_ANSWER_S, lane=lane)

    # ---- all shards -------------------------------------------------------------------------

    def _groups(self, shards: Sequence[int], failed: _Failed) -> _Groups:
        """Who to ask for which shards: this node for what it serves, else few others."""
        groups: _Groups = {}
        for shard in shards:
            may = [o for o in self._who_may_answer(shard) if o not in failed.get(shard, ())]
            if not may:
                raise self._nobody(shard, is_unknown=False)
            asked = next((one for one in may if one in groups), may[0])
            if self._link.node_id in may:
                asked = self._link.node_id
            groups.setdefault(asked, []).append(shard)
        return groups

    async def list(
        self, namespace: str, prefix: str = "", *, after: str = "", limit: int = LIST_MAX
    ) -> tuple[list[Entry], bool]:
        """As `port.Memory` says, of each value as a holder knows it. Raises NoHolder."""
        check_namespace(namespace)
        _check_prefix(prefix)
        _check_prefix(after)
        pages: list[_Page] = []
        left = _ALL_SHARDS
        deadline = trio.current_time() + _DEADLINE_S
        failed: _Failed = {}
        while left:
            try:
                groups = self._groups(left, failed)
            except NoHolder:
                if trio.current_time() >= deadline:
                    raise
                failed.clear()
                await trio.sleep(_AGAIN_S)
                continue
            left = []

            async def ask(holder: NodeId, shards: _Shards, failing: _Shards = left) -> None:
                try:
                    pages.append(await self._page(holder, shards, namespace, prefix, after, limit))
                except Unavailable:
                    failing.extend(shards)
                    for shard in shards:
                        failed.setdefault(shard, set()).add(holder)

            async with trio.open_nursery() as nursery:
                for holder, shards in groups.items():
                    nursery.start_soon(ask, holder, shards)
        return _merged(pages, limit)

    async def _page(
        self,
        holder: NodeId,
        shards: _Shards,
        namespace: str,
        prefix: str,
        after: str,
        limit: int,
    ) -> _Page:
        if holder == self._link.node_id:
            return await self.values.list(
                namespace, prefix, after=after, limit=limit, shards=frozenset(shards)
            )
        ask = ListAsk(self._copies, namespace, prefix, after, limit, tuple(shards))
        found: Found = await self._request(holder, ask)
        return [_entry(one, namespace) for one in found.entries], found.more

    @asynccontextmanager
    async def watch(
        self, namespace: str, prefix: str = "", since: str = ""
    ) -> AsyncIterator[Watch]:
        """As `port.Memory` says; no position lasts longer than its watch."""
        check_namespace(namespace)
        _check_prefix(prefix)
        watch = _Watch(lagged=bool(since))
        async with trio.open_nursery() as nursery:
            await nursery.start(self._follow, watch, namespace, prefix)
            try:
                yield watch
            finally:
                nursery.cancel_scope.cancel()

    async def _follow(
        self,
        watch: _Watch,
        namespace: str,
        prefix: str,
        *,
        task_status: Any = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Keep a stream from each who serves some shards, for as long as this runs."""
        begun = False
        while True:
            try:
                groups = self._groups(_ALL_SHARDS, {})
                async with trio.open_nursery() as nursery:
                    with trio.fail_after(_DEADLINE_S):
                        for holder, shards in groups.items():
                            await nursery.start(
                                self._stream, watch, holder, shards, namespace, prefix
                            )
                    if begun:
                        watch.lose()
                    else:
                        begun = True
                        task_status.started()
            except* (SwarmError, trio.TooSlowError) as group:
                _log.debug("a watch begins anew", why=str(group.exceptions[0]))
            await trio.sleep(_AGAIN_S)

    async def _stream(
        self,
        watch: _Watch,
        holder: NodeId,
        shards: _Shards,
        namespace: str,
        prefix: str,
        *,
        task_status: Any = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Tell of keys in shards that one node serves. Raises Unavailable: it does no more."""
        ask = WatchAsk(self._copies, namespace, prefix, tuple(shards))
        if holder == self._link.node_id:
            async with aclosing(self.changes(ask)) as changes:
                async for one in changes:
                    watch.note(one.keys, lagged=one.lagged)
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
        async with self._link.request_stream(
            MEMORY, holder, ask, timeout_s=2 * _KEEPALIVE_S
        ) as answers:
            async for one in answers:
                watch.note(one.keys, lagged=one.lagged)
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
        raise NotHeld("the stream of a watch has ended")

    async def changes(self, ask: WatchAsk) -> AsyncGenerator[Changed, None]:
        """What a watch of some shards that this node serves is told. Raises NotHeld."""
        below = f"{ask.namespace}/"
        with self._store.watch(self._bucket, below + ask.prefix) as watch:
            self._check_served(ask.shards)
            yield Changed(())
            while True:
                with trio.move_on_after(_KEEPALIVE_S / 2):
                    await watch.wait()
                self._check_served(ask.shards)
                lagged, watch.lagged = watch.lagged, False
                names = [one for one in watch.take(KEYS_MAX) if shard_of(one) in ask.shards]
                yield Changed(tuple(one.removeprefix(below) for one in names), lagged)

    # ---- what others ask here ---------------------------------------------------------------

    async def carry_out(self, ask: Message) -> Found:
        """What this node answers as a holder. Raises NotHeld, and what the memory raises."""
        match ask:
            case SetAsk():
                self._check_served((shard_of(name_of(ask.namespace, ask.key)),))
                ttl_s = ask.ttl_ms / 1_000 if ask.ttl_ms else None
                value = unpack(ask.value)  # Raises MalformedMessage.
                entry = await self.values.set(
                    ask.namespace, ask.key, value, by=ask.by, ttl_s=ttl_s, if_version=ask.if_version
                )
                return Found((_told(entry),))
            case GetAsk():
                self._check_served((shard_of(name_of(ask.namespace, ask.key)),))
                return Found((_told(await self.values.get(ask.namespace, ask.key)),))
            case DeleteAsk():
                self._check_served((shard_of(name_of(ask.namespace, ask.key)),))
                await self.values.delete(ask.namespace, ask.key, if_version=ask.if_version)
                return Found(())
            case ListAsk():
                self._check_served(ask.shards)
                entries, more = await self.values.list(
                    ask.namespace,
                    ask.prefix,
                    after=ask.after,
                    limit=ask.limit,
                    shards=frozenset(ask.shards),
                    bytes_max=_PAGE_BYTES,
                )
                return Found(tuple(map(_told, entries)), more)
        raise AssertionError(ask)

    def _check_served(self, shards: Sequence[int]) -> None:
        for shard in shards:
            if not self._store.serves(self._bucket, shard):
                raise NotHeld("this node does not serve that: nothing changed; ask another one")


class _Watch:
    """See `port.Watch`: keys that several nodes tell of."""

    def __init__(self, *, lagged: bool) -> None:
        self.lagged = lagged
        self.position = ""
        self._keys: OrderedDict[str, None] = OrderedDict()
        self._wake = trio.Event()

    def note(self, keys: Sequence[str], *, lagged: bool) -> None:
        for key in keys:
            if len(self._keys) >= _WATCHED_MAX:
                lagged = True
                break
            self._keys[key] = None
        if lagged:
            self.lagged = True
        if keys or lagged:
            self._wake.set()

    def lose(self) -> None:
        """Note that not all that changed was told."""
        self.note((), lagged=True)

    async def receive(self) -> str | None:
        """The next key; None: it `lagged`. Cancelled, it takes none."""
        while not self._keys and not self.lagged:
            self._wake = trio.Event()
            await self._wake.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        return self._keys.popitem(last=False)[0] if self._keys else None


class PartialMemories:
    """One for each number of copies, and what others ask of them here."""

    def __init__(
        self,
        link: Link,
        store: Eventual,
        values: Callable[[str], EventualMemory],
        alive: Nodes,
    ) -> None:
        self._by_copies = {
            copies: PartialMemory(copies, link, store, values(bucket_on(BUCKET, copies)), alive)
            for copies in range(CRDT_COPIES_MIN, CRDT_COPIES_MAX + 1)
        }

    def of(self, copies: int) -> PartialMemory:
        return self._by_copies[copies]

    def all(self) -> list[PartialMemory]:
        return list(self._by_copies.values())

    async def serve(self, inbox: trio.MemoryReceiveChannel[Inbound]) -> None:
        """Carry out what others ask, for as long as this runs."""
        limit = trio.Semaphore(_SERVED_MAX)
        async with trio.open_nursery() as nursery:
            async for inbound in inbox:
                if not inbound.wants_answer or isinstance(inbound.message, Found | Changed):
                    continue
                try:
                    limit.acquire_nowait()
                except trio.WouldBlock:
                    await inbound.fail(Busy("this node answers too many: nothing changed"))
                    continue
                nursery.start_soon(self._serve, inbound, limit)

    async def _serve(self, inbound: Inbound, limit: trio.Semaphore) -> None:
        ask = inbound.message
        memory = self.of(ask.copies)
        try:
            if isinstance(ask, WatchAsk):
                async with aclosing(memory.changes(ask)) as changes:
                    async for one in changes:
                        await inbound.answer(one, more=True)
                        if not inbound.wants_answer:
                            break
            else:
                await inbound.answer(await memory.carry_out(ask))
        except SwarmError as error:
            await inbound.fail(error)
        finally:
            limit.release()


def _cut(version: str | None) -> str | None:
    """As far as any version goes."""
    return None if version is None else version[:VERSION_CHARS_MAX]


def _check_prefix(text: str) -> None:
    """Raises BadRequest, KeyTooLong: no key begins with it."""
    if len(encoded(text)) > MEMORY_KEY_BYTES_MAX:
        raise KeyTooLong(f"a key has at most {MEMORY_KEY_BYTES_MAX} bytes")


def _told(one: Entry) -> Told:
    return Told(
        one.key,
        pack(one.value),
        one.version,
        one.created_by,
        one.created_at_ms,
        one.expires_at_ms,
        one.node,
        one.size,
    )


def _entry(one: Told, namespace: str) -> Entry:
    """Raises MalformedMessage: the value is no msgpack."""
    return Entry(
        namespace,
        one.key,
        unpack(one.value),
        one.version,
        one.by,
        one.created_at_ms,
        one.expires_at_ms,
        NodeId(one.node),
        one.size,
    )


def _one(found: Found, namespace: str, key: str) -> Entry:
    if not found.entries:
        raise NotFound(f"{namespace} has no key {key!r}")
    return _entry(found.entries[0], namespace)


def _merged(pages: list[_Page], limit: int) -> _Page:
    """Entries of several pages by key, as far as all pages go."""
    ends = [entries[-1].key for entries, more in pages if more and entries]
    found = sorted((one for entries, _ in pages for one in entries), key=lambda one: one.key)
    reached = [one for one in found if not ends or one.key <= min(ends)]
    return reached[:limit], bool(ends) or len(reached) > limit
