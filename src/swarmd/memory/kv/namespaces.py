"""Which consistency a namespace has, known to every node and the same for ever.

A namespace that nobody made is eventual. To be strong, or a cache, it is made: its record goes into
the strong store once and is never changed. Rules:
- Each node keeps what it knows of the records in the eventual store, too. So it knows them after a
  restart and without a majority, and a strong namespace is never taken for an eventual one there.
- A node takes a namespace for eventual only if it asked the strong store for the records within
  `AGE_MAX_S`, or cannot reach it. To make a strong namespace takes longer than that. So by the time
  that it is made, no node in reach of a majority takes it for anything else.
- Who cannot reach it finds that out once, and goes on asking until there is an answer. Nobody waits
  for that: an eventual namespace needs no majority.
- One that is cut off from everybody meanwhile may take an eventual write for it. That stays where
  it is: it is no value of the strong namespace, and is told as left over.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from math import inf
from typing import Final

import msgspec
import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import (
    BadRequest,
    Busy,
    CorruptFile,
    NamespaceExists,
    NamespaceInUse,
    NotFound,
    SwarmError,
    TooLarge,
)
from swarmd.base.ids import NodeId
from swarmd.base.limits import CACHE_BYTES_MAX, CACHE_ENTRIES_MAX, MEMORY_NAMESPACES_MAX
from swarmd.memory.kv.eventual import EventualMemory
from swarmd.memory.kv.records import (
    Consistency,
    Namespace,
    decode_namespace,
    namespace_key,
    namespace_of,
)
from swarmd.memory.kv.rules import author, check_namespace
from swarmd.memory.kv.strong import StrongStore
from swarmd.observe.log import get_logger
from swarmd.state.crdt.service import Eventual
from swarmd.state.crdt.types.values import Assign
from swarmd.state.raft.messages import (
    MEMORY_NAMESPACE_PREFIX,
    MEMORY_TABLE_KEY,
    Compare,
    Put,
    Txn,
)
from swarmd.wire.codec import encode_struct

BUCKET: Final = "namespaces"
AGE_MAX_S: Final = 2.0
_SPARE_S: Final = 0.3
_ASK_TIMEOUT_S: Final = 1.0
_RACES_MAX: Final = 8
_LEFT_OVER_MAX: Final = 1_000

EVENTUAL: Final = Namespace()

_log = get_logger("memory")


class Namespaces:
    """Args:
    nursery: asks the strong store behind the back of who reads and writes.
    """

    def __init__(
        self,
        me: NodeId,
        eventual: Eventual,
        values: EventualMemory,
        store: StrongStore,
        clock: Clock,
        nursery: trio.Nursery,
    ) -> None:
        self._me, self._eventual, self._values = me, eventual, values
        self._store, self._clock, self._nursery = store, clock, nursery
        self._table: dict[str, Namespace] = {}
        self._revision = -1
        # When the strong store was last asked that answered; and, while it is asked, whether it has
        # had its time to answer.
        self._asked_at = -inf
        self._asking: trio.Event | None = None

    async def of(self, namespace: str) -> Namespace:
        """What a namespace promises. Raises BadRequest."""
        check_namespace(namespace)
        known = self.known(namespace)
        if known is not None:
            return known
        age_s = self._clock.now() - self._asked_at
        if age_s > AGE_MAX_S / 2 and self._asking is None:
            self._asking = trio.Event()
            self._nursery.start_soon(self._ask_until_answered, self._asking)
        if age_s <= AGE_MAX_S or self._asking is None:
            return EVENTUAL
        await self._asking.wait()
        return self.known(namespace) or EVENTUAL

    def known(self, namespace: str) -> Namespace | None:
        """What this node knows of a namespace without asking."""
        found = self._table.get(namespace)
        if found is None and (found := self._remembered(namespace)) is not None:
            self._table[namespace] = found
        return found

    def _remembered(self, namespace: str) -> Namespace | None:
        try:
            raw = self._eventual.get(BUCKET, namespace)
            return msgspec.convert(raw, Namespace)
        except (NotFound, msgspec.ValidationError):
            return None  # Or no build of swarmd wrote it.

    async def all(self) -> Mapping[str, Namespace]:
        """Every namespace that was made, by name. Raises NoQuorum."""
        await self._ask()
        return dict(sorted(self._table.items()))

    async def left_over(self, namespace: str) -> int:
        """Eventual values under the name of a strong namespace, 1,000 at most."""
        entries, _ = await self._values.list(namespace, limit=_LEFT_OVER_MAX)
        return len(entries)

    async def make(
        self,
        namespace: str,
        consistency: Consistency,
        *,
        by: str,
        entries_max: int = 0,
        bytes_max: int = 0,
    ) -> Namespace:
        """Make a namespace; a strong one takes 2.3 s. To repeat it changes nothing.

        Args:
            entries_max, bytes_max: it is a cache, which holds so much.

        Raises:
            BadRequest: no such bounds.
            NamespaceExists: it is another one already; nothing changed.
            NamespaceInUse: it holds eventual values; nothing changed.
            TooLarge: there are too many namespaces; nothing changed.
            NoQuorum: whether it was made is unknown; repeat it.
        """
        check_namespace(namespace)
        _check_bounds(consistency, entries_max, bytes_max)
        wanted = Namespace(
            consistency, entries_max, bytes_max, author(by), self._clock.wall_ms(), self._me
        )
        made = await self._record(namespace, wanted)
        if made.promises() != wanted.promises():
            raise NamespaceExists(
                f"{namespace} is {_described(made)} already, and stays that: nothing changed; use "
                "another name"
            )
        if made.is_strong:
            await trio.sleep(AGE_MAX_S + _SPARE_S)
        return made

    async def _record(self, namespace: str, wanted: Namespace) -> Namespace:
        """The namespace's record, which is `wanted` if there was none."""
        for _ in range(_RACES_MAX):
            await self._ask()
            if namespace in self._table:
                return self._table[namespace]
            if (await self._values.list(namespace, limit=1))[0]:
                raise NamespaceInUse(
                    f"{namespace} holds eventual values: nothing changed; use another name, or "
                    "delete them first"
                )
            if len(self._table) >= MEMORY_NAMESPACES_MAX:
                raise TooLarge(f"there are {MEMORY_NAMESPACES_MAX} namespaces already")
            key = namespace_key(namespace)
            compares = (Compare(key, 0), Compare(MEMORY_TABLE_KEY, max(self._revision, 0)))
            puts = (Put(key, encode_struct(wanted)), Put(MEMORY_TABLE_KEY, b""))
            [result] = await self._store.propose([Txn(compares, puts)])
            if result.ok:
                await self._remember({namespace: wanted})
                return wanted
        raise Busy("many namespaces are being made: nothing changed; try again shortly")

    # ---- asking the strong store --------------------------------------------------------------

    async def _ask_until_answered(self, asked: trio.Event) -> None:
        while True:
            began = self._clock.now()
            try:
                with trio.fail_after(_ASK_TIMEOUT_S):
                    await self._ask()
                break
            except (SwarmError, trio.TooSlowError) as error:
                _log.debug("namespaces could not be asked for", why=str(error))
            asked.set()
            await trio.sleep(max(0.0, began + _ASK_TIMEOUT_S - self._clock.now()))
        self._asked_at, self._asking = began, None
        asked.set()

    async def _ask(self) -> None:
        """Learn every record; one that no build wrote is none. Raises NoQuorum."""
        found = await self._store.get(MEMORY_TABLE_KEY)
        revision = 0 if found is None else found.mod_revision
        if revision == self._revision:
            return
        records = await self._store.range(MEMORY_NAMESPACE_PREFIX, limit=2 * MEMORY_NAMESPACES_MAX)
        table: dict[str, Namespace] = {}
        for one in records:
            with suppress(CorruptFile, UnicodeDecodeError):
                table[namespace_of(one.key)] = decode_namespace(one.value)
        await self._remember(table)
        self._revision = revision

    async def _remember(self, table: Mapping[str, Namespace]) -> None:
        self._table.update(table)
        for namespace, record in table.items():
            if self._remembered(namespace) is None:
                await self._eventual.write(BUCKET, namespace, Assign(_plain(record)))


def _plain(record: Namespace) -> list[object]:
    return list(msgspec.to_builtins(record, builtin_types=(bytes,)))


def _check_bounds(consistency: Consistency, entries_max: int, bytes_max: int) -> None:
    if not entries_max and not bytes_max:
        return
    if consistency is Consistency.STRONG:
        raise BadRequest("a cache is eventual: nothing changed")
    if not 0 < entries_max <= CACHE_ENTRIES_MAX or not 0 < bytes_max <= CACHE_BYTES_MAX:
        raise BadRequest(
            f"a cache holds 1 to {CACHE_ENTRIES_MAX} values and 1 to {CACHE_BYTES_MAX} bytes"
        )


def _described(record: Namespace) -> str:
    if record.is_cache:
        return f"a cache of {record.entries_max} values and {record.bytes_max} bytes"
    return f"{record.consistency.value}"
