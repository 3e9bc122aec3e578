"""Replicas of the eventual store in a simulated world: what they owe, whatever befalls them.

Messages are lost, repeated and overtaken; nodes are cut off, killed with and without a loss of what
was not synced, lose their disk, come back from an old copy of it, and have clocks that jump. What
is held against them:
- After the last fault all replicas hold the same.
- What was acknowledged is there: elements that were put into sets, characters of texts and elements
  of lists, steps of counters. Excused is what was on no other disk when its own was lost.
- Characters stand in the order in which one edit has put them, and none twice.
- What was removed stays away, also where a node comes back from a copy of before its lives ended.
- A newcomer that takes over whole states holds what the others came to change by change.

One bucket lives on two nodes. Members come, go for good, die for longer than they are waited for
and return; nodes hear of that at different times, and the sides of a partition hold each other
dead. Then the same is owed of each shard by those who hold it in the end, and nobody else has it.
No dot is ever given to two changes.
"""

from __future__ import annotations

import math
from collections import Counter
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
    Peers,
    SyncDue,
    Wanted,
    Write,
    Written,
)
from swarmd.state.crdt.journal import ShardJournal
from swarmd.state.crdt.machine import SYNC_S, ReplicaMachine
from swarmd.state.crdt.messages import CRDT, Batches, Shard, Taken, decode_batch, shard_of
from swarmd.state.crdt.placement import bucket_on, copies_of
from swarmd.state.crdt.shard import ShardState
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

