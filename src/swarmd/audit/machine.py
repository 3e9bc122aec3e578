"""Which records of others to ask for. Pure.

Rules:
- A life is asked for from the record after the last one that is held. If its holder has it only
  from later on, it dropped what is missing, which is skipped once others had been asked for it.
- A life that goes on from another one is asked for after that one, so that what is kept of a node
  has no hole which was not agreed to.
- Two holders that tell different hashes for one number of a life have a fork between them.
- Nothing is asked for that would have to go at once: what was dropped stays away. How old a life
  is its holder says; the clock of who wrote it may be wrong.
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
# Of whole lives of a stream of a node that went: what stays known of them.
FLOORS_MAX: Final = 64
# Lives that are asked for in one go; the others are asked for the next time.
WANTS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Want:
    """Ask for records of `chain` above `after`, up to `until`.

    `skips`: the peer lacks the first of them.
    """

    chain: ChainId
    after: int
    until: int
    skips: bool = False


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
        before_ms: lives of which nothing was written since this wall time are too old.
    """
    found: list[Want | Doubt] = []
    counts = Counter((chain.node, chain.stream) for chain in mine)
    dropped: dict[ChainId, int] = {}
    gone: dict[tuple[bytes, str], list[int]] = {}
    for floor in floors:
        dropped[floor.chain] = floor.number
        gone.setdefault((floor.chain.node, floor.chain.stream), []).append(floor.wall_ms)
    # Older ones are forgotten here.
    forgotten = {key: min(times) for key, times in gone.items() if len(times) >= FLOORS_MAX}
    for one in sorted(theirs, key=lambda life: (life.chain.node, life.begin, life.chain)):
        chain = one.chain
        if chain in growing:
            continue
        kept = mine.get(chain)
        if kept is None:
            key = (chain.node, chain.stream)
            after = dropped.get(chain, 0)
            is_old = one.written_ms < max(before_ms, forgotten.get(key, 0))
            if counts[key] < LIVES_MAX and one.last > after and not is_old:
                counts[key] += 1
                skips = one.first > max(after + 1, one.begin)
                found.append(Want(chain, after, one.last, skips))
        elif one.last > kept.last:
            found.append(Want(chain, kept.last, one.last, one.first > kept.last + 1))
        elif one.last == kept.last and one.hash != kept.hash:
            found.append(Doubt(chain, kept.last))
        if len(found) >= WANTS_MAX:
            break
    return found
