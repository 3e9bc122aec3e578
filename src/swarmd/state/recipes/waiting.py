"""One caller's wait: for its turn in a line, or for a barrier to open.

Who waits looks at the line, then sleeps until what it waits for moves, its lease is due for
renewal, or its time is over. A look that finds nobody to ask is made again; only the first
one's error is told, because without it there is nothing to tell.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import BarrierMismatch, Conflict, LeaseExpired, RemoteError, Unavailable
from swarmd.base.lapse import renew_after_s
from swarmd.base.limits import RECIPE_WAITERS_MAX
from swarmd.base.rng import Rng
from swarmd.state.raft.messages import Put, Txn
from swarmd.state.recipes.lines import Lines, Place, Store, lost, too_many
from swarmd.state.recipes.news import Interest, News
from swarmd.state.recipes.records import Kind, encode_ticket, line_of

_RETRY_MIN_S: Final = 0.05
_RETRY_MAX_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a place stands.

    Attributes:
        fence: 0 while it waits.
        ahead: places before it that have not passed.
        line: places that have not passed, itself among them.
        holder: the first of the line; None before the first look.
        renewed_at: when, on this node's clock, that renewal was sent which the lease counts from.
    """

    place: Place
    renewed_at: float
    fence: int = 0
    ahead: int = 0
    line: int = 0
    holder: Place | None = None


class Wait:
    """See the module."""

    def __init__(
        self, store: Store, lines: Lines, news: News, clock: Clock, rng: Rng, standing: Standing
    ) -> None:
        self._store = store
        self._lines = lines
        self._news = news
        self._clock = clock
        self._rng = rng
        self._place = standing.place
        self._renewed_at = standing.renewed_at
        self._found: Standing | None = None
        # What moves when it is worth looking again.
        self._awaited = standing.place.key

    async def run(self, wait_s: float) -> Standing:
        """See `Recipes.wait`."""
        deadline = trio.current_time() + max(wait_s, 0.0)
        barrier = self._place.kind is Kind.BARRIER
        look = self._look_at_barrier if barrier else self._look_at_line
        delay_s = _RETRY_MIN_S
        with self._news.about(line_of(self._place.kind, self._place.name)) as moved:
            while True:
                moved.renew()
                try:
                    found = await self._look(look, deadline)
                    delay_s = _RETRY_MIN_S
                except (Unavailable, RemoteError):
                    if trio.current_time() + delay_s >= deadline:
                        if self._found is None:
                            raise
                        return self._found
                    await trio.sleep(delay_s * self._rng.uniform(0.5, 1.0))
                    delay_s = min(delay_s * 2.0, _RETRY_MAX_S)
                    continue
                if found.fence or trio.current_time() >= deadline:
                    return found
                await self._sleep(moved, deadline)

    async def _look(self, look: Callable[[], Awaitable[Standing]], deadline: float) -> Standing:
        """A look; once there was one, another is not worth going beyond the deadline."""
        before = self._found
        with trio.move_on_at(deadline if before is not None else math.inf):
            await self._renew_if_due()
            self._found = await look()
        assert self._found is not None
        return self._found

    async def _renew_if_due(self) -> None:
        sent = self._clock.now()
        if sent >= self._renewed_at + renew_after_s(self._place.ttl_s):
            await self._lines.renew(self._place)
            self._renewed_at = sent

    async def _sleep(self, moved: Interest, deadline: float) -> None:
        with self._news.about(self._awaited) as awaited:
            if moved.moved:
                return  # Since the look began, and what it was is not known.
            due_s = self._renewed_at + renew_after_s(self._place.ttl_s) - self._clock.now()
            with trio.move_on_at(min(deadline, trio.current_time() + max(due_s, 0.0))):
                await awaited.wait()

    def _index_in(self, places: Sequence[Place]) -> int:
        for index, place in enumerate(places):
            if place.lease == self._place.lease:
                return index
        raise lost(self._place.kind, self._place.name)

    # ---- in a line -----------------------------------------------------------------------

    async def _look_at_line(self) -> Standing:
        places = (await self._lines.look(self._place.kind, self._place.name)).places
        ahead = self._index_in(places)
        if ahead > RECIPE_WAITERS_MAX:
            raise too_many(self._place.name)
        self._awaited = places[max(ahead - 1, 0)].key
        return Standing(
            self._place,
            self._renewed_at,
            fence=self._place.revision if ahead == 0 else 0,
            ahead=ahead,
            line=len(places),
            holder=places[0],
        )

    # ---- at a barrier --------------------------------------------------------------------

    async def _look_at_barrier(self) -> Standing:
        """Look, and open it if enough have come: the one who completes the number does so.

        Who comes later opens it as well, if that one died before it could.
        """
        while True:
            places = (await self._lines.look(self._place.kind, self._place.name)).places
            mine = places[self._index_in(places)]
            if mine.ticket.opened:
                return Standing(mine, self._renewed_at, fence=mine.entry.mod_revision)
            waiting = [place for place in places if not place.ticket.opened]
            count = self._count_at(waiting[0])
            if len(waiting) < count:
                self._awaited = mine.key
                ahead = waiting.index(mine)
                return Standing(
                    mine, self._renewed_at, ahead=ahead, line=len(waiting), holder=waiting[0]
                )
            if not await self._open(waiting[:count]):
                await trio.sleep(_RETRY_MIN_S)  # One of them went: look who is left.

    def _count_at(self, first: Place) -> int:
        """The count that all at the barrier must agree on: that of the first."""
        count, asked = first.ticket.count, self._place.ticket.count
        if asked != count:
            raise BarrierMismatch(
                f"barrier {self._place.name!r} waits for {count}, as {first.ticket.owner} asked "
                f"first, not for {asked}: give the same count, or another name"
            )
        return count

    async def _open(self, group: Sequence[Place]) -> bool:
        """Let all of `group` through under one revision; False if one of them has gone."""
        puts = tuple(
            Put(
                place.key,
                encode_ticket(msgspec.structs.replace(place.ticket, opened=True)),
                expect=place.entry.mod_revision,
                lease=place.lease,
            )
            for place in group
        )
        (result,) = await self._store.propose([Txn((), puts)])
        if result.code in (Conflict.code, LeaseExpired.code):
            return False
        result.raise_for_error()
        return True
