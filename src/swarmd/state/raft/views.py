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
class Follower:
    """A follower as its leader knows it: how far it is behind, how long it has been silent."""

    lag: int
    silence_s: float


@dataclass(frozen=True, slots=True)
class VoterLog:
    """A voter's log as the voter sees it. `followers` is a leader's knowledge only.

    `fence` is the revision that made the coordinator so, as applied here; 0 if there was none.
    """

    role: str
    term: int
    fence: int
    commit: int
    applied: int
    last: int
    snapshot: int
    journal_bytes: int
    sync_last_s: float
    sync_slowest_s: float
    followers: dict[NodeId, Follower]


@dataclass(frozen=True, slots=True)
class Overstepping:
    """A member that forwarded what it may not write: `what` the last time, and how many `times`."""

    node_id: NodeId
    what: str
    times: int


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """The store as seen from here.

    `role` is leader, follower, candidate or none (no voter); `may_lose` counts the voters
    that may still be lost before writes stop, negative if they have. `state` is `ok`,
    `no_quorum`, `epoch_waiting` (the next epoch could not begin yet) or `disk_fault`;
    `detail` says what is waited for. Revision -1: not known here. `log`: voters only. `copies`:
    on how many disks what is acknowledged now is, at least.
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
    log: VoterLog | None = None
    copies: int = 1
