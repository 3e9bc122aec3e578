"""Policies of namespaces: what they say of a write, what may not be declared, and who knows."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from memory_swarm import Station, memory_swarm

from swarmd.base.errors import (
    BadRequest,
    DiskFault,
    NamespaceExists,
    NoQuorum,
    NotFound,
    PolicyConflict,
    ValueTooLarge,
    WouldLoseData,
    WrongType,
)
from swarmd.memory.cache.service import Turn
from swarmd.memory.kv.namespaces import BUCKET
from swarmd.memory.kv.policies import PolicyChange, changed, is_of, ttl_of
from swarmd.memory.kv.records import (
    Consistency,
    Namespace,
    ValueType,
    decode_namespace,
)
from swarmd.state.crdt.types.values import Assign
from swarmd.wire.codec import encode_struct

Clock = trio.testing.MockClock
STRONG, EVENTUAL = Consistency.STRONG, Consistency.EVENTUAL
KIB = 1024


async def keys_of(station: Station, namespace: str) -> list[str]:
    return [one.key for one in (await station.memory.list(namespace))[0]]


# ---- pure ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "types"),
    [
        ("x", {"string"}),
        (7, {"number", "integer"}),
        (1.5, {"number"}),
        (True, {"boolean"}),
        (None, set()),
        ([1], {"array"}),
        ({"a": 1}, {"object"}),
        (b"x", set()),
    ],
)
def test_values_are_of_the_types_that_json_schema_names(value: Any, types: set[str]) -> None:
    assert {one.value for one in ValueType if is_of(one, value)} == types | {"any"}


def test_a_change_says_what_is_new_and_counts_up_only_then() -> None:
    first = Namespace(EVENTUAL, created_by="ann")
    second = changed(first, PolicyChange(ttl_s=1.5, readers=("operator",)))
    assert (second.ttl_ms, second.readers, second.change) == (1_500, ("operator",), 1)
    assert changed(second, PolicyChange(ttl_s=1.5)) is second
    assert changed(second, PolicyChange()) is second
    third = changed(second, PolicyChange(ttl_s=0, readers=(), type=ValueType.STRING))
    assert third == Namespace(EVENTUAL, created_by="ann", change=2, type=ValueType.STRING)
    assert (ttl_of(second, None), ttl_of(second, 9.0), ttl_of(third, None)) == (1.5, 9.0, None)


@pytest.mark.parametrize(
    ("record", "change"),
    [
        (Namespace(STRONG), PolicyChange(bytes_max=4_096)),
        (Namespace(), PolicyChange(bytes_max=1_023)),
        (Namespace(), PolicyChange(bytes_max=-1)),
        (Namespace(), PolicyChange(bytes_max=2**50)),
        (Namespace(), PolicyChange(entries_max=5, bytes_max=4_096)),
        (Namespace(EVENTUAL, 5, 4_096), PolicyChange(entries_max=0)),
        (Namespace(EVENTUAL, 5, 4_096), PolicyChange(bytes_max=0)),
        (Namespace(EVENTUAL, 5, 4_096), PolicyChange(entries_max=10**9)),
        (Namespace(), PolicyChange(ttl_s=-1)),
        (Namespace(), PolicyChange(ttl_s=float("nan"))),
        (Namespace(), PolicyChange(ttl_s=1e12)),
    ],
)
def test_a_policy_that_cannot_be_is_refused(record: Namespace, change: PolicyChange) -> None:
    with pytest.raises(BadRequest):
        changed(record, change)


def test_a_record_of_before_there_were_policies_is_read() -> None:
    raw = msgspec.msgpack.encode(["strong", 0, 0, "ann", 5, b"n"])
    assert decode_namespace(raw) == Namespace(STRONG, 0, 0, "ann", 5, b"n")


@given(st.lists(st.integers(0, 8), min_size=1, max_size=30))
def test_of_two_records_the_one_changed_more_often_counts(order: list[int]) -> None:
    """Goal: in whatever order a node hears of records, it ends with the latest of them."""
    from swarmd.memory.kv.namespaces import Namespaces

    knows = object.__new__(Namespaces)
    knows._table = {}
    for number in order:
        knows._learn("ns", Namespace(change=number))
    knows._learn("ns", Namespace(STRONG, change=99))
    assert knows._table["ns"] == Namespace(change=max(order)), "consistency is for ever"


# ---- declared ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [STRONG, EVENTUAL])
async def test_values_that_do_not_say_when_they_end_end_by_policy(
    autojump_clock: Clock, kind: Consistency
) -> None:
    async with memory_swarm(2) as swarm:
        a, b = (one.memory for one in swarm.stations)
        await a.namespaces.make("ns", kind, by="ann", policy=PolicyChange(ttl_s=10))
        await b.set("ns", "usual", 1, by="")
        await b.set("ns", "long", 1, by="", ttl_s=100)
        await a.change("ns", PolicyChange(ttl_s=0), by="ann")
        await trio.sleep(2.5)
        assert (await b.set("ns", "lasting", 1, by="")).expires_at_ms == 0
        assert (await b.get("ns", "usual")).expires_at_ms > 0, "it keeps the end that it had"
        await trio.sleep(10)
        assert await keys_of(swarm.stations[1], "ns") == ["lasting", "long"]


@pytest.mark.parametrize("kind", [STRONG, EVENTUAL])
async def test_values_of_another_type_are_refused_in_both(
    autojump_clock: Clock, kind: Consistency
) -> None:
    async with memory_swarm(1) as swarm:
        memory = swarm.stations[0].memory
        await memory.namespaces.make("ns", kind, by="", policy=PolicyChange(type=ValueType.INTEGER))
        await memory.set("ns", "k", 7, by="")
        for value in ("7", 7.0, True, None):
            with pytest.raises(WrongType, match=r"of the type integer, not .*: nothing changed"):
                await memory.set("ns", "k", value, by="")
        assert (await memory.get("ns", "k")).value == 7
        with pytest.raises(PolicyConflict, match="'k' in ns is no string: nothing changed"):
            await memory.change("ns", PolicyChange(type=ValueType.STRING), by="")
        await memory.change("ns", PolicyChange(type=ValueType.NUMBER), by="")
        await memory.set("ns", "k", 7.5, by="")


async def test_what_was_written_longest_ago_goes_when_a_namespace_is_full(
    autojump_clock: Clock,
) -> None:
    async with memory_swarm(2) as swarm:
        a, b = swarm.stations
        await a.memory.namespaces.make("ns", EVENTUAL, by="", bytes_max=10 * KIB)
        for number in range(9):
            await a.memory.set("ns", f"k{number}", "x" * 1_000, by="")
            await trio.sleep(0.01)
        await trio.sleep(6)
        await a.memory.set("ns", "k0", "x" * 1_000, by="")
        for _ in range(50):
            await a.memory.get("ns", "k1")  # To read it does not keep it.
        await trio.sleep(6)
        await b.memory.set("ns", "new", "x" * 2_000, by="")
        assert await keys_of(b, "ns") == ["k0", *(f"k{n}" for n in range(3, 9)), "new"]
        await trio.sleep(3)
        assert await keys_of(a, "ns") == await keys_of(b, "ns")
        with pytest.raises(ValueTooLarge, match="more than ns may hold"):
            await b.memory.set("ns", "large", "x" * 10 * KIB, by="")
        assert "large" not in await keys_of(b, "ns")


async def test_a_bound_takes_away_what_is_there_only_if_that_is_said(
    autojump_clock: Clock,
) -> None:
    async with memory_swarm(2) as swarm:
        a, b = (one.memory for one in swarm.stations)
        for number in range(8):
            await a.set("ns", f"k{number}", "x" * 1_000, by="")
            await trio.sleep(0.01)
        with pytest.raises(WouldLoseData, match=r"ns holds \d+ bytes, more than 4096"):
            await a.change("ns", PolicyChange(bytes_max=4_096), by="")
        await trio.sleep(10)
        assert len(await keys_of(swarm.stations[0], "ns")) == 8
        await a.change("ns", PolicyChange(bytes_max=9_000), by="")
        await a.change("ns", PolicyChange(bytes_max=4_096), by="", evict=True)
        await trio.sleep(5)
        assert await keys_of(swarm.stations[1], "ns") == ["k5", "k6", "k7"]
        assert (await b.namespaces.of("ns")).bytes_max == 4_096
        await a.change("ns", PolicyChange(bytes_max=0), by="")
        await trio.sleep(3)
        for number in range(8):
            await b.set("ns", f"k{number}", "x" * 1_000, by="")
        await trio.sleep(5)
        assert len(await keys_of(swarm.stations[0], "ns")) == 8


async def test_a_policy_holds_what_is_computed_too(autojump_clock: Clock) -> None:
    async with memory_swarm(1) as swarm:
        [one] = swarm.stations
        policy = PolicyChange(ttl_s=5, type=ValueType.STRING)
        await one.memory.namespaces.make(
            "built", EVENTUAL, by="", entries_max=9, bytes_max=9_000, policy=policy
        )
        turn = await one.cache.turn("built", "k", by="", wait_s=1)
        assert isinstance(turn, Turn)
        with pytest.raises(WrongType):
            await one.cache.finish("built", "k", turn.fence, 7, by="")
        entry = await one.cache.finish("built", "k", turn.fence, "seven", by="")
        assert entry.expires_at_ms - entry.created_at_ms == 5_000
        await one.memory.change("built", PolicyChange(entries_max=3), by="")
        assert (await one.memory.namespaces.of("built")).entries_max == 3


# ---- who knows -----------------------------------------------------------------------------


async def test_a_change_is_known_to_every_node_within_seconds(autojump_clock: Clock) -> None:
    """Goal: whether a node hears it from others or from the strong store, it follows."""
    async with memory_swarm(3) as swarm:
        a, b, c = (one.memory for one in swarm.stations)
        await a.namespaces.make("ns", STRONG, by="")
        for memory in (b, c):
            assert (await memory.namespaces.of("ns")).ttl_ms == 0
        swarm.network.cut(a.namespaces._me, c.namespaces._me)
        swarm.network.cut(b.namespaces._me, c.namespaces._me)
        await a.change("ns", PolicyChange(ttl_s=5), by="ann")
        for _ in range(4):
            await trio.sleep(1)
            await c.namespaces.of("ns")
        assert b.namespaces.known("ns") == c.namespaces.known("ns")
        assert (await c.namespaces.of("ns")).ttl_ms == 5_000


async def test_a_policy_survives_restarts_without_a_majority(autojump_clock: Clock) -> None:
    async with memory_swarm(2) as swarm:
        a = swarm.stations[0].memory
        await a.set("ns", "k", 1, by="")
        await a.change("ns", PolicyChange(readers=("operator",)), by="ann")
        await a.change("ns", PolicyChange(ttl_s=5), by="ann")
        async with swarm.node(7, 8) as fresh:
            assert (await fresh.memory.namespaces.of("ns")).ttl_ms == 5_000
        swarm.store.no_quorum = True
        async with swarm.node(7, 8) as fresh:
            found = await fresh.memory.namespaces.of("ns")
            assert (found.readers, found.ttl_ms, found.change) == (("operator",), 5_000, 2)
            assert found.created_by == "ann"
            with pytest.raises(NoQuorum):
                await fresh.memory.change("ns", PolicyChange(ttl_s=1), by="")


async def test_an_older_record_that_comes_late_does_not_count(autojump_clock: Clock) -> None:
    """Goal: what another node remembers of before a change does not bring that back.

    Method: a node writes the old record into the eventual store after the new one.
    """
    async with memory_swarm(2) as swarm:
        a, b = swarm.stations
        await a.memory.set("ns", "k", 1, by="")
        old = await a.memory.change("ns", PolicyChange(ttl_s=9), by="")
        new = await a.memory.change("ns", PolicyChange(ttl_s=5), by="")
        await trio.sleep(2)
        swarm.network.cut(a.memory.namespaces._me, b.memory.namespaces._me)
        await a.memory.change("ns", PolicyChange(ttl_s=7), by="")
        plain = list(msgspec.to_builtins(old, builtin_types=(bytes,)))
        await trio.sleep(1)
        await b.eventual.write(BUCKET, "ns", Assign(plain))
        swarm.network.heal()
        await trio.sleep(10)
        assert new.change == 2
        for one in (a, b):
            assert (await one.memory.namespaces.of("ns")).ttl_ms == 7_000


async def test_a_disk_that_refuses_keeps_nobody_from_following(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with memory_swarm(2) as swarm:
        a, b = swarm.stations
        await a.memory.namespaces.make("ns", STRONG, by="")

        async def refuses(*_: Any, **__: Any) -> None:
            raise DiskFault("the disk refuses writes")

        monkeypatch.setattr(b.eventual, "write", refuses)
        swarm.network.cut(a.memory.namespaces._me, b.memory.namespaces._me)
        await a.memory.change("ns", PolicyChange(ttl_s=5), by="")
        await b.memory.namespaces.of("ns")
        await trio.sleep(2)
        await b.memory.namespaces.of("ns")
        await trio.sleep(0.1)
        assert (await b.memory.namespaces.of("ns")).ttl_ms == 5_000


async def test_who_changes_at_once_does_not_undo_the_other(autojump_clock: Clock) -> None:
    async with memory_swarm(3) as swarm:
        a, b, c = (one.memory for one in swarm.stations)
        await a.set("ns", "k", 1, by="")
        changes = [
            PolicyChange(ttl_s=5),
            PolicyChange(type=ValueType.INTEGER),
            PolicyChange(bytes_max=4_096),
            PolicyChange(writers=("operator",)),
        ]
        async with trio.open_nursery() as nursery:
            for number, change in enumerate(changes):
                memory = (a, b, c)[number % 3]
                nursery.start_soon(lambda m=memory, one=change: m.change("ns", one, by=""))
        found = (await a.namespaces.all())["ns"]
        assert (found.ttl_ms, found.type, found.bytes_max) == (5_000, ValueType.INTEGER, 4_096)
        assert (found.writers, found.change) == (("operator",), 4)


async def test_a_mistyped_namespace_is_not_made_by_a_change(autojump_clock: Clock) -> None:
    async with memory_swarm(1) as swarm:
        memory = swarm.stations[0].memory
        await memory.namespaces.make("ledger", STRONG, by="")
        with pytest.raises(NotFound, match="did you mean ledger"):
            await memory.change("leger", PolicyChange(ttl_s=5), by="")
        with pytest.raises(NotFound, match="make it first"):
            await memory.change("quite-else", PolicyChange(ttl_s=5), by="")
        with pytest.raises(BadRequest, match="not a namespace name"):
            await memory.change("a/b", PolicyChange(ttl_s=5), by="")
        assert list(await memory.namespaces.all()) == ["ledger"]
        await memory.change("ledger", PolicyChange(ttl_s=5), by="")
        with pytest.raises(NamespaceExists, match="values end after 5 s"):
            await memory.namespaces.make("ledger", STRONG, by="")


@given(st.binary(max_size=200))
def test_records_survive_any_bytes(raw: bytes) -> None:
    from swarmd.base.errors import CorruptFile

    try:
        found = decode_namespace(raw)
    except CorruptFile:
        return
    assert decode_namespace(encode_struct(found)) == found
