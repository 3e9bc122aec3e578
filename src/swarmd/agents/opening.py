"""Opening what an agent's environment holds, where a process of the agent starts.

It is opened on the agent's node if that may have keys, else on a member that does: which opens
for members that work, of agents that are deployed, what these refer to, and nothing else. Values
go on to the process, and are kept nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from swarmd.agents.environment import (
    NO_ENVIRONMENT,
    NOTHING,
    Environment,
    Opened,
    split_environment,
)
from swarmd.agents.messages import AGENTS, EnvironmentAsk, EnvironmentIs
from swarmd.agents.spec import ENV_MAX, AgentSpec
from swarmd.base.errors import (
    MalformedMessage,
    RemoteError,
    SecretUnreadable,
    SwarmError,
    TooLarge,
    Unavailable,
)
from swarmd.base.limits import ENVIRONMENT_BYTES_MAX
from swarmd.base.notes import NOBODY, Notes
from swarmd.mesh.link import Link
from swarmd.state.raft.messages import Compare
from swarmd.state.secrets.records import about_environment
from swarmd.state.secrets.service import Secrets
from swarmd.wire.codec import decode_struct

_ASK_TIMEOUT_S: Final = 5.0

Variables = Annotated[dict[str, str], Meta(max_length=ENV_MAX)]
# Plain values by variable, secrets by name, and the revisions of these.
Found = tuple[dict[str, str], dict[str, str], dict[str, int]]


async def seal_environment(secrets: Secrets, spec: AgentSpec) -> tuple[Environment, list[Compare]]:
    """A spec's environment as it is stored, and what must still hold when it is.

    Only on a member that may have keys.

    Raises:
        TooLarge: the plain values alone are larger than an environment may be.

    Also what `Ring.to_seal` raises.
    """
    references, plain = split_environment(spec)
    _check_size(spec.name, plain)
    named = tuple(references.items())
    if not plain:
        return Environment(named), []
    ring, while_ring = await secrets.ring.to_seal()
    about = about_environment(secrets.swarm_id, spec.name)
    box = secrets.ring.seal(ring, msgspec.msgpack.encode(plain), about)
    return Environment(named, tuple(plain), box), [while_ring]


async def plain_values(secrets: Secrets, agent: str, environment: Environment) -> dict[str, str]:
    """The plain values of an environment, on a member that may have keys.

    Raises:
        SecretUnreadable: no key for them can be had.
    """
    if environment.box is None:
        return {}
    what = f"the environment of {agent}"
    raw = await secrets.ring.open(environment.box, about_environment(secrets.swarm_id, agent), what)
    try:
        found: dict[str, str] = decode_struct(Variables, raw)
    except MalformedMessage:
        # Without its cause, which may quote what it found.
        raise SecretUnreadable(f"{what} cannot be read: deploy {agent} again") from None
    return found


def _check_size(agent: str, variables: Mapping[str, str]) -> None:
    size = sum(len(name) + len(text.encode()) for name, text in variables.items())
    if size > ENVIRONMENT_BYTES_MAX:
        raise TooLarge(
            f"the environment of {agent} has {size} bytes with its names and secrets; "
            f"at most {ENVIRONMENT_BYTES_MAX} are allowed"
        )


@contextmanager
def noting_secrets(
    notes: Notes, agent: str, environment: Environment, reader: str = ""
) -> Iterator[None]:
    """Take note of the secrets that are read for an agent, by their names, and how it ended.

    Args:
        reader: the member that they are for, if it is another one.
    """
    outcome = "unknown"
    try:
        yield
        outcome = "ok"
    except SwarmError as error:
        outcome = error.code
        raise
    finally:
        if environment.secrets:
            names = ", ".join(environment.secrets)
            notes.note("secret.read", agent, names, outcome, f"for {reader}" if reader else "")


class Environments:
    """Opens environments for processes of this node."""

    def __init__(self, secrets: Secrets, link: Link, notes: Notes = NOBODY) -> None:
        self._secrets = secrets
        self._link = link
        self._notes = notes

    def is_stale(self, opened: Opened) -> bool:
        """Has a secret in it changed since?"""
        return bool(opened.revisions) and self._secrets.is_stale(opened.revisions)

    async def open(self, agent: str, environment: Environment) -> Opened:
        """The values of an environment.

        Raises:
            NotFound: it refers to a secret that was deleted.
            SecretUnreadable: no key can be had for some of it.
            TooLarge: all values together are larger than an environment may be.
            Unavailable: nobody who has keys can be reached.
        """
        if environment == NO_ENVIRONMENT:
            return NOTHING
        # What is read from now on is at least as new as what was told by now.
        least = self._secrets.known_to()
        with noting_secrets(self._notes, agent, environment):
            if self._secrets.ring.may_hold:
                plain, secrets, revisions = await self.read(agent, environment)
            else:
                plain, secrets, revisions = await self._ask(agent, environment)
        variables = plain | {variable: secrets[name] for variable, name in environment.references}
        return Opened(
            tuple(sorted(variables.items())),
            tuple(sorted(secrets.items())),
            {name: max(least, revision) for name, revision in revisions.items()},
        )

    async def read(self, agent: str, environment: Environment) -> Found:
        """Plain values by variable, secrets by name, their revisions; on who may have keys."""
        plain = await plain_values(self._secrets, agent, environment)
        secrets, revisions = {}, {}
        for name in environment.secrets:
            secrets[name], revisions[name] = await self._secrets.value(name)
        _check_size(agent, plain | {var: secrets[name] for var, name in environment.references})
        return plain, secrets, revisions

    async def _ask(self, agent: str, environment: Environment) -> Found:
        ask = EnvironmentAsk(agent, msgspec.msgpack.encode(environment))
        why: SwarmError | None = None
        for node in self._secrets.ring.holders():
            try:
                answer = await self._link.request(AGENTS, node, ask, timeout_s=_ASK_TIMEOUT_S)
            except (Unavailable, SecretUnreadable) as error:
                why = error
                continue
            if not isinstance(answer, EnvironmentIs) or set(answer.secrets) != set(
                environment.secrets
            ):
                raise RemoteError("not the environment that was asked for")
            self._secrets.hide(answer.secrets)
            revisions = {name: answer.revisions.get(name, 0) for name in answer.secrets}
            return answer.plain, answer.secrets, revisions
        raise why or Unavailable(
            f"the environment of {agent} cannot be opened: no member that may vote can be reached"
        )
