"""The services of a small swarm over a fake store: what callers see, and what survives."""

from __future__ import annotations

import gc
from contextlib import aclosing
from typing import Any

import msgspec
import pytest
import trio
from taskfakes import Swarm, swarm_of
from trio.testing import MockClock

from swarmd.base.errors import (
    BadRequest,
    IdempotencyConflict,
    MalformedMessage,
    NoQuorum,
    NotFound,
    SecretUnreadable,
    ShuttingDown,
    TooLarge,
)
from swarmd.base.limits import INLINE_BYTES_MAX
from swarmd.mesh.swim.messages import MemberState
from swarmd.state.blobs.messages import BlobRef
from swarmd.tasks.config import TasksConfig
from swarmd.tasks.messages import TASK, ResultItem, Results
from swarmd.tasks.service import Tasks
from swarmd.tasks.spec import (
    Inline,
    Item,
    JobSpec,
    JobState,
    Manifest,
    StageKind,
    StageSpec,
    State,
    Stored,
    TaskRecord,
    TaskSpec,
)
from swarmd.wire.codec import pack, unpack

MAP_REDUCE = (
    StageSpec("first", "echo", StageKind.MAP),
    StageSpec("second", "echo", StageKind.MAP),
    StageSpec("all", "echo", StageKind.REDUCE),
)


def task(value: Any, key: str, agent: str = "echo", **fields: Any) -> TaskSpec:
    return TaskSpec(agent, Inline(pack(value)), key, **fields)


async def finals(tasks: Tasks, ids: list[str]) -> dict[str, TaskRecord]:
    found = {}
    with trio.fail_after(120):
        async with aclosing(tasks.results(ids)) as records:  # type: ignore[type-var]
            async for record in records:
                found[record.task_id] = record
    return found


async def submit(tasks: Tasks, specs: list[TaskSpec]) -> list[str]:
    items = await tasks.submit(specs)
    assert [item.code for item in items] == [""] * len(specs)
    return [item.task_id for item in items]


async def value_of(swarm: Swarm, value: Inline | Stored | None) -> Any:
    if isinstance(value, Inline):
        return unpack(value.data)
    assert isinstance(value, Stored)
    return unpack(swarm.pool[value.blob.hash])


async def put_job(swarm: Swarm, stages: Any, items: list[Item], key: str = "j") -> JobSpec:
    raw = msgspec.msgpack.encode(Manifest(tuple(items)))
    swarm.pool[b"m" * 32] = raw
    return JobSpec("job", key, stages, BlobRef(b"m" * 32, len(raw)), len(items))


async def test_a_task_submitted_anywhere_gives_its_result(autojump_clock: MockClock) -> None:
    async with swarm_of("a", "b", "c") as swarm:
        for name in "abc":
            [task_id] = await submit(swarm.nodes[name], [task({"n": name}, name)])
            record = (await finals(swarm.nodes[name], [task_id]))[task_id]
            assert record.state is State.SUCCEEDED
            assert await value_of(swarm, record.result) == {"n": name}
            assert (await swarm.nodes["b"].get(task_id)).state is State.SUCCEEDED


async def test_many_tasks_are_spread_and_share_writes(autojump_clock: MockClock) -> None:
    async with swarm_of("a", "b", "c") as swarm:
        specs = [task(i, f"k{i}") for i in range(1_000)]
        ids = await submit(swarm.nodes["b"], specs)
        found = await finals(swarm.nodes["c"], ids)
        assert all(record.state is State.SUCCEEDED for record in found.values())
        assert min(len(s.runs) for s in swarm.supervisors.values()) > 100
        assert swarm.log.writes < 700


async def test_the_same_key_is_the_same_task(autojump_clock: MockClock) -> None:
    async with swarm_of("a", "b") as swarm:
        [first] = await swarm.nodes["a"].submit([task(1, "k")])
        [again] = await swarm.nodes["b"].submit([task(1, "k")])
        [other] = await swarm.nodes["b"].submit([task(2, "k")])
        assert (first.created, again.created) == (True, False)
        assert first.task_id == again.task_id == other.task_id
        assert other.code == "idempotency_conflict"


