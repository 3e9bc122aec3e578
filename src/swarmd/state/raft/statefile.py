"""The state of the strong store as frames: made in slices while it goes on changing, and read.

`Frozen` gives the state as it was when it was made. Of the keys that change before their turn it
keeps the entry they had (copy on write); everything else is either immutable or small enough to
be copied at once. `Restoring` takes frames one at a time and changes nothing until it is told to
finish; an entry that the state already holds is shared, not held twice.

Equal states give equal frames, so the digest of a sealed state is the same on every voter.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from heapq import merge
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta
from sortedcontainers import SortedList

from swarmd.base.errors import CorruptFile, SwarmError
from swarmd.base.ids import ID_BYTES, NodeId
from swarmd.base.limits import KIB, LEASES_MAX, SESSIONS_MAX
from swarmd.identity.authority import RECORDS_MAX, AuthorityState
from swarmd.identity.voter import VOTERS_MAX, Voter
from swarmd.state.raft.digests import bucket_of, checksum_of, sums_of_nothing
from swarmd.state.raft.frames import FrameReader, pack, unpack
from swarmd.state.raft.history import History
from swarmd.state.raft.leases import LeaseDump, Leases
from swarmd.state.raft.messages import Change, Entry
from swarmd.state.raft.sessions import Results, Session, SessionDump

if TYPE_CHECKING:
    from swarmd.state.raft.statemachine import StateMachine

STATE_KIND: Final = "state"
STATE_FORMAT: Final = 8
# A frame ends with the item, or the run of changes, that reaches one of these; making or reading
# it takes about 1 ms.
FRAME_BYTES: Final = 64 * KIB
FRAME_ITEMS: Final = 512
# Every record costs the check of a signature.
_RECORDS_PER_FRAME: Final = 8
_RESULTS_PER_FRAME: Final = 1_000


class Sealed(msgspec.Struct, frozen=True, array_like=True):
    """The epoch's end: the number and voters of the next, and the log index of the seal."""

    number: int
    voters: tuple[Voter, ...]
    index: int


