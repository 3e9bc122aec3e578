"""Strong namespaces: what is agreed upon, for how long, and by whom a namespace is known."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from memory_swarm import MemorySwarm, Station, memory_swarm

from swarmd.base.errors import (
    BadRequest,
    Conflict,
    CorruptFile,
    DiskFault,
    EmptyKey,
    KeyTooLong,
    MalformedMessage,
    NamespaceExists,
    NamespaceInUse,
    NoQuorum,
    NotFound,
    ValueTooLarge,
)
from swarmd.base.limits import CRDT_VALUE_BYTES_MAX, MEMORY_STRONG_VALUE_BYTES_MAX
from swarmd.memory.cache.service import Turn
from swarmd.memory.kv import namespaces
from swarmd.memory.kv.eventual import BUCKET
from swarmd.memory.kv.namespaces import AGE_MAX_S
from swarmd.memory.kv.port import ABSENT, Entry
from swarmd.memory.kv.records import Consistency, value_key
from swarmd.memory.kv.service import SharedMemory
from swarmd.memory.kv.strong import StrongMemory, _Place
from swarmd.state.crdt.types.values import Assign
from swarmd.state.raft.messages import Put

Clock = trio.testing.MockClock
STRONG, EVENTUAL = Consistency.STRONG, Consistency.EVENTUAL


async def strong(swarm: MemorySwarm, name: str = "ledger") -> list[SharedMemory]:
    await swarm.stations[0].memory.namespaces.make(name, STRONG, by="ann")
    return [one.memory for one in swarm.stations]


def told(entry: Entry) -> tuple[Any, ...]:
    return entry.value, entry.created_by, entry.expires_at_ms > 0, entry.node


async def keys_of(station: Station, namespace: str) -> list[str]:
    return [one.key for one in (await station.memory.list(namespace))[0]]


async def test_what_one_node_wrote_every_other_reads_at_once(
    autojump_clock: Clock,
) -> None:
    async with memory_swarm(3) as swarm:
        a, b, c = await strong(swarm)
        for value in ("dark", 7, 1.5, None, True, [1, {"a": "ä"}], b"\x00"):
            written = await a.set("ledger", "k", value, by="ann")
            assert told(written) == (value, "ann", False, a.namespaces._me)
            assert await b.get("ledger", "k") == await c.get("ledger", "k") == written
        assert not swarm.stations[0].eventual.keys(BUCKET), "nothing of it is eventual"


@pytest.mark.parametrize("kind", [STRONG, EVENTUAL])
async def test_both_kinds_answer_alike(autojump_clock: Clock, kind: str) -> None:
    """Goal: whoever knows one kind of namespace knows the other."""
    async with memory_swarm(1) as swarm:
        memory = swarm.stations[0].memory
        await memory.namespaces.make("ns", Consistency(kind), by="ann")
        first = await memory.set("ns", "k1", 1, by="ann", if_version=ABSENT)
        second = await memory.set("ns", "k1", 2, by="ann", if_version=first.version)
        assert second.version not in (first.version, ABSENT)
        for version in (first.version, ABSENT, "nonsense"):
            with pytest.raises(Conflict, match="nothing changed"):
                await memory.set("ns", "k1", 3, by="ann", if_version=version)
            with pytest.raises(Conflict):
                await memory.delete("ns", "k1", if_version=version)
        await memory.set("ns", "k0", 0, by="bob")
        await memory.set("ns", "other/ä", 9, by="bob")
        found, more = await memory.list("ns", "k", limit=1)
        assert ([(one.key, one.value) for one in found], more) == ([("k0", 0)], True)
        found, more = await memory.list("ns", "k", after="k0")
        assert ([(one.key, one.value) for one in found], more) == ([("k1", 2)], False)
        found, more = await memory.list("ns", after="k1")
        assert ([one.key for one in found], more) == (["other/ä"], False)
        await memory.delete("ns", "k1", if_version=second.version)
        for call in (memory.delete("ns", "k1"), memory.get("ns", "k1")):
            with pytest.raises(NotFound, match="ns has no key 'k1'"):
                await call
        brief = await memory.set("ns", "brief", 1, by="", ttl_s=2.5)
        assert brief.expires_at_ms - brief.created_at_ms == 2_500
        await trio.sleep(2.4)
        assert (await memory.get("ns", "brief")).expires_at_ms == brief.expires_at_ms
        await trio.sleep(0.2)
        with pytest.raises(NotFound):
            await memory.get("ns", "brief")
        assert "brief" not in await keys_of(swarm.stations[0], "ns")
        again = await memory.set("ns", "brief", 2, by="", if_version=ABSENT)
        assert again.expires_at_ms == 0
        async with memory.watch("ns", "k") as watch:
            for key in ("x", "k1", "k2"):
                await memory.set("ns", key, 1, by="")
            await memory.delete("ns", "k1")
            assert [await watch.receive() for _ in range(2)] == ["k1", "k2"]
            assert not watch.lagged


@pytest.mark.parametrize("kind", [STRONG, EVENTUAL])
@pytest.mark.parametrize(
    ("key", "value", "ttl_s", "error"),
    [
        ("", 1, None, EmptyKey),
        ("x" * 881, 1, None, KeyTooLong),
        ("\ud800", 1, None, BadRequest),
        ("k", "x" * CRDT_VALUE_BYTES_MAX, None, ValueTooLarge),
        ("k", 2**70, None, MalformedMessage),
        ("k", 1, 0, BadRequest),
        ("k", 1, float("nan"), BadRequest),
        ("k", 1, 1e12, BadRequest),
    ],
)
async def test_a_mistake_is_refused_in_both(
    autojump_clock: Clock,
    kind: str,
    key: str,
    value: Any,
    ttl_s: float | None,
    error: type[Exception],
) -> None:
    async with memory_swarm(1) as swarm:
        memory = swarm.stations[0].memory
        await memory.namespaces.make("ns", Consistency(kind), by="ann")
        with pytest.raises(error):
            await memory.set("ns", key, value, by="", ttl_s=ttl_s)
        assert await memory.list("ns") == ([], False)


@pytest.mark.parametrize(
    ("version", "deletes"), [("there", False), ("there", True), (ABSENT, False)]
)
async def test_of_two_that_expect_the_same_version_one_counts(
    autojump_clock: Clock, version: str, deletes: bool
) -> None:
    """Goal: a version is compared where the write is applied, and not only where it is read.

    Method: both have read the version that they expect before either of them writes.
    """
    async with memory_swarm(2) as swarm:
        a, b = await strong(swarm)
        if version != ABSENT:
            version = (await a.set("ledger", "k", "old", by="")).version
        propose, arrived, both = swarm.store.propose, list[Any](), trio.Event()

        async def together(ops: Any, **more: Any) -> Any:
            if ops:
                arrived.append(ops)
                if len(arrived) == 2:
                    both.set()
                await both.wait()
            return await propose(ops, **more)

        told: list[str] = []

        async def write(memory: SharedMemory, value: str) -> None:
            try:
                if deletes and value == "b":
                    await memory.delete("ledger", "k", if_version=version)
                else:
                    await memory.set("ledger", "k", value, by="", if_version=version)
                told.append("counts")
            except Conflict as error:
                told.append(error.message)

        swarm.store.propose = together  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, a, "a")
            nursery.start_soon(write, b, "b")
        conflict = "'k' has another version by now: nothing changed"
        assert sorted(told) == [conflict, "counts"]


async def test_a_key_of_the_longest_kind_fits(autojump_clock: Clock) -> None:
    async with memory_swarm(1) as swarm:
        memory, name = swarm.stations[0].memory, "n" * 128
        await memory.namespaces.make(name, STRONG, by="ann")
        await memory.set(name, "x" * 880, "y" * (MEMORY_STRONG_VALUE_BYTES_MAX - 5), by="z" * 900)
        assert len((await memory.list(name))[0]) == 1


async def test_a_list_takes_no_more_than_its_bytes_at_once(
    autojump_clock: Clock,
) -> None:
    async with memory_swarm(1) as swarm:
        [memory] = await strong(swarm)
        for number in range(40):
            await memory.set("ledger", f"{number:02}", "x" * 700_000, by="")
        keys: list[str] = []
        more, rounds = True, 0
        while more:
            found, more = await memory.list("ledger", after=keys[-1] if keys else "")
            assert sum(len(one.value) for one in found) < 20 * 1024 * 1024
            keys += [one.key for one in found]
            rounds += 1
        assert keys == [f"{number:02}" for number in range(40)]
        assert rounds == 2


async def test_without_a_majority_a_strong_namespace_answers_no_quorum_and_nothing_else(
    autojump_clock: Clock,
) -> None:
    async with memory_swarm(2) as swarm:
        a, _ = await strong(swarm)
        await a.set("ledger", "k", 1, by="")
        swarm.store.no_quorum = True
        for call in (
            a.get("ledger", "k"),
            a.set("ledger", "k", 2, by=""),
            a.delete("ledger", "k"),
            a.namespaces.make("other", STRONG, by=""),
            a.namespaces.all(),
        ):
            with pytest.raises(NoQuorum):
                await call
        assert (await a.set("plain", "k", 1, by="")).value == 1, "eventual ones go on"
        # A node that heard of it nowhere knows no better; once it has, it never forgets.
        async with swarm.node(7, 8) as fresh:
            with pytest.raises(NotFound):
                await fresh.memory.get("ledger", "k")
        swarm.store.no_quorum = False
        async with swarm.node(7, 8) as fresh:
            assert (await fresh.memory.get("ledger", "k")).value == 1
        swarm.store.no_quorum = True
        async with swarm.node(7, 8) as fresh:
            with pytest.raises(NoQuorum):
                await fresh.memory.get("ledger", "k")


async def test_an_eventual_namespace_waits_once_for_a_majority_that_is_gone(
    autojump_clock: Clock,
) -> None:
    """Goal: a node that is cut off answers at once, however seldom it is asked; and once it is in
    reach again it soon knows what was made meanwhile, though nobody asks it.
    """
    async with memory_swarm(2) as swarm:
        a, b = (one.memory for one in swarm.stations)
        store, get, is_cut = swarm.store, swarm.store.get, True

        async def no_answer(key: bytes, **more: Any) -> Any:
            if is_cut:
                await trio.sleep(5.0)
                raise NoQuorum("no majority of the voters answers")
            return await get(key, **more)

        store.get = no_answer  # type: ignore[method-assign]
        await b.set("plain", "k", 1, by="")
        assert trio.current_time() < 1.1
        for gap_s in (0.01, 0.5, 0.9, 1.1, 3.0, 100.0):
            for _ in range(10):
                await trio.sleep(gap_s)
                began = trio.current_time()
                assert (await b.get("plain", "k")).value == 1
                await b.set("plain", "k", 1, by="")
                assert trio.current_time() - began < 0.1
        is_cut = False
        swarm.network.cut(a.namespaces._me, b.namespaces._me)
        await a.namespaces.make("ledger", STRONG, by="")
        await a.set("ledger", "k", 2, by="")
        assert (await b.get("ledger", "k")).value == 2


async def test_a_disk_that_refuses_keeps_nobody_from_knowing_a_namespace(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with memory_swarm(2) as swarm:
        a, b = swarm.stations

        async def refuses(*_: Any, **__: Any) -> None:
            raise DiskFault("the disk refuses writes")

        monkeypatch.setattr(b.eventual, "write", refuses)
        swarm.network.cut(a.memory.namespaces._me, b.memory.namespaces._me)
        for name in ("one", "two", "three"):
            await a.memory.namespaces.make(name, STRONG, by="")
            await a.memory.set(name, "k", name, by="")
        for name in ("one", "two", "three"):
            assert (await b.memory.get(name, "k")).value == name


async def test_a_namespace_is_what_it_was_made_as_for_ever(
    autojump_clock: Clock,
) -> None:
    async with memory_swarm(2) as swarm:
        a, b = (one.memory.namespaces for one in swarm.stations)
        made = await a.make("ledger", STRONG, by="ann")
        assert (made.created_by, made.is_strong, made.is_cache) == ("ann", True, False)
        assert await b.make("ledger", STRONG, by="bob") == made, "to repeat it changes nothing"
        with pytest.raises(NamespaceExists, match="is strong already"):
            await b.make("ledger", EVENTUAL, by="bob")
        cache = await a.make("built", EVENTUAL, by="ann", entries_max=5, bytes_max=1_000)
        assert cache.is_cache
        with pytest.raises(NamespaceExists, match="a cache of 5 values"):
            await b.make("built", EVENTUAL, by="bob", entries_max=6, bytes_max=1_000)
        await b._values.set("used", "k", 1, by="")
        with pytest.raises(NamespaceInUse, match="another name"):
            await b.make("used", STRONG, by="bob")
        for bounds in ((1, 0), (0, 1), (-1, 5), (10**9, 5), (5, 10**12)):
            with pytest.raises(BadRequest):
                await a.make("odd", EVENTUAL, by="", entries_max=bounds[0], bytes_max=bounds[1])
        with pytest.raises(BadRequest, match="a cache is eventual"):
            await a.make("odd", STRONG, by="", entries_max=5, bytes_max=5)
        with pytest.raises(BadRequest, match="not a namespace name"):
            await a.make("a/b", STRONG, by="")
        assert list(await b.all()) == ["built", "ledger"]


async def test_many_make_one_namespace_at_once_and_all_get_the_same(
    autojump_clock: Clock,
) -> None:
    async with memory_swarm(3) as swarm:
        made: list[object] = []

        async def make(number: int) -> None:
            station = swarm.stations[number % 3]
            made.append(await station.memory.namespaces.make("one", STRONG, by=str(number)))

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(make, number)
        assert len(made) == 12
        assert len(set(map(repr, made))) == 1


async def test_once_made_no_node_in_reach_takes_it_for_eventual(
    autojump_clock: Clock,
) -> None:
    """Goal: a set that was acknowledged is read everywhere, also where nobody told of it.

    Method: a node looks at the name before, so that it may believe what it knows; what nodes tell
    each other is lost; the namespace is made, and at once a value set and read there.
    """
    async with memory_swarm(2) as swarm:
        a, b = (one.memory for one in swarm.stations)
        for number in range(20):
            name = f"ns{number}"
            with pytest.raises(NotFound):
                await b.get(name, "k")
            await trio.sleep(0.13 * number)
            with pytest.raises(NotFound):
                await b.get(name, "k")
            swarm.network.cut(a.namespaces._me, b.namespaces._me)
            await a.namespaces.make(name, STRONG, by="ann")
            await a.set(name, "k", number, by="ann")
            assert (await b.get(name, "k")).value == number
            swarm.network.heal()


async def test_without_the_wait_one_would_take_it_for_eventual(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the test before can fail."""
    async with memory_swarm(2) as swarm:
        a, b = (one.memory for one in swarm.stations)
        with pytest.raises(NotFound):
            await b.get("ns", "k")
        await trio.sleep(0.1)
        swarm.network.cut(a.namespaces._me, b.namespaces._me)
        monkeypatch.setattr(namespaces, "_SPARE_S", 0.01 - AGE_MAX_S)
        await a.namespaces.make("ns", STRONG, by="ann")
        await a.set("ns", "k", 1, by="ann")
        with pytest.raises(NotFound):
            await b.get("ns", "k")


