"""What the voters promised, and every contradiction of it, looked for at every step.

The watch has a picture of its own, made from nothing but what was applied and what was said,
so that it does not share the machines' mistakes. One `LogWatch` looks at one epoch's log:

- *election safety*: one leader per term;
- *log matching*: two logs that hold an entry of one index and term hold the same command
  there and the same entry before it, and so, by induction, the same log up to it;
- *leader completeness*: a leader holds every entry committed in the terms before;
- *state-machine safety*: every voter applies the same command at the same index and stands
  in the same state afterwards, by a running digest, also when it took a snapshot.

`Watch` spans the epochs and looks at what callers are told:

- *acknowledged => present*: it is what the log's entry did, once, under that revision;
- *linearizable*: a write gets a revision above, and a read one not below, all that was known
  before it was called, and a read shows what was there at its revision;
- store time never falls and is no faster than the fastest clock.

Revisions are the order of the log, so these checks decide exactly and search nothing. The
histories of callers go through the checkers of `checkers.py` besides, which know nothing of
logs.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Final

from swarmd.identity.genesis import Genesis
from swarmd.identity.voter import Voter
from swarmd.sim.world import World
from swarmd.state.raft.journal import Entry as LogEntry
from swarmd.state.raft.machine import RaftMachine
from swarmd.state.raft.messages import Entry, OpResult, decode_batch
from swarmd.state.raft.statefile import Restoring
from swarmd.state.raft.statemachine import Change, StateMachine

POISON: Final = b"poison"
# Revision, store time and a digest over all keys: where a state stands.
Mark = tuple[int, int, int]
# The number and voters of the next epoch.
Successor = tuple[int, tuple[Voter, ...]]
_ALL: Final = 10_000_000


def _hash(*parts: bytes) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(4, "big") + part)
    return int.from_bytes(digest.digest(), "big")


def _key_hash(key: bytes, value: bytes, revision: int) -> int:
    return _hash(key, value, revision.to_bytes(8, "big"))


class WatchedState(StateMachine):
    """The real state machine of one voter, under the eyes of the watch.

    A command that begins with `POISON` raises on every voter: `StateMachine` never does, but
    the log beneath must not stumble over a state that would.
    """

    def __init__(self, genesis: Genesis, watch: LogWatch, host: str) -> None:
        self._watch = watch
        self._host = host
        self._digest = 0
        self._held: dict[bytes, int] = {}
        self.restores = 0
        super().__init__(genesis)

    @property
    def mark(self) -> Mark:
        return (self.revision, self.time_ms, self._digest)

    def apply(self, command: bytes, index: int, term: int) -> list[list[OpResult]]:
        """Apply, then show the watch what came of it."""
        if command.startswith(POISON):
            self._watch.applied(self._host, index, term, command, self.mark, [], [])
            raise ValueError("a command that no voter can apply")
        results = super().apply(command, index, term)
        changes = self.drain_changes() or []
        for change in changes:
            self._digest ^= self._held.pop(change.key, 0)
            if change.value is not None:
                hashed = _key_hash(change.key, change.value, change.revision)
                self._held[change.key] = hashed
                self._digest ^= hashed
        self._watch.applied(self._host, index, term, command, self.mark, results, changes)
        if self.sealed is not None:
            self._watch.seals(self._host, self.mark, (self.sealed.number, self.sealed.voters))
        return results

    def become(self, made: Restoring) -> None:
        """Become a snapshot's state; it must be one that was."""
        super().become(made)
        self.restores += 1
        self.drain_changes()
        self._digest = 0
        self._held = {e.key: _key_hash(e.key, e.value, e.mod_revision) for e in self.everything()}
        for hashed in self._held.values():
            self._digest ^= hashed
        self._watch.restored(self._host, self.mark)

    def spoil(self, entry: Entry) -> None:
        """Hold another entry, as if the memory had changed by itself."""
        self._entries[entry.key] = entry

    def everything(self) -> list[Entry]:
        return self.range(b"", limit=_ALL)


