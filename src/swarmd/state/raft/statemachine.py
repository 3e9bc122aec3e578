"""What every voter computes from the log: keys, leases, sessions, the authority log, a seal.

Rules:
- Deterministic: the state is a function of the batches applied, in order. No clock, no
  chance, no iteration over sets. Store time is the highest stamp seen and never falls.
- `apply` never raises: what is wrong with an operation is its result.
- A changing operation takes the next revision; a transaction takes one for all it changes, and
  so does the end of a lease.
- Leases whose deadline a stamp has passed end before the first operation of its batch, as many
  as make up `SWEEP_KEYS_MAX` keys; the rest with the next batches. Only where the batch takes
  office, what lived until then is renewed first.
- A group with (session, first) that was applied before answers its first results (Ongaro,
  *Consensus: Bridging Theory and Practice*, section 6.3). One below the session's `low`, or of a
  session that ended, answers `session_expired` and changes nothing.
- An entry of authority that would leave no majority of the epoch's voters is refused, who else
  agreed to it or not: of two that come at once only the first counts. The voters are state, from
  the seal that named them on; whether they live is not known here.
- After a seal nothing changes any more, time included: every operation answers `moved` and
  leaves no trace, so that it can be repeated in the next epoch (Lamport, Malkhi and Zhou,
  *Reconfiguring a State Machine*, 2010). So the state that the next epoch begins with can be
  taken at any moment after the seal and is the same on every voter.
- Values, entries and results are immutable, and who replaces an entry tells the snapshots that
  are being taken first (`statefile.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final
from zlib import crc32

import msgspec
from sortedcontainers import SortedList

from swarmd.base.errors import SwarmError
from swarmd.base.ids import NodeId, node_id_of, short
from swarmd.base.limits import LEASE_KEYS_MAX, LEASES_MAX, SESSIONS_MAX
from swarmd.identity.authority import AuthorityState
from swarmd.identity.entries import encode_record
from swarmd.identity.genesis import Genesis
from swarmd.identity.voter import Voter
from swarmd.state.raft.bounds import NUMBER_MAX, are_plain_puts, problem_of
from swarmd.state.raft.digests import (
    BUCKETS,
    MODULUS,
    Digests,
    make_checksum,
    sums_of_nothing,
)
from swarmd.state.raft.history import History
from swarmd.state.raft.leases import Lease, Leases
from swarmd.state.raft.messages import (
    RAN_OTHERWISE,
    USER_PREFIX,
    Add,
    AuthorityEntry,
    Batch,
    Change,
    Compare,
    Delete,
    Entry,
    GrantLease,
    Group,
    OpenSession,
    Operation,
    OpResult,
    Put,
    RenewLease,
    RevokeLease,
    Seal,
    TakeOffice,
    Txn,
    decode_batch,
)
from swarmd.state.raft.sessions import Session
from swarmd.state.raft.statefile import Frozen, Restoring, Sealed

__all__ = ["Change", "Entry", "Sealed", "StateMachine"]

SESSION_TTL_MS: Final = 600_000
CHANGES_MAX: Final = 100_000
# Keys that go with ended leases per batch, about; more would hold up the loop.
SWEEP_KEYS_MAX: Final = 1_000
# A generation begins so far above the last revision known: further than the lost voters get.
GENERATION_REVISIONS: Final = 10**12
_BURIED_PER_BATCH: Final = 2_000
_DIGITS_MAX: Final = len(str(NUMBER_MAX))

_EXPIRED: Final = "the session has ended: the outcome of this operation is unknown"
_MOVED: Final = "the epoch is sealed: ask the voters of the next one"


class StateMachine:
    """The replicated state. See `state.raft.machine.ReplicatedState` for who calls what."""

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis
        self.epoch = 1
        # Of this epoch, sorted.
        self.voters: tuple[NodeId, ...] = (node_id_of(genesis.first_node_public),)
        self.revision = 0
        self.time_ms = 0
        self.office: tuple[bytes, int] = (b"", 0)
        self.sealed: Sealed | None = None
        self.authority = AuthorityState(self.genesis)
        self.leases = Leases()
        self.history = History()
        self._entries: dict[bytes, Entry] = {}
        self.keys: SortedList[bytes] = SortedList()
        self.sessions: dict[bytes, Session] = {}
        self._changes: list[Change] = []
        self._changes_lost = False
        # Snapshots being taken, and entries of a state that was replaced.
        self.frozen: list[Frozen] = []
        self._graves: list[dict[bytes, Entry]] = []
        self._digests = Digests(self, sums_of_nothing())

    # ---- reading ---------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Entry | None:
        return self._entries.get(key)

    @property
    def lookup(self) -> Callable[[bytes], Entry | None]:
        """`get` for many keys at once; good until the state is replaced."""
        return self._entries.get

    def besides(self) -> tuple[Any, ...]:
        """What the digest of the state covers besides its entries."""
        return (
            self.epoch,
            self.voters,
            self.revision,
            self.time_ms,
            self.office,
            self.authority.head[0],
            len(self.sessions),
            len(self.leases),
            self.history.compacted,
        )

    def range(self, prefix: bytes, after: bytes = b"", limit: int = 1_000) -> list[Entry]:
        """Up to `limit` entries whose key begins with `prefix` and is above `after`, by key."""
        found: list[Entry] = []
        if after >= prefix and after:
            keys = self.keys.irange(after, None, inclusive=(False, True))
        else:
            keys = self.keys.irange(prefix)
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
        if self.sealed is None:
            self._move_time(batch)
        if self._graves:
            self._bury()
        return [self._apply_group(group, index) for group in batch.groups]

    def _move_time(self, batch: Batch) -> None:
        now_ms = max(self.time_ms, batch.stamp_ms)
        if _takes_office(batch):
            self.leases.extend(self.time_ms, now_ms)
        self.time_ms = now_ms
        self._expire_sessions()
        self._expire_leases()

    def _apply_group(self, group: Group, index: int) -> list[OpResult]:
        if not group.session:
            return self._apply_operations(group.ops, index)
        if self.sealed is not None:
            return [self._refused("moved", _MOVED)] * len(group.ops)
        session = self.sessions.pop(group.session, None)
        if session is None:
            return [self._refused("session_expired", _EXPIRED)] * len(group.ops)
        self.sessions[group.session] = session  # The latest used is last.
        session.used_ms = self.time_ms
        session.forget_below(group.low)
        results = session.results.get(group.first)
        if results is None:
            if group.first < session.low:
                return [self._refused("session_expired", _EXPIRED)] * len(group.ops)
            results = self._apply_operations(group.ops, index)
            session.keep(group.first, results)
        return results

    def _apply_operations(self, ops: tuple[Operation, ...], index: int) -> list[OpResult]:
        if len(ops) > 1 and self.sealed is None and are_plain_puts(ops):
            return self._apply_plain_puts(ops)
        return [self._apply_operation(op, index) for op in ops]

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
        if isinstance(op, Add):
            return self._apply_add(op)
        if isinstance(op, GrantLease):
            return self._apply_grant(op)
        if isinstance(op, RenewLease):
            return self._apply_renew(op)
        if isinstance(op, RevokeLease):
            return self._apply_revoke(op)
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
        if op.lease and (refused := self._lease_refuses((op,))):
            return refused
        self.revision += 1
        self._set(op.key, op.value, op.lease)
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
        if refused := self._lease_refuses(branch):
            return refused
        unmet = None if failed is None else self._unmet(failed)
        before = self.revision
        for inner in branch:
            if isinstance(inner, Put):
                self.revision = before + 1
                self._set(inner.key, inner.value, inner.lease)
            elif inner.key in self._entries:
                self.revision = before + 1
                self._unset(inner.key)
        if unmet is None:
            return OpResult(True, self.revision)
        return msgspec.structs.replace(unmet, revision=self.revision, value=RAN_OTHERWISE)

    def _first_failed(self, compares: tuple[Compare, ...]) -> Compare | None:
        for compare in compares:
            if compare.value is None and compare.revision is not None:
                held = self._at(compare.key, compare.revision)
            else:
                held = self._holds(compare)
            if not held:
                return compare
        return None

    def _holds(self, compare: Compare) -> bool:
        entry = self._entries.get(compare.key)
        if entry is None:
            return False
        if compare.revision is not None and entry.mod_revision != compare.revision:
            return False
        return compare.value is None or entry.value == compare.value

    def _at(self, key: bytes, revision: int) -> bool:
        entry = self._entries.get(key)
        return (entry.mod_revision if entry is not None else 0) == revision

    def _conflict(self, key: bytes, expect: int) -> OpResult:
        entry = self._entries.get(key)
        found = f"is at revision {entry.mod_revision}" if entry is not None else "does not exist"
        wanted = f"revision {expect}" if expect else "no such key"
        return self._refused("conflict", f"key {_shown(key)} {found}; expected {wanted}")

    def _unmet(self, compare: Compare) -> OpResult:
        revision = compare.revision
        if revision is not None and not self._at(compare.key, revision):
            return self._conflict(compare.key, revision)
        found = "holds another value" if compare.key in self._entries else "does not exist"
        return self._refused("conflict", f"key {_shown(compare.key)} {found}")

    def _apply_add(self, op: Add) -> OpResult:
        entry = self._entries.get(op.key)
        number = 0 if entry is None else _integer(entry.value)
        if number is None:
            return self._refused("conflict", f"key {_shown(op.key)} holds no decimal integer")
        number += op.delta
        if abs(number) > NUMBER_MAX:
            return self._refused("too_large", f"the counter {_shown(op.key)} would leave 64 bits")
        value = b"%d" % number
        self.revision += 1
        self._set(op.key, value, 0 if entry is None else entry.lease)
        return OpResult(True, self.revision, value=value)

    def _apply_plain_puts(self, ops: tuple[Put, ...]) -> list[OpResult]:
        """What `_apply_put` does, for many at once: most of what a busy voter's time goes into.

        Spelled out are `make_checksum` and `Digests.replaced`, too.
        """
        entries, revision = self._entries, self.revision
        sums, walk, cursor = self._digests.sums, self._digests.walk, self._digests.cursor
        results: list[OpResult] = []
        changes: list[Change] = []
        for op in ops:
            key, value = op.key, op.value
            before = entries.get(key)
            for frozen in self.frozen:
                frozen.note(key, before)
            revision += 1
            hashed = crc32(key)
            if before is None:
                self.keys.add(key)
                created = revision
                delta = checksum = crc32(value, (hashed + 8 * revision) % MODULUS)
            else:
                created = before.create_revision
                checksum = crc32(value, (hashed + 3 * revision + 5 * created) % MODULUS)
                delta = checksum - before.checksum
                if before.lease:
                    self.leases.detach(key, before.lease)
            entries[key] = Entry(key, value, created, revision, 0, checksum)
            bucket = hashed % BUCKETS
            sums[bucket] += delta
            if key <= cursor:
                walk[bucket] += delta
            changes.append(Change(revision, key, value))
            results.append(OpResult(True, revision))
        self.revision = revision
        self._note(changes)
        return results

    # ---- entries ---------------------------------------------------------------------

    def _set(self, key: bytes, value: bytes, lease: int) -> None:
        before = self._entries.get(key)
        self._note_before(key, before)
        if before is None:
            self.keys.add(key)
            created, attached = self.revision, 0
        else:
            created, attached = before.create_revision, before.lease
        if attached != lease:
            self._attach(key, attached, lease)
        checksum = make_checksum(crc32(key), value, created, self.revision, lease)
        entry = Entry(key, value, created, self.revision, lease, checksum)
        self._entries[key] = entry
        self._digests.replaced(key, before, entry)
        self._note([Change(self.revision, key, value)])

    def _unset(self, key: bytes) -> None:
        entry = self._entries.pop(key)
        self._note_before(key, entry, goes=True)
        self._digests.replaced(key, entry, None)
        self.keys.remove(key)
        if entry.lease:
            self.leases.detach(key, entry.lease)
        self._note([Change(self.revision, key, None)])

    def _note_before(self, key: bytes, before: Entry | None, *, goes: bool = False) -> None:
        for frozen in self.frozen:
            frozen.note(key, before, goes=goes)

    def _attach(self, key: bytes, before: int, lease: int) -> None:
        if before:
            self.leases.detach(key, before)
        if lease:
            self.leases.attach(key, lease)

    def _note(self, changes: list[Change]) -> None:
        self.history.note(changes)
        if len(self._changes) + len(changes) > CHANGES_MAX:
            self._changes = []
            self._changes_lost = True
        if not self._changes_lost:
            self._changes += changes

    def _apply_authority(self, op: AuthorityEntry) -> OpResult:
        try:
            record = self.authority.apply(op.envelope, self.time_ms, self.voters)
        except SwarmError as error:
            return self._refused(error.code, error.message)
        self.revision += 1
        return OpResult(True, self.revision, value=encode_record(record))

    def _apply_open(self, op: OpenSession) -> OpResult:
        if op.session not in self.sessions:
            if len(self.sessions) >= SESSIONS_MAX:
                del self.sessions[next(iter(self.sessions))]
            self.sessions[op.session] = Session(self.time_ms)
        return OpResult(True, self.revision)

    def _expire_sessions(self) -> None:
        while self.sessions:
            oldest = next(iter(self.sessions))
            if self.sessions[oldest].used_ms + SESSION_TTL_MS >= self.time_ms:
                return
            del self.sessions[oldest]

    def _apply_seal(self, op: Seal, index: int) -> OpResult:
        if op.number != self.epoch + 1:
            return self._refused(
                "conflict", f"epoch {self.epoch} cannot be followed by {op.number}"
            )
        # Evicted, or without the role, while they were being chosen.
        unfit = [one for one in op.voters if self.authority.may_not_vote(one.node_id)]
        if unfit:
            named = ", ".join(short(one.node_id) for one in unfit)
            return self._refused("conflict", f"the next voters name who may not vote: {named}")
        self.sealed = Sealed(op.number, op.voters, index)
        return OpResult(True, self.revision)

    # ---- leases ----------------------------------------------------------------------

    def _apply_grant(self, op: GrantLease) -> OpResult:
        if len(self.leases) >= LEASES_MAX:
            return self._refused("too_many_leases", f"there are {LEASES_MAX} leases already")
        self.revision += 1
        self.leases.grant(self.revision, op.ttl_ms, self.time_ms)
        return OpResult(True, self.revision)

    def _apply_renew(self, op: RenewLease) -> OpResult:
        lease = self.leases.living(op.lease, self.time_ms)
        if lease is None:
            return self._lease_expired(op.lease)
        self.leases.renew(lease, self.time_ms)
        return OpResult(True, self.revision, value=b"%d" % lease.ttl_ms)

    def _apply_revoke(self, op: RevokeLease) -> OpResult:
        lease = self.leases.living(op.lease, self.time_ms)
        if lease is None:
            return self._lease_expired(op.lease)
        self._end_lease(lease)
        return OpResult(True, self.revision)

    def _end_lease(self, lease: Lease) -> None:
        keys = self.leases.end(lease)
        if keys:
            self.revision += 1
        for key in keys:
            self._unset(key)

    def _expire_leases(self) -> None:
        left = SWEEP_KEYS_MAX
        while left > 0 and (lease := self.leases.first_due(self.time_ms)) is not None:
            left -= 1 + len(lease.keys)
            self._end_lease(lease)

    def _lease_refuses(self, branch: tuple[Put | Delete, ...]) -> OpResult | None:
        """What forbids attaching what `branch` puts, all of it together."""
        new: dict[int, set[bytes]] = {}
        for op in branch:
            if not isinstance(op, Put) or not op.lease:
                continue
            lease = self.leases.living(op.lease, self.time_ms)
            if lease is None:
                return self._lease_expired(op.lease)
            if op.key not in lease.keys:
                added = new.setdefault(op.lease, set())
                added.add(op.key)
                if len(lease.keys) + len(added) > LEASE_KEYS_MAX:
                    message = f"lease {op.lease} has {LEASE_KEYS_MAX} keys, as many as it may"
                    return self._refused("lease_full", message)
        return None

    def _lease_expired(self, lease: int) -> OpResult:
        message = f"lease {lease} has ended or never was: grant another one"
        return self._refused("lease_expired", message)

    # ---- whole state -----------------------------------------------------------------

    def snapshot(self) -> Frozen:
        """The frames of the state as it is now, whatever is applied while they are made."""
        return Frozen(self, self.epoch, self.voters, self.sealed)

    def sealed_snapshot(self) -> Frozen:
        """The state that the next epoch begins with; only after the seal."""
        assert self.sealed is not None, "the epoch is not sealed"
        return self.first_snapshot(self.sealed.number, self.sealed.voters)

    def first_snapshot(self, number: int, voters: Iterable[Voter]) -> Frozen:
        """This state as the one that epoch `number` begins with, of these voters."""
        return Frozen(self, number, tuple(sorted(one.node_id for one in voters)), None)

    def begin_generation(self) -> None:
        """Leave out the revisions that voters who are given up may have given, or may yet give.

        They are fences, names of leases, and places of watches: none may mean two things. What
        a watch was told of them is void, so each that comes from before has to read anew.
        """
        self.revision += GENERATION_REVISIONS
        self.history = History(self.revision)

    def restoring(self) -> Restoring:
        """Take frames of a state; this one becomes it at the end."""
        return Restoring(self)

    def become(self, made: Restoring) -> None:
        """Take the place of what is held. Called by `Restoring.finish`."""
        head = made.head
        self._graves.append(self._entries)
        self.epoch, self.voters = head.epoch, head.voters
        self.revision, self.time_ms = head.revision, head.time_ms
        self.office, self.sealed = head.office, head.sealed
        self.authority = made.authority
        self._entries, self.keys = made.entries, made.keys
        self.sessions, self.leases, self.history = made.sessions, made.leases, made.history
        self._changes = []
        self._changes_lost = True
        self._digests = Digests(self, made.sums)

    def digest(self) -> bytes:
        """Of the state now, by buckets; see `Digests.take`."""
        return self._digests.take()

    def _bury(self) -> None:
        """Let go of a part of what was replaced: of all at once would hold up the loop."""
        entries = self._graves[-1]
        for _ in range(min(_BURIED_PER_BATCH, len(entries))):
            entries.popitem()
        if not entries:
            self._graves.pop()


def _takes_office(batch: Batch) -> bool:
    group = batch.groups[0] if batch.groups else None
    return group is not None and bool(group.ops) and isinstance(group.ops[0], TakeOffice)


def _shown(key: bytes) -> str:
    """`key` as its user knows it."""
    return repr(key.removeprefix(USER_PREFIX)[:80].decode("utf-8", "backslashreplace"))


def _integer(value: bytes) -> int | None:
    """The decimal integer in `value`, as `Add` writes it; None if it is something else."""
    digits = value[1:] if value[:1] == b"-" else value
    if not digits.isdigit() or len(digits) > _DIGITS_MAX:
        return None
    return int(value)
