"""Who should vote: how many seats a swarm of this size has, and who sits on them.

Rules:
- Seats by members that have not left, dead ones included: 1 up to two members, 3 from three,
  5 from ten, 7 from fifty. To 3 at once; further up only after the size held for
  `GROW_AFTER_S`, so that a passing crowd changes nothing. An even number is made odd as soon
  as somebody can take the seat.
- Never down because of deaths. Only an orderly leave takes a seat away, when nobody can take
  it, or a size that held for `SHRINK_AFTER_S`.
- Who has been dead for the grace time gives the seat to a living member, if there is one. Until
  then it keeps it: a voter that only restarts is not moved.
- A new seat goes to who is pinned, then to a host that has no seat yet, then to who has been
  alive longest, then to the lower id.
- Who was evicted, or may not vote any more, has no seat from the next change on.
- Who is pinned takes the seat of one who is not, and is never moved, dead or alive.
- A change is only proposed when every new voter is alive, and a majority of the voters that
  would result: an epoch that could not begin must not be asked for.
- Voters stay where they are unless a rule above moves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from swarmd.base.ids import NodeId

GROW_AFTER_S: Final = 60.0
SHRINK_AFTER_S: Final = 86_400.0
# (members from, seats), largest first.
SEATS: Final = ((50, 7), (10, 5), (3, 3), (0, 1))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A member as far as seats are concerned.

    `capable`: its roles allow it to vote. `host`: where it runs, empty if unknown. `held_s`: for
    how many seconds it has been alive without a break, or dead, as seen from here.
    """

    node_id: NodeId
    alive: bool
    capable: bool = True
    pinned: bool = False
    host: str = ""
    held_s: float = 0.0


def seats_for(member_count: int) -> int:
    """Seats of a swarm with `member_count` members that have not left."""
    return next(seats for least, seats in SEATS if member_count >= least)


def choose_voters(
    members: Sequence[Candidate],
    current: Sequence[NodeId],
    *,
    leaving: NodeId | None = None,
    size_held_s: float = 0.0,
    replace_dead_s: float = inf,
) -> tuple[NodeId, ...]:
    """The voters there should be, sorted; `current` itself (sorted) if nothing should change.

    Args:
        members: those that have not left, dead ones included, the voters among them.
        current: the voters of the running epoch. One that is not among `members` has left.
        leaving: a member about to leave; it gets no seat.
        size_held_s: for how many seconds the member count has called for the present number
            of seats.
        replace_dead_s: the grace time.
    """
    staying = {m.node_id: m for m in members if m.node_id != leaving}
    keep = [staying[v] for v in sorted(current) if v in staying and staying[v].capable]
    seats = _seats(len(staying), len(keep), len(current), size_held_s)
    # Dead voters go first; among the living the lower id stays.
    keep = sorted(keep, key=lambda c: (not c.alive, not c.pinned, c.node_id))[:seats]
    chosen = _fill(keep, staying, seats, replace_dead_s)
    living = sum(c.alive for c in chosen)
    if not chosen or living < len(chosen) // 2 + 1:
        return tuple(sorted(current))
    return tuple(sorted(c.node_id for c in chosen))


def _fill(
    keep: list[Candidate], staying: dict[NodeId, Candidate], seats: int, replace_dead_s: float
) -> list[Candidate]:
    """Seat spare members: on free seats, for the dead, and for others if they are pinned."""
    chosen, kept = list(keep), {c.node_id for c in keep}
    spare = [c for c in staying.values() if c.alive and c.capable and c.node_id not in kept]
    lost = [c for c in keep if not c.alive and not c.pinned and c.held_s >= replace_dead_s]
    while spare:
        best = min(spare, key=lambda c: _rank(c, chosen))
        if len(chosen) >= seats:
            # Longest dead first; a living one makes room for a pinned one only.
            out = max(lost, key=lambda c: (c.held_s, c.node_id), default=None)
            if out is None and best.pinned:
                out = _least_wanted(chosen)
            if out is None:
                break
            chosen.remove(out)
            lost = [c for c in lost if c is not out]
        spare.remove(best)
        chosen.append(best)
    if len(chosen) % 2 == 0 and len(chosen) > len(keep):
        chosen.pop()  # An even number tolerates no more losses than the odd one below it.
    return chosen


def _rank(candidate: Candidate, chosen: Sequence[Candidate]) -> tuple[bool, int, float, NodeId]:
    """Lowest is best for a new seat beside those chosen."""
    beside = sum(bool(candidate.host) and c.host == candidate.host for c in chosen)
    return (not candidate.pinned, beside, -candidate.held_s, candidate.node_id)


def _least_wanted(chosen: Sequence[Candidate]) -> Candidate | None:
    """Who makes room for a pinned one: the dead, then the higher id; nobody pinned."""
    movable = [c for c in chosen if not c.pinned]
    return max(movable, key=lambda c: (not c.alive, c.node_id), default=None)


def _seats(staying: int, keep: int, current: int, size_held_s: float) -> int:
    wanted = seats_for(staying)
    if wanted > current:
        if size_held_s >= GROW_AFTER_S:
            return wanted
        # Up to three at once, and so is a seat that nobody could take when it was given up.
        return max(min(wanted, 3), current + 1 - current % 2)
    if keep < current or size_held_s >= SHRINK_AFTER_S:
        return wanted
    return current


def choose_learner(members: Sequence[Candidate], current: Sequence[NodeId]) -> NodeId | None:
    """Who keeps a copy beside a lone voter, so that its disk is not the only one; None: nobody."""
    if len(current) != 1:
        return None
    seated = [c for c in members if c.node_id in current]
    spare = [c for c in members if c.alive and c.capable and c.node_id not in current]
    best = min(spare, key=lambda c: _rank(c, seated), default=None)
    return best.node_id if best is not None else None


def losses_tolerated(voters: int, alive: int) -> int:
    """How many more voters may be lost before writes stop; negative if they have."""
    return alive - (voters // 2 + 1)
