"""Joining without a token, over real sockets: both sides, and what goes wrong between them."""

from __future__ import annotations

import pytest
import trio
from approving import Person, door, petition, until_waiting, whole
from joining import NODE, OTHER, Swarm, calling

from swarmd.base.errors import (
    BadRequest,
    BadSignature,
    Busy,
    Conflict,
    Evicted,
    Forbidden,
    MalformedMessage,
    Outdated,
    TimedOut,
    TokenRefused,
    Unreachable,
    Untrusted,
)
from swarmd.identity.entries import Evict, Policy, fresh_nonce, sign_entry
from swarmd.identity.fingerprints import (
    Fingerprint,
    door_of,
    fingerprint_of_node,
)
from swarmd.identity.requests import sign_request
from swarmd.mesh.approval import joiner as joiner_module
from swarmd.mesh.join import JoinResult
from swarmd.mesh.join_frames import Door, Frames, Knock, Petition
from swarmd.wire.version import PROTOCOL_VERSION


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joiner_module, "_PAUSE_MIN_S", 0.02)
    monkeypatch.setattr(joiner_module, "_PAUSE_MAX_S", 0.05)


async def test_it_waits_is_approved_and_verifies_what_it_joins() -> None:
    swarm, person = Swarm(), Person()
    results: list[JoinResult] = []

    async def join() -> None:
        results.append(await person.join(address))

    async with swarm.listening() as address, trio.open_nursery() as nursery:
        nursery.start_soon(join)
        [one] = await until_waiting(swarm)
        assert one.request == sign_request(door(swarm), NODE, "beta")
        assert one.fingerprint == fingerprint_of_node(door(swarm), NODE.public).raw
        await trio.sleep(0.1)
        assert len(swarm.table.waiting(swarm.clock.now())) == 1, "asked again, it is one line"
        assert person.told
        assert not results
        swarm.approve(one.request)
    [result] = results
    assert result.genesis == swarm.genesis
    assert list(result.records) == swarm.log.dump()
    assert swarm.log.admissions[NODE.key_id].name == "beta"
    [meeting] = person.asked
    assert (meeting.name, meeting.swarm) == ("lab", whole(swarm))
    assert meeting.node == fingerprint_of_node(door(swarm), NODE.public)
    assert person.begun == [meeting]
    assert swarm.table.waiting(swarm.clock.now()) == []


async def test_whichever_member_answers_is_asked() -> None:
    swarm, person = Swarm(), Person()
    async with swarm.listening() as address, trio.open_nursery() as nursery:
        nursery.start_soon(person.join, ("127.0.0.1", 1), address)
        [one] = await until_waiting(swarm)
        swarm.approve(one.request)
    assert any("127.0.0.1:1" in one.trouble for one in person.told)


