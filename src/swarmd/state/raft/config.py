"""Settings of the strong store's consensus, each with what it trades."""

from __future__ import annotations

import msgspec

from swarmd.base.limits import KIB, MIB


class RaftConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    # Time between a leader's signs of life. Shorter bears with longer pauses of a leader, as
    # more of its signs fit the election time; at 100 ms a leader of two pays about 2 % of a core
    # for them and a follower 1 %, at 50 ms nearly twice that.
    heartbeat_s: float = 0.1
    # Followers hear within this time that something was committed, if no entries come first.
    # Shorter shows changes sooner on other nodes; each notice costs two messages per follower.
    commit_notice_s: float = 0.01
    # A voter that hears no leader for a random time between these two asks to become one.
    # Shorter recovers sooner; too short deposes leaders that only paused. Keep the lower one
    # above three heartbeats.
    election_min_s: float = 0.33
    election_max_s: float = 0.6
    # Bytes of entries per message to a follower that catches up. More is fewer messages;
    # less lets heartbeats through sooner.
    batch_bytes_max: int = 512 * KIB
    # Messages of entries sent to one follower per step, so that one that lags does not hold
    # up the others.
    batches_max: int = 4
    # What is proposed while so many rounds of appends are under way waits for one to end and then
    # goes together. More keep a leader busy while slow disks work; each means more syncs and
    # messages for the same entries.
    rounds_max: int = 1
    # A round waits up to this long for callers that the one before answered to come back, if it
    # is not all there without them, and for little where they do not come. Longer makes larger
    # rounds of many callers; it is what a write may take longer at worst. A round that waits longer
    # than commit_notice_s costs a notice to each follower besides. 0: no round waits.
    gather_s: float = 0.01
    # Messages above this are sent in parts of this size; must fit a stream message.
    part_bytes: int = 256 * KIB
    # Piece of a snapshot sent at a time; the next follows once it was acknowledged.
    snapshot_chunk_bytes: int = 256 * KIB
    # Largest snapshot accepted from a peer; bounds the memory of an install.
    snapshot_bytes_max: int = 512 * MIB
    # The log is compacted into a snapshot after this many entries or bytes; until then it is
    # in memory, too. Lower restarts faster and uses less memory; higher writes fewer snapshots.
    # The log of a larger state first grows to twice its last snapshot, to four times this at most.
    compact_entries: int = 10_000
    compact_bytes: int = 8 * MIB
    # Entries kept behind a snapshot, so that a follower that lags a little needs no snapshot.
    # Busy ones have about 10 KB.
    keep_entries: int = 250
    # Voters compare digests of their states after every so many entries. Fewer finds a voter
    # that differs sooner; each costs a look at 128 keys and a message to each follower and back.
    digest_entries: int = 32
    # Proposals that may wait for their commit; beyond it new ones are answered `busy`.
    proposals_max: int = 10_000
    # Entries applied per step; more finishes a restart sooner, less keeps heartbeats timely.
    apply_entries_max: int = 1_024
    # A voter that has been dead this long gives its seat to a living member, if there is one.
    # Shorter restores the swarm's safety margin sooner; longer than a restart takes moves
    # nothing when a host only reboots.
    replace_dead_s: float = 60.0

    def __post_init__(self) -> None:
        """Assert the relations between settings. Raises ValueError naming both."""
        if self.heartbeat_s <= 0:
            raise ValueError("heartbeat_s must be above 0")
        if not 0 <= self.commit_notice_s <= self.heartbeat_s:
            raise ValueError("commit_notice_s must be between 0 and heartbeat_s")
        if not 0 <= self.gather_s <= self.heartbeat_s:
            raise ValueError("gather_s must be between 0 and heartbeat_s")
        if self.election_min_s <= 3 * self.heartbeat_s:
            raise ValueError("election_min_s must be above three times heartbeat_s")
        if self.election_max_s <= self.election_min_s:
            raise ValueError("election_max_s must be above election_min_s")
        if self.replace_dead_s <= self.election_max_s:
            raise ValueError("replace_dead_s must be above election_max_s")
        for name in (
            "batch_bytes_max",
            "batches_max",
            "rounds_max",
            "part_bytes",
            "snapshot_chunk_bytes",
            "snapshot_bytes_max",
            "compact_entries",
            "compact_bytes",
            "digest_entries",
            "proposals_max",
            "apply_entries_max",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.keep_entries < 0:
            raise ValueError("keep_entries must not be negative")
