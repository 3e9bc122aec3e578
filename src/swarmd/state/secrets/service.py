"""Secrets of the swarm: set, listed, deleted, and opened for who may use them.

Their keys are held by members that may vote. Every other member has what it needs done by one of
those: a secret is set there, and what an agent refers to is opened there (`agents.environment`).

Every node follows which secrets change, so that whoever was given a value can tell whether it
still is the present one (`is_stale`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import msgspec
import trio

from swarmd.base.clock import Clock
from swarmd.base.disk import Disk
from swarmd.base.errors import (
    Conflict,
    CorruptFile,
    NotFound,
    RemoteError,
    SecretInUse,
    SwarmError,
    TooLarge,
    Unavailable,
)
from swarmd.base.limits import SECRETS_MAX
from swarmd.base.rng import Rng
from swarmd.mesh.link import Inbound, Link
from swarmd.observe.log import get_logger, hide
from swarmd.state.raft.messages import SECRET_PREFIX, Change, Compare, Delete, Put, Txn
from swarmd.state.secrets.keyring import Keyring
from swarmd.state.secrets.machine import Step, steps
from swarmd.state.secrets.messages import SECRETS, SetAsk, SetDone
from swarmd.state.secrets.records import (
    RING_KEY,
    USES_KEY,
    VALUE_PREFIX,
    Box,
    SecretRecord,
    about_secret,
    check_value,
    decode_secret,
    secret_key,
)
from swarmd.state.secrets.resealing import Sealed, reseal
from swarmd.state.secrets.ring import (
    Membership,
    Ring,
    Store,
    Trust,
    raise_unless_raced,
)

__all__ = ["SecretRecord", "Secrets", "open_secrets"]

_log = get_logger("secrets")
_RACES_MAX: Final = 5
_PAGE: Final = 50
_HANDLERS_MAX: Final = 16
_SET_TIMEOUT_S: Final = 10.0
_RETRY_MIN_S: Final = 0.1
_RETRY_MAX_S: Final = 5.0
# What could not be done is tried again this soon, and later and later; what is due by time is
# seen this late.
_AGAIN_S: Final = 1.0
_AGAIN_MAX_S: Final = 30.0
_LOOK_S: Final = 60.0
# A walk through all that is sealed counts for so long.
_WALK_S: Final = 3_600.0
# Changed names that are remembered one by one.
_CHANGED_MAX: Final = 4 * SECRETS_MAX

Users = Callable[[], Awaitable[Sequence[str]]]


class Secrets:
    """Made by `open_secrets`."""

    def __init__(
        self,
        store: Store,
        trust: Trust,
        link: Link,
        membership: Membership,
        disk: Disk,
        clock: Clock,
        rng: Rng,
    ) -> None:
        self._store = store
        self._trust = trust
        self._link = link
        self._clock = clock
        self._rng = rng
        self._kinds = [Sealed(VALUE_PREFIX, self._box_of, _with_box)]
        self._walked: tuple[bytes, frozenset[bytes], float] | None = None
        self._wake = trio.Event()
        # Set as well when the pause after what could not be done ends, too.
        self._urged = trio.Event()
        self._changed: OrderedDict[str, int] = OrderedDict()
        self._changed_before = 0
        self.ring = Ring(store, trust, link, membership, Keyring(disk))
        self.ring.on_change = self._look

    @property
    def swarm_id(self) -> bytes:
        return self._trust.swarm_id

    def also_seals(self, kind: Sealed) -> None:
        """Seal these records anew, too, when the key changes. Told before there are any."""
        self._kinds.append(kind)
        self._walked = None
        self._look()

    # ---- for callers -----------------------------------------------------------------

    async def set(self, name: str, value: str, by: str) -> int:
        """Give a secret a value; the number of its version.

        Raises:
            BadRequest, TooLarge: of the name or the value, or there are too many secrets.
            Conflict: others set it at the same time, and went on doing so.
            InsufficientCopies, NoQuorum, Unavailable: nothing changed.
        """
        raw, key = check_value(value), secret_key(name)
        hide(name, value)
        if not self.ring.may_hold:
            return await self._have_set(SetAsk(name, value, by[:128]))
        for _ in range(_RACES_MAX):
            ring, while_ring = await self.ring.to_seal()
            entry = await self._store.get(key)
            before = _record_of(entry)
            if entry is None and len(await self.list()) >= SECRETS_MAX:
                raise TooLarge(f"a swarm has at most {SECRETS_MAX} secrets: delete some")
            now_ms = self._store.store_time_ms()
            version, made_ms = (before.version + 1, before.made_ms) if before else (1, now_ms)
            about = about_secret(self.swarm_id, name, version, made_ms)
            box = self.ring.seal(ring, raw, about)
            record = SecretRecord(name, version, made_ms, now_ms, by[:128], box)
            unchanged = Compare(key, revision=entry.mod_revision if entry is not None else 0)
            put = Put(key, msgspec.msgpack.encode(record))
            [result] = await self._store.propose([Txn((while_ring, unchanged), (put,))])
            if result.ok:
                _log.info("a secret was set", secret=name, version=version, by=by)
                return version
            raise_unless_raced(result)
        raise Conflict(f"the secret {name} is being set by others at the same time; try again")

    async def list(self) -> list[SecretRecord]:
        """All of them, by name, with their values sealed."""
        found: list[SecretRecord] = []
        after = b""
        while page := await self._store.range(VALUE_PREFIX, after=after, limit=_PAGE):
            for entry in page:
                record = _record_of(entry)
                if record is not None:
                    found.append(record)
            after = page[-1].key
        return found

    async def delete(self, name: str, by: str, users: Users, *, force: bool = False) -> None:
        """Delete a secret.

        Args:
            users: names what refers to it now.
            force: also if something does; it will not start any more.

        Raises:
            NotFound.
            SecretInUse: something refers to it, and not `force`.
            Conflict: it is being set at the same time, or something begins to refer to it.
        """
        key = secret_key(name)
        for _ in range(_RACES_MAX):
            uses = await self._store.get(USES_KEY)
            entry = await self._store.get(key)
            if entry is None:
                raise NotFound(f"there is no secret {name}")
            named = [] if force else await users()
            if named:
                raise SecretInUse(
                    f"the secret {name} is used by {', '.join(named[:5])}: deploy "
                    f"{'it' if len(named) == 1 else 'them'} without it first, or use --force"
                )
            as_seen = Compare(USES_KEY, revision=uses.mod_revision if uses is not None else 0)
            unchanged = Compare(key, revision=entry.mod_revision)
            [result] = await self._store.propose([Txn((as_seen, unchanged), (Delete(key),))])
            if result.ok:
                _log.info("a secret was deleted", secret=name, by=by)
                return
            raise_unless_raced(result)
        raise Conflict(f"the secret {name} is changed by others at the same time; try again")

    async def value(self, name: str) -> tuple[str, int]:
        """A secret's value, on a member that may vote, and the revision it is of.

        Raises:
            NotFound: there is no such secret.
            SecretUnreadable: no key for it can be had.
        """
        entry = await self._store.get(secret_key(name))
        if entry is None:
            raise NotFound(f"there is no secret {name}: set it with `swarmctl secret set {name}`")
        record = decode_secret(entry.value)
        about = about_secret(self.swarm_id, name, record.version, record.made_ms)
        raw = await self.ring.open(record.box, about, f"the secret {name}")
        value = raw.decode(errors="replace")
        hide(name, value)
        return value, entry.mod_revision

    def hide(self, values: Mapping[str, str]) -> None:
        """Never write these secrets, by name, in this daemon's log."""
        for name, value in values.items():
            hide(name, value)

    def opens(self, record: SecretRecord) -> bool:
        """False if this node should hold its key, and does not."""
        return not self.ring.may_hold or self.ring.holds(record.box.key)

    # ---- what changes ----------------------------------------------------------------

    def known_to(self) -> int:
        """What is read from now on counts from this revision at least."""
        return self._changed_before

    def is_stale(self, revisions: Mapping[str, int]) -> bool:
        """Has any of these secrets, by the revision that was read, changed since?"""
        return any(
            revision < max(self._changed_before, self._changed.get(name, 0))
            for name, revision in revisions.items()
        )

    def _note(self, change: Change) -> None:
        name = change.key[len(VALUE_PREFIX) :].decode(errors="replace")
        self._changed[name] = change.revision
        self._changed.move_to_end(name)
        while len(self._changed) > _CHANGED_MAX:
            _, revision = self._changed.popitem(last=False)
            self._changed_before = max(self._changed_before, revision)

    async def _follow(self) -> None:
        """Follow the ring and the secrets of the store, until cancelled."""
        delay_s = _RETRY_MIN_S
        while True:
            try:
                async with aclosing(self._store.watch(SECRET_PREFIX)) as watched:
                    first = True
                    async for changes, revision in watched:
                        for change in changes:
                            if change.key.startswith(VALUE_PREFIX):
                                self._note(change)
                        if first:  # What came before is not told.
                            self._changed_before = max(self._changed_before, revision)
                        if first or any(change.key == RING_KEY for change in changes):
                            await self.ring.read()
                        first, delay_s = False, _RETRY_MIN_S
            except SwarmError as error:
                _log.debug("the watch of secrets begins anew", why=error.message)
            await trio.sleep(delay_s * self._rng.uniform(0.5, 1.0))
            delay_s = min(delay_s * 2.0, _RETRY_MAX_S)

    # ---- tending the ring --------------------------------------------------------------

    def _look(self) -> None:
        self._wake.set()

    def _urge(self) -> None:
        self._urged.set()
        self._look()

    async def _tend(self) -> None:
        """Do what the ring needs, as soon as it does, until cancelled."""
        again_s = _AGAIN_S
        while True:
            self._wake = trio.Event()
            self._urged = trio.Event()
            for step in steps(self.ring.facts(self._sealed_under())):
                try:
                    await self._do(step)
                except SwarmError as error:
                    _log.debug("a step for secrets is left", step=step.name, why=error.message)
            if steps(self.ring.facts(self._sealed_under())):
                # However much would wake us, it is not tried all the time; but at once after an
                # eviction or an election, of which there are few.
                with trio.move_on_after(again_s * self._rng.uniform(0.5, 1.0)):
                    await self._urged.wait()
                again_s = min(again_s * 2.0, _AGAIN_MAX_S)
                continue
            again_s = _AGAIN_S
            with trio.move_on_after(_LOOK_S):
                await self._wake.wait()

    async def _do(self, step: Step) -> None:
        ring = self.ring.record
        if step is Step.FORGET:
            self.ring.forget()
            _log.info("keys for secrets were deleted: this node may not vote")
        elif step is Step.ROTATE:
            await self.ring.ensure(fresh=True)
        elif ring is None:
            return
        elif step is Step.FETCH:
            await self.ring.fetch(ring.ids)
        elif step is Step.RESEAL:
            left = await reseal(self._store, self.ring, ring, self._kinds)
            if left is not None:
                self._walked = ring.newest.id, left, self._clock.now()
        elif step is Step.RETIRE:
            await self.ring.retire(self._sealed_under() or frozenset())

    def _sealed_under(self) -> frozenset[bytes] | None:
        ring = self.ring.record
        if self._walked is None or ring is None:
            return None
        newest, found, at = self._walked
        if newest != ring.newest.id or self._clock.now() - at > _WALK_S:
            return None
        return found

    async def _mind_trust(self) -> None:
        version = self._trust.version
        while True:
            await self._trust.changed(version)
            version = self._trust.version
            self._urge()

    async def _mind_office(self) -> None:
        while True:
            await self._store.office_changed()
            self._walked = None
            self._urge()

    # ---- others ----------------------------------------------------------------------

    async def _have_set(self, ask: SetAsk) -> int:
        """Have a member that holds keys set a secret."""
        for node in self.ring.holders():
            try:
                answer = await self._link.request(SECRETS, node, ask, timeout_s=_SET_TIMEOUT_S)
            except Unavailable as error:
                _log.debug("a member sets no secret", why=error.message)
                continue
            if not isinstance(answer, SetDone):
                raise RemoteError("a member answered another question")
            return answer.version
        raise Unavailable("no member that may vote can be reached to seal a secret: try again")

    async def _serve(self, inbox: trio.MemoryReceiveChannel[Inbound]) -> None:
        answering = trio.Semaphore(_HANDLERS_MAX)

        async def answer(inbound: Inbound) -> None:
            try:
                await inbound.answer(await self._answer(inbound))
            except SwarmError as error:
                await inbound.fail(error)
            finally:
                answering.release()

        async with inbox, trio.open_nursery() as nursery:
            async for inbound in inbox:
                await answering.acquire()
                nursery.start_soon(answer, inbound)

    async def _answer(self, inbound: Inbound) -> Any:
        message = inbound.message
        if isinstance(message, SetAsk):
            if not self.ring.may_hold:
                raise Unavailable("this member holds no keys for secrets: ask another one")
            return SetDone(await self.set(message.name, message.value, message.by))
        return await self.ring.answer(inbound.peer, message)

    # ---- sealing anew ------------------------------------------------------------------

    def _box_of(self, raw: bytes) -> tuple[Box, bytes, str]:
        record = decode_secret(raw)
        about = about_secret(self.swarm_id, record.name, record.version, record.made_ms)
        return record.box, about, f"the secret {record.name}"


