"""Ends leases in time: the coordinator proposes an empty batch when a deadline is due.

The stamp of any batch moves store time and so ends what is due, on every voter at one place
of the log. This only sees to it that a batch comes when nobody writes.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import trio

from swarmd.base.errors import SwarmError
from swarmd.base.limits import LEASE_TTL_MIN_MS
from swarmd.base.pace import pause
from swarmd.observe.log import get_logger
from swarmd.state.raft.replica import Replica

# A lease granted since the last look is not due before the next one.
LOOK_S: Final = LEASE_TTL_MIN_MS / 1_000
# Least time between two batches, however many deadlines are due.
PROPOSE_AGAIN_S: Final = 0.1
_SOON_S: Final = 0.001
_log = get_logger("raft")


class Timed(Protocol):
    """What the clock needs of the store."""

    def serving(self) -> Replica | None: ...

    def store_time_ms(self) -> int: ...

    async def propose_here(self, replica: Replica, groups: tuple[()]) -> Any: ...


async def run_lease_clock(store: Timed) -> None:
    """Propose what ends leases while this node coordinates, until cancelled."""
    while True:
        store.store_time_ms()  # A host that slept is told by how long nobody looked.
        replica = store.serving()
        due_ms = replica.state.leases.next_deadline_ms if replica is not None else None
        if replica is None or due_ms is None:
            await pause(LOOK_S)
        elif due_ms > store.store_time_ms():
            left_s = (due_ms - store.store_time_ms()) / 1_000
            await trio.sleep(min(max(left_s, _SOON_S), LOOK_S))
        else:
            await _propose(store, replica)
            await trio.sleep(PROPOSE_AGAIN_S)


async def _propose(store: Timed, replica: Replica) -> None:
    try:
        await store.propose_here(replica, ())
    except SwarmError as error:
        # Asked again shortly, or the next coordinator does it: late is safe.
        _log.debug("leases that are due did not end yet", why=error.message)
