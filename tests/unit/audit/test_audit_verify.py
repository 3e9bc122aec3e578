"""What is found by looking at several copies at once, and at what the store names."""

from __future__ import annotations

from audit_swarm import KEY, PUBLIC, SWARM, judged, notes, writer, written
from small_swarm import KEYS

from swarmd.audit.chain import Place, Sealed, sign_floor
from swarmd.audit.machine import LIVES_MAX, WANTS_MAX, Doubt, Kept, Want, wants
from swarmd.audit.messages import HeldLife
from swarmd.audit.records import ChainId, Floor
from swarmd.audit.verify import Verdict, Verification

ME, OTHER = bytes(KEY.key_id), bytes(KEYS[1].key_id)
FIRST = written([3, 2])
CHAIN = FIRST[0].seal.chain


def after(sealed: Sealed, life: bytes, counts: list[int]) -> list[Sealed]:
    seal = sealed.seal
    return written(counts, writer(life=life, parent=Place(seal.chain.life, seal.last, seal.hash)))


def what(verdicts: list[Verdict]) -> list[str]:
    return [one.what for verdict in verdicts for one in verdict.findings]


def raws(sealed: list[Sealed]) -> list[bytes]:
    return [one.raw for one in sealed]


def test_sound_copies_are_counted() -> None:
    second = after(FIRST[-1], b"m" * 8, [4])
    lives = [raws(FIRST), raws(second)]
    [verdict] = judged(
        {ME: lives, OTHER: lives},
        {0: 5, 1: 9},
        [second[-1].envelope],
        [CHAIN, second[0].seal.chain],
    )
    assert verdict == Verdict(ME, "security", 9, 1, 9, 9, 2)


def test_a_copy_that_is_behind_is_no_finding_but_the_nodes_own_is() -> None:
    anchors = [FIRST[-1].envelope]
    [late] = judged({ME: [raws(FIRST)], OTHER: [raws(FIRST[:1])]}, {}, anchors, [CHAIN])
    assert (late.behind, late.findings) == (1, [])
    [cut] = judged({ME: [raws(FIRST[:1])], OTHER: [raws(FIRST)]}, {}, anchors, [CHAIN])
    assert [(one.holder, one.what) for one in cut.findings] == [(ME, "records 4 to 5 were removed")]


def test_a_tail_that_is_gone_everywhere_is_found() -> None:
    lives = [raws(FIRST[:1])]
    verdicts = judged({ME: lives, OTHER: lives}, {}, [FIRST[-1].envelope], [CHAIN])
    assert what(verdicts) == ["records 4 to 5 were removed, which the store names"]
    assert what(judged({}, {}, [FIRST[-1].envelope])) == [
        "records 1 to 5 were removed, which the store names"
    ]


def test_a_life_that_is_gone_or_cut_is_found_by_the_one_after_it() -> None:
    second = after(FIRST[-1], b"m" * 8, [4])
    chains = [second[0].seal.chain, CHAIN]
    assert what(judged({OTHER: [raws(second)]}, {}, [], chains)) == [
        "all records up to 5 of a life were removed"
    ]
    assert what(judged({OTHER: [raws(second), raws(FIRST[:1])]}, {}, [], chains)) == [
        "records 4 to 5 were removed"
    ]


def test_a_node_that_signs_twice_is_found() -> None:
    who = writer()
    other = [*who.seal(notes(3), 5), *who.seal(notes(2, 50), 5)]
    copies = {ME: [raws(FIRST)], OTHER: [raws(other)]}
    assert what(judged(copies, {}, [], [CHAIN])) == ["two different records 5 are signed"]
    again = {ME: [raws(FIRST)], OTHER: [raws(written([4]))]}
    assert "record 4 was sealed twice" in what(judged(again, {}, [], [CHAIN]))
    anchored = judged({ME: [raws(FIRST)]}, {}, [other[-1].envelope], [CHAIN])
    assert what(anchored) == ["record 5 is not the one that the store names"]


def test_another_life_in_the_place_of_one_is_found() -> None:
    stranger = written([3, 2], writer(life=b"x" * 8))
    assert "inserted" in what(judged({ME: [raws(stranger)]}, {}, [], [CHAIN]))[0]


def test_a_floor_counts_for_its_holder_alone() -> None:
    floor = Floor(OTHER, CHAIN, 3, FIRST[0].seal.hash, 1_000)
    for holder, signer, found in (
        (OTHER, KEYS[1], []),
        (OTHER, KEYS[0], ["records 1 to 3 were removed"]),
        (ME, KEYS[1], ["records 1 to 3 were removed"]),
    ):
        verification = Verification(SWARM, PUBLIC, [])
        verification.add_holder(holder, [sign_floor(floor, SWARM, signer), b"x"], [b"x"])
        copy = verification.add_copy(holder, CHAIN, 5)
        copy.take(FIRST[1].raw)
        copy.finish()
        assert what(verification.judge()) == found


def test_an_anchor_that_nobody_signed_is_counted() -> None:
    verification = Verification(SWARM, PUBLIC, [FIRST[0].envelope, b"x", FIRST[0].envelope[:-1]])
    assert verification.unsigned_anchors == 2


# ---- what is asked for ---------------------------------------------------------------------


def held(node: bytes, life: bytes, last: int, *, begin: int = 1, wall_ms: int = 100) -> HeldLife:
    chain = ChainId(node, "security", life.ljust(8, b"\0"))
    return HeldLife(chain, b"", begin, begin, last, bytes(32), wall_ms)


def test_what_is_missing_is_asked_for_and_the_past_first() -> None:
    old, new, own = held(ME, b"b", 5), held(ME, b"a", 9, begin=6), held(OTHER, b"c", 3)
    asked = wants({}, [], [new, own, old], growing={own.chain}, before_ms=0)
    assert asked == [Want(old.chain, 0, 5), Want(new.chain, 0, 9)]
    some = {old.chain: Kept(5, bytes(32)), new.chain: Kept(7, b"x")}
    assert wants(some, [], [new, old], growing=set(), before_ms=0) == [Want(new.chain, 7, 9)]


def test_another_hash_for_the_same_number_is_a_doubt() -> None:
    one = held(ME, b"a", 5)
    mine = {one.chain: Kept(5, b"other")}
    assert wants(mine, [], [one], growing=set(), before_ms=0) == [Doubt(one.chain, 5)]


def test_what_was_dropped_or_is_too_old_stays_away() -> None:
    floor = Floor(ME, held(ME, b"a", 5).chain, 5, bytes(32), 200)
    lives = [held(ME, b"a", 5, wall_ms=200), held(ME, b"b", 9, wall_ms=150)]
    assert wants({}, [floor], lives, growing=set(), before_ms=0) == []
    newer = held(ME, b"c", 12, wall_ms=300)
    assert wants({}, [floor], [newer], growing=set(), before_ms=0) == [Want(newer.chain, 0, 12)]
    assert wants({}, [], [newer], growing=set(), before_ms=301) == []


def test_lives_are_bounded_and_asked_for_a_few_at_a_time() -> None:
    many = [held(ME, b"%d" % number, 1) for number in range(LIVES_MAX + 10)]
    assert len(wants({}, [], many, growing=set(), before_ms=0)) == WANTS_MAX
    mine = {one.chain: Kept(1, bytes(32)) for one in many[:LIVES_MAX]}
    assert wants(mine, [], many, growing=set(), before_ms=0) == []
