"""Coming, going and coming again: behaviours that serf's and memberlist's suites hold.

With real loops over in-memory links. docs/membership.md lists their cases one by one.
"""

from __future__ import annotations

import pytest
import trio
import trio.testing
from test_swim_service import CONFIG, Town, all_alive, node, town

from swarmd.mesh.swim.messages import MemberState
from swarmd.mesh.swim.service import MemberChanges


async def written(t: Town, name: str, *, without: bytes = b"", holding: bytes = b"") -> None:
    """Wait until a node's file of members holds one name and not the other."""
    for _ in range(1_000):
        raw = t.disks[name].read("members")
        if raw is not None and holding in raw and not (without and without in raw):
            return
        await trio.sleep(0.1)
        await trio.to_thread.run_sync(int)  # A real thread writes it; virtual time is no help.
    raise AssertionError(f"{name} has not written that down")


def heard(changes: MemberChanges) -> list[str]:
    said = []
    while True:
        try:
            change = changes.receive_nowait()
        except trio.WouldBlock:
            return said
        said += ["join"] * change.joined + ["fail"] * change.failed + ["leave"] * change.left


async def test_who_left_and_starts_again_belongs_again_without_being_asked(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with town() as t:
        a = await t.start("a")
        b = await t.start("b", "a")
        await all_alive([a, b])
        await written(t, "b", holding=b"\xa1a")
        changes = a.subscribe()
        await b.leave()
        await a.seen(node("b"), MemberState.LEFT)
        await t.kill("b")
        again = await t.start("b")
        with trio.fail_after(2.0):
            await a.seen(node("b"), MemberState.ALIVE)
            await again.seen(node("a"), MemberState.ALIVE)
        assert heard(changes) == ["leave", "join"]


async def test_the_dead_are_remembered_for_the_next_start_and_those_who_left_are_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with town() as t:
        a = await t.start("a")
        others = [await t.start(name, "a") for name in ("dead", "left")]
        await all_alive([a, *others])
        await others[1].leave()
        await t.kill("left")
        await t.kill("dead")
        await a.seen(node("left"), MemberState.LEFT)
        await a.seen(node("dead"), MemberState.DEAD)
        await written(t, "a", holding=b"dead", without=b"left")
        await t.kill("a")
        again = await t.start("a")
        assert [one.name for one in again.remembered()] == ["dead"]


async def test_all_that_start_again_at_once_find_each_other_by_what_they_remember(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with town() as t:
        names = "abcd"
        nodes = [await t.start("a"), *[await t.start(name, "a") for name in names[1:]]]
        await all_alive(nodes)
        for name in names:
            for other in names.replace(name, ""):
                await written(t, name, holding=b"\xa1" + other.encode())
        for name in names:
            await t.kill(name)
        again = [await t.start(name) for name in names]
        with trio.fail_after(2.0):
            await all_alive(again)


async def test_a_restart_so_quick_that_nobody_missed_it_is_no_failure(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with town() as t:
        a = await t.start("a")
        b = await t.start("b", "a")
        await all_alive([a, b])
        before = a.get(node("b"))
        changes = a.subscribe()
        await t.kill("b")
        again = await t.start("b", "a")
        with trio.fail_after(1.0):
            await again.seen(node("a"), MemberState.ALIVE)
        await trio.sleep(10 * CONFIG.probe_interval_s)
        after = a.get(node("b"))
        assert before is not None
        assert after is not None
        assert after.incarnation > before.incarnation
        assert heard(changes) == []


async def test_both_who_join_each_other_know_each_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with town() as t:
        a = await t.start("a", "b")
        with a.subscribe() as changes:
            await trio.sleep(5.0)
            b = await t.start("b", "a")
            with trio.fail_after(5.0):
                await all_alive([a, b])
            await trio.sleep(5.0)
            assert heard(changes) == ["join"]


async def test_who_joins_by_somebody_that_is_not_there_goes_on_trying(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with town() as t:
        a = await t.start("a", "b", "c")
        assert len(a.members()) == 1
        await trio.sleep(300.0)
        b = await t.start("b")
        with trio.fail_after(80.0):
            await all_alive([a, b])


async def test_a_node_without_others_is_a_member_by_itself(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with town() as t:
        a = await t.start("a")
        await trio.sleep(60.0)
        assert [m.name for m in a.members()] == ["a"]
        assert a.alive() == [node("a")]
        with trio.fail_after(1.0):
            await a.leave()
        assert a.alive() == []


@pytest.mark.parametrize("tags", [{"role": "web"}, {}])
async def test_tags_said_before_a_join_are_known_after_it(
    autojump_clock: trio.testing.MockClock, tags: dict[str, str]
) -> None:
    async with town() as t:
        a = await t.start("a")
        b = await t.start("b")
        b.set_tags({"role": "db"})
        b.set_tags(tags)
        b.join(node("a"))
        await all_alive([a, b])
        member = a.get(node("b"))
        assert member is not None
        assert dict(member.tags) == tags
