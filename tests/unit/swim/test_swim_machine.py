"""Whom the machine asks, whom it believes, and what it ignores."""

from __future__ import annotations

from typing import Any

import pytest
from swim_bench import ALIVE, DEAD, LEFT, SUSPECT, Bench, node, rumour, told

from swarmd.base.machine import Event, SetTimer
from swarmd.base.rng import make_rng
from swarmd.mesh.swim import members
from swarmd.mesh.swim.events import (
    Changed,
    Departed,
    GossipTick,
    HintTick,
    Join,
    JoinAgain,
    Leave,
    PacketIn,
    ProbeTick,
    ProbeTimeout,
    Refused,
    RelayTimeout,
    RetryTick,
    RoundDue,
    SetMeta,
    Started,
    StreamClosed,
    SuspicionDue,
    SyncFailed,
    SyncIn,
    SyncWith,
    TrustChanged,
)
from swarmd.mesh.swim.messages import (
    PACKETS,
    Ack,
    MemberState,
    Meta,
    Nack,
    Ping,
    PingFor,
    Rumour,
    decode_rumour,
    encode_meta,
    encode_statement,
    make_rumour,
)
from swarmd.mesh.swim.probes import PENDING_MAX, Pending, Pendings
from swarmd.mesh.swim.probing import CHECKS_MAX

START = 1 << 32


@pytest.fixture
def bench() -> Bench:
    return Bench()


def timer(bench: Bench, kind: type[Event]) -> SetTimer:
    """The timer of that kind which the last step set."""
    [found] = [e for e in bench.effects if isinstance(e, SetTimer) and isinstance(e.event, kind)]
    return found


def elapse(bench: Bench, kind: type[Event]) -> None:
    """Let the timer of that kind fire."""
    found = timer(bench, kind)
    bench.now += found.delay_s
    bench.handle(found.event)


def get(bench: Bench, peer: str, packet: Any) -> None:
    bench.handle(PacketIn(node(peer), PACKETS.encode(packet)))


def probe(bench: Bench) -> Ping:
    """Start the machine and let it probe; the ping."""
    bench.handle(Started())
    elapse(bench, ProbeTick)
    [ping] = bench.sent()
    assert isinstance(ping, Ping)
    return ping


# ---- belief -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SUSPECT, DEAD, LEFT])
def test_a_doubt_about_oneself_is_answered_above_it(bench: Bench, kind: MemberState) -> None:
    bench.know("peer")
    bench.tell(rumour(kind, "me", START + 7))
    assert bench.state("me") == (ALIVE, START + 8)
    assert bench.queued == [(ALIVE, START + 8)]
    assert bench.machine.health == (0 if kind is LEFT else 1)


def test_an_old_doubt_about_oneself_needs_no_answer(bench: Bench) -> None:
    bench.tell(rumour(SUSPECT, "me", START - 1))
    assert bench.state("me") == (ALIVE, START)
    assert bench.queued == []


def test_a_word_of_an_earlier_life_ahead_of_ours_is_outranked(bench: Bench) -> None:
    """The start counter was lost, so others know a higher incarnation."""
    bench.tell(rumour(ALIVE, "me", 5 * START))
    assert bench.state("me") == (ALIVE, 5 * START + 1)


def test_a_leaver_answers_no_doubts(bench: Bench) -> None:
    bench.know("peer")
    bench.handle(Leave())
    bench.tell(rumour(SUSPECT, "me", START))
    assert bench.state("me") == (LEFT, START)


def test_a_wrong_signature_has_no_effect(bench: Bench) -> None:
    bench.know("x")
    for kind in MemberState:
        good = rumour(kind, "x", 9)
        bad = make_rumour(good.statement, b"\1" * 64)
        assert bench.tell(bad) == [Refused("bad_signature")]
    assert bench.state("x") == (ALIVE, 1)
    assert bench.queued == []


def test_an_accusation_far_ahead_of_its_subject_is_absurd(bench: Bench) -> None:
    """It would wear out the incarnations, above which the subject must answer."""
    bench.know("x")
    assert bench.tell(rumour(SUSPECT, "x", 2**61)) == [Refused("absurd")]
    bench.tell(rumour(SUSPECT, "me", 2**61))
    assert bench.state("me") == (ALIVE, START)


