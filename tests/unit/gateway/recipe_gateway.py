"""A gateway with recipes over a store in memory."""

from __future__ import annotations

import sys
from pathlib import Path

import trio
from gateway_fakes import LiveGateway

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from memory_store import MemoryStore

from swarmd.base.clock import BootClock
from swarmd.base.rng import make_rng
from swarmd.state.recipes.service import open_recipes


class RecipeGateway(LiveGateway):
    """A gateway with recipes; `store` is what they rest on."""

    store: MemoryStore

    async def _run(self) -> None:
        self.store = MemoryStore()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.store.end_leases)
            async with open_recipes(self.store, BootClock(), make_rng(1)) as recipes:
                self.services.recipes = recipes
                await super()._run()
            nursery.cancel_scope.cancel()
