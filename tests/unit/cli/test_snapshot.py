"""Copies of the store: consistent while it changes, proven when read, put back as planned."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gateway"))

from gateway_fakes import FakeStore, LiveGateway, make_services
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmd.base.errors import AlreadyExists, CorruptFile
from swarmd.cli import snapshot_file
from swarmd.cli.common import run_program
from swarmd.cli.swarmctl import swarmctl
from swarmd.client import Client
from swarmd.gateway import export as exporting
from swarmd.gateway.export import export
from swarmd.gateway.shapes import (
    SnapshotAgents,
    SnapshotEnd,
    SnapshotHead,
    SnapshotItem,
    SnapshotKeys,
    SnapshotLater,
)
from swarmd.state.raft.messages import Delete, Put

HEAD = SnapshotHead("lab", "id", "n1", "0.1.0", 7)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveGateway]:
    with LiveGateway(make_services(tmp_path)) as gateway:
        yield gateway


@pytest.fixture
def ctl(
    live: LiveGateway, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    monkeypatch.setenv("SWARMCTL_SOCKET", live.socket)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_program(swarmctl, "swarmctl", list(arguments))
        code = ended.value.code
        return (code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


# ---- making a copy --------------------------------------------------------------------


async def test_a_copy_is_of_one_revision_whatever_changes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: what the items amount to is the store at the revision that the end names.

    Method: slices of a few keys; between any two of them keys are written, overwritten and
    deleted on both sides of where the copy is; compare with the store when it ended.
    """
    monkeypatch.setattr(exporting, "SLICE_BYTES", 10)
    services = make_services(tmp_path)
    store = services.store
    assert isinstance(store, FakeStore)
    await store.propose([Put(b"u/%03d" % n, b"0") for n in range(0, 100, 2)])
    await store.propose([Put(b"g/echo", b"record"), Put(b"t/task", b"not copied")])
    found: dict[bytes, bytes | None] = {}
    states: dict[int, dict[bytes, bytes]] = {}

    def note() -> None:
        entries = store.state.range(b"u/", b"", 1_000)
        states[store.revision] = {one.key[2:]: one.value for one in entries}

    note()
    turn = revision = 0
    async for item in export(services):
        turn += 1
        if isinstance(item, SnapshotKeys | SnapshotLater):
            found.update(item.entries)
        elif isinstance(item, SnapshotAgents):
            assert item.entries == [(b"echo", b"record")]
        elif isinstance(item, SnapshotEnd):
            revision = item.revision
        await store.propose([Put(b"u/%03d" % (turn * 37 % 100), b"%d" % turn)])
        note()
        await store.propose([Delete(b"u/%03d" % (turn * 53 % 100))])
        note()
    assert {key: value for key, value in found.items() if value is not None} == states[revision]
    assert turn > 10


def test_save_writes_a_file_for_its_owner_only(ctl: Run, live: LiveGateway, tmp_path: Path) -> None:
    with Client(live.socket) as client:
        client.kv_put("a", b"1")
        client.kv_put("b", b"2")
    file = tmp_path / "copy.snap"
    code, out, _ = ctl("snapshot", "save", str(file))
    assert (code, out.startswith(f"{file}: 2 keys at revision 2, ")) == (0, True)
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    summary = snapshot_file.check(file)
    assert list(snapshot_file.keys(file, summary)) == [(b"a", b"1"), (b"b", b"2")]
    code, _, err = ctl("snapshot", "save", str(file))
    assert (code, "exists: choose another name" in err) == (2, True)
    assert ctl("snapshot", "save", str(file), "--force")[0] == 0
    assert ctl("snapshot", "save", str(tmp_path / "no" / "where"))[0] == 2
    assert [one.name for one in tmp_path.glob("*.part*")] == []


def test_a_node_without_a_copy_asks_one_that_has_one(
    ctl: Run, live: LiveGateway, tmp_path: Path
) -> None:
    store = live.services.store
    assert isinstance(store, FakeStore)
    store.is_voter = False
    code, _, err = ctl("snapshot", "save", str(tmp_path / "copy.snap"))
    assert (code, "is no voter" in err) == (4, True)
    assert list(tmp_path.glob("copy*")) == []


# ---- putting it back ------------------------------------------------------------------


@pytest.fixture
def saved(ctl: Run, live: LiveGateway, tmp_path: Path) -> Path:
    """A copy of a=1, b=2, c=3; since then b was changed, c deleted and d made."""
    file = tmp_path / "copy.snap"
    with Client(live.socket) as client:
        for name, value in (("a", b"1"), ("b", b"2"), ("c", b"3")):
            client.kv_put(name, value)
        assert ctl("snapshot", "save", str(file))[0] == 0
        client.kv_put("b", b"changed")
        client.kv_delete("c")
        client.kv_put("d", b"new")
    return file


def keys_of(live: LiveGateway) -> dict[str, bytes]:
    with Client(live.socket) as client:
        return {one.key: one.value for one in client.kv_list()}


