"""Who should vote."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from swarmd.base.ids import NodeId
from swarmd.state.raft.voters import Candidate, choose_voters, losses_tolerated, seats_for


def ids(text: str) -> tuple[NodeId, ...]:
    return tuple(NodeId(c.encode()) for c in text)


def members(text: str) -> list[Candidate]:
    """Upper case is dead, a digit cannot vote."""
    return [
        Candidate(NodeId(c.lower().encode()), alive=not c.isupper(), capable=not c.isdigit())
        for c in text
    ]


@pytest.mark.parametrize(
    ("count", "seats"), [(1, 1), (2, 1), (3, 3), (9, 3), (10, 5), (49, 5), (50, 7), (500, 7)]
)
def test_seats(count: int, seats: int) -> None:
    assert seats_for(count) == seats


@pytest.mark.parametrize(
    ("who", "current", "leaving", "held_s", "expected", "why"),
    [
        ("a", "a", "", 0, "a", "alone"),
        ("ab", "a", "", 0, "a", "two members: one seat"),
        ("abc", "a", "", 0, "abc", "three at once"),
        ("abcd", "b", "", 0, "abc", "the seat kept, the lowest ids added"),
        ("aBC", "a", "", 0, "a", "no epoch with a dead majority"),
        ("abC", "a", "", 0, "a", "two seats are worse than one"),
        ("ab1", "a", "", 0, "a", "who cannot vote gets no seat"),
        ("ab12c", "a", "", 0, "abc", "roles decide"),
        ("abC", "abc", "", 0, "abc", "a death takes no seat"),
        ("aBC", "abc", "", 0, "abc", "nor do two"),
        ("abCd", "abc", "", 0, "abc", "a dead voter is not replaced here"),
        ("ab", "abc", "", 0, "a", "one has left, two members"),
        ("abd", "abc", "", 0, "abd", "one has left and is replaced"),
        ("abcd", "abc", "c", 0, "abd", "one leaves and is replaced"),
        ("abc", "abc", "a", 0, "b", "one leaves, two members stay"),
        ("aBc", "abc", "a", 0, "c", "the living stays"),
        ("ab", "a", "a", 0, "b", "the only voter hands over"),
        ("a", "a", "a", 0, "a", "nobody to hand over to"),
        ("aB", "a", "a", 0, "a", "nobody alive to hand over to"),
        ("abCd", "abd", "d", 0, "ab", "one leaves and nobody alive can take the seat"),
        ("abc", "ab", "", 0, "abc", "it is taken once somebody can"),
        ("abcdefghij", "abcd", "", 0, "abcde", "an even number is made odd at once"),
        ("abcdefghij", "ab", "", 0, "abc", "three at once, five later"),
        ("abcdefghij", "abc", "", 0, "abc", "ten, but not for long"),
        ("abcdefghij", "abc", "", 61, "abcde", "ten for a minute"),
        ("abcdefghi", "abcde", "", 99, "abcde", "nine: no seat is taken away"),
        ("abcdefghi", "abcde", "e", 99, "abc", "until somebody leaves"),
    ],
)
def test_choices(
    who: str, current: str, leaving: str, held_s: float, expected: str, why: str
) -> None:
    chosen = choose_voters(
        members(who),
        ids(current),
        leaving=ids(leaving)[0] if leaving else None,
        size_held_s=held_s,
    )
    assert chosen == ids(expected), why


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=14),
    st.sets(st.integers(0, 13), min_size=1, max_size=5),
    st.integers(-1, 13),
    st.sampled_from([0.0, 61.0]),
)
def test_a_choice_is_always_an_epoch_that_can_begin(
    flags: list[tuple[bool, bool]], seated: set[int], leaving: int, held_s: float
) -> None:
    everyone = [NodeId(bytes([i])) for i in range(14)]
    who = [Candidate(everyone[i], alive, capable) for i, (alive, capable) in enumerate(flags)]
    current = tuple(sorted(everyone[i] for i in seated))
    gone = everyone[leaving] if leaving >= 0 else None
    chosen = choose_voters(who, current, leaving=gone, size_held_s=held_s)
    assert list(chosen) == sorted(set(chosen))
    if chosen != current:
        alive = {m.node_id for m in who if m.alive}
        assert gone not in chosen
        assert len(set(chosen) & alive) >= len(chosen) // 2 + 1
        assert all(v in alive for v in chosen if v not in current)


def test_losses() -> None:
    assert losses_tolerated(3, 3) == 1
    assert losses_tolerated(1, 1) == 0
    assert losses_tolerated(3, 1) == -1
