"""Copies of the running log in the simulation: on the voter that gives, and on who keeps one.

The machine that keeps a copy and its files are the production ones; these are the shells around
them, as `copies.py` and `copier.py` are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from swarmd.base.errors import CorruptFile, DiskFault
from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Event, SetTimer
from swarmd.base.rng import Rng
from swarmd.identity.genesis import Genesis
from swarmd.sim.raft_host import HostClock
from swarmd.sim.raft_voter import LogRoom
from swarmd.state.raft import copy_machine as cm
from swarmd.state.raft import epoch_messages as emsg
from swarmd.state.raft import messages as m
from swarmd.state.raft.epoch_copy import EpochCopy
from swarmd.state.raft.statefile import encode_state
from swarmd.state.raft.storage import EpochFiles

ASK_TIMEOUT_S: Final = 2.0
COPY_POINTS: Final = ("copy.base", "copy.entries")
_DISK_S: Final = (0.0003, 0.003)
_LOG_BYTES_MAX: Final = 2_000
_NEWS_WAIT_S: Final = 0.1


class Node(Protocol):
    """What a copy needs of its node."""

    name: str
    clock: HostClock
    rng: Rng
    room: LogRoom | None
    files: EpochFiles

    def after(self, delay_s: float, function: Callable[..., None], *args: Any) -> None: ...

    def ask_peer(self, peer: NodeId, body: Any, timeout_s: float, done: Any) -> None: ...

    def point(self, name: str) -> None: ...


class Copies:
    """On a voter: gives the running state, and what follows it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._base: tuple[int, int, bytes] | None = None

    def answer(self, asked: emsg.BaseAsk | emsg.LogAsk, done: Callable[[Any], None]) -> None:
        room = self._node.room
        if room is None or room.number != asked.number:
            done("moved")
        elif isinstance(asked, emsg.BaseAsk):
            done(self._piece(room, asked))
        elif room.machine.applied_index > asked.after:
            done(self._entries(asked))
        else:
            self._node.after(_NEWS_WAIT_S, lambda: done(self._entries(asked)))

    def _piece(self, room: LogRoom, asked: emsg.BaseAsk) -> emsg.BasePiece | str:
        if asked.index == 0 and asked.offset == 0:
            state = room.state
            self._base = (room.number, room.machine.applied_index, encode_state(state.snapshot()))
        base = self._base
        if base is None or base[0] != room.number or asked.index not in (0, base[1]):
            return "not_found"
        body = base[2]
        return emsg.BasePiece(
            base[1], len(body), body[asked.offset : asked.offset + 1 + len(body) // 2]
        )

    def _entries(self, asked: emsg.LogAsk) -> emsg.LogPiece | str:
        room = self._node.room
        if room is None or room.number != asked.number:
            return "moved"
        entries = room.machine.applied_after(asked.after, m.WHOLE_BYTES_MAX)
        if entries is None:
            return "not_found"
        return emsg.LogPiece(tuple(entries), room.machine.applied_index)


class Copier:
    """On a member without a seat: keeps a copy while it is told to."""

    def __init__(self, node: Node, genesis: Genesis) -> None:
        self._node = node
        self._genesis = genesis
        self._machine = cm.CopyMachine()
        self._open: tuple[int, EpochCopy] | None = None
        self._feeding: list[Event] = []

    def told(self, peer: NodeId, number: int) -> None:
        self.feed(cm.Told(peer, number))

    def epoch_began(self, number: int) -> None:
        if 0 < self._machine.number < number:
            self.feed(cm.EpochEnded(self._machine.number))

    def first_state(self, number: int) -> bytes | None:
        """What `number` begins with, by the copy of the log before it, if that goes so far."""
        if self._open is None and number - 1 in self._node.files.on_disk().copies:
            self._open = (number - 1, self._load(number - 1))
        if self._open is None or self._open[0] != number - 1:
            return None
        return self._open[1].first_state(number)

    def close(self, number: int) -> None:
        if self._open is not None and self._open[0] == number:
            self._open = None

    def _load(self, number: int) -> EpochCopy:
        return EpochCopy(self._node.files.copy_disk(number), self._genesis, _LOG_BYTES_MAX)

    def feed(self, event: Event) -> None:
        self._feeding.append(event)
        if len(self._feeding) > 1:
            return  # The step under way goes on with it.
        while self._feeding:
            for effect in self._machine.handle(self._feeding[0], self._node.clock.now()):
                self._perform(effect)
            self._feeding.pop(0)

    def _perform(self, effect: Effect) -> None:
        node = self._node
        match effect:
            case SetTimer(delay_s, event):
                node.after(delay_s, self.feed, event)
            case cm.CloseCopy(number):
                self.close(number)
            case cm.AskVoter(tag, peer, body):
                node.ask_peer(peer, body, ASK_TIMEOUT_S, lambda got: self._answered(tag, got))
            case _:
                node.after(node.rng.uniform(*_DISK_S), self._write, effect)

    def _answered(self, tag: int, got: Any) -> None:
        if isinstance(got, str) or got is None:
            self.feed(cm.Answered(tag, None, got or "timeout"))
        else:
            self.feed(cm.Answered(tag, got))

    def _write(self, effect: Any) -> None:
        try:
            event = self._written(effect)
        except (DiskFault, CorruptFile):
            self.close(effect.number)
            event = cm.NotKept(effect.number)
        self.feed(event)

    def _written(self, effect: Effect) -> Event:
        if isinstance(effect, cm.OpenCopy):
            if self._open is None or self._open[0] != effect.number:
                self._open = (effect.number, self._load(effect.number))
            return cm.Kept(effect.number, self._open[1].last)
        if isinstance(effect, cm.KeepBase):
            if self._open is None:
                self._open = (effect.number, self._load(effect.number))
            copy = self._open[1]
            copy.begin(effect.index, effect.body)
            self._node.point("copy.base")
            return cm.Kept(effect.number, copy.last)
        assert isinstance(effect, cm.KeepEntries), effect
        if self._open is None or self._open[1].last != effect.after:
            return cm.NotKept(effect.number)
        copy = self._open[1]
        copy.extend(effect.entries)
        self._node.point("copy.entries")
        return cm.Kept(effect.number, copy.last)
