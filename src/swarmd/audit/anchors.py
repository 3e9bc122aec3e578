"""The newest seal of each stream in the strong store, so that no tail is cut off unnoticed.

Copies of a chain tell of each other's holes, but not of records that are gone everywhere. What the
strong store names was there. The value is the seal, signed by its node, so nobody makes up another.

Invariant: what the store names is replaced by its node alone by what goes on from it. If a node's
disk does not hold it any more, because it was restored or cut, the seal is set aside under a key of
its own, where it stays as proof, and that is recorded. What others delete or bring back is put
right at the next look, and is missed meanwhile by whoever verifies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import trio

from swarmd.audit.chain import Sealed, open_seal
from swarmd.audit.lane import Lane
from swarmd.audit.records import STREAMS, Seal, Stream
from swarmd.audit.shelf import Shelf
from swarmd.base.errors import SwarmError
from swarmd.base.limits import MEMBERS_MAX
from swarmd.base.notes import Notes
from swarmd.base.rng import Rng
from swarmd.observe.log import get_logger
from swarmd.state.raft.messages import (
    ANCHOR_PREFIX,
    Compare,
    Delete,
    Entry,
    Operation,
    OpResult,
    Put,
    Txn,
)

GONE_KIND: Final = "audit.gone_back"
# Of a stream that are set aside; beyond it the stream keeps the one it has.
ASIDE_MAX: Final = 16
_FIRST_S: Final = 5.0
_PAGE: Final = 1_000

_log = get_logger("audit")


class Store(Protocol):
    """What this room asks of the strong store."""

    async def propose(
        self, ops: Sequence[Operation], *, timeout_s: float = 5.0
    ) -> Sequence[OpResult]: ...
    async def range(
        self, prefix: bytes, *, after: bytes = b"", limit: int = 1_000, stale: bool = False
    ) -> Sequence[Entry]: ...
    def store_time_ms(self) -> int: ...


def anchor_key(node: bytes, stream: Stream) -> bytes:
    return ANCHOR_PREFIX + node + b"/" + stream.encode()


class Anchors:
    """Names this node's newest records in the store.

    Args:
        lanes: whose newest batches are named.
        notes: told of a seal whose records are gone from this disk.
    """

    def __init__(self, store: Store, shelf: Shelf, lanes: Sequence[Lane], notes: Notes) -> None:
        self._store = store
        self._shelf = shelf
        self._lanes = lanes
        self._notes = notes
        self._turn = trio.Lock()

    async def keep(self, interval_s: float, rng: Rng) -> None:
        """Name the newest records now and then, until cancelled."""
        await trio.sleep(min(_FIRST_S, interval_s) * rng.uniform(0.5, 1.0))
        while True:
            try:
                await self.name()
            except SwarmError as error:
                _log.debug("audit records are not anchored now", why=error.message)
            await trio.sleep(interval_s * rng.uniform(0.8, 1.0))

    async def name(self) -> None:
        """Name the newest records. Raises SwarmError: perhaps not done for all streams."""
        async with self._turn:
            for newest in [lane.newest for lane in self._lanes]:
                if newest is not None:
                    await self._name(newest)

    async def _name(self, sealed: Sealed) -> None:
        chain = sealed.seal.chain
        key = anchor_key(chain.node, chain.stream)
        found = await self._store.range(key, limit=ASIDE_MAX + 2)
        now = next((one for one in found if one.key == key), None)
        if now is not None and now.value == sealed.envelope:
            return
        aside = await self._kept_aside([one for one in found if one.key != key], chain.stream)
        named = self._open(now.value, chain.stream) if now is not None else None
        if now is None or named is None or await self._shelf.goes_on(chain, named):
            revision = now.mod_revision if now is not None else 0
            await self._do(Put(key, sealed.envelope, expect=revision))
            return
        place = key + b"/" + named.chain.life
        kept = aside.get(place)
        puts = [Put(key, sealed.envelope, expect=now.mod_revision)]
        if kept is None or kept.last < named.last:
            if kept is None and len(aside) >= ASIDE_MAX:
                _log.error("audit records are not anchored: too many were lost before",
                           stream=chain.stream)  # fmt: skip
                return
            puts.insert(0, Put(place, now.value))
        await self._do(Txn((Compare(key, revision=now.mod_revision),), tuple(puts)))
        self._gone(named)

    async def _kept_aside(self, entries: Sequence[Entry], stream: Stream) -> dict[bytes, Seal]:
        """What is set aside, by its key; what is too old to be missed, or no seal, goes."""
        kept: dict[bytes, Seal] = {}
        for one in entries:
            seal = self._open(one.value, stream)
            if seal is None or seal.wall_ms < self._shelf.before_ms():
                await self._do(Delete(one.key, expect=one.mod_revision))
            else:
                kept[one.key] = seal
        return kept

    def _gone(self, seal: Seal) -> None:
        """What the store names is gone from this disk: have that recorded."""
        stream = seal.chain.stream
        _log.error("the strong store names audit records that are gone from this disk",
                   stream=stream, number=seal.last)  # fmt: skip
        self._notes.note(GONE_KIND, "", f"{stream} up to record {seal.last}", "lost",
                         "named in the strong store, gone from this disk")  # fmt: skip

    async def _do(self, operation: Operation) -> None:
        for result in await self._store.propose([operation]):
            result.raise_for_error()

    def _open(self, raw: bytes, stream: Stream) -> Seal | None:
        """What this node signed itself; None: somebody put something else there."""
        try:
            seal = open_seal(raw, self._shelf.trust.swarm_id, self._shelf.own_keys)
        except SwarmError:
            return None
        return seal if seal.chain.stream == stream else None


async def read_anchors(store: Store) -> list[bytes]:
    """Every seal that the store names. Whoever rests on one verifies it."""
    found: list[bytes] = []
    after = b""
    while len(found) < MEMBERS_MAX * len(STREAMS) * (ASIDE_MAX + 1):
        page = await store.range(ANCHOR_PREFIX, after=after, limit=_PAGE)
        found += [entry.value for entry in page]
        if len(page) < _PAGE:
            break
        after = page[-1].key
    return found
