"""What is found by looking at several copies at once, and at what the store names."""

from __future__ import annotations

from audit_swarm import KEY, PUBLIC, SWARM, judged, notes, writer, written
from small_swarm import KEYS

from swarmd.audit.chain import Place, Sealed, sign_floor
from swarmd.audit.machine import FLOORS_MAX, LIVES_MAX, WANTS_MAX, Doubt, Kept, Want, wants
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
    floor = Floor(OTHER, CHAIN, 3, FIRST[0].seal.hash, 1_000, True)
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


# ---- batches that end elsewhere ------------------------------------------------------------


def other_five() -> list[Sealed]:
    """The same life, from its first record on another one, in a single batch."""
    return writer().seal(notes(5, 50), 5)


def test_records_are_held_against_the_store_wherever_their_batches_end() -> None:
    anchors = [FIRST[0].envelope]
    for copies in ({ME: [raws(other_five())]}, {ME: [raws(other_five())], OTHER: [[]]}):
        found = what(judged(copies, {}, anchors, [CHAIN]))
        assert found == ["record 3 is not the one that the store names"]
    same = [raws(writer().seal(notes(5), 5))]
    assert what(judged({ME: same}, {}, anchors, [CHAIN])) == []


def test_copies_are_held_against_each_other_wherever_their_batches_end() -> None:
    found = judged({ME: [raws(FIRST)], OTHER: [raws(other_five())]}, {}, [], [CHAIN])
    assert "two different records 3 are signed" in what(found)


def test_evidence_counts_wherever_its_batch_ends() -> None:
    verification = Verification(SWARM, PUBLIC, [])
    verification.add_holder(OTHER, [], [FIRST[0].raw])
    copy = verification.add_copy(ME, CHAIN, 5)
    copy.take(other_five()[0].raw)
    copy.finish()
    assert what(verification.judge()) == ["two different records up to 3 are signed"]


# ---- what is missing, and what excuses it --------------------------------------------------


def floor_of(number: int, digest: bytes, *, dropped: bool, holder: int = 1) -> bytes:
    floor = Floor(bytes(KEYS[holder].key_id), CHAIN, number, digest, 1_000, dropped)
    return sign_floor(floor, SWARM, KEYS[holder])


def missing(
    floors: dict[bytes, list[bytes]],
    copies: dict[bytes, list[Sealed]],
    anchors: list[bytes] | None = None,
) -> tuple[list[str], int]:
    """What is found of copies and floors, and how many copies are behind."""
    verification = Verification(SWARM, PUBLIC, anchors or [])
    for holder in {**floors, **copies}:
        verification.add_holder(holder, floors.get(holder, []), [])
        if holder in copies:
            copy = verification.add_copy(holder, CHAIN, 5)
            for one in copies[holder]:
                copy.take(one.raw)
            copy.finish()
    verdicts = verification.judge()
    return what(verdicts), sum(one.behind for one in verdicts)


def test_a_floor_excuses_what_its_hash_is_of() -> None:
    tail = {OTHER: FIRST[1:]}
    removed = ["records 1 to 3 were removed"]
    right = FIRST[0].seal.hash
    for number, digest, found in (
        (3, right, []),
        (3, bytes(32), removed),
        (2, right, removed),
        (5, FIRST[1].seal.hash, []),  # It was about to drop all of it.
        (5, bytes(32), removed),
        (10**9, bytes(32), removed),
    ):
        floors = {OTHER: [floor_of(number, digest, dropped=True)]}
        assert missing(floors, tail) == (found, 0), number


def test_what_never_came_is_excused_if_others_have_it_or_dropped_it() -> None:
    right = FIRST[0].seal.hash
    never = {OTHER: [floor_of(3, right, dropped=False)]}
    removed = ["records 1 to 3 were removed"]
    assert missing(never, {OTHER: FIRST[1:]}) == (removed, 0)
    assert missing(never, {OTHER: FIRST[1:], ME: FIRST}) == ([], 1)
    dropped = {ME: [floor_of(3, right, dropped=True, holder=0)]}
    assert missing({**never, **dropped}, {OTHER: FIRST[1:], ME: FIRST[1:]}) == ([], 0)
    # Amid a copy it is the same.
    batches = written([2, 3, 4])
    gap = {OTHER: [floor_of(5, batches[1].seal.hash, dropped=False)]}
    holed = [batches[0], batches[2]]
    assert missing(gap, {OTHER: holed, ME: batches}) == ([], 1)
    assert missing(gap, {OTHER: holed})[0] == ["records 3 to 5 were removed"]
    assert missing({}, {OTHER: holed, ME: batches})[0] == ["records 3 to 5 were removed"]


