"""Whose words count: this node's key signs rumours, events and batches, admitted keys check."""

from __future__ import annotations

from typing import Final

from swarmd.base.ids import NodeId
from swarmd.identity.keys import SigningKey, verify
from swarmd.mesh.transports.roster import admitted
from swarmd.mesh.trust import Trust
from swarmd.wire.envelope import signing_bytes

_RUMOUR_DOMAIN: Final = "rumour"
_EVENT_DOMAIN: Final = "event"
_BATCH_DOMAIN: Final = "batch"


class RumourSigner:
    """Signs and checks rumours, events and batches, by this node's key and the admitted keys."""

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

    def sign_batch(self, said: bytes) -> bytes:
        return self._sign(_BATCH_DOMAIN, said)

    def verify_batch(self, author: NodeId, said: bytes, signature: bytes) -> bool:
        """What a member wrote counts when it was evicted, too: others have gone on from it."""
        admission = self._trust.ever_admitted(author)
        return admission is not None and self._signed(
            _BATCH_DOMAIN, admission.public, said, signature
        )

    def _sign(self, domain: str, payload: bytes) -> bytes:
        return self._key.sign(signing_bytes(domain, self._trust.swarm_id, payload))

    def _verify(self, domain: str, author: NodeId, payload: bytes, signature: bytes) -> bool:
        admission = admitted(self._trust, author)
        if admission is None:
            return False
        return self._signed(domain, admission.public, payload, signature)

    def _signed(self, domain: str, public: bytes, payload: bytes, signature: bytes) -> bool:
        return verify(public, signature, signing_bytes(domain, self._trust.swarm_id, payload))

    def may_be(self, node_id: NodeId) -> tuple[str, ...]:
        admission = admitted(self._trust, node_id)
        return () if admission is None else admission.roles
