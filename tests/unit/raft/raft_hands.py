"""Hands for the tests of consensus: one machine whose peers are the test itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from swarmd.base.disk import Disk
from swarmd.base.errors import CorruptFile, Diverged
from swarmd.base.machine import Effect, Event, Persist
from swarmd.base.rng import make_rng
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.frames import pack
from swarmd.state.raft.guards import ALL_GUARDS
from swarmd.state.raft.machine import START, Deliver, Propose, RaftMachine, SendRaft, Wake
from swarmd.state.raft.snapshot import FORMAT, KIND, SnapshotMeta
from swarmd.state.raft.wire import VOTERS, Append, PreVoteGranted, VoteGranted
from swarmd.wire.codec import Message, encode_struct


def sim_disk(label: str = "a") -> SimDisk:
    return SimDisk(World(7), label)


class ListState:
    """Keeps every command applied; `b"bad"` cannot be applied."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []

    def apply(self, command: bytes, index: int, term: int) -> int:
        if command == b"bad":
            raise ValueError("bad command")
        self.commands.append(command)
        return index

    def snapshot(self) -> Iterator[bytes]:
        """A frame for each command, and one at the end."""
        return iter([b"c" + command for command in self.commands] + [b"."])

    def restoring(self) -> ListRestoring:
        return ListRestoring(self)

    def digest(self) -> bytes:
        """Eight bytes. `b"spoilt"` among the commands is what no log brought."""
        if b"spoilt" in self.commands:
            raise Diverged("the state changed without its log")
        return hashlib.blake2b(b"\0".join(self.commands), digest_size=8).digest()


class ListRestoring:
    def __init__(self, state: ListState) -> None:
        self._state = state
        self._commands: list[bytes] = []
        self._ended = False

    def take(self, frame: bytes) -> None:
        if self._ended or frame[:1] not in (b"c", b"."):
            raise CorruptFile("not a list of commands")
        self._ended = frame == b"."
        if not self._ended:
            self._commands.append(frame[1:])

    def finish(self) -> None:
        if not self._ended:
            raise CorruptFile("not a whole list of commands")
        self._state.commands = self._commands


def snapshot_of(
    index: int, term: int, *commands: bytes, voters: tuple[str, ...] = ("a", "b", "c")
) -> bytes:
    """A snapshot file of a `ListState`."""
    state = ListState()
    state.commands = list(commands)
    meta = encode_struct(SnapshotMeta(index, term, voters))
    return pack(KIND, FORMAT, [meta, *state.snapshot()])


class Hands:
    """Machine `a` among `voters`; time moves only when the test says so."""

    def __init__(
        self,
        voters: str = "abc",
        *,
        guards: frozenset[str] = ALL_GUARDS,
        disk: Disk | None = None,
        config: RaftConfig | None = None,
        me: str = "a",
    ) -> None:
        self.now = 0.0
        self.me = me
        self.voters = tuple(voters)
        self.disk = disk if disk is not None else sim_disk(me)
        self.guards = guards
        self.config = config or RaftConfig()
        self.start()

    def start(self) -> None:
        """Start on what the disk holds, as after a crash."""
        self.state = ListState()
        self.machine = RaftMachine(
            self.me,
            self.voters,
            self.disk,
            self.state,
            make_rng(self.me),
            self.config,
            self.now,
            self.guards,
        )

    def step(self, *events: Event, sync: bool = True, after_s: float = 0.0) -> list[Effect]:
        """One step as a shell does it; `sync=False`: the sync has not returned yet."""
        self.now += after_s
        for event in events:
            assert not self.machine.handle(event, self.now)
        effects = list(self.machine.settle(self.now))
        if sync and Persist() in effects:
            self.machine.sync()
        return effects

    def say(self, peer: str, *messages: Message, sync: bool = True) -> list[Effect]:
        """Let `peer` send messages that arrive together."""
        return self.step(*(Deliver(peer, VOTERS.encode(m)) for m in messages), sync=sync)

    def go_on(self, *, sync: bool = True) -> list[Effect]:
        return self.step(Wake(START), sync=sync)

    def time_out(self) -> list[Effect]:
        """Let the longest election time pass."""
        return self.step(Wake(START), after_s=self.config.election_max_s + 0.01)

    def lead(self) -> list[Effect]:
        """Become leader by the votes of as many as it takes; its first entry is not committed."""
        self.time_out()
        helpers = [v for v in self.voters if v != self.me][: len(self.voters) // 2]
        for peer in helpers:
            self.say(peer, PreVoteGranted(self.term + 1))
        effects: list[Effect] = []
        for peer in helpers:
            effects += self.say(peer, VoteGranted(self.term))
        assert self.machine.office.state == "leader"
        return effects

    def follow(
        self,
        commands: list[bytes],
        *,
        leader: str = "b",
        term: int = 1,
        commit: int = 1,
        previous: tuple[int, int] = (1, 0),
        sync: bool = True,
    ) -> list[Effect]:
        """Take regular entries from a leader."""
        entries = tuple((term, b"\0" + c) for c in commands)
        return self.say(leader, Append(term, 1, commit, *previous, entries), sync=sync)

    def propose(self, command: bytes, tag: int = 1, *, sync: bool = True) -> list[Effect]:
        return self.step(Propose(command, tag), sync=sync)

    @property
    def term(self) -> int:
        return self.machine.status(self.now).term

    @property
    def commit(self) -> int:
        return self.machine.commit_index

    @property
    def last(self) -> int:
        return self.machine.status(self.now).last_index


def sent(effects: list[Effect], kind: type[Message] = Message) -> list[Any]:
    """The messages of one kind among the effects, decoded."""
    messages = [VOTERS.decode(e.data) for e in effects if isinstance(e, SendRaft)]
    return [m for m in messages if isinstance(m, kind)]


def of(effects: list[Effect], kind: type[Effect]) -> list[Any]:
    return [e for e in effects if isinstance(e, kind)]
