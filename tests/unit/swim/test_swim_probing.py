"""Probes in turn and out of turn, over streams and for others; timers that come late."""

from __future__ import annotations

from collections import Counter

import pytest
from swim_bench import ALIVE, DEAD, LEFT, SUSPECT, Bench, node, rumour

from swarmd.base.machine import Event, Send, SetTimer
from swarmd.base.rng import make_rng
from swarmd.mesh.swim.config import PROFILES, SwimConfig, settle
from swarmd.mesh.swim.events import (
    CheckDue,
    PacketIn,
    ProbeTick,
    ProbeTimeout,
    RelayTimeout,
    RoundDue,
    Started,
    StreamAnswered,
    StreamProbe,
    SuspicionDue,
)
from swarmd.mesh.swim.machine import SwimMachine
from swarmd.mesh.swim.members import MemberTable, Record
from swarmd.mesh.swim.messages import (
    PACKETS,
    TURN_FOLLOWED_MAX,
    Ack,
    Gossip,
    Meta,
    Nack,
    Ping,
    PingFor,
    encode_meta,
    encode_statement,
    make_rumour,
)
from swarmd.mesh.swim.probing import CHECKS_MAX
from swarmd.mesh.swim.suspicion import HOLDS_MAX


@pytest.fixture
def bench() -> Bench:
    return Bench()


def timers(bench: Bench, kind: type[Event]) -> list[SetTimer]:
    return [e for e in bench.effects if isinstance(e, SetTimer) and isinstance(e.event, kind)]


def elapse(bench: Bench, kind: type[Event], *, late_s: float = 0.0) -> None:
    [timer] = timers(bench, kind)
    bench.now += timer.delay_s + late_s
    bench.handle(timer.event)


def get(bench: Bench, peer: str, packet: object) -> None:
    bench.handle(PacketIn(node(peer), PACKETS.encode(packet)))  # type: ignore[arg-type]


def probe(bench: Bench) -> Ping:
    bench.handle(Started())
    elapse(bench, ProbeTick)
    [ping] = bench.sent()
    assert isinstance(ping, Ping)
    return ping


def streams(bench: Bench) -> list[StreamProbe]:
    return [effect for effect in bench.effects if isinstance(effect, StreamProbe)]


def speaking(bench: Bench, name: str, lowest: int, highest: int) -> None:
    body = encode_meta(Meta(name, protocol=highest, protocol_lowest=lowest))
    said = encode_statement(ALIVE, node(name), 1, author=node(name), body=body)
    bench.after_telling(make_rumour(said, bytes(64)))


# ---- turns ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 10, 31])
def test_in_each_turn_everybody_is_probed_once_and_by_another_than_before(count: int) -> None:
    names = [f"n{n}" for n in range(count)]
    tables = []
    for name in names:
        table = MemberTable(node(name), make_rng(1))
        for other in names:
            table.add(Record(rumour(ALIVE, other, 1), 0.0))
        tables.append(table)
    by: dict[str, Counter[str]] = {name: Counter() for name in names}
    turns = 8 * count
    for turn in range(1, turns + 1):
        probed = []
        for name, table in zip(names, tables, strict=True):
            record = table.probed_in(turn)
            assert record is not None
            assert record.meta.name != name
            probed.append(record.meta.name)
            by[record.meta.name][name] += 1
        assert sorted(probed) == sorted(names)
    for probers in by.values():
        assert len(probers) >= 0.9 * (count - 1)
        assert max(probers.values()) <= max(4 * turns / (count - 1), turns if count == 2 else 0)


def test_who_is_alone_or_has_left_probes_nobody() -> None:
    table = MemberTable(node("me"), make_rng(1))
    assert table.probed_in(1) is None
    table.add(Record(rumour(ALIVE, "me", 1), 0.0))
    assert table.probed_in(1) is None
    table.add(Record(rumour(ALIVE, "x", 1), 0.0))
    assert table.probed_in(1) is not None


def test_turns_are_followed_but_not_far_beyond_reason(bench: Bench) -> None:
    bench.know("x")
    ping = probe(bench)
    assert ping.turn == 1
    for said, then in ((5, 5), (3, 6), (TURN_FOLLOWED_MAX + 1, 7), (TURN_FOLLOWED_MAX, 2**48)):
        get(bench, "x", Ping(1, ping.view, [], said))
        bench.now += bench.config.probe_interval_s
        bench.turn(bench.machine._probing._tick)
        [turn] = [p.turn for p in bench.sent("x") if isinstance(p, Ping) and p.turn]
        assert turn == then


