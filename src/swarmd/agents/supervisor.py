"""Keeps worker processes for agents and runs attempts in them.

Processes are pooled by what they run: the agent, its bundle, its entry and environment. What is
in an environment is opened when a process starts; one whose secrets have changed since takes no
more attempts, and ends within seconds of its last. An
attempt takes the process that was idle last, or starts one; a process runs one attempt at a
time. At most `concurrency` attempts of one agent run on a node, and at most `attempts_max` of
all; the rest wait in the order they came.

A process that ends unasked is replaced at once; if it keeps doing so, after a pause that
doubles. A process whose agent cannot even be imported is not replaced: the next attempt tries
again. Processes unused for `idle_s` end, and the longest unused end early when the node holds
`instances_max`.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import trio
from msgspec import structs

from swarmd.agents.accounts import Accounts
from swarmd.agents.attempts import (
    AttemptRun,
    Cause,
    InstanceInfo,
    InstanceState,
    LogLine,
    Outcome,
    Progress,
)
from swarmd.agents.config import AS_DAEMON, AgentsConfig
from swarmd.agents.environment import NO_ENVIRONMENT, NOTHING, Environment, Opened
from swarmd.agents.logs import LogBook
from swarmd.agents.runtimes.python import Launch, Limits, PythonInstance
from swarmd.base.clock import Clock
from swarmd.base.errors import Busy, NotReady, ShuttingDown, SwarmError
from swarmd.base.files import remove_tree
from swarmd.base.notes import NOBODY, Notes
from swarmd.base.pace import pause
from swarmd.mesh.bus.service import Bus
from swarmd.observe.log import get_logger
from swarmd.observe.redaction import NOTHING_HIDDEN, Redactor
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.recipes.service import Recipes

__all__ = ["AttemptRun", "InstanceInfo", "LogLine", "Outcome", "Supervisor", "open_supervisor"]

_log = get_logger("agents")
_FIRST_PAUSE_S: Final = 0.25
_SCRATCH: Final = "scratch"
_SWEEP_S_MAX: Final = 5.0
_LINES_PER_MS_MAX: Final = 1_000


class BundleSource(Protocol):
    async def folder_of(self, bundle: BlobRef) -> Path:
        """The folder with a bundle's unpacked files. Raises SwarmError."""
        ...


class EnvironmentSource(Protocol):
    """See `agents.opening.Environments`."""

    async def open(self, agent: str, environment: Environment) -> Opened: ...
    def is_stale(self, opened: Opened) -> bool: ...


class NoSecrets:
    """For supervisors of agents that have no environment of their own."""

    async def open(self, agent: str, environment: Environment) -> Opened:
        if environment != NO_ENVIRONMENT:
            raise NotReady("this node opens no environments")
        return NOTHING

    def is_stale(self, opened: Opened) -> bool:
        return False


_Key = tuple[str, bytes, str, Environment]


@dataclass(eq=False)
class _Pool:
    """The processes that run one thing."""

    attempt: AttemptRun
    idle: deque[PythonInstance] = field(default_factory=deque)
    all: dict[PythonInstance, float] = field(default_factory=dict)
    users: int = 0
    used_at: float = 0.0
    crashes: int = 0
    # No more processes are started for it, unless an attempt asks.
    retired: bool = False
    warming: trio.Event | None = None


@dataclass(eq=False)
class _Turns:
    """Who may run an agent's attempts now; `users` tells when it can be forgotten."""

    limiter: trio.CapacityLimiter
    users: int = 0


