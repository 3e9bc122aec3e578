"""What this node knows of who belongs: one verified chain on disk, kept level with the peers.

Invariant: the chain only grows, every record of it was verified here, and a record is on
this disk before anything rests on it. Two different records for one height are a fork: the
one held stays, the other is refused and counted.

How it spreads: who learns records from its own strong store sends them to every member at
once; who learns them from a peer passes them to a few more, and everybody compares heights
with a random member every few seconds. The first makes an admission known in one round trip,
the last makes sure that nobody stays behind whatever was lost (anti-entropy: Demers et al.,
"Epidemic algorithms for replicated database maintenance", 1987, section 1.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec
import trio

from swarmd.base.disk import Disk, open_body, seal_body
from swarmd.base.errors import (
    Conflict,
    CorruptFile,
    MalformedMessage,
    NotFound,
    SwarmError,
    Untrusted,
)
from swarmd.base.ids import NodeId, SwarmId, short
from swarmd.base.limits import KIB, MESSAGE_BYTES_MAX
from swarmd.base.rng import Rng, make_rng
from swarmd.identity.authority import (
    RECORDS_MAX,
    Admission,
    AuthorityState,
    LoggedToken,
    record_hash,
)
from swarmd.identity.entries import RECORD_BYTES_MAX, decode_record
from swarmd.identity.genesis import Genesis, decode_genesis, encode_genesis
from swarmd.mesh.link import Inbound, Link
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import DROPPED
from swarmd.wire.codec import Family, Message, decode_struct, encode_struct

FILE_NAME: Final = "authority"
_FILE_KIND: Final = "trust"
_FILE_FORMAT: Final = 1

ASK_INTERVAL_S: Final = 5.0
ASK_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 1.0
PASS_ON_PEERS: Final = 3
PAGE_RECORDS_MAX: Final = 256
PAGE_BYTES_MAX: Final = 256 * KIB
_PAGES_MAX: Final = RECORDS_MAX  # Each page brings at least one record.
_PENDING_ASKS_MAX: Final = 64
assert PAGE_BYTES_MAX + RECORD_BYTES_MAX < MESSAGE_BYTES_MAX

_log = get_logger("trust")


class Ask(Message, frozen=True, tag=1):
    """Send me the records above `height`, which is where I am."""

    height: int


class Records(Message, frozen=True, tag=2):
    """Records in order from `first` on, and the sender's height; also sent unasked."""

    first: int
    height: int
    records: tuple[bytes, ...]


TRUST: Final = Family("trust", Ask, Records)


class Alive(Protocol):
    """What this room needs of membership."""

    def alive(self) -> list[NodeId]:
        """Members thought alive, this node among them."""
        ...


