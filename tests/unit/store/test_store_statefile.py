"""The state as frames: of one moment whatever changes meanwhile, short steps, nothing twice."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from states import restore, whole

from swarmd.app.memory import calm_collector
from swarmd.base.errors import CorruptFile
from swarmd.identity.genesis import init_swarm
from swarmd.identity.keys import SigningKey
from swarmd.state.raft import statefile
from swarmd.state.raft.messages import Batch, Delete, Group, Operation, Put, encode_batch
from swarmd.state.raft.statemachine import StateMachine

GENESIS = init_swarm("lab", "n0", node_key=SigningKey.from_seed(b"g" * 32))[0]
STEP_MAX_S = 0.020


def do(state: StateMachine, *ops: Operation) -> None:
    state.apply(encode_batch(Batch(1, (Group(b"", 0, 0, ops),))), 1, 1)


def filled(count: int, value: bytes = b"x" * 256) -> StateMachine:
    state = StateMachine(GENESIS)
    for at in range(0, count, 200):
        do(state, *(Put(b"u/key-%07d" % n, value) for n in range(at, min(at + 200, count))))
    return state


def _longest_s(steps: Iterator[object]) -> float:
    """The longest step, in CPU time of this thread: others on the machine do not count."""
    longest = 0.0
    while True:
        began = time.thread_time()
        if next(steps, None) is None:
            return longest
        longest = max(longest, time.thread_time() - began)


_keys = st.integers(0, 30).map(lambda n: b"k%02d" % n)
_ops = st.builds(Put, _keys, st.binary(max_size=3)) | st.builds(Delete, _keys)


@settings(max_examples=150, deadline=None)
@given(before=st.lists(_ops, max_size=40), during=st.lists(_ops, max_size=40), seed=st.randoms())
def test_frames_are_of_one_moment_whatever_is_applied_between_them(
    before: list[Operation], during: list[Operation], seed: object
) -> None:
    state = StateMachine(GENESIS)
    do(state, *before)
    wanted = list(state.range(b""))
    frozen = state.snapshot()
    frames = []
    left = list(during)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statefile, "FRAME_ITEMS", 3)
        for frame in frozen:
            frames.append(frame)
            if left:
                do(state, left.pop())
    copy = StateMachine(GENESIS)
    restore(copy, whole(frames))
    assert list(copy.range(b"")) == wanted
    assert state.frozen == []


def test_equal_states_give_equal_frames_however_they_came_about() -> None:
    one, two = filled(700), filled(700)
    frozen = two.snapshot()
    next(frozen)
    do(two, Put(b"u/key-0000003", b"other"))
    frozen.close()
    do(one, Put(b"u/key-0000003", b"other"))
    assert list(one.snapshot()) == list(two.snapshot())
    copy = StateMachine(GENESIS)
    restore(copy, whole(one.snapshot()))
    assert list(copy.snapshot()) == list(one.snapshot())


def test_what_is_held_already_is_not_held_twice() -> None:
    """A voter that is sent a snapshot has most of it: the entries are the same objects."""
    state = filled(3_000)
    raw = whole(state.snapshot())
    do(state, Put(b"u/key-0000007", b"changed since"))
    gone = dict(state._entries)
    restore(state, raw)
    kept = sum(state.get(key) is entry for key, entry in gone.items())
    assert kept == 2_999
    for _ in range(5):
        do(state)
    assert state._graves == []


def test_frames_out_of_order_or_lacking_are_refused() -> None:
    state = filled(1_500)
    frames = list(state.snapshot())
    entries = [n for n, f in enumerate(frames) if b"u/key" in f]
    assert len(entries) > 2
    swapped = list(frames)
    swapped[entries[0]], swapped[entries[1]] = frames[entries[1]], frames[entries[0]]
    for bad in (frames[1:], swapped, frames[:-1], [*frames, frames[-1]], frames[:-2] + frames[-1:]):
        copy = StateMachine(GENESIS)
        do(copy, Put(b"mine", b"1"))
        with pytest.raises(CorruptFile):
            restore(copy, whole(bad))
        assert [e.key for e in copy.range(b"")] == [b"mine"]


@pytest.fixture
def daemons_collector() -> Iterator[None]:
    """Garbage is looked for as in a daemon: what other tests of this process left is no step."""
    before = gc.get_threshold()
    calm_collector()
    yield
    gc.set_threshold(*before)


@pytest.mark.usefixtures("daemons_collector")
def test_no_step_is_long_with_a_hundred_thousand_keys() -> None:
    """Freezing, each frame made and each frame taken, with writes to all parts between them."""
    state = filled(100_000)
    began = time.thread_time()
    frozen = state.snapshot()
    longest = time.thread_time() - began
    frames: list[bytes] = []

    def making() -> Iterator[object]:
        for number, frame in enumerate(frozen):
            frames.append(frame)
            yield frame
            key = b"u/key-%07d" % (number * 7919 % 100_000)
            do(state, Put(key, b"y" * 256), Delete(b"u/key-%07d" % number))
            yield key

    longest = max(longest, _longest_s(making()))
    copy = StateMachine(GENESIS)
    restoring = copy.restoring()

    def taking() -> Iterator[object]:
        for frame in frames:
            restoring.take(frame)
            yield frame
        restoring.finish()
        yield copy

    longest = max(longest, _longest_s(taking()))
    assert len(copy) == 100_000
    assert longest < STEP_MAX_S, f"{longest * 1e3:.1f} ms"


def test_a_snapshot_under_way_holds_no_second_copy() -> None:
    """The frames are not kept: what is allocated meanwhile is a small part of the state."""
    state = filled(20_000, b"x" * 1_000)
    gc.collect()
    tracemalloc.start()
    size = sum(map(len, state.snapshot()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 20_000_000
    assert peak < size / 10
