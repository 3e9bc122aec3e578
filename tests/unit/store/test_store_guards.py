"""What a store refuses: requests out of bounds, seats that are not one's own, lost disks."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from store_swarm import TrioClock, make_token, running_swarm

from swarmd.base.errors import (
    BadRequest,
    Busy,
    CorruptFile,
    DiskFault,
    Forbidden,
    NoQuorum,
    NotFound,
    SessionExpired,
    SwarmError,
    TooLarge,
    Unavailable,
)
from swarmd.base.limits import ENTRY_BYTES_MAX, MIB
from swarmd.base.rng import make_rng
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World
from swarmd.state.raft import answers, pipe
from swarmd.state.raft import epoch_messages as emsg
from swarmd.state.raft import messages as m
from swarmd.state.raft.feed import SUBSCRIBERS_MAX, Feed
from swarmd.state.raft.messages import OpResult, Put
from swarmd.state.raft.storage import EpochFiles, PrefixDisk


async def ask(swarm: Any, asker: int, peer: int, message: Any, family: Any = m.STORE) -> Any:
    link = swarm.store(asker)._link
    return await link.request(family, swarm.id(peer), message, timeout_s=1.0)


# ---- requests ----------------------------------------------------------------------------


async def test_members_cannot_seal_or_take_office(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0, 1)
        await swarm.voters_are(0)
        seat = m.Voter(swarm.nodes[1].key.public, b"s" * 16)
        for op in (m.Seal(2, (seat,)), m.TakeOffice(swarm.id(1))):
            answer = await ask(swarm, 1, 0, m.Forward((m.Group(b"", 0, 0, (op,)),)))
            assert [one.code for one in answer.groups[0]] == [Forbidden.code]
        assert swarm.store(0).status().epoch == 1


async def test_a_batch_has_a_bound(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0, 1)
        await swarm.voters_are(0)
        ops = tuple(Put(b"%d" % i, b"") for i in range(300))
        with pytest.raises(TooLarge):
            await ask(swarm, 1, 0, m.Forward((m.Group(b"", 0, 0, ops),)))


async def test_requests_at_a_time_have_a_bound(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "REQUESTS_MAX", 0)
    async with running_swarm() as swarm:
        await swarm.start(0, 1)
        await swarm.voters_are(0)
        with pytest.raises(Busy):
            await ask(swarm, 1, 0, m.LeaderAsk())


async def test_uploads_are_bounded_and_in_order(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0, 1)
        await swarm.voters_are(0)
        with pytest.raises(TooLarge):
            await ask(swarm, 1, 0, m.Upload(1, 0, ENTRY_BYTES_MAX * 2, b"x"))
        with pytest.raises(NotFound):
            await ask(swarm, 1, 0, m.Upload(1, 5, 10, b"x"))
        await ask(swarm, 1, 0, m.Upload(1, 0, 3, b"xx"))
        with pytest.raises(NotFound):
            await ask(swarm, 1, 0, m.Upload(1, 1, 3, b"x"))
        with pytest.raises(BadRequest):
            await ask(swarm, 1, 0, m.Upload(1, 2, 3, b"xx"))
        with pytest.raises(NotFound):
            await ask(swarm, 1, 0, m.ForwardUpload(1))
        for upload in range(answers.UPLOADS_MAX + 1):
            await ask(swarm, 1, 0, m.Upload(upload, 0, 3, b"xxx"))
        with pytest.raises(NotFound):
            await ask(swarm, 1, 0, m.ForwardUpload(0))
        with pytest.raises(SwarmError, match="undecodable"):
            await ask(swarm, 1, 0, m.ForwardUpload(1))


async def test_only_voters_of_an_epoch_get_its_state(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0, 1, 2)
        await swarm.voters_are(0, 1, 2)
        await swarm.start(3)
        with pytest.raises(Forbidden):
            await ask(swarm, 3, 0, emsg.StateAsk(2, 0), emsg.EPOCH)
        with pytest.raises(NotFound):
            await ask(swarm, 1, 0, emsg.StateAsk(7, 0), emsg.EPOCH)
        piece = await ask(swarm, 1, 0, emsg.StateAsk(2, 0), emsg.EPOCH)
        assert len(piece.data) <= m.PIECE_BYTES
        with pytest.raises(BadRequest):
            await ask(swarm, 1, 0, emsg.StateAsk(2, piece.total), emsg.EPOCH)


async def test_bad_operations_are_refused_before_they_travel(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0)
        with pytest.raises(TooLarge):
            await swarm.store(0).propose([Put(b"a", b""), Put(b"b", b"x" * (MIB + 1))])
        with pytest.raises(BadRequest):
            await swarm.store(0).propose([Put(b"", b"")])
        assert await swarm.store(0).propose([]) == []
        assert await swarm.store(0).get(b"a") is None


async def test_who_holds_no_copy_has_no_changes(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0, 1)
        with pytest.raises(Unavailable):
            swarm.store(1).changes()


def test_subscribers_have_a_bound() -> None:
    feed: Feed[int] = Feed(1)
    channels = [feed.subscribe() for _ in range(SUBSCRIBERS_MAX)]
    with pytest.raises(Busy):
        feed.subscribe()
    channels[0].close()
    feed.emit(1)
    feed.emit(2)
    assert channels[1].receive_nowait() == 1
    with pytest.raises(trio.EndOfChannel):
        channels[1].receive_nowait()
    feed.subscribe()


# ---- disks -------------------------------------------------------------------------------


async def test_a_voter_that_lost_its_disk_does_not_vote(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0, 1, 2)
        await swarm.voters_are(0, 1, 2)
        await swarm.store(0).propose([Put(b"a", b"1")])
        await swarm.crash(1)
        swarm.nodes[1].disk = SimDisk(World(9), "new")
        await swarm.start(1)
        await trio.sleep(5)
        assert not swarm.store(1).is_voter
        assert swarm.store(1).local is None
        entry = await swarm.store(1).get(b"a")
        assert entry is not None
        await swarm.crash(2)
        with pytest.raises(NoQuorum, match="the outcome is unknown"):
            await swarm.store(0).propose([Put(b"a", b"2")], timeout_s=2.0)
        with pytest.raises(NoQuorum, match="nothing was read or changed"):
            await swarm.store(0).get(b"a", timeout_s=2.0)


async def test_a_founder_that_lost_its_disk_does_not_found_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0)
        await swarm.store(0).propose([Put(b"a", b"1")])
        await swarm.crash(0)
        swarm.nodes[0].disk = SimDisk(World(9), "new")
        await swarm.start(0)
        assert not swarm.store(0).is_voter
        with pytest.raises(NoQuorum):
            await swarm.store(0).get(b"a", timeout_s=1.0)


async def test_a_full_disk_stops_writes_and_heals(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0)
        await swarm.store(0).propose([Put(b"a", b"1")])
        swarm.nodes[0].disk.full = True
        start = trio.current_time()
        with pytest.raises(DiskFault, match="No space left"):
            await swarm.store(0).propose([Put(b"a", b"2")])
        with pytest.raises(DiskFault):
            await swarm.store(0).get(b"a")
        assert trio.current_time() - start < 0.1, "told at once"
        assert swarm.store(0).status().state == "disk_fault"
        swarm.nodes[0].disk.full = False
        await trio.sleep(1.5)
        assert (await swarm.store(0).propose([Put(b"a", b"3")]))[0].ok
        assert swarm.store(0).status().state == "ok"


async def test_a_full_disk_of_the_coordinator_moves_the_office(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Callers anywhere are served by another within an election; nothing is lost."""
    async with running_swarm() as swarm:
        await swarm.start(0, 1, 2)
        await swarm.voters_are(0, 1, 2)
        await swarm.store(0).propose([Put(b"a", b"1")])
        full = await swarm.coordinator()
        swarm.nodes[full].disk.full = True
        start = trio.current_time()
        for node in range(3):
            [result] = await swarm.store(node).propose([Put(b"n%d" % node, b"2", expect=0)])
            assert result.ok
        assert trio.current_time() - start < 1.5
        status = swarm.store(full).status()
        assert (status.state, swarm.store(full).office) == ("disk_fault", None)
        assert "No space left" in status.detail
        assert await swarm.coordinator() != full
        swarm.nodes[full].disk.full = False
        await trio.sleep(3)
        assert swarm.store(full).status().state == "ok"
        keys = [e.key for e in await swarm.store(full).range(b"", stale=True)]
        assert keys == [b"a", b"n0", b"n1", b"n2"], "it caught up"


