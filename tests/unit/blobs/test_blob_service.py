"""Blobs between nodes: enough copies before an acknowledgement, nothing believed."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from blob_swarm import Swarm

from swarmd.base.errors import (
    BadRequest,
    Busy,
    InsufficientCopies,
    MalformedMessage,
    NotFound,
    RemoteError,
    SwarmError,
    TooLarge,
    Unavailable,
    WouldLoseData,
)
from swarmd.base.limits import BLOB_BYTES_MAX, BLOB_CHUNK_BYTES, MIB
from swarmd.state.blobs import custody, service
from swarmd.state.blobs.config import BlobsConfig
from swarmd.state.blobs.messages import BLOB, BlobRef, Fetch, Got, Have, MissingAsk, Offer, Piece
from swarmd.state.blobs.naming import hash_of
from swarmd.state.blobs.store import Upload

SMALL = b"small" * 20_000
LARGE = os.urandom(3 * BLOB_CHUNK_BYTES + 17)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disks are worker threads, which no mock clock waits for: so shorten the real waits."""
    for name, seconds in (("_RETRY_S", 0.3), ("_PAUSE_S", 0.02), ("_SWEEP_S", 0.05)):
        monkeypatch.setattr(service, name, seconds)
    for name, seconds in (("_LOOK_S", 0.05), ("_AFTERWARDS_S", 0.2), ("_ROUND_PAUSE_S", 0.05)):
        monkeypatch.setattr(custody, name, seconds)


Grow = Callable[..., AbstractAsyncContextManager[Swarm]]


@pytest.fixture
def grow(tmp_path: Path) -> Grow:
    @asynccontextmanager
    async def grown(
        count: int, *, voters: int, config: BlobsConfig | None = None
    ) -> AsyncIterator[Swarm]:
        swarm = Swarm(tmp_path)
        async with AsyncExitStack() as stack:
            await swarm.grow(stack, count, voters, config)
            yield swarm

    return grown


async def test_a_node_alone_is_enough_for_itself(grow: Grow) -> None:
    async with grow(1, voters=1) as swarm:
        ref = await swarm.blobs[0].put(SMALL)
        assert ref == BlobRef(hash_of(SMALL), len(SMALL))
        assert await swarm.blobs[0].get(ref) == SMALL


@pytest.mark.parametrize("writer", [0, 1])
async def test_in_a_swarm_of_two_both_have_it(grow: Grow, writer: int) -> None:
    async with grow(2, voters=1) as swarm:
        await swarm.blobs[writer].put(LARGE)
        assert swarm.holders(LARGE) == {0, 1}


async def test_a_member_that_is_down_still_counts(grow: Grow) -> None:
    async with grow(2, voters=1) as swarm:
        swarm.cut_off(1)
        with trio.fail_after(3), pytest.raises(InsufficientCopies):
            await swarm.blobs[0].put(SMALL)


@pytest.mark.parametrize(
    ("nodes", "voters", "writer", "copies"),
    [(3, 3, 0, 2), (4, 3, 3, 2), (5, 5, 2, 3), (6, 5, 5, 3), (3, 1, 2, 1)],
)
@pytest.mark.parametrize("data", [b"", SMALL, LARGE])
async def test_a_majority_of_the_voters_has_it(
    grow: Grow, nodes: int, voters: int, writer: int, copies: int, data: bytes
) -> None:
    async with grow(nodes, voters=voters) as swarm:
        await swarm.blobs[writer].put(data)
        assert len(swarm.holders(data) & set(range(voters))) == copies
        assert writer in swarm.holders(data)


async def test_a_voter_that_is_down_is_passed_over(grow: Grow) -> None:
    async with grow(4, voters=3) as swarm:
        swarm.cut_off(0)
        await swarm.blobs[3].put(LARGE)
        assert swarm.holders(LARGE) == {1, 2, 3}


async def test_without_a_majority_it_is_refused(grow: Grow) -> None:
    async with grow(4, voters=3) as swarm:
        swarm.cut_off(0, 1)
        with pytest.raises(InsufficientCopies, match="1 of 2"):
            await swarm.blobs[3].put(SMALL)


