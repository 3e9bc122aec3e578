"""What the strong store is asked to do, and what it says back.

One log entry is one `Batch`: the coordinator's stamp and up to 256 operations of any number
of clients. Operations of one client call travel as a `Group`: (session, low, first, ops), the
operation at position i having sequence `first + i`. (session, first) names a group for ever, so
that a repeat is answered from the session and never applied again (Ongaro, *Consensus: Bridging
Theory and Practice*, section 6.3). `low` says that the client knows the results of every sequence
below it, so the session may forget them.

A batch is not atomic, a `Txn` is. Each changing operation or transaction takes one revision.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from swarmd.base.errors import MalformedMessage, SwarmError, from_code
from swarmd.base.limits import BATCH_OPERATIONS_MAX, KIB
from swarmd.identity.voter import Voter as Voter
from swarmd.wire.codec import Family, Message, decode_struct

SESSION_BYTES: Final = 16
TXN_OPERATIONS_MAX: Final = 256
# Lives of a disk that are told apart; a copy that starts more often alone is not seen through.
LIVES_MAX: Final = 256
# More pins than there can be seats pin nobody.
PINS_MAX: Final = 7
# What one message carries of a state, a large value or a large packet.
PIECE_BYTES: Final = 256 * KIB
# Requests and answers up to this size travel whole.
WHOLE_BYTES_MAX: Final = 512 * KIB

# What keys begin with; who may write which says `rights.py`.
# Users' keys, those of the recipes made for them (locks, barriers), and what nodes follow to
# know who may ask, which secrets there are, and what strong namespaces of shared memory hold.
# Watches see these and no others.
USER_PREFIX: Final = b"u/"
RECIPE_PREFIX: Final = b"c/"
ACCESS_PREFIX: Final = b"k/"
SECRET_PREFIX: Final = b"s/"
# Secrets by name; the names of the keys that they are sealed under; what changes with uses.
SECRET_VALUE_PREFIX: Final = b"s/v/"
SECRET_RING_KEY: Final = b"s/ring"
SECRET_USES_KEY: Final = b"s/uses"
# Namespaces of shared memory by name, and what changes with any of them; values of the strong ones;
# what is computed for caches.
MEMORY_PREFIX: Final = b"m/"
MEMORY_NAMESPACE_PREFIX: Final = b"m/n/"
MEMORY_TABLE_KEY: Final = b"m/t"
MEMORY_VALUE_PREFIX: Final = b"m/v/"
MEMORY_FLIGHT_PREFIX: Final = b"m/c/"
# Agents that are deployed; tasks, their assignments, jobs, and who holds the tasks' office.
AGENT_PREFIX: Final = b"g/"
TASK_PREFIX: Final = b"t/"
ASSIGNMENT_PREFIX: Final = b"a/"
JOB_PREFIX: Final = b"j/"
OFFICE_KEY: Final = b"o/tasks"
# This and a node's id: the newest seal of its audit log (`audit/anchors.py`).
ANCHOR_PREFIX: Final = b"h/"
# This and a node's id, for who is pinned to a seat.
PIN_PREFIX: Final = b"v/pin/"
WATCHED_PREFIXES: Final = (
    USER_PREFIX,
    RECIPE_PREFIX,
    ACCESS_PREFIX,
    SECRET_PREFIX,
    MEMORY_PREFIX,
)
ROOT_BYTES: Final = 2
assert {len(one) for one in WATCHED_PREFIXES} == {ROOT_BYTES}
# What the result of a `Txn` carries as its value if `otherwise` was applied.
RAN_OTHERWISE: Final = b"else"


class _Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A struct inside a message."""


# ---- operations ----------------------------------------------------------------------


class Put(Message, frozen=True, tag=1, gc=False):
    """Set a key. `expect` is the modification revision it must have now; 0: must not exist.

    The key goes with `lease` when that ends, 0: with none. Each put says so anew.
    """

    key: bytes
    value: bytes
    expect: int | None = None
    lease: int = 0


class Delete(Message, frozen=True, tag=2, gc=False):
    """Remove a key; removing an absent one changes nothing and succeeds."""

    key: bytes
    expect: int | None = None


class Compare(_Part, frozen=True):
    """Holds if the key's modification revision is `revision` (0: the key does not exist) and
    its value is `value`, as far as they are given; with neither, if the key exists.
    """

    key: bytes
    revision: int | None = None
    value: bytes | None = None


class Txn(Message, frozen=True, tag=3):
    """All of `then` if every compare holds, else all of `otherwise`; under one revision.

    The result is `ok` after `then`, else `conflict`, with the value `RAN_OTHERWISE` after
    `otherwise`. Without that value nothing was applied: an `expect` inside the branch did not
    hold.
    """

    compares: tuple[Compare, ...]
    then: tuple[Put | Delete, ...]
    otherwise: tuple[Put | Delete, ...] = ()


