"""Attacks on joining without a token: on who asks, on who is asked, and on who approves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from approving import Person, door, petition, until_waiting, whole
from insiders import key_of, log_of
from joining import NODE, OTHER, Swarm, calling
from localswarm import Daemon, LocalSwarm

from swarmd.base.errors import BadSignature, Busy, Forbidden, SwarmError, Untrusted
from swarmd.client import Client
from swarmd.identity.authority import AuthorityState, record_hash
from swarmd.identity.entries import Approve, fresh_nonce, sign_entry
from swarmd.identity.fingerprints import door_of
from swarmd.identity.genesis import encode_genesis
from swarmd.identity.heads import Head, sign_head
from swarmd.identity.keys import SigningKey
from swarmd.identity.requests import sign_request
from swarmd.mesh.approval import joiner as joiner_module
from swarmd.mesh.approval.table import WAITING_PER_ADDRESS_MAX
from swarmd.mesh.join_frames import (
    Accepted,
    Challenge,
    Door,
    Frames,
    Knock,
    Petition,
    Records,
    Waiting,
)

Stream = trio.SSLStream[trio.abc.Stream]
FLOOD = 40


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joiner_module, "_PAUSE_MIN_S", 0.02)


def forged(swarm: Swarm) -> list[bytes]:
    """The true history, and an approval by a key that is no admin's, as records."""
    rogue = SigningKey.generate()
    state = AuthorityState.load(swarm.genesis, swarm.log.dump())
    state.admins[rogue.key_id] = rogue.public
    request = sign_request(door_of(swarm.log.swarm_id), NODE, "beta")
    state.apply(
        sign_entry(Approve(request, ("worker",), fresh_nonce()), swarm.log.swarm_id, rogue), 2_000
    )
    return state.dump()


async def test_a_rogue_server_answers_who_has_no_token(quick: None) -> None:
    """It lets everybody in at once, to have their hosts run its agents.

    Under its own name it is told by its fingerprint, before anything is asked of it. Under the
    true swarm's it has a history to show that it cannot: another swarm's, the true one without
    this node, or with this node by a key that is no admin's.
    """
    swarm, rogue = Swarm(), Swarm()
    rogue.approve(sign_request(door(rogue), NODE, "beta"))
    async with rogue.listening() as address:
        with pytest.raises(Untrusted, match="of another swarm"):
            await Person().join(address, wanted=whole(swarm))
        person = Person(Forbidden("that is not what `swarmctl status` shows"))
        with pytest.raises(Forbidden):
            await person.join(address)
        assert person.asked[0].swarm == whole(rogue) != whole(swarm)
        assert person.asked[0].name == "lab", "the name says nothing"

    shown = [
        (rogue, rogue.log.dump(), "another swarm than the one that was asked"),
        (swarm, swarm.log.dump(), "says that it admitted this node, but its records do not"),
        (swarm, forged(swarm), "its records do not verify: signed by"),
    ]
    for owner, records, why in shown:

        async def serve(
            stream: Stream, owner: Swarm = owner, records: list[bytes] = records
        ) -> None:
            frames = Frames(stream)
            await frames.expect(Knock)
            await frames.send(Door(fresh_nonce(), door(swarm), "lab"))
            await frames.expect(Petition)
            genesis = encode_genesis(owner.genesis)
            height, mark = len(records), record_hash(records[-1])
            # Certified well, as a majority of the voters is not what is tried here.
            certificate = sign_head(
                Head(owner.chain.head.key, height, mark), owner.log.swarm_id, owner.key
            )
            public = owner.key.public
            await frames.send(Challenge(fresh_nonce(), public, genesis, 0, height, certificate))
            await frames.send(Records(tuple(records)))
            await frames.send(Accepted((), 0, height, certificate))
            await stream.receive_some()

        person = Person()
        async with owner.listening(serve, key=owner.key) as address:
            with pytest.raises(SwarmError, match="nobody approved"):
                await person.join(address, wanted=whole(swarm), wait_s=0.3)
        assert person.told
        assert all(why in one.trouble for one in person.told)


