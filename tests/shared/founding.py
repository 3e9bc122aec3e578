"""The swarm `lab` in tests: made of fixed keys, so that it is the same one every time."""

from __future__ import annotations

from swarmd.identity.genesis import Genesis, make_genesis
from swarmd.identity.keys import SigningKey

ADMIN = SigningKey.from_seed(b"a" * 32)
RECOVERY = SigningKey.from_seed(b"r" * 32)


def lab(founder: SigningKey, name: str, *, nonce: bytes = b"g" * 16) -> Genesis:
    """The genesis of the swarm whose first node has this key and name."""
    return make_genesis(
        "lab",
        nonce=nonce,
        node_key=founder,
        node_name=name,
        admin_public=ADMIN.public,
        recovery_public=RECOVERY.public,
    )
