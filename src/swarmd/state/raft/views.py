"""How the store shows itself: the office it holds, the state it is in."""

from __future__ import annotations

from dataclasses import dataclass

from swarmd.base.ids import NodeId


@dataclass(frozen=True, slots=True)
class Office:
    """This node is the coordinator. `fence` is the revision that made it so."""

    fence: int
    epoch: int


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """The store as seen from here.

    `role` is leader, follower, candidate or none (no voter); `may_lose` counts the voters
    that may still be lost before writes stop, negative if they have. `state` is `ok`,
    `no_quorum`, `epoch_waiting` (the next epoch could not begin yet) or `disk_fault`;
    `detail` says what is waited for. Revision -1: not known here.
    """

    epoch: int
    voters: tuple[NodeId, ...]
    role: str
    term: int
    commit: int
    applied: int
    revision: int
    leader: NodeId | None
    may_lose: int
    state: str
    detail: str
