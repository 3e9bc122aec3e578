"""The genesis: what a swarm is before anything happened in it.

It names the first node and the first admin key, and the swarm is named by its hash. So who
knows the swarm id can tell the true genesis from any other, and from it verifies everything
since. The recovery key is named here because it must be older than whatever it recovers from.
"""

from __future__ import annotations

import hashlib
import os
from typing import Final

import msgspec

from swarmd.base.errors import BadRequest, MalformedMessage
from swarmd.base.ids import SwarmId
from swarmd.base.names import check_name
from swarmd.identity.keys import KEY_BYTES, SigningKey, is_certificate_of
from swarmd.wire.codec import decode_struct, encode_struct

GENESIS_VERSION: Final = 1
GENESIS_BYTES_MAX: Final = 4_096
NONCE_BYTES: Final = 16


class Genesis(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Keys are 32 raw bytes; the certificate is DER, made by the first node's key."""

    version: int
    name: str
    nonce: bytes
    first_node_public: bytes
    first_node_name: str
    first_node_certificate: bytes
    admin_public: bytes
    recovery_public: bytes

    @property
    def swarm_id(self) -> SwarmId:
        """BLAKE2b-256 of the genesis' encoding."""
        return SwarmId(hashlib.blake2b(encode_genesis(self), digest_size=32).digest())


def make_genesis(
    name: str,
    *,
    nonce: bytes,
    node_key: SigningKey,
    node_name: str,
    admin_public: bytes,
    recovery_public: bytes,
) -> Genesis:
    """The genesis of a swarm whose first node holds `node_key`.

    Raises:
        BadRequest: a name that `check_name` refuses.
    """
    check_name(name, "swarm")
    check_name(node_name, "node")
    genesis = Genesis(
        version=GENESIS_VERSION,
        name=name,
        nonce=nonce,
        first_node_public=node_key.public,
        first_node_name=node_name,
        first_node_certificate=node_key.certificate,
        admin_public=admin_public,
        recovery_public=recovery_public,
    )
    assert _flaw(genesis) is None, _flaw(genesis)
    return genesis


def init_swarm(
    name: str, node_name: str = "node", *, node_key: SigningKey | None = None
) -> tuple[Genesis, SigningKey, SigningKey, SigningKey]:
    """A new swarm: its genesis, node key, admin key and recovery key. Nothing is written.

    Args:
        name: the swarm's name, as people see it.
        node_name: the first node's.
        node_key: the first node's key if it has one already.

    Raises:
        BadRequest: a name that `check_name` refuses.
    """
    node = SigningKey.generate() if node_key is None else node_key
    admin, recovery = SigningKey.generate(), SigningKey.generate()
    genesis = make_genesis(
        name,
        nonce=os.urandom(NONCE_BYTES),
        node_key=node,
        node_name=node_name,
        admin_public=admin.public,
        recovery_public=recovery.public,
    )
    return genesis, node, admin, recovery


def encode_genesis(genesis: Genesis) -> bytes:
    return encode_struct(genesis)


def decode_genesis(raw: bytes) -> Genesis:
    """The genesis in `raw`, in its one encoding and with every field sound.

    Raises:
        MalformedMessage: anything is wrong with it.
    """
    if len(raw) > GENESIS_BYTES_MAX:
        raise MalformedMessage(f"a genesis of {len(raw)} bytes is too large")
    genesis: Genesis = decode_struct(Genesis, raw)
    if encode_genesis(genesis) != raw:
        raise MalformedMessage("a genesis that is not in its one encoding")
    flaw = _flaw(genesis)
    if flaw is not None:
        raise MalformedMessage(f"a genesis with {flaw}")
    return genesis


def _flaw(genesis: Genesis) -> str | None:
    if genesis.version != GENESIS_VERSION:
        return f"version {genesis.version}, unknown here"
    try:
        check_name(genesis.name, "swarm")
        check_name(genesis.first_node_name, "node")
    except BadRequest as error:
        return f"a bad name: {error.message}"
    keys = (genesis.first_node_public, genesis.admin_public, genesis.recovery_public)
    if any(len(key) != KEY_BYTES for key in keys) or len(genesis.nonce) != NONCE_BYTES:
        return "a key or nonce of the wrong length"
    if not is_certificate_of(genesis.first_node_public, genesis.first_node_certificate):
        return "a certificate that is not the first node's"
    return None
