"""More nodes join at once than a member serves: each of them gets in all the same."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from certifying import let_count, now_of
from small_swarm import ADMIN, KEYS, chain, run_mesh, trust_of

from swarmd.base.errors import Busy, Unreachable
from swarmd.identity.authority import AuthorityState
from swarmd.identity.entries import encode_record, issue_token
from swarmd.identity.keys import SigningKey
from swarmd.identity.tokens import Token
from swarmd.mesh.config import MeshConfig
from swarmd.mesh.join import JoinResult, join_swarm

JOINERS = 50
JOINED_S = 10.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def bulk_chain() -> tuple[AuthorityState, Token]:
    state, _ = chain(1)
    token, entry = issue_token(
        state.swarm_id, now_of(state), ADMIN, uses=JOINERS, expires_ms=10_000_000
    )
    state.apply(entry, 1_500)
    return state, token


@asynccontextmanager
async def member(
    folder: Path, state: AuthorityState, *, admitting_s: float
) -> AsyncIterator[tuple[str, int]]:
    """The address of a mesh that serves joiners, each for a while."""
    config = MeshConfig(bind=("127.0.0.1",), port=free_port(), mdns=False)
    trust = trust_of(folder, state)

    async def admit(entry: bytes) -> list[bytes]:
        await trio.sleep(admitting_s)
        record = encode_record(state.apply(entry, 2_000))
        let_count(trust, [record], KEYS[0])
        return [record]

    async with trio.open_nursery() as nursery:
        mesh, _ = await nursery.start(run_mesh, folder, 0, trust, config)
        mesh.serve_joins(admit)
        yield "127.0.0.1", config.port
        nursery.cancel_scope.cancel()


async def test_fifty_nodes_join_with_one_token_within_ten_seconds(tmp_path: Path) -> None:
    """From one address, which holds eight joiners at a time, of sixteen in all."""
    state, token = bulk_chain()
    results: list[JoinResult] = []
    async with member(tmp_path, state, admitting_s=0.02) as address:

        async def join(number: int) -> None:
            key = SigningKey.from_seed(b"j" * 28 + number.to_bytes(4, "big"))
            results.append(await join_swarm([address], token, key, f"j{number}"))

        with trio.fail_after(JOINED_S):
            async with trio.open_nursery() as nursery:
                for number in range(JOINERS):
                    nursery.start_soon(join, number)
    assert len(results) == JOINERS
    assert len(state.admissions) == JOINERS + 1
    assert state.tokens[token.token_id].uses_left == 0


async def test_who_finds_every_place_taken_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmd.mesh.join.CROWDED_S", 1.0)
    state, token = bulk_chain()
    async with (
        member(tmp_path, state, admitting_s=30.0) as address,
        trio.open_nursery() as nursery,
    ):
        for number in range(8):
            key = SigningKey.from_seed(b"k" * 28 + number.to_bytes(4, "big"))
            nursery.start_soon(join_swarm, [address], token, key, f"k{number}")
        await trio.sleep(0.5)
        with pytest.raises(Busy, match="as many nodes are joining here as may at once"):
            await join_swarm([address], token, KEYS[5], "late")
        nursery.cancel_scope.cancel()
    assert len(state.admissions) == 1


async def test_a_member_that_had_no_room_for_a_connection_is_asked_again(tmp_path: Path) -> None:
    """It closes what it cannot hold without a word; so does what is no member, which costs time."""
    state, token = bulk_chain()
    closed = 0
    async with member(tmp_path, state, admitting_s=0.0) as address:

        async def relay(one: trio.SocketStream) -> None:
            nonlocal closed
            if closed < 3:
                closed += 1
                await trio.aclose_forcefully(one)
                return
            async with await trio.open_tcp_stream(*address) as other, trio.open_nursery() as both:
                both.start_soon(pump, one, other)
                both.start_soon(pump, other, one)

        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_tcp, relay, 0, host="127.0.0.1")
            [listener] = await nursery.start(serve)
            there = listener.socket.getsockname()[:2]
            await join_swarm([there], token, KEYS[5], "late")
            nursery.cancel_scope.cancel()
    assert closed == 3
    assert len(state.admissions) == 2


async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for data in source:
            await sink.send_all(data)


async def test_what_closes_for_ever_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmd.mesh.join.CLOSED_S", 1.0)
    _, token = bulk_chain()
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, trio.aclose_forcefully, 0, host="127.0.0.1")
        [listener] = await nursery.start(serve)
        with trio.fail_after(5), pytest.raises(Unreachable, match="closes at once"):
            await join_swarm([listener.socket.getsockname()[:2]], token, KEYS[5], "late")
        nursery.cancel_scope.cancel()