def test_who_is_not_admitted_yet_is_believed_once_its_key_is_known(bench: Bench) -> None:
    bench.signer.unknown = [node("x")]
    assert bench.tell(rumour(ALIVE, "x", 1)) == [Refused("bad_signature")]
    bench.handle(TrustChanged())
    assert bench.machine.get(node("x")) is None
    bench.signer.unknown = []
    bench.handle(TrustChanged())
    assert bench.state("x") == (ALIVE, 1)


def test_who_is_evicted_is_forgotten_and_stays_so(bench: Bench) -> None:
    bench.know("x", "y")
    bench.tell(rumour(SUSPECT, "x", 1))
    before = bench.machine.get(node("x"))
    bench.signer.unknown = [node("x")]
    effects = bench.handle(TrustChanged(frozenset({node("x"), node("me"), node("z")})))
    assert effects == [Changed(before, None)]
    assert [m.node_id for m in bench.machine.members()] == [node("me"), node("y")]
    assert node("x") not in [r.subject for r in bench.machine.queued()]
    bench.tell(rumour(ALIVE, "x", 9))
    bench.tell(rumour(SUSPECT, "x", 9))
    assert bench.machine.get(node("x")) is None
    probe(bench)
    assert not bench.sent("x")
    assert bench.sent("y")


def test_what_the_evicted_has_said_of_others_is_said_in_ones_own_name(bench: Bench) -> None:
    """Else the accused, who takes the word of the evicted for nothing, could never answer it."""
    bench.know("liar", "x", "y")
    bench.tell(rumour(SUSPECT, "x", 1, by="liar"), rumour(DEAD, "y", 1, by="liar"))
    bench.clear()
    bench.tell(rumour(SUSPECT, "z", 1, by="liar"))
    bench.signer.unknown = [node("liar")]
    bench.handle(TrustChanged(frozenset({node("liar")})))
    said = {(r.subject, r.kind): r for r in bench.machine.queued()}
    assert set(said) == {(node("x"), SUSPECT), (node("y"), DEAD)}
    assert all(r.author == node("me") for r in said.values())
    bench.tell(rumour(ALIVE, "y", 2), rumour(ALIVE, "x", 2))
    assert bench.state("x") == bench.state("y") == (ALIVE, 2)


def test_the_evicted_shorten_no_suspicion(bench: Bench) -> None:
    def lasts_s(effects: list[Any]) -> float:
        timers = [e for e in effects if isinstance(e, SetTimer)]
        return [e.delay_s for e in timers if isinstance(e.event, SuspicionDue)][-1]

    liars = [node("liar1"), node("liar2")]
    bench.know("x", "y", "liar1", "liar2")
    alone_s = lasts_s(bench.tell(rumour(SUSPECT, "x", 1, by="y")))
    confirmed = [rumour(SUSPECT, "x", 1, by=liar) for liar in ("liar1", "liar2")]
    assert lasts_s(bench.tell(*confirmed)) < alone_s / 2
    bench.signer.unknown = liars
    assert lasts_s(bench.handle(TrustChanged(frozenset(liars)))) == alone_s


def test_a_member_has_no_role_that_it_was_not_admitted_with(bench: Bench) -> None:
    def alive(incarnation: int) -> Rumour:
        body = encode_meta(Meta("x", roles=("worker", "voter")))
        return make_rumour(
            encode_statement(ALIVE, node("x"), incarnation, author=node("x"), body=body), bytes(64)
        )

    def roles() -> tuple[str, ...]:
        found = bench.machine.get(node("x"))
        assert found is not None
        return found.roles

    bench.signer.roles[node("x")] = ("worker",)
    bench.tell(alive(1))
    assert roles() == ("worker",)
    bench.signer.roles[node("x")] = ("voter", "observer")
    [changed] = [e for e in bench.handle(TrustChanged()) if isinstance(e, Changed)]
    assert changed.after is not None
    assert changed.after.roles == roles() == ("voter", "observer")
    assert not [e for e in bench.handle(TrustChanged()) if isinstance(e, Changed)]
    bench.tell(alive(2))
    assert roles() == ("voter", "observer")


