"""Where what interpreters must read lies in clear, while the data folder is sealed: in memory.

Agents' code and the scratch folders of their processes are in a folder of a tmpfs, made anew at
each start and deleted at the end. What a daemon that was killed left goes at the next start, and
with the host's power. A tmpfs may be swapped out: see docs/security.md.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from swarmd.base.errors import DataFolderRefused
from swarmd.base.files import remove_tree
from swarmd.base.folders import runtime_folder
from swarmd.base.ids import digest

# Folders in it have a part of their name by chance, and mode 0700.
_SHARED: Final = Path("/dev/shm")  # nosec B108
_MOUNTS: Final = Path("/proc/self/mountinfo")
_IN_MEMORY: Final = ("tmpfs", "ramfs")


def make_clear_folder(data_folder: Path) -> Path:
    """A new folder in memory for the daemon of this data folder, which it holds; mode 0700.

    Raises:
        DataFolderRefused: there is no tmpfs that this user can write to.
    """
    beginning = f"swarmd-{digest(b'clear folder', bytes(data_folder.resolve())).hex()[:16]}-"
    places = (_SHARED, runtime_folder())
    for place in places:
        for left in _left(place, beginning):
            remove_tree(left)
    for place in sorted(filter(_in_memory, places), key=_may_not_run):
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=beginning, dir=place))
        except OSError:
            continue
    raise DataFolderRefused(
        f"the data folder {data_folder} is sealed, and agents' code must lie somewhere in clear "
        f"while it runs: neither {places[0]} nor {places[1]} is a tmpfs that this user can write "
        "to; nothing was changed: mount one there"
    )


def _left(place: Path, beginning: str) -> Iterator[Path]:
    """Folders of earlier daemons of the same data folder; never somebody else's."""
    try:
        found = list(os.scandir(place))
    except OSError:
        return
    for one in found:
        ours = one.name.startswith(beginning) and one.is_dir(follow_symlinks=False)
        if ours and one.stat(follow_symlinks=False).st_uid == os.geteuid():
            yield Path(one.path)


def _in_memory(place: Path) -> bool:
    return _mount_of(place)[0] in _IN_MEMORY


def _may_not_run(place: Path) -> bool:
    """Compiled modules of agents cannot be loaded from there."""
    return "noexec" in _mount_of(place)[1]


def _mount_of(place: Path) -> tuple[str, tuple[str, ...]]:
    """The type and the options of the mount that `place` is on, see proc_pid_mountinfo(5)."""
    found: tuple[int, str, tuple[str, ...]] = (-1, "", ())
    wanted = place.resolve()
    try:
        lines = _MOUNTS.read_text().splitlines()
    except OSError:
        return "", ()
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 6 or not after:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4]))
        depth = len(point.parts)
        # Of several at one place the last is on top.
        if wanted.is_relative_to(point) and depth >= found[0]:
            found = depth, after.split(" ")[0], tuple(fields[5].split(","))
    return found[1], found[2]