async def test_what_cannot_be_is_refused_by_name(autojump_clock: MockClock) -> None:
    async with swarm_of("a") as swarm:
        [item] = await swarm.nodes["a"].submit([task(1, "k", agent="nobody")])
        assert (item.code, "nobody" in item.message) == ("not_found", True)
        with pytest.raises(BadRequest, match="key"):
            await swarm.nodes["a"].submit([task(1, "")])
        with pytest.raises(NotFound):
            await swarm.nodes["a"].get("nothing")
        with pytest.raises(NotFound):
            await swarm.nodes["a"].job("nothing")
        with pytest.raises(NotFound):
            await swarm.nodes["a"].cancel(["nothing"])


async def test_large_payloads_and_results_travel_as_blobs(autojump_clock: MockClock) -> None:
    async with swarm_of("a", "b") as swarm:
        large = "x" * (INLINE_BYTES_MAX + 1)
        [task_id] = await submit(swarm.nodes["b"], [task(large, "k")])
        record = (await finals(swarm.nodes["b"], [task_id]))[task_id]
        assert isinstance(record.result, Stored)
        assert await value_of(swarm, record.result) == large


async def test_a_failing_agent_is_retried_then_dead_with_its_story(
    autojump_clock: MockClock,
) -> None:
    async with swarm_of("a", "b") as swarm:
        [task_id] = await submit(swarm.nodes["a"], [task("luck", "k", agent="fail")])
        record = (await finals(swarm.nodes["a"], [task_id]))[task_id]
        assert (record.state, record.attempts) == (State.DEAD, 3)
        assert (record.code, record.message) == ("agent_raised", "no luck")
        assert [note.attempt for note in record.story] == [1, 2]


async def test_attempts_that_could_not_begin_do_not_count(autojump_clock: MockClock) -> None:
    async with swarm_of("a", "b") as swarm:
        tried = 0

        async def begins_late(value: Any, attempt: Any) -> Any:
            nonlocal tried
            tried += 1
            if tried <= 7:
                raise LookupError("no member that may vote can be reached")
            return value

        for one in swarm.supervisors.values():
            one.agents["fail"] = begins_late
        began = trio.current_time()
        [task_id] = await submit(swarm.nodes["a"], [task("late", "k", agent="fail")])
        record = (await finals(swarm.nodes["a"], [task_id]))[task_id]
        assert (record.state, record.attempts, record.story) == (State.SUCCEEDED, 1, ())
        assert trio.current_time() - began >= 7.0  # It is not tried all the time.


async def test_what_can_never_be_opened_is_tried_once(autojump_clock: MockClock) -> None:
    async with swarm_of("a") as swarm:

        async def unreadable(value: Any, attempt: Any) -> Any:
            raise SecretUnreadable("the secret db cannot be read")

        swarm.supervisors["a"].agents["fail"] = unreadable
        [task_id] = await submit(swarm.nodes["a"], [task(1, "k", agent="fail")])
        record = (await finals(swarm.nodes["a"], [task_id]))[task_id]
        assert (record.state, record.attempts) == (State.FAILED, 1)
        assert record.code == "secret_unreadable"


async def test_a_pending_and_a_running_task_can_be_cancelled(autojump_clock: MockClock) -> None:
    async with swarm_of("a") as swarm:
        ids = await submit(swarm.nodes["a"], [task(600, f"k{i}", agent="slow") for i in range(6)])
        await trio.sleep(0.5)
        counts = await swarm.nodes["a"].counts()
        assert (counts["running"], counts["pending"]) == (4, 2)
        views = await swarm.nodes["a"].cancel([ids[0], ids[5]])
        assert [view.state for view in views] == [State.CANCELLED] * 2
        await trio.sleep(0.5)
        assert len(swarm.supervisors["a"].cancelled) == 1
        found = await finals(swarm.nodes["a"], [ids[0], ids[5]])
        assert {r.state for r in found.values()} == {State.CANCELLED}