def test_what_cannot_be_verified_is_kept_within_bounds(bench: Bench) -> None:
    names = [f"x{n}" for n in range(70)]
    bench.signer.unknown = [node(name) for name in names]
    for name in names:
        bench.tell(rumour(ALIVE, name, 1))
    bench.signer.unknown = []
    bench.handle(TrustChanged())
    assert len(bench.machine.members()) == 1 + 64
    assert bench.machine.get(node("x0")) is None


def test_who_left_returns_only_by_a_new_word(bench: Bench) -> None:
    bench.know("x")
    bench.tell(rumour(LEFT, "x", 1))
    for stale in (rumour(ALIVE, "x", 1), rumour(SUSPECT, "x", 3), rumour(DEAD, "x", 3)):
        bench.tell(stale)
        assert bench.state("x") == (LEFT, 1)
    bench.tell(rumour(ALIVE, "x", 2))
    assert bench.state("x") == (ALIVE, 2)


def test_who_was_found_dead_may_still_have_left(bench: Bench) -> None:
    bench.know("x")
    bench.tell(rumour(DEAD, "x", 1))
    bench.tell(rumour(LEFT, "x", 1))
    assert bench.state("x") == (LEFT, 1)


def test_a_timer_of_a_refuted_suspicion_is_stale(bench: Bench) -> None:
    bench.know("x")
    bench.tell(rumour(SUSPECT, "x", 1))
    first = timer(bench, SuspicionDue)
    started_at = bench.now
    bench.now += first.delay_s / 2
    bench.tell(rumour(ALIVE, "x", 2))
    bench.tell(rumour(SUSPECT, "x", 2))
    bench.now = started_at + first.delay_s
    bench.handle(first.event)
    assert bench.state("x") == (SUSPECT, 2)


def test_a_confirmed_suspicion_is_shorter(bench: Bench) -> None:
    bench.know("x", "y", "z", "w")
    bench.tell(rumour(SUSPECT, "x", 1, by="y"))
    alone_s = timer(bench, SuspicionDue).delay_s
    bench.tell(rumour(SUSPECT, "x", 1, by="z"))
    bench.tell(rumour(SUSPECT, "x", 1, by="w"))
    assert timer(bench, SuspicionDue).delay_s < alone_s / 2
    assert bench.queued == [(SUSPECT, 1)]


def test_a_view_that_calls_a_live_member_dead_is_only_doubt(bench: Bench) -> None:
    bench.know("x")
    dead = [rumour(ALIVE, "x", 1).raw, rumour(DEAD, "x", 1).raw]
    bench.handle(SyncIn(node("peer"), tuple(dead)))
    assert bench.state("x") == (SUSPECT, 1)


def test_a_view_that_calls_a_member_left_is_believed(bench: Bench) -> None:
    bench.know("x")
    bench.handle(SyncIn(node("peer"), (rumour(LEFT, "x", 1).raw,)))
    assert bench.state("x") == (LEFT, 1)


@pytest.mark.parametrize("kind", [DEAD, LEFT])
def test_the_dead_of_a_view_are_remembered_quietly(bench: Bench, kind: MemberState) -> None:
    gone = (rumour(ALIVE, "x", 1).raw, rumour(kind, "x", 1).raw)
    bench.handle(SyncIn(node("peer"), gone))
    assert bench.state("x") == (kind, 1)
    assert bench.changes == []
    assert bench.queued == []


def test_an_old_death_in_a_view_does_not_bury_a_newer_life(bench: Bench) -> None:
    bench.handle(SyncIn(node("peer"), (rumour(ALIVE, "x", 5).raw, rumour(DEAD, "x", 1).raw)))
    assert bench.state("x") == (ALIVE, 5)


def test_the_table_of_members_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "MEMBERS_MAX", 3)
    bench.know("a", "b")
    assert bench.tell(rumour(ALIVE, "c", 1)) == [Refused("full")]


def test_the_longest_dead_are_forgotten(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "DEAD_MAX", 2)
    bench.know("a", "b", "c")
    for name in "abc":
        bench.now += 1
        bench.tell(rumour(DEAD, name, 1))
    assert bench.machine.get(node("a")) is None
    forgotten = bench.changes[-1]
    assert forgotten.after is None
    assert forgotten.before is not None
    assert forgotten.before.name == "a"


