"""The voter's machine: steps, answers, snapshots over the wire, the driver, config."""

from __future__ import annotations

import heapq
import itertools
from pathlib import Path

import pytest
import trio
from raft_hands import Hands, ListState, of, sent, sim_disk, snapshot_of

from swarmd.base.clock import BootClock
from swarmd.base.errors import CorruptFile, DiskFault, Diverged
from swarmd.base.files import FileDisk
from swarmd.base.limits import ENTRY_BYTES_MAX
from swarmd.base.machine import Persist, SetTimer
from swarmd.base.rng import make_rng
from swarmd.mesh.driver import Driver
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.frames import unpack
from swarmd.state.raft.machine import (
    START,
    Applied,
    Deliver,
    Doubt,
    Office,
    Propose,
    Proposed,
    RaftMachine,
    ReadIndex,
    ReadReady,
    SendAhead,
    SendRaft,
    Stand,
    Transfer,
    Transferred,
    Wake,
)
from swarmd.state.raft.replication import ALONE_BEAT_S
from swarmd.state.raft.snapshot import FORMAT, KIND, SNAPSHOT_FILE, decode_meta
from swarmd.state.raft.wire import (
    VOTERS,
    Append,
    AppendReply,
    Assembler,
    Part,
    PreVoteGranted,
    PreVoteRequest,
    SnapshotChunk,
    StaleTerm,
    VoteGranted,
    split,
)


class Room:
    """Several machines on one clock; packets take a millisecond, those to `away` are lost."""

    def __init__(self, voters: str = "abc", config: RaftConfig | None = None) -> None:
        self.hands = {v: Hands(voters, me=v, config=config) for v in voters}
        self.away: set[str] = set()
        self.now = 0.0
        self.bytes_to: dict[str, int] = dict.fromkeys(voters, 0)
        self.answers: list[Proposed] = []
        self._order = itertools.count()
        self._events: list[tuple[float, int, str, object]] = []
        for name in self.hands:
            self.step(name, Wake(START))

    def step(self, name: str, *events: object) -> None:
        hands = self.hands[name]
        hands.now = self.now
        for effect in hands.step(*events):  # type: ignore[arg-type]
            if isinstance(effect, SendRaft):
                self.bytes_to[effect.peer] += len(effect.data)
                if not {name, effect.peer} & self.away:
                    self._later(0.001, effect.peer, Deliver(name, effect.data))
            elif isinstance(effect, SetTimer):
                self._later(effect.delay_s, name, effect.event)
            elif isinstance(effect, Proposed):
                self.answers.append(effect)

    def _later(self, delay_s: float, name: str, event: object) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), name, event))

    def run_for(self, duration_s: float) -> None:
        end = self.now + duration_s
        while self._events and self._events[0][0] <= end:
            self.now, _, name, event = heapq.heappop(self._events)
            self.step(name, event)
        self.now = end

    def leader(self) -> str:
        found = [n for n, h in self.hands.items() if h.machine.office.ready and n not in self.away]
        assert len(found) == 1, found
        return found[0]


def test_three_voters_elect_commit_and_apply() -> None:
    room = Room()
    room.run_for(2)
    leader = room.leader()
    for tag in range(50):
        room.step(leader, Propose(b"%d" % tag, tag))
    room.run_for(1)
    assert [a.ok for a in room.answers] == [True] * 50
    assert all(len(h.state.commands) == 50 for h in room.hands.values())


def test_effects_come_in_order_persist_first() -> None:
    hands = Hands("a")
    hands.go_on()
    hands.go_on()
    assert [type(e) for e in hands.propose(b"x")] == [Persist, SetTimer]
    assert [type(e) for e in hands.go_on()] == [Applied, Proposed]


def test_a_lone_voter_leads_at_once() -> None:
    hands = Hands("a")
    first = hands.go_on()
    assert first[0] == Persist()
    assert of(first, Office) == [Office("leader", 1, "a", False)]
    assert of(hands.go_on(), Office) == [Office("leader", 1, "a", True)]
    assert of(hands.step(ReadIndex(9)), ReadReady) == [ReadReady(9, True)]


