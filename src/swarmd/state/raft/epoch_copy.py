"""A copy of an epoch's log on the disk of a member without a seat, and the state it makes up.

Two files: `base`, a checked file with the state after some index, and `log`, the entries that
follow, each with length and checksum. The log is synced before its entries are taken up. A
torn or damaged tail of it is dropped: whoever asks for what follows says where it ends, and a
copy is believed by nobody without a proof.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from swarmd.base.disk import Disk, open_body, seal_body
from swarmd.base.errors import CorruptFile
from swarmd.base.limits import ENTRY_BYTES_MAX
from swarmd.identity.genesis import Genesis
from swarmd.observe.log import get_logger
from swarmd.state.raft.copy_machine import NOTHING
from swarmd.state.raft.statefile import encode_state, restore_state
from swarmd.state.raft.statemachine import StateMachine

_BASE: Final = "base"
_LOG: Final = "log"
_INDEX: Final = struct.Struct(">Q")
_RECORD: Final = struct.Struct(">IQI")  # length, index, checksum of both and the entry
_log = get_logger("raft")


class EpochCopy:
    """See the module. `last` is the index of the last entry taken up, all of it durable."""

    def __init__(self, disk: Disk, genesis: Genesis, log_bytes_max: int) -> None:
        self._disk = disk
        self._genesis = genesis
        self._log_bytes_max = log_bytes_max
        self._log_bytes = 0
        self.state = StateMachine(genesis)
        self.last = NOTHING
        try:
            self._load()
        except CorruptFile as error:
            _log.error("a copy of the log is damaged: it is made anew", error=error.message)
            self.state, self.last = StateMachine(genesis), NOTHING

    def _load(self) -> None:
        raw = self._disk.read(_BASE)
        if raw is None:
            return
        body = open_body("copybase", 1, raw, source=_BASE)
        if len(body) < _INDEX.size:
            raise CorruptFile(f"{_BASE} is too short")
        restore_state(self.state, body[_INDEX.size :])
        self.last = _INDEX.unpack_from(body)[0]
        log = self._read_log()
        offset = 0
        while (entry := self._entry_at(log, offset)) is not None:
            self._take_up(entry)
            offset += _RECORD.size + len(entry)
        # What was read may not have been synced, and what follows is damaged, or another log.
        self.write_base(self.last, encode_state(self.state.snapshot()))
        self.state.drain_changes()

    def _read_log(self) -> bytes:
        """What follows the base; nothing, if the disk itself finds it damaged."""
        try:
            return self._disk.read(_LOG) or b""
        except CorruptFile as error:
            _log.error("a copy's last entries are damaged and dropped", error=error.message)
            return b""

    def _entry_at(self, log: bytes, offset: int) -> bytes | None:
        """The entry that follows `last`, if it stands there whole."""
        if offset + _RECORD.size > len(log):
            return None
        length, index, checksum = _RECORD.unpack_from(log, offset)
        start = offset + _RECORD.size
        if index != self.last + 1 or length > ENTRY_BYTES_MAX * 2 or start + length > len(log):
            return None
        entry = log[start : start + length]
        return entry if _checksum(index, entry) == checksum else None

    def begin(self, index: int, body: bytes) -> None:
        """Hold the state after `index`, and nothing else.

        Raises:
            CorruptFile: `body` is no state.
            DiskFault: it is not durable.
        """
        state = StateMachine(self._genesis)
        restore_state(state, body)
        self.write_base(index, body)
        self.become(index, state)

    def write_base(self, index: int, body: bytes) -> None:
        """Make the state after `index` durable, in place of all that is there. Raises DiskFault."""
        self._disk.replace(_BASE, seal_body("copybase", 1, _INDEX.pack(index) + body))
        self._disk.remove(_LOG)
        self._log_bytes = 0

    def become(self, index: int, state: StateMachine) -> None:
        """Stand where `write_base` has put the disk."""
        state.drain_changes()
        self.state, self.last = state, index

    @property
    def wants_base(self) -> bool:
        """Has the log grown so long that a base should take its place?"""
        return self._log_bytes > self._log_bytes_max

    def extend(self, entries: tuple[bytes, ...]) -> None:
        """Take up the entries after `last`, once they are durable. Raises DiskFault."""
        self.write_entries(entries)
        self.take_up(entries)
        if self.wants_base:
            self.write_base(self.last, encode_state(self.state.snapshot()))

    def write_entries(self, entries: tuple[bytes, ...]) -> None:
        """Make the entries after `last` durable. Raises DiskFault."""
        for index, entry in enumerate(entries, start=self.last + 1):
            record = _RECORD.pack(len(entry), index, _checksum(index, entry)) + entry
            self._disk.append(_LOG, record)
            self._log_bytes += len(record)
        self._disk.sync(_LOG)

    def take_up(self, entries: tuple[bytes, ...]) -> None:
        """Apply entries that are durable."""
        for entry in entries:
            self._take_up(entry)
        self.state.drain_changes()

    def _take_up(self, entry: bytes) -> None:
        self.last += 1
        if entry:  # Else one of the log's own.
            self.state.apply(entry, self.last, 0)

    def first_state(self, number: int) -> bytes | None:
        """The state that epoch `number` begins with, if the seal before it is here."""
        return encode_state(self.state.sealed_snapshot()) if self.precedes(number) else None

    def precedes(self, number: int) -> bool:
        """Does the log end with the seal before epoch `number`?"""
        return self.state.sealed is not None and self.state.sealed.number == number


def _checksum(index: int, entry: bytes) -> int:
    return zlib.crc32(entry, zlib.crc32(_INDEX.pack(index)))