async def test_a_voter_that_comes_back_in_time_is_enough(grow: Grow) -> None:
    async with grow(3, voters=3) as swarm:
        swarm.cut_off(1, 2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(swarm.blobs[0].put, SMALL)
            await trio.sleep(0.1)
            swarm.network.heal()
        assert len(swarm.holders(SMALL)) == 2


async def test_a_voter_that_was_stopped_still_counts(grow: Grow) -> None:
    async with grow(3, voters=3) as swarm:
        swarm.cut_off(1, 2)
        swarm.left = {swarm.ids[1], swarm.ids[2]}
        with pytest.raises(InsufficientCopies, match="0 of 1"):
            await swarm.blobs[0].put(SMALL)


async def test_voters_unknown_is_not_zero_voters(grow: Grow) -> None:
    async with grow(3, voters=0) as swarm:
        with pytest.raises(InsufficientCopies):
            await swarm.blobs[0].put(SMALL)


async def test_what_is_there_already_is_not_sent_again(grow: Grow) -> None:
    async with grow(2, voters=1) as swarm:
        await swarm.blobs[0].put(LARGE)
        peer = swarm.ids[1]
        answer = await swarm.links[0].request(
            BLOB, peer, Offer(hash_of(LARGE), len(LARGE)), timeout_s=1.0
        )
        assert answer == Have(hash_of(LARGE))


async def test_too_large_is_refused(grow: Grow) -> None:
    async with grow(1, voters=1) as swarm:
        with pytest.raises(TooLarge):
            await swarm.blobs[0].put(bytes(BLOB_BYTES_MAX + 1))


async def test_a_missing_blob_is_fetched_once_and_kept(grow: Grow) -> None:
    async with grow(4, voters=3) as swarm:
        ref = await swarm.blobs[0].put(LARGE)
        got: list[bytes] = []

        async def get() -> None:
            got.append(await swarm.blobs[3].get(ref))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(get)
        assert got == [LARGE] * 5
        assert 3 in swarm.holders(LARGE)
        swarm.cut_off(3)
        assert await swarm.blobs[3].get(ref) == LARGE


async def test_ensure_brings_a_blob_here(grow: Grow) -> None:
    async with grow(4, voters=3) as swarm:
        await swarm.blobs[0].put(SMALL)
        await swarm.blobs[3].ensure(hash_of(SMALL))
        assert 3 in swarm.holders(SMALL)
        await swarm.blobs[3].ensure(hash_of(SMALL))


async def test_a_new_voter_brings_what_it_lacks(grow: Grow) -> None:
    async with grow(4, voters=3) as swarm:
        named = {(await swarm.blobs[0].put(data)).hash for data in (SMALL, LARGE)}
        assert await swarm.blobs[3].repair(named | {hash_of(b"lost")}) == 1
        assert 3 in swarm.holders(SMALL) & swarm.holders(LARGE)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while True:
            if condition():
                return
            await trio.sleep(0.02)


async def test_when_the_voters_change_the_new_ones_fetch_what_records_name(grow: Grow) -> None:
    async with grow(4, voters=1) as swarm:
        for data in (SMALL, LARGE, b"unnamed"):
            await swarm.blobs[0]._store(hash_of(data), data)  # As a node alone acknowledged it.
        swarm.named = {hash_of(SMALL), hash_of(LARGE)}
        swarm.voters = swarm.ids[:3]
        await until(lambda: swarm.holders(SMALL) == swarm.holders(LARGE) == {0, 1, 2})
        assert swarm.holders(b"unnamed") == {0}


async def test_a_record_committed_during_the_change_is_looked_after_too(grow: Grow) -> None:
    async with grow(4, voters=1) as swarm:
        await swarm.blobs[0]._store(hash_of(SMALL), SMALL)
        swarm.voters = swarm.ids[:3]
        await trio.sleep(0.2)
        swarm.named = {hash_of(SMALL)}
        await until(lambda: swarm.holders(SMALL) == {0, 1, 2})


async def test_a_node_that_leaves_first_gives_what_the_voters_lack(grow: Grow) -> None:
    async with grow(3, voters=2) as swarm:
        ready = {hash_of(data): data for data in (SMALL, LARGE)}
        for blob_hash, data in ready.items():
            await swarm.blobs[2]._store(blob_hash, data)
        swarm.named = {*ready, hash_of(b"lost before")}
        await swarm.blobs[2].custody.hand_over(5.0)
        assert swarm.holders(SMALL) == swarm.holders(LARGE) == {0, 1, 2}


async def test_a_node_that_leaves_is_told_when_nobody_can_take_what_it_holds(grow: Grow) -> None:
    async with grow(4, voters=3) as swarm:
        await swarm.blobs[3].custody.hand_over(0.3)  # It holds nothing.
        await swarm.blobs[3]._store(hash_of(SMALL), SMALL)
        swarm.named = {hash_of(SMALL)}
        swarm.cut_off(0, 1)
        with pytest.raises(WouldLoseData, match="1 of 3"):
            await swarm.blobs[3].custody.hand_over(0.5)
        swarm.network.heal()
        await swarm.blobs[3].custody.hand_over(5.0)
        assert len(swarm.holders(SMALL)) >= 3


async def test_an_upload_that_a_thread_writes_to_is_not_closed_under_it(
    grow: Grow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptor could be another file's by the time the thread writes on."""
    writing, go_on = trio.Event(), threading.Event()
    failed: list[OSError] = []
    append = Upload.append_file

    def slow(upload: Upload, offset: int, data: bytes) -> None:
        trio.from_thread.run_sync(writing.set)
        go_on.wait(5)
        try:
            os.fstat(upload._fd)
        except OSError as error:
            failed.append(error)
        append(upload, offset, data)

    monkeypatch.setattr(Upload, "append_file", slow)
    piece = Piece(hash_of(SMALL), len(SMALL), 0, SMALL)
    async with grow(2, voters=1) as swarm, trio.open_nursery() as nursery:
        ask = partial(swarm.links[0].request, BLOB, swarm.ids[1], piece, timeout_s=5.0)
        nursery.start_soon(ask)
        await writing.wait()
        await swarm.blobs[1]._store(hash_of(SMALL), SMALL)  # It came another way meanwhile.
        assert await ask() == Have(hash_of(SMALL))
        go_on.set()
    assert failed == []


async def test_only_voters_know_what_is_missing(grow: Grow) -> None:
    async with grow(2, voters=1) as swarm:
        with pytest.raises(Unavailable):
            await swarm.links[0].request(BLOB, swarm.ids[1], MissingAsk(b""), timeout_s=1.0)


async def test_a_damaged_copy_is_replaced_from_another_node(grow: Grow) -> None:
    async with grow(3, voters=3) as swarm:
        ref = await swarm.blobs[0].put(LARGE)
        swarm.blobs[0]._folder.path(ref.hash).write_bytes(b"rot")
        assert await swarm.blobs[0].get(ref) == LARGE
        assert swarm.blobs[0]._folder.read_file(ref.hash) == LARGE


async def test_nobody_has_it_and_nobody_answers_are_told_apart(grow: Grow) -> None:
    async with grow(3, voters=3) as swarm:
        ref = BlobRef(hash_of(SMALL), len(SMALL))
        with pytest.raises(NotFound):
            await swarm.blobs[0].get(ref)
        swarm.cut_off(2)
        with pytest.raises(Unavailable):
            await swarm.blobs[0].get(ref)


async def test_a_node_that_lies_is_not_believed(grow: Grow) -> None:
    async with grow(3, voters=3) as swarm:
        ref = BlobRef(hash_of(LARGE), len(LARGE))
        for liar in (0, 1):
            folder = swarm.blobs[liar]._folder
            folder.write_file(ref.hash, bytes(len(LARGE)))
            folder.added(ref.hash, len(LARGE), 0.0)
        with pytest.raises(Unavailable):
            await swarm.blobs[2].get(ref)
        assert 2 not in swarm.holders(LARGE)


async def test_a_reference_with_another_size_is_refused(grow: Grow) -> None:
    async with grow(1, voters=1) as swarm:
        ref = await swarm.blobs[0].put(SMALL)
        with pytest.raises(MalformedMessage):
            await swarm.blobs[0].get(BlobRef(ref.hash, 5))


async def test_only_unnamed_and_old_blobs_are_deleted(grow: Grow) -> None:
    async with grow(1, voters=1) as swarm:
        blobs = swarm.blobs[0]
        named = await blobs.put(SMALL)
        unnamed = await blobs.put(b"unnamed")
        assert await blobs.keep({named.hash}) == 0
        swarm.clock.at += 3_601
        fresh = await blobs.put(b"fresh")
        assert await blobs.keep({named.hash}) == 1
        assert [blobs.has(ref.hash) for ref in (named, unnamed, fresh)] == [True, False, True]


async def test_an_offer_renews_the_grace(grow: Grow) -> None:
    """Else a blob said to be here could be deleted before its record is committed."""
    async with grow(2, voters=1) as swarm:
        await swarm.blobs[0].put(LARGE)
        swarm.clock.at += 3_601
        await swarm.blobs[0].put(LARGE)
        assert [await blobs.keep(set()) for blobs in swarm.blobs] == [0, 0]


async def ask(swarm: Swarm, message: Any) -> Any:
    return await swarm.links[0].request(BLOB, swarm.ids[1], message, timeout_s=1.0)


async def test_an_upload_out_of_order_is_refused_and_forgotten(grow: Grow) -> None:
    async with grow(2, voters=1) as swarm:
        name, size = hash_of(LARGE), len(LARGE)
        with pytest.raises(RemoteError):
            await ask(swarm, Piece(name, size, 5, b"x"))
        assert isinstance(await ask(swarm, Piece(name, size, 0, b"x")), Got)
        with pytest.raises(BadRequest):
            await ask(swarm, Piece(name, size, 9, b"x"))
        with pytest.raises(RemoteError):
            await ask(swarm, Piece(name, size, 1, b"x"))
        with pytest.raises(RemoteError):
            await ask(swarm, Got(name, 1))
        assert swarm.blobs[1]._folder._reserved == 0


async def test_a_false_upload_is_refused(grow: Grow) -> None:
    async with grow(2, voters=1) as swarm:
        with pytest.raises(MalformedMessage):
            await ask(swarm, Piece(hash_of(b"this"), 4, 0, b"that"))
        assert swarm.blobs[1].count == 0
        with pytest.raises(NotFound):
            await ask(swarm, Fetch(hash_of(b"this"), 0))


async def test_uploads_are_bounded_and_expire(grow: Grow) -> None:
    async with grow(2, voters=1, config=BlobsConfig(uploads_max=2)) as swarm:
        for number in range(2):
            await ask(swarm, Piece(bytes([number]) * 32, 10, 0, b"x"))
        with pytest.raises(Busy):
            await ask(swarm, Piece(b"z" * 32, 10, 0, b"x"))
        swarm.clock.at += 31
        await trio.sleep(0.2)
        assert isinstance(await ask(swarm, Piece(b"z" * 32, 10, 0, b"x")), Got)


async def test_a_full_disk_is_busy_and_not_a_crash(grow: Grow) -> None:
    async with grow(2, voters=1, config=BlobsConfig(bytes_max=BLOB_BYTES_MAX)) as swarm:
        swarm.blobs[1]._folder.reserve(BLOB_BYTES_MAX - 10)
        with pytest.raises(SwarmError) as caught:
            await swarm.blobs[0].put(SMALL)
        assert caught.value.code == "insufficient_copies"


async def test_the_largest_blob_travels(grow: Grow) -> None:
    async with grow(2, voters=1) as swarm:
        data = os.urandom(MIB) * 64
        ref = await swarm.blobs[0].put(data)
        assert swarm.blobs[1].has(ref.hash)
