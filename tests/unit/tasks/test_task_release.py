"""Messages of an attempt leave when its result is the task's, and never otherwise."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from fixed_membership import FixedMembership
from msgspec import structs
from trio.testing import MockClock, wait_all_tasks_blocked

from swarmd.agents.attempts import BusMessage
from swarmd.base.clock import BootClock
from swarmd.base.errors import MalformedMessage, NoQuorum, SwarmError
from swarmd.base.ids import node_id_of
from swarmd.base.rng import make_rng
from swarmd.mesh.bus.config import BusConfig
from swarmd.mesh.bus.service import Bus, Subscription, open_bus
from swarmd.mesh.transports.memory import MemoryNetwork
from swarmd.observe.metrics import DROPPED
from swarmd.state.raft.messages import Entry
from swarmd.tasks.spec import Inline, State, TaskRecord, TaskSpec, encode_record, task_key
from swarmd.tasks.worker.release import Release

ME = node_id_of(bytes(32))
MESSAGES = tuple(BusMessage("t", "@x", b"%d" % number) for number in range(3))
RECORD = TaskRecord("x", TaskSpec("agent", Inline(b"\xc0"), "k"), b"", 0, State.SUCCEEDED, fence=7)


class Records:
    """The store: one record, or none, after so many refusals."""

    def __init__(
        self,
        record: TaskRecord | None,
        refusals: int = 0,
        error: SwarmError | None = None,
        raw: bytes | None = None,
    ) -> None:
        self.record, self.refusals, self.error, self.raw = record, refusals, error, raw

    async def get(self, key: bytes, *, stale: bool = False) -> Entry | None:
        await trio.lowlevel.checkpoint()
        assert (key, stale) == (task_key("x"), False)
        if self.refusals:
            self.refusals -= 1
            raise NoQuorum("not now")
        if self.error is not None:
            raise self.error
        if self.raw is not None:
            return Entry(key, self.raw, 1, 1, 0)
        if self.record is None:
            return None
        return Entry(key, encode_record(self.record), 1, 1, 0)


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    network = MemoryNetwork()
    async with (
        network.running(),
        open_bus(
            network.link(ME), FixedMembership([ME]), BusConfig(), BootClock(), make_rng(1)
        ) as one,
    ):
        yield one


def heard(subscription: Subscription) -> list[int]:
    found = []
    try:
        while True:
            found.append(int(subscription.receive_nowait().data))
    except trio.WouldBlock:
        return found


async def release_all(bus: Bus, records: Records, **more: Any) -> list[int]:
    """What is heard of an attempt with fence 7 that was settled."""
    async with bus.subscribe(["t"], name="test") as subscription, trio.open_nursery() as nursery:
        release = Release(records, bus)
        if more.get("early"):
            release.settled([6, 7], nursery)
        release.hold("x", 7, MESSAGES, nursery)
        if not more.get("early"):
            await wait_all_tasks_blocked()
            assert heard(subscription) == [], "it is not settled yet"
            release.settled([6, 7], nursery)
        with trio.fail_after(60):
            await release.finished()
        release.settled([7], nursery)
        await release.finished()
        return heard(subscription)


@pytest.mark.parametrize("early", [False, True])
async def test_messages_of_the_recorded_attempt_leave_once_and_in_order(
    bus: Bus, early: bool
) -> None:
    assert await release_all(bus, Records(RECORD), early=early) == [0, 1, 2]


@pytest.mark.parametrize(
    "record",
    [
        structs.replace(RECORD, fence=8),
        structs.replace(RECORD, state=State.FAILED),
        structs.replace(RECORD, state=State.PENDING, fence=0),
        None,
    ],
    ids=["another attempt's", "failed", "not final", "gone"],
)
async def test_messages_of_any_other_attempt_never_leave(
    bus: Bus, record: TaskRecord | None
) -> None:
    assert await release_all(bus, Records(record)) == []


async def test_a_store_that_does_not_answer_is_asked_again(
    bus: Bus, autojump_clock: MockClock
) -> None:
    assert await release_all(bus, Records(RECORD, refusals=3)) == [0, 1, 2]
    assert await release_all(bus, Records(RECORD, refusals=1_000)) == []


@pytest.mark.parametrize(
    "records",
    [Records(RECORD, error=MalformedMessage("no")), Records(None, raw=b"\xff")],
    ids=["refused", "not readable"],
)
async def test_a_record_that_cannot_be_read_ends_nothing_and_is_counted(
    bus: Bus, records: Records
) -> None:
    dropped = DROPPED.labels("bus", "no_record")
    before = dropped._value.get()
    assert await release_all(bus, records) == []
    assert dropped._value.get() == before + len(MESSAGES)


async def test_messages_stay_while_the_record_still_waits_for_their_attempt(bus: Bus) -> None:
    records = Records(structs.replace(RECORD, state=State.PENDING, fence=0))
    async with bus.subscribe(["t"], name="test") as subscription, trio.open_nursery() as nursery:
        release = Release(records, bus)
        release.hold("x", 7, MESSAGES, nursery)
        for _ in range(3):
            release.settled([7], nursery)
            await release.finished()
        assert heard(subscription) == []
        records.record = RECORD
        for _ in range(2):
            release.settled([7], nursery)
            await release.finished()
        assert heard(subscription) == [0, 1, 2]


async def test_so_many_attempts_are_kept_and_no_more(bus: Bus) -> None:
    records = Records(structs.replace(RECORD, state=State.PENDING, fence=0))
    async with trio.open_nursery() as nursery:
        release = Release(records, bus)
        for fence in range(200):
            release.hold("x", fence, MESSAGES, nursery)
            release.settled([fence], nursery)
        await release.finished()
        assert len(release._held) == len(release._kept) == 64
