"""A data folder is sealed, sealed under another key and opened again; killed at any write, too."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from swarmd.app import clear_folder
from swarmd.app.folder import DataFolder, claim, load_data_key, reseal
from swarmd.audit.chain import Note, Writer, sign_floor
from swarmd.audit.records import SECURITY, Floor
from swarmd.audit.store import AuditFolder
from swarmd.base.disk import open_body, seal_body
from swarmd.base.errors import (
    ConfigError,
    CorruptFile,
    DataFolderRefused,
    DiskFault,
    KeyFileRefused,
    SwarmError,
)
from swarmd.base.files import FileDisk
from swarmd.base.rng import make_rng
from swarmd.base.sealed_file import seal_file
from swarmd.gateway.listeners import open_tls
from swarmd.identity.keys import SigningKey
from swarmd.identity.sealing import SealingKey
from swarmd.state.blobs.naming import hash_of
from swarmd.state.blobs.store import BlobFolder
from swarmd.state.raft.journal import Journal

ONE, OTHER = SealingKey(b"1" * 32), SealingKey(b"2" * 32)
NODE = SigningKey.from_seed(b"n" * 32)
PLANTED = b"planted, to be found by nobody"
# Blobs: small, of several frames, empty, and one that looks sealed, under a key of the folder.
BLOBS = [PLANTED, PLANTED * 20_000, b"", seal_file(ONE, "blobs", PLANTED)]


def notes(count: int) -> list[Note]:
    text = PLANTED.decode()
    return [Note(1_000 + n, "key.created", text, "ci", "ok", "viewer") for n in range(count)]


def fill(folder: DataFolder) -> dict[str, Any]:
    """Put something of every kind there, as the rooms write it."""
    sealer = folder.sealer
    writer = Writer(NODE, b"s" * 32, SECURITY, b"l" * 8)
    audit = AuditFolder(folder.path / "audit", sealer)
    audit.open_file()
    for size in (3, 2, 4):
        audit.append_file(writer.chain, writer.seal(notes(size), 5), 7_000)
    floor = Floor(bytes(NODE.key_id), writer.chain, 1, bytes(32), 5, False)
    audit.put_floor_file(sign_floor(floor, b"s" * 32, NODE))
    [fork] = Writer(NODE, b"s" * 32, SECURITY, b"f" * 8).seal(notes(1), 5)
    audit.put_fork_file(writer.chain, fork.raw)
    blobs = BlobFolder(folder.path / "blobs", bytes_max=10**9, sealer=sealer)
    blobs.open_file(0.0)
    for blob in BLOBS:
        blobs.write_file(hash_of(blob), blob)
    journal = Journal(folder.disk("raft"), make_rng(1), name="raft.e1.log.journal")
    for index in range(1, 30):
        journal.add(PLANTED, index, 1)
        journal.sync()
    folder.disk("mesh").replace("members", seal_body("members", 1, PLANTED))
    folder.disk("secrets").replace("keyring", seal_body("keyring", 1, PLANTED))
    folder.disk("gateway").replace("tls.key", PLANTED)
    return held(folder)


def held(folder: DataFolder) -> dict[str, Any]:
    """What the rooms read."""
    audit = AuditFolder(folder.path / "audit", folder.sealer)
    audit.open_file()
    [(chain, life)] = audit.lives.items()
    blobs = BlobFolder(folder.path / "blobs", bytes_max=10**9, sealer=folder.sealer)
    blobs.open_file(0.0)
    journal = Journal(folder.disk("raft"), make_rng(2), name="raft.e1.log.journal")
    return {
        "node": folder.key.key_id,
        "records": audit.read_raw_file(chain, (0, 0), 10**6),
        "when": [one.written_ms for one in life.segments],
        "gaps": audit.gaps,
        "forks": audit.forks_file(),
        "blobs": [blobs.read_file(hash_of(one)) for one in BLOBS],
        "sizes": [blobs.size_of(hash_of(one)) for one in BLOBS],
        "parts": blobs.read_part_file(hash_of(BLOBS[1]), 262_140, 270_000),
        "log": journal[:],
        "members": folder.disk("mesh").read("members"),
        "keyring": folder.disk("secrets").read("keyring"),
        "tls": folder.disk("gateway").read("tls.key"),
    }


def contents(path: Path) -> dict[Path, bytes]:
    """All that lies there, but for who holds it now."""
    files = [one for one in path.rglob("*") if one.is_file() and one != path / "lock"]
    return {one: one.read_bytes() for one in files}


def in_clear(path: Path) -> list[Path]:
    return [one for one in path.rglob("*") if one.is_file() and PLANTED in one.read_bytes()]


def with_leftovers(path: Path) -> None:
    """What a daemon that was killed leaves in clear."""
    index = path / "vectors" / "index"
    index.mkdir(parents=True)
    (index / "1.f32").write_bytes(b"vectors in clear")
    code = path / "agents" / "bundles" / "abc"
    code.mkdir(parents=True)
    for file in (
        code / "agent.py",
        path / "raft" / "raft.e1.log.journal.tmp",
        path / "audit" / "x.tmp",
        path / "blobs" / "uploads" / "7",
        path / "node.key.tmp",
    ):
        file.write_bytes(PLANTED)


@pytest.fixture
def filled(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A folder in clear, and what is in it."""
    path = tmp_path / "data"
    folder = claim(path)
    whole = fill(folder)
    folder.close()
    with_leftovers(path)
    for segment in (path / "audit").glob("*.log"):
        os.utime(segment, ns=(1, 5_000_000_000))
    whole["when"] = [5_000]
    return path, whole


