"""Blobs of users between nodes: copies, pins, transfers that fail, damage, room."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from blob_swarm import Swarm

from swarmd.base.errors import (
    BadRequest,
    BlobsFull,
    DiskFault,
    InsufficientCopies,
    NotFound,
    SwarmError,
    Unavailable,
    Unreachable,
    WouldLoseData,
)
from swarmd.base.ids import NodeId
from swarmd.base.limits import BLOB_CHUNK_BYTES, BLOB_PIECE_BYTES, MIB
from swarmd.base.sealed_file import Sealer
from swarmd.identity.sealing import SealingKey
from swarmd.mesh.link import Pipe
from swarmd.mesh.transports.memory import DirectPipePort
from swarmd.state.blobs import answers, bulk, machine, mending, transfer, turns
from swarmd.state.blobs.bulk import Shown
from swarmd.state.blobs.chunkfile import ChunkReader, ChunkWriter
from swarmd.state.blobs.config import BlobsConfig
from swarmd.state.blobs.messages import CHUNK_PIECES, ManifestPart, PiecesAsk, PiecesHere
from swarmd.state.blobs.naming import Hasher, hash_of
from swarmd.state.blobs.pieces import Pieces

DATA = os.urandom(20 * BLOB_CHUNK_BYTES + 17)
HASH = hash_of(DATA)
COUNT = 21
PIECES = 41

Grow = Callable[..., AbstractAsyncContextManager[Swarm]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disks are worker threads, which no mock clock waits for: so shorten the real waits."""
    for module, name, seconds in (
        (bulk, "_RETRY_S", 0.2),
        (bulk, "_PAUSE_S", 0.02),
        (transfer, "RETRY_S", 0.3),
        (transfer, "PAUSE_S", 0.02),
        (transfer, "SYNC_S", 0.01),
        (mending, "_LOOK_S", 0.02),
        (mending, "_AGAIN_S", 0.02),
        (mending, "_PAUSE_S", 0.01),
        (mending, "_HAND_OVER_PAUSE_S", 0.02),
        (mending, "_IDLE_S", 0.05),
    ):
        monkeypatch.setattr(module, name, seconds)


@pytest.fixture
def grow(tmp_path: Path) -> Grow:
    @asynccontextmanager
    async def grown(
        count: int, config: BlobsConfig | None = None, sealer: Sealer | None = None
    ) -> AsyncIterator[Swarm]:
        swarm = Swarm(tmp_path)
        async with AsyncExitStack() as stack:
            await swarm.grow(stack, count, min(count, 3), config, sealer)
            yield swarm

    return grown


async def pieces(data: bytes, size: int = 100_000) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(data), size):
        await trio.lowlevel.checkpoint()
        yield data[start : start + size]


async def put(
    swarm: Swarm,
    data: bytes = DATA,
    *,
    at: int = 0,
    copies: int | None = None,
    ttl_s: float | None = None,
) -> Shown:
    node = swarm.blobs[at].bulk
    node.check_put(copies, ttl_s, len(data))
    blob_hash, size = await node.receive(pieces(data), len(data))
    assert (blob_hash, size) == (hash_of(data), len(data))
    items = [i async for i in node.spread(blob_hash, size, "ann", copies=copies, ttl_s=ttl_s)]
    assert isinstance(items[-1], Shown)
    return items[-1]


async def get(swarm: Swarm, at: int, blob_hash: bytes = HASH) -> bytes:
    async with swarm.blobs[at].bulk.open(blob_hash) as (size, chunks):
        data = b"".join([chunk async for chunk in chunks])
    assert len(data) == size
    return data


def file_of(swarm: Swarm, at: int, blob_hash: bytes = HASH) -> Path:
    return swarm.blobs[at].bulk.holding.folder.path(blob_hash)


def numbers(swarm: Swarm, shown: Shown) -> set[int]:
    return {swarm.ids.index(node) for node in shown.holders}


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await trio.sleep(0.01)


Before = Callable[[int, bytes], Awaitable[bytes | None]]


async def _nothing(number: int, data: bytes) -> bytes | None:
    return None


class Watched(Pieces):
    """See `watch`."""

    def __init__(self, reader: ChunkReader, sent: list[int], before: Before) -> None:
        super().__init__(reader)
        self._sent, self._before = sent, before

    def read_file(self, number: int) -> memoryview:
        data = super().read_file(number)
        other = trio.from_thread.run(self._before, number, bytes(data))
        self._sent.append(number)
        return data if other is None else memoryview(other)


