"""The coordinator's machine: what it decides, step by step."""

from __future__ import annotations

import sys

import msgspec
import pytest
from taskbench import AGENTS, BOOT, CONFIG, A, B, Bench, C, assigned, id_of, sends, spec, timers

from swarmd.base.ids import job_id_of
from swarmd.base.machine import SetTimer
from swarmd.state.blobs.messages import BlobRef
from swarmd.tasks.board import bytes_of, ended_of
from swarmd.tasks.events import (
    AgentChanged,
    Answer,
    CancelAsked,
    CancelJobAsked,
    Collect,
    Collected,
    Commit,
    Committed,
    FromWorker,
    ItemsNamed,
    ItemsUnreadable,
    Liveness,
    NameItems,
    Refuse,
    Resign,
    RetryDue,
    SubmitAsked,
    SubmitJobAsked,
    TaskDone,
    Tick,
)
from swarmd.tasks.messages import HandBack, HandedItem, Hello, ResultItem, Results, Settled
from swarmd.tasks.spec import (
    FromItem,
    FromTask,
    Gathered,
    Inline,
    JobSpec,
    JobState,
    Place,
    StageKind,
    StageSpec,
    State,
    TaskRecord,
    child_id,
    decode_job,
    job_key,
    task_key,
)

SWARM = b"s" * 32
STAGES = (
    StageSpec("one", "quick", StageKind.MAP),
    StageSpec("two", "quick", StageKind.MAP),
    StageSpec("all", "quick", StageKind.REDUCE),
)


def job_spec(count: int = 2, stages: tuple[StageSpec, ...] = STAGES) -> JobSpec:
    return JobSpec("job", "j", stages, BlobRef(b"m" * 32, 9), count)


JOB = job_id_of(SWARM, "j")


def child(stage: int, item: int) -> str:
    return child_id(SWARM, JOB, stage, item)


def finish(bench: Bench, fence: int, task_id: str, *, ok: bool = True) -> None:
    """The named child ends."""
    value = Inline(fence.to_bytes(8)) if ok else None
    item = ResultItem(task_id, fence, ok, value, "" if ok else "permanent", "bad", 10.0)
    bench.feed(FromWorker(B, Results(bench.office, BOOT, (item,))))


# ---- tasks ----------------------------------------------------------------------------


def test_a_task_that_can_start_is_created_and_assigned_in_one_write() -> None:
    bench = Bench()
    bench.beat()
    bench.hold = True
    bench.feed(SubmitAsked(1, (spec("k"),)))
    assert [len(p.op.then) for p in bench.held] == [2]
    out = bench.commit()
    [(node, item)] = assigned(out)
    assert (node, item.fence, item.attempt) == (B, bench.fence("k"), 1)
    assert [e.message.items[0].created for e in out if isinstance(e, Answer)] == [True]  # type: ignore[attr-defined]


def test_nothing_is_said_before_it_is_durable() -> None:
    bench = Bench()
    bench.beat()
    bench.hold = True
    assert bench.feed(SubmitAsked(1, (spec("k"),))) == []
    bench.commit()
    bench.hold = True
    assert bench.result("k", bench.fence("k")) == []
    done = bench.commit()
    assert [type(e).__name__ for e in done] == ["Send", "TaskDone"]


def test_tasks_wait_without_workers_and_start_when_one_is_heard() -> None:
    bench = Bench()
    bench.submit(spec("k1"), spec("k2"), spec("k3"))
    assert bench.machine.board.counts[State.PENDING] == 3
    out = bench.beat()
    assert [item.task_id for _, item in assigned(out)] == [id_of("k1"), id_of("k2")]
    out = bench.result("k1", bench.fence("k1"))
    assert [item.task_id for _, item in assigned(out)] == [id_of("k3")]


def test_higher_priority_starts_first() -> None:
    bench = Bench()
    bench.submit(spec("low"), spec("high", priority=5), spec("lower", priority=-1))
    assert [item.task_id for _, item in assigned(bench.beat())] == [id_of("high"), id_of("low")]


def test_short_tasks_are_sent_ahead_and_long_ones_are_not() -> None:
    bench = Bench()
    bench.beat()
    bench.submit(*(spec(f"k{i}") for i in range(20)))
    desk = bench.machine.board.desk("quick")
    desk.note_duration(0.001)
    assert desk.limit(CONFIG) == 2 + CONFIG.prefetch_max
    desk.ran_s = 5.0
    assert desk.limit(CONFIG) == 2