def test_a_lone_leader_that_idles_wakes_about_once_a_second() -> None:
    """Nobody needs its signs of life; and what is proposed meanwhile is done at once."""
    hands = Hands("a")
    timers = [(e.delay_s, e.event) for e in of(hands.go_on() + hands.go_on(), SetTimer)]
    wakes = 0
    while timers and min(due for due, _ in timers) < 60.0:
        due, event = timers.pop(timers.index(min(timers, key=lambda timer: timer[0])))
        effects = hands.step(event, after_s=due - hands.now)
        timers += [(hands.now + e.delay_s, e.event) for e in of(effects, SetTimer)]
        wakes += 1
    assert 30 <= wakes <= 65
    effects = hands.propose(b"x") + hands.go_on()
    assert of(effects, Proposed) == [Proposed(1, True, 3, None)]


def test_a_lone_leader_looks_around_again_a_second_after_it_did() -> None:
    """Goal: where its timer rings sooner, with the beat, none is set for the rest."""
    hands = Hands("a")
    timers = of(hands.go_on() + hands.go_on(), SetTimer)
    [looks] = [timer for timer in timers if timer.on_beat]
    assert of(hands.step(ReadIndex(9), after_s=0.2), SetTimer) == [], "it still rings"
    [again] = of(hands.step(looks.event, after_s=0.3), SetTimer)
    assert again.on_beat
    assert again.delay_s == pytest.approx(ALONE_BEAT_S)


def test_elections_and_signs_of_life_are_not_on_the_beat() -> None:
    hands = Hands()
    timers = of(hands.go_on() + hands.lead() + hands.go_on(), SetTimer)
    assert timers
    assert not any(timer.on_beat for timer in timers)


def test_proposals_of_one_step_share_one_message_and_one_persist() -> None:
    hands = Hands()
    hands.lead()
    hands.go_on()
    effects = hands.step(*(Propose(b"x", tag) for tag in range(100)))
    assert len(of(effects, Persist)) == 1
    assert [len(a.entries) for a in sent(effects, Append)] == [100, 100]


def test_only_a_leaders_appends_go_ahead_of_the_sync() -> None:
    hands = Hands()
    hands.lead()
    hands.go_on()
    effects = hands.step(Propose(b"x", 1))
    assert [type(e) for e in of(effects, SendRaft)] == [SendAhead, SendAhead]
    assert of(hands.follow([b"y"], term=9, previous=(2, 1)), SendAhead) == []
    follower = Hands()
    replies = follower.follow([b"x"])
    assert of(replies, Persist)
    assert [type(e) for e in of(replies, SendRaft)] == [SendRaft]


def test_nothing_goes_ahead_in_a_term_that_is_not_durable() -> None:
    hands = Hands("abc")
    hands.time_out()
    hands.say("b", PreVoteGranted(1), sync=False)
    effects = hands.say("b", VoteGranted(1), sync=False)
    assert of(effects, Office)[-1].state == "leader"
    assert sent(effects, Append)
    assert of(effects, SendAhead) == []


def test_a_commit_is_told_with_the_next_entries_or_soon() -> None:
    hands = Hands()
    hands.lead()
    hands.say("b", AppendReply(1, 0, True, 1, 3))
    effects = hands.step(Propose(b"x", 1))
    assert [a.commit for a in sent(effects, Append)] == [2, 2], "with the next entries"
    effects = hands.say("b", AppendReply(1, 0, True, 2, 4))
    assert of(effects, Proposed)
    assert sent(effects, Append) == []
    effects = hands.step(Wake(START), after_s=hands.config.commit_notice_s)
    assert [a.commit for a in sent(effects, Append)] == [3, 3]
    assert sent(hands.go_on(), Append) == []


def test_what_is_refused_is_answered_by_its_code() -> None:
    hands = Hands(config=RaftConfig(proposals_max=1))
    assert of(hands.propose(b"x"), Proposed) == [Proposed(1, False, None, "not_leader")]
    assert of(hands.step(ReadIndex(2)), ReadReady) == [ReadReady(2, False)]
    hands.lead()
    assert of(hands.propose(b"x" * (ENTRY_BYTES_MAX + 1), 3), Proposed)[0].code == "too_large"
    hands.propose(b"x", 4)
    assert of(hands.propose(b"x", 5), Proposed)[0].code == "busy"


def test_losing_office_answers_what_waits() -> None:
    hands = Hands()
    hands.lead()
    hands.step(Propose(b"x", 1), ReadIndex(2))
    effects = hands.say("b", StaleTerm(9))
    assert of(effects, Proposed) == [Proposed(1, False, None, "leader_changed")]
    assert of(effects, ReadReady) == [ReadReady(2, False)]
    assert of(effects, Office) == [Office("follower", 9, None, False)]


