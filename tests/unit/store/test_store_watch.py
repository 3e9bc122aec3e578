"""Watches: nothing lost, nothing twice, whoever coordinates and wherever they are resumed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest
import trio
from store_swarm import Swarm, running_swarm

from swarmd.base.errors import BadRequest, Busy, Compacted, NoQuorum
from swarmd.base.rng import Rng, make_rng
from swarmd.state.raft import history, watching
from swarmd.state.raft import messages as m
from swarmd.state.raft.messages import Delete, GrantLease, Operation, OpResult, Put, Txn
from swarmd.state.raft.statemachine import Change
from swarmd.state.raft.watching import MARK_S


async def do(swarm: Swarm, node: int, *ops: Operation) -> list[OpResult]:
    results = await swarm.store(node).propose(ops)
    assert all(result.ok for result in results)
    return results


async def grown(swarm: Swarm) -> None:
    await swarm.start(0, 1, 2)
    await swarm.voters_are(0, 1, 2)
    await swarm.start(3)


class Watcher:
    """One watch with what it told so far. It may be broken off and resumed anywhere."""

    def __init__(self, swarm: Swarm, node: int, prefix: bytes = b"u/") -> None:
        self.swarm = swarm
        self.node = node
        self.prefix = prefix
        self.changes: list[Change] = []
        self.revision: int | None = None
        self.marks = 0
        self.error: Exception | None = None
        self.scope = trio.CancelScope()

    async def run(self, from_revision: int | None = None) -> None:
        if from_revision is None and self.revision is not None:
            from_revision = self.revision + 1
        self.scope = trio.CancelScope()
        store = self.swarm.store(self.node)
        with self.scope:
            async with aclosing(store.watch(self.prefix, from_revision)) as pairs:
                async for changes, revision in pairs:
                    assert self.revision is None or revision > self.revision
                    self.changes += changes
                    self.revision = revision
                    self.marks += not changes

    async def reaches(self, revision: int, within_s: float = 20.0) -> None:
        with trio.move_on_after(within_s):
            while True:
                if self.revision is not None and self.revision >= revision:
                    return
                await trio.sleep(0.01)
        raise AssertionError(f"the watch on n{self.node} is at {self.revision}, not {revision}")

    @property
    def told(self) -> list[tuple[bytes, bytes | None]]:
        return [(change.key, change.value) for change in self.changes]


@asynccontextmanager
async def watching_on(
    swarm: Swarm, *nodes: int, from_revision: int | None = None
) -> AsyncIterator[list[Watcher]]:
    async with trio.open_nursery() as nursery:
        watchers = [Watcher(swarm, node) for node in nodes]
        for watcher in watchers:
            nursery.start_soon(watcher.run, from_revision)
        if from_revision is None:
            for watcher in watchers:
                await watcher.reaches(0)
        yield watchers
        nursery.cancel_scope.cancel()


# ---- what is told ------------------------------------------------------------------------


@pytest.mark.parametrize("node", [0, 1, 3])
async def test_from_now_on(autojump_clock: trio.testing.MockClock, node: int) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        await do(swarm, 0, Put(b"u/old", b""))
        async with watching_on(swarm, node) as [watcher]:
            assert (watcher.told, watcher.marks) == ([], 1)
            await do(swarm, 2, Put(b"u/a", b"1"), Put(b"t/x", b""), Txn((), (Delete(b"u/a"),)))
            last = (await do(swarm, 1, Put(b"u/b", b"2")))[0].revision
            await watcher.reaches(last)
            assert watcher.told == [(b"u/a", b"1"), (b"u/a", None), (b"u/b", b"2")]


@pytest.mark.parametrize("node", [0, 1, 3])
async def test_from_a_revision_and_under_a_prefix(
    autojump_clock: trio.testing.MockClock, node: int
) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        results = await do(swarm, 0, *(Put(b"u/%s" % key, b"") for key in (b"a", b"b", b"ab")))
        watcher = Watcher(swarm, node, b"u/a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watcher.run, results[0].revision)
            await watcher.reaches(results[-1].revision)
            assert watcher.told == [(b"u/a", b""), (b"u/ab", b"")]
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("node", [0, 3])
async def test_a_revision_to_come_is_waited_for(
    autojump_clock: trio.testing.MockClock, node: int
) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        now = await swarm.store(0).read_index()
        async with watching_on(swarm, node, from_revision=now + 3) as [watcher]:
            await do(swarm, 0, *(Put(b"u/%d" % i, b"") for i in range(4)))
            await watcher.reaches(now + 4)
            assert watcher.told == [(b"u/2", b""), (b"u/3", b"")]


@pytest.mark.parametrize("node", [0, 1, 3])
async def test_what_others_write_wakes_no_watch(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, node: int
) -> None:
    """What every node follows, who may ask, costs no look at each write of a user."""
    looks = []
    since = history.History.since

    def counted(self: history.History, revision: int, prefix: bytes) -> list[Change]:
        looks.append(prefix)
        return since(self, revision, prefix)

    async with running_swarm() as swarm:
        await grown(swarm)
        watcher = Watcher(swarm, node, b"k/")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watcher.run)
            await watcher.reaches(0)
            monkeypatch.setattr(history.History, "since", counted)
            for number in range(50):
                await do(swarm, 0, Put(b"u/a", b"%d" % number))
            assert looks.count(b"k/") <= 3
            [last] = await do(swarm, 1, Put(b"k/ci", b"x"))
            await watcher.reaches(last.revision)
            assert watcher.told == [(b"k/ci", b"x")]
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("node", [0, 3])
async def test_marks_come_while_only_other_keys_change(
    autojump_clock: trio.testing.MockClock, node: int
) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        async with watching_on(swarm, node) as [watcher]:
            await trio.sleep(5 * MARK_S)
            assert watcher.marks == 1, "nothing moved"
            for i in range(60):
                await do(swarm, 0, Put(b"t/%d" % i, b""))
                await trio.sleep(MARK_S / 10)
            assert 4 <= watcher.marks <= 9
            assert watcher.changes == []
            await watcher.reaches(await swarm.store(0).read_index(), within_s=2 * MARK_S)


@pytest.mark.parametrize("node", [0, 3])
async def test_what_is_no_longer_kept(
    autojump_clock: trio.testing.MockClock, node: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "HISTORY_CHANGES_MAX", 5)
    async with running_swarm() as swarm:
        await grown(swarm)
        results = await do(swarm, 0, *(Put(b"u/a", b"%d" % i) for i in range(9)))
        with pytest.raises(Compacted, match=f"can be had is {results[4].revision}:"):
            await Watcher(swarm, node).run(results[3].revision)
        async with watching_on(swarm, node, from_revision=results[4].revision) as [watcher]:
            await watcher.reaches(results[-1].revision)
            assert len(watcher.changes) == 5


async def test_only_some_keys_can_be_watched(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0, 1)
        for node, prefix in ((0, b"t/"), (0, b""), (1, b"u")):
            with pytest.raises(BadRequest, match="begin with u/ or c/"):
                await Watcher(swarm, node, prefix).run()


async def test_watches_are_bounded_and_given_back(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "WATCHES_MAX", 2)
    async with running_swarm() as swarm:
        await swarm.start(0)
        for _ in range(2):
            async with watching_on(swarm, 0, 0):
                with pytest.raises(Busy):
                    await Watcher(swarm, 0).run()


async def test_polls_are_bounded_and_others_are_asked(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "POLLS_MAX", 1)
    async with running_swarm() as swarm:
        await grown(swarm)
        async with watching_on(swarm, 3, 3, 3) as watchers:
            for i in range(5):
                last = (await do(swarm, 0, Put(b"u/%d" % i, b"")))[0].revision
                for watcher in watchers:
                    await watcher.reaches(last)


async def test_a_watch_from_now_on_needs_a_majority(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        await swarm.crash(1, 2)
        for node in (0, 3):
            with pytest.raises(NoQuorum):
                await Watcher(swarm, node).run()


# ---- large things ------------------------------------------------------------------------


@pytest.mark.parametrize("node", [1, 3])
async def test_large_values(autojump_clock: trio.testing.MockClock, node: int) -> None:
    values = [bytes([i]) * (1024 * 1024 - i) for i in range(3)]
    async with running_swarm() as swarm:
        await grown(swarm)
        async with watching_on(swarm, node) as [watcher]:
            for value in values:
                last = (await do(swarm, 0, Put(b"u/big", value)))[0].revision
            await watcher.reaches(last)
            assert watcher.told == [(b"u/big", value) for value in values]


@pytest.mark.parametrize("node", [1, 3])
async def test_a_revision_of_many_keys_comes_as_one(
    autojump_clock: trio.testing.MockClock, node: int
) -> None:
    """2,000 keys of 900 bytes take several answers; nobody sees a part of them."""
    keys = [b"u/%04d" % i + b"k" * 900 for i in range(2_000)]
    async with running_swarm() as swarm:
        await grown(swarm)
        lease = (await do(swarm, 0, GrantLease(60_000)))[0].revision
        await do(swarm, 0, *(Put(key, b"", lease=lease) for key in keys))
        async with watching_on(swarm, node) as [watcher]:
            last = (await do(swarm, 0, Put(b"u/x", b""), m.RevokeLease(lease)))[1].revision
            await watcher.reaches(last)
            assert watcher.told == [(b"u/x", b""), *((key, None) for key in keys)]
            assert {change.revision for change in watcher.changes[1:]} == {last}


async def test_one_revision_is_continued_at_another_voter(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "TURN_CHANGES", 3)
    async with running_swarm() as swarm:
        await grown(swarm)
        puts = tuple(Put(b"u/%02d" % i, b"") for i in range(20))
        [done] = await do(swarm, 0, Txn((), puts))
        caller = swarm.store(3)._caller
        monkeypatch.setattr(
            caller, "ask_voter", _asking_another_voter_each_time(caller, swarm.id(3))
        )
        async with watching_on(swarm, 3, from_revision=done.revision) as [watcher]:
            await watcher.reaches(done.revision)
            assert watcher.told == [(put.key, b"") for put in puts]


def _asking_another_voter_each_time(caller, me):  # type: ignore[no-untyped-def]
    ask_voter = type(caller).ask_voter
    last = [None]

    async def ask(voter, message, timeout_s):  # type: ignore[no-untyped-def]
        last[0] = caller.other_voter(last[0])
        return await ask_voter(caller, last[0], message, timeout_s)

    return ask


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (m.WatchAsk(b"u/", 1, -5, 0), [b"u/a", b"u/b"]),
        (m.WatchAsk(b"u/", -7, 0, 0), "compacted"),
        (m.WatchAsk(b"u/", 0, 0, 0), "compacted"),
        (m.WatchAsk(b"u/", 2**63, 9, -1), []),
        (m.WatchAsk(b"", 1, 0, 0), "bad_request"),
        (m.WatchAsk(b"t/", 1, 0, 0), "bad_request"),
    ],
)
async def test_odd_questions_are_answered(
    autojump_clock: trio.testing.MockClock, ask: m.WatchAsk, told: list[bytes] | str
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0, 1)
        await do(swarm, 0, Put(b"u/a", b""), Put(b"u/b", b""))
        link = swarm.network.link(swarm.id(1))
        if isinstance(told, str):
            with pytest.raises(BadRequest) as caught:
                await link.request(m.STORE, swarm.id(0), ask, timeout_s=5.0)
            assert caught.value.code == told
        else:
            answer = await link.request(m.STORE, swarm.id(0), ask, timeout_s=5.0)
            assert [change.key for change in answer.changes] == told


async def test_where_nothing_changes_a_peer_is_answered_at_one_moment_and_each_at_its_own(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0, 1)
        last = (await do(swarm, 0, Put(b"u/a", b"")))[0].revision
        moments: dict[int, list[float]] = {1: [], 2: [], 3: []}

        async def ask(node: int) -> None:
            link = swarm.network.link(swarm.id(node))
            question = m.WatchAsk(b"u/", last + 1, 0, int(MARK_S * 1_000))

            async def once() -> None:
                for _ in range(2):
                    await link.request(m.STORE, swarm.id(0), question, timeout_s=10.0)
                moments[node].append(trio.current_time())

            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(once)
                    await trio.sleep(0.3)

        async with trio.open_nursery() as nursery:
            for node in moments:
                nursery.start_soon(ask, node)
        for several in moments.values():
            spread = {round(one % MARK_S, 2) for one in several}
            assert len(spread) == 1, several
        assert len({round(several[0] % MARK_S, 2) for several in moments.values()}) == 3


# ---- faults ------------------------------------------------------------------------------


async def test_a_watch_goes_on_when_its_voter_dies(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        async with watching_on(swarm, 3) as [watcher]:
            wanted = []
            for i in range(4):
                wanted.append((b"u/%d" % i, b""))
                last = (await do(swarm, 3, Put(*wanted[-1])))[0].revision
                await watcher.reaches(last)
                victim = await swarm.coordinator() if i % 2 else i % 3
                await swarm.crash(victim)
                await do(swarm, 3, Put(b"u/x", b"%d" % i))
                wanted.append((b"u/x", b"%d" % i))
                await swarm.start(victim)
                await swarm.voters_are(0, 1, 2)
            await watcher.reaches(await swarm.store(0).read_index())
            assert watcher.told == wanted


async def test_a_watch_turns_away_from_a_voter_that_is_cut_off(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        async with watching_on(swarm, 3, 3, 3, 3) as watchers:
            for cut in range(3):
                swarm.network.cut(swarm.id(cut), [swarm.id(i) for i in range(3) if i != cut])
                last = (await do(swarm, 3, Put(b"u/%d" % cut, b"")))[0].revision
                start = trio.current_time()
                for watcher in watchers:
                    await watcher.reaches(last)
                assert trio.current_time() - start < 1.5
                swarm.network.heal()
                await trio.sleep(1.0)
            for watcher in watchers:
                assert watcher.told == [(b"u/0", b""), (b"u/1", b""), (b"u/2", b"")]


@pytest.mark.parametrize("which", ["coordinator", "other"])
async def test_who_asked_a_voter_hears_at_once_that_it_has_no_leader(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        leader = await swarm.coordinator()
        victim = leader if which == "coordinator" else (leader + 1) % 3
        caller = swarm.store(3)._caller
        other_voter = caller.other_voter
        monkeypatch.setattr(
            caller,
            "other_voter",
            lambda voter: swarm.id(victim) if voter is None else other_voter(voter),
        )
        async with watching_on(swarm, 3, from_revision=1) as [watcher]:
            await watcher.reaches(await swarm.store(3).read_index())
            others = [swarm.id(i) for i in range(3) if i != victim]
            swarm.network.cut(swarm.id(victim), others)
            start = trio.current_time()
            last = (await do(swarm, (victim + 1) % 3, Put(b"u/a", b"")))[0].revision
            await watcher.reaches(last)
            assert trio.current_time() - start < MARK_S - 1.0


async def test_watches_cross_epochs(autojump_clock: trio.testing.MockClock) -> None:
    """One voter, then three, then without the first; on voters and on others."""
    async with running_swarm() as swarm:
        await swarm.start(0, 1)
        async with watching_on(swarm, 0, 1) as watchers:
            wanted = []

            async def write(node: int) -> int:
                wanted.append((b"u/%d" % len(wanted), b""))
                return (await do(swarm, node, Put(*wanted[-1])))[0].revision

            await write(0)
            await swarm.start(2)
            await write(1)
            await swarm.voters_are(0, 1, 2)
            await swarm.start(3)
            await write(2)
            await swarm.store(0).hand_over_seat()
            swarm.left.add(swarm.id(0))
            await swarm.voters_are(1, 2, 3)
            last = await write(0)
            for watcher in watchers:
                await watcher.reaches(last)
                assert watcher.told == wanted


@pytest.mark.parametrize("seed", range(6))
async def test_nothing_is_lost_or_twice_whatever_happens(
    autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    """Goal: a watch that is resumed by revision tells every change once and in order.

    Method: watches on all five nodes, writers on two; crashes, cuts, a voter that leaves and
    returns; a watch whose node crashes is resumed on another one where it was. At the end each
    must have told exactly what the history of a voter holds.
    """
    rng = make_rng(f"watch {seed}")
    async with running_swarm() as swarm, trio.open_nursery() as nursery:
        await grown(swarm)
        await swarm.start(4)
        begin = await swarm.store(0).read_index() + 1
        watchers = [Watcher(swarm, node) for node in range(5)]
        for watcher in watchers:
            nursery.start_soon(watcher.run, begin)
        stop = trio.Event()

        async def write(node: int) -> None:
            count = 0
            while not stop.is_set():
                count += 1
                key = b"u/%d" % rng.randrange(20)
                op: Operation = Put(key, b"%d/%d" % (node, count))
                if rng.random() < 0.2:
                    op = Delete(key)
                elif rng.random() < 0.3:
                    op = Txn((), (Put(key, b"t"), Put(b"g/task", b""), Put(b"u/last", b"")))
                await swarm.store(node).propose([op], timeout_s=30.0)
                await trio.sleep(rng.uniform(0.0, 0.05))

        # Nodes 3 and 4 never crash, so that their writers' outcomes are known.
        nursery.start_soon(write, 3)
        nursery.start_soon(write, 4)
        for _ in range(8):
            await trio.sleep(rng.uniform(0.2, 1.0))
            await _one_fault(swarm, watchers, nursery, rng)
        stop.set()
        await trio.sleep(1.0)
        last = await swarm.store(3).read_index()
        for watcher in watchers:
            await watcher.reaches(last)
        told = [watcher.changes for watcher in watchers]
        holder = next(n.store for n in swarm.nodes if n.store is not None and n.store.is_voter)
        assert holder.local is not None
        assert told == [holder.local.history.since(begin, b"u/")] * 5
        assert len(told[0]) > 50
        nursery.cancel_scope.cancel()


async def _one_fault(
    swarm: Swarm, watchers: list[Watcher], nursery: trio.Nursery, rng: Rng
) -> None:
    victim = rng.randrange(3)
    kind = rng.choice(["crash", "crash", "cut", "leave", "resume"])
    if kind == "crash":
        for watcher in watchers:
            if watcher.node == victim:
                watcher.scope.cancel()
                watcher.node = rng.choice([3, 4])
                await trio.sleep(0.0)
                nursery.start_soon(watcher.run)
        await swarm.crash(victim)
        await trio.sleep(rng.uniform(0.1, 2.0))
        await swarm.start(victim)
    elif kind == "cut":
        others = [swarm.id(i) for i in range(5) if i != victim]
        swarm.network.cut(swarm.id(victim), others if rng.random() < 0.5 else others[:2])
        await trio.sleep(rng.uniform(0.5, 3.0))
        swarm.network.heal()
    elif kind == "leave":
        await swarm.store(victim).hand_over_seat()
        await trio.sleep(1.0)
        swarm.store(victim).stay()
    else:
        watcher = rng.choice(watchers)
        watcher.scope.cancel()
        await trio.sleep(rng.uniform(0.0, 1.0))
        nursery.start_soon(watcher.run)
    with trio.fail_after(30):
        await swarm.store(3).read_index(30.0)
