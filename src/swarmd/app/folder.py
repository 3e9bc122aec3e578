"""The data folder: one node's, used by one process at a time.

lock       held (flock) by the daemon that runs; holds its process id
node       checked file: whose folder this is
sealed     checked file: under which key all but these three is, if it is sealed
node.key   the node's Ed25519 key, mode 0600
mesh/      the authority chain, start counter, known members
raft/      journals and snapshots by epoch, the chain of seals
secrets/   the keys of the swarm's secrets, on members that may vote, mode 0600
blobs/     content by hash
agents/    unpacked bundles by hash
gateway/   the API's own certificate and key, on nodes that listen beyond this host
audit/     records of what happened, here and elsewhere

In a sealed folder agents' code lies in memory instead (`clear_folder.py`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from swarmd.app.clear_folder import make_clear_folder
from swarmd.app.resealing import AGENTS, CLEAR_FILES, ROOT, VECTORS
from swarmd.app.sealed_folder import change, settle
from swarmd.base.disk import Disk, open_body, seal_body
from swarmd.base.errors import ConfigError, CorruptFile, DataFolderRefused, SwarmError
from swarmd.base.files import FileDisk, give_to, remove_tree, write_atomically
from swarmd.base.ids import NodeId, short
from swarmd.base.limits import MIB
from swarmd.base.sealed_disk import SealedDisk
from swarmd.base.sealed_file import open_file, seal_file
from swarmd.identity.keys import KEY_FILE_MODE, SigningKey, read_private_file
from swarmd.identity.sealing import SealingKey
from swarmd.wire.codec import decode_struct, encode_struct

_KIND: Final = "node"
_FORMAT: Final = 1
FREE_BYTES_MIN: Final = 64 * MIB
# What may stand in a folder that is no node's yet.
_HARMLESS: Final = frozenset({"lock", "sealed", "lost+found"})
_KEY_FILE: Final = "node.key"
# What a crash may leave of the writes that make a folder a node's.
_ASIDES: Final = frozenset(f"{name}.tmp" for name in (*CLEAR_FILES, _KEY_FILE))


class _Owner(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    node_id: bytes


@dataclass
class DataFolder:
    """A claimed folder. Closing gives the claim up.

    `agents` is where what agents run from lies, in clear. `sealer` seals all else; None: nothing
    is sealed.
    """

    path: Path
    key: SigningKey
    agents: Path
    sealer: SealingKey | None
    _lock_fd: int

    def disk(self, room: str) -> Disk:
        """The folder of one room."""
        return room_of(self.path, room, self.sealer)

    @property
    def vectors(self) -> Path:
        """Where the index of vectors lies, which is in clear: in memory, if all else is sealed."""
        return (self.path if self.sealer is None else self.agents.parent) / VECTORS

    def let_agents_through(self) -> None:
        """Let other users get through to `agents`, by names they know, and see no names."""
        self.agents.mkdir(mode=0o700, exist_ok=True)
        for folder in (self.agents.parent, self.agents):
            folder.chmod(folder.stat().st_mode | 0o011)

    def close(self) -> None:
        if self.sealer is not None:
            remove_tree(self.agents.parent)
        os.close(self._lock_fd)


def claim(
    path: Path, sealer: SealingKey | None = None, tell: Callable[[str], None] = lambda line: None
) -> DataFolder:
    """Take the folder for this process; a fresh one gets a new node key.

    Args:
        sealer: what all in it is sealed under, from the first file on if it is fresh.
        tell: is given a line now and then while a change of the key goes on that was interrupted.

    Raises:
        DataFolderRefused: in use by a live daemon, another program's, unwritable, full, sealed
            under another key, in clear though there is a key, or with a node key that is not the
            one it was made with. Nothing was changed.
        CorruptFile, DiskFault: a change of its key that goes on is not done; the next try goes on.
    """
    _make(path)
    lock_fd, around = _lock(path), path
    try:
        _check_room(path)
        _check_ours(path)
        if sealer is not None:
            around = make_clear_folder(path)
        settle(path, sealer, tell)
        return DataFolder(path, _identify(path, sealer), around / AGENTS, sealer, lock_fd)
    except BaseException:
        if around is not path:
            remove_tree(around)
        os.close(lock_fd)
        raise


def room_of(path: Path, room: str, sealer: SealingKey | None) -> Disk:
    """The folder of one room of a data folder, which is made if it is missing."""
    disk = FileDisk(path / room)
    return disk if sealer is None else SealedDisk(disk, sealer, room)


def load_data_key(file: Path, data_folder: Path) -> SealingKey:
    """The key that a data folder is, or is to be, sealed under.

    Raises:
        ConfigError: it lies in the folder that it is to protect.
        NotFound, KeyFileRefused, CorruptFile: there is no key in the file, or others may read it.
    """
    if file.resolve().is_relative_to(data_folder.resolve()):
        raise ConfigError(
            f"the data key {file} lies in the data folder: whoever has the one then has the "
            "other; keep the key elsewhere"
        )
    return SealingKey.load(file)


def reseal(
    path: Path, old: SealingKey | None, new: SealingKey | None, tell: Callable[[str], None]
) -> None:
    """Have a node's folder be sealed under `new` instead of `old`, or in clear; no daemon runs.

    Raises:
        DataFolderRefused: no node's, in use, full, or under another key; nothing was changed.
        CorruptFile, DiskFault: it is not done; the same again goes on.
    """
    if not (path / "node").exists():
        raise DataFolderRefused(f"{path} is no node's data folder; name one with --data-folder")
    lock_fd = _lock(path)
    try:
        _check_room(path)
        change(path, old, new, tell)
    finally:
        os.close(lock_fd)


def owner_of(path: Path) -> NodeId | None:
    """Whose folder it is, without claiming it; None if there is nothing that tells."""
    try:
        body = open_body(_KIND, _FORMAT, (path / "node").read_bytes(), source="node")
        return NodeId(decode_struct(_Owner, body).node_id)
    except (OSError, SwarmError):
        return None


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise DataFolderRefused(
            f"cannot make the data folder {path}: {error.strerror}; choose another with "
            "--data-folder"
        ) from error
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise DataFolderRefused(
            f"the data folder {path} is not writable by this user; choose another with "
            "--data-folder"
        )


def _lock(path: Path) -> int:
    try:
        fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _refused_write(path, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise DataFolderRefused(
            f"the data folder {path} is in use by a running swarmd (process {holder}); "
            "stop it, or give this one a folder of its own with --data-folder"
        ) from error
    try:
        give_to(fd, path.stat())  # Root may be the first who needs it, and not the last.
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        os.close(fd)
        raise _refused_write(path, error) from error
    return fd


def _refused_write(path: Path, error: OSError) -> DataFolderRefused:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataFolderRefused(f"the data folder {path} is full: make room, then start again")
    return DataFolderRefused(f"cannot write to the data folder {path}: {error.strerror}")


def _check_room(path: Path) -> None:
    free = shutil.disk_usage(path).free
    if free < FREE_BYTES_MIN:
        raise DataFolderRefused(
            f"the data folder {path} is full: {free // MIB} MiB are free and "
            f"{FREE_BYTES_MIN // MIB} are needed; make room, then start again"
        )


def _check_ours(path: Path) -> None:
    """Raises DataFolderRefused: something else lies in it that no node put there."""
    if (path / "node").exists():
        return
    strangers = sorted(p.name for p in path.iterdir() if p.name not in _HARMLESS | _ASIDES)
    # A crash between the two writes of `_identify` leaves the key alone; nothing rests on it.
    if strangers and strangers != [_KEY_FILE]:
        raise DataFolderRefused(
            f"{path} is not empty and not a swarmd data folder (it holds {strangers[0]}); "
            "choose another with --data-folder"
        )


def _identify(path: Path, sealer: SealingKey | None) -> SigningKey:
    """The node's key, which must be the one that the folder was made with."""
    owner_file, key_file = path / "node", path / _KEY_FILE
    if not owner_file.exists():
        if key_file.exists():
            key = _load_key(key_file, sealer)
        else:
            key = SigningKey.generate()
            _save_key(key, key_file, sealer)
        owner = encode_struct(_Owner(key.key_id))
        write_atomically(owner_file, seal_body(_KIND, _FORMAT, owner))
        return key
    body = open_body(_KIND, _FORMAT, owner_file.read_bytes(), source=str(owner_file))
    owner_id = NodeId(decode_struct(_Owner, body).node_id)
    if not key_file.exists():
        raise CorruptFile(
            f"{key_file} is missing: without it this folder's node {short(owner_id)} cannot "
            "prove who it is; restore the file, or start over in an empty folder"
        )
    key = _load_key(key_file, sealer)
    if key.key_id != owner_id:
        raise DataFolderRefused(
            f"the data folder {path} belongs to node {short(owner_id)}, but its node.key is "
            f"that of {short(key.key_id)}: one of the two was copied from another node"
        )
    return key


def _load_key(file: Path, sealer: SealingKey | None) -> SigningKey:
    raw = read_private_file(file)
    if sealer is not None:
        raw = open_file(sealer, ROOT, raw, source=str(file))
    return SigningKey.from_body(raw, source=str(file))


def _save_key(key: SigningKey, file: Path, sealer: SealingKey | None) -> None:
    raw = key.body() if sealer is None else seal_file(sealer, ROOT, key.body())
    write_atomically(file, raw, mode=KEY_FILE_MODE)
