"""The shell of user events: watches, what is refused and why, and the file."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from test_events_machine import event

from swarmd.base.errors import Busy, NotReady, TooLarge, Unavailable
from swarmd.base.machine import Event
from swarmd.mesh.events import service
from swarmd.mesh.events.events import Happened, SendEvent
from swarmd.mesh.events.machine import NEW_HERE_S, OWN_WAITING_MAX, EventsMachine, Kept
from swarmd.mesh.events.messages import TIME_MAX, UserEvent
from swarmd.mesh.events.service import WATCHED_MAX, UserEvents, load_kept
from swarmd.sim.disk import SimDisk
from swarmd.sim.swim import SimSigner, node_id
from swarmd.sim.world import World


class Clock:
    def now(self) -> float:
        return 0.0

    def wall_ms(self) -> int:
        return 1_700_000_000_000


class Node:
    """A shell and its machine, stepped at once."""

    def __init__(self, disk: SimDisk | None = None, kept: Kept | None = None, **how: Any) -> None:
        me = node_id("me")
        self.disk = disk or SimDisk(World(0), "me")
        self.machine = EventsMachine(me, SimSigner(me), 0.0, kept, **({"founder": True} | how))
        self.events = UserEvents(self.machine, self.feed, self.disk, Clock())
        self.deaf = False

    def feed(self, event: Event) -> None:
        assert isinstance(event, SendEvent)
        if not self.deaf:
            self.perform(self.machine.on_send(event, 1.0))

    def perform(self, effects: list[Any]) -> None:
        for effect in effects:
            self.events.performers[type(effect)](effect)


async def test_who_watches_is_told_of_what_it_asked_for_and_of_the_nodes_own() -> None:
    node = Node()
    with node.events.watch() as every, node.events.watch("b", "c") as some:
        for name in "abc":
            await node.events.send(name)
        node.perform(node.machine.hear(event(7, "b").raw, 1.0))
        assert [(await every.receive()).name for _ in range(4)] == ["a", "b", "c", "b"]
        assert [(await some.receive()).name for _ in range(3)] == ["b", "c", "b"]
    await node.events.send("d")
    assert [one.wall_ms for one in node.events.recent()][:1] == [Clock().wall_ms()]


async def test_who_does_not_read_is_told_how_many_it_missed() -> None:
    node = Node()
    with node.events.watch() as watch:
        for number in range(WATCHED_MAX + 3):
            node.perform([Happened(event(number + 1))])
        assert ((await watch.receive()).time, watch.missed) == (1, 0)
        node.perform([Happened(event(9_999))])
        times = [((await watch.receive()).time, watch.missed) for _ in range(WATCHED_MAX)]
        assert times[-2:] == [(WATCHED_MAX, 0), (9_999, 3)], "where the gap is"


async def test_watches_are_bounded_and_end_with_their_block() -> None:
    node = Node()
    watches = [node.events.watch() for _ in range(256)]
    with pytest.raises(Busy, match="256 watches"):
        node.events.watch()
    with watches[0]:
        pass
    with node.events.watch():
        pass


async def test_why_nothing_was_sent_is_told() -> None:
    node = Node()
    with pytest.raises(TooLarge, match="512"):
        await node.events.send("a", "x" * 513)
    for _ in range(OWN_WAITING_MAX):
        await node.events.send("a")
    with pytest.raises(Busy, match="nothing was sent"):
        await node.events.send("a")
    with pytest.raises(NotReady, match="nothing was sent"):
        await Node(founder=False).events.send("a")
    with pytest.raises(Unavailable, match="end"):
        await Node(kept=Kept(TIME_MAX)).events.send("a")


async def test_who_waits_in_vain_is_told_so_and_leaves_nothing_behind(
    autojump_clock: trio.testing.MockClock,
) -> None:
    node = Node()
    node.deaf = True
    with pytest.raises(Unavailable, match="whether it was sent is unknown"):
        await node.events.send("a")
    node.deaf = False
    assert isinstance(await node.events.send("b"), UserEvent)
    assert not node.events._sending
    assert not node.events._answers


async def test_what_was_told_outlives_a_restart(nursery: trio.Nursery) -> None:
    node = Node()
    nursery.start_soon(node.events.save)
    sent = await node.events.send("a", "x" * 512)
    with trio.fail_after(5):
        while (kept := load_kept(node.disk)) != Kept(1, (sent,)):  # noqa: ASYNC110 - by a thread
            await trio.sleep(0.01)
    again = Node(node.disk, kept, founder=False)
    assert again.events.recent() == [sent]
    assert (await again.events.send("b")).time == 2
    assert again.machine.hear(sent.raw, NEW_HERE_S) == []
    nursery.cancel_scope.cancel()


async def test_what_was_told_last_is_kept_when_the_daemon_ends() -> None:
    node = Node()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.events.save)
        with trio.fail_after(5):
            while load_kept(node.disk) is None:  # noqa: ASYNC110 - written by a thread
                await trio.sleep(0.01)
        assert load_kept(node.disk) == Kept(0), "the first of all saves has no event"
        sent = await node.events.send("a")
        nursery.cancel_scope.cancel()
    assert load_kept(node.disk) == Kept(1, (sent,))


async def test_what_changes_as_the_daemon_ends_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The write is called off before it began: it is made up for at the end."""
    monkeypatch.setattr(service, "_SAVE_EVERY_S", 0.0)
    node = Node()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.events.save)
        with trio.fail_after(5):
            while load_kept(node.disk) is None:  # noqa: ASYNC110 - written by a thread
                await trio.sleep(0.01)
            sent = await node.events.send("a")
            while load_kept(node.disk) != Kept(1, (sent,)):  # noqa: ASYNC110 - as above
                await trio.sleep(0.01)
        later = await node.events.send("b")
        nursery.cancel_scope.cancel()  # In the turn in which the saver is woken.
    assert load_kept(node.disk) == Kept(2, (sent, later))


def test_how_far_back_everything_was_told_outlives_a_restart() -> None:
    node = Node()
    for time in range(1, 600):
        node.machine.hear(event(time, str(time)).raw, 1.0)
    node.events._write(node.machine.kept())
    kept = load_kept(node.disk)
    assert kept is not None
    assert kept.floor == node.machine.kept().floor > (0, b"")  # type: ignore[union-attr]


@pytest.mark.parametrize("harm", [lambda raw: raw[:-1], lambda raw: raw[:9] + b"x" + raw[10:]])
def test_a_damaged_file_makes_a_newcomer(harm: Any) -> None:
    node = Node()
    kept = node.machine.kept()
    assert kept is not None
    node.events._write(kept)
    assert load_kept(node.disk) == kept
    raw = node.disk.read(service._FILE)
    assert raw is not None
    node.disk.replace(service._FILE, harm(raw))
    assert load_kept(node.disk) is None