class _Stored(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    genesis: bytes
    records: tuple[bytes, ...]


class Trust:
    """One node's verified chain. Make it with `open_trust`."""

    def __init__(self, disk: Disk, state: AuthorityState) -> None:
        self._disk = disk
        self._state = state
        self._version = 1
        self._wake = trio.Event()
        self._own: int = state.head[0]  # Up to here learned from this node's own store.

    @property
    def swarm_id(self) -> SwarmId:
        return self._state.swarm_id

    @property
    def genesis(self) -> Genesis:
        return self._state.genesis

    @property
    def head(self) -> tuple[int, bytes]:
        """Height and hash of the newest record."""
        return self._state.head

    @property
    def version(self) -> int:
        """Rises whenever records were learned; starts at 1."""
        return self._version

    @property
    def min_version(self) -> int:
        """The lowest protocol version that members may speak."""
        return self._state.min_version

    @property
    def signing_keys(self) -> dict[bytes, bytes]:
        """Public key by key id of every node whose signature counts: admitted, not evicted."""
        return {
            bytes(x.node_id): x.public for x in self._state.admissions.values() if not x.evicted
        }

    def admission(self, node_id: NodeId) -> Admission | None:
        """The node's admission, None if it has none or was evicted."""
        found = self._state.admissions.get(node_id)
        return None if found is None or found.evicted else found

    def evicted(self) -> frozenset[NodeId]:
        """Everybody who was shut out."""
        return frozenset(x.node_id for x in self._state.admissions.values() if x.evicted)

    def admissions(self) -> list[Admission]:
        """Admissions of all nodes that are not evicted, in the order of the log."""
        return [x for x in self._state.admissions.values() if not x.evicted]

    def admissions_by_id(self) -> dict[NodeId, Admission]:
        """All admissions, the evicted ones with their mark."""
        return dict(self._state.admissions)

    def token(self, token_id: NodeId) -> LoggedToken | None:
        """What the log knows of a join token, None if it has none of that id."""
        return self._state.tokens.get(token_id)

    @property
    def store_time_ms(self) -> int:
        """Store time of the newest record: the present is that or later."""
        return self._state.store_time_ms

    def records_from(self, height: int, limit: int = PAGE_RECORDS_MAX) -> list[bytes]:
        """Up to `limit` records above `height`, in order."""
        return self._state.records_from(height, limit)

    def hash_at(self, height: int) -> bytes | None:
        """The hash of the record at `height`, None beyond the head."""
        return self._state.hash_at(height)

    def check(self, raw_entry: bytes) -> None:
        """Raise what the log would raise for this entry now, as far as this node can see.

        Store time moves on between records, so an expiry may be noticed only by the log.
        """
        self._state.check(raw_entry, self.store_time_ms)

    def learn(self, records: Sequence[bytes], *, from_peer: bool = False) -> int:
        """Verify records, write them down, and let them count. All or none.

        Args:
            records: consecutive records; those that are held already are skipped.
            from_peer: they came from another node rather than from this one's own store.

        Returns:
            How many were new.

        Raises:
            Untrusted: they contradict the chain, or leave a gap.
            SwarmError: one of them is invalid in itself.
            DiskFault: they could not be written.
        """
        fresh = [raw for raw in records if not self._holds(raw)]
        if fresh:
            state = self._state.copy()
            for raw in fresh:
                state.replay(raw)
            _write(self._disk, state)
            self._state = state
        if not from_peer:
            self._own = max(self._own, self._last_height(records))
        if fresh:
            self._version += 1
            self._wake.set()
            self._wake = trio.Event()
        return len(fresh)

    async def changed(self, version: int) -> int:
        """Wait until `version` is no longer the present one; the present one."""
        while self._version == version:
            await self._wake.wait()
        return self._version

    def learned_here(self, height: int) -> bool:
        """Whether the record at `height` came from this node's own store."""
        return height <= self._own

    def _holds(self, raw: bytes) -> bool:
        height = decode_record(raw).height
        held = self._state.hash_at(height)
        if held is None or height < 1:
            return False
        if held != record_hash(raw):
            raise Untrusted(f"two different authority records for height {height}")
        return True

    def _last_height(self, records: Sequence[bytes]) -> int:
        return decode_record(records[-1]).height if records else 0


def has_trust(disk: Disk) -> bool:
    """Whether this node belongs to a swarm already."""
    return disk.read(FILE_NAME) is not None


def open_trust(disk: Disk, genesis: Genesis | None = None, records: Sequence[bytes] = ()) -> Trust:
    """The chain on this disk; with `genesis`, a new one if there is none.

    Args:
        disk: the node's data folder.
        genesis: the swarm that the caller means to be in.
        records: what was learned while joining.

    Raises:
        NotFound: nothing is stored and no genesis was given.
        Conflict: the disk belongs to another swarm than `genesis`.
        CorruptFile: the file is damaged, or its chain does not verify.
        DiskFault: it could not be written.
    """
    raw = disk.read(FILE_NAME)
    if raw is None:
        if genesis is None:
            raise NotFound("this node belongs to no swarm yet: start it with --init or --join")
        state = AuthorityState.load(genesis, records)
        _write(disk, state)
        return Trust(disk, state)
    trust = Trust(disk, _read(raw))
    if genesis is not None:
        if genesis.swarm_id != trust.swarm_id:
            raise Conflict(
                f"the data folder belongs to the swarm {trust.genesis.name} "
                f"({short(trust.swarm_id)}), not to {genesis.name} ({short(genesis.swarm_id)})"
            )
        trust.learn(records)
    return trust


def _write(disk: Disk, state: AuthorityState) -> None:
    stored = _Stored(encode_genesis(state.genesis), tuple(state.dump()))
    disk.replace(FILE_NAME, seal_body(_FILE_KIND, _FILE_FORMAT, encode_struct(stored)))


def _read(raw: bytes) -> AuthorityState:
    body = open_body(_FILE_KIND, _FILE_FORMAT, raw, source=FILE_NAME)
    try:
        stored: _Stored = decode_struct(_Stored, body)
        return AuthorityState.load(decode_genesis(stored.genesis), stored.records)
    except CorruptFile:
        raise
    except SwarmError as error:
        raise CorruptFile(f"{FILE_NAME} does not verify: {error.message}") from error


# ---- keeping level with the peers ------------------------------------------------------


async def serve_trust(
    trust: Trust, link: Link, membership: Alive, *, rng: Rng | None = None
) -> None:
    """Answer, push and compare until cancelled.

    Args:
        rng: picks whom to ask; by default one seeded by the node's id.
    """
    keeper = _Keeper(trust, link, membership, rng or make_rng(bytes(link.node_id)))
    inbox = link.open_inbox(TRUST)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.receive, inbox)
        nursery.start_soon(keeper.push)
        nursery.start_soon(keeper.compare)
        nursery.start_soon(keeper.catch_up)


