"""Identifiers: how they are made, written and read.

A node is named by the hash of its key, so an id can be checked against a key but never
chosen. On the wire and in memory it is 32 bytes; people see base32 without padding.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final, NewType

from swarmd.base.errors import BadRequest

NodeId = NewType("NodeId", bytes)
SwarmId = NewType("SwarmId", bytes)
TaskId = NewType("TaskId", str)
JobId = NewType("JobId", str)

ID_BYTES: Final = 32
_SHORT_CHARS: Final = 8
_WORK_ID_BYTES: Final = 16


def digest(*parts: bytes) -> bytes:
    """BLAKE2b-256 over `parts`, each preceded by its length so that no two lists collide."""
    state = hashlib.blake2b(digest_size=ID_BYTES)
    for part in parts:
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.digest()


def node_id_of(public_key: bytes) -> NodeId:
    """The id of the node that holds `public_key` (32 raw Ed25519 bytes): its BLAKE2b-256."""
    return NodeId(hashlib.blake2b(public_key, digest_size=ID_BYTES).digest())


def to_text(raw: bytes) -> str:
    """`raw` in lower-case base32 without padding."""
    return base64.b32encode(raw).decode("ascii").rstrip("=").lower()


def from_text(text: str) -> bytes:
    """The bytes that `to_text` wrote.

    Raises:
        BadRequest: `text` is not base32.
    """
    upper = text.strip().upper()
    try:
        return base64.b32decode(upper + "=" * (-len(upper) % 8))
    except ValueError as error:
        raise BadRequest(f"{text!r} is not an id: expected letters a-z and digits 2-7") from error


def short(raw: bytes) -> str:
    """The first 8 characters of an id, for logs and tables."""
    return to_text(raw)[:_SHORT_CHARS]


def task_id_of(swarm_id: bytes, idempotency_key: str) -> TaskId:
    """The task that `idempotency_key` names: one key, one task, on whichever node it is asked."""
    return TaskId(to_text(digest(b"task", swarm_id, idempotency_key.encode())[:_WORK_ID_BYTES]))


def job_id_of(swarm_id: bytes, idempotency_key: str) -> JobId:
    """The job that `idempotency_key` names."""
    return JobId(to_text(digest(b"job", swarm_id, idempotency_key.encode())[:_WORK_ID_BYTES]))