def _with_box(raw: bytes, box: Box) -> bytes:
    return msgspec.msgpack.encode(msgspec.structs.replace(decode_secret(raw), box=box))


def _record_of(entry: Any) -> SecretRecord | None:
    """What an entry holds; None if it is not there, or this version cannot read it."""
    if entry is None:
        return None
    try:
        return decode_secret(entry.value)
    except CorruptFile as error:
        _log.error("a secret is left out", key=repr(entry.key), error=error.message)
        return None


@asynccontextmanager
async def open_secrets(
    store: Store,
    trust: Trust,
    link: Link,
    membership: Membership,
    disk: Disk,
    clock: Clock,
    rng: Rng,
) -> AsyncIterator[Secrets]:
    """Hold this node's part of the keys, and answer others, for as long as the block runs.

    Args:
        disk: where the keys are kept; nothing else may read it.

    Raises:
        CorruptFile: the keys on it cannot be read.
    """
    secrets = Secrets(store, trust, link, membership, disk, clock, rng)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(secrets._serve, link.open_inbox(SECRETS))
        nursery.start_soon(secrets._follow)
        nursery.start_soon(secrets._tend)
        nursery.start_soon(secrets._mind_trust)
        nursery.start_soon(secrets._mind_office)
        try:
            yield secrets
        finally:
            nursery.cancel_scope.cancel()