@pytest.mark.parametrize("data", [b"", b"\1", b"\1\xc1", b"\2\x92\5\x90", b"\xff" * 1_200])
def test_junk_has_no_effect(bench: Bench, data: bytes) -> None:
    assert bench.handle(PacketIn(node("peer"), data)) == [Refused("malformed")]


def test_other_meta_is_told_at_a_higher_incarnation(bench: Bench) -> None:
    bench.handle(SetMeta(Meta("me", tags=(("a", "b"),))))
    assert bench.state("me") == (ALIVE, START + 1)
    assert bench.queued == [(ALIVE, START + 1)]
    assert len(bench.changes) == 1


# ---- probes -----------------------------------------------------------------------------


def test_an_answered_probe_suspects_nobody(bench: Bench) -> None:
    bench.know("x")
    ping = probe(bench)
    get(bench, "x", Ack(ping.sequence, ping.view, []))
    bench.handle(ProbeTimeout(ping.sequence))
    assert bench.sent() == []
    bench.turn(1)
    assert bench.state("x") == (ALIVE, 1)


def test_without_an_answer_others_are_asked_and_then_it_is_suspect(bench: Bench) -> None:
    bench.know("x", "a", "b", "c", "d")
    bench.handle(Started())
    elapse(bench, ProbeTick)
    tick = timer(bench, ProbeTick)
    elapse(bench, ProbeTimeout)
    asked = bench.sent()
    assert [type(packet) for packet in asked] == [PingFor] * bench.config.indirect_probes
    target = asked[0].target
    bench.turn(tick.event.number)
    member = bench.machine.get(target)
    assert member is not None
    assert member.state is SUSPECT


def test_an_answer_through_a_helper_counts(bench: Bench) -> None:
    bench.know("x", "y")
    ping = probe(bench)
    bench.handle(ProbeTimeout(ping.sequence))
    helper = "x" if bench.sent("x") else "y"
    get(bench, helper, Ack(ping.sequence, ping.view, []))
    bench.turn(1)
    assert bench.changes == []


def test_an_answer_from_a_stranger_does_not_count(bench: Bench) -> None:
    bench.know("x")
    ping = probe(bench)
    get(bench, "stranger", Ack(ping.sequence, ping.view, []))
    get(bench, "x", Ack(ping.sequence + 1, ping.view, []))
    bench.turn(1)
    assert bench.state("x") == (SUSPECT, 1)


def test_who_spoke_up_since_it_was_asked_is_not_accused(bench: Bench) -> None:
    bench.know("x")
    probe(bench)
    bench.tell(rumour(ALIVE, "x", 2))
    bench.turn(1)
    assert bench.state("x") == (ALIVE, 2)


def test_who_died_while_it_was_asked_stays_dead(bench: Bench) -> None:
    bench.know("x")
    probe(bench)
    bench.tell(rumour(DEAD, "x", 1))
    bench.turn(1)
    assert bench.state("x") == (DEAD, 1)


def test_a_stale_probe_tick_is_ignored(bench: Bench) -> None:
    bench.know("x")
    probe(bench)
    assert bench.turn(0) == []


@pytest.mark.parametrize(("nacks", "health"), [(0, 2), (1, 1), (2, 0)])
def test_helpers_that_hear_us_vouch_for_our_health(bench: Bench, nacks: int, health: int) -> None:
    bench.know("x", "y", "z")
    ping = probe(bench)
    bench.handle(ProbeTimeout(ping.sequence))
    helpers = [name for name in "xyz" if bench.sent(name)]
    assert len(helpers) == 2
    for name in helpers[:nacks]:
        get(bench, name, Nack(ping.sequence))
        get(bench, name, Nack(ping.sequence))
    bench.turn(1)
    assert bench.machine.health == health
    assert timer(bench, ProbeTick).delay_s == bench.config.probe_interval_s * (health + 1)


def test_a_probe_for_another_is_passed_on_and_back(bench: Bench) -> None:
    bench.know("x", "asker")
    get(bench, "asker", PingFor(77, node("x"), []))
    [ping] = bench.sent("x")
    relayed = timer(bench, RelayTimeout)
    get(bench, "x", Ack(ping.sequence, ping.view, []))
    assert [packet.sequence for packet in bench.sent("asker")] == [77]
    assert bench.handle(relayed.event) == []


