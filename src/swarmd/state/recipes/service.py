"""Locks, elections, barriers and counters over the strong store, from any node.

Rules:
- A place in a line is a key with a lease (see `records`). No node keeps anything of it, so a
  caller may go on at any other node with the number of its lease.
- A lock that is given up wakes the one who is next, not all who wait. While somebody waits
  here, its lease is renewed here.
- Who gives up or is cancelled gives its lease back, in the background if need be; who crashes
  leaves it to its TTL.
- Every wait has its timeout. Not to be first within it is an error that names who is.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import (
    BarrierWaits,
    Conflict,
    LockHeld,
    LockLost,
    NotACounter,
    RemoteError,
    Unavailable,
)
from swarmd.base.lapse import kill_after_s, renew_after_s
from swarmd.base.rng import Rng, derive
from swarmd.state.raft.messages import Add
from swarmd.state.recipes.lines import Line, Lines, Place, Store
from swarmd.state.recipes.news import News
from swarmd.state.recipes.records import (
    Kind,
    Ticket,
    checked_count,
    checked_owner,
    checked_value,
    counter_key,
    line_of,
)
from swarmd.state.recipes.waiting import Standing, Wait

__all__ = ["Kind", "Line", "Place", "Recipes", "Standing", "open_recipes"]

_RETRY_S: Final = 0.2
# A machine that slept is seen to have slept this soon.
_NAP_S: Final = 1.0


class Recipes:
    """Made by `open_recipes`."""

    def __init__(self, store: Store, clock: Clock, rng: Rng, nursery: trio.Nursery) -> None:
        self._store = store
        self._clock = clock
        self._rng = derive(rng, "waits")
        self._lines = Lines(store, nursery)
        self._news = News(store, derive(rng, "news"))

    # ---- holding -------------------------------------------------------------------------

    async def acquire(
        self,
        kind: Kind,
        name: str,
        owner: str,
        *,
        ttl_s: float,
        wait_s: float,
        value: bytes = b"",
        request: bytes = b"",
        count: int = 0,
    ) -> Standing:
        """Hold a lock, lead, or pass a barrier, as soon as it is this caller's turn.

        Args:
            owner: who asks, for people.
            ttl_s: how long the place lasts after its last renewal.
            wait_s: longest wait; 0 asks without waiting.
            value: what a leader tells about itself.
            request: a name of this call's own; repeating the call with it, here or at another
                node, stands in line once.
            count: how many the barrier waits for.

        Returns:
            A standing with its fence. `keep` renews it, `leave` ends it.

        Raises:
            LockHeld, BarrierWaits: not within `wait_s`; no place is kept.
            BadName, BadTtl, BadRequest, BarrierMismatch, TooManyWaiters: no place is kept.
            NoQuorum: a place that may have been taken ends with its TTL.

        Cancellation: no place is kept.
        """
        deadline = trio.current_time() + wait_s
        while True:
            standing = await self.enter(
                kind, name, owner, ttl_s=ttl_s, value=value, request=request, count=count
            )
            try:
                standing = await self.wait(standing, deadline - trio.current_time())
            except LockLost:
                if trio.current_time() >= deadline:
                    raise
                continue  # The voters were out of reach for longer than the TTL.
            except BaseException:
                self._lines.leave_soon(standing.place)
                raise
            if standing.fence:
                return standing
            self._lines.leave_soon(standing.place)
            raise not_in_time(standing)

    async def enter(
        self,
        kind: Kind,
        name: str,
        owner: str,
        *,
        ttl_s: float,
        value: bytes = b"",
        request: bytes = b"",
        count: int = 0,
    ) -> Standing:
        """Take a place and do not wait; `wait` goes on from there. Raises what `acquire` does."""
        if kind is Kind.BARRIER:
            checked_count(count)
        ticket = Ticket(
            checked_owner(owner),
            round(ttl_s * 1_000),
            self._clock.wall_ms(),
            checked_value(value),
            request,
            count,
        )
        sent = self._clock.now()
        place = await self._lines.join(kind, name, ticket)
        if place.ticket == ticket:
            return Standing(place, sent)
        return await self._renewed(place)  # An earlier call took it: who knows how long ago.

    async def resume(self, kind: Kind, name: str, lease: int) -> Standing:
        """Go on with a place that was taken here or at another node.

        Raises:
            LockLost: it has ended.
            BadName, BadRequest, NoQuorum.
        """
        return await self._renewed(await self._lines.find(kind, name, lease))

    async def _renewed(self, place: Place) -> Standing:
        sent = self._clock.now()
        await self._lines.renew(place)
        return Standing(place, sent)

    async def wait(self, standing: Standing, wait_s: float) -> Standing:
        """Wait until a place has its fence, at most `wait_s`; its lease is renewed meanwhile.

        Raises:
            LockLost: the lease has ended.
            TooManyWaiters, BarrierMismatch: it is of no use; leave it.
            Unavailable: the voters could not be asked even once.
        """
        wait = Wait(self._store, self._lines, self._news, self._clock, self._rng, standing)
        return await wait.run(wait_s)

    async def keep(self, standing: Standing) -> None:
        """Renew a place for ever; return when it can be relied on no more.

        The holder must have stopped by then. Cancel it before `leave`.
        """
        ttl_s, renewed_at = standing.place.ttl_s, standing.renewed_at
        while True:
            now = self._clock.now()
            left_s = renewed_at + kill_after_s(ttl_s) - now
            due_s = renewed_at + renew_after_s(ttl_s) - now
            if left_s <= 0:
                return
            if due_s > 0:
                await trio.sleep(min(due_s, _NAP_S))
                continue
            with trio.move_on_after(left_s):
                try:
                    await self._lines.renew(standing.place)
                    renewed_at = now
                except LockLost:
                    return
                except (Unavailable, RemoteError):
                    await trio.sleep(_RETRY_S * self._rng.uniform(0.5, 1.0))

    async def leave(self, kind: Kind, name: str, lease: int) -> None:
        """Give a place up, held or not. Raises LockLost: it had ended before."""
        await self._lines.leave(await self._lines.find(kind, name, lease))

    def leave_soon(self, place: Place) -> None:
        """Give a place up in the background; where that fails its TTL ends it."""
        self._lines.leave_soon(place)

    # ---- looking -------------------------------------------------------------------------

    async def look(self, kind: Kind, name: str) -> Line:
        """Everybody in a line. Raises BadName, TooManyWaiters, NoQuorum."""
        return await self._lines.look(kind, name)

    async def all(self, kind: Kind) -> list[Line]:
        """Every line with somebody in it, by name."""
        return await self._lines.all(kind)

    async def observe(self, kind: Kind, name: str, *, after: int, wait_s: float) -> Line:
        """The line as soon as its holder has another fence than `after` (0: nobody holds).

        After `wait_s` it is the line as it is then.
        """
        deadline = trio.current_time() + wait_s
        with self._news.about(line_of(kind, name)) as moved:
            while True:
                moved.renew()
                line = await self._lines.look(kind, name)
                fence = line.holder.revision if line.holder is not None else 0
                if fence != after or trio.current_time() >= deadline:
                    return line
                with trio.move_on_at(deadline):
                    await moved.wait()

    # ---- counters ------------------------------------------------------------------------

    async def count(self, name: str, delta: int) -> int:
        """Add to a counter; its value then. A counter is a user's key that holds a number.

        Raises:
            NotACounter: the key holds something else.
            TooLarge: the number would leave 64 bits.
            NoQuorum: whether it was added is unknown.
        """
        (result,) = await self._store.propose([Add(counter_key(name), delta)])
        if result.code == Conflict.code:
            raise _no_counter(name)
        return int(result.raise_for_error().value or b"0")

    async def count_of(self, name: str) -> int:
        """A counter's value; 0 if there is none. Raises NotACounter, NoQuorum."""
        entry = await self._store.get(counter_key(name))
        if entry is None:
            return 0
        try:
            return int(entry.value.decode("ascii"))
        except ValueError:
            raise _no_counter(name) from None


