"""The real file system behind `base.disk.Disk`, and atomic writes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from swarmd.base.errors import DiskFault


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
        (self._folder / name).unlink(missing_ok=True)
        sync_folder(self._folder)

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


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write aside, fsync, rename, fsync the folder.

    Raises:
        DiskFault: nothing changed; the old content is still there.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
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
