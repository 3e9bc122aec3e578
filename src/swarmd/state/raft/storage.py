"""What the store keeps on disk besides the log: seat, chain of epochs, first states.

Files, all checked: `raft.storage` (the random name of this disk as a voter), `raft.starts` (how
often it was started), `raft.seen` (which starts of other voters were told here), `raft.chain`
(seal certificates), `raft.e<N>.state` (the state that epoch N begins with); the log of epoch
N keeps its own files under `raft.e<N>.log.`, a copy of it under `raft.e<N>.copy.`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from swarmd.base.disk import Disk, DiskReader, open_body, seal_body
from swarmd.base.errors import CorruptFile, MalformedMessage
from swarmd.base.ids import node_id_of
from swarmd.identity.epochs import Chain, Epoch, founder_storage
from swarmd.identity.keys import SigningKey
from swarmd.identity.voter import STORAGE_BYTES, Voter
from swarmd.mesh.trust import Trust
from swarmd.observe.log import get_logger
from swarmd.state.raft.epoch_machine import OnDisk
from swarmd.state.raft.frames import read_frames, stream_digest
from swarmd.state.raft.messages import LIVES_MAX
from swarmd.state.raft.snapshot import SideFile
from swarmd.state.raft.statefile import STATE_FORMAT, STATE_KIND
from swarmd.wire.codec import decode_struct, encode_struct

_log = get_logger("raft")
_STORAGE: Final = "raft.storage"
_STARTS: Final = "raft.starts"
_SEEN: Final = "raft.seen"
_SEEN_MAX: Final = 1_000
_CHAIN: Final = "raft.chain"
_EPOCH_FILE: Final = re.compile(r"raft\.e(\d+)\.(?!copy\.).+", re.ASCII)
_COPY_FILE: Final = re.compile(r"raft\.e(\d+)\.copy\..+", re.ASCII)


class _Starts(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How often this disk was started; what tells the latest lives apart, the newest last."""

    count: int
    nonces: tuple[bytes, ...] = ()


