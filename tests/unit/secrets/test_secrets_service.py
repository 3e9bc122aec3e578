"""Secrets over real stores: who has keys, what rotates them, and what is lost with them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
from secrets_swarm import SecretSwarm, secret_swarm, until

from swarmd.base.errors import (
    BadRequest,
    Forbidden,
    InsufficientCopies,
    NoQuorum,
    NotFound,
    SecretInUse,
    SecretUnreadable,
    TooLarge,
    Unavailable,
)
from swarmd.base.limits import SECRET_BYTES_MAX
from swarmd.identity.sealing import SealingKey
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World
from swarmd.state.raft.messages import SECRET_PREFIX, Delete, Put
from swarmd.state.secrets import machine, service
from swarmd.state.secrets import ring as ring_module
from swarmd.state.secrets.keyring import FILE_NAME, Keyring
from swarmd.state.secrets.messages import KEYS_MAX, SECRETS, HeldKey, Keep, KeysAsk
from swarmd.state.secrets.records import (
    RING_KEY,
    USES_KEY,
    VALUE_PREFIX,
    RingKey,
    RingRecord,
    decode_ring,
    decode_secret,
    secret_key,
)


async def nobody() -> list[str]:
    return []


async def ring_of(swarm: SecretSwarm, index: int) -> Any:
    entry = await swarm.swarm.store(index).get(RING_KEY)
    return decode_ring(entry.value) if entry is not None else None


async def test_a_secret_is_read_on_every_member_that_may_vote(autojump_clock: object) -> None:
    async with secret_swarm(0, 1, 2, 3, logged=True) as swarm:
        assert await swarm.at(3).set("db", "first value", "ann") == 1
        assert await swarm.at(1).set("db", "other value", "bob") == 2
        for index in swarm.up:
            value, revision = await swarm.at(index).value("db")
            assert value == "other value"
        [shown] = await swarm.at(2).list()
        assert (shown.name, shown.version, shown.set_by) == ("db", 2, "bob")
        entries = await swarm.swarm.store(0).range(SECRET_PREFIX)
        assert entries
        assert not [one for one in entries if b"value" in one.value]
        assert revision == (await swarm.swarm.store(0).get(secret_key("db"))).mod_revision
        await until(lambda: all(swarm.keys_on_disk(index) == 1 for index in swarm.up))


async def test_a_key_is_on_a_majority_before_it_seals_anything(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with secret_swarm(0, 1, 2) as swarm:
        office = await swarm.swarm.coordinator()

        async def refuse(self: Any, peer: Any, message: Any) -> Any:
            raise Forbidden("not now")

        answer = ring_module.Ring.answer
        monkeypatch.setattr(ring_module.Ring, "answer", refuse)
        with pytest.raises(InsufficientCopies, match="nothing was changed"):
            await swarm.at(office).set("db", "some value", "ann")
        assert await ring_of(swarm, office) is None
        assert await swarm.at(office).list() == []
        monkeypatch.setattr(ring_module.Ring, "answer", answer)
        await swarm.at(office).set("db", "some value", "ann")
        # What never got into the ring is dropped by those who kept it.
        await until(lambda: all(swarm.keys_on_disk(index) == 1 for index in swarm.up))


def test_keys_that_never_get_into_the_ring_do_not_pile_up() -> None:
    keyring = Keyring(SimDisk(World(1), "s"))
    listed = HeldKey(b"l" * 32)
    keyring.keep([listed], None)
    ring = RingRecord((RingKey(SealingKey(listed.raw).id, 1),))
    for number in range(100):
        keyring.keep([HeldKey(bytes([number]) * 32, 7)], ring)
    held = keyring.held()
    assert len(held) == KEYS_MAX // 2 + 1
    assert listed in held
    assert held[-1].raw == bytes([99]) * 32
    keyring.prune(ring, 8)
    assert keyring.held() == (listed,)
    keyring.forget()
    with pytest.raises(Unavailable, match="no keys"):
        keyring.seal(ring.newest.id, b"data", b"about")


async def test_keys_outlive_restarts_and_reach_members_that_come_later(
    autojump_clock: object,
) -> None:
    async with secret_swarm(0, 1, 2) as swarm:
        await swarm.at(0).set("db", "some value", "ann")
        await swarm.crash(0, 1, 2)
        await swarm.start(0, 1, 2)
        assert (await swarm.at(2).value("db"))[0] == "some value"
        await swarm.start(3)
        await until(lambda: swarm.keys_on_disk(3) == 1)
        assert (await swarm.at(3).value("db"))[0] == "some value"


async def test_who_may_not_vote_gets_no_keys_and_loses_those_it_has(
    autojump_clock: object,
) -> None:
    async with secret_swarm(0, 1, 2, 3) as swarm:
        await swarm.at(0).set("db", "some value", "ann")
        await until(lambda: all(swarm.keys_on_disk(index) == 1 for index in swarm.up))
        worker = next(i for i in swarm.up if swarm.swarm.id(i) not in swarm.swarm.store(0).voters)
        other = next(i for i in swarm.up if i != worker)
        swarm.set_roles(worker, "worker")
        await until(lambda: swarm.disks[worker].read(FILE_NAME) is None)
        link = swarm.swarm.nodes[worker].link
        held = HeldKey(b"k" * 32)
        for message in (KeysAsk(), Keep((held,))):
            with pytest.raises(Forbidden, match="may vote"):
                await link.request(SECRETS, swarm.swarm.id(other), message, timeout_s=5)
        with pytest.raises(SecretUnreadable):
            await swarm.at(worker).value("db")
        # It has others do it.
        assert await swarm.at(worker).set("db", "other value", "bob") == 2
        assert (await swarm.at(other).value("db"))[0] == "other value"


async def test_an_eviction_seals_everything_anew_and_drops_the_old_key(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "RETIRE_AFTER_MS", 5_000)
    monkeypatch.setattr(service, "_LOOK_S", 1.0)
    async with secret_swarm(0, 1, 2, 3) as swarm:
        for number in range(40):
            await swarm.at(0).set(f"s{number}", f"value {number}", "ann")
        before = await ring_of(swarm, 0)
        gone = next(i for i in swarm.up if swarm.swarm.id(i) not in swarm.swarm.store(0).voters)
        await swarm.crash(gone)
        other = swarm.up[0]
        swarm.evict(gone)

        def resealed() -> bool:
            after = swarm.at(other).ring.record
            assert after is not None
            state = swarm.swarm.store(other).local
            assert state is not None
            found = [decode_secret(one.value) for one in state.range(VALUE_PREFIX, b"", 100)]
            assert len(found) == 40
            return after.newest != before.newest and all(
                one.box.key == after.newest.id for one in found
            )

        await until(resealed)
        ring = await ring_of(swarm, other)
        assert [key.id for key in ring.keys] == [before.newest.id, ring.newest.id]
        assert ring.evicted == 1
        for index in swarm.up:
            assert (await swarm.at(index).value("s7"))[0] == "value 7"
            assert (await swarm.at(index).list())[7].version == 1
        await until(lambda: all(swarm.keys_on_disk(index) == 1 for index in swarm.up))
        assert (await swarm.at(other).value("s39"))[0] == "value 39"


async def test_an_eviction_while_a_key_is_made_has_another_one_made(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was shut out just then may have been given it."""
    async with secret_swarm(0, 1, 2, 3) as swarm:
        spread = ring_module.Ring._spread
        gone = next(i for i in swarm.up if swarm.swarm.id(i) not in swarm.swarm.store(0).voters)
        given: list[bytes] = []

        async def evict_then(self: Any, key: HeldKey) -> None:
            await spread(self, key)
            given.append(SealingKey(key.raw).id)
            if len(given) == 1:
                await swarm.crash(gone)
                swarm.evict(gone)

        monkeypatch.setattr(ring_module.Ring, "_spread", evict_then)
        other = next(i for i in swarm.up if i != gone)
        await swarm.at(other).set("db", "some value", "ann")
        await until(lambda: len(given) == 2)
        await until(lambda: all(swarm.keys_on_disk(index) == 2 for index in swarm.up))
        ring = await ring_of(swarm, other)
        assert [key.id for key in ring.keys] == given
        assert ring.evicted == 1


