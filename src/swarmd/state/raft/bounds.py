"""What forbids an operation whatever the state is: each mistake with an error of its own.

Clients ask before they propose, and so does the state before it applies, so that nothing
beyond the bounds is ever half applied. What depends on the state is `statemachine`'s.
"""

from __future__ import annotations

from typing import Final, TypeGuard

from swarmd.base.errors import (
    BadRequest,
    BadTtl,
    EmptyKey,
    KeyTooLong,
    SwarmError,
    TooLarge,
    ValueTooLarge,
)
from swarmd.base.limits import (
    ENTRY_BYTES_MAX,
    KEY_BYTES_MAX,
    KIB,
    LEASE_TTL_MAX_MS,
    LEASE_TTL_MIN_MS,
    VALUE_BYTES_MAX,
)
from swarmd.identity.voter import PUBLIC_BYTES, STORAGE_BYTES, VOTERS_MAX
from swarmd.state.raft.messages import (
    SESSION_BYTES,
    TXN_OPERATIONS_MAX,
    Add,
    AuthorityEntry,
    Compare,
    Delete,
    GrantLease,
    OpenSession,
    Operation,
    Put,
    RenewLease,
    RevokeLease,
    Seal,
    Txn,
)

AUTHORITY_BYTES_MAX: Final = 64 * KIB
# Revisions, leases and counters stay within 63 bits, so that everybody can read them.
NUMBER_MAX: Final = 2**63 - 1
# What an operation takes in a batch beside its key and value, at most.
_FRAME_BYTES: Final = 32


def operation_bytes(op: Operation) -> int:
    """About how many bytes `op` takes in a batch, and not less."""
    if isinstance(op, Put):
        return len(op.key) + len(op.value) + _FRAME_BYTES
    if isinstance(op, Txn):
        inner = sum(map(operation_bytes, op.then)) + sum(map(operation_bytes, op.otherwise))
        return _FRAME_BYTES + inner + sum(map(_compare_bytes, op.compares))
    if isinstance(op, Delete | Add):
        return len(op.key) + _FRAME_BYTES
    if isinstance(op, AuthorityEntry):
        return len(op.envelope) + _FRAME_BYTES
    if isinstance(op, GrantLease | RenewLease | RevokeLease):
        return _FRAME_BYTES
    return 1024


def _compare_bytes(compare: Compare) -> int:
    return len(compare.key) + len(compare.value or b"") + _FRAME_BYTES


def are_plain_puts(ops: tuple[Operation, ...]) -> TypeGuard[tuple[Put, ...]]:
    """Are all of `ops` puts that nothing can forbid, whatever the state is?"""
    for op in ops:
        if type(op) is not Put or op.expect is not None or op.lease:
            return False
        if not 0 < len(op.key) <= KEY_BYTES_MAX or len(op.value) > VALUE_BYTES_MAX:
            return False
    return True


def problem_of(op: Operation) -> SwarmError | None:
    """What forbids `op`, or None."""
    if isinstance(op, Put):
        return _put_problem(op)
    if isinstance(op, Delete):
        return _key_problem(op.key, op.expect)
    if isinstance(op, Txn):
        return _txn_problem(op)
    if isinstance(op, Add):
        return _key_problem(op.key, None) or _number_problem(op.delta)
    if isinstance(op, GrantLease):
        return _ttl_problem(op.ttl_ms)
    if isinstance(op, AuthorityEntry) and len(op.envelope) > AUTHORITY_BYTES_MAX:
        return TooLarge(f"an authority entry has at most {AUTHORITY_BYTES_MAX} bytes")
    if isinstance(op, OpenSession) and len(op.session) != SESSION_BYTES:
        return BadRequest(f"a session is named by {SESSION_BYTES} bytes")
    if isinstance(op, Seal):
        return _seal_problem(op)
    return None


def _key_problem(key: bytes, expect: int | None) -> SwarmError | None:
    if not key:
        return EmptyKey("a key has at least one byte")
    if len(key) > KEY_BYTES_MAX:
        return KeyTooLong(f"a key of {len(key)} bytes; at most {KEY_BYTES_MAX} are allowed")
    if expect is not None and expect < 0:
        return BadRequest(f"expected revision {expect} is negative; 0 means: must not exist")
    return None


def _value_problem(value: bytes) -> SwarmError | None:
    if len(value) <= VALUE_BYTES_MAX:
        return None
    return ValueTooLarge(f"a value of {len(value)} bytes; at most {VALUE_BYTES_MAX} are allowed")


def _put_problem(op: Put) -> SwarmError | None:
    return _value_problem(op.value) or _key_problem(op.key, op.expect)


def _number_problem(number: int) -> SwarmError | None:
    if -NUMBER_MAX <= number <= NUMBER_MAX:
        return None
    return TooLarge(f"{number} does not fit 64 bits")


def _ttl_problem(ttl_ms: int) -> SwarmError | None:
    if LEASE_TTL_MIN_MS <= ttl_ms <= LEASE_TTL_MAX_MS:
        return None
    return BadTtl(
        f"a lease of {ttl_ms / 1_000:g} s; allowed are {LEASE_TTL_MIN_MS // 1_000} s "
        f"to {LEASE_TTL_MAX_MS // 3_600_000} h"
    )


def _txn_problem(op: Txn) -> SwarmError | None:
    if len(op.compares) + len(op.then) + len(op.otherwise) > TXN_OPERATIONS_MAX:
        return TooLarge(f"a transaction has at most {TXN_OPERATIONS_MAX} compares and operations")
    # Spelled out and in one pass: every task passes here six times on its way.
    size = _FRAME_BYTES
    for compare in op.compares:
        size += len(compare.key) + _FRAME_BYTES
        if not 0 < len(compare.key) <= KEY_BYTES_MAX or (compare.revision or 0) < 0:
            return _key_problem(compare.key, compare.revision)
        if compare.value is not None:
            size += len(compare.value)
            if len(compare.value) > VALUE_BYTES_MAX:
                return _value_problem(compare.value)
    for inner in op.then + op.otherwise if op.otherwise else op.then:
        size += len(inner.key) + _FRAME_BYTES
        if not 0 < len(inner.key) <= KEY_BYTES_MAX or (inner.expect or 0) < 0:
            return _key_problem(inner.key, inner.expect)
        if isinstance(inner, Put):
            size += len(inner.value)
            if len(inner.value) > VALUE_BYTES_MAX:
                return _put_problem(inner)
    if size > ENTRY_BYTES_MAX - KIB:
        return TooLarge(f"a transaction of {size} bytes; at most {ENTRY_BYTES_MAX - KIB} fit")
    return None


def _seal_problem(op: Seal) -> SwarmError | None:
    if not 1 <= len(op.voters) <= VOTERS_MAX:
        return BadRequest(f"an epoch has 1 to {VOTERS_MAX} voters, not {len(op.voters)}")
    if any(len(v.public) != PUBLIC_BYTES or len(v.storage) != STORAGE_BYTES for v in op.voters):
        return BadRequest("a voter is a key of 32 bytes and a storage of 16")
    if len({v.public for v in op.voters}) != len(op.voters):
        return BadRequest("a node has one seat")
    return None
