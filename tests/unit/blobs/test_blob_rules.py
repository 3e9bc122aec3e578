"""What is decided about users' blobs: whom to ask, who holds, repairs, pins, evicts. No I/O."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from functools import partial

import pytest

from swarmd.base.errors import CorruptFile, InsufficientCopies, TooLarge
from swarmd.base.ids import NodeId, node_id_of
from swarmd.state.blobs.machine import RUN_CHUNKS, STRIKES, Fetching, Run
from swarmd.state.blobs.manifest import Manifest, decode_manifest, encode_manifest
from swarmd.state.blobs.messages import PINS_MAX, Pin, PinnedBlob
from swarmd.state.blobs.naming import hash_of, name_of
from swarmd.state.blobs.pins import copies_of, decode_pins, encode_pins, joined, pinned, unpinned
from swarmd.state.blobs.placing import (
    Kept,
    Repair,
    copies_wanted,
    due_for_scrub,
    handover_of,
    ranked,
    repair_of,
    to_evict,
)

A, B, C, D, E = (node_id_of(bytes([number])) for number in range(5))
NAME = hash_of(b"a blob")
NODES: list[NodeId] = ranked(NAME, [A, B, C, D, E])


# ---- transfers ------------------------------------------------------------------------


def carry(fetching: Fetching, holder: NodeId, count: int) -> list[int]:
    """Have a holder send `count` chunks: which."""
    done: list[int] = []
    while len(done) < count and (run := fetching.take(holder)) is not None:
        goes_on = True
        while goes_on and len(done) < count:
            done.append(run.index)
            goes_on = fetching.got(holder)
    return done


def test_a_holder_sends_a_run_and_another_one_the_next() -> None:
    fetching = Fetching(3 * RUN_CHUNKS)
    assert fetching.offer(A)
    assert not fetching.offer(A)
    fetching.offer(B)
    assert fetching.take(A) == Run(0, RUN_CHUNKS)
    assert fetching.take(B) == Run(RUN_CHUNKS, 2 * RUN_CHUNKS)
    for index in range(RUN_CHUNKS):
        assert not fetching.has(index)
        assert fetching.got(A) == (index < RUN_CHUNKS - 1)
        assert fetching.has(index)
    assert fetching.take(A) == Run(2 * RUN_CHUNKS, 3 * RUN_CHUNKS)


def test_who_has_nothing_to_do_takes_half_of_what_another_has_not_begun() -> None:
    fetching = Fetching(10)
    for holder in (A, B, C):
        fetching.offer(holder)
    first = fetching.take(A)
    second = fetching.take(B)
    assert (first, second) == (Run(0, 5), Run(5, 10))
    third = fetching.take(C)
    assert (first, second, third) in (
        (Run(0, 3), Run(5, 10), Run(3, 5)),
        (Run(0, 5), Run(5, 8), Run(8, 10)),
    )


def test_one_that_hangs_holds_up_no_more_than_the_chunk_that_it_has_under_way() -> None:
    fetching = Fetching(2 * RUN_CHUNKS)
    fetching.offer(A)
    fetching.offer(B)
    hung = fetching.take(A)
    done = carry(fetching, B, 2 * RUN_CHUNKS)
    assert sorted(done) == list(range(1, 2 * RUN_CHUNKS))
    assert fetching.take(B) is None
    assert hung == Run(0, 1)
    assert not fetching.got(A), "its run ends here now"
    assert fetching.is_complete


def test_faster_holders_carry_more() -> None:
    """Goal: whatever the speeds, all end at about the same time.

    Method: A sends nine chunks in the time in which B sends one.
    """
    fetching = Fetching(1_000)
    done: dict[NodeId, int] = {A: 0, B: 0}
    runs: dict[NodeId, bool] = {A: False, B: False}
    for holder in (A, B):
        fetching.offer(holder)
    for step in itertools.count():
        assert step < 1_130, "one waits for the other"
        if fetching.is_complete:
            break
        holder = B if step % 10 == 0 else A
        if not runs[holder]:
            runs[holder] = fetching.take(holder) is not None
        if runs[holder]:
            runs[holder] = fetching.got(holder)
            done[holder] += 1
    assert 80 <= done[B] <= 120, done


def test_what_a_holder_failed_at_goes_to_others_first() -> None:
    fetching = Fetching(10 * RUN_CHUNKS)
    fetching.offer(A)
    fetching.offer(B)
    fetching.take(A)
    fetching.got(A)
    fetching.lose(A)
    assert not fetching.is_asked(A)
    assert fetching.take(B) == Run(1, RUN_CHUNKS)


def test_who_fails_again_and_again_or_sends_what_is_wrong_is_asked_no_more() -> None:
    fetching = Fetching(100)
    for _ in range(STRIKES):
        assert fetching.offer(A)
        fetching.lose(A)
    assert not fetching.offer(A)
    fetching.offer(B)
    fetching.lose(B, for_good=True)
    assert not fetching.offer(B)
    assert fetching.holders == []


def test_what_an_earlier_try_left_is_not_asked_for() -> None:
    fetching = Fetching(6, present=[0, 1, 3])
    fetching.offer(A)
    assert carry(fetching, A, 9) == [2, 4, 5]
    assert fetching.is_complete


def test_a_chunk_that_was_begun_is_the_first_of_a_run() -> None:
    fetching = Fetching(6, present=[0], begun={3: 1})
    fetching.offer(A)
    assert fetching.take(A) == Run(1, 3)
    fetching.got(A)
    assert not fetching.got(A)
    assert fetching.take(A) == Run(3, 6, 1)
    fetching.again(A)
    assert fetching.take(A) == Run(3, 6), "from its beginning now, and nobody is blamed"


@pytest.mark.parametrize("seed", range(30))
def test_every_transfer_ends_whatever_fails_as_long_as_somebody_lasts(seed: int) -> None:
    """Goal: no order of answers and failures loses a chunk, asks for one twice at once, or stalls.

    Method: three holders, some chunks here or begun, random failures; one holder stays.
    """
    rng = random.Random(seed)
    count = rng.randrange(1, 300)
    present = set(rng.sample(range(count), rng.randrange(count)))
    begun = {i: 1 for i in range(count) if i not in present and rng.random() < 0.1}
    fetching = Fetching(count, present, begun)
    runs: dict[NodeId, Run] = {}
    done = set(present)
    for step in itertools.count():
        assert step < 20_000, "it stalls"
        if fetching.is_complete:
            break
        for holder in (A, B, C):
            if holder == A or rng.random() < 0.3:
                fetching.offer(holder)
            if holder not in runs and fetching.is_asked(holder):
                run = fetching.take(holder)
                if run is not None:
                    runs[holder] = run
        parts = [index for run in runs.values() for index in range(run.index, run.end)]
        assert len(parts) == len(set(parts))
        assert done.isdisjoint(parts)
        for holder in sorted(runs):
            if rng.random() < 0.5:
                continue
            index = runs[holder].index
            if runs[holder].begun and rng.random() < 0.5:
                del runs[holder]
                fetching.again(holder)
            elif holder != A and rng.random() < 0.1:
                del runs[holder]
                fetching.lose(holder, for_good=rng.random() < 0.3)
            else:
                done.add(index)
                if not fetching.got(holder):
                    del runs[holder]
    assert done == set(range(fetching.count))


# ---- places ---------------------------------------------------------------------------


def test_two_copies_if_nothing_is_said_and_one_where_a_node_is_alone() -> None:
    assert [copies_wanted(None, members) for members in (1, 2, 5)] == [1, 2, 2]
    assert copies_wanted(5, 5) == 5
    with pytest.raises(InsufficientCopies, match="has 1 node;"):
        copies_wanted(2, 1)


def test_the_first_living_holder_repairs_and_nobody_else() -> None:
    holders = {NODES[0], NODES[1], NODES[3]}
    alive = [NODES[1], NODES[2], NODES[3], NODES[4]]
    found = {
        me: repair_of(NAME, 3, me=me, holders=holders, alive=alive) for me in (NODES[1], NODES[3])
    }
    assert found == {NODES[1]: Repair(NAME, 1, (NODES[2], NODES[4])), NODES[3]: None}


def test_nothing_is_repaired_where_copies_are_full_or_nobody_could_take_one() -> None:
    two = NODES[:2]
    assert repair_of(NAME, 2, me=two[0], holders=two, alive=NODES) is None
    assert repair_of(NAME, 3, me=two[0], holders=two, alive=two) is None
    assert repair_of(NAME, 0, me=two[0], holders=two[:1], alive=NODES) is None


def test_who_leaves_hands_over_what_the_others_lack_without_it() -> None:
    me, other, third = NODES[2], NODES[0], NODES[1]
    alive = [me, other, third]
    assert handover_of(NAME, 2, me=me, holders={me, other}, alive=alive) == Repair(
        NAME, 1, (third,)
    )
    assert handover_of(NAME, 5, me=me, holders={me, other, third}, alive=alive) is None
    assert handover_of(NAME, 1, me=me, holders={me}, alive=[me]) == Repair(NAME, 1, ())


def kept(name: bytes, size: int = 10, *, flags: str = "users") -> Kept:
    on = flags.split()
    return Kept(name, size, "pinned" in on, "young" in on, "users" in on)


def test_what_nobody_needs_goes_and_the_longest_unused_first() -> None:
    blobs = [kept(b"a", flags="users pinned"), kept(b"b"), kept(b"c", flags="users young")]
    blobs += [kept(b"d"), kept(b"e")]
    assert to_evict(blobs, set(), 15) == [b"b", b"d"]
    assert to_evict(blobs, {b"b"}, 15) == [b"d", b"e"]
    assert to_evict(blobs, set(), 31) is None
    assert to_evict(blobs, set(), 0) == []


def test_who_cannot_know_what_records_name_spares_what_may_be() -> None:
    assert to_evict([kept(b"task", flags=""), kept(b"user")], None, 10) == [b"user"]
    assert to_evict([kept(b"task", flags=""), kept(b"user")], set(), 10) == [b"task"]


def test_the_scrub_goes_round() -> None:
    assert due_for_scrub([], b"") is None
    assert due_for_scrub([b"b", b"a"], b"") == b"a"
    assert due_for_scrub([b"b", b"a"], b"a") == b"b"
    assert due_for_scrub([b"b", b"a"], b"b") == b"a"


# ---- pins -----------------------------------------------------------------------------


def test_the_latest_pin_of_an_owner_counts_and_removal_wins() -> None:
    first = pinned((), "ann", copies=2, until_ms=5_000, now_ms=100)
    second = pinned(first, "ann", copies=3, until_ms=9_000, now_ms=100)
    assert copies_of(second, 200) == 3
    gone = unpinned(second, "ann", 100)
    assert gone is not None
    for one, other in ((gone, second), (second, gone), (first, gone)):
        assert joined(one, other, 200) == gone
    assert copies_of(gone, 200) == 0
    again = pinned(gone, "ann", copies=2, until_ms=9_000, now_ms=100)
    assert joined(again, gone, 200) == again
    assert copies_of(again, 200) == 2


@pytest.mark.parametrize("seed", range(20))
def test_what_holders_tell_each_other_joins_in_any_order(seed: int) -> None:
    rng = random.Random(seed)
    told = [
        Pin(rng.choice("abc"), rng.randrange(1, 4), 1_000 + rng.randrange(5), rng.randrange(4),
            rng.random() < 0.3)
        for _ in range(8)
    ]  # fmt: skip
    whole = joined(told, (), 10)
    rng.shuffle(told)
    one, other = joined(told[:4], (), 10), joined(told[4:], (), 10)
    assert joined(one, other, 10) == joined(other, one, 10) == whole
    assert joined(whole, whole, 10) == whole


def test_pins_are_bounded_and_end() -> None:
    many = [Pin(f"o{number}", 1, 5_000, 1) for number in range(PINS_MAX)]
    with pytest.raises(TooLarge, match="as many as may"):
        pinned(many, "late", copies=1, until_ms=5_000, now_ms=10)
    assert len(pinned(many, "o3", copies=2, until_ms=6_000, now_ms=10)) == PINS_MAX
    assert joined(many, (), 5_000) == ()
    assert unpinned(many, "nobody", 10) is None


# ---- files ----------------------------------------------------------------------------


def test_files_beside_blobs_come_back_and_damage_shows() -> None:
    hashes = b"1" * 32 + b"2" * 32
    manifest = Manifest(name_of(hashes), 300_000, hashes)
    blob = PinnedBlob(NAME, 300_000, (Pin("ann", 2, 5_000, 1),))
    read_manifest = partial(decode_manifest, blob_hash=manifest.hash, size=300_000)
    assert read_manifest(encode_manifest(manifest), source="x") == manifest
    assert decode_pins(encode_pins(blob), source="x") == blob
    cases: list[tuple[bytes, Callable[..., object]]] = [
        (encode_manifest(manifest), read_manifest),
        (encode_pins(blob), decode_pins),
    ]
    for raw, read in cases:
        for at in range(len(raw)):
            damaged = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
            with pytest.raises(CorruptFile):
                read(damaged, source="x")
        with pytest.raises(CorruptFile):
            read(raw[:-1], source="x")


def test_a_manifest_is_what_its_blob_is_named_by() -> None:
    hashes = b"1" * 32 + b"2" * 32
    name = name_of(hashes)
    assert Manifest(name, 300_000, hashes).is_true
    assert not Manifest(name, 300_000, hashes[32:] + hashes[:32]).is_true
    assert not Manifest(name, 300_000, hashes[:-1]).is_true
    assert not Manifest(name, 600_000, hashes).is_true
    assert not Manifest(name, -1, b"").is_true
    assert not Manifest(NAME, 300_000, hashes).is_true
    assert Manifest(NAME, 5, NAME).is_true
    assert not Manifest(NAME, 5, name).is_true
    assert Manifest(hash_of(b""), 0, b"").is_true
