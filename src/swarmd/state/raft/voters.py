"""Who should vote: how many seats a swarm of this size has, and who sits on them.

Rules:
- Seats by members that have not left, dead ones included: 1 up to two members, 3 from three,
  5 from ten, 7 from fifty. To 3 at once; further up only after the size held for
  `GROW_AFTER_S`, so that a passing crowd changes nothing. An even number is made odd as soon
  as somebody can take the seat.
- Never down because of deaths: a dead voter keeps its seat until somebody replaces it. Only
  an orderly leave takes a seat away; another member gets it, or the number of seats falls.
- A change is only proposed when every new voter is alive, and a majority of the voters that
  would result: an epoch that could not begin must not be asked for.
- Voters stay where they are unless a rule above moves them; among equals the lower id wins,
  so that every node would choose the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from swarmd.base.ids import NodeId

GROW_AFTER_S: Final = 60.0
# (members from, seats), largest first.
SEATS: Final = ((50, 7), (10, 5), (3, 3), (0, 1))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A member as far as seats are concerned. `capable`: its roles allow it to vote."""

    node_id: NodeId
    alive: bool
    capable: bool = True


def seats_for(member_count: int) -> int:
    """Seats of a swarm with `member_count` members that have not left."""
    return next(seats for least, seats in SEATS if member_count >= least)


def choose_voters(
    members: Sequence[Candidate],
    current: Sequence[NodeId],
    *,
    leaving: NodeId | None = None,
    size_held_s: float = 0.0,
) -> tuple[NodeId, ...]:
    """The voters there should be, sorted; `current` itself (sorted) if nothing should change.

    Args:
        members: those that have not left, dead ones included, the voters among them.
        current: the voters of the running epoch. One that is not among `members` has left.
        leaving: a member about to leave; it gets no seat.
        size_held_s: for how many seconds the member count has called for the present number
            of seats.
    """
    staying = {m.node_id: m for m in members if m.node_id != leaving}
    keep = sorted(v for v in current if v in staying)
    seats = _seats(len(staying), len(keep), len(current), size_held_s)
    spare = sorted(
        m.node_id for m in staying.values() if m.alive and m.capable and m.node_id not in keep
    )
    if len(keep) > seats:
        # Dead voters go first; among the living the lower id stays.
        keep = sorted(sorted(keep, key=lambda v: (not staying[v].alive, v))[:seats])
    chosen = sorted(keep + spare[: max(0, seats - len(keep))])
    if len(chosen) % 2 == 0 and len(chosen) > len(keep):
        # An even number tolerates no more losses than the odd one below it.
        dropped = [v for v in chosen if v not in keep][-1]
        chosen.remove(dropped)
    living = sum(staying[v].alive for v in chosen)
    if not chosen or living < len(chosen) // 2 + 1:
        return tuple(sorted(current))
    return tuple(chosen)


def _seats(staying: int, keep: int, current: int, size_held_s: float) -> int:
    wanted = seats_for(staying)
    if wanted > current:
        if size_held_s >= GROW_AFTER_S:
            return wanted
        # Up to three at once, and so is a seat that nobody could take when it was given up.
        return max(min(wanted, 3), current + 1 - current % 2)
    if keep < current:
        return wanted
    return current


def losses_tolerated(voters: int, alive: int) -> int:
    """How many more voters may be lost before writes stop; negative if they have."""
    return alive - (voters // 2 + 1)
