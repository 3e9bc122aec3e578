"""Who is here: the membership machine with datagrams, streams, a disk and a clock.

`open_membership` is a member of the swarm for as long as its block runs. Two checked files are
its own: `starts`, a counter raised and made durable before the first word of each start, so that
a restarted node outranks every rumour about its earlier lives; and `members`, the addresses of
known members, for a fast return. A third, `events`, is `mesh.events`'.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final, Protocol

import msgspec
import trio

from swarmd.base.clock import Clock
from swarmd.base.disk import Disk, open_body, seal_body
from swarmd.base.errors import Busy, CorruptFile, DiskFault, MalformedMessage, SwarmError
from swarmd.base.ids import NodeId, short
from swarmd.base.machine import Event, Send
from swarmd.base.rng import Rng
from swarmd.mesh.driver import Driver
from swarmd.mesh.events.service import UserEvents, load_kept
from swarmd.mesh.link import Inbound, Link
from swarmd.mesh.swim.config import SwimConfig, settle
from swarmd.mesh.swim.coordinates import Coordinate
from swarmd.mesh.swim.events import (
    Changed,
    Departed,
    HowClosed,
    Join,
    Leave,
    Member,
    NameConflict,
    PacketIn,
    Refused,
    SetMeta,
    Started,
    StreamAnswered,
    StreamClosed,
    StreamProbe,
    SyncFailed,
    SyncIn,
    SyncWith,
    TrustChanged,
)
from swarmd.mesh.swim.ledger import Signer
from swarmd.mesh.swim.machine import SwimMachine
from swarmd.mesh.swim.messages import (
    SWIM,
    Address,
    MemberState,
    Meta,
    StreamPing,
    Sync,
    encode_meta,
)
from swarmd.mesh.swim.place import keep_place, last_place
from swarmd.mesh.swim.tags import checked_tags
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import DROPPED, MEMBERS, VIEW_BYTES
from swarmd.wire.codec import decode_struct, encode_struct

__all__ = [
    "Datagrams",
    "Member",
    "MemberChange",
    "MemberChanges",
    "MemberState",
    "Membership",
    "Meta",
    "Remembered",
    "open_membership",
]

MemberChange = Changed

CHANGES_MAX: Final = 1_000
_SYNCS_MAX: Final = 16
_ANSWERED_MAX: Final = 64
_SUBSCRIBERS_MAX: Final = 256
_REMEMBER_EVERY_S: Final = 1.0
_FORMAT: Final = 1
_STARTS: Final = "starts"
_MEMBERS: Final = "members"

_log = get_logger("swim")


class Datagrams(Protocol):
    """What membership asks of the datagram transport, which authenticates every peer."""

    @property
    def inbox(self) -> trio.MemoryReceiveChannel[tuple[NodeId, bytes]]: ...

    def send_nowait(self, peer: NodeId, addresses: tuple[Address, ...], data: bytes) -> bool:
        """Send at most PACKET_BYTES_MAX bytes; False if they were dropped here.

        `addresses` is where the peer says it is: empty if only the transport may know.
        """
        ...


class Remembered(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A member as an earlier start of this node knew it."""

    node_id: bytes
    name: str
    addresses: tuple[tuple[str, int], ...]