CHAOS_S: Final = 60.0
CALM_S: Final = 60.0
REST_S: Final = 30.0
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
_JUMP_MAX_MS: Final = 90_000
_LOG_BYTES_MAX: Final = 3_000
_SEGMENT_BYTES_MAX: Final = 20_000
_END_LIVES_S: Final = 4.0
# How long a dead member's shards stay its own, and how late nodes hear of others.
_REPLACE_S: Final = 8.0
_HEARD_LATE_S: Final = 3.0
_TELL_S: Final = 2.0
_COMING_MAX: Final = 3
FAULTS: Final = (
    "loss", "duplicate", "delay", "reorder", "partition", "one_way_cut", "kill", "power_loss",
    "disk_lost", "disk_restored", "clock_jump", "came", "went", "replaced", "seen_apart",
)  # fmt: skip
# Each must have happened, or the seeds prove nothing about it.
OTHERS: Final = (
    "acknowledged", "removed", "whole_state", "clock_skew", "from_the_future", "newcomer",
    "turn", "excused", "merged", "ended", "restored_late", "found_late", "dropped", "taken",
)  # fmt: skip
_NEVER: Final = ("malformed", "bad_signature", "unproven", "other_shard", "ends_others")
_CRASHES: Final = ("kill", "kill", "power_loss", "power_loss", "disk_lost", "disk_restored")
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
class _Node:
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
    # What it wrote and waits for: ticket -> what is owed once it is acknowledged.
    waiting: dict[int, _Owed] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Owed:
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
        self._by_id = {node.node_id: node for node in self.nodes.values()}
        # Elements that were added and acknowledged, and those whose removal was.
        self.added: dict[tuple[str, Any], _Owed] = {}
        self.removed: dict[tuple[str, Any], _Owed] = {}
        self.counted: list[_Owed] = []
        # Steps of counters of which it is not known whether they were taken.
        self.doubtful: list[_Owed] = []
        self.excused: set[tuple[str, Any]] = set()
        self.excused_counts = False
        # Sides of a partition that hold each other dead, and since when.
        self.apart: tuple[frozenset[str], frozenset[str]] | None = None
        self.apart_at = 0.0
        self._dots: dict[tuple[Shard, Dot], bytes] = {}
        self.world.after(_TELL_S, self._tell_again)
        for name in names:
            self.start(name)

    def _new(self, name: str) -> _Node:
        return _Node(name, node_id_of(name.encode().ljust(32, b".")), SimDisk(self.world, name))

    # ---- nodes -------------------------------------------------------------------------------

    def come(self, name: str) -> None:
        """Somebody who was never there starts with an empty disk."""
        node = self.nodes[name] = self._new(name)
        self._by_id[node.node_id] = node
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
        self.network.detach(name)
        node.machine, node.down_at = None, self.world.now
        self.doubtful += node.waiting.values()
        node.waiting.clear()
        if how != "kill":  # Else the kernel writes it out in its own time.
            node.disk.crash()
        if how == "disk_lost":  # It may be found.
            node.lost = node.disk.copy()
        if how in ("disk_lost", "disk_restored"):
            self._lose(node, {} if how == "disk_lost" else node.copy or {})
        self.tell_peers()

    def _lose(self, node: _Node, image: dict[str, bytes]) -> None:
        """Put an older state onto a disk, and excuse what was nowhere else."""
        before = _elements_on(node)
        node.disk.put_back(image)
        held = set().union(*map(_elements_on, self.nodes.values()))
        for what in set(self.added) | set(self.removed):
            if what in before - held and what not in self.removed:
                self.excused.add(what)
                self.world.count("excused")
            gone = self.removed.get(what)
            if gone is not None and gone.node == node.name:
                # Whether another disk has this removal is not told by what is there.
                self.excused.add(what)
        self.excused_counts = True

    def evict(self, name: str) -> None:
        """Have a node be gone for good, with its disk."""
        self.crash(name, "disk_lost")
        node = self.nodes[name]
        node.is_gone, node.copy, node.lost = True, None, None
        self.world.count("went")
        self.tell_peers()

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

    def _tell(self, node: _Node, life: int) -> None:
        if node.machine is None or node.life != life:
            return
        members = [one for one in self.nodes.values() if not one.is_gone]
        away = [one for one in members if one is not node and self._down_s(node, one) is not None]
        alive = tuple(o.node_id for o in members if o is not node and o not in away)
        late = [one for one in away if (self._down_s(node, one) or 0.0) > _REPLACE_S]
        self.world.count("replaced", len(late))
        everyone = frozenset(one.node_id for one in members)
        self.feed(node, Peers(alive, everyone, everyone - {one.node_id for one in late}))

    def _down_s(self, node: _Node, other: _Node) -> float | None:
        """For how long a node holds another dead; None: it does not."""
        if other.down_at is not None:
            return self.world.now - other.down_at
        if self.apart is not None:
            a, b = self.apart
            if {node.name, other.name} & a and {node.name, other.name} & b:
                return self.world.now - self.apart_at
        return None

    def running(self) -> list[_Node]:
        return [node for node in self.nodes.values() if node.machine is not None]

    def wall_ms(self, node: _Node) -> int:
        return 10**12 + round(self.world.now * 1_000) + node.skew_ms

    # ---- the machine's shell -----------------------------------------------------------------

    def feed(self, node: _Node, *events: Event) -> None:
        machine = node.machine
        if machine is None:
            return
        effects: list[Effect] = []
        for event in events:
            effects += machine.handle(event, self.world.now)
        effects += machine.settle(self.world.now)
        if any(isinstance(effect, Persist) for effect in effects):
            self._sync(node)
        for effect in effects:
            self._perform(node, effect)

    def _sync(self, node: _Node) -> None:
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

    def _perform(self, node: _Node, effect: Effect) -> None:
        match effect:
            case Send(peer, message):
                if isinstance(message, Batches):
                    self._check_dots(message)
                raw = CRDT.encode(message)
                self.network.send(node.name, self._by_id[peer].name, raw)
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
            case KeyChanged() | Persist():
                pass
            case _:
                raise AssertionError(effect)

    def _timer(self, node: _Node, life: int, event: Event) -> None:
        if node.life == life:
            self.feed(node, event)

    def _arrive(self, node: _Node, source: str, raw: bytes) -> None:
        message = CRDT.decode(raw)
        if type(message).__name__ == "Whole":
            self.world.count("whole_state")
        self.world.count("taken", isinstance(message, Taken))
        self.world.note(source, node.name, raw)
        self.feed(node, Heard(self.nodes[source].node_id, message))

    # ---- callers -----------------------------------------------------------------------------

    def write(
        self,
        node: _Node,
        key: str,
        operation: Operation,
        puts: tuple[Any, ...] = (),
        takes: tuple[Any, ...] = (),
        **more: Any,
    ) -> None:
        self._tickets += 1
        node.waiting[self._tickets] = _Owed(node.name, node.life, key, operation, puts, takes)
        self.feed(node, Write(self._tickets, bucket_of(key), key, operation, **more))

    def _acknowledged(self, owed: _Owed) -> None:
        self.world.count("acknowledged")
        self.world.note("acknowledged", owed.node, owed.key)
        for element in owed.puts:
            self.added[owed.key, element] = owed
        for element in owed.takes:
            self.world.count("removed")
            self.removed[owed.key, element] = owed
        if isinstance(owed.operation, Count):
            self.counted.append(owed)

    def value(self, node: _Node, key: str) -> Any:
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

    def write_something(self, node: _Node, partial: float = 0.25) -> None:
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

    def servers(self, key: str) -> list[_Node]:
        """Who takes writes to a key."""
        name = (bucket_of(key), shard_of(key))
        return [o for o in self.running() if o.machine and o.machine.holding.serves(name)]

    def _check_dots(self, message: Batches) -> None:
        """Whether each dot that is told names the change that it always named."""
        for raw in message.batches:
            batch = decode_batch(raw)
            for dot, change in batch.dots():
                said = repr(change).encode()
                if self._dots.setdefault((batch.shard, dot), said) != said:
                    self.world.violate(f"a dot was given twice in {batch.shard}: {dot[1]}")

    def count_ends(self) -> None:
        """Note whether anybody holds a life to be over."""
        for node in self.running():
            assert node.machine is not None
            self.world.count("ended", any(s.cells.context.over for s in node.machine.shards()))

    def _edit(self, node: _Node, key: str) -> None:
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

    # ---- what is owed ------------------------------------------------------------------------

    def check(self) -> None:
        """All faults are over, and time has passed."""
        first, *others = self.running()
        assert first.machine is not None
        states = {shard.name: shard for shard in first.machine.shards()}
        for node in others:
            assert node.machine is not None
            for shard in node.machine.shards():
                if copies_of(shard.name[0]):
                    continue
                mine = states.get(shard.name)
                if mine is None and not shard.cells.context.vector:
                    continue
                if mine is None or mine.cells != shard.cells or mine.sum() != shard.sum():
                    self.world.violate(f"{first.name} and {node.name} differ in {shard.name}")
            if len(_told_of(node.machine)) != len(_told_of(first.machine)):
                self.world.violate(f"{first.name} and {node.name} hold other shards")
        self._check_partial()
        self._check_held()
        self._check_order(first)
        if not self.excused_counts:
            self._check_counters()
        for node in self.running():
            assert node.machine is not None
            if node.machine.parked:
                self.world.violate(f"{node.name} keeps {node.machine.parked} batches parked")

    def _check_order(self, node: _Node) -> None:
        for key in (*TEXTS, *LISTS):
            held = list(self.value(node, key) or [])
            places = {one: place for place, one in enumerate(held)}
            if len(places) != len(held):
                self.world.violate(f"{key} holds something twice")
            for puts in {owed.puts for owed in self.added.values() if owed.key == key}:
                found = [places[one] for one in puts if one in places]
                if found != sorted(found):
                    self.world.violate(f"{key} holds what one edit put in another order: {puts}")

    def _check_partial(self) -> None:
        """Each shard is with its holders, alike, and with nobody else."""
        for key in (one for one in (*SETS, *COUNTERS, *REGISTERS) if bucket_of(one) == PARTIAL):
            name = (PARTIAL, shard_of(key))
            held = {}
            for node in self.running():
                assert node.machine is not None
                shard = node.machine.shard(name)
                if shard is not None and shard.cells.context.vector:
                    held[node.node_id] = shard
            should = {self._by_id[one].name for one in self._holders(name)}
            are = {self._by_id[one].name for one in held}
            if held and are != should:
                self.world.violate(f"{sorted(are)} have {name}, and {sorted(should)} hold it")
            shards = list(held.values())
            if any(one.cells != shards[0].cells for one in shards):
                self.world.violate(f"holders differ in {name}")
            if len(self.servers(key)) != len(should):
                self.world.violate(f"{len(self.servers(key))} serve {name}")

    def _holders(self, name: Shard) -> tuple[NodeId, ...]:
        [first, *_] = self.running()
        assert first.machine is not None
        return first.machine.holding.of(name)

    def _read(self, key: str) -> Any:
        """What one of those who serve a key holds."""
        servers = self.servers(key)
        return self.value(servers[0], key) if servers else None

    def _check_held(self) -> None:
        there = {(key, one) for key in HOLDERS for one in self._read(key) or []}
        taken = {(owed.key, one) for owed in self.doubtful for one in owed.takes}
        for what in set(self.added) - there - set(self.removed) - self.excused - taken:
            self.world.violate(f"an acknowledged element is gone: {what}")
        for what in self.removed:
            if what in there and what not in self.excused:
                self.world.violate(f"a removed element is back: {what}")

    def _check_counters(self) -> None:
        for key in COUNTERS:
            sure = sum(_step(one) for one in self.counted if one.key == key)
            maybe = [_step(one) for one in self.doubtful if one.key == key]
            least = sure + sum(step for step in maybe if step < 0)
            most = sure + sum(step for step in maybe if step > 0)
            if not least <= (self._read(key) or 0) <= most:
                self.world.violate(f"{key} is {self._read(key)}, not {least} to {most}")


