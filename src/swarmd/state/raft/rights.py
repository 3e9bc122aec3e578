"""What members may have the coordinator write for them, by what the keys begin with. Pure.

Every member forwards operations to the coordinator: those of its API's users, its locks, its
audit log's anchors. The coordinator holds each against this table. Rules:

- A voter of the running epoch may write any key: it may be the coordinator tomorrow, and nothing
  here keeps a bad voter back.
- Any other member may write what its API lets users write (it holds these to their rules itself),
  what its daemon writes under its own name, and nothing else. What no row allows is refused.
- Nobody forwards what only a coordinator does.
- Reading is not judged, and so neither are the compares of a transaction. Both of its branches
  are, whichever would run.
- A lease takes along the keys that somebody put with it, and who may put a key may as well have it
  go: to grant, renew or end a lease takes no more than being a member.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

from swarmd.base.ids import NodeId
from swarmd.identity.authority import AuthorityState
from swarmd.state.raft.messages import (
    ACCESS_PREFIX,
    AGENT_PREFIX,
    ANCHOR_PREFIX,
    ASSIGNMENT_PREFIX,
    JOB_PREFIX,
    MEMORY_FLIGHT_PREFIX,
    MEMORY_NAMESPACE_PREFIX,
    MEMORY_TABLE_KEY,
    MEMORY_VALUE_PREFIX,
    OFFICE_KEY,
    PIN_PREFIX,
    RECIPE_PREFIX,
    SECRET_RING_KEY,
    SECRET_USES_KEY,
    SECRET_VALUE_PREFIX,
    TASK_PREFIX,
    USER_PREFIX,
    Add,
    AuthorityEntry,
    Delete,
    GrantLease,
    Group,
    OpenSession,
    Operation,
    Put,
    RenewLease,
    RevokeLease,
    Seal,
    TakeOffice,
    Txn,
)


class Standing(IntEnum):
    """What somebody is to the voters, the least first."""

    OUTCAST = 0
    """It was evicted, and the mesh has not heard of it yet."""
    MEMBER = 1
    CANDIDATE = 2
    """With the role of a voter, and so with the keys of secrets, but without a seat."""
    VOTER = 3
    """Of the running epoch, and still with the role."""
    COORDINATOR = 4
    """Nobody who forwards is."""


class Right(NamedTuple):
    """What it takes to put, delete, or add to keys that begin with `prefix`.

    With `own` a node may put and delete, too, where its id follows the prefix.
    """

    prefix: bytes
    put: Standing = Standing.VOTER
    delete: Standing = Standing.VOTER
    add: Standing = Standing.VOTER
    own: bool = False


_M, _C = Standing.MEMBER, Standing.CANDIDATE
RIGHTS: Final = (
    # What the API of whichever node changes for its users.
    Right(USER_PREFIX, put=_M, delete=_M, add=_M),
    Right(RECIPE_PREFIX, put=_M),  # They go with their leases.
    Right(ACCESS_PREFIX, put=_M, delete=_M),
    Right(AGENT_PREFIX, put=_M, delete=_M),
    Right(MEMORY_VALUE_PREFIX, put=_M, delete=_M),
    Right(MEMORY_FLIGHT_PREFIX, put=_M, delete=_M),
    Right(MEMORY_NAMESPACE_PREFIX, put=_M),  # What a namespace promises nobody takes back.
    Right(MEMORY_TABLE_KEY, put=_M),
    Right(PIN_PREFIX, put=_M, delete=_M),
    # Who holds the keys of secrets seals for all others; to delete takes no key.
    Right(SECRET_VALUE_PREFIX, put=_C, delete=_M),
    Right(SECRET_USES_KEY, put=_C),
    Right(ANCHOR_PREFIX, own=True),
    # What coordinators write. One that has just lost its office may still forward.
    Right(SECRET_RING_KEY),
    Right(TASK_PREFIX),
    Right(ASSIGNMENT_PREFIX),
    Right(JOB_PREFIX),
    Right(OFFICE_KEY),
)
_UNKNOWN: Final = Right(b"")
assert all(max(right[1:4]) <= Standing.VOTER for right in RIGHTS)
_ROOT_BYTES: Final = 2
_BY_ROOT: Final[Mapping[bytes, tuple[Right, ...]]] = MappingProxyType(
    {
        root: tuple(right for right in RIGHTS if right.prefix.startswith(root))
        for root in dict.fromkeys(right.prefix[:_ROOT_BYTES] for right in RIGHTS)
    }
)
_TAKES: Final = {
    Standing.MEMBER: "it was evicted",
    Standing.CANDIDATE: "that takes the role of a voter",
    Standing.VOTER: "that takes a seat among the voters",
    Standing.COORDINATOR: "that is for the coordinator alone",
}


class State(Protocol):
    """What is asked of the replicated state."""

    @property
    def voters(self) -> tuple[NodeId, ...]: ...
    @property
    def authority(self) -> AuthorityState: ...


class Sender(NamedTuple):
    """Who forwards."""

    node_id: NodeId
    standing: Standing


class Overstep(NamedTuple):
    """What was refused, and why. `what` names the kind of key, and nothing of the key itself."""

    what: str
    why: str


def sender_of(node_id: NodeId, state: State) -> Sender:
    """A member's standing, by the log as it is applied: never behind what members go by.

    That it is a member is the mesh's to know, which hears nobody else.
    """
    admission = state.authority.admissions.get(node_id)
    if admission is not None and admission.evicted:
        return Sender(node_id, Standing.OUTCAST)
    if node_id in state.voters and not state.authority.may_not_vote(node_id):
        return Sender(node_id, Standing.VOTER)
    if admission is not None and "voter" in admission.roles:
        return Sender(node_id, Standing.CANDIDATE)
    return Sender(node_id, Standing.MEMBER)


def overstep_in(group: Group, sender: Sender) -> Overstep | None:
    """The first operation of a group that its sender may not forward."""
    seated = sender.standing >= Standing.VOTER
    for op in group.ops:
        if seated and type(op) in _VOTERS:
            continue
        found = _DECISIONS.get(type(op), _coordinators)(op, sender)
        if found is not None:
            return found
    return None


def right_for(key: bytes) -> Right:
    """The row of the table for a key; for one of no known kind a row with no prefix."""
    for right in _BY_ROOT.get(key[:_ROOT_BYTES], ()):
        if key.startswith(right.prefix):
            return right
    return _UNKNOWN


def _put(op: Put, sender: Sender) -> Overstep | None:
    right = right_for(op.key)
    if right.own and _owns(op.key, right, sender):
        return None
    return _judge("put", right.put, sender, right)


def _delete(op: Delete, sender: Sender) -> Overstep | None:
    right = right_for(op.key)
    if right.own and _owns(op.key, right, sender):
        return None
    return _judge("delete", right.delete, sender, right)


def _add(op: Add, sender: Sender) -> Overstep | None:
    right = right_for(op.key)
    return _judge("add to", right.add, sender, right)


def _txn(op: Txn, sender: Sender) -> Overstep | None:
    for inner in (*op.then, *op.otherwise):
        found = _put(inner, sender) if isinstance(inner, Put) else _delete(inner, sender)
        if found is not None:
            return found
    return None


def _members(op: Operation, sender: Sender) -> Overstep | None:
    return _judge(_NAMES[type(op)], Standing.MEMBER, sender)


def _coordinators(op: Operation, sender: Sender) -> Overstep | None:
    return _judge(_NAMES.get(type(op), "do what is not known here"), Standing.COORDINATOR, sender)


def _judge(
    verb: str, takes: Standing, sender: Sender, right: Right | None = None
) -> Overstep | None:
    if sender.standing >= takes:
        return None
    outcast = sender.standing is Standing.OUTCAST
    kind = "" if right is None else f" {right.prefix.decode() or 'a key of no known kind'}"
    return Overstep(verb + kind, _TAKES[Standing.MEMBER if outcast else takes])


def _owns(key: bytes, right: Right, sender: Sender) -> bool:
    own = right.prefix + sender.node_id + b"/"
    return sender.standing >= Standing.MEMBER and key.startswith(own)


_NAMES: Final[Mapping[type[Any], str]] = MappingProxyType(
    {
        AuthorityEntry: "bring an entry of authority",
        OpenSession: "open a session",
        GrantLease: "grant a lease",
        RenewLease: "renew a lease",
        RevokeLease: "end a lease",
        TakeOffice: "take office",
        Seal: "seal the epoch",
    }
)
# Every operation that there is. One without a decision here nobody forwards.
_DECISIONS: Final[Mapping[type[Any], Callable[[Any, Sender], Overstep | None]]] = MappingProxyType(
    {
        Put: _put,
        Delete: _delete,
        Add: _add,
        Txn: _txn,
        # Signed by an admin, a token or the node that it is about, whoever brings it.
        AuthorityEntry: _members,
        OpenSession: _members,
        GrantLease: _members,
        RenewLease: _members,
        RevokeLease: _members,
        TakeOffice: _coordinators,
        Seal: _coordinators,
    }
)
JUDGED: Final = frozenset(_DECISIONS)
# What any voter forwards, which is most of what a busy swarm does: no row takes more than a seat.
_VOTERS: Final = frozenset(kind for kind in JUDGED if _DECISIONS[kind] is not _coordinators)