def test_a_retry_goes_elsewhere_after_a_pause_that_grows() -> None:
    bench = Bench()
    bench.beat(A)
    bench.beat(B)
    bench.submit(spec("k"))
    first = bench.machine.board.tasks[id_of("k")].worker
    assert first is not None
    out = bench.result("k", bench.fence("k"), ok=False)
    [(delay_s, due)] = timers(out, RetryDue)
    assert CONFIG.retry_delay_s <= delay_s <= 1.5 * CONFIG.retry_delay_s
    [(node, item)] = assigned(bench.feed(due))
    assert (item.attempt, node != first.node) == (2, True)
    out = bench.result("k", bench.fence("k"), ok=False)
    assert timers(out, RetryDue)[0][0] >= 2 * CONFIG.retry_delay_s
    assert [note.code for note in bench.record("k").story] == ["agent_raised"] * 2


def test_some_failures_are_not_tried_again() -> None:
    bench = Bench()
    bench.beat()
    bench.submit(spec("k"))
    bench.result("k", bench.fence("k"), ok=False, code="result_refused")
    assert (bench.record("k").state, bench.record("k").attempts) == (State.FAILED, 1)


def test_at_most_once_fails_at_the_first_error() -> None:
    bench = Bench()
    bench.beat()
    bench.submit(spec("k", "once", retries=5))
    bench.result("k", bench.fence("k"), ok=False)
    assert bench.record("k").state is State.FAILED


def test_a_suspected_node_loses_its_tasks_at_once() -> None:
    bench = Bench()
    bench.beat(A)
    bench.beat(B)
    bench.submit(*(spec(f"k{i}") for i in range(4)))
    out = bench.member(B, Liveness.SUSPECT)
    assert {node for node, _ in sends(out, Settled)} == {B}
    assert bench.machine.board.counts[State.PENDING] == 2
    assert not any(node == B for node, _ in assigned(out))


def test_a_silent_worker_loses_its_tasks_when_its_lease_lapses() -> None:
    bench = Bench()
    bench.beat(B)
    bench.submit(spec("k"))
    bench.wait(CONFIG.lease_s - 0.1)
    assert bench.fence("k") > 0
    bench.wait(0.2)
    assert bench.fence("k") == 0


def test_exclusive_tasks_of_an_earlier_boot_wait_for_its_lease() -> None:
    bench = Bench()
    bench.beat(B)
    bench.submit(spec("k", "alone"))
    fence = bench.fence("k")
    bench.now += 1.0
    bench.beat(B, boot=b"next")
    assert bench.fence("k") == fence
    bench.now += CONFIG.lease_s + CONFIG.lease_margin_s
    bench.beat(B, boot=b"next")
    assert bench.fence("k") > fence


def test_late_words_of_an_earlier_boot_change_nothing() -> None:
    bench = Bench()
    bench.beat(B)
    bench.submit(spec("k"))
    bench.beat(B, boot=b"next")
    fence = bench.fence("k")
    bench.beat(B)
    assert bench.fence("k") == fence
    assert bench.machine.board.current[B].boot == b"next"


def test_fences_that_are_over_are_settled_when_a_heartbeat_names_them() -> None:
    bench = Bench()
    out = bench.beat(running=(3,), ended=(4,))
    assert [m.items for _, m in sends(out, Settled)] == [(3,), (4,)]


def test_a_result_under_way_to_the_store_is_not_settled_by_a_heartbeat() -> None:
    bench = Bench()
    bench.beat()
    bench.submit(spec("k"))
    fence = bench.fence("k")
    bench.hold = True
    bench.result("k", fence)
    bench.now += 5.0
    out = bench.beat(ended=(fence,))
    assert sends(out, Settled) == []
    assert assigned(out) == []


def test_what_is_handed_back_unbegun_costs_no_attempt() -> None:
    bench = Bench()
    bench.beat()
    bench.submit(spec("k", "once"))
    back = HandBack(bench.office, BOOT, (HandedItem(id_of("k"), bench.fence("k"), False),))
    out = bench.feed(FromWorker(B, back))
    assert [item.attempt for _, item in assigned(out)] == [1]
    begun = HandBack(bench.office, BOOT, (HandedItem(id_of("k"), bench.fence("k"), True),))
    bench.feed(FromWorker(B, begun))
    assert bench.record("k").state is State.UNKNOWN