def _elements_on(node: _Node) -> set[tuple[str, Any]]:
    """What is in sets, texts and lists on a node's disk."""
    return {
        (key, one)
        for shard in ShardJournal(node.disk).load()
        for key in shard.cells
        if key in HOLDERS
        for one in read(shard.cells.at(key))
    }


def bucket_of(key: str) -> str:
    return PARTIAL if key.endswith(_OF_PARTIAL) else BUCKET


def _told_of(machine: ReplicaMachine) -> list[ShardState]:
    """Shards of which anything was seen: one may have been made for what never came."""
    return [
        shard
        for shard in machine.shards()
        if shard.cells.context.vector and not copies_of(shard.name[0])
    ]


def _step(owed: _Owed) -> int:
    return owed.operation.by if isinstance(owed.operation, Count) else 0


def disturb(sim: CrdtWorld) -> None:
    """One fault, or the end of some."""
    rng, world = sim.rng, sim.world
    running = sim.running()
    match rng.randrange(10):
        case 8 if rng.random() < 0.5 and sim.apart is None:
            names = sorted(sim.nodes)
            rng.shuffle(names)
            middle = rng.randrange(1, len(names))
            sim.part(names[:middle], names[middle:])
        case 9 if rng.random() < 0.5:
            come_or_go(sim)
        case 0:
            names = sorted(sim.nodes)
            rng.shuffle(names)
            middle = rng.randrange(1, len(names))
            one_way = rng.random() < 0.3
            sim.network.cut(names[:middle], names[middle:], one_way=one_way)
        case 1 | 2:
            sim.heal()
        case 3 | 4 if len(running) > 1:
            how = rng.choice(
                ("kill", "kill", "power_loss", "power_loss", "disk_lost", "disk_restored")
            )
            sim.crash(rng.choice(running).name, how)
        case 5:
            for node in sim.nodes.values():
                if node.machine is None and not node.is_gone:
                    sim.start(node.name)
        case 6:
            world.count("clock_jump")
            rng.choice(running).skew_ms = rng.randint(-_JUMP_MAX_MS, _JUMP_MAX_MS)
        case 7:
            node = rng.choice(running)
            node.copy = node.disk.copy()