class _Keeper:
    def __init__(self, trust: Trust, link: Link, membership: Alive, rng: Rng) -> None:
        self._trust = trust
        self._link = link
        self._membership = membership
        self._rng = rng
        self._ahead_send, self._ahead = trio.open_memory_channel[NodeId](_PENDING_ASKS_MAX)

    async def receive(self, inbox: trio.MemoryReceiveChannel[Inbound]) -> None:
        async for inbound in inbox:
            message = inbound.message
            if isinstance(message, Ask):
                # A peer that takes nothing must not keep the others waiting.
                with trio.move_on_after(ANSWER_TIMEOUT_S):
                    await inbound.answer(page(self._trust, message.height))
                if message.height > self._trust.head[0]:
                    self._note_ahead(inbound.peer)
            else:
                self._take(inbound.peer, message)

    async def push(self) -> None:
        """Tell the others as soon as there is news."""
        told = self._trust.head[0]
        version = self._trust.version
        while True:
            version = await self._trust.changed(version)
            height = self._trust.head[0]
            peers = self._peers()
            if not self._trust.learned_here(height) and len(peers) > PASS_ON_PEERS:
                peers = self._rng.sample(peers, PASS_ON_PEERS)
            message = page(self._trust, told)
            for peer in peers:
                self._link.send_nowait(TRUST, peer, message)
            told = height

    async def compare(self) -> None:
        """Ask a random member now and then."""
        while True:
            peers = self._peers()
            if peers:
                await self._ask(self._rng.choice(peers))
            await trio.sleep(ASK_INTERVAL_S * self._rng.uniform(0.8, 1.2))

    async def catch_up(self) -> None:
        """Ask those that turned out to be ahead."""
        async for peer in self._ahead:
            await self._ask(peer)

    async def _ask(self, peer: NodeId) -> None:
        for _ in range(_PAGES_MAX):
            before = self._trust.head[0]
            try:
                answer = await self._link.request(TRUST, peer, Ask(before), timeout_s=ASK_TIMEOUT_S)
            except SwarmError:
                return  # Unreachable now; another member is asked in a few seconds.
            if not isinstance(answer, Records):
                DROPPED.labels("trust", "malformed").inc()
                return
            self._learn(peer, answer)
            if self._trust.head[0] == before or answer.height <= self._trust.head[0]:
                return

    def _take(self, peer: NodeId, message: Records) -> None:
        if message.first <= self._trust.head[0] + 1:
            self._learn(peer, message)
        if message.height > self._trust.head[0]:
            self._note_ahead(peer)

    def _learn(self, peer: NodeId, message: Records) -> None:
        try:
            if len(message.records) > PAGE_RECORDS_MAX:
                raise MalformedMessage("a page of authority records is too long")
            self._trust.learn(message.records, from_peer=True)
        except SwarmError as error:  # A bad record, or a disk that is full: asked again later.
            DROPPED.labels("trust", error.code).inc()
            _log.warning("authority records refused", peer=short(peer), why=error.message)

    def _note_ahead(self, peer: NodeId) -> None:
        try:
            self._ahead_send.send_nowait(peer)
        except trio.WouldBlock:
            DROPPED.labels("trust", "busy").inc()

    def _peers(self) -> list[NodeId]:
        known = {*self._membership.alive(), *self._link.connected()} - {self._link.node_id}
        return sorted(known)


def page(trust: Trust, height: int) -> Records:
    """The records above `height`, as many as one message takes."""
    records: list[bytes] = []
    size = 0
    first = min(max(0, height), trust.head[0])
    for raw in trust.records_from(first, PAGE_RECORDS_MAX):
        size += len(raw)
        if records and size > PAGE_BYTES_MAX:
            break
        records.append(raw)
    return Records(first + 1, trust.head[0], tuple(records))
