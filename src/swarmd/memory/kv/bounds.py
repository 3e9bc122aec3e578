"""Namespaces within their bounds: what goes when one is full.

- From a cache what was used longest ago goes first, from any other namespace what was written
  longest ago.
- Reads of caches are remembered in memory. A key that was used is told to other nodes once a minute
  at most, by a key of its own, in the background.
- Whoever puts a value in removes what is then too much. The living node with the lowest id looks
  after the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from swarmd.base.clock import Clock
from swarmd.base.errors import Conflict, SwarmError
from swarmd.base.ids import NodeId
from swarmd.base.pace import pause
from swarmd.memory.kv.eventual import BUCKET
from swarmd.memory.kv.namespaces import BUCKET as NAMESPACES
from swarmd.memory.kv.namespaces import Namespaces
from swarmd.memory.kv.policies import held_bytes
from swarmd.memory.kv.records import Namespace
from swarmd.memory.kv.usage import Usage
from swarmd.observe.log import get_logger
from swarmd.state.crdt.clock import ms_of
from swarmd.state.crdt.service import Eventual
from swarmd.state.crdt.types.registers import winner
from swarmd.state.crdt.types.values import Assign, Remove

# When keys of caches were used: the value says nothing, its stamp does.
USED: Final = "memory-used"
_TELL_USE_MS: Final = 60_000
_TELLS_MAX: Final = 10_000
_TURN_S: Final = 2.0
# How much one turn tells and removes at most.
_WRITES_MAX: Final = 500
_NO_BOUND: Final = 2**62

_log = get_logger("memory")


class Bounds:
    """Args:
    alive: who is alive, this node not among them.
    """

    def __init__(
        self,
        me: NodeId,
        eventual: Eventual,
        namespaces: Namespaces,
        clock: Clock,
        alive: Callable[[], Sequence[NodeId]],
    ) -> None:
        self._me, self._eventual, self._namespaces = me, eventual, namespaces
        self._clock, self._alive = clock, alive
        self._usages: dict[str, Usage] = {}
        # Uses that are to be told, and those that were told of values that are gone.
        self._untold: dict[str, None] = {}
        self._orphans: dict[str, None] = {}

    def used(self, namespace: str, key: str) -> None:
        """A value was read; nothing is written now."""
        usage, record = self._usages.get(namespace), self._namespaces.known(namespace)
        if usage is None or record is None or not record.is_cache:
            return
        now_ms = self._clock.wall_ms()
        before = usage.used(key, now_ms)
        if (
            before is not None
            and now_ms - before >= _TELL_USE_MS
            and len(self._untold) < _TELLS_MAX
        ):
            self._untold[f"{namespace}/{key}"] = None

    async def keep(self, namespace: str, key: str) -> None:
        """A key was written here: remove what is too much of its namespace. Raises SwarmError."""
        self._look_at(f"{namespace}/{key}")
        await self._evict(namespace)

    async def follow(self) -> None:
        """Look after all bounded namespaces, for as long as this runs."""
        with (
            self._eventual.watch(BUCKET) as values,
            self._eventual.watch(USED) as uses,
            self._eventual.watch(NAMESPACES) as made,
        ):
            values.lagged = True  # What was there before.
            while True:
                if values.lagged or uses.lagged or made.lagged or made.drain():
                    values.lagged = uses.lagged = made.lagged = False
                    await self._look_at_all()
                for name in dict.fromkeys((*values.drain(), *uses.drain())):
                    self._look_at(name)
                try:
                    await self._tell_uses()
                    if self._me == min((self._me, *self._alive())):
                        await self._look_after_all()
                except SwarmError as error:
                    _log.debug("bounded namespaces are not looked after now", why=error.message)
                await pause(_TURN_S)

    async def _look_at_all(self) -> None:
        self._usages.clear()
        for namespace in self._eventual.keys(NAMESPACES):
            record = self._bounded(namespace)
            if record is None:
                continue
            for bucket in (BUCKET, USED):
                async for name in self._eventual.each_key(bucket, f"{namespace}/"):
                    self._look_at(name)

    def _bounded(self, namespace: str) -> Namespace | None:
        """What a namespace promises, if it has bounds."""
        record = self._namespaces.known(namespace)
        return record if record is not None and record.bytes_max else None

    def _look_at(self, name: str) -> None:
        """See what a key holds now, if its namespace has bounds."""
        namespace, _, key = name.partition("/")
        record = self._bounded(namespace)
        if record is None:
            return
        usage = self._usages.get(namespace)
        if usage is None:
            entries_max = record.entries_max or _NO_BOUND
            usage = self._usages[namespace] = Usage(entries_max, record.bytes_max)
        found = winner(self._eventual.cells(BUCKET, name))
        told = winner(self._eventual.cells(USED, name))
        self._orphans.pop(name, None)
        if found is None:
            usage.forget(key)
            if told is not None and len(self._orphans) < _TELLS_MAX:
                self._orphans[name] = None
            return
        stamps = [found[1].stamp] if told is None else [found[1].stamp, told[1].stamp]
        usage.hold(key, held_bytes(name, len(found[1].value)), max(map(ms_of, stamps)))

    async def _tell_uses(self) -> None:
        for name in _some(self._untold):
            if self._eventual.cells(BUCKET, name):
                await self._eventual.write(USED, name, Assign(None))
            del self._untold[name]

    async def _look_after_all(self) -> None:
        for namespace in list(self._usages):
            await self._evict(namespace)
        for name in _some(self._orphans):
            if not self._eventual.cells(BUCKET, name):
                await self._eventual.write(USED, name, Remove())
            self._look_at(name)

    async def _evict(self, namespace: str) -> None:
        """Remove what is too much of a namespace. Raises SwarmError."""
        usage = self._usages.get(namespace)
        if usage is None:
            return
        for key in usage.excess()[:_WRITES_MAX]:
            name = f"{namespace}/{key}"
            found = winner(self._eventual.cells(BUCKET, name))
            if found is not None:
                try:
                    await self._eventual.write(BUCKET, name, Remove(), expects=found[0])
                except Conflict:
                    continue  # It was written anew just now.
            self._look_at(name)


def _some(names: Iterable[str]) -> list[str]:
    return [name for name, _ in zip(names, range(_WRITES_MAX), strict=False)]