class LogWatch:
    """One epoch's log, as the sum of what its voters did."""

    def __init__(self, watch: Watch, number: int, start: Mark) -> None:
        self.number = number
        self.leaders: dict[int, str] = {}
        self.log: dict[int, tuple[int, int, Mark]] = {}  # index -> term, command's hash, mark
        self.last = 1
        self.sealed: tuple[Mark, Successor] | None = None
        self._watch = watch
        self._world = watch.world
        self._marks: set[Mark] = {start}
        self._seen: dict[tuple[int, int], tuple[int, int]] = {}
        self._committed_by: dict[int, int] = {}  # index -> a term by which it was committed
        self._fresh: list[int] = []

    # ---- applying ------------------------------------------------------------------------

    def applied(
        self,
        host: str,
        index: int,
        term: int,
        command: bytes,
        mark: Mark,
        results: list[list[OpResult]],
        changes: list[Change],
    ) -> None:
        entry = (term, _hash(command), mark)
        known = self.log.get(index)
        if known is not None:
            if known != entry:
                self._world.violate(f"{host} applied another entry, or otherwise, at {index}")
            return
        if index <= self.last and self.log:
            self._world.violate(f"{host} applied {index}, which others passed over")
            return
        self.last = max(self.last, index)
        self.log[index] = entry
        self._marks.add(mark)
        self._fresh.append(index)
        self._world.note(index, entry[1])
        if self.sealed is None:
            self._watch.changed(mark, command, results, changes)
        elif mark != self.sealed[0]:
            self._world.violate(f"{host} changed something at {index}, behind the seal")

    def seals(self, host: str, mark: Mark, successor: Successor) -> None:
        """The log is sealed; from the seal on nothing changes."""
        if self.sealed is None:
            self.sealed = (mark, successor)
            self._world.count("seal")
        elif self.sealed != (mark, successor):
            self._world.violate(f"{host} sealed epoch {self.number} otherwise than it was")

    def restored(self, host: str, mark: Mark) -> None:
        if mark not in self._marks:
            self._world.violate(f"{host} restored a state that never was: revision {mark[0]}")

    # ---- each step -----------------------------------------------------------------------

    def stepped(self, term: int) -> None:
        """What was first applied in the step that ends was committed in `term` or before."""
        for index in self._fresh:
            self._committed_by[index] = term
        self._fresh.clear()

    def stands(self, host: str, index: int, mark: Mark) -> None:
        """A voter has taken up everything to `index`, however it did."""
        known = self._at(index)
        if known is not None and known[2] != mark:
            self._world.violate(f"{host} stands at {index} in another state than others did")

    def _at(self, index: int) -> tuple[int, int, Mark] | None:
        """The last entry at or below `index` that a state saw; no-ops lie between."""
        for at in range(index, max(0, index - 8), -1):
            if at in self.log:
                return self.log[at]
        return None

    def holds(self, host: str, entry: LogEntry, term_before: int) -> None:
        """A voter's log came to hold `entry`, behind one of `term_before`."""
        command, index, term = entry
        found = (_hash(command), term_before)
        known = self._seen.setdefault((index, term), found)
        if known[0] != found[0]:
            self._world.violate(f"{host} holds another command at {index} of term {term}")
        elif known != found:
            self._world.violate(f"{host} came to entry {index} of term {term} by another log")

    def leads(self, host: str, term: int, machine: RaftMachine) -> None:
        """A voter leads `term`: it must hold what was committed in the terms before.

        It may learn late that it won, when later terms have committed more: that is not its
        duty to hold (Raft, section 5.4.3, speaks of earlier terms).
        """
        known = self.leaders.get(term)
        if known == host:
            return
        if known is not None:
            self._world.violate(f"{known} and {host} both lead term {term}")
            return
        self.leaders[term] = host
        self._world.count("election")
        for index, committed_by in self._committed_by.items():
            if committed_by >= term or index <= machine.applied_index:
                continue  # What is applied was compared when it was.
            if machine.term_at(index) != self.log[index][0]:
                self._world.violate(f"{host} leads term {term} without committed entry {index}")
                return


class LogScan:
    """Shows the watch each entry that one voter's log came to hold, once."""

    def __init__(self, watch: LogWatch, host: str) -> None:
        self._watch = watch
        self._host = host
        self._seen: dict[int, LogEntry] = {}

    def look(self, entry_at: Callable[[int], LogEntry | None], last: int) -> None:
        """Walk back from the end to the first entry that was there before.

        The first entry of a log is a foothold: its term counts, its command may be gone.
        """
        seen, index = self._seen, last
        while (entry := entry_at(index)) is not None and seen.get(index) is not entry:
            before = entry_at(index - 1)
            seen[index] = entry
            if before is not None:
                self._watch.holds(self._host, entry, before[2])
            index -= 1
        if len(seen) > 2_000:
            self._seen = {at: entry for at, entry in seen.items() if at > last - 1_000}