async def test_a_record_that_cannot_be_read_keeps_the_keys_that_it_may_need(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "RETIRE_AFTER_MS", 5_000)
    monkeypatch.setattr(service, "_LOOK_S", 1.0)
    monkeypatch.setattr(service, "_WALK_S", 2.0)
    async with secret_swarm(0, 1, 2, 3) as swarm:
        await swarm.at(0).set("db", "some value", "ann")
        gone = next(i for i in swarm.up if swarm.swarm.id(i) not in swarm.swarm.store(0).voters)
        await swarm.crash(gone)
        other = swarm.up[0]
        store, ring = swarm.swarm.store(other), swarm.at(other).ring
        await store.propose([Put(VALUE_PREFIX + b"later", b"of a later version")])
        swarm.evict(gone)
        await until(lambda: ring.record is not None and len(ring.record.keys) == 2)
        await trio.sleep(30)
        assert len((await ring_of(swarm, other)).keys) == 2
        await store.propose([Delete(VALUE_PREFIX + b"later")])
        await until(lambda: ring.record is not None and len(ring.record.keys) == 1)


async def test_a_lost_key_holds_up_no_rotation(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_AGAIN_S", 1_000.0)
    async with secret_swarm(0, 1, 2, 3) as swarm:
        await swarm.at(0).set("db", "some value", "ann")
        await until(lambda: all(swarm.keys_on_disk(index) == 1 for index in swarm.up))
        gone = next(i for i in swarm.up if swarm.swarm.id(i) not in swarm.swarm.store(0).voters)
        await swarm.crash(*swarm.up)
        for disk in swarm.disks.values():
            disk.remove(FILE_NAME)
        others = [index for index in range(4) if index != gone]
        await swarm.start(*others)
        await swarm.at(others[0]).set("db", "other value", "ann")
        await trio.sleep(10)  # Everybody waits before the first key is asked for again.
        swarm.evict(gone)
        ring = swarm.at(others[0]).ring
        await until(lambda: ring.record is not None and ring.record.evicted == 1, within_s=5)


async def test_keys_that_everybody_lost_are_told_and_secrets_set_again(
    autojump_clock: object,
) -> None:
    async with secret_swarm(0, 1, 2) as swarm:
        await swarm.at(0).set("db", "some value", "ann")
        await swarm.at(0).set("kept", "lost", "ann")
        await swarm.crash(0, 1, 2)
        for disk in swarm.disks.values():
            disk.remove(FILE_NAME)
        await swarm.start(0, 1, 2)
        with pytest.raises(SecretUnreadable, match="the secret db cannot be read"):
            await swarm.at(1).value("db")
        assert not swarm.at(1).opens((await swarm.at(1).list())[0])
        assert await swarm.at(1).set("db", "another value", "ann") == 2
        assert (await swarm.at(2).value("db"))[0] == "another value"
        with pytest.raises(SecretUnreadable, match="set it again"):
            await swarm.at(2).value("kept")
        assert len((await ring_of(swarm, 0)).keys) == 2


async def test_a_box_opens_nowhere_else(autojump_clock: object) -> None:
    """Not under another name, not as a later version, not as what it was before."""
    async with secret_swarm(0) as swarm:
        store = swarm.swarm.store(0)
        await swarm.at(0).set("low", "a low secret", "ann")
        await swarm.at(0).set("high", "a high secret", "ann")
        low, high = [await store.get(secret_key(name)) for name in ("low", "high")]
        assert low is not None
        assert high is not None
        await store.propose([Put(secret_key("low"), high.value)])
        with pytest.raises(SecretUnreadable):
            await swarm.at(0).value("low")
        await swarm.at(0).set("high", "a new secret", "ann")
        newer = decode_secret((await store.get(secret_key("high"))).value)
        replayed = msgspec.structs.replace(newer, box=decode_secret(high.value).box)
        await store.propose([Put(secret_key("high"), msgspec.msgpack.encode(replayed))])
        with pytest.raises(SecretUnreadable, match="for another swarm"):
            await swarm.at(0).value("high")


async def test_what_is_used_is_not_deleted_not_even_at_the_same_time(
    autojump_clock: object,
) -> None:
    async with secret_swarm(0) as swarm:
        await swarm.at(0).set("db", "some value", "ann")
        looked = 0

        async def begins_to_use() -> list[str]:
            nonlocal looked
            looked += 1
            if looked == 1:  # Somebody deploys right after it was looked at.
                await swarm.swarm.store(0).propose([Put(USES_KEY, b"")])
                return []
            return ["agent"]

        with pytest.raises(SecretInUse, match="is used by agent"):
            await swarm.at(0).delete("db", "ann", begins_to_use)
        assert looked == 2
        await swarm.at(0).delete("db", "ann", begins_to_use, force=True)
        with pytest.raises(NotFound, match="swarmctl secret set db"):
            await swarm.at(0).value("db")
        with pytest.raises(NotFound):
            await swarm.at(0).delete("db", "ann", nobody)
        assert await swarm.at(0).set("db", "some value", "ann") == 1


async def test_who_was_given_a_value_learns_that_it_is_stale(autojump_clock: object) -> None:
    async with secret_swarm(0, 1, 2) as swarm:
        await swarm.at(0).set("db", "some value", "ann")
        await swarm.at(0).set("else", "some value", "ann")
        secrets = swarm.at(2)
        await trio.sleep(1)
        least = secrets.known_to()
        given = {"db": max(least, (await secrets.value("db"))[1])}
        others = {"else": max(least, (await secrets.value("else"))[1])}
        assert not secrets.is_stale(given)
        await swarm.at(0).set("db", "other value", "ann")
        await until(lambda: secrets.is_stale(given))
        assert not secrets.is_stale(others)
        await swarm.at(0).delete("else", "ann", nobody)
        await until(lambda: secrets.is_stale(others))


@pytest.mark.parametrize(
    ("value", "error", "why"),
    [
        ("", BadRequest, "at least one"),
        ("a\0b", BadRequest, "NUL"),
        ("\ud800", BadRequest, "UTF-8"),
        ("x" * (SECRET_BYTES_MAX + 1), TooLarge, "at most 32768"),
    ],
)
async def test_what_is_no_value_is_refused_and_never_quoted(
    autojump_clock: object, value: str, error: type[Exception], why: str
) -> None:
    async with secret_swarm(0) as swarm:
        with pytest.raises(error, match=why) as caught:
            await swarm.at(0).set("db", value, "ann")
        assert len(value) < 2 or value not in str(caught.value)
        with pytest.raises(BadRequest, match="not a secret name"):
            await swarm.at(0).set("a/b", "some value", "ann")
        assert await swarm.at(0).list() == []


async def test_without_a_majority_nothing_is_set(autojump_clock: object) -> None:
    async with secret_swarm(0, 1, 2) as swarm:
        await swarm.at(0).set("db", "some value", "ann")
        await swarm.crash(1, 2)
        with pytest.raises((NoQuorum, InsufficientCopies)):
            await swarm.at(0).set("db", "other value", "ann")