class Supervisor:
    """Made by `open_supervisor`."""

    def __init__(
        self,
        config: AgentsConfig,
        folder: Path,
        bundles: BundleSource,
        clock: Clock,
        nursery: trio.Nursery,
        accounts: Accounts,
        environments: EnvironmentSource,
        recipes: Recipes | None = None,
        host: str = "",
        notes: Notes = NOBODY,
        bus: Bus | None = None,
    ) -> None:
        self._config = config
        self._bus = bus
        self._environments = environments
        self._recipes = recipes
        self._notes = notes
        self._host = host
        self._scratch = folder / _SCRATCH
        self._bundles = bundles
        self._clock = clock
        self._nursery = nursery
        self._pools: dict[_Key, _Pool] = {}
        self._turns: dict[str, _Turns] = {}
        self._slots = trio.CapacityLimiter(config.attempts_max)
        self._in_hand = 0
        self._spawned = 0
        self._closing = False
        self._idle_since: dict[PythonInstance, float] = {}
        self._base_env = _base_environment(config)
        self._accounts = accounts
        self._limits = Limits(
            config.open_files_max,
            config.memory_bytes_max,
            config.processes_max if accounts.counted else 0,
        )
        # Sequences begin with the time, so that a reader's place outlives this daemon.
        self.logs = LogBook(
            lines_max=config.log_lines_max, first_sequence=clock.wall_ms() * _LINES_PER_MS_MAX
        )

    async def run(self, attempt: AttemptRun, on_progress: Progress | None = None) -> Outcome:
        """Run one attempt when its turn comes; what goes wrong with it is an Outcome too.

        Args:
            attempt: what to run. Its `timeout_s` counts from the start of the agent's code.
            on_progress: told (done, total), at most 20 times a second; must not raise.

        Raises:
            Busy: `waiting_max` attempts already wait here; nothing was started.
            ShuttingDown: the supervisor is closing; nothing was started.

        Cancellation: the agent is told, then killed; when this returns it no longer runs.
        """
        if self._in_hand >= self._config.attempts_max + self._config.waiting_max:
            raise Busy(f"{self._in_hand} attempts wait on this node already")
        turns = self._turns_of(attempt)
        self._in_hand += 1
        turns.users += 1
        try:
            async with turns.limiter, self._slots:
                return await self._run_noted(attempt, on_progress)
        finally:
            self._in_hand -= 1
            turns.users -= 1
            if turns.users == 0:
                self._turns.pop(attempt.agent, None)

    def instances(self) -> list[InstanceInfo]:
        """The processes that live now, by agent and age."""
        now = self._clock.now()
        found = [
            InstanceInfo(
                agent=pool.attempt.agent,
                version=pool.attempt.version,
                pid=instance.pid,
                state=_state_of(instance),
                task_id=instance.task_id,
                attempts=instance.attempts,
                age_s=now - started,
            )
            for pool in self._pools.values()
            for instance, started in pool.all.items()
        ]
        return sorted(found, key=lambda info: (info.agent, -info.age_s, info.pid))

    def bundles(self) -> set[bytes]:
        """Hashes of the bundles that processes run from, or are about to."""
        return {pool.attempt.bundle.hash for pool in self._pools.values()}

    def retire(self, agent: str, *, keep: BlobRef | None = None) -> None:
        """End the agent's idle processes, and busy ones after their attempt.

        Args:
            keep: the bundle that is current now, whose processes go on.
        """
        for pool in self._pools.values():
            if pool.attempt.agent == agent and pool.attempt.bundle != keep:
                pool.retired = True
                while pool.idle:
                    self._discard(pool, pool.idle.pop())

    # ---- one attempt ------------------------------------------------------------------

    async def _run_noted(self, attempt: AttemptRun, on_progress: Progress | None) -> Outcome:
        note, actor = self._notes.note, attempt.actor
        note("attempt.started", actor, attempt.version)
        ended = Cause.CANCELLED.value
        try:
            outcome = await self._run_now(attempt, on_progress)
            ended = "ok" if outcome.ok else outcome.code or "task_failed"
            return outcome
        except SwarmError as error:
            ended = error.code
            raise
        finally:
            note("attempt.ended", actor, attempt.version, ended)

    async def _run_now(self, attempt: AttemptRun, on_progress: Progress | None) -> Outcome:
        pool = self._pool_of(attempt)
        pool.users += 1
        try:
            found = await self._take(pool, attempt)
            if isinstance(found, Outcome):
                return found
            try:
                outcome = await found.execute(
                    attempt, on_progress, cancel_grace_s=self._config.cancel_grace_s
                )
            except BaseException:
                # Cancelled: if it had to be killed for that, it is not a crash.
                if found.exited.is_set():
                    pool.all.pop(found, None)
                self._give_back(pool, found)
                raise
            if outcome.ok:
                pool.crashes = 0
            self._give_back(pool, found)
            return outcome
        finally:
            pool.users -= 1

    async def _take(self, pool: _Pool, attempt: AttemptRun) -> PythonInstance | Outcome:
        """An idle, sound process, or a new one, or why there is none."""
        while True:
            while pool.idle:
                instance = pool.idle.pop()
                self._idle_since.pop(instance, None)
                stale = self._environments.is_stale(instance.launch.opened)
                if not stale and not instance.exited.is_set() and instance.settle():
                    return instance
                self._discard(pool, instance)
            if pool.warming is None:
                return await self._start(pool, attempt)
            await pool.warming.wait()

    async def _start(self, pool: _Pool, attempt: AttemptRun) -> PythonInstance | Outcome:
        problem = await self._accounts.problem()
        if problem:
            return Outcome(ok=False, code=Cause.SPAWN_FAILED.value, message=problem)
        try:
            folder = await self._bundles.folder_of(attempt.bundle)
        except SwarmError as error:
            return Outcome(ok=False, code=error.code, message=error.message)
        try:
            opened = await self._environments.open(attempt.agent, attempt.environment)
        except SwarmError as error:
            later = error.retryable
            return Outcome(ok=False, code=error.code, message=error.message, not_begun=later)
        # Of long secrets it takes tens of milliseconds.
        redactor = NOTHING_HIDDEN
        if opened.secrets:
            redactor = await trio.to_thread.run_sync(Redactor, opened.secrets)
        if self._closing:
            raise ShuttingDown("this node is stopping")
        self._make_room()
        launch = Launch(
            attempt.agent,
            attempt.version,
            folder,
            attempt.entry,
            opened,
            limits=self._limits,
            account=self._accounts.of(attempt.agent),
        )
        try:
            instance = self._spawn(launch, redactor)
        except OSError as error:
            message = f"cannot start a worker process: {error.strerror}"
            return Outcome(ok=False, code=Cause.SPAWN_FAILED.value, message=message)
        pool.all[instance] = self._clock.now()
        self._nursery.start_soon(self._attend, pool, instance)
        refusal = await instance.start(self._config.start_timeout_s)
        if refusal is not None:
            pool.all.pop(instance, None)
            return refusal
        return instance

    def _spawn(self, launch: Launch, redactor: Redactor) -> PythonInstance:
        self._spawned += 1
        scratch = self._scratch / str(self._spawned)
        scratch.mkdir(mode=0o700)
        own = dict(self._base_env)
        if launch.account is not None:
            own |= {"HOME": str(scratch), "TMPDIR": str(scratch)}
        launch = replace(launch, base_env=tuple(own.items()))

        def on_line(task_id: str, attempt: int, text: str) -> None:
            self.logs.add(launch.agent, self._clock.wall_ms(), task_id, attempt, text)

        try:
            if launch.account is not None:
                os.chown(scratch, *launch.account)
            return PythonInstance(
                launch,
                scratch=scratch,
                redactor=redactor,
                on_line=on_line,
                line_bytes_max=self._config.log_line_bytes_max,
                tail_lines_max=self._config.outcome_lines_max,
                recipes=self._recipes,
                bus=self._bus,
                host=self._host,
                notes=self._notes,
            )
        except OSError:
            scratch.rmdir()
            raise

    # ---- processes --------------------------------------------------------------------

    def _give_back(self, pool: _Pool, instance: PythonInstance) -> None:
        if instance.exited.is_set():
            return
        if pool.retired or self._environments.is_stale(instance.launch.opened):
            self._discard(pool, instance)
            return
        self._idle_since[instance] = self._clock.now()
        pool.idle.append(instance)

    def _discard(self, pool: _Pool, instance: PythonInstance) -> None:
        """End a process for good: leaving `all` is what makes its end an expected one."""
        pool.all.pop(instance, None)
        self._idle_since.pop(instance, None)
        instance.kill()

    async def _attend(self, pool: _Pool, instance: PythonInstance) -> None:
        """Live with a process to its end, and replace it if that came unasked."""
        await instance.watch()
        expected = pool.all.pop(instance, None) is None
        self._idle_since.pop(instance, None)
        with suppress(ValueError):
            pool.idle.remove(instance)
        if expected or not instance.ready:
            return
        pool.crashes += 1
        _log.warning("worker ended", agent=pool.attempt.agent, pid=instance.pid)
        if pool.crashes > 1:
            pause_s = _FIRST_PAUSE_S * 2.0 ** min(pool.crashes - 2, 20)
            await trio.sleep(min(pause_s, self._config.replace_pause_max_s))
        await self._replace(pool)

    async def _replace(self, pool: _Pool) -> None:
        attempt = pool.attempt
        unused = not pool.users and pool.used_at < self._clock.now() - self._config.idle_s
        if pool.retired or unused or pool.warming is not None or self._closing:
            return
        if len(pool.all) >= attempt.concurrency:
            return
        pool.warming = trio.Event()
        try:
            found = await self._start(pool, attempt)
            if isinstance(found, PythonInstance):
                self._give_back(pool, found)
        finally:
            pool.warming.set()
            pool.warming = None

    def _make_room(self) -> None:
        """End the longest unused process if the node holds as many as it may."""
        total = sum(len(pool.all) for pool in self._pools.values())
        if total >= self._config.instances_max and self._idle_since:
            oldest = min(self._idle_since, key=self._idle_since.__getitem__)
            for pool in self._pools.values():
                if oldest in pool.all:
                    pool.idle.remove(oldest)
                    self._discard(pool, oldest)
                    return

    async def _sweep(self) -> None:
        """End processes unused for `idle_s`, or with old secrets; forget pools without any."""
        idle_s = self._config.idle_s
        while True:
            await pause(min(idle_s / 4, _SWEEP_S_MAX))
            before = self._clock.now() - idle_s
            for key, pool in list(self._pools.items()):
                # The longest unused are on the left.
                while pool.idle and self._idle_since.get(pool.idle[0], math.inf) < before:
                    self._discard(pool, pool.idle.popleft())
                for instance in [*pool.idle]:
                    if self._environments.is_stale(instance.launch.opened):
                        pool.idle.remove(instance)
                        self._discard(pool, instance)
                if not pool.all and not pool.users and pool.warming is None:
                    pool.retired = True
                    del self._pools[key]

    def _pool_of(self, attempt: AttemptRun) -> _Pool:
        key = (attempt.agent, attempt.bundle.hash, attempt.entry, attempt.environment)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = _Pool(attempt)
        pool.retired = False
        pool.used_at = self._clock.now()
        return pool

    def _turns_of(self, attempt: AttemptRun) -> _Turns:
        turns = self._turns.get(attempt.agent)
        if turns is None:
            limiter = trio.CapacityLimiter(attempt.concurrency)
            turns = self._turns[attempt.agent] = _Turns(limiter)
        elif turns.limiter.total_tokens != attempt.concurrency:
            turns.limiter.total_tokens = attempt.concurrency
        return turns


