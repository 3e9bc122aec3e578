"""The machine of seats: whom it asks, what it proposes, and when it lets be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from test_store_epoch import VOTERS

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect
from swarmd.identity.voter import Voter
from swarmd.state.raft import seat_machine as sm
from swarmd.state.raft.voters import Candidate

# By node id, so that positions mean what `choose_voters` prefers.
SEATS = sorted(VOTERS, key=lambda v: v.node_id)
IDS = [v.node_id for v in SEATS]


def epoch(
    *seats: int, number: int = 2, silent: Sequence[int] = (), copies: Sequence[int] = (1, 2, 3)
) -> sm.Coordinated:
    """An epoch whose first seat coordinates; members in `copies` hold the log."""
    told = {**dict.fromkeys(copies, 0.0), **dict.fromkeys(seats, 0.0), **dict.fromkeys(silent, 9.0)}
    progress = tuple(sm.Progress(IDS[i], silence_s, 0) for i, silence_s in told.items())
    return sm.Coordinated(number, tuple(SEATS[i] for i in seats), progress, 7)


def members(count: int, dead: Sequence[int] = ()) -> tuple[Candidate, ...]:
    return tuple(Candidate(IDS[i], i not in dead) for i in range(count))


class Driven:
    """A machine whose questions are answered by those who are there."""

    def __init__(self, silent: Sequence[int] = ()) -> None:
        self.machine = sm.SeatMachine(60.0)
        self.silent = [IDS[i] for i in silent]
        self.storages: dict[NodeId, Voter] = dict(zip(IDS, SEATS, strict=True))
        self.now = 0.0
        self.number = 2

    def feed(self, event: object) -> list[Effect]:
        """What comes out in the end; questions are answered on the way."""
        out: list[Effect] = []
        waiting = list(self.machine.handle(event, self.now))  # type: ignore[arg-type]
        while waiting:
            effect = waiting.pop(0)
            if isinstance(effect, sm.AskSeat):
                voter = None if effect.peer in self.silent else self.storages[effect.peer]
                waiting += self.machine.handle(sm.SeatAnswered(effect.tag, voter), self.now)
            else:
                out.append(effect)
        return out

    def changes(self, event: object) -> list[Effect]:
        return [e for e in self.feed(event) if not isinstance(e, sm.Follow)]

    def look(
        self, who: tuple[Candidate, ...], of: sm.Coordinated | None, after_s: float = 0.5
    ) -> list[Effect]:
        self.now += after_s
        return self.changes(sm.Looked(who, of, self.number))


def proposed(effects: Sequence[Effect]) -> list[tuple[int, tuple[Voter, ...]]]:
    return [(e.number, e.voters) for e in effects if isinstance(e, sm.ProposeSeal)]


def test_one_becomes_three_at_once() -> None:
    driven = Driven()
    assert driven.look(members(2), epoch(0)) == []
    assert proposed(driven.look(members(3), epoch(0))) == [(3, tuple(SEATS[:3]))]


def test_nothing_is_proposed_where_nothing_is_coordinated() -> None:
    driven = Driven()
    assert driven.look(members(3), None) == []


def test_one_change_at_a_time_and_a_pause_after_each() -> None:
    driven = Driven()
    (seal,) = driven.look(members(3), epoch(0))
    assert isinstance(seal, sm.ProposeSeal)
    assert driven.look(members(3), epoch(0)) == [], "it is under way"
    (stays,) = driven.feed(sm.SealEnded(seal.tag, "timed_out", "no answer"))
    assert stays == sm.Stays("no answer")
    assert driven.look(members(3), epoch(0)) == [], "a pause"
    assert proposed(driven.look(members(3), epoch(0), after_s=sm.PAUSE_S))


def test_a_stale_end_of_a_seal_is_ignored() -> None:
    driven = Driven()
    (seal,) = driven.look(members(3), epoch(0))
    assert isinstance(seal, sm.ProposeSeal)
    driven.look(members(3), None)
    assert driven.feed(sm.SealEnded(seal.tag, None)) == []


def test_who_is_gone_or_may_not_vote_any_more_is_replaced_at_once() -> None:
    fourth = (SEATS[0], SEATS[1], SEATS[3])
    for third in ((), (Candidate(IDS[2], alive=True, capable=False),)):
        driven = Driven()
        all_four = members(4)
        assert driven.look(all_four, epoch(0, 1, 2)) == []
        now = (*all_four[:2], *third, all_four[3])
        assert proposed(driven.look(now, epoch(0, 1, 2))) == [(3, fourth)]


def test_who_does_not_answer_is_passed_over() -> None:
    driven = Driven(silent=[1])
    assert proposed(driven.look(members(4), epoch(0))) == [(3, (SEATS[0], SEATS[2], SEATS[3]))]


def test_nobody_new_answers_and_all_stays() -> None:
    driven = Driven(silent=[1, 2])
    assert driven.look(members(3), epoch(0)) == []
    assert driven.look(members(3), epoch(0)) == []


def test_a_voter_with_another_storage_is_seated_anew() -> None:
    driven = Driven()
    driven.storages[IDS[2]] = other = Voter(SEATS[2].public, b"another storage!")
    assert driven.look(members(3), epoch(0, 1, 2)) == [], "nobody is asked without a cause"
    effects = driven.look(members(3), epoch(0, 1, 2, silent=[2]))
    assert proposed(effects) == [(3, (SEATS[0], SEATS[1], other))]


def test_a_mute_voter_with_its_storage_stays() -> None:
    driven = Driven()
    assert driven.look(members(3), epoch(0, 1, 2, silent=[2])) == []


def test_a_leaver_is_replaced_and_told() -> None:
    driven = Driven()
    driven.look(members(4), epoch(0, 1, 2))
    (seal,) = driven.changes(sm.Leaves(1, IDS[1]))
    assert proposed([seal]) == [(3, (SEATS[0], SEATS[2], SEATS[3]))]
    assert isinstance(seal, sm.ProposeSeal)
    assert driven.changes(sm.Leaves(2, IDS[1])) == [], "it asks again while that is under way"
    ended = driven.feed(sm.SealEnded(seal.tag, None))
    assert ended == [sm.LeaveEnded(1, None, ""), sm.LeaveEnded(2, None, "")]


def test_the_last_one_may_not_leave() -> None:
    driven = Driven()
    driven.look(members(2, dead=[1]), epoch(0))
    ended, stays = driven.changes(sm.Leaves(1, IDS[0]))
    assert isinstance(ended, sm.LeaveEnded)
    assert ended.code == "would_lose_data"
    assert "7 keys" in ended.message
    assert stays == sm.Stays(ended.message)


def test_who_has_no_seat_leaves_at_once() -> None:
    driven = Driven()
    driven.look(members(4), epoch(0, 1, 2))
    assert driven.changes(sm.Leaves(1, IDS[3])) == [sm.LeaveEnded(1, None, "")]


def test_leavers_are_told_when_another_leads() -> None:
    driven = Driven()
    driven.look(members(4), epoch(0, 1, 2))
    driven.changes(sm.Leaves(1, IDS[1]))
    driven.changes(sm.Leaves(2, IDS[2]))
    ended = [e for e in driven.look(members(4), None) if isinstance(e, sm.LeaveEnded)]
    assert [(e.tag, e.code) for e in ended] == [(1, "not_coordinator"), (2, "not_coordinator")]


def test_leavers_are_bounded() -> None:
    machine = sm.SeatMachine(60.0)
    for tag in range(1, sm.LEAVERS_MAX + 1):
        machine.handle(sm.Leaves(tag, NodeId(tag.to_bytes(32, "big"))), 0.0)
    (refused,) = machine.handle(sm.Leaves(999, NodeId(b"x" * 32)), 0.0)
    assert isinstance(refused, sm.LeaveEnded)
    assert refused.code == "unavailable"


def test_a_dead_voter_is_replaced_after_the_grace_time_and_a_restart_moves_nobody() -> None:
    driven = Driven()
    for _ in range(3):
        assert driven.look(members(4, dead=[2]), epoch(0, 1, 2), after_s=29.0) == []
        assert driven.look(members(4), epoch(0, 1, 2)) == []
    assert driven.look(members(4, dead=[2]), epoch(0, 1, 2)) == []
    assert driven.look(members(4, dead=[2]), epoch(0, 1, 2), after_s=59.0) == []
    effects = driven.look(members(4, dead=[2]), epoch(0, 1, 2), after_s=1.0)
    assert proposed(effects) == [(3, (SEATS[0], SEATS[1], SEATS[3]))]


def test_what_can_wait_is_sealed_once_a_minute() -> None:
    driven = Driven()
    pins = (*members(3), Candidate(IDS[3], True, pinned=True))
    assert driven.look(pins, epoch(0, 1, 2)) == []
    assert driven.look(pins, epoch(0, 1, 2), after_s=30.0) == []
    driven.number = 3
    assert driven.look(pins, epoch(0, 1, 2, number=3), after_s=29.0) == [], "a new epoch"
    assert driven.look(pins, epoch(0, 1, 2, number=3), after_s=59.0) == []
    assert proposed(driven.look(pins, epoch(0, 1, 2, number=3), after_s=1.0))


def test_the_dead_do_not_wait_for_the_minute() -> None:
    driven = Driven()
    driven.look(members(4, dead=[2]), epoch(0, 1, 2))
    driven.look(members(4, dead=[2]), epoch(0, 1, 2), after_s=59.0)
    driven.number = 3
    assert proposed(driven.look(members(4, dead=[2]), epoch(0, 1, 2, number=3), after_s=2.0))


# ---- copies before the seal --------------------------------------------------------------


def followers(effects: Sequence[Effect]) -> list[NodeId]:
    return [e.peer for e in effects if isinstance(e, sm.Follow)]


def test_new_voters_copy_first_and_a_majority_of_the_new_set_must_have() -> None:
    driven = Driven()

    def look(copies: Sequence[int], *, behind: int = 0, silence_s: float = 0.0) -> list[Effect]:
        driven.now += 0.5
        mine = sm.Progress(IDS[0], 0.0, 0)
        others = (sm.Progress(IDS[i], silence_s, behind) for i in copies)
        of = sm.Coordinated(2, (SEATS[0],), (mine, *others))
        return driven.feed(sm.Looked(members(3), of, 2))

    effects = look([])
    assert set(followers(effects)) == set(IDS[1:3])
    assert not proposed(effects)
    assert not proposed(look([1], behind=sm.FRESH_ENTRIES + 1)), "too far behind"
    assert not proposed(look([1], silence_s=sm.FRESH_S + 0.1)), "not heard from"
    assert proposed(look([1], behind=sm.FRESH_ENTRIES)) == [(3, tuple(SEATS[:3]))]


def test_where_old_voters_are_a_majority_of_the_new_none_needs_wait() -> None:
    driven = Driven()
    driven.look(members(4, dead=[2]), epoch(0, 1, 2, copies=[]))
    effects = driven.look(members(4, dead=[2]), epoch(0, 1, 2, copies=[]), after_s=60.0)
    assert proposed(effects)


def test_a_silent_old_voter_and_a_copy_that_lags_hold_the_seal_back() -> None:
    driven = Driven()
    dead = members(4, dead=[2])
    driven.look(dead, epoch(0, 1, 2, copies=[]))
    assert not proposed(driven.look(dead, epoch(0, 1, 2, silent=[1], copies=[]), after_s=60.0))
    assert proposed(driven.look(dead, epoch(0, 1, 2, silent=[1], copies=[3])))


def test_a_seal_waits_until_the_old_voters_that_keep_up_agree_on_the_state() -> None:
    def is_sealed(*others: sm.Progress) -> bool:
        driven = Driven()
        of = sm.Coordinated(2, tuple(SEATS[:3]), (sm.Progress(IDS[0], 0.0, 0), *others))
        driven.look(members(4), of)
        return bool(proposed(driven.changes(sm.Leaves(1, IDS[0]))))

    copy = sm.Progress(IDS[3], 0.0, 0)
    first, second = sm.Progress(IDS[1], 0.0, 0), sm.Progress(IDS[2], 0.0, 0)
    assert is_sealed(first, second, copy)
    assert not is_sealed(first, replace(second, agrees=False), copy)
    silent = replace(second, agrees=False, silence_s=sm.FRESH_S + 0.1)
    lagging = replace(second, agrees=False, behind=sm.FRESH_ENTRIES + 1)
    for away in (silent, lagging):
        assert is_sealed(first, away, copy), "it is not waited for"
        nobody = replace(first, agrees=False, silence_s=away.silence_s, behind=away.behind)
        assert not is_sealed(nobody, away, copy), "but a majority is"


def test_who_leaves_is_told_to_ask_again_while_the_state_is_copied() -> None:
    driven = Driven()
    alone = epoch(0, copies=[])
    driven.look(members(2), alone)
    effects = driven.feed(sm.Leaves(1, IDS[0]))
    assert followers(effects) == [IDS[1]]
    assert driven.look(members(2), alone) == []
    assert driven.look(members(2), alone) == []
    (told,) = driven.look(members(2), alone, after_s=sm.LEAVE_PATIENCE_S)
    assert isinstance(told, sm.LeaveEnded)
    assert told.code == "unavailable"
    (seal,) = [driven.look(members(2), epoch(0)), driven.changes(sm.Leaves(2, IDS[0]))][1]
    assert proposed([seal]) == [(3, (SEATS[1],))]


def test_beside_a_lone_voter_somebody_keeps_a_copy() -> None:
    driven = Driven()
    driven.now += 0.5
    assert followers(driven.feed(sm.Looked(members(2), epoch(0), 2))) == [IDS[1]]
    assert followers(driven.feed(sm.Looked(members(2, dead=[1]), epoch(0), 2))) == []
    assert followers(driven.feed(sm.Looked(members(3), epoch(0, 1, 2), 2))) == []
    assert followers(driven.feed(sm.Looked(members(2), None, 2))) == []
