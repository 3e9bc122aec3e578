"""Expiry and renewal: who counts no more, and how a node that nobody talks to comes back."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from joining import NODE, OTHER, Swarm, calling

from swarmd.base.errors import (
    BadSignature,
    Conflict,
    Evicted,
    MalformedMessage,
    NoQuorum,
    SwarmError,
    Unreachable,
    Untrusted,
)
from swarmd.identity.authority import CREDENTIAL_MS
from swarmd.identity.entries import Evict, Renew, fresh_nonce, sign_entry
from swarmd.identity.fingerprints import door_of
from swarmd.identity.keys import SigningKey
from swarmd.identity.requests import sign_request
from swarmd.mesh.addresses import Address
from swarmd.mesh.approval.porch import proof_bytes
from swarmd.mesh.join_frames import Credential, Door, Frames, Knock, Renewal
from swarmd.mesh.renewal import renew_from_outside, renewal_of
from swarmd.mesh.trust import Trust
from swarmd.wire.version import PROTOCOL_VERSION

LATE_MS = CREDENTIAL_MS + 10_000


def with_node() -> tuple[Swarm, Trust]:
    """A swarm that NODE is in, and NODE's own trust."""
    swarm = Swarm()
    swarm.approve(sign_request(door_of(swarm.log.swarm_id), NODE, "beta"))
    return swarm, swarm.new_trust()


# ---- who counts ----------------------------------------------------------------------------


async def test_who_has_expired_counts_no_more_until_it_is_renewed() -> None:
    swarm, _ = with_node()
    trust = swarm.trust
    trust.tell_time(LATE_MS)
    assert trust.admission(NODE.key_id) is not None, "nothing expires before it is enforced"
    trust.enforce_expiry(lambda: {swarm.key.key_id})
    version = trust.version
    assert trust.admission(NODE.key_id) is None
    assert trust.known(NODE.key_id) is not None
    assert [x.node_id for x in trust.admissions()] == [swarm.key.key_id]
    assert set(trust.signing_keys) == {swarm.key.key_id}
    assert NODE.key_id not in trust.evicted()
    swarm.now_ms = LATE_MS
    swarm.append(renewal_of(trust, NODE))
    assert trust.admission(NODE.key_id) is not None
    assert trust.version > version


async def test_time_wakes_those_that_hang_on_admissions() -> None:
    swarm, _ = with_node()
    trust = swarm.trust
    trust.enforce_expiry(lambda: ())
    version, woken = trust.version, []

    async def wait() -> None:
        woken.append(await trust.changed(version))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        trust.tell_time(CREDENTIAL_MS - 1)
        await trio.testing.wait_all_tasks_blocked()
        assert not woken, "no news: nobody has expired"
        trust.tell_time(LATE_MS)
    assert woken == [version + 1]
    assert trust.admissions() == []


async def test_a_voter_counts_for_as_long_as_it_has_its_seat() -> None:
    """Else a majority that expired together could never renew."""
    swarm, _ = with_node()
    seats = {swarm.key.key_id, NODE.key_id}
    swarm.trust.enforce_expiry(lambda: seats)
    swarm.trust.tell_time(LATE_MS)
    assert len(swarm.trust.admissions()) == 2
    seats.discard(NODE.key_id)
    swarm.trust.tell_time(LATE_MS)
    assert [x.node_id for x in swarm.trust.admissions()] == [swarm.key.key_id]


# ---- from outside --------------------------------------------------------------------------


async def test_an_expired_node_is_renewed_at_the_plane_of_joiners() -> None:
    swarm, mine = with_node()
    swarm.trust.enforce_expiry(lambda: {swarm.key.key_id})
    swarm.now_ms = LATE_MS
    swarm.trust.tell_time(LATE_MS)
    assert swarm.trust.admission(NODE.key_id) is None
    async with swarm.listening() as address:
        await renew_from_outside([("127.0.0.1", 1), address], mine, NODE)
        found = swarm.trust.admission(NODE.key_id)
        assert found is not None
        assert found.expires_ms == LATE_MS + CREDENTIAL_MS


async def test_a_credential_that_is_good_is_not_renewed() -> None:
    swarm, mine = with_node()
    async with swarm.listening() as address:
        with pytest.raises(Conflict, match="half of its life"):
            await renew_from_outside([address], mine, NODE)