def test_prefix_disks_do_not_see_each_other() -> None:
    disk = SimDisk(World(1), "d")
    one, two = PrefixDisk(disk, "one."), PrefixDisk(disk, "two.")
    one.replace("x", b"1")
    two.append("x", b"2")
    two.sync("x")
    assert (one.read("x"), two.read("x")) == (b"1", b"2")
    assert one.names() == ["x"]
    one.remove("x")
    assert disk.names() == ["two.x"]


def test_the_storage_is_made_once_and_checked() -> None:
    disk = SimDisk(World(1), "d")
    made = EpochFiles(disk).storage(b"swarm", founding=False)
    assert EpochFiles(disk).storage(b"swarm", founding=True) == made
    assert EpochFiles(SimDisk(World(2), "e")).storage(b"swarm", founding=False) != made
    disk.replace("raft.storage", b"damaged")
    with pytest.raises(CorruptFile, match="storage"):
        EpochFiles(disk).storage(b"swarm", founding=False)


# ---- the pipe ----------------------------------------------------------------------------


class FakeCoordinator:
    """Answers what a test tells it to."""

    def __init__(self) -> None:
        self.groups: list[m.Group] = []
        self.script: list[Any] = []
        self.sessions = 0

    async def submit(self, groups: tuple[m.Group, ...]) -> list[list[OpResult]]:
        await trio.lowlevel.checkpoint()
        if isinstance(groups[0].ops[0], m.OpenSession):
            self.sessions += 1
            return [[OpResult(True, 1)]]
        self.groups += groups
        if self.script:
            answer = self.script.pop(0)
            if isinstance(answer, SwarmError):
                raise answer
            return [[OpResult(False, 1, answer)] * len(g.ops) for g in groups]
        return [[OpResult(True, 1)] * len(g.ops) for g in groups]