class _Body(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What one frame holds."""


_VoterId = Annotated[bytes, Meta(min_length=ID_BYTES, max_length=ID_BYTES)]


class _Head(_Body, tag=0, frozen=True):
    """`voters` are those of the epoch, sorted."""

    epoch: int
    voter_ids: Annotated[tuple[_VoterId, ...], Meta(min_length=1, max_length=VOTERS_MAX)]
    revision: int
    time_ms: int
    office: tuple[bytes, int]
    sealed: Sealed | None
    compacted: int

    @property
    def voters(self) -> tuple[NodeId, ...]:
        return tuple(map(NodeId, self.voter_ids))


class _Sessions(_Body, tag=1, frozen=True):
    """Sessions in order of use; one that goes on from the frame before has its name again."""

    sessions: list[SessionDump]


class _Records(_Body, tag=2, frozen=True):
    records: list[bytes]


class _LeaseFrame(_Body, tag=3, frozen=True):
    leases: list[LeaseDump]


class _HistoryFrame(_Body, tag=4, frozen=True):
    changes: list[Change]


class _Entries(_Body, tag=5, frozen=True):
    """Entries in order of keys, through all frames."""

    entries: list[Entry]


class _Total(_Body, tag=6, frozen=True):
    """The last frame."""

    entries: int


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final[msgspec.msgpack.Decoder[Any]] = msgspec.msgpack.Decoder(
    _Head | _Sessions | _Records | _LeaseFrame | _HistoryFrame | _Entries | _Total
)


class Frozen(Iterator[bytes]):
    """The frames of `state` as it is now. Whoever changes an entry calls `note` first."""

    def __init__(
        self,
        state: StateMachine,
        epoch: int,
        voters: tuple[NodeId, ...],
        sealed: Sealed | None,
    ) -> None:
        self._state = state
        self._head = _Head(
            epoch,
            voters,
            state.revision,
            state.time_ms,
            state.office,
            sealed,
            state.history.compacted,
        )
        self._sessions = [
            (name, s.used_ms, s.low, s.results.copy()) for name, s in state.sessions.items()
        ]
        self._records = state.authority.dump()
        self._leases = state.leases.dump()
        self._history = state.history.runs()
        self._count = len(state)
        self._cursor = b""  # Keys up to here have been given.
        self._saved: dict[bytes, Entry | None] = {}
        # Of those, what the state's keys do not name any more, or named anew since.
        self._gone: SortedList[bytes] = SortedList()
        self._frames: Generator[bytes, None, None] = self._make()
        state.frozen.append(self)

    def __next__(self) -> bytes:
        return next(self._frames)

    def note(self, key: bytes, before: Entry | None, *, goes: bool = False) -> None:
        """`key` is about to change, or `goes`; `before` is its entry."""
        if key > self._cursor:
            saved = self._saved.setdefault(key, before)
            if goes and saved is not None and key not in self._gone:
                self._gone.add(key)

    def close(self) -> None:
        """Keep nothing more."""
        self._frames.close()
        if self in self._state.frozen:
            self._state.frozen.remove(self)

    def _make(self) -> Generator[bytes, None, None]:
        yield _ENCODER.encode(self._head)
        yield from self._make_sessions()
        for at in range(0, len(self._records), _RECORDS_PER_FRAME):
            yield _ENCODER.encode(_Records(self._records[at : at + _RECORDS_PER_FRAME]))
        for at in range(0, len(self._leases), FRAME_ITEMS):
            yield _ENCODER.encode(_LeaseFrame(self._leases[at : at + FRAME_ITEMS]))
        yield from self._make_history()
        yield from self._make_entries()
        if self in self._state.frozen:
            self._state.frozen.remove(self)
        yield _ENCODER.encode(_Total(self._count))

    def _make_sessions(self) -> Iterator[bytes]:
        batch: list[SessionDump] = []
        held = 0
        for name, used_ms, low, results in self._sessions:
            part: list[tuple[int, Results]] = []
            for item in results.items():
                part.append(item)
                held += len(item[1])
                if held >= _RESULTS_PER_FRAME:
                    batch.append(SessionDump(name, used_ms, low, part))
                    yield _ENCODER.encode(_Sessions(batch))
                    batch, part, held = [], [], 0
            batch.append(SessionDump(name, used_ms, low, part))
            held += 1
        if batch:
            yield _ENCODER.encode(_Sessions(batch))
        self._sessions.clear()

    def _make_history(self) -> Iterator[bytes]:
        batch: list[Change] = []
        size = 0
        for run in self._history:
            # A run of large values is cut; of most only the sums need be known.
            whole = run.size < FRAME_BYTES and len(run.changes) < FRAME_ITEMS
            for part in (run,) if whole else run.cut():
                batch += part.changes
                size += part.size
                if size >= FRAME_BYTES or len(batch) >= FRAME_ITEMS:
                    yield _ENCODER.encode(_HistoryFrame(batch))
                    batch, size = [], 0
        if batch:
            yield _ENCODER.encode(_HistoryFrame(batch))
        self._history.clear()

    def _make_entries(self) -> Iterator[bytes]:
        while True:
            batch: list[Entry] = []
            size = seen = 0
            saved, get = self._saved, self._state.lookup
            for key in self._next_keys():
                entry = saved.pop(key) if key in saved else get(key)
                self._cursor = key
                seen += 1
                if entry is not None:  # Else it was made since.
                    batch.append(entry)
                    size += len(key) + len(entry.value)
                if size >= FRAME_BYTES or seen >= FRAME_ITEMS:
                    break
            if not seen:
                return
            yield _ENCODER.encode(_Entries(batch))

    def _next_keys(self) -> Iterator[bytes]:
        """The next keys in order that the state has, or had."""
        live: Iterator[bytes] = self._state.keys.irange(self._cursor, None, (False, True))
        if not self._gone:
            return live
        gone = self._gone.irange(self._cursor, None, (False, True))
        return (key for key, _ in groupby(merge(live, gone)))


class Restoring:
    """A state in the making, for `state` to become."""

    def __init__(self, state: StateMachine) -> None:
        self._state = state
        self._head: _Head | None = None
        self._total: int | None = None
        self._last_key = b""
        self._leases: list[LeaseDump] = []
        self._changes: list[Change] = []
        self.authority = AuthorityState(state.genesis)
        self.entries: dict[bytes, Entry] = {}
        self.keys: SortedList[bytes] = SortedList()
        self.sums = sums_of_nothing()
        self.sessions: dict[bytes, Session] = {}
        self.leases = Leases()
        self.history = History()

    @property
    def head(self) -> _Head:
        assert self._head is not None
        return self._head

    def take(self, frame: bytes) -> None:
        """See `snapshot.Restoring`."""
        try:
            body = _DECODER.decode(frame)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError) as error:
            raise CorruptFile(f"not a state of the strong store: {error}") from error
        if (self._head is None) != isinstance(body, _Head) or self._total is not None:
            raise CorruptFile("a state of the strong store whose frames are out of order")
        match body:
            case _Entries(entries):
                self._take_entries(entries)
            case _Head():
                self._head = body
            case _Sessions(sessions):
                self._take_sessions(sessions)
            case _Records(records):
                self._take_records(records)
            case _LeaseFrame(leases):
                self._leases += leases
                if len(self._leases) > LEASES_MAX:
                    raise CorruptFile("a state with more leases than are allowed")
            case _HistoryFrame(changes):
                self._take_history(changes)
            case _Total(entries):
                self._end(entries)

    def finish(self) -> None:
        """See `snapshot.Restoring`."""
        if self._total is None:
            raise CorruptFile("a state of the strong store that ends too soon")
        self._state.become(self)

    def _take_entries(self, entries: list[Entry]) -> None:
        if not self.entries:
            self.leases = Leases(self._leases)
        held, keys, leases, sums = self._state.get, self.keys, self.leases, self.sums
        last = self._last_key
        for entry in entries:
            key = entry.key
            if key <= last:
                raise CorruptFile("a state of the strong store whose keys are out of order")
            last = key
            if entry.checksum != checksum_of(entry):
                raise CorruptFile(
                    f"a state whose entry {key[:80]!r} was damaged before it was kept"
                )
            sums[bucket_of(key)] += entry.checksum
            old = held(key)
            if old == entry:
                entry, key = old, old.key
            self.entries[key] = entry
            keys.add(key)
            if entry.lease:
                if leases.get(entry.lease) is None:
                    raise CorruptFile("a state with a key of a lease that it does not hold")
                leases.attach(key, entry.lease)
        self._last_key = last

    def _take_sessions(self, sessions: list[SessionDump]) -> None:
        for stored in sessions:
            session = self.sessions.get(stored.session)
            if session is None:
                session = self.sessions[stored.session] = Session(stored.used_ms, stored.low)
            session.restore(stored.results)
        if len(self.sessions) > SESSIONS_MAX:
            raise CorruptFile("a state with more sessions than are allowed")

    def _take_history(self, changes: list[Change]) -> None:
        newest = self._changes[-1].revision if self._changes else 0
        for change in changes:
            if change.revision < newest:
                raise CorruptFile("a state of the strong store whose history is out of order")
            newest = change.revision
        self._changes += changes

    def _take_records(self, records: list[bytes]) -> None:
        if self.authority.head[0] + len(records) > RECORDS_MAX:
            raise CorruptFile("a state with more records than are allowed")
        try:
            for record in records:
                self.authority.replay(record)
        except SwarmError as error:
            raise CorruptFile(f"the stored authority log is not sound: {error}") from error

    def _end(self, entries: int) -> None:
        if entries != len(self.entries):
            raise CorruptFile(f"a state of {entries} keys with {len(self.entries)} of them")
        if not self.entries:
            self.leases = Leases(self._leases)
        self.history = History(self.head.compacted, self._changes)
        self._total = entries


def encode_state(frames: Iterable[bytes]) -> bytes:
    """All frames of a state as one stream, where it is small or has to be at one place."""
    return pack(STATE_KIND, STATE_FORMAT, frames)


def restore_state(state: StateMachine, raw: bytes) -> None:
    """Have `state` become what `encode_state` gave. Raises CorruptFile; then nothing changed."""
    restoring = state.restoring()
    for frame in unpack(STATE_KIND, STATE_FORMAT, raw, source="the state"):
        restoring.take(frame)
    restoring.finish()


def state_digest(raw: bytes) -> bytes:
    """The digest of a state as certificates name it; empty if `raw` is damaged."""
    reader = FrameReader(STATE_KIND, STATE_FORMAT, source="the state")
    try:
        reader.feed(raw)
    except CorruptFile:
        return b""
    return reader.digest or b""
