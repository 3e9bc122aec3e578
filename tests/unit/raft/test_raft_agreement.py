"""Who agrees with the leader on the state: what is answered, and what the leader knows by it."""

from __future__ import annotations

import pytest
from raft_hands import Hands, ListState, sent

from swarmd.base.errors import Diverged
from swarmd.state.raft import agreement
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.wire import Append, AppendReply, DigestPassed, StateDigest

EVERY = RaftConfig(digest_entries=4, rounds_max=100)


def digest(*commands: bytes) -> bytes:
    state = ListState()
    state.commands = list(commands)
    return state.digest()


def follower(commit: int) -> Hands:
    """Holds the entries 2, 3 and 4, and has applied those up to `commit`."""
    hands = Hands(config=EVERY)
    hands.follow([b"2", b"3", b"4"], commit=commit)
    hands.go_on()
    return hands


TOLD = StateDigest(1, 4, digest(b"2", b"3", b"4"))


def test_who_holds_the_same_state_answers() -> None:
    assert sent(follower(4).say("b", TOLD), DigestPassed) == [DigestPassed(1, 4)]


def test_who_lags_answers_once_it_is_there() -> None:
    hands = follower(3)
    assert not sent(hands.say("b", TOLD), DigestPassed)
    effects = hands.say("b", Append(1, 1, 4, 4, 1, ()))
    assert sent(effects + hands.go_on(), DigestPassed) == [DigestPassed(1, 4)]


def test_who_is_told_again_answers_again() -> None:
    hands = follower(4)
    hands.say("b", TOLD)
    assert sent(hands.say("b", TOLD), DigestPassed) == [DigestPassed(1, 4)]


def test_who_was_started_since_answers_too() -> None:
    """It began with a snapshot: it knows no digest of its own there, and never will."""
    hands = follower(4)
    hands.machine._core.agreement._own.clear()
    assert sent(hands.say("b", TOLD), DigestPassed) == [DigestPassed(1, 4)]


def test_who_differs_stops_and_does_not_answer() -> None:
    hands = follower(4)
    with pytest.raises(Diverged):
        hands.say("b", StateDigest(1, 4, digest(b"2", b"x", b"4")))


# ---- what the leader knows ---------------------------------------------------------------


def acknowledge(hands: Hands, *peers: str) -> list[StateDigest]:
    """Let `peers` hold the whole log; what is told to them of the state."""
    effects = []
    for peer in peers:
        effects += hands.say(peer, AppendReply(hands.term, 0, True, 1, hands.last + 1))
    return sent(effects + hands.go_on(), StateDigest)


def leader(entries: int) -> Hands:
    """Leads with `entries` more applied than its first, which is entry 2."""
    hands = Hands(config=EVERY)
    hands.lead()
    for number in range(entries):
        hands.propose(b"%d" % number)
    acknowledge(hands, "b")
    return hands


def agreeing(hands: Hands) -> tuple[str, ...]:
    return hands.machine.status(hands.now).agreeing


def passes(hands: Hands, peer: str, index: int, term: int | None = None) -> None:
    hands.say(peer, DigestPassed(hands.term if term is None else term, index))


def test_in_a_log_shorter_than_a_digest_all_agree() -> None:
    assert agreeing(leader(1)) == ("b", "c")
    assert agreeing(leader(2)) == ()


def test_who_has_passed_agrees() -> None:
    hands = leader(2)
    passes(hands, "c", 4)
    assert agreeing(hands) == ("c",)
    passes(hands, "b", 4)
    assert agreeing(hands) == ("b", "c")


def test_a_stale_or_impossible_answer_counts_for_nothing() -> None:
    hands = leader(2)
    passes(hands, "b", 4, term=hands.term - 1)
    passes(hands, "b", 8)
    assert agreeing(hands) == ()


def test_what_was_lost_is_told_again_with_the_heartbeats_until_it_is_answered() -> None:
    hands = leader(2)
    assert acknowledge(hands, "b") == [], "just told"
    hands.now += EVERY.heartbeat_s
    [told] = acknowledge(hands, "b")
    assert (told.term, told.index) == (hands.term, 4)
    assert acknowledge(hands, "b") == []
    passes(hands, "b", 4)
    hands.now += EVERY.heartbeat_s
    assert acknowledge(hands, "b") == []


def test_who_has_not_got_there_is_not_told_again() -> None:
    hands = leader(2)
    hands.now += EVERY.heartbeat_s
    effects = hands.say("c", AppendReply(hands.term, 0, True, 1, 3))
    assert sent(effects, StateDigest) == []


def test_who_passed_lately_agrees_however_much_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "_LATELY_ENTRIES", 8)
    hands = leader(2)
    passes(hands, "b", 4)
    for count, agree in ((12, ("b",)), (4, ())):
        for number in range(count):
            hands.propose(b"%d" % number)
            acknowledge(hands, "b")
        assert agreeing(hands) == agree
    passes(hands, "b", 20)
    assert agreeing(hands) == ("b",)


def test_a_new_leader_tells_what_it_knew_as_a_follower() -> None:
    """Nobody need write anything for the voters to be compared."""
    hands = follower(4)
    hands.lead()
    assert hands.term == 2
    [told] = acknowledge(hands, "b")
    assert told == StateDigest(2, 4, TOLD.digest)
    passes(hands, "b", 4)
    assert agreeing(hands) == ("b",)


def test_what_was_passed_stays_so_in_a_later_term() -> None:
    hands = leader(2)
    passes(hands, "b", 4)
    hands.say("c", Append(hands.term + 1, 1, 4, 4, hands.term, ()))
    assert agreeing(hands) == (), "it leads no more"
    hands.lead()
    assert agreeing(hands) == ("b",)
