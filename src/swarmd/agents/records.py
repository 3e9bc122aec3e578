"""How the strong store holds agents: `g/<name>` is one `AgentRecord`, the current version."""

from __future__ import annotations

from typing import Final

import msgspec

from swarmd.agents.spec import AgentSpec
from swarmd.state.blobs.messages import BlobRef
from swarmd.wire.codec import decode_stored

AGENT_PREFIX: Final = b"g/"


class AgentRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A deployed agent. `bundle` is its packed folder; `deployed_ms` is store time."""

    spec: AgentSpec
    bundle: BlobRef
    deployed_ms: int = 0

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
