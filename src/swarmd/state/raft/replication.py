"""Copying the log: a leader's sending half and a follower's receiving half.

`Sender` keeps, per follower, what to send next. It runs ahead of acknowledgements until the
follower misses something and answers where to go on; then it probes, one message at a time,
until one is taken (else each refusal of a message in flight would be answered by as many
new ones). A follower that needs
entries the leader let go of is sent the snapshot file, chunk by chunk, each after the last
was acknowledged.

`Receiver` holds the follower's rules (section 5.3 of the Raft paper): skip what matches,
truncate at a conflict only, never at or below the commit index, and let the commit index
follow only over entries that this very message has verified.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Final

from swarmd.base.disk import DiskReader
from swarmd.base.errors import CorruptFile, Diverged
from swarmd.state.raft.guards import Guard
from swarmd.state.raft.journal import Entry
from swarmd.state.raft.snapshot import Restoring, SnapshotReader
from swarmd.state.raft.wire import Append, AppendReply, SnapshotChunk, SnapshotReply, StaleTerm

if TYPE_CHECKING:
    from swarmd.state.raft.hardened import HardenedRaft

NO_OP: Final = b"\x01"
# The first byte of what callers proposed.
REGULAR: Final = b"\x00"
# A leader without followers has nobody to give signs of life, and sees no more often than this to
# what was put off, such as a snapshot that failed. What is proposed wakes it at once.
ALONE_BEAT_S: Final = 1.0


@dataclass(slots=True)
class _Sending:
    """A snapshot on its way to one follower; `waits` while a chunk is unacknowledged.

    `file` stays the one that it was, whatever is taken meanwhile. What is sent for the first
    time is checked by `check`: a damaged file is not to be sent for ever.
    """

    index: int
    term: int
    file: DiskReader
    check: SnapshotReader
    checked: int = 0
    offset: int = 0
    waits: bool = False

    def piece(self, size: int) -> bytes:
        """Up to `size` bytes from the offset on. Raises CorruptFile."""
        data = self.file.read(self.offset, size)
        if self.checked == self.offset:
            self.checked += len(data)
            self.check.feed(data)
        return data


class Sender:
    """What a leader sends. `match` and `next` are the paper's matchIndex and nextIndex."""

    def __init__(self, core: HardenedRaft) -> None:
        self._core = core
        self.match: dict[str, int] = {}
        self.next: dict[str, int] = {}
        self.heard_at: dict[str, float] = {}
        self.acked_round: dict[str, int] = {}
        self.round = 0
        self.heartbeat_at = 0.0
        self.notice_at = inf
        self._told_commit = 0
        self._moved_key = (0, 0)
        self._sending: dict[str, _Sending] = {}
        self._probing: dict[str, bool] = {}  # present: probing; True: a probe is out

    def begin(self, now: float) -> None:
        """Take office: nothing is known of any follower but that it was there to vote."""
        core = self._core
        self.match = dict.fromkeys(core.peers, 0)
        self.next = dict.fromkeys(core.peers, core.journal.last_index + 1)
        self.heard_at = dict.fromkeys(core.peers, now)
        self.acked_round = dict.fromkeys(core.peers, 0)
        self.heartbeat_at = now
        self.notice_at = inf
        self._told_commit = 0
        self._moved_key = (0, 0)
        self.end()

    def end(self) -> None:
        """Leave office."""
        for peer in list(self._sending):
            self._end_sending(peer)
        self._probing.clear()

    def _end_sending(self, peer: str) -> None:
        self._sending.pop(peer).file.close()

    def sending_indexes(self) -> list[int]:
        """Where the snapshots end that are on their way to followers who still answer."""
        oldest = self._core.now - self._core.config.election_max_s
        return [s.index for peer, s in self._sending.items() if self.heard_at[peer] > oldest]

    def run(self, now: float) -> None:
        """Queue what each follower is to get now.

        Everyone hears when the log or the read round moved, soon after the commit index did
        (with the next entries, if they come first), or when a heartbeat is due; one that lags
        gets its next batches in any case.
        """
        core = self._core
        if not core.peers:
            self.heartbeat_at = now + ALONE_BEAT_S  # Each step sees to everything.
            return
        key = (core.journal.last_index, self.round)
        beat = now >= self.heartbeat_at
        moved = key != self._moved_key or now >= self.notice_at
        if not moved and core.commit_index > self._told_commit and self.notice_at == inf:
            self.notice_at = now + core.config.commit_notice_s
            moved = now >= self.notice_at
        for peer in core.peers:
            if self.next[peer] <= core.journal.first_index:
                self._send_snapshot(peer, now, beat=beat, moved=moved)
            elif peer in self._probing:
                if beat or not self._probing[peer]:
                    self._probing[peer] = True
                    self._send_entries(peer, batches=1)
            elif beat or moved or self.next[peer] <= core.journal.last_index:
                self._send_entries(peer, batches=core.config.batches_max)
        self._moved_key = key
        if beat or moved:
            self._told_commit, self.notice_at = core.commit_index, inf
            self.heartbeat_at = now + core.config.heartbeat_s

    def _send_entries(self, peer: str, *, batches: int) -> None:
        core, journal = self._core, self._core.journal
        first = self.next[peer]
        for _ in range(batches):
            entries: tuple[tuple[int, bytes], ...] = ()
            if first <= journal.last_index:
                held = journal.between(first, core.config.batch_bytes_max)
                entries = tuple((term, command) for command, _, term in held)
            previous_term = journal.term_at(first - 1)
            assert previous_term is not None, (first, journal.first_index)
            message = Append(
                core.term, self.round, core.commit_index, first - 1, previous_term, entries
            )
            core.put(peer, message)
            first += len(entries)
            if peer not in self._probing:
                self.next[peer] = first
            if first > journal.last_index:
                return

    def _send_snapshot(self, peer: str, now: float, *, beat: bool, moved: bool) -> None:
        core = self._core
        sending = self._sending.get(peer)
        if sending is None:
            store = core.snapshots
            check = SnapshotReader(core.voters, "the snapshot to be sent")
            sending = _Sending(store.index, store.term, store.reader(), check)
            self._sending[peer] = sending
        if sending.waits and not beat and not moved:
            return
        # A follower that is silent gets probes until it answers, not the same chunk for ever.
        silent = now - self.heard_at[peer] > core.config.election_min_s
        size = core.config.snapshot_chunk_bytes if beat or not sending.waits else 0
        chunk = b"" if silent or not size else sending.piece(size)
        sending.waits = True
        core.put(
            peer,
            SnapshotChunk(
                core.term,
                self.round,
                core.commit_index,
                sending.index,
                sending.term,
                sending.file.size,
                sending.offset,
                chunk,
            ),
        )

    def _acknowledged(self, peer: str, term: int, round_: int) -> bool:
        """Note a sign of life; False if it is not for this office."""
        core = self._core
        if term > core.term:
            core.follow_term(term)
            return False
        if not core.is_leader or (term != core.term and core.on(Guard.H2_ACK_TERM)):
            return False
        self.heard_at[peer] = core.now
        self.acked_round[peer] = max(self.acked_round[peer], round_)
        return True

    def on_append_reply(self, peer: str, message: AppendReply) -> None:
        if not self._acknowledged(peer, message.term, message.round):
            return
        core = self._core
        last = core.journal.last_index
        next_index = min(message.next_index, last + 1)
        if not message.ok:
            if self._refusal_is_news(peer, message.previous):
                self.next[peer] = max(self.match[peer] + 1, next_index)
                self._probing[peer] = False
            return
        self._probing.pop(peer, None)
        held = next_index - 1
        rises = held > self.match[peer]
        if rises or not core.on(Guard.H2_MATCH_RISES):
            self.match[peer] = held
        core.agreement.heard(peer)
        if next_index > self.next[peer] or not core.on(Guard.H3_NEXT_RISES):
            self.next[peer] = next_index
        sending = self._sending.get(peer)
        if sending is not None and held >= sending.index:
            self._end_sending(peer)

    def _refusal_is_news(self, peer: str, previous: int) -> bool:
        """False for a refusal that was answered already, or is older than an acceptance."""
        if peer in self._probing:
            return previous == self.next[peer] - 1
        return previous > self.match[peer]

    def on_snapshot_reply(self, peer: str, message: SnapshotReply) -> None:
        if not self._acknowledged(peer, message.term, message.round):
            return
        sending = self._sending.get(peer)
        if sending is None or sending.index != message.index:
            return
        if message.offset <= sending.file.size and message.offset != sending.offset:
            sending.offset = message.offset
            sending.waits = False
        elif message.offset == sending.offset and sending.offset == 0:
            sending.waits = False


