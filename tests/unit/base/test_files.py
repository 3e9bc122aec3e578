from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.base.disk import open_body, seal_body
from swarmd.base.errors import CorruptFile, DiskFault
from swarmd.base.files import FileDisk, write_atomically


@given(st.binary(max_size=300), st.integers(0, 65535))
def test_a_checked_file_gives_back_its_body(body: bytes, number: int) -> None:
    assert open_body("kind", number, seal_body("kind", number, body), source="f") == body


@given(st.binary(min_size=1, max_size=100), st.data())
def test_any_flipped_bit_is_found(body: bytes, data: st.DataObject) -> None:
    raw = bytearray(seal_body("kind", 1, body))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptFile):
        open_body("kind", 1, bytes(raw), source="f")


@given(st.binary(max_size=200))
def test_junk_is_refused(junk: bytes) -> None:
    with pytest.raises(CorruptFile, match="the trust file"):
        open_body("kind", 1, junk, source="the trust file")


def test_a_checked_file_names_what_is_wrong() -> None:
    raw = seal_body("kind", 1, b"body")
    for found, why in [
        (raw[:-1], "truncated"),
        (raw + b"x", "truncated"),
        (seal_body("other", 1, b"body"), "not a kind file"),
        (seal_body("kind", 2, b"body"), "has format 2"),
    ]:
        with pytest.raises(CorruptFile, match=why):
            open_body("kind", 1, found, source="f")


def test_appends_are_read_back_and_survive_a_reopen(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path / "d")
    assert disk.read("log") is None
    disk.append("log", b"one")
    assert disk.read("log") == b"one"
    disk.sync("log")
    disk.append("log", b"two")
    disk.close()
    assert FileDisk(tmp_path / "d").read("log") == b"one"


def test_replace_is_atomic_and_appends_go_to_the_new_file(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path)
    disk.append("log", b"old")
    disk.sync("log")
    disk.replace("log", b"new")
    disk.append("log", b"er")
    disk.sync("log")
    assert disk.read("log") == b"newer"
    assert disk.names() == ["log"]
    disk.remove("log")
    assert disk.names() == []


def test_a_file_is_not_appended_to_after_a_failed_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed fsync the kernel may have dropped the pages, and a retry would lie."""
    disk = FileDisk(tmp_path)
    disk.append("log", b"good")
    disk.sync("log")
    disk.append("log", b"bad")

    def broken(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(DiskFault, match="Input/output error"):
            disk.sync("log")
    with pytest.raises(DiskFault, match="must be rewritten"):
        disk.append("log", b"more")
    disk.replace("log", b"good")
    disk.append("log", b"more")
    disk.sync("log")
    assert disk.read("log") == b"goodmore"


def test_a_failed_replace_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    write_atomically(path, b"old")

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DiskFault, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_file_that_cannot_be_deleted_is_a_fault_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FileDisk(tmp_path)
    disk.replace("log", b"good")

    def broken(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(DiskFault, match=r"cannot delete .*Input/output error"):
        disk.remove("log")


def test_files_are_private(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path / "d")
    disk.replace("key", b"x")
    disk.append("log", b"x")
    disk.sync("log")
    modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "d").iterdir()}
    assert modes == {"key": 0o600, "log": 0o600}
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