def test_a_leader_out_of_touch_gives_up_office() -> None:
    hands = Hands()
    hands.lead()
    effects = hands.time_out()
    assert of(effects, Office)[0].state == "follower"


def test_two_leaders_of_one_term_stop_the_node() -> None:
    hands = Hands()
    hands.lead()
    with pytest.raises(Diverged):
        hands.say("b", Append(hands.term, 1, 1, 1, 0, ()))


def test_a_follower_far_behind_gets_the_snapshot_in_chunks() -> None:
    config = RaftConfig(compact_entries=100, keep_entries=10, snapshot_chunk_bytes=1_000)
    room = Room(config=config)
    room.run_for(2)
    leader = room.leader()
    away = next(n for n in "abc" if n != leader)
    room.away = {away}
    for tag in range(1_000):
        room.step(leader, Propose(b"command-%d" % tag, tag))
        room.run_for(0.003)
    assert room.hands[leader].machine.status(0).snapshot_index > 800
    room.away = set()
    room.run_for(3)
    assert room.hands[away].state.commands == room.hands[leader].state.commands
    assert room.hands[away].disk.read(SNAPSHOT_FILE) is not None
    room.hands[away].start()
    assert len(room.hands[away].state.commands) > 800


def test_the_log_grows_as_long_as_the_state_before_it_is_compacted_again() -> None:
    """What snapshots cost is in proportion to what is written, not to what is kept."""
    config = RaftConfig(compact_bytes=1_000, compact_entries=5, keep_entries=0)
    hands = Hands("a", config=config)
    hands.time_out()
    taken: list[int] = []
    for tag in range(300):
        hands.step(Propose(b"x" * 50, tag))
        for _ in range(5):
            hands.step(Wake(START), after_s=0.01)
        index = hands.machine.status(hands.now).snapshot_index
        if not taken or index > taken[-1]:
            taken.append(index)
    gaps = [after - before for before, after in itertools.pairwise(taken)]
    assert gaps[0] < 20
    assert 30 < gaps[-1] < 80, "four times compact_bytes, and no longer"


def test_a_silent_follower_is_not_sent_the_snapshot_for_ever() -> None:
    config = RaftConfig(compact_entries=20, keep_entries=0, snapshot_chunk_bytes=50_000)
    room = Room(config=config)
    room.run_for(2)
    leader = room.leader()
    away = next(n for n in "abc" if n != leader)
    room.step(away, Deliver(leader, b"junk"))
    room.away = {away}
    for tag in range(60):
        room.step(leader, Propose(b"x" * 5_000, tag))
        room.run_for(0.01)
    room.run_for(1)
    before = room.bytes_to[away]
    room.run_for(10)
    assert room.bytes_to[away] - before < 50_000


def test_power_loss_between_snapshot_and_journal_is_mended() -> None:
    """The snapshot is durable, the journal not yet reset: the start goes by the snapshot."""
    disk = sim_disk()
    hands = Hands(disk=disk)
    hands.follow([b"2", b"3"])
    content = snapshot_of(50, 4)
    disk.replace(SNAPSHOT_FILE, content)
    hands.start()
    assert hands.machine.applied_index == 50
    assert hands.last == 50


def test_a_damaged_snapshot_stops_the_start_by_name() -> None:
    disk = sim_disk()
    Hands(disk=disk)
    disk.replace(SNAPSHOT_FILE, b"not a snapshot")
    with pytest.raises(CorruptFile, match="snapshot"):
        Hands(disk=disk)


def test_a_snapshot_without_a_journal_stops_the_start() -> None:
    disk = sim_disk()
    disk.replace(SNAPSHOT_FILE, snapshot_of(5, 1))
    with pytest.raises(CorruptFile, match="term and vote"):
        Hands(disk=disk)


def test_a_snapshot_of_other_voters_is_refused() -> None:
    content = snapshot_of(5, 1, voters=("x", "y", "z"))
    with pytest.raises(CorruptFile, match="other voters"):
        decode_meta(unpack(KIND, FORMAT, content, source="test")[0], voters=("a",), source="test")
    hands = Hands()
    hands.say("b", SnapshotChunk(1, 1, 5, 5, 1, len(content), 0, content))
    assert hands.machine.refused_snapshots == 1
    assert hands.machine.applied_index == 1


