"""Names that several members carry, as one of them hears of it."""

from __future__ import annotations

from dataclasses import replace

from swarmd.base.ids import NodeId, digest
from swarmd.base.machine import Effect
from swarmd.mesh.swim.events import Changed, Member, NameConflict
from swarmd.mesh.swim.messages import MemberState
from swarmd.mesh.swim.names import Names, called, shared_names

ALIVE, SUSPECT, DEAD, LEFT = MemberState
ME, TWIN, THIRD = sorted(NodeId(digest(b"node", letter)) for letter in (b"a", b"b", b"c"))


def one(node_id: NodeId, name: str = "n1", state: MemberState = ALIVE) -> Member:
    return Member(node_id, name, (), state, 1, (), "1", (), 0.0)


class Told:
    """Changes of members, from one state to the next."""

    def __init__(self) -> None:
        self.names = Names(ME, "n1")
        self.held: dict[NodeId, Member] = {ME: one(ME)}

    def become(self, after: Member) -> list[Effect]:
        before = self.held.get(after.node_id)
        self.held[after.node_id] = after
        return self.names.after_change(Changed(before, after))

    def forget(self, node_id: NodeId) -> list[Effect]:
        return self.names.after_change(Changed(self.held.pop(node_id), None))


def test_a_conflict_is_told_once_and_when_it_is_over() -> None:
    told = Told()
    assert told.become(one(TWIN)) == [NameConflict("n1", (ME, TWIN))]
    assert told.become(replace(one(TWIN), version="2")) == []
    assert told.become(one(TWIN, state=SUSPECT)) == []
    assert told.become(one(THIRD)) == [NameConflict("n1", (ME, TWIN, THIRD))]
    assert told.become(one(TWIN, state=DEAD)) == [NameConflict("n1", (ME, THIRD))]
    [over] = told.become(one(THIRD, state=LEFT))
    assert over == NameConflict("n1", (ME,))
    assert isinstance(over, NameConflict)
    assert over.over
    assert told.forget(TWIN) == []


def test_a_name_of_a_dead_member_is_free() -> None:
    told = Told()
    told.become(one(TWIN, "n2"))
    told.become(one(TWIN, "n2", DEAD))
    assert told.become(one(THIRD, "n2")) == []
    assert told.become(one(TWIN, "n2")) == [NameConflict("n2", (TWIN, THIRD))]


def test_who_is_evicted_or_renamed_gives_its_name_back() -> None:
    told = Told()
    told.become(one(TWIN))
    assert told.forget(TWIN) == [NameConflict("n1", (ME,))]
    told.become(one(THIRD))
    assert told.become(one(THIRD, "n3")) == [NameConflict("n1", (ME,))]
    assert told.become(one(ME, "n3")) == [NameConflict("n3", (ME, THIRD))]


def test_whom_a_name_means() -> None:
    dead, left = one(TWIN, state=DEAD), one(THIRD, state=LEFT)
    assert called([one(ME), dead, left], "n1") == [one(ME)]
    assert called([dead, left], "n1") == [dead]
    assert called([left], "n1") == []
    assert called([one(ME), one(TWIN, state=SUSPECT)], "n1") == [one(ME), one(TWIN, state=SUSPECT)]


def test_only_the_living_share_a_name() -> None:
    assert shared_names([one(ME), one(TWIN, state=DEAD), one(THIRD, "n3")]) == {}
    assert shared_names([one(THIRD), one(ME), one(TWIN, "n2")]) == {"n1": [ME, THIRD]}
