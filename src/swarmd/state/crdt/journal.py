"""What a replica of the eventual store keeps on its disk.

    shard-...     a shard as it was when it was last written whole, in a checked file
    log-0001      what was applied since, in order: length, CRC-32, payload

A payload is a batch, a whole shard that was taken over, or the name of one that was dropped. Every
batch is applied once however often it is replayed, so a shard's file may be newer than the logs
that are replayed onto it, and files are written one by one while writing goes on.

- What was appended since the last sync may be lost or torn: nobody was told of it.
- A log is never gone on with after a restart or a failed sync: the next one begins, with what was
  not synced.
- What is damaged is named and put aside. Of a log what stands before the damage counts, and it is
  cut off there; of a shard nothing does. What is missing comes from the other members.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Final

from swarmd.base.disk import Disk, open_body, seal_body
from swarmd.base.errors import CorruptFile, DiskFault, MalformedMessage
from swarmd.base.ids import digest, to_text
from swarmd.base.limits import CHECKED_FILE_BYTES_MAX, MIB
from swarmd.observe.log import get_logger
from swarmd.state.crdt.messages import Batch, Shard, decode_batch
from swarmd.state.crdt.shard import LOG_BYTES_MAX, ShardState
from swarmd.state.crdt.stored import decode_name, decode_shard, encode_name, encode_shard

# A log that is larger has its shards written whole.
SEGMENT_BYTES_MAX: Final = 16 * MIB
_LOG: Final = "log-"
_SHARD: Final = "shard-"
_ASIDE: Final = "damaged-"
_KIND: Final = "crdt"
_FORMAT: Final = 2
_RECORD: Final = struct.Struct(">II")
_BATCH, _WHOLE, _DROPPED = b"b", b"w", b"d"

# Records that are replayed in one turn.
_REPLAYED: Final = 100

Loading = Generator[Callable[[], bytes | None], bytes | None, list[ShardState]]

_log = get_logger("crdt")


class ShardJournal:
    """Implements `machine.Journal`. `load` must be called once, before anything is appended.

    `damaged`: names of what was moved aside, or of what a copy was put aside.
    """

    def __init__(
        self,
        disk: Disk,
        *,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        shard_type: type[ShardState] = ShardState,
    ) -> None:
        self._disk = disk
        self._shard_type = shard_type
        self._segment_bytes_max = segment_bytes_max
        self._number = 0
        self._bytes = 0
        self._unsynced: list[bytes] = []
        # Shards that logs hold something of, and the logs.
        self._touched: set[Shard] = set()
        self._old: list[str] = []
        self._failed = False
        self._holds_synced = False
        self.damaged: list[str] = []

    # ---- while it runs ---------------------------------------------------------------------

    def append(self, batch: Batch) -> None:
        """See `machine.Journal`."""
        self._touched.add(batch.shard)
        self._write(_BATCH + batch.raw)

    def replace(self, shard: ShardState) -> None:
        """See `machine.Journal`."""
        self._touched.add(shard.name)
        self._write(_WHOLE + encode_shard(shard))

    def drop(self, name: Shard) -> None:
        """See `machine.Journal`."""
        self._touched.add(name)
        self._write(_DROPPED + encode_name(name))

    def sync(self) -> None:
        """Make durable what was appended.

        Raises:
            DiskFault: it may not be. Call again.
        """
        if not self._unsynced:
            return
        if self._failed:
            # A file whose sync failed is not gone on with; what was durable in it stays there.
            if self._holds_synced:
                self._begin()
            self._disk.replace(self._name, b"".join(self._unsynced))
            self._bytes = sum(map(len, self._unsynced))
        else:
            self._failed = True
            self._disk.sync(self._name)
        self._failed = False
        self._holds_synced = True
        self._unsynced.clear()

    @property
    def is_long(self) -> bool:
        """The log should be followed by another, and its shards be written whole."""
        return self._bytes > self._segment_bytes_max

    def turn(self) -> list[Shard]:
        """Begin another log. Returns the shards to `keep` before `forget` drops the older ones."""
        assert not self._unsynced, "sync first"
        touched, self._touched = sorted(self._touched), set()
        self._begin()
        return touched

    def touch(self, names: Iterable[Shard]) -> None:
        """Shards that could not be kept: they are named by the next `turn`, too."""
        self._touched.update(names)

    def keep(self, name: Shard, body: bytes) -> None:
        """Write a shard whole, as `encode_shard` gives it. Raises DiskFault."""
        self._disk.replace(_file_of(name), seal_body(_KIND, _FORMAT, body))

    def remove(self, name: Shard) -> None:
        """Delete the file of a shard that is here no more. Raises DiskFault."""
        if _file_of(name) in self._disk.names():
            self._disk.remove(_file_of(name))

    def forget(self) -> None:
        """Drop the logs of before the last `turn`, whose shards were all kept since.

        Raises DiskFault; what is left is dropped the next time.
        """
        while self._old:
            self._disk.remove(self._old[0])
            self._old.pop(0)

    def _begin(self) -> None:
        if self._number:
            self._old.append(self._name)
        self._number += 1
        self._bytes = 0
        self._holds_synced = False

    @property
    def _name(self) -> str:
        return f"{_LOG}{self._number:08}"

    def _write(self, payload: bytes) -> None:
        record = _RECORD.pack(len(payload), zlib.crc32(payload)) + payload
        self._unsynced.append(record)
        self._bytes += len(record)
        if not self._failed:
            try:
                self._disk.append(self._name, record)
            except DiskFault:
                self._failed = True  # `sync` tells, and begins another log.

    # ---- at the start ----------------------------------------------------------------------

    def load(self, log_bytes_max: int = LOG_BYTES_MAX) -> list[ShardState]:
        """What is there, whole and sound.

        Raises:
            DiskFault: the disk cannot be read or written.
        """
        loading, answer = self.loading(log_bytes_max), None
        while True:
            try:
                wanted = loading.send(answer)
            except StopIteration as end:
                shards: list[ShardState] = end.value
                return shards
            answer = wanted()

    def loading(self, log_bytes_max: int = LOG_BYTES_MAX) -> Loading:
        """The same by turns, between which others have theirs: some milliseconds each.

        What it yields waits for the disk, may be called in a thread, and is sent what it returned.
        """
        names = self._disk.names()
        shards: dict[Shard, ShardState] = {}
        for name in names:
            if name.startswith(_SHARD):
                body = yield partial(self._body_of, name)
                found = None if body is None else self._load_shard(name, body, log_bytes_max)
                if found is not None:
                    shards[found.name] = found
        logs = [name for name in names if name.startswith(_LOG)]
        for name in logs:
            raw = yield partial(self._disk.read, name)
            records = self._records(name, raw or b"", last=name == logs[-1])
            for count, payload in enumerate(records):
                self._replay(shards, payload, log_bytes_max)
                if count % _REPLAYED == 0:
                    yield _nothing
        self._old = logs
        self._number = max((int(name.removeprefix(_LOG)) for name in logs), default=0) + 1
        self._touched |= shards.keys()
        return list(shards.values())

    def _body_of(self, name: str) -> bytes | None:
        """What a shard's file holds; None if that is damaged, and was moved aside."""
        raw = self._disk.read(name)
        assert raw is not None
        try:
            return open_body(_KIND, _FORMAT, raw, source=name)
        except CorruptFile as error:
            self._put_aside(name, error)
            return None

    def _load_shard(self, name: str, body: bytes, log_bytes_max: int) -> ShardState | None:
        try:
            shard = decode_shard(body, log_bytes_max, self._shard_type)
            if _file_of(shard.name) != name:
                raise CorruptFile(f"{name} holds another shard")
        except CorruptFile as error:
            self._put_aside(name, error)
            return None
        return shard

    def _put_aside(self, name: str, error: CorruptFile) -> None:
        self._report(name, error.message)
        self._disk.rename(name, _ASIDE + name)

    def _records(self, name: str, raw: bytes, *, last: bool) -> Iterator[bytes]:
        """The sound payloads of a log up to the first that is none.

        Behind it there is nothing that was acknowledged in the last log of a process that was
        killed; elsewhere it is damage.
        """
        at = 0
        while (payload := _payload_at(raw, at)) is not None:
            yield payload
            at += _RECORD.size + len(payload)
        if at == len(raw):
            return
        if not last or _is_followed(raw, at):
            self._report(name, f"{name} is damaged at byte {at} of {len(raw)}")
            self._disk.replace(_ASIDE + name, raw)
        # From now on it ends where it is sound: what stands before that is nowhere else yet.
        self._disk.replace(name, raw[:at])

    def _replay(self, shards: dict[Shard, ShardState], payload: bytes, log_bytes_max: int) -> None:
        kind, body = payload[:1], payload[1:]
        try:
            if kind == _WHOLE:
                whole = decode_shard(body, log_bytes_max, self._shard_type)
                held = shards.get(whole.name)
                if held is None:
                    shards[whole.name] = whole
                else:
                    held.join(whole.cells, list(whole.log()))
                return
            if kind == _DROPPED:
                name = decode_name(body)
                shards.pop(name, None)
                self._touched.add(name)  # Its file may be there yet.
                return
            batch = decode_batch(body)
        except (CorruptFile, MalformedMessage) as error:
            _log.error("a record of the eventual store is unreadable", reason=error.message)
            return
        if batch.shard not in shards:
            shards[batch.shard] = self._shard_type(batch.shard, log_bytes_max)
        shard = shards[batch.shard]
        # A gap is what was in a damaged file: the others bring it, and this with it.
        if not shard.knows(batch) and not shard.missing(batch):
            shard.take(batch)

    def _report(self, name: str, why: str) -> None:
        _log.error("a file of the eventual store is damaged: it is fetched from others", file=why)
        self.damaged.append(name)


def _nothing() -> None:
    """A turn in which the disk is not waited for."""


def _payload_at(raw: bytes, at: int) -> bytes | None:
    """The payload of the record at a place; None where there is no whole, sound one."""
    if at + _RECORD.size > len(raw):
        return None
    length, checksum = _RECORD.unpack_from(raw, at)
    payload = raw[at + _RECORD.size : at + _RECORD.size + length]
    whole = 0 < length <= CHECKED_FILE_BYTES_MAX and len(payload) == length
    return payload if whole and zlib.crc32(payload) == checksum else None


def _is_followed(raw: bytes, at: int) -> bool:
    """Whether a sound record stands behind one that is not: a kill leaves no such thing."""
    if at + _RECORD.size > len(raw):
        return False
    length, _ = _RECORD.unpack_from(raw, at)
    behind = at + _RECORD.size + length
    return behind < len(raw) and _payload_at(raw, behind) is not None


def _file_of(shard: Shard) -> str:
    bucket, number = shard
    return f"{_SHARD}{to_text(digest(bucket.encode())[:10])}-{number:02}"
