"""The newest seal of each node in the strong store, so that no tail is cut off unnoticed.

Copies of a chain tell of each other's holes, but not of records that are gone everywhere. What the
strong store names was there. The value is the seal, signed by its node, so nobody makes up another;
members could bring an old one back, which is why each look at the log remembers more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import trio

from swarmd.audit.chain import Sealed
from swarmd.audit.records import STREAMS, Stream
from swarmd.base.errors import SwarmError
from swarmd.base.limits import MEMBERS_MAX
from swarmd.base.rng import Rng
from swarmd.observe.log import get_logger
from swarmd.state.raft.messages import ANCHOR_PREFIX, Entry, Operation, OpResult, Put

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


async def keep_anchored(
    store: Store, newest: Callable[[], Sequence[Sealed]], interval_s: float, rng: Rng
) -> None:
    """Name the newest records in the store now and then, until cancelled."""
    named: dict[Stream, bytes] = {}
    await trio.sleep(min(_FIRST_S, interval_s) * rng.uniform(0.5, 1.0))
    while True:
        fresh = [one for one in newest() if named.get(one.seal.chain.stream) != one.envelope]
        try:
            if fresh:
                await anchor(store, fresh)
                named |= {one.seal.chain.stream: one.envelope for one in fresh}
        except SwarmError as error:
            _log.debug("audit records are not anchored now", why=error.message)
        await trio.sleep(interval_s * rng.uniform(0.8, 1.0))


async def anchor(store: Store, newest: Sequence[Sealed]) -> None:
    """Raises SwarmError: perhaps not done."""
    ops = [
        Put(anchor_key(one.seal.chain.node, one.seal.chain.stream), one.envelope) for one in newest
    ]
    for result in await store.propose(ops):
        result.raise_for_error()


async def read_anchors(store: Store) -> list[bytes]:
    """Every seal that the store names. Whoever rests on one verifies it."""
    found: list[bytes] = []
    after = b""
    while len(found) < MEMBERS_MAX * len(STREAMS):
        page = await store.range(ANCHOR_PREFIX, after=after, limit=_PAGE)
        found += [entry.value for entry in page]
        if len(page) < _PAGE:
            break
        after = page[-1].key
    return found
