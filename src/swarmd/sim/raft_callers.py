"""Callers of the simulated store: sessions, repeats, and a history of what they saw.

A caller has one call under way: a write is one group of up to three operations, repeated
under the same session and sequence until it is answered or its time is over; then its outcome
is unknown, and it goes into the history as such. A caller that is redirected asks there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from swarmd.base.ids import digest
from swarmd.sim.history import History
from swarmd.sim.network import Network
from swarmd.sim.raft_voter import Shown
from swarmd.sim.raft_watch import Watch
from swarmd.sim.world import World
from swarmd.state.raft.messages import (
    SESSION_BYTES,
    Compare,
    Delete,
    Entry,
    Forward,
    GetAsk,
    Group,
    OpenSession,
    Operation,
    OpResult,
    Put,
    RangeAsk,
    Redirect,
    Results,
    Txn,
)

PREFIX: Final = b"u/"
KEYS: Final = tuple(PREFIX + name for name in (b"a", b"b", b"c", b"d", b"e", b"f"))
_CALL_TIMEOUT_S: Final = 4.0
_ATTEMPT_S: Final = 0.8
_PAUSE_S: Final = (0.01, 0.12)

Known = dict[bytes, tuple[bytes | None, int]]  # key -> value and revision as last seen


class Around(Protocol):
    """What a caller needs of its world."""

    world: World
    network: Network
    watch: Watch
    history: History
    fill: Sequence[bytes]

    def targets(self) -> Sequence[str]: ...


@dataclass(slots=True)
class _Write:
    """Operations under way; `known`: what the caller had seen when it made them."""

    ops: tuple[Operation, ...]
    known: Known
    session: bytes
    first: int
    called: float
    floor: int
    sends: int = 0


@dataclass(slots=True)
class _Ask:
    """A read under way; `floor`: what somebody knew of before it was called."""

    body: GetAsk | RangeAsk
    keys: tuple[bytes, ...]
    called: float
    floor: int


class Caller:
    """One client program, outside of the swarm's hosts."""

    def __init__(self, around: Around, name: str) -> None:
        self.name = name
        self._around = around
        # Those of its generation: what it saw is not to be held to what the next one does.
        self._watch, self._history = around.watch, around.history
        self._world = around.world
        self._rng = around.world.rng_for(f"caller:{name}")
        self._sessions = 0
        self._session = b""
        self._next = 0
        self._serial = 0
        self._values = 0
        self._hint: str | None = None
        self._waits: tuple[int, Callable[[Any], None]] | None = None
        self._known: Known = dict.fromkeys(KEYS, (None, 0))
        self._over = False
        around.network.attach(name, self._receive)

    def start(self) -> None:
        self._open_session()

    def stop(self) -> None:
        """Make no further call; the one under way comes to its end."""
        self._over = True

    # ---- asking --------------------------------------------------------------------------

    def _receive(self, _: Any, message: tuple[Any, ...]) -> None:
        self._answered(message[1], message[2])

    def _ask(self, body: Any, done: Callable[[Any], None]) -> None:
        """Ask somebody once; `done(None)` if nothing useful comes back in time."""
        self._serial += 1
        self._waits = (self._serial, done)
        target = self._hint or self._rng.choice(list(self._around.targets()))
        self._around.network.send(self.name, target, ("ask", self._serial, body))
        self._world.after(_ATTEMPT_S, self._answered, self._serial, None)

    def _answered(self, serial: int, answer: Any) -> None:
        if self._waits is None or self._waits[0] != serial:
            return
        done, self._waits = self._waits[1], None
        if answer is None:
            self._hint = None
        elif isinstance(answer, Redirect):
            self._hint = answer.leader.decode() or None
            answer = None
        done(answer)

    def _repeat(self, function: Callable[..., None], *args: Any) -> None:
        self._world.after(self._rng.uniform(0.01, 0.1), function, *args)

    def _pause(self) -> None:
        if not self._over:
            self._world.after(self._rng.uniform(*_PAUSE_S), self._call)

    # ---- sessions ------------------------------------------------------------------------

    def _open_session(self) -> None:
        self._sessions += 1
        label = f"{self._world.seed}/{self.name}/{self._sessions}".encode()
        self._session = digest(b"session", label)[:SESSION_BYTES]
        self._next = 0
        self._try_open()

    def _try_open(self) -> None:
        def opened(answer: Any) -> None:
            if isinstance(answer, Results) and answer.groups[0][0].ok:
                self._pause()
            elif not self._over:
                self._repeat(self._try_open)

        self._ask(Forward((Group(b"", 0, 0, (OpenSession(self._session),)),)), opened)

    # ---- calls ---------------------------------------------------------------------------

    def _call(self) -> None:
        """One call; the next follows when it has ended."""
        rng = self._rng
        chance = rng.random()
        if self._over:
            return
        if chance < 0.01:
            self._open_session()
        elif chance < 0.27:
            key = rng.choice(KEYS)
            self._read(GetAsk(key, rng.random() < 0.1), (key,))
        elif chance < 0.42:
            self._read(RangeAsk(PREFIX, b"", 1_000, rng.random() < 0.1), KEYS)
        else:
            count = rng.choice((1, 1, 1, 2, 3))
            self._write(tuple(self._operation() for _ in range(count)))

    def _value(self) -> bytes:
        self._values += 1
        return f"{self.name}.{self._values}".encode() + b"." * self._rng.choice((0, 20, 150))

    def _operation(self) -> Operation:
        rng = self._rng
        key, other = rng.sample(KEYS, 2)
        chance = rng.random()
        if self._around.fill and chance < 0.2:
            return Put(rng.choice(self._around.fill), self._value())
        if chance < 0.45:
            return Put(key, self._value())
        if chance < 0.65:
            return Put(key, self._value(), self._known[key][1])
        if chance < 0.72:
            return Delete(key)
        if chance < 0.8 and self._known[key][1]:
            return Delete(key, self._known[key][1])
        compares = (Compare(key, self._known[key][1]),)
        value = self._value()
        otherwise = (Put(other, self._value()),) if rng.random() < 0.3 else ()
        return Txn(compares, (Put(key, value), Put(other, value)), otherwise)

    # ---- writes --------------------------------------------------------------------------

    def _write(self, ops: tuple[Operation, ...]) -> None:
        first, self._next = self._next, self._next + len(ops)
        floor, now = self._watch.floor, self._world.now
        self._send_write(_Write(ops, dict(self._known), self._session, first, now, floor))

    def _send_write(self, write: _Write) -> None:
        write.sends += 1

        def answered(answer: Any) -> None:
            results = answer.groups[0] if isinstance(answer, Results) else None
            if results is not None and results[0].code == "session_expired":
                self._expired(write)
            elif results is not None and all(result.code != "moved" for result in results):
                self._wrote(write, results)
                self._pause()
            elif self._world.now - write.called > _CALL_TIMEOUT_S:
                self._unknown(write)
                self._pause()
            else:
                self._repeat(self._send_write, write)

        group = Group(write.session, write.first, write.first, write.ops)
        self._ask(Forward((group,)), answered)

    def _expired(self, write: _Write) -> None:
        """Sent once, it was certainly never applied."""
        if write.sends > 1:
            self._unknown(write)
        if not self._over:
            self._open_session()

    def _wrote(self, write: _Write, results: tuple[OpResult, ...]) -> None:
        now = self._world.now
        for sequence, (op, result) in enumerate(zip(write.ops, results, strict=True), write.first):
            changes = self._record(op, result, write, now)
            self._watch.written(write.session, sequence, result, write.floor, changes=changes)

    def _record(self, op: Operation, result: OpResult, write: _Write, now: float) -> bool:
        """Into the history; True if the operation certainly changed something."""
        history, called, revision = self._history, write.called, result.revision
        match op:
            case Put(key, value, None):
                history.wrote(called, now, revision, [(key, value)])
                self._known[key] = (value, revision)
                return True
            case Delete(key, None):
                history.deleted(called, now, key)
                self._known[key] = (None, 0)
                return False
            case Put(key) | Delete(key):
                new = op.value if isinstance(op, Put) else None
                old = write.known[key][0]
                if not result.ok:
                    history.compared(called, now, key, old, new)
                    return False
                history.swapped(called, now, revision, key, old, new)
                self._known[key] = (new, revision if new is not None else 0)
                return True
        assert isinstance(op, Txn), op
        branch = op.then if result.ok else op.otherwise
        if branch:
            history.wrote(called, now, revision, _changes(branch))
        for key, written in _changes(branch):
            self._known[key] = (written, revision)
        return bool(branch)

    def _unknown(self, write: _Write) -> None:
        self._world.count("unknown_outcome")
        history, called = self._history, write.called
        for op in write.ops:
            match op:
                case Put(key, value, expect) if expect is not None:
                    history.may_have_swapped(called, key, write.known[key][0], value)
                case Delete(key, expect) if expect is not None:
                    history.may_have_swapped(called, key, write.known[key][0], None)
                case Txn():
                    # One branch or the other; neither key tells which, so both may have been.
                    for branch in (op.then, op.otherwise):
                        if branch:
                            history.may_have_written(called, _changes(branch))
                case _:
                    history.may_have_written(called, _changes((op,)))

    # ---- reads ---------------------------------------------------------------------------

    def _read(self, body: GetAsk | RangeAsk, keys: tuple[bytes, ...]) -> None:
        self._send_read(_Ask(body, keys, self._world.now, self._watch.floor))

    def _send_read(self, ask: _Ask) -> None:
        def answered(answer: Any) -> None:
            if isinstance(answer, Shown):
                self._saw(ask, answer)
                self._pause()
            elif self._world.now - ask.called > _CALL_TIMEOUT_S:
                self._pause()
            else:
                self._repeat(self._send_read, ask)

        self._ask(ask.body, answered)

    def _saw(self, ask: _Ask, shown: Shown) -> None:
        held: dict[bytes, Entry] = {entry.key: entry for entry in shown.entries}
        seen = [(key, held.get(key)) for key in ask.keys]
        watch = self._watch
        if ask.body.stale:
            self._world.count("stale_read")
            watch.shown(self.name, shown.revision, seen)
            return
        watch.read(self.name, shown.revision, seen, ask.floor)
        rows = [(k, e.value, e.mod_revision) if e is not None else (k, None, 0) for k, e in seen]
        self._history.read(ask.called, self._world.now, shown.revision, rows)
        for key, value, revision in rows:
            self._known[key] = (value, revision)


def _changes(ops: Sequence[Any]) -> list[tuple[bytes, bytes | None]]:
    return [(op.key, op.value if isinstance(op, Put) else None) for op in ops]
