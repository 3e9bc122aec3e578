"""A swarm of stores with recipes on every running node, and callers that move between nodes."""

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from store_swarm import Swarm, TrioClock, running_swarm

from swarmd.base.errors import SwarmError
from swarmd.base.lapse import kill_after_s, renew_after_s
from swarmd.base.rng import make_rng
from swarmd.state.recipes.service import Kind, Recipes, Standing, open_recipes

TTL_S = 3.0


@dataclass
class Station:
    """The recipes of one node while it runs."""

    recipes: Recipes
    scope: trio.CancelScope


class RecipeSwarm:
    """Nodes with recipes; `crash` ends both."""

    def __init__(self, swarm: Swarm, nursery: trio.Nursery) -> None:
        self.swarm = swarm
        self._nursery = nursery
        self._stations: dict[int, Station] = {}

    async def start(self, *indices: int) -> None:
        await self.swarm.start(*indices)
        for index in indices:
            self._stations[index] = await self._nursery.start(self._run, index)

    async def _run(self, index: int, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        store = self.swarm.store(index)
        rng = make_rng(f"recipes {index} {trio.current_time()}")
        with trio.CancelScope() as scope:
            async with open_recipes(store, TrioClock(), rng) as recipes:
                task_status.started(Station(recipes, scope))
                await trio.sleep_forever()

    async def crash(self, *indices: int) -> None:
        for index in indices:
            self._stations.pop(index).scope.cancel()
        await self.swarm.crash(*indices)

    async def settled(self) -> None:
        """Wait until all agree on as many voters as there should be, and one coordinates."""
        size = 3 if len(self.up) > 2 else 1

        def agreed() -> bool:
            stores = [self.swarm.store(index) for index in self.up]
            alike = len({store.voters for store in stores}) == 1
            one_serves = any(store.serving() is not None for store in stores)
            return alike and one_serves and len(stores[0].voters) == size

        await until(agreed, within_s=10.0)

    @property
    def voters(self) -> list[int]:
        return [self.swarm.index_of(voter) for voter in self.swarm.store(self.up[0]).voters]

    @property
    def up(self) -> list[int]:
        return sorted(self._stations)

    def at(self, index: int) -> Recipes:
        """The recipes of a node that runs."""
        return self._stations[index].recipes

    def scope_of(self, index: int) -> trio.CancelScope:
        """Cancelled when the node crashes."""
        return self._stations[index].scope

    async def is_free(self, name: str, kind: Kind = Kind.LOCK) -> bool:
        return not (await self.at(self.up[0]).look(kind, name)).places

    async def keys_left(self) -> list[bytes]:
        """Keys of recipes in the store."""
        found = await self.swarm.store(self.up[0]).range(b"c/")
        return [entry.key for entry in found]


@asynccontextmanager
async def recipe_swarm(*indices: int) -> AsyncIterator[RecipeSwarm]:
    """Nodes that run, with the voters that they are to have."""
    async with running_swarm() as swarm, trio.open_nursery() as nursery:
        recipes = RecipeSwarm(swarm, nursery)
        await recipes.start(*indices)
        await recipes.settled()
        yield recipes
        nursery.cancel_scope.cancel()


async def until(holds: Callable[[], bool], *, within_s: float = 5.0) -> None:
    with trio.fail_after(within_s):
        while not holds():  # noqa: ASYNC110 - what is waited for sets no event
            await trio.sleep(0.01)


@dataclass
class Ledger:
    """Who believed to hold what, when: (fence, begin, end, who)."""

    rows: list[tuple[int, float, float, str]] = field(default_factory=list)
    granted: list[tuple[float, int]] = field(default_factory=list)

    def problems(self) -> list[str]:
        """Overlaps, and fences that do not rise, in words."""
        found = []
        rows = sorted(self.rows, key=lambda row: row[1])
        for (fence, begin, end, who), later in itertools.pairwise(rows):
            if later[1] < end:
                found.append(f"{later} began before {who} of {begin} had ended at {end}")
            if later[0] <= fence:
                found.append(f"fence {later[0]} came after {fence}")
        return found


class Caller:
    """A program beside the daemons: it asks any of them, and outlives each."""

    def __init__(self, swarm: RecipeSwarm, number: int, ledger: Ledger) -> None:
        self.swarm = swarm
        self.name = f"caller {number}"
        self.ledger = ledger
        self.turn = number
        self.got = 0
        self.lapsed = 0
        self.refused = 0

    def _recipes(self) -> Recipes:
        self.turn += 1
        return self.swarm.at(self.swarm.up[self.turn % len(self.swarm.up)])

    async def hold_once(self, name: str, *, hold_s: float, wait_s: float) -> None:
        """Wait for the lock, hold it for a while, give it back."""
        standing = await self._acquire(name, wait_s)
        if standing is None:
            return
        self.got += 1
        began = trio.current_time()
        lapsed = await self._keep(standing, began + hold_s)
        ended = trio.current_time()
        self.lapsed += lapsed
        self.ledger.rows.append((standing.fence, began, ended, self.name))
        if not lapsed:
            await self._leave(name, standing.place.lease)

    async def _acquire(self, name: str, wait_s: float) -> Standing | None:
        """As a client of the API does: in short waits, going on with the lease elsewhere."""
        deadline = trio.current_time() + wait_s
        lease = 0
        request = f"{self.name} {self.turn}".encode()[:32]
        while trio.current_time() < deadline:
            try:
                with trio.fail_after(6):
                    recipes = self._recipes()
                    if lease:
                        standing = await recipes.resume(Kind.LOCK, name, lease)
                    else:
                        standing = await recipes.enter(
                            Kind.LOCK, name, self.name, ttl_s=TTL_S, request=request
                        )
                        lease = standing.place.lease
                    standing = await recipes.wait(standing, 2.0)
                    if standing.fence:
                        return standing
            except SwarmError as error:
                self.refused += 1
                if error.code == "lock_lost":
                    lease, request = 0, f"{self.name} {self.turn}".encode()[:32]
                await trio.sleep(0.05)
            except trio.TooSlowError:
                self.refused += 1
        if lease:
            await self._leave(name, lease)
        return None

    async def _keep(self, standing: Standing, until: float) -> bool:
        """True if the lease could not be kept until then."""
        renewed_at = standing.renewed_at
        ttl_s = standing.place.ttl_s
        while trio.current_time() < until:
            if trio.current_time() >= renewed_at + kill_after_s(ttl_s):
                return True
            await trio.sleep(
                min(until - trio.current_time(), renew_after_s(ttl_s) / 2, 0.2) or 0.001
            )
            if trio.current_time() < renewed_at + renew_after_s(ttl_s):
                continue
            with trio.move_on_at(min(until, renewed_at + kill_after_s(ttl_s))):
                sent = trio.current_time()
                try:
                    place = standing.place
                    await self._recipes().resume(place.kind, place.name, place.lease)
                    renewed_at = sent
                except SwarmError as error:
                    if error.code == "lock_lost":
                        return True
                    await trio.sleep(0.05)
        return False

    async def _leave(self, name: str, lease: int) -> None:
        for _ in range(20):
            try:
                await self._recipes().leave(Kind.LOCK, name, lease)
                return
            except SwarmError as error:
                if error.code == "lock_lost":
                    return
                await trio.sleep(0.2)
