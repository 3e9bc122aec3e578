"""The ring of keys: which there are, which of them this node holds, and how more are made.

A key is on the disks of a majority of the voters before it gets into the ring, and nothing is
sealed under a key that is not in it. So what was sealed can be opened as long as the store itself
can be read. Whatever is sealed is written with a comparison of the ring's revision (`while_as`):
had the ring changed meanwhile, it would not be written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, Protocol

import msgspec
import trio

from swarmd.base.errors import (
    Conflict,
    Forbidden,
    InsufficientCopies,
    NotCoordinator,
    RemoteError,
    SwarmError,
    Unavailable,
)
from swarmd.base.ids import NodeId, short
from swarmd.identity.authority import Admission
from swarmd.identity.sealing import SealingKey
from swarmd.mesh.link import Link
from swarmd.observe.log import get_logger
from swarmd.state.raft.messages import Compare, Entry, Operation, OpResult, Put
from swarmd.state.secrets.keyring import Keyring
from swarmd.state.secrets.machine import Facts, retired, ring_with
from swarmd.state.secrets.messages import SECRETS, HeldKey, Keep, Kept, Keys, KeysAsk, RingAsk
from swarmd.state.secrets.records import (
    RING_KEY,
    Box,
    RingRecord,
    decode_ring,
)

_log = get_logger("secrets")
ASK_TIMEOUT_S: Final = 3.0
_MAKE_TIMEOUT_S: Final = 10.0
_RACES_MAX: Final = 5
# Members that are asked for a key one after the other, voters first.
_ASKED_MAX: Final = 16
_VOTER: Final = "voter"
_WORKER: Final = "worker"


class Store(Protocol):
    """What this room asks of the strong store."""

    @property
    def office(self) -> object | None: ...
    @property
    def voters(self) -> Sequence[NodeId]: ...
    def coordinator(self) -> NodeId | None: ...
    async def office_changed(self) -> None: ...
    def store_time_ms(self) -> int: ...
    async def propose(
        self, ops: Sequence[Operation], *, timeout_s: float = 5.0
    ) -> Sequence[OpResult]: ...
    async def get(self, key: bytes, *, stale: bool = False) -> Entry | None: ...
    async def range(
        self, prefix: bytes, *, after: bytes = b"", limit: int = 1_000, stale: bool = False
    ) -> Sequence[Entry]: ...
    def watch(self, prefix: bytes, from_revision: int | None = None) -> Any: ...


class Trust(Protocol):
    @property
    def swarm_id(self) -> bytes: ...
    @property
    def version(self) -> int: ...
    def admission(self, node_id: NodeId) -> Admission | None: ...
    def evicted(self) -> frozenset[NodeId]: ...
    async def changed(self, version: int) -> object: ...


class Membership(Protocol):
    def alive(self) -> list[NodeId]: ...


class Ring:
    """This node's part in it. `on_change` is called when the ring is another one than before."""

    def __init__(
        self,
        store: Store,
        trust: Trust,
        link: Link,
        membership: Membership,
        keyring: Keyring,
    ) -> None:
        self._store = store
        self._trust = trust
        self._link = link
        self._membership = membership
        self._keyring = keyring
        self._making = trio.Lock()
        self.record: RingRecord | None = None
        self.revision = 0
        self.on_change: Callable[[], None] = lambda: None

    # ---- who may ---------------------------------------------------------------------

    @property
    def may_hold(self) -> bool:
        """May this node have keys?"""
        return self.may_be_held_by(self._link.node_id)

    def may_be_held_by(self, node: NodeId) -> bool:
        """By the authority log; never by those who were shut out."""
        admission = self._trust.admission(node)
        return admission is not None and not admission.evicted and _VOTER in admission.roles

    def works(self, node: NodeId) -> bool:
        """Does this member run agents, by the authority log?"""
        admission = self._trust.admission(node)
        return admission is not None and not admission.evicted and _WORKER in admission.roles

    def holders(self) -> list[NodeId]:
        """Other members that may hold keys and seem to be there, voters first; a few of them."""
        alive = set(self._membership.alive())
        voters = [node for node in self._store.voters if node in alive]
        others = [node for node in self._membership.alive() if node not in voters]
        me = self._link.node_id
        found = [node for node in (*voters, *others) if node != me and self.may_be_held_by(node)]
        return found[:_ASKED_MAX]

    def facts(self, sealed_under: frozenset[bytes] | None) -> Facts:
        return Facts(
            may_hold=self.may_hold,
            in_office=self._store.office is not None,
            ring=self.record,
            held=self._keyring.ids,
            evicted=len(self._trust.evicted()),
            now_ms=self._store.store_time_ms(),
            sealed_under=sealed_under,
        )

    # ---- sealing and opening ---------------------------------------------------------

    async def to_seal(self) -> tuple[RingRecord, Compare]:
        """A ring whose newest key is held here, and the comparison that what is sealed goes with.

        Makes one if there is none.

        Raises:
            InsufficientCopies, NoQuorum, Unavailable: no key can be had now; nothing was sealed.
        """
        for _ in range(_RACES_MAX):
            await self.read()
            if self.record is not None and self.record.newest.id in self._keyring.ids:
                return self.record, self.while_as()
            if self._store.office is not None:
                await self.ensure()
            else:
                await self._have_ensured()
        raise Unavailable("the keys for secrets are on their way to this node: try again")

    def while_as(self) -> Compare:
        """Holds as long as the ring is the one that is known here."""
        return Compare(RING_KEY, revision=self.revision)

    def seal(self, ring: RingRecord, data: bytes, about: bytes) -> Box:
        return self._keyring.seal(ring.newest.id, data, about)

    async def open(self, box: Box, about: bytes, what: str) -> bytes:
        """What is in a box; asks others for the key if it is not here. Raises SecretUnreadable."""
        if box.key not in self._keyring.ids:
            await self.fetch({box.key})
        return self._keyring.open(box, about, what)

    def holds(self, key_id: bytes) -> bool:
        return key_id in self._keyring.ids

    # ---- the ring --------------------------------------------------------------------

    async def read(self) -> None:
        """Learn the ring as it is in the store now; drop keys that are in it no more."""
        entry = await self._store.get(RING_KEY)
        record = decode_ring(entry.value) if entry is not None else None
        revision = entry.mod_revision if entry is not None else 0
        if revision < self.revision:
            return  # Another reading was faster.
        changed = revision != self.revision
        self.record, self.revision = record, revision
        if changed:
            if self.may_hold:
                self._keyring.prune(record, revision)
            self.on_change()

    async def ensure(self, *, fresh: bool = False) -> None:
        """In office: see to it that there is a ring whose newest key is held here.

        Args:
            fresh: make another key in any case.

        Raises:
            InsufficientCopies: too few voters could keep it. Nothing changed.
            NotCoordinator: this node is not in office.
        """
        async with self._making:
            await self.read()
            if self._store.office is None:
                raise NotCoordinator("another node makes the keys for secrets: ask it")
            if self.record is not None and not self.holds(self.record.newest.id):
                await self.fetch(self.record.ids)
            if not fresh and self.record is not None and self.holds(self.record.newest.id):
                return
            await self._make_key()

    async def _make_key(self) -> None:
        # Of before the key goes to others: who is shut out from now on may have it.
        evicted = len(self._trust.evicted())
        key = SealingKey.generate()
        held = HeldKey(key.raw(), self.revision)
        self._keyring.keep([held], self.record)
        await self._spread(held)
        now_ms = self._store.store_time_ms()
        await self._put(ring_with(self.record, key.id, now_ms, evicted))
        _log.info("a key for secrets was made", key=key.id.hex()[:8])

    async def retire(self, sealed_under: frozenset[bytes]) -> None:
        """In office: drop keys that nothing is sealed under."""
        if self.record is None:
            return
        gone = retired(self.record, sealed_under, self._store.store_time_ms())
        kept = tuple(key for key in self.record.keys if key not in gone)
        await self._put(msgspec.structs.replace(self.record, keys=kept))
        _log.info("keys for secrets were dropped", count=len(gone))

    async def _put(self, record: RingRecord) -> None:
        put = Put(RING_KEY, msgspec.msgpack.encode(record), self.revision)
        [result] = await self._store.propose([put])
        result.raise_for_error()
        await self.read()

    # ---- keys from and to others -----------------------------------------------------

    async def fetch(self, ids: Collection[bytes]) -> None:
        """Ask others for these keys, until none is missing or all were asked."""
        for node in self.holders():
            missing = set(ids) - self._keyring.ids
            if not missing:
                return
            with trio.move_on_after(ASK_TIMEOUT_S):
                try:
                    keys = await self._ask(node, KeysAsk())
                    self._keyring.keep(
                        [key for key in keys if SealingKey(key.raw).id in missing], self.record
                    )
                except SwarmError as error:
                    _log.debug("no keys from a member", peer=short(node), why=error.message)

    async def _have_ensured(self) -> None:
        """Have the coordinator make a ring, and take its keys."""
        office = self._store.coordinator()
        if office is None or office == self._link.node_id:
            await trio.sleep(0.2)  # An election is under way.
            return
        keys = await self._ask(office, RingAsk(), _MAKE_TIMEOUT_S)
        self._keyring.keep(keys, self.record)

    async def _ask(
        self, node: NodeId, message: KeysAsk | RingAsk, timeout_s: float = ASK_TIMEOUT_S
    ) -> Sequence[HeldKey]:
        answer = await self._link.request(SECRETS, node, message, timeout_s=timeout_s)
        if not isinstance(answer, Keys):
            raise RemoteError("not the keys that were asked for")
        return answer.keys

    async def _spread(self, key: HeldKey) -> None:
        """Have a majority of the voters, this one among them, keep a key."""
        me, voters = self._link.node_id, self._store.voters
        kept = {me}

        async def give(node: NodeId) -> None:
            try:
                answer = await self._link.request(
                    SECRETS, node, Keep((key,)), timeout_s=ASK_TIMEOUT_S
                )
            except SwarmError as error:
                _log.debug("a member keeps no key", peer=short(node), why=error.message)
                return
            if isinstance(answer, Kept):
                kept.add(node)

        async with trio.open_nursery() as nursery:
            for node in voters:
                if node != me and self.may_be_held_by(node):
                    nursery.start_soon(give, node)
        if 2 * len(kept & set(voters)) <= len(voters):
            raise InsufficientCopies(
                f"a key for secrets must be kept by a majority of the {len(voters)} voters, and "
                f"{len(kept)} could; nothing was changed"
            )

    # ---- answering -------------------------------------------------------------------

    async def answer(self, peer: NodeId, message: KeysAsk | Keep | RingAsk) -> Keys | Kept:
        """Raises Forbidden: the peer may have no keys, or this node may not."""
        if not self.may_be_held_by(peer) or not self.may_hold:
            raise Forbidden("only members that may vote have keys for secrets")
        if isinstance(message, Keep):
            self._keyring.keep(message.keys, self.record)
            return Kept()
        if isinstance(message, RingAsk):
            await self.ensure(fresh=message.fresh)
        return Keys(self._keyring.held())

    def forget(self) -> None:
        self._keyring.forget()


def raise_unless_raced(result: OpResult) -> None:
    """Raise what went wrong, unless others were faster: then it may be tried again."""
    if not result.ok and result.code != Conflict.code:
        result.raise_for_error()