class Watch:
    """One world's promises, across its epochs."""

    def __init__(self, world: World, keys: Iterable[bytes], *, time_rate_max: float) -> None:
        self.world = world
        self.keys = frozenset(keys)
        self.revision = 0
        self.floor = 0  # The highest revision that a caller knows of.
        self.acknowledged = 0  # The highest revision that a caller was told for a write.
        self._time_ms = 0
        self._time_rate_max = time_rate_max
        self._logs: dict[int, LogWatch] = {}
        self._results: dict[tuple[bytes, int], OpResult] = {}
        self._revisions: dict[bytes, list[int]] = defaultdict(list)
        self._values: dict[bytes, list[bytes | None]] = defaultdict(list)
        self._written: dict[bytes, int] = {}
        self._changed_at: set[int] = set()
        self._said: set[str] = set()

    def begins_with(self, number: int, state: StateMachine) -> None:
        """The story begins with this epoch, in this state."""
        digest = 0
        for entry in state.range(b"", limit=_ALL):
            digest ^= _key_hash(entry.key, entry.value, entry.mod_revision)
            self._revisions[entry.key].append(entry.mod_revision)
            self._values[entry.key].append(entry.value)
        self.revision = self.floor = state.revision
        self._logs[number] = LogWatch(self, number, (state.revision, state.time_ms, digest))

    def log(self, number: int) -> LogWatch:
        """The watch of an epoch's log, which begins where the one before was sealed."""
        if number not in self._logs:
            before = self._logs.get(number - 1)
            start = (0, 0, 0)
            if before is not None and before.sealed is not None:
                start = before.sealed[0]
            elif self._logs:
                self.world.violate(f"epoch {number} begins, but nobody sealed the one before")
            self._logs[number] = LogWatch(self, number, start)
        return self._logs[number]

    @property
    def logs(self) -> list[LogWatch]:
        return [self._logs[number] for number in sorted(self._logs)]

    # ---- what is applied first -----------------------------------------------------------

    def changed(
        self, mark: Mark, command: bytes, results: list[list[OpResult]], changes: list[Change]
    ) -> None:
        """An entry was applied for the first time anywhere."""
        self._check_mark(mark)
        for change in changes:
            self._revisions[change.key].append(change.revision)
            self._values[change.key].append(change.value)
            self._changed_at.add(change.revision)
            if change.key not in self.keys or change.value is None:
                continue
            # Callers never write a value twice, so one that appears twice was applied twice.
            before = self._written.setdefault(change.value, change.revision)
            if before != change.revision:
                self.world.violate(f"a write was applied at {before} and at {change.revision}")
        if results:
            self._keep_results(command, results)

    def _check_mark(self, mark: Mark) -> None:
        revision, time_ms, _ = mark
        if revision < self.revision:
            self.world.violate(f"the revision fell from {self.revision} to {revision}")
        if time_ms < self._time_ms:
            self.world.violate(f"store time fell from {self._time_ms} to {time_ms} ms")
        if time_ms > self.world.now * 1_000 * self._time_rate_max + 1:
            self._say_once(f"store time is {time_ms} ms after {self.world.now:.1f} s of any clock")
        self.revision, self._time_ms = revision, time_ms

    def _say_once(self, text: str) -> None:
        kind = text[:20]
        if kind not in self._said:
            self._said.add(kind)
            self.world.violate(text)

    def _keep_results(self, command: bytes, results: list[list[OpResult]]) -> None:
        for group, done in zip(decode_batch(command).groups, results, strict=True):
            if not group.session:
                continue
            for sequence, result in enumerate(done, group.first):
                if result.code in ("moved", "session_expired"):
                    continue
                known = self._results.setdefault((group.session, sequence), result)
                if known != result:
                    self.world.violate("one operation of a session came to have two results")

    # ---- what callers are told -----------------------------------------------------------

    def written(
        self, session: bytes, sequence: int, result: OpResult, floor: int, *, changes: bool
    ) -> None:
        """A caller was told `result`; `floor` was known to somebody before it called.

        `changes`: it says that something was changed.
        """
        self.world.count("acknowledged_write")
        if self._results.get((session, sequence)) != result:
            self.world.violate(f"a write was acknowledged at {result.revision} but never applied")
        least = floor + 1 if changes else floor
        if result.revision < least:
            self.world.violate(
                f"a write got revision {result.revision}, but {floor} was known before it"
            )
        if changes and result.revision not in self._changed_at:
            self.world.violate(
                f"a write was acknowledged at {result.revision}, which changed nothing"
            )
        if changes:
            self.acknowledged = max(self.acknowledged, result.revision)
        self.floor = max(self.floor, result.revision)

    def read(
        self, host: str, revision: int, seen: Iterable[tuple[bytes, Entry | None]], floor: int
    ) -> None:
        """A caller was shown `seen` by a linearizable read."""
        self.world.count("acknowledged_read")
        if revision < floor:
            self.world.violate(f"{host} answered a read at {revision}, but {floor} was known")
        self.floor = max(self.floor, revision)
        self.shown(host, revision, seen)

    def shown(self, host: str, revision: int, seen: Iterable[tuple[bytes, Entry | None]]) -> None:
        """What any read, stale ones too, shows: exactly what was there at its revision."""
        for key, entry in seen:
            expected = self.value(key, revision)
            if (entry.value if entry is not None else None) != expected:
                self.world.violate(f"{host} showed {key!r} as it never was at {revision}")

    def value(self, key: bytes, revision: int) -> bytes | None:
        """What `key` held at `revision`, by what was applied."""
        position = bisect_right(self._revisions[key], revision)
        return self._values[key][position - 1] if position else None

    # ---- the end -------------------------------------------------------------------------

    def ends(self, host: str, state: WatchedState) -> None:
        """A voter at the end of the run: it must hold everything, exactly."""
        held = {entry.key: entry.value for entry in state.everything()}
        for key in sorted({*held, *self._revisions}):
            if held.get(key) != self.value(key, self.revision):
                self.world.violate(f"{host} ends with a wrong value under {key!r}")
        if self.acknowledged > state.revision:
            self.world.violate(f"{host} ends without the write acknowledged at {self.acknowledged}")
