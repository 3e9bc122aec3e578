"""How the strong store holds agents: `g/<name>` is one `AgentRecord`, the current version."""

from __future__ import annotations

import msgspec
from msgspec import structs

from swarmd.agents.environment import NO_ENVIRONMENT, Environment
from swarmd.agents.spec import AgentSpec
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.raft.messages import AGENT_PREFIX as AGENT_PREFIX
from swarmd.state.secrets.records import Box, about_environment
from swarmd.state.secrets.resealing import Sealed
from swarmd.wire.codec import decode_stored


class AgentRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A deployed agent. `bundle` is its packed folder; `deployed_ms` is store time.

    What its file says of its environment is in `environment`, sealed; `spec` has none of it.
    """

    spec: AgentSpec
    bundle: BlobRef
    deployed_ms: int = 0
    environment: Environment = NO_ENVIRONMENT

    @property
    def name(self) -> str:
        return self.spec.name


def agent_key(name: str) -> bytes:
    return AGENT_PREFIX + name.encode()


def encode_agent(record: AgentRecord) -> bytes:
    return msgspec.msgpack.encode(record)


def decode_agent(raw: bytes) -> AgentRecord:
    """Raises CorruptFile: the store holds what this version cannot read."""
    record: AgentRecord = decode_stored(AgentRecord, raw, "an agent record")
    return record


def sealed_agents(swarm_id: bytes) -> Sealed:
    """Where agents' records have something sealed."""

    def box_of(raw: bytes) -> tuple[Box, bytes, str] | None:
        record = decode_agent(raw)
        if record.environment.box is None:
            return None
        about = about_environment(swarm_id, record.name)
        return record.environment.box, about, f"the environment of {record.name}"

    return Sealed(AGENT_PREFIX, box_of, _with_box)


def _with_box(raw: bytes, box: Box) -> bytes:
    record = decode_agent(raw)
    environment = structs.replace(record.environment, box=box)
    return encode_agent(structs.replace(record, environment=environment))