def test_a_draining_worker_gets_nothing() -> None:
    bench = Bench()
    bench.beat(draining=True)
    bench.submit(spec("k"))
    assert bench.fence("k") == 0


def test_messages_of_another_office_are_ignored() -> None:
    bench = Bench()
    bench.office -= 1
    assert bench.beat() == []
    assert bench.machine.board.current == {}


def test_a_cancel_that_comes_while_a_write_is_under_way_waits_for_it() -> None:
    bench = Bench()
    bench.beat()
    bench.hold = True
    bench.feed(SubmitAsked(1, (spec("k"),)))
    assert bench.feed(CancelAsked(2, (id_of("k"),))) == []
    bench.hold = False
    out = bench.commit()
    assert assigned(out) == []
    assert bench.record("k").state is State.CANCELLED
    [answer] = [e for e in out if isinstance(e, Answer) and e.tag == 2]
    assert answer.message.items[0].state == "cancelled"  # type: ignore[attr-defined]


def test_a_cancel_that_loses_to_a_result_says_so() -> None:
    bench = Bench()
    bench.beat()
    bench.submit(spec("k"))
    bench.hold = True
    bench.result("k", bench.fence("k"))
    bench.feed(CancelAsked(2, (id_of("k"), "nothing")))
    bench.hold = False
    out = bench.commit()
    [answer] = [e for e in out if isinstance(e, Answer)]
    states = [(i.state, i.code) for i in answer.message.items]  # type: ignore[attr-defined]
    assert states == [("succeeded", ""), ("", "not_found")]


def test_a_repeated_submit_waits_for_the_first_to_be_durable() -> None:
    bench = Bench()
    bench.hold = True
    bench.feed(SubmitAsked(1, (spec("k"),)))
    assert bench.feed(SubmitAsked(2, (spec("k"),))) == []
    out = bench.commit()
    created = [(e.tag, e.message.items[0].created) for e in out if isinstance(e, Answer)]  # type: ignore[attr-defined]
    assert created == [(1, True), (2, False)]


def test_submits_are_refused_item_by_item() -> None:
    bench = Bench(config=msgspec.structs.replace(CONFIG, open_tasks_max=2))
    items = bench.submit(
        spec("a"), spec("", "quick"), spec("b", "nobody"), spec("c", strategy="luck"), spec("d"),
        spec("e"),
    )  # fmt: skip
    codes = ["", "bad_request", "not_found", "bad_request", "", "busy"]
    assert [item.code for item in items] == codes


def test_a_conflict_ends_the_office() -> None:
    bench = Bench()
    bench.hold = True
    bench.feed(SubmitAsked(1, (spec("k"),)))
    out = bench.feed(Committed((Commit(bench.held[0].tag, False, 0),)))
    assert [type(e) for e in out] == [Resign]
    assert bench.feed(SubmitAsked(2, (spec("k2"),))) == []


def test_a_new_coordinator_goes_on_where_the_old_one_was() -> None:
    old = Bench()
    old.beat()
    old.submit(*(spec(f"k{i}") for i in range(4)))
    fences = [old.fence("k0"), old.fence("k1")]
    old.result("k0", fences[0])
    new = Bench(ledger=old.ledger)
    assert new.office > old.office
    assert [node for node, _ in sends(new.effects, Hello)] == [A, B]
    out = new.beat(running=(fences[1],))
    assert fences[1] not in [item.fence for _, item in assigned(out)]
    new.result("k1", fences[1])
    assert new.record("k1").state is State.SUCCEEDED
    for key in ("k2", "k3"):
        new.result(key, new.fence(key))
    assert new.machine.board.counts[State.SUCCEEDED] == 4


def test_a_new_coordinator_repeats_assignments_that_never_arrived() -> None:
    old = Bench()
    old.beat()
    old.submit(spec("k"))
    new = Bench(ledger=old.ledger)
    assert [item.fence for _, item in assigned(new.beat())] == [old.fence("k")]


