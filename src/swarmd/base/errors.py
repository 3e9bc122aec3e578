"""Every error swarmd raises on purpose, with its stable code.

Three questions decide the class: who is to blame (our caller, a peer, the world), whether
anything changed, and whether asking again can help. `code` crosses the wire and HTTP and
tests match on it; the text is one sentence for people, names what to do next, and may
change. A bug is an assertion, never a SwarmError.
"""

from __future__ import annotations

from typing import ClassVar


class SwarmError(Exception):
    """Base of all. Nothing changed unless the class says otherwise."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    by_code: ClassVar[dict[str, type[SwarmError]]] = {}

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        SwarmError.by_code.setdefault(cls.code, cls)

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else self.code


def from_code(code: str, message: str) -> SwarmError:
    """The error a peer or the API reported; an unknown code becomes `RemoteError`."""
    return SwarmError.by_code.get(code, RemoteError)(message)


# ---- our own caller asked for something that is not allowed --------------------------


class BadRequest(SwarmError):
    code = "bad_request"


class NotFound(BadRequest):
    code = "not_found"


class AlreadyExists(BadRequest):
    code = "already_exists"


class Conflict(BadRequest):
    """A condition did not hold: the state is not what the caller thought."""

    code = "conflict"


class WrongType(Conflict):
    """The key, or the field, holds another type, or its namespace wants one. Nothing changed."""

    code = "wrong_type"


class LeaseExpired(Conflict):
    """The lease has ended or never was: its keys are gone or will be. Grant another one."""

    code = "lease_expired"


class LockHeld(Conflict):
    """Somebody else holds the lock, or leads: the message says who. No place is kept."""

    code = "lock_held"
    retryable = True


class LockLost(Conflict):
    """The lease of a place has ended: somebody else may hold the lock by now."""

    code = "lock_lost"


class BarrierWaits(Conflict):
    """Not everybody came in time. No place is kept."""

    code = "barrier_waits"
    retryable = True


class BarrierMismatch(Conflict):
    """Those at the barrier wait for another count. No place is kept."""

    code = "barrier_mismatch"


class NotACounter(Conflict):
    code = "not_a_counter"


class IdempotencyConflict(Conflict):
    code = "idempotency_conflict"


class WouldLoseData(Conflict):
    """What was asked would take acknowledged data away with it. Nothing changed."""

    code = "would_lose_data"


class NoMajorityLeft(Conflict):
    """Too few voters of the running epoch would keep their vote to decide anything, not even who
    else may have one. Nothing changed: give the seat on first, or give another node the role.
    """

    code = "no_majority_left"


class NamespaceExists(Conflict):
    """A namespace of shared memory is what it was made as, for ever. Nothing changed."""

    code = "namespace_exists"


class NamespaceInUse(Conflict):
    """A namespace of shared memory holds eventual values, so it stays eventual. Nothing changed."""

    code = "namespace_in_use"


class PolicyConflict(Conflict):
    """A namespace of shared memory holds what the policy does not allow. Nothing changed."""

    code = "policy_conflict"


class NotACache(Conflict):
    """The namespace of shared memory holds values that no cache may evict. Nothing changed."""

    code = "not_a_cache"


class ComputeReplaced(Conflict):
    """A value took too long, or its node was gone: somebody else computes it. It is not kept."""

    code = "compute_replaced"


class VersionExists(Conflict):
    code = "version_exists"


class TooLarge(BadRequest):
    code = "too_large"


class ValueTooLarge(TooLarge):
    code = "value_too_large"


class KeyTooLong(TooLarge):
    code = "key_too_long"


class TooManyLeases(TooLarge):
    code = "too_many_leases"


class LeaseFull(TooLarge):
    """The lease has as many keys as it may."""

    code = "lease_full"


class EmptyKey(BadRequest):
    code = "empty_key"


class BadName(BadRequest):
    """The name of a lock, an election, a barrier or a counter."""

    code = "bad_name"


class BadTtl(BadRequest):
    """A lease that would be too short or too long."""

    code = "bad_ttl"


class UnknownOperation(BadRequest):
    code = "unknown_operation"


class WrongDimension(BadRequest):
    """A vector has more or fewer elements than its collection's vectors. Nothing changed."""

    code = "wrong_dimension"


class BadVector(BadRequest):
    """A vector that has no distance to others: not numbers, too large, or zero. Nothing changed."""

    code = "bad_vector"


class NoEmbedder(BadRequest):
    """A text was given where only vectors are taken, or for another model. Nothing changed."""

    code = "no_embedder"


class FeedGap(Conflict):
    """Changes between what was applied and what came are missing. Nothing changed."""

    code = "feed_gap"


class Compacted(BadRequest):
    """The changes asked for are no longer kept: read the keys, then watch from there."""

    code = "compacted"


class Forbidden(BadRequest):
    code = "forbidden"


class Unauthenticated(BadRequest):
    """Nobody is known by what was shown, or nothing was."""

    code = "unauthenticated"


class SecretUnreadable(BadRequest):
    """A secret or an environment is there, and no key for it is: it must be set again."""

    code = "secret_unreadable"