def test_an_answer_for_another_counts_only_from_the_one_asked(bench: Bench) -> None:
    bench.know("x", "asker")
    get(bench, "asker", PingFor(77, node("x"), []))
    [ping] = bench.sent("x")
    get(bench, "stranger", Ack(ping.sequence, ping.view, []))
    assert bench.sent("asker") == []


def test_a_probe_for_another_that_fails_is_refused(bench: Bench) -> None:
    bench.know("x", "asker")
    get(bench, "asker", PingFor(77, node("x"), []))
    elapse(bench, RelayTimeout)
    assert bench.sent("asker") == [Nack(77)]


def test_nobody_is_pinged_whom_we_do_not_know(bench: Bench) -> None:
    bench.know("asker")
    get(bench, "asker", PingFor(77, node("x"), []))
    assert bench.sent() == []


@pytest.mark.parametrize("kind", [SUSPECT, DEAD])
def test_who_is_doubted_is_told_so_first(bench: Bench, kind: MemberState) -> None:
    bench.know("x")
    bench.tell(rumour(kind, "x", 1))
    bench.clear()
    view = bench.machine._ledger.members.view_digest()
    get(bench, "x", Ping(5, view, []))
    [ack] = bench.sent("x")
    assert ack.sequence == 5
    assert told(ack) == [(node("x"), kind, 1)]


def test_a_peer_with_another_view_is_told_who_we_are(bench: Bench) -> None:
    bench.know("x")
    get(bench, "x", Ping(5, b"another", []))
    assert told(bench.sent("x")[0]) == [(node("me"), ALIVE, START)]


def test_a_peer_with_another_view_is_synced_with_but_not_too_often(bench: Bench) -> None:
    bench.know("x")
    get(bench, "x", Ping(5, b"another", []))
    assert SyncWith(node("x")) in bench.effects
    get(bench, "x", Ping(6, b"another", []))
    assert SyncWith(node("x")) not in bench.effects


def test_the_dead_are_tried_again_and_their_answer_is_followed_by_a_sync(bench: Bench) -> None:
    bench.know("x", "y")
    bench.tell(rumour(DEAD, "x", 1), rumour(LEFT, "y", 1))
    bench.clear()
    bench.handle(RetryTick())
    assert bench.sent("y") == []
    [ping] = bench.sent("x")
    assert told(ping) == [(node("x"), DEAD, 1)]
    get(bench, "x", Ack(ping.sequence, b"", []))
    assert SyncWith(node("x")) in bench.effects


# ---- streams ----------------------------------------------------------------------------


def reset_unanswered(bench: Bench, name: str) -> None:
    """A stream broke, and three quick pings stay silent."""
    bench.handle(StreamClosed(node(name), "reset"))
    for _ in range(3):
        elapse(bench, HintTick)


def test_a_reset_is_followed_by_three_quick_pings_and_ordinary_suspicion(bench: Bench) -> None:
    """Others are asked first, and refuse."""
    bench.know("x", "y", "z")
    started_at = bench.now
    bench.handle(StreamClosed(node("x"), "reset"))
    pings = len(bench.sent("x"))
    for _ in range(3):
        assert bench.state("x") == (ALIVE, 1)
        elapse(bench, HintTick)
        pings += len(bench.sent("x"))
    assert pings == 4
    assert bench.now - started_at == pytest.approx(0.3)
    asked = {name: bench.sent(name)[0].sequence for name in ("y", "z")}
    bench.now += 0.4
    for name, sequence in asked.items():
        assert bench.state("x") == (ALIVE, 1)
        get(bench, name, Nack(sequence))
    assert bench.state("x") == (SUSPECT, 1)
    least_s = bench.config.suspicion_mult * bench.config.probe_interval_s
    assert timer(bench, SuspicionDue).delay_s >= least_s


def test_whose_stream_broke_and_whom_another_reaches_is_not_suspected(bench: Bench) -> None:
    """A cut between two hosts breaks their stream, too."""
    bench.know("x", "y")
    reset_unanswered(bench, "x")
    due = timer(bench, RoundDue)
    [asked] = bench.sent("y")
    assert isinstance(asked, PingFor)
    get(bench, "y", Ack(asked.sequence, b"", []))
    bench.now += due.delay_s
    bench.handle(due.event)
    assert bench.state("x") == (ALIVE, 1)