def test_a_new_coordinator_gives_workers_a_full_lease_to_be_heard() -> None:
    old = Bench()
    old.beat(B)
    old.submit(spec("k"), spec("x", "alone"))
    new = Bench(ledger=old.ledger)
    new.wait(CONFIG.lease_s)
    assert new.fence("k") > 0
    new.wait(0.1)
    assert new.fence("k") == 0
    assert new.fence("x") > 0
    new.wait(CONFIG.lease_margin_s)
    assert new.fence("x") == 0


def test_silent_members_are_greeted_again() -> None:
    bench = Bench(members=(A, B, C))
    bench.beat(A)
    out = bench.wait(2.0)
    assert {node for node, _ in sends(out, Hello)} == {B, C}


def test_the_coordinator_looks_around_on_the_beat() -> None:
    bench = Bench()
    look = SetTimer(CONFIG.heartbeat_s, Tick(), on_beat=True)
    assert look in bench.effects
    bench.effects.clear()
    bench.wait(1.0)
    assert bench.effects.count(look) == 1


def test_an_agent_that_comes_back_lets_its_tasks_start() -> None:
    bench = Bench()
    bench.feed(AgentChanged("quick", None))
    assert bench.submit(spec("k"))[0].code == "not_found"
    bench.feed(AgentChanged("quick", AGENTS[0]))
    bench.feed(AgentChanged("alone", None))
    bench.submit(spec("k"))
    assert len(assigned(bench.beat())) == 1


def test_retention_removes_the_oldest_that_ended_and_nothing_else() -> None:
    bench = Bench(config=msgspec.structs.replace(CONFIG, retention_tasks_max=2))
    bench.beat()
    for i in range(5):
        bench.submit(spec(f"k{i}"))
        bench.result(f"k{i}", bench.fence(f"k{i}"))
    bench.submit(spec("open"))
    bench.wait(1.0)
    kept = [key for key in ("k0", "k1", "k2", "k3", "k4", "open") if bench.ledger.task(id_of(key))]
    assert kept == ["k3", "k4", "open"]
    assert bench.submit(spec("k0"))[0].created


def test_retention_counts_the_bytes_that_voters_hold() -> None:
    bench = Bench(config=msgspec.structs.replace(CONFIG, retention_bytes_max=25_000))
    bench.beat()
    for key in ("k0", "k1", "k2"):
        bench.submit(spec(key))
        fence = bench.fence(key)
        bench.result(key, fence, value=Inline(fence.to_bytes(8) + bytes(10_000)))
    bench.wait(1.0)
    assert [bench.ledger.task(id_of(k)) is None for k in ("k0", "k1", "k2")] == [True, False, False]
    later = Bench(ledger=bench.ledger, config=bench.machine.config)
    assert later.machine.board.ended_bytes == bench.machine.board.ended_bytes > 20_000


def test_little_is_kept_of_a_task_that_ended() -> None:
    place = Place("job", 2, 7)
    asked = msgspec.structs.replace(spec("k"), place=place)
    record = TaskRecord("id", asked, b"d" * 16, 2**41, State.DEAD, ended_ms=2**41 + 1)
    ended = ended_of(record)
    assert (ended.task_id, ended.agent, ended.state, ended.place) == (
        "id",
        asked.agent,
        State.DEAD,
        place,
    )
    assert (ended.created_ms, ended.ended_ms, ended.digest) == (2**41, 2**41 + 1, b"d" * 16)
    assert ended.kept_bytes == bytes_of(record)
    assert sys.getsizeof(ended) + sys.getsizeof(ended.packed) < 150
    with pytest.raises(AssertionError, match="goes on"):
        ended_of(msgspec.structs.replace(record, state=State.RUNNING))


def test_retention_ends_with_time() -> None:
    bench = Bench(config=msgspec.structs.replace(CONFIG, retention_s=100.0))
    bench.beat()
    bench.submit(spec("k"))
    bench.result("k", bench.fence("k"))
    bench.wait(90.0)
    assert bench.ledger.task(id_of("k")) is not None
    bench.wait(20.0)
    assert bench.ledger.task(id_of("k")) is None


def test_an_assignment_whose_task_cannot_be_read_is_left_alone() -> None:
    old = Bench()
    old.beat()
    old.submit(spec("k"), spec("other"))
    del old.ledger.data[task_key(id_of("k"))]
    new = Bench(ledger=old.ledger)
    new.result("other", new.fence("other"))
    assert new.record("other").state is State.SUCCEEDED


# ---- jobs -----------------------------------------------------------------------------


