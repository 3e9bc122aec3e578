"""Who should vote."""

from __future__ import annotations

from dataclasses import replace

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
        ("ab1", "ab1", "", 0, "ab", "who may not vote any more has no seat"),
        ("ab1c", "ab1", "", 0, "abc", "and somebody else takes it"),
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
        ("abcdefghi", "abcde", "", 90_000, "abc", "or a day has passed"),
        ("AbcdefghI", "abcde", "", 90_000, "bcd", "then the dead go first"),
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


@pytest.mark.parametrize(
    ("who", "current", "pinned", "dead_s", "expected", "why"),
    [
        ("abCd", "abc", "", 59, "abc", "it may only restart"),
        ("abCd", "abc", "", 60, "abd", "it is replaced"),
        ("abC", "abc", "", 999, "abc", "but never by nobody"),
        ("aBCde", "abc", "", 60, "ade", "both are"),
        ("abCd", "abc", "c", 999, "abc", "who is pinned is waited for"),
        ("abCD", "abc", "", 60, "abc", "a dead spare is none"),
        ("abcd", "abc", "d", 0, "abd", "who is pinned gets a seat"),
        ("aBcd", "abc", "d", 0, "acd", "of a dead one rather than a living"),
        ("abcd", "abc", "abcd", 0, "abc", "but no other pinned one's"),
        ("abcde", "abc", "de", 0, "ade", "two are"),
        ("ab", "a", "b", 0, "b", "also the only seat"),
        ("abCdE", "abc", "e", 60, "abd", "a dead pinned one gets none"),
        ("abcd1", "abc", "1", 0, "abc", "nor one that cannot vote"),
        ("abcdefghij", "abc", "ij", 0, "aij", "without waiting for more seats"),
    ],
)
def test_deaths_and_pins(
    who: str, current: str, pinned: str, dead_s: float, expected: str, why: str
) -> None:
    everybody = [
        replace(c, pinned=c.node_id in ids(pinned), held_s=0.0 if c.alive else dead_s)
        for c in members(who)
    ]
    assert choose_voters(everybody, ids(current), replace_dead_s=60.0) == ids(expected), why


def test_new_seats_go_to_other_hosts_then_to_the_longest_alive() -> None:
    hosts = {"a": "one", "b": "one", "c": "two", "d": "three", "e": "three", "f": ""}
    stable = {"d": 50.0, "e": 100.0, "c": 10.0}

    def chosen(who: str, current: str) -> tuple[NodeId, ...]:
        everybody = [
            Candidate(NodeId(c.encode()), True, host=hosts[c], held_s=stable.get(c, 0.0))
            for c in who
        ]
        return choose_voters(everybody, ids(current))

    assert chosen("abcde", "a") == ids("ace"), "the longest alive of each other host"
    assert chosen("abde", "a") == ids("ade"), "a shared host where there is no other"
    assert chosen("abf", "a") == ids("abf")
    assert chosen("abcde", "abd") == ids("abd"), "nobody is moved for it"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=14),
    st.sets(st.integers(0, 13), min_size=1, max_size=5),
    st.integers(-1, 13),
    st.sampled_from([0.0, 61.0, 90_000.0]),
    st.sets(st.integers(0, 13), max_size=4),
    st.integers(0, 2**28),
)
def test_a_choice_is_always_an_epoch_that_can_begin(
    flags: list[tuple[bool, bool]],
    seated: set[int],
    leaving: int,
    held_s: float,
    pins: set[int],
    bits: int,
) -> None:
    everyone = [NodeId(bytes([i])) for i in range(14)]
    who = [
        Candidate(
            everyone[i],
            alive,
            capable,
            i in pins,
            f"h{bits >> i & 1}",
            100.0 * (bits >> i + 14 & 1),
        )
        for i, (alive, capable) in enumerate(flags)
    ]
    current = tuple(sorted(everyone[i] for i in seated))
    gone = everyone[leaving] if leaving >= 0 else None
    chosen = choose_voters(who, current, leaving=gone, size_held_s=held_s, replace_dead_s=60.0)
    assert list(chosen) == sorted(set(chosen))
    assert chosen == choose_voters(
        list(reversed(who)), current, leaving=gone, size_held_s=held_s, replace_dead_s=60.0
    )
    able = {m.node_id for m in who if m.capable}
    if gone not in current and set(current) <= able and held_s < 86_400:
        assert len(chosen) >= len(current), "never down because of deaths"
    if chosen != current:
        alive = {m.node_id for m in who if m.alive}
        assert gone not in chosen
        assert len(set(chosen) & alive) >= len(chosen) // 2 + 1
        assert all(v in alive for v in chosen if v not in current)


def test_losses() -> None:
    assert losses_tolerated(3, 3) == 1
    assert losses_tolerated(1, 1) == 0
    assert losses_tolerated(3, 1) == -1
