"""Reading the strong store from any node: here if this node may answer, else by asking.

A linearizable read is answered by the coordinator after a read round, unless the epoch was
sealed meanwhile: that is looked at last, just before the answer. A stale one is answered by
any voter from its copy. Whatever is only unavailable for now is tried again until the timeout.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import trio

from swarmd.base.errors import (
    Conflict,
    Moved,
    RemoteError,
    SwarmError,
    TimedOut,
    Unavailable,
)
from swarmd.base.limits import KIB
from swarmd.base.rng import Rng
from swarmd.state.raft import messages as m
from swarmd.state.raft.caller import ATTEMPT_TIMEOUT_S, Caller
from swarmd.state.raft.keeper import Keeper
from swarmd.state.raft.messages import Entry
from swarmd.state.raft.pipe import RETRY_MAX_S, RETRY_MIN_S, UNREAD, no_quorum
from swarmd.state.raft.replica import Replica
from swarmd.state.raft.statemachine import StateMachine

PAGE_ENTRIES_MAX: Final = 1_000
LEASE_KEYS_SHOWN: Final = 1_000
_LEASE_KEYS_BYTES: Final = 256 * KIB

T = TypeVar("T")


class Reads:
    """What `Store` reads with; see there."""

    def __init__(
        self,
        keeper: Keeper,
        caller: Caller,
        serving: Callable[[], Replica | None],
        store_time_ms: Callable[[], int],
        rng: Rng,
    ) -> None:
        self._keeper = keeper
        self._caller = caller
        self._serving = serving
        self._store_time_ms = store_time_ms
        self._rng = rng
        self._moved = trio.Event()

    def state_moved(self) -> None:
        """The state took up more of the log, or is another one."""
        self._moved.set()
        self._moved = trio.Event()

    async def read_index(self, timeout_s: float) -> int:
        return await self.until(self._try_read_index, timeout_s)

    async def read_time_ms(self, timeout_s: float) -> int:
        async def attempt() -> int:
            replica = self._serving()
            if replica is not None:
                await self.barrier(replica)
                return self._store_time_ms()
            answer = await self._caller.ask_coordinator(m.ReadIndexAsk())
            if not isinstance(answer, m.Revision):
                raise RemoteError("not a revision")
            return answer.time_ms

        return await self.until(attempt, timeout_s)

    async def _try_read_index(self) -> int:
        replica = self._serving()
        if replica is not None:
            await self.barrier(replica)
            return replica.state.revision
        answer = await self._caller.ask_coordinator(m.ReadIndexAsk())
        if not isinstance(answer, m.Revision):
            raise RemoteError("not a revision")
        replica = self._keeper.replica
        while replica is not None and replica.state.revision < answer.revision:
            if replica.state.sealed is not None:
                raise Moved("the epoch was sealed")
            with trio.move_on_after(ATTEMPT_TIMEOUT_S) as scope:
                await self._moved.wait()
            if scope.cancelled_caught:
                raise TimedOut("this voter lags behind")
            replica = self._keeper.replica
        return answer.revision

    async def get(self, key: bytes, stale: bool, timeout_s: float) -> Entry | None:
        async def attempt() -> Entry | None:
            here = await self._readable_here(stale)
            if here is not None:
                return here.get(key)
            got = await self._caller.ask_entries(m.GetAsk(key, stale), stale)
            return got.entries[0] if got.entries else None

        return await self.until(attempt, timeout_s)

    async def range(
        self, prefix: bytes, after: bytes, limit: int, stale: bool, timeout_s: float
    ) -> list[Entry]:
        found: list[Entry] = []

        async def attempt() -> bool:
            nonlocal after
            wanted = limit - len(found)
            here = await self._readable_here(stale)
            if here is not None:
                found.extend(here.range(prefix, after, wanted))
                return True
            ask = m.RangeAsk(prefix, after, min(wanted, PAGE_ENTRIES_MAX), stale)
            got = await self._caller.ask_entries(ask, stale)
            found.extend(got.entries)
            if got.entries:
                after = got.entries[-1].key
            return not got.more or len(found) >= limit

        with trio.move_on_after(timeout_s):
            while limit > 0 and not await self.until(attempt, timeout_s):
                pass
            return found
        raise no_quorum(timeout_s, None, UNREAD)

    async def leases(self, lease: int, timeout_s: float) -> m.LeasesGot:
        """All leases, or the one that `lease` names, with its keys."""

        async def attempt() -> m.LeasesGot:
            here = await self._readable_here(stale=False)
            if here is not None:
                return leases_in(here, lease, self._store_time_ms())
            answer = await self._caller.ask_coordinator(m.LeasesAsk(lease))
            if not isinstance(answer, m.LeasesGot):
                raise RemoteError("not leases")
            return answer

        return await self.until(attempt, timeout_s)

    async def _readable_here(self, stale: bool) -> StateMachine | None:
        """The state to read from on this node, if it can answer."""
        replica = self._keeper.replica
        if stale:
            return replica.state if replica is not None else None
        replica = self._serving()
        if replica is None:
            return None
        await self.barrier(replica)
        return replica.state

    async def barrier(self, replica: Replica) -> None:
        with trio.move_on_after(ATTEMPT_TIMEOUT_S) as scope:
            await replica.barrier()
        if scope.cancelled_caught:
            raise TimedOut("the voters did not answer in time")
        if replica is not self._keeper.replica or replica.state.sealed is not None:
            raise Moved("the epoch was sealed")

    async def until(
        self, attempt: Callable[[], Awaitable[T]], timeout_s: float, outcome: str = UNREAD
    ) -> T:
        """What `attempt` returns, made again while it is only unavailable.

        Raises:
            NoQuorum: it never was; `outcome` says what became of it.
        """
        trouble: SwarmError | None = None
        delay_s = RETRY_MIN_S
        with trio.move_on_after(timeout_s):
            while True:
                try:
                    return await attempt()
                except (Unavailable, RemoteError, Conflict) as error:
                    trouble = error
                await trio.sleep(delay_s * self._rng.uniform(0.5, 1.0))
                delay_s = min(delay_s * 1.6, RETRY_MAX_S)
        raise no_quorum(timeout_s, trouble, outcome)


def leases_in(state: Any, lease: int, time_ms: int) -> m.LeasesGot:
    """The leases of `state` that live at `time_ms`; with keys if only one is asked for."""
    found = [one for one in state.leases.all() if lease in (0, one.id)]
    living = [one for one in found if one.deadline_ms > time_ms]
    infos = tuple(
        m.LeaseInfo(one.id, one.ttl_ms, one.deadline_ms - time_ms, len(one.keys)) for one in living
    )
    keys: list[bytes] = []
    room = _LEASE_KEYS_BYTES
    for key in sorted(living[0].keys)[:LEASE_KEYS_SHOWN] if lease and living else ():
        room -= len(key)
        if room < 0:
            break
        keys.append(key)
    return m.LeasesGot(infos, tuple(keys))