def watch(
    swarm: Swarm, at: int, monkeypatch: pytest.MonkeyPatch, before: Before = _nothing
) -> list[int]:
    """The numbers of pieces as a node sends them.

    `before` is awaited with each of them; what it returns is sent in its place.
    """
    sent: list[int] = []
    answers = swarm.blobs[at].bulk._answers
    monkeypatch.setattr(answers, "_pieces", lambda reader: Watched(reader, sent, before))
    return sent


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


# ---- put and get ----------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"x", DATA[:BLOB_CHUNK_BYTES], DATA])
async def test_a_plain_put_is_on_two_nodes_and_pinned(grow: Grow, data: bytes) -> None:
    async with grow(4) as swarm:
        shown = await put(swarm, data)
        assert len(shown.holders) == 2
        assert numbers(swarm, shown) == swarm.holders(data)
        assert [(pin.owner, pin.copies) for pin in shown.pins] == [("ann", 2)]
        for at in range(4):
            assert await get(swarm, at, hash_of(data)) == data


async def test_as_many_copies_as_were_asked_for(grow: Grow) -> None:
    async with grow(4) as swarm:
        assert len((await put(swarm, copies=4)).holders) == 4
        assert swarm.holders(DATA) == {0, 1, 2, 3}


async def test_a_node_alone_says_so(grow: Grow) -> None:
    async with grow(1) as swarm:
        shown = await put(swarm)
        assert numbers(swarm, shown) == {0}
        assert shown.pins[0].copies == 1


async def test_more_copies_than_nodes_are_refused_before_anything_is_read(grow: Grow) -> None:
    async with grow(2) as swarm:
        with pytest.raises(InsufficientCopies, match=r"3 copies need as many nodes.* 2 nodes"):
            await put(swarm, copies=3)
        assert not swarm.holders(DATA)


async def test_a_member_that_is_down_counts(grow: Grow) -> None:
    async with grow(2) as swarm:
        swarm.cut_off(1)
        with trio.fail_after(5), pytest.raises(InsufficientCopies, match="1 of 2 nodes"):
            await put(swarm)
        assert not swarm.blobs[0].bulk.holding.is_pinned(HASH)