async def test_what_a_cut_off_node_wrote_meanwhile_is_left_over_and_told(
    autojump_clock: Clock,
) -> None:
    async with memory_swarm(1) as swarm:
        [memory] = await strong(swarm)
        await memory.eventual.set("ledger", "k", "lost", by="who was cut off")
        with pytest.raises(NotFound):
            await memory.get("ledger", "k")
        assert await memory.namespaces.left_over("ledger") == 1


async def test_what_has_ended_is_removed_by_the_coordinator_a_part_at_a_time(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmd.memory.kv.strong._SWEEP_RECORDS", 10)
    async with memory_swarm(1) as swarm:
        [memory] = await strong(swarm)
        for number in range(35):
            ttl_s = 1.0 if number % 2 else None
            await memory.set("ledger", f"{number:02}", number, by="", ttl_s=ttl_s)

        def held() -> int:
            return len(swarm.store.applier.state.range(b"m/v/"))

        swarm.store.office = None
        await trio.sleep(20)
        assert held() == 35, "another node coordinates"
        swarm.store.office = object()
        await trio.sleep(2)
        assert held() == 18
        assert await keys_of(swarm.stations[0], "ledger") == [f"{n:02}" for n in range(0, 35, 2)]


async def test_many_eventual_values_that_expire_at_once_are_removed_within_seconds(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmd.memory.kv.eventual._SWEEP_REMOVES_MAX", 5)
    async with memory_swarm(1) as swarm:
        [station] = swarm.stations
        for number in range(52):
            await station.memory.set("plain", f"k{number}", 1, by="", ttl_s=1)
        await trio.sleep(8)
        assert station.eventual.keys(BUCKET) == []


async def test_a_sweep_never_takes_a_value_that_was_written_anew(
    autojump_clock: Clock,
) -> None:
    async with memory_swarm(1) as swarm:
        [memory] = await strong(swarm)
        store = swarm.store
        await memory.set("ledger", "k", "old", by="", ttl_s=1)
        store.office = None
        await trio.sleep(10)
        propose = store.propose

        async def late(ops: Any, **more: Any) -> Any:
            store.propose = propose  # type: ignore[method-assign]
            await memory.set("ledger", "k", "new", by="")
            return await propose(ops, **more)

        sweeper = StrongMemory(memory.namespaces._me, store, memory.namespaces._clock)
        store.office = object()
        store.propose = late  # type: ignore[method-assign]
        await sweeper.sweep_once(_Place())
        assert (await memory.get("ledger", "k")).value == "new"


async def test_what_has_not_changed_is_not_looked_through_again(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: however many values there are, an idle coordinator does not walk through them."""
    monkeypatch.setattr("swarmd.memory.kv.strong._SWEEP_RECORDS", 10)
    async with memory_swarm(1) as swarm:
        [memory] = await strong(swarm)
        for number in range(35):
            await memory.set("ledger", f"{number:02}", 1, by="")
        await memory.set("ledger", "brief", 1, by="", ttl_s=30)
        state, looks = swarm.store.applier.state, 0
        looked = state.range

        def counted(*arguments: Any) -> Any:
            nonlocal looks
            looks += 1
            return looked(*arguments)

        monkeypatch.setattr(state, "range", counted)
        await trio.sleep(25)
        assert 5 <= looks <= 10, "one round of pages, or two"
        await trio.sleep(15)
        assert state.get(value_key("ledger", "brief")) is None, "what ends is found all the same"
        assert looks <= 30


async def test_a_watch_that_lost_changes_says_so_and_goes_on(
    autojump_clock: Clock,
) -> None:
    async with memory_swarm(1) as swarm:
        [memory] = await strong(swarm)
        async with memory.watch("ledger") as watch:
            await memory.set("ledger", "first", 0, by="")
            assert await watch.receive() == "first"
            await fill_history(memory)
            with trio.fail_after(1):
                assert await watch.receive() is None, "at once, and not with the next change"
            assert watch.lagged
            await memory.set("ledger", "last", 0, by="")
            assert await watch.receive() == "last"


async def fill_history(memory: SharedMemory) -> None:
    """Change so much that what changed before is not kept any more."""
    for number in range(8):
        await memory.set("ledger", f"large{number}", "x" * 1_000_000, by="")


async def test_a_watch_goes_on_where_another_one_was_on_another_node(
    autojump_clock: Clock,
) -> None:
    async with memory_swarm(2) as swarm:
        a, b = await strong(swarm)
        async with a.watch("ledger", "k") as watch:
            await a.set("ledger", "k1", 0, by="")
            assert await watch.receive() == "k1"
            for key in ("x", "k2", "k3", "k2"):
                await a.set("ledger", key, 0, by="")
            assert await watch.receive() == "k2"
            position = watch.position
        await a.delete("ledger", "k1")
        async with b.watch("ledger", "k", position) as watch:
            assert watch.position == position
            # Of k2 the second change had not been told.
            assert [await watch.receive() for _ in range(3)] == ["k3", "k2", "k1"]
            assert not watch.lagged
            position = watch.position
        async with a.watch("ledger", "k", position) as watch:
            with trio.move_on_after(10):
                pytest.fail(f"{await watch.receive()} was told twice")
            assert (watch.lagged, watch.position) == (False, position)


async def test_a_watch_of_a_position_of_long_ago_says_so_at_once(autojump_clock: Clock) -> None:
    async with memory_swarm(2) as swarm:
        a, b = await strong(swarm)
        async with a.watch("ledger") as watch:
            position = watch.position
        await fill_history(a)
        async with b.watch("ledger", since=position) as watch:
            with trio.fail_after(1):
                assert await watch.receive() is None
            assert watch.lagged
            await a.set("ledger", "next", 0, by="")
            assert await watch.receive() == "next"


@pytest.mark.parametrize("position", ["nonsense", "-1", "²", "9" * 18, "9" * 30, "5f0c-17"])
async def test_a_watch_of_a_position_that_never_was_says_so(
    autojump_clock: Clock, position: str
) -> None:
    async with memory_swarm(1) as swarm:
        [memory] = await strong(swarm)
        async with memory.watch("ledger", since=position) as watch:
            assert watch.lagged
            await memory.set("ledger", "next", 0, by="")
            with trio.fail_after(10):
                assert await watch.receive() == "next"


async def test_a_marker_that_no_build_wrote_is_nothing(
    autojump_clock: Clock,
) -> None:
    async with memory_swarm(1) as swarm:
        memory = swarm.stations[0].memory
        for raw in ("strong", ["strong", -1], [["strong"]], {"a": 1}, 7):
            await swarm.stations[0].eventual.write(namespaces.BUCKET, "odd", Assign(raw))
            assert memory.namespaces.known("odd") is None
        assert (await memory.set("odd", "k", 1, by="")).value == 1


async def test_what_a_member_put_there_that_no_build_wrote_harms_nobody_else(
    autojump_clock: Clock,
) -> None:
    async with memory_swarm(2) as swarm:
        a, b = await strong(swarm)
        await a.set("ledger", "good", 1, by="")
        odd = (b"", b"\xff" * 20, bytes(8), bytes(8) + b"\x94\xc4\x01\xc1\xa0\x00\xc4\x00")
        for number, raw in enumerate(odd):
            key = f"odd{number}"
            puts = [
                Put(b"m/v/ledger/" + key.encode(), raw),
                Put(b"m/n/" + key.encode(), raw),
                Put(b"m/n/\xff" + key.encode(), raw),
                Put(b"m/c/built/" + key.encode(), raw),
                Put(b"m/t", raw),
            ]
            assert all(one.ok for one in await swarm.store.propose(puts))
            with pytest.raises(CorruptFile, match="set it anew, or delete it"):
                await b.get("ledger", key)
            assert await keys_of(swarm.stations[1], "ledger") == ["good"]
            assert "ledger" in await b.namespaces.all()
            found = await swarm.stations[1].cache.turn("built", key, by="", wait_s=1)
            assert isinstance(found, Turn)
            if number % 2:
                await b.delete("ledger", key)
            else:
                await b.set("ledger", key, 1, by="")
                await b.delete("ledger", key)
        await trio.sleep(20)
        await a.namespaces.make("another", STRONG, by="")
