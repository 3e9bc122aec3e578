"""A supervisor over one agent's code, for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from swarmd.agents.attempts import AttemptRun, Outcome
from swarmd.agents.config import AgentsConfig
from swarmd.agents.environment import Environment, Opened, split_environment
from swarmd.agents.spec import AgentSpec
from swarmd.agents.supervisor import Supervisor, open_supervisor
from swarmd.base.clock import BootClock
from swarmd.base.errors import NotFound, Unavailable
from swarmd.mesh.bus.service import Bus
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.blobs.naming import hash_of
from swarmd.state.recipes.service import Recipes
from swarmd.wire.codec import pack

ECHO = "def run(value, context):\n    return value\n"
CONFIG = AgentsConfig(idle_s=60.0, start_timeout_s=10.0, cancel_grace_s=0.3)


class Folder:
    """A bundle source that has one folder for every bundle."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.missing = False

    async def folder_of(self, bundle: BlobRef) -> Path:
        await trio.lowlevel.checkpoint()
        if self.missing:
            raise NotFound("no such bundle")
        return self.path


class OpenEnvironments:
    """Environments whose values are known here. A secret is a value and its revision."""

    def __init__(self) -> None:
        self.plain: dict[str, str] = {}
        self.secrets: dict[str, tuple[str, int]] = {}
        self.reachable = True

    async def open(self, agent: str, environment: Environment) -> Opened:
        await trio.lowlevel.checkpoint()
        if not self.reachable:
            raise Unavailable("no member that may vote can be reached")
        named = {name: self._secret(name) for name in environment.secrets}
        variables = {name: self.plain[name] for name in environment.plain}
        variables |= {variable: named[name][0] for variable, name in environment.references}
        return Opened(
            tuple(variables.items()),
            tuple((name, value) for name, (value, _) in named.items()),
            {name: revision for name, (_, revision) in named.items()},
        )

    def is_stale(self, opened: Opened) -> bool:
        return any(
            name not in self.secrets or self.secrets[name][1] > revision
            for name, revision in opened.revisions.items()
        )

    def _secret(self, name: str) -> tuple[str, int]:
        if name not in self.secrets:
            raise NotFound(f"there is no secret {name}")
        return self.secrets[name]


class House:
    """A supervisor over one agent's code."""

    def __init__(
        self, supervisor: Supervisor, source: Folder, environments: OpenEnvironments
    ) -> None:
        self.supervisor = supervisor
        self.source = source
        self.environments = environments
        self.count = 0

    def attempt(
        self, value: Any = None, env: Mapping[str, str] | None = None, **fields: Any
    ) -> AttemptRun:
        """`env` is as an agent file has it."""
        self.count += 1
        if env:
            spec = AgentSpec(name="agent", version="1", entry="agent:run", env=dict(env))
            references, plain = split_environment(spec)
            self.environments.plain |= plain
            fields["environment"] = Environment(tuple(references.items()), tuple(plain))
        base = AttemptRun(
            task_id=f"task-{self.count}",
            attempt=1,
            fence=7,
            agent="agent",
            version="1",
            bundle=BlobRef(hash_of(b"x"), 1),
            entry="agent:run",
            payload=pack(value),
            timeout_s=10.0,
            concurrency=2,
        )
        return replace(base, **fields)

    async def run(self, value: Any = None, **fields: Any) -> Outcome:
        with trio.fail_after(20):
            return await self.supervisor.run(self.attempt(value, **fields))

    async def until(self, holds: Callable[[], bool], *, within_s: float = 10.0) -> None:
        with trio.fail_after(within_s):
            while not holds():  # noqa: ASYNC110 - processes set no events
                await trio.sleep(0.005)

    async def pid_of_busy(self) -> int:
        await self.until(lambda: any(i.task_id for i in self.supervisor.instances()))
        return next(i.pid for i in self.supervisor.instances() if i.task_id)


Open = Callable[..., AbstractAsyncContextManager[House]]


def house_in(folder: Path) -> Open:
    """Opens a house whose agent has the given code."""

    @asynccontextmanager
    async def open_house(
        code: str,
        config: AgentsConfig = CONFIG,
        recipes: Recipes | None = None,
        bus: Bus | None = None,
    ) -> AsyncIterator[House]:
        place = folder / "code"
        place.mkdir()
        (place / "agent.py").write_text(code)
        source, environments = Folder(place), OpenEnvironments()
        async with open_supervisor(
            config,
            folder=folder / "agents",
            bundles=source,
            clock=BootClock(),
            recipes=recipes,
            host="n1",
            environments=environments,
            bus=bus,
        ) as supervisor:
            yield House(supervisor, source, environments)

    return open_house


def resident_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])


def lives(pid: int) -> bool:
    """True for a process that runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