def test_who_reaches_nobody_after_a_reset_doubts_nobody(bench: Bench) -> None:
    """Not even a helper refuses: likelier the fault is ours. The probe in turn decides."""
    bench.know("x", "y")
    reset_unanswered(bench, "x")
    elapse(bench, RoundDue)
    assert bench.state("x") == (ALIVE, 1)


def test_after_many_resets_at_once_few_are_asked_about(bench: Bench) -> None:
    others = [f"x{number}" for number in range(2 * CHECKS_MAX)]
    bench.know(*others)
    asked = 0
    for name in others:
        reset_unanswered(bench, name)
        asked += any(isinstance(effect, PingFor) for effect in bench.sent())
    assert asked == CHECKS_MAX


def test_an_answer_after_a_reset_ends_the_doubt(bench: Bench) -> None:
    bench.know("x")
    bench.handle(StreamClosed(node("x"), "reset"))
    [ping] = bench.sent("x")
    again = timer(bench, HintTick)
    get(bench, "x", Ack(ping.sequence, ping.view, []))
    bench.handle(again.event)
    assert bench.sent() == []
    assert bench.state("x") == (ALIVE, 1)


@pytest.mark.parametrize("reset_before", [False, True])
def test_a_refused_connection_shortens_the_suspicion(bench: Bench, reset_before: bool) -> None:
    bench.know("x")
    if reset_before:
        bench.handle(StreamClosed(node("x"), "reset"))
        again = timer(bench, HintTick)
        assert bench.handle(StreamClosed(node("x"), "refused")) == []
        bench.effects = [again]
    else:
        bench.handle(StreamClosed(node("x"), "refused"))
    started_at = bench.now
    for _ in range(3):
        assert bench.state("x") == (ALIVE, 1)
        elapse(bench, HintTick)
    assert bench.state("x") == (SUSPECT, 1)
    due = [
        e for e in bench.effects if isinstance(e, SetTimer) and e.event == SuspicionDue(node("x"))
    ]
    bench.now += min(e.delay_s for e in due)
    bench.handle(SuspicionDue(node("x")))
    assert bench.state("x") == (DEAD, 1)
    assert min(e.delay_s for e in due) == pytest.approx(bench.config.refused_suspicion_s)
    # Three pings 50 ms apart, 100 ms before the refusal, and then 300 ms to object.
    assert bench.now - started_at == pytest.approx(0.5 if reset_before else 0.45)


def test_who_refuses_streams_and_answers_datagrams_is_not_suspected(bench: Bench) -> None:
    """A firewall may reset TCP and let UDP through."""
    bench.know("x")
    for _ in range(5):
        bench.handle(StreamClosed(node("x"), "refused"))
        [ping] = bench.sent("x")
        again = timer(bench, HintTick)
        get(bench, "x", Ack(ping.sequence, ping.view, []))
        bench.now += 1.0
        assert bench.handle(again.event) == []
        assert bench.state("x") == (ALIVE, 1)
    assert [c for c in bench.changes if c.after and c.after.state is SUSPECT] == []


def test_a_member_under_suspicion_still_gets_time_when_refused(bench: Bench) -> None:
    bench.know("x")
    bench.tell(rumour(SUSPECT, "x", 1))
    bench.now += 2.0
    bench.handle(StreamClosed(node("x"), "refused"))
    for _ in range(3):
        elapse(bench, HintTick)
    bench.handle(SuspicionDue(node("x")))
    assert bench.state("x") == (SUSPECT, 1)


@pytest.mark.parametrize("how", ["idle", "leaving", "restarting"])
def test_a_clean_close_is_no_hint(bench: Bench, how: Any) -> None:
    bench.know("x")
    assert bench.handle(StreamClosed(node("x"), how)) == []


def test_who_restarts_is_excused_for_as_long_as_it_said(bench: Bench) -> None:
    bench.know("x")
    bench.handle(StreamClosed(node("x"), "restarting", quiet_s=5.0))
    bench.handle(StreamClosed(node("x"), "refused"))
    probe(bench)
    bench.turn(1)
    assert bench.state("x") == (ALIVE, 1)
    bench.now += 6.0
    bench.turn(2)
    elapse(bench, ProbeTick)
    elapse(bench, RoundDue)
    assert bench.state("x") == (SUSPECT, 1)


