"""The small parts of the shell: the outbox, the writer, gathering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from taskbench import BLOB, BOOT, A, B
from taskfakes import FakeBlobs
from trio.testing import MockClock

from swarmd.base.errors import InsufficientCopies, NoQuorum, SwarmError, Unreachable
from swarmd.base.limits import INLINE_BYTES_MAX, MESSAGE_BYTES_MAX
from swarmd.mesh.link import Lane
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.raft.messages import OpResult, Put, Txn
from swarmd.tasks.events import Commit, Propose
from swarmd.tasks.gathering import as_value, compose, for_each
from swarmd.tasks.messages import TASK, Hello, ResultItem, Results, Row, Settled
from swarmd.tasks.outbox import Outbox
from swarmd.tasks.spec import Inline, Stored
from swarmd.tasks.writer import Writer
from swarmd.wire.codec import pack, unpack


class FakeLink:
    """Keeps what was sent; `up` says whether there is a connection."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Any, Lane]] = []
        self.up = True
        self.node_id = A

    def send_nowait(self, family: Any, peer: bytes, message: Any, *, lane: Lane) -> bool:
        if self.up:
            self.sent.append((peer, message, lane))
        return self.up

    async def send(self, family: Any, peer: bytes, message: Any, *, lane: Lane) -> None:
        await trio.sleep(0.1)
        if peer == B:
            raise Unreachable("no way")
        self.sent.append((peer, message, lane))


def result(fence: int, size: int = 1) -> ResultItem:
    return ResultItem("t", fence, True, Inline(b"x" * size))


async def flushed(outbox: Outbox, nursery: trio.Nursery) -> None:
    nursery.start_soon(outbox.run)
    await trio.testing.wait_all_tasks_blocked()


async def test_items_for_one_peer_leave_together(nursery: trio.Nursery) -> None:
    link = FakeLink()
    outbox = Outbox(link)  # type: ignore[arg-type]
    for fence in (1, 2, 3):
        outbox.put(A, Settled(5, BOOT, (fence,)))
    outbox.put(B, Settled(5, BOOT, (4,)))
    outbox.put(A, Settled(6, BOOT, (5,)))
    outbox.put(A, Hello(5))
    await flushed(outbox, nursery)
    assert [(peer, message) for peer, message, _ in link.sent] == [
        (A, Hello(5)),
        (A, Settled(5, BOOT, (1, 2, 3))),
        (B, Settled(5, BOOT, (4,))),
        (A, Settled(6, BOOT, (5,))),
    ]


async def test_large_items_are_cut_into_messages_that_fit(nursery: trio.Nursery) -> None:
    link = FakeLink()
    outbox = Outbox(link)  # type: ignore[arg-type]
    outbox.put(A, Results(5, BOOT, tuple(result(n, INLINE_BYTES_MAX) for n in range(30))))
    outbox.put(A, Results(6, BOOT, (result(99),)))
    await flushed(outbox, nursery)
    assert [item.fence for _, m, _ in link.sent for item in m.items] == [*range(30), 99]
    assert all(len(TASK.encode(message)) < MESSAGE_BYTES_MAX for _, message, _ in link.sent)
    assert [lane for *_, lane in link.sent][-2:] == [Lane.BULK, Lane.CONTROL]


async def test_a_message_waits_for_a_connection_in_the_background(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    link = FakeLink()
    link.up = False
    outbox = Outbox(link)  # type: ignore[arg-type]
    outbox.put(A, Hello(5))
    outbox.put(B, Hello(5))
    nursery.start_soon(outbox.run)
    await trio.sleep(1.0)
    assert [(peer, message) for peer, message, _ in link.sent] == [(A, Hello(5))]


class SlowStore:
    """Takes `delay_s` per write."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self.writes: list[int] = []
        self.error: SwarmError | None = None

    async def propose(self, ops: Sequence[Any], *, timeout_s: float = 5.0) -> list[OpResult]:
        self.writes.append(len(ops))
        await trio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        return [OpResult(op.then[0].key != b"bad", 7) for op in ops]


def proposal(tag: int, key: bytes = b"k") -> Propose:
    return Propose(tag, Txn((), (Put(key, b"v"),)))


async def test_what_comes_during_a_write_shares_the_next(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store = SlowStore(0.01)
    commits: list[Commit] = []
    writer = Writer(store, 0.002, commits.extend, lambda error: None)  # type: ignore[arg-type]
    nursery.start_soon(writer.run)
    began = trio.current_time()
    writer.put(proposal(0))
    await trio.testing.wait_all_tasks_blocked()
    assert store.writes == [1]
    for tag in range(1, 400):
        writer.put(proposal(tag, b"bad" if tag == 5 else b"k"))
    await trio.sleep(0.1)
    assert store.writes[:2] == [1, 256]
    assert sum(store.writes) == 400
    assert [c.tag for c in commits if not c.ok] == [5]
    assert len(commits) == 400
    assert trio.current_time() - began < 0.2


async def test_a_write_of_unknown_outcome_is_told(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store = SlowStore(0.01)
    store.error = NoQuorum("none")
    errors: list[SwarmError] = []
    writer = Writer(store, 0.002, lambda commits: None, errors.append)  # type: ignore[arg-type]
    nursery.start_soon(writer.run)
    writer.put(proposal(0))
    await trio.sleep(0.1)
    assert errors == [store.error]


async def test_rows_become_one_list_in_their_order() -> None:
    blobs = FakeBlobs({b"b" * 32: pack({"large": 1})})
    rows = [
        Row("one", Inline(pack(1))),
        Row("two", Stored(BLOB)),
        Row("three", None, "agent_timeout", "too slow"),
    ]
    failure = {"name": "three", "failed": "agent_timeout", "message": "too slow"}
    assert unpack(await compose(rows, blobs)) == [1, {"large": 1}, failure]
    assert unpack(await compose([], blobs)) == []


async def test_values_above_the_bound_become_blobs() -> None:
    blobs = FakeBlobs({})
    assert await as_value(b"x" * INLINE_BYTES_MAX, blobs) == Inline(b"x" * INLINE_BYTES_MAX)
    large = await as_value(b"x" * (INLINE_BYTES_MAX + 1), blobs)
    assert isinstance(large, Stored)
    assert large.blob == BlobRef(large.blob.hash, INLINE_BYTES_MAX + 1)


async def test_the_first_error_of_many_stops_the_others(autojump_clock: MockClock) -> None:
    done: list[int] = []

    async def do(number: int) -> None:
        await trio.sleep(number)
        if number == 2:
            raise InsufficientCopies("too few")
        done.append(number)

    with pytest.raises(InsufficientCopies):
        await for_each(6, do, at_once=6)
    assert done == [0, 1]
