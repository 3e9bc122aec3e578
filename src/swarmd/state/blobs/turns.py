"""Whose turn it is to have a pipe, where more want one than may be open.

So many are open in all, each with a thread, and so many to one peer, which allows no more. Who
waits gets the next place in the order of asking, and who has had one for a while gives it up then:
so a small blob does not wait for large ones, and nothing for who is slow.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from swarmd.base.ids import NodeId

TURN_S: Final = 2.0


class Turn:
    """A place that one has; `is_over` may be asked in a thread."""

    def __init__(self, *places: trio.Semaphore) -> None:
        self._places = places
        self._ends_at = time.monotonic() + TURN_S

    def is_over(self) -> bool:
        if time.monotonic() < self._ends_at:
            return False
        return any(one.statistics().tasks_waiting for one in self._places)


class Turns:
    """Args: how many places there are in all, and to one peer."""

    def __init__(self, in_all: int, per_peer: int) -> None:
        self._in_all = trio.Semaphore(in_all)
        self._per_peer = per_peer
        self._peers: dict[NodeId, trio.Semaphore] = {}
        self._users: Counter[NodeId] = Counter()

    @asynccontextmanager
    async def turn(self, peer: NodeId) -> AsyncIterator[Turn]:
        """Wait for a place, and have it until the block ends."""
        places = self._peers.setdefault(peer, trio.Semaphore(self._per_peer))
        self._users[peer] += 1
        try:
            async with places, self._in_all:
                yield Turn(places, self._in_all)
        finally:
            self._users[peer] -= 1
            if not self._users[peer]:
                del self._users[peer], self._peers[peer]