async def test_a_task_of_a_dead_node_starts_elsewhere_under_a_higher_fence(
    autojump_clock: MockClock,
) -> None:
    async with swarm_of("a", "b", config=TasksConfig(retry_delay_s=0.01)) as swarm:
        swarm.membership.set(swarm.id_of("a"), MemberState.ALIVE)
        ids = await submit(swarm.nodes["a"], [task(3, f"k{i}", agent="slow") for i in range(8)])
        await trio.sleep(0.5)
        lost = {run.task_id: run.fence for run in swarm.supervisors["b"].runs}
        assert lost
        swarm.network.cut(swarm.id_of("a"), swarm.id_of("b"))
        swarm.membership.set(swarm.id_of("b"), MemberState.DEAD)
        found = await finals(swarm.nodes["a"], ids)
        for task_id, fence in lost.items():
            record = found[task_id]
            assert record.state is State.SUCCEEDED
            assert record.node == swarm.id_of("a")
            assert record.fence > fence
            assert await value_of(swarm, record.result) == record.fence


async def test_results_and_jobs_survive_the_coordinator(autojump_clock: MockClock) -> None:
    async with swarm_of("a", "b", "c") as swarm:
        ids = await submit(swarm.nodes["c"], [task(1, f"k{i}", agent="slow") for i in range(60)])
        items = [Item(f"i{i}", Inline(pack(i))) for i in range(50)]
        job = await swarm.nodes["b"].submit_job(await put_job(swarm, MAP_REDUCE, items))
        found: dict[str, TaskRecord] = {}

        async def collect() -> None:
            found.update(await finals(swarm.nodes["c"], ids))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect)
            await trio.sleep(0.3)
            swarm.log.lead(swarm.id_of("b"))
            await trio.sleep(0.7)
            swarm.log.lead(None)
            await trio.sleep(1.0)
            swarm.log.lead(swarm.id_of("c"))
        assert len(found) == 60
        views = [view async for view in swarm.nodes["a"].job_events(job.job_id)]
        assert views[-1].state is JobState.SUCCEEDED
        assert await value_of(swarm, views[-1].result) == list(range(50))


async def test_an_office_holds_no_records_of_tasks_that_ended(autojump_clock: MockClock) -> None:
    """They are in the store; an office that held those it began with took twice their memory."""

    def held() -> set[str]:
        gc.collect()
        return {one.task_id for one in gc.get_objects() if isinstance(one, TaskRecord)}

    async with swarm_of("a", "b") as swarm:
        ids = await submit(swarm.nodes["a"], [task(i, f"k{i}") for i in range(5)])
        await finals(swarm.nodes["a"], ids)
        await trio.sleep(5.0)
        assert not held() & set(ids)
        swarm.log.lead(swarm.id_of("b"))
        await trio.sleep(5.0)
        assert swarm.nodes["b"].in_office
        assert not held() & set(ids)
        assert (await swarm.nodes["b"].get(ids[0])).state is State.SUCCEEDED


async def test_an_office_denies_no_task_while_it_begins(autojump_clock: MockClock) -> None:
    """Asked between taking the office and knowing its tasks, it called them unknown."""
    async with swarm_of("a", "b") as swarm:
        [made] = await swarm.nodes["a"].submit([task(1, "key")])
        swarm.log.delay_s = 0.0  # The clock stands still while this looks at every turn of trio.
        for turn in range(20):
            name = "ba"[turn % 2]
            swarm.log.lead(swarm.id_of(name))
            looks = 0
            while not swarm.nodes[name].in_office:
                looks += 1
                if looks % 1_000:
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.sleep(1.0)
            office = swarm.nodes[name]._office
            assert office is not None
            _, missing = office.watch([made.task_id])
            assert missing == [], f"turn {turn}"


async def test_a_new_coordinator_reads_the_items_before_it_sends_them(
    autojump_clock: MockClock,
) -> None:
    """Taking office, it assigns anew what a dead node ran, while the manifest is on its way."""
    async with swarm_of("a", "b", "c") as swarm:
        stages = (StageSpec("first", "slow", StageKind.MAP),)
        items = [Item(f"i{i}", Inline(pack(1))) for i in range(40)]
        job = await swarm.nodes["b"].submit_job(await put_job(swarm, stages, items))
        await trio.sleep(0.1)
        swarm.blobs.get_delay_s = 0.5
        swarm.membership.set(swarm.id_of("a"), MemberState.DEAD)
        swarm.log.lead(swarm.id_of("c"))
        views = [view async for view in swarm.nodes["b"].job_events(job.job_id)]
        assert (views[-1].state, views[-1].failed_items) == (JobState.SUCCEEDED, 0)
        assert len(await value_of(swarm, views[-1].result)) == 40


