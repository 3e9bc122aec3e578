"""Vector memory whose index is in PostgreSQL: the database comes and goes, and nothing is lost."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from postgres_server import PostgresServer
from vector_databases import in_schema, schema_for
from vector_nodes import DIMENSION, Node, VectorSwarm, entries, entry, hits_on, ids_on

from swarmd.base.errors import NotReady, SwarmError, VectorDatabaseUnavailable
from swarmd.memory.vector import feeder as feeding
from swarmd.memory.vector.config import VectorsConfig
from swarmd.memory.vector.feeder import OpenIndex
from swarmd.memory.vector.shapes import Metric, packed

ASKED = packed([1.0] * DIMENSION)


@pytest.fixture
def swarm(tmp_path: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> VectorSwarm:
    monkeypatch.setattr(feeding, "_AGAIN_MAX_S", 0.5)
    config = VectorsConfig(settle_timeout_s=20.0, engine="pgvector", pgvector_host="127.0.0.1")
    swarm = VectorSwarm(tmp_path, config)
    swarm.opener = lambda name: in_schema(postgres, schema_for(tmp_path / name))
    return swarm


async def made(node: Node) -> None:
    await node.vectors.create("docs", DIMENSION, Metric.COSINE, by="ann")


async def found_again(node: Node, ids: list[str]) -> None:
    """Searches find these, once the database answers again; until then they say why not."""
    with trio.fail_after(20.0):
        while True:
            try:
                if await ids_on(node) == ids:
                    return
            except (VectorDatabaseUnavailable, NotReady):
                await trio.sleep(0.05)


async def test_while_the_database_is_away_writes_go_on_and_searches_say_why_not(
    swarm: VectorSwarm, postgres: PostgresServer
) -> None:
    postgres.stop()
    try:
        async with swarm.node("a", alone=True) as a:
            await made(a)
            await a.vectors.add("docs", [entry("x", 1)], by="ann")
            began = trio.current_time()
            with pytest.raises(VectorDatabaseUnavailable, match="the vector database swarmd on"):
                await a.vectors.search("docs", ASKED, 1)
            assert trio.current_time() - began < 10.0, "it waited for what is not to come"
            assert a.vectors.get("docs", "x").record.created_by == "ann"
            [info] = await a.vectors.collections()
            assert info.entries is None
            facts = await a.vectors.examine()
            assert "cannot be used" in facts.problem
            # It comes for the first time, and goes again in the midst of it all.
            postgres.start()
            await found_again(a, ["x"])
            assert (await a.vectors.examine()) == replace(facts, entries=1, problem="")
            postgres.stop()
            await a.vectors.add("docs", [entry("y", 2)], by="ann")
            await a.vectors.delete("docs", "x")
            with pytest.raises(VectorDatabaseUnavailable):
                await a.vectors.search("docs", ASKED, 1)
            postgres.start()
            await found_again(a, ["y"])
    finally:
        if not postgres.is_running:
            postgres.start()


@pytest.mark.parametrize(
    "harm",
    [
        "DROP SCHEMA {0} CASCADE",
        "DELETE FROM {0}.entries_1 WHERE key % 2 = 0; UPDATE {0}.state SET position = 1",
        "TRUNCATE {0}.state",
    ],
)
async def test_a_database_that_forgot_is_filled_again(
    swarm: VectorSwarm, postgres: PostgresServer, tmp_path: Path, harm: str
) -> None:
    ids = sorted(f"e{n}" for n in range(40))
    async with swarm.node("a", alone=True) as a:
        await made(a)
        await a.vectors.add("docs", entries(random.Random(3), ids), by="")
        before = await hits_on(a)
        assert sorted(hit.id for hit in before) == ids
        postgres.sql(harm.format(schema_for(tmp_path / "a")))
        await found_again(a, ids)
        assert await hits_on(a) == before


async def test_nodes_that_share_a_server_and_one_that_does_not_answer_alike(
    swarm: VectorSwarm, postgres: PostgresServer, tmp_path: Path
) -> None:
    opener = swarm.opener
    assert opener is not None
    ids = sorted(f"e{n}" for n in range(60))
    async with swarm.node("a") as a, swarm.node("b") as b:
        swarm.opener = None
        async with swarm.node("c") as c:
            await made(a)
            await a.vectors.add("docs", entries(random.Random(3), ids), by="")
            found = []
            for node in (a, b, c):
                with trio.fail_after(20.0):
                    while len(found) < 3:
                        try:
                            hits = await hits_on(node)
                        except SwarmError:
                            hits = []
                        if sorted(hit.id for hit in hits) == ids:
                            found.append(hits)
                            break
                        await trio.sleep(0.05)
            assert found == [found[0]] * 3
    assert sorted(hit.id for hit in found[0]) == ids


async def test_settings_can_be_tried_before_there_is_anything_to_index(
    swarm: VectorSwarm, postgres: PostgresServer
) -> None:
    async with swarm.node("a", alone=True) as a:
        facts = await a.vectors.examine()
        assert (facts.engine, facts.entries, facts.problem) == ("pgvector", 0, "")

    @asynccontextmanager
    async def refused() -> AsyncIterator[object]:
        raise VectorDatabaseUnavailable("no such database")
        yield

    def opener(name: str) -> OpenIndex:
        return refused  # type: ignore[return-value]

    swarm.opener = opener
    async with swarm.node("b", alone=True) as b:
        assert (await b.vectors.examine()).problem == "no such database"
