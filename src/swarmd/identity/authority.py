"""The authority log: who belongs to the swarm, and who may say so.

Invariant: the state is a function of the genesis and of the records, in their order. Every
node that holds the same records holds the same members, whether it applied entries itself
(a voter) or verified a chain that somebody sent (everybody else).

An entry is judged by signatures, the state before it, and the store time it is given;
never by a clock of this machine. One that does not pass raises and changes nothing. One that
is already in the log, or admits who is already admitted, returns the record that did it: an
answer may get lost, and asking again must be safe.

A credential lives for 30 days of store time, which stands still while no coordinator is in
office, and is renewed by its node from half of that on. What follows from its end is for those
who serve to say (`mesh.trust`); to this log an expired node is a node as any other.

Records form a hash chain that begins at the swarm id, so a head (height, hash) stands for
everything before it. The chain shows what was admitted by whom; that it is the *newest* one
is for whoever hands it over to prove.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from swarmd.base.errors import (
    AlreadyExists,
    BadSignature,
    Conflict,
    MalformedMessage,
    NoMajorityLeft,
    NotFound,
    TokenRefused,
    TooLarge,
    Untrusted,
)
from swarmd.base.ids import NodeId, digest, node_id_of, short
from swarmd.base.limits import MEMBERS_MAX
from swarmd.base.names import check_name
from swarmd.identity.entries import (
    AddAdmin,
    AddToken,
    Admit,
    Approve,
    Entry,
    Evict,
    Policy,
    Record,
    Renew,
    RevokeAdmin,
    RevokeToken,
    SetRoles,
    decode_record,
    encode_record,
    open_entry,
)
from swarmd.identity.fingerprints import door_of
from swarmd.identity.genesis import Genesis
from swarmd.identity.keys import is_certificate_of
from swarmd.identity.requests import open_request
from swarmd.identity.signing import verify_envelope
from swarmd.identity.tokens import TOKEN_ROLES
from swarmd.wire.envelope import Envelope

CREDENTIAL_MS: Final = 30 * 24 * 3_600 * 1_000
RECORDS_MAX: Final = 100_000
# The last tenth of the log is for what people sign. Who cannot renew does not expire.
RENEWALS_UP_TO: Final = 90_000
TOKENS_MAX: Final = 10_000
ADMINS_MAX: Final = 64
MEMBER_ROLES: Final = frozenset(role for roles in TOKEN_ROLES.values() for role in roles)
assert MEMBERS_MAX < RECORDS_MAX


@dataclass(frozen=True, slots=True)
class Admission:
    """One node's membership. Times are store time in milliseconds."""

    node_id: NodeId
    public: bytes
    name: str
    certificate_der: bytes
    roles: tuple[str, ...]
    height: int
    not_before_ms: int
    expires_ms: int
    evicted: bool = False

    @property
    def renewable_ms(self) -> int:
        """Store time from which its node may renew it: half of its life."""
        return (self.not_before_ms + self.expires_ms) // 2


@dataclass(frozen=True, slots=True)
class LoggedToken:
    """What the log knows of a token: enough to check its bearer, not enough to be one."""

    token_id: NodeId
    public: bytes
    role: str
    uses_left: int
    expires_ms: int
    revoked: bool = False


def record_hash(raw: bytes) -> bytes:
    """The hash that the next record names as its past."""
    return digest(b"authority record", raw)


