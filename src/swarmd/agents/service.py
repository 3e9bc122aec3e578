"""Agents as the swarm knows them: deploying, listing, and asking members what they run.

What should run is a record in the strong store and a bundle in the blobs, written in this
order, so that a record never names code that could be lost. What does run is asked of every
member when someone wants to know, and never stored: a member that does not answer in time is
named as missing, which is the truth, where a stored answer would be a guess.

A version names its content: deploying other content under the same version is refused, since
half of the swarm would run one and half the other without anyone being able to tell.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator, Sequence, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

import trio

from swarmd.agents.attempts import InstanceInfo, LogLine
from swarmd.agents.bundle import read_bundle
from swarmd.agents.config import AgentsConfig
from swarmd.agents.deploying import AgentRecords
from swarmd.agents.logs import LogBook
from swarmd.agents.messages import (
    AGENTS,
    LINES_MAX,
    EnvironmentAsk,
    Instances,
    InstancesAsk,
    Lines,
    LogsAsk,
    RecordAsk,
    Retire,
)
from swarmd.agents.records import (
    AGENT_PREFIX,
    AgentRecord,
    agent_key,
    decode_agent,
    sealed_agents,
)
from swarmd.agents.spec import AgentSpec
from swarmd.base.errors import (
    BadRequest,
    Busy,
    Conflict,
    CorruptFile,
    MalformedMessage,
    NotFound,
    RemoteError,
    SwarmError,
)
from swarmd.base.ids import NodeId
from swarmd.base.limits import KIB
from swarmd.base.notes import NOBODY, Notes
from swarmd.mesh.link import Inbound, Link
from swarmd.mesh.swim.events import Member
from swarmd.mesh.swim.messages import MemberState
from swarmd.observe.log import get_logger
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.raft.messages import Delete, Entry, Operation, OpResult
from swarmd.state.secrets.service import Secrets

__all__ = ["AgentRecord", "Agents", "Live", "open_agents"]

_log = get_logger("agents")
_RACES_MAX: Final = 5
_PAGE: Final = 1_000
_HANDLERS_MAX: Final = 64
_LINES_BYTES: Final = 256 * KIB
# A stream of log lines says at least this often that it lives.
_PULSE_S: Final = 1.0
_SILENCE_S: Final = 5.0
_FOLLOW_BUFFER: Final = 100
_TIDY_S: Final = 600.0
_RECORD_TIMEOUT_S: Final = 15.0


class Store(Protocol):
    """What this room asks of the strong store."""

    async def propose(
        self, ops: Sequence[Operation], *, timeout_s: float = 5.0
    ) -> Sequence[OpResult]: ...

    async def get(self, key: bytes, *, stale: bool = False) -> Entry | None: ...

    async def range(
        self, prefix: bytes, *, after: bytes = b"", limit: int = 1_000, stale: bool = False
    ) -> Sequence[Entry]: ...

    def store_time_ms(self) -> int: ...


class Blobs(Protocol):
    async def put(self, data: bytes) -> BlobRef: ...


class Membership(Protocol):
    def members(self) -> list[Member]: ...


class LocalProcesses(Protocol):
    """What this room asks of the supervisor."""

    @property
    def logs(self) -> LogBook: ...

    def instances(self) -> list[InstanceInfo]: ...

    def bundles(self) -> Set[bytes]: ...

    def retire(self, agent: str, *, keep: BlobRef | None = None) -> None: ...


class BundleFolders(Protocol):
    async def keep(self, hashes: Set[bytes]) -> None: ...


@dataclass(frozen=True, slots=True)
class Live:
    """What the members answered, by node; `missing` are those that did not."""

    instances: tuple[tuple[NodeId, InstanceInfo], ...]
    missing: tuple[NodeId, ...]


@dataclass(slots=True)
class _Heard:
    """Lines of one member, while all are being asked."""

    lines: list[LogLine] = field(default_factory=list)
    answered: bool = False


class Agents:
    """Made by `open_agents`."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        link: Link,
        membership: Membership,
        processes: LocalProcesses,
        config: AgentsConfig,
        nursery: trio.Nursery,
        secrets: Secrets | None = None,
        notes: Notes = NOBODY,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._link = link
        self._membership = membership
        self._processes = processes
        self._config = config
        self._nursery = nursery
        self._records = AgentRecords(store, link, secrets, notes)

    # ---- what should run --------------------------------------------------------------

    async def deploy(self, spec: AgentSpec, bundle: bytes, *, replace: bool = False) -> AgentRecord:
        """Make `spec` with the packed code `bundle` the current version of its agent.

        Returns once code and record survive the loss of any minority of the voters. The same
        content again changes nothing.

        Raises:
            BadRequest: the bundle is not one, or lacks the entry's module.
            NotFound: its environment refers to a secret that does not exist.
            VersionExists: this version was deployed with other content, and not `replace`.
            Conflict: others deploy the same agent at the same time, and went on doing so.
            InsufficientCopies, NoQuorum: not durable; nothing changed.
        """
        _check_bundle(spec, bundle)
        ref = await self._blobs.put(bundle)
        record, fresh = await self._records.write(spec, ref, replace=replace)
        if fresh:
            self._tell_all(Retire(spec.name, ref))
        return record

    async def list(self) -> list[AgentRecord]:
        """Every agent, by name; but for what this version cannot read, which the log names."""
        found: list[AgentRecord] = []
        after = b""
        while True:
            page = await self._store.range(AGENT_PREFIX, after=after, limit=_PAGE)
            for entry in page:
                try:
                    found.append(decode_agent(entry.value))
                except CorruptFile as error:
                    _log.error("an agent is left out", key=repr(entry.key), error=error.message)
            if len(page) < _PAGE:
                return found
            after = page[-1].key

    async def get(self, name: str) -> AgentRecord:
        """Raises NotFound."""
        entry = await self._store.get(agent_key(name))
        if entry is None:
            raise NotFound(f"no agent is named {name!r}")
        return decode_agent(entry.value)

    async def remove(self, name: str) -> None:
        """Forget an agent; attempts that run go on. Raises NotFound."""
        for _ in range(_RACES_MAX):
            entry = await self._store.get(agent_key(name))
            if entry is None:
                raise NotFound(f"no agent is named {name!r}")
            (result,) = await self._store.propose(
                [Delete(agent_key(name), expect=entry.mod_revision)]
            )
            if result.ok:
                self._tell_all(Retire(name, None))
                return
            if result.code != Conflict.code:
                result.raise_for_error()
        raise Conflict(f"{name} is being deployed by others at the same time; try again")

    async def bundles(self) -> set[bytes]:
        """Hashes of the blobs that agents name: to be kept."""
        return {record.bundle.hash for record in await self.list()}

    # ---- what does run ----------------------------------------------------------------

    async def instances(self) -> Live:
        """The worker processes of every member, and the members that did not answer in time."""
        heard: dict[NodeId, tuple[InstanceInfo, ...]] = {}
        asked, missing = self._whom_to_ask()

        async def ask(node: NodeId) -> None:
            try:
                answer = await self._link.request(
                    AGENTS, node, InstancesAsk(), timeout_s=self._config.ask_timeout_s
                )
            except SwarmError:
                return
            if isinstance(answer, Instances):
                heard[node] = answer.instances

        with trio.move_on_after(self._config.ask_timeout_s):
            async with trio.open_nursery() as nursery:
                for node in asked:
                    nursery.start_soon(ask, node)
        missing = [*missing, *(node for node in asked if node not in heard)]
        found = tuple((node, one) for node in asked if node in heard for one in heard[node])
        return Live(found, tuple(missing))

    def logs(self, agent: str, *, follow: bool) -> AsyncIterator[tuple[NodeId, LogLine | None]]:
        """The agent's latest lines on every member; with `follow`, those to come too.

        None in a line's place names a member that did not answer, or stopped answering.
        Without `follow` lines come in order of their times, else as they arrive.
        """
        return self._follow(agent) if follow else self._last_lines(agent)

    async def _last_lines(self, agent: str) -> AsyncIterator[tuple[NodeId, LogLine | None]]:
        asked, missing = self._whom_to_ask()
        heard = {node: _Heard() for node in asked}

        async def ask(node: NodeId) -> None:
            try:
                async with self._link.request_stream(
                    AGENTS, node, LogsAsk(agent, 0, False), timeout_s=self._config.ask_timeout_s
                ) as answers:
                    async for answer in answers:
                        if not isinstance(answer, Lines):
                            return
                        room = LINES_MAX - len(heard[node].lines)
                        heard[node].lines.extend(answer.lines[:room])
                    heard[node].answered = True
            except SwarmError:
                return

        with trio.move_on_after(self._config.ask_timeout_s):
            async with trio.open_nursery() as nursery:
                for node in asked:
                    nursery.start_soon(ask, node)
        found = [(node, line) for node in asked for line in heard[node].lines]
        for node, line in sorted(found, key=lambda pair: (pair[1].wall_ms, pair[1].sequence)):
            yield node, line
        for node in (*missing, *(one for one in asked if not heard[one].answered)):
            yield node, None

    async def _follow(self, agent: str) -> AsyncIterator[tuple[NodeId, LogLine | None]]:
        """The readers run in the service's nursery: a generator must not hold one open."""
        send, receive = trio.open_memory_channel[tuple[NodeId, LogLine | None]](_FOLLOW_BUFFER)
        scope = trio.CancelScope()
        self._nursery.start_soon(self._follow_all, agent, scope, send)
        try:
            async for pair in receive:
                yield pair
        finally:
            scope.cancel()
            receive.close()

    async def _follow_all(
        self,
        agent: str,
        scope: trio.CancelScope,
        send: trio.MemorySendChannel[tuple[NodeId, LogLine | None]],
    ) -> None:
        """A reader per member, also for those that come later."""
        followed: set[NodeId] = set()
        with scope:
            async with send, trio.open_nursery() as nursery:
                while True:
                    asked, missing = self._whom_to_ask()
                    for node in asked:
                        if node not in followed:
                            followed.add(node)
                            nursery.start_soon(self._follow_one, agent, node, send)
                    for node in missing:
                        if node not in followed:
                            followed.add(node)
                            await send.send((node, None))
                            nursery.start_soon(self._follow_one, agent, node, send)
                    await trio.sleep(_PULSE_S)

    async def _follow_one(
        self,
        agent: str,
        node: NodeId,
        send: trio.MemorySendChannel[tuple[NodeId, LogLine | None]],
    ) -> None:
        """Read one member's lines, coming back after it was away."""
        after, named = 0, False
        while True:
            try:
                async with self._link.request_stream(
                    AGENTS, node, LogsAsk(agent, after, True), timeout_s=_SILENCE_S
                ) as answers:
                    async for answer in answers:
                        if not isinstance(answer, Lines):
                            raise RemoteError("a member answered another question")
                        named = False
                        for line in answer.lines:
                            after = max(after, line.sequence)
                            await send.send((node, line))
            except SwarmError:
                if not named and self._is_member(node):
                    await send.send((node, None))
                named = True
            await trio.sleep(_PULSE_S)

    def _whom_to_ask(self) -> tuple[Sequence[NodeId], Sequence[NodeId]]:
        """Members worth asking, and members that are down."""
        members = self._membership.members()
        up = (MemberState.ALIVE, MemberState.SUSPECT)
        asked = [member.node_id for member in members if member.state in up]
        down = [member.node_id for member in members if member.state is MemberState.DEAD]
        return asked, down

    def _is_member(self, node: NodeId) -> bool:
        return any(
            member.node_id == node and member.state is not MemberState.LEFT
            for member in self._membership.members()
        )

    def _tell_all(self, message: Retire) -> None:
        """A courtesy: a member that misses it ends the processes when they are unused."""
        self._processes.retire(message.agent, keep=message.keep)
        for node in self._whom_to_ask()[0]:
            if node != self._link.node_id:
                self._link.send_nowait(AGENTS, node, message)

    async def _tidy(self, folders: BundleFolders) -> None:
        """Delete unpacked code that no agent names and no process runs from."""
        while True:
            await trio.sleep(_TIDY_S)
            try:
                named = await self.bundles()
            except SwarmError:
                continue
            await folders.keep(named | self._processes.bundles())

    # ---- answering --------------------------------------------------------------------

    async def _serve(self, inbox: trio.MemoryReceiveChannel[Inbound]) -> None:
        answering = trio.Semaphore(_HANDLERS_MAX)
        streams = trio.Semaphore(_HANDLERS_MAX)

        async def answer(inbound: Inbound) -> None:
            try:
                await self._answer(inbound)
            finally:
                answering.release()

        async def stream(inbound: Inbound) -> None:
            try:
                await self._answer_logs(inbound)
            finally:
                streams.release()

        async with inbox, trio.open_nursery() as nursery:
            async for inbound in inbox:
                if isinstance(inbound.message, LogsAsk) and streams.value > 0:
                    streams.acquire_nowait()
                    nursery.start_soon(stream, inbound)
                else:
                    await answering.acquire()
                    nursery.start_soon(answer, inbound)

    async def _answer(self, inbound: Inbound) -> None:
        message: Any = inbound.message
        if isinstance(message, Retire):
            self._processes.retire(message.agent, keep=message.keep)
        elif isinstance(message, InstancesAsk):
            await inbound.answer(Instances(tuple(self._processes.instances())))
        elif isinstance(message, EnvironmentAsk | RecordAsk):
            try:
                await inbound.answer(await self._records.answer(inbound.peer, message))
            except SwarmError as error:
                await inbound.fail(error)
        elif isinstance(message, LogsAsk):
            await inbound.fail(Busy("too many read the logs of this node already"))
        else:
            await inbound.fail(RemoteError(f"{type(message).__name__} is not a question"))

    async def _answer_logs(self, inbound: Inbound) -> None:
        message: LogsAsk = inbound.message
        answer = partial(inbound.answer, more=True)
        after = message.after
        while inbound.wants_answer:
            lines = self._processes.logs.lines(message.agent, after=after, limit=LINES_MAX)
            for batch in _batches(lines):
                await answer(Lines(batch))
            if not message.follow:
                await inbound.answer(Lines(()))
                return
            if lines:
                after = lines[-1].sequence
            else:
                await answer(Lines(()))
                with trio.move_on_after(_PULSE_S):
                    await self._processes.logs.news()


