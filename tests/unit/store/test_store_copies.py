"""Copies of the running log on members without a seat: followed, durable, believed by nobody."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import trio
from store_swarm import Swarm, running_swarm

from swarmd.base.errors import CorruptFile, DiskFault, NotFound, SwarmError, WouldLoseData
from swarmd.base.ids import NodeId
from swarmd.base.machine import SetTimer
from swarmd.base.pace import BEAT_S
from swarmd.base.sealed_disk import SealedDisk
from swarmd.identity.genesis import init_swarm
from swarmd.identity.sealing import SealingKey
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World
from swarmd.state.raft import copy_machine as cm
from swarmd.state.raft import epoch_messages as emsg
from swarmd.state.raft import messages as m
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.copier import LIVING_S
from swarmd.state.raft.copies import NEWS_LEAST_S, NEWS_WAIT_S, Copies, news_ends
from swarmd.state.raft.epoch_copy import EpochCopy
from swarmd.state.raft.keeper import Keeper
from swarmd.state.raft.messages import Put
from swarmd.state.raft.statefile import encode_state
from swarmd.state.raft.statemachine import StateMachine
from swarmd.state.raft.storage import PrefixDisk

GENESIS = init_swarm("lab", "one")[0]
PEER = NodeId(b"p" * 32)
OTHER = NodeId(b"o" * 32)


def batch(key: bytes, value: bytes = b"v") -> bytes:
    return m.encode_batch(m.Batch(1, (m.Group(b"", 0, 0, (Put(key, value),)),)))


BODY = encode_state(StateMachine(GENESIS).snapshot())


# ---- the machine -------------------------------------------------------------------------


def following(last: int = 7) -> tuple[cm.CopyMachine, cm.AskVoter]:
    """A machine that holds everything up to `last` of epoch 2, and its question."""
    machine = cm.CopyMachine()
    assert machine.handle(cm.Told(PEER, 2), 0.0) == [cm.OpenCopy(2)]
    (ask,) = machine.handle(cm.Kept(2, last), 0.0)
    assert isinstance(ask, cm.AskVoter)
    return machine, ask


def asked(effects: Any) -> cm.AskVoter:
    (ask,) = effects
    assert isinstance(ask, cm.AskVoter)
    return ask


def test_a_state_comes_in_pieces_then_what_follows() -> None:
    machine, ask = following(cm.NOTHING)
    assert (ask.peer, ask.message) == (PEER, emsg.BaseAsk(2, 0, 0))
    ask = asked(machine.handle(cm.Answered(ask.tag, emsg.BasePiece(9, 4, b"ab")), 0.1))
    assert ask.message == emsg.BaseAsk(2, 9, 2)
    done = machine.handle(cm.Answered(ask.tag, emsg.BasePiece(9, 4, b"cd")), 0.1)
    assert done == [cm.KeepBase(2, 9, b"abcd")]
    ask = asked(machine.handle(cm.Kept(2, 9), 0.1))
    assert ask.message == emsg.LogAsk(2, 9)
    kept = machine.handle(cm.Answered(ask.tag, emsg.LogPiece((b"x", b"y"), 12)), 0.2)
    assert kept == [cm.KeepEntries(2, 9, (b"x", b"y"))]
    assert asked(machine.handle(cm.Kept(2, 11), 0.2)).message == emsg.LogAsk(2, 11)


def test_no_news_is_asked_for_again() -> None:
    machine, ask = following()
    again = asked(machine.handle(cm.Answered(ask.tag, emsg.LogPiece((), 7)), 0.3))
    assert again.message == emsg.LogAsk(2, 7)


def test_a_large_entry_comes_in_pieces() -> None:
    machine, ask = following()
    ask = asked(machine.handle(cm.Answered(ask.tag, emsg.LogPiece((b"abc",), 8, 5)), 0.1))
    assert ask.message == emsg.LogAsk(2, 7, 3)
    done = machine.handle(cm.Answered(ask.tag, emsg.LogPiece((b"de",), 8, 5)), 0.1)
    assert done == [cm.KeepEntries(2, 7, (b"abcde",))]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (None, "unreachable"),
        (emsg.BasePiece(9, 4, b"ab"), None),
        (emsg.LogPiece((b"", b""), 8, 5), None),
        (emsg.LogPiece((b"x",), 8, 2**40), None),
    ],
)
def test_what_goes_wrong_is_tried_again_after_a_pause(message: Any, code: str | None) -> None:
    machine, ask = following()
    (timer,) = machine.handle(cm.Answered(ask.tag, message, code), 0.1)
    assert isinstance(timer, SetTimer)
    assert machine.handle(cm.Answered(ask.tag, emsg.LogPiece((b"x",), 8)), 0.2) == [], "stale"
    assert asked(machine.handle(timer.event, 0.5)).message == emsg.LogAsk(2, 7)
    assert machine.handle(timer.event, 0.6) == [], "once"


def test_who_is_too_far_behind_begins_anew() -> None:
    machine, ask = following()
    (timer,) = machine.handle(cm.Answered(ask.tag, None, NotFound.code), 0.1)
    assert isinstance(timer, SetTimer)
    assert asked(machine.handle(timer.event, 0.5)).message == emsg.BaseAsk(2, 0, 0)


def test_a_base_that_changes_on_the_way_begins_anew() -> None:
    machine, ask = following(cm.NOTHING)
    ask = asked(machine.handle(cm.Answered(ask.tag, emsg.BasePiece(9, 4, b"ab")), 0.1))
    (timer,) = machine.handle(cm.Answered(ask.tag, emsg.BasePiece(10, 4, b"cd")), 0.1)
    assert isinstance(timer, SetTimer)
    assert asked(machine.handle(timer.event, 0.5)).message == emsg.BaseAsk(2, 0, 0)


def test_the_latest_who_told_is_asked() -> None:
    machine, ask = following()
    assert machine.handle(cm.Told(OTHER, 2), 0.1) == []
    assert asked(machine.handle(cm.Answered(ask.tag, emsg.LogPiece((), 7)), 0.2)).peer == OTHER


def test_who_is_not_told_any_more_stops() -> None:
    machine, ask = following()
    late = cm.TOLD_TTL_S + 0.1
    closed = machine.handle(cm.Answered(ask.tag, emsg.LogPiece((), 7)), late)
    assert closed == [cm.CloseCopy(2)]
    assert machine.handle(cm.Told(PEER, 2), late) == [cm.OpenCopy(2)]


def test_an_ended_epoch_is_not_followed_and_the_copy_stays() -> None:
    machine, ask = following()
    assert machine.handle(cm.EpochEnded(2), 0.1) == []
    assert machine.handle(cm.Answered(ask.tag, emsg.LogPiece((b"x",), 8)), 0.2) == []
    assert machine.handle(cm.Kept(2, 8), 0.2) == []


def test_another_epoch_takes_the_place_of_the_first() -> None:
    machine, _ = following()
    assert machine.handle(cm.Told(PEER, 3), 0.1) == [cm.CloseCopy(2), cm.OpenCopy(3)]
    assert machine.handle(cm.Kept(2, 8), 0.2) == [], "of the one before"
    assert asked(machine.handle(cm.Kept(3, cm.NOTHING), 0.2)).message == emsg.BaseAsk(3, 0, 0)


# ---- on the disk -------------------------------------------------------------------------


def new_copy(disk: SimDisk, log_bytes_max: int = 2**20) -> EpochCopy:
    return EpochCopy(disk, GENESIS, log_bytes_max)


def test_a_copy_survives_a_restart_and_loses_only_what_was_not_synced() -> None:
    disk = SimDisk(World(1), "d")
    copy = new_copy(disk)
    assert copy.last == cm.NOTHING
    copy.begin(5, BODY)
    copy.extend((batch(b"a"), b"", batch(b"b")))
    assert copy.last == 8
    disk.append("log", b"torn")
    disk.crash()
    again = new_copy(disk)
    assert again.last == 8
    assert encode_state(again.state.snapshot()) == encode_state(copy.state.snapshot())
    again.extend((batch(b"c"),))
    assert new_copy(disk).state.get(b"c") is not None


def test_a_log_that_a_sealed_disk_finds_damaged_costs_no_base() -> None:
    sim = SimDisk(World(1), "d")
    key = SealingKey(b"k" * 32)
    copy = EpochCopy(SealedDisk(sim, key, "raft"), GENESIS, 2**20)
    copy.begin(5, BODY)
    copy.extend((batch(b"a"),))
    sim.replace("log", bytes(len(sim.read("log") or b"")))
    disk = SealedDisk(sim, key, "raft")
    again = EpochCopy(disk, GENESIS, 2**20)
    assert again.last == 5
    again.extend((batch(b"b"),))
    assert EpochCopy(SealedDisk(sim, key, "raft"), GENESIS, 2**20).last == 6


def test_a_log_that_grows_is_taken_into_the_base() -> None:
    disk = SimDisk(World(1), "d")
    copy = new_copy(disk, log_bytes_max=500)
    copy.begin(0, BODY)
    for number in range(50):
        copy.extend((batch(b"%d" % number, b"v" * 50),))
        assert len(disk.read("log") or b"") <= 700
    assert new_copy(disk).last == 50


def test_a_damaged_copy_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimDisk(World(1), "d")
    copy = new_copy(disk)
    copy.begin(5, BODY)
    copy.extend((batch(b"a"), batch(b"b")))
    log = disk.read("log") or b""
    disk.replace("log", log[:-3] + b"???")
    assert new_copy(disk).last == 6, "up to the damage"
    disk.replace("base", b"?" + (disk.read("base") or b"")[1:])
    assert new_copy(disk).last == cm.NOTHING


def test_a_full_disk_takes_up_nothing() -> None:
    disk = SimDisk(World(1), "d")
    copy = new_copy(disk)
    copy.begin(5, BODY)
    disk.full = True
    with pytest.raises(DiskFault):
        copy.extend((batch(b"a"),))
    assert copy.last == 5
    assert copy.state.get(b"a") is None


def test_what_is_no_state_leaves_the_copy_as_it_was() -> None:
    copy = new_copy(SimDisk(World(1), "d"))
    copy.begin(5, BODY)
    with pytest.raises(CorruptFile):
        copy.begin(9, b"junk")
    assert copy.last == 5


# ---- in a swarm --------------------------------------------------------------------------


def _no_fetching(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise NotFound("no state is handed out in this test")

    monkeypatch.setattr(Keeper, "_piece", refuse)


async def test_new_voters_begin_with_their_copy(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No first state is fetched after the seal; large values and many entries come before."""
    _no_fetching(monkeypatch)
    async with running_swarm(config=RaftConfig(compact_entries=20, keep_entries=3)) as swarm:
        await swarm.start(0)
        await swarm.store(0).propose([Put(b"large", b"x" * (1 << 20))])
        for number in range(60):
            await swarm.store(0).propose([Put(b"k%d" % number, b"v")])
        await swarm.start(1, 2)
        await swarm.store(0).propose([Put(b"large", b"y" * (1 << 20))])
        await swarm.voters_are(0, 1, 2)
        await _all_hold(swarm, (0, 1, 2), b"large", b"y" * (1 << 20))
        assert not [n for n in swarm.nodes[1].disk.names() if ".copy." in n]