def test_what_the_store_names_is_excused_if_all_who_had_it_dropped_it() -> None:
    anchors, right = [FIRST[1].envelope], FIRST[1].seal.hash
    gone = ["records 1 to 5 were removed, which the store names"]
    mine, others = (floor_of(5, right, dropped=True, holder=one) for one in (0, 1))
    assert missing({ME: [mine], OTHER: [others]}, {}, anchors)[0] == []
    # Its own node says nothing of having dropped it.
    assert missing({ME: [], OTHER: [others]}, {}, anchors)[0] == gone
    forged = floor_of(5, bytes(32), dropped=True, holder=0)
    assert missing({ME: [forged], OTHER: [others]}, {}, anchors)[0] == gone
    never = floor_of(5, right, dropped=False, holder=0)
    assert missing({ME: [never], OTHER: [never]}, {}, anchors)[0] == gone
    # One had it, and its copy was cut.
    cut = missing({ME: [mine]}, {OTHER: FIRST[:1]}, anchors)[0]
    assert "records 4 to 5 were removed, which the store names" in cut


def test_a_stream_that_the_store_should_name_is_missed_there() -> None:
    minute = 60_000
    for now_ms, holder, anchors, found in (
        (30 * minute, ME, [], ["the strong store names nothing of it"]),
        (30 * minute, ME, [FIRST[0].envelope], []),
        (5 * minute, ME, [], []),
        # Its node is gone, and may not have had the time.
        (30 * minute, OTHER, [], []),
    ):
        verification = Verification(SWARM, PUBLIC, anchors, now_ms)
        verification.add_holder(holder, [], [])
        copy = verification.add_copy(holder, CHAIN, 5)
        for one in FIRST:
            copy.take(one.raw)
        copy.finish()
        assert [one.partition(":")[0] for one in what(verification.judge())] == found


def test_a_life_that_its_node_alone_keeps_is_told() -> None:
    other = written([2], writer(key=KEYS[1]))
    for holders, alone in (((ME,), 1), ((ME, OTHER), 0)):
        verification = Verification(SWARM, PUBLIC, [], 60 * 60_000)
        for holder, sealed in [(one, FIRST) for one in holders] + [(bytes(KEYS[2].key_id), other)]:
            verification.add_holder(holder, [], [])
            copy = verification.add_copy(holder, sealed[0].seal.chain, 2)
            for one in sealed:
                copy.take(one.raw)
            copy.finish()
        [mine] = [one for one in verification.judge() if one.node == ME]
        assert mine.alone == alone


# ---- what is asked for ---------------------------------------------------------------------


def held(node: bytes, life: bytes, last: int, *, begin: int = 1, written_ms: int = 100) -> HeldLife:
    chain = ChainId(node, "security", life.ljust(8, b"\0"))
    return HeldLife(chain, b"", begin, begin, last, bytes(32), written_ms)


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
    floor = Floor(ME, held(ME, b"a", 5).chain, 5, bytes(32), 200, True)
    dropped = held(ME, b"a", 5, written_ms=200)
    assert wants({}, [floor], [dropped], growing=set(), before_ms=0) == []
    newer = held(ME, b"c", 12, written_ms=300)
    assert wants({}, [floor], [newer], growing=set(), before_ms=0) == [Want(newer.chain, 0, 12)]
    assert wants({}, [], [newer], growing=set(), before_ms=301) == []


def test_lives_are_bounded_and_asked_for_a_few_at_a_time() -> None:
    many = [held(ME, b"%d" % number, 1) for number in range(LIVES_MAX + 10)]
    assert len(wants({}, [], many, growing=set(), before_ms=0)) == WANTS_MAX
    mine = {one.chain: Kept(1, bytes(32)) for one in many[:LIVES_MAX]}
    assert wants(mine, [], many, growing=set(), before_ms=0) == []


def test_lives_are_asked_for_by_their_holders_clock() -> None:
    """Whose clock was wrong when it wrote is copied like anybody."""
    one = held(ME, b"a", 5, written_ms=300)
    assert wants({}, [], [one], growing=set(), before_ms=300) == [Want(one.chain, 0, 5)]
    # Of more lives than floors are remembered of, those before the oldest floor stay away.
    floors = [
        Floor(ME, held(ME, b"%d" % number, 1).chain, 1, bytes(32), 400 + number, True)
        for number in range(FLOORS_MAX)
    ]
    assert wants({}, floors, [one], growing=set(), before_ms=0) == []
    assert wants({}, floors[1:], [one], growing=set(), before_ms=0) == [Want(one.chain, 0, 5)]


def test_what_a_peer_lacks_too_is_told_apart() -> None:
    chain = held(ME, b"a", 1).chain
    late = HeldLife(chain, b"", 1, 8, 9, bytes(32), 100)
    assert wants({}, [], [late], growing=set(), before_ms=0) == [Want(chain, 0, 9, skips=True)]
    mine = {chain: Kept(5, bytes(32))}
    assert wants(mine, [], [late], growing=set(), before_ms=0) == [Want(chain, 5, 9, skips=True)]
    dropped = Floor(ME, chain, 7, bytes(32), 50, True)
    assert wants({}, [dropped], [late], growing=set(), before_ms=0) == [Want(chain, 7, 9)]