def not_in_time(standing: Standing) -> LockHeld | BarrierWaits:
    """The error that says why a place has no fence."""
    place, holder = standing.place, standing.holder
    if place.kind is Kind.BARRIER:
        return BarrierWaits(
            f"barrier {place.name!r}: {standing.line} of {place.ticket.count} came in time; "
            "wait longer, or look who is missing"
        )
    verb = "led" if place.kind is Kind.ELECTION else "held"
    what = f"{place.kind.noun} {place.name!r}"
    if holder is None:
        return LockHeld(f"{what} could not be looked at in time: try again")
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(holder.ticket.asked_ms / 1_000))
    others = f", and {standing.ahead - 1} more are before you" if standing.ahead > 1 else ""
    return LockHeld(
        f"{what} is {verb} by {holder.ticket.owner}, who asked at {since}{others}; wait longer, "
        "or end what holds it"
    )


def _no_counter(name: str) -> NotACounter:
    return NotACounter(f"the key {name!r} holds no whole number: name another counter")


@asynccontextmanager
async def open_recipes(store: Store, clock: Clock, rng: Rng) -> AsyncIterator[Recipes]:
    """Serve recipes for as long as the block runs. Places that are held then lapse or are left."""
    async with trio.open_nursery() as nursery:
        recipes = Recipes(store, clock, rng, nursery)
        nursery.start_soon(recipes._news.run)
        try:
            yield recipes
        finally:
            nursery.cancel_scope.cancel()