async def test_a_node_that_refuses_is_passed_over(
    grow: Grow, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with grow(3) as swarm:
        first = next(n for n in bulk.ranked(HASH, swarm.ids) if n != swarm.ids[0])
        full = swarm.blobs[swarm.ids.index(first)].bulk.holding.folder
        monkeypatch.setattr(full, "_bytes_max", 0)
        shown = await put(swarm)
        assert first not in shown.holders
        assert len(shown.holders) == 2


async def test_an_unknown_blob_and_an_unsure_one_are_told_apart(grow: Grow) -> None:
    async with grow(3) as swarm:
        with pytest.raises(NotFound, match="no node holds a blob"):
            await get(swarm, 0)
        swarm.cut_off(2)
        with pytest.raises(Unavailable, match="some do not answer"):
            await get(swarm, 0)


async def test_what_is_put_is_not_whole_is_not_kept(grow: Grow, tmp_path: Path) -> None:
    async with grow(1) as swarm:
        node = swarm.blobs[0].bulk
        with pytest.raises(BadRequest, match="announced"):
            await node.receive(pieces(DATA), len(DATA) + 1)

        async def broken() -> AsyncGenerator[bytes, None]:
            yield DATA[: 3 * MIB]
            raise BadRequest("the request broke off")

        with pytest.raises(BadRequest, match="broke off"):
            await node.receive(broken(), None)
        assert not list((tmp_path / "0" / "uploads").iterdir())
        assert node.holding.folder._reserved == 0
        assert not swarm.holders(DATA)


async def test_a_full_disk_is_said_and_leaves_nothing(
    grow: Grow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    async with grow(1) as swarm:
        monkeypatch.setattr("os.pwrite", full)
        with pytest.raises(DiskFault, match="No space left on device"):
            await put(swarm)
        assert not list((tmp_path / "0" / "uploads").iterdir())


# ---- transfers that fail --------------------------------------------------------------


@pytest.mark.parametrize("sealer", [None, SealingKey(b"k" * 32)], ids=["in clear", "sealed"])
async def test_a_transfer_goes_on_where_it_was_cut(
    grow: Grow, monkeypatch: pytest.MonkeyPatch, sealer: Sealer | None
) -> None:
    """Goal: no piece that was written comes twice. Cut in the middle of a chunk, then try again."""
    again = trio.Event()

    async def hold(number: int, data: bytes) -> None:
        if number >= 25:
            await again.wait()

    async with grow(2, sealer=sealer) as swarm:
        await put(swarm, copies=1)
        node = swarm.blobs[1].bulk
        sent = watch(swarm, 0, monkeypatch, hold)
        partial = node.holding.shelf.partial(HASH)
        written = 25 * BLOB_PIECE_BYTES if sealer is None else 12 * BLOB_CHUNK_BYTES
        with trio.move_on_after(5) as scope:
            async with node.open(HASH) as (_, chunks):
                count = 0
                async for _ in chunks:
                    count += 1
                    if count == 4:
                        await until(lambda: partial.stat().st_size >= written)
                        await trio.sleep(0.05)
                        scope.cancel()
        await until(lambda: not node.holding._transfers)
        again.set()
        assert [path.name for path in partial.parent.iterdir()] == [partial.name]
        await until(lambda: len(sent) == 26)
        del sent[25:]  # Nobody asks for it any more, so it is not sent.
        assert await get(swarm, 1) == DATA
        resumed_at = 25 if sealer is None else 24  # A chunk is one frame there.
        assert sent == [*range(25), *range(resumed_at, PIECES)]
        assert not list(partial.parent.iterdir())


async def test_no_more_than_a_chunk_is_sent_and_not_written(
    grow: Grow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: whenever the process is killed, one chunk of a holder comes twice at most."""
    async with grow(2) as swarm:
        await put(swarm, copies=1)
        partial = swarm.blobs[1].bulk.holding.shelf.partial(HASH)
        count = 0

        def sent(size: int) -> None:
            nonlocal count
            count += 1
            end = (count - CHUNK_PIECES) * BLOB_PIECE_BYTES
            if end > 0:
                assert partial.read_bytes()[:end] == DATA[:end], count

        monkeypatch.setattr(answers, "BLOB_BYTES_SENT", SimpleNamespace(inc=sent))
        assert await get(swarm, 1) == DATA
        assert count == PIECES


async def test_what_a_liar_sends_is_not_taken_and_it_is_told(
    grow: Grow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: one wrong chunk ends its sender's part; nothing of it is left in the file."""
    doubted: list[bytes] = []

    async def lie(number: int, data: bytes) -> bytes:
        return b"?" * len(data)

    async with grow(3) as swarm:
        await put(swarm, copies=2)
        holders = swarm.holders(DATA)
        taker, liar = ({0, 1, 2} - holders).pop(), min(holders)
        sent = watch(swarm, liar, monkeypatch, lie)

        async def doubt(blob_hash: bytes) -> None:
            doubted.append(blob_hash)

        monkeypatch.setattr(swarm.blobs[liar].bulk._answers, "_look_again", doubt)
        with trio.fail_after(10):
            assert await get(swarm, taker) == DATA
        await until(lambda: taker in swarm.holders(DATA))
        assert file_of(swarm, taker).read_bytes() == DATA
        assert len(sent) <= 2 * CHUNK_PIECES + 1
        await until(lambda: doubted == [HASH])


@pytest.mark.parametrize("wrong", [b"", b"?", b"?" * (BLOB_PIECE_BYTES - 1)])
async def test_a_piece_of_another_length_ends_its_sender(
    grow: Grow, monkeypatch: pytest.MonkeyPatch, wrong: bytes
) -> None:
    async def lie(number: int, data: bytes) -> bytes | None:
        return wrong if number == 5 else None

    async with grow(2) as swarm:
        await put(swarm, copies=1)
        watch(swarm, 0, monkeypatch, lie)
        with trio.fail_after(5), pytest.raises(Unavailable, match="no member that answers"):
            await get(swarm, 1)


@pytest.mark.parametrize("raw", [b"\xff" * 4, PIECES.to_bytes(4, "big"), b"abc" * 400])
async def test_pieces_that_are_not_there_are_not_sent(grow: Grow, raw: bytes) -> None:
    async with grow(2) as swarm:
        await put(swarm, copies=1)
        async with swarm.blobs[1].bulk.pipe(swarm.ids[0], PiecesAsk(HASH)) as pipe:
            with trio.fail_after(5), suppress(Unreachable):
                await pipe.run(pipe.write, raw)
                assert not await pipe.run(pipe.read, 1)
        assert await get(swarm, 1) == DATA


async def test_a_number_may_come_in_parts(grow: Grow) -> None:
    async with grow(2) as swarm:
        await put(swarm, copies=1)
        async with swarm.blobs[1].bulk.pipe(swarm.ids[0], PiecesAsk(HASH)) as pipe:
            assert pipe.answer == PiecesHere(len(DATA))
            view = memoryview(bytearray(BLOB_PIECE_BYTES + 17))
            for part in (b"\0", b"\0\0", b"\1\0\0", b"\0", (PIECES - 1).to_bytes(1, "big")):
                await pipe.run(pipe.write, part)
                await trio.sleep(0.01)
            await pipe.run(pipe.read_into, view)
            assert view == DATA[BLOB_PIECE_BYTES : 2 * BLOB_PIECE_BYTES] + DATA[-17:]


async def test_a_disk_that_is_full_ends_a_transfer_with_its_reason(
    grow: Grow, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with grow(2) as swarm:
        await put(swarm, copies=1)

        def full(*_: Any) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.pwrite", full)
        with trio.fail_after(5), pytest.raises(DiskFault, match="No space left on device"):
            await get(swarm, 1)
        monkeypatch.undo()
        assert await get(swarm, 1) == DATA


async def test_what_has_come_is_synced_while_more_comes(
    grow: Grow, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with grow(2) as swarm:
        await put(swarm, copies=1)
        synced, sync = threading.Event(), os.fdatasync

        def note(fd: int) -> None:
            sync(fd)
            synced.set()

        async def hold(number: int, data: bytes) -> None:
            if number == PIECES // 2:
                await until(synced.is_set)

        watch(swarm, 0, monkeypatch, hold)
        monkeypatch.setattr("os.fdatasync", note)
        assert await get(swarm, 1) == DATA


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
async def test_a_disk_that_does_not_sync_ends_a_transfer_and_what_it_lost_comes_again(
    grow: Grow, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """It may still be read, and the next sync would not tell; what was there before may stay."""
    async with grow(2) as swarm:
        await put(swarm, copies=1)
        holding = swarm.blobs[1].bulk.holding
        partial = holding.shelf.partial(HASH)
        writer = ChunkWriter(partial, len(DATA), None)
        writer.write(2, DATA[2 * BLOB_CHUNK_BYTES : 3 * BLOB_CHUNK_BYTES])
        writer.close()
        before = set(range(2 * CHUNK_PIECES, 3 * CHUNK_PIECES))
        refused, sync = threading.Event(), getattr(os, call)

        def refuse(fd: int) -> None:
            if str(partial) in os.readlink(f"/proc/self/fd/{fd}"):
                refused.set()
                raise OSError(5, "Input/output error")
            sync(fd)

        async def hold(number: int, data: bytes) -> None:
            if number == PIECES // 2 and call == "fdatasync":
                await until(refused.is_set)

        sent = watch(swarm, 0, monkeypatch, hold)
        with monkeypatch.context() as patch:
            patch.setattr(f"os.{call}", refuse)
            patch.setattr(transfer, "SYNC_S", 0.01 if call == "fdatasync" else 60.0)
            with trio.fail_after(5), pytest.raises(DiskFault, match="Input/output error"):
                await holding.ensure(HASH, len(DATA))
        assert refused.is_set()
        sent.clear()
        assert await get(swarm, 1) == DATA
        assert set(range(CHUNK_PIECES)) <= set(sent) <= set(range(PIECES)) - before


async def test_what_an_earlier_run_left_is_verified(
    grow: Grow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: what is good of it does not come again, what is not does, and nobody is blamed."""
    async with grow(2) as swarm:
        await put(swarm, copies=1)
        sent = watch(swarm, 0, monkeypatch)
        path = swarm.blobs[1].bulk.holding.shelf.partial(HASH)
        writer = ChunkWriter(path, len(DATA), None)
        for index in (0, 1, 2, 5):
            chunk = DATA[index * BLOB_CHUNK_BYTES : (index + 1) * BLOB_CHUNK_BYTES]
            writer.write(index, chunk if index != 1 else b"?" * BLOB_CHUNK_BYTES)
        writer.write_part(7, 0, DATA[14 * BLOB_PIECE_BYTES : 15 * BLOB_PIECE_BYTES])
        writer.write_part(9, 0, b"?" * BLOB_PIECE_BYTES)
        writer.write_part(12, 0, DATA[24 * BLOB_PIECE_BYTES : 24 * BLOB_PIECE_BYTES + 100_000])
        writer.close()
        assert await get(swarm, 1) == DATA
        assert swarm.holders(DATA) == {0, 1}
        times = {number: sent.count(number) for number in range(PIECES)}
        assert [number for number in times if not times[number]] == [0, 1, 4, 5, 10, 11, 14]
        # The rest of the one that did not fit, and the chunk that was on its way behind it.
        assert {number for number in times if times[number] > 1} == {19, 20, 21}


async def test_a_holder_that_dies_in_the_middle_is_replaced(
    grow: Grow, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with grow(3, BlobsConfig(chunk_timeout_s=2.0)) as swarm:
        await put(swarm, copies=2)
        taker = ({0, 1, 2} - swarm.holders(DATA)).pop()
        dying = min(swarm.holders(DATA))

        async def die(number: int, data: bytes) -> None:
            if len(sent) == 5:
                swarm.cut_off(dying)

        sent = watch(swarm, dying, monkeypatch, die)
        with trio.fail_after(5):
            assert await get(swarm, taker) == DATA
        assert len(sent) >= 5


async def test_a_holder_that_hangs_holds_up_one_chunk(
    grow: Grow, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with grow(3, BlobsConfig(chunk_timeout_s=30.0)) as swarm:
        await put(swarm, copies=2)
        taker = ({0, 1, 2} - swarm.holders(DATA)).pop()
        hung = min(swarm.holders(DATA))
        go_on = trio.Event()

        async def hang(number: int, data: bytes) -> None:
            if len(sent) == 3:
                await go_on.wait()

        sent = watch(swarm, hung, monkeypatch, hang)
        holding = swarm.blobs[taker].bulk.holding
        async with trio.open_nursery() as nursery:
            nursery.start_soon(holding.ensure, HASH, len(DATA))
            await until(lambda: bool(holding._transfers))
            [under_way] = holding._transfers.values()
            await until(lambda: under_way._fetching.present_count == COUNT - 1)
            go_on.set()
        assert file_of(swarm, taker).read_bytes() == DATA


async def test_a_holder_that_trickles_holds_up_nothing_for_long(
    grow: Grow, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with grow(3, BlobsConfig(chunk_timeout_s=0.3)) as swarm:
        await put(swarm, copies=2)
        taker = ({0, 1, 2} - swarm.holders(DATA)).pop()
        slow = swarm.blobs[min(swarm.holders(DATA))].bulk._answers
        send = answers.send_file

        def trickle(pipe: Pipe, pieces: Pieces, sends: Callable[[int], None]) -> None:
            if not isinstance(pieces, Slow):
                send(pipe, pieces, sends)
                return
            with suppress(Unreachable):
                while True:
                    pipe.write(b"x")
                    time.sleep(0.1)

        class Slow(Pieces):
            pass

        monkeypatch.setattr(answers, "send_file", trickle)
        monkeypatch.setattr(slow, "_pieces", Slow)
        with trio.fail_after(20):
            assert await get(swarm, taker) == DATA


async def test_more_blobs_come_at_once_than_there_are_places(
    grow: Grow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: a small one does not wait until large ones are through."""
    monkeypatch.setattr(turns, "TURN_S", 0.05)
    ended: list[bytes] = []

    async def slowly(number: int, data: bytes) -> None:
        await trio.sleep(0.02)

    async with grow(2) as swarm:
        large = [os.urandom(12 * BLOB_CHUNK_BYTES) for _ in range(6)]
        for data in (*large, b"small"):
            await put(swarm, data, copies=1)
        watch(swarm, 0, monkeypatch, slowly)
        monkeypatch.setattr(swarm.blobs[1].bulk, "turns", turns.Turns(3, 2))

        async def fetch(data: bytes) -> None:
            assert await get(swarm, 1, hash_of(data)) == data
            ended.append(data)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for data in large:
                    nursery.start_soon(fetch, data)
                await trio.sleep(0.1)
                nursery.start_soon(fetch, b"small")
        assert ended[0] == b"small"
        assert swarm.blobs[1].bulk.turns._peers == {}


@pytest.mark.parametrize("ends", [True, False])
async def test_a_busy_holder_is_asked_again(
    grow: Grow, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """Goal: it may be busy far longer than one may fail, but not for ever."""
    monkeypatch.setattr(machine, "BUSY_MAX", 20 if ends else 5)
    monkeypatch.setattr(answers, "_SENDING_MAX", 0)
    async with grow(2) as swarm, trio.open_nursery() as nursery:
        await put(swarm, copies=1)
        transfers = swarm.blobs[1].bulk.holding._transfers

        async def fetch() -> None:
            with trio.fail_after(20), nullcontext() if ends else pytest.raises(Unavailable):
                assert await get(swarm, 1) == DATA

        nursery.start_soon(fetch)
        await until(lambda: bool(transfers))
        [under_way] = transfers.values()
        await until(lambda: sum(under_way._fetching._busy.values()) >= (10 if ends else 5))
        monkeypatch.setattr(answers, "_SENDING_MAX", 1)


async def test_a_holder_may_be_asked_anew_while_its_pipe_is_closed(
    grow: Grow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: of two tasks for one holder none takes the other's run."""
    looked = trio.Event()
    close = DirectPipePort.discard

    async def slowly(pipe: DirectPipePort) -> None:
        looked.set()
        await close(pipe)
        await trio.sleep(0.2)

    async def break_off(number: int, data: bytes) -> None:
        if len(sent) == 12:
            swarm.network._reset(swarm.ids[0], swarm.ids[1])

    async with grow(2) as swarm:
        await put(swarm, copies=1)
        node = swarm.blobs[1].bulk
        holders, asked = node.holders, 0

        async def when_it_breaks(blob_hash: bytes) -> tuple[list[NodeId], bool]:
            nonlocal asked
            asked += 1
            if asked == 3:  # The first is for the manifest, and the second finds the holder.
                await looked.wait()
            return await holders(blob_hash)

        monkeypatch.setattr(transfer, "_LOOK_S", 0.05)
        monkeypatch.setattr(node, "holders", when_it_breaks)
        monkeypatch.setattr(DirectPipePort, "discard", slowly)
        sent = watch(swarm, 0, monkeypatch, break_off)
        with trio.fail_after(10):
            assert await get(swarm, 1) == DATA
        assert asked >= 3


async def test_chunks_come_from_all_holders(grow: Grow, monkeypatch: pytest.MonkeyPatch) -> None:
    async with grow(4) as swarm:
        await put(swarm, copies=3)
        holders = swarm.holders(DATA)
        served = {at: watch(swarm, at, monkeypatch) for at in sorted(holders)}
        assert await get(swarm, ({0, 1, 2, 3} - holders).pop()) == DATA
    assert all(served.values()), served


async def test_a_false_manifest_is_not_believed(
    grow: Grow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: who tells another blob's chunks is found out before one of them is fetched."""
    other = Hasher()
    other.update(os.urandom(len(DATA)))
    lied: list[Any] = []
    async with grow(3) as swarm:
        await put(swarm, copies=2)
        holders = swarm.holders(DATA)
        taker = ({0, 1, 2} - holders).pop()
        first = bulk.ranked(HASH, [swarm.ids[at] for at in holders])[0]
        liar = swarm.blobs[swarm.ids.index(first)].bulk._answers

        async def lie(message: Any) -> Any:
            lied.append(message)
            return ManifestPart(len(DATA), other.hashes())

        monkeypatch.setattr(liar, "_answer_manifest", lie)
        with trio.fail_after(10):
            assert await get(swarm, taker) == DATA
        assert lied


# ---- damage ---------------------------------------------------------------------------


async def test_a_flipped_byte_is_found_by_a_read_and_mended(
    grow: Grow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: who reads never gets a wrong byte, and only what is wrong comes from others."""
    async with grow(2) as swarm:
        await put(swarm, copies=2)
        flip(file_of(swarm, 1), 15 * BLOB_CHUNK_BYTES + 5)
        sent = watch(swarm, 0, monkeypatch)
        assert await get(swarm, 1) == DATA
        await until(lambda: swarm.holders(DATA) == {0, 1})
        assert file_of(swarm, 1).read_bytes() == DATA
        assert sent == [30, 31]


async def test_a_flipped_byte_that_somebody_fetches_is_mended_at_its_holder(grow: Grow) -> None:
    async with grow(3) as swarm:
        await put(swarm, copies=2)
        holders = swarm.holders(DATA)
        taker, bad = ({0, 1, 2} - holders).pop(), min(holders)
        for index in range(COUNT):  # Whichever it is asked for.
            flip(file_of(swarm, bad), index * BLOB_CHUNK_BYTES)
        assert await get(swarm, taker) == DATA
        await until(
            lambda: file_of(swarm, bad).exists() and file_of(swarm, bad).read_bytes() == DATA
        )


async def test_the_scrub_finds_what_nobody_reads(grow: Grow) -> None:
    config = BlobsConfig(scrub_bytes_per_s=100 * MIB)
    async with grow(2, config) as swarm:
        await put(swarm, copies=2)
        flip(file_of(swarm, 1), len(DATA) - 1)
        await until(lambda: not file_of(swarm, 1).exists())
        await until(lambda: file_of(swarm, 1).exists())
        assert file_of(swarm, 1).read_bytes() == DATA


async def test_a_damaged_manifest_is_made_again(grow: Grow, tmp_path: Path) -> None:
    async with grow(2) as swarm:
        await put(swarm, copies=1)
        [manifest] = (tmp_path / "0" / "manifests").iterdir()
        before = manifest.read_bytes()
        flip(manifest, 100)
        assert await get(swarm, 1) == DATA
        assert manifest.read_bytes() == before


async def test_blobs_of_before_have_no_manifest_and_are_read(grow: Grow, tmp_path: Path) -> None:
    """Goal: what tasks stored stays readable, and can be pinned."""
    async with grow(3) as swarm:
        ref = await swarm.blobs[0].put(DATA[: 3 * MIB])
        assert not list((tmp_path / "0" / "manifests").iterdir())
        assert await get(swarm, 2, ref.hash) == DATA[: 3 * MIB]
        shown = [i async for i in swarm.blobs[2].bulk.pin(ref.hash, "ann", copies=2, ttl_s=60)]
        assert isinstance(shown[-1], Shown)
        assert [pin.owner for pin in shown[-1].pins] == ["ann"]


async def test_a_reference_with_a_wrong_size_reads_nothing_into_memory(grow: Grow) -> None:
    async with grow(1) as swarm:
        await put(swarm)
        from swarmd.state.blobs.messages import BlobRef

        with pytest.raises(SwarmError, match="has 5242897 bytes"):
            await swarm.blobs[0].get(BlobRef(HASH, 5))


# ---- pins, room, copies ---------------------------------------------------------------


async def test_pins_are_on_every_holder_and_can_be_taken_back(grow: Grow) -> None:
    async with grow(3) as swarm:
        shown = await put(swarm)
        for at in numbers(swarm, shown):
            assert swarm.blobs[at].bulk.holding.is_pinned(HASH)
        after = await swarm.blobs[2].bulk.unpin(HASH, "ann")
        assert after.pins == ()
        for at in numbers(swarm, shown):
            assert not swarm.blobs[at].bulk.holding.is_pinned(HASH)
        with pytest.raises(NotFound, match="ann has no pin"):
            await swarm.blobs[0].bulk.unpin(HASH, "ann")


async def test_a_holder_that_was_away_learns_that_a_pin_was_taken_back(grow: Grow) -> None:
    async with grow(2, BlobsConfig(chunk_timeout_s=0.2)) as swarm:
        await put(swarm)
        swarm.cut_off(1)
        await swarm.blobs[0].bulk.unpin(HASH, "ann")
        assert swarm.blobs[1].bulk.holding.is_pinned(HASH)
        swarm.network.heal()
        swarm.dead.clear()
        await until(lambda: not swarm.blobs[1].bulk.holding.is_pinned(HASH))


async def test_a_pin_outlives_a_restart(grow: Grow) -> None:
    async with grow(2) as swarm:
        await put(swarm)
    async with grow(2) as swarm:
        assert swarm.blobs[0].bulk.holding.is_pinned(HASH)
        shown, missing = await swarm.blobs[1].bulk.list_all()
        assert ([one.hash for one in shown], missing) == ([HASH], [])
        assert numbers(swarm, shown[0]) == {0, 1}
        swarm.clock.at += 8 * 24 * 3_600
        assert not swarm.blobs[0].bulk.holding.is_pinned(HASH)


async def test_what_is_not_pinned_goes_when_room_is_needed_and_what_is_stays(grow: Grow) -> None:
    older, newer, kept = (os.urandom(2 * MIB) for _ in range(3))
    async with grow(1, BlobsConfig(grace_s=60)) as swarm:
        node = swarm.blobs[0].bulk
        node.holding.folder._bytes_max = 6 * MIB + 100_000
        for data in (older, newer, kept):
            await put(swarm, data)
        for data in (older, newer):
            await node.unpin(hash_of(data), "ann")
        with pytest.raises(BlobsFull, match="over its blobs"):
            await put(swarm, os.urandom(MIB))  # All is young still.
        swarm.clock.at += 61
        await put(swarm, os.urandom(MIB))
        held = [node.holding.folder.size_of(hash_of(d)) is not None for d in (older, newer, kept)]
        assert held == [False, True, True]
        with pytest.raises(BlobsFull):
            await put(swarm, os.urandom(4 * MIB))
        assert node.holding.folder.size_of(hash_of(kept)) is not None


async def test_what_a_record_names_is_not_evicted(grow: Grow) -> None:
    async with grow(1, BlobsConfig(grace_s=60)) as swarm:
        swarm.blobs[0].bulk.holding.folder._bytes_max = 6 * MIB
        ref = await swarm.blobs[0].put(os.urandom(4 * MIB))
        swarm.named.add(ref.hash)
        swarm.clock.at += 61
        with pytest.raises(BlobsFull):
            await put(swarm, os.urandom(4 * MIB))
        swarm.named.clear()
        await put(swarm, os.urandom(4 * MIB))
        assert not swarm.blobs[0].has(ref.hash)


async def test_blobs_of_users_stay_when_tasks_clean_up(grow: Grow) -> None:
    async with grow(1) as swarm:
        await put(swarm)
        await swarm.blobs[0].bulk.unpin(HASH, "ann")
        swarm.clock.at += 10_000
        assert await swarm.blobs[0].keep(set()) == 0
        assert swarm.holders(DATA) == {0}


async def test_copies_are_made_full_again_when_a_holder_dies(grow: Grow) -> None:
    async with grow(4) as swarm:
        shown = await put(swarm, copies=3)
        before = numbers(swarm, shown)
        swarm.cut_off(max(before))
        await until(lambda: len(swarm.holders(DATA)) == 4)
        newcomer = ({0, 1, 2, 3} - before).pop()
        await until(lambda: swarm.blobs[newcomer].bulk.holding.is_pinned(HASH))


async def test_what_was_deleted_at_a_holder_comes_back(grow: Grow) -> None:
    async with grow(2) as swarm:
        await put(swarm)
    (swarm.folder / "1" / file_of(swarm, 1).parent.name / file_of(swarm, 1).name).unlink()
    async with grow(2) as swarm:
        await until(lambda: swarm.holders(DATA) == {0, 1})


async def test_a_pin_survives_a_put_of_the_same_bytes_by_another(grow: Grow) -> None:
    async with grow(2) as swarm:
        await put(swarm)
        node = swarm.blobs[1].bulk
        await node.receive(pieces(DATA), None)
        items = [i async for i in node.spread(HASH, len(DATA), "bob", copies=2, ttl_s=60)]
        assert isinstance(items[-1], Shown)
        assert [pin.owner for pin in items[-1].pins] == ["ann", "bob"]


async def test_who_leaves_gives_what_is_pinned_to_others_first(grow: Grow) -> None:
    async with grow(3) as swarm:
        await put(swarm, copies=1)
        await swarm.blobs[0].hand_over(5.0)
        assert swarm.holders(DATA) >= {0}
        assert len(swarm.holders(DATA)) == 2
        heir = max(swarm.holders(DATA))
        assert swarm.blobs[heir].bulk.holding.is_pinned(HASH)
        swarm.cut_off(1, 2)
        other = os.urandom(300_000)
        await put(swarm, other, copies=1)
        with pytest.raises(WouldLoseData, match="2 pinned blobs"):
            await swarm.blobs[0]._mending.hand_over(0.3)


async def test_many_readers_at_once_make_one_transfer(grow: Grow) -> None:
    """Goal: also readers that begin while a transfer is being given up get the whole."""
    async with grow(2) as swarm:
        await put(swarm, copies=1)

        async def leave_early() -> None:
            async with swarm.blobs[1].bulk.open(HASH) as (_, chunks):
                async for _ in chunks:
                    return

        async def stay() -> None:
            assert await get(swarm, 1) == DATA

        with trio.fail_after(10):
            await leave_early()
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(leave_early)
                    nursery.start_soon(stay)
        holding = swarm.blobs[1].bulk.holding
        await until(lambda: not holding._transfers)
        assert holding.folder._reserved == 0
        assert holding.folder.total_bytes == len(DATA)