def seal(path: Path, key: SealingKey, tell: Callable[[str], None] = print) -> None:
    """What `swarmd data-key seal` does."""
    reseal(path, None, key, tell)


def opened(path: Path, key: SealingKey | None) -> dict[str, Any]:
    folder = claim(path, key)
    try:
        return held(folder)
    finally:
        folder.close()


def test_a_fresh_folder_is_sealed_from_its_first_byte(tmp_path: Path) -> None:
    folder = claim(tmp_path, ONE)
    whole = fill(folder)
    folder.close()
    assert in_clear(tmp_path) == []
    assert opened(tmp_path, ONE) == whole
    for file in (tmp_path / "node.key", tmp_path / "secrets" / "keyring"):
        assert file.stat().st_mode & 0o777 == 0o600


def test_a_folder_in_clear_is_sealed_when_that_is_asked_for(
    filled: tuple[Path, dict[str, Any]],
) -> None:
    path, whole = filled
    assert len(in_clear(path)) > 10
    before = contents(path)
    for key in (ONE, OTHER):
        with pytest.raises(
            DataFolderRefused, match="is in clear, and a key was given; nothing was"
        ):
            claim(path, key)
    with pytest.raises(DataFolderRefused, match="is in clear, not under the key"):
        reseal(path, OTHER, ONE, print)
    assert contents(path) == before
    lines: list[str] = []
    seal(path, ONE, lines.append)
    assert in_clear(path) == []
    assert not (path / "agents").exists()
    assert not (path / "vectors").exists()
    assert not [*path.rglob("*.tmp")]
    assert opened(path, ONE) == whole
    assert lines[0] == "sealing the data folder"
    assert lines[-1] == f"the data folder is sealed under the key {ONE.id.hex()[:8]}"


def test_without_its_key_or_with_another_a_sealed_folder_is_refused(
    filled: tuple[Path, dict[str, Any]],
) -> None:
    path, whole = filled
    seal(path, ONE)
    before = contents(path)
    for key, why in ((None, "no key was given; nothing was changed"), (OTHER, "nothing was chan")):
        for mark in (True, False):  # What the node's key is sealed under says the same.
            if not mark:
                (path / "sealed").unlink()
            with pytest.raises(DataFolderRefused, match=why):
                claim(path, key)
            (path / "sealed").write_bytes(before[path / "sealed"])
    assert contents(path) == before
    (path / "sealed").unlink()
    assert opened(path, ONE) == whole
    assert (path / "sealed").exists()


def test_the_key_is_changed_and_done_away_with(filled: tuple[Path, dict[str, Any]]) -> None:
    path, whole = filled
    seal(path, ONE)
    for key, given in ((OTHER, OTHER.id.hex()[:8]), (None, "none")):
        with pytest.raises(DataFolderRefused, match=f"given is {given}; nothing was changed"):
            reseal(path, key, None, print)
    reseal(path, ONE, OTHER, print)
    assert in_clear(path) == []
    with pytest.raises(DataFolderRefused, match="nothing was changed"):
        claim(path, ONE)
    assert opened(path, OTHER) == whole
    reseal(path, OTHER, None, print)
    assert not (path / "sealed").exists()
    assert opened(path, None) == whole
    with pytest.raises(DataFolderRefused, match="no node's data folder"):
        reseal(path.parent, ONE, None, print)
    running = claim(path)
    with pytest.raises(DataFolderRefused, match="in use by a running swarmd"):
        reseal(path, None, ONE, print)
    running.close()


# ---- killed at any write --------------------------------------------------------------------

_CALLS = ("rename", "fsync", "unlink", "write", "open", "rmdir", "ftruncate")


