"""Records, keys, limits, strategies: the plain data of the room."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from swarmd.base.errors import BadRequest, CorruptFile, TooLarge
from swarmd.base.ids import NodeId, task_id_of
from swarmd.base.limits import INLINE_BYTES_MAX, MESSAGE_BYTES_MAX, VALUE_BYTES_MAX
from swarmd.base.rng import make_rng
from swarmd.state.blobs.messages import BlobRef
from swarmd.tasks.messages import TASK, Submit
from swarmd.tasks.spec import (
    FINAL,
    ITEMS_MAX,
    TRANSITIONS,
    Assignment,
    FromItem,
    Inline,
    JobRecord,
    JobSpec,
    Mode,
    Place,
    StageKind,
    StageSpec,
    State,
    TaskRecord,
    TaskSpec,
    check_job,
    check_stages,
    check_task,
    child_id,
    cut_message,
    decode_assignment,
    decode_job,
    decode_task,
    encode_record,
    width_of,
)
from swarmd.tasks.strategies import Candidate, TaskView, least_loaded, round_robin

BLOB = BlobRef(b"b" * 32, 5)
SPEC = TaskSpec("a", Inline(b"\x01"), "k")


def test_no_final_state_has_a_way_out_and_every_state_is_reached() -> None:
    assert FINAL.isdisjoint(TRANSITIONS)
    reached = {State.PENDING}.union(*TRANSITIONS.values())
    assert reached == set(State)


def test_records_come_back_as_they_were() -> None:
    record = TaskRecord("t", SPEC, b"d" * 16, 5, state=State.DEAD, result=Inline(b"\x01"))
    assert decode_task(encode_record(record)) == record
    grant = Assignment("t", 2, b"n" * 32, b"boot")
    assert decode_assignment(encode_record(grant)) == grant
    job = JobRecord("j", JobSpec("n", "k", (), BLOB, 0), b"d" * 16, 5, ended_by={b"n": 2})
    assert decode_job(encode_record(job)) == job


@pytest.mark.parametrize("decode", [decode_task, decode_assignment, decode_job])
@pytest.mark.parametrize(
    "raw", [b"", b"\xc1", b"\x90", b"\xff" * 9, encode_record(Assignment("t", 1, b"", b""))[:-1]]
)
def test_unreadable_records_are_named(decode: Any, raw: bytes) -> None:
    with pytest.raises(CorruptFile):
        decode(raw)


@pytest.mark.parametrize(
    "change",
    [
        {"key": ""},
        {"key": "a\0b"},
        {"key": "k" * 300},
        {"agent": ""},
        {"payload": Inline(b"x" * (INLINE_BYTES_MAX + 1))},
        {"payload": FromItem(0)},
        {"place": Place("j", 0, 0)},
        {"timeout_s": 0.0},
        {"retries": -1},
        {"priority": 5_000},
        {"name": "n" * 2_000},
    ],
)
def test_what_callers_may_not_ask_for(change: dict[str, Any]) -> None:
    fields = {"agent": "a", "payload": Inline(b"\x01"), "key": "k", **change}
    with pytest.raises(BadRequest):
        check_task(TaskSpec(**fields))


def test_what_jobs_may_not_be() -> None:
    one = StageSpec("one", "a", StageKind.MAP)
    fold = StageSpec("fold", "a", StageKind.REDUCE)
    again = StageSpec("again", "a", StageKind.REDUCE)
    nobody = StageSpec("x", "", StageKind.MAP)
    for stages in ((), (one, one), (fold, again), (nobody,), tuple([one] * 20)):
        with pytest.raises(BadRequest):
            check_stages(stages)
    check_stages((one, fold))
    with pytest.raises(TooLarge):
        check_job(JobSpec("n", "k", (one,), BLOB, ITEMS_MAX + 1))


def test_a_job_is_as_wide_as_its_items_until_it_is_reduced() -> None:
    kinds = (StageKind.MAP, StageKind.REDUCE, StageKind.MAP)
    stages = tuple(StageSpec(f"s{i}", "a", kind) for i, kind in enumerate(kinds))
    assert [width_of(stages, 7, s) for s in range(3)] == [7, 1, 1]


def test_no_callers_key_names_a_jobs_task() -> None:
    assert child_id(b"s", "j", 0, 1) != task_id_of(b"s", "j/0/1")
    assert child_id(b"s", "j", 0, 1) != child_id(b"s", "j", 1, 0)


def test_the_digest_tells_contents_apart() -> None:
    assert SPEC.content_digest() == TaskSpec("a", Inline(b"\x01"), "k").content_digest()
    assert SPEC.content_digest() != TaskSpec("a", Inline(b"\x02"), "k").content_digest()


def test_the_largest_record_and_message_fit() -> None:
    full = Inline(b"x" * INLINE_BYTES_MAX)
    spec = TaskSpec("a" * 128, full, "k" * 256, name="n" * 1_024, mode=Mode.EXCLUSIVE)
    record = TaskRecord("t", spec, b"d" * 16, 5, result=full, message=cut_message("é" * 9_999))
    assert len(encode_record(record)) < VALUE_BYTES_MAX
    assert len(TASK.encode(Submit((spec,)))) < MESSAGE_BYTES_MAX
    spec_of_job = JobSpec("n", "k", (), BLOB, ITEMS_MAX, blobs=(BLOB,) * ITEMS_MAX)
    assert len(encode_record(JobRecord("j", spec_of_job, b"", 0))) < VALUE_BYTES_MAX


# ---- strategies -----------------------------------------------------------------------


def nodes(*rows: dict[str, int]) -> list[Candidate]:
    return [Candidate(NodeId(bytes([i])), **row) for i, row in enumerate(rows)]


VIEW = TaskView("a")
RNG = make_rng(1)


def test_least_loaded_prefers_an_idle_instance_then_the_fewest_attempts() -> None:
    view = nodes({"idle": 0, "load": 1}, {"idle": 1, "load": 5}, {"idle": 2, "load": 3})
    assert least_loaded(VIEW, view, RNG) == b"\x02"


def test_round_robin_takes_turns_whatever_the_load() -> None:
    view = nodes({"turn": 3, "load": 0}, {"turn": 1, "load": 9}, {"turn": 2})
    assert round_robin(VIEW, view, RNG) == b"\x01"


@pytest.mark.parametrize("choose", [least_loaded, round_robin])
def test_strategies_avoid_where_it_failed_unless_there_is_nothing_else(choose: Any) -> None:
    view = nodes({"idle": 9}, {"idle": 0, "load": 9, "turn": 9})
    task = TaskView("a", avoid=b"\x00")
    assert choose(task, view, RNG) == b"\x01"
    assert choose(task, view[:1], RNG) == b"\x00"
    assert choose(task, [], RNG) is None


def test_least_loaded_spreads_evenly() -> None:
    view = nodes({}, {}, {})
    by_id = {c.node: c for c in view}
    for turn in range(30):
        chosen = by_id[least_loaded(VIEW, view, RNG) or NodeId(b"")]
        chosen.load, chosen.turn = chosen.load + 1, turn
    loads = sorted(c.load for c in view)
    assert all(b - a <= 1 for a, b in pairwise(loads))
