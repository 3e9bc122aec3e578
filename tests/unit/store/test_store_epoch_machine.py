"""The machine of epochs: what it asks for, in which order, and what it never does."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from test_store_epoch import DIGEST, GENESIS, KEYS, VOTERS, certificate

from swarmd.base.machine import Effect, Event, Send, SetTimer
from swarmd.identity.epochs import Chain, statement_of
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World
from swarmd.state.raft import epoch_machine as em
from swarmd.state.raft import epoch_messages as emsg
from swarmd.state.raft import messages as m
from swarmd.state.raft.epoch import Ballot, DropEpochs, KeepSealedState, StartEpoch, StopEpoch
from swarmd.state.raft.storage import EpochFiles

IDS = [v.node_id for v in VOTERS]


def machine(me: int, chain: Chain | None = None, disk: em.OnDisk | None = None) -> em.EpochMachine:
    seat = VOTERS[me]
    if me == 0 and (chain is None or chain.head.number == 1):
        seat = Chain(GENESIS).head.voters[0]
    return em.EpochMachine(chain or Chain(GENESIS), seat, KEYS[me], disk or em.OnDisk())


def grown(*signed_by: list[int]) -> tuple[Chain, list[bytes]]:
    """A chain in which voters 0..2 follow the founder, and after them 1..3, as asked."""
    chain, made = Chain(GENESIS), []
    for number, signers in enumerate(signed_by):
        made.append(certificate(chain.head, VOTERS[number : number + 3], signers))
        chain.extend(made[-1])
    return chain, made


def steps(effects: Sequence[Effect]) -> list[Effect]:
    """Without timers, gossip and questions about this life of the disk."""
    quiet = (SetTimer, Send, em.AskAnybody, em.Changed, em.Admit)
    return [e for e in effects if not isinstance(e, quiet) and not _asks_to_note(e)]


def _asks_to_note(effect: Effect) -> bool:
    return isinstance(effect, em.Ask) and isinstance(effect.message, emsg.StartAsk)


def of(effects: Sequence[Effect], kind: type[Effect]) -> list[Effect]:
    return [e for e in effects if isinstance(e, kind)]


def running(me: int = 0) -> em.EpochMachine:
    """A voter of epoch 2 whose log runs."""
    chain, _ = grown([0])
    one = machine(me, chain, em.OnDisk((2,), (2,)))
    assert steps(one.handle(em.Wake(em.START), 0.0)) == [StartEpoch(2)]
    one.handle(em.EpochStarted(2, None, em.OnDisk((2,), (2,))), 0.0)
    return one


def seal(number: int = 3) -> em.SealApplied:
    return em.SealApplied(2, number, 7, tuple(VOTERS[1:4]))


def other_signature(signer: int, digest: bytes = DIGEST) -> emsg.Signed:
    epoch = grown([0])[0].head
    statement = statement_of(epoch, 3, 7, digest, VOTERS[1:4])
    return emsg.Signed(Ballot(GENESIS.swarm_id, epoch, statement, KEYS[signer]).own)


def test_the_founder_starts_at_once() -> None:
    one = machine(0)
    effects = one.handle(em.Wake(em.START), 0.0)
    assert effects[:2] == [em.AskAnybody(), StartEpoch(1)]
    assert steps(one.handle(em.EpochStarted(1, None, em.OnDisk((), (1,))), 0.0)) == []


def test_a_seal_is_kept_then_signed_then_certified_then_saved_then_obeyed() -> None:
    one = running()
    assert steps(one.handle(seal(), 1.0)) == [KeepSealedState(3)]
    assert one.handle(seal(), 1.0) == [], "once is enough"
    signed = one.handle(em.StateKept(3, DIGEST, em.OnDisk((2, 3), (2, 3))), 1.0)
    assert {e.peer for e in of(signed, Send)} == {IDS[1], IDS[2]}  # type: ignore[attr-defined]
    assert one.waits_for is not None
    certified = one.handle(em.Heard(IDS[1], other_signature(1)), 1.1)
    assert steps(certified)[-1] == em.SaveChain(3)
    assert of(certified, em.SendAlive), "everybody is told"
    stopped = one.handle(em.ChainSaved(3, em.OnDisk((2, 3), (2, 3))), 1.2)
    assert steps(stopped) == [StopEpoch(2)], "durable first"
    one.handle(em.EpochStopped(2), 1.3)
    assert not one.is_free, "others may still need what is on its disk"


def test_a_signature_is_sent_again_after_a_while_and_not_at_each_event() -> None:
    one = running()
    one.handle(seal(), 1.0)
    one.handle(em.StateKept(3, DIGEST, em.OnDisk((2, 3), (2, 3))), 1.0)
    assert of(one.handle(em.Heard(IDS[3], emsg.ChainAsk(1), 5), 1.1), Send) == []
    woken: list[Effect] = []
    for token in range(1, 10):
        woken += one.handle(em.Wake(token), 1.2)
    assert {e.peer for e in of(woken, Send)} == {IDS[1], IDS[2]}  # type: ignore[attr-defined]


def test_after_a_restart_the_signature_is_made_afresh() -> None:
    chain, _ = grown([0])
    disk = em.OnDisk((2, 3), (2, 3))
    one = machine(0, chain, disk)
    one.handle(em.Wake(em.START), 0.0)
    assert steps(one.handle(em.EpochStarted(2, seal(), disk), 0.0)) == [KeepSealedState(3)]


def test_another_state_under_the_same_seal_stops_the_node() -> None:
    one = running()
    one.handle(seal(), 1.0)
    one.handle(em.StateKept(3, DIGEST, em.OnDisk((2, 3), (2, 3))), 1.0)
    with pytest.raises(Exception, match="another state"):
        one.handle(em.Heard(IDS[1], other_signature(1, b"e" * 32)), 1.1)


def test_a_seal_of_an_epoch_that_runs_no_more_is_stale_news() -> None:
    one = machine(0)
    one.handle(em.Wake(em.START), 0.0)
    one.handle(em.EpochStarted(1, None, em.OnDisk((), (1,))), 0.0)
    assert steps(one.handle(seal(), 0.1)) == []


def test_a_failed_write_is_tried_again_at_the_next_wake_only() -> None:
    one = running()
    one.handle(seal(), 1.0)
    failed = one.handle(em.WriteFailed(), 1.0)
    assert steps(failed) == []
    assert steps(one.handle(em.Heard(IDS[1], emsg.ChainAsk(1), 1), 1.0))[1:] == []
    again = [e for token in range(1, 10) for e in one.handle(em.Wake(token), 1.3)]
    assert steps(again) == [KeepSealedState(3)]


# ---- a new voter -------------------------------------------------------------------------


def newcomer() -> em.EpochMachine:
    """Voter 3 of epoch 3, which holds nothing yet."""
    chain, _ = grown([0], [0, 1])
    return machine(3, chain)


def without_copy(one: em.EpochMachine, at: float = 0.0) -> Sequence[Effect]:
    """Start; the first state is looked for in a copy of the log, which is not there."""
    number = one.chain.head.number
    assert steps(one.handle(em.Wake(em.START), at)) == [em.UseCopy(number, DIGEST)]
    return one.handle(em.StateRefused(number), at)


def asks(effects: Sequence[Effect]) -> list[em.Ask]:
    return [e for e in effects if isinstance(e, em.Ask) and not _asks_to_note(e)]


def test_a_state_is_fetched_piece_by_piece_then_checked_then_the_epoch_begins() -> None:
    one = newcomer()
    (first,) = asks(without_copy(one))
    assert first.message == emsg.StateAsk(3, 0)
    taken = one.handle(em.Answered(first.tag, emsg.StatePiece(6, b"abcd")), 0.1)
    (second,) = asks(taken)
    assert of(taken, em.KeepPiece) == [em.KeepPiece(3, 0, b"abcd")]
    assert second.message == emsg.StateAsk(3, 4)
    done = one.handle(em.Answered(second.tag, emsg.StatePiece(6, b"ef")), 0.2)
    assert steps(done) == [em.KeepPiece(3, 4, b"ef"), em.KeepState(3, DIGEST)]
    kept = one.handle(em.StateKept(3, DIGEST, em.OnDisk((3,), (3,))), 0.3)
    assert steps(kept) == [StartEpoch(3)]


@pytest.mark.parametrize(
    "bad",
    [None, emsg.Installed(3, True), emsg.StatePiece(6, b""), emsg.StatePiece(2**40, b"x")],
    ids=["silent", "other", "empty", "huge"],
)
def test_the_next_source_is_asked_and_after_the_last_a_pause_is_made(bad: object) -> None:
    one = newcomer()
    (ask,) = asks(without_copy(one))
    asked = [ask.peer]
    while found := asks(one.handle(em.Answered(asked and ask.tag, bad), 0.1)):
        (ask,) = found
        asked.append(ask.peer)
    assert sorted(asked) == sorted({*IDS[:3], *IDS[1:4]} - {IDS[3]})
    again = [e for token in range(1, 10) for e in one.handle(em.Wake(token), 0.5)]
    assert steps(again) == [em.UseCopy(3, DIGEST)]


def test_who_waits_for_a_state_that_nobody_has_any_more_asks_for_a_newer_epoch_now_and_then() -> (
    None
):
    """It was seated again, and missed the certificate that says so."""
    one = newcomer()
    effects = list(without_copy(one))
    asked_at = []
    for token in range(1, 100):
        now = token * em.TICK_BUSY_S
        refused = [em.StateRefused(3) for e in effects if isinstance(e, em.UseCopy)]
        refused += [em.Answered(ask.tag, None) for ask in asks(effects)]
        effects = [e for event in refused for e in one.handle(event, now)]
        if not effects:
            effects = list(one.handle(em.Wake(one._token), now))
        if of(effects, em.AskAnybody):
            asked_at.append(now)
    assert 2 <= len(asked_at) <= 100 * em.TICK_BUSY_S / em.TICK_IDLE_S


def test_a_state_that_is_not_what_the_certificate_says_comes_from_elsewhere() -> None:
    one = newcomer()
    (first,) = asks(without_copy(one))
    one.handle(em.Answered(first.tag, emsg.StatePiece(1, b"x")), 0.1)
    (second,) = asks(one.handle(em.StateRefused(3), 0.2))
    assert second.peer != first.peer
    assert one.handle(em.Answered(first.tag, emsg.StatePiece(1, b"x")), 0.3) == [], "stale"


@pytest.mark.parametrize("copied", [False, True])
def test_a_state_that_could_not_be_kept_is_fetched_anew(copied: bool) -> None:
    """A full disk at the last step of a fetch, or while a copy is put to use, holds nobody up."""
    one = newcomer()
    if copied:
        one.handle(em.Wake(em.START), 0.0)
    else:
        (first,) = asks(without_copy(one))
        one.handle(em.Answered(first.tag, emsg.StatePiece(1, b"x")), 0.1)
    assert steps(one.handle(em.WriteFailed(), 0.2)) == []
    again = [e for token in range(1, 10) for e in one.handle(em.Wake(token), 0.5)]
    assert steps(again) == [em.UseCopy(3, DIGEST)]
    (ask,) = asks(one.handle(em.StateRefused(3), 0.6))
    assert ask.message == emsg.StateAsk(3, 0)


def test_a_copy_of_the_log_spares_the_fetch() -> None:
    one = newcomer()
    assert steps(one.handle(em.Wake(em.START), 0.0)) == [em.UseCopy(3, DIGEST)]
    kept = one.handle(em.StateKept(3, DIGEST, em.OnDisk((3,), (3,), (2,))), 0.1)
    assert steps(kept) == [StartEpoch(3)]
    assert not one.is_free


def test_a_copy_of_the_running_log_is_no_leftover_and_that_of_an_ended_one_is() -> None:
    chain, _ = grown([0])
    one = machine(5, chain, em.OnDisk((), (), (2,)))
    assert steps(one.handle(em.Wake(em.START), 0.0)) == []
    assert one.is_free, "nobody needs a copy"
    newer = certificate(chain.head, VOTERS[1:4], [0, 1])
    one.handle(em.Heard(IDS[1], emsg.Certificates((newer,))), 0.1)
    asked = asks(one.handle(em.ChainSaved(3, em.OnDisk((), (), (2,))), 0.2))
    assert len(asked) == 3
    for ask in asked[:2]:
        last = one.handle(em.Answered(ask.tag, emsg.Installed(3, True)), 0.3)
    assert steps(last) == [DropEpochs((2,))]


def test_a_newer_epoch_ends_the_fetch_of_an_older() -> None:
    one = newcomer()
    (first,) = asks(without_copy(one))
    newer = certificate(one.chain.head, VOTERS[:3], [1, 2])
    grown_now = one.handle(em.Heard(IDS[1], emsg.Certificates((newer,))), 0.1)
    assert em.SaveChain(4) in grown_now
    assert steps(one.handle(em.Answered(first.tag, emsg.StatePiece(1, b"x")), 0.2)) == []
    assert steps(one.handle(em.ChainSaved(4, em.OnDisk()), 0.3)) == [], "it has no seat there"


def test_old_epochs_go_once_a_majority_answered_and_are_asked_for_again_later() -> None:
    chain, _ = grown([0], [0, 1])
    one = machine(0, chain, em.OnDisk((2, 3), (2, 3)))
    asked = asks(one.handle(em.Wake(em.START), 0.0))
    assert {a.peer for a in asked} == set(IDS[1:4])
    for ask in asked[:2]:
        assert not of(one.handle(em.Answered(ask.tag, None), 0.1), DropEpochs)
    last = one.handle(em.Answered(asked[2].tag, emsg.Installed(3, True)), 0.1)
    assert not asks(last), "not at once"
    later = [e for token in range(1, 10) for e in one.handle(em.Wake(token), 0.5)]
    assert len(asks(later)) == 2
    dropped = one.handle(em.Answered(asks(later)[0].tag, emsg.Installed(3, True)), 0.6)
    assert steps(dropped) == [DropEpochs((2, 3))]
    one.handle(em.EpochsDropped(em.OnDisk()), 0.7)
    assert one.is_free


# ---- what others ask ---------------------------------------------------------------------


def test_every_question_is_answered_or_refused_once() -> None:
    one = newcomer()
    questions = [
        emsg.ChainAsk(1),
        emsg.InstalledAsk(3),
        emsg.Enlist(),
        emsg.StateAsk(3, 0),
        emsg.StateAsk(9, 0),
        emsg.Certificates((b"junk",)),
        emsg.Certificates(()),
        emsg.Signed(b"junk"),
        emsg.Installed(3, True),
        emsg.Enlisted(VOTERS[0], 1),
        emsg.StatePiece(1, b"x"),
    ]
    for tag, question in enumerate(questions, start=1):
        effects = one.handle(em.Heard(IDS[0], question, tag), 0.1)
        replies = [e for e in effects if isinstance(e, em.Answer | em.Refuse | em.ReadPiece)]
        assert [r.tag for r in replies] == [tag], question
        assert not [
            e
            for e in one.handle(em.Heard(IDS[0], question), 0.1)
            if isinstance(e, em.Answer | em.Refuse | em.ReadPiece)
        ]


def test_who_leaves_takes_no_seat() -> None:
    one = newcomer()
    one.leaving = True
    effects = one.handle(em.Heard(IDS[0], emsg.Enlist(), 1), 0.1)
    assert [r.code for r in effects if isinstance(r, em.Refuse)] == ["shutting_down"]


def test_a_state_is_given_to_voters_of_its_epoch_only() -> None:
    one = running()
    ok = one.handle(em.Heard(IDS[1], emsg.StateAsk(2, 0), 1), 0.1)
    assert of(ok, em.ReadPiece) == [em.ReadPiece(1, 2, 0)]
    no = one.handle(em.Heard(IDS[5], emsg.StateAsk(2, 0), 2), 0.1)
    assert [r.code for r in no if isinstance(r, em.Refuse)] == ["forbidden"]


def test_who_sends_packets_of_an_ended_epoch_is_told_but_not_at_each_packet() -> None:
    one = running()
    old = em.StrayPacket(IDS[4], one.chain.epoch(1).key)  # type: ignore[union-attr]
    assert len(of(one.handle(old, 1.0), Send)) == 1
    assert of(one.handle(old, 1.1), Send) == []
    assert len(of(one.handle(old, 2.0), Send)) == 1
    assert of(one.handle(em.StrayPacket(IDS[4], b"?" * 16), 2.0), em.Dropped)


@pytest.mark.parametrize("seed", range(20))
def test_any_events_in_any_order_keep_the_rules(seed: int) -> None:
    """One thing is under way at a time, timers stay few, and every question gets one reply."""
    rng = random.Random(seed)
    chain, made = grown([0], [0, 1])
    one = machine(rng.randrange(4))
    doing: Effect | None = None
    disk = em.OnDisk()
    asked: list[int] = []
    timers: list[Event] = [em.Wake(em.START)]
    for turn in range(400):
        now = turn * 0.05
        event = _any_event(rng, doing, disk, asked, timers, made)
        if isinstance(event, em.ChainSaved | em.StateKept | em.EpochStarted | em.EpochsDropped):
            disk = event.disk
        if isinstance(event, _ENDS):
            doing = None
        effects = one.handle(event, now)
        for effect in effects:
            if isinstance(effect, _BEGINNINGS):
                assert doing is None, (doing, effect)
                doing = effect
            elif isinstance(effect, em.Ask):
                asked.append(effect.tag)
            elif isinstance(effect, SetTimer):
                timers.append(effect.event)
        assert len(timers) < 60
    assert chain.head.number == 3


_BEGINNINGS = (
    StopEpoch,
    StartEpoch,
    KeepSealedState,
    DropEpochs,
    em.SaveChain,
    em.KeepState,
    em.UseCopy,
)
_ENDS = (
    em.ChainSaved,
    em.StateKept,
    em.StateRefused,
    em.EpochStarted,
    em.EpochStopped,
    em.EpochsDropped,
    em.WriteFailed,
)


def _any_event(
    rng: random.Random,
    doing: Effect | None,
    disk: em.OnDisk,
    asked: list[int],
    timers: list[Event],
    made: list[bytes],
) -> Event:
    choice = rng.randrange(6)
    if choice == 0 and timers:
        return timers.pop(rng.randrange(len(timers)))
    if choice == 1 and asked:
        answer = rng.choice(
            [None, emsg.Installed(3, True), emsg.StatePiece(2, b"ab"), emsg.Enlist()]
        )
        return em.Answered(asked.pop(rng.randrange(len(asked))), answer)
    if choice <= 3 and doing is not None:
        return em.WriteFailed() if rng.random() < 0.2 else _end_of(doing, disk)
    peer = rng.choice(IDS)
    if choice == 4:
        return em.Heard(peer, emsg.Certificates(tuple(made[: rng.randrange(3)])), rng.randrange(2))
    return rng.choice([seal(), em.StrayPacket(peer, b"?"), em.Heard(peer, emsg.Enlist(), 7)])


def _end_of(doing: Effect, disk: em.OnDisk) -> Event:
    match doing:
        case em.SaveChain(number):
            return em.ChainSaved(number, disk)
        case KeepSealedState(number):
            return em.StateKept(number, DIGEST, em.OnDisk(tuple({*disk.states, number})))
        case em.KeepState(number, digest) | em.UseCopy(number, digest):
            return em.StateKept(number, digest, em.OnDisk(tuple({*disk.states, number})))
        case StartEpoch(number):
            return em.EpochStarted(number, None, disk)
        case StopEpoch(number):
            return em.EpochStopped(number)
    return em.EpochsDropped(em.OnDisk())


# ---- lives of a disk ---------------------------------------------------------------------


def notes(effects: Sequence[Effect]) -> list[em.Ask]:
    return [e for e in effects if isinstance(e, em.Ask) and _asks_to_note(e)]


def started() -> tuple[em.EpochMachine, list[em.Ask]]:
    """A voter of epoch 2 whose log is started, and whom it asks to note that."""
    chain, _ = grown([0])
    disk = em.OnDisk((2,), (2,))
    one = em.EpochMachine(chain, VOTERS[0], KEYS[0], disk, start=5, nonces=(b"m", b"n"))
    one.handle(em.Wake(em.START), 0.0)
    effects = one.handle(em.EpochStarted(2, None, disk), 0.0)
    assert not of(effects, em.Admit)
    return one, notes(effects)


def grace(effects: Sequence[Effect]) -> list[Effect]:
    return [e for e in effects if isinstance(e, SetTimer) and isinstance(e.event, em.GraceOver)]


def test_a_voter_takes_part_at_once_when_all_noted_this_life() -> None:
    one, asked = started()
    assert [a.message for a in asked] == [emsg.StartAsk(VOTERS[0].storage, 5, (b"m", b"n"))] * 2
    assert one.waits_for is not None
    majority = one.handle(em.Answered(asked[1].tag, emsg.StartNoted(True)), 0.1)
    assert not of(majority, em.Admit), "the other one may object"
    assert len(grace(majority)) == 1
    admitted = one.handle(em.Answered(asked[0].tag, emsg.StartNoted(True)), 0.2)
    assert of(admitted, em.Admit) == [em.Admit(2)]
    assert one.waits_for is None
    assert not of(one.handle(em.Wake(em.START), 0.2), em.Admit), "once"
    assert not of(one.handle(grace(majority)[0].event, 0.4), em.Admit)  # type: ignore[attr-defined]


def test_a_voter_takes_part_after_a_grace_when_a_majority_noted_this_life() -> None:
    one, asked = started()
    assert grace(one.handle(em.Answered(asked[0].tag, None), 0.1)) == [], "no majority yet"
    (timer,) = grace(one.handle(em.Answered(asked[1].tag, emsg.StartNoted(True)), 0.1))
    assert isinstance(timer, SetTimer)
    assert timer.delay_s == em.ADMIT_GRACE_S
    woken = [e for token in range(1, 10) for e in one.handle(em.Wake(token), 0.3)]
    assert len(notes(woken)) == 1, "who was away is asked again meanwhile"
    assert grace(woken) == [], "one grace, not one at each event"
    assert not of(woken, em.Admit)
    assert not of(one.handle(em.GraceOver(99), 0.3), em.Admit), "stale"
    assert of(one.handle(timer.event, 0.4), em.Admit) == [em.Admit(2)]


def test_an_objection_within_the_grace_counts() -> None:
    """The voter that did not see the later life of this disk is the first to answer."""
    one, asked = started()
    (timer,) = grace(one.handle(em.Answered(asked[0].tag, emsg.StartNoted(True)), 0.1))
    objected = one.handle(em.Answered(asked[1].tag, emsg.StartNoted(False)), 0.2)
    assert steps(objected) == [StopEpoch(2)]
    assert not of(one.handle(timer.event, 0.4), em.Admit)  # type: ignore[attr-defined]
    assert steps(one.handle(em.EpochStopped(2), 0.5)) == [em.RenewStorage()]


def test_a_grace_of_an_ended_epoch_admits_to_no_other() -> None:
    one, asked = started()
    (timer,) = grace(one.handle(em.Answered(asked[0].tag, emsg.StartNoted(True)), 0.1))
    newer = certificate(one.chain.head, [VOTERS[0], VOTERS[3], VOTERS[4]], [0, 1])
    one.handle(em.Heard(IDS[1], emsg.Certificates((newer,))), 0.2)
    one.handle(em.ChainSaved(3, em.OnDisk((2, 3), (2, 3))), 0.2)
    one.handle(em.EpochStopped(2), 0.2)
    (ask, _) = notes(one.handle(em.EpochStarted(3, None, em.OnDisk((2, 3), (2, 3))), 0.2))
    assert len(grace(one.handle(em.Answered(ask.tag, emsg.StartNoted(True)), 0.3))) == 1
    assert not of(one.handle(timer.event, 0.4), em.Admit)  # type: ignore[attr-defined]


def test_who_does_not_answer_is_asked_again_later() -> None:
    one, asked = started()
    for ask in asked:
        assert notes(one.handle(em.Answered(ask.tag, None), 0.1)) == []
    again = [e for token in range(1, 10) for e in one.handle(em.Wake(token), 0.5)]
    assert len(notes(again)) == 2


def test_a_disk_that_was_seen_later_takes_another_name_and_votes_no_more() -> None:
    one, asked = started()
    refused = one.handle(em.Answered(asked[0].tag, emsg.StartNoted(False)), 0.1)
    assert steps(refused) == [StopEpoch(2)]
    assert not of(one.handle(em.Answered(asked[1].tag, emsg.StartNoted(True)), 0.1), em.Admit)
    assert steps(one.handle(em.EpochStopped(2), 0.2)) == [em.RenewStorage()]
    other = m.Voter(VOTERS[0].public, b"another storage!")
    renewed = one.handle(em.StorageRenewed(other), 0.3)
    assert not one.has_seat
    assert not of(renewed, StartEpoch)
    enlisted = one.handle(em.Heard(IDS[1], emsg.Enlist(), 1), 0.4)
    assert of(enlisted, em.Answer) == [em.Answer(1, emsg.Enlisted(other, 2))]


def test_a_new_epoch_is_told_of_this_life_anew() -> None:
    one, asked = started()
    one.handle(em.Answered(asked[0].tag, emsg.StartNoted(True)), 0.1)
    newer = certificate(one.chain.head, [VOTERS[0], VOTERS[3], VOTERS[4]], [0, 1])
    one.handle(em.Heard(IDS[1], emsg.Certificates((newer,))), 0.2)
    one.handle(em.ChainSaved(3, em.OnDisk((2, 3), (2, 3))), 0.3)
    one.handle(em.EpochStopped(2), 0.4)
    begun = one.handle(em.EpochStarted(3, None, em.OnDisk((2, 3), (2, 3))), 0.5)
    assert {a.peer for a in notes(begun)} == {IDS[3], IDS[4]}
    assert not of(begun, em.Admit)


def test_starts_are_noted_durably_and_only_another_life_does_not_rise() -> None:
    disk = SimDisk(World(1), "d")
    files = EpochFiles(disk)
    assert files.count_start(b"a") == (1, (b"a",))
    assert EpochFiles(disk).count_start(b"b") == (2, (b"a", b"b"))
    assert files.note_start(b"node", b"storage", 3, [b"a"])
    assert files.note_start(b"node", b"storage", 3, [b"a"]), "the same life asks again"
    disk.crash()
    again = EpochFiles(disk)
    assert not again.note_start(b"node", b"storage", 3, [b"b"])
    assert not again.note_start(b"node", b"storage", 2, [b"a"])
    assert again.note_start(b"node", b"other", 1, [b"b"]), "another storage"
    assert again.note_start(b"other", b"storage", 1, [b"b"]), "nobody speaks for another"
    assert again.note_start(b"node", b"storage", 4, [b"a", b"b"])
    assert not again.note_start(b"node", b"storage", 3, [b"a"])
    for number in range(1_100):
        again.note_start(b"%d" % number, b"storage", 1, [b"b"])
    assert len(disk.read("raft.seen") or b"") < 100_000


def test_a_copy_of_a_disk_is_seen_through_however_often_it_starts() -> None:
    """It would reach the number of the life that was seen, and pass it, but was never that life."""
    disk, witness = SimDisk(World(1), "d"), EpochFiles(SimDisk(World(1), "w"))
    EpochFiles(disk).count_start(b"first")
    copy = disk.copy()
    start, nonces = EpochFiles(disk).count_start(b"second")
    assert witness.note_start(b"node", b"storage", start, nonces)
    disk.put_back(copy)
    for number in range(300):
        start, nonces = EpochFiles(disk).count_start(b"copy %d" % number)
        if number < 250:
            assert not witness.note_start(b"node", b"storage", start, nonces)
    assert len(nonces) == 256


def test_a_disk_that_started_often_while_nobody_saw_it_is_taken_for_itself() -> None:
    disk, witness = SimDisk(World(1), "d"), EpochFiles(SimDisk(World(1), "w"))
    for seen in (1, 5, 300):
        for _ in range(seen):
            start, nonces = EpochFiles(disk).count_start(b"%d" % seen)
        assert witness.note_start(b"node", b"storage", start, nonces)