def killed(act: Callable[[], object], at: int) -> bool:
    """Have a process do `act` that is killed before its call with that number is done; False: it
    made fewer.
    """
    child = os.fork()
    if not child:
        seen = 0

        def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal seen
                seen += 1
                if seen == at:
                    os._exit(9)
                return real(*args, **kwargs)

            return call

        try:
            for name in _CALLS:
                setattr(os, name, wrapped(getattr(os, name)))
            act()
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), "it failed, which it must not"
    return code == 9


def kills(act: Callable[[], None]) -> Iterator[int]:
    """Do `act` again and again, killed at one call later each time, until it is not."""
    for at in range(1, 10_000):
        if not killed(act, at):
            return
        yield at


def copied(path: Path, to: Path) -> Path:
    os.system(f"rm -rf {to} && cp -a {path} {to}")
    return to


@pytest.mark.parametrize("what", ["seal", "change", "remove"])
def test_killed_between_any_two_writes_nothing_is_lost(
    filled: tuple[Path, dict[str, Any]], tmp_path: Path, what: str
) -> None:
    path, whole = filled
    if what != "seal":
        seal(path, ONE)
        with_leftovers(path)
    work = tmp_path / "work"

    def act() -> None:
        if what == "seal":
            seal(work, ONE, lambda line: None)
        else:
            reseal(work, ONE, OTHER if what == "change" else None, lambda line: None)

    last = 0
    copied(path, work)
    for last in kills(act):
        if last % 3 == 0:  # Sometimes the next try begins where the last one was killed.
            act()
            end = {"seal": ONE, "change": OTHER, "remove": None}[what]
            assert opened(work, end) == whole, last
            assert what == "remove" or in_clear(work) == [], last
            assert not [*work.rglob("*.tmp")], last
            copied(path, work)
    assert last > 60


def test_while_it_is_under_way_nobody_is_served(filled: tuple[Path, dict[str, Any]]) -> None:
    path, whole = filled

    assert killed(lambda: seal(path, ONE), 60)
    assert in_clear(path)
    with pytest.raises(DataFolderRefused, match="no key was given"):
        claim(path)
    with pytest.raises(DataFolderRefused, match="was interrupted"):
        claim(path, OTHER)
    claim(path, ONE).close()
    assert killed(lambda: reseal(path, ONE, OTHER, print), 60)
    for key in (ONE, OTHER):
        with pytest.raises(DataFolderRefused, match="do the same `swarmd data-key` command again"):
            claim(path, key)
    reseal(path, ONE, OTHER, print)
    # Who started to remove the key and then starts with it has it sealed again.
    assert killed(lambda: reseal(path, OTHER, None, print), 60)
    assert opened(path, OTHER) == whole
    assert in_clear(path) == []


