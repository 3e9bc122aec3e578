"""Folders that an agent filled go, whatever is in them, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from swarmd.base.files import remove_tree

DEEP = 3_000


def dig(top: Path, depth: int) -> None:
    """Folders in folders, deeper than a path may be long."""
    here = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("x", dir_fd=here)
        below = os.open("x", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=here))
    os.close(here)


def test_deeper_than_any_path(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    dig(top, DEEP)
    assert remove_tree(top)
    assert list(tmp_path.iterdir()) == []


def test_links_are_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    (kept / "in").mkdir(parents=True)
    (kept / "file").write_text("x")
    top = tmp_path / "top"
    (top / "deep").mkdir(parents=True)
    (top / "link").symlink_to(kept)
    (top / "deep" / "link").symlink_to(kept)
    os.mkfifo(top / "pipe")
    assert remove_tree(top)
    assert (kept / "in").is_dir()
    assert (kept / "file").read_text() == "x"
    link = tmp_path / "itself"
    link.symlink_to(kept)
    assert not remove_tree(link)
    assert (kept / "file").exists()
    assert remove_tree(tmp_path / "nowhere")


def test_folders_that_were_closed(tmp_path: Path) -> None:
    """As somebody who is not root, who may not look into a folder without rights of its own."""
    code = (
        "import os, sys; from pathlib import Path; from swarmd.base.files import remove_tree\n"
        "top = Path(sys.argv[1]); below = top / 'a' / 'b'; below.mkdir(parents=True)\n"
        "(below / 'c').touch()\n"
        "os.chmod(below, 0); os.chmod(top / 'a', 0); sys.exit(not remove_tree(top))"
    )
    for part in (tmp_path, *tmp_path.parents):
        if part.is_relative_to(tempfile.gettempdir()) and part != Path(tempfile.gettempdir()):
            part.chmod(0o777)
    user = 65_534 if os.getuid() == 0 else None
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "t")], user=user, check=False)
    assert done.returncode == 0
    assert not (tmp_path / "t").exists()


def test_whoever_goes_on_filling_it_is_given_up_on(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    ends = threading.Event()

    def fill() -> None:
        number = 0
        while not ends.is_set():
            number += 1
            try:
                (top / str(number)).touch()
            except FileNotFoundError:
                return

    threads = [threading.Thread(target=fill) for _ in range(3)]
    for one in threads:
        one.start()
    began = time.monotonic()
    remove_tree(top, within_s=0.5)
    took_s = time.monotonic() - began
    ends.set()
    for one in threads:
        one.join()
    assert took_s < 5
    assert remove_tree(top)


def test_what_cannot_be_deleted_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = tmp_path / "top"
    top.mkdir()
    (top / "file").touch()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "unlink", refuse)
    assert not remove_tree(top)