def test_a_snapshot_too_large_is_refused_before_it_is_kept() -> None:
    hands = Hands(config=RaftConfig(snapshot_bytes_max=100))
    assert not sent(hands.say("b", SnapshotChunk(1, 1, 5, 5, 1, 101, 0, b"x")), AppendReply)
    assert hands.machine.refused_snapshots == 1


def test_the_snapshot_is_of_the_moment_it_was_taken() -> None:
    """It is encoded at the sync, after the state may have moved on; the copy is frozen."""
    hands = Hands("a", config=RaftConfig(compact_entries=3, keep_entries=0))
    hands.go_on()
    hands.go_on()
    for tag in range(2):
        hands.propose(b"early", tag)
        hands.go_on(sync=False)
    hands.state.commands.append(b"later")
    hands.machine.sync()
    raw = hands.disk.read(SNAPSHOT_FILE) or b""
    assert b"early" in raw
    assert b"later" not in raw


def test_a_full_disk_stops_answers_and_heals() -> None:
    disk = sim_disk()
    hands = Hands("a", disk=disk)
    hands.go_on()
    hands.go_on()
    disk.full = True
    hands.propose(b"x", sync=False)
    with pytest.raises(DiskFault):
        hands.machine.sync()
    with pytest.raises(DiskFault):
        hands.machine.sync()
    disk.full = False
    hands.machine.sync()
    assert of(hands.go_on(), Proposed) == [Proposed(1, False, None, "leader_changed")]
    assert of(hands.go_on(), Office) == [Office("leader", 2, "a", True)], "anew, in a new term"
    disk.crash()
    hands.start()
    hands.go_on()
    hands.go_on()
    assert hands.state.commands == [b"x"]


def test_a_leader_whose_disk_refused_gives_up_its_office() -> None:
    disk = sim_disk()
    hands = Hands(disk=disk)
    hands.lead()
    hands.say("b", AppendReply(1, 0, True, 1, 3))
    disk.full = True
    hands.propose(b"x", sync=False)
    with pytest.raises(DiskFault):
        hands.machine.sync()
    disk.full = False
    hands.machine.sync()
    effects = hands.go_on()
    assert of(effects, Office) == [Office("follower", 1, None, False)]
    assert of(effects, Proposed) == [Proposed(1, False, None, "leader_changed")]
    assert hands.last == 3, "what was written is kept: others may have it, too"


def test_the_office_moves_to_whom_it_is_handed() -> None:
    """The target leads within a few packets, while every voter still hears the old leader."""
    room = Room()
    room.run_for(2)
    leader = room.leader()
    target = next(n for n in "abc" if n != leader)
    for tag in range(20):
        room.step(leader, Propose(b"%d" % tag, tag))
    room.step(leader, Transfer(target, 99))
    room.run_for(0.05)
    assert room.leader() == target
    assert [a.ok for a in room.answers] == [True] * 20
    room.step(target, Propose(b"after", 21))
    room.run_for(0.1)
    assert room.answers[-1].ok


def test_a_transfer_to_one_that_is_away_is_given_up() -> None:
    hands = Hands("abc")
    hands.lead()
    hands.say("b", AppendReply(1, 0, True, 1, 3))
    hands.go_on()
    hands.step(Transfer("c", 7))
    assert of(hands.propose(b"x", 8), Proposed)[0].code == "handing_over"
    hands.say("b", AppendReply(1, 1, True, 1, 3))
    hands.step(after_s=0.4)
    hands.say("b", AppendReply(1, 2, True, 1, 3))
    effects = hands.step(Wake(START), after_s=0.3)
    assert of(effects, Transferred) == [Transferred(7, "timeout")]
    assert of(hands.propose(b"y", 9), Proposed) == []
    assert hands.last == 3


def test_what_a_transfer_is_refused_for() -> None:
    hands = Hands()
    assert of(hands.step(Transfer("b", 1)), Transferred) == [Transferred(1, "not_leader")]
    hands.lead()
    assert of(hands.step(Transfer("a", 2)), Transferred) == [Transferred(2, None)]
    assert of(hands.step(Transfer("x", 3)), Transferred) == [Transferred(3, "not_a_voter")]
    hands.step(Transfer("b", 4))
    assert of(hands.step(Transfer("c", 5)), Transferred) == [Transferred(5, "busy")]
    assert of(hands.say("c", StaleTerm(9)), Transferred) == [Transferred(4, None)]


