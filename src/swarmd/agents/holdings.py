"""What one attempt asks of the swarm while it runs: locks, barriers, counters.

Rules:
- What an attempt holds ends with the attempt.
- Its locks are renewed here. One that cannot be relied on any more costs the attempt: its
  process is killed before anybody else can hold the lock.
- Once the attempt is cancelled whatever it waits for is answered with that, so that it can see
  it and end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from swarmd.base.errors import AgentCancelled, BadRequest, Busy, NotReady, SwarmError
from swarmd.sdk import protocol
from swarmd.state.recipes.service import Kind, Recipes, Standing

ASKS_MAX: Final = 64
HELD_MAX: Final = 64
_BARRIER_TTL_S: Final = 15.0
_WAIT_MAX_S: Final = 24 * 3_600.0

# (ask, code, message, value, lease)
Answer = Callable[[int, str, str, int, int], Awaitable[None]]


_WORDS: Final = {
    protocol.LOCK: "lock",
    protocol.UNLOCK: "unlock",
    protocol.BARRIER: "barrier",
    protocol.ADD: "add to counter",
    protocol.COUNT: "read counter",
}


def _unheard(what: str, outcome: str) -> None:
    """Nobody wants to know."""


class Holdings:
    """One attempt's.

    Args:
        owner: who asks, for people.
        answer: sends one answer; must not raise.
        lost: told why the attempt must not go on; must kill it at once.
        called: told of each question when it was answered: what for, and how it ended.
    """

    def __init__(
        self,
        recipes: Recipes | None,
        owner: str,
        nursery: trio.Nursery,
        answer: Answer,
        lost: Callable[[str], None],
        called: Callable[[str, str], None] = _unheard,
    ) -> None:
        self._recipes = recipes
        self._owner = owner
        self._nursery = nursery
        self._answer = answer
        self._lost = lost
        self._called = called
        self._asking: dict[trio.CancelScope, None] = {}
        self._held: dict[int, tuple[Standing, trio.CancelScope]] = {}
        self._cancelled = False
        # Beyond ASKS_MAX they are refused; beyond this the agent is not even read.
        self._room = trio.Semaphore(2 * ASKS_MAX)

    async def ask(self, ask: int, what: int, name: str, first: int, second: int) -> None:
        """Answer one question, in a task of its own; wait while too many are being answered."""
        await self._room.acquire()
        scope = trio.CancelScope()
        self._asking[scope] = None
        self._nursery.start_soon(self._serve, scope, ask, what, name, first, second)

    def cancel(self) -> None:
        """The attempt is cancelled: nothing is waited for any more, what is held stays."""
        self._cancelled = True
        for scope in self._asking:
            scope.cancel()

    def close(self) -> None:
        """The attempt has ended: give back what it holds."""
        self.cancel()
        for standing, scope in self._held.values():
            scope.cancel()
            if self._recipes is not None:
                self._recipes.leave_soon(standing.place)
        self._held.clear()

    async def _serve(
        self, scope: trio.CancelScope, ask: int, what: int, name: str, first: int, second: int
    ) -> None:
        answer: tuple[str, str, int, int] = (AgentCancelled.code, "cancelled", 0, 0)
        try:
            if len(self._asking) > ASKS_MAX:
                raise Busy(f"an attempt asks for at most {ASKS_MAX} things at once")
            with scope:
                value, lease = await self._do(what, name, first, second)
                answer = ("", "", value, lease)
        except SwarmError as error:
            answer = (error.code, error.message, 0, 0)
        finally:
            del self._asking[scope]
            self._called(f"{_WORDS.get(what, 'unknown')} {name}", answer[0] or "ok")
        try:
            await self._answer(ask, *answer)
        finally:
            self._room.release()

    async def _do(self, what: int, name: str, first: int, second: int) -> tuple[int, int]:
        recipes = self._recipes
        if recipes is None:
            raise NotReady("this node has no strong store to ask")
        if what == protocol.UNLOCK:
            self._unlock(recipes, first)
            return 0, 0
        if self._cancelled:
            raise AgentCancelled("cancelled")
        if what == protocol.LOCK:
            return await self._lock(recipes, name, first / 1_000, _wait_s(second))
        if what == protocol.BARRIER:
            standing = await recipes.acquire(
                Kind.BARRIER,
                name,
                self._owner,
                ttl_s=_BARRIER_TTL_S,
                wait_s=_wait_s(second),
                count=first,
            )
            recipes.leave_soon(standing.place)
            return standing.fence, 0
        if what == protocol.ADD:
            return await recipes.count(name, first), 0
        if what == protocol.COUNT:
            return await recipes.count_of(name), 0
        raise BadRequest(f"this version of swarmd does not know what {what} asks for")

    async def _lock(
        self, recipes: Recipes, name: str, ttl_s: float, wait_s: float
    ) -> tuple[int, int]:
        if len(self._held) >= HELD_MAX:
            raise Busy(f"an attempt holds at most {HELD_MAX} locks")
        standing = await recipes.acquire(Kind.LOCK, name, self._owner, ttl_s=ttl_s, wait_s=wait_s)
        lease = standing.place.lease
        if self._cancelled:
            recipes.leave_soon(standing.place)
            raise AgentCancelled("cancelled")
        scope = trio.CancelScope()
        self._held[lease] = (standing, scope)
        self._nursery.start_soon(self._keep, recipes, standing, scope)
        return standing.fence, lease

    async def _keep(self, recipes: Recipes, standing: Standing, scope: trio.CancelScope) -> None:
        with scope:
            await recipes.keep(standing)
            self._lost(f"the lock {standing.place.name!r} could not be kept")

    def _unlock(self, recipes: Recipes, lease: int) -> None:
        held = self._held.pop(lease, None)
        if held is not None:
            standing, scope = held
            scope.cancel()
            # The agent need not wait for it: from its answer on it holds nothing.
            recipes.leave_soon(standing.place)


def _wait_s(ms: int) -> float:
    return min(max(ms / 1_000, 0.0), _WAIT_MAX_S)