@asynccontextmanager
async def open_supervisor(
    config: AgentsConfig,
    *,
    folder: Path,
    bundles: BundleSource,
    clock: Clock,
    recipes: Recipes | None = None,
    host: str = "",
    accounts: Accounts | None = None,
    environments: EnvironmentSource | None = None,
    notes: Notes = NOBODY,
    bus: Bus | None = None,
) -> AsyncIterator[Supervisor]:
    """Supervise for as long as the block runs; when it ends every process has ended.

    Args:
        folder: for scratch folders of processes; what an earlier daemon left is deleted.
        recipes: what attempts get their locks from.
        host: this node's name, for those who look who holds a lock.
        accounts: as whom agents run; None is as this process.
        environments: opens what agents find in their environments; None for agents without.
        notes: told of every attempt, and of what agents ask for.
        bus: what attempts publish to and subscribe to.
    """
    environments = environments or NoSecrets()
    accounts = accounts or Accounts(structs.replace(config, user=AS_DAEMON), folder)
    _set_aside(folder)
    (folder / _SCRATCH).mkdir(parents=True, mode=0o711 if accounts.own else 0o700)
    async with trio.open_nursery() as nursery:
        remove_old = partial(trio.to_thread.run_sync, abandon_on_cancel=True)
        nursery.start_soon(remove_old, _remove_old, folder)
        supervisor = Supervisor(
            config, folder, bundles, clock, nursery, accounts, environments, recipes, host, notes,
            bus,
        )  # fmt: skip
        nursery.start_soon(supervisor._sweep)
        try:
            yield supervisor
        finally:
            supervisor._closing = True
            nursery.cancel_scope.cancel()


def _set_aside(folder: Path) -> None:
    """Make room for new scratch folders, whatever is in the old ones, and whoever still writes."""
    with suppress(FileNotFoundError):
        (folder / _SCRATCH).rename(folder / f"{_SCRATCH}.{os.urandom(6).hex()}")


def _remove_old(folder: Path) -> None:
    for old in folder.glob(f"{_SCRATCH}.*"):
        if not remove_tree(old):
            _log.warning("what agents left cannot be deleted yet", folder=str(old))


def _state_of(instance: PythonInstance) -> InstanceState:
    if not instance.ready:
        return InstanceState.STARTING
    return InstanceState.BUSY if instance.task_id else InstanceState.IDLE


def _base_environment(config: AgentsConfig) -> Mapping[str, str]:
    """All that agents see of the daemon's environment: never its settings or secrets."""
    return {
        "PATH": config.path or os.environ.get("PATH", os.defpath),
        "HOME": os.environ.get("HOME", "/"),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
    }
