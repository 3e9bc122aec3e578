"""Which records of others to ask for. Pure.

Rules:
- A life is asked for from the record after the last one that is held, or from wherever its holder
  has it: what is older went there for its age.
- A life that goes on from another one is asked for after that one, so that what is kept of a node
  has no hole which was not agreed to.
- Two holders that tell different hashes for one number of a life have a fork between them.
- Nothing is asked for that would have to go at once: what was dropped for its age stays away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Final

from swarmd.audit.messages import HeldLife
from swarmd.audit.records import ChainId, Floor

# Lives of one stream of a node that are copied; a node has one more with each start.
LIVES_MAX: Final = 4_096
# Lives that are asked for in one go; the others are asked for the next time.
WANTS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Want:
    """Ask for records of `chain` above `after`, up to `until`."""

    chain: ChainId
    after: int
    until: int


@dataclass(frozen=True, slots=True)
class Doubt:
    """A peer tells another hash for the record `number`, which ends a batch in both copies."""

    chain: ChainId
    number: int


@dataclass(frozen=True, slots=True)
class Kept:
    """Where what this node holds of one life ends."""

    last: int
    hash: bytes


def wants(
    mine: Mapping[ChainId, Kept],
    floors: Iterable[Floor],
    theirs: Iterable[HeldLife],
    *,
    growing: Set[ChainId],
    before_ms: int,
) -> list[Want | Doubt]:
    """What to ask a peer for that holds `theirs`, in the order to ask.

    Args:
        floors: what was dropped here.
        growing: lives that this node writes itself; nobody else knows more of them.
        before_ms: lives that ended before this wall time are too old.
    """
    found: list[Want | Doubt] = []
    counts = Counter((chain.node, chain.stream) for chain in mine)
    dropped: dict[ChainId, int] = {}
    ended: dict[tuple[bytes, str], int] = {}
    for floor in floors:
        key = (floor.chain.node, floor.chain.stream)
        dropped[floor.chain] = floor.number
        ended[key] = max(ended.get(key, 0), floor.wall_ms)
    for one in sorted(theirs, key=lambda life: (life.chain.node, life.begin, life.chain)):
        chain = one.chain
        if chain in growing:
            continue
        kept = mine.get(chain)
        if kept is None:
            key = (chain.node, chain.stream)
            after = dropped.get(chain, 0)
            is_old = one.wall_ms <= ended.get(key, -1) or one.wall_ms < before_ms
            if counts[key] < LIVES_MAX and one.last > after and not is_old:
                counts[key] += 1
                found.append(Want(chain, after, one.last))
        elif one.last > kept.last:
            found.append(Want(chain, kept.last, one.last))
        elif one.last == kept.last and one.hash != kept.hash:
            found.append(Doubt(chain, kept.last))
        if len(found) >= WANTS_MAX:
            break
    return found
