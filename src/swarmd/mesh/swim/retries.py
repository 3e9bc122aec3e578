"""The dead are tried again for ever, so that a partition of any length heals.

Each was tried within four retry intervals after the last time, however many there are: the more
are dead, the more often one of them is asked. Members share the work, for it is enough that one
finds one; but each half does it twice, and a small side of a partition all of it. The most recent
are asked more often than the others.
"""

from __future__ import annotations

import math
from typing import Final

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, SetTimer
from swarmd.base.rng import Rng
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.events import RetryTick
from swarmd.mesh.swim.ledger import Ledger
from swarmd.mesh.swim.members import DEAD_MAX
from swarmd.mesh.swim.post import Post
from swarmd.mesh.swim.probes import Pending, Pendings

_INTERVALS: Final = 4
# Of each few that are asked, one is among so many of the most recently dead.
_RECENT: Final = 8


class Retries:
    """Which of the dead to ask, and when."""

    def __init__(
        self, config: SwimConfig, rng: Rng, ledger: Ledger, post: Post, pendings: Pendings
    ) -> None:
        self._config = config
        self._rng = rng
        self._ledger = ledger
        self._post = post
        self._pendings = pendings
        self._next = rng.randrange(DEAD_MAX)  # Members begin at different places.

    def first_tick(self) -> Effect:
        return SetTimer(self._rng.uniform(0.5, 1.0) * self._config.retry_interval_s, RetryTick())

    def on_tick(self) -> list[Effect]:
        if self._ledger.leaving:
            return []
        config, dead = self._config, self._ledger.members.dead()
        share = max(1, self._ledger.members.present_count // 2)
        least = math.ceil(len(dead) / (_INTERVALS * share))
        rate = max(1.0, least / max(1, config.retry_dead - 1)) if config.retry_dead else 1.0
        interval_s = config.retry_interval_s / rate * self._rng.uniform(0.9, 1.1)
        return [SetTimer(interval_s, RetryTick()), *map(self._ask, self._choose(dead))]

    def _choose(self, dead: list[NodeId]) -> list[NodeId]:
        """One of the most recent, and the next few of all of them."""
        count = self._config.retry_dead
        if len(dead) <= count:
            return dead
        chosen = [dead[self._rng.randrange(min(_RECENT, len(dead)))]] if count > 1 else []
        for _ in range(count):
            node_id = dead[self._next % len(dead)]
            if len(chosen) < count and node_id not in chosen:
                chosen.append(node_id)
                self._next += 1
        return chosen

    def _ask(self, peer: NodeId) -> Effect:
        return self._post.ping(peer, self._pendings.open(Pending("retry", peer)))