class _Seen(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The latest start of a voter's storage that was told here."""

    node_id: bytes
    storage: bytes
    start: int
    nonce: bytes


class PrefixDisk:
    """The files of a disk whose names begin with `prefix`, as a disk of their own."""

    def __init__(self, disk: Disk, prefix: str) -> None:
        self._disk = disk
        self._prefix = prefix

    @property
    def blocking(self) -> bool:
        return self._disk.blocking

    def read(self, name: str) -> bytes | None:
        return self._disk.read(self._prefix + name)

    def append(self, name: str, data: bytes) -> None:
        self._disk.append(self._prefix + name, data)

    def sync(self, name: str) -> None:
        self._disk.sync(self._prefix + name)

    def replace(self, name: str, data: bytes) -> None:
        self._disk.replace(self._prefix + name, data)

    def rename(self, old: str, new: str) -> None:
        self._disk.rename(self._prefix + old, self._prefix + new)

    def reader(self, name: str) -> DiskReader | None:
        return self._disk.reader(self._prefix + name)

    def remove(self, name: str) -> None:
        self._disk.remove(self._prefix + name)

    def names(self) -> list[str]:
        start = len(self._prefix)
        return [n[start:] for n in self._disk.names() if n.startswith(self._prefix)]


class EpochFiles:
    """The store's files. Every write is durable on return; all raise DiskFault."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._states: set[int] = set()

    def storage(self, swarm_id: bytes, *, founding: bool) -> bytes:
        """This disk's name as a voter, made at the first call.

        A disk that lost its files gets another name, and so is another voter. Only the
        founder of a swarm gets the name that the genesis implies.
        """
        raw = self._disk.read(_STORAGE)
        if raw is not None:
            stored = open_body("storage", 1, raw, source=_STORAGE)
            if len(stored) != STORAGE_BYTES:
                raise CorruptFile(f"{_STORAGE} has {len(stored)} bytes, not {STORAGE_BYTES}")
            return stored
        made = founder_storage(swarm_id) if founding else secrets.token_bytes(STORAGE_BYTES)
        self._disk.replace(_STORAGE, seal_body("storage", 1, made))
        return made

    def renew_storage(self) -> bytes:
        """Give this disk another name as a voter."""
        made = secrets.token_bytes(STORAGE_BYTES)
        self._disk.replace(_STORAGE, seal_body("storage", 1, made))
        return made

    def count_start(self, nonce: bytes) -> tuple[int, tuple[bytes, ...]]:
        """The number of this start of the disk, which is durable from now on, and the nonces
        of its latest lives: a copy of the disk has others than it, however often it starts.
        """
        raw = self._disk.read(_STARTS)
        before = _Starts(0) if raw is None else _decode(_Starts, "rstarts", raw, _STARTS)
        now = _Starts(before.count + 1, (*before.nonces[1 - LIVES_MAX :], nonce))
        self._disk.replace(_STARTS, seal_body("rstarts", 1, encode_struct(now)))
        return now.count, now.nonces

    def note_start(
        self, node_id: bytes, storage: bytes, start: int, nonces: Sequence[bytes]
    ) -> bool:
        """Note a start of another voter; False if a life was told that this one does not know."""
        seen = self._load_seen()
        key = (node_id, storage)
        nonce = nonces[-1] if nonces else b""
        before = seen.get(key)
        if before is not None:
            since = start - before.start
            if since < 0 or (since < len(nonces) and nonces[-1 - since] != before.nonce):
                return False
            if since == 0:
                return before.nonce == nonce
        seen.pop(key, None)
        while len(seen) >= _SEEN_MAX:
            del seen[next(iter(seen))]
        seen[key] = _Seen(node_id, storage, start, nonce)
        self._disk.replace(_SEEN, seal_body("seen", 1, msgspec.msgpack.encode([*seen.values()])))
        return True

    def _load_seen(self) -> dict[tuple[bytes, bytes], _Seen]:
        raw = self._disk.read(_SEEN)
        if raw is None:
            return {}
        found: list[_Seen] = _decode(list[_Seen], "seen", raw, _SEEN)
        return {(one.node_id, one.storage): one for one in found}

    def load_chain(self, chain: Chain) -> None:
        raw = self._disk.read(_CHAIN)
        if raw is not None:
            chain.load(open_body("chain", 1, raw, source=_CHAIN), source=_CHAIN)

    def save_chain(self, chain: Chain) -> None:
        self._disk.replace(_CHAIN, seal_body("chain", 1, chain.dump()))

    def find_states(self, chain: Chain) -> None:
        """Look which first states are here and are what the chain's certificates say.

        Called whenever the chain grew: a state may have been kept here for an epoch of whose
        certificate the node learnt only after a restart, from others.
        """
        for number in self._numbers(_EPOCH_FILE):
            epoch = chain.epoch(number)
            if number in self._states or epoch is None or epoch.digest is None:
                continue
            if self._holds(number, epoch.digest):
                self._states.add(number)

    def _holds(self, number: int, expected: bytes) -> bool:
        name = _state_name(number)
        if name not in self._disk.names():
            return False
        try:
            return stream_digest(self._disk, name, STATE_KIND, STATE_FORMAT) == expected
        except CorruptFile as error:
            # As good as none: it is fetched again from whoever has it whole.
            _log.error("a kept state is damaged", error=error.message)
            return False

    def on_disk(self) -> OnDisk:
        states = tuple(sorted(self._states))
        return OnDisk(states, self._numbers(_EPOCH_FILE), self._numbers(_COPY_FILE))

    @property
    def blocking(self) -> bool:
        return self._disk.blocking

    def state_frames(self, number: int) -> Iterator[bytes]:
        """The first state of epoch `number`, frame by frame. Raises CorruptFile, DiskFault."""
        return read_frames(self._disk, _state_name(number), STATE_KIND, STATE_FORMAT)

    def state_reader(self, number: int) -> DiskReader | None:
        """The file of a first state, as it is given to others."""
        return self._disk.reader(_state_name(number))

    def state(self, number: int) -> bytes | None:
        """The file of a first state as a whole."""
        return self._disk.read(_state_name(number))

    def write_state(self, number: int, body: bytes) -> None:
        """Keep a first state that is held as a whole."""
        self._disk.replace(_state_name(number), body)
        self._states.add(number)

    def beside(self, number: int) -> SideFile:
        """Where a first state is written until it is whole; see `keep_state`."""
        return SideFile(self._disk, _state_name(number) + ".new")

    def keep_state(self, number: int, file: SideFile) -> None:
        """Have `file`, which is whole and synced, be the first state of epoch `number`."""
        file.take_place_of(_state_name(number))
        self._states.add(number)

    def log_disk(self, epoch: Epoch) -> PrefixDisk:
        return PrefixDisk(self._disk, f"raft.e{epoch.number}.log.")

    def copy_disk(self, number: int) -> PrefixDisk:
        return PrefixDisk(self._disk, f"raft.e{number}.copy.")

    def drop(self, number: int) -> None:
        """Delete every file of an epoch."""
        prefix = f"raft.e{number}."
        for name in self._disk.names():
            if name.startswith(prefix):
                self._disk.remove(name)
        self._states.discard(number)

    def _numbers(self, kind: re.Pattern[str]) -> tuple[int, ...]:
        found = (kind.fullmatch(name) for name in self._disk.names())
        return tuple(sorted({int(match[1]) for match in found if match}))


def _decode(shape: Any, kind: str, raw: bytes, name: str) -> Any:
    body = open_body(kind, 1, raw, source=name)
    try:
        return decode_struct(shape, body)
    except MalformedMessage as error:
        raise CorruptFile(f"{name} does not hold what it should: {error.message}") from error


def _state_name(number: int) -> str:
    return f"raft.e{number}.state"


def open_epochs(
    disk: Disk, trust: Trust, key: SigningKey, epochs: Sequence[bytes]
) -> tuple[Chain, EpochFiles, Voter]:
    """The epochs on this disk and those given, the files, and this node's seat by its storage.

    Raises:
        CorruptFile, DiskFault: the files cannot be used.
        SwarmError: `epochs` do not follow.
    """
    genesis = trust.genesis
    chain, files = Chain(genesis), EpochFiles(disk)
    files.load_chain(chain)
    for certificate in epochs:
        chain.extend(certificate)
    files.save_chain(chain)
    files.find_states(chain)
    first = key.key_id == node_id_of(genesis.first_node_public)
    founding = first and trust.head[0] == 0 and chain.head.number == 1
    return chain, files, Voter(key.public, files.storage(chain.swarm_id, founding=founding))
