"""What the disk of a node that does not run says of why: how its last join failed, and whether
the swarm still takes it.

All of it is for the doctor. Nothing here holds a secret, and nothing is changed by looking.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from swarmd.base.disk import Disk, open_body, seal_body
from swarmd.base.errors import SwarmError
from swarmd.base.files import write_atomically
from swarmd.base.ids import NodeId
from swarmd.mesh.trust import FILE_NAME, open_trust
from swarmd.wire.codec import decode_struct, encode_struct
from swarmd.wire.version import PROTOCOL_VERSION

LAST_JOIN: Final = "last-join"
_MESH: Final = "mesh"
_KIND: Final = "joining"
_FORMAT: Final = 1
_MESSAGE_CHARS_MAX: Final = 1_000


class JoinFailure(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How the last try to join a swarm ended: the error's code and sentence, and when."""

    code: str
    message: str
    wall_ms: int


@dataclass(frozen=True, slots=True)
class Standing:
    """The node among the members of its swarm, as far as its disk knows.

    `too_old` is the lowest protocol version that is taken, where it is above this build's; else 0.
    `problem` is why the disk cannot tell.
    """

    swarm: str = ""
    evicted: bool = False
    too_old: int = 0
    problem: str = ""


def note_join_failure(folder: Path, error: SwarmError, wall_ms: int) -> None:
    """Keep how a join failed, in the data folder. Raises OSError."""
    failure = JoinFailure(error.code, error.message[:_MESSAGE_CHARS_MAX], wall_ms)
    raw = seal_body(_KIND, _FORMAT, encode_struct(failure))
    write_atomically(folder / LAST_JOIN, raw)


def forget_join_failure(folder: Path) -> None:
    """The node is in a swarm. Raises OSError."""
    (folder / LAST_JOIN).unlink(missing_ok=True)


def last_join_failure(folder: Path) -> JoinFailure | None:
    """What was kept, if there is such a file and it can be read."""
    try:
        raw = (folder / LAST_JOIN).read_bytes()
        body = open_body(_KIND, _FORMAT, raw, source=LAST_JOIN)
        failure: JoinFailure = decode_struct(JoinFailure, body)
    except (OSError, SwarmError):
        return None
    return failure


def was_in_a_swarm(folder: Path) -> bool:
    """Does the data folder hold an authority log? False where that cannot be looked at."""
    try:
        return (folder / _MESH / FILE_NAME).is_file()
    except OSError:
        return False


def standing_of(disk: Disk, me: NodeId | None) -> Standing:
    """What the room `mesh` of a data folder says of its node.

    Args:
        me: the folder's node, None if that cannot be read.
    """
    try:
        trust = open_trust(disk)
    except OSError as error:
        return Standing(problem=f"cannot read {_MESH}/{FILE_NAME}: {error.strerror}")
    except SwarmError as error:
        return Standing(problem=error.message)
    lowest = trust.min_version
    return Standing(
        swarm=trust.genesis.name,
        evicted=me is not None and me in trust.evicted(),
        too_old=lowest if lowest > PROTOCOL_VERSION else 0,
    )