@dataclass(slots=True)
class _Receiving:
    """A snapshot that arrives in chunks: checked, kept beside and restored as it comes.

    Attributes:
        held: bytes so far; the last of them is to be acknowledged in `round` of `leader_term`.
    """

    index: int
    term: int
    total: int
    reader: SnapshotReader
    restoring: Restoring
    held: int = 0
    leader: str = ""
    leader_term: int = 0
    round: int = 0


class Receiver:
    """What a follower does with a leader's messages."""

    def __init__(self, core: HardenedRaft) -> None:
        self._core = core
        self._receiving: _Receiving | None = None
        self.refused_snapshots = 0

    def _heed(self, peer: str, term: int) -> bool:
        """Take `peer` for the leader of `term`, or tell it that its time is over."""
        core = self._core
        if term < core.term:
            core.put(peer, StaleTerm(core.term))
            return False
        if term == core.term and core.is_leader:
            raise Diverged(f"{peer} and {core.me} both lead term {term}")
        core.hear_leader(peer, term)
        return True

    # ---- entries -----------------------------------------------------------------------

    def on_append(self, peer: str, message: Append) -> None:
        core, journal = self._core, self._core.journal
        if not self._heed(peer, message.term):
            return
        previous, entries = message.previous_index, _entries_of(message)
        commit = core.commit_index
        if previous < commit:
            # All up to the commit index is the same under any leader: start behind it.
            self._check_committed(entries[: commit - previous])
            entries = entries[commit - previous :]
            verified = min(commit, previous + len(message.entries))
            if not entries:
                self._reply(peer, message, ok=True, next_index=verified + 1)
                return
            previous = commit
        elif journal.term_at(previous) != message.previous_term:
            self._reply(peer, message, ok=False, next_index=commit + 1)
            return
        self._take(entries, previous)
        last = previous + len(entries)
        core.commit_to(min(message.commit, last))
        self._reply(peer, message, ok=True, next_index=last + 1)

    def _check_committed(self, entries: list[Entry]) -> None:
        """Stop if the leader holds another entry where one is committed here."""
        core = self._core
        for _, index, term in entries:
            held = core.journal.term_at(index)
            if held not in (None, term) and core.on(Guard.H3_STOP_BELOW_COMMIT):
                raise Diverged(
                    f"entry {index} is committed here with term {held}; the leader of term"
                    f" {core.term} holds one of term {term} in its place"
                )

    def _take(self, entries: list[Entry], previous: int) -> None:
        """Append what is new; cut off what conflicts with it."""
        core, journal = self._core, self._core.journal
        if core.on(Guard.H3_SKIP_PREFIX):
            fresh = 0
            while fresh < len(entries) and journal.term_at(entries[fresh][1]) == entries[fresh][2]:
                fresh += 1
            entries = entries[fresh:]
            cut_at = entries[0][1] if entries else journal.last_index + 1
        else:
            cut_at = previous + 1
        if cut_at <= journal.last_index:
            assert cut_at > core.commit_index, cut_at
            journal.truncate(cut_at)
        for command, index, term in entries:
            journal.add(command, index, term)

    def _reply(
        self, peer: str, message: Append | SnapshotChunk, *, ok: bool, next_index: int
    ) -> None:
        previous = message.previous_index if isinstance(message, Append) else message.index
        core = self._core
        core.put(peer, AppendReply(core.term, message.round, ok, previous, next_index))

    # ---- snapshots ---------------------------------------------------------------------

    def on_snapshot_chunk(self, peer: str, message: SnapshotChunk) -> None:
        core = self._core
        if not self._heed(peer, message.term):
            return
        if not core.on(Guard.H4_NO_COMMIT_FROM_SNAPSHOT):
            core.commit_to(min(message.commit, core.journal.last_index))
        if message.index <= core.commit_index and core.on(Guard.H14_NO_OLD_SNAPSHOT):
            self._forget()
            self._reply(peer, message, ok=True, next_index=core.commit_index + 1)
            return
        if core.journal.term_at(message.index) == message.index_term and core.on(
            Guard.H14_NO_OLD_SNAPSHOT
        ):
            # The snapshot is of committed entries, and this very entry is in the log.
            self._forget()
            core.commit_to(message.index)
            self._reply(peer, message, ok=True, next_index=message.index + 1)
            return
        self._collect(peer, message)
        if self._receiving is not None:
            held = self._receiving.held
            core.put(peer, SnapshotReply(core.term, message.round, message.index, held))

    def _collect(self, peer: str, message: SnapshotChunk) -> None:
        """Take the next chunk: check it (H10), keep it beside, restore what is whole."""
        core = self._core
        now = self._receiving
        wanted = (message.index, message.index_term, message.total_bytes)
        same = now is not None and (now.index, now.term, now.total) == wanted
        if now is None or not same or not core.snapshots.receiving:
            if message.total_bytes > core.config.snapshot_bytes_max:
                self._refuse()
                return
            reader = SnapshotReader(core.voters, f"the snapshot of {peer}")
            now = self._receiving = _Receiving(*wanted, reader, core.state.restoring())
            core.snapshots.receive_anew()
        now.leader, now.leader_term, now.round = peer, core.term, message.round
        if message.offset != now.held or not message.data:
            return  # A repeat, or one that was overtaken: the reply says what is wanted.
        try:
            if now.held + len(message.data) > now.total:
                raise CorruptFile(f"the snapshot of {peer} is longer than it said")
            self._restore(now, message.data)
        except CorruptFile:
            # Nothing changed and nothing is acknowledged: the leader goes on asking.
            self._refuse()
            return
        now.held += len(message.data)
        core.snapshots.receive(message.data, last=now.held == now.total)

    def _restore(self, now: _Receiving, data: bytes) -> None:
        """Raises CorruptFile."""
        verify = self._core.on(Guard.H10_VERIFY_SNAPSHOT)
        try:
            for frame in now.reader.feed(data):
                now.restoring.take(frame)
            meta = now.reader.meta
            if meta is not None and (meta.index, meta.term) != (now.index, now.term):
                raise CorruptFile("the snapshot ends elsewhere than it said")
            if now.held + len(data) == now.total:
                now.reader.finish()
        except CorruptFile:
            if verify:
                raise

    def _refuse(self) -> None:
        self.refused_snapshots += 1
        self._forget()

    def _forget(self) -> None:
        self._receiving = None
        self._core.snapshots.forget_received()

    def install_if_durable(self) -> None:
        """Take over what was received, once it is whole and durable; then acknowledge it."""
        core, now = self._core, self._receiving
        if now is None or not core.snapshots.received:
            return
        self._receiving = None
        if now.index <= core.commit_index and core.on(Guard.H14_NO_OLD_SNAPSHOT):
            core.snapshots.forget_received()
            return
        try:
            now.restoring.finish()
        except CorruptFile:
            if core.on(Guard.H10_VERIFY_SNAPSHOT):
                self._refuse()
                return
        core.install(now.index, now.term)
        if core.leader == now.leader and core.term == now.leader_term:
            reply = AppendReply(core.term, now.round, True, now.index, now.index + 1)
            core.put(now.leader, reply)


def _entries_of(message: Append) -> list[Entry]:
    first = message.previous_index + 1
    return [(command, first + n, term) for n, (term, command) in enumerate(message.entries)]
