"""Seals the files of a data folder, opens them, or seals them under another key.

The daemon is down. Each file is written aside and renamed, and says by itself what it is sealed
under, so that whoever is killed anywhere in between is taken up again by doing the whole once more:
files that are done are found to be so. Nothing is lost at any moment, and room is needed for the
largest file alone. What daemons left half written, and what they can make again, is deleted first,
as it may lie there in clear.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from swarmd.audit.resealing import reseal_segment
from swarmd.audit.sealed import ROOM as AUDIT
from swarmd.audit.segments import parse_name
from swarmd.base.disk import DiskReader
from swarmd.base.errors import CorruptFile, DataFolderRefused, DiskFault
from swarmd.base.files import FileReader, give_to, remove_tree, sync_folder
from swarmd.base.limits import KIB
from swarmd.base.sealed_file import (
    HEADER_BYTES,
    SealedReader,
    Sealer,
    seal_pieces,
    sealer_id_in,
)
from swarmd.mesh.standing import LAST_JOIN
from swarmd.state.blobs.chunkfile import ROOM as BLOBS
from swarmd.state.blobs.naming import Hasher
from swarmd.state.blobs.store import hash_in

# The node's own file beside the rooms, and those whose files are any `Disk`'s.
ROOT: Final = "node"
ROOT_FILES: Final = ("node.key",)
DISK_ROOMS: Final = ("mesh", "raft", "secrets", "gateway", "crdt")
AGENTS: Final = "agents"
# An index of vectors, in clear, which a daemon makes again; a sealed folder has none.
VECTORS: Final = "vectors"
# Rooms where one file that does not open costs no more than that file.
_TOLERANT: Final = (BLOBS, AUDIT)
_ASIDE: Final = ".tmp"
_PIECE_BYTES: Final = 256 * KIB
_TELL_EVERY: Final = 100

Tell = Callable[[str], None]


class Resealing:
    """One walk through a folder.

    Args:
        path: the data folder, which this process holds.
        sealers: keys that files may be under, by their ids; what is under none is in clear.
        target: what all files are to be under; None: in clear.
        in_clear: may files be in clear before? Else one that is was put there.
        tell: is given a line now and then.
    """

    def __init__(
        self,
        path: Path,
        sealers: Mapping[bytes, Sealer],
        target: Sealer | None,
        *,
        in_clear: bool,
        tell: Tell,
    ) -> None:
        self._path = path
        self._sealers = dict(sealers)
        self._target = target
        self._in_clear = in_clear
        self._tell = tell

    def check(self) -> None:
        """Open all that `run` would stop at; nothing is changed.

        Raises:
            CorruptFile: a file is damaged, under a key that is not given, or was put there.
            DiskFault: it cannot be read.
        """
        try:
            for room, file in self._files():
                if room in _TOLERANT or file.suffix == _ASIDE:
                    continue
                with _reading(file) as reader:
                    for _ in _plain(self._opened(room, file, reader)):
                        pass
        except OSError as error:
            raise DiskFault(f"cannot read {error.filename}: {error.strerror}") from error

    def run(self) -> None:
        """Do it; all of it is durable on return.

        Raises:
            DiskFault: the disk refused something. All that was in the folder is still there, and
                the next try goes on.
            CorruptFile: a file is damaged that `check` found sound; the same, once it is mended.
        """
        try:
            self._delete_leftovers()
            files = list(self._files())
            for number, (room, file) in enumerate(files):
                if number % _TELL_EVERY == 0:
                    self._tell(f"{number} of {len(files)} files are done")
                self._file(room, file)
            for folder in {file.parent for _, file in files}:
                sync_folder(folder)
        except OSError as error:
            raise DiskFault(
                f"the data folder could not be sealed anew ({error.strerror}: {error.filename}); "
                "nothing is lost: mend that, and do the same again"
            ) from error
        for left in self._unknown():
            self._tell(f"{left} is none of this program's files and was left as it is")

    # ---- what is there -----------------------------------------------------------------

    def _files(self) -> Iterator[tuple[str, Path]]:
        for name in ROOT_FILES:
            if (self._path / name).exists():
                yield ROOT, self._path / name
        for room in (*DISK_ROOMS, AUDIT):
            yield from ((room, file) for file in _files_in(self._path / room))
        for shard in sorted(_folders_in(self._path / BLOBS)):
            yield from ((BLOBS, file) for file in _files_in(shard))

    def _unknown(self) -> Iterator[Path]:
        rooms = {*DISK_ROOMS, AUDIT, BLOBS, AGENTS, VECTORS}
        known = {*ROOT_FILES, *rooms, *CLEAR_FILES, "lost+found"}
        yield from (one for one in sorted(self._path.iterdir()) if one.name not in known)
        for room in (*DISK_ROOMS, AUDIT):
            yield from _folders_in(self._path / room)

    def _delete_leftovers(self) -> None:
        if not remove_tree(self._path / AGENTS, within_s=60.0):
            raise DataFolderRefused(
                f"{self._path / AGENTS}, which holds agents' code in clear, cannot be deleted: "
                "delete it, then do the same again; nothing else was changed"
            )
        if not remove_tree(self._path / VECTORS, within_s=60.0):
            raise DataFolderRefused(
                f"{self._path / VECTORS}, which holds an index of vectors in clear, cannot be "
                "deleted: delete it, then do the same again; nothing else was changed"
            )
        rooms = [self._path / room for room in (*DISK_ROOMS, AUDIT)]
        shards = _folders_in(self._path / BLOBS)
        for folder in (self._path, *rooms, *shards):
            for file in _files_in(folder):
                # What is no blob among blobs goes when a daemon starts, too: uploads, for one.
                if file.suffix == _ASIDE or (folder in shards and hash_in(file.name) is None):
                    file.unlink()
            if folder.exists():
                sync_folder(folder)

    # ---- one file ----------------------------------------------------------------------

    def _file(self, room: str, file: Path) -> None:
        if room == AUDIT and parse_name(file.name) is not None:
            raw = file.read_bytes()
            made = reseal_segment(raw, file.name, [*self._sealers.values()], self._target)
            _write(file, [made])
            return
        with _reading(file) as reader:
            if self._key_id(room, file, reader) == (self._target.id if self._target else None):
                return
            try:
                self._rewrite(room, file, self._opened(room, file, reader))
            except CorruptFile:
                # Blobs are had from others; damage in the audit log is evidence; else stop.
                if room not in _TOLERANT:
                    raise
                self._tell(f"{file} is damaged, or under another key, and stays as it is")

    def _key_id(self, room: str, file: Path, reader: DiskReader) -> bytes | None:
        """What a file is sealed under; None: it is in clear."""
        key_id = sealer_id_in(reader.read(0, HEADER_BYTES))
        if room == BLOBS and key_id is not None and _is_named_by(file, reader):
            return None  # A blob in clear that happens to be what a sealed file looks like.
        return key_id

    def _opened(self, room: str, file: Path, reader: DiskReader) -> DiskReader:
        """What a file holds. Raises CorruptFile, here or when it is read."""
        key_id = self._key_id(room, file, reader)
        if key_id is None and self._in_clear:
            return reader
        if key_id is None:
            raise CorruptFile(f"{file} is not sealed, in a data folder that is: it was put there")
        if key_id not in self._sealers:
            raise CorruptFile(
                f"{file} is sealed under the key {key_id.hex()[:8]}, which was not given"
            )
        return SealedReader(self._sealers[key_id], room, reader, source=str(file))

    def _rewrite(self, room: str, file: Path, reader: DiskReader) -> None:
        target = self._target
        _write(file, _plain(reader) if target is None else seal_pieces(target, room, reader))


# In clear always: whose folder it is, who runs, what it is sealed under, why it could not join.
CLEAR_FILES: Final = ("node", "lock", "sealed", LAST_JOIN)


def disk_files(path: Path) -> list[Path]:
    """The files of the rooms that keep theirs on a `Disk`, but what is half written."""
    files = [file for room in DISK_ROOMS for file in _files_in(path / room)]
    return [file for file in files if file.suffix != _ASIDE]


def _files_in(folder: Path) -> list[Path]:
    try:
        return sorted(Path(one.path) for one in os.scandir(folder) if one.is_file())
    except FileNotFoundError:
        return []


def _folders_in(folder: Path) -> list[Path]:
    try:
        found = sorted(Path(one.path) for one in os.scandir(folder))
    except FileNotFoundError:
        return []
    return [one for one in found if one.is_dir() and not one.is_symlink()]


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[FileReader]:
    reader = FileReader(file)
    try:
        yield reader
    finally:
        reader.close()


def _plain(reader: DiskReader) -> Iterator[bytes]:
    for offset in range(0, reader.size, _PIECE_BYTES):
        yield reader.read(offset, _PIECE_BYTES)


def _is_named_by(file: Path, reader: DiskReader) -> bool:
    hasher = Hasher()
    for piece in _plain(reader):
        hasher.update(piece)
    return hash_in(file.name) == hasher.digest()


def _write(file: Path, pieces: Iterable[bytes]) -> None:
    """New content, with the owner, mode and times of before.

    Raises OSError: the old one is there.
    """
    status = file.stat()
    aside = file.with_name(file.name + _ASIDE)
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        give_to(fd, status)
        os.fchmod(fd, status.st_mode & 0o777)
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(fd, view) :]
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.fsync(fd)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()  # It may be what fills the disk.
        raise
    finally:
        os.close(fd)
    os.rename(aside, file)
