"""The log's protocol told as stories: what is done to some voters, and what they do then.

A file holds commands, `> ...`; the indented lines below each are everything that happened.
`# ...` is for people. Set SWARMD_REWRITE=1 to write the outcome anew: read the difference
before you believe it. Every voter has a clock of its own, which stands still until told.

    > voters a b c [compact=N] [chunk=N]   start these voters on empty disks
    > expire a             a hears nobody for the longest election time
    > wait a 0.05          a's clock goes on
    > deliver [a b] [N]    packets arrive, and those they lead to, till none is left
                           (only those between a and b; at most N)
    > lose [a]             packets under way (to and from a) are lost
    > cut a b | heal       nothing passes between these | undo it
    > propose a x y        callers of a want these written
    > read a               a caller of a wants to read
    > hold a | release a   a's syncs do not return | they do
    > full a | room a      a's disk is full | has room again; what waits is tried again
    > crash a | start a    a loses power, and what it had not synced | is started again
    > log a                what a's log holds
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from swarmd.base.errors import DiskFault
from swarmd.base.machine import Ahead, Effect, Event, Persist, SetTimer
from swarmd.base.rng import make_rng
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World
from swarmd.state.raft import wire
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.machine import (
    START,
    Deliver,
    Office,
    Propose,
    Proposed,
    RaftMachine,
    ReadIndex,
    ReadReady,
    SendRaft,
    Wake,
)

STORIES = Path(__file__).parent / "stories"


class _State:
    """Keeps every command, and says when it takes one up."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.commands: list[str] = []

    def apply(self, command: bytes, index: int, term: int) -> int:
        self.commands.append(command.decode())
        self._say(f"applies {command.decode()} at {index}")
        return index

    def snapshot(self) -> Iterator[bytes]:
        return iter([command.encode() for command in self.commands])

    def restoring(self) -> _Restoring:
        return _Restoring(self)

    def take_up(self, commands: list[str]) -> None:
        self.commands = commands
        self._say(f"takes up a snapshot: {' '.join(commands)}")

    def digest(self) -> bytes:
        return hashlib.blake2b(" ".join(self.commands).encode(), digest_size=8).digest()


class _Restoring:
    """A snapshot of a `_State` on its way, a command a frame."""

    def __init__(self, state: _State) -> None:
        self._state = state
        self._commands: list[str] = []

    def take(self, frame: bytes) -> None:
        self._commands.append(frame.decode())

    def finish(self) -> None:
        self._state.take_up(self._commands)


class _Voter:
    """One machine, its disk, and what it could not do yet."""

    def __init__(self, story: Story, name: str) -> None:
        self.story = story
        self.name = name
        self.now = 0.0
        self.disk = SimDisk(World(1), name)
        self.machine: RaftMachine | None = None
        self.holds = False
        self.waiting: list[Effect] | None = None
        self.inbox: list[Event] = []
        self.asked: dict[int, str] = {}

    def say(self, text: str) -> None:
        self.story.said.append(f"{self.name} {text}")

    def start(self) -> None:
        story = self.story
        self.waiting, self.inbox = None, []
        self.machine = RaftMachine(
            self.name,
            tuple(sorted(story.voters)),
            self.disk,
            _State(self.say),
            make_rng(self.name),
            story.config,
            self.now,
        )
        self.step(Wake(START))

    def step(self, *events: Event) -> None:
        """Steps until there is nothing more to do at this moment."""
        self.inbox += events
        while self.inbox and self.waiting is None and self.machine is not None:
            taken, self.inbox = self.inbox, []
            for event in taken:
                self.machine.handle(event, self.now)
            effects = list(self.machine.settle(self.now))
            if Persist() in effects:
                self.perform([e for e in effects if isinstance(e, Ahead)], early=True)
                self.waiting = [e for e in effects if not isinstance(e, Ahead)]
                self.sync()
            else:
                self.perform(effects)

    def sync(self) -> None:
        """What waits for the disk goes on, if the disk does."""
        if self.waiting is None or self.holds or self.machine is None:
            return
        try:
            self.machine.sync()
        except DiskFault:
            self.say("cannot write: no room")
            return
        effects, self.waiting = self.waiting, None
        self.perform(effects)
        self.step()

    def perform(self, effects: list[Effect], *, early: bool = False) -> None:
        for effect in effects:
            match effect:
                case SendRaft(peer, data):
                    self.story.send(self.name, peer, data, early=early)
                case SetTimer(0.0, event):
                    self.inbox.append(event)
                case Office(state, term, leader, ready):
                    follows = f", follows {leader}" if state == "follower" and leader else ""
                    self.say(f"is {state} in term {term}{', ready' if ready else follows}")
                case Proposed(tag, ok, result, code):
                    self.say(f"answers {self.asked[tag]}: {f'at {result}' if ok else code}")
                case ReadReady(_, ok):
                    self.say("answers the read" if ok else "cannot answer the read")


