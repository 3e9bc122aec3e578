"""The simulated world of replicas: nodes, their disks and members, and who writes what to them.

What is held against them is in `crdt_watch.py`, what befalls them in `crdt_faults.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from swarmd.base.errors import NotFound
from swarmd.base.ids import NodeId, node_id_of
from swarmd.base.machine import Effect, Event, Persist, Send, SetTimer
from swarmd.base.rng import Rng
from swarmd.sim.disk import SimDisk
from swarmd.sim.network import LinkFaults, Network
from swarmd.sim.world import World
from swarmd.state.crdt.dots import Dot, actor_of
from swarmd.state.crdt.events import (
    Dropped,
    Heard,
    Ignored,
    KeyChanged,
    Leave,
    Peers,
    Stay,
    SyncDue,
    Wanted,
    Write,
    Written,
)
from swarmd.state.crdt.journal import ShardJournal
from swarmd.state.crdt.machine import ReplicaMachine
from swarmd.state.crdt.messages import CRDT, Batches, Seen, Shard, Taken, decode_batch, shard_of
from swarmd.state.crdt.placement import bucket_on, copies_of, holders
from swarmd.state.crdt.replica import SYNC_S
from swarmd.state.crdt.stored import encode_shard
from swarmd.state.crdt.types.kinds import Kind
from swarmd.state.crdt.types.values import (
    AddTo,
    Assign,
    Count,
    EditList,
    EditText,
    Operation,
    Remove,
    TakeFrom,
    read,
)
from swarmd.wire.codec import Message

BUCKET: Final = "b"
# Of two copies; its keys end like this.
PARTIAL: Final = bucket_on("p", 2)
_OF_PARTIAL: Final = "/p"
SETS: Final = ("set/a", "set/b", "set/c", "set/1/p", "set/2/p", "set/3/p", "set/4/p")
COUNTERS: Final = ("count/a", "count/b", "count/p")
REGISTERS: Final = ("one/a", "one/b", "all/c", "one/p")
MAPS: Final = ("map/a",)
TEXTS: Final = ("text/a",)
LISTS: Final = ("list/a",)
# What is put into these is put once in a run.
HOLDERS: Final = (*SETS, *TEXTS, *LISTS)
_RUN: Final = 3
_FIRST_CHARACTER: Final = 0x4E00
_LOG_BYTES_MAX: Final = 3_000
_SEGMENT_BYTES_MAX: Final = 20_000
_END_LIVES_S: Final = 4.0
# How long a dead member's shards stay its own, and how late nodes hear of others.
REPLACE_S: Final = 8.0
_HEARD_LATE_S: Final = 3.0
_TELL_S: Final = 2.0
# How often a node that leaves asks anew, for how long, and how long it is there afterwards.
_HAND_OVER_S: Final = 0.5
_LEAVE_S: Final = 15.0
_WINDS_DOWN_S: Final = 2.0
# How long all take to hear that one of them leaves, where all is well.
_NEWS_S: Final = 0.01
_NEVER: Final = ("malformed", "bad_signature", "unproven", "other_shard", "ends_others")
CHAOS_FAULTS: Final = LinkFaults(loss=0.1, duplicate=0.05, slow=0.1, slow_max_s=3.0)


class SimSigner:
    """Signatures that only this simulation could tell from real ones."""

    def __init__(self, me: NodeId) -> None:
        self._me = me

    def sign_batch(self, said: bytes) -> bytes:
        return self._me + (sum(said) & 0xFFFF).to_bytes(32, "big")

    def verify_batch(self, author: NodeId, said: bytes, signature: bytes) -> bool:
        return signature == author + (sum(said) & 0xFFFF).to_bytes(32, "big")


@dataclass(eq=False)
class Node:
    """One of the world's nodes: its disk, and what runs on it."""

    name: str
    node_id: NodeId
    disk: SimDisk
    journal: ShardJournal | None = None
    machine: ReplicaMachine | None = None
    life: int = 0
    skew_ms: int = 0
    copy: dict[str, bytes] | None = None
    # What was on the disk that it lost last.
    lost: dict[str, bytes] | None = None
    # Since when it does not run, and whether it never will again.
    down_at: float | None = None
    is_gone: bool = False
    # Since when it leaves in order, and whether all that it had is others' now.
    leaves_at: float | None = None
    is_free: bool = False
    # Whether it has dropped any of that.
    has_dropped: bool = False
    # What it wrote and waits for: ticket -> what is owed once it is acknowledged.
    waiting: dict[int, Owed] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Owed:
    """One write: by which node and in which life, and what it is good for."""

    node: str
    life: int
    key: str
    operation: Operation
    puts: tuple[Any, ...] = ()
    takes: tuple[Any, ...] = ()