def test_a_full_disk_loses_nothing(
    filled: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = filled
    real = os.fsync
    left = 9

    def full(fd: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskFault, match="No space left"):
            seal(path, ONE)
    assert not [*path.rglob("*.tmp")], "what was half written makes room again"
    assert opened(path, ONE) == whole


# ---- damage, and who means ill ---------------------------------------------------------------


def test_a_mark_that_was_not_written_with_the_key_is_refused(
    filled: tuple[Path, dict[str, Any]],
) -> None:
    """Else files that somebody put there in clear would be taken for ones still to be sealed."""
    path, _ = filled
    assert killed(lambda: seal(path, OTHER), 60)
    mark = open_body("sealed", 1, (path / "sealed").read_bytes(), source="mark")
    claim(path, OTHER).close()
    reseal(path, OTHER, ONE, print)
    for forged in (mark.replace(OTHER.id, ONE.id), mark):
        (path / "sealed").write_bytes(seal_body("sealed", 1, forged))
        with pytest.raises(SwarmError, match="nothing was changed"):
            claim(path, ONE)


def test_a_mark_of_another_node_under_the_same_key_is_refused(
    filled: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    path, _ = filled
    claim(tmp_path / "another").close()
    assert killed(lambda: seal(tmp_path / "another", ONE), 12)
    mark = (tmp_path / "another" / "sealed").read_bytes()
    seal(tmp_path / "another", ONE)  # It goes on there.
    assert (tmp_path / "another" / "sealed").read_bytes() != mark
    seal(path, ONE)
    (path / "sealed").write_bytes(mark)
    (path / "secrets" / "keyring").write_bytes(seal_body("keyring", 1, b"mine"))
    before = contents(path)
    with pytest.raises(CorruptFile, match="for another node; nothing was changed"):
        claim(path, ONE)
    with pytest.raises(CorruptFile, match="for another node; nothing was changed"):
        reseal(path, None, ONE, print)
    assert contents(path) == before


def test_a_file_in_clear_in_a_sealed_folder_is_refused(
    filled: tuple[Path, dict[str, Any]],
) -> None:
    path, _ = filled
    seal(path, ONE)
    (path / "secrets" / "keyring").write_bytes(seal_body("keyring", 1, b"mine"))
    folder = claim(path, ONE)
    with pytest.raises(CorruptFile, match="keyring is not sealed"):
        folder.disk("secrets").read("keyring")
    folder.close()
    # Nor can another node's key and a missing mark have all be taken for in clear.
    key, mark = (path / "node.key").read_bytes(), (path / "sealed").read_bytes()
    (path / "sealed").unlink()
    SigningKey.generate().save(path / "node.key")
    with pytest.raises(CorruptFile, match=r"node\.key is not sealed"):
        claim(path, ONE)
    with pytest.raises(DataFolderRefused, match="no key was given"):
        claim(path)
    (path / "node.key").write_bytes(key)
    (path / "sealed").write_bytes(mark)
    # A key that is sealed, but another file's.
    (path / "node.key").write_bytes((path / "raft" / "raft.e1.log.journal").read_bytes())
    with pytest.raises(CorruptFile, match="does not open"):
        claim(path, ONE)


def test_what_is_damaged_stops_it_or_stays_as_it_is(filled: tuple[Path, dict[str, Any]]) -> None:
    path, whole = filled
    seal(path, ONE)
    [segment] = (path / "audit").glob("*.log")
    raw = bytearray(segment.read_bytes())
    raw[len(raw) // 2] ^= 1  # In the second of three batches.
    segment.write_bytes(raw)
    os.utime(segment, ns=(1, 5_000_000_000))
    blob = next(one for one in (path / "blobs").rglob("*") if one.name not in ("", "uploads")
                and one.is_file() and one.stat().st_size > 300_000)  # fmt: skip
    damaged = bytearray(blob.read_bytes())
    damaged[270_000] ^= 1
    blob.write_bytes(damaged)
    shown = opened(path, ONE)
    assert shown["records"][0][0] == whole["records"][0][0]
    assert shown["blobs"][1] is None
    reseal(path, ONE, OTHER, print)
    again = opened(path, OTHER)
    assert again["records"] == shown["records"], "evidence stays what it was"
    assert again["blobs"][1] is None
    journal = path / "raft" / "raft.e1.log.journal"
    bent = bytearray(journal.read_bytes())
    bent[300] ^= 1
    journal.write_bytes(bent)
    before = contents(path)
    with pytest.raises(CorruptFile, match=r"journal is damaged at byte.*nothing was changed"):
        reseal(path, OTHER, ONE, print)
    assert contents(path) == before


def test_what_was_passed_over_once_is_in_nobodys_way_later(
    filled: tuple[Path, dict[str, Any]],
) -> None:
    """A damaged blob, floor or fork stays under the first key, whatever comes after."""
    path, _ = filled
    seal(path, ONE)
    blob = max((path / "blobs").rglob("*"), key=lambda one: one.stat().st_size)
    small = [one for one in (path / "audit").iterdir() if one.suffix != ".log"]
    assert len(small) >= 2
    for file in (blob, *small):
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.write_bytes(raw)
    damaged = {file: file.read_bytes() for file in (blob, *small)}
    third = SealingKey(b"3" * 32)
    lines: list[str] = []
    for old, new in ((ONE, OTHER), (OTHER, third), (third, None), (None, OTHER), (OTHER, ONE)):
        reseal(path, old, new, lines.append)
        assert {file: file.read_bytes() for file in damaged} == damaged
        claim(path, new).close()
    assert sum("stays as it is" in line for line in lines) >= 4 * len(damaged)


@pytest.mark.parametrize("name", ["mesh/members", "raft/raft.e1.log.journal", "node.key"])
def test_nothing_is_begun_that_damage_would_stop(
    filled: tuple[Path, dict[str, Any]], name: str
) -> None:
    path, whole = filled
    seal(path, ONE)
    good = (path / name).read_bytes()
    planted = seal_body("members", 1, PLANTED)
    for bad, why in (
        (good[:50] + bytes([good[50] ^ 1]) + good[51:], "damaged"),
        (planted, "was put there"),
        (seal_file(OTHER, "mesh", PLANTED), "which was not given"),
    ):
        (path / name).write_bytes(bad)
        before = contents(path)
        third = SealingKey(b"3" * 32)
        for new in (third, None):
            with pytest.raises(CorruptFile, match=f"{name}.*{why}.*nothing was changed.*starts as"):
                reseal(path, ONE, new, print)
        assert contents(path) == before
    (path / name).write_bytes(good)
    assert opened(path, ONE) == whole


def test_a_change_that_damage_interrupts_goes_on_once_that_is_away(
    filled: tuple[Path, dict[str, Any]],
) -> None:
    path, whole = filled
    seal(path, ONE)
    assert killed(lambda: reseal(path, ONE, OTHER, print), 60)
    members = path / "mesh" / "members"
    good = members.read_bytes()
    members.write_bytes(good[:-1])
    with pytest.raises(CorruptFile, match=r"members.*move it away if a daemon makes it anew"):
        reseal(path, ONE, OTHER, print)
    members.rename(path.parent / "away")
    reseal(path, ONE, OTHER, print)
    assert opened(path, OTHER) == {**whole, "members": None}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of others")
def test_what_root_seals_stays_the_daemons(filled: tuple[Path, dict[str, Any]]) -> None:
    path, _ = filled
    for one in (path, *path.rglob("*")):
        os.chown(one, 12_345, 12_346)
    (path / "lock").unlink()
    for old, new in ((None, ONE), (ONE, OTHER), (OTHER, None)):
        reseal(path, old, new, print)
        files = [one.stat() for one in (path, *path.rglob("*"))]
        assert {(one.st_uid, one.st_gid) for one in files} == {(12_345, 12_346)}
        assert (path / "secrets" / "keyring").stat().st_mode & 0o777 == 0o600


# ---- keys, and where code lies ---------------------------------------------------------------


def test_a_data_key_is_kept_elsewhere_and_from_others(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    ONE.save(data / "key")
    with pytest.raises(ConfigError, match="lies in the data folder"):
        load_data_key(data / "key", data)
    (tmp_path / "link").symlink_to(data / "key")
    with pytest.raises(ConfigError, match="lies in the data folder"):
        load_data_key(tmp_path / "link", data)
    file = tmp_path / "key"
    ONE.save(file)
    for mode in (0o600, 0o400):
        file.chmod(mode)
        assert load_data_key(file, data).id == ONE.id
    file.chmod(0o644)
    with pytest.raises(KeyFileRefused, match="mode 0644"):
        load_data_key(file, data)
    NODE.save(tmp_path / "node.key")
    with pytest.raises(CorruptFile, match="not a datakey file"):
        load_data_key(tmp_path / "node.key", data)


def test_agents_code_lies_in_memory_and_goes_with_the_daemon(tmp_path: Path) -> None:
    first = claim(tmp_path / "data", ONE)
    left = first.agents.parent
    assert left.stat().st_mode & 0o777 == 0o700
    assert not left.is_relative_to(tmp_path)
    (left / "of a daemon that was killed").write_text("x")
    os.close(first._lock_fd)
    second = claim(tmp_path / "data", ONE)
    assert not left.exists()
    assert second.agents.parent.exists()
    assert second.vectors.parent == second.agents.parent
    second.close()
    assert not second.agents.parent.exists()


def test_without_a_tmpfs_a_sealed_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text("30 25 0:27 / / rw,relatime - ext4 /dev/vda rw\nnonsense\n")
    monkeypatch.setattr(clear_folder, "_MOUNTS", mounts)
    with pytest.raises(DataFolderRefused, match="neither /dev/shm nor"):
        claim(tmp_path / "data", ONE)
    assert not (tmp_path / "data" / "sealed").exists()
    mounts.write_text(
        "1 1 0:1 / /dev/shm rw,noexec - tmpfs tmpfs rw\n31 1 0:2 / / rw - ext4 a rw\n"
    )
    assert clear_folder._may_not_run(Path("/dev/shm"))
    claim(tmp_path / "data", ONE).close()


def test_the_apis_own_key_is_kept_sealed(tmp_path: Path) -> None:
    made = open_tls("", "", tmp_path, ["localhost"], ONE)
    again = open_tls("", "", tmp_path, ["localhost"], ONE)
    assert made.fingerprint() == again.fingerprint()
    for file in (tmp_path / "gateway").iterdir():
        assert b"BEGIN" not in file.read_bytes()
    with pytest.raises(CorruptFile, match="under another key"):
        open_tls("", "", tmp_path, ["localhost"], OTHER)


def test_disks_are_bare_without_a_key(tmp_path: Path) -> None:
    folder = claim(tmp_path)
    assert type(folder.disk("raft")) is FileDisk
    assert folder.agents == tmp_path / "agents"
    assert folder.vectors == tmp_path / "vectors"
    folder.close()