async def _pipe(nursery: trio.Nursery, fake: FakeCoordinator) -> pipe.Pipe:
    made = pipe.Pipe(fake.submit, clock=TrioClock(), rng=make_rng(1), nursery=nursery)
    nursery.start_soon(made.run)
    return made


async def test_a_repeat_keeps_its_sequence(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    fake = FakeCoordinator()
    fake.script = [Unavailable("lost"), "moved"]
    made = await _pipe(nursery, fake)
    assert (await made.propose([Put(b"a", b"")], timeout_s=5))[0].ok
    assert [(g.session, g.first) for g in fake.groups] == [(fake.groups[0].session, 0)] * 3


async def test_low_passes_what_was_answered_or_given_up(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    fake = FakeCoordinator()
    made = await _pipe(nursery, fake)
    await made.propose([Put(b"a", b""), Put(b"b", b"")], timeout_s=5)
    fake.script = [Unavailable("lost")] * 100
    with pytest.raises(NoQuorum, match="lost"):
        await made.propose([Put(b"c", b"")], timeout_s=1)
    fake.script = []
    await made.propose([Put(b"d", b"")], timeout_s=5)
    assert (fake.groups[-1].first, fake.groups[-1].low) == (3, 3)


async def test_an_ended_session_is_replaced_if_nothing_was_sent_twice(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    fake = FakeCoordinator()
    made = await _pipe(nursery, fake)
    fake.script = ["session_expired"]
    assert (await made.propose([Put(b"a", b"")], timeout_s=5))[0].ok
    assert fake.sessions == 2
    fake.script = [Unavailable("lost"), "session_expired"]
    with pytest.raises(SessionExpired):
        await made.propose([Put(b"a", b"")], timeout_s=5)


async def test_an_idle_session_is_not_used_again(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    fake = FakeCoordinator()
    made = await _pipe(nursery, fake)
    await made.propose([Put(b"a", b"")], timeout_s=5)
    await trio.sleep(400)
    await made.propose([Put(b"a", b"")], timeout_s=5)
    assert fake.sessions == 2


async def test_calls_made_together_travel_together(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    fake = FakeCoordinator()
    made = await _pipe(nursery, fake)
    await made.propose([Put(b"a", b"")], timeout_s=5)
    batches = []
    submit = fake.submit

    async def counting(groups: tuple[m.Group, ...]) -> list[list[OpResult]]:
        batches.append(len(groups))
        await trio.sleep(0.01)
        return await submit(groups)

    made._submit = counting
    async with trio.open_nursery() as callers:
        for _ in range(100):
            callers.start_soon(lambda: made.propose([Put(b"a", b"")], timeout_s=5))
    assert len(batches) <= pipe.BATCHES_MAX
    assert sum(batches) == 100


async def test_waiting_calls_have_a_bound(
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipe, "CALLS_WAITING_MAX", 0)
    made = await _pipe(nursery, FakeCoordinator())
    with pytest.raises(Busy):
        await made.propose([Put(b"a", b"")], timeout_s=5)


# ---- authority ---------------------------------------------------------------------------


async def test_records_reach_the_trust_of_every_voter(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        swarm.records = []
        await swarm.start(0)
        _, entry = make_token(swarm.genesis, swarm.admin)
        result = (await swarm.store(0).propose([m.AuthorityEntry(entry)]))[0]
        assert result.ok
        assert result.value is not None
        trust = swarm.trust(0)
        assert trust.head[0] == 1
        assert trust.records_from(0) == [result.value]
        refused = (await swarm.store(0).propose([m.AuthorityEntry(b"junk")]))[0]
        assert refused.code == "malformed"