async def _all_hold(swarm: Swarm, nodes: tuple[int, ...], key: bytes, value: bytes) -> None:
    with trio.fail_after(10):
        for node in nodes:
            while True:
                local = swarm.store(node).local
                entry = local.get(key) if local is not None else None
                if entry is not None and entry.value == value:
                    break
                await trio.sleep(0.05)


async def test_a_copy_that_was_interrupted_goes_on(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only voter hands over to a member that crashed while it copied."""
    async with running_swarm() as swarm:
        await swarm.start(0, 1)
        await swarm.store(0).propose([Put(b"a", b"x" * 1000)])
        with trio.move_on_after(0.05):
            await swarm.store(0).hand_over_seat()
        await swarm.crash(1)
        with pytest.raises(WouldLoseData):
            await swarm.store(0).hand_over_seat()
        await swarm.start(1)
        await swarm.store(0).hand_over_seat()
        await swarm.voters_are(1)
        await _all_hold(swarm, (1,), b"a", b"x" * 1000)


async def test_no_state_goes_to_who_was_not_asked_to_keep_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0, 1)
        await swarm.store(0).propose([Put(b"a", b"1")])
        await trio.sleep(3)
        await swarm.start(3)
        for ask, code in (
            (emsg.BaseAsk(1, 0, 0), "forbidden"),
            (emsg.LogAsk(1, 0), "forbidden"),
            (emsg.LogPiece((), 1), "bad_request"),
            (emsg.Follow(1), "timeout"),
        ):
            with pytest.raises(SwarmError) as caught:
                await swarm.store(3)._link.request(emsg.COPY, swarm.id(0), ask, timeout_s=0.5)
            assert caught.value.code == code


# ---- how long a question waits for news --------------------------------------------------


@pytest.mark.parametrize("phase_s", [0.0, 0.001, 0.1, 0.249, 0.251, 0.4, 0.499])
async def test_a_question_waits_a_while_and_not_too_long(
    autojump_clock: trio.testing.MockClock, phase_s: float
) -> None:
    await trio.sleep_until(math.ceil(trio.current_time()) + phase_s)
    waits_s = news_ends() - trio.current_time()
    assert NEWS_LEAST_S - 1e-6 <= waits_s <= NEWS_WAIT_S
    on_beat = (phase_s + waits_s) % BEAT_S == pytest.approx(0.0, abs=1e-6)
    assert on_beat or phase_s > NEWS_LEAST_S


@pytest.mark.parametrize("round_trip_s", [0.0, 0.002, 0.1, 0.2, 0.26, 0.4])
@pytest.mark.parametrize("phase_s", [0.0, 0.1, 0.3, 0.498])
async def test_questions_come_to_follow_the_beats_and_a_copy_lives_throughout(
    autojump_clock: trio.testing.MockClock, round_trip_s: float, phase_s: float
) -> None:
    """Goal: two questions a second at the beats, however the first one came, and never a rush."""
    await trio.sleep_until(math.ceil(trio.current_time()) + phase_s)
    came, answered = [trio.current_time()], []
    while len(came) < 40:
        await trio.sleep_until(news_ends())
        answered.append(trio.current_time() % BEAT_S)
        await trio.sleep(round_trip_s)
        came.append(trio.current_time())
    pauses_s = [after - before for before, after in pairwise(came)]
    assert max(pauses_s) <= NEWS_WAIT_S + round_trip_s + 1e-6 < LIVING_S
    assert min(pauses_s) >= NEWS_LEAST_S
    if round_trip_s < NEWS_LEAST_S:
        assert pauses_s[-20:] == pytest.approx([BEAT_S] * 20)
        assert all(min(off, BEAT_S - off) < 1e-6 for off in answered[-20:])


async def test_a_copy_without_news_asks_twice_a_second_and_counts_throughout(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    note = Copies._note

    def noted(self: Copies, peer: NodeId, after: int) -> None:
        asked.append(trio.current_time())
        note(self, peer, after)

    async with running_swarm() as swarm:
        await swarm.start(0, 1)
        await swarm.store(0).propose([Put(b"a", b"1")])
        await _copies_are(swarm, 2, 0, 1)
        await trio.sleep(3)
        monkeypatch.setattr(Copies, "_note", noted)
        for _ in range(200):
            await trio.sleep(0.05)
            assert [swarm.store(node).status().copies for node in (0, 1)] == [2, 2]
        assert 19 <= len(asked) <= 21


# ---- the learner of a swarm of two -------------------------------------------------------


async def _copies_are(swarm: Swarm, copies: int, *nodes: int) -> None:
    with trio.fail_after(10):
        for node in nodes:
            while True:
                if swarm.store(node).status().copies == copies:
                    break
                await trio.sleep(0.05)


async def test_what_is_acknowledged_by_two_is_on_both_disks(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0, 1)
        await swarm.store(0).propose([Put(b"a", b"1")])
        await _copies_are(swarm, 2, 0, 1)
        assert swarm.store(0).voters == (swarm.id(0),)
        for number in range(50):
            writer = number % 2
            key = b"u/k%d" % number
            assert (await swarm.store(writer).propose([Put(key, b"v")]))[0].ok
            durable = SimDisk(swarm.world, "copy")
            durable._durable = dict(swarm.nodes[1].disk._durable)
            prefix = "raft.e1.copy."
            assert EpochCopy(PrefixDisk(durable, prefix), swarm.genesis, 2**20).state.get(key)


async def test_who_does_not_answer_is_waited_for_a_second_and_no_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0, 1)
        await swarm.store(0).propose([Put(b"a", b"1")])
        await _copies_are(swarm, 2, 0, 1)
        await swarm.crash(1)
        began = trio.current_time()
        assert (await swarm.store(0).propose([Put(b"a", b"2")]))[0].ok
        assert trio.current_time() - began < 1.5
        began = trio.current_time()
        assert (await swarm.store(0).propose([Put(b"a", b"3")]))[0].ok
        assert trio.current_time() - began < 0.1
        assert swarm.store(0).status().copies == 1
        await swarm.start(1)
        await _copies_are(swarm, 2, 0, 1)


async def test_a_full_disk_of_the_learner_holds_nothing_up_for_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0, 1)
        await swarm.store(0).propose([Put(b"a", b"1")])
        await _copies_are(swarm, 2, 0, 1)
        swarm.nodes[1].disk.full = True
        assert (await swarm.store(0).propose([Put(b"a", b"2")]))[0].ok
        await _copies_are(swarm, 1, 0, 1)
        swarm.nodes[1].disk.full = False
        await _copies_are(swarm, 2, 0, 1)
