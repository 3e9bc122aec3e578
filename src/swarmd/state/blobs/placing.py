"""Where blobs of users should be: who takes one, who repairs one, what goes for room. Pure.

Who holds a blob is not kept anywhere: it is asked of the living members, of whom a swarm has 3 to
20. Whoever finds something missing decides alone whether it is the one to act: of the living
holders the one that ranks first for this blob (rendezvous hashing; Thaler, Ravishankar, *Using
name-based mappings to increase hit rates*, 1998). If two see the members differently, two act, and
there is a copy too many, which does no harm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from swarmd.base.errors import InsufficientCopies
from swarmd.base.ids import NodeId


def ranked(blob_hash: bytes, nodes: Iterable[NodeId]) -> list[NodeId]:
    """`nodes` in the order in which they should hold a blob."""
    return sorted(set(nodes), key=lambda node: (_weight(blob_hash, node), node))


def _weight(blob_hash: bytes, node: NodeId) -> bytes:
    return hashlib.blake2b(blob_hash + node, digest_size=8).digest()


def copies_wanted(asked: int | None, members: int) -> int:
    """On how many nodes a blob is put: two, unless the caller says, or a node is alone.

    Raises:
        InsufficientCopies: there are fewer nodes than copies were asked for.
    """
    if asked is None:
        return min(2, max(members, 1))
    if asked > members:
        nodes = "1 node" if members == 1 else f"{members} nodes"
        raise InsufficientCopies(
            f"{asked} copies need as many nodes, and this swarm has {nodes}; nothing was stored: "
            "ask for fewer copies, or let more nodes join"
        )
    return asked


@dataclass(frozen=True, slots=True)
class Repair:
    """A blob that needs more copies, and who should take one, the best first."""

    hash: bytes
    missing: int
    takers: tuple[NodeId, ...]


def repair_of(
    blob_hash: bytes,
    copies: int,
    *,
    me: NodeId,
    holders: Collection[NodeId],
    alive: Collection[NodeId],
) -> Repair | None:
    """What this holder has to do for a pinned blob; None: nothing, or it is another's turn.

    Args:
        holders: who said that it holds the blob, this node included.
        alive: members that answer, this node included.
    """
    living = [node for node in ranked(blob_hash, alive) if node in holders]
    missing = copies - len(living)
    if missing <= 0 or not living or living[0] != me:
        return None
    takers = tuple(node for node in ranked(blob_hash, alive) if node not in holders)
    return Repair(blob_hash, missing, takers) if takers else None


def handover_of(
    blob_hash: bytes,
    copies: int,
    *,
    me: NodeId,
    holders: Collection[NodeId],
    alive: Collection[NodeId],
) -> Repair | None:
    """What this holder has to do for a pinned blob before it leaves; None: nothing.

    The others are to have as many copies as its pins want, or as they are nodes.
    """
    others = [node for node in ranked(blob_hash, alive) if node != me]
    takers = tuple(node for node in others if node not in holders)
    missing = min(copies, max(len(others), 1)) - (len(others) - len(takers))
    return Repair(blob_hash, missing, takers) if missing > 0 else None


@dataclass(frozen=True, slots=True)
class Kept:
    """A blob on this disk, as it counts for eviction.

    `pinned`: by anybody; `young`: touched within the grace period; `users`: it was put by a user,
    and nobody is known to wait for it any more; else some record may name it.
    """

    hash: bytes
    size: int
    pinned: bool
    young: bool
    users: bool


def to_evict(
    kept: Iterable[Kept], referenced: Collection[bytes] | None, need_bytes: int
) -> list[bytes] | None:
    """Which blobs go to make room for `need_bytes`; None: there is not so much to be had.

    Args:
        kept: least recently used first.
        referenced: what records name; None: this node cannot know, and spares what may be.
    """
    chosen: list[bytes] = []
    for one in kept:
        if need_bytes <= 0:
            break
        named = one.hash in referenced if referenced is not None else not one.users
        if one.pinned or one.young or named:
            continue
        chosen.append(one.hash)
        need_bytes -= one.size
    return chosen if need_bytes <= 0 else None


def due_for_scrub(hashes: Sequence[bytes], after: bytes) -> bytes | None:
    """The blob to be looked through next, after `after`, in a round without end."""
    ordered = sorted(hashes)
    return next((one for one in ordered if one > after), ordered[0] if ordered else None)
