"""The data folder: one node's, used by one process at a time.

lock       held (flock) by the daemon that runs; holds its process id
node       checked file: whose folder this is
node.key   the node's Ed25519 key, mode 0600
mesh/      the authority chain, start counter, known members
raft/      journals and snapshots by epoch, the chain of seals
secrets/   the keys of the swarm's secrets, on members that may vote, mode 0600
blobs/     content by hash
agents/    unpacked bundles by hash
audit/     records of what happened, here and elsewhere
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from swarmd.base.disk import open_body, seal_body
from swarmd.base.errors import CorruptFile, DataFolderRefused, SwarmError
from swarmd.base.files import FileDisk, write_atomically
from swarmd.base.ids import NodeId, short
from swarmd.base.limits import MIB
from swarmd.identity.keys import SigningKey
from swarmd.wire.codec import decode_struct, encode_struct

_KIND: Final = "node"
_FORMAT: Final = 1
FREE_BYTES_MIN: Final = 64 * MIB
# What may stand in a folder that is no node's yet.
_HARMLESS: Final = frozenset({"lock", "lost+found"})


class _Owner(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    node_id: bytes


@dataclass
class DataFolder:
    """A claimed folder. Closing gives the claim up."""

    path: Path
    key: SigningKey
    _lock_fd: int

    def disk(self, room: str) -> FileDisk:
        """The folder of one room."""
        return FileDisk(self.path / room)

    def let_through(self, room: str) -> None:
        """Let other users get through to that room, by names they know, and see no names."""
        (self.path / room).mkdir(mode=0o700, exist_ok=True)
        for folder in (self.path, self.path / room):
            folder.chmod(folder.stat().st_mode | 0o011)

    def close(self) -> None:
        os.close(self._lock_fd)


def claim(path: Path) -> DataFolder:
    """Take the folder for this process; a fresh one gets a new node key.

    Raises:
        DataFolderRefused: in use by a live daemon, another program's, unwritable, full, or
            with a key that is not the one it was made with. Nothing was changed.
    """
    _make(path)
    lock_fd = _lock(path)
    try:
        _check_room(path)
        return DataFolder(path, _identify(path), lock_fd)
    except BaseException:
        os.close(lock_fd)
        raise


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


def _identify(path: Path) -> SigningKey:
    """The node's key, which must be the one that the folder was made with."""
    owner_file, key_file = path / "node", path / "node.key"
    if not owner_file.exists():
        strangers = sorted(p.name for p in path.iterdir() if p.name not in _HARMLESS)
        # A crash between the two writes below leaves the key alone; nothing rests on it yet.
        if strangers and strangers != ["node.key"]:
            raise DataFolderRefused(
                f"{path} is not empty and not a swarmd data folder (it holds {strangers[0]}); "
                "choose another with --data-folder"
            )
        key = SigningKey.load(key_file) if strangers else SigningKey.generate()
        if not strangers:
            key.save(key_file)
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
    key = SigningKey.load(key_file)
    if key.key_id != owner_id:
        raise DataFolderRefused(
            f"the data folder {path} belongs to node {short(owner_id)}, but its node.key is "
            f"that of {short(key.key_id)}: one of the two was copied from another node"
        )
    return key