# ---- turns that begin with a beat, too soon -----------------------------------------------


def test_turns_are_on_the_beat_and_what_waits_for_others_is_not(bench: Bench) -> None:
    bench.know("x")
    probe(bench)
    [tick], [timeout] = timers(bench, ProbeTick), timers(bench, ProbeTimeout)
    assert tick.on_beat
    assert tick.delay_s == bench.config.probe_interval_s
    assert not timeout.on_beat


def test_a_turn_that_begins_too_soon_leaves_the_probe_before_it_its_time(bench: Bench) -> None:
    bench.know("x")
    ping = probe(bench)
    bench.now += 0.6
    bench.handle(ProbeTick(1))
    [over] = timers(bench, RoundDue)
    assert over.delay_s == pytest.approx(bench.config.probe_interval_s - 0.6)
    assert not over.on_beat
    assert [p.sequence for p in bench.sent("x") if isinstance(p, Ping)] == [ping.sequence + 1]
    assert timers(bench, ProbeTick)[0].delay_s == bench.config.probe_interval_s
    assert bench.changes == []
    bench.now += over.delay_s
    bench.handle(over.event)
    assert bench.state("x") == (SUSPECT, 1)


def test_a_turn_that_comes_a_hair_too_soon_learns_of_the_probe_before_it(bench: Bench) -> None:
    """As half of them do; what was lost makes the next one longer at once, and not one later."""
    bench.know("x", "y")
    first = probe(bench)
    bench.machine._ledger.health.adjust(2)
    bench.now += bench.config.probe_interval_s - 0.0003
    bench.handle(ProbeTick(1))
    assert timers(bench, RoundDue) == []
    assert first.sequence not in bench.machine._probing._rounds
    assert bench.machine.health == 3
    assert timers(bench, ProbeTick)[0].delay_s == 4 * bench.config.probe_interval_s
    [(_, asked)] = bench.machine._probing._rounds.items()
    assert asked.slow


def test_an_answer_counts_after_the_next_turn_began_too_soon(bench: Bench) -> None:
    bench.know("x")
    bench.machine._ledger.health.adjust(2)
    ping = probe(bench)
    bench.now += 0.6
    bench.handle(ProbeTick(1))
    [over] = timers(bench, RoundDue)
    get(bench, "x", Ack(ping.sequence, ping.view, []))
    bench.now += over.delay_s
    bench.handle(over.event)
    assert bench.changes == []
    assert bench.machine.health == 1


def test_an_answered_probe_is_over_with_the_next_turn_however_soon(bench: Bench) -> None:
    bench.know("x")
    bench.machine._ledger.health.adjust(2)
    ping = probe(bench)
    get(bench, "x", Ack(ping.sequence, ping.view, []))
    bench.now += 0.6
    bench.handle(ProbeTick(1))
    assert timers(bench, RoundDue) == []
    assert bench.machine.health == 1


def test_a_turn_is_late_by_when_it_was_to_come_at_the_latest(bench: Bench) -> None:
    """A beat before that it comes in time, and so it does within the time that answers get."""
    bench.know("x")
    probe(bench)
    asked = bench.now
    bench.now = asked + bench.config.probe_interval_s + bench.config.probe_timeout_s - 0.01
    bench.handle(ProbeTick(1))
    assert bench.state("x") == (SUSPECT, 1)
    again = Bench()
    again.know("x")
    probe(again)
    again.now += again.config.probe_interval_s + again.config.probe_timeout_s + 0.01
    again.handle(ProbeTick(1))
    assert again.changes == []


def test_a_probe_of_who_is_unwell_begins_again_also_after_a_turn_too_soon(bench: Bench) -> None:
    ping = unwell(bench)
    bench.now += 1.6
    bench.handle(ProbeTick(1))
    [over] = timers(bench, RoundDue)
    bench.now += over.delay_s
    bench.handle(over.event)
    assert bench.changes == []
    assert [p.sequence for p in bench.sent("x")] == [ping.sequence]
    assert bench.machine._probing._in_turn == ping.sequence + 1, "the turn under way goes on"
    [over] = timers(bench, RoundDue)
    bench.now += over.delay_s
    bench.handle(over.event)
    assert bench.state("x") == (SUSPECT, 1)


# ---- turns of a node that is unwell -------------------------------------------------------


