"""A data folder is one node's, used by one daemon at a time; everything else is refused."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from swarmd.app.folder import FREE_BYTES_MIN, claim
from swarmd.base.errors import CorruptFile, DataFolderRefused
from swarmd.identity.keys import SigningKey

Usage = namedtuple("Usage", "total used free")


def test_a_fresh_folder_gets_a_key_that_stays(tmp_path: Path) -> None:
    first = claim(tmp_path / "data")
    key_id = first.key.key_id
    first.close()
    again = claim(tmp_path / "data")
    assert again.key.key_id == key_id
    again.close()
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "data" / "node.key").stat().st_mode & 0o777 == 0o600


def test_a_folder_in_use_names_who_uses_it(tmp_path: Path) -> None:
    held = claim(tmp_path)
    with pytest.raises(DataFolderRefused, match=rf"process {os.getpid()}"):
        claim(tmp_path)
    held.close()
    claim(tmp_path).close()


def test_another_programs_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(DataFolderRefused, match=r"it holds thesis\.tex"):
        claim(tmp_path)
    assert not (tmp_path / "node.key").exists()


def test_a_key_of_another_node_is_noticed(tmp_path: Path) -> None:
    claim(tmp_path).close()
    (tmp_path / "node.key").unlink()
    SigningKey.generate().save(tmp_path / "node.key")
    with pytest.raises(DataFolderRefused, match="copied from another node"):
        claim(tmp_path)


def test_a_missing_key_is_not_replaced(tmp_path: Path) -> None:
    claim(tmp_path).close()
    (tmp_path / "node.key").unlink()
    with pytest.raises(CorruptFile, match=r"node\.key is missing"):
        claim(tmp_path)
    assert not (tmp_path / "node.key").exists()


def test_a_crash_between_key_and_owner_is_taken_up(tmp_path: Path) -> None:
    key = SigningKey.generate()
    key.save(tmp_path / "node.key")
    folder = claim(tmp_path)
    assert folder.key.key_id == key.key_id
    folder.close()


def test_a_full_folder_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, FREE_BYTES_MIN - 1))
    with pytest.raises(DataFolderRefused, match="full: 63 MiB are free and 64 are needed"):
        claim(tmp_path)
    assert not (tmp_path / "node.key").exists()


def test_a_folder_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataFolderRefused, match="cannot make the data folder"):
        claim(tmp_path / "file" / "data")


def test_a_damaged_owner_file_is_named(tmp_path: Path) -> None:
    claim(tmp_path).close()
    raw = bytearray((tmp_path / "node").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "node").write_bytes(bytes(raw))
    with pytest.raises(CorruptFile, match="its checksum does not match"):
        claim(tmp_path)
