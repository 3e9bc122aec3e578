"""Which nodes hold which shard.

A bucket lives everywhere, or on a few nodes: then its name says on how many, and so every node
knows it without being told. Whole shards are placed by rendezvous hashing (Thaler and Ravishankar,
"Using name-based mappings to increase hit rates", 1998): each node draws a number for a shard, and
those with the highest hold it. So when a node comes or goes no shard moves but to or from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from swarmd.base.ids import NodeId
from swarmd.base.limits import CRDT_COPIES_MAX
from swarmd.state.crdt.messages import Shard

_COPIES: Final = "~"
_KNOWN_MAX: Final = 256


def bucket_on(bucket: str, copies: int) -> str:
    """The name of a bucket that so many nodes hold; 0: all of them."""
    return f"{bucket}{_COPIES}{copies}" if copies else bucket


@lru_cache(_KNOWN_MAX)
def copies_of(bucket: str) -> int:
    """On how many nodes a bucket lives; 0: on all."""
    _, mark, digits = bucket.rpartition(_COPIES)
    if not mark or not (digits.isascii() and digits.isdigit() and len(digits) == 1):
        return 0
    return int(digits) if 0 < int(digits) <= CRDT_COPIES_MAX else 0


def holders(shard: Shard, members: Iterable[NodeId], copies: int) -> tuple[NodeId, ...]:
    """Who of `members` holds a shard of which there are so many copies, in the order of rank."""
    bucket, number = shard
    place = bucket.encode() + bytes((0, number))

    def rank(member: NodeId) -> tuple[bytes, NodeId]:
        return blake2b(place + member, digest_size=8).digest(), member

    return tuple(sorted(members, key=rank, reverse=True)[:copies])