def unwell(bench: Bench) -> Ping:
    """A node that was doubted itself: its turns last for longer. The ping of the first one."""
    bench.know("x")
    bench.tell(rumour(SUSPECT, "me", 1 << 32))
    assert bench.machine.health == 1
    return probe(bench)


def test_who_is_unwell_asks_again_before_it_accuses(bench: Bench) -> None:
    """All the silence may have been its own, and be over."""
    ping = unwell(bench)
    bench.now += 2 * bench.config.probe_interval_s
    bench.turn(1)
    assert [again.turn for again in bench.sent("x")] == [0, 2], "the next turn begins beside it"
    [over] = timers(bench, RoundDue)
    assert bench.state("x") == (ALIVE, 1)
    get(bench, "x", Ack(ping.sequence, b"", []))
    bench.now += over.delay_s
    bench.handle(over.event)
    assert bench.state("x") == (ALIVE, 1)
    assert bench.machine.health == 0


def test_who_asked_again_in_vain_accuses(bench: Bench) -> None:
    unwell(bench)
    bench.now += 2 * bench.config.probe_interval_s
    bench.turn(1)
    elapse(bench, RoundDue)
    assert bench.state("x") == (SUSPECT, 1)
    assert bench.machine.health == 2


def test_where_a_helper_refused_nobody_is_asked_again(bench: Bench) -> None:
    """Others hear us, and do not reach it either."""
    bench.know("y")
    ping = unwell(bench)
    [target] = [name for name in ("x", "y") if bench.sent(name)]
    [helper] = {"x", "y"} - {target}
    bench.handle(ProbeTimeout(ping.sequence))
    get(bench, helper, Nack(ping.sequence))
    bench.now += 2 * bench.config.probe_interval_s
    bench.turn(1)
    assert timers(bench, RoundDue) == []
    assert bench.state(target) == (SUSPECT, 1)


def test_who_left_is_not_asked_again(bench: Bench) -> None:
    unwell(bench)
    bench.tell(rumour(LEFT, "x", 1))
    bench.turn(1)
    assert bench.sent("x") == []


# ---- helpers ----------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_a_helper_refuses_while_its_asker_still_waits(profile: str) -> None:
    config = settle(SwimConfig(profile=profile))  # type: ignore[arg-type]
    bench = Bench()
    bench.machine = SwimMachine(
        node("me"), config, make_rng(1), bench.signer, Meta("me"), 1, now=0.0
    )
    bench.know("x", "asker")
    get(bench, "asker", PingFor(77, node("x"), []))
    [timer] = timers(bench, RelayTimeout)
    left_s = config.probe_interval_s - config.probe_timeout_s
    assert timer.delay_s <= 0.8 * left_s
    assert timer.delay_s >= 0.3 * left_s
    bench.handle(timer.event)
    assert bench.sent("asker") == [Nack(77)]


def test_once_all_helpers_have_refused_nothing_is_waited_for(bench: Bench) -> None:
    bench.know("x", "y", "z")
    ping = probe(bench)
    bench.handle(ProbeTimeout(ping.sequence))
    helpers = [name for name in "xyz" if bench.sent(name)]
    [target] = set("xyz") - set(helpers)
    get(bench, helpers[0], Nack(ping.sequence))
    assert bench.state(target) == (ALIVE, 1)
    get(bench, helpers[1], Nack(ping.sequence))
    assert bench.state(target) == (SUSPECT, 1)
    assert bench.machine.health == 0
    bench.turn(1)
    assert bench.machine.health == 0


# ---- streams ----------------------------------------------------------------------------


def test_a_stream_is_tried_where_datagrams_stay_unanswered(bench: Bench) -> None:
    bench.machine = SwimMachine(
        node("me"), bench.config, make_rng(1), bench.signer,
        Meta("me", protocol=1, protocol_lowest=1), 1, now=1.0,
    )  # fmt: skip
    speaking(bench, "x", 1, 1)
    bench.handle(Started())
    for times in range(1, 5):
        bench.now += bench.config.probe_interval_s
        bench.turn(times - 1)
        [ping] = bench.sent("x")
        bench.handle(ProbeTimeout(ping.sequence))
        [asked] = streams(bench)
        assert (asked.peer, asked.sequence) == (node("x"), ping.sequence)
        assert bench.config.probe_timeout_s + asked.timeout_s < bench.config.probe_interval_s
        bench.handle(StreamAnswered(node("x"), ping.sequence, True))
        assert bench.machine.stream_only() == ([node("x")] if times >= 3 else [])
    assert bench.changes == []
    bench.now += bench.config.probe_interval_s
    bench.turn(4)
    [ping] = bench.sent("x")
    get(bench, "x", Ack(ping.sequence, ping.view, []))
    assert bench.machine.stream_only() == []


