"""What every voter computes from the log: keys, revisions, sessions, the authority log, a seal.

Rules:
- Deterministic: the state is a function of the batches applied, in order. No clock, no
  chance, no iteration over sets. Store time is the highest stamp seen and never falls.
- `apply` never raises: what is wrong with an operation is its result.
- A changing operation takes the next revision; a transaction takes one for all it changes.
- An operation with (session, sequence) that was applied before answers its first result
  (Ongaro, *Consensus: Bridging Theory and Practice*, section 6.3). One below the session's
  `low`, or of a session that ended, answers `session_expired` and changes nothing.
- After a seal nothing changes any more, time included: every operation answers `moved` and
  leaves no trace, so that it can be repeated in the next epoch (Lamport, Malkhi and Zhou,
  *Reconfiguring a State Machine*, 2010). So the state that the next epoch begins with can be
  taken at any moment after the seal and is the same on every voter.
- Values, entries and results are immutable, so a copy of the dictionaries is a snapshot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from sortedcontainers import SortedList

from swarmd.base.errors import CorruptFile, SwarmError
from swarmd.base.ids import digest
from swarmd.base.limits import SESSIONS_MAX
from swarmd.identity.authority import RECORDS_MAX, AuthorityState
from swarmd.identity.entries import encode_record
from swarmd.identity.genesis import Genesis
from swarmd.state.raft.messages import (
    AuthorityEntry,
    Compare,
    Delete,
    Entry,
    Group,
    OpenSession,
    Operation,
    OpResult,
    Put,
    Seal,
    TakeOffice,
    Txn,
    Voter,
    decode_batch,
    problem_of,
)

__all__ = ["Change", "Entry", "Sealed", "StateMachine"]

SESSION_TTL_MS: Final = 600_000
SESSION_RESULTS_MAX: Final = 65_536
CHANGES_MAX: Final = 100_000
STATE_FORMAT: Final = 1

_EXPIRED: Final = "the session has ended: the outcome of this operation is unknown"
_MOVED: Final = "the epoch is sealed: ask the voters of the next one"


class Change(msgspec.Struct, frozen=True, array_like=True):
    """A key got a value (None: was deleted) at a revision."""

    revision: int
    key: bytes
    value: bytes | None


class Sealed(msgspec.Struct, frozen=True, array_like=True):
    """The epoch's end: the number and voters of the next, and the log index of the seal."""

    number: int
    voters: tuple[Voter, ...]
    index: int


class _SessionDump(msgspec.Struct, frozen=True, array_like=True):
    session: bytes
    used_ms: int
    low: int
    results: list[tuple[int, OpResult]]