async def test_the_swarm_is_named_by_its_fingerprint_or_agreed_to() -> None:
    swarm, others = Swarm(), Swarm()
    async with swarm.listening() as address, others.listening() as elsewhere:
        with pytest.raises(Untrusted, match="of another swarm, whose fingerprint is"):
            await Person().join(elsewhere, wanted=whole(swarm))
        with pytest.raises(Conflict, match="several swarms answered"):
            await Person().join(address, elsewhere)
        refusing = Person(Forbidden("no"))
        with pytest.raises(Forbidden):
            await refusing.join(address)
        beginning = Fingerprint(whole(swarm).raw[:5])
        with pytest.raises(Forbidden):  # Only the whole of it needs no look.
            await refusing.join(address, wanted=beginning)
        assert not refusing.begun
        assert others.table.waiting(0.0) == []
        assert swarm.table.waiting(swarm.clock.now()) == [], "nothing was asked of anybody"
        named = Person(Forbidden("no"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: named.join(elsewhere, address, wanted=whole(swarm)))
            [one] = await until_waiting(swarm)
            swarm.approve(one.request)
        assert not named.asked


async def test_waiting_ends() -> None:
    swarm = Swarm()
    async with swarm.listening() as address:
        with pytest.raises(TimedOut, match="nobody approved"):
            await Person().join(address, wait_s=0.2)
        [one] = swarm.table.waiting(swarm.clock.now())
        swarm.table.deny(one.fingerprint, swarm.clock.now())
        with pytest.raises(Forbidden, match="denied"):
            await Person().join(address)
    with pytest.raises(Unreachable):
        await Person().join(address)
    with pytest.raises(Unreachable, match="--seed"):
        await Person().join()
    with pytest.raises(BadRequest, match="not a node name"):
        await Person().join(address, name="../x")


async def test_one_refusal_does_not_end_it_but_all_do() -> None:
    """Anybody may answer at an address and say no."""
    swarm, person = Swarm(), Person()

    async def refuse(stream: trio.SSLStream[trio.abc.Stream]) -> None:
        frames = Frames(stream)
        await frames.expect(Knock)
        await frames.send(Door(fresh_nonce(), door(swarm), "lab"))
        await frames.expect(Petition)
        await frames.refuse(Forbidden("an admin of the swarm denied this node"))

    async with swarm.listening() as address, Swarm().listening(refuse) as rogue:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(person.join, rogue, address)
            [one] = await until_waiting(swarm)
            swarm.approve(one.request)
        with pytest.raises(Forbidden):
            await Person().join(rogue)


async def test_evicted_and_outdated_nodes_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    swarm = Swarm()
    async with swarm.listening() as address:
        swarm.approve(sign_request(door(swarm), NODE, "beta"))
        await Person().join(address)  # Admitted before it asked.
        swarm.append(sign_entry(Evict(NODE.key_id, fresh_nonce()), swarm.log.swarm_id, swarm.admin))
        with pytest.raises(Evicted, match="its id is not used again"):
            await Person().join(address)
        policy = Policy(PROTOCOL_VERSION + 1, fresh_nonce())
        swarm.append(sign_entry(policy, swarm.log.swarm_id, swarm.admin))
        with pytest.raises(Outdated):
            await Person().join(address, key=OTHER)


async def test_where_requests_are_not_taken_a_stranger_learns_nothing() -> None:
    swarm = Swarm()
    swarm.takes_requests = False
    async with swarm.listening() as address:
        with pytest.raises(TokenRefused, match="without a join token"):
            await Person().join(address)
        async with calling(address) as frames:
            await frames.send(Knock(PROTOCOL_VERSION, b"n" * 16))
            told = await frames.expect(Door)
            assert (told.door, told.swarm) == (b"", "")
        assert await petition(address, swarm) is TokenRefused
        assert swarm.table.waiting(swarm.clock.now()) == []


async def test_only_the_nodes_own_key_shows_its_request() -> None:
    swarm = Swarm()
    async with swarm.listening() as address:
        foreign = sign_request(door_of(b"t" * 32), NODE, "beta")
        for changes in (
            {"signer": OTHER},
            {"server": OTHER.public},
            {"proof": b"p" * 64},
            {"proof": b""},
            {"public": OTHER.public, "signer": OTHER},
            {"request": foreign},
            {"request": sign_request(door(swarm), OTHER, "beta")},
        ):
            assert await petition(address, swarm, **changes) is BadSignature  # type: ignore[arg-type]
        for changes in ({"public": b"short"}, {"request": b"junk"}, {"nonce": b"short"}):
            assert await petition(address, swarm, **changes) is MalformedMessage  # type: ignore[arg-type]
        assert swarm.table.waiting(swarm.clock.now()) == []
        assert await petition(address, swarm) is None
        assert len(swarm.table.waiting(swarm.clock.now())) == 1


async def test_a_full_table_says_busy_and_the_joiner_goes_on_asking() -> None:
    swarm, person = Swarm(), Person()
    for number in range(4):
        swarm.table.ask(bytes([number]) * 10, b"", b"", "127.0.0.1", swarm.clock.now())
    async with swarm.listening() as address:
        assert await petition(address, swarm) is Busy
        async with trio.open_nursery() as nursery:
            nursery.start_soon(person.join, address)
            while not person.told:  # noqa: ASYNC110
                await trio.sleep(0.01)
            swarm.table.remove(bytes(10))
            await until_waiting(swarm, 4)
            swarm.approve(sign_request(door(swarm), NODE, "beta"))
    assert "as many nodes of this address" in person.told[0].trouble


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (Door(b"n" * 16, b"d" * 31, "lab"), "wrong length"),
        (Door(b"n" * 15, b"d" * 32, "lab"), "wrong length"),
        (Door(b"n" * 16, b"d" * 32, "\x1b[2Jlab"), "no swarm is called"),
    ],
)
async def test_a_door_that_is_none_is_refused(told: Door, why: str) -> None:
    async def serve(stream: trio.SSLStream[trio.abc.Stream]) -> None:
        frames = Frames(stream)
        await frames.expect(Knock)
        await frames.send(told)

    async with Swarm().listening(serve) as address:
        with pytest.raises(MalformedMessage, match=why):
            await Person().join(address)
