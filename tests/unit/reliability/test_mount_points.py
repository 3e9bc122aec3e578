"""Folders of the machine that hosts mount something over: there while anybody uses them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from nethosts import MountPoints


def test_what_was_not_there_goes_with_the_last_who_uses_it(tmp_path: Path) -> None:
    folders = [tmp_path / "a" / "b", tmp_path / "c"]
    first, second = MountPoints(folders), MountPoints(folders)
    first.take()
    second.take()
    first.give_back()
    assert all(folder.is_dir() for folder in folders)
    second.give_back()
    assert not any(folder.exists() for folder in folders)


def test_what_was_there_stays_and_holds_what_it_held(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    (full / "swarmd.toml").touch()
    points = MountPoints([empty, full])
    points.take()
    points.give_back()
    assert list(empty.iterdir()) == []
    assert [path.name for path in full.iterdir()] == ["swarmd.toml"]


def test_what_somebody_put_into_a_made_folder_is_not_removed(tmp_path: Path) -> None:
    points = MountPoints([tmp_path / "made"])
    points.take()
    (tmp_path / "made" / "note").touch()
    points.give_back()
    assert (tmp_path / "made" / "note").exists()


def test_where_one_cannot_be_had_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    points = MountPoints([tmp_path / "made", tmp_path / "file" / "under"])
    with pytest.raises(NotADirectoryError):
        points.take()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_many_who_come_and_go_at_once_always_have_theirs(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    missing: list[int] = []

    def come_and_go(number: int) -> None:
        for _ in range(200):
            points = MountPoints([folder])
            points.take()
            if not folder.is_dir():
                missing.append(number)
            points.give_back()

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert missing == []
    assert not folder.exists()