async def test_a_request_is_shown_by_somebody_else(quick: None) -> None:
    """A rogue between a joiner and a member, which has the joiner's request and its proof."""
    swarm = Swarm()
    taken: list[Petition] = []
    answers: list[SwarmError] = []

    async with swarm.listening() as address:

        async def relay(stream: Stream) -> None:
            frames = Frames(stream)
            knock = await frames.expect(Knock)
            async with calling(address) as member:
                await member.send(knock)  # The member's own nonce and the joiner's.
                await frames.send(await member.expect(Door))
                taken.append(await frames.expect(Petition))
                await member.send(taken[-1])
                try:
                    await member.expect(Waiting)
                except SwarmError as error:
                    answers.append(error)

        async with swarm.listening(relay, key=OTHER) as rogue:
            with pytest.raises(SwarmError, match="nobody approved"):
                await Person().join(rogue, wanted=whole(swarm), wait_s=0.2)
        assert taken
        assert answers
        assert {type(one) for one in answers} == {BadSignature}
        stolen = taken[0]
        for changes in ({"proof": stolen.proof}, {"signer": OTHER}):
            found = await petition(address, swarm, request=stolen.request, **changes)  # type: ignore[arg-type]
            assert found is BadSignature
        assert swarm.table.waiting(swarm.clock.now()) == []
        # What it holds is worth nothing for itself, nor in another swarm.
        other = Swarm()
        with pytest.raises(BadSignature):
            other.approve(stolen.request)


async def test_a_flood_of_requests_to_join() -> None:
    """An address fills its own places and nobody else's; nothing of it reaches the log."""
    swarm = Swarm()
    height = swarm.log.head
    async with swarm.listening() as address:
        keys = [SigningKey.generate() for _ in range(FLOOD)]
        found = [
            await petition(
                address,
                swarm,
                signer=key,
                public=key.public,
                request=sign_request(door(swarm), key, "x" * 100),
            )
            for key in keys
        ]
        assert found.count(None) == WAITING_PER_ADDRESS_MAX
        assert set(found) == {None, Busy}
        waiting = swarm.table.waiting(swarm.clock.now())
        assert len(waiting) == WAITING_PER_ADDRESS_MAX
        swarm.table.ask(b"elsewhere!", b"", b"", "192.0.2.1", swarm.clock.now())
    assert swarm.log.head == swarm.trust.head == height


async def test_an_approval_says_what_the_node_did_not(quick: None) -> None:
    """A member that lists requests changes the key, the name, or the swarm of one."""
    swarm = Swarm()
    async with swarm.listening() as address, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: Person().join(address, wanted=whole(swarm)))
        [true] = await until_waiting(swarm)
        for lie in (
            true.request.replace(NODE.public, OTHER.public),
            true.request.replace(b"beta", b"root"),
            sign_request(door_of(b"t" * 32), NODE, "beta"),
        ):
            assert lie != true.request
            with pytest.raises(BadSignature):
                swarm.approve(lie)
        swarm.approve(true.request)


# ---- on a real daemon ----------------------------------------------------------------------


@pytest.fixture
def alone(folder: Path) -> Iterator[Daemon]:
    with LocalSwarm(folder, 1) as swarm:
        swarm.form(voters=1)
        yield swarm[0]


def test_root_of_one_host_approves_without_the_admin_key(alone: Daemon) -> None:
    """Whoever has a member's key and its socket, but no admin key, lets nobody in.

    It signs the approval with what it has: the node's key, the joiner's, one of its own, or an
    admin's signature over something else.
    """
    log = log_of(alone)
    request = sign_request(door_of(log.swarm_id), NODE, "beta")
    entry = Approve(request, ("voter", "worker"), fresh_nonce())
    member, own = key_of(alone), SigningKey.generate()
    with Client(alone.socket) as client:
        for signers in ((member,), (NODE,), (own,), (member, NODE, own)):
            with pytest.raises(BadSignature):
                client.authority_propose(sign_entry(entry, log.swarm_id, *signers))
        # Through the CLI, with a key that is no admin's, and a fingerprint that nobody shows.
        forged_key = alone.folder / "forged.admin.key"
        own.save(forged_key)
        done = alone.ctl("node", "approve", "00" * 10, "--yes", "--admin-key", str(forged_key))
        assert done.returncode == 2
        assert "no node with this fingerprint waits" in done.stderr
        assert client.join_requests().waiting == []
    after = log_of(alone)
    assert after.head == log.head
    assert set(after.admissions) == set(log.admissions)