async def test_who_missed_its_own_renewal_is_told_what_to_sign() -> None:
    swarm, mine = with_node()
    swarm.now_ms = LATE_MS
    swarm.append(renewal_of(mine, NODE))
    swarm.now_ms = 2 * LATE_MS
    swarm.trust.tell_time(swarm.now_ms)
    async with swarm.listening() as address:
        await renew_from_outside([address], mine, NODE)
    found = swarm.trust.known(NODE.key_id)
    assert found is not None
    assert found.expires_ms == 2 * LATE_MS + CREDENTIAL_MS


async def test_who_gets_nothing() -> None:
    """Evicted, foreign, or without the key."""
    swarm, mine = with_node()
    swarm.now_ms = LATE_MS
    entry = renewal_of(mine, NODE)
    async with swarm.listening() as address:
        for changes, error in (
            ({"signer": OTHER}, BadSignature),
            ({"server": OTHER.public}, BadSignature),
            ({"proof": b""}, BadSignature),
            ({"public": OTHER.public, "signer": OTHER}, Untrusted),
            ({"entry": sign_entry(Renew(OTHER.key_id, 1), swarm.log.swarm_id, NODE)}, BadSignature),
            ({"entry": swarm.token.seed}, MalformedMessage),
        ):
            assert await renew_by_hand(address, swarm, entry, **changes) is error  # type: ignore[arg-type]
        evict = Evict(NODE.key_id, fresh_nonce())
        swarm.append(sign_entry(evict, swarm.log.swarm_id, swarm.admin))
        before = swarm.log.head
        assert await renew_by_hand(address, swarm, entry) is Evicted
        with pytest.raises(Evicted):
            await renew_from_outside([address], mine, NODE)
    assert swarm.log.head == before


async def renew_by_hand(
    address: Address,
    swarm: Swarm,
    mine: bytes,
    *,
    signer: SigningKey = NODE,
    server: bytes = b"",
    **changes: Any,
) -> type[SwarmError] | None:
    async with calling(address) as frames:
        await frames.send(Knock(PROTOCOL_VERSION, b"n" * 16))
        told = await frames.expect(Door)
        fields: dict[str, Any] = {"entry": mine, "public": NODE.public} | changes
        covered = proof_bytes(
            door_of(swarm.log.swarm_id),
            PROTOCOL_VERSION,
            b"n" * 16,
            told.nonce,
            server or swarm.key.public,
            fields["entry"],
        )
        fields.setdefault("proof", signer.sign(covered))
        await frames.send(Renewal(**fields))
        try:
            await frames.expect(Credential)
        except SwarmError as error:
            return type(error)
    return None


async def test_whoever_answers_gets_no_more_than_a_signature_for_a_life() -> None:
    swarm, mine = with_node()
    before = mine.head
    got: list[bytes] = []

    async def rogue(stream: trio.SSLStream[trio.abc.Stream]) -> None:
        frames = Frames(stream)
        await frames.expect(Knock)
        await frames.send(Door(fresh_nonce(), b"", ""))
        for _ in range(2):
            got.append((await frames.expect(Renewal)).entry)
            await frames.send(Credential(7, False))
        await stream.receive_some()

    async with swarm.listening(rogue, key=OTHER) as address:
        with pytest.raises(MalformedMessage, match="another end"):
            await renew_from_outside([address], mine, NODE)
    assert mine.head == before
    swarm.now_ms = LATE_MS
    with pytest.raises(Conflict, match="renewed since"):
        swarm.append(got[1])  # For an end that is none.


async def test_without_a_majority_it_is_told_and_tries_the_next() -> None:
    swarm, mine = with_node()
    swarm.trust.tell_time(LATE_MS)

    async def no_quorum(entry: bytes) -> list[bytes]:
        raise NoQuorum("2 of 3 voters are gone")

    swarm.admit = no_quorum  # type: ignore[method-assign]
    async with swarm.listening() as address:
        with pytest.raises(NoQuorum, match="2 of 3 voters are gone"):
            await renew_from_outside([address], mine, NODE)
    with pytest.raises(Unreachable, match="no address"):
        await renew_from_outside([], mine, NODE)
