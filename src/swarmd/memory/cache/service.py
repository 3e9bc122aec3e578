"""A cache over the swarm: who computes what.

Values are eventual: a hit is a read of this node's memory, with or without a majority. Who computes
is agreed upon in the strong store, so a miss takes a majority. Rules:
- One caller computes a value, under a lease that its node renews while it works. It is replaced
  when its node is gone for `LEASE_S`, gives the lease back, or when its time is up. A result is
  taken under the fence of its record alone: a late one is refused, and kept nowhere.
- Others wait for that record, told by one watch for the whole node, and take the value from it: so
  nobody needs the eventual store to be quick.
- What goes when a cache is full is `memory.kv.bounds`' business.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import (
    ComputeFailed,
    ComputePending,
    ComputeReplaced,
    Conflict,
    CorruptFile,
    LeaseExpired,
    NamespaceInUse,
    NotACache,
    RemoteError,
    SwarmError,
    Unavailable,
    ValueTooLarge,
)
from swarmd.base.ids import NodeId, short
from swarmd.base.lapse import kill_after_s, renew_after_s
from swarmd.base.limits import MEMORY_STRONG_VALUE_BYTES_MAX, MIB
from swarmd.base.rng import Rng, derive
from swarmd.memory.cache.machine import KEPT_MS, Claim, Fail, Found, Take, Wait, decide
from swarmd.memory.kv.policies import check_value, ttl_of
from swarmd.memory.kv.port import Entry
from swarmd.memory.kv.records import (
    Consistency,
    Flight,
    Namespace,
    State,
    decode_flight,
    encode_ending,
    end_ms,
    flight_key,
)
from swarmd.memory.kv.rules import author, ttl_ms
from swarmd.memory.kv.service import SharedMemory
from swarmd.memory.kv.strong import StrongStore
from swarmd.observe.log import get_logger
from swarmd.state.raft.messages import (
    MEMORY_FLIGHT_PREFIX,
    Compare,
    GrantLease,
    Put,
    RenewLease,
    RevokeLease,
    Txn,
)
from swarmd.state.recipes.news import News
from swarmd.wire.codec import pack, unpack

ENTRIES_MAX: Final = 10_000
BYTES_MAX: Final = 64 * MIB
LEASE_S: Final = 6.0
# What a caller may take to compute, and to wait.
COMPUTE_S: Final = 300.0
COMPUTE_MAX_S: Final = 3_600.0
_RETRY_S: Final = 0.2
_LEAVING_MAX: Final = 1_000
_ERROR_CHARS_MAX: Final = 500

_log = get_logger("cache")


@dataclass(frozen=True, slots=True)
class Hit:
    """The value is there."""

    value: Any


@dataclass(frozen=True, slots=True)
class Turn:
    """The caller is to compute, and to `finish` under this fence."""

    namespace: str
    key: str
    fence: int
    lease: int
    since: float


class Cache:
    """Made by `open_cache`."""

    def __init__(
        self,
        me: NodeId,
        memory: SharedMemory,
        store: StrongStore,
        clock: Clock,
        rng: Rng,
        nursery: trio.Nursery,
    ) -> None:
        self._me, self._values, self._bounds = me, memory.eventual, memory.bounds
        self._namespaces, self._store = memory.namespaces, store
        self._clock, self._nursery = clock, nursery
        self._news = News(store, derive(rng, "news"), MEMORY_FLIGHT_PREFIX)
        self._leaving = 0

    # ---- a value, from here, from somebody who computes it, or from the caller ----------------

    async def turn(self, namespace: str, key: str, *, by: str, wait_s: float) -> Hit | Turn:
        """The value, or the caller's turn to compute it.

        Args:
            by: who asks, for others who wait.
            wait_s: longest wait for somebody else who computes it.

        Raises:
            ComputeFailed: who computed it while this caller waited failed.
            ComputePending: not within `wait_s`; somebody still computes it.
            NotACache: the namespace is strong, or holds values that were set in it.
            NoQuorum: it is not here, and no majority can be asked who computes it.

        Cancelled, it leaves nothing behind.
        """
        deadline = trio.current_time() + wait_s
        where = flight_key(namespace, key)
        if (hit := self._hit(namespace, key)) is not None:
            return hit
        await self._be_cache(namespace)
        waited_for = 0
        with self._news.about(where) as moved:
            while True:
                moved.renew()
                found = await self._found(where)
                now_ms = 0
                if found is not None and found.flight.state is not State.COMPUTING:
                    now_ms = await self._store.read_time_ms()
                decision = decide(found, waited_for, now_ms)
                if isinstance(decision, Take):
                    return Hit(unpack(decision.value))
                if isinstance(decision, Fail):
                    raise ComputeFailed(f"{key!r} could not be computed: {decision.why}")
                if isinstance(decision, Claim):
                    turn = await self._claim(namespace, key, where, decision.revision, by)
                    if turn is None:
                        continue  # Somebody was quicker.
                    if (hit := self._hit(namespace, key)) is None:
                        return turn
                    self.leave_soon(turn)  # It came while nobody remembered who computed it.
                    return hit
                if isinstance(decision, Wait):
                    waited_for = decision.fence
                with trio.move_on_at(deadline) as late:
                    await moved.wait()
                if late.cancelled_caught and found is not None:
                    raise ComputePending(
                        f"{found.flight.by} at node {short(found.flight.node)} still computes "
                        f"{key!r}: ask again, or wait longer than {wait_s:g} s"
                    )

    async def keep(self, turn: Turn, compute_s: float) -> None:
        """Renew a turn's lease; return when its time is up or it is another's."""
        over = turn.since + compute_s
        renewed = turn.since
        while True:
            due = min(renewed + renew_after_s(LEASE_S), over)
            await trio.sleep(max(0.0, due - self._clock.now()))
            sent = self._clock.now()
            if sent >= over or sent >= renewed + kill_after_s(LEASE_S):
                return
            try:
                [result] = await self._store.propose([RenewLease(turn.lease)])
            except (Unavailable, RemoteError):
                await trio.sleep(_RETRY_S)
                continue
            if result.code == LeaseExpired.code:
                return
            renewed = sent

    async def finish(
        self,
        namespace: str,
        key: str,
        fence: int,
        value: Any,
        *,
        by: str,
        ttl_s: float | None = None,
    ) -> Entry:
        """Keep what was computed under a fence, and give it to all who wait. Safe to repeat.

        Raises:
            ComputeReplaced: it is somebody else's turn by now; nothing changed.
            ValueTooLarge, BadRequest, WrongType: nothing changed; the turn goes on.
            NoQuorum: whether others have it is unknown; repeat it.
        """
        where, packed = flight_key(namespace, key), pack(value)
        record = await self._namespaces.of(namespace)
        check_value(namespace, record, value)
        ttl_s = ttl_of(record, ttl_s)
        if len(packed) > MEMORY_STRONG_VALUE_BYTES_MAX:
            raise ValueTooLarge(
                f"a cache takes values of {MEMORY_STRONG_VALUE_BYTES_MAX} bytes at most: put it "
                "into a blob, and keep its hash here"
            )
        kept_ms = KEPT_MS if ttl_s is None else min(KEPT_MS, ttl_ms(ttl_s))
        done = Flight(State.DONE, author(by), self._me, fence, packed)
        await self._settle(where, key, done, kept_ms)
        entry = await self._values.set(namespace, key, value, by=by, ttl_s=ttl_s)
        await self._bounds.keep(namespace, key)
        return entry

    async def fail(self, namespace: str, key: str, fence: int, why: str, *, by: str) -> None:
        """Tell all who wait that there is no value. Raises what `finish` does."""
        where = flight_key(namespace, key)
        message = why[:_ERROR_CHARS_MAX]
        failed = Flight(State.FAILED, author(by), self._me, fence, message=message)
        await self._settle(where, key, failed, KEPT_MS)

    def leave_soon(self, turn: Turn) -> None:
        """Give a turn back in the background; if that cannot be done its lease lapses.

        One that is finished has nothing to give back any more.
        """
        self._revoke_soon(turn.lease)

    # ---- claiming -----------------------------------------------------------------------------

    def _hit(self, namespace: str, key: str) -> Hit | None:
        found = self._values.known(namespace, key)
        if found is None:
            return None
        self._bounds.used(namespace, key)
        return Hit(found.value)

    async def _be_cache(self, namespace: str) -> Namespace:
        """The namespace's bounds; one that nobody made becomes a cache of the usual size."""
        found = await self._namespaces.of(namespace)
        if found.is_cache:
            return found
        try:
            return await self._namespaces.make(
                namespace,
                Consistency.EVENTUAL,
                by="get_or_compute",
                entries_max=ENTRIES_MAX,
                bytes_max=BYTES_MAX,
            )
        except (NamespaceInUse, Conflict) as error:
            made = await self._namespaces.of(namespace)
            if made.is_cache:
                return made
            raise NotACache(
                f"{namespace} is no cache: values that were set in it may not go; give what is "
                "computed a namespace of its own"
            ) from error

    async def _found(self, where: bytes) -> Found | None:
        entry = await self._store.get(where)
        if entry is None:
            return None
        try:
            flight = decode_flight(entry.value)
        except CorruptFile:  # Not of any build of swarmd: as if it had failed long ago.
            return Found(entry.mod_revision, 0, Flight(State.FAILED, "", b""))
        return Found(entry.mod_revision, end_ms(entry.value), flight)

    async def _claim(
        self, namespace: str, key: str, where: bytes, revision: int, by: str
    ) -> Turn | None:
        """A turn if the record is still at `revision`, else None. Cancelled, it is given back."""
        since = self._clock.now()
        [granted] = await self._store.propose([GrantLease(round(LEASE_S * 1_000))])
        lease = granted.raise_for_error().revision
        raw = encode_ending(Flight(State.COMPUTING, author(by), self._me), 0)
        try:
            txn = Txn((Compare(where, revision),), (Put(where, raw, lease=lease),))
            [result] = await self._store.propose([txn])
        except BaseException:
            self._revoke_soon(lease)
            raise
        if not result.ok:
            self._revoke_soon(lease)
            if result.code in (Conflict.code, LeaseExpired.code):
                return None
            result.raise_for_error()
        return Turn(namespace, key, result.revision, lease, since)

    async def _settle(self, where: bytes, key: str, flight: Flight, kept_ms: int) -> None:
        """Put what became of a computation in the place of the record that claimed it."""
        now_ms = await self._store.read_time_ms()
        put = Put(where, encode_ending(flight, now_ms + kept_ms))
        [result] = await self._store.propose([Txn((Compare(where, flight.fence),), (put,))])
        if result.code != Conflict.code:
            result.raise_for_error()
            return
        found = await self._found(where)
        same = found is not None and found.flight.fence == flight.fence
        if not same or found is None or found.flight.state is not flight.state:
            raise ComputeReplaced(
                f"{key!r} is somebody else's to compute by now: this result is not kept"
            )

    def _revoke_soon(self, lease: int) -> None:
        if self._leaving < _LEAVING_MAX:
            self._leaving += 1
            self._nursery.start_soon(self._revoke, lease)

    async def _revoke(self, lease: int) -> None:
        try:
            await self._store.propose([RevokeLease(lease)])
        except SwarmError as error:
            _log.debug("a lease was not given back; it will lapse", why=error.message)
        finally:
            self._leaving -= 1


@asynccontextmanager
async def open_cache(
    me: NodeId,
    memory: SharedMemory,
    store: StrongStore,
    clock: Clock,
    rng: Rng,
) -> AsyncIterator[Cache]:
    """Serve caches for as long as the block runs; `memory` keeps them within their bounds."""
    async with trio.open_nursery() as nursery:
        cache = Cache(me, memory, store, clock, rng, nursery)
        nursery.start_soon(cache._news.run)
        try:
            yield cache
        finally:
            nursery.cancel_scope.cancel()
