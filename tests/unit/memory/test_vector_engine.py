"""What is on the disk: slots, the order of a commit, damage, faults."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from pathlib import Path

import pytest
from vector_model import Model, check_hits

from swarmd.base.errors import CorruptFile, DiskFault, FeedGap
from swarmd.base.limits import VECTOR_CHOICES_MAX
from swarmd.memory.vector import database, engine, slots
from swarmd.memory.vector.embedded import open_engine
from swarmd.memory.vector.engine import Engine
from swarmd.memory.vector.shapes import (
    Batch,
    Change,
    Condition,
    Define,
    Drop,
    Equals,
    Metric,
    OneOf,
    Query,
    Range,
    Remove,
    Scalar,
    Upsert,
    packed,
)

ASK = Query("c", packed([1, 0]), 1_000)


def put(position: int, entry_id: str, x: float = 1.0, collection: str = "c") -> Upsert:
    payload = {"n": position, "even": position % 2 == 0, "id": entry_id}
    return Upsert(position, collection, entry_id, packed([x, 1]), payload, "n1", position)


def filled(folder: Path, count: int = 40) -> tuple[Engine, Model]:
    made, model = Engine(folder), Model()
    changes: list[Change] = [Define(1, "c", 2, Metric.L2), Define(1, "other", 3, Metric.DOT)]
    changes += [put(n + 2, f"e{n}", float(n)) for n in range(count)]
    batch = Batch(0, count + 1, tuple(changes))
    assert made.apply([batch]) == [count + 1]
    model.apply(batch)
    return made, model


def test_slots_are_used_again_once_no_search_may_read_them(tmp_path: Path) -> None:
    made, _ = filled(tmp_path / "index", 10)
    path = tmp_path / "index" / "1.f32"
    size = path.stat().st_size
    token = object()
    made._searches[token] = made._commits  # A search that goes on.
    before = path.read_bytes()[:80]
    position = made.position
    for _ in range(3):
        changes = tuple(put(position + n + 1, f"e{n}", 7.0) for n in range(10))
        assert made.apply([Batch(position, position + 10, changes)]) == [position + 10]
        position += 10
    assert path.read_bytes()[:80] == before
    del made._searches[token]
    for _ in range(60):
        changes = tuple(put(position + n + 1, f"e{n}", 8.0) for n in range(10))
        made.apply([Batch(position, position + 10, changes)])
        position += 10
    assert path.read_bytes()[:80] != before
    assert path.stat().st_size == size
    made.close()


def test_a_search_under_way_is_of_one_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: what is applied, removed and dropped while a search runs does not show in it.

    Method: a search is stopped before it looks at vectors, and after; meanwhile all changes.
    """
    made, model = filled(tmp_path / "index")
    stopped, go_on = threading.Event(), threading.Event()
    real = engine.nearest

    def waits(*given: object) -> object:
        stopped.set()
        assert go_on.wait(10)
        return real(*given)

    monkeypatch.setattr(engine, "nearest", waits)
    found: list[object] = []
    asked = Query("c", packed([1, 0]), 1_000, (Equals("even", True),))
    searching = threading.Thread(target=lambda: found.extend(made.search(asked)))
    searching.start()
    assert stopped.wait(10)
    position = made.position
    for round_number in range(3):
        changes = tuple(put(position + n + 1, f"e{n}", 1e6 + round_number) for n in range(40))
        assert made.apply([Batch(position, position + 40, changes)]) == [position + 40]
        position += 40
    assert made.apply([Batch(position, position + 1, (Drop(position + 1, "c"),))])
    go_on.set()
    searching.join(10)
    check_hits(model, asked, found)
    assert [one.name for one in made.collections()] == ["other"]
    made.close()