class Story:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.voters: dict[str, _Voter] = {}
        self.config = RaftConfig()
        self.packets: list[tuple[str, str, bytes]] = []
        self.cuts: set[frozenset[str]] = set()
        self.tag = 0

    def tell(self, line: str) -> list[str]:
        self.said = []
        verb, *words = line.split()
        getattr(self, f"do_{verb}")(*words)
        return self.said

    def send(self, source: str, target: str, data: bytes, *, early: bool) -> None:
        text = wording(wire.VOTERS.decode(data))
        first = " (before its own sync)" if early else ""
        lost = frozenset((source, target)) in self.cuts
        self.said.append(f"{source} -> {target} {text}{first}{' (lost)' if lost else ''}")
        if not lost:
            self.packets.append((source, target, data))

    # ---- commands ----------------------------------------------------------------------

    def do_voters(self, *words: str) -> None:
        options = dict(word.split("=") for word in words if "=" in word)
        self.config = RaftConfig(
            heartbeat_s=0.05,
            election_min_s=0.3,
            election_max_s=0.6,
            compact_entries=int(options.get("compact", 1_000)),
            snapshot_chunk_bytes=int(options.get("chunk", 1_000)),
            keep_entries=0,
        )
        self.voters = {name: _Voter(self, name) for name in words if "=" not in name}
        for voter in self.voters.values():
            voter.start()

    def do_expire(self, name: str) -> None:
        self.do_wait(name, str(self.config.election_max_s + 0.001))

    def do_wait(self, name: str, seconds: str) -> None:
        voter = self.voters[name]
        voter.now += float(seconds)
        voter.step(Wake(START))

    def do_deliver(self, *words: str) -> None:
        between = [word for word in words if not word.isdigit()]
        most = int(words[-1]) if len(words) > len(between) else 300
        for _ in range(most):
            at = next((i for i, p in enumerate(self.packets) if {*p[:2]} >= {*between}), None)
            if at is None:
                return
            source, target, data = self.packets.pop(at)
            self.voters[target].step(Deliver(source, data))
        if most == 300:
            self.said.append("and so on")

    def do_lose(self, *names: str) -> None:
        kept = [p for p in self.packets if names and not {*p[:2]} & {*names}]
        self.said.append(f"{len(self.packets) - len(kept)} packets are lost")
        self.packets = kept

    def do_cut(self, *names: str) -> None:
        others = [name for name in self.voters if name not in names]
        pairs = [names] if len(names) == 2 else [(names[0], other) for other in others]
        self.cuts.update(frozenset(pair) for pair in pairs)

    def do_heal(self) -> None:
        self.cuts.clear()

    def do_propose(self, name: str, *words: str) -> None:
        events = []
        for word in words:
            self.tag += 1
            self.voters[name].asked[self.tag] = word
            events.append(Propose(word.encode(), self.tag))
        self.voters[name].step(*events)

    def do_read(self, name: str) -> None:
        self.tag += 1
        self.voters[name].step(ReadIndex(self.tag))

    def do_hold(self, name: str) -> None:
        self.voters[name].holds = True

    def do_release(self, name: str) -> None:
        self.voters[name].holds = False
        self.voters[name].sync()

    def do_full(self, name: str) -> None:
        self.voters[name].disk.full = True

    def do_room(self, name: str) -> None:
        self.voters[name].disk.full = False
        self.voters[name].sync()

    def do_crash(self, name: str) -> None:
        self.voters[name].machine = None
        self.voters[name].disk.crash()

    def do_start(self, name: str) -> None:
        self.voters[name].start()

    def do_log(self, name: str) -> None:
        machine = self.voters[name].machine
        assert machine is not None
        held = []
        for index in range(1, machine.last_index + 1):
            entry = machine.entry_at(index)
            if entry is not None:
                word = entry[0][1:].decode() or "-"
                held.append(f"{index}:{word}/{entry[2]}")
        self.said.append(f"{name} holds {' '.join(held)}; committed {machine.commit_index}")


def wording(message: Any) -> str:
    """A message in short: what it is, and the fields that matter."""
    name = type(message).__name__
    match message:
        case wire.VoteRequest() | wire.PreVoteRequest():
            last = f"{message.last_index}/{message.last_term}"
            return f"{name} term {message.term} last {last}"
        case wire.Append():
            words = [f"{c[1:].decode() or '-'}/{t}" for t, c in message.entries]
            before = f"{message.previous_index}/{message.previous_term}"
            what = f"{name} term {message.term} after {before}: {' '.join(words) or 'nothing'}"
            return f"{what}; committed {message.commit}, round {message.round}"
        case wire.AppendReply():
            said = "holds all before" if message.ok else "refuses; send from"
            return f"{name} {said} {message.next_index}, round {message.round}"
        case wire.SnapshotChunk():
            size = len(message.data)
            return f"{name} to {message.index}: {size} bytes from {message.offset}"
        case wire.SnapshotReply():
            return f"{name} to {message.index}: has {message.offset} bytes"
    return f"{name} term {message.term}"


def told(text: str) -> str:
    story = Story()
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("> "):
            lines.append(line)
            lines.extend(f"    {said}" for said in story.tell(line[2:]))
        elif not line.startswith("    "):
            lines.append(line)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", sorted(STORIES.glob("raft_*.txt")), ids=lambda path: path.stem)
def test_story(path: Path) -> None:
    text = path.read_text()
    now = told(text)
    if os.environ.get("SWARMD_REWRITE"):
        path.write_text(now)
    assert now == text


def test_there_are_stories() -> None:
    assert len(list(STORIES.glob("raft_*.txt"))) >= 8
