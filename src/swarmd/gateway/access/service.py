"""API keys and sessions, as this node knows them.

Every node watches the keys in the strong store, so a request costs a look-up, and a key that is
revoked is refused everywhere as soon as the change arrives, which takes milliseconds; streams
that it opened end then, too. A node that is cut off from the majority goes on with the keys it last
knew, and learns when it heals; a key's end is store time, which stands still without a
coordinator. Until the keys were read once, nobody is known by one: that is `not_ready`, not a
refusal.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Final, Protocol

import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import (
    AlreadyExists,
    BadRequest,
    Conflict,
    CorruptFile,
    Forbidden,
    NotFound,
    NotReady,
    SwarmError,
    TooLarge,
    Unauthenticated,
)
from swarmd.base.ids import ID_BYTES, NodeId, from_text, to_text
from swarmd.base.rng import Rng
from swarmd.gateway.access.records import (
    KEYS_MAX,
    REQUESTS_PER_MIN_MAX,
    KeyRecord,
    decode_key,
    encode_key,
    record_key,
)
from swarmd.gateway.access.rules import EVERYTHING, Caller, rules_of
from swarmd.identity.api_keys import KEY_TEXT_BEGIN, api_key_hash
from swarmd.identity.authority import Admission
from swarmd.identity.keys import SigningKey
from swarmd.identity.sessions import SESSION_S_MAX, Session, issue_session, read_session
from swarmd.observe.log import get_logger
from swarmd.state.raft.messages import (
    ACCESS_PREFIX,
    Change,
    Delete,
    Entry,
    Operation,
    OpResult,
    Put,
)

_RETRY_MIN_S: Final = 0.1
_RETRY_MAX_S: Final = 5.0
# A credential that ends by time is seen to within so long.
_LOOK_S: Final = 1.0
_LAG_S: Final = 5.0

_log = get_logger("access")


class Store(Protocol):
    """What this room asks of the strong store."""

    async def propose(
        self, ops: Sequence[Operation], *, timeout_s: float = 5.0
    ) -> Sequence[OpResult]: ...
    async def range(
        self, prefix: bytes, *, after: bytes = b"", limit: int = 1_000, stale: bool = False
    ) -> Sequence[Entry]: ...
    def watch(
        self, prefix: bytes, from_revision: int | None = None
    ) -> AsyncGenerator[tuple[list[Change], int], None]: ...
    def store_time_ms(self) -> int: ...


class Trust(Protocol):
    @property
    def swarm_id(self) -> bytes: ...
    def admission(self, node_id: NodeId) -> Admission | None: ...


class Access:
    """Who stands behind a credential. Open it with `open_access`."""

    def __init__(self, store: Store, trust: Trust, key: SigningKey, clock: Clock, rng: Rng) -> None:
        self._store = store
        self._trust = trust
        self._key = key
        self._clock = clock
        self._rng = rng
        self._by_hash: Mapping[bytes, tuple[KeyRecord, Caller]] | None = None
        self._changed = trio.Event()

    # ---- who it is -------------------------------------------------------------------

    def caller_of(self, credential: str) -> Caller:
        """Who shows this API key or session.

        Raises:
            Unauthenticated: nobody known by it, or no longer.
            NotReady: the keys were not read yet.
        """
        if credential.startswith(KEY_TEXT_BEGIN):
            return self._by_key(api_key_hash(credential))
        now_s = self._clock.wall_ms() / 1000
        session = read_session(credential, self._trust.swarm_id, self._signer, now_s)
        if session.key:
            return self._by_key(_hash_in(session.key), session.exp)
        return Caller(session.sub, session.rules, session=True, ends_s=session.exp)

    async def until_over(self, caller: Caller) -> None:
        """Wait until what `caller` showed counts no more; for ever for a local user."""
        if not caller.key and not caller.ends_s:
            await trio.sleep_forever()
        began, known = trio.current_time(), False
        while True:
            known = known or self._knows(caller)
            # Another node may know of a key before this one does.
            is_late = not known and trio.current_time() - began < _LAG_S
            if not is_late and self._is_over(caller):
                return
            changed = self._changed
            with trio.move_on_after(_LOOK_S):
                await changed.wait()

    def _knows(self, caller: Caller) -> bool:
        return not caller.key or caller.key in (self._by_hash or {})

    def _is_over(self, caller: Caller) -> bool:
        if caller.ends_s and caller.ends_s <= self._clock.wall_ms() / 1000:
            return True
        if not caller.key:
            return False
        try:
            self._by_key(caller.key)
        except Unauthenticated:
            return True
        except NotReady:
            return False
        return False

    def _by_key(self, key_hash: bytes, session_ends_s: int = 0) -> Caller:
        if self._by_hash is None:
            raise NotReady("this node has not read the API keys yet: try again shortly")
        known = self._by_hash.get(key_hash)
        if known is None:
            raise Unauthenticated(
                "the API key is not known to this swarm: it was revoked, or is another swarm's"
            )
        record, caller = known
        if record.expires_ms and record.expires_ms <= self._store.store_time_ms():
            raise Unauthenticated(f"the API key {record.name} has expired: ask for a new one")
        if session_ends_s:
            return replace(caller, session=True, ends_s=session_ends_s)
        return caller

    def _signer(self, node_id: NodeId) -> bytes | None:
        """The key of a member that may vote: as few as can be sign for callers."""
        admission = self._trust.admission(node_id)
        if admission is None or admission.evicted or "voter" not in admission.roles:
            return None
        return admission.public

    def open_session(self, caller: Caller, ttl_s: int) -> tuple[str, Session]:
        """A token that stands in for `caller`.

        Raises:
            BadRequest: longer than 15 minutes, or for a caller that is a session already.
            Conflict: this node may sign none.
        """
        if not 1 <= ttl_s <= SESSION_S_MAX:
            raise BadRequest(f"a session lasts from 1 to {SESSION_S_MAX} s")
        if caller.session:
            raise BadRequest("a session makes no other one: ask with the API key itself")
        node_id = self._key.key_id
        if self._signer(node_id) is None:
            raise Conflict("this node may not vote, so it signs no sessions: ask another one")
        now_s = self._clock.wall_ms() // 1000
        session = Session(
            iss=to_text(node_id),
            aud=to_text(self._trust.swarm_id),
            sub=caller.name,
            iat=now_s,
            exp=now_s + ttl_s,
            key=to_text(caller.key) if caller.key else "",
            rules=() if caller.key else caller.rules,
        )
        return issue_session(self._key, session), session

    # ---- keys ------------------------------------------------------------------------

    async def keys(self) -> list[KeyRecord]:
        """All of them, by name; also those that have expired."""
        found = []
        for entry in await self._store.range(ACCESS_PREFIX, limit=KEYS_MAX):
            try:
                found.append(decode_key(entry.value))
            except CorruptFile as error:
                _log.error("an API key is left out", key=repr(entry.key), error=error.message)
        return found

    async def create(
        self,
        name: str,
        key_hash: bytes,
        *,
        role: str,
        rules: Sequence[str],
        ttl_s: float,
        requests_per_min: int,
        creator: Caller,
    ) -> KeyRecord:
        """Have the swarm know a key by its hash.

        Raises:
            BadRequest: of the name, the hash, the role, a rule or a number.
            Forbidden: it may what its creator may not.
            AlreadyExists: the name is taken; a key is never changed.
        """
        for rule in rules_of(role, rules):
            if not creator.may_give(rule):
                what = "everything" if rule == EVERYTHING else rule
                raise Forbidden(f"{creator.name} may not allow {what}: it may not do that itself")
        if len(key_hash) != ID_BYTES:
            raise BadRequest(f"the hash of a key has {ID_BYTES} bytes")
        if not 0 <= requests_per_min <= REQUESTS_PER_MIN_MAX:
            raise BadRequest(f"requests_per_min is from 0 to {REQUESTS_PER_MIN_MAX}")
        if not 0 <= ttl_s < 1e9:
            raise BadRequest("a key lasts for less than 30 years; ttl_s 0 is for ever")
        where = record_key(name)
        if len(await self.keys()) >= KEYS_MAX:
            raise TooLarge(f"a swarm has at most {KEYS_MAX} API keys: revoke some")
        now_ms = self._store.store_time_ms()
        record = KeyRecord(
            name=name,
            hash=key_hash,
            role=role,
            rules=tuple(rules),
            created_ms=now_ms,
            expires_ms=now_ms + int(ttl_s * 1000) if ttl_s else 0,
            requests_per_min=requests_per_min,
            created_by=creator.name[:128],
        )
        [result] = await self._store.propose([Put(where, encode_key(record), 0)])
        try:
            result.raise_for_error()
        except Conflict as error:
            raise AlreadyExists(
                f"there is a key {name}: revoke it first, or choose another name"
            ) from error
        _log.info("an API key was made", key=name, role=role, by=creator.name)
        return record

    async def revoke(self, name: str, revoked_by: str) -> None:
        """Have a key count no more. Raises NotFound."""
        where = record_key(name)
        found = await self._store.range(where, limit=1)
        if not found or found[0].key != where:
            raise NotFound(f"there is no API key {name}")
        [result] = await self._store.propose([Delete(where)])
        result.raise_for_error()
        _log.info("an API key was revoked", key=name, by=revoked_by)

    # ---- staying true ----------------------------------------------------------------

    async def run(self) -> None:
        """Follow the keys of the store, until cancelled."""
        delay_s = _RETRY_MIN_S
        while True:
            try:
                async with aclosing(self._store.watch(ACCESS_PREFIX)) as watched:
                    first = True
                    async for changes, _ in watched:
                        if changes or first:
                            # Keys change rarely; to read all leaves nothing to get wrong.
                            self._by_hash = {
                                one.hash: (one, _caller(one)) for one in await self.keys()
                            }
                            self._changed.set()
                            self._changed = trio.Event()
                            first, delay_s = False, _RETRY_MIN_S
            except SwarmError as error:
                _log.debug("the watch of API keys begins anew", why=error.message)
            await trio.sleep(delay_s * self._rng.uniform(0.5, 1.0))
            delay_s = min(delay_s * 2.0, _RETRY_MAX_S)


def _caller(record: KeyRecord) -> Caller:
    name, limit = f"key {record.name}", record.requests_per_min
    return Caller(name, record.allows, record.hash, requests_per_min=limit)


def _hash_in(text: str) -> bytes:
    try:
        return from_text(text)
    except BadRequest as error:
        raise Unauthenticated("the session was refused: it names no key") from error


@asynccontextmanager
async def open_access(
    store: Store, trust: Trust, key: SigningKey, clock: Clock, rng: Rng
) -> AsyncIterator[Access]:
    """Follow the keys for as long as the block runs."""
    access = Access(store, trust, key, clock, rng)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(access.run)
        yield access
        nursery.cancel_scope.cancel()
