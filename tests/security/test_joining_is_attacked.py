"""Attacks on who wants to join, and by who wants to."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio
from certifying import certificate_of, now_of
from joining import HOUR_MS, NODE, OTHER, Swarm

from swarmd.base.errors import SwarmError, TokenRefused, Untrusted
from swarmd.identity.entries import (
    AddAdmin,
    Evict,
    RevokeAdmin,
    RevokeToken,
    fresh_nonce,
    issue_token,
    sign_entry,
)
from swarmd.identity.epochs import Chain
from swarmd.identity.genesis import encode_genesis
from swarmd.identity.keys import SigningKey
from swarmd.identity.tokens import encode_token
from swarmd.mesh.join import join_swarm
from swarmd.mesh.join_frames import JOIN, Challenge, Epochs, Frames, Hello, Records

ADVERTS = 100


async def test_rogue_mdns_and_a_man_in_the_middle_at_join() -> None:
    """A hundred addresses that some host advertised, none of which is a member's.

    Each shows what an attacker can have: another swarm's chain, the true swarm's with a key of
    its own, the true chain cut off, or noise. None is joined; none is sent the token, a request
    that it could use, or the same proof as another.
    """
    swarm, others = Swarm(), Swarm()
    heard: list[bytes] = []

    def rogue(number: int) -> object:
        async def serve(stream: trio.SSLStream[trio.abc.Stream]) -> None:
            frames = Frames(stream)
            hello = await frames.expect(Hello)
            heard.append(JOIN.encode(hello))
            shown = others if number % 4 == 0 else swarm
            records = shown.log.dump()[: 0 if number % 4 == 2 else None]
            if number % 4 == 3:
                await stream.send_all(b"\0\0\0\x09" + b"\xff" * 9)
                return
            genesis = encode_genesis(shown.genesis)
            public = shown.key.public if number % 2 else OTHER.public
            certificate = shown.trust.certificate
            await frames.send(
                Challenge(fresh_nonce(), public, genesis, 0, len(records), certificate)
            )
            await frames.send(Records(tuple(records)))
            while True:
                heard.append(await stream.receive_some())

        return serve

    async with AsyncExitStack() as stack:
        addresses = [
            await stack.enter_async_context(
                others.listening(rogue(number), key=OTHER)  # type: ignore[arg-type]
            )
            for number in range(ADVERTS)
        ]
        for start in range(0, ADVERTS, 50):
            with trio.fail_after(60), pytest.raises(SwarmError) as caught:
                await join_swarm(addresses[start : start + 50], swarm.token, NODE, "beta")
            assert type(caught.value) is not TokenRefused
    hellos = [JOIN.decode(raw) for raw in heard if raw]
    assert len(hellos) == ADVERTS, "nothing but hellos was said to them"
    assert swarm.log.admissions.keys() == {swarm.key.key_id}
    said = b"".join(heard)
    token = swarm.token
    assert token.seed not in said
    assert encode_token(token).encode() not in said
    assert len({hello.proof for hello in hellos}) > 1, "a proof is for one server's key"
    assert len({hello.nonce for hello in hellos}) == ADVERTS


async def test_token_theft_or_reuse() -> None:
    """One use too many, a late use, and one after it was taken back: refused, each by name."""
    swarm = Swarm(uses=1)
    late = swarm.add_token(5, ttl_ms=HOUR_MS)
    taken_back = swarm.add_token(5, ttl_ms=10 * HOUR_MS)
    thief = SigningKey.generate()
    async with swarm.listening() as address:
        await join_swarm([address], swarm.token, NODE, "beta")
        with pytest.raises(TokenRefused, match="used up"):
            await join_swarm([address], swarm.token, thief, "thief")
        swarm.now_ms += 2 * HOUR_MS
        with pytest.raises(TokenRefused, match="expired"):
            await join_swarm([address], late, thief, "thief")
        swarm.append(
            sign_entry(RevokeToken(taken_back.token_id, fresh_nonce()), swarm.log.swarm_id,
                       swarm.admin)
        )  # fmt: skip
        with pytest.raises(TokenRefused, match="revoked"):
            await join_swarm([address], taken_back, thief, "thief")
    assert set(swarm.log.admissions) == {swarm.key.key_id, NODE.key_id}


async def test_voters_who_were_replaced_cannot_go_on() -> None:
    """All of an epoch's voters, in wrong hands by now, certify what came after them."""
    swarm = Swarm(uses=5)
    swarm.seal()
    invited = swarm.add_token()
    first, fork = Chain(swarm.genesis), swarm.log.copy()
    _, entry = issue_token(fork.swarm_id, now_of(fork), swarm.admin, uses=1, expires_ms=HOUR_MS)
    fork.apply(entry, swarm.now_ms)
    sealed = swarm.chain.certificates_from(1)
    # Without the epoch that replaced them, or with it, which shows that they were.
    for epochs, words in (((), "not the one in which"), (sealed, "ended before epoch 2")):
        asked: list[bytes] = []

        async def serve(
            stream: trio.SSLStream[trio.abc.Stream],
            epochs: tuple[bytes, ...] = epochs,
            asked: list[bytes] = asked,
        ) -> None:
            frames = Frames(stream)
            await frames.expect(Hello)
            certificate = certificate_of(fork, swarm.key, chain=first)
            genesis, height = encode_genesis(swarm.genesis), fork.head[0]
            public = swarm.key.public
            await frames.send(
                Challenge(fresh_nonce(), public, genesis, len(epochs), height, certificate)
            )
            if epochs:
                await frames.send(Epochs(epochs))
            await frames.send(Records(tuple(fork.dump())))
            asked.append(await stream.receive_some())

        async with swarm.listening(serve) as address:
            with pytest.raises(Untrusted, match=words):
                await join_swarm([address], invited, NODE, "beta")
        assert not any(asked)


