"""The journal: term, vote and entries, appended, checksummed and proven durable.

File layout: a header (magic, format, nonce, swarm and node it belongs to, checksum), then
records `length, CRC-32, payload`. A payload is an entry, a term with its vote, a truncation,
or a *mark*.

What a crash may do decides the rules:
- Records written since the last sync may be lost or torn. Nobody was told about them, so a
  bad tail is dropped.
- What was synced was promised. After each sync a mark goes into the buffer and reaches the
  disk with the next group; it names its own position and the file's nonce, so no client's
  bytes can imitate it. If a valid mark lies behind a bad record, the record was durable once
  and the disk has lost it: that is fatal and named, never repaired by guessing.
- A sync that failed may have dropped the pages it failed on, and a second one may then
  report success. So after a failure the whole journal is written to a new file.
- What is read at the start may be in the page cache only, when the process was killed
  between write and sync. So the journal is written anew before anything in it counts.

A journal of another node or swarm is refused: whoever went on with it would vote as another.

The file is only ever replaced as a whole (written aside, synced, renamed) or appended to.
The commit index is not kept: in Raft it is volatile (figure 2 of the paper).

In memory the entries before the latest are held squeezed. They are kept for voters that are
behind, which seldom ask, and would be the largest part of what a busy voter takes.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Final, NamedTuple

from swarmd.base.disk import Disk
from swarmd.base.errors import CorruptFile, DiskFault
from swarmd.base.ids import short
from swarmd.base.limits import ENTRY_BYTES_MAX, KIB
from swarmd.base.rng import Rng
from swarmd.state.raft.guards import ALL_GUARDS, Guard

Entry = tuple[bytes, int, int]  # command, index, term: the library's order.


class Squeezed(NamedTuple):
    """An entry as it is held once it is old, in the order of `Entry`."""

    packed: bytes
    position: int
    term: int
    command_bytes: int


_Held = Entry | Squeezed

JOURNAL_FILE: Final = "journal"
_FORMAT: Final = 2
_MAGIC: Final = b"SWRJ"
_HEADER: Final = struct.Struct(">4sI8s32s32sI")
# Format 1 did not say whose it is; it is read, and written anew as format 2.
_HEADER_1: Final = struct.Struct(">4sI8sI")
_RECORD: Final = struct.Struct(">II")
_ENTRY: Final = struct.Struct(">cQQ")
_NUMBER: Final = struct.Struct(">cQ")
_MARK: Final = struct.Struct(">c8sQ")
_PAYLOAD_BYTES_MAX: Final = ENTRY_BYTES_MAX + 1_024
_LIGHT_BYTES_MAX: Final = 256 * KIB
# So many are held as they came: those that are still to be sent, proven durable and applied.
PLAIN_MAX: Final = 32
# What is smaller is hardly worth a call; what is larger would hold up the loop, at 12 us a KiB.
# Level 1 takes a third of the time of the default.
_SQUEEZE_BYTES_MIN: Final = KIB
SQUEEZE_BYTES_MAX: Final = 64 * KIB
_SQUEEZE_LEVEL: Final = 1
# Framing of one entry, for the estimate of the journal's size.
_ENTRY_OVERHEAD_BYTES: Final = _RECORD.size + _ENTRY.size


class Owner(NamedTuple):
    """Whose a journal is: ids of 32 bytes. Empty ones, in tests, belong to anybody."""

    swarm: bytes = b""
    node: bytes = b""


ANYBODY: Final = Owner()


def _record(payload: bytes) -> bytes:
    return _RECORD.pack(len(payload), zlib.crc32(payload)) + payload


def _payload_at(raw: bytes, offset: int) -> bytes | None:
    """The payload of the record at `offset`, or None where there is no whole, sound one."""
    if offset + _RECORD.size > len(raw):
        return None
    length, checksum = _RECORD.unpack_from(raw, offset)
    start = offset + _RECORD.size
    if not 0 < length <= _PAYLOAD_BYTES_MAX or start + length > len(raw):
        return None
    payload = raw[start : start + length]
    return payload if zlib.crc32(payload) == checksum else None


def _opened(held: _Held) -> Entry:
    if isinstance(held, Squeezed):
        return zlib.decompress(held.packed), held.position, held.term
    return held


def _bytes_of(held: _Held) -> int:
    """Bytes of the entry, framing included, however it is held."""
    command_bytes = held.command_bytes if isinstance(held, Squeezed) else len(held[0])
    return command_bytes + _ENTRY_OVERHEAD_BYTES


class Journal:
    """One voter's log and its term and vote, in the shape that the library asks of a journal.

    Methods in the library's spelling are called by it. Nothing is durable before `sync`.
    """

    def __init__(
        self,
        disk: Disk,
        rng: Rng,
        guards: frozenset[str] = ALL_GUARDS,
        name: str = JOURNAL_FILE,
        owner: Owner = ANYBODY,
    ) -> None:
        """Open or create.

        Raises:
            CorruptFile: what was once durable is damaged, or is another node's or swarm's;
                names the file and the byte, or whose it is.
            DiskFault: the journal could not be written.
        """
        self._disk = disk
        self._name = name
        self._guards = guards
        self._owner = owner
        self._entries: list[_Held] = []
        self._term = 0
        self._voted: str | None = None
        self._saved_commit = 0
        self._nonce = rng.getrandbits(64).to_bytes(8, "big")
        self._position = self._synced_at = 0
        self._bytes = 0
        self.synced_index = 0
        self.synced_term = 0
        self.dirty = True
        self._rewrite_due = True
        raw = disk.read(name)
        self.existed = raw is not None
        if raw is not None:
            self._load(raw)
        self.sync()

    # ---- what the library calls --------------------------------------------------------

    def add(self, command: bytes, index: int, term: int) -> None:
        self._entries.append((command, index, term))
        self._bytes += len(command) + _ENTRY_OVERHEAD_BYTES
        self._write(_ENTRY.pack(b"e", index, term) + command)
        self._squeeze(len(self._entries) - 1 - PLAIN_MAX)

    def deleteEntriesFrom(self, offset: int) -> None:
        """Truncate: entry number `offset` and all behind it go."""
        if offset >= len(self._entries):
            return
        index = self._entries[offset][1]
        self._bytes -= sum(map(_bytes_of, self._entries[offset:]))
        del self._entries[offset:]
        self.synced_index = min(self.synced_index, index - 1)
        self._write(_NUMBER.pack(b"d", index))

    def setCurrentTerm(self, term: int, voted: str | None) -> None:
        self._term, self._voted = term, voted
        self._write(_NUMBER.pack(b"t", term) + (voted or "").encode())

    def getCurrentTerm(self) -> int:
        return self._term

    def getVotedForNodeId(self) -> str | None:
        return self._voted

    def setRaftCommitIndex(self, index: int) -> None:
        if Guard.H6_COMMIT_VOLATILE not in self._guards:
            self._write(_NUMBER.pack(b"c", index))

    def getRaftCommitIndex(self) -> int:
        """Where a restart begins: nothing but the log's first entry is known to be committed."""
        return max(self._entries[0][1] if self._entries else 1, self._saved_commit)

    def __getitem__(self, offset: int | slice) -> Entry | list[Entry]:
        if isinstance(offset, slice):
            return [_opened(held) for held in self._entries[offset]]
        return _opened(self._entries[offset])

    def __len__(self) -> int:
        return len(self._entries)

    def _destroy(self) -> None:
        """Nothing to close: the disk is the caller's."""

    # ---- what the consensus above calls ------------------------------------------------

    @property
    def first_index(self) -> int:
        """Index of the first entry held, which is committed and serves as a foothold."""
        return self._entries[0][1]

    @property
    def last_index(self) -> int:
        return self._entries[-1][1]

    @property
    def last_term(self) -> int:
        return self._entries[-1][2]

    @property
    def file_bytes(self) -> int:
        """Bytes of the file, what was not synced yet included."""
        return self._position

    @property
    def is_light(self) -> bool:
        """Are only a few records to be made durable?"""
        return not self._rewrite_due and self._position - self._synced_at <= _LIGHT_BYTES_MAX

    @property
    def entry_bytes(self) -> int:
        """Bytes of the entries held, framing included."""
        return self._bytes

    def entry(self, index: int) -> Entry | None:
        """The entry at `index`, or None where the journal holds none."""
        offset = index - self._entries[0][1]
        return _opened(self._entries[offset]) if 0 <= offset < len(self._entries) else None

    def term_at(self, index: int) -> int | None:
        offset = index - self._entries[0][1]
        return self._entries[offset][2] if 0 <= offset < len(self._entries) else None

    def between(self, first: int, bytes_max: int) -> list[Entry]:
        """Entries from `first` on, at least one if there is one, up to `bytes_max` bytes."""
        start = first - self._entries[0][1]
        assert start >= 0, first
        total = 0
        stop = start
        for stop in range(start, len(self._entries)):
            total += _bytes_of(self._entries[stop])
            if total > bytes_max and stop > start:
                break
        else:
            stop = len(self._entries)
        return [_opened(held) for held in self._entries[start:stop]]

    def truncate(self, index: int) -> None:
        """Drop the entry at `index` and all behind it."""
        self.deleteEntriesFrom(index - self._entries[0][1])

    def compact(self, index: int) -> None:
        """Let go of the entries before `index`, which stays as the foothold."""
        offset = index - self._entries[0][1]
        if offset <= 0:
            return
        assert offset < len(self._entries), index
        # The library asks for the foothold all the time, so it is held as it came.
        self._replace_entries([_opened(self._entries[offset]), *self._entries[offset + 1 :]])

    def reset(self, index: int, term: int, foothold: bytes) -> None:
        """Start anew behind a snapshot: one committed foothold and nothing else."""
        self._replace_entries([(foothold, index, term)])
        self.synced_index = 0

    def sync(self) -> None:
        """Make everything written so far durable. May run in a worker thread.

        Raises:
            DiskFault: nothing written since the last good sync counts. Call again to retry;
                the retry writes the whole journal to a new file.
        """
        if not self.dirty:
            return
        try:
            if self._rewrite_due:
                self._rewrite()
            elif Guard.W2_PERSIST_FIRST in self._guards:
                self._disk.sync(self._name)
                self._append(self._mark(self._position))
        except DiskFault:
            if Guard.W2_REWRITE_AFTER_FAULT in self._guards:
                self._rewrite_due = True
            raise
        self.dirty = False
        self._synced_at = self._position
        self.synced_index = self._entries[-1][1] if self._entries else 0
        self.synced_term = self._term

    # ---- bytes -------------------------------------------------------------------------

    def _write(self, payload: bytes) -> None:
        self.dirty = True
        if not self._rewrite_due:
            self._append(_record(payload))

    def _append(self, raw: bytes) -> None:
        self._disk.append(self._name, raw)
        self._position += len(raw)

    def _mark(self, position: int) -> bytes:
        return _record(_MARK.pack(b"m", self._nonce, position))

    def _squeeze(self, offset: int) -> None:
        """Hold the entry there in less memory, unless it is the foothold; 0.8 ms at most."""
        if offset <= 0:
            return
        held = self._entries[offset]
        if isinstance(held, Squeezed):
            return
        if _SQUEEZE_BYTES_MIN <= len(held[0]) <= SQUEEZE_BYTES_MAX:
            packed = zlib.compress(held[0], _SQUEEZE_LEVEL)
            if len(packed) < len(held[0]):
                self._entries[offset] = Squeezed(packed, held[1], held[2], len(held[0]))

    def _replace_entries(self, entries: list[_Held]) -> None:
        self._entries = entries
        self._bytes = sum(map(_bytes_of, entries))
        self._rewrite_due = self.dirty = True

    def _rewrite(self) -> None:
        swarm, node = self._owner
        head = _HEADER.pack(_MAGIC, _FORMAT, self._nonce, swarm, node, 0)[:-4]
        # One buffer, for what the process takes while it holds the log three times it keeps.
        made = io.BytesIO()
        made.write(head + struct.pack(">I", zlib.crc32(head)))
        made.write(_record(_NUMBER.pack(b"t", self._term) + (self._voted or "").encode()))
        for command, index, term in map(_opened, self._entries):
            made.write(_record(_ENTRY.pack(b"e", index, term) + command))
        made.write(self._mark(made.tell()))
        content = made.getvalue()
        if Guard.H9_REWRITE_ASIDE in self._guards:
            self._disk.replace(self._name, content)
        else:
            self._disk.remove(self._name)
            self._disk.append(self._name, content)
            self._disk.sync(self._name)
        self._position = len(content)
        self._rewrite_due = False

    def _load(self, raw: bytes) -> None:
        offset = self._check_header(raw)
        while offset < len(raw):
            payload = _payload_at(raw, offset)
            if payload is None or not self._replay(payload):
                marked = self._marked_behind(raw, offset)
                if marked is not None and Guard.H12_MARKS in self._guards:
                    raise CorruptFile(
                        f"{self._name} is damaged at byte {offset}, within the first {marked} bytes"
                        " that were durable; restore this voter or replace it"
                    )
                return  # A torn tail that nobody was told about.
            offset += _RECORD.size + len(payload)

    def _check_header(self, raw: bytes) -> int:
        """The bytes it takes."""
        if len(raw) < _HEADER_1.size or raw[:4] != _MAGIC:
            raise CorruptFile(f"{self._name} is not a journal, or its header is damaged")
        found_format = int.from_bytes(raw[4:8], "big")
        layout = _HEADER_1 if found_format == 1 else _HEADER
        if len(raw) < layout.size:
            raise CorruptFile(f"{self._name} is damaged at byte 0: its header is cut short")
        _, _, self._nonce, *owner, checksum = layout.unpack_from(raw)
        if zlib.crc32(raw[: layout.size - 4]) != checksum:
            raise CorruptFile(f"{self._name} is damaged at byte 0: its header's checksum is wrong")
        if found_format not in (1, _FORMAT):
            raise CorruptFile(f"{self._name} has format {found_format}; this reads {_FORMAT}")
        if owner and Guard.W3_OWN_JOURNAL in self._guards:
            self._check_owner(Owner(*owner))
        return layout.size

    def _check_owner(self, found: Owner) -> None:
        for what, theirs, ours in zip(("swarm", "node"), found, self._owner, strict=True):
            if ours and any(theirs) and theirs != ours:
                raise CorruptFile(
                    f"{self._name} is the journal of another {what}, {short(theirs)}; this is"
                    f" {what} {short(ours)}. Give this node its own data folder"
                )

    def _replay(self, payload: bytes) -> bool:
        """Take one sound record; False if it cannot follow what came before."""
        kind = payload[:1]
        if kind == b"e":
            _, index, term = _ENTRY.unpack_from(payload)
            if self._entries and index != self._entries[-1][1] + 1:
                return False
            command = payload[_ENTRY.size :]
            self._entries.append((command, index, term))
            self._bytes += len(command) + _ENTRY_OVERHEAD_BYTES
        elif kind == b"t":
            self._term = _NUMBER.unpack_from(payload)[1]
            self._voted = payload[_NUMBER.size :].decode() or None
        elif kind == b"d":
            first = self._entries[0][1] if self._entries else 0
            offset = _NUMBER.unpack_from(payload)[1] - first
            if not self._entries or offset < 1:
                return False
            self._bytes -= sum(map(_bytes_of, self._entries[offset:]))
            del self._entries[offset:]
        elif kind == b"c":
            self._saved_commit = _NUMBER.unpack_from(payload)[1]
        return kind in (b"e", b"t", b"d", b"c", b"m")

    def _marked_behind(self, raw: bytes, offset: int) -> int | None:
        """The last mark's position, if a valid mark lies behind `offset`."""
        needle = b"m" + self._nonce
        at = raw.rfind(needle, offset)
        while at >= 0:
            start = at - _RECORD.size
            if start >= offset and _payload_at(raw, start) == _MARK.pack(b"m", self._nonce, start):
                return start
            at = raw.rfind(needle, offset, at)
        return None