@pytest.mark.parametrize(("quiet_s", "later_s", "excused"), [(9.0, 8.9, True), (9.0, 9.1, False)])
def test_a_restart_may_take_as_long_as_was_said_and_no_longer(
    bench: Bench, quiet_s: float, later_s: float, excused: bool
) -> None:
    bench.know("x")
    bench.handle(StreamClosed(node("x"), "restarting", quiet_s=quiet_s))
    bench.now += later_s
    bench.handle(StreamClosed(node("x"), "reset"))
    assert bool(bench.sent("x")) != excused


def test_an_excuse_counts_for_one_life_and_is_given_once(bench: Bench) -> None:
    bench.know("x")
    bench.handle(StreamClosed(node("x"), "restarting", quiet_s=5.0))
    bench.now += 4.0
    bench.handle(StreamClosed(node("x"), "restarting", quiet_s=5.0))
    bench.handle(StreamClosed(node("x"), "reset"))
    assert bench.sent("x") == []
    bench.now += 1.5
    bench.handle(StreamClosed(node("x"), "restarting", quiet_s=5.0))
    bench.handle(StreamClosed(node("x"), "reset"))
    assert len(bench.sent("x")) == 1, "the first excuse is over, and was not made longer"
    for _ in range(3):
        elapse(bench, HintTick)
    elapse(bench, RoundDue)
    assert bench.state("x") == (SUSPECT, 1)


def test_who_is_back_is_excused_no_more(bench: Bench) -> None:
    bench.know("x")
    bench.handle(StreamClosed(node("x"), "restarting", quiet_s=30.0))
    bench.tell(rumour(ALIVE, "x", 1 << 32))
    reset_unanswered(bench, "x")
    elapse(bench, RoundDue)
    assert bench.state("x") == (SUSPECT, 1 << 32)


# ---- joining and leaving ----------------------------------------------------------------


def test_a_join_is_tried_until_it_is_answered(bench: Bench) -> None:
    assert bench.handle(Join((node("x"), node("me")))) == [SyncWith(node("x"))]
    assert bench.handle(Join((node("x"),))) == []
    for _ in range(30):
        bench.handle(SyncFailed(node("x")))
        assert timer(bench, JoinAgain).delay_s <= 75.0
        elapse(bench, JoinAgain)
        assert bench.effects == [SyncWith(node("x"))]
    bench.handle(SyncIn(node("x"), (rumour(ALIVE, "x", 1).raw,), answer=True))
    assert bench.state("x") == (ALIVE, 1)
    assert bench.handle(SyncFailed(node("x"))) == []


def test_a_join_ends_when_others_told_of_the_peer(bench: Bench) -> None:
    bench.handle(Join((node("x"),)))
    bench.handle(SyncFailed(node("x")))
    again = timer(bench, JoinAgain)
    bench.know("x")
    assert bench.handle(again.event) == []


def test_joins_are_bounded(bench: Bench) -> None:
    bench.handle(Join(tuple(node(f"x{n}") for n in range(100))))
    assert len([e for e in bench.effects if isinstance(e, SyncWith)]) == 64


def test_alone_a_leaver_departs_at_once(bench: Bench) -> None:
    effects = bench.handle(Leave())
    assert [type(effect) for effect in effects] == [Changed, Departed]
    assert bench.handle(Leave()) == []


def test_a_goodbye_goes_to_all_at_once(bench: Bench) -> None:
    names = "abcdefgh"
    bench.know(*names)
    bench.handle(Leave())
    for name in names:
        assert told(bench.sent(name)[0]) == [(node("me"), LEFT, START)]


def test_a_view_holds_this_node_first_and_everyones_proof(bench: Bench) -> None:
    bench.know("x", "y")
    bench.tell(rumour(DEAD, "x", 1))
    view = [decode_rumour(raw) for raw in bench.machine.view()]
    assert view[0].subject == node("me")
    kinds = {name: [r.kind for r in view if r.subject == node(name)] for name in ("x", "y")}
    assert kinds == {"x": [ALIVE, DEAD], "y": [ALIVE]}


def test_a_statement_names_its_accuser_only_when_it_accuses() -> None:
    for kind in MemberState:
        said = encode_statement(kind, node("x"), 1, author=node("peer"), body=b"")
        assert (node("peer") in said) == (kind in (SUSPECT, DEAD))


