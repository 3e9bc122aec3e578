"""Agents' records: written with what their environments hold sealed, and opened for who runs them.

A member that has keys for secrets writes records and opens environments itself; any other has
both done by one that has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from msgspec import structs

from swarmd.agents.environment import NO_ENVIRONMENT, decode_environment, split_environment
from swarmd.agents.messages import AGENTS, EnvironmentAsk, EnvironmentIs, RecordAsk, Recorded
from swarmd.agents.opening import Environments, noting_secrets, plain_values, seal_environment
from swarmd.agents.records import AgentRecord, agent_key, decode_agent, encode_agent
from swarmd.agents.spec import AgentSpec
from swarmd.base.errors import (
    Conflict,
    Forbidden,
    NotFound,
    NotReady,
    RemoteError,
    SecretUnreadable,
    Unavailable,
    VersionExists,
)
from swarmd.base.ids import NodeId, short
from swarmd.base.notes import NOBODY, Notes
from swarmd.mesh.link import Lane, Link
from swarmd.observe.log import get_logger
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.raft.messages import Compare, Entry, Operation, OpResult, Put, Txn
from swarmd.state.secrets.records import USES_KEY, secret_key
from swarmd.state.secrets.service import Secrets
from swarmd.wire.codec import decode_struct, encode_struct

_log = get_logger("agents")
_RACES_MAX: Final = 5
_RECORD_TIMEOUT_S: Final = 15.0


class Store(Protocol):
    """What is asked of the strong store here."""

    async def propose(
        self, ops: Sequence[Operation], *, timeout_s: float = 5.0
    ) -> Sequence[OpResult]: ...

    async def get(self, key: bytes, *, stale: bool = False) -> Entry | None: ...

    def store_time_ms(self) -> int: ...


class AgentRecords:
    """Without `secrets` only agents that have no environment are written."""

    def __init__(
        self,
        store: Store,
        link: Link,
        secrets: Secrets | None,
        notes: Notes = NOBODY,
    ) -> None:
        self._store = store
        self._link = link
        self._secrets = secrets
        self._notes = notes
        self._environments = Environments(secrets, link) if secrets is not None else None

    async def write(
        self, spec: AgentSpec, ref: BlobRef, *, replace: bool
    ) -> tuple[AgentRecord, bool]:
        """Have the record of an agent, whose code is safe, written; and whether it is another one.

        Raises: see `Agents.deploy`.
        """
        if spec.env and not self._may_seal:
            return await self._have_written(spec, ref, replace)
        return await self._write(spec, ref, replace)

    async def answer(
        self, peer: NodeId, message: EnvironmentAsk | RecordAsk
    ) -> EnvironmentIs | Recorded:
        """What a member that has no keys asked for.

        Records are written for whichever member: it holds the caller to the rules itself, as for
        all else that members carry out for one another, and could write to the store directly.
        """
        if not self._may_seal:
            raise Unavailable("this member holds no keys for secrets: ask another one")
        if isinstance(message, EnvironmentAsk):
            return await self._open_for(peer, message)
        spec: AgentSpec = decode_struct(AgentSpec, message.spec)
        record, fresh = await self._write(spec, message.bundle, message.replace)
        if fresh:
            names = ",".join(spec.secrets)
            _log.info("an agent was deployed", agent=spec.name, peer=short(peer), secrets=names)
        return Recorded(encode_agent(record), fresh)

    async def _write(
        self, spec: AgentSpec, ref: BlobRef, replace: bool
    ) -> tuple[AgentRecord, bool]:
        key = agent_key(spec.name)
        for _ in range(_RACES_MAX):
            entry = await self._store.get(key)
            if entry is not None:
                before = decode_agent(entry.value)
                if await self._is_same(before, spec, ref):
                    return before, False
                if before.spec.version == spec.version and not replace:
                    raise VersionExists(
                        f"{spec.name} {spec.version} is deployed with other content; "
                        "raise the version, or use --replace"
                    )
            record, holds = await self._sealed(spec, ref)
            revision = 0 if entry is None else entry.mod_revision
            (result,) = await self._store.propose([_put_of(record, revision, holds)])
            if result.ok:
                return record, True
            if result.code != Conflict.code:
                result.raise_for_error()
        raise Conflict(f"{spec.name} is being deployed by others at the same time; try again")

    async def _sealed(self, spec: AgentSpec, ref: BlobRef) -> tuple[AgentRecord, list[Compare]]:
        """The record of a spec, its environment sealed, and what must hold when it is written.

        Raises:
            NotFound: it refers to a secret that does not exist.
        """
        now_ms = self._store.store_time_ms()
        if not spec.env:
            return AgentRecord(spec, ref, now_ms), []
        if self._secrets is None:
            raise NotReady("this node seals no environments")
        environment, holds = await seal_environment(self._secrets, spec)
        for name in environment.secrets:
            if await self._store.get(secret_key(name)) is None:
                raise NotFound(
                    f"{spec.name} refers to the secret {name}, which does not exist: set it with "
                    f"`swarmctl secret set {name}`"
                )
            holds.append(Compare(secret_key(name)))
        return AgentRecord(structs.replace(spec, env={}), ref, now_ms, environment), holds

    async def _is_same(self, before: AgentRecord, spec: AgentSpec, ref: BlobRef) -> bool:
        if (before.spec, before.bundle) != (structs.replace(spec, env={}), ref):
            return False
        references, plain = split_environment(spec)
        was = before.environment
        if (was.references, was.plain) != (tuple(references.items()), tuple(plain)):
            return False
        if not plain:
            return True
        if self._secrets is None:
            return False
        try:
            return await plain_values(self._secrets, spec.name, was) == plain
        except SecretUnreadable:
            return False  # To deploy it again is what mends that.

    # ---- with keys, and for who has none -----------------------------------------------

    @property
    def _may_seal(self) -> bool:
        return self._secrets is not None and self._secrets.ring.may_hold

    async def _have_written(
        self, spec: AgentSpec, ref: BlobRef, replace: bool
    ) -> tuple[AgentRecord, bool]:
        """Have a member that has keys write the record."""
        holders = self._secrets.ring.holders() if self._secrets is not None else []
        ask = RecordAsk(encode_struct(spec), ref, replace)
        for node in holders:
            try:
                answer = await self._link.request(
                    AGENTS, node, ask, timeout_s=_RECORD_TIMEOUT_S, lane=Lane.BULK
                )
            except Unavailable:
                continue
            if not isinstance(answer, Recorded):
                raise RemoteError("a member answered another question")
            return decode_agent(answer.record), answer.fresh
        raise Unavailable(
            f"no member that may vote can be reached to seal the environment of {spec.name}: "
            "nothing was deployed; try again"
        )

    async def _open_for(self, peer: NodeId, ask: EnvironmentAsk) -> EnvironmentIs:
        """Open an environment for a member that runs the agent.

        Raises:
            Forbidden: it is not for this member, or asks for more than the agent refers to.
            NotFound: the agent is deployed no more.
        """
        if self._environments is None or self._secrets is None:
            raise NotReady("this node opens no environments")
        if not self._secrets.ring.works(peer):
            raise Forbidden("environments are opened for members that work")
        environment = decode_environment(ask.environment)
        entry = await self._store.get(agent_key(ask.agent))
        if entry is None:
            raise NotFound(f"no agent is named {ask.agent!r}")
        record = decode_agent(entry.value)
        if not set(environment.secrets) <= set(record.environment.secrets):
            raise Forbidden(f"{ask.agent} does not refer to all of these secrets any more")
        with noting_secrets(self._notes, ask.agent, environment, short(peer)):
            found = EnvironmentIs(*await self._environments.read(ask.agent, environment))
        names = ",".join(environment.secrets)
        _log.info("an environment was opened", agent=ask.agent, peer=short(peer), secrets=names)
        return found


def _put_of(record: AgentRecord, revision: int, holds: Sequence[Compare]) -> Operation:
    """The write of a record, over the one of that revision, if all of `holds` does.

    Who begins to refer to a secret says so: see `state.secrets.records`.
    """
    key, value = agent_key(record.name), encode_agent(record)
    if record.environment == NO_ENVIRONMENT:
        return Put(key, value, expect=revision)
    uses = (Put(USES_KEY, b""),) if record.environment.references else ()
    return Txn((Compare(key, revision=revision), *holds), (Put(key, value), *uses))
