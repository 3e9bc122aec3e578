"""What transports ask of trust: who is admitted now, what must be spoken, and when that changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from swarmd.base.ids import NodeId
from swarmd.identity.authority import Admission
from swarmd.identity.tls import RAFT_ALPN


class Roster(Protocol):
    """`mesh.trust.Trust` is one."""

    @property
    def swarm_id(self) -> bytes: ...

    @property
    def version(self) -> int:
        """Rises with every change."""
        ...

    @property
    def min_version(self) -> int:
        """The lowest protocol version that members may speak."""
        ...

    def admission(self, node_id: NodeId) -> Admission | None: ...

    def admissions(self) -> Sequence[Admission]: ...

    async def changed(self, version: int) -> object:
        """Return once the version is no longer `version`."""
        ...


def admitted(roster: Roster, node_id: NodeId) -> Admission | None:
    """The node's admission, unless it has none or was evicted."""
    admission = roster.admission(node_id)
    return None if admission is None or admission.evicted else admission


def may_use(alpn: str, admission: Admission) -> bool:
    """Raft is for those who may be voters."""
    return alpn != RAFT_ALPN or "voter" in admission.roles
