"""Two checkers of histories: was the store linearizable?

`linearizable` decides for one key at a time (Herlihy and Wing: a history is linearizable if
and only if each object's part is) by the search of Wing and Gong, *Testing and Verifying
Concurrent Objects*, 1993, with Lowe's memory of configurations seen, *Testing for
linearizability*, 2017. Operations whose outcome is unknown never end: they may take effect at
any moment after their call, or never. They are tried last, equal ones in order of their calls,
and only where the next operation depends on them, so that they do not make the search endless.

`revisions` is linear in the history: it trusts the revisions the store gave out and checks
that they could be the order. It covers transactions and ranges, which span keys. A write of
unknown outcome that somebody saw has a revision after all, the one it was seen at.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
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

    __slots__ = ("after", "before", "index", "is_call", "match", "time")

    def __init__(self, index: int, time: float, *, is_call: bool) -> None:
        self.index = index
        self.time = time
        self.is_call = is_call
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
    """Calls and returns of what has ended, in order of time, behind a head of no meaning."""
    moments: list[tuple[float, int, int]] = []
    for index, operation in enumerate(operations):
        if operation.returned != FOREVER:
            moments.append((operation.called, 0, index))
            moments.append((operation.returned, 1, index))
    moments.sort()
    head = last = _Node(-1, -FOREVER, is_call=False)
    calls: dict[int, _Node] = {}
    for time, is_return, index in moments:
        node = _Node(index, time, is_call=not is_return)
        if is_return:
            calls[index].match = node
        else:
            calls[index] = node
        node.before, last.after = last, node
        last = node
    return head


class _Pending:
    """Operations that never ended. Of equal ones the one called first serves as well as any."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        classes: dict[tuple[str, Any], list[int]] = defaultdict(list)
        for index, operation in enumerate(operations):
            if operation.returned == FOREVER and operation.kind != "read":
                classes[operation.kind, operation.argument].append(index)
        self._called = [operation.called for operation in operations]
        self._classes = [
            sorted(indices, key=self._called.__getitem__) for indices in classes.values()
        ]

    def candidates(self, done: int, until: float) -> Iterable[int]:
        """Those that were called by `until` and are not `done`, one of each class."""
        for indices in self._classes:
            index = next((i for i in indices if not done >> i & 1), None)
            if index is not None and self._called[index] <= until:
                yield index


@dataclass(slots=True)
class _Frame:
    """A configuration of the search, what may come next, and the call that led here.

    `came_by` is None where an operation that never ended led here, from the state `before`.
    """

    state: Any
    done: int
    came_by: _Node | None
    before: Any
    choices: list[tuple[int, _Node | None]] = field(default_factory=list)


class _Search:
    """Depth first through the orders that could explain a history."""

    def __init__(self, operations: Sequence[Operation], step: Step) -> None:
        self._operations = operations
        self._step = step
        self._head = _linked(operations)
        self._pending = _Pending(operations)
        self._must = sum(1 << i for i, o in enumerate(operations) if o.returned != FOREVER)

    def run(self, initial: Any, steps_max: int) -> bool | None:
        seen: set[tuple[int, Any]] = set()
        stack = [self._frame(initial, 0, self._head, initial)]
        for _ in range(steps_max):
            frame = stack[-1]
            if frame.done & self._must == self._must:
                return True
            if not frame.choices:
                stack.pop()
                if not stack:
                    return False
                if frame.came_by is not None:
                    frame.came_by.unlift()
                continue
            index, node = frame.choices.pop()
            operation = self._operations[index]
            possible, after = self._step(frame.state, operation)
            if not possible or self._was_for_nothing(frame, operation, after):
                continue
            configuration = (frame.done | 1 << index, after)
            if configuration not in seen:
                seen.add(configuration)
                if node is not None:
                    node.lift()
                stack.append(self._frame(after, configuration[0], node, frame.state))
        return None

    def _frame(self, state: Any, done: int, came_by: _Node | None, before: Any) -> _Frame:
        """What may come next: a call before the first return, or one that never ended.

        An ended one that changes nothing and is possible here may as well come now, and nothing
        else need be tried. Else those come first that ended first: they must happen, and soon.
        """
        frame = _Frame(state, done, came_by, before)
        ended: list[_Node] = []
        node = self._head.after
        while node is not None and node.is_call:
            operation = self._operations[node.index]
            if _changes_nothing(operation) and self._step(state, operation)[0]:
                frame.choices.append((node.index, node))
                return frame
            ended.append(node)
            node = node.after
        until = FOREVER if node is None else node.time
        frame.choices += [(index, None) for index in self._pending.candidates(done, until)]
        ended.sort(key=lambda call: call.match.time, reverse=True)
        frame.choices += [(call.index, call) for call in ended]
        return frame

    def _was_for_nothing(self, frame: _Frame, operation: Operation, after: Any) -> bool:
        """Was the operation that led here, if it never ended, of no use to `operation`?

        So it is if `operation` wipes it out, or could as well have come before it.
        """
        if frame.came_by is not None:
            return False
        possible, otherwise = self._step(frame.before, operation)
        if not possible:
            return False
        return bool(otherwise == after or (after == frame.state and otherwise == frame.before))


def _changes_nothing(operation: Operation) -> bool:
    """Whatever the state is: a write of what is there already is not meant."""
    return operation.kind == "read" or (operation.kind == "cas" and operation.result is False)


