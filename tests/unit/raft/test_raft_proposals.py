"""Rounds: what goes together, and who waits for whom."""

from __future__ import annotations

from raft_hands import Hands, of, sent

from swarmd.base.machine import Effect
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.machine import START, Proposed, Transfer, Wake
from swarmd.state.raft.proposals import LITTLE_SHARE, WAIT_SHARE
from swarmd.state.raft.wire import Append, AppendReply, StaleTerm


def test_what_is_proposed_during_two_rounds_goes_together() -> None:
    """Two rounds of appends are under way at most; the third carries all that waited."""
    hands = Hands(config=RaftConfig(rounds_max=2))
    hands.lead()
    hands.say("b", AppendReply(1, 0, True, 1, 3))
    first = hands.last
    for tag in range(6):
        hands.propose(b"%d" % tag, tag)
    assert hands.last == first + 2
    effects = hands.say("b", AppendReply(1, 0, True, first, first + 2))
    appends = [a for a in sent(effects, Append) if a.entries]
    assert [len(a.entries) for a in appends] == [4, 4], "one message to each follower"
    hands.say("b", AppendReply(1, 0, True, first, hands.last + 1))
    assert hands.commit == hands.last == first + 6


def leading() -> tuple[Hands, int]:
    """A leader of whose log all is committed, and its last index."""
    hands = Hands()
    hands.lead()
    hands.say("b", AppendReply(1, 0, True, 1, 3))
    return hands, hands.last


def commit_all(hands: Hands) -> list[Effect]:
    return hands.say("b", AppendReply(1, 0, True, hands.commit, hands.last + 1))


def one_of_two_answered(took_s: float) -> tuple[Hands, int, list[Effect]]:
    """Two callers: the round of the first took so long, the second waited meanwhile.

    The index of the first one's entry, and the effects of its end.
    """
    hands, first = leading()
    for tag in range(2):
        hands.propose(b"x", tag)
    hands.now += took_s
    return hands, first + 1, commit_all(hands)


def test_a_round_waits_for_those_who_were_just_answered() -> None:
    """Three callers at a time: the two that the first round left behind wait for its one."""
    hands, first = leading()
    for tag in range(3):
        hands.propose(b"x", tag)
    assert hands.last == first + 1, "one goes at once, the others during its round"
    hands.now += 0.004
    commit_all(hands)
    assert hands.last == first + 1, "the one that was answered is soon back"
    effects = hands.propose(b"x", 3)
    appends = [a for a in sent(effects, Append) if a.entries]
    assert [len(a.entries) for a in appends] == [3, 3]


def wait_in_vain(hands: Hands, share: float) -> None:
    """A round of 2 ms ends with somebody waiting, who goes alone after so much of that time."""
    held_since = hands.last
    hands.step(Wake(START), after_s=0.002 * share - 0.0001)
    assert hands.last == held_since
    hands.step(Wake(START), after_s=0.0002)
    assert hands.last == held_since + 1


def one_more(hands: Hands) -> None:
    """Another one comes during the round under way, which takes 2 ms."""
    hands.propose(b"x", 7)
    hands.now += 0.002
    commit_all(hands)


def test_a_round_waits_some_times_as_long_as_the_last_one_took() -> None:
    hands, answered, _ = one_of_two_answered(took_s=0.002)
    assert hands.last == answered
    wait_in_vain(hands, WAIT_SHARE)


def test_who_waits_in_vain_is_spared_it_for_a_while() -> None:
    """Callers who pause between their writes: after each wait in vain twice as many short ones."""
    hands, _, _ = one_of_two_answered(took_s=0.002)
    for spared in (2, 4, 8):
        wait_in_vain(hands, WAIT_SHARE)
        for _ in range(spared):
            one_more(hands)
            wait_in_vain(hands, LITTLE_SHARE)
        one_more(hands)


def test_a_wait_that_was_worth_it_makes_up_for_those_in_vain() -> None:
    hands, _, _ = one_of_two_answered(took_s=0.002)
    wait_in_vain(hands, WAIT_SHARE)
    for _ in range(2):
        one_more(hands)
        wait_in_vain(hands, LITTLE_SHARE)
    one_more(hands)
    hands.propose(b"x", 8)  # It comes back.
    hands.propose(b"x", 9)
    hands.now += 0.002
    commit_all(hands)
    for share in (WAIT_SHARE, LITTLE_SHARE, LITTLE_SHARE, WAIT_SHARE):
        wait_in_vain(hands, share)
        one_more(hands)


def test_a_slow_disk_makes_nobody_wait_longer_than_gather_s() -> None:
    hands, answered, _ = one_of_two_answered(took_s=0.05)
    assert hands.last == answered
    hands.step(Wake(START), after_s=RaftConfig().gather_s)
    assert hands.last == answered + 1


def test_a_lone_caller_never_waits() -> None:
    hands, first = leading()
    for tag in range(5):
        hands.propose(b"x" * (100 - tag), tag)
        assert hands.last == first + 1 + tag
        hands.now += 0.004
        commit_all(hands)


def test_who_comes_late_does_not_wait() -> None:
    hands, answered, _ = one_of_two_answered(took_s=0.004)
    hands.step(Wake(START), after_s=0.002)
    hands.now += 0.004
    commit_all(hands)
    hands.now += 0.05
    hands.propose(b"x", 2)
    assert hands.last == answered + 2


def test_before_a_transfer_nothing_waits() -> None:
    hands, first = leading()
    for tag in range(2):
        hands.propose(b"x", tag)
    assert hands.last == first + 1
    hands.step(Transfer("b", 9))
    assert hands.last == first + 2


def test_what_waits_for_a_round_was_never_appended_when_office_is_lost() -> None:
    hands = Hands(config=RaftConfig(rounds_max=2))
    hands.lead()
    hands.say("b", AppendReply(1, 0, True, 1, 3))
    for tag in range(4):
        hands.propose(b"x", tag)
    ended = of(hands.say("b", StaleTerm(5)), Proposed)
    assert {(e.tag, e.code) for e in ended} == {
        (0, "leader_changed"),
        (1, "leader_changed"),
        (2, "not_leader"),
        (3, "not_leader"),
    }
    assert hands.last == 4
