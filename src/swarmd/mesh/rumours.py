"""Whose rumours count: signed by this node's key, checked by the keys that are admitted."""

from __future__ import annotations

from typing import Final

from swarmd.base.ids import NodeId
from swarmd.identity.keys import SigningKey, verify
from swarmd.mesh.transports.roster import admitted
from swarmd.mesh.trust import Trust
from swarmd.wire.envelope import signing_bytes

_RUMOUR_DOMAIN: Final = "rumour"


class RumourSigner:
    """Signs and checks rumours, by this node's key and the admitted keys."""

    def __init__(self, key: SigningKey, trust: Trust) -> None:
        self._key, self._trust = key, trust

    def sign_rumour(self, statement: bytes) -> bytes:
        return self._key.sign(signing_bytes(_RUMOUR_DOMAIN, self._trust.swarm_id, statement))

    def verify_rumour(self, author: NodeId, statement: bytes, signature: bytes) -> bool:
        admission = admitted(self._trust, author)
        if admission is None:
            return False
        covered = signing_bytes(_RUMOUR_DOMAIN, self._trust.swarm_id, statement)
        return verify(admission.public, signature, covered)

    def may_be(self, node_id: NodeId) -> tuple[str, ...]:
        admission = admitted(self._trust, node_id)
        return () if admission is None else admission.roles