class CrdtWorld:
    def __init__(
        self, seed: int, machine: type[ReplicaMachine] = ReplicaMachine, *, most: int = 8
    ) -> None:
        self.world = World(seed)
        self.network = Network(self.world, CHAOS_FAULTS)
        self.rng: Rng = self.world.rng_for("crdt")
        self._machine = machine
        self._tickets = self._elements = 0
        count = self.rng.randint(3, most)
        if seed % 25 == 24:
            count = self.rng.randint(20, 50)
        names = [f"n{number}" for number in range(count)]
        self.nodes = {name: self._new(name) for name in names}
        self.by_id = {node.node_id: node for node in self.nodes.values()}
        # Elements that were added and acknowledged, and those whose removal was.
        self.added: dict[tuple[str, Any], Owed] = {}
        self.removed: dict[tuple[str, Any], Owed] = {}
        self.counted: list[Owed] = []
        # Steps of counters of which it is not known whether they were taken.
        self.doubtful: list[Owed] = []
        self.excused: set[tuple[str, Any]] = set()
        # Buckets in which a counter may have lost steps that were nowhere else.
        self.excused_counts: set[str] = set()
        # Whether all faults are over: then who leaves must have been taken over by all it may ask.
        self.is_calm = False
        # No fault begins any more, nor one that was to come later.
        self.is_peace = False
        # Sides of a partition that hold each other dead, and since when.
        self.apart: tuple[frozenset[str], frozenset[str]] | None = None
        self.apart_at = 0.0
        # What is held up on its way to all, by kind of message, and for how long.
        self.late_s: dict[type, float] = {}
        self._dots: dict[tuple[Shard, Dot], bytes] = {}
        self.world.after(_TELL_S, self._tell_again)
        for name in names:
            self.start(name)

    def _new(self, name: str) -> Node:
        return Node(name, node_id_of(name.encode().ljust(32, b".")), SimDisk(self.world, name))

    # ---- nodes -------------------------------------------------------------------------------

    def come(self, name: str) -> None:
        """Somebody who was never there starts with an empty disk."""
        node = self.nodes[name] = self._new(name)
        self.by_id[node.node_id] = node
        self.start(name)

    def start(self, name: str) -> None:
        node = self.nodes[name]
        node.life += 1
        node.down_at = None
        node.journal = ShardJournal(
            node.disk, segment_bytes_max=_SEGMENT_BYTES_MAX, shard_type=self._machine.shard_type
        )
        life = self.rng.getrandbits(64).to_bytes(8, "big")
        node.machine = self._machine(
            node.node_id,
            actor_of(node.node_id, life),
            SimSigner(node.node_id),
            node.journal,
            self.world.rng_for(f"{name}:{node.life}"),
            lambda: self.wall_ms(node),
            node.journal.load(_LOG_BYTES_MAX),
            log_bytes_max=_LOG_BYTES_MAX,
            end_lives_s=_END_LIVES_S,
        )
        self.network.attach(name, lambda source, raw: self._arrive(node, source, raw))
        first_s = self.rng.uniform(0.0, SYNC_S)
        self.world.after(first_s, self._timer, node, node.life, SyncDue())
        self.tell_peers()
        self.feed(node, Wanted())

    def crash(self, name: str, how: str) -> None:
        """`how`: kill, power_loss, disk_lost or disk_restored."""
        node = self.nodes[name]
        assert node.machine is not None
        self.world.count(how)
        self.world.count("crashed_leaving", node.leaves_at is not None)
        self.network.detach(name)
        self._end(node)
        if how != "kill":  # Else the kernel writes it out in its own time.
            node.disk.crash()
        if how == "disk_lost":  # It may be found.
            node.lost = node.disk.copy()
        if how in ("disk_lost", "disk_restored"):
            self._lose(node, {} if how == "disk_lost" else node.copy or {})
        self.tell_peers()

    def _end(self, node: Node) -> None:
        """What it was asked for last may have been done or not."""
        node.machine, node.down_at = None, self.world.now
        node.leaves_at, node.is_free = None, False
        self.doubtful += node.waiting.values()
        node.waiting.clear()

    def _lose(self, node: Node, image: dict[str, bytes], *, in_order: bool = False) -> None:
        """Put an older state onto a disk, and excuse what was nowhere else.

        Of what lives on a few nodes nothing is excused where a node leaves `in_order`.
        """
        before, had = elements_on(node), shards_on(node)
        node.disk.put_back(image)
        kept = {one.name: shards_on(one) for one in self.nodes.values()}
        held = set().union(*map(elements_on, self.nodes.values()))
        for what in set(self.added) | set(self.removed):
            if in_order and bucket_of(what[0]) == PARTIAL:
                continue
            if what in before - held and what not in self.removed:
                self.excused.add(what)
                self.world.count("excused")
            gone = self.removed.get(what)
            if gone is None:
                continue
            # Whether another disk has this removal is not told by what is there. Who left in order,
            # or dropped the shard, has others have it, who may lose it in their turn.
            name = (bucket_of(what[0]), shard_of(what[0]))
            is_others = name in had and name not in kept[gone.node]
            if gone.node == node.name or self.nodes[gone.node].is_gone or is_others:
                self.excused.add(what)
        self.excused_counts |= {BUCKET} if in_order else {BUCKET, PARTIAL}

    def evict(self, name: str) -> None:
        """Have a node be gone for good, with its disk."""
        self.crash(name, "disk_lost")
        node = self.nodes[name]
        node.is_gone, node.copy, node.lost = True, None, None
        self.world.count("went")
        self.tell_peers()

    def leave(self, name: str) -> None:
        """Have a node hand over what it has, and go for good; it stays where it cannot."""
        node = self.nodes[name]
        node.leaves_at, node.has_dropped = self.world.now, False
        self.world.count("leave")
        self._go_on_leaving(node, node.life, self.world.now)

    def _go_on_leaving(self, node: Node, life: int, since: float) -> None:
        if node.machine is None or node.life != life or node.leaves_at != since:
            return
        if node.is_free and len(self.running()) > 1:
            self._go(node)
            return
        self.feed(node, Leave())
        node.is_free = not node.machine.partial_shards()
        if not node.is_free and self.world.now - since > _LEAVE_S:
            self.world.count("refused")
            self.stay(node.name)
            return
        wait_s = self.rng.uniform(0.0, _WINDS_DOWN_S) if node.is_free else _HAND_OVER_S
        self.world.after(wait_s, self._go_on_leaving, node, life, since)

    def _go(self, node: Node) -> None:
        """Have a node go that has handed over what it had."""
        self.world.count("left_in_calm" if self.is_calm else "left")
        self.network.detach(node.name)
        self._end(node)
        node.disk.crash()
        self._lose(node, {}, in_order=True)
        node.is_gone, node.copy, node.lost = True, None, None
        self.tell_peers()

    def stay(self, name: str) -> None:
        """Have a node that was about to leave stay after all."""
        node = self.nodes[name]
        node.leaves_at, node.is_free = None, False
        self.feed(node, Stay())

    def part(self, a: list[str], b: list[str]) -> None:
        """Cut sides off from each other that come to hold each other dead."""
        self.network.cut(a, b)
        self.apart, self.apart_at = (frozenset(a), frozenset(b)), self.world.now
        self.world.count("seen_apart")
        self.tell_peers()

    def heal(self) -> None:
        self.network.heal()
        self.apart = None
        self.tell_peers()

    def tell_peers(self) -> None:
        """Let all know who is there: some at once, some later."""
        for node in self.running():
            late_s = self.rng.choice((0.0, 0.0, self.rng.uniform(0.0, _HEARD_LATE_S)))
            if late_s:
                self.world.after(late_s, self._tell, node, node.life)
            else:
                self._tell(node, node.life)

    def _tell_again(self) -> None:
        self.tell_peers()
        self.world.after(_TELL_S, self._tell_again)

    def _tell(self, node: Node, life: int) -> None:
        if node.machine is None or node.life != life:
            return
        members = [one for one in self.nodes.values() if not one.is_gone]
        away = [one for one in members if one is not node and self._down_s(node, one) is not None]
        alive = tuple(o.node_id for o in members if o is not node and o not in away)
        late = [one for one in away if (self._down_s(node, one) or 0.0) > REPLACE_S]
        self.world.count("replaced", len(late))
        everyone = frozenset(one.node_id for one in members)
        self.feed(node, Peers(alive, everyone, everyone - {one.node_id for one in late}))

    def _down_s(self, node: Node, other: Node) -> float | None:
        """For how long a node holds another dead; None: it does not."""
        if other.down_at is not None:
            return self.world.now - other.down_at
        if self.apart is not None:
            a, b = self.apart
            if {node.name, other.name} & a and {node.name, other.name} & b:
                return self.world.now - self.apart_at
        return None

    def running(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.machine is not None]

    def leaving(self) -> list[Node]:
        return [node for node in self.running() if node.leaves_at is not None]

    def wall_ms(self, node: Node) -> int:
        return 10**12 + round(self.world.now * 1_000) + node.skew_ms

    # ---- the machine's shell -----------------------------------------------------------------

    def feed(self, node: Node, *events: Event) -> None:
        machine = node.machine
        if machine is None:
            return
        had = _seen_of(machine) if node.leaves_at is not None and self.is_calm else {}
        effects: list[Effect] = []
        for event in events:
            effects += machine.handle(event, self.world.now)
        effects += machine.settle(self.world.now)
        self._check_taken(node, machine, had)
        if any(isinstance(effect, Persist) for effect in effects):
            self._sync(node)
        for effect in effects:
            self._perform(node, effect)

    def _sync(self, node: Node) -> None:
        assert node.journal is not None
        assert node.machine is not None
        node.journal.sync()
        if node.journal.is_long:
            self.world.count("turn")
            shards = {shard.name: shard for shard in node.machine.shards()}
            for name in node.journal.turn():
                if name in shards:
                    node.journal.keep(name, encode_shard(shards[name]))
                else:
                    node.journal.remove(name)
            node.journal.forget()

    def _perform(self, node: Node, effect: Effect) -> None:
        match effect:
            case Send(peer, message):
                if isinstance(message, Batches):
                    self._check_dots(message)
                self._send(node.name, self.by_id[peer].name, message)
            case SetTimer(delay_s, event):
                life = node.life
                self.world.after(delay_s, self._timer, node, life, event)
            case Written(ticket, error):
                owed = node.waiting.pop(ticket)
                if error is None:
                    self._acknowledged(owed)
                else:
                    self.world.count(error.code)
            case Ignored(_, reason):
                self.world.count(reason)
                if reason in _NEVER:
                    self.world.violate(f"{node.name} ignored a message: {reason}")
            case Dropped():
                self.world.count("dropped")
                node.has_dropped = node.leaves_at is not None
            case KeyChanged() | Persist():
                pass
            case _:
                raise AssertionError(effect)

    def _send(self, source: str, target: str, message: Message) -> None:
        raw = CRDT.encode(message)
        if late_s := self.late_s.get(type(message), 0.0):
            self.world.after(late_s, self.network.send, source, target, raw)
        else:
            self.network.send(source, target, raw)

    def _timer(self, node: Node, life: int, event: Event) -> None:
        if node.life == life:
            self.feed(node, event)

    def _arrive(self, node: Node, source: str, raw: bytes) -> None:
        message = CRDT.decode(raw)
        if type(message).__name__ == "Whole":
            self.world.count("whole_state")
        self.world.count("taken", isinstance(message, Taken))
        self.world.note(source, node.name, raw)
        self.feed(node, Heard(self.nodes[source].node_id, message))

    # ---- callers -----------------------------------------------------------------------------

    def write(
        self,
        node: Node,
        key: str,
        operation: Operation,
        puts: tuple[Any, ...] = (),
        takes: tuple[Any, ...] = (),
        **more: Any,
    ) -> None:
        self._tickets += 1
        node.waiting[self._tickets] = Owed(node.name, node.life, key, operation, puts, takes)
        self.feed(node, Write(self._tickets, bucket_of(key), key, operation, **more))

    def _acknowledged(self, owed: Owed) -> None:
        self.world.count("acknowledged")
        self.world.note("acknowledged", owed.node, owed.key)
        for element in owed.puts:
            self.added[owed.key, element] = owed
        for element in owed.takes:
            self.world.count("removed")
            self.removed[owed.key, element] = owed
        if isinstance(owed.operation, Count):
            self.counted.append(owed)

    def value(self, node: Node, key: str) -> Any:
        assert node.machine is not None
        cells = node.machine.cells(bucket_of(key), key)
        if cells is None:
            return None
        try:
            return read(cells.at(key))
        except NotFound:
            return None

    def someone_writes(self) -> None:
        self.write_something(self.rng.choice(self.running()))

    def write_something(self, node: Node, partial: float = 0.25) -> None:
        """Have a node write, or so often another to what lives on two nodes."""
        keys = (*SETS, *SETS, *COUNTERS, *REGISTERS, *MAPS, *TEXTS, *LISTS)
        bucket = PARTIAL if self.rng.random() < partial else BUCKET
        key = self.rng.choice([one for one in keys if bucket_of(one) == bucket])
        servers = self.servers(key)
        if not servers:
            self.world.count("nobody_serves")
            return
        if node not in servers:
            node = self.rng.choice(servers)
        if key in SETS:
            held = self.value(node, key) or []
            if held and self.rng.random() < 0.4:
                element = self.rng.choice(held)
                self.write(node, key, TakeFrom(element), takes=(element,))
            else:
                self._elements += 1
                self.write(node, key, AddTo(self._elements), puts=(self._elements,))
        elif key in TEXTS or key in LISTS:
            self._edit(node, key)
        elif key in COUNTERS:
            self.write(node, key, Count(self.rng.randint(-3, 9)))
        elif key in REGISTERS:
            kind = Kind.MULTI if key.startswith("all/") else Kind.REGISTER
            remove = self.rng.random() < 0.2
            self.write(node, key, Remove() if remove else Assign(self._tickets, kind))
        else:
            field_name = self.rng.choice(("x", "y"))
            operation: Operation = self.rng.choice((AddTo(1), TakeFrom(1), Remove()))
            self.write(node, key, operation, fields=(field_name,))

    def servers(self, key: str) -> list[Node]:
        """Who takes writes to a key."""
        name = (bucket_of(key), shard_of(key))
        return [o for o in self.running() if o.machine and o.machine.holding.serves(name)]

    def _check_taken(
        self, node: Node, machine: ReplicaMachine, had: dict[Shard, tuple[Seen, ...]]
    ) -> None:
        """What a node that leaves has dropped, all have that hold it without who leaves."""
        gone = [one for one in had if machine.shard(one) is None]
        news_s = self.world.now - _NEWS_S
        others = [one for one in self.leaving() if one is not node]
        if not gone or any(news_s < (one.leaves_at or 0.0) for one in others):
            return  # It may not have heard yet that another leaves, too.
        staying = [one.node_id for one in self.running() if one.leaves_at is None]
        for name in gone:
            for taker in map(self.by_id.__getitem__, holders(name, staying, copies_of(name[0]))):
                shard = taker.machine.shard(name) if taker.machine is not None else None
                if shard.lacks(had[name]) if shard is not None else had[name]:
                    self.world.violate(f"{node.name} dropped {name}, which {taker.name} lacks")

    def _check_dots(self, message: Batches) -> None:
        """Whether each dot that is told names the change that it always named."""
        for raw in message.batches:
            batch = decode_batch(raw)
            for dot, change in batch.dots():
                said = repr(change).encode()
                if self._dots.setdefault((batch.shard, dot), said) != said:
                    self.world.violate(f"a dot was given twice in {batch.shard}: {dot[1]}")

    def _edit(self, node: Node, key: str) -> None:
        """Put and take away some characters or elements, where others do so, too."""
        held = list(self.value(node, key) or [])
        at = self.rng.randint(0, len(held))
        delete = min(len(held) - at, self.rng.choice((0, 0, 1, _RUN)))
        first = self._elements + 1
        self._elements += self.rng.randint(1, _RUN)
        puts: tuple[Any, ...] = tuple(range(first, self._elements + 1))
        operation: Operation = EditList(at, puts, delete)
        if key in TEXTS:
            puts = tuple(chr(_FIRST_CHARACTER + one) for one in puts)
            operation = EditText(at, "".join(puts), delete)
        assert node.machine is not None
        cells = node.machine.cells(BUCKET, key)
        before = len(cells.at(key)) if cells is not None else 0
        self.write(node, key, operation, puts, tuple(held[at : at + delete]))
        cells = node.machine.cells(BUCKET, key)
        if cells is not None and len(cells.at(key)) < before:
            self.world.count("merged")


def _seen_of(machine: ReplicaMachine) -> dict[Shard, tuple[Seen, ...]]:
    """What was seen of the shards that not all hold."""
    return {one.name: one.seen() for one in machine.shards() if copies_of(one.name[0])}


def elements_on(node: Node) -> set[tuple[str, Any]]:
    """What is in sets, texts and lists on a node's disk."""
    return {
        (key, one)
        for shard in ShardJournal(node.disk).load()
        for key in shard.cells
        if key in HOLDERS
        for one in read(shard.cells.at(key))
    }


def shards_on(node: Node) -> set[Shard]:
    """Which shards are on a node's disk."""
    return {shard.name for shard in ShardJournal(node.disk).load()}


def bucket_of(key: str) -> str:
    return PARTIAL if key.endswith(_OF_PARTIAL) else BUCKET