def test_vectors_are_durable_before_the_database_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = filled(tmp_path / "index")
    order: list[str] = []
    synced, committed = os.fdatasync, made._writer.commit
    monkeypatch.setattr(os, "fdatasync", lambda fd: (order.append("sync"), synced(fd)))
    monkeypatch.setattr(made._writer, "commit", lambda: (order.append("commit"), committed()))
    made.apply([Batch(41, 42, (put(42, "new"),))])
    assert order == ["sync", "commit"]
    assert made._writer._run("PRAGMA synchronous").fetchone() == (2,)
    assert made._writer._run("PRAGMA journal_mode").fetchone() == ("wal",)
    made.close()


def test_batches_of_one_commit_are_each_whole_or_refused(tmp_path: Path) -> None:
    made, model = filled(tmp_path / "index")
    good, bad = Batch(41, 42, (put(42, "a"),)), Batch(42, 44, (put(43, "b"), put(44, "c", 1e16)))
    after, again = Batch(42, 43, (put(43, "d"),)), Batch(41, 42, (put(42, "a"),))
    results = made.apply([good, bad, again, after, Batch(50, 51, ())])
    assert results[0] == 42
    assert results[2:4] == [42, 43]
    assert isinstance(results[4], FeedGap)
    assert "come to 43" in results[4].message
    for batch in (good, after):
        model.apply(batch)
    made.close()
    made = Engine(tmp_path / "index")
    assert made.position == 43
    check_hits(model, ASK, made.search(ASK))
    made.close()


