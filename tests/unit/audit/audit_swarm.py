"""Chains of audit records and small swarms that keep them, in one process."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from small_swarm import KEYS, chain, trust_of

from swarmd.audit.chain import Note, Place, Sealed, Writer
from swarmd.audit.config import AuditConfig
from swarmd.audit.records import Stream
from swarmd.audit.service import Audit, Query, open_audit
from swarmd.audit.store import AuditFolder
from swarmd.audit.verify import Verdict, Verification
from swarmd.base.errors import NoQuorum
from swarmd.base.ids import NodeId
from swarmd.base.rng import make_rng
from swarmd.identity.authority import AuthorityState
from swarmd.mesh.transports.memory import MemoryNetwork
from swarmd.state.raft.messages import Delete, Entry, OpResult, Txn

SWARM = chain(1)[0].swarm_id
KEY = KEYS[0]
PUBLIC = {bytes(key.key_id): key.public for key in KEYS}


def note(number: int, kind: str = "key.created") -> Note:
    return Note(1_000 + number, kind, f"actor {number}", "subject", "ok", "")


def notes(count: int, start: int = 1) -> list[Note]:
    return [note(start + index) for index in range(count)]


def writer(
    stream: Stream = "security", life: bytes = b"l" * 8, parent: Place | None = None, key: Any = KEY
) -> Writer:
    return Writer(key, SWARM, stream, life, parent)


def written(counts: Sequence[int], who: Writer | None = None) -> list[Sealed]:
    """Batches with so many records each, of one life."""
    who = who or writer()
    found: list[Sealed] = []
    for count in counts:
        found += who.seal(notes(count, who.last + 1), 5)
    return found


def judged(
    copies: dict[bytes, Sequence[Sequence[bytes]]],
    claimed: dict[int, int] | None = None,
    anchors: Sequence[bytes] = (),
    chains: Sequence[Any] = (),
) -> list[Verdict]:
    """What is found of copies: for each holder, for each chain, what lies on its disk."""
    verification = Verification(SWARM, PUBLIC, anchors)
    for holder, lives in copies.items():
        for index, raws in enumerate(lives):
            most = (claimed or {}).get(index, 0)
            copy = verification.add_copy(holder, chains[index], most)
            for raw in raws:
                copy.take(raw)
            copy.finish()
    return verification.judge()


class LabClock:
    """Rises with each look, and may be put forward. It is never behind the clock of the files:
    after a restart those tell when a segment was written.
    """

    def __init__(self) -> None:
        self.ms = 0

    def now(self) -> float:
        return self.ms / 1_000

    def wall_ms(self) -> int:
        self.ms = max(self.ms + 1, int(time.time() * 1_000))
        return self.ms


class AnchorStore:
    """As much of the strong store as anchors need."""

    def __init__(self) -> None:
        self.keys: dict[bytes, bytes] = {}
        self.revisions: dict[bytes, int] = {}
        self.revision = 0
        self.down = False

    async def propose(self, ops: Sequence[Any], *, timeout_s: float = 5.0) -> list[OpResult]:
        await trio.lowlevel.checkpoint()
        if self.down:
            raise NoQuorum("down")
        return [self._apply(op) for op in ops]

    def _apply(self, op: Any) -> OpResult:
        if isinstance(op, Txn):
            for one in op.compares:
                if self.revisions.get(one.key, 0) != one.revision:
                    return OpResult(False, self.revision, "conflict", "another revision")
            return [self._apply(one) for one in op.then][-1]
        if op.expect not in (None, self.revisions.get(op.key, 0)):
            return OpResult(False, self.revision, "conflict", "another revision")
        self.revision += 1
        if isinstance(op, Delete):
            self.keys.pop(op.key, None)
            self.revisions.pop(op.key, None)
        else:
            self.keys[op.key], self.revisions[op.key] = op.value, self.revision
        return OpResult(True, self.revision)

    async def range(
        self, prefix: bytes, *, after: bytes = b"", limit: int = 1_000, stale: bool = False
    ) -> list[Entry]:
        await trio.lowlevel.checkpoint()
        found = sorted(key for key in self.keys if key.startswith(prefix) and key > after)
        return [Entry(key, self.keys[key], 1, self.revisions[key], 0, 0) for key in found[:limit]]

    def store_time_ms(self) -> int:
        return 77


class Lab:
    """Nodes of one swarm; each can be stopped and started on its folder."""

    def __init__(self, folder: Path, count: int, config: AuditConfig) -> None:
        self.folder = folder
        self.config = config
        self.network = MemoryNetwork()
        self.state: AuthorityState = chain(count)[0]
        self.trusts = [trust_of(folder / f"trust{number}", self.state) for number in range(count)]
        self.store = AnchorStore()
        self.clock = LabClock()
        self.later_ms = 0
        self.alive_nodes: list[NodeId] = []
        self.audits: dict[int, Audit] = {}
        self.nursery: trio.Nursery | None = None
        self._ends: dict[int, tuple[trio.Event, trio.Event]] = {}

    def alive(self) -> list[NodeId]:
        return list(self.alive_nodes)

    def path(self, number: int) -> Path:
        return self.folder / f"audit{number}"

    def node(self, number: int) -> NodeId:
        return NodeId(KEYS[number].key_id)

    async def start(self, number: int) -> Audit:
        assert self.nursery is not None
        await self.nursery.start(self._run, number)
        self.alive_nodes.append(self.node(number))
        return self.audits[number]

    async def _run(
        self, number: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        stop, ended = self._ends[number] = trio.Event(), trio.Event()
        async with open_audit(
            self.path(number),
            KEYS[number],
            self.trusts[number],
            self.network.link(self.node(number)),
            self,
            self.store,
            self.config,
            self.clock,
            make_rng(number),
        ) as self.audits[number]:
            task_status.started()
            await stop.wait()
        ended.set()

    async def stop(self, number: int) -> None:
        self.alive_nodes.remove(self.node(number))
        del self.audits[number]
        stop, ended = self._ends.pop(number)
        stop.set()
        await ended.wait()

    async def kinds(self, number: int, **query: Any) -> list[str]:
        entries, _ = await self.audits[number].newest(Query(**query), None, 1_000)
        return [entry.record.kind for entry in reversed(entries)]

    def holds(self, number: int, of: int, last: int, stream: Stream = "security") -> bool:
        """Does node `number` have node `of`'s records up to `last`?"""
        lives = self.audits[number]._shelf.folder.lives.values()
        mine = [x for x in lives if (x.chain.node, x.chain.stream) == (self.node(of), stream)]
        return max((life.last for life in mine), default=0) >= last

    async def verdicts(self) -> list[Verdict]:
        """What `swarmctl audit --verify` finds, by the same calls."""
        keys = {bytes(x.node_id): x.public for x in self.state.admissions.values()}
        some = next(iter(self.audits.values()))
        verification = Verification(
            self.state.swarm_id, keys, await some.anchors(), self.clock.ms + self.later_ms
        )
        for number, audit in self.audits.items():
            holder = bytes(self.node(number))
            verification.add_holder(holder, audit.floors(), await audit.forks())
            for life in (await audit.held())[0]:
                copy = verification.add_copy(holder, life.chain, life.last)
                place = (0, 0)
                while True:
                    raws, place = await audit.raw(life.chain, place)
                    for raw in raws:
                        copy.take(raw)
                    if place == (0, 0):
                        break
                copy.finish()
        return verification.judge()


@asynccontextmanager
async def lab(folder: Path, count: int, config: AuditConfig | None = None) -> AsyncIterator[Lab]:
    made = Lab(folder, count, config or AuditConfig())
    async with trio.open_nursery() as made.nursery:
        for number in range(count):
            await made.start(number)
        yield made
        for number in list(made.audits):
            await made.stop(number)


def opened(path: Path) -> AuditFolder:
    folder = AuditFolder(path)
    folder.open_file()
    return folder
