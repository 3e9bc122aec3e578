"""Whose rumours and user events count: this node's key signs, the keys that are admitted check."""

from __future__ import annotations

from typing import Final

from swarmd.base.ids import NodeId
from swarmd.identity.keys import SigningKey, verify
from swarmd.mesh.transports.roster import admitted
from swarmd.mesh.trust import Trust
from swarmd.wire.envelope import signing_bytes

_RUMOUR_DOMAIN: Final = "rumour"
_EVENT_DOMAIN: Final = "event"


class RumourSigner:
    """Signs and checks rumours and events, by this node's key and the admitted keys."""

    def __init__(self, key: SigningKey, trust: Trust) -> None:
        self._key, self._trust = key, trust

    def sign_rumour(self, statement: bytes) -> bytes:
        return self._sign(_RUMOUR_DOMAIN, statement)

    def verify_rumour(self, author: NodeId, statement: bytes, signature: bytes) -> bool:
        return self._verify(_RUMOUR_DOMAIN, author, statement, signature)

    def sign_event(self, said: bytes) -> bytes:
        return self._sign(_EVENT_DOMAIN, said)

    def verify_event(self, origin: NodeId, said: bytes, signature: bytes) -> bool:
        return self._verify(_EVENT_DOMAIN, origin, said, signature)

    def _sign(self, domain: str, payload: bytes) -> bytes:
        return self._key.sign(signing_bytes(domain, self._trust.swarm_id, payload))

    def _verify(self, domain: str, author: NodeId, payload: bytes, signature: bytes) -> bool:
        admission = admitted(self._trust, author)
        if admission is None:
            return False
        covered = signing_bytes(domain, self._trust.swarm_id, payload)
        return verify(admission.public, signature, covered)

    def may_be(self, node_id: NodeId) -> tuple[str, ...]:
        admission = admitted(self._trust, node_id)
        return () if admission is None else admission.roles