def test_a_quick_ping_of_an_earlier_reset_is_stale(bench: Bench) -> None:
    bench.know("x")
    bench.handle(StreamClosed(node("x"), "reset"))
    [ping] = bench.sent("x")
    stale = timer(bench, HintTick)
    get(bench, "x", Ack(ping.sequence, ping.view, []))
    bench.handle(StreamClosed(node("x"), "reset"))
    assert bench.handle(stale.event) == []


def test_a_timeout_of_an_earlier_probe_is_stale(bench: Bench) -> None:
    bench.know("x", "y", "z")
    ping = probe(bench)
    bench.turn(1)
    bench.handle(ProbeTimeout(ping.sequence))
    assert bench.sent() == []


def test_a_stranger_that_asks_is_told_who_we_are(bench: Bench) -> None:
    view = bench.machine._ledger.members.view_digest()
    get(bench, "stranger", Ping(5, view, []))
    assert told(bench.sent("stranger")[0]) == [(node("me"), ALIVE, START)]


def test_a_probe_of_us_for_another_is_answered_by_us(bench: Bench) -> None:
    bench.know("asker")
    get(bench, "asker", PingFor(77, node("me"), []))
    assert [packet.sequence for packet in bench.sent("asker")] == [77]


@pytest.mark.parametrize(("dead_s", "packets"), [(29.0, 1), (31.0, 0)])
def test_the_recently_dead_get_the_news(bench: Bench, dead_s: float, packets: int) -> None:
    bench.know("x")
    bench.tell(rumour(DEAD, "x", 1))
    bench.now += dead_s
    bench.handle(GossipTick())
    assert len(bench.sent("x")) == packets


def test_a_leaver_declares_nobody_dead(bench: Bench) -> None:
    bench.know("x", "y")
    bench.tell(rumour(SUSPECT, "x", 1))
    due = timer(bench, SuspicionDue)
    bench.handle(Leave())
    bench.now += due.delay_s
    bench.handle(due.event)
    assert bench.state("x") == (SUSPECT, 1)


def test_open_questions_are_bounded() -> None:
    pendings = Pendings(make_rng(1))
    first = pendings.open(Pending("retry", node("x")))
    for _ in range(PENDING_MAX - 1):
        pendings.open(Pending("retry", node("x")))
    assert pendings.get(first) is not None
    pendings.open(Pending("retry", node("x")))
    assert pendings.get(first) is None


def test_who_is_alone_gossips_to_nobody_until_somebody_comes(bench: Bench) -> None:
    """What it has to say waits for them; a timer that rings meanwhile is for nothing."""
    bench.handle(SetMeta(Meta("me", (("10.0.0.1", 1),))))
    assert bench.queued
    assert bench.elapse(GossipTick) == []
    bench.now += 600.0
    bench.tell(rumour(ALIVE, "x", 1))
    assert bench.elapse(GossipTick)
    assert node("me") in [subject for subject, _, _ in told(bench.sent("x")[0])]


def test_who_saw_all_others_die_gossips_again_when_one_is_back(bench: Bench) -> None:
    bench.know("x")
    bench.tell(rumour(DEAD, "x", 1))
    bench.clear()
    bench.now += 31.0
    assert bench.handle(GossipTick()) == []
    bench.handle(SetMeta(Meta("me", (("10.0.0.1", 1),))))
    assert bench.elapse(GossipTick) == []
    bench.tell(rumour(ALIVE, "x", 2))
    assert bench.elapse(GossipTick)
    assert bench.sent("x")


def test_who_is_told_in_a_view_of_one_that_died_just_now_gossips_to_it(bench: Bench) -> None:
    bench.know("x")
    bench.tell(rumour(DEAD, "x", 1))
    bench.now += 40.0
    bench.handle(SetMeta(Meta("me", (("10.0.0.1", 1),))))
    assert bench.handle(GossipTick()) == []
    view = (rumour(ALIVE, "x", 1), rumour(ALIVE, "y", 1), rumour(DEAD, "y", 1))
    bench.handle(SyncIn(node("x"), tuple(one.raw for one in view), True))
    assert bench.elapse(GossipTick)
    assert bench.sent("y")
