"""Little of a core for some processes: a control group with a quota, of version 1 or 2."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
# Of all groups made here; the id of the process that cares for them follows, and what for.
PREFIX: Final = "swarmd-hosts-"
# The longest there is: so long who has used up its share may stand still.
_PERIOD_US: Final = 1_000_000
_LEAST_US: Final = 1_000


def controller(root: Path = ROOT) -> Path | None:
    """The folder in which groups with a quota of processor time can be made; None: nowhere here."""
    if (root / "cgroup.controllers").exists():
        return root if "cpu" in (root / "cgroup.controllers").read_text().split() else None
    folder = root / "cpu"
    return folder if (folder / "cgroup.procs").exists() and os.access(folder, os.W_OK) else None


def remove_groups(owner: int, root: Path = ROOT) -> None:
    """Remove the groups of a process, and those whose process is there no more."""
    folder = controller(root)
    for group in [] if folder is None else folder.glob(f"{PREFIX}*"):
        made_by = group.name.removeprefix(PREFIX).partition("-")[0]
        if made_by == str(owner) or not Path("/proc", made_by).exists():
            with contextlib.suppress(OSError):  # Somebody is in it still.
                group.rmdir()


class Quota:
    """A group whose processes have so much of a core together.

    Args:
        owner: the process whose group this is; see `remove_groups`.
        name: tells it from the other groups of that process.
        cores: their share of each second, as 0.01.

    Raises:
        OSError: no such group can be made here.
    """

    def __init__(self, owner: int, name: str, cores: float, root: Path = ROOT) -> None:
        folder = controller(root)
        if folder is None:
            raise OSError("there is no controller `cpu` for control groups")
        self._folder, self._group = folder, folder / f"{PREFIX}{owner}-{name}"
        self._homes: dict[int, Path] = {}
        unified = folder == root
        if unified:
            (folder / "cgroup.subtree_control").write_text("+cpu")
        self._group.mkdir()
        quota_us = max(_LEAST_US, round(cores * _PERIOD_US))
        if unified:
            (self._group / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")
        else:
            (self._group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (self._group / "cpu.cfs_quota_us").write_text(str(quota_us))

    def take(self, pid: int) -> None:
        """Put a process and those that it started under the quota."""
        for one in [pid, *_children(pid)]:
            self._homes[one] = self._home_of(one)
            (self._group / "cgroup.procs").write_text(str(one))

    def throttled_s(self) -> float:
        """For how long the group was kept from running so far, in seconds."""
        lines = (self._group / "cpu.stat").read_text().splitlines()
        stat = {words[0]: int(words[1]) for line in lines if len(words := line.split()) == 2}
        return stat.get("throttled_time", 0) / 1e9 + stat.get("throttled_usec", 0) / 1e6

    def close(self) -> None:
        """Let all go back to where they were, and remove the group."""
        for pid, home in self._homes.items():
            with contextlib.suppress(OSError):  # It has ended.
                (home / "cgroup.procs").write_text(str(pid))
        self._homes.clear()
        with contextlib.suppress(OSError):
            for late in (self._group / "cgroup.procs").read_text().split():  # Started meanwhile.
                (self._folder / "cgroup.procs").write_text(late)
            self._group.rmdir()

    def _home_of(self, pid: int) -> Path:
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if "cpu" in controllers.split(",") or (not controllers and self._folder == ROOT):
                return self._folder / path.lstrip("/")
        return self._folder


def _children(pid: int) -> list[int]:
    """Those that a process started, and theirs."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *_children(child)]
    return found
