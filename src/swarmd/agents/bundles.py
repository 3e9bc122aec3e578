"""Unpacked bundles on this node's disk: one folder per content, made once, never changed.

A folder appears under its hash only whole and durable. Unpacking happens at most once at a
time per bundle; attempts that need the same one wait for it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Set
from pathlib import Path
from typing import Final, Protocol

import trio

from swarmd.agents.bundle import unpack_bundle
from swarmd.base.errors import DiskFault
from swarmd.base.files import remove_tree, sync_folder
from swarmd.base.ids import to_text
from swarmd.state.blobs.messages import BlobRef

_UNPACKING_MAX: Final = 4
# Others may get through to what they know the name of, and see no names.
_PASSED_MODE: Final = 0o711
# Of what is within a folder that keeps others out.
_FOLDER_MODE: Final = 0o755
_FILE_MODE: Final = 0o644


class BlobSource(Protocol):
    async def get(self, ref: BlobRef) -> bytes: ...


class BundleCache:
    """Implements `supervisor.BundleSource` over blobs.

    Args:
        folder: holds one folder per bundle; made if it is missing.
        group: may read them, besides this user.
    """

    def __init__(self, folder: Path, blobs: BlobSource, *, group: int | None = None) -> None:
        self._folder = folder
        self._group = group
        self._blobs = blobs
        self._unpacking: dict[bytes, trio.Event] = {}
        self._limiter = trio.CapacityLimiter(_UNPACKING_MAX)
        self._numbers = itertools.count(1)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if group is not None:
            folder.chmod(_PASSED_MODE)
        for left in folder.glob("*.tmp"):
            remove_tree(left)

    async def folder_of(self, bundle: BlobRef) -> Path:
        """The folder with the bundle's files.

        Raises:
            NotFound, Unavailable: no reachable member has it.
            MalformedMessage: it is not a bundle.
            DiskFault: it cannot be unpacked here.
        """
        path = self._folder / to_text(bundle.hash)
        while not self._is_there(path):
            event = self._unpacking.get(bundle.hash)
            if event is not None:
                await event.wait()
                continue
            event = self._unpacking[bundle.hash] = trio.Event()
            try:
                raw = await self._blobs.get(bundle)
                await trio.to_thread.run_sync(self._unpack, raw, path, limiter=self._limiter)
            finally:
                del self._unpacking[bundle.hash]
                event.set()
        return path

    def _is_there(self, path: Path) -> bool:
        """Is it unpacked, and for those to read who shall? One of another time may not be.

        Raises DiskFault: it cannot be given to them.
        """
        try:
            found = path.stat()
            if self._group is not None and found.st_gid != self._group:
                _share(path, self._group)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise DiskFault(f"cannot let agents read {path}: {error.strerror}") from error
        return True

    async def keep(self, hashes: Set[bytes]) -> None:
        """Delete the folders of bundles not in `hashes`; no process may run from them."""
        names = {to_text(one) for one in hashes} | {to_text(one) for one in self._unpacking}

        def delete() -> None:
            for path in self._folder.iterdir():
                if path.name not in names and path.suffix != ".tmp" and len(path.name) == 52:
                    remove_tree(path)

        await trio.to_thread.run_sync(delete)

    def _unpack(self, raw: bytes, path: Path) -> None:
        aside = self._folder / f"{next(self._numbers)}.tmp"
        try:
            unpack_bundle(raw, aside)
            if self._group is not None:
                _share(aside, self._group)
            aside.rename(path)
            sync_folder(self._folder)
        except OSError as error:
            remove_tree(aside)
            raise DiskFault(f"cannot unpack a bundle to {path}: {error.strerror}") from error


def _share(folder: Path, group: int) -> None:
    """Let the group read what is in the folder; its own mode, which keeps others out, is last."""
    for parent, folders, files in os.walk(folder):
        for name in folders:
            os.chmod(os.path.join(parent, name), _FOLDER_MODE)
        for name in files:
            os.chmod(os.path.join(parent, name), _FILE_MODE)
    folder.chmod(0o750)
    os.chown(folder, -1, group)