def start_job(bench: Bench, spec: JobSpec | None = None) -> JobSpec:
    spec = spec or job_spec()
    out = bench.feed(SubmitJobAsked(1, spec))
    assert NameItems(JOB, spec.manifest) in out
    bench.feed(ItemsNamed(JOB, tuple(f"i{n}" for n in range(spec.item_count))))
    return spec


def fence_of(bench: Bench, task_id: str) -> int:
    return bench.machine.board.tasks[task_id].fence


def job_state(bench: Bench) -> JobState:
    return decode_job(bench.ledger.data[job_key(JOB)][0]).state


def test_an_item_enters_its_next_stage_as_soon_as_its_own_task_is_done() -> None:
    bench = Bench()
    bench.beat()
    start_job(bench)
    payloads = [item.payload for _, item in assigned(bench.effects)]
    assert payloads == [FromItem(0), FromItem(1)]
    finish(bench, fence_of(bench, child(0, 1)), child(0, 1))
    assert assigned(bench.effects)[-1][1].payload == FromTask(child(0, 1))
    for task_id in (child(0, 0), child(1, 1), child(1, 0)):
        finish(bench, fence_of(bench, task_id), task_id)
    assert assigned(bench.effects)[-1][1].payload == Gathered(2)
    finish(bench, fence_of(bench, child(2, 0)), child(2, 0))
    record = decode_job(bench.ledger.data[job_key(JOB)][0])
    assert (record.state, record.stage_done) == (JobState.SUCCEEDED, (2, 2, 1))
    assert record.ended_by == {B: 5}


def test_a_failed_item_does_not_fail_the_job_but_a_failed_reduce_does() -> None:
    bench = Bench()
    bench.beat()
    start_job(bench)
    finish(bench, fence_of(bench, child(0, 0)), child(0, 0), ok=False)
    for task_id in (child(0, 1), child(1, 1)):
        finish(bench, fence_of(bench, task_id), task_id)
    finish(bench, fence_of(bench, child(2, 0)), child(2, 0), ok=False)
    record = decode_job(bench.ledger.data[job_key(JOB)][0])
    assert (record.state, record.code, record.failed_items) == (JobState.FAILED, "permanent", 1)
    assert record.message == "stage 'all': bad"


@pytest.mark.parametrize("ends", range(6))
def test_a_job_goes_on_under_the_next_coordinator_wherever_it_was(ends: int) -> None:
    bench = Bench()
    bench.beat()
    start_job(bench)
    order = [child(0, 0), child(1, 0), child(0, 1), child(1, 1), child(2, 0)]
    for position, task_id in enumerate(order):
        if position == ends:
            held = tuple(bench.machine.board.workers[B, BOOT].fences)
            bench = Bench(ledger=bench.ledger)
            bench.beat(running=held)
            bench.feed(ItemsNamed(JOB, ("i0", "i1")))
        finish(bench, fence_of(bench, task_id), task_id)
    assert job_state(bench) is JobState.SUCCEEDED


def test_cancelling_a_job_ends_its_tasks_and_starts_no_more() -> None:
    bench = Bench()
    bench.beat()
    start_job(bench, job_spec(5))
    out = bench.feed(CancelJobAsked(2, JOB))
    assert [e.message.jobs[0].state for e in out if isinstance(e, Answer)] == ["cancelled"]  # type: ignore[attr-defined]
    assert bench.machine.board.open_tasks == 0
    assert job_state(bench) is JobState.CANCELLED
    states = [e.record.state for e in bench.effects if isinstance(e, TaskDone)]
    assert states == [State.CANCELLED] * 2


@pytest.mark.parametrize("takeover", [False, True])
def test_a_job_that_retention_removed_runs_anew_under_its_key(takeover: bool) -> None:
    bench = Bench(config=msgspec.structs.replace(CONFIG, retention_jobs_max=1))
    bench.beat()
    for key in ("j", "later"):
        bench.feed(SubmitJobAsked(1, msgspec.structs.replace(job_spec(1), key=key)))
        job_id = job_id_of(SWARM, key)
        bench.feed(ItemsNamed(job_id, ("i0",)))
        for stage in range(3):
            task_id = child_id(SWARM, job_id, stage, 0)
            finish(bench, fence_of(bench, task_id), task_id)
    if takeover:
        bench = Bench(ledger=bench.ledger, config=bench.machine.config)
        bench.beat()
    bench.wait(1.0)
    bench.wait(1.0)
    assert JOB not in bench.machine.board.jobs
    start_job(bench, job_spec(1))
    for stage in range(3):
        finish(bench, fence_of(bench, child(stage, 0)), child(stage, 0))
    assert job_state(bench) is JobState.SUCCEEDED
    bench.wait(1.0)
    assert job_state(bench) is JobState.SUCCEEDED


