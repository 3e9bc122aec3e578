"""Names of members. A name is for people; who is who is told by ids alone.

- A name means the living member (alive or suspect) that carries it: so a new machine takes over
  the name of one that is dead or has left. Where nobody living carries it, it means the dead one.
- While several of the living carry a name it means none of them: whoever uses it is told their
  ids. To prefer one (the elder, the smaller id) would send a command to the wrong machine
  whenever a view is not whole yet.

Nobody is refused for its name: the two may have got it on either side of a partition.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect
from swarmd.mesh.swim.events import Changed, Member, NameConflict
from swarmd.mesh.swim.members import PRESENT
from swarmd.mesh.swim.messages import MemberState


class Names:
    """Which living members carry which name, kept up as they change."""

    def __init__(self, me: NodeId, name: str) -> None:
        # At most MEMBERS_MAX: every member has one name.
        self._holders: MutableMapping[str, tuple[NodeId, ...]] = {name: (me,)}

    def after_change(self, change: Changed) -> list[Effect]:
        """`NameConflict` for a name that several carry, and when that has changed or is over."""
        before, after = _carried(change.before), _carried(change.after)
        if before == after:
            return []
        member = change.after or change.before
        assert member is not None
        effects: list[Effect] = []
        if before is not None:
            effects += self._drop(before, member.node_id)
        if after is not None:
            effects += self._take(after, member.node_id)
        return effects

    def _take(self, name: str, node_id: NodeId) -> list[Effect]:
        holders = tuple(sorted({*self._holders.get(name, ()), node_id}))
        self._holders[name] = holders
        return [NameConflict(name, holders)] if len(holders) > 1 else []

    def _drop(self, name: str, node_id: NodeId) -> list[Effect]:
        were = self._holders.pop(name, ())
        holders = tuple(one for one in were if one != node_id)
        if holders:
            self._holders[name] = holders
        return [NameConflict(name, holders)] if len(were) > 1 else []


def _carried(member: Member | None) -> str | None:
    return member.name if member is not None and member.state in PRESENT else None


def called(members: Sequence[Member], name: str) -> list[Member]:
    """Whom a name means: the living who carry it, else the dead; those who left are nobody."""
    named = [one for one in members if one.name == name]
    living = [one for one in named if one.state in PRESENT]
    return living or [one for one in named if one.state is MemberState.DEAD]


def shared_names(members: Sequence[Member]) -> dict[str, list[NodeId]]:
    """The names that several of the living carry, and who."""
    holders: dict[str, list[NodeId]] = {}
    for one in members:
        if one.state in PRESENT:
            holders.setdefault(one.name, []).append(one.node_id)
    return {name: sorted(ids) for name, ids in sorted(holders.items()) if len(ids) > 1}