class _StateDump(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    format: int
    epoch: int
    revision: int
    time_ms: int
    entries: list[Entry]
    sessions: list[_SessionDump]
    records: list[bytes]
    office: tuple[bytes, int]
    sealed: Sealed | None


class _Session:
    """One client's recent results, oldest first."""

    __slots__ = ("low", "results", "used_ms")

    def __init__(self, used_ms: int, low: int = 0) -> None:
        self.used_ms = used_ms
        self.low = low
        self.results: dict[int, OpResult] = {}

    def forget_below(self, low: int) -> None:
        if low <= self.low:
            return
        self.low = low
        results = self.results
        # Sequences enter nearly in order; one that stands behind a later one goes with it.
        while results and (oldest := next(iter(results))) < low:
            del results[oldest]

    def keep(self, sequence: int, result: OpResult) -> None:
        self.results[sequence] = result
        if len(self.results) > SESSION_RESULTS_MAX:
            oldest = min(self.results)
            del self.results[oldest]
            self.low = max(self.low, oldest + 1)


class StateMachine:
    """The replicated state. See `state.raft.machine.ReplicatedState` for who calls what."""

    def __init__(self, genesis: Genesis) -> None:
        self._genesis = genesis
        self._clear()

    def _clear(self) -> None:
        self.epoch = 1
        self.revision = 0
        self.time_ms = 0
        self.office: tuple[bytes, int] = (b"", 0)
        self.sealed: Sealed | None = None
        self.authority = AuthorityState(self._genesis)
        self._entries: dict[bytes, Entry] = {}
        self._keys: SortedList[bytes] = SortedList()
        self._sessions: dict[bytes, _Session] = {}
        self._changes: list[Change] = []
        self._changes_lost = False

    # ---- reading ---------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Entry | None:
        return self._entries.get(key)

    def range(self, prefix: bytes, after: bytes = b"", limit: int = 1_000) -> list[Entry]:
        """Up to `limit` entries whose key begins with `prefix` and is above `after`, by key."""
        found: list[Entry] = []
        if after >= prefix and after:
            keys = self._keys.irange(after, None, inclusive=(False, True))
        else:
            keys = self._keys.irange(prefix)
        for key in keys:
            if not key.startswith(prefix) or len(found) >= limit:
                break
            found.append(self._entries[key])
        return found

    def drain_changes(self) -> list[Change] | None:
        """Changes since the last call in order of revisions; None if some were lost.

        They are lost when the whole state was replaced, or when nobody drained for long.
        """
        if self._changes_lost:
            self._changes_lost = False
            self._changes = []
            return None
        changes, self._changes = self._changes, []
        return changes

    # ---- applying --------------------------------------------------------------------

    def apply(self, command: bytes, index: int, term: int) -> list[list[OpResult]]:
        """Apply one batch; one list per group, one result per operation. Never raises."""
        try:
            batch = decode_batch(command)
        except SwarmError as error:
            return [[OpResult(False, self.revision, error.code, error.message)]]
        if self.sealed is None and batch.stamp_ms > self.time_ms:
            self.time_ms = batch.stamp_ms
            self._expire_sessions()
        return [self._apply_group(group, index) for group in batch.groups]

    def _apply_group(self, group: Group, index: int) -> list[OpResult]:
        if not group.session:
            return [self._apply_operation(op, index) for op in group.ops]
        if self.sealed is not None:
            return [self._refused("moved", _MOVED)] * len(group.ops)
        session = self._sessions.pop(group.session, None)
        if session is None:
            return [self._refused("session_expired", _EXPIRED)] * len(group.ops)
        self._sessions[group.session] = session  # The latest used is last.
        session.used_ms = self.time_ms
        session.forget_below(group.low)
        results = []
        sequence = group.first
        for op in group.ops:
            result = session.results.get(sequence)
            if result is None:
                if sequence < session.low:
                    result = self._refused("session_expired", _EXPIRED)
                else:
                    result = self._apply_operation(op, index)
                    if result.code != "moved":
                        session.keep(sequence, result)
            results.append(result)
            sequence += 1
        return results

    def _apply_operation(self, op: Operation, index: int) -> OpResult:
        if self.sealed is not None:
            return self._refused("moved", _MOVED)
        problem = problem_of(op)
        if problem is not None:
            return self._refused(problem.code, problem.message)
        if isinstance(op, Put):
            return self._apply_put(op)
        if isinstance(op, Txn):
            return self._apply_txn(op)
        if isinstance(op, Delete):
            return self._apply_delete(op)
        if isinstance(op, AuthorityEntry):
            return self._apply_authority(op)
        if isinstance(op, OpenSession):
            return self._apply_open(op)
        if isinstance(op, TakeOffice):
            self.revision += 1
            self.office = (op.node, self.revision)
            return OpResult(True, self.revision)
        return self._apply_seal(op, index)

    def _refused(self, code: str, message: str) -> OpResult:
        return OpResult(False, self.revision, code, message)

    def _apply_put(self, op: Put) -> OpResult:
        if op.expect is not None and not self._at(op.key, op.expect):
            return self._conflict(op.key, op.expect)
        self.revision += 1
        self._set(op.key, op.value)
        return OpResult(True, self.revision)

    def _apply_delete(self, op: Delete) -> OpResult:
        if op.expect is not None and not self._at(op.key, op.expect):
            return self._conflict(op.key, op.expect)
        if op.key in self._entries:
            self.revision += 1
            self._unset(op.key)
        return OpResult(True, self.revision)

    def _apply_txn(self, op: Txn) -> OpResult:
        failed = self._first_failed(op.compares)
        branch = op.then if failed is None else op.otherwise
        for inner in branch:
            if inner.expect is not None and not self._at(inner.key, inner.expect):
                return self._conflict(inner.key, inner.expect)
        before = self.revision
        for inner in branch:
            if isinstance(inner, Put):
                self.revision = before + 1
                self._set(inner.key, inner.value)
            elif inner.key in self._entries:
                self.revision = before + 1
                self._unset(inner.key)
        if failed is None:
            return OpResult(True, self.revision)
        return self._conflict(failed.key, failed.revision)

    def _first_failed(self, compares: tuple[Compare, ...]) -> Compare | None:
        for compare in compares:
            if not self._at(compare.key, compare.revision):
                return compare
        return None

    def _at(self, key: bytes, revision: int) -> bool:
        entry = self._entries.get(key)
        return (entry.mod_revision if entry is not None else 0) == revision

    def _conflict(self, key: bytes, expect: int) -> OpResult:
        entry = self._entries.get(key)
        name = key[:80].decode("utf-8", "backslashreplace")
        found = f"is at revision {entry.mod_revision}" if entry is not None else "does not exist"
        wanted = f"revision {expect}" if expect else "no such key"
        return self._refused("conflict", f"key {name!r} {found}; expected {wanted}")

    def _set(self, key: bytes, value: bytes) -> None:
        before = self._entries.get(key)
        if before is None:
            self._keys.add(key)
            created = self.revision
        else:
            created = before.create_revision
        self._entries[key] = Entry(key, value, created, self.revision)
        self._note(Change(self.revision, key, value))

    def _unset(self, key: bytes) -> None:
        del self._entries[key]
        self._keys.remove(key)
        self._note(Change(self.revision, key, None))

    def _note(self, change: Change) -> None:
        if len(self._changes) >= CHANGES_MAX:
            self._changes = []
            self._changes_lost = True
        if not self._changes_lost:
            self._changes.append(change)

    def _apply_authority(self, op: AuthorityEntry) -> OpResult:
        try:
            record = self.authority.apply(op.envelope, self.time_ms)
        except SwarmError as error:
            return self._refused(error.code, error.message)
        self.revision += 1
        return OpResult(True, self.revision, value=encode_record(record))

    def _apply_open(self, op: OpenSession) -> OpResult:
        if op.session not in self._sessions:
            if len(self._sessions) >= SESSIONS_MAX:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[op.session] = _Session(self.time_ms)
        return OpResult(True, self.revision)

    def _expire_sessions(self) -> None:
        while self._sessions:
            oldest = next(iter(self._sessions))
            if self._sessions[oldest].used_ms + SESSION_TTL_MS >= self.time_ms:
                return
            del self._sessions[oldest]

    def _apply_seal(self, op: Seal, index: int) -> OpResult:
        if op.number != self.epoch + 1:
            return self._refused(
                "conflict", f"epoch {self.epoch} cannot be followed by {op.number}"
            )
        self.sealed = Sealed(op.number, op.voters, index)
        return OpResult(True, self.revision)

    # ---- whole state -----------------------------------------------------------------

    def snapshot(self) -> Callable[[], bytes]:
        """A frozen copy of the state now; the function returned encodes it later."""
        return self._freeze(self.epoch, self.sealed)

    def sealed_body(self) -> bytes:
        """The state that the next epoch begins with; only after the seal."""
        assert self.sealed is not None, "the epoch is not sealed"
        return self._freeze(self.sealed.number, None)()

    def _freeze(self, epoch: int, sealed: Sealed | None) -> Callable[[], bytes]:
        entries = dict(self._entries)
        sessions = [
            _SessionDump(name, s.used_ms, s.low, list(s.results.items()))
            for name, s in self._sessions.items()
        ]
        records = self.authority.dump()
        revision, time_ms, office = self.revision, self.time_ms, self.office

        def encode() -> bytes:
            ordered = [entries[key] for key in sorted(entries)]
            return msgspec.msgpack.encode(
                _StateDump(
                    STATE_FORMAT,
                    epoch,
                    revision,
                    time_ms,
                    ordered,
                    sessions,
                    records,
                    office,
                    sealed,
                )
            )

        return encode

    def restore(self, raw: bytes) -> None:
        """Become the state that `raw` encodes.

        Raises:
            CorruptFile: `raw` is no such state; nothing changed.
        """
        dump = _decode_state(raw)
        try:
            authority = AuthorityState.load(self._genesis, dump.records)
        except SwarmError as error:
            raise CorruptFile(f"the stored authority log is not sound: {error}") from error
        self._clear()
        self.authority = authority
        self.epoch, self.revision, self.time_ms = dump.epoch, dump.revision, dump.time_ms
        self.office, self.sealed = dump.office, dump.sealed
        self._entries = {entry.key: entry for entry in dump.entries}
        self._keys = SortedList(self._entries)
        for stored in dump.sessions:
            session = _Session(stored.used_ms, stored.low)
            session.results = dict(stored.results)
            self._sessions[stored.session] = session
        self._changes_lost = True


def _decode_state(raw: bytes) -> _StateDump:
    try:
        dump: Any = msgspec.msgpack.Decoder(_StateDump).decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError) as error:
        raise CorruptFile(f"not a state of the strong store: {error}") from error
    state: _StateDump = dump
    if state.format != STATE_FORMAT:
        raise CorruptFile(f"a state of format {state.format}; this version reads {STATE_FORMAT}")
    if len(state.sessions) > SESSIONS_MAX or len(state.records) > RECORDS_MAX:
        raise CorruptFile("a state with more sessions or records than are allowed")
    return state


def state_digest(body: bytes) -> bytes:
    """The digest of an encoded state, as seal certificates name it."""
    return digest(b"state", body)
