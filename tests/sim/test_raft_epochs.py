"""Changes of voters in the simulated world: each crash point, and the cases that are feared most.

Nothing goes wrong in these worlds but what a test says: packets take half a millisecond and
none is lost. Callers are at work all the time, and the watch looks at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from swarmd.base.ids import NodeId
from swarmd.sim.network import LinkFaults
from swarmd.sim.raft import RaftWorld
from swarmd.sim.raft_node import CRASH_POINTS, Node
from swarmd.sim.raft_rules import SealRule
from swarmd.state.raft import epoch_messages as emsg
from swarmd.state.raft import messages as m


def quiet(
    voters: int = 3, spares: int = 2, removed: Sequence[str] = (), seed: int = 1
) -> RaftWorld:
    """A world in which nothing goes wrong by chance, with callers at work."""
    world = RaftWorld(seed, voters=voters, spares=spares, removed_guards=removed)
    world.network.faults = LinkFaults(delay_min_s=0.0004, delay_max_s=0.0006)
    world.point_chance = 0.0
    for caller in world.callers:
        caller.start()
    world.world.run_for(2.0)
    return world


def until(world: RaftWorld, what: Callable[[], object], within_s: float = 20.0) -> None:
    """Let time pass, a little at a time, until something is so."""
    end = world.world.now + within_s
    while not what():
        assert world.world.now < end, f"it never came about; {world.world.violations}"
        world.world.run_for(0.0005)


def leader(world: RaftWorld) -> Node:
    until(world, lambda: any(node.serving for node in world.nodes.values()))
    return next(node for node in world.nodes.values() if node.serving)


def ids(world: RaftWorld, *names: str) -> tuple[NodeId, ...]:
    return tuple(sorted(world.ids_of[name] for name in names))


def change(world: RaftWorld, *names: str) -> None:
    """Seat these; returns once somebody knows the certificate."""
    number = world.epochs.newest
    leader(world).change_voters(ids(world, *names))
    until(world, lambda: world.epochs.newest > number)


def settled(world: RaftWorld) -> None:
    """Let the world come to rest; it must have kept every promise."""
    world.settle()
    assert not world.world.violations, world.world.violations[:5]


def others(world: RaftWorld, *names: str) -> list[str]:
    return [name for name in world.names if name not in names]


# ---- every step interrupted ----------------------------------------------------------------


@pytest.mark.parametrize("everybody", [False, True], ids=["one", "everybody"])
@pytest.mark.parametrize("point", [p for p in CRASH_POINTS if not p.startswith("renew")])
def test_a_crash_at_each_point_of_a_change(point: str, everybody: bool) -> None:
    """Goal: whoever ends, at whatever step, the change comes about and nothing is lost.

    Method: one of three voters is replaced. The first node that comes to the point ends
    there, or each of them does the first time that it comes there.
    """
    world = quiet()
    fetches = point.partition(".")[0] in ("fetch", "piece", "install")
    world.copy_chance = 0.0 if fetches else 1.0
    first = leader(world)
    for node in world.nodes.values():
        node.crash_at(point)
    happened = f"seal crash {point}"
    spare = others(world, first.name)[1]
    wanted = {first.name, "v3", spare if spare in ("v1", "v2") else "v2"}
    for _ in range(60):  # Copying before the seal takes up to a second.
        if world.epochs.newest > 2:
            break
        serving = [node for node in world.nodes.values() if node.serving]
        for node in serving[:1]:
            node.change_voters(ids(world, *wanted))
        world.world.run_for(0.05 if not world.world.counts[happened] else 1.0)
        if world.world.counts[happened] and not everybody:
            for node in world.nodes.values():
                node.crash_at(None)
    until(world, lambda: world.world.counts[happened], within_s=15.0)
    world.world.run_for(5.0)
    for node in world.nodes.values():
        node.crash_at(None)
    assert world.epochs.newest >= 3
    settled(world)
    assert {node.name for node in world.epochs.seated()} == wanted


# ---- who sleeps ----------------------------------------------------------------------------


def test_a_leader_paused_between_committing_the_seal_and_answering() -> None:
    """The others finish the change without it; it wakes in an epoch that is over."""
    world = quiet()
    first = leader(world)
    kept = others(world, first.name)[:2]
    first.change_voters(ids(world, *kept, "v3"))
    until(world, lambda: first.room is not None and first.room.state.sealed is not None)
    first.paused_until = world.world.now + 6.0
    until(world, lambda: world.epochs.newest == 3)
    written = world.world.counts["acknowledged_write"]
    world.world.run_for(3.0)
    assert world.world.counts["acknowledged_write"] > written + 20
    assert first.paused_until > world.world.now
    world.world.run_for(6.0)
    assert first.room is None
    settled(world)


def test_a_node_three_epochs_behind_finds_the_voters_of_today() -> None:
    """Every voter that the sleeper knew is gone; the chain of certificates leads to the others."""
    world = quiet(spares=4)
    world.network.cut(["v6"], others(world, "v6"))
    change(world, "v1", "v2", "v3")
    world.world.run_for(2.0)
    change(world, "v2", "v3", "v4")
    world.world.run_for(2.0)
    change(world, "v3", "v4", "v5")
    world.world.run_for(2.0)
    sleeper = world.nodes["v6"]
    assert sleeper.chain.head.number == 2
    world.network.heal()
    until(world, lambda: sleeper.chain.head.number == 5, within_s=12.0)
    assert sleeper._redirect().leader.decode() in ("v3", "v4", "v5")
    settled(world)


def test_an_old_voter_healed_after_its_peers_dropped_their_state() -> None:
    """v2 keeps its seat through two changes that it sleeps through, and its log is gone."""
    world = quiet(spares=3)
    until(world, lambda: world.nodes["v2"].room is not None)
    world.network.cut(["v2"], others(world, "v2"))
    until(world, lambda: not world.nodes["v2"].serving)  # It may have led.
    change(world, "v1", "v2", "v3")
    world.world.run_for(3.0)
    change(world, "v2", "v3", "v4")
    world.world.run_for(10.0)
    for name in others(world, "v2"):
        left = [n for n in world.nodes[name].disk.names() if n.startswith(("raft.e2", "raft.e3"))]
        assert not left, (name, left)
    world.network.heal()
    sleeper = world.nodes["v2"]
    until(world, lambda: sleeper.room is not None and sleeper.room.number == 4, within_s=12.0)
    settled(world)
    assert not [n for n in sleeper.disk.names() if n.startswith("raft.e2.")]


def test_a_voter_that_lost_its_seat_while_it_slept_takes_no_part() -> None:
    world = quiet()
    gone = others(world, leader(world).name)[0]
    kept = [name for name in ("v0", "v1", "v2") if name != gone]
    world.nodes[gone].crash(power=True)
    change(world, *kept, "v4")
    world.world.run_for(1.0)
    world.start(gone)
    world.world.run_for(8.0)
    assert world.nodes[gone].room is None
    assert not [n for n in world.nodes[gone].disk.names() if ".log." in n]
    settled(world)


# ---- two who believe ------------------------------------------------------------------------


def _torn(removed: Sequence[str] = ()) -> RaftWorld:
    """The old epoch's leader and a second old voter go on, sealed, without the certificate.

    v0 alone puts the certificate together, and the next epoch begins with v0, v3 and v4.
    """
    world = quiet(removed=removed)
    if leader(world).name == "v0":
        _depose(world)
    old = [world.nodes["v1"], world.nodes["v2"]]
    for node in old:
        _deafen(node)
    first = next(node for node in old if node.serving)
    op = m.Seal(3, tuple(m.Voter(n.key.public, n.storage) for n in _nodes(world, "v0", "v3", "v4")))
    first.propose((m.Group(b"", 0, 0, (op,)),), lambda _: None)
    until(world, lambda: world.epochs.newest == 3)
    world.network.cut(["v1", "v2", "c0", "c1"], ["v0", "v3", "v4", "c2", "c3", "c4", "c5"])
    return world


def _nodes(world: RaftWorld, *names: str) -> list[Node]:
    return [world.nodes[name] for name in names]


def _depose(world: RaftWorld) -> None:
    """Have another than v0 lead."""
    world.network.cut(["v0"], others(world, "v0"))
    until(world, lambda: any(world.nodes[n].serving for n in ("v1", "v2")))
    world.network.heal()
    until(world, lambda: not world.nodes["v0"].leads)
    world.world.run_for(0.5)


def _deafen(node: Node) -> None:
    """What others say about epochs does not reach this node."""
    receive = node.receive

    def heard(source: str, message: tuple[Any, ...]) -> None:
        if message[0] not in ("epoch", "told"):
            receive(source, message)

    node.receive = heard  # type: ignore[method-assign]


def test_both_leaders_take_reads() -> None:
    """Goal: the leader of an epoch that was sealed answers no read, though its round succeeds.

    Method: two of three old voters do not learn of the certificate; the new epoch writes on.
    """
    world = _torn()
    reads = world.world.counts["acknowledged_read"]
    until(world, lambda: any(n.serving for n in world.nodes.values()))
    world.world.run_for(30.0)
    old = [node for node in _nodes(world, "v1", "v2") if node.leads]
    assert old
    assert not old[0].serving
    assert world.world.counts["acknowledged_read"] > reads + 10
    assert not world.world.violations
    for node in _nodes(world, "v1", "v2"):
        del node.receive  # type: ignore[attr-defined]
    settled(world)


def test_both_leaders_would_answer_without_the_rule() -> None:
    world = _torn([SealRule.READ_TESTS_SEAL])
    world.world.run_for(30.0)
    assert any("answered a read at" in text for text in world.world.violations)


def _two_seals(removed: Sequence[str] = ()) -> RaftWorld:
    """Two seals in one log, for different voters, right behind each other."""
    world = quiet(removed=removed)
    first = leader(world)
    seats = {n.name: m.Voter(n.key.public, n.storage) for n in world.nodes.values()}
    for names in (("v0", "v1", "v3"), ("v1", "v2", "v4")):
        op = m.Seal(3, tuple(seats[name] for name in names))
        first.propose((m.Group(b"", 0, 0, (op,)),), lambda _: None)
    return world


def test_two_seals_in_one_log_and_the_first_counts() -> None:
    world = _two_seals()
    until(world, lambda: world.epochs.newest == 3)
    world.world.run_for(3.0)
    assert {node.name for node in world.epochs.seated()} == {"v0", "v1", "v3"}
    settled(world)


def test_the_last_seal_would_count_without_the_rule() -> None:
    world = _two_seals([SealRule.FIRST_COUNTS])
    world.world.run_for(5.0)
    assert world.world.violations


def test_two_coordinators_propose_seals() -> None:
    """A deposed leader's seal is in its log alone; its successor's is the one that counts."""
    world = quiet()
    first = leader(world)
    rest = [name for name in ("v0", "v1", "v2") if name != first.name]
    world.network.cut([first.name], others(world, first.name))
    seats = [m.Voter(n.key.public, n.storage) for n in _nodes(world, first.name, rest[0], "v3")]
    assert first.serving
    first.propose((m.Group(b"", 0, 0, (m.Seal(3, tuple(seats)),)),), lambda _: None)
    until(world, lambda: any(world.nodes[name].serving for name in rest))
    second = next(world.nodes[name] for name in rest if world.nodes[name].serving)
    second.change_voters(ids(world, *rest, "v4"))
    until(world, lambda: world.epochs.newest == 3)
    world.network.heal()
    world.world.run_for(5.0)
    assert {node.name for node in world.epochs.seated()} == {*rest, "v4"}
    settled(world)


# ---- disks -----------------------------------------------------------------------------------


def test_a_voter_that_lost_its_disk_votes_again_only_by_a_seal() -> None:
    world = quiet()
    gone = world.nodes[others(world, leader(world).name)[0]]
    gone.crash(power=True)
    gone.disk.lose()
    world.start(gone.name)
    world.world.run_for(6.0)
    assert gone.up
    assert gone.room is None
    change(world, "v0", "v1", "v2")
    until(world, lambda: gone.room is not None)
    settled(world)


def test_a_lost_disk_would_break_promises_without_the_rule() -> None:
    """Method: the only follower that took a write forgets everything, and votes.

    Its peers would see through it besides, for an empty disk remembers no life that they noted.
    """
    world = quiet(removed=[SealRule.NEW_DISK_NEW_VOTER, SealRule.COPY_OF_DISK_IS_ANOTHER])
    first = leader(world)
    near, far = (world.nodes[n] for n in ("v0", "v1", "v2") if n != first.name)
    world.network.cut([far.name], others(world, far.name))
    world.world.run_for(2.0)
    first.crash(power=True)
    near.crash(power=True)
    near.disk.lose()
    world.network.heal()
    # It comes back knowing what everybody is told, and not what it promised.
    near.name_disk()
    near.found(far.chain.certificates_from(1)[0], far.files.state(2))
    world.start(near.name)
    world.world.run_for(5.0)
    assert world.world.violations


def _put_back_an_old_copy(
    removed: Sequence[str] = (), point: str | None = None
) -> tuple[RaftWorld, Node]:
    """A voter is started on a copy of its disk that was taken before it last was started."""
    world = quiet(removed=removed)
    node = world.nodes[others(world, leader(world).name)[0]]
    node.crash(power=True)
    image = node.disk.copy()
    world.start(node.name)
    until(world, lambda: node.room is not None)
    world.world.run_for(2.0)
    node.crash(power=True)
    node.disk.put_back(image)
    node.copied.add(node.storage)
    node.crash_at(point)
    world.start(node.name)
    world.world.run_for(3.0)
    return world, node


def test_a_restored_disk_has_no_vote_until_it_is_seated_anew() -> None:
    world, node = _put_back_an_old_copy()
    assert node.up
    assert node.room is None
    assert world.world.counts["restored_disk_seen"] > 0
    change(world, "v0", "v1", "v2")
    until(world, lambda: node.room is not None)
    settled(world)


@pytest.mark.parametrize("point", ["renew.before", "renew.after"])
def test_a_restored_disk_that_is_told_and_started_again_is_still_no_voter(point: str) -> None:
    """Goal: it reaches the number of the life that others saw, and is not taken for a later one."""
    world, node = _put_back_an_old_copy(point=point)
    assert world.world.counts[f"seal crash {point}"] == 1
    for _ in range(3):
        node.crash(power=False)
        world.start(node.name)
        world.world.run_for(1.0)
    assert node.up
    assert node.room is None
    settled(world)


def test_a_restored_disk_is_seen_through_though_who_knows_is_the_last_to_answer() -> None:
    """Method: one voter is away in the life that the copy forgot, and is the first to answer."""
    world = quiet()
    node = world.nodes[others(world, leader(world).name)[0]]
    away, knows = (world.nodes[n] for n in ("v0", "v1", "v2") if n != node.name)
    node.crash(power=True)
    image = node.disk.copy()
    away.crash(power=True)
    world.start(node.name)
    until(world, lambda: knows.knows_later(node, image))
    node.crash(power=True)
    world.start(away.name)
    until(world, lambda: away.room is not None)
    assert not away.knows_later(node, image)
    node.disk.put_back(image)
    node.copied.add(node.storage)
    knows.paused_until = world.world.now + 0.2
    world.start(node.name)
    world.world.run_for(3.0)
    assert node.up
    assert node.room is None
    assert world.world.counts["restored_disk_seen"] > 0
    settled(world)


def test_a_restored_disk_would_vote_without_the_rule() -> None:
    world, _ = _put_back_an_old_copy([SealRule.COPY_OF_DISK_IS_ANOTHER])
    assert any("forgotten its votes" in text for text in world.world.violations)


def test_a_wrong_state_is_fetched_from_elsewhere() -> None:
    world = quiet()
    _spoil_pieces(world)
    change(world, "v1", "v2", "v3")
    until(world, lambda: world.nodes["v3"].room is not None)
    assert world.world.counts["dropped wrong_digest"] > 0
    settled(world)


def test_a_wrong_state_would_be_taken_without_the_rule() -> None:
    world = quiet(removed=[SealRule.STATE_PROVES_ITSELF])
    _spoil_pieces(world)
    change(world, "v1", "v2", "v3")
    world.world.run_for(5.0)
    assert world.world.violations


def _spoil_pieces(world: RaftWorld) -> None:
    """The first old voter in order of ids, which is asked first, gives out another state."""
    world.copy_chance = 0.0
    node = min(_nodes(world, "v0", "v1", "v2"), key=lambda n: n.node_id)
    piece = node._piece

    def spoilt(number: int, offset: int) -> emsg.StatePiece | None:
        found = piece(number, offset)
        if found is None:
            return None
        return emsg.StatePiece(found.total, found.data.replace(b"c1.", b"c9."))

    node._piece = spoilt  # type: ignore[method-assign]


# ---- what was signed is there -----------------------------------------------------------------


def _all_lose_power_in_the_new_epoch(removed: Sequence[str] = ()) -> RaftWorld:
    """Three others take all seats; once the old voters have deleted theirs, the power goes."""
    world = quiet(spares=3, removed=removed)
    change(world, "v3", "v4", "v5")
    new = _nodes(world, "v3", "v4", "v5")
    until(world, lambda: all(node.room is not None for node in new))
    until(world, lambda: not world.nodes["v0"].machine._leftovers(), within_s=30.0)
    world.trouble.total_power_loss(0.2)
    world.settle()
    return world


def test_all_new_voters_lose_power_when_the_old_state_is_gone() -> None:
    assert not _all_lose_power_in_the_new_epoch().world.violations


def test_new_voters_would_forget_without_the_rule() -> None:
    assert _all_lose_power_in_the_new_epoch([SealRule.STATE_BEFORE_VOTE]).world.violations


def _all_lose_power_at_the_certificate(removed: Sequence[str] = ()) -> RaftWorld:
    """The power goes everywhere when all know the certificate and nobody fetched the state."""
    world = quiet(removed=removed)
    change(world, "v0", "v1", "v2")  # The same voters: all of them keep the state themselves.
    until(world, lambda: all(node.head == 3 for node in _nodes(world, "v0", "v1", "v2")))
    world.world.run_for(0.1)
    world.trouble.total_power_loss(0.2)
    world.settle()
    return world


def test_all_lose_power_when_the_certificate_is_known() -> None:
    assert not _all_lose_power_at_the_certificate().world.violations


def test_signed_states_would_be_gone_without_the_rule() -> None:
    world = _all_lose_power_at_the_certificate([SealRule.STATE_BEFORE_SIGNATURE])
    assert world.world.violations


def _leader_lost_after_the_seal(removed: Sequence[str] = ()) -> tuple[RaftWorld, list[str]]:
    """The leader and one voter applied the seal; the leader is gone, the third never heard."""
    world = quiet(removed=removed)
    first = leader(world)
    near, far = (world.nodes[name] for name in ("v0", "v1", "v2") if name != first.name)
    world.network.cut([far.name], others(world, far.name))
    world.world.run_for(1.0)
    _deafen(near)
    seats = [m.Voter(n.key.public, n.storage) for n in (near, far, world.nodes["v3"])]
    first.propose((m.Group(b"", 0, 0, (m.Seal(3, tuple(seats)),)),), lambda _: None)
    until(world, lambda: first.room is not None and first.room.state.sealed is not None)
    world.world.run_for(0.05)
    first.crash(power=False)
    del near.receive  # type: ignore[attr-defined]
    assert near.head == 2
    world.network.heal()
    world.world.run_for(12.0)
    return world, [near.name, far.name, "v3"]


def test_a_leader_lost_right_after_the_seal_loses_nothing() -> None:
    """Goal: the voter that lags learns of the seal from one that has applied it, and signs."""
    world, wanted = _leader_lost_after_the_seal()
    assert world.epochs.newest == 3
    assert {node.name for node in world.epochs.seated()} == set(wanted)
    assert any(node.serving for node in world.nodes.values())
    settled(world)


def test_a_change_would_stand_still_without_the_rule() -> None:
    world, _ = _leader_lost_after_the_seal([SealRule.ORDINARY_UNTIL_CERTIFIED])
    assert world.epochs.newest == 2
    assert not any(node.serving for node in world.nodes.values())
