"""An index in PostgreSQL: when the server goes, hangs, forgets, or is somebody else's."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import trio
from postgres_server import PostgresServer, postgres_server
from vector_databases import in_schema, schema_for, server_of

from swarmd.base.errors import CorruptFile, SwarmError, VectorDatabaseUnavailable
from swarmd.memory.vector.embedded import open_vector_index
from swarmd.memory.vector.pg_session import Session, fault_of
from swarmd.memory.vector.pg_tables import Tables
from swarmd.memory.vector.pgvector import PgvectorIndex
from swarmd.memory.vector.port import VectorIndex
from swarmd.memory.vector.shapes import (
    Batch,
    Condition,
    Define,
    Equals,
    Hit,
    Metric,
    Query,
    Range,
    Upsert,
    packed,
)

Open = Callable[..., AbstractAsyncContextManager[PgvectorIndex]]
DEFINE = Batch(0, 1, (Define(1, "c", 2, Metric.L2),))
ASKED = Query("c", packed([0.0, 0.0]), 5)


def one(position: int, x: float = 1.0) -> Batch:
    entry = Upsert(position, "c", f"e{position}", packed([x, 0.0]), {}, "a", 0, "v")
    return Batch(position - 1, position, (entry,))


@pytest.fixture
def opened(postgres: PostgresServer, tmp_path: Path) -> Open:
    def open_index(**changes: object) -> AbstractAsyncContextManager[PgvectorIndex]:
        return in_schema(postgres, schema_for(tmp_path), **changes)()  # type: ignore[arg-type]

    return open_index


@contextmanager
def down(postgres: PostgresServer) -> Iterator[None]:
    postgres.stop()
    try:
        yield
    finally:
        postgres.start()


@contextmanager
def hanging(postgres: PostgresServer) -> Iterator[None]:
    """Its processes take no turn, and connections are neither refused nor closed."""
    stopped = postgres.processes()
    send(signal.SIGSTOP, stopped)
    try:
        yield
    finally:
        send(signal.SIGCONT, stopped)


def send(what: signal.Signals, processes: list[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, what)


# ---- the server goes -------------------------------------------------------------------------


async def test_what_was_applied_outlives_a_crash_of_the_server(
    opened: Open, postgres: PostgresServer
) -> None:
    async with opened() as index:
        await index.apply(DEFINE)
        await index.apply(one(2))
        before = await index.search(ASKED)
        with down(postgres):
            with pytest.raises(VectorDatabaseUnavailable) as told:
                await index.search(ASKED)
            assert f"{postgres.database} on 127.0.0.1:{postgres.port} cannot be used" in str(told)
            assert "search on another node" in str(told.value)
            assert postgres.password not in str(told.value)
            with pytest.raises(VectorDatabaseUnavailable):
                await index.apply(one(3))
        # Sessions that were ended meanwhile are noticed, and nothing is to be done for that.
        assert await index.search(ASKED) == before
        assert await index.apply(one(3)) == 3
        assert [hit.id for hit in await index.search(ASKED)] == ["e2", "e3"]


async def test_sessions_that_the_server_ended_are_made_anew_without_a_word(
    opened: Open, postgres: PostgresServer
) -> None:
    async with opened() as index:
        await index.apply(DEFINE)
        await index.search(ASKED)
        postgres.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name='swarmd'"
        )
        assert await index.apply(one(2)) == 2
        assert [hit.id for hit in await index.search(ASKED)] == ["e2"]


async def test_a_server_that_hangs_is_waited_for_so_long_and_no_longer(
    opened: Open, postgres: PostgresServer
) -> None:
    async with opened(timeout_s=1.0, connect_timeout_s=1.0) as index:
        await index.apply(DEFINE)
        await index.search(ASKED)
        with hanging(postgres), trio.fail_after(20.0):
            for call in (lambda: index.search(ASKED), lambda: index.apply(one(2))):
                with pytest.raises(VectorDatabaseUnavailable, match=r"no (answer|connection) with"):
                    await call()
            # Whoever gives up waits for nobody.
            with trio.fail_after(5.0), trio.move_on_after(0.1):
                await index.search(ASKED)
        assert await index.apply(one(2)) == 2
    with hanging(postgres), pytest.raises(VectorDatabaseUnavailable), trio.fail_after(20.0):
        async with opened(timeout_s=1.0, connect_timeout_s=1.0):
            pass


async def test_it_closes_at_once_though_the_server_hangs(
    opened: Open, postgres: PostgresServer
) -> None:
    with trio.fail_after(10.0):
        async with opened() as index, trio.open_nursery() as nursery:
            await index.apply(DEFINE)
            with hanging(postgres):
                nursery.start_soon(index.apply, one(2))
                await trio.sleep(0.2)
                nursery.cancel_scope.cancel()
                await index.aclose()


# ---- it forgets, or somebody else writes -------------------------------------------------------


async def test_a_schema_that_is_gone_is_damage_and_opened_anew_it_begins_at_0(
    opened: Open, postgres: PostgresServer, tmp_path: Path
) -> None:
    async with opened() as index:
        await index.apply(DEFINE)
        await index.search(ASKED)
        postgres.sql(f"DROP SCHEMA {schema_for(tmp_path)} CASCADE")
        with pytest.raises(CorruptFile):
            await index.search(ASKED)
        with pytest.raises(CorruptFile):
            await index.apply(one(2))
    async with opened() as index:
        assert (index.position, index.collections()) == (0, [])
        await index.apply(DEFINE)


@pytest.mark.parametrize(
    "harm",
    [
        "DELETE FROM {}.entries_1",
        "DROP TABLE {}.fields_1",
        "DROP TABLE {}.entries_1",
        "DELETE FROM {}.state",
        "UPDATE {}.state SET format = 99",
        "DROP TABLE {}.collections",
        "ALTER TABLE {}.state DROP next_key",
        "UPDATE {}.collections SET metric = 'none'",
    ],
)
async def test_what_is_harmed_is_made_anew(
    opened: Open, postgres: PostgresServer, tmp_path: Path, harm: str
) -> None:
    async with opened() as index:
        await index.apply(DEFINE)
        await index.apply(one(2))
    postgres.sql(harm.format(schema_for(tmp_path)))
    async with opened() as index:
        assert (index.position, index.collections()) == (0, [])
        await index.apply(DEFINE)
        await index.apply(one(2))
        assert len(await index.search(ASKED)) == 1


async def test_a_copy_of_an_earlier_time_is_told_from_what_was_there(
    opened: Open, postgres: PostgresServer, tmp_path: Path
) -> None:
    async with opened() as index:
        await index.apply(DEFINE)
        await index.apply(one(2))
        postgres.sql(f"UPDATE {schema_for(tmp_path)}.state SET position = 1")
        with pytest.raises(CorruptFile, match="put back from a copy"):
            await index.search(ASKED)
        with pytest.raises(CorruptFile):
            await index.check()
        with pytest.raises(CorruptFile, match="put back from a copy"):
            await index.apply(one(3))


async def test_of_two_that_write_to_one_schema_the_second_is_noticed(opened: Open) -> None:
    async with opened() as index, opened() as other:
        await index.apply(DEFINE)
        with pytest.raises(CorruptFile, match="somebody else wrote"):
            await other.apply(DEFINE)


async def test_nodes_that_share_a_database_see_each_only_their_own(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    places = [schema_for(tmp_path / name) for name in "ab"]
    async with (
        in_schema(postgres, places[0])() as a,
        in_schema(postgres, places[1])() as b,
    ):
        for index, x in ((a, 1.0), (b, 2.0)):
            await index.apply(DEFINE)
            await index.apply(one(2, x))
        assert [hit.distance for hit in await a.search(ASKED)] == [1.0]
        assert [hit.distance for hit in await b.search(ASKED)] == [2.0]


# ---- who may ---------------------------------------------------------------------------------


async def refusal(opened: Open, **changes: object) -> str:
    with pytest.raises(VectorDatabaseUnavailable) as told:
        async with opened(**changes):
            pass
    return str(told.value.message)


async def test_why_it_cannot_be_used_is_told_and_passwords_are_not(
    opened: Open, postgres: PostgresServer
) -> None:
    wrong = "hunter-2-is-wrong"
    told = await refusal(opened, password=wrong)
    assert "password authentication failed" in told
    assert wrong not in told
    assert wrong not in repr(server_of(postgres, password=wrong))
    assert "does not exist" in await refusal(opened, database="nowhere")
    assert "127.0.0.1:1" in await refusal(opened, port=1)
    postgres.sql("CREATE DATABASE plain OWNER swarmd", "postgres")
    told = await refusal(opened, database="plain")
    assert "run `CREATE EXTENSION vector` in plain as a superuser" in told
    postgres.sql("CREATE ROLE guest LOGIN PASSWORD 'x'", "postgres")
    assert "permission denied" in await refusal(opened, user="guest", password="x")


def certificates(folder: Path, authority: str, name: str) -> None:
    """An authority and a certificate that it made for a name, both as PEM."""
    commands = [
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
        f"-subj /CN={authority} -keyout ca.key -out ca.pem",
        f"req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} "
        "-keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out server.crt",
    ]
    for command in commands:
        subprocess.run(
            ["openssl", *command.split()], cwd=folder, check=True, capture_output=True, timeout=60
        )


def test_over_tls_only_who_shows_the_right_certificate_is_spoken_to(tmp_path: Path) -> None:
    certificates(tmp_path, "one", "localhost")
    (other := tmp_path / "other").mkdir()
    certificates(other, "other", "localhost")
    with postgres_server(plain=True) as postgres:
        server = server_of(postgres, host="localhost", ca_file=str(tmp_path / "ca.pem"))

        def why(**changes: object) -> str:
            with pytest.raises(psycopg.Error) as told:
                Session(replace(server, **changes), "none", reads_only=True)  # type: ignore[arg-type]
            return fault_of(told.value, server).message

        assert "does not support SSL" in why()
        owner = postgres.folder.stat()
        for name in ("server.key", "server.crt"):
            shutil.copy(tmp_path / name, postgres.folder / name)
            os.chown(postgres.folder / name, owner.st_uid, owner.st_gid)
            (postgres.folder / name).chmod(0o600)
        postgres.stop("fast")
        postgres.start(ssl="on")
        session = Session(server, "none", reads_only=True)
        asked = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert session.one(asked) == (True,)
        with pytest.raises(VectorDatabaseUnavailable, match="its server has no pgvector"):
            Tables(Session(server, "none", reads_only=False), guesses=False).prepare()
        session.close()
        assert "certificate verify failed" in why(ca_file=str(other / "ca.pem"))
        assert "does not match host name" in why(host="127.0.0.1")
        assert "does not exist" in why(ca_file="/nowhere")


async def test_a_socket_needs_no_tls(opened: Open, postgres: PostgresServer) -> None:
    async with opened(host=str(postgres.sockets), password="") as index:
        await index.check()
        assert str(postgres.sockets) in str(index._server)


# ---- the same answers ------------------------------------------------------------------------


def vectors(rng: random.Random, count: int, dimension: int) -> list[bytes]:
    centres = [[rng.gauss(0, 1) for _ in range(dimension)] for _ in range(20)]
    return [packed(x + rng.gauss(0, 0.4) for x in centres[rng.randrange(20)]) for _ in range(count)]


def filled(given: list[bytes], metric: Metric) -> list[Batch]:
    entries = [
        Upsert(n + 2, "c", f"e{n}", vector, {"n": n % 100}, "a", n)
        for n, vector in enumerate(given)
    ]
    define = Define(1, "c", len(given[0]) // 4, metric)
    batches = [Batch(0, 1, (define,))]
    for begin in range(0, len(entries), 500):
        some = tuple(entries[begin : begin + 500])
        batches.append(Batch(begin + 1, begin + 1 + len(some), some))
    return batches


FILTERS: tuple[tuple[Condition, ...], ...] = (
    (),
    (Equals("n", 7),),
    (Range("n", gte=10, lt=60), Range("n", gt=57)),
)


async def answers(index: VectorIndex, given: list[bytes], metric: Metric) -> list[list[Hit]]:
    for batch in filled(given, metric):
        await index.apply(batch)
    asked = vectors(random.Random(6), 12, len(given[0]) // 4)
    return [
        await index.search(Query("c", vector, 10, FILTERS[n % 3])) for n, vector in enumerate(asked)
    ]


@pytest.mark.parametrize("metric", list(Metric))
async def test_answers_equal_those_of_the_embedded_index(
    opened: Open, tmp_path: Path, metric: Metric
) -> None:
    given = vectors(random.Random(5), 2_000, 24)
    async with opened() as index, open_vector_index(tmp_path) as embedded:
        assert await answers(index, given, metric) == await answers(embedded, given, metric)


async def test_among_vectors_that_single_precision_cannot_tell_apart_the_nearest_are_found(
    opened: Open, tmp_path: Path
) -> None:
    rng = random.Random(2)
    base = [1.0 + rng.random() for _ in range(24)]
    alike = [packed([*base[:-1], base[-1] * (1 + n * 1e-6)]) for n in range(1_500)]
    rng.shuffle(alike)
    asked = Query("c", packed(base), 10)
    async with opened() as index, open_vector_index(tmp_path) as embedded:
        for batch in filled(alike, Metric.DOT):
            await index.apply(batch)
            await embedded.apply(batch)
        found = [hit.distance for hit in await index.search(asked)]
        assert found == [hit.distance for hit in await embedded.search(asked)]
        every = await index.search(replace(asked, k=1_000))
    assert found == [hit.distance for hit in every[:10]]


async def test_an_index_that_guesses_finds_nearly_all_and_never_too_few(
    opened: Open, tmp_path: Path
) -> None:
    given = vectors(random.Random(5), 2_000, 24)
    async with open_vector_index(tmp_path) as embedded:
        exact = await answers(embedded, given, Metric.COSINE)
    async with opened(guesses=True) as index:
        found = await answers(index, given, Metric.COSINE)
        assert [len(hits) for hits in found] == [len(hits) for hits in exact]
        same = [
            len({hit.id for hit in hits} & {hit.id for hit in wanted}) / len(wanted)
            for hits, wanted in zip(found, exact, strict=True)
        ]
        assert sum(same) / len(same) >= 0.95
    # The setting may be changed either way, without that anything is lost.
    asked = Query("c", given[3], 3)
    async with opened() as index:
        assert (await index.search(asked))[0].id == "e3"
    async with opened(guesses=True) as index:
        assert (await index.search(asked))[0].id == "e3"


async def test_a_bug_is_raised_as_it_is(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    async with opened() as index:
        monkeypatch.setattr("swarmd.memory.vector.pg_search.look", wrong)
        with pytest.raises(ZeroDivisionError):
            await index.check()
        monkeypatch.undo()
        await index.check()
        assert not issubclass(ZeroDivisionError, SwarmError)
