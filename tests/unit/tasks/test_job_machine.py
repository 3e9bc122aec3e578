"""A job's machine, against a plain account of what a job is."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.base.machine import Effect
from swarmd.tasks.spec import (
    FromItem,
    FromTask,
    Gathered,
    JobState,
    StageKind,
    StageSpec,
    State,
    child_id,
)
from swarmd.tasks.workflow.machine import JobEnded, JobMachine, Release, Resume, TaskEnded

SWARM = b"s" * 32


def stages_of(kinds: str) -> tuple[StageSpec, ...]:
    """`m` is a map, `r` a reduce."""
    names = {"m": StageKind.MAP, "r": StageKind.REDUCE}
    return tuple(StageSpec(f"s{i}", "a", names[k]) for i, k in enumerate(kinds))


def machine(kinds: str, items: int) -> JobMachine:
    return JobMachine(SWARM, "job", stages_of(kinds), items)


def good(stage: int, item: int) -> TaskEnded:
    return TaskEnded(stage, item, State.SUCCEEDED)


def test_nothing_is_released_before_the_past_is_known() -> None:
    job = machine("mmr", 2)
    assert job.handle(good(0, 1), 0.0) == []
    assert job.handle(Resume(), 0.0) == [
        Release(0, 0, FromItem(0)),
        Release(1, 1, FromTask(child_id(SWARM, "job", 0, 1))),
    ]
    assert job.handle(Resume(), 0.0) == []


def test_a_reduce_waits_for_every_item_and_what_follows_is_one_wide() -> None:
    job = machine("mrm", 2)
    job.handle(Resume(), 0.0)
    assert job.handle(good(0, 1), 0.0) == []
    assert job.handle(TaskEnded(0, 0, State.DEAD), 0.0) == [Release(1, 0, Gathered(1))]
    after = FromTask(child_id(SWARM, "job", 1, 0))
    assert job.handle(good(1, 0), 0.0) == [Release(2, 0, after)]
    assert job.handle(good(2, 0), 0.0) == [JobEnded(JobState.SUCCEEDED, 2, 0)]
    assert job.failed_items == 1


def test_a_reduce_may_come_first() -> None:
    job = machine("r", 3)
    assert job.handle(Resume(), 0.0) == [Release(0, 0, Gathered(0))]
    assert job.handle(TaskEnded(0, 0, State.FAILED), 0.0) == [JobEnded(JobState.FAILED, 0, 0)]


def test_no_items_and_no_reduce_is_done_at_once() -> None:
    assert machine("m", 0).handle(Resume(), 0.0) == [JobEnded(JobState.SUCCEEDED, -1, -1)]


def test_repeats_and_places_that_do_not_exist_are_ignored() -> None:
    job = machine("mr", 1)
    job.handle(Resume(), 0.0)
    for stage, item in ((0, 7), (5, 0), (-1, 0), (1, 1)):
        assert job.handle(good(stage, item), 0.0) == []
    assert len(job.handle(good(0, 0), 0.0)) == 1
    assert job.handle(good(0, 0), 0.0) == []
    assert job.done == [1, 0]


def test_a_cancelled_job_releases_nothing() -> None:
    job = machine("mm", 2)
    job.handle(Resume(), 0.0)
    job.cancel()
    assert job.handle(good(0, 0), 0.0) == []


KINDS = st.sampled_from(["m", "mm", "mmm", "r", "mr", "mmr", "mrm", "rm", "mmrmm"])


def play(job: JobMachine, bad: set[tuple[int, int]], rng: Random, stop: int) -> list[Effect]:
    """Run what is released in any order, `stop` tasks at most; all effects."""
    seen = list(job.handle(Resume(), 0.0))
    ready = [e for e in seen if isinstance(e, Release)]
    while ready and stop:
        stop -= 1
        release = ready.pop(rng.randrange(len(ready)))
        place = (release.stage, release.item)
        state = State.DEAD if place in bad else State.SUCCEEDED
        out = job.handle(TaskEnded(*place, state), 0.0)
        seen += out
        ready += [e for e in out if isinstance(e, Release)]
    return seen


@given(
    kinds=KINDS,
    items=st.integers(0, 6),
    bad=st.sets(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=6),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=200)
def test_whatever_the_order_a_job_ends_once_and_as_its_tasks_say(
    kinds: str, items: int, bad: set[tuple[int, int]], order: Random
) -> None:
    job = machine(kinds, items)
    seen = play(job, bad, order, 10_000)
    places = [(e.stage, e.item) for e in seen if isinstance(e, Release)]
    ends = [e for e in seen if isinstance(e, JobEnded)]
    assert len(places) == len(set(places))
    assert len(ends) == 1
    reduce = kinds.find("r") if "r" in kinds else len(kinds)
    narrow_bad = any((s, 0) in bad for s in range(reduce, len(kinds)))
    assert (ends[0].state is JobState.FAILED) == narrow_bad
    for item in range(items):
        chain = [s for s in range(reduce) if (s, item) in places]
        first_bad = next((s for s in range(reduce) if (s, item) in bad), reduce - 1)
        assert chain == list(range(first_bad + 1))


@given(
    kinds=KINDS,
    items=st.integers(0, 5),
    bad=st.sets(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=4),
    stop=st.integers(0, 12),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=200)
def test_a_new_coordinator_releases_just_what_has_not_ended(
    kinds: str, items: int, bad: set[tuple[int, int]], stop: int, order: Random
) -> None:
    old = machine(kinds, items)
    ended: list[TaskEnded] = []
    handle = old.handle

    def note(event: object, now: float) -> list[Effect]:
        if isinstance(event, TaskEnded):
            ended.append(event)
        return handle(event, now)  # type: ignore[arg-type]

    old.handle = note  # type: ignore[method-assign, assignment]
    seen = play(old, bad, order, stop)
    open_places = {(e.stage, e.item) for e in seen if isinstance(e, Release)}
    open_places -= {(e.stage, e.item) for e in ended}
    new = machine(kinds, items)
    order.shuffle(ended)
    for event in ended:
        assert new.handle(event, 0.0) == []
    out = new.handle(Resume(), 0.0)
    assert {(e.stage, e.item) for e in out if isinstance(e, Release)} == open_places
    assert [e for e in out if isinstance(e, JobEnded)] == [
        e for e in seen if isinstance(e, JobEnded)
    ]
    assert (new.done, new.failed) == (old.done, old.failed)