async def test_a_failed_item_is_a_named_row_for_the_reduce(autojump_clock: MockClock) -> None:
    async with swarm_of("a", "b") as swarm:

        async def picky(value: Any, attempt: Any) -> Any:
            await trio.sleep(0.001)
            if value == 3:
                raise ValueError("not three")
            return value * 10

        swarm.agents["picky"] = picky
        swarm.deploy("picky", retries=0)
        stages = (
            StageSpec("one", "picky", StageKind.MAP),
            StageSpec("two", "echo", StageKind.MAP),
            StageSpec("all", "echo", StageKind.REDUCE),
        )
        items = [Item(f"i{i}", Inline(pack(i))) for i in range(6)]
        job = await swarm.nodes["b"].submit_job(await put_job(swarm, stages, items))
        views = [view async for view in swarm.nodes["b"].job_events(job.job_id)]
        last = views[-1]
        assert (last.state, last.failed_items) == (JobState.SUCCEEDED, 1)
        assert [(s.total, s.done, s.failed) for s in last.stages] == [
            (6, 5, 1),
            (6, 5, 0),
            (1, 1, 0),
        ]
        row = {"name": "i3", "failed": "agent_raised", "message": "not three"}
        assert await value_of(swarm, last.result) == [0, 10, 20, row, 40, 50]


async def test_a_job_of_maps_only_gives_its_outcomes_in_order(autojump_clock: MockClock) -> None:
    async with swarm_of("a", "b") as swarm:
        items = [Item(f"i{i}", Inline(pack("y" * 9_000))) for i in range(20)]
        job = await swarm.nodes["b"].submit_job(await put_job(swarm, MAP_REDUCE[:2], items))
        views = [view async for view in swarm.nodes["b"].job_events(job.job_id)]
        assert views[-1].state is JobState.SUCCEEDED
        assert await value_of(swarm, views[-1].result) == ["y" * 9_000] * 20


async def test_a_job_is_idempotent_and_can_be_cancelled(autojump_clock: MockClock) -> None:
    async with swarm_of("a", "b") as swarm:
        stages = (StageSpec("one", "slow", StageKind.MAP),)
        items = [Item(f"i{i}", Inline(pack(60))) for i in range(20)]
        spec = await put_job(swarm, stages, items)
        job = await swarm.nodes["b"].submit_job(spec)
        assert (await swarm.nodes["a"].submit_job(spec)).job_id == job.job_id
        with pytest.raises(IdempotencyConflict):
            await swarm.nodes["a"].submit_job(msgspec.structs.replace(spec, name="other"))
        await trio.sleep(0.5)
        assert (await swarm.nodes["a"].job(job.job_id)).stages[0].running == 8
        view = await swarm.nodes["a"].cancel_job(job.job_id)
        assert view.state is JobState.CANCELLED
        await trio.sleep(0.5)
        counts = await swarm.nodes["a"].counts()
        assert counts["running"] == counts["pending"] == 0
        listed, _ = await swarm.nodes["a"].list(job_id=job.job_id)
        assert {one.state for one in listed} == {State.CANCELLED}


async def test_an_unreadable_manifest_fails_the_job(autojump_clock: MockClock) -> None:
    async with swarm_of("a") as swarm:
        swarm.pool[b"m" * 32] = b"junk"
        spec = JobSpec("job", "j", MAP_REDUCE, BlobRef(b"m" * 32, 4), 1)
        job = await swarm.nodes["a"].submit_job(spec)
        views = [view async for view in swarm.nodes["a"].job_events(job.job_id)]
        assert (views[-1].state, views[-1].code) == (JobState.FAILED, "bad_request")