def test_tasks_that_a_dead_coordinator_left_of_a_cancelled_job_are_cancelled() -> None:
    bench = Bench()
    bench.beat()
    start_job(bench)
    bench.hold = True
    bench.feed(CancelJobAsked(2, JOB))
    job_write = bench.held[0]
    bench.ledger.apply(job_write.op)
    new = Bench(ledger=bench.ledger)
    assert new.machine.board.open_tasks == 0


def test_a_job_without_a_reduce_collects_its_outcomes() -> None:
    bench = Bench()
    bench.beat()
    start_job(bench, job_spec(1, STAGES[:1]))
    finish(bench, fence_of(bench, child(0, 0)), child(0, 0))
    assert Collect(JOB) in bench.effects
    assert job_state(bench) is JobState.RUNNING
    bench.feed(Collected(JOB, Inline(b"\x90")))
    record = decode_job(bench.ledger.data[job_key(JOB)][0])
    assert (record.state, record.result) == (JobState.SUCCEEDED, Inline(b"\x90"))


def test_an_empty_job_is_reduced_over_nothing() -> None:
    bench = Bench()
    bench.beat()
    start_job(bench, job_spec(0))
    assert [item.payload for _, item in assigned(bench.effects)] == [Gathered(2)]


def test_a_job_is_refused_by_name() -> None:
    bench = Bench(config=msgspec.structs.replace(CONFIG, open_jobs_max=1))
    for refusable, code in (
        (job_spec(2, (StageSpec("one", "nobody", StageKind.MAP),)), "not_found"),
        (job_spec(2, ()), "bad_request"),
        (job_spec(20_000), "too_large"),
    ):
        [refused] = bench.feed(SubmitJobAsked(1, refusable))
        assert isinstance(refused, Refuse)
        assert refused.code == code
    start_job(bench)
    [refused] = bench.feed(SubmitJobAsked(1, msgspec.structs.replace(job_spec(), key="j2")))
    assert isinstance(refused, Refuse)
    assert refused.code == "busy"


def test_a_manifest_that_cannot_be_read_yet_is_asked_for_again() -> None:
    bench = Bench()
    bench.feed(SubmitJobAsked(1, job_spec()))
    out = bench.feed(ItemsUnreadable(JOB, "nobody has it", final=False))
    [(_, due)] = timers(out, type(out[-1].event))  # type: ignore[attr-defined]
    assert bench.feed(due) == [NameItems(JOB, job_spec().manifest)]
    bench.feed(ItemsNamed(JOB, ("only one",)))
    assert job_state(bench) is JobState.FAILED


def test_a_jobs_task_that_has_not_begun_can_be_cancelled_by_itself() -> None:
    bench = Bench()
    bench.beat()
    start_job(bench, job_spec(3))
    out = bench.feed(CancelAsked(2, (child(0, 2),)))
    [answer] = [e for e in out if isinstance(e, Answer)]
    assert answer.message.items[0].state == "cancelled"  # type: ignore[attr-defined]
    record = bench.ledger.task(child(0, 2))
    assert record is not None
    assert record.state is State.CANCELLED
    assert bench.machine.board.jobs[JOB].machine.failed_items == 1


def test_who_is_cancelled_in_a_queue_that_stands_still_leaves_little_behind() -> None:
    bench = Bench()  # Nobody has room.
    bench.submit(spec("first"))
    desk = bench.machine.board.desk("quick")
    for number in range(3_000):
        bench.submit(spec(f"k{number}"))
        bench.feed(CancelAsked(2, (id_of(f"k{number}"),)))
    assert bench.machine.board.open_tasks == 1
    assert len(desk.heap) <= 1_001
    assert all(isinstance(part, int | str) for row in desk.heap for part in row)
    bench.beat()
    assert bench.fence("first") > 0
    assert bench.fence("k2999") == 0
