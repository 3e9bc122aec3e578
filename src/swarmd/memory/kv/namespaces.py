"""Which consistency and policy a namespace has, known to every node.

A namespace that nobody made is eventual. To be strong, or a cache, it is made: its record goes into
the strong store, and stays what it is but for its policy. Rules:
- Each node keeps what it knows of the records in the eventual store, too. So it knows them after a
  restart and without a majority, and a strong namespace is never taken for an eventual one there.
- A node takes a namespace for eventual only if it asked the strong store for the records within
  `AGE_MAX_S`, or cannot reach it. To make a strong namespace takes longer than that. So by the time
  that it is made, no node in reach of a majority takes it for anything else.
- Who cannot reach it finds that out once, and goes on asking until there is an answer. Nobody waits
  for that: an eventual namespace needs no majority.
- Of two records of a namespace the one that was changed more often counts, so it does not matter
  which a node hears of first. A changed policy is known at once to who is told of it by the
  eventual store, and within `AGE_MAX_S` to who asks the strong one.
- One that is cut off from everybody meanwhile may take an eventual write for it. That stays where
  it is: it is no value of the strong namespace, and is told as left over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from math import inf
from typing import Final

import msgspec
import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import (
    Busy,
    CorruptFile,
    MalformedMessage,
    NamespaceExists,
    NamespaceInUse,
    SwarmError,
    TooLarge,
)
from swarmd.base.ids import NodeId
from swarmd.base.limits import MEMORY_NAMESPACES_MAX
from swarmd.memory.kv.eventual import EventualMemory
from swarmd.memory.kv.policies import PolicyChange, changed, check_bounds
from swarmd.memory.kv.records import (
    Consistency,
    Namespace,
    ValueType,
    decode_namespace,
    namespace_key,
    namespace_of,
)
from swarmd.memory.kv.rules import author, check_namespace
from swarmd.memory.kv.strong import StrongStore
from swarmd.observe.log import get_logger
from swarmd.state.crdt.service import Eventual
from swarmd.state.crdt.types.values import Assign
from swarmd.state.crdt.watching import KeyWatch
from swarmd.state.raft.messages import (
    MEMORY_NAMESPACE_PREFIX,
    MEMORY_TABLE_KEY,
    Compare,
    Put,
    Txn,
)
from swarmd.wire.codec import encode_struct, unpack

BUCKET: Final = "namespaces"
AGE_MAX_S: Final = 2.0
_SPARE_S: Final = 0.3
_ASK_TIMEOUT_S: Final = 1.0
_RACES_MAX: Final = 8
_LEFT_OVER_MAX: Final = 1_000

EVENTUAL: Final = Namespace()
NO_POLICY: Final = PolicyChange()

_log = get_logger("memory")


Decide = Callable[[Namespace | None], Awaitable[Namespace]]
"""The record that shall be, of the one that is; None: nobody made the namespace."""


class Namespaces:
    """Args:
    told: of the bucket `BUCKET`; it is read here alone.
    nursery: asks the strong store behind the back of who reads and writes.
    """

    def __init__(
        self,
        me: NodeId,
        eventual: Eventual,
        told: KeyWatch,
        values: EventualMemory,
        store: StrongStore,
        clock: Clock,
        nursery: trio.Nursery,
    ) -> None:
        self._me, self._eventual, self._told, self._values = me, eventual, told, values
        self._store, self._clock, self._nursery = store, clock, nursery
        self._table: dict[str, Namespace] = {}
        self._told.lagged = True  # What was there before.
        self._revision = -1
        # When the strong store was last asked that answered; and, while it is asked, whether it has
        # had its time to answer.
        self._asked_at = -inf
        self._asking: trio.Event | None = None

    async def of(self, namespace: str) -> Namespace:
        """What a namespace promises. Raises BadRequest."""
        check_namespace(namespace)
        age_s = self._clock.now() - self._asked_at
        if age_s > AGE_MAX_S / 2 and self._asking is None:
            self._asking = trio.Event()
            self._nursery.start_soon(self._ask_until_answered, self._asking)
        known = self.known(namespace)
        if known is not None:
            return known
        if age_s <= AGE_MAX_S or self._asking is None:
            return EVENTUAL
        await self._asking.wait()
        return self.known(namespace) or EVENTUAL

    def known(self, namespace: str) -> Namespace | None:
        """What this node knows of a namespace without asking."""
        if self._told.lagged or len(self._told):
            changed = self._told.drain()
            if self._told.lagged:
                self._told.lagged = False
                changed = self._eventual.keys(BUCKET)
            for name in changed:
                self._learn(name, self._remembered(name))
        return self._table.get(namespace)

    def _learn(self, namespace: str, record: Namespace | None) -> None:
        before = self._table.get(namespace)
        if record is None:
            return
        if before is None or (
            record.change > before.change
            and (record.consistency, record.copies) == (before.consistency, before.copies)
        ):
            self._table[namespace] = record

    def _remembered(self, namespace: str) -> Namespace | None:
        """The record as the eventual store has it: of those that stand there the latest."""
        found: Namespace | None = None
        for cell in self._eventual.cells(BUCKET, namespace).values():
            with suppress(MalformedMessage, msgspec.ValidationError):  # Of no build of swarmd.
                record = msgspec.convert(unpack(cell.value), Namespace)
                if found is None or record.change > found.change:
                    found = record
        return found

    async def all(self) -> Mapping[str, Namespace]:
        """Every namespace that was made, by name. Raises NoQuorum."""
        await self._ask()
        return dict(sorted(self._table.items()))

    def names(self) -> list[str]:
        """Namespaces that were made, as this node knows."""
        return sorted(self._table)

    async def left_over(self, namespace: str) -> int:
        """Values on all nodes under the name of a namespace of another kind, 1,000 at most."""
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
        copies: int = 0,
        policy: PolicyChange = NO_POLICY,
    ) -> Namespace:
        """Make a namespace; a strong one, or one with copies, takes 2.3 s.

        To repeat it changes nothing.

        Args:
            entries_max: it is a cache, which holds so many values.
            bytes_max: it holds so much.
            copies: so many nodes hold each value; 0: all.
            policy: what else is said of it.

        Raises:
            BadRequest: no such bounds.
            NamespaceExists: it is another one already; nothing changed.
            NamespaceInUse: it holds eventual values; nothing changed.
            TooLarge: there are too many namespaces; nothing changed.
            NoQuorum: whether it was made is unknown; repeat it.
        """
        plain = Namespace(
            consistency,
            entries_max,
            bytes_max,
            author(by),
            self._clock.wall_ms(),
            self._me,
            copies=copies,
        )
        check_bounds(plain)
        wanted = msgspec.structs.replace(changed(plain, policy), change=0)

        async def unless_there(before: Namespace | None) -> Namespace:
            if before is None and (await self._values.list(namespace, limit=1))[0]:
                raise NamespaceInUse(
                    f"{namespace} holds eventual values: nothing changed; use another name, or "
                    "delete them first"
                )
            return before or wanted

        made = await self.record(namespace, unless_there)
        if made.promises() != wanted.promises():
            raise NamespaceExists(
                f"{namespace} is {_described(made)} already: nothing changed; use another name, "
                "or change its policy"
            )
        if made.is_elsewhere:
            await trio.sleep(AGE_MAX_S + _SPARE_S)
        return made

    async def record(self, namespace: str, decide: Decide) -> Namespace:
        """Have a namespace's record be what `decide` says, which is asked anew if others write.

        Raises:
            BadRequest, TooLarge, Busy, and what `decide` raises: nothing changed.
            NoQuorum: whether it changed is unknown.
        """
        check_namespace(namespace)
        for _ in range(_RACES_MAX):
            await self._ask()
            before, revision = self._table.get(namespace), self._revision
            wanted = await decide(before)
            if wanted == before:
                return wanted
            if before is None and len(self._table) >= MEMORY_NAMESPACES_MAX:
                raise TooLarge(f"there are {MEMORY_NAMESPACES_MAX} namespaces already")
            key = namespace_key(namespace)
            compares = [Compare(MEMORY_TABLE_KEY, max(revision, 0))]
            if before is None:
                compares.append(Compare(key, 0))
            puts = (Put(key, encode_struct(wanted)), Put(MEMORY_TABLE_KEY, b""))
            [result] = await self._store.propose([Txn(tuple(compares), puts)])
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
            remembered = self._remembered(namespace)
            if remembered is None or remembered.change < record.change:
                await self._eventual.write(BUCKET, namespace, Assign(_plain(record)))


def _plain(record: Namespace) -> list[object]:
    return list(msgspec.to_builtins(record, builtin_types=(bytes,)))


def _described(record: Namespace) -> str:
    """What it promises, in words."""
    found = record.consistency.value
    if record.is_cache:
        found = f"a cache of {record.entries_max} values and {record.bytes_max} bytes"
    elif record.bytes_max:
        found += f", of {record.bytes_max} bytes"
    if record.copies:
        found += f" on {record.copies} nodes"
    if record.ttl_ms:
        found += f", values end after {record.ttl_ms / 1_000:g} s"
    if record.type is not ValueType.ANY:
        found += f", each is of type {record.type.value}"
    for who, names in (("readers", record.readers), ("writers", record.writers)):
        if names:
            found += f", {who}: {', '.join(names)}"
    return found
