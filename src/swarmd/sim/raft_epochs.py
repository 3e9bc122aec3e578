"""What the chain of epochs promised, and whom a simulated administrator would seat.

Checked whenever it happens:
- every node that learns of an epoch learns of the same one: one successor each;
- an epoch begins only on a disk that has a seat there, with a state that knows who votes there,
  and never again once it has ended there: who told others of its successor never votes in it
  again;
- a node deletes what is left of old epochs only after a majority of the newest epoch's
  voters held its first state durably.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Final

from swarmd.base.ids import NodeId
from swarmd.base.rng import Rng
from swarmd.identity.epochs import Chain, Epoch, first_epoch, statement_of
from swarmd.identity.genesis import Genesis, make_genesis
from swarmd.identity.keys import SigningKey
from swarmd.sim.raft_node import Node
from swarmd.sim.world import World
from swarmd.state.raft import messages as m
from swarmd.state.raft.epoch import Ballot
from swarmd.state.raft.statefile import encode_state, state_digest
from swarmd.state.raft.statemachine import StateMachine

_FILLING: Final = b"." * 60
_SIZES: Final = (1, 3, 5, 7)


@cache
def node_key(number: int) -> SigningKey:
    return SigningKey.from_seed(bytes([number + 10]) * 32)


@cache
def _founder() -> SigningKey:
    return SigningKey.from_seed(b"f" * 32)


@cache
def recovery_key() -> SigningKey:
    """The key that the genesis names for the day when a majority is lost."""
    return SigningKey.from_seed(b"r" * 32)


@cache
def the_genesis() -> Genesis:
    """The genesis of every simulated swarm; its founder is on none of the hosts any more."""
    return make_genesis(
        "sim",
        nonce=b"n" * 16,
        node_key=_founder(),
        node_name="founder",
        admin_public=SigningKey.from_seed(b"a" * 32).public,
        recovery_public=recovery_key().public,
    )


def second_epoch(
    seats: Iterable[m.Voter], fill: Iterable[bytes] = ()
) -> tuple[bytes, bytes, StateMachine]:
    """The founder's certificate for these voters, and the state that they begin with.

    `fill`: keys that it holds already, so that it is too large for one slice of a snapshot.
    """
    genesis = the_genesis()
    state = StateMachine(genesis)
    puts = tuple(m.Group(b"", 0, 0, (m.Put(key, _FILLING),)) for key in fill)
    state.apply(m.encode_batch(m.Batch(0, puts)), 1, 1)
    group = m.Group(b"", 0, 0, (m.Seal(2, tuple(seats)),))
    state.apply(m.encode_batch(m.Batch(0, (group,))), 2, 1)
    assert state.sealed is not None
    body = encode_state(state.sealed_snapshot())
    first = first_epoch(genesis)
    statement = statement_of(first, 2, 2, state_digest(body), state.sealed.voters)
    certificate = Ballot(genesis.swarm_id, first, statement, _founder()).certificate()
    assert certificate is not None
    return certificate, body, state


class EpochWatch:
    """One world's chain of epochs."""

    def __init__(self, world: World, nodes: Mapping[str, Node]) -> None:
        self.newest = 2
        self._proposed: dict[int, set[tuple[m.Voter, ...]]] = {}  # Never walked in order.
        self._world = world
        self._nodes = nodes
        self._epochs: dict[int, Epoch] = {}
        self._installed: dict[int, set[m.Voter]] = {}
        self._stopped: set[tuple[int, m.Voter]] = set()

    def founded(self, seats: Iterable[m.Voter], certificate: bytes) -> None:
        self._installed[2] = set(seats)
        chain = Chain(the_genesis())
        chain.extend(certificate)
        self._epochs[2] = chain.head

    # ---- what happens ----------------------------------------------------------------------

    def certified(self, host: str, epoch: Epoch) -> None:
        """A node knows of an epoch."""
        known = self._epochs.setdefault(epoch.number, epoch)
        if known.key != epoch.key:
            self._world.violate(f"{host} learnt of another epoch {epoch.number} than others did")
        if epoch.number > self.newest:
            self.newest = epoch.number
            self._world.count("epoch")

    def may_propose(self, number: int, seats: tuple[m.Voter, ...]) -> bool:
        """Is a majority of these seats, enlisted a moment ago, still there? It is kept then."""
        if sum(map(self._is_whole, seats)) <= len(seats) // 2:
            return False
        self._proposed.setdefault(number, set()).add(seats)
        return True

    def installed(self, number: int, seat: m.Voter) -> None:
        """The first state of an epoch is durable on one of its seats."""
        self._installed.setdefault(number, set()).add(seat)

    def stopped(self, number: int, seat: m.Voter) -> None:
        """A voter knows that an epoch has ended, and has said so."""
        self._stopped.add((number, seat))

    def dropping(self, host: str, head: Epoch) -> None:
        held = self._installed.get(head.number, set())
        if sum(seat in held for seat in head.voters) < head.majority:
            self._world.violate(f"{host} deletes old epochs before a majority can do without")

    def started(self, node: Node, epoch: Epoch) -> None:
        """The log of an epoch begins on a disk, or goes on there."""
        seat = m.Voter(node.key.public, node.storage)
        if epoch.seat_of(node.node_id) != seat:
            self._world.violate(f"{node.name} begins epoch {epoch.number} without a seat there")
        if node.room is not None and node.room.state.voters != epoch.node_ids:
            self._world.violate(f"{node.name} begins epoch {epoch.number} as one of other voters")
        if node.flipped is not None and node.flipped.startswith(f"raft.e{epoch.number}.log."):
            self._world.violate(f"{node.name} started on a damaged {node.flipped}")

    def admitted(self, node: Node) -> None:
        """The log that runs on a node takes part from now on."""
        assert node.room is not None
        number, seat = node.room.number, m.Voter(node.key.public, node.storage)
        if (number, seat) in self._stopped:
            self._world.violate(f"{node.name} votes in epoch {number}, which it knew to have ended")
        if seat.storage in node.copied:
            self._world.violate(f"{node.name} votes on a disk that has forgotten its votes")

    def would_be_seen(self, node: Node, image: Mapping[str, bytes]) -> bool:
        """Has whoever may answer first noted a later life of this disk than the copy knows?

        A voter takes part when a majority, itself included, tells nothing against it. So there
        must be fewer than that, itself aside, who would not tell; and all must be there now.
        """
        head = self._epochs[self.newest]
        others = [self._of(seat) for seat in head.voters if seat.public != node.key.public]
        same = all(image.get(n) == node.disk.read(n) for n in ("raft.storage", "raft.chain"))
        if len(others) == len(head.voters) or not same or node.head != head.number:
            return False  # It would ask the voters of another epoch, or under another name.
        there = all(o.up and o.paused_until <= self._world.now for o in others)
        silent = sum(not o.knows_later(node, image) for o in others)
        return there and silent < head.majority - 1

    # ---- whom to seat ------------------------------------------------------------------------

    def other_voters(self, node: Node, rng: Rng) -> tuple[NodeId, ...]:
        """Other voters than now: first what is lost is mended, then anything goes."""
        head = node.chain.head
        seated = list(head.node_ids)
        spare = [n.node_id for n in self._nodes.values() if n.up and n.node_id not in seated]
        if self._lost(head):
            return head.node_ids  # Its node enlists under the storage that it has now.
        size = len(seated)
        wanted = rng.choice([s for s in _SIZES if abs(s - size) <= 2 and s <= size + len(spare)])
        if wanted > size:
            seated += rng.sample(spare, wanted - size)
        elif wanted < size:
            seated = rng.sample(seated, wanted)
        elif spare:
            seated.remove(rng.choice(seated))
            seated.append(rng.choice(spare))
        return tuple(sorted(seated))

    def _lost(self, epoch: Epoch) -> list[m.Voter]:
        """Seats of an epoch whose disk is gone, or damaged."""
        return [seat for seat in epoch.voters if not self._is_whole(seat)]

    def _is_whole(self, seat: m.Voter) -> bool:
        node = self._of(seat)
        damaged = node.lost is not None or node.flipped is not None
        return not damaged and node.storage == seat.storage and seat.storage not in node.copied

    def _of(self, seat: m.Voter) -> Node:
        return next(node for node in self._nodes.values() if node.key.public == seat.public)

    def wants_mending(self) -> bool:
        return bool(self._lost(self._epochs[self.newest]))

    def seated(self) -> list[Node]:
        """The nodes of the newest epoch whose seats are whole."""
        seats = self._epochs[self.newest].voters
        return [self._of(seat) for seat in seats if self._is_whole(seat)]

    def may_lose(self, name: str) -> bool:
        """Would a majority of every epoch that matters survive the loss of this disk?

        The newest one matters, and the one before until a majority of the newest holds its
        state; a later one may be sealed already, by any seal that was proposed.
        """
        known = (self._epochs.get(number) for number in (self.newest, self.newest - 1))
        matter = [epoch.voters for epoch in known if epoch is not None]
        matter += self._proposed.get(self.newest + 1, ())
        for seats in matter:
            whole = [s for s in seats if self._is_whole(s) and self._of(s).name != name]
            if len(whole) <= len(seats) // 2:
                return False
        return True
