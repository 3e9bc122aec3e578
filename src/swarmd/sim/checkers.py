"""Two checkers of histories: was the store linearizable?

`linearizable` decides for one key at a time (Herlihy and Wing: a history is linearizable if
and only if each object's part is) by the search of Wing and Gong, *Testing and Verifying
Concurrent Objects*, 1993, with Lowe's memory of configurations seen, *Testing for
linearizability*, 2017. Operations whose outcome is unknown never end: they may take effect at
any moment after their call, or never.

`revisions` is linear in the history: it trusts the revisions the store gave out and checks
that they could be the order. It covers transactions and ranges, which span keys.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

FOREVER: Final = math.inf
_STEPS_MAX: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class Operation:
    """One call: when it was made, when it returned (`FOREVER`: outcome unknown), what of what.

    `kind` is "write" (argument = value), "read" (result = value) or "cas" (argument = (old,
    new), result = whether it did). None is the value of an absent key.
    """

    key: Hashable
    kind: str
    called: float
    returned: float
    argument: Any = None
    result: Any = None


Step = Callable[[Any, Operation], tuple[bool, Any]]


def register_step(state: Any, operation: Operation) -> tuple[bool, Any]:
    """A register with compare-and-set: could `operation` happen in `state`, and what then?"""
    unknown = operation.returned == FOREVER
    if operation.kind == "write":
        return True, operation.argument
    if operation.kind == "read":
        return unknown or state == operation.result, state
    assert operation.kind == "cas", operation.kind
    old, new = operation.argument
    did = state == old
    return unknown or did == operation.result, new if did else state


class _Node:
    """A call or a return in the doubly linked history."""

    __slots__ = ("after", "before", "index", "match", "operation")

    def __init__(self, operation: Operation | None, index: int) -> None:
        self.operation = operation
        self.index = index
        self.match: _Node = self
        self.before: _Node = self
        self.after: _Node | None = None

    def lift(self) -> None:
        """Take the call and its return out."""
        for node in (self, self.match):
            node.before.after = node.after
            if node.after is not None:
                node.after.before = node.before

    def unlift(self) -> None:
        """Put them back; the exact reverse of the last `lift`."""
        for node in (self.match, self):
            node.before.after = node
            if node.after is not None:
                node.after.before = node


def _linked(operations: Sequence[Operation]) -> _Node:
    moments: list[tuple[float, int, int]] = []
    for index, operation in enumerate(operations):
        moments.append((operation.called, 0, index))
        moments.append((operation.returned, 1, index))
    moments.sort()
    head = last = _Node(None, -1)
    calls: dict[int, _Node] = {}
    for _, is_return, index in moments:
        node = _Node(None if is_return else operations[index], index)
        if is_return:
            calls[index].match = node
        else:
            calls[index] = node
        node.before, last.after = last, node
        last = node
    return head


def linearizable_key(
    operations: Sequence[Operation],
    initial: Any = None,
    step: Step = register_step,
    steps_max: int = _STEPS_MAX,
) -> bool | None:
    """Is this history of one object linearizable? None: not decided within `steps_max` steps."""
    must = sum(1 << i for i, o in enumerate(operations) if o.returned != FOREVER)
    head = _linked(operations)
    done, state = 0, initial
    seen: set[tuple[int, Any]] = set()
    stack: list[tuple[_Node, Any]] = []
    node = head.after
    for _ in range(steps_max):
        if done & must == must:
            return True
        if node is not None and node.operation is not None:
            possible, after = step(state, node.operation)
            configuration = (done | 1 << node.index, after)
            if possible and configuration not in seen:
                seen.add(configuration)
                stack.append((node, state))
                done, state = configuration
                node.lift()
                node = head.after
            else:
                node = node.after
            continue
        if not stack:
            return False
        node, state = stack.pop()
        done &= ~(1 << node.index)
        node.unlift()
        node = node.after
    return None


@dataclass
class Verdict:
    """`undecided` names keys whose search was given up; `problems` is empty if all is well."""

    problems: list[str] = field(default_factory=list)
    undecided: list[Hashable] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems and not self.undecided


def linearizable(
    history: Iterable[Operation], initial: Any = None, steps_max: int = _STEPS_MAX
) -> Verdict:
    """Check each key of `history` by itself, the short ones first."""
    by_key: dict[Hashable, list[Operation]] = defaultdict(list)
    for operation in history:
        by_key[operation.key].append(operation)
    verdict = Verdict()
    for key, operations in sorted(by_key.items(), key=lambda item: (len(item[1]), repr(item[0]))):
        found = linearizable_key(operations, initial, steps_max=steps_max)
        if found is None:
            verdict.undecided.append(key)
        elif not found:
            verdict.problems.append(f"key {key!r}: no order explains {len(operations)} operations")
    return verdict


@dataclass(frozen=True, slots=True)
class Write:
    """Acknowledged changes under one revision: key -> value, None for a delete."""

    called: float
    returned: float
    revision: int
    changes: tuple[tuple[Hashable, Any], ...]


@dataclass(frozen=True, slots=True)
class Read:
    """What keys were seen to hold at `revision` (of the answer), absent keys as None."""

    called: float
    returned: float
    revision: int
    seen: tuple[tuple[Hashable, Any], ...]


def revisions(writes: Sequence[Write], reads: Sequence[Read], unknown: bool = False) -> list[str]:
    """Problems of a history that carries revisions; empty if it is strictly serializable.

    Args:
        writes: every acknowledged write.
        reads: every answered read.
        unknown: writes of unknown outcome exist besides; then a value seen that no
            acknowledged write explains is not a problem.
    """
    problems = _order_problems(writes)
    state = _Versions(writes)
    floor = _Floor([(w.returned, w.revision) for w in writes])
    for read in reads:
        least = floor.at(read.called)
        if read.revision < least:
            problems.append(
                f"read at revision {read.revision}, called after revision {least} was acknowledged"
            )
        for key, value in read.seen:
            expected = state.value(key, read.revision)
            if value != expected and not (unknown and not state.wrote(key, value)):
                problems.append(f"read {key!r}={value!r} at {read.revision}; it was {expected!r}")
    problems += _order_of_reads(reads)
    return problems


def _order_problems(writes: Sequence[Write]) -> list[str]:
    problems = []
    seen: set[int] = set()
    for write in writes:
        if write.revision in seen:
            problems.append(f"revision {write.revision} was given twice")
        seen.add(write.revision)
    floor = _Floor([(w.returned, w.revision) for w in writes])
    for write in writes:
        least = floor.at(write.called)
        if write.revision <= least and least != 0:
            problems.append(f"revision {write.revision} was called after {least} was acknowledged")
    return problems


def _order_of_reads(reads: Sequence[Read]) -> list[str]:
    floor = _Floor([(r.returned, r.revision) for r in reads])
    return [
        f"read at revision {read.revision}, called after a read at {floor.at(read.called)}"
        for read in reads
        if read.revision < floor.at(read.called)
    ]


class _Floor:
    """The highest revision known before a moment."""

    def __init__(self, known: list[tuple[float, int]]) -> None:
        known.sort()
        self._times: list[float] = []
        self._highest: list[int] = []
        highest = 0
        for time, revision in known:
            highest = max(highest, revision)
            self._times.append(time)
            self._highest.append(highest)

    def at(self, time: float) -> int:
        """Of what returned strictly before `time`."""
        position = bisect_right(self._times, time)
        while position and self._times[position - 1] >= time:
            position -= 1
        return self._highest[position - 1] if position else 0


class _Versions:
    """Each key's values by revision."""

    def __init__(self, writes: Sequence[Write]) -> None:
        self._revisions: dict[Hashable, list[int]] = defaultdict(list)
        self._values: dict[Hashable, list[Any]] = defaultdict(list)
        for write in sorted(writes, key=lambda w: w.revision):
            for key, value in write.changes:
                self._revisions[key].append(write.revision)
                self._values[key].append(value)

    def value(self, key: Hashable, revision: int) -> Any:
        position = bisect_right(self._revisions[key], revision)
        return self._values[key][position - 1] if position else None

    def wrote(self, key: Hashable, value: Any) -> bool:
        return value is None or value in self._values[key]
