"""The embedded index after `kill -9` at any moment, and how its service bounds what waits."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing
from vector_model import Model, check_hits

from swarmd.base.errors import Busy, CorruptFile, ShuttingDown
from swarmd.memory.vector.embedded import EmbeddedIndex, open_engine, open_vector_index
from swarmd.memory.vector.engine import Engine
from swarmd.memory.vector.shapes import (
    Batch,
    Change,
    Define,
    Drop,
    Equals,
    Metric,
    Query,
    Remove,
    Upsert,
    packed,
)

SHARED = Path(__file__).resolve().parents[2] / "shared"
SIZE = 20


def batch_at(position: int) -> Batch:
    """What comes after a position: the same in any process."""
    if position == 0:
        return Batch(0, 1, (Define(1, "c", 8, Metric.COSINE), Define(1, "d", 8, Metric.L2)))
    changes: list[Change] = []
    for at in range(position + 1, position + SIZE + 1):
        rng = random.Random(at)
        name, entry_id = rng.choice("cd"), f"e{rng.randrange(200)}"
        if at % 401 == 0:
            changes += [Drop(at, "d"), Define(at, "d", 8, Metric.L2)]
        elif rng.random() < 0.3:
            changes.append(Remove(at, name, entry_id))
        else:
            vector = packed(rng.gauss(0, 1) for _ in range(8))
            changes.append(Upsert(at, name, entry_id, vector, {"n": at % 5}, "a", at))
    return Batch(position, position + SIZE, tuple(changes))


FEED = """
import sys
from pathlib import Path
from test_vector_crash import batch_at
from swarmd.memory.vector.embedded import open_engine
engine = open_engine(Path(sys.argv[1]))
while True:
    print(*engine.apply([batch_at(engine.position)]), flush=True)
"""


def test_killed_at_any_moment_it_holds_what_it_told_and_goes_on(tmp_path: Path) -> None:
    """Goal: what was acknowledged is there, and what is there is whole, whenever it is killed.

    Method: a process applies batches that follow from the position alone; it is killed after
    some, at any moment; then the index is opened, held against the model, and goes on.
    """
    rng, told, model = random.Random(1), 0, Model()
    for _ in range(6):
        code = f"import sys; sys.path[:0] = {[str(SHARED), str(Path(__file__).parent)]!r}\n{FEED}"
        command = [sys.executable, "-c", code, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as feeding:
            assert feeding.stdout is not None
            for _ in range(rng.randrange(1, 25)):
                told = int(feeding.stdout.readline())
            time.sleep(rng.random() * 0.01)
            feeding.send_signal(signal.SIGKILL)
            told = max([told, *map(int, whole_lines(feeding.stdout.read()))])
        engine = Engine(tmp_path / "index")
        assert engine.position >= told
        while model.position < engine.position:
            model.apply(batch_at(model.position))
        assert model.position == engine.position
        for name in "cd":
            every = Query(name, packed([1.0] * 8), 1_000)
            check_hits(model, every, engine.search(every))
            some = Query(name, packed([1.0] * 8), 10, (Equals("n", 3),))
            check_hits(model, some, engine.search(some))
        engine.close()
    assert not (tmp_path / "damaged").exists()


def whole_lines(text: str) -> list[str]:
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not holds():  # noqa: ASYNC110 - a thread is waited for
            await trio.sleep(0.002)


class Slow(Engine):
    """Applies only once it may."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.may = threading.Event()
        self.groups: list[int] = []
        self.asked = 0

    def apply(self, batches: Sequence[Batch]) -> list[object]:
        self.asked += 1
        assert self.may.wait(10)
        self.groups.append(len(batches))
        return [*super().apply(batches)]


async def test_what_waits_is_bounded_and_committed_together(tmp_path: Path) -> None:
    engine = Slow(tmp_path / "index")
    index = EmbeddedIndex(engine)
    outcomes: list[object] = []

    async def feed(position: int) -> None:
        try:
            outcomes.append(await index.apply(Batch(position, position + 1, ())))
        except Busy as error:
            outcomes.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed, 0)
        await until(lambda: engine.asked == 1)
        for position in range(1, 80):
            nursery.start_soon(feed, position)
            await trio.testing.wait_all_tasks_blocked()
        assert len(outcomes) == 80 - 17
        assert all("repeat this one" in str(error) for error in outcomes)
        engine.may.set()
    assert sorted(outcomes[80 - 17 :]) == [*range(1, 18)]
    assert engine.groups == [1, 16]
    await index.aclose()


async def test_what_waits_when_it_closes_is_told(tmp_path: Path) -> None:
    engine = Slow(tmp_path / "index")
    index = EmbeddedIndex(engine)
    outcomes: list[object] = []

    async def feed(position: int) -> None:
        try:
            outcomes.append(await index.apply(Batch(position, position + 1, ())))
        except ShuttingDown:
            outcomes.append("closed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed, 0)
        await until(lambda: engine.asked == 1)
        nursery.start_soon(feed, 1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(index.aclose)
        await until(lambda: index._closed)
        engine.may.set()
    assert sorted(map(str, outcomes)) == ["1", "closed"]
    engine = open_engine(tmp_path)
    assert engine.position == 1
    engine.close()


async def test_a_bug_reaches_who_gave_the_batch_and_the_next_one_is_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_vector_index(tmp_path) as index:

        def breaks(*_: object) -> None:
            raise AssertionError("a bug")

        with monkeypatch.context() as patch:
            patch.setattr(Engine, "_commit", breaks)
            with pytest.raises(AssertionError, match="a bug"):
                await index.apply(batch_at(0))
        assert index.position == 0
        assert await index.apply(batch_at(0)) == 1


async def test_damage_that_comes_while_it_runs_is_named(tmp_path: Path) -> None:
    async with open_vector_index(tmp_path) as index:
        await index.apply(batch_at(0))
        await index.apply(batch_at(1))
        index._engine._writer._run("DELETE FROM entries")
        with pytest.raises(CorruptFile, match="Restart this node"):
            await index.search(Query("c", packed([1.0] * 8), 10))
    async with open_vector_index(tmp_path) as index:
        assert index.position == 0
    assert (tmp_path / "damaged").exists()
