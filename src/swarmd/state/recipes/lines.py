"""Lines: who takes part in a recipe, in the order they came.

A place is entered by one transaction under a lease of its own, and left by revoking that
lease. Whatever is cancelled on the way gives the lease back, in the background.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol

import trio

from swarmd.base.errors import (
    Conflict,
    IdempotencyConflict,
    LeaseExpired,
    LockLost,
    SwarmError,
    TooManyWaiters,
)
from swarmd.base.limits import RECIPE_WAITERS_MAX
from swarmd.observe.log import get_logger
from swarmd.state.raft.messages import (
    Change,
    Compare,
    Entry,
    GrantLease,
    Operation,
    OpResult,
    Put,
    RenewLease,
    RevokeLease,
    Txn,
)
from swarmd.state.recipes.records import (
    Kind,
    Ticket,
    decode_ticket,
    encode_ticket,
    kind_prefix,
    line_of,
    place_key,
    read_place,
    request_key,
)

# A line that is longer cannot be seen whole, and then nobody in it may believe to be first.
_LINE_MAX: Final = 2 * RECIPE_WAITERS_MAX
_RACES_MAX: Final = 5
_PAGE: Final = 1_000
_LEAVING_MAX: Final = 1_000
_LEAVE_TIMEOUT_S: Final = 5.0
_log = get_logger("recipes")


class Store(Protocol):
    """What the recipes ask of the strong store."""

    async def propose(
        self, ops: Sequence[Operation], *, timeout_s: float = 5.0
    ) -> Sequence[OpResult]: ...

    async def get(self, key: bytes, *, stale: bool = False) -> Entry | None: ...

    async def range(
        self, prefix: bytes, after: bytes = b"", limit: int = 1_000, *, stale: bool = False
    ) -> Sequence[Entry]: ...

    def watch(
        self, prefix: bytes, from_revision: int | None = None
    ) -> AsyncGenerator[tuple[list[Change], int], None]: ...


@dataclass(frozen=True)
class Place:
    """A place in a line."""

    kind: Kind
    name: str
    entry: Entry

    @property
    def key(self) -> bytes:
        return self.entry.key

    @property
    def lease(self) -> int:
        return self.entry.lease

    @property
    def revision(self) -> int:
        """When it was entered: the fence, once this place is the first."""
        return self.entry.create_revision

    @property
    def ttl_s(self) -> float:
        return self.ticket.ttl_ms / 1_000

    @cached_property
    def ticket(self) -> Ticket:
        return decode_ticket(self.entry.value)


@dataclass(frozen=True, slots=True)
class Line:
    """Everybody in one line; the first is the holder of a lock, the leader of an election."""

    kind: Kind
    name: str
    places: tuple[Place, ...]

    @property
    def holder(self) -> Place | None:
        return self.places[0] if self.places else None


class _Granting:
    """A lease on its way, and whether anybody still waits for it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.lease = 0
        self.error: BaseException | None = None
        self.abandoned = False