def come_or_go(sim: CrdtWorld) -> None:
    """Somebody new comes, or somebody goes for good."""
    running = sim.running()
    came = sum(name.startswith("c") for name in sim.nodes)
    if sim.rng.random() < 0.5 and came < _COMING_MAX:
        sim.world.count("came")
        sim.come(f"c{came}")
    elif len(running) > 3:
        sim.evict(sim.rng.choice(running).name)


def run_seed(
    seed: int, machine: type[ReplicaMachine] = ReplicaMachine, *, stop_at_violation: bool = False
) -> CrdtWorld:
    """A minute of faults and a minute of peace."""
    sim = CrdtWorld(seed, machine)
    while sim.world.now < CHAOS_S:
        until = sim.world.now + sim.rng.uniform(0.5, 4.0)
        while sim.world.now < until:
            sim.world.run_for(sim.rng.uniform(0.0, 0.2))
            sim.someone_writes()
        disturb(sim)
        if stop_at_violation and sim.world.violations:
            return sim
    make_peace(sim)
    sim.world.run_for(CALM_S)
    sim.count_ends()
    come_back_late(sim)
    end_no_more(sim)
    sim.check()
    return sim


def come_back_late(sim: CrdtWorld) -> None:
    """Where all agree, a node is put back to what it was in the midst of the faults.

    Or its disk is lost, with writes that nobody else has, and found when its life is over.
    """
    node = sim.rng.choice(sim.running())
    if node.copy is None or sim.rng.random() < 0.5:
        sim.world.count("found_late")
        sim.network.cut([node.name], [name for name in sim.nodes if name != node.name])
        for _ in range(8):
            sim.write_something(node, partial=0.0)
        sim.crash(node.name, "disk_lost")
        sim.heal()
        sim.start(node.name)
        for _ in range(8):
            sim.world.run_for(sim.rng.uniform(0.0, 1.0))
            sim.write_something(node, partial=0.0)
        sim.world.run_for(CALM_S)
        node.copy = node.lost
    sim.world.count("restored_late")
    sim.crash(node.name, "disk_restored")
    for _ in range(10):
        sim.someone_writes()
        sim.world.run_for(sim.rng.uniform(0.0, 0.5))
    sim.start(node.name)
    sim.someone_writes()
    sim.world.run_for(CALM_S)


def end_no_more(sim: CrdtWorld) -> None:
    """Let the last ends of lives, which are changes like others, reach everybody."""
    for node in sim.running():
        assert node.machine is not None
        node.machine.end_lives_s = math.inf
    sim.world.run_for(REST_S)


def make_peace(sim: CrdtWorld) -> None:
    """Everything runs, nothing is lost, all clocks are right; and somebody new comes."""
    sim.heal()
    sim.network.faults = LinkFaults()
    for node in sim.nodes.values():
        node.skew_ms = 0
        if node.machine is None and not node.is_gone:
            sim.start(node.name)
    sim.world.run_for(_JUMP_MAX_MS / 1_000)  # What came from the future is of the past now.
    sim.world.count("newcomer")
    sim.come(f"n{len(sim.nodes)}")


@dataclass
class Report:
    seeds: int = 0
    violations: list[tuple[int, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def sweep(seeds: range, machine: type[ReplicaMachine] = ReplicaMachine) -> Report:
    """Run each seed and gather what it violated and counted."""
    report = Report()
    for seed in seeds:
        world = run_seed(seed, machine).world
        report.seeds += 1
        report.violations += [(seed, text) for text in world.violations]
        report.counts.update(world.counts)
    return report