async def test_lists_page_newest_first_and_filter(autojump_clock: MockClock) -> None:
    async with swarm_of("a", "b") as swarm:
        ids = []
        for i in range(25):
            ids += await submit(swarm.nodes["a"], [task(i, f"k{i}")])
        await finals(swarm.nodes["a"], ids)
        seen, after = [], ""
        while True:
            page, after = await swarm.nodes["b"].list(state="succeeded", limit=10, after=after)
            seen += [view.record.task_id for view in page]
            assert all(view.record.result is None for view in page)
            if not after:
                break
        assert seen == ids[::-1]
        assert (await swarm.nodes["b"].list(agent="slow"))[0] == ()


@pytest.mark.parametrize("after", ["\u00b2-x", "9" * 5_000 + "-x", "x", "-1-x"])
async def test_a_page_that_begins_nowhere_is_refused(after: str, autojump_clock: MockClock) -> None:
    async with swarm_of("a") as swarm:
        with pytest.raises(BadRequest):
            await swarm.nodes["a"].list(after=after)
        assert (await swarm.nodes["a"].list())[0] == ()


async def test_rows_of_a_stage_that_is_not_there_are_refused(autojump_clock: MockClock) -> None:
    async with swarm_of("a") as swarm:
        job = await swarm.nodes["a"].submit_job(
            await put_job(swarm, MAP_REDUCE, [Item("i0", Inline(pack(1)))])
        )
        for stage in (-1, 4, 10**18):
            with trio.fail_after(1), pytest.raises(BadRequest):
                await swarm.nodes["a"]._gather(job.job_id, stage)


def test_no_duration_of_an_attempt_can_upset_the_coordinator() -> None:
    for ran_s in (float("nan"), float("inf"), -1.0):
        item = ResultItem("t", 1, True, ran_s=ran_s)
        with pytest.raises(MalformedMessage):
            TASK.decode(TASK.encode(Results(1, b"b", (item,))))


async def test_a_node_that_stops_denies_no_task(autojump_clock: MockClock) -> None:
    """Streams that its end cuts off, or that come after it, are to be asked for elsewhere."""
    async with swarm_of("a") as swarm, trio.open_nursery() as nursery:
        [made] = await swarm.nodes["a"].submit([task(30, "key", agent="slow")])

        async def refused(tasks: Tasks) -> None:
            with pytest.RaisesGroup(ShuttingDown, flatten_subgroups=True, allow_unwrapped=True):
                await finals(tasks, [made.task_id])

        async with swarm.node("b") as stopping:
            nursery.start_soon(refused, stopping)
            await trio.sleep(1.0)
        await refused(stopping)
        assert list(await finals(swarm.nodes["a"], [made.task_id])) == [made.task_id]


async def test_without_a_coordinator_callers_are_told_in_time(autojump_clock: MockClock) -> None:
    async with swarm_of("a", "b", lead=False) as swarm:
        began = trio.current_time()
        with pytest.raises(NoQuorum):
            await swarm.nodes["a"].submit([task(1, "k")])
        assert trio.current_time() - began < 6.0


async def test_a_write_of_unknown_outcome_begins_the_office_anew(autojump_clock: MockClock) -> None:
    async with swarm_of("a", "b") as swarm:
        ids = await submit(swarm.nodes["a"], [task(1, f"k{i}", agent="slow") for i in range(8)])
        await trio.sleep(0.9)
        swarm.log.broken = True
        await trio.sleep(2.0)
        swarm.log.broken = False
        found = await finals(swarm.nodes["b"], ids)
        assert {record.state for record in found.values()} == {State.SUCCEEDED}
        assert len(found) == 8


async def test_a_node_that_drains_hands_back_and_takes_nothing_more(
    autojump_clock: MockClock,
) -> None:
    async with swarm_of("a", "b") as swarm:
        ids = await submit(swarm.nodes["a"], [task(4, f"k{i}", agent="slow") for i in range(20)])
        await trio.sleep(0.5)
        assert await swarm.nodes["b"].drain(3.0)
        here = len(swarm.supervisors["b"].runs)
        found = await finals(swarm.nodes["a"], ids)
        assert {record.state for record in found.values()} == {State.SUCCEEDED}
        assert len(swarm.supervisors["b"].runs) == here
        assert len({r.node for r in found.values()}) == 1