class Lines:
    """Made by `open_recipes`."""

    def __init__(self, store: Store, nursery: trio.Nursery) -> None:
        self._store = store
        self._nursery = nursery
        self._leaving = 0

    # ---- taking part ---------------------------------------------------------------------

    async def join(self, kind: Kind, name: str, ticket: Ticket) -> Place:
        """Enter a line; the same request again gets the place that it has.

        Raises:
            BadName, BadRequest, BadTtl: nothing changed.
            IdempotencyConflict: the request got a place in another line.
            NoQuorum: no place is kept for longer than the TTL.

        Cancellation: no place is kept.
        """
        line_of(kind, name)
        for _ in range(_RACES_MAX):
            lease = await self._grant(ticket.ttl_ms)
            try:
                result = await self._enter(kind, name, ticket, lease)
            except BaseException:
                self._revoke_soon(lease)
                raise
            if result.ok:
                key = place_key(kind, name, lease)
                revision = result.revision
                entry = Entry(key, encode_ticket(ticket), revision, revision, lease)
                return Place(kind, name, entry)
            self._revoke_soon(lease)
            if result.code == Conflict.code and ticket.request:
                found = await self._place_of(kind, name, ticket.request)
                if found is not None:
                    return found
            elif result.code != LeaseExpired.code:
                result.raise_for_error()
        raise TooManyWaiters(f"the line of {name!r} could not be entered: try again")

    async def _enter(self, kind: Kind, name: str, ticket: Ticket, lease: int) -> OpResult:
        key = place_key(kind, name, lease)
        puts = [Put(key, encode_ticket(ticket), lease=lease)]
        compares = [Compare(key, 0)]
        if ticket.request:
            asked = request_key(ticket.request)
            puts.append(Put(asked, key, lease=lease))
            compares.append(Compare(asked, 0))
        (result,) = await self._store.propose([Txn(tuple(compares), tuple(puts))])
        return result

    async def _place_of(self, kind: Kind, name: str, request: bytes) -> Place | None:
        """The place that a request got before; None if it went meanwhile."""
        asked = await self._store.get(request_key(request))
        if asked is None:
            return None
        if not asked.value.startswith(line_of(kind, name)):
            raise IdempotencyConflict("this request was made for another name: draw a new one")
        entry = await self._store.get(asked.value)
        return None if entry is None else Place(kind, name, entry)

    async def find(self, kind: Kind, name: str, lease: int) -> Place:
        """The place that goes with a lease. Raises LockLost."""
        entry = await self._store.get(place_key(kind, name, lease))
        if entry is None:
            raise lost(kind, name)
        return Place(kind, name, entry)

    async def renew(self, place: Place) -> None:
        """Raises LockLost, and Unavailable: it may or may not be renewed."""
        (result,) = await self._store.propose([RenewLease(place.lease)])
        if result.code == LeaseExpired.code:
            raise lost(place.kind, place.name)
        result.raise_for_error()

    async def leave(self, place: Place) -> None:
        """Give a place up. Raises LockLost: it was lost before."""
        (result,) = await self._store.propose([RevokeLease(place.lease)])
        if result.code == LeaseExpired.code:
            raise lost(place.kind, place.name)
        result.raise_for_error()

    def leave_soon(self, place: Place) -> None:
        """Give a place up in the background; if that cannot be done its TTL does it."""
        self._revoke_soon(place.lease)

    # ---- looking -------------------------------------------------------------------------

    async def look(self, kind: Kind, name: str) -> Line:
        """Everybody in a line, in order.

        Raises:
            TooManyWaiters: there are more than can be looked at.
        """
        entries = await self._store.range(line_of(kind, name), limit=_LINE_MAX)
        if len(entries) >= _LINE_MAX:
            raise too_many(name)
        return _line(kind, name, entries)

    async def all(self, kind: Kind) -> list[Line]:
        """Every line of a kind, by name."""
        prefix, after = kind_prefix(kind), b""
        by_name: dict[str, list[Entry]] = {}
        while True:
            page = await self._store.range(prefix, after=after, limit=_PAGE)
            for entry in page:
                by_name.setdefault(read_place(entry.key)[0], []).append(entry)
            if len(page) < _PAGE:
                return [_line(kind, name, entries) for name, entries in by_name.items()]
            after = page[-1].key

    # ---- leases --------------------------------------------------------------------------

    async def _grant(self, ttl_ms: int) -> int:
        """A new lease; it is given back if nobody waits for it any more when it comes."""
        granting = _Granting()
        self._nursery.start_soon(self._grant_here, ttl_ms, granting)
        try:
            await granting.done.wait()
        except trio.Cancelled:
            granting.abandoned = True
            if granting.lease:
                self._revoke_soon(granting.lease)
            raise
        if granting.error is not None:
            raise granting.error
        return granting.lease

    async def _grant_here(self, ttl_ms: int, granting: _Granting) -> None:
        try:
            (result,) = await self._store.propose([GrantLease(ttl_ms)])
            granting.lease = result.raise_for_error().revision
        except SwarmError as error:
            granting.error = error
        granting.done.set()
        if granting.abandoned and granting.lease:
            self._revoke_soon(granting.lease)

    def _revoke_soon(self, lease: int) -> None:
        if self._leaving < _LEAVING_MAX:
            self._leaving += 1
            self._nursery.start_soon(self._revoke, lease)

    async def _revoke(self, lease: int) -> None:
        try:
            await self._store.propose([RevokeLease(lease)], timeout_s=_LEAVE_TIMEOUT_S)
        except SwarmError as error:
            _log.debug("a place was not given up; its lease will lapse", why=error.message)
        finally:
            self._leaving -= 1


def _line(kind: Kind, name: str, entries: Sequence[Entry]) -> Line:
    ordered = sorted(entries, key=lambda entry: entry.create_revision)
    return Line(kind, name, tuple(Place(kind, name, entry) for entry in ordered))


def lost(kind: Kind, name: str) -> LockLost:
    return LockLost(
        f"{kind.noun} {name!r}: the lease has ended, somebody else may be in this place by now; "
        "stop what depends on it, then ask anew"
    )


def too_many(name: str) -> TooManyWaiters:
    return TooManyWaiters(f"{RECIPE_WAITERS_MAX} wait for {name!r} already: try again later")
