"""A gateway with shared memory and caches over stores in memory."""

from __future__ import annotations

import sys
from pathlib import Path

from gateway_fakes import LiveGateway

sys.path.insert(0, str(Path(__file__).parents[1] / "memory"))

from memory_swarm import OneStore, memory_swarm


class MemoryGateway(LiveGateway):
    """A gateway of one node; `store` is its strong store."""

    store: OneStore

    async def _run(self) -> None:
        async with memory_swarm(1) as swarm:
            self.store = swarm.store
            self.services.memory = swarm.stations[0].memory
            self.services.cache = swarm.stations[0].cache
            await super()._run()
