"""Raft on pysyncobj, made safe from outside by a subclass.

The library gives the roles, terms, votes and the bookkeeping of followers. Everything that
touches bytes, disks, clocks, chance or sets is replaced here, and each place where the
library departs from the paper (Ongaro and Ousterhout 2014) is overridden under a named
`Guard`. The library's private names that this relies on are checked at import, so that
another version fails at once and says what is missing.

The rules:
- Nothing leaves before what it rests on is durable. Messages and answers collect in lists
  that the machine hands out behind a `Persist`; a leader counts itself, and any voter
  applies, only up to the journal's synced index. So its appends rest on its term alone.
- A follower truncates only at a conflict, and a conflict at or below its commit index stops
  the node. The commit index follows a leader only over entries that the leader's own message
  has verified.
- A leader commits by counting only entries of its own term. Reads wait for a round of
  acknowledgements begun after them and for the first entry of the term.
- Peers are walked in sorted order and chance comes from the generator passed in, so a seed
  fixes the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from pysyncobj.config import SyncObjConf

from swarmd.base.disk import Disk
from swarmd.base.errors import CorruptFile
from swarmd.base.rng import Rng
from swarmd.state.raft import wire
from swarmd.state.raft.agreement import Agreement
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.elections import Elections
from swarmd.state.raft.guards import ALL_GUARDS, Guard
from swarmd.state.raft.journal import ANYBODY, JOURNAL_FILE, Journal, Owner
from swarmd.state.raft.library import CLOCK, Outbox, Peer, SyncObj
from swarmd.state.raft.proposals import Proposals
from swarmd.state.raft.readrounds import ReadRounds
from swarmd.state.raft.replication import NO_OP, REGULAR, Receiver, Sender
from swarmd.state.raft.snapshot import Restoring, SnapshotStore
from swarmd.state.raft.transfer import Transfers
from swarmd.wire.codec import Message

FOLLOWER: Final = 0
CANDIDATE: Final = 1
LEADER: Final = 2

# Between two slices of a snapshot, so that others get their turns.
SLICE_PAUSE_S: Final = 0.002
# A snapshot that could not be written is taken again after this.
SNAPSHOT_PAUSE_S: Final = 1.0
# The log may grow to so many times `compact_bytes` while a follower is sent a snapshot.
HELD_BATCHES_MAX: Final = 8
# Times `compact_bytes` that the log may grow to where the last snapshot was as large.
LOG_GROWTH_MAX: Final = 4


class ReplicatedState(Protocol):
    """What the log drives. Every voter applies the same commands in the same order."""

    def apply(self, command: bytes, index: int, term: int) -> Any:
        """Apply one committed command; its result goes to whoever proposed it here.

        Deterministic, and errors are results: it should not raise.
        """
        ...

    def snapshot(self) -> Iterator[bytes]:
        """Frames of the state as it is now, whatever is applied while they are asked for.

        Each is short in the making. A method `close`, if there is one, ends it early.
        """
        ...

    def restoring(self) -> Restoring:
        """Take frames of a state; this one becomes it when that is finished."""
        ...

    def digest(self) -> bytes:
        """The same bytes for the same state on every voter.

        Raises:
            Diverged: the state changed otherwise than by what was applied.
        """
        ...


class HardenedRaft(SyncObj):  # type: ignore[misc]
    """One voter of one fixed set. `deliver` and `tick` take what happened, and so do its parts.

    Args:
        me: this voter's name, one of `voters`.
        voters: all voters, in one order on every one of them.
        disk: holds `journal` and `snapshot`.
        state: driven by the committed entries.
        now: monotonic seconds.
        guards: those in force; all of them outside tests.
        owner: whose journal it must be.

    Raises:
        CorruptFile: journal or snapshot is damaged, another's, or does not fit the other.
        DiskFault: the journal could not be written.
    """

    def __init__(
        self,
        me: str,
        voters: tuple[str, ...],
        disk: Disk,
        state: ReplicatedState,
        rng: Rng,
        config: RaftConfig,
        now: float,
        guards: frozenset[str] = ALL_GUARDS,
        owner: Owner = ANYBODY,
    ) -> None:
        assert me in voters, f"{me} is not one of the voters"
        assert len(set(voters)) == len(voters), voters
        self.set_now(now)
        self.me = me
        self.voters = voters
        self.peers = tuple(sorted(name for name in voters if name != me))
        self.majority = len(voters) // 2 + 1
        self.state = state
        self.config = config
        self._guards = guards
        self._rng = rng
        self._nodes = {name: Peer(name) for name in self.peers}
        self.journal = Journal(disk, rng, guards, JOURNAL_FILE, owner)
        self.snapshots = SnapshotStore(disk, voters)
        self.sender = Sender(self)
        self.receiver = Receiver(self)
        self.proposals = Proposals(self)
        self.reads = ReadRounds(self)
        self.transfers = Transfers(self)
        self.agreement = Agreement(self)
        self.elections = Elections(self)
        self._handlers = self._all_handlers()
        self._compacted_index = 0
        self.disk_failed = False
        self._held_back = False
        self._slice_at = self._take_at = now
        self._failures_seen = 0
        self._applying = (0, 0)
        nodes = list(self._nodes.values())
        super().__init__(Peer(me), nodes, self._settings(), transportClass=Outbox)
        self._SyncObj__serializer = None  # `snapshots` is ours; the library's is never called.
        self._outbox: Outbox = self._SyncObj__transport
        for node in nodes:
            self._outbox._onNodeConnected(node)
        self._restore()
        if not nodes:
            self._SyncObj__raftElectionDeadline = now  # A lone voter waits for nobody.

    def _settings(self) -> Any:
        config = self.config
        return SyncObjConf(
            autoTick=False,
            journalFile=self.journal,
            fullDumpFile=None,
            useFork=False,
            dynamicMembershipChange=False,
            commandsWaitLeader=False,
            appendEntriesUseBatch=True,
            appendEntriesPeriod=config.heartbeat_s,
            raftMinTimeout=config.election_min_s,
            raftMaxTimeout=config.election_max_s,
            leaderFallbackTimeout=config.election_max_s,
            connectionTimeout=config.election_max_s * 10,
        )

    def _restore(self) -> None:
        """Take up snapshot and journal, which must fit together (H5)."""
        snapshot = self.snapshots.load(self.state.restoring())
        held = 1 if snapshot is None else snapshot.index
        if self.on(Guard.H5_SNAPSHOT_REQUIRED):
            if snapshot is not None and not self.journal.existed:
                raise CorruptFile("there is a snapshot but no journal: term and vote are lost")
            if self.journal.first_index > held:
                raise CorruptFile(
                    f"the journal starts at entry {self.journal.first_index} but the snapshot"
                    f" ends at {held}: what lies between is missing"
                )
        if snapshot is None:
            return
        if self.journal.term_at(snapshot.index) != snapshot.term:
            # Power was lost between writing the snapshot and resetting the journal.
            self.journal.reset(snapshot.index, snapshot.term, NO_OP)
            self.journal.sync()
        self._SyncObj__raftLastApplied = snapshot.index
        self._SyncObj__raftCommitIndex = max(snapshot.index, self.commit_index)
        self._compacted_index = snapshot.index

    # ---- what can be seen --------------------------------------------------------------

    def on(self, guard: Guard) -> bool:
        return guard in self._guards

    @property
    def now(self) -> float:
        return CLOCK.now

    def set_now(self, now: float) -> None:
        """Show the library the time; before every call into it, for its clock is global."""
        CLOCK.now = now

    @property
    def term(self) -> int:
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def role(self) -> int:
        return int(self._SyncObj__raftState)

    @property
    def is_leader(self) -> bool:
        return self.role == LEADER

    @property
    def is_candidate(self) -> bool:
        return self.role == CANDIDATE

    @property
    def leader(self) -> str | None:
        node = self._SyncObj__raftLeader
        return None if node is None else str(node.id)

    @property
    def commit_index(self) -> int:
        return int(self._SyncObj__raftCommitIndex)

    @property
    def applied_index(self) -> int:
        return int(self._SyncObj__raftLastApplied)

    @property
    def ready(self) -> bool:
        """True on a leader that has applied an entry of its own term."""
        return self.is_leader and self.applied_index >= self.noop_index

    @property
    def noop_index(self) -> int:
        """On a leader, the index of its term's first entry."""
        return int(self._SyncObj__noopIDx or 0)

    @property
    def dirty(self) -> bool:
        """True if something awaits a sync."""
        return self.journal.dirty or self.snapshots.dirty

    @property
    def may_append_ahead(self) -> bool:
        """True if the appends queued now rest on nothing that awaits a sync."""
        return self.is_leader and self.journal.synced_term == self.term

    def put(self, peer: str, message: Message) -> None:
        """Queue a message to go out once what was written is durable."""
        self._outbox.put(peer, message)

    def applied_after(self, index: int, bytes_max: int) -> list[bytes] | None:
        """What was applied after `index`, in order, up to `bytes_max` bytes, at least one.

        An entry of the log's own is empty. None if `index` is let go of, or not reached yet; the
        log's first entry is let go of, for behind an installed snapshot it is a mere foothold.
        """
        if not self.journal.first_index <= index <= self.applied_index:
            return None
        if index == self.applied_index:
            return []
        held = self.journal.between(index + 1, bytes_max)[: self.applied_index - index]
        return [c[1:] if c[:1] == REGULAR else b"" for c, _, _ in held]

    def unapplied(self) -> list[bytes]:
        """Commands in the journal behind what is applied; whether they commit is not known."""
        held = self.journal.between(self.applied_index + 1, 2**62)
        return [command[1:] for command, _, _ in held if command[:1] == REGULAR]

    def take_messages(self) -> list[tuple[str, Message]]:
        taken, self._outbox.messages = self._outbox.messages, []
        return taken

    def next_wake(self) -> float:
        """When `tick` must be called if nothing happens before."""
        if self.is_leader:
            sender = self.sender
            due = min(sender.heartbeat_at, sender.notice_at, self.transfers.next_wake())
            due = min(due, self.proposals.next_wake)
        else:
            due = float(self._SyncObj__raftElectionDeadline)
        return min(due, self._slice_at) if self.snapshots.has_more else due

    def wants_tick(self) -> bool:
        """True if `tick` gets further as soon as what was written is durable."""
        if self.commit_index > self.applied_index:
            return True
        snapshots = self.snapshots
        if snapshots.dirty or snapshots.received or snapshots.index > self._compacted_index:
            return True
        return self.is_leader and not self.peers and self.journal.last_index > self.commit_index

    # ---- the passing of time -----------------------------------------------------------

    def tick(self, now: float) -> None:
        """Move on: campaign, commit, apply, answer, compact, and queue what is to be sent."""
        self.set_now(now)
        if self.disk_failed:
            # Others may have a disk that works; this one's is slow or full at best.
            self.disk_failed = False
            self.give_up_office()
        if self.is_leader:
            self._advance_commit()
            self.proposals.begin_round()
            self._check_contact(now)
        elif now >= self._SyncObj__raftElectionDeadline:
            self.elections.stand()
        # A leader waits for what a follower wrote to be durable: what rests on nothing of it is
        # done with the step after, but never put off twice.
        self._held_back = self.dirty and not self.is_leader and not self._held_back
        if not self._held_back:
            self._apply_committed()
            self._compact_if_due()
            self._take_slice(now)
        self.reads.answer()
        self.receiver.install_if_durable()
        if self.is_leader:
            self.sender.run(now)
            self.transfers.run(now)

    def _advance_commit(self) -> None:
        own = self.journal.last_index
        if self.on(Guard.W2_COUNT_SYNCED):
            own = min(own, self.journal.synced_index)
        held = sorted([own, *self.sender.match.values()], reverse=True)
        candidate = held[self.majority - 1]
        if candidate <= self.commit_index:
            return
        if self.journal.term_at(candidate) != self.term and self.on(Guard.C1_COMMIT_OWN_TERM):
            return
        self.commit_to(candidate)

    def commit_to(self, index: int) -> None:
        """Raise the commit index; it never falls."""
        if index > self.commit_index:
            self._SyncObj__raftCommitIndex = index
            self.journal.setRaftCommitIndex(index)

    def _check_contact(self, now: float) -> None:
        """Give up office when no majority answered for the longest election time."""
        oldest = now - self.config.election_max_s
        recent = 1 + sum(heard_at > oldest for heard_at in self.sender.heard_at.values())
        if recent < self.majority:
            self.give_up_office()

    def give_up_office(self) -> None:
        """Lead no more, and let others stand; without office nothing changes."""
        if self.is_leader:
            self._SyncObj__raftLeader = None
            self._SyncObj__setState(FOLLOWER)

    def _apply_committed(self) -> None:
        limit = self.commit_index
        if self.on(Guard.W2_COUNT_SYNCED):
            limit = min(limit, self.journal.synced_index)
        limit = min(limit, self.applied_index + self.config.apply_entries_max)
        for index in range(self.applied_index + 1, limit + 1):
            found = self.journal.entry(index)
            if found is None:
                return
            self._applying = (index, found[2])
            result = self._SyncObj__doApplyCommand(found[0])
            self._SyncObj__raftLastApplied = index
            self.agreement.applied(index)
            self.proposals.applied(index, result)

    def _compact_if_due(self) -> None:
        config, journal, durable = self.config, self.journal, self.snapshots.index
        if durable > self._compacted_index:
            self._compacted_index = durable
            journal.compact(max(journal.first_index, self._keep_from(durable)))
        behind = self.applied_index - durable
        due = behind >= config.compact_entries
        # Entries kept on purpose must not call for the next snapshot by their size alone.
        due = due or (journal.entry_bytes >= config.compact_bytes and behind > config.keep_entries)
        if self.snapshots.failures != self._failures_seen:
            self._failures_seen = self.snapshots.failures
            self._take_at = self.now + SNAPSHOT_PAUSE_S
        due = due and not self._is_cheap_to_wait()
        if due and not self.snapshots.taking and self.now >= self._take_at:
            term = journal.term_at(self.applied_index)
            assert term is not None, self.applied_index
            self._slice_at = self.now
            self.snapshots.begin(self.applied_index, term, self.state.snapshot())

    def _is_cheap_to_wait(self) -> bool:
        """A snapshot costs as much as the state is large: the log may first grow twice as long,
        within reason, so that what snapshots cost is in proportion to what is written.
        """
        size = min(2 * self.snapshots.size, LOG_GROWTH_MAX * self.config.compact_bytes)
        return size > self.config.compact_bytes and self.journal.entry_bytes < size

    def _keep_from(self, durable: int) -> int:
        """The first entry that is kept: a follower that is being sent a snapshot needs what
        comes behind it, unless that grows too long.
        """
        wanted = durable - self.config.keep_entries
        if self.journal.entry_bytes < HELD_BATCHES_MAX * self.config.compact_bytes:
            wanted = min([wanted, *self.sender.sending_indexes()])
        return wanted

    def _take_slice(self, now: float) -> None:
        """A part of the snapshot that is being taken, and the next after a while."""
        if self.snapshots.has_more and now >= self._slice_at:
            self._slice_at = now + SLICE_PAUSE_S
            self.snapshots.advance()

    def install(self, index: int, term: int) -> None:
        """Stand where the snapshot received, which the state has already taken up, ends."""
        self.snapshots.install(index, term)
        self.journal.reset(index, term, NO_OP)
        self._SyncObj__raftLastApplied = index
        self._SyncObj__raftCommitIndex = index
        self._compacted_index = index

    # ---- the library's own calls, guarded ----------------------------------------------

    def _SyncObj__generateRaftTimeout(self) -> float:
        return self.election_time_s()

    def _SyncObj__sendAppendEntries(self) -> None:
        """The library sends on taking office; here the tick that follows does."""

    def _SyncObj__setState(self, state: int) -> None:
        was_leader = self.is_leader
        super()._SyncObj__setState(state)
        if state == LEADER:
            self.sender.begin(self.now)
        elif was_leader:
            self._resign()

    def _resign(self) -> None:
        """Out of office: what was proposed here may or may not commit under the next leader."""
        self.proposals.resigned()
        self.reads.resigned()
        self.sender.end()
        self.transfers.resigned()
        pause_s = self.election_time_s() if self.peers else 0.0
        self._SyncObj__raftElectionDeadline = self.now + pause_s

    def _SyncObj__setCurrentTerm(self, term: int, voted: str | None) -> None:
        if term != self.term:
            self.elections.new_term()
        super()._SyncObj__setCurrentTerm(term, voted)

    def _SyncObj__parseChangeClusterRequest(self, command: bytes) -> Any:
        if self.on(Guard.W1_NO_PICKLE):
            return None
        return super()._SyncObj__parseChangeClusterRequest(command)

    def _SyncObj__doApplyCommand(self, command: bytes) -> Any:
        if command[:1] != REGULAR:
            if self.on(Guard.W1_NO_PICKLE):
                return None  # A no-op, or a kind that the library would unpickle.
            return super()._SyncObj__doApplyCommand(command)
        index, term = self._applying
        if not self.on(Guard.H11_ERRORS_ARE_RESULTS):
            return self.state.apply(command[1:], index, term)
        try:
            return self.state.apply(command[1:], index, term)
        except MemoryError:
            raise  # Not the command's doing: other voters may have had room.
        except Exception as error:  # noqa: BLE001 - the same on every voter, so it is the result
            return error

    def hand_to_library(self, peer: str, message: dict[str, Any]) -> None:
        super()._SyncObj__onMessageReceived(self._nodes[peer], message)

    # ---- roles, as elections and leaders call for them ----------------------------------

    def election_time_s(self) -> float:
        return self._rng.uniform(self.config.election_min_s, self.config.election_max_s)

    def stand_again_in(self, pause_s: float) -> None:
        """Have `tick` stand after `pause_s`, unless a leader is heard before."""
        self._SyncObj__raftElectionDeadline = self.now + pause_s

    def stand_by(self, when: float) -> None:
        """Have `tick` stand no later than `when`, unless a leader is heard before."""
        due = min(when, float(self._SyncObj__raftElectionDeadline))
        self._SyncObj__raftElectionDeadline = due

    def forget_leader(self) -> None:
        self._SyncObj__raftLeader = None

    def become_candidate(self) -> None:
        """Vote for oneself in the next term."""
        self.stand_again_in(self.election_time_s())
        self.forget_leader()
        self._SyncObj__setState(CANDIDATE)
        self._SyncObj__setCurrentTerm(self.term + 1, self.me)
        self._SyncObj__votesCount = 1

    def become_leader(self) -> None:
        """Without peers: nobody else is asked."""
        self._SyncObj__onBecomeLeader()

    def follow_term(self, term: int) -> None:
        """A newer term exists: fall in line, having voted for nobody in it."""
        self._SyncObj__setCurrentTerm(term, None)
        self.forget_leader()
        self._SyncObj__setState(FOLLOWER)

    def hear_leader(self, peer: str, term: int) -> None:
        """`peer` leads `term`, which is not older than ours: follow it and stay calm."""
        self.elections.leader_heard(peer)
        self.hand_to_library(
            peer, {"type": "append_entries", "term": term, "commit_index": self.commit_index}
        )

    # ---- messages ------------------------------------------------------------------------

    def deliver(self, peer: str, message: Message) -> None:
        """Take a decoded message from another voter. Raises Diverged; then the node must stop."""
        self._handlers[type(message)](peer, message)

    def _all_handlers(self) -> dict[type[Message], Callable[[str, Any], None]]:
        elections = self.elections
        return {
            wire.VoteRequest: elections.on_vote_request,
            wire.HandedVoteRequest: elections.on_vote_request,
            wire.VoteGranted: elections.on_vote_granted,
            wire.PreVoteRequest: elections.on_pre_vote_request,
            wire.PreVoteGranted: elections.on_pre_vote_granted,
            wire.StaleTerm: elections.on_stale_term,
            wire.TimeoutNow: self.transfers.on_timeout_now,
            wire.StateDigest: self.agreement.on_state_digest,
            wire.DigestPassed: self.agreement.on_digest_passed,
            wire.Append: self.receiver.on_append,
            wire.AppendReply: self.sender.on_append_reply,
            wire.SnapshotChunk: self.receiver.on_snapshot_chunk,
            wire.SnapshotReply: self.sender.on_snapshot_reply,
        }