def test_who_asks_for_a_term_that_is_there_is_told_so() -> None:
    """Else one with the later term and one with the longer log refuse each other for ever."""
    hands = Hands()
    hands.follow([b"one"], term=2)
    longer = PreVoteRequest(2, hands.last + 5, 2)
    assert [m.term for m in sent(hands.say("c", longer), StaleTerm)] == [2]
    hands.time_out()
    assert sent(hands.say("c", PreVoteRequest(3, hands.last + 5, 2)), PreVoteGranted)


def test_who_led_before_stands_at_once_and_asks_again_soon() -> None:
    """The others may only be starting: what they miss is said again within a heartbeat."""
    hands = Hands()
    effects = hands.step(Stand())
    assert len(sent(effects, PreVoteRequest)) == 2
    again = hands.step(Wake(START), after_s=hands.config.heartbeat_s)
    assert len(sent(again, PreVoteRequest)) == 2
    hands.say("b", PreVoteGranted(1))
    hands.say("b", VoteGranted(1))
    assert hands.machine.office.state == "leader"
    assert hands.now < hands.config.election_min_s


def test_a_doubted_leader_that_is_silent_is_replaced_sooner() -> None:
    """The first voter by name stands after one and a half heartbeats, and asks again soon."""
    hands = Hands()
    beat_s = hands.config.heartbeat_s
    hands.follow([b"one"])
    effects = hands.step(Doubt("b", True))
    assert not sent(effects, PreVoteRequest)
    assert min(timer.delay_s for timer in of(effects, SetTimer)) == pytest.approx(1.5 * beat_s)
    assert not sent(hands.step(Wake(START), after_s=1.4 * beat_s), PreVoteRequest)
    assert len(sent(hands.step(Wake(START), after_s=0.11 * beat_s), PreVoteRequest)) == 2
    assert len(sent(hands.step(Wake(START), after_s=beat_s), PreVoteRequest)) == 2
    hands.say("c", PreVoteGranted(hands.term + 1))
    hands.say("c", VoteGranted(hands.term))
    assert hands.machine.office.state == "leader"
    assert hands.now < hands.config.election_min_s


def test_voters_stand_for_a_doubted_leader_one_after_the_other() -> None:
    stands_at = []
    for me in "acde":
        hands = Hands("abcde", me=me)
        hands.follow([b"one"])
        effects = hands.step(Doubt("b", True))
        stands_at.append(min(timer.delay_s for timer in of(effects, SetTimer)))
    beat_s = RaftConfig().heartbeat_s
    assert stands_at[:2] == pytest.approx([1.5 * beat_s, 2.5 * beat_s])
    assert stands_at[1] < stands_at[2] <= 3.5 * beat_s


def test_voters_keep_their_order_when_the_doubt_comes_late() -> None:
    """Else both of two ask at once, each votes for itself, and both wait for an election time."""
    beat_s = RaftConfig().heartbeat_s
    stands_at = []
    for me in "ac":
        hands = Hands("abc", me=me)
        hands.follow([b"one"])
        effects = hands.step(Doubt("b", True), after_s=2.8 * beat_s)
        if sent(effects, PreVoteRequest):
            stands_at.append(0.0)
            again = hands.step(Wake(START), after_s=beat_s / 2)
            assert len(sent(again, PreVoteRequest)) == 2, "before the next in the order stands"
        else:
            stands_at.append(min(timer.delay_s for timer in of(effects, SetTimer)))
    assert stands_at == pytest.approx([0.0, beat_s])


def test_a_leader_that_is_doubted_wrongly_stays() -> None:
    """It is heard in time, so nobody stands, and nobody is promised a vote."""
    hands = Hands()
    hands.follow([b"one"])
    hands.step(Doubt("b", True))
    for _ in range(20):
        effects = hands.step(Wake(START), after_s=hands.config.heartbeat_s)
        effects += hands.say("c", PreVoteRequest(2, hands.last + 5, 2))
        assert not sent(effects, PreVoteRequest)
        assert not sent(effects, PreVoteGranted)
        hands.say("b", Append(1, 1, 1, hands.last, 1, ()))
    assert hands.machine.office.leader == "b"