class AuthorityState:
    """The log and what follows from it. Pure: no clock, no chance, no disk."""

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis
        self.swarm_id = genesis.swarm_id
        self.min_version = 0
        self.store_time_ms = 0
        first = _first_admission(genesis)
        self.admissions: dict[NodeId, Admission] = {first.node_id: first}
        self.tokens: dict[NodeId, LoggedToken] = {}
        self.admins: dict[NodeId, bytes] = {node_id_of(genesis.admin_public): genesis.admin_public}
        self._records: list[bytes] = []
        self._hashes: list[bytes] = [self.swarm_id]
        self._heights: dict[bytes, int] = {}  # By digest of the payload: seen once, for ever.

    @property
    def head(self) -> tuple[int, bytes]:
        """Height and hash of the newest record; (0, swarm id) when there is none."""
        return len(self._records), self._hashes[-1]

    def hash_at(self, height: int) -> bytes | None:
        """The hash of the record at `height`, or None beyond the head."""
        return self._hashes[height] if 0 <= height < len(self._hashes) else None

    def records_from(self, height: int, limit: int = RECORDS_MAX) -> list[bytes]:
        """Up to `limit` records above `height`, in order."""
        return self._records[max(0, height) : max(0, height) + limit]

    def is_expired(self, admission: Admission, now_ms: int) -> bool:
        """Is the life of a credential over at store time `now_ms`?"""
        return admission.expires_ms <= now_ms and len(self._records) < RENEWALS_UP_TO

    def may_not_vote(self, node_id: NodeId) -> bool:
        """Was this node evicted, or has it lost the role of a voter? One never admitted has not."""
        admission = self.admissions.get(node_id)
        return admission is not None and (admission.evicted or "voter" not in admission.roles)

    def apply(
        self, raw_entry: bytes, store_time_ms: int, voters: Collection[NodeId] = ()
    ) -> Record:
        """Judge an entry and, if it passes, append it.

        Args:
            raw_entry: a signed entry, as `entries.sign_entry` makes it.
            store_time_ms: now, in store time; it never falls, so a lower one counts as the last.
            voters: those of the running epoch, a majority of whom keeps its vote. Records that
                are replayed were judged so when they were applied: then none are given.

        Returns:
            The record that now holds it; an older one if it had been applied before.

        Raises:
            SwarmError: by its cause; the state is as it was.
        """
        envelope, entry = open_entry(raw_entry)
        known = self._heights.get(digest(envelope.payload))
        if known is not None:
            return decode_record(self._records[known - 1])
        now_ms = max(store_time_ms, self.store_time_ms)
        self._verify(envelope, entry)
        if isinstance(entry, Admit | Approve):
            before = self._admitted_before(self._public_of(entry))
            if before is not None:
                return before
        if len(self._records) >= RECORDS_MAX:
            raise TooLarge(f"the authority log is full: it holds {RECORDS_MAX} records")
        change = self._judge[type(entry)](self, entry, now_ms)
        self._keep_a_majority(entry, voters)
        # Nothing below fails: from here on the entry is in.
        height, previous = self.head
        record = Record(height + 1, previous, now_ms, raw_entry)
        raw_record = encode_record(record)
        self._records.append(raw_record)
        self._hashes.append(record_hash(raw_record))
        self._heights[digest(envelope.payload)] = height + 1
        self.store_time_ms = now_ms
        change()
        return record

    def check(self, raw_entry: bytes, store_time_ms: int) -> None:
        """Raise what `apply` would raise; change nothing."""
        self.copy().apply(raw_entry, store_time_ms)

    def replay(self, raw_record: bytes) -> Record:
        """Verify a record that somebody sent as the next one, and append it.

        Raises:
            Untrusted: it does not follow this head, or its entry would not have been accepted.
            SwarmError: its entry is invalid in itself; the state is as it was.
        """
        record = decode_record(raw_record)
        height, head_hash = self.head
        if record.height != height + 1 or record.previous_hash != head_hash:
            raise Untrusted(f"authority record {record.height} does not follow record {height}")
        if record.store_time_ms < self.store_time_ms:
            raise Untrusted(f"authority record {record.height} is older than the one before it")
        applied = self.apply(record.entry, record.store_time_ms)
        if applied.height != record.height:
            raise Untrusted(f"authority record {record.height} repeats record {applied.height}")
        return applied

    def dump(self) -> list[bytes]:
        """All records; with the genesis they are the whole state."""
        return list(self._records)

    @classmethod
    def load(cls, genesis: Genesis, records: Iterable[bytes]) -> AuthorityState:
        """The state that `dump` wrote, every record verified again. Raises SwarmError."""
        state = cls(genesis)
        for raw in records:
            state.replay(raw)
        return state

    def copy(self) -> AuthorityState:
        """An independent state, to try a change on."""
        other = AuthorityState.__new__(AuthorityState)
        other.genesis, other.swarm_id = self.genesis, self.swarm_id
        other.min_version, other.store_time_ms = self.min_version, self.store_time_ms
        other.admissions = dict(self.admissions)
        other.tokens = dict(self.tokens)
        other.admins = dict(self.admins)
        other._records = list(self._records)
        other._hashes = list(self._hashes)
        other._heights = dict(self._heights)
        return other

    # ---- judging: each returns the change to make, or raises ---------------------------

    def _verify(self, envelope: Envelope, entry: Entry) -> None:
        if isinstance(entry, Admit):
            token = self.tokens.get(NodeId(entry.token_id))
            if token is None:
                raise TokenRefused("the join token is not known to this swarm; ask for a new one")
            keys = {bytes(token.token_id): token.public, node_id_of(entry.public): entry.public}
            if len(verify_envelope(envelope, self.swarm_id, keys)) != len(keys):
                raise BadSignature("an admission needs the token's signature and the node's own")
            return
        if isinstance(entry, Renew):
            mine = self._member(entry.node_id)
            verify_envelope(envelope, self.swarm_id, {bytes(mine.node_id): mine.public})
            return
        admins: dict[bytes, bytes] = {bytes(key): public for key, public in self.admins.items()}
        verify_envelope(envelope, self.swarm_id, admins)

    def _public_of(self, entry: Admit | Approve) -> bytes:
        if isinstance(entry, Admit):
            return entry.public
        return open_request(entry.request, door_of(self.swarm_id)).public

    def _admitted_before(self, public: bytes) -> Record | None:
        node_id = node_id_of(public)
        admission = self.admissions.get(node_id)
        if admission is None:
            return None
        if admission.evicted:
            raise Untrusted(
                f"node {short(node_id)} was evicted and its id is not used again; "
                "start it with an empty data folder to join as a new node"
            )
        if admission.height == 0:
            raise AlreadyExists("this is the node that founded the swarm; it needs no token")
        return decode_record(self._records[admission.height - 1])

    def _judge_add_token(self, entry: AddToken, now_ms: int) -> Callable[[], None]:
        token_id = node_id_of(entry.token_public)
        if entry.role not in TOKEN_ROLES:
            raise MalformedMessage(f"a token for the unknown role {entry.role!r}")
        if token_id in self.tokens:
            raise AlreadyExists(f"token {short(token_id)} is in the log already")
        if len(self.tokens) >= TOKENS_MAX:
            raise TooLarge(f"the swarm has had {TOKENS_MAX} tokens")
        if entry.expires_ms <= now_ms:
            raise TokenRefused("the join token would have expired before it is logged")
        token = LoggedToken(token_id, entry.token_public, entry.role, entry.uses, entry.expires_ms)
        return lambda: self.tokens.update({token_id: token})

    def _judge_revoke_token(self, entry: RevokeToken, now_ms: int) -> Callable[[], None]:
        token = self.tokens.get(NodeId(entry.token_id))
        if token is None:
            raise NotFound(f"there is no token {short(entry.token_id)}")
        revoked = replace(token, revoked=True)
        return lambda: self.tokens.update({revoked.token_id: revoked})

    def _judge_admit(self, entry: Admit, now_ms: int) -> Callable[[], None]:
        token = self.tokens[NodeId(entry.token_id)]
        check_token(token, now_ms)
        if not set(entry.roles) <= set(TOKEN_ROLES[token.role]):
            raise TokenRefused(
                f"the join token grants {', '.join(TOKEN_ROLES[token.role])}, "
                f"not {', '.join(entry.roles)}"
            )
        check_name(entry.name, "node")
        if not is_certificate_of(entry.public, entry.certificate_der):
            raise BadSignature("the certificate is not the one that the node's key makes")
        admission = self._admission(
            entry.public, entry.name, entry.certificate_der, entry.roles, now_ms
        )
        used = replace(token, uses_left=token.uses_left - 1)

        def change() -> None:
            self.admissions[admission.node_id] = admission
            self.tokens[used.token_id] = used

        return change

    def _judge_approve(self, entry: Approve, now_ms: int) -> Callable[[], None]:
        request = open_request(entry.request, door_of(self.swarm_id))
        self._check_roles(entry.roles)
        admission = self._admission(
            request.public, request.name, request.certificate_der, entry.roles, now_ms
        )
        return lambda: self.admissions.update({admission.node_id: admission})

    def _judge_renew(self, entry: Renew, now_ms: int) -> Callable[[], None]:
        admission = self._member(entry.node_id)
        if entry.expires_ms != admission.expires_ms:
            raise Conflict("the credential was renewed since this was asked for")
        if now_ms < admission.renewable_ms:
            raise Conflict("a credential is renewed when half of its life is over, and no earlier")
        if len(self._records) >= RENEWALS_UP_TO:
            raise TooLarge("the authority log has no room for renewals; nothing expires any more")
        renewed = replace(admission, not_before_ms=now_ms, expires_ms=now_ms + CREDENTIAL_MS)
        return lambda: self.admissions.update({renewed.node_id: renewed})

    def _judge_set_roles(self, entry: SetRoles, now_ms: int) -> Callable[[], None]:
        admission = self._member(entry.node_id)
        self._check_roles(entry.roles)
        changed = replace(admission, roles=entry.roles)
        return lambda: self.admissions.update({changed.node_id: changed})

    def _judge_evict(self, entry: Evict, now_ms: int) -> Callable[[], None]:
        changed = replace(self._member(entry.node_id), evicted=True)
        return lambda: self.admissions.update({changed.node_id: changed})

    def _judge_add_admin(self, entry: AddAdmin, now_ms: int) -> Callable[[], None]:
        admin_id = node_id_of(entry.admin_public)
        if admin_id in self.admins:
            raise AlreadyExists(f"{short(admin_id)} is an admin key already")
        if len(self.admins) >= ADMINS_MAX:
            raise TooLarge(f"a swarm has at most {ADMINS_MAX} admin keys")
        return lambda: self.admins.update({admin_id: entry.admin_public})

    def _judge_revoke_admin(self, entry: RevokeAdmin, now_ms: int) -> Callable[[], None]:
        admin_id = NodeId(entry.admin_id)
        if admin_id not in self.admins:
            raise NotFound(f"there is no admin key {short(admin_id)}")
        if len(self.admins) == 1:
            raise Conflict("the last admin key stays: add another before revoking it")

        def change() -> None:
            del self.admins[admin_id]

        return change

    def _judge_policy(self, entry: Policy, now_ms: int) -> Callable[[], None]:
        if entry.min_version < self.min_version:
            raise Conflict(
                f"the lowest version is {self.min_version} and never falls to {entry.min_version}"
            )

        def change() -> None:
            self.min_version = entry.min_version

        return change

    def _keep_a_majority(self, entry: Entry, voters: Collection[NodeId]) -> None:
        """Raise NoMajorityLeft if an entry takes a vote without which there is no majority.

        Who is dead has its vote here: this log does not know who lives.
        """
        taken = vote_taken_by(entry)
        left = [voter for voter in voters if not self.may_not_vote(voter)]
        if taken not in left or 2 * (len(left) - 1) > len(voters):
            return
        name = self.admissions[taken].name
        if len(voters) == 1:
            raise NoMajorityLeft(
                f"{name} is the only voter, and nothing changed: let another node vote first "
                f"(`swarmctl node roles`), then hand its seat on: `swarmctl --node {name} leave`"
            )
        raise NoMajorityLeft(
            f"without {name}, {len(left) - 1} of {len(voters)} voters would be left, which is no "
            "majority, and nothing changed: wait until seats were given on (`swarmctl voter "
            "list`), or let another node vote first, with `swarmctl node roles`"
        )

    def _check_roles(self, roles: tuple[str, ...]) -> None:
        unknown = sorted(set(roles) - MEMBER_ROLES)
        if unknown:
            raise MalformedMessage(f"an entry with the unknown role {unknown[0]!r}")

    def _admission(
        self,
        public: bytes,
        name: str,
        certificate_der: bytes,
        roles: tuple[str, ...],
        now_ms: int,
    ) -> Admission:
        """That of a new node, by the next record. Raises TooLarge."""
        if len(self.admissions) >= MEMBERS_MAX:
            raise TooLarge(f"the swarm has had {MEMBERS_MAX} nodes")
        return Admission(
            node_id=node_id_of(public),
            public=public,
            name=name,
            certificate_der=certificate_der,
            roles=roles,
            height=len(self._records) + 1,
            not_before_ms=now_ms,
            expires_ms=now_ms + CREDENTIAL_MS,
        )

    def _member(self, node_id: bytes) -> Admission:
        admission = self.admissions.get(NodeId(node_id))
        if admission is None:
            raise NotFound(f"there is no node {short(node_id)}")
        if admission.evicted:
            raise Conflict(f"node {short(node_id)} was evicted")
        return admission

    _judge: ClassVar[dict[type[Any], Callable[[AuthorityState, Any, int], Callable[[], None]]]] = {
        AddToken: _judge_add_token,
        RevokeToken: _judge_revoke_token,
        Admit: _judge_admit,
        SetRoles: _judge_set_roles,
        Evict: _judge_evict,
        AddAdmin: _judge_add_admin,
        RevokeAdmin: _judge_revoke_admin,
        Policy: _judge_policy,
        Approve: _judge_approve,
        Renew: _judge_renew,
    }


def vote_taken_by(entry: Entry) -> NodeId | None:
    """The node that may not vote once this entry is applied; None if it takes nobody's vote."""
    if isinstance(entry, Evict) or (isinstance(entry, SetRoles) and "voter" not in entry.roles):
        return NodeId(entry.node_id)
    return None


def check_token(token: LoggedToken, now_ms: int) -> None:
    """Refuse, with TokenRefused, a token that admits nobody at store time `now_ms`."""
    if token.revoked:
        raise TokenRefused("the join token was revoked; ask for a new one")
    if token.expires_ms <= now_ms:
        raise TokenRefused("the join token has expired; ask for a new one")
    if token.uses_left < 1:
        raise TokenRefused("the join token is used up; ask for a new one")


def _first_admission(genesis: Genesis) -> Admission:
    return Admission(
        node_id=node_id_of(genesis.first_node_public),
        public=genesis.first_node_public,
        name=genesis.first_node_name,
        certificate_der=genesis.first_node_certificate,
        roles=TOKEN_ROLES["member"],
        height=0,
        not_before_ms=0,
        expires_ms=CREDENTIAL_MS,
    )