async def test_old_voters_fork() -> None:
    """Who was removed serves the history as it was, or goes on with it by a key that is void."""
    swarm = Swarm(uses=5)
    async with swarm.listening() as address:
        await join_swarm([address], swarm.token, OTHER, "old")
    old = swarm.log.copy()
    new_admin = SigningKey.generate()
    for entry in (
        AddAdmin(new_admin.public, fresh_nonce()),
        Evict(OTHER.key_id, fresh_nonce()),
    ):
        swarm.append(sign_entry(entry, swarm.log.swarm_id, swarm.admin))
    old_admin, swarm.admin = swarm.admin, new_admin
    swarm.append(
        sign_entry(RevokeAdmin(old_admin.key_id, fresh_nonce()), swarm.log.swarm_id, new_admin)
    )
    invited = swarm.add_token()
    fork = old.copy()
    while fork.head[0] < swarm.log.head[0] + 3:
        _, entry = issue_token(fork.swarm_id, now_of(fork), old_admin, uses=1, expires_ms=HOUR_MS)
        fork.apply(entry, swarm.now_ms)

    for history, words in ((old, "out of date or not honest"), (fork, "not the one in which")):
        requests: list[bytes] = []

        async def serve(
            stream: trio.SSLStream[trio.abc.Stream],
            history: object = history,
            requests: list[bytes] = requests,
        ) -> None:
            frames = Frames(stream)
            await frames.expect(Hello)
            records = history.dump()  # type: ignore[attr-defined]
            genesis = encode_genesis(swarm.genesis)
            # Even the only voter's signature does not help.
            certificate = certificate_of(history, swarm.key)  # type: ignore[arg-type]
            await frames.send(
                Challenge(fresh_nonce(), OTHER.public, genesis, 0, len(records), certificate)
            )
            await frames.send(Records(tuple(records)))
            requests.append(await stream.receive_some())

        async with swarm.listening(serve, key=OTHER) as address:
            with pytest.raises(Untrusted, match=words):
                await join_swarm([address], invited, NODE, "beta")
        assert not any(requests)
