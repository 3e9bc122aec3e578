"""A consistent copy of the store, read in slices while it goes on changing.

Keys are read in order, a little at a time, so that nothing is held up and nothing large is
held. What changes meanwhile among the keys that were told already follows as `later`, out of
the history that the state keeps; what changes among those still to come is seen when they
come. The last slice, the agents' records and the revision that all this amounts to are read
at one moment, so the whole is the store at that revision.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

from swarmd import __version__
from swarmd.agents.records import AGENT_PREFIX
from swarmd.base.errors import Busy, Compacted, NotReady
from swarmd.base.ids import to_text
from swarmd.gateway.services import Services, StoreCopy, StoreEntry
from swarmd.gateway.shapes import (
    SnapshotAgents,
    SnapshotEnd,
    SnapshotHead,
    SnapshotItem,
    SnapshotKeys,
    SnapshotLater,
)
from swarmd.state.raft.messages import USER_PREFIX

SLICE_BYTES: Final = 64 * 1024
_STEP_ENTRIES: Final = 8
_AGENTS_MAX: Final = 10_000


async def export(services: Services) -> AsyncGenerator[SnapshotItem, None]:
    """Everything that is to be kept of the store, from this voter's copy.

    Raises:
        NotReady: this node is no voter.
        NoQuorum: it is unknown whether the copy holds all that was acknowledged.
        Busy: the store changes faster than what is told is taken.
    """
    trust = services.need(services.trust)
    await services.need(services.store).read_index()
    yield SnapshotHead(
        swarm=trust.genesis.name,
        swarm_id=to_text(trust.swarm_id),
        node=services.config.node_name,
        version=__version__,
        wall_ms=services.clock.wall_ms(),
    )
    revision = _copy(services).revision
    told = USER_PREFIX
    while True:
        copy = _copy(services)
        later = _later(copy, revision, told)
        found = _slice(copy, told)
        revision = copy.revision
        agents = [] if found else copy.range(AGENT_PREFIX, b"", _AGENTS_MAX)
        # Nothing is awaited between the readings above.
        if later:
            yield SnapshotLater(later)
        if not found:
            break
        told = found[-1].key
        yield SnapshotKeys([(one.key[len(USER_PREFIX) :], one.value) for one in found])
    if agents:
        yield SnapshotAgents([(one.key[len(AGENT_PREFIX) :], one.value) for one in agents])
    yield SnapshotEnd(revision)


def _copy(services: Services) -> StoreCopy:
    copy = services.need(services.store).local
    if copy is None:
        raise NotReady(f"{services.config.node_name} is no voter: it holds no copy of the store")
    return copy


def _later(copy: StoreCopy, revision: int, told: bytes) -> list[tuple[bytes, bytes | None]]:
    """Changes after `revision` of keys up to `told`."""
    try:
        changes = copy.history.since(revision + 1, USER_PREFIX)
    except Compacted as error:
        raise Busy("the store changes faster than this copy is taken: try again") from error
    return [(one.key[len(USER_PREFIX) :], one.value) for one in changes if one.key <= told]


def _slice(copy: StoreCopy, after: bytes) -> list[StoreEntry]:
    """The next entries, of about `SLICE_BYTES` together."""
    found: list[StoreEntry] = []
    size = 0
    while size < SLICE_BYTES:
        step = copy.range(USER_PREFIX, after, _STEP_ENTRIES)
        found += step
        if len(step) < _STEP_ENTRIES:
            break
        after = step[-1].key
        size += sum(len(one.key) + len(one.value) for one in step)
    return found