def linearizable_key(
    operations: Sequence[Operation],
    initial: Any = None,
    step: Step = register_step,
    steps_max: int = _STEPS_MAX,
) -> bool | None:
    """Is this history of one object linearizable? None: not decided within `steps_max` steps.

    `step` says of an operation whether it could happen in a state, and what the state is then.
    """
    if step is register_step:
        operations = _without_useless(operations)
    return _Search(operations, step).run(initial, steps_max)


# What a write leaves behind whose value nobody ever saw or compared with.
_UNSEEN: Final = ("unseen",)


def _without_useless(operations: Sequence[Operation]) -> Sequence[Operation]:
    """A register's history without the unknown writes that cannot matter.

    One whose value nobody saw explains nothing, but that a compare-and-set failed. If one did,
    all such writes leave the same thing behind; otherwise they go.
    """
    seen, failed = set(), False
    for operation in operations:
        if operation.kind == "cas":
            seen.add(operation.argument[0])
            failed = failed or (operation.returned != FOREVER and not operation.result)
        elif operation.kind == "read" and operation.returned != FOREVER:
            seen.add(operation.result)
    kept = []
    for operation in operations:
        if operation.returned == FOREVER and operation.kind != "read":
            is_cas = operation.kind == "cas"
            value = operation.argument[1] if is_cas else operation.argument
            if value not in seen:
                if not failed:
                    continue
                argument = (operation.argument[0], _UNSEEN) if is_cas else _UNSEEN
                operation = replace(operation, argument=argument)
        kept.append(operation)
    return kept


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
    """What keys were seen to hold at `revision` (of the answer), absent keys as None.

    `modified`, if given, is the revision at which each key seen was last written, 0 if absent.
    """

    called: float
    returned: float
    revision: int
    seen: tuple[tuple[Hashable, Any], ...]
    modified: tuple[int, ...] = ()

    def rows(self) -> Iterable[tuple[Hashable, Any, int]]:
        """Key, value and revision of modification, 0 where it was not told."""
        modified = self.modified or (0,) * len(self.seen)
        for (key, value), at in zip(self.seen, modified, strict=True):
            yield key, value, at


def revisions(
    writes: Sequence[Write],
    reads: Sequence[Read],
    unknown: bool = False,
    *,
    maybe: Sequence[Write] = (),
) -> list[str]:
    """Problems of a history that carries revisions; empty if it is strictly serializable.

    Args:
        writes: every acknowledged write.
        reads: every answered read.
        unknown: writes of unknown outcome exist besides; then a value seen that no
            acknowledged write explains is not a problem.
        maybe: the writes of unknown outcome themselves, and deletes that did not say whether
            there was anything; their `revision` is 0. One whose value was seen happened, at
            the revision seen, and is held to everything that an acknowledged one is. A value
            must be written by one of them only.
    """
    happened, problems = _happened(maybe, reads)
    every = [*writes, *(write for write in happened if write.revision)]
    problems += _order_problems(every)
    state = _Versions(every)
    gone = _Deletes(write for write in happened if not write.revision)
    floor = _Floor([(w.returned, w.revision) for w in writes])
    for read in reads:
        least = floor.at(read.called)
        if read.revision < least:
            problems.append(
                f"read at revision {read.revision}, called after revision {least} was acknowledged"
            )
        for key, value, at in read.rows():
            expected, since = state.version(key, read.revision)
            if value is None and gone.may_explain(key, read.returned):
                continue
            if value != expected and not (unknown and not state.wrote(key, value)):
                problems.append(f"read {key!r}={value!r} at {read.revision}; it was {expected!r}")
            elif at and value == expected and at != since:
                problems.append(f"read {key!r} of revision {at}, but it was written at {since}")
    problems += _order_of_reads(reads)
    return problems


def _happened(maybe: Sequence[Write], reads: Sequence[Read]) -> tuple[list[Write], list[str]]:
    """The writes of unknown outcome, with the revision of each whose value was seen."""
    source = {
        (key, value): position
        for position, write in enumerate(maybe)
        for key, value in write.changes
        if value is not None
    }
    found: dict[int, int] = {}
    problems = []
    for read in reads:
        for key, value, at in read.rows():
            position = source.get((key, value))
            if position is None or not at:
                continue
            if found.setdefault(position, at) != at:
                problems.append(f"{key!r}={value!r} was written at {found[position]} and at {at}")
    resolved = [
        Write(write.called, FOREVER, found.get(position, 0), write.changes)
        for position, write in enumerate(maybe)
    ]
    return resolved, problems


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
        position = bisect_left(self._times, time)
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

    def version(self, key: Hashable, revision: int) -> tuple[Any, int]:
        """The value of `key` at `revision`, and the revision that it was written at."""
        position = bisect_right(self._revisions[key], revision)
        if not position:
            return None, 0
        return self._values[key][position - 1], self._revisions[key][position - 1]

    def wrote(self, key: Hashable, value: Any) -> bool:
        return value is None or value in self._values[key]


class _Deletes:
    """Deletes of which nobody knows when, or whether, they changed anything."""

    def __init__(self, writes: Iterable[Write]) -> None:
        self._first: dict[Hashable, float] = {}
        for write in writes:
            for key, value in write.changes:
                if value is None:
                    first = self._first.get(key, FOREVER)
                    self._first[key] = min(first, write.called)

    def may_explain(self, key: Hashable, seen_at: float) -> bool:
        """May one of them be why `key` was absent when it was seen?"""
        return self._first.get(key, FOREVER) < seen_at