@asynccontextmanager
async def open_agents(
    store: Store,
    blobs: Blobs,
    link: Link,
    membership: Membership,
    processes: LocalProcesses,
    config: AgentsConfig,
    *,
    folders: BundleFolders | None = None,
    secrets: Secrets | None = None,
    notes: Notes = NOBODY,
) -> AsyncIterator[Agents]:
    """Know the swarm's agents, and answer about this node's, while the block runs.

    Args:
        folders: unpacked bundles, tidied of what nothing needs any more.
        secrets: seals environments; without, only agents that have none can be deployed.
        notes: told when they are opened for another member.
    """
    async with trio.open_nursery() as nursery:
        agents = Agents(store, blobs, link, membership, processes, config, nursery, secrets, notes)
        if secrets is not None:
            secrets.also_seals(sealed_agents(secrets.swarm_id))
        nursery.start_soon(agents._serve, link.open_inbox(AGENTS))
        if folders is not None:
            nursery.start_soon(agents._tidy, folders)
        try:
            yield agents
        finally:
            nursery.cancel_scope.cancel()


def _check_bundle(spec: AgentSpec, bundle: bytes) -> None:
    """Raises BadRequest: not a bundle, or without the module of the entry."""
    try:
        names = {name for name, _ in read_bundle(bundle)}
    except MalformedMessage as error:
        raise BadRequest(f"the code of {spec.name} is not a bundle: {error.message}") from error
    path = spec.entry.partition(":")[0].replace(".", "/")
    if path.partition("/")[0] in {*sys.stdlib_module_names, "swarmd", "msgpack"}:
        raise BadRequest(f"entry: {spec.entry}: Python has a module of that name; rename yours")
    if not names & {f"{path}.py", f"{path}/__init__.py"}:
        raise BadRequest(f"entry: {spec.entry}: the agent's folder holds no {path}.py")


def _batches(lines: Sequence[LogLine]) -> Iterator[tuple[LogLine, ...]]:
    """`lines` cut so that each part fits a message."""
    batch: list[LogLine] = []
    size = 0
    for line in lines:
        line_bytes = len(line.text) * 4 + 100
        if batch and size + line_bytes > _LINES_BYTES:
            yield tuple(batch)
            batch, size = [], 0
        batch.append(line)
        size += line_bytes
    if batch:
        yield tuple(batch)