def test_a_stream_that_is_silent_saves_nobody(bench: Bench) -> None:
    bench.machine = SwimMachine(
        node("me"), bench.config, make_rng(1), bench.signer,
        Meta("me", protocol=1, protocol_lowest=1), 1, now=1.0,
    )  # fmt: skip
    for name in "xyz":
        speaking(bench, name, 1, 1)
    ping = probe(bench)
    bench.handle(ProbeTimeout(ping.sequence))
    [asked] = streams(bench)
    helpers = [name for name in "xyz" if bench.sent(name)]
    [target] = set("xyz") - set(helpers)
    for name in helpers:
        get(bench, name, Nack(ping.sequence))
    assert bench.state(target) == (ALIVE, 1)
    bench.handle(StreamAnswered(node(helpers[0]), asked.sequence, True))
    assert bench.state(target) == (ALIVE, 1)
    bench.handle(StreamAnswered(asked.peer, asked.sequence, False))
    assert bench.state(target) == (SUSPECT, 1)
    assert bench.machine.stream_only() == []


def test_who_does_not_speak_that_version_is_not_asked_over_a_stream(bench: Bench) -> None:
    bench.machine = SwimMachine(
        node("me"), bench.config, make_rng(1), bench.signer,
        Meta("me", protocol=1, protocol_lowest=0), 1, now=0.0,
    )  # fmt: skip
    speaking(bench, "x", 0, 0)
    ping = probe(bench)
    bench.handle(ProbeTimeout(ping.sequence))
    assert streams(bench) == []


# ---- out of turn ------------------------------------------------------------------------


def check(bench: Bench) -> tuple[Ping, list[str]]:
    """Hear that x is suspect; the ping of the check, and the helpers it then asked."""
    bench.know("x", "y", "z", "v", "w")
    bench.tell(rumour(SUSPECT, "x", 1, by="y"))
    [timer] = timers(bench, CheckDue)
    assert timer.delay_s <= 0.2 * bench.config.probe_interval_s
    elapse(bench, CheckDue)
    [ping] = bench.sent("x")
    assert ping.turn == 0
    assert len(ping.rumours) == 1
    assert timers(bench, RoundDue)
    elapse(bench, ProbeTimeout)
    return ping, [name for name in "yzvw" if bench.sent(name)]


def accusers(bench: Bench) -> int:
    record = bench.machine._ledger.members.get(node("x"))
    assert record is not None
    assert record.suspicion is not None
    return record.suspicion.confirmed


def test_who_hears_of_a_suspicion_looks_for_itself_and_confirms_it(bench: Bench) -> None:
    ping, helpers = check(bench)
    assert len(helpers) == 3
    for name in helpers:
        get(bench, name, Nack(ping.sequence))
    assert accusers(bench) == 1
    assert [r.author for r in bench.machine.queued()] == [node("me")]
    assert bench.machine.health == 0


def test_an_answered_check_confirms_nothing(bench: Bench) -> None:
    ping, helpers = check(bench)
    get(bench, "x", Ack(ping.sequence, ping.view, []))
    for name in helpers:
        get(bench, name, Nack(ping.sequence))
    bench.now += 1
    bench.handle(RoundDue(ping.sequence))
    assert accusers(bench) == 0


@pytest.mark.parametrize(("nacks", "confirmed"), [(0, 0), (1, 1)])
def test_a_check_that_nobody_at_all_answers_proves_nothing(
    bench: Bench, nacks: int, confirmed: int
) -> None:
    ping, helpers = check(bench)
    for name in helpers[:nacks]:
        get(bench, name, Nack(ping.sequence))
    bench.now += 0.5
    bench.handle(RoundDue(ping.sequence))
    assert accusers(bench) == confirmed


def test_a_doubt_that_needs_no_more_is_not_checked(bench: Bench) -> None:
    bench.know("x", "y", "z", "v", "w")
    bench.tell(rumour(SUSPECT, "x", 1, by="y"))
    [timer] = timers(bench, CheckDue)
    bench.tell(rumour(SUSPECT, "x", 1, by="z"), rumour(SUSPECT, "x", 1, by="v"))
    assert bench.handle(timer.event) == []
    bench.tell(rumour(ALIVE, "x", 2), rumour(SUSPECT, "x", 2, by="y"))
    assert bench.handle(timer.event) == [], "it is of an earlier suspicion"


