"""What clients noted, and whether a correct store could have answered so.

A client notes every call as one line: what it asked, when it asked and when it was answered, on
the machine's monotonic clock, which all clients share. A call that ended in an error or a timeout
has no time of return: it may have taken effect, then or later, or never.

Three kinds of keys, so that each check has what it needs:
- registers `k/GENERATION/SLOT`: put, compare-and-set, delete, get. Each generation is ten seconds
  of calls, short enough for the search of `sim.checkers.linearizable`.
- groups `g/GENERATION/SLOT`: never deleted, written in transactions too, and read together, in
  one answer. What is seen together must have been so at one revision.
- `once/...`: written once. What was acknowledged is there at the end.

The store gives a read no revision of its own. The highest revision among the keys of a group is
one at which the group was as it is; the revision of a key is one at which the key was.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec

from swarmd.sim.checkers import (
    FOREVER,
    Operation,
    Read,
    Write,
    linearizable_key,
    revisions,
)

GENERATION_S: Final = 10.0
REGISTER_SLOTS: Final = 8
GROUP_SLOTS: Final = 4
# Keys whose search takes longer are searched once more without the calls nobody noticed.
_STEPS_MAX: Final = 500_000


class Call(msgspec.Struct, frozen=True, array_like=True):
    """One call of one client.

    `kind` and what goes with it:
    put     argument: the value; revision: its revision
    cas     argument: [old, new]; result: whether it did; revision: if it did
    delete  result: whether there was anything to delete
    get     result: the value, None if there is none; revision: the value's
    txn     argument: [[key, old, new], [key, new], ...]: if the first key has its old value, all
            get their new ones; result: whether they did; revision: if they did
    list    argument: the keys asked for; result: {key: [value, revision]}
    once    argument: the value; result: false if the store says that the key is there already
    watch   result: [[key, value, revision], ...], told at a time; revision: all up to it is told;
            who: the watch
    stale   a read that need not be fresh: counted only
    final   key: a prefix; result: {key: value} of all below it, read when all was calm
    submit  key: the task's; argument: its mode; result: its id
    task    key: its id; result: [state, fence]
    """

    who: str
    kind: str
    key: str
    called: float
    returned: float | None
    argument: Any = None
    result: Any = None
    revision: int = 0


@dataclass
class Findings:
    """`problems` breaks a promise; `undecided` are keys whose search was given up."""

    problems: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems and not self.undecided

    def add(self, other: Findings) -> None:
        self.problems += other.problems
        self.undecided += other.undecided


def read_history(paths: Iterable[Path]) -> list[Call]:
    """The calls of several clients, in the order in which they were made."""
    calls = []
    decoder = msgspec.json.Decoder(Call)
    for path in paths:
        for line in path.read_bytes().splitlines():
            calls.append(decoder.decode(line))
    return sorted(calls, key=lambda call: call.called)


def count_outcomes(calls: Iterable[Call]) -> dict[str, dict[str, int]]:
    """For each kind of call, how many were answered and how many have an unknown outcome."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for call in calls:
        counts[call.kind]["answered" if call.returned is not None else "unknown"] += 1
    return {
        kind: {name: found[name] for name in ("answered", "unknown")}
        for kind, found in sorted(counts.items())
    }


def check_store(calls: Sequence[Call]) -> Findings:
    """Hold the calls on keys against both checkers, and acknowledged writes against the end."""
    findings = check_linearizable(calls)
    findings.problems += check_revisions(calls)
    findings.problems += check_watches(calls)
    findings.problems += check_once(calls)
    return findings


# ---- one key at a time -------------------------------------------------------------------


def operations(calls: Iterable[Call]) -> Iterator[Operation]:
    """The calls on registers and groups as operations on single keys."""
    for call in calls:

        def made(
            key: str, kind: str, argument: Any = None, result: Any = None, c: Call = call
        ) -> Operation:
            end = FOREVER if c.returned is None else c.returned
            return Operation(key, kind, c.called, end, argument, result)

        if call.kind == "put":
            yield made(call.key, "write", call.argument)
        elif call.kind == "cas":
            yield made(call.key, "cas", tuple(call.argument), call.result)
        elif call.kind == "txn":
            (key, old, new), *others = call.argument
            yield made(key, "cas", (old, new), call.result)
            if call.result is not False:
                for other, value in others:
                    yield made(other, "write", value)
        elif call.kind == "delete":
            # One that finds nothing is a read: it says so without writing.
            found = call.result is not False
            yield made(call.key, "write" if found else "read")
        elif call.kind == "get" and call.returned is not None:
            yield made(call.key, "read", result=call.result)
        elif call.kind == "list" and call.returned is not None:
            for key in call.argument:
                yield made(key, "read", result=call.result.get(key, [None])[0])


def check_linearizable(calls: Iterable[Call]) -> Findings:
    """Each key by itself (see `sim.checkers`)."""
    by_key: dict[Any, list[Operation]] = defaultdict(list)
    for operation in operations(calls):
        by_key[operation.key].append(operation)
    findings = Findings()
    for key, found in sorted(by_key.items()):
        verdict = linearizable_key(found, steps_max=_STEPS_MAX)
        if verdict is None:
            verdict = linearizable_key(noticed(found))
        if verdict is None:
            findings.undecided.append(key)
        elif not verdict:
            findings.problems.append(f"key {key}: no order explains its {len(found)} calls")
    return findings


