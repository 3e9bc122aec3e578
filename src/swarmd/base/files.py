"""The real file system behind `base.disk.Disk`, and atomic writes."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from swarmd.base.errors import DiskFault

_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class FileDisk:
    """A folder of the real file system, made with mode 0700."""

    blocking: Final = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._open: dict[str, int] = {}
        self._buffers: dict[str, list[bytes]] = {}
        self._failed: set[str] = set()

    def read(self, name: str) -> bytes | None:
        try:
            durable = (self._folder / name).read_bytes()
        except FileNotFoundError:
            durable = None
        buffered = b"".join(self._buffers.get(name, ()))
        return buffered or None if durable is None else durable + buffered

    def append(self, name: str, data: bytes) -> None:
        if name in self._failed:
            raise DiskFault(f"{name} had a failed write and must be rewritten before use")
        self._buffers.setdefault(name, []).append(data)

    def sync(self, name: str) -> None:
        pending = self._buffers.get(name)
        if not pending:
            return
        data = memoryview(b"".join(pending))
        pending.clear()
        try:
            fd = self._descriptor(name)
            while data:
                data = data[os.write(fd, data) :]
            os.fdatasync(fd)
        except OSError as error:
            self._failed.add(name)
            self._close(name)
            raise DiskFault(f"cannot write {self._folder / name}: {error.strerror}") from error

    def rename(self, old: str, new: str) -> None:
        self._close(old)
        self._close(new)
        self._buffers.pop(new, None)
        try:
            with contextlib.suppress(FileNotFoundError):  # Renamed by a try that failed later.
                os.rename(self._folder / old, self._folder / new)
            sync_folder(self._folder)
        except OSError as error:
            raise DiskFault(f"cannot rename {self._folder / old}: {error.strerror}") from error
        self._failed.discard(new)

    def reader(self, name: str) -> FileReader | None:
        try:
            return FileReader(self._folder / name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DiskFault(f"cannot read {self._folder / name}: {error.strerror}") from error

    def replace(self, name: str, data: bytes) -> None:
        self._close(name)
        self._buffers.pop(name, None)
        write_atomically(self._folder / name, data)
        self._failed.discard(name)

    def remove(self, name: str) -> None:
        self._close(name)
        self._buffers.pop(name, None)
        self._failed.discard(name)
        try:
            (self._folder / name).unlink(missing_ok=True)
            sync_folder(self._folder)
        except OSError as error:
            raise DiskFault(f"cannot delete {self._folder / name}: {error.strerror}") from error

    def names(self) -> list[str]:
        return sorted(p.name for p in self._folder.iterdir() if p.is_file() and p.suffix != ".tmp")

    def close(self) -> None:
        """Close every descriptor; unsynced bytes are dropped."""
        for name in list(self._open):
            self._close(name)
        self._buffers.clear()

    def _descriptor(self, name: str) -> int:
        if name not in self._open:
            path = self._folder / name
            fresh = not path.exists()
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._open[name] = os.open(path, flags, 0o600)
            if fresh:
                sync_folder(self._folder)
        return self._open[name]

    def _close(self, name: str) -> None:
        fd = self._open.pop(name, None)
        if fd is not None:
            os.close(fd)


class FileReader:
    """An open file: it stays readable when another one takes its name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size

    def read(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._fd, size, offset)
        except OSError as error:
            raise DiskFault(f"cannot read {self._path}: {error.strerror}") from error

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (a create, rename or delete) durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(top: Path, *, within_s: float = 10.0) -> bool:
    """Delete a folder that somebody else may have filled, and may still fill.

    False if some of it is left. It may be deeper than a path may be long: it is flattened from
    the top, with two descriptors and no recursion. Links are never followed. It never raises.
    """
    deadline = time.monotonic() + within_s
    try:
        folder = os.open(top, _FOLDER_FLAGS)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    numbers = itertools.count()
    try:
        while names := os.listdir(folder):
            for name in names:
                if time.monotonic() > deadline:
                    return False
                with contextlib.suppress(FileNotFoundError):  # It went by itself.
                    _remove_entry(folder, name, numbers)
        os.rmdir(top)
    except OSError:
        return False
    finally:
        os.close(folder)
    return True


def _remove_entry(folder: int, name: str, numbers: Iterator[int]) -> None:
    """Delete a file; of a folder move what is in it up one level first. Raises OSError."""
    if not _is_folder(folder, name):
        os.unlink(name, dir_fd=folder)
        return
    _open_up(folder, name)
    child = os.open(name, _FOLDER_FLAGS, dir_fd=folder)
    try:
        for inner in os.listdir(child):
            if _is_folder(child, inner):
                _open_up(child, inner)
                moved = f".{next(numbers)}.moved"
                os.rename(inner, moved, src_dir_fd=child, dst_dir_fd=folder)
            else:
                os.unlink(inner, dir_fd=child)
    finally:
        os.close(child)
    os.rmdir(name, dir_fd=folder)


def _open_up(parent: int, name: str) -> None:
    """Give the rights to a folder back that its owner, who runs as we do, took; root needs none."""
    if os.geteuid() != 0:
        os.chmod(name, 0o700, dir_fd=parent)


def _is_folder(folder: int, name: str) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)


def give_to(fd: int, owner: os.stat_result) -> None:
    """Have a file that root makes belong to whom something else does. Raises OSError."""
    if os.geteuid() == 0:
        os.fchown(fd, owner.st_uid, owner.st_gid)


def write_atomically(
    path: Path, data: bytes, *, mode: int = 0o600, owner: os.stat_result | None = None
) -> None:
    """Write aside, fsync, rename, fsync the folder.

    Args:
        owner: of what else whoever is to own the file owns, too; None: the caller owns it.

    Raises:
        DiskFault: nothing changed; the old content is still there.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            if owner is not None:
                give_to(fd, owner)
            os.fchmod(fd, mode)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise DiskFault(f"cannot write {path}: {error.strerror}") from error