async def test_agents_deployed_later_are_known_at_once(autojump_clock: MockClock) -> None:
    async with swarm_of("a") as swarm:
        swarm.agents["late"] = swarm.agents["echo"]
        await trio.sleep(0.1)
        swarm.deploy("late")
        await trio.sleep(0.1)
        [task_id] = await submit(swarm.nodes["a"], [task(1, "k", agent="late")])
        assert (await finals(swarm.nodes["a"], [task_id]))[task_id].state is State.SUCCEEDED


async def test_blobs_that_nothing_refers_to_are_swept(autojump_clock: MockClock) -> None:
    config = TasksConfig(blob_sweep_s=5.0)
    async with swarm_of("a", config=config) as swarm:
        large = "x" * (INLINE_BYTES_MAX + 1)
        [task_id] = await submit(swarm.nodes["a"], [task(large, "k")])
        await finals(swarm.nodes["a"], [task_id])
        swarm.pool[b"o" * 32] = b"orphan"
        await trio.sleep(6.0)
        assert b"o" * 32 not in swarm.pool
        assert len(swarm.pool) == 1


async def test_a_voter_that_was_cut_off_deletes_no_blobs(autojump_clock: MockClock) -> None:
    """What its old copy of the store does not name may be named by what it missed."""
    async with swarm_of("a", config=TasksConfig(blob_sweep_s=5.0)) as swarm:
        swarm.log.broken = True
        swarm.pool[b"n" * 32] = b"named by what was missed"
        await trio.sleep(11.0)
        assert b"n" * 32 in swarm.pool
        swarm.log.broken = False
        await trio.sleep(6.0)
        assert b"n" * 32 not in swarm.pool


async def test_a_coordinator_without_room_for_what_happens_begins_anew(
    autojump_clock: MockClock,
) -> None:
    async with swarm_of("a", "b") as swarm:
        await submit(swarm.nodes["a"], [task(1, "k1")])
        office = swarm.nodes["a"]._office
        assert office is not None
        office._driver._inbox_max = 0
        swarm.membership.set(swarm.id_of("b"), MemberState.DEAD)
        [task_id] = await submit(swarm.nodes["b"], [task(2, "k2")])
        assert (await finals(swarm.nodes["b"], [task_id]))[task_id].state is State.SUCCEEDED
        assert swarm.nodes["a"]._office is not office


async def test_outcomes_of_a_job_that_was_cancelled_are_not_collected_for_ever(
    autojump_clock: MockClock,
) -> None:
    async with swarm_of("a") as swarm:
        items = [Item("i0", Inline(pack("y" * (INLINE_BYTES_MAX - 10))))]
        swarm.agents["echo"] = twice
        spec = await put_job(swarm, (StageSpec("one", "echo", StageKind.MAP),), items)
        swarm.blobs.forgets = True
        job = await swarm.nodes["a"].submit_job(spec)
        await trio.sleep(5.0)
        assert (await swarm.nodes["a"].job(job.job_id)).state is JobState.RUNNING
        await swarm.nodes["a"].cancel_job(job.job_id)
        await trio.sleep(2.0)
        asked = swarm.blobs.gets
        await trio.sleep(10.0)
        assert swarm.blobs.gets == asked


async def test_outcomes_too_large_for_one_value_fail_the_job_by_name(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(data: bytes) -> BlobRef:
        raise TooLarge("a blob of 65 MiB")

    async with swarm_of("a") as swarm:
        monkeypatch.setattr(swarm.blobs, "put", refuse)
        items = [Item(f"i{i}", Inline(pack("y" * 9_000))) for i in range(20)]
        spec = await put_job(swarm, (StageSpec("one", "echo", StageKind.MAP),), items)
        job = await swarm.nodes["a"].submit_job(spec)
        await trio.sleep(5.0)
        view = await swarm.nodes["a"].job(job.job_id)
        assert (view.state, view.code, view.result) == (JobState.FAILED, "too_large", None)


async def twice(value: Any, _: Any) -> Any:
    await trio.lowlevel.checkpoint()
    return value * 2
