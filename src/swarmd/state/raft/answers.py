"""What a node answers to other members' requests of the strong store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec
import trio

from swarmd.base.errors import BadRequest, Busy, Conflict, Forbidden, NotFound, SwarmError, TooLarge
from swarmd.base.ids import NodeId, short
from swarmd.base.limits import BATCH_OPERATIONS_MAX, ENTRY_BYTES_MAX, KIB
from swarmd.mesh.link import Inbound
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import DROPPED
from swarmd.state.raft import messages as m
from swarmd.state.raft.handing import Handing
from swarmd.state.raft.reads import leases_in
from swarmd.state.raft.replica import Replica
from swarmd.state.raft.rights import Overstep, overstep_in, sender_of
from swarmd.state.raft.views import Overstepping
from swarmd.state.raft.watching import Watches
from swarmd.wire.codec import Message

REQUESTS_MAX: Final = 2_000
UPLOADS_MAX: Final = 16
# Members whose refused forwards are told of one by one.
OVERSTEPPING_MAX: Final = 256
_UPLOAD_BYTES_MAX: Final = ENTRY_BYTES_MAX + 64 * KIB
_log = get_logger("raft")


class Asked(Protocol):
    """What answering needs of the store."""

    @property
    def epoch_number(self) -> int: ...

    @property
    def handing(self) -> Handing: ...

    @property
    def local(self) -> Any: ...

    def serving(self) -> Replica | None: ...

    def store_time_ms(self) -> int: ...

    def coordinator(self) -> NodeId | None: ...

    async def barrier(self, replica: Replica) -> None: ...

    async def propose_here(
        self, replica: Replica, groups: tuple[m.Group, ...]
    ) -> list[list[m.OpResult]]: ...

    async def hand_over_for(self, peer: NodeId) -> None: ...


class Answers:
    """Serves the `store` family; a bounded number of requests at a time."""

    def __init__(self, store: Asked, watches: Watches, nursery: trio.Nursery) -> None:
        self._store = store
        self._watches = watches
        self._nursery = nursery
        self._running = 0
        # (peer, upload) -> pieces so far; the oldest goes when there are too many.
        self._uploads: dict[tuple[NodeId, int], bytearray] = {}
        self._overstepping: dict[NodeId, Overstepping] = {}

    def take_overstepping(self) -> list[Overstepping]:
        """Who forwarded what it may not write, since the last call."""
        found = list(self._overstepping.values())
        self._overstepping.clear()
        return found

    async def run(self, inbox: trio.MemoryReceiveChannel[Inbound]) -> None:
        """Answer until cancelled."""
        async for inbound in inbox:
            if self._running >= REQUESTS_MAX:
                await inbound.fail(Busy("too many requests of the strong store at a time"))
                continue
            self._running += 1
            self._nursery.start_soon(self._serve, inbound)

    async def _serve(self, inbound: Inbound) -> None:
        try:
            await inbound.answer(await self._answer(inbound.peer, inbound.message))
        except SwarmError as error:
            DROPPED.labels("store", error.code).inc()
            await inbound.fail(error)
        finally:
            self._running -= 1

    async def _answer(self, peer: NodeId, message: Message) -> Message:
        match message:
            case m.Forward(groups):
                return await self._forward(peer, groups)
            case m.ForwardUpload(upload):
                return await self._forward(peer, self._take_upload(peer, upload))
            case m.Upload():
                return self._keep_upload(peer, message)
            case m.LeaderAsk():
                return self._redirect("not_coordinator")
            case m.GetAsk(key, stale):
                return await self._read(stale, lambda state: _got_one(state.get(key)))
            case m.RangeAsk(prefix, after, limit, stale):
                wanted = max(0, min(limit, 10_000))
                return await self._read(stale, lambda s: _got_range(s, prefix, after, wanted))
            case m.PieceAsk(key, revision, offset):
                return _piece(self._store.local, key, revision, offset)
            case m.ReadIndexAsk():
                time_ms = self._store.store_time_ms
                return await self._read(False, lambda s: m.Revision(s.revision, time_ms()))
            case m.WatchAsk():
                return await self._watches.answer(peer, message) or self._redirect("not_a_voter")
            case m.LeasesAsk(lease):
                time_ms = self._store.store_time_ms
                return await self._read(False, lambda s: leases_in(s, lease, time_ms()))
            case m.HandOver():
                if self._store.serving() is None:
                    return self._redirect("not_coordinator")
                await self._store.hand_over_for(peer)
                return m.Done()
            case m.TransferAsk(target):
                if self._store.serving() is None:
                    return self._redirect("not_coordinator")
                chosen = NodeId(target) if target else None
                return m.Transferred(await self._store.handing.transfer_here(chosen))
        raise BadRequest("not a request of the strong store")

    def _redirect(self, code: str) -> m.Redirect:
        leader = self._store.coordinator()
        return m.Redirect(leader or b"", self._store.epoch_number, code)

    async def _forward(self, peer: NodeId, groups: tuple[m.Group, ...]) -> Message:
        count = sum(len(group.ops) for group in groups)
        if count > BATCH_OPERATIONS_MAX:
            raise TooLarge(f"{count} operations; a batch has at most {BATCH_OPERATIONS_MAX}")
        replica = self._store.serving()
        if replica is None:
            return self._redirect("not_coordinator")
        sender = sender_of(peer, replica.state)
        oversteps = [overstep_in(group, sender) for group in groups]
        passed = tuple(g for g, found in zip(groups, oversteps, strict=True) if found is None)
        results = iter(await self._store.propose_here(replica, passed) if passed else ())
        answers: list[tuple[m.OpResult, ...]] = []
        for group, found in zip(groups, oversteps, strict=True):
            if found is None:
                answers.append(tuple(next(results, ())))
            else:
                self._note_overstep(peer, found)
                answers.append((_refused(found, replica.state.revision),) * len(group.ops))
        return m.Results(tuple(answers))

    def _note_overstep(self, peer: NodeId, overstep: Overstep) -> None:
        DROPPED.labels("store", Forbidden.code).inc()
        before = self._overstepping.get(peer)
        if before is None and len(self._overstepping) >= OVERSTEPPING_MAX:
            return
        if before is None:
            _log.warning(
                "a member forwards what it may not write",
                peer=short(peer),
                what=overstep.what,
                why=overstep.why,
            )
        times = before.times + 1 if before is not None else 1
        self._overstepping[peer] = Overstepping(peer, overstep.what, times)

    async def _read(self, stale: bool, read: Callable[[Any], Message]) -> Message:
        if stale:
            state = self._store.local
            return read(state) if state is not None else self._redirect("not_a_voter")
        replica = self._store.serving()
        if replica is None:
            return self._redirect("not_coordinator")
        await self._store.barrier(replica)
        return read(replica.state)

    # ---- requests in pieces --------------------------------------------------------------

    def _keep_upload(self, peer: NodeId, piece: m.Upload) -> m.Done:
        if piece.total > _UPLOAD_BYTES_MAX or not piece.data:
            raise TooLarge(f"a batch of {piece.total} bytes; at most {_UPLOAD_BYTES_MAX} fit")
        key = (peer, piece.upload)
        if piece.offset == 0:
            while len(self._uploads) >= UPLOADS_MAX:
                del self._uploads[next(iter(self._uploads))]
            self._uploads[key] = bytearray()
        have = self._uploads.get(key)
        if have is None or piece.offset != len(have):
            raise NotFound("a piece of an upload that is not under way")
        if len(have) + len(piece.data) > piece.total:
            del self._uploads[key]
            raise BadRequest("an upload longer than it said")
        have += piece.data
        return m.Done()

    def _take_upload(self, peer: NodeId, upload: int) -> tuple[m.Group, ...]:
        raw = self._uploads.pop((peer, upload), None)
        if raw is None:
            raise NotFound("an upload that is not under way")
        forward: m.Forward = m.decode_forward(bytes(raw))
        return forward.groups


def _refused(overstep: Overstep, revision: int) -> m.OpResult:
    message = (
        f"this node may not {overstep.what}, as the coordinator sees it: {overstep.why}; nothing "
        "of this request was applied"
    )
    return m.OpResult(False, revision, Forbidden.code, message)


def _got_one(entry: m.Entry | None) -> m.Got:
    return _got([] if entry is None else [entry], more=False)


def _got_range(state: Any, prefix: bytes, after: bytes, limit: int) -> m.Got:
    found: list[m.Entry] = state.range(prefix, after, limit + 1)
    return _got(found[:limit], more=len(found) > limit)


def _got(entries: list[m.Entry], *, more: bool) -> m.Got:
    """As many of `entries` as fit one answer; a large value comes alone, and later."""
    fitting: list[m.Entry] = []
    large: list[tuple[int, int]] = []
    size = 0
    for entry in entries:
        size += len(entry.key) + len(entry.value) + 32
        if size > m.WHOLE_BYTES_MAX:
            if fitting:
                return m.Got(tuple(fitting), True)
            large.append((0, len(entry.value)))
            bare = msgspec.structs.replace(entry, value=b"")
            return m.Got((bare,), more or len(entries) > 1, tuple(large))
        fitting.append(entry)
    return m.Got(tuple(fitting), more)


def _piece(state: Any, key: bytes, revision: int, offset: int) -> m.Piece:
    value = _value_at(state, key, revision) if state is not None else None
    if value is None:
        raise Conflict("the value has changed since")
    if not 0 <= offset < len(value):
        raise BadRequest(f"a value of {len(value)} bytes has no offset {offset}")
    return m.Piece(len(value), value[offset : offset + m.PIECE_BYTES])


def _value_at(state: Any, key: bytes, revision: int) -> bytes | None:
    """The value that `key` got at `revision`, if it has it still or the history keeps it."""
    entry: m.Entry | None = state.get(key)
    if entry is not None and entry.mod_revision == revision:
        return entry.value
    change: m.Change | None = state.history.at(revision, key)
    return None if change is None else change.value