class AuthorityEntry(Message, frozen=True, tag=4):
    """A signed entry for the log of admissions; the result's value is the record."""

    envelope: bytes


class OpenSession(Message, frozen=True, tag=5):
    """Begin a session; doing so twice is harmless."""

    session: bytes


class TakeOffice(Message, frozen=True, tag=6):
    """A new coordinator's first operation; its revision is the fence of the office.

    It comes first in its batch, and every lease gets a whole TTL from there on: renewals found
    nobody for a while.
    """

    node: bytes


class Seal(Message, frozen=True, tag=7):
    """End this epoch; epoch `number` begins with `voters`. Only the first seal counts.

    It belongs to no session: groups of sessions are applied as a whole.
    """

    number: int
    voters: tuple[Voter, ...]


class GrantLease(Message, frozen=True, tag=8):
    """Begin a lease; the revision of the result is its id and its fence."""

    ttl_ms: int


class RenewLease(Message, frozen=True, tag=9):
    """Give a lease its whole TTL again; the result's value is that TTL in ms, in decimal."""

    lease: int


class RevokeLease(Message, frozen=True, tag=10):
    """End a lease; the keys attached to it go under one revision."""

    lease: int


class Add(Message, frozen=True, tag=11):
    """Add to the decimal integer that a key holds; an absent key holds 0.

    The result's value is the new one. The key stays with the lease that it has.
    """

    key: bytes
    delta: int


Operation = (
    Put
    | Delete
    | Txn
    | AuthorityEntry
    | OpenSession
    | TakeOffice
    | Seal
    | GrantLease
    | RenewLease
    | RevokeLease
    | Add
)


# A client counts its operations; what is kept of them must fit msgpack's integers, with room.
OperationNumber = Annotated[int, Meta(ge=0, le=2**62)]


class Group(_Part, frozen=True):
    """Operations of one client call, in order. Who repeats it repeats all of it."""

    session: bytes
    low: OperationNumber
    first: OperationNumber
    ops: tuple[Operation, ...]


class Batch(_Part, frozen=True):
    """One log entry. `stamp_ms` is store time as the coordinator reckons it."""

    stamp_ms: int
    groups: tuple[Group, ...]


class OpResult(_Part, frozen=True, gc=False):
    """What became of one operation.

    `revision` is the one it was given, or the store's at that moment if it changed nothing.
    `code` is one of `base.errors`, None when `ok`.
    """

    ok: bool
    revision: int
    code: str | None = None
    message: str = ""
    value: bytes | None = None

    def raise_for_error(self) -> OpResult:
        """Itself if `ok`; otherwise raises the error of its code."""
        if self.ok:
            return self
        raise error_of(self)


def error_of(result: OpResult) -> SwarmError:
    return from_code(result.code or "internal", result.message or str(result.code))


_BATCH_ENCODER: Final = msgspec.msgpack.Encoder()
# Batches come from this node's journal or from a voter of its epoch, never from outside.
_BATCH_DECODER: Final = msgspec.msgpack.Decoder(Batch)


def encode_batch(batch: Batch) -> bytes:
    return _BATCH_ENCODER.encode(batch)


def decode_batch(raw: bytes) -> Batch:
    """Raises MalformedMessage."""
    try:
        return _BATCH_DECODER.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError) as error:
        raise MalformedMessage(f"not a batch: {error}") from error


# ---- between nodes: requests of the store ---------------------------------------------


class Forward(Message, frozen=True, tag=1):
    """Propose these groups; answered by `Results`, or by `Redirect` if this is not the place."""

    groups: tuple[Group, ...]


class ForwardUpload(Message, frozen=True, tag=2):
    """Propose the groups uploaded under `upload`."""

    upload: int


class Upload(Message, frozen=True, tag=3):
    """A piece of an encoded `Forward` too large for one message; answered by `Done`."""

    upload: int
    offset: int
    total: int
    data: bytes


class Results(Message, frozen=True, tag=4):
    """One tuple per group, one result per operation."""

    groups: tuple[tuple[OpResult, ...], ...]


class Redirect(Message, frozen=True, tag=5):
    """Not here: ask `leader` (empty: nobody known). `number` is the epoch the answerer is in."""

    leader: bytes
    number: int
    code: str


class ReadIndexAsk(Message, frozen=True, tag=6):
    """Which revision holds everything acknowledged before now? Answered by `Revision`."""


class Revision(Message, frozen=True, tag=7):
    """The revision, and store time, at the coordinator."""

    revision: int
    time_ms: int