def noticed(found: Sequence[Operation]) -> list[Operation]:
    """The same history with less to search through; linearizable if the whole one is.

    Left out are compare-and-sets that failed, and then, as only those could tell, writes of
    unknown outcome whose value nobody saw.
    """
    seen = {o.result for o in found if o.kind == "read"}
    seen |= {o.argument[0] for o in found if o.kind == "cas" and o.result is not False}
    kept = []
    for operation in found:
        if operation.kind == "cas" and operation.result is False:
            continue
        unknown = operation.returned == FOREVER
        new = operation.argument[1] if operation.kind == "cas" else operation.argument
        if unknown and new not in seen:
            continue
        kept.append(operation)
    return kept


# ---- revisions ---------------------------------------------------------------------------


def check_revisions(calls: Sequence[Call]) -> list[str]:
    """The revisions the store gave out could be the order of all that happened."""
    shown = _shown(calls)
    writes = list(_writes(calls, shown))
    problems = revisions(writes, [])
    by_space: dict[str, list[Write]] = defaultdict(list)
    for write in writes:
        keys = [str(key) for key, _ in write.changes]
        for space in {*keys, *map(_space, keys)}:
            by_space[space].append(write)
    reads: dict[str, list[Read]] = defaultdict(list)
    for space, read in _reads(calls):
        reads[space].append(read)
    for space, found in sorted(reads.items()):
        told = revisions(by_space[space], found)
        problems += [f"{space}: {problem}" for problem in told if problem not in problems]
    return problems + [
        f"{key}={value!r} was applied at revisions {sorted(given)}"
        for (key, value), given in sorted(shown.items())
        if len(given) > 1
    ]


def _shown(calls: Iterable[Call]) -> dict[tuple[str, str], set[int]]:
    """The revisions of each value, as answers told them: one, as every value is written once."""
    given: dict[tuple[str, str], set[int]] = defaultdict(set)
    for call in calls:
        if call.kind == "list" and call.returned is not None:
            for key, (value, revision) in call.result.items():
                given[key, value].add(revision)
        elif call.kind == "watch":
            for key, value, revision in call.result:
                given[key, value].add(revision)
        elif call.kind in ("get", "stale") and call.revision:
            given[call.key, call.result].add(call.revision)
        elif call.revision:
            for change in _changes(call):
                given[change].add(call.revision)
    return given


def _changes(call: Call) -> tuple[tuple[str, str], ...]:
    """What the call sets, if it does anything."""
    if call.result is False:
        return ()
    if call.kind in ("put", "once"):
        return ((call.key, call.argument),)
    if call.kind == "cas":
        return ((call.key, call.argument[1]),)
    if call.kind == "txn":
        return tuple((change[0], change[-1]) for change in call.argument)
    return ()


def _writes(calls: Iterable[Call], shown: dict[tuple[str, str], set[int]]) -> Iterator[Write]:
    """What is known to have been applied: acknowledged, or of unknown outcome but seen."""
    for call in calls:
        changes = _changes(call)
        given = set().union(*(shown.get(change, ()) for change in changes))
        if given:
            returned = FOREVER if call.returned is None else call.returned
            yield Write(call.called, returned, min(given), changes)


def _space(key: str) -> str:
    """What is read together: a group, or one register."""
    return key.rpartition("/")[0] if key.startswith("g/") else key


def _reads(calls: Iterable[Call]) -> Iterator[tuple[str, Read]]:
    for call in calls:
        if call.returned is None:
            continue
        if call.kind == "get" and call.revision:
            found = ((call.key, call.result),)
            yield call.key, Read(call.called, call.returned, call.revision, found)
        elif call.kind == "list":
            seen = tuple((key, call.result.get(key, [None])[0]) for key in call.argument)
            highest = max((revision for _, revision in call.result.values()), default=0)
            yield _space(call.argument[0]), Read(call.called, call.returned, highest, seen)


def check_watches(calls: Sequence[Call]) -> list[str]:
    """Each watch tells every change once and in order, and begins with all that was over."""
    told: dict[str, list[Call]] = defaultdict(list)
    asked = set()
    for call in calls:
        asked.update(_changes(call))
        if call.kind == "watch":
            told[call.who].append(call)
    writes = list(_writes(calls, _shown(calls)))
    problems = []
    for who, answers in sorted(told.items()):
        answers.sort(key=lambda call: call.returned or 0.0)
        first = answers[0]
        begin = Read(first.called, first.returned or 0.0, first.revision, ())
        problems += [f"watch {who}: {text}" for text in revisions(writes, [begin])]
        problems += [f"watch {who}: {text}" for text in _watch_problems(answers, writes, asked)]
    return problems