def test_restore_says_what_it_changes_and_asks(ctl: Run, live: LiveGateway, saved: Path) -> None:
    before = keys_of(live)
    code, out, err = ctl("snapshot", "restore", str(saved))
    assert code == 2
    assert "1 new, 1 changed back, 1 as they are" in out
    assert "1 keys that are not in it and stay" in out
    assert "say --yes" in err
    assert keys_of(live) == before
    code, out, _ = ctl("snapshot", "restore", str(saved), "--yes")
    assert (code, "2 keys written" in out) == (0, True)
    assert keys_of(live) == {"a": b"1", "b": b"2", "c": b"3", "d": b"new"}
    assert "nothing to change" in ctl("snapshot", "restore", str(saved), "--yes")[1]
    assert ctl("snapshot", "restore", str(saved), "--yes", "--delete")[0] == 0
    assert keys_of(live) == {"a": b"1", "b": b"2", "c": b"3"}


def test_what_others_change_meanwhile_is_left_to_them(
    ctl: Run, live: LiveGateway, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = live.services.store
    assert isinstance(store, FakeStore)
    propose = store.propose

    async def overtaken(ops: list[Put], *, timeout_s: float = 5.0) -> object:
        await propose([Put(b"u/b", b"faster")])
        return await propose(ops)

    monkeypatch.setattr(store, "propose", overtaken)
    code, _, err = ctl("snapshot", "restore", str(saved), "--yes")
    assert (code, "1 keys were changed by others meanwhile" in err) == (1, True)
    assert keys_of(live)["b"] == b"faster"


def test_another_swarms_copy_needs_force(ctl: Run, live: LiveGateway, tmp_path: Path) -> None:
    file = tmp_path / "other.snap"
    snapshot_file.write(file, [HEAD, SnapshotKeys([(b"x", b"1")]), SnapshotEnd(9)])
    code, _, err = ctl("snapshot", "restore", str(file), "--yes")
    assert (code, "is of the swarm lab (id)" in err) == (2, True)
    assert keys_of(live) == {}
    assert ctl("snapshot", "restore", str(file), "--yes", "--force")[0] == 0
    assert keys_of(live) == {"x": b"1"}


def test_a_damaged_copy_is_refused_or_read_up_to_the_damage(
    ctl: Run, live: LiveGateway, saved: Path, tmp_path: Path
) -> None:
    with Client(live.socket) as client:
        swarm_id = client.status().swarm_id
    head = SnapshotHead("lab", swarm_id, "n1", "0.1.0", 7)
    items = [head, SnapshotKeys([(b"x", b"1")]), SnapshotKeys([(b"y", b"2")]), SnapshotEnd(9)]
    snapshot_file.write(tmp_path / "good", items)
    raw = (tmp_path / "good").read_bytes()
    place = raw.index(b"\xc4\x01y")
    (tmp_path / "bad").write_bytes(raw[:place] + b"\xc4\x01z" + raw[place + 3 :])
    code, _, err = ctl("snapshot", "restore", str(tmp_path / "bad"), "--yes")
    assert code == 1
    assert "is damaged at byte" in err
    code, out, _ = ctl("snapshot", "restore", str(tmp_path / "bad"), "--yes", "--force")
    assert (code, "what comes after is lost" in " ".join(out.split())) == (0, True)
    assert keys_of(live)["x"] == b"1"
    assert "y" not in keys_of(live)


# ---- files ----------------------------------------------------------------------------


def test_later_changes_override_and_keep_the_order(tmp_path: Path) -> None:
    items: list[SnapshotItem] = [
        HEAD,
        SnapshotKeys([(b"a", b"1"), (b"c", b"3"), (b"e", b"5")]),
        SnapshotLater([(b"c", None), (b"b", b"2"), (b"a", b"9"), (b"b", b"22")]),
        SnapshotEnd(9),
    ]
    file = tmp_path / "f"
    snapshot_file.write(file, items)
    summary = snapshot_file.check(file)
    assert summary.revision == 9
    found = list(snapshot_file.keys(file, summary))
    assert found == [(b"a", b"9"), (b"b", b"22"), (b"e", b"5")]


def test_a_copy_that_broke_off_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "f"
    for items in ([HEAD], [], [SnapshotEnd(1)], [HEAD, HEAD, SnapshotEnd(1)]):
        with pytest.raises(CorruptFile):
            snapshot_file.write(file, items)
    assert list(tmp_path.iterdir()) == []
    file.write_text("precious")
    with pytest.raises(AlreadyExists):
        snapshot_file.write(file, [HEAD, SnapshotEnd(1)])
    assert file.read_text() == "precious"


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.integers(0, 200), st.integers(0, 255))
def test_any_bytes_are_read_or_refused(tmp_path: Path, raw: bytes, at: int, byte: int) -> None:
    """Noise, and every byte of a good file changed."""
    file = tmp_path / "f"
    file.write_bytes(b"SWRMSNAP\x00\x01" + raw)
    with pytest.raises(CorruptFile):
        snapshot_file.check(file)
    items = [HEAD, SnapshotKeys([(b"a", b"1")]), SnapshotLater([(b"a", None)]), SnapshotEnd(9)]
    snapshot_file.write(file, items, replace=True)
    good = bytearray(file.read_bytes())
    at %= len(good)
    if good[at] != byte:
        good[at] = byte
        file.write_bytes(bytes(good))
        with pytest.raises(CorruptFile):
            snapshot_file.check(file)
    file.write_bytes(bytes(good[: at or 1]))
    with pytest.raises(CorruptFile):
        snapshot_file.check(file)