class GetAsk(Message, frozen=True, tag=8):
    """Answered by `Got`. `stale` allows any voter to answer from its replica."""

    key: bytes
    stale: bool


class RangeAsk(Message, frozen=True, tag=9):
    """Up to `limit` entries under `prefix`, above `after`; answered by `Got`."""

    prefix: bytes
    after: bytes
    limit: int
    stale: bool


class Entry(_Part, frozen=True, gc=False):
    """A key with its value, its two revisions and the lease it goes with; 0: none.

    `checksum` is what `digests.make_checksum` made of the rest when it was applied.
    """

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int = 0
    checksum: int = 0


class Got(Message, frozen=True, tag=10):
    """Entries in order of keys; `more`: the range goes on after the last one.

    A value that would not fit is left empty and named in `large` by (position, bytes).
    """

    entries: tuple[Entry, ...]
    more: bool
    large: tuple[tuple[int, int], ...] = ()


class PieceAsk(Message, frozen=True, tag=11):
    """Bytes of the value that `key` got at `revision`; answered by `Piece`."""

    key: bytes
    revision: int
    offset: int


class Piece(Message, frozen=True, tag=12):
    total: int
    data: bytes


class HandOver(Message, frozen=True, tag=13):
    """The sender leaves: give its seat away. Answered by `Done` once that is durable."""


class Done(Message, frozen=True, tag=14):
    pass


class LeaderAsk(Message, frozen=True, tag=15):
    """Answered by `Redirect`."""


class Change(_Part, frozen=True, gc=False):
    """A key got a value (None: was deleted) at a revision."""

    revision: int
    key: bytes
    value: bytes | None


class WatchAsk(Message, frozen=True, tag=16):
    """Changes under `prefix` from `revision` on, without the first `skip` of that revision.

    Answered by `Watched` as soon as there are any, or after `wait_ms`.
    """

    prefix: bytes
    revision: int
    skip: int
    wait_ms: int


class Watched(Message, frozen=True, tag=17):
    """Changes in order; with them, and those skipped, all up to `revision` is told.

    Changes above `revision` are the beginning of the one that follows. A value that would not
    fit is left empty and named in `large` by (position, bytes).
    """

    changes: tuple[Change, ...]
    revision: int
    large: tuple[tuple[int, int], ...] = ()


class LeasesAsk(Message, frozen=True, tag=18):
    """The lease of this id and its keys; 0: all leases. Answered by `LeasesGot`."""

    lease: int


class LeaseInfo(_Part, frozen=True):
    """A lease: how long it has, and how many keys go with it."""

    id: int
    ttl_ms: int
    left_ms: int
    keys: int


class LeasesGot(Message, frozen=True, tag=19):
    """Leases, the oldest first. `keys` are the first ones, sorted, of the one asked for."""

    leases: tuple[LeaseInfo, ...]
    keys: tuple[bytes, ...] = ()


class TransferAsk(Message, frozen=True, tag=20):
    """Hand the coordinator's office to the voter `target`; empty: to whom you like.

    Answered by `Transferred` once it is known who leads.
    """

    target: bytes


class Transferred(Message, frozen=True, tag=21):
    """`node` coordinates now."""

    node: bytes


STORE: Final = Family(
    "store",
    Forward,
    ForwardUpload,
    Upload,
    Results,
    Redirect,
    ReadIndexAsk,
    Revision,
    GetAsk,
    RangeAsk,
    Got,
    PieceAsk,
    Piece,
    HandOver,
    Done,
    LeaderAsk,
    WatchAsk,
    Watched,
    LeasesAsk,
    LeasesGot,
    TransferAsk,
    Transferred,
    format_number=2,
)


# ---- between voters: packets of one epoch ---------------------------------------------


class Packet(Message, frozen=True, tag=1):
    """One message of the epoch's log protocol; `epoch` is the key of the epoch."""

    epoch: bytes
    data: bytes


# Format 3: an entry of authority that leaves no majority is refused, where format 2 applies it.
# Format 4: changes of shared memory are kept for watches, so that the history is another one.
RAFT: Final = Family("raft", Packet, alpn="swarmd-raft/1", format_number=4)

assert PIECE_BYTES < WHOLE_BYTES_MAX
assert BATCH_OPERATIONS_MAX <= TXN_OPERATIONS_MAX


def encode_forward(message: Forward) -> bytes:
    """A `Forward` as the bytes that uploads carry."""
    return msgspec.msgpack.encode(message)


def decode_forward(raw: bytes) -> Any:
    """The `Forward` that uploads carried. Raises MalformedMessage."""
    return decode_struct(Forward, raw)
