"""Who waits is told that something moved: one watch, of all recipes, for a whole node.

A thousand waiters must not be a thousand watches. There is one, which runs while anybody here
waits. It tells by key and by line; what moved is then read from the store, so that telling
too much does no harm. Whenever the watch begins or begins anew, everybody is told: what
happened in between is unknown.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Final, Protocol

import trio

from swarmd.base.errors import SwarmError
from swarmd.base.rng import Rng
from swarmd.observe.log import get_logger
from swarmd.state.raft.messages import RECIPE_PREFIX, Change

_RETRY_MIN_S: Final = 0.05
_RETRY_MAX_S: Final = 1.0
_log = get_logger("recipes")


class Watchable(Protocol):
    """What is asked of the strong store here."""

    def watch(
        self, prefix: bytes, from_revision: int | None = None
    ) -> AsyncGenerator[tuple[list[Change], int], None]: ...


class Interest:
    """Somebody who wants to know of one key, or of all keys of one line."""

    __slots__ = ("_moved",)

    def __init__(self) -> None:
        self._moved = trio.Event()

    @property
    def moved(self) -> bool:
        """Has anything moved since the interest began, or since `renew`?"""
        return self._moved.is_set()

    def renew(self) -> None:
        """From now on only what moves later counts. Read the store after this, not before."""
        if self._moved.is_set():
            self._moved = trio.Event()

    async def wait(self) -> None:
        await self._moved.wait()

    def tell(self) -> None:
        self._moved.set()


class News:
    """See the module; `run` must run.

    Args:
        prefix: what the keys begin with that anybody may wait for.
    """

    def __init__(self, store: Watchable, rng: Rng, prefix: bytes = RECIPE_PREFIX) -> None:
        self._store = store
        self._rng = rng
        self._prefix = prefix
        self._interests: dict[bytes, dict[Interest, None]] = {}
        self._wanted = trio.Event()

    @contextmanager
    def about(self, key: bytes) -> Iterator[Interest]:
        """An interest in a key, or, if it ends with a slash, in the keys of that line."""
        interest = Interest()
        self._interests.setdefault(key, {})[interest] = None
        self._wanted.set()
        try:
            yield interest
        finally:
            told = self._interests[key]
            del told[interest]
            if not told:
                del self._interests[key]

    async def run(self) -> None:
        """Watch while there is somebody to tell, until cancelled."""
        delay_s = _RETRY_MIN_S
        while True:
            if not self._interests:
                self._wanted = trio.Event()
                await self._wanted.wait()
            try:
                await self._watch()
                delay_s = _RETRY_MIN_S
            except SwarmError as error:
                prefix = self._prefix.decode()
                _log.debug("a watch begins anew", prefix=prefix, why=error.message)
                await trio.sleep(delay_s * self._rng.uniform(0.5, 1.0))
                delay_s = min(delay_s * 2.0, _RETRY_MAX_S)

    async def _watch(self) -> None:
        first = True
        async with aclosing(self._store.watch(self._prefix)) as watched:
            async for changes, _ in watched:
                if first:
                    self._tell_all()
                    first = False
                self._tell(changes)
                if not self._interests:
                    return

    def _tell(self, changes: Sequence[Change]) -> None:
        for change in changes:
            for about in (change.key, change.key[: change.key.rfind(b"/") + 1]):
                for interest in self._interests.get(about, ()):
                    interest.tell()

    def _tell_all(self) -> None:
        for told in self._interests.values():
            for interest in told:
                interest.tell()
