"""Stories of the task queue: lines of what happens, and under each what comes out.

A story is a text file. `# ...` comments; `> ...` is an event; the indented lines below it are
everything the machines asked for, as golden output. Set SWARMD_REWRITE=1 to write it anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from swarmd.base.ids import NodeId, node_id_of, task_id_of
from swarmd.base.machine import Effect, Event, Send, SetTimer
from swarmd.base.rng import make_rng
from swarmd.sim.task_watch import Ledger
from swarmd.sim.world import World
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.raft.messages import Put
from swarmd.tasks import events as e
from swarmd.tasks import messages as m
from swarmd.tasks.config import TasksConfig
from swarmd.tasks.machine import CoordinatorMachine
from swarmd.tasks.spec import (
    ASSIGNMENT_PREFIX,
    OFFICE_KEY,
    TASK_PREFIX,
    AgentRun,
    Inline,
    Mode,
    TaskSpec,
    decode_assignment,
    decode_task,
)

STORIES = Path(__file__).parent / "stories"
SWARM = b"s" * 32
BLOB = BlobRef(b"b" * 32, 1)
AGENTS = (
    AgentRun("quick", "1", BLOB, "m:f", concurrency=1, retries=1),
    AgentRun("alone", "1", BLOB, "m:f", concurrency=1, retries=1, mode=Mode.EXCLUSIVE),
    AgentRun("once", "1", BLOB, "m:f", concurrency=1, mode=Mode.AT_MOST_ONCE),
)
NODES = {node_id_of(name.encode()): name for name in ("n1", "n2", "n3")}


class Teller:
    """Performs a story's events on one coordinator over one ledger."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ledger = Ledger(World(1))
        self.keys: dict[str, str] = {}
        self.said: list[str] = []
        self.timers: list[Event] = []
        self.machine: CoordinatorMachine
        self.verbs: dict[str, Callable[..., None]] = {
            "office": self.office,
            "beat": self.beat,
            "submit": self.submit,
            "result": self.result,
            "failure": self.failure,
            "member": self.member,
            "cancel": self.cancel,
            "wait": self.wait,
            "due": self.due,
        }

    def node(self, name: str) -> NodeId:
        return node_id_of(name.encode())

    def tell(self, line: str) -> list[str]:
        self.said = []
        verb, *words = line.split()
        self.verbs[verb](*words)
        return self.said

    # ---- events -----------------------------------------------------------------------

    def office(self, *names: str) -> None:
        """Take office, with these members alive."""
        _, office = self.ledger.apply(Put(OFFICE_KEY, b"x"))
        config = TasksConfig(retry_delay_s=1.0)
        self.machine = CoordinatorMachine(self.node("n1"), SWARM, config, make_rng(1))
        rows = self.ledger.rows
        self.feed(
            e.TookOffice(
                office,
                0,
                tuple((decode_task(v), r) for _, v, r in rows(TASK_PREFIX)),
                tuple((decode_assignment(v), r) for _, v, r in rows(ASSIGNMENT_PREFIX)),
                (),
                AGENTS,
                tuple((self.node(name), e.Liveness.ALIVE) for name in names),
            )
        )

    def beat(self, name: str, boot: str, *held: str) -> None:
        fences = tuple(int(word) for word in held)
        beat = m.Heartbeat(self.machine.office, boot.encode(), 1, (), fences)
        self.feed(e.FromWorker(self.node(name), beat))

    def submit(self, key: str, agent: str) -> None:
        self.keys[task_id_of(SWARM, key)] = key
        self.feed(e.SubmitAsked(1, (TaskSpec(agent, Inline(b"\x01"), key),)))

    def result(self, name: str, boot: str, key: str, fence: str) -> None:
        value = Inline(int(fence).to_bytes(8))
        self._ended(name, boot, m.ResultItem(task_id_of(SWARM, key), int(fence), True, value))

    def failure(self, name: str, boot: str, key: str, fence: str, code: str) -> None:
        item = m.ResultItem(task_id_of(SWARM, key), int(fence), False, None, code, "as told")
        self._ended(name, boot, item)

    def _ended(self, name: str, boot: str, item: m.ResultItem) -> None:
        message = m.Results(self.machine.office, boot.encode(), (item,))
        self.feed(e.FromWorker(self.node(name), message))

    def member(self, name: str, liveness: str) -> None:
        self.feed(e.MemberChanged(self.node(name), e.Liveness(liveness)))

    def cancel(self, key: str) -> None:
        self.feed(e.CancelAsked(2, (task_id_of(SWARM, key),)))

    def wait(self, seconds: str) -> None:
        self.now += float(seconds)
        self.feed(e.Tick())

    def due(self) -> None:
        """The oldest pause after a failure is over."""
        self.feed(self.timers.pop(0))

    # ---- effects ----------------------------------------------------------------------

    def feed(self, event: Event) -> None:
        proposals = []
        for effect in self.machine.handle(event, self.now):
            if isinstance(effect, e.Propose):
                proposals.append(effect)
            else:
                self.say(effect)
        commits = tuple(e.Commit(p.tag, *self.ledger.apply(p.op)) for p in proposals)
        for proposal, commit in zip(proposals, commits, strict=True):
            keys = [self.name_of(op.key) for op in proposal.op.then]
            self.said.append(f"commit {commit.revision}: {', '.join(keys)}")
        if commits:
            self.feed(e.Committed(commits))

    def name_of(self, key: bytes) -> str:
        prefix, _, task_id = key.decode().partition("/")
        return f"{prefix}/{self.keys.get(task_id, task_id)}"

    def say(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            self.said.append(f"to {NODES[effect.peer]}: {self.wording(effect.message)}")
        elif isinstance(effect, e.Answer):
            item = effect.message.items[0]  # type: ignore[attr-defined]
            state = item.state if isinstance(item, m.CancelledItem) else item.code or "taken"
            self.said.append(f"answer: {state}")
        elif isinstance(effect, e.TaskDone):
            record = effect.record
            self.said.append(f"{record.spec.key} is {record.state} after {record.attempts}")
        elif isinstance(effect, SetTimer) and isinstance(effect.event, e.RetryDue):
            self.timers.append(effect.event)
            self.said.append(f"try again in {effect.delay_s:.1f} s")

    def wording(self, message: object) -> str:
        if isinstance(message, m.Assign):
            item = message.items[0]
            key = self.keys[item.task_id]
            return f"assign {key} attempt {item.attempt} fence {item.fence}"
        if isinstance(message, m.Settled):
            return f"settled {message.items[0]}"
        return type(message).__name__.lower()


def told(text: str) -> str:
    teller = Teller()
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("> "):
            lines.append(line)
            lines.extend(f"    {said}" for said in teller.tell(line[2:]))
        elif not line.startswith("    "):
            lines.append(line)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", sorted(STORIES.glob("tasks_*.txt")), ids=lambda path: path.stem)
def test_story(path: Path) -> None:
    text = path.read_text()
    now = told(text)
    if os.environ.get("SWARMD_REWRITE"):
        path.write_text(now)
    assert now == text


def test_there_are_stories() -> None:
    assert len(list(STORIES.glob("tasks_*.txt"))) >= 4