class SecretInUse(Conflict):
    """Agents refer to the secret. Nothing changed."""

    code = "secret_in_use"


class ConfigError(BadRequest):
    code = "config_error"


# ---- a peer broke the protocol: count it, drop it, carry on ---------------------------


class RemoteError(SwarmError):
    code = "peer_misbehaved"


class MalformedMessage(RemoteError):
    code = "malformed"


class BadSignature(RemoteError):
    code = "bad_signature"


class Untrusted(RemoteError):
    code = "untrusted"


class Evicted(RemoteError):
    """This node was shut out of its swarm, for ever: its id is not used again."""

    code = "evicted"


class Outdated(RemoteError):
    """A swarmd speaks a lower protocol version than its swarm accepts: it must be upgraded."""

    code = "outdated"


class TokenRefused(RemoteError):
    """A join token is wrong, expired, used up, or of another swarm. Nothing was written."""

    code = "token_refused"


# ---- the request is fine; the swarm cannot serve it now -------------------------------


class Unavailable(SwarmError):
    code = "unavailable"
    retryable = True


class Unreachable(Unavailable):
    code = "unreachable"


class TimedOut(Unavailable):
    """No answer in time. The outcome is unknown: repeat with the same idempotency key."""

    code = "timeout"


class DeliveryUnknown(TimedOut):
    """A message was not acknowledged everywhere: the message says by whom, and how many have it."""

    code = "delivery_unknown"


class NoQuorum(Unavailable):
    code = "no_quorum"


class NotCoordinator(Unavailable):
    code = "not_coordinator"


class Moved(Unavailable):
    """The epoch was sealed: ask the voters of the next one."""

    code = "moved"


class SessionExpired(Unavailable):
    """The outcome of the operation is unknown; it will not be applied from now on."""

    code = "session_expired"


class Busy(Unavailable):
    code = "busy"


class RateLimited(Unavailable):
    """Asked too often. `retry_after_s` from now there will be room for one more request."""

    code = "rate_limited"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class InboxFull(Busy):
    """A subscriber took too little for too long: the message says who, and how many have it."""

    code = "inbox_full"


class TooManyWaiters(Busy):
    """As many wait in one line as may. No place is kept."""

    code = "too_many_waiters"


class ComputePending(Unavailable):
    """Somebody still computes the value: the message says who. Ask again."""

    code = "compute_pending"


class BlobsFull(Busy):
    """This node's share of the disk for blobs is taken by what must be kept. Nothing changed."""

    code = "blobs_full"


class EmbeddingFailed(Unavailable):
    """What makes vectors of texts did not, after it was asked several times. Nothing changed."""

    code = "embedding_failed"


class ClockSkew(Unavailable):
    """This node's clock is far from the others'. Nothing changed: set the clock."""

    code = "clock_skew"


class NotHeld(Unavailable):
    """Other nodes hold the key, which the text may name. Nothing changed: ask one of them."""

    code = "not_held"


class NoHolder(Unavailable):
    """None of the nodes that hold a key answers. The text says whether anything changed."""

    code = "no_holder"


class VectorDatabaseUnavailable(Unavailable):
    """The database that holds this node's index of vectors. What it was given is in it or not."""

    code = "vector_database_unavailable"


class InsufficientCopies(Unavailable):
    code = "insufficient_copies"


class ShuttingDown(Unavailable):
    code = "shutting_down"


class NotReady(Unavailable):
    """The node is in no swarm, or has not opened the room that the request needs."""

    code = "not_ready"


# ---- this node's own disk or set-up ---------------------------------------------------


class DiskFault(SwarmError):
    """The disk refused or lost a write: what was being written is not durable."""

    code = "disk_fault"


class CorruptFile(SwarmError):
    code = "corrupt_file"


class KeyFileRefused(SwarmError):
    """A key file may be readable by others, or cannot be opened."""

    code = "key_file_refused"


class Diverged(SwarmError):
    """Two voters hold different committed entries: this one stops rather than guess."""

    code = "diverged"


class DataFolderRefused(SwarmError):
    """The data folder is another node's, unwritable, full or in use."""

    code = "data_folder_refused"


class PortTaken(SwarmError):
    code = "port_taken"


# ---- work that ran and failed ---------------------------------------------------------


class TaskFailed(SwarmError):
    """The agent's code failed: the cause is in the message."""

    code = "task_failed"


class ComputeFailed(TaskFailed):
    """What was to compute a value for a cache raised: the cause is in the message."""

    code = "compute_failed"


class AgentSpawnFailed(TaskFailed):
    code = "agent_spawn_failed"


class AgentRaised(TaskFailed):
    code = "agent_raised"


class AgentTimedOut(TaskFailed):
    code = "agent_timeout"


class AgentCrashed(TaskFailed):
    code = "agent_crashed"


class AgentGarbage(TaskFailed):
    """The worker process wrote something else than frames to its channel."""

    code = "agent_garbage"


class ResultRefused(TaskFailed):
    """The agent returned what msgpack cannot hold, or more than fits a blob."""

    code = "result_refused"


class AgentCancelled(TaskFailed):
    code = "agent_cancelled"
