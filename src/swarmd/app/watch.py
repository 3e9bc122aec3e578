"""What nobody did, in the audit log: voters and offices that changed, and what was kept out.

The rooms of the mesh count what they refuse (`observe.metrics.DROPPED`), and the strong store whose
forwards it refused. Here a look at the counts every few seconds becomes one record by reason, or
by member, so that a flood makes no flood of records.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol

import trio

from swarmd.base.errors import Forbidden
from swarmd.base.ids import NodeId
from swarmd.base.notes import Notes
from swarmd.base.pace import pause
from swarmd.observe.metrics import DROPPED
from swarmd.state.raft.views import Overstepping

_LOOK_S: Final = 1.0
_REFUSED_S: Final = 10.0
# Where it is counted, and the reasons that say that somebody is not who they should be.
_WHERE: Final = frozenset(
    {
        "stream",
        "udp",
        "swim",
        "trust",
        "join",
        "audit",
        "epoch",
        "heads",
        "store",
        "copy",
        "approval",
    }
)
_REASONS: Final = frozenset(
    {"untrusted", "bad_signature", "outdated", "replay", "token_refused", "bad_frame", "evicted"}
)


class Store(Protocol):
    """What is watched of the strong store."""

    @property
    def epoch_number(self) -> int: ...
    @property
    def voters(self) -> Sequence[NodeId]: ...
    @property
    def office(self) -> object | None: ...
    def take_overstepping(self) -> Sequence[Overstepping]: ...


@asynccontextmanager
async def watch_events(
    notes: Notes, store: Store, name_of: Callable[[bytes], str]
) -> AsyncIterator[None]:
    """Take note for as long as the block runs."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch_voters, notes, store, name_of)
        nursery.start_soon(_watch_refusals, notes)
        nursery.start_soon(_watch_overstepping, notes, store, name_of)
        yield
        nursery.cancel_scope.cancel()


async def _watch_voters(notes: Notes, store: Store, name_of: Callable[[bytes], str]) -> None:
    """Who coordinates takes note of new voters, so that it is told once."""
    epoch, office = store.epoch_number, None
    while True:
        await pause(_LOOK_S)
        if store.office is not None and office is None:
            notes.note("coordinator.elected", "coordinator", f"epoch {store.epoch_number}")
        office = store.office
        if store.epoch_number != epoch and office is not None:
            names = ", ".join(name_of(one) for one in store.voters)
            notes.note("voter.changed", "coordinator", names, "ok", f"epoch {store.epoch_number}")
        epoch = store.epoch_number if office is not None else epoch


async def _watch_refusals(notes: Notes) -> None:
    before = _refusals()
    while True:
        await pause(_REFUSED_S)
        now = _refusals()
        for (where, reason), count in now.items():
            more = count - before.get((where, reason), 0.0)
            if more:
                notes.note("mesh.refused", "", where, reason, f"{more:.0f} times")
        before = now


async def _watch_overstepping(notes: Notes, store: Store, name_of: Callable[[bytes], str]) -> None:
    """Who coordinates takes note of members that forward what they may not write."""
    while True:
        await pause(_REFUSED_S)
        for one in store.take_overstepping():
            who, times = name_of(one.node_id), f"{one.times} times"
            notes.note("member.overstepped", who, one.what, Forbidden.code, times)


def _refusals() -> dict[tuple[str, str], float]:
    """How often the mesh refused somebody, by where and why."""
    return {
        (sample.labels["where"], sample.labels["reason"]): sample.value
        for metric in DROPPED.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
        if sample.labels["where"] in _WHERE and sample.labels["reason"] in _REASONS
    }