def _watch_problems(
    answers: Sequence[Call], writes: Iterable[Write], asked: set[tuple[str, str]]
) -> Iterator[str]:
    """`answers` in the order they came; the first is the mark where the watch begins."""
    begin = last = answers[0].revision
    seen: set[tuple[str, str]] = set()
    for answer in answers[1:]:
        latest = last
        for key, value, revision in answer.result:
            if revision <= last or revision < latest:
                yield f"{key}={value!r} at {revision} was told after {latest}"
            if (key, value) not in asked:
                yield f"{key}={value!r} was told and never asked for"
            latest = revision
            seen.add((key, value))
        if answer.revision < latest:
            yield f"a mark at {answer.revision} came after {latest}"
        last = answer.revision
    for write in writes:
        for change in write.changes:
            watched = str(change[0]).startswith("g/") and begin < write.revision <= last
            if watched and change not in seen:
                yield f"{change[0]}={change[1]!r} at {write.revision} was not told by {last}"


# ---- what must be there at the end -------------------------------------------------------


def check_once(calls: Iterable[Call]) -> list[str]:
    """Each acknowledged `once` is in the last complete reading, and nothing else is in it."""
    acknowledged: dict[str, str] = {}
    asked: dict[str, str] = {}
    final: dict[str, Any] | None = None
    problems = []
    for call in calls:
        if call.kind == "once":
            asked[call.key] = call.argument
            if call.result is False:
                problems.append(f"{call.key} was written once and applied twice")
            elif call.returned is not None:
                acknowledged[call.key] = call.argument
        elif call.kind == "final" and call.key == "once/":
            final = call.result
    if final is None:
        return ["the keys that were written once were not read at the end"]
    problems += [
        f"{key} was acknowledged and is {final.get(key)!r}, not {value!r}"
        for key, value in sorted(acknowledged.items())
        if final.get(key) != value
    ]
    return problems + [
        f"{key}={value!r} is there and was never asked for"
        for key, value in sorted(final.items())
        if asked.get(key) != value
    ]


# ---- tasks -------------------------------------------------------------------------------

FINAL_STATES: Final = frozenset({"succeeded", "failed", "cancelled", "dead", "unknown"})


def read_ledger(text: str) -> dict[str, list[int]]:
    """Fences of the attempts that started, by the task's key, in the order they started."""
    starts: dict[str, list[int]] = defaultdict(list)
    for line in text.splitlines():
        key, fence, _ = line.split()
        starts[key].append(int(fence))
    return starts


def check_tasks(
    calls: Iterable[Call],
    final: dict[str, tuple[str, int]],
    starts: dict[str, list[int]],
) -> list[str]:
    """Every key is one task with one final state, committed by the highest attempt.

    Args:
        final: state and committed fence of each task, by id, when all was over.
        starts: see `read_ledger`.
    """
    problems = []
    ids: dict[str, set[str]] = defaultdict(set)
    modes: dict[str, str] = {}
    for call in calls:
        if call.kind == "submit" and call.returned is not None:
            ids[call.key].add(call.result)
            modes[call.key] = call.argument
        elif call.kind == "task" and call.returned is not None:
            seen = tuple(call.result)
            if final.get(call.key) != seen:
                problems.append(f"task {call.key} was {seen} and is {final.get(call.key)}")
    keys: dict[str, str] = {}
    for key, found in sorted(ids.items()):
        if len(found) > 1:
            problems.append(f"key {key} is {len(found)} tasks: {', '.join(sorted(found))}")
        for task_id in found:
            if keys.setdefault(task_id, key) != key:
                problems.append(f"keys {key} and {keys[task_id]} are one task")
            state, fence = final.get(task_id, ("missing", 0))
            problems += _task_problems(key, modes[key], state, fence, starts.get(key, []))
    return problems


def _task_problems(key: str, mode: str, state: str, fence: int, starts: list[int]) -> list[str]:
    problems = []
    if state not in FINAL_STATES:
        problems.append(f"task {key} was acknowledged and is {state}")
    if state in ("unknown", "failed") and mode != "at_most_once":
        problems.append(f"task {key} is {mode} and ended {state}")
    if state == "succeeded" and (not starts or fence != max(starts)):
        problems.append(f"task {key} was committed under fence {fence} of {starts}")
    if len(set(starts)) != len(starts):
        problems.append(f"task {key} started twice under one fence: {starts}")
    if mode == "at_most_once" and len(starts) > 1:
        problems.append(f"task {key} is at_most_once and started {len(starts)} times")
    return problems


# ---- pauses ------------------------------------------------------------------------------


def acknowledgements(calls: Iterable[Call]) -> list[float]:
    """When writes were acknowledged, in order."""
    return sorted(
        call.returned
        for call in calls
        if call.returned is not None
        and call.kind in ("put", "cas", "delete", "once", "txn")
        and call.result is not False
    )


def longest_pause_s(times: Sequence[float], began: float, ended: float) -> float:
    """The longest time between two of `times` that overlaps `began` to `ended`."""
    first = max(0, bisect_left(times, began) - 1)
    last = bisect_left(times, ended)
    around = [*times[first : last + 1]]
    if last >= len(times):
        around.append(ended)
    return max((after - before for before, after in pairwise(around)), default=ended - began)
