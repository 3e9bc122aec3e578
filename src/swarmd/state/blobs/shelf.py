"""What lies beside the blobs of a node: manifests, pins, and blobs that are half here.

    blobs/XX/HASH          the blobs (`store.py`)
    blobs/manifests/HASH   hashes of a blob's chunks; made again if it is missing or damaged
    blobs/pins/HASH        there for every blob of a user: who pins it, if anybody does
    blobs/partial/HASH     what has come of a blob, and what was moved aside because it was damaged

All are named by the blob's hash, so that an older version and the change of a data key pass over
them or treat them as what they are. Each has a checksum of its own or is proven by that hash, and
appears by a rename, except for partial ones: of these only chunks count that fit their hash,
whatever wrote them.
In a sealed data folder they are sealed, too.

Functions whose names end in `_file` only touch files and may run in a thread.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from swarmd.base.errors import CorruptFile, DiskFault
from swarmd.base.files import sync_folder, write_atomically
from swarmd.base.ids import to_text
from swarmd.base.sealed_file import Sealer, open_file, seal_file
from swarmd.observe.log import get_logger
from swarmd.state.blobs.chunkfile import ROOM
from swarmd.state.blobs.manifest import Manifest, decode_manifest, encode_manifest
from swarmd.state.blobs.messages import Pin, PinnedBlob
from swarmd.state.blobs.pins import decode_pins, encode_pins
from swarmd.state.blobs.store import hash_in

# What nobody has gone on with for so long is not gone on with.
PARTIAL_KEPT_S: Final = 24 * 3_600.0
_FOLDERS: Final = ("manifests", "pins", "partial")

_log = get_logger("blobs")


class Shelf:
    """The files, and which blobs of users are here with which pins."""

    def __init__(self, folder: Path, sealer: Sealer | None) -> None:
        self._folder = folder
        self._sealer = sealer
        self._pins: dict[bytes, PinnedBlob] = {}

    def open_file(self, has: Callable[[bytes], bool]) -> None:
        """Read the pins; delete what belongs to no blob. Raises DiskFault."""
        try:
            for name in _FOLDERS:
                (self._folder / name).mkdir(exist_ok=True, mode=0o700, parents=True)
            sync_folder(self._folder)
            for blob_hash, path in self._files("pins"):
                self._load(blob_hash, path)
            for blob_hash, path in self._files("manifests"):
                if not has(blob_hash):
                    path.unlink(missing_ok=True)
            self.drop_old_partials_file(self.pinned_hashes)
        except OSError as error:
            raise DiskFault(f"cannot read {self._folder}: {error.strerror}") from error

    # ---- blobs of users, and their pins --------------------------------------------------

    @property
    def hashes(self) -> list[bytes]:
        """Every blob that a user put and that is, or should be, here."""
        return sorted(self._pins)

    @property
    def pinned_hashes(self) -> frozenset[bytes]:
        """Of these also what is damaged is kept: there may be no other copy."""
        return frozenset(one.hash for one in self._pins.values() if one.pins)

    def blob(self, blob_hash: bytes) -> PinnedBlob | None:
        return self._pins.get(blob_hash)

    def pins(self, blob_hash: bytes) -> tuple[Pin, ...]:
        found = self._pins.get(blob_hash)
        return () if found is None else found.pins

    def note(self, blob: PinnedBlob) -> None:
        """What is on the disk now; `write_pins_file` went before."""
        self._pins[blob.hash] = blob

    def write_pins_file(self, blob: PinnedBlob) -> None:
        """Keep the pins, durably. Raises DiskFault: those of before are there."""
        self._write(self._path("pins", blob.hash), encode_pins(blob))

    # ---- manifests -----------------------------------------------------------------------

    def read_manifest_file(self, blob_hash: bytes, size: int) -> Manifest | None:
        """None if there is none that can be used."""
        path = self._path("manifests", blob_hash)
        try:
            return decode_manifest(self._read(path), blob_hash, size, source=str(path))
        except (OSError, CorruptFile):
            return None

    def write_manifest_file(self, manifest: Manifest) -> None:
        """Raises DiskFault."""
        if manifest.count > 1:
            self._write(self._path("manifests", manifest.hash), encode_manifest(manifest))

    # ---- partial blobs -------------------------------------------------------------------

    def partial(self, blob_hash: bytes) -> Path:
        return self._path("partial", blob_hash)

    def set_aside_file(self, blob_hash: bytes, path: Path) -> Path:
        """Move a damaged blob away; what is good of it need not come again. Raises DiskFault."""
        aside = self.partial(blob_hash)
        try:
            os.replace(path, aside)
            os.utime(aside)
        except FileNotFoundError:
            pass  # Somebody else found the damage, too.
        except OSError as error:
            raise DiskFault(f"cannot move {path} aside: {error.strerror}") from error
        return aside

    def drop_old_partials_file(self, under_way: frozenset[bytes]) -> None:
        """Delete partial blobs that nobody went on with for a day. Raises OSError."""
        before = time.time() - PARTIAL_KEPT_S
        for blob_hash, path in self._files("partial"):
            if blob_hash not in under_way and path.stat().st_mtime < before:
                path.unlink(missing_ok=True)

    # ---- the end of a blob ---------------------------------------------------------------

    def forget(self, blob_hash: bytes) -> None:
        """The blob is not kept any more."""
        self._pins.pop(blob_hash, None)
        for name in ("pins", "manifests"):
            with contextlib.suppress(OSError):
                self._path(name, blob_hash).unlink(missing_ok=True)

    # ---- files ---------------------------------------------------------------------------

    def _load(self, blob_hash: bytes, path: Path) -> None:
        try:
            blob = decode_pins(self._read(path), source=str(path))
            if blob.hash != blob_hash:
                raise CorruptFile(f"{path} is about another blob")
        except CorruptFile as error:
            # Whoever else holds the blob tells its pins again.
            _log.warning("pins not read", why=error.message)
            path.unlink(missing_ok=True)
        else:
            self._pins[blob_hash] = blob

    def _path(self, folder: str, blob_hash: bytes) -> Path:
        return self._folder / folder / to_text(blob_hash)

    def _files(self, folder: str) -> Iterator[tuple[bytes, Path]]:
        for entry in list(os.scandir(self._folder / folder)):
            blob_hash = hash_in(entry.name)
            if blob_hash is None:
                os.unlink(entry.path)
            else:
                yield blob_hash, Path(entry.path)

    def _read(self, path: Path) -> bytes:
        raw = path.read_bytes()
        if self._sealer is None:
            return raw
        return open_file(self._sealer, ROOM, raw, source=str(path))

    def _write(self, path: Path, raw: bytes) -> None:
        write_atomically(path, raw if self._sealer is None else seal_file(self._sealer, ROOM, raw))