class _Starts(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    count: int


class MemberChanges:
    """Changes from the moment of subscribing on, in order: an async iterator.

    At most CHANGES_MAX wait. Beyond that changes are dropped and `lagged` becomes true: read
    `Membership.members` again and set it back.
    """

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._waiting: deque[Changed] = deque()
        self._wake = trio.Event()
        self.lagged = False

    def __aiter__(self) -> MemberChanges:
        return self

    async def __anext__(self) -> Changed:
        return await self.receive()

    def __enter__(self) -> MemberChanges:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def receive(self) -> Changed:
        """The next change. Cancelled, it takes none."""
        while not self._waiting:
            self._wake = trio.Event()
            await self._wake.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        return self._waiting.popleft()

    def receive_nowait(self) -> Changed:
        """The next change. Raises trio.WouldBlock if there is none."""
        if not self._waiting:
            raise trio.WouldBlock
        return self._waiting.popleft()

    def close(self) -> None:
        """Stop listening."""
        self._membership._unsubscribe(self)

    def _push(self, change: Changed) -> None:
        if len(self._waiting) >= CHANGES_MAX:
            self.lagged = True
            return
        self._waiting.append(change)
        self._wake.set()


class Membership:
    """This node's view of the swarm; made by `open_membership`."""

    def __init__(
        self,
        machine: SwimMachine,
        link: Link,
        datagrams: Datagrams,
        disk: Disk,
        config: SwimConfig,
        clock: Clock,
        meta: Meta,
        remembered: list[Remembered],
        nursery: trio.Nursery,
    ) -> None:
        self.node_id = machine.me
        self._machine = machine
        self._link = link
        self._datagrams = datagrams
        self._disk = disk
        self._config = config
        self._meta = meta
        self._remembered = remembered
        self._remembered_addresses = {NodeId(r.node_id): r.addresses for r in remembered}
        self._nursery = nursery
        self._subscribers: list[MemberChanges] = []
        self._syncs = 0
        self._departed = trio.Event()
        self._changed = trio.Event()
        self._unsaved = trio.Event()
        self.events = UserEvents(machine.events, self._feed_or_fail, disk, clock)
        self._driver = Driver(
            "swim",
            machine,
            {
                Send: self._perform_send,
                SyncWith: self._perform_sync,
                StreamProbe: self._perform_stream_probe,
                Changed: self._perform_changed,
                NameConflict: self._perform_name_conflict,
                Departed: lambda _: self._departed.set(),
                Refused: lambda effect: DROPPED.labels("swim", effect.reason).inc(),
                **self.events.performers,
            },
            clock=clock,
        )

    # ---- what upper rooms ask ------------------------------------------------------------

    def members(self) -> list[Member]:
        """Everyone known, this node included, by name and then id."""
        return sorted(self._machine.members(), key=lambda m: (m.name, m.node_id))

    def get(self, node_id: NodeId) -> Member | None:
        return self._machine.get(node_id)

    def alive(self) -> list[NodeId]:
        """Members held alive, this node included, in a stable order; suspects are not in it."""
        return self._machine.alive()

    def remembered(self) -> list[Remembered]:
        """Members whom an earlier start of this node knew, with their addresses then."""
        return list(self._remembered)

    def subscribe(self) -> MemberChanges:
        """Changes from now on. Close it, or use it in a `with`.

        Raises:
            Busy: there are too many subscribers; one of them leaks.
        """
        if len(self._subscribers) >= _SUBSCRIBERS_MAX:
            raise Busy(f"{_SUBSCRIBERS_MAX} subscribers listen to membership already")
        changes = MemberChanges(self)
        self._subscribers.append(changes)
        return changes

    def watched(self) -> list[NodeId]:
        """Members to whom a connection is to be kept, so that the end of their process shows."""
        return self._machine.watched()

    def keeps(self, peer: NodeId) -> bool:
        """True if a connection with `peer` is kept even where it has nothing to say."""
        return self._machine.keeps(peer)

    def stream_only(self) -> list[NodeId]:
        """Members that answer a stream and no datagram; see `SwimMachine.stream_only`."""
        return self._machine.stream_only()

    def coordinate(self, node_id: NodeId) -> Coordinate | None:
        """Where a member is, as it told this node; None if it did not, or has no place yet."""
        return self._machine.coordinate(node_id)

    def estimate_s(self, node_id: NodeId) -> float | None:
        """The round trip from here to a member in seconds; None while either has no place."""
        return self._machine.estimate_s(node_id)

    async def changed(self) -> None:
        """Wait until anything of a member changes next."""
        await self._changed.wait()

    async def seen(self, node_id: NodeId, state: MemberState) -> Member:
        """Wait until a member is seen in `state`; at once if it is so now."""
        while True:
            member = self.get(node_id)
            if member is not None and member.state is state:
                return member
            await self._changed.wait()

    @property
    def own_tags(self) -> dict[str, str]:
        """What this node tells of itself by now."""
        return dict(self._meta.tags)

    # ---- what this node tells ------------------------------------------------------------

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tell everyone these tags of this node instead of the former ones.

        Raises:
            BadRequest, TooLarge: see `checked_tags`; nothing is changed.
        """
        self._set_meta(msgspec.structs.replace(self._meta, tags=checked_tags(tags)))

    def set_roles(self, roles: tuple[str, ...]) -> None:
        """Tell everyone these roles of this node. Raises as `encode_meta`."""
        self._set_meta(msgspec.structs.replace(self._meta, roles=roles))

    def set_addresses(self, addresses: tuple[Address, ...]) -> None:
        """Tell everyone that this node is now there. Raises as `encode_meta`."""
        self._set_meta(msgspec.structs.replace(self._meta, addresses=addresses))

    def join(self, *peers: NodeId) -> None:
        """Exchange views with peers in the background; each is tried until it is known."""
        self._feed(Join(peers))

    def stream_closed(self, peer: NodeId, how: HowClosed, quiet_s: float = 0.0) -> None:
        """Tell how a stream to `peer` ended: a broken one is a hint that the peer is gone."""
        self._feed(StreamClosed(peer, how, quiet_s))

    def trust_changed(self, evicted: Iterable[NodeId] = ()) -> None:
        """Tell that keys were learnt, so that their owners' words can be believed now.

        Args:
            evicted: all who were shut out so far; they are no members any more.
        """
        self._feed(TrustChanged(frozenset(evicted)))

    async def leave(self) -> None:
        """Say goodbye, so that others hold this node `left` instead of dead.

        Returns within the configured leave timeout. Cancelled, the goodbye goes on being said
        until the block of `open_membership` ends.
        """
        self._feed(Leave())
        with trio.move_on_after(self._config.leave_timeout_s + 1.0):
            await self._departed.wait()

    # ---- effects -------------------------------------------------------------------------

    def _perform_send(self, effect: Send) -> None:
        addresses = self._machine.addresses(effect.peer)
        if not addresses:
            addresses = self._remembered_addresses.get(effect.peer, ())
        if not self._datagrams.send_nowait(effect.peer, addresses, effect.message):
            DROPPED.labels("swim", "unsent").inc()

    def _perform_sync(self, effect: SyncWith) -> None:
        if self._syncs >= _SYNCS_MAX:
            self._feed(SyncFailed(effect.peer))
            return
        self._syncs += 1
        self._nursery.start_soon(self._sync, effect.peer)

    def _perform_stream_probe(self, effect: StreamProbe) -> None:
        if self._syncs >= _SYNCS_MAX:
            self._feed(StreamAnswered(effect.peer, effect.sequence, False))
            return
        self._syncs += 1
        self._nursery.start_soon(self._stream_probe, effect)

    def _perform_changed(self, change: Changed) -> None:
        self._changed.set()
        self._changed = trio.Event()
        self._unsaved.set()
        counts = Counter(member.state for member in self._machine.members())
        for state in MemberState:
            MEMBERS.labels(str(state)).set(counts[state])
        member = change.after or change.before
        was = str(change.before.state) if change.before else "unknown"
        now = str(change.after.state) if change.after else "forgotten"
        if member is not None and was != now:
            _log.info("member", node=member.name, id=short(member.node_id), was=was, now=now)
        for subscriber in self._subscribers:
            subscriber._push(change)

    def _perform_name_conflict(self, conflict: NameConflict) -> None:
        ids = ", ".join(short(one) for one in conflict.holders)
        if conflict.over:
            _log.info("name conflict over", name=conflict.name, ids=ids)
            return
        own = self.node_id in conflict.holders
        _log.warning("several living members carry one name", name=conflict.name, ids=ids, own=own)

    # ---- loops ---------------------------------------------------------------------------

    async def _run(self, syncs: trio.MemoryReceiveChannel[Inbound]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._driver.run)
            nursery.start_soon(self._receive_packets)
            nursery.start_soon(self._serve_syncs, syncs)
            nursery.start_soon(self._remember)
            nursery.start_soon(self.events.save)
            self._feed(Started())
            peers = tuple(NodeId(r.node_id) for r in self._remembered)
            if peers:
                self._feed(Join(peers))

    async def _receive_packets(self) -> None:
        async for peer, data in self._datagrams.inbox:
            self._feed(PacketIn(peer, data))

    async def _serve_syncs(self, inbox: trio.MemoryReceiveChannel[Inbound]) -> None:
        """Answer views and pings, one of each at a time for a peer: it may not read."""
        config = self._config
        pinged: set[NodeId] = set()
        synced: set[NodeId] = set()
        async with trio.open_nursery() as nursery:
            async for inbound in inbox:
                message = inbound.message
                asked = isinstance(message, StreamPing)
                if not asked:
                    heard = SyncIn(inbound.peer, tuple(message.rumours), news=message.news)
                    self._feed(heard)
                under_way = pinged if asked else synced
                if inbound.peer in under_way or len(under_way) >= _ANSWERED_MAX:
                    DROPPED.labels("swim", "busy").inc()
                    continue
                under_way.add(inbound.peer)
                answer = StreamPing() if asked else self._view(message.news)
                within_s = config.probe_timeout_s if asked else config.sync_timeout_s
                nursery.start_soon(_answer, inbound, answer, within_s, under_way)

    def _view(self, asked: bytes | None = None) -> Sync:
        """What this node tells of members and events; `asked`: in answer to this of events."""
        rumours, events = self._machine.view(), self._machine.events.told(asked)
        VIEW_BYTES.inc(sum(map(len, rumours)) + len(events))
        return Sync(rumours, events)

    async def _sync(self, peer: NodeId) -> None:
        try:
            answer = await self._link.request(
                SWIM, peer, self._view(), timeout_s=self._config.sync_timeout_s
            )
            if not isinstance(answer, Sync):
                raise MalformedMessage("a view was answered with something else")
        except SwarmError as error:
            _log.debug("sync failed", peer=short(peer), error=error.message)
            self._feed(SyncFailed(peer))
        else:
            self._feed(SyncIn(peer, tuple(answer.rumours), answer=True, news=answer.news))
        finally:
            self._syncs -= 1

    async def _stream_probe(self, effect: StreamProbe) -> None:
        peer, answered = effect.peer, False
        try:
            with trio.fail_after(effect.timeout_s):
                answer = await self._link.request(
                    SWIM, peer, StreamPing(), timeout_s=effect.timeout_s
                )
            answered = isinstance(answer, StreamPing)
        except (SwarmError, trio.TooSlowError) as error:
            _log.debug("stream probe failed", peer=short(peer), error=str(error))
        finally:
            self._syncs -= 1
        self._feed(StreamAnswered(peer, effect.sequence, answered))

    async def _remember(self) -> None:
        while True:
            await self._unsaved.wait()
            self._unsaved = trio.Event()
            await self._save()
            await trio.sleep(_REMEMBER_EVERY_S)

    async def _save(self) -> None:
        known = [
            Remembered(member.node_id, member.name, member.addresses)
            for member in self.members()
            if member.state is not MemberState.LEFT and member.node_id != self.node_id
        ]
        body = msgspec.msgpack.encode(known)
        try:
            await trio.to_thread.run_sync(
                self._disk.replace, _MEMBERS, seal_body(_MEMBERS, _FORMAT, body)
            )
        except DiskFault as error:
            # Only the speed of the next start is lost.
            _log.warning("members not saved", error=error.message)

    def _set_meta(self, meta: Meta) -> None:
        encode_meta(meta)
        self._meta = meta
        self._feed(SetMeta(meta))

    def _feed_or_fail(self, event: Event) -> None:
        self._driver.feed(event)

    def _feed(self, event: Event) -> None:
        try:
            self._driver.feed(event)
        except Busy:
            DROPPED.labels("swim", "busy").inc()

    def _unsubscribe(self, changes: MemberChanges) -> None:
        if changes in self._subscribers:
            self._subscribers.remove(changes)


@asynccontextmanager
async def open_membership(
    *,
    link: Link,
    datagrams: Datagrams,
    disk: Disk,
    signer: Signer,
    meta: Meta,
    config: SwimConfig,
    clock: Clock,
    rng: Rng,
    founder: bool = False,
) -> AsyncIterator[Membership]:
    """Be a member for as long as the block runs; call `leave` before its end to say goodbye.

    Args:
        disk: holds the files `starts`, `members` and `place` of this room, and `events`.
        meta: what this node says about itself.
        founder: it made the swarm; that counts at its first start.

    Raises:
        TooLarge: `meta` is too large.
        CorruptFile: the file `starts` is damaged.
        DiskFault: the start could not be counted.
    """
    encode_meta(meta)
    settled = settle(config)
    remembered = _load_members(disk)
    starts = _count_start(disk)
    machine = SwimMachine(
        link.node_id, config, rng, signer, meta, starts, clock.now(),
        kept=load_kept(disk), founder=founder and starts == 1,
    )  # fmt: skip
    place = last_place(disk)
    if place is not None:
        machine.begin_at(place)
    async with trio.open_nursery() as nursery:
        membership = Membership(
            machine, link, datagrams, disk, settled, clock, meta, remembered, nursery
        )
        nursery.start_soon(membership._run, link.open_inbox(SWIM))
        try:
            yield membership
        finally:
            keep_place(disk, machine.coordinate(machine.me))
            nursery.cancel_scope.cancel()


async def _answer(
    inbound: Inbound, answer: StreamPing | Sync, within_s: float, under_way: set[NodeId]
) -> None:
    try:
        with trio.move_on_after(within_s):
            await inbound.answer(answer)
    finally:
        under_way.discard(inbound.peer)


def _count_start(disk: Disk) -> int:
    raw = disk.read(_STARTS)
    count = 0
    if raw is not None:
        body = open_body(_STARTS, _FORMAT, raw, source=_STARTS)
        starts: _Starts = decode_struct(_Starts, body)
        count = starts.count
    disk.replace(_STARTS, seal_body(_STARTS, _FORMAT, encode_struct(_Starts(count + 1))))
    return count + 1


def _load_members(disk: Disk) -> list[Remembered]:
    try:
        raw = disk.read(_MEMBERS)
        if raw is None:
            return []
        body = open_body(_MEMBERS, _FORMAT, raw, source=_MEMBERS)
        known: list[Remembered] = decode_struct(list[Remembered], body)
    except (CorruptFile, MalformedMessage) as error:
        # It only speeds the return up: the swarm is found again without it.
        _log.warning("known members not read", error=error.message)
        return []
    return known
