"""The bus's machines of a few nodes, between links that break and processes that start anew.

Links are as streams are: what is on its way arrives in order, and is lost when the link breaks.
Members are told `dead` and `alive` of each other late, and not always rightly. Subscribers stall,
come and go. Held against what the bus promises:
- a subscriber gets what one sender published in order, each message once;
- a message whose outcome names no doubt reached exactly as many inboxes as it says, and every
  subscriber that was known for long before, unless that one is named as slow;
- every message has an outcome;
- no inbox holds more than it may, and when all is calm again nothing is left anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from swarmd.base.ids import NodeId, node_id_of
from swarmd.base.machine import Effect, Event, Send, SetTimer
from swarmd.base.rng import Rng
from swarmd.mesh.bus import events as e
from swarmd.mesh.bus.interests import GRACE_S
from swarmd.mesh.bus.machine import BusMachine
from swarmd.mesh.bus.messages import BUS
from swarmd.sim.world import World

NODES: Final = 4
CHAOS_S: Final = 60.0
CALM_S: Final = 60.0
_INBOX: Final = 8
_WINDOW: Final = 16
_TOPICS: Final = ("a", "b", "c/1", "c/2", "*")
_FILTERS: Final = (("a",), ("b", "a"), ("c/*",), ("*",))
FAULTS: Final = ("link_broken", "restart", "dead", "wrongly_dead", "stall")
# Each must have happened, or the seeds prove nothing about it.
OTHERS: Final = ("unknown", "slow", "settled", "held_to_its_reach")
EXPECTED: Final = (*FAULTS, *OTHERS)
# A seed that notices the absence of a guard. Links in order never need `one_session`: see its test.
BY_SEED: Final[Mapping[str, int]] = {"take_once": 0, "take_in_order": 0, "wait_for_room": 0}


@dataclass(eq=False)
class _Reader:
    """A subscriber, and what it got: (sender, its number) of each."""

    number: int
    name: str
    node: _Node
    filters: tuple[str, ...]
    since: float
    known_at: float | None = None
    ended: bool = False
    stalled_until: float = 0.0
    inbox: list[e.Arrival] = field(default_factory=list)
    got: dict[str, int] = field(default_factory=dict)
    tokens: set[int] = field(default_factory=set)


@dataclass(eq=False)
class _Message:
    """One that was published. `owed` are readers that must have it if nothing is in doubt."""

    token: int
    node: _Node
    owed: list[_Reader]
    delivered: int = 0


@dataclass(eq=False)
class _Node:
    """One process of a node; a restart makes another."""

    name: NodeId
    machine: BusMachine
    started: float
    alive: bool = True
    readers: dict[int, _Reader] = field(default_factory=dict)
    open: dict[int, int] = field(default_factory=dict)  # token -> lane
    counts: list[int] = field(default_factory=lambda: [0, 0, 0])
    # When news of a peer last came, by peer.
    news: dict[NodeId, float] = field(default_factory=dict)
    believed_up: set[NodeId] = field(default_factory=set)


class BusWorld:
    def __init__(self, seed: int, removed_guards: frozenset[str] = frozenset()) -> None:
        self.world = World(seed)
        self.rng: Rng = self.world.rng_for("bus")
        self._removed = removed_guards
        self._names = [node_id_of(bytes([i]) * 32) for i in range(NODES)]
        self.nodes: dict[NodeId, _Node] = {}
        self._link: Counter[tuple[NodeId, NodeId]] = Counter()
        self._down: dict[tuple[NodeId, NodeId], float] = {}
        self._last: dict[tuple[NodeId, NodeId], float] = {}
        self._messages: dict[int, _Message] = {}
        self._tokens = 0
        self._lives = 0
        self._readers = 0
        for name in self._names:
            self.start(name)

    # ---- nodes and links -----------------------------------------------------------------

    def start(self, name: NodeId) -> None:
        self._lives += 1
        life = self._lives * 1_000 + self.rng.randrange(1_000)
        machine = BusMachine(name, life, removed_guards=self._removed)
        self.nodes[name] = node = _Node(name, machine, self.world.now)
        for other in self._names:
            if other != name:
                self.world.after(self.rng.uniform(0, 0.3), self._tell, node, other, True)
                self._break(name, other, 0.05)
        for _ in range(2):
            self.subscribe(node)

    def restart(self, name: NodeId) -> None:
        """The process ends as by SIGKILL, and another one takes its place."""
        self.world.count("restart")
        old = self.nodes[name]
        old.alive = False
        for reader in old.readers.values():
            reader.ended = True
        for token in old.open:
            self._messages.pop(token, None)
        self.start(name)
        for other in self._names:
            if other != name:
                delay = self.rng.uniform(0, 1.0)
                self.world.after(delay, self._tell, self.nodes[other], name, True)

    def _tell(self, node: _Node, peer: NodeId, up: bool) -> None:
        """Membership has news of a peer for a node."""
        if not node.alive:
            return
        node.news[peer] = self.world.now
        (node.believed_up.add if up else node.believed_up.discard)(peer)
        self.feed(node, e.PeerUp(peer) if up else e.PeerGone(peer))

    def _break(self, a: NodeId, b: NodeId, for_s: float) -> None:
        """What is on its way between two nodes is lost, and what is sent until it is up again."""
        for link in ((a, b), (b, a)):
            self._link[link] += 1
            self._down[link] = self.world.now + for_s

    def _send(self, source: _Node, target: NodeId, message: Any) -> None:
        link = source.name, target
        if self._down.get(link, 0.0) > self.world.now:
            self.world.count("not_sent")
            return
        arrives = max(self.world.now + self.rng.uniform(0.0002, 0.003), self._last.get(link, 0.0))
        self._last[link] = arrives
        raw = BUS.encode(message)
        delay = arrives - self.world.now
        self.world.after(delay, self._arrive, source, target, self._link[link], raw)

    def _arrive(self, source: _Node, target: NodeId, connection: int, raw: bytes) -> None:
        if self._link[source.name, target] != connection:
            self.world.count("lost")
            return
        self.feed(self.nodes[target], e.Heard(source.name, BUS.decode(raw)))

    # ---- the machine's shell ---------------------------------------------------------------

    def feed(self, node: _Node, event: Event) -> None:
        if not node.alive:
            return
        effects = [
            *node.machine.handle(event, self.world.now),
            *node.machine.settle(self.world.now),
        ]
        for effect in effects:
            self._perform(node, effect)

    def _perform(self, node: _Node, effect: Effect) -> None:
        if isinstance(effect, Send):
            self._send(node, effect.peer, effect.message)
        elif isinstance(effect, SetTimer):
            self.world.after(effect.delay_s, self.feed, node, effect.event)
        elif isinstance(effect, e.Deliver):
            self._deliver(node, effect)
        elif isinstance(effect, e.Outcome):
            self._settled(node, effect)
        elif isinstance(effect, e.Spread):
            reader = node.readers.get(effect.number)
            if reader is not None and self.world.now < reader.since + 0.9 * GRACE_S:
                reader.known_at = self.world.now

    # ---- subscribers -------------------------------------------------------------------------

    def subscribe(self, node: _Node) -> None:
        self._readers += 1
        number, filters = self._readers, self.rng.choice(_FILTERS)
        reader = _Reader(number, f"r{number}", node, filters, self.world.now)
        node.readers[number] = reader
        self.feed(node, e.Subscribe(number, reader.name, filters, _INBOX))
        self.world.after(self.rng.uniform(0, 0.1), self._take, reader)

    def unsubscribe(self, reader: _Reader) -> None:
        reader.ended = True
        reader.node.readers.pop(reader.number, None)
        self.feed(reader.node, e.Unsubscribe(reader.number))

    def _take(self, reader: _Reader) -> None:
        if reader.ended or not reader.node.alive:
            return
        if reader.inbox and self.world.now >= reader.stalled_until:
            count = self.rng.randrange(1, len(reader.inbox) + 1)
            taken, reader.inbox = reader.inbox[:count], reader.inbox[count:]
            size = sum(len(one.data) for one in taken)
            self.feed(reader.node, e.Taken(reader.number, count, size))
        self.world.after(self.rng.uniform(0.001, 0.05), self._take, reader)

    def _deliver(self, node: _Node, effect: e.Deliver) -> None:
        reader = node.readers[effect.number]
        reader.inbox.append(effect.arrival)
        if len(reader.inbox) > _INBOX:
            self.world.violate(f"the inbox of {reader.name} holds {len(reader.inbox)}")
        token, number = map(int, effect.arrival.data.split())
        sender = effect.arrival.sender
        if number <= reader.got.get(sender, 0):
            before = reader.got[sender]
            self.world.violate(f"{reader.name} got {number} of {sender} after {before}")
        reader.got[sender] = number
        reader.tokens.add(token)
        message = self._messages.get(token)
        if message is not None:
            message.delivered += 1
        self.world.note("deliver", reader.name, sender, number)

    # ---- publishing --------------------------------------------------------------------------

    def publish(self, node: _Node, lane: int) -> None:
        if sum(1 for one in node.open.values() if one == lane) >= _WINDOW:
            return
        self._tokens += 1
        token, topic = self._tokens, self.rng.choice(_TOPICS)
        node.counts[lane] += 1
        self._messages[token] = _Message(token, node, self._owed(node, topic))
        node.open[token] = lane
        data = b"%d %d" % (token, node.counts[lane])
        sender = f"{node.machine.life}/{lane}"
        patience_s = self.rng.choice((0.2, 1.0, 5.0))
        self.feed(node, e.Publish(token, lane, topic, sender, data, patience_s))

    def _owed(self, node: _Node, topic: str) -> list[_Reader]:
        """Readers that were known for so long that the node must know of them."""
        now = self.world.now
        if now - node.started < 2 * GRACE_S:
            return []
        return [
            reader
            for other in self.nodes.values()
            for reader in other.readers.values()
            if reader.known_at is not None
            and _asks(reader.filters, topic)
            and (other is node or self._knows(node, other, reader))
        ]

    def _knows(self, node: _Node, other: _Node, reader: _Reader) -> bool:
        """Two nodes hold each other alive, and did since before the reader was there."""
        since = max(node.news.get(other.name, 0.0), other.news.get(node.name, 0.0))
        both = other.name in node.believed_up and node.name in other.believed_up
        return both and since < reader.since

    def _settled(self, node: _Node, outcome: e.Outcome) -> None:
        if node.open.pop(outcome.token, None) is None:
            self.world.violate(f"message {outcome.token} has a second outcome")
        message = self._messages.pop(outcome.token)
        reach = outcome.reach
        self.world.count("settled")
        self.world.note("settled", outcome.token, reach)
        if reach.unknown:
            self.world.count("unknown")
            if message.delivered < reach.subscribers:
                self.world.violate(f"message {outcome.token} reached fewer than it says")
            return
        if reach.missed:
            self.world.count("slow")
        if message.delivered != reach.subscribers:
            text = f"is in {message.delivered} inboxes, and is said to be in {reach.subscribers}"
            self.world.violate(f"message {outcome.token} {text}")
        for reader in message.owed:
            slow = reader.name in reach.slow or reach.missed > len(reach.slow)
            if reader.ended or slow:
                continue
            self.world.count("held_to_its_reach")
            if outcome.token not in reader.tokens:
                self.world.violate(f"message {outcome.token} never came to {reader.name}")

    def check_calm(self) -> None:
        """When all is calm everything has an outcome, and nothing is kept."""
        for node in self.nodes.values():
            for token in node.open:
                self.world.violate(f"message {token} has no outcome")
            if not node.machine.is_empty:
                self.world.violate("something is kept of what was settled")


def _asks(filters: tuple[str, ...], topic: str) -> bool:
    return topic == "*" or any(
        one == topic or (one.endswith("*") and topic.startswith(one[:-1])) for one in filters
    )


# ---- a seed --------------------------------------------------------------------------------


def run_seed(seed: int, removed_guards: frozenset[str] = frozenset()) -> BusWorld:
    """A minute of trouble, then one of calm."""
    sim = BusWorld(seed, removed_guards)
    world, rng = sim.world, sim.rng
    end = world.now + CHAOS_S
    while world.now < end:
        world.run_for(rng.expovariate(40.0))
        _one_thing(sim)
    for node in sim.nodes.values():
        for peer in sim.nodes:
            if peer != node.name and peer not in node.believed_up:
                sim._tell(node, peer, True)
    world.run_for(CALM_S)
    sim.check_calm()
    return sim


def _one_thing(sim: BusWorld) -> None:
    rng, world = sim.rng, sim.world
    node = sim.nodes[rng.choice(list(sim.nodes))]
    dice = rng.random()
    if dice < 0.90:
        lane = rng.randrange(3)
        for _ in range(rng.choice((1, 1, 3, 8))):
            sim.publish(node, lane)
    elif dice < 0.94:
        _change_readers(sim, node)
    elif dice < 0.955 and node.readers:
        world.count("stall")
        reader = rng.choice(list(node.readers.values()))
        reader.stalled_until = world.now + rng.uniform(0.1, 8.0)
    elif dice < 0.99:
        world.count("link_broken")
        other = rng.choice([name for name in sim.nodes if name != node.name])
        sim._break(node.name, other, rng.uniform(0.0, 0.3))
    elif dice < 0.995:
        _part(sim, node)
    else:
        sim.restart(node.name)


def _change_readers(sim: BusWorld, node: _Node) -> None:
    if node.readers and sim.rng.random() < 0.5:
        sim.unsubscribe(sim.rng.choice(list(node.readers.values())))
    elif len(node.readers) < 5:
        sim.subscribe(node)


def _part(sim: BusWorld, node: _Node) -> None:
    """A node holds another one for dead for a while, rightly or not."""
    rng, world = sim.rng, sim.world
    other = rng.choice([name for name in sim.nodes if name != node.name])
    for_s = rng.uniform(0.5, 6.0)
    both = rng.random() < 0.6
    world.count("dead" if both else "wrongly_dead")
    if both:
        sim._break(node.name, other, for_s)
        sim._tell(sim.nodes[other], node.name, False)
        world.after(for_s + 0.1, _reunite, sim, other, node.name)
    sim._tell(node, other, False)
    world.after(for_s, _reunite, sim, node.name, other)


def _reunite(sim: BusWorld, name: NodeId, other: NodeId) -> None:
    sim._tell(sim.nodes[name], other, True)