def test_checks_are_few_at_a_time(bench: Bench) -> None:
    names = [f"x{n}" for n in range(3 * CHECKS_MAX)]
    bench.know("y", *names)
    asked: set[object] = set()
    for name in names:
        bench.tell(rumour(SUSPECT, name, 1, by="y"))
        for timer in timers(bench, CheckDue):
            bench.handle(timer.event)
            asked |= {e.peer for e in bench.effects if isinstance(e, Send)}
    assert len(asked) == CHECKS_MAX


def test_in_a_large_swarm_the_lot_falls_on_a_few() -> None:
    bench = Bench()
    names = [f"n{n}" for n in range(400)]
    bench.know(*names)
    checks = 0
    for name in names:
        bench.tell(rumour(SUSPECT, name, 1, by="n0" if name != "n0" else "n1"))
        checks += len(timers(bench, CheckDue))
    assert 2 <= checks <= 25


# ---- a process that stood still ---------------------------------------------------------


def test_who_stood_still_hears_what_waited_before_it_accuses(bench: Bench) -> None:
    bench.know("x")
    ping = probe(bench)
    elapse(bench, ProbeTick, late_s=5.0)
    assert bench.state("x") == (ALIVE, 1)
    get(bench, "x", Ack(ping.sequence, ping.view, []))
    bench.now += bench.config.probe_timeout_s
    bench.turn(1)
    assert bench.state("x") == (ALIVE, 1)
    assert bench.machine.health == 0


def test_who_stood_still_and_hears_nothing_accuses_all_the_same(bench: Bench) -> None:
    bench.know("x")
    probe(bench)
    elapse(bench, ProbeTick, late_s=5.0)
    elapse(bench, ProbeTick)
    assert bench.state("x") == (SUSPECT, 1)


@pytest.mark.parametrize("refutes", [True, False])
def test_who_stood_still_lets_the_suspect_object(bench: Bench, refutes: bool) -> None:
    bench.know("x", "y", "z", "w")
    bench.tell(rumour(SUSPECT, "x", 1, by="y"))
    elapse(bench, SuspicionDue, late_s=5.0)
    assert bench.state("x") == (SUSPECT, 1)
    [timer] = timers(bench, SuspicionDue)
    if refutes:
        bench.tell(rumour(ALIVE, "x", 2))
    bench.now += timer.delay_s
    bench.handle(timer.event)
    assert bench.state("x")[0] is (ALIVE if refutes else DEAD)


def test_a_check_of_one_who_stood_still_waits_too(bench: Bench) -> None:
    ping, _ = check(bench)
    bench.now += 30.0
    bench.handle(RoundDue(ping.sequence))
    assert accusers(bench) == 0
    assert len(timers(bench, RoundDue)) == 1
    get(bench, "y", Gossip([]))


def test_who_always_comes_late_probes_and_concludes_nevertheless(bench: Bench) -> None:
    late_s = 2 * bench.config.probe_timeout_s
    bench.know("x")
    bench.handle(Started())
    probed = 0
    for _ in range(2 * (HOLDS_MAX + 1)):
        elapse(bench, ProbeTick, late_s=late_s)
        probed += len(bench.sent("x"))
    assert probed == 2
    assert bench.state("x") == (SUSPECT, 1)


def test_a_suspicion_and_a_check_end_where_all_timers_are_late(bench: Bench) -> None:
    late_s = 2 * bench.config.probe_timeout_s
    ping, _ = check(bench)
    bench.effects = [SetTimer(bench.config.probe_interval_s, RoundDue(ping.sequence))]
    for _ in range(HOLDS_MAX):
        elapse(bench, RoundDue, late_s=late_s)
        assert len(timers(bench, RoundDue)) == 1
    elapse(bench, RoundDue, late_s=late_s)
    assert timers(bench, RoundDue) == []
    bench.know("v")
    bench.tell(rumour(SUSPECT, "v", 1, by="y"))
    for _ in range(HOLDS_MAX):
        elapse(bench, SuspicionDue, late_s=late_s)
        assert bench.state("v") == (SUSPECT, 1)
    elapse(bench, SuspicionDue, late_s=late_s)
    assert bench.state("v") == (DEAD, 1)