def test_a_doubted_leader_keeps_nobody_from_a_vote_once_it_is_silent() -> None:
    hands = Hands()
    hands.follow([b"one"])
    request = PreVoteRequest(2, hands.last + 5, 2)
    late_s = 1.3 * hands.config.heartbeat_s
    assert not sent(hands.step(Wake(START), after_s=late_s), PreVoteGranted)
    assert not sent(hands.say("c", request), PreVoteGranted)
    hands.step(Doubt("b", True))
    assert sent(hands.say("c", request), PreVoteGranted)
    hands.step(Doubt("b", False))
    assert not sent(hands.say("c", request), PreVoteGranted)


def test_junk_and_strangers_are_counted_and_change_nothing() -> None:
    hands = Hands()
    good = VOTERS.encode(PreVoteRequest(1, 1, 0))
    whole = Part(b"0" * 16, 0, 1, b"x")
    effects = hands.step(
        Deliver("b", b""),
        Deliver("b", b"\x01\xc1"),
        Deliver("b", good + b"x"),
        Deliver("stranger", good),
        Deliver("b", VOTERS.encode(whole)),
        Deliver("b", VOTERS.encode(Part(b"0" * 16, 5, 2, b"x"))),
    )
    assert hands.machine.malformed_count == 6
    assert not sent(effects)


def test_parts_arrive_in_any_order_and_never_mix() -> None:
    one, two = b"1" * 1_000, b"2" * 1_000
    first, second = split(one, 300), split(two, 300)
    assert len(first) == 4
    assembler = Assembler()
    whole = [assembler.take(VOTERS.decode(p)) for p in [first[3], second[0], first[0], first[0]]]
    assert whole == [None] * 4
    assert assembler.take(VOTERS.decode(first[1])) is None
    assert assembler.take(VOTERS.decode(first[2])) == one
    assert [assembler.take(VOTERS.decode(p)) for p in second[1:]][-1] == two
    assert split(one, 1_000) == [one]


def test_timers_do_not_pile_up() -> None:
    hands = Hands()
    timers = of(hands.go_on(), SetTimer)
    for _ in range(100):
        timers += of(hands.say("b", Append(1, 1, 1, 1, 0, ())), SetTimer)
    assert len(timers) <= 2


def test_a_stale_wake_is_harmless() -> None:
    hands = Hands()
    hands.go_on()
    assert not sent(hands.step(Wake(12345)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"heartbeat_s": 0.0},
        {"election_min_s": 0.1},
        {"election_max_s": 0.2},
        {"batch_bytes_max": 0},
        {"keep_entries": -1},
    ],
)
def test_settings_that_contradict_each_other_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        RaftConfig(**wrong)


async def test_under_the_driver_with_real_files(tmp_path: Path) -> None:
    """One voter on the real file system, stepped by the house's driver."""
    disk = FileDisk(tmp_path / "raft")
    clock = BootClock()
    state = ListState()
    machine = RaftMachine("a", ("a",), disk, state, make_rng(1), RaftConfig(), clock.now())
    answered: list[Proposed] = []
    ready, done = trio.Event(), trio.Event()

    async def persist(ahead: bool) -> None:
        machine.sync()
        await trio.lowlevel.checkpoint()

    def proposed(effect: Proposed) -> None:
        answered.append(effect)
        if len(answered) == 500:
            done.set()

    def office(effect: Office) -> None:
        if effect.ready:
            ready.set()

    performers = {SendRaft: lambda _: None, Applied: lambda _: None, Office: office}
    performers[Proposed] = proposed
    driver = Driver("raft", machine, performers, clock=clock, persist=persist)
    driver.feed(Wake(START))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driver.run)
        await ready.wait()
        for tag in range(500):
            driver.feed(Propose(b"%d" % tag, tag))
        with trio.fail_after(10):
            await done.wait()
        nursery.cancel_scope.cancel()
    assert all(a.ok for a in answered)
    disk.close()
    again = RaftMachine(
        "a", ("a",), FileDisk(tmp_path / "raft"), ListState(), make_rng(1), RaftConfig(), 0.0
    )
    assert again.status(0.0).last_index == 502


def test_the_foothold_behind_an_installed_snapshot_is_not_given_out_as_an_entry() -> None:
    """What stood there is not known any more: a copy that took it would be of another state."""
    hands = Hands()
    content = snapshot_of(5, 1)
    hands.say("b", SnapshotChunk(1, 1, 5, 5, 1, len(content), 0, content))
    hands.go_on()
    assert hands.machine.applied_after(5, 1_000) == []
    assert hands.machine.applied_after(4, 1_000) is None
