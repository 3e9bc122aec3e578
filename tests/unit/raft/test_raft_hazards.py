"""Every guard has a scenario: safe with all guards, and seen to be unsafe without that one.

The simulator alone is not enough. With three voters a repeated vote cannot matter, and a
crash in the middle of a rewrite needs a disk that stops there.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
from raft_hands import Hands, ListState, of, sent, sim_disk, snapshot_of

from swarmd.base.disk import Disk
from swarmd.base.errors import CorruptFile, DiskFault, Diverged
from swarmd.base.rng import make_rng
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.guards import ALL_GUARDS, Guard, without
from swarmd.state.raft.journal import ANYBODY, JOURNAL_FILE, Journal, Owner
from swarmd.state.raft.library import PickleRefused
from swarmd.state.raft.machine import (
    Deliver,
    Propose,
    Proposed,
    ReadIndex,
    ReadReady,
    SendRaft,
    Transfer,
)
from swarmd.state.raft.snapshot import SNAPSHOT_FILE
from swarmd.state.raft.wire import (
    Append,
    AppendReply,
    HandedVoteRequest,
    SnapshotChunk,
    StateDigest,
    TimeoutNow,
    VoteGranted,
    VoteRequest,
)

Guards = frozenset[str]
Scenario = Callable[[Guards], bool]
SCENARIOS: dict[Guard, Scenario] = {}


def scenario(guard: Guard) -> Callable[[Scenario], Scenario]:
    def register(function: Scenario) -> Scenario:
        SCENARIOS[guard] = function
        return function

    return register


@scenario(Guard.W1_NO_PICKLE)
def a_command_is_never_unpickled(guards: Guards) -> bool:
    hands = Hands(guards=guards)
    poison = ((1, b"\x02" + pickle.dumps(["add", "x"])), (1, b"\x03" + pickle.dumps(7)))
    try:
        hands.say("b", Append(1, 1, 3, 1, 0, poison))
        hands.go_on()
    except PickleRefused:
        return False
    return hands.machine.applied_index == 3 and hands.state.commands == []


@scenario(Guard.W2_PERSIST_FIRST)
def no_second_vote_after_power_loss(guards: Guards) -> bool:
    disk = sim_disk()
    hands = Hands(guards=guards, disk=disk)
    assert sent(hands.say("b", VoteRequest(5, 9, 4)), VoteGranted)
    disk.crash()
    hands.start()
    return not sent(hands.say("c", VoteRequest(5, 9, 4)), VoteGranted)


@scenario(Guard.W2_COUNT_SYNCED)
def a_lone_voter_waits_for_its_own_sync(guards: Guards) -> bool:
    hands = Hands("a", guards=guards)
    hands.go_on()
    hands.go_on()
    answers = of(hands.propose(b"x", sync=False), Proposed)
    answers += of(hands.go_on(sync=False), Proposed)
    if answers or hands.state.commands:
        return False
    hands.machine.sync()
    answers = of(hands.go_on(), Proposed)
    return answers == [Proposed(1, True, 3, None)]


class _DroppingDisk(SimDisk):
    """Fails one sync and forgets what was to be written, as a kernel may, then works again."""

    def __init__(self) -> None:
        super().__init__(World(1), "dropping")
        self.fail_next = False

    def sync(self, name: str) -> None:
        if self.fail_next:
            self.fail_next = False
            self._pending.pop(name, None)
            raise DiskFault(f"cannot write {name}: Input/output error")
        super().sync(name)


def _journal(disk: Disk, guards: Guards, owner: Owner = ANYBODY) -> Journal:
    return Journal(disk, make_rng(1), guards, JOURNAL_FILE, owner)


@scenario(Guard.W2_REWRITE_AFTER_FAULT)
def a_failed_sync_is_not_believed_the_second_time(guards: Guards) -> bool:
    disk = _DroppingDisk()
    journal = _journal(disk, guards)
    journal.add(b"one", 1, 1)
    journal.sync()
    journal.add(b"two", 2, 1)
    disk.fail_next = True
    with pytest.raises(DiskFault):
        journal.sync()
    journal.add(b"three", 3, 1)
    journal.sync()
    disk.crash()
    return len(_journal(disk, guards)) == 3


@scenario(Guard.W3_OWN_JOURNAL)
def a_journal_of_another_node_or_swarm_is_refused(guards: Guards) -> bool:
    swarm, node = b"s" * 32, b"n" * 32
    refused = 0
    for other in (Owner(swarm, b"o" * 32), Owner(b"o" * 32, node)):
        disk = sim_disk()
        _journal(disk, guards, other).sync()
        try:
            _journal(disk, guards, Owner(swarm, node))
        except CorruptFile as error:
            refused += "another" in error.message
    return refused == 2


@scenario(Guard.H1_ONE_VOTE_EACH)
def a_repeated_vote_counts_once(guards: Guards) -> bool:
    hands = Hands("abcde", guards=guards | {Guard.V1_PRE_VOTE})
    hands.machine = Hands("abcde", guards=guards - {Guard.V1_PRE_VOTE}).machine
    hands.time_out()
    hands.say("b", VoteGranted(hands.term), VoteGranted(hands.term))
    return hands.machine.office.state == "candidate"


@scenario(Guard.H2_ACK_TERM)
def an_acknowledgement_of_another_term_is_ignored(guards: Guards) -> bool:
    hands = Hands(guards=guards)
    hands.lead()
    hands.propose(b"x")
    before = hands.commit
    hands.say("b", AppendReply(hands.term - 1, 1, True, 1, hands.last + 1))
    return hands.commit == before


@scenario(Guard.H2_MATCH_RISES)
def what_a_follower_holds_never_shrinks(guards: Guards) -> bool:
    hands = Hands(guards=guards)
    hands.lead()
    hands.step(*(Propose(b"x", tag) for tag in range(5)))
    hands.say("b", AppendReply(hands.term, 0, True, 1, 6))
    hands.say("b", AppendReply(hands.term, 0, True, 1, 3))
    return hands.machine.status(hands.now).matched["b"] == 5


@scenario(Guard.H3_SKIP_PREFIX)
def a_matching_prefix_truncates_nothing(guards: Guards) -> bool:
    hands = Hands(guards=guards)
    hands.follow([b"2", b"3", b"4"])
    assert hands.last == 4
    hands.follow([b"2"])  # Late, or repeated.
    return hands.last == 4


@scenario(Guard.H3_NEXT_RISES)
def a_late_acknowledgement_does_not_rewind(guards: Guards) -> bool:
    hands = Hands(guards=guards)
    hands.lead()
    hands.go_on()
    hands.step(*(Propose(b"x", tag) for tag in range(5)))
    effects = hands.say("b", AppendReply(hands.term, 0, True, 1, 3))
    return not any(a.entries for a in sent(effects, Append))


@scenario(Guard.H3_STOP_BELOW_COMMIT)
def a_conflict_below_the_commit_index_stops_the_node(guards: Guards) -> bool:
    hands = Hands(guards=guards)
    hands.follow([b"2", b"3"], commit=3)
    try:
        hands.follow([b"other", b"more", b"most"], leader="c", term=5)
    except Diverged:
        return True
    return False


@scenario(Guard.H4_NO_COMMIT_FROM_SNAPSHOT)
def a_snapshot_message_commits_nothing_unverified(guards: Guards) -> bool:
    hands = Hands(guards=guards)
    hands.follow([b"ghost", b"ghost"])
    hands.say("c", SnapshotChunk(2, 1, 30, 30, 2, 1_000, 0, b""))
    hands.go_on()
    return hands.commit == 1 and hands.state.commands == []


@scenario(Guard.H5_SNAPSHOT_REQUIRED)
def a_compacted_journal_without_its_snapshot_is_refused(guards: Guards) -> bool:
    disk = sim_disk()
    hands = Hands(
        "a", guards=guards, disk=disk, config=RaftConfig(compact_entries=5, keep_entries=0)
    )
    for tag in range(12):
        hands.propose(b"x", tag)
        hands.go_on()
        hands.go_on()
    assert hands.machine.status(0).snapshot_index > 5
    disk.remove(SNAPSHOT_FILE)
    try:
        hands.start()
    except CorruptFile:
        return True
    return False


@scenario(Guard.H6_COMMIT_VOLATILE)
def a_restart_applies_nothing_on_its_own_word(guards: Guards) -> bool:
    hands = Hands(guards=guards)
    hands.follow([b"2", b"3"], commit=3)
    hands.go_on()
    assert len(hands.state.commands) == 2
    hands.start()
    hands.go_on()
    return hands.machine.applied_index == 1


@scenario(Guard.H8_SPLIT_LARGE)
def an_entry_of_any_allowed_size_arrives(guards: Guards) -> bool:
    config = RaftConfig(part_bytes=64 * 1024, batch_bytes_max=64 * 1024)
    leader = Hands(guards=guards, config=config)
    follower = Hands(me="b", guards=guards, config=config)
    leader.lead()
    sizes = [65_530 + n for n in range(8)] + [300_000, 1_048_576 + 60_000]
    effects = [e for n, size in enumerate(sizes) for e in leader.propose(b"z" * size, n)]
    for _ in range(40):
        packets = [e.data for e in effects if isinstance(e, SendRaft) and e.peer == "b"]
        back = [
            e.data
            for packet in packets
            for e in follower.step(Deliver("a", packet))
            if isinstance(e, SendRaft)
        ]
        effects = [e for packet in back for e in leader.step(Deliver("b", packet))]
        effects += leader.step(after_s=0.05)
    return follower.last == leader.last


class _Killed(Exception):
    pass


class _MortalDisk(SimDisk):
    """The process is killed when it next writes a file as a whole, or syncs one."""

    def __init__(self) -> None:
        super().__init__(World(1), "mortal")
        self.armed = False

    def sync(self, name: str) -> None:
        if self.armed:
            raise _Killed
        super().sync(name)

    def replace(self, name: str, data: bytes) -> None:
        if self.armed:
            raise _Killed
        super().replace(name, data)


@scenario(Guard.H9_REWRITE_ASIDE)
def a_kill_within_a_rewrite_loses_nothing(guards: Guards) -> bool:
    disk = _MortalDisk()
    journal = _journal(disk, guards)
    for index in range(1, 501):
        journal.add(b"x", index, 1)
    journal.sync()
    journal.compact(10)
    disk.armed = True
    with pytest.raises(_Killed):
        journal.sync()
    disk.armed = False
    disk.crash()
    again = _journal(disk, guards)
    return len(again) > 0 and again.last_index == 500


@scenario(Guard.H10_VERIFY_SNAPSHOT)
def a_bad_snapshot_is_neither_kept_nor_acknowledged(guards: Guards) -> bool:
    disk = sim_disk()
    good = snapshot_of(5, 1)
    hands = Hands(guards=guards, disk=disk)
    hands.say("b", SnapshotChunk(1, 1, 5, 5, 1, len(good), 0, good))
    hands.go_on()
    assert disk.read(SNAPSHOT_FILE) == good
    bad = snapshot_of(9, 1)[:-1] + b"x"
    effects = hands.say("b", SnapshotChunk(1, 1, 9, 9, 1, len(bad), 0, bad))
    effects += hands.go_on()
    accepted = [r for r in sent(effects, AppendReply) if r.ok and r.next_index > 6]
    return disk.read(SNAPSHOT_FILE) == good and not accepted


@scenario(Guard.H11_ERRORS_ARE_RESULTS)
def an_error_in_apply_is_a_result(guards: Guards) -> bool:
    hands = Hands("a", guards=guards)
    hands.go_on()
    hands.go_on()
    try:
        hands.step(Propose(b"bad", 1), Propose(b"good", 2))
        answers = of(hands.go_on(), Proposed)
    except ValueError:
        return False
    return isinstance(answers[0].result, ValueError) and hands.state.commands == [b"good"]


@scenario(Guard.H12_MARKS)
def damage_before_a_mark_is_fatal(guards: Guards) -> bool:
    disk = sim_disk()
    journal = _journal(disk, guards)
    for index in range(1, 6):
        journal.add(b"entry", index, 1)
        journal.sync()
    raw = bytearray(disk.read(JOURNAL_FILE) or b"")
    at = raw.index(b"entry")
    raw[at] ^= 1
    disk.replace(JOURNAL_FILE, bytes(raw))
    try:
        _journal(disk, guards)
    except CorruptFile as error:
        return JOURNAL_FILE in error.message
    return False


@scenario(Guard.H14_NO_OLD_SNAPSHOT)
def an_old_snapshot_changes_nothing(guards: Guards) -> bool:
    hands = Hands(guards=guards)
    hands.follow([b"2", b"3", b"4"], commit=4)
    hands.go_on()
    old = snapshot_of(3, 1)
    hands.say("b", SnapshotChunk(1, 2, 4, 3, 1, len(old), 0, old))
    hands.go_on()
    return hands.state.commands == [b"2", b"3", b"4"] and hands.last == hands.commit == 4


@scenario(Guard.C1_COMMIT_OWN_TERM)
def an_entry_of_an_older_term_is_not_committed_by_counting(guards: Guards) -> bool:
    hands = Hands(guards=guards)
    hands.follow([b"2"])
    hands.lead()
    hands.say("c", AppendReply(hands.term, 0, True, 1, 3))
    return hands.commit == 1


def _ready_leader(guards: Guards) -> Hands:
    hands = Hands(guards=guards)
    hands.lead()
    hands.say("b", AppendReply(hands.term, 0, True, 1, hands.last + 1))
    hands.go_on()
    assert hands.machine.office.ready
    return hands


@scenario(Guard.R1_READ_ROUND)
def a_read_waits_for_a_round(guards: Guards) -> bool:
    hands = _ready_leader(guards)
    effects = hands.step(ReadIndex(1))
    if of(effects, ReadReady):
        return False
    round_ = sent(effects, Append)[0].round
    early = hands.say("b", AppendReply(hands.term, round_ - 1, True, 1, hands.last + 1))
    ready = hands.say("b", AppendReply(hands.term, round_, True, 1, hands.last + 1))
    return not of(early, ReadReady) and of(ready, ReadReady) == [ReadReady(1, True)]


@scenario(Guard.R2_READ_OWN_TERM)
def a_new_leader_does_not_read_before_its_first_commit(guards: Guards) -> bool:
    hands = Hands(guards=guards)
    hands.lead()
    round_ = sent(hands.step(ReadIndex(1)), Append)[0].round
    early = hands.say("b", AppendReply(hands.term, round_, False, 1, 2))
    return not of(early, ReadReady)


@scenario(Guard.V1_PRE_VOTE)
def a_voter_that_hears_nobody_keeps_its_term(guards: Guards) -> bool:
    hands = Hands(guards=guards)
    for _ in range(5):
        hands.time_out()
    return hands.term == 0


@scenario(Guard.V2_STICKY_LEADER)
def no_vote_while_a_leader_is_heard(guards: Guards) -> bool:
    hands = Hands(guards=guards)
    hands.follow([b"2"])
    effects = hands.say("c", VoteRequest(7, 99, 6))
    return hands.term == 1 and not sent(effects, VoteGranted)


@scenario(Guard.T1_HAND_OVER_ALL)
def who_lacks_an_entry_is_not_told_to_stand(guards: Guards) -> bool:
    hands = _ready_leader(guards)
    hands.propose(b"x")
    early = hands.step(Transfer("b", 7))
    refused = of(hands.propose(b"y", 8), Proposed)
    told = hands.say("b", AppendReply(hands.term, 1, True, 1, hands.last + 1))
    told += hands.go_on()
    return (
        not sent(early, TimeoutNow)
        and [r.code for r in refused] == ["handing_over"]
        and sent(told, TimeoutNow) == [TimeoutNow(hands.term, hands.last)]
    )


@scenario(Guard.T2_OF_THIS_TERM)
def a_late_word_of_an_old_leader_deposes_nobody(guards: Guards) -> bool:
    hands = Hands(guards=guards)
    hands.follow([b"2"], term=1)
    hands.follow([], leader="c", term=2, previous=(2, 1))
    effects = hands.say("b", TimeoutNow(1, 2))
    return hands.term == 2 and not sent(effects, HandedVoteRequest)


def _after_eight_entries(guards: Guards) -> Hands:
    hands = Hands(guards=guards, config=RaftConfig(digest_entries=8))
    hands.follow([b"%d" % n for n in range(2, 9)], commit=7)
    hands.go_on()
    return hands


@scenario(Guard.D1_COMPARE_DIGESTS)
def a_voter_with_another_state_than_the_leader_stops(guards: Guards) -> bool:
    for flipped in (False, True):
        hands = _after_eight_entries(guards)
        other = ListState()
        other.commands = [b"%d" % n for n in range(2, 9)]
        hands.say("b", StateDigest(1, 8, other.digest()))  # Before it got there itself.
        hands.state.commands[2:3] = [b"flipped"] if flipped else [b"4"]
        try:
            hands.say("b", Append(1, 1, 8, 8, 1, ()))
            hands.go_on()
        except Diverged as error:
            if not flipped or "bucket 0" not in error.message:
                return False
        else:
            if flipped:
                return False
    return True


@scenario(Guard.D2_SCRUB_STATE)
def a_voter_whose_memory_changed_without_the_log_stops(guards: Guards) -> bool:
    hands = _after_eight_entries(guards)
    hands.state.commands[3] = b"spoilt"
    try:
        hands.say("b", Append(1, 1, 8, 8, 1, ()))
        hands.go_on()
    except Diverged:
        return True
    return False


def test_every_guard_has_a_scenario() -> None:
    assert sorted(SCENARIOS) == sorted(Guard)


@pytest.mark.parametrize("guard", list(Guard), ids=str)
def test_with_all_guards_the_hazard_is_stopped(guard: Guard) -> None:
    assert SCENARIOS[guard](ALL_GUARDS)


@pytest.mark.parametrize("guard", list(Guard), ids=str)
def test_without_its_guard_the_hazard_is_there(guard: Guard) -> None:
    assert not SCENARIOS[guard](without(guard))


def test_three_voters_do_not_count_an_unsynced_leader() -> None:
    """A leader whose sync never returns may not commit with one follower of two."""
    hands = _ready_leader(ALL_GUARDS)
    before = hands.commit
    hands.propose(b"x", sync=False)
    reply = AppendReply(hands.term, 1, True, 1, hands.last + 1)
    answers = of(hands.say("b", reply, sync=False), Proposed)
    assert not answers
    assert hands.commit == before
    hands.machine.sync()
    assert of(hands.go_on(), Proposed) == [Proposed(1, True, before + 1, None)]


def test_the_library_has_no_pickle_and_is_checked_by_name() -> None:
    from pysyncobj import syncobj

    with pytest.raises(PickleRefused):
        syncobj.pickle.loads(b"")


def test_another_library_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from pysyncobj import syncobj

    from swarmd.state.raft import library

    monkeypatch.delattr(syncobj.SyncObj, "_SyncObj__setCurrentTerm")
    with pytest.raises(ImportError, match="setCurrentTerm"):
        library._check_library()