@pytest.mark.parametrize("fault", ["allocate", "write", "sync", "commit"])
def test_where_the_disk_refuses_nothing_changes_and_the_next_try_succeeds(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, model = filled(tmp_path / "index")
    changes = (
        *(put(n + 42, f"e{n}", 5.0) for n in range(300)),
        Define(342, "new", 1, Metric.L2),
        Drop(343, "other"),
        Remove(344, "c", "e7"),
    )
    batch = Batch(41, 344, changes)
    full = OSError(errno.ENOSPC, "No space left on device")

    def refuses(*_: object) -> None:
        raise full

    with monkeypatch.context() as patch:
        names = {"allocate": "posix_fallocate", "write": "pwrite", "sync": "fdatasync"}
        if fault in names:
            patch.setattr(os, names[fault], refuses)
        else:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorname = "SQLITE_FULL"
            full = error  # type: ignore[assignment]
            patch.setattr(made._writer, "commit", refuses)
        for _ in range(5):
            with pytest.raises(DiskFault, match=r"No space left|disk is full"):
                made.apply([batch])
    assert made.position == 41
    assert sorted(path.name for path in (tmp_path / "index").glob("*.f32")) == ["1.f32", "2.f32"]
    check_hits(model, ASK, made.search(ASK))
    assert made.apply([batch]) == [344]
    assert made._collections["c"].file._next == 340, "slots were lost by the tries"
    model.apply(batch)
    check_hits(model, ASK, made.search(ASK))
    made.close()
    made = Engine(tmp_path / "index")
    check_hits(model, ASK, made.search(ASK))
    assert [one.name for one in made.collections()] == ["c", "new"]
    made.close()


def test_the_log_is_bounded_though_somebody_always_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: searches that overlap without a pause do not let the database's log grow for ever.

    Method: two searches in turns, the next one begun before the last one ends; changes meanwhile.
    """
    monkeypatch.setattr(engine, "_LOG_BYTES_MAX", 256 * 1024)
    made, _ = filled(tmp_path / "index")
    real, done, begun = engine.nearest, threading.Event(), threading.Condition()
    count = 0

    def overlaps(*given: object) -> object:
        nonlocal count
        with begun:
            count += 1
            own = count
            begun.notify_all()
            begun.wait_for(lambda: count > own, 0.1)  # Until another one has begun, if any may.
        return real(*given)

    monkeypatch.setattr(engine, "nearest", overlaps)
    faults: list[Exception] = []

    def search() -> None:
        try:
            while not done.is_set():
                assert len(made.search(ASK)) == 40
        except Exception as error:  # noqa: BLE001 - looked at below
            faults.append(error)

    searching = [threading.Thread(target=search) for _ in range(2)]
    for thread in searching:
        thread.start()
    log, largest, position = tmp_path / "index" / "index.db-wal", 0, made.position
    for _ in range(80):
        changes = tuple(put(position + n + 1, f"e{n}") for n in range(40))
        assert made.apply([Batch(position, position + 40, changes)]) == [position + 40]
        largest = max(largest, log.stat().st_size)
        position += 40
    done.set()
    for thread in searching:
        thread.join(10)
    assert faults == []
    assert 128 * 1024 < largest < 512 * 1024
    made.close()


def test_files_of_what_was_dropped_or_never_committed_go(tmp_path: Path) -> None:
    made, _ = filled(tmp_path / "index")
    stray = tmp_path / "index" / "77.f32"
    stray.write_bytes(b"left by a crash")
    assert made.apply([Batch(41, 42, (Drop(42, "other"),))]) == [42]
    assert not (tmp_path / "index" / "2.f32").exists()
    made.close()
    Engine(tmp_path / "index").close()
    assert not stray.exists()
    assert (tmp_path / "index" / "1.f32").exists()


def edited(path: Path, sql: str) -> None:
    with sqlite3.connect(path) as connection:
        assert connection.execute(sql).rowcount == 1
    connection.close()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE entries SET payload = x'80' WHERE id = 'e3'",
        "UPDATE entries SET payload = x'c1' WHERE id = 'e3'",
        "UPDATE entries SET payload = 'text' WHERE id = 'e3'",
        "UPDATE entries SET id = 'e3x' WHERE id = 'e3'",
        "UPDATE entries SET created_at_ms = 9 WHERE id = 'e3'",
        "UPDATE entries SET collection = 2 WHERE id = 'e3'",
        "UPDATE entries SET collection = 9 WHERE id = 'e3'",
        "UPDATE entries SET key = key + 1000 WHERE id = 'e3'",
        "DELETE FROM entries WHERE id = 'e3'",
        "DELETE FROM fields WHERE name = 'n' AND value = 7",
        "UPDATE fields SET value = 8000 WHERE name = 'n' AND value = 7",
        "UPDATE fields SET collection = 5 WHERE name = 'n' AND value = 7",
        "UPDATE state SET body = zeroblob(100)",
        "UPDATE state SET body = x'' ",
        "UPDATE state SET body = 'text'",
        "DELETE FROM state",
    ],
)
def test_a_row_that_is_not_what_was_written_is_found(sql: str, tmp_path: Path) -> None:
    made, _ = filled(tmp_path / "index")
    made.close()
    path = tmp_path / "index" / "index.db"
    edited(path, sql)
    with pytest.raises(CorruptFile, match=r"index\.db|1\.f32"):
        Engine(tmp_path / "index")


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("1.f32", lambda path: flip(path, 9)),
        ("1.f32", lambda path: cut(path, 40)),
        ("1.f32", lambda path: path.unlink()),
        ("index.db", lambda path: flip(path, 3)),
        ("index.db", lambda path: cut(path, 5_000)),
        ("index.db", lambda path: cut(path, 0)),
        ("index.db", lambda path: path.write_bytes(b"nothing of the kind" * 100)),
        ("index.db", lambda path: path.write_bytes(path.read_bytes()[:4096] + bytes(16_384))),
    ],
)
def test_a_damaged_index_is_named_moved_aside_and_made_anew(
    name: str, harm: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, model = filled(tmp_path / "index")
    made.close()
    harm(tmp_path / "index" / name)
    made = open_engine(tmp_path)
    said = capsys.readouterr()
    assert "the vector index is damaged" in said.out + said.err
    assert str(tmp_path / "damaged") in said.out + said.err
    assert (tmp_path / "damaged" / "index.db").exists()
    assert (made.position, made.collections()) == (0, [])
    changes = [Define(1, "c", 2, Metric.L2), *model.collections["c"][2].values()]
    assert made.apply([Batch(0, 41, tuple(changes))]) == [41]
    check_hits(model, ASK, made.search(ASK))
    made.close()
    # The next one takes the place of what lies there.
    flip(tmp_path / "index" / "1.f32", 1)
    open_engine(tmp_path).close()


def test_any_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    """Goal: an index that opens holds what was written. Method: flip a bit in every 257th byte."""
    made, model = filled(tmp_path / "index", 12)
    made.close()
    for name in ("index.db", "1.f32"):
        path = tmp_path / "index" / name
        good = path.read_bytes()
        found = 0
        for at in range(0, min(len(good), 24_576), 257):
            flip(path, at)
            try:
                made = Engine(tmp_path / "index")
            except CorruptFile:
                found += 1
            else:
                assert made.position == model.position
                check_hits(model, ASK, made.search(ASK))
                even = Query("c", packed([1, 0]), 1_000, (Equals("even", True),))
                check_hits(model, even, made.search(even))
                made.close()
            for side in (tmp_path / "index").glob("index.db-*"):
                side.unlink()
            path.write_bytes(good)
        assert found > 0, name


def test_what_the_disk_refuses_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk must not cost the index."""
    made, _ = filled(tmp_path / "index")
    made.close()
    blocker = sqlite3.connect(tmp_path / "index" / "index.db")
    blocker.execute("PRAGMA locking_mode = EXCLUSIVE")
    blocker.execute("BEGIN EXCLUSIVE")
    real = sqlite3.connect
    monkeypatch.setattr(
        database.sqlite3, "connect", lambda *given, **named: real(*given, **named | {"timeout": 0})
    )
    with pytest.raises(DiskFault, match="SQLITE_BUSY"):
        open_engine(tmp_path)
    blocker.close()
    assert not (tmp_path / "damaged").exists()
    made = open_engine(tmp_path)
    assert made.position == 41
    made.close()


VALUES: tuple[Scalar, ...] = (
    *(True, False, 0, 1, 0.0, -0.0, 1.0, 0.5, -1, 2**53, 2**53 + 1, float(2**53), -(2**63)),
    *(
        2**63 - 1,
        float(2**63),
        1e300,
        -1e-300,
        "",
        "0",
        "1",
        "true",
        "a",
        "a\0",
        "ab",
        "\U0001f600",
    ),
)


def test_each_value_meets_what_python_says_it_meets(tmp_path: Path) -> None:
    """True is no 1, 1 is 1.0, 2**53 + 1 is not 2.0**53, and text goes by code points."""
    made, model = Engine(tmp_path / "index"), Model()
    changes: list[Change] = [Define(1, "c", 2, Metric.L2)]
    changes += [
        Upsert(1, "c", f"e{n}", packed([n, 1]), {"v": value, "w": n}, "n1", 1)
        for n, value in enumerate(VALUES)
    ]
    batch = Batch(0, 1, tuple(changes))
    model.apply(batch)
    assert made.apply([batch]) == [1]
    made.close()
    made = Engine(tmp_path / "index")
    for value in VALUES:
        conditions: list[Condition] = [Equals("v", value), OneOf("v", (value, "b", 7))]
        if not isinstance(value, bool):
            conditions += [Range("v", **{name: value}) for name in ("gt", "gte", "lt", "lte")]
        for condition in conditions:
            asked = Query("c", packed([1, 0]), 1_000, (condition, Range("w", gte=0)))
            check_hits(model, asked, made.search(asked))
    made.close()


def test_as_many_values_may_be_chosen_from_as_the_bound_says(tmp_path: Path) -> None:
    made, model = filled(tmp_path / "index")
    values = tuple(range(20, 20 + VECTOR_CHOICES_MAX - 1))
    for chosen in ((*values, "e3"), tuple(map(str, values))):
        asked = Query("c", packed([1, 0]), 1_000, (OneOf("n", chosen),))
        check_hits(model, asked, made.search(asked))
    assert len(made.search(Query("c", packed([1, 0]), 1_000, (OneOf("n", values),)))) == 22
    made.close()


def test_who_has_no_slot_to_read_reads_short(tmp_path: Path) -> None:
    file = slots.SlotFile(tmp_path / "x", 3, fresh=True)
    assert file.read(7) == b""
    file.close(delete=True)
    assert not (tmp_path / "x").exists()
