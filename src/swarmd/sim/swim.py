"""Membership in the simulated world: the real machines, seeded faults, checkers at every change.

What is checked:
- No packet exceeds its budget.
- In nobody's view does an incarnation fall, and whoever left stays left until it starts anew.
- Nobody's silence makes it dead before the shortest suspicion is over.
- Nobody is declared dead while it and its accuser have long been well and connected.
- Within the settling time after the last fault all running members hold the same view, which is
  the truth: the running alive at their own incarnation and address, the crashed dead, the
  leavers left.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from swarmd.base.ids import NodeId, digest
from swarmd.base.machine import Effect, Event, Send, SetTimer
from swarmd.mesh.events.machine import Kept
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.events import (
    Changed,
    Departed,
    HowClosed,
    Join,
    Leave,
    Member,
    PacketIn,
    Refused,
    Started,
    StreamAnswered,
    StreamClosed,
    StreamProbe,
    SuspicionDue,
    SyncFailed,
    SyncIn,
    SyncWith,
)
from swarmd.mesh.swim.machine import SwimMachine
from swarmd.mesh.swim.messages import (
    PACKET_BYTES_MAX,
    START_SHIFT,
    Address,
    MemberState,
    Meta,
)
from swarmd.mesh.swim.watching import HINT_S
from swarmd.sim.network import LinkFaults, Network
from swarmd.sim.world import World
from swarmd.wire.version import PROTOCOL_LOWEST, PROTOCOL_VERSION

ALIVE, SUSPECT, DEAD, LEFT = MemberState
CHAOS_S: Final = 60.0
SETTLE_S: Final = 60.0
# As long as a suspicion lasts at most, with the news of it: longer ago, no fault excuses a death.
_EXCUSE_S: Final = 40.0
_STREAM_TIMEOUT_S: Final = 2.0
CHAOS_FAULTS: Final = LinkFaults(loss=0.05, duplicate=0.05, slow=0.02)


def node_id(name: str) -> NodeId:
    return NodeId(digest(b"node", name.encode()))


class SimSigner:
    """A keyed hash for a signature: as deterministic, and a thousand times cheaper."""

    def __init__(self, me: NodeId) -> None:
        self._me = me

    def sign_rumour(self, statement: bytes) -> bytes:
        return _tag(self._me, statement)

    def sign_event(self, said: bytes) -> bytes:
        return _tag(self._me, b"event" + said)

    def verify_event(self, origin: NodeId, said: bytes, signature: bytes) -> bool:
        return _tag(origin, b"event" + said) == signature

    def may_be(self, node_id: NodeId) -> tuple[str, ...] | None:
        return None

    def verify_rumour(self, author: NodeId, statement: bytes, signature: bytes) -> bool:
        return _tag(author, statement) == signature


def _tag(key: bytes, statement: bytes) -> bytes:
    return hashlib.blake2b(statement, key=key).digest()


@dataclass(slots=True)
class SimNode:
    """A host; `machine` is None while it is down. `boot` tells the lives of its process apart.

    `kept`: what its disk has of user events, where somebody writes it (`sim.swim_events`).

    `called`: the name that it gives itself, if another than `name`.
    """

    name: str
    address: Address
    called: str = ""
    machine: SwimMachine | None = None
    boot: int = 0
    left: bool = False
    unheard: bool = False
    paused: bool = False
    kept: Kept | None = None
    held: list[tuple[Event, int]] = field(default_factory=list)
    troubled_at: float = 0.0
    heard_from: dict[NodeId, Address] = field(default_factory=dict)

    @property
    def node_id(self) -> NodeId:
        return node_id(self.name)


@dataclass(frozen=True, slots=True)
class _Packet:
    to: tuple[Address, ...]
    origin: Address
    data: bytes


class SwimWorld:
    """Some members on one network.

    Args:
        names: the hosts; none runs until it is started.
        watch: called with (node name, effect) for each effect, for stories.
    """

    def __init__(
        self,
        seed: int,
        names: Iterable[str],
        *,
        config: SwimConfig | None = None,
        faults: LinkFaults | None = None,
        machine: type[SwimMachine] = SwimMachine,
        watch: Callable[[str, Effect], None] | None = None,
    ) -> None:
        self.world = World(seed)
        self.network = Network(self.world, faults)
        self.config = config or SwimConfig()
        self.rng = self.world.rng_for("swim")
        self.nodes = {
            name: SimNode(name, (f"10.0.0.{number}", 7575)) for number, name in enumerate(names, 1)
        }
        self._by_id = {node.node_id: node for node in self.nodes.values()}
        self._refused: dict[tuple[str, str], float] = {}
        self._no_datagrams: set[tuple[str, str]] = set()
        self._make = machine
        self._watch = watch

    # ---- what may be done to members ------------------------------------------------------

    def start(self, name: str, *seeds: str, moved: bool = False) -> None:
        """Start a host's process, with an empty memory; it joins by `seeds` if any are given."""
        node = self.nodes[name]
        assert node.machine is None, name
        node.boot += 1
        node.left = node.unheard = False
        node.held.clear()
        node.heard_from.clear()
        self._trouble(node)
        if moved:
            node.address = (node.address[0], node.address[1] + 1)
            self.world.count("address_change")
        if node.boot > 1:
            self.world.count("restart")
        node.machine = self.build_of(name)(
            node.node_id,
            self.config,
            self.world.rng_for(f"{name}:{node.boot}"),
            SimSigner(node.node_id),
            self.meta_of(node),
            node.boot,
            self.world.now,
            kept=node.kept,
            founder=node.boot == 1 and name == next(iter(self.nodes)),
        )
        self.network.attach(name, lambda _, packet: self._arrive(node, packet))
        self.feed(node, Started())
        self.feed(node, Join(tuple(node_id(seed) for seed in seeds)))

    def build_of(self, name: str) -> type[SwimMachine]:
        """Which machine a host runs."""
        return self._make

    def meta_of(self, node: SimNode) -> Meta:
        """What a host says about itself as it starts."""
        return Meta(
            node.called or node.name,
            addresses=(node.address,),
            roles=("worker",),
            version="1",
            protocol=PROTOCOL_VERSION,
            protocol_lowest=PROTOCOL_LOWEST,
        )

    def start_all(self) -> None:
        """Start everyone, joining by the first."""
        names = list(self.nodes)
        for name in names:
            self.start(name, *names[:1])

    def crash(self, name: str, *, hint: bool = False) -> None:
        """End a process without a word. With `hint`, its host resets a stream and refuses."""
        node = self.nodes[name]
        self._stop(node)
        self.world.count("crash")
        others = self.running()
        if not hint or not others:
            return
        keepers = [n for n in others if n.machine is not None and n.machine.keeps(node.node_id)]
        for witness in keepers or [self.rng.choice(others)]:
            self.world.count("reset")
            self.hint(witness.name, name, "reset")
            self.hint(witness.name, name, "refused")

    def hint(self, witness: str, about: str, how: HowClosed, quiet_s: float = 0.0) -> None:
        """Tell a member how its stream to another ended."""
        self.feed(self.nodes[witness], StreamClosed(node_id(about), how, quiet_s))

    def leave(self, name: str) -> None:
        """Let a member say goodbye; its process ends when it has."""
        node = self.nodes[name]
        node.left = True
        # Who was found by nobody since it started has nobody to tell it to.
        alone = node.machine is not None and len(node.machine.alive()) == 1
        paused = any(other.paused for other in self.nodes.values())
        node.unheard = alone or paused or self._cut_off(node)
        self.world.count("leave")
        self.feed(node, Leave())

    def pause(self, name: str) -> None:
        """Freeze a process: what arrives, and its timers, wait."""
        node = self.nodes[name]
        self._trouble(node)
        node.paused = True
        self.world.count("pause")

    def resume(self, name: str) -> None:
        node = self.nodes[name]
        self._trouble(node)
        node.paused = False
        held, node.held = node.held, []
        for event, boot in held:
            if boot == node.boot:
                self.feed(node, event)

    def cut(self, some: Iterable[str], *, one_way: bool = False) -> None:
        """Cut `some` off from all others."""
        inside = list(some)
        outside = [name for name in self.nodes if name not in inside]
        self._trouble(*self.nodes.values())
        self.network.cut(inside, outside, one_way=one_way)

    def block_datagrams(self, source: str, target: str) -> None:
        """Let no datagram pass from one host to another; streams do."""
        self.world.count("datagrams_blocked")
        self._no_datagrams.add((source, target))

    def heal(self) -> None:
        self._no_datagrams.clear()
        self._trouble(*self.nodes.values())
        self.network.heal()

    def run_for(self, duration_s: float) -> None:
        self.world.run_for(duration_s)

    # ---- what may be asked ----------------------------------------------------------------

    def running(self) -> list[SimNode]:
        """Members whose process runs and that are not leaving."""
        return [n for n in self.nodes.values() if n.machine is not None and not n.left]

    def view(self, name: str) -> dict[str, str]:
        """What a running node holds of whom: host -> state."""
        machine = self.nodes[name].machine
        assert machine is not None, name
        return {self.host_of(member): str(member.state) for member in machine.members()}

    def host_of(self, member: Member) -> str:
        host = self._by_id.get(member.node_id)
        return member.name if host is None else host.name

    def disagreements(self) -> list[str]:
        """Where a running node's view is not the truth."""
        wrong: list[str] = []
        for watcher in self.running():
            assert watcher.machine is not None
            for node in self.nodes.values():
                member = watcher.machine.get(node.node_id)
                if not _is_true(member, node):
                    wrong.append(f"{watcher.name} holds {node.name} {member}, boot {node.boot}")
        return wrong

    # ---- performing -----------------------------------------------------------------------

    def feed(self, node: SimNode, event: Event) -> None:
        """Step a node's machine and perform what it asks for."""
        if node.machine is None:
            return
        if node.paused:
            node.held.append((event, node.boot))
            return
        if isinstance(event, StreamClosed) and event.how == "refused":
            self._refused[node.name, self._by_id[event.peer].name] = self.world.now
        for effect in node.machine.handle(event, self.world.now):
            self._perform(node, effect)
            if isinstance(event, SuspicionDue) and isinstance(effect, Changed):
                self._check_patience(node, effect)

    def _perform(self, node: SimNode, effect: Effect) -> None:
        if self._watch is not None:
            self._watch(node.name, effect)
        if isinstance(effect, SetTimer):
            self.world.after(effect.delay_s, self._fire, node, node.boot, effect.event)
        elif isinstance(effect, Send):
            self._send(node, effect)
        elif isinstance(effect, SyncWith):
            self._sync(node, self._by_id[effect.peer])
        elif isinstance(effect, Changed):
            self._changed(node, effect)
        elif isinstance(effect, StreamProbe):
            self._stream_probe(node, effect)
        elif isinstance(effect, Departed):
            self._stop(node)
        elif isinstance(effect, Refused):
            self.world.violate(f"{node.name} refused an honest message: {effect.reason}")

    def _fire(self, node: SimNode, boot: int, event: Event) -> None:
        if node.boot == boot:
            self.feed(node, event)

    def _send(self, node: SimNode, effect: Send) -> None:
        data: bytes = effect.message
        self.world.note(node.name, effect.peer, data)
        if len(data) > PACKET_BYTES_MAX:
            self.world.violate(f"{node.name} sent a packet of {len(data)} bytes")
        assert node.machine is not None
        target = self._by_id.get(effect.peer)
        if target is None:
            self.world.count("no_host")  # It was told of members that are no hosts here.
            return
        # As the transport does: where the peer was heard from last, and where it says it is.
        heard = node.heard_from.get(effect.peer)
        to = (*([heard] if heard else []), *node.machine.addresses(effect.peer))
        if not to:
            self.world.count("no_address")
            return
        if (node.name, target.name) in self._no_datagrams:
            return
        self.network.send(node.name, target.name, _Packet(to, node.address, data))

    def _arrive(self, node: SimNode, packet: _Packet) -> None:
        if node.address not in packet.to:
            self.world.count("old_address")
            return
        peer = next(n for n in self.nodes.values() if n.address == packet.origin)
        node.heard_from[peer.node_id] = packet.origin
        self.feed(node, PacketIn(peer.node_id, packet.data))

    def _sync(self, node: SimNode, peer: SimNode) -> None:
        """A request over a stream: both ways whole, or a failure that the asker hears of."""
        self.world.count("sync")
        faults = self.network.faults
        delay_s = self.rng.uniform(faults.delay_min_s, faults.delay_max_s)
        assert node.machine is not None
        asked = SyncIn(node.node_id, tuple(node.machine.view()), news=node.machine.events.told())
        self.world.after(2 * delay_s, self._sync_ask, node, node.boot, peer, asked, delay_s)

    def _sync_ask(
        self, node: SimNode, boot: int, peer: SimNode, asked: SyncIn, delay_s: float
    ) -> None:
        broken = self.network.is_cut(node.name, peer.name) or peer.machine is None or peer.paused
        if broken or self.network.is_cut(peer.name, node.name):
            failed = SyncFailed(peer.node_id)
            self.world.after(_STREAM_TIMEOUT_S, self._fire, node, boot, failed)
            return
        assert peer.machine is not None
        news = peer.machine.events.told(asked.news)
        answer = SyncIn(peer.node_id, tuple(peer.machine.view()), answer=True, news=news)
        peer.heard_from[node.node_id] = node.address
        node.heard_from[peer.node_id] = peer.address
        self.world.after(delay_s, self._fire, node, boot, answer)
        self.feed(peer, asked)

    def _stream_probe(self, node: SimNode, effect: StreamProbe) -> None:
        """Over a stream; a cut stops it, loss does not."""
        self.world.count("stream_probe")
        peer = self._by_id[effect.peer]
        broken = self.network.is_cut(node.name, peer.name) or peer.machine is None or peer.paused
        reached = not broken and not self.network.is_cut(peer.name, node.name)
        delay_s = 2 * self.rng.uniform(
            self.network.faults.delay_min_s, self.network.faults.delay_max_s
        )
        answer = StreamAnswered(effect.peer, effect.sequence, reached)
        self.world.after(
            delay_s if reached else effect.timeout_s, self._fire, node, node.boot, answer
        )

    def _stop(self, node: SimNode) -> None:
        self._trouble(node)
        node.machine = None
        node.paused = False
        self.network.detach(node.name)

    def _trouble(self, *nodes: SimNode) -> None:
        for node in nodes:
            node.troubled_at = self.world.now

    # ---- checking -------------------------------------------------------------------------

    def _changed(self, node: SimNode, change: Changed) -> None:
        before, after = change.before, change.after
        if after is None:
            return
        self.world.note(node.name, after.node_id, after.state, after.incarnation)
        subject = self._by_id[after.node_id]
        if after.state is SUSPECT:
            self.world.count("suspicion")
        if before is None:
            return
        if before.state is SUSPECT and after.state is ALIVE:
            self.world.count("refutation")
        if after.incarnation < before.incarnation:
            self.world.violate(
                f"{node.name}: {subject.name} fell from {before.incarnation} to {after.incarnation}"
            )
        lives = before.incarnation >> START_SHIFT, after.incarnation >> START_SHIFT
        if before.state is LEFT and lives[0] >= lives[1]:
            self.world.violate(f"{node.name}: {subject.name} came back {after.state} after leaving")
        if after.state is DEAD:
            self.world.count("death")
            if self._well(subject) and self._well(node):
                self.world.violate(f"{node.name} declared {subject.name} dead, which is well")

    def _check_patience(self, node: SimNode, change: Changed) -> None:
        if change.before is None or change.before.state is not SUSPECT:
            return
        subject = self._by_id[change.before.node_id].name
        lasted_s = self.world.now - change.before.changed_at
        refused_at = self._refused.get((node.name, subject), -math.inf)
        least_s = self.config.suspicion_mult * self.config.probe_interval_s
        since_s = self.world.now - refused_at
        # The refusal came before the suspicion by three quick pings, or while it lasted.
        within_s = self.config.refused_suspicion_s, lasted_s + HINT_S
        hinted = within_s[0] - 1e-6 <= since_s <= within_s[1] + 1e-6
        if lasted_s < least_s - 1e-6 and not hinted:
            self.world.violate(f"{node.name} gave {subject} only {lasted_s:.3f} s to object")

    def _well(self, node: SimNode) -> bool:
        long_ago = self.world.now - node.troubled_at > _EXCUSE_S
        return node.machine is not None and not node.paused and not self._cut_off(node) and long_ago

    def _cut_off(self, node: SimNode) -> bool:
        """True if a cut lies between this host and any other."""
        return any(
            self.network.is_cut(node.name, other) or self.network.is_cut(other, node.name)
            for other in self.nodes
        )


def _is_true(member: Member | None, node: SimNode) -> bool:
    if node.machine is not None and not node.left:
        me = node.machine.get(node.node_id)
        assert me is not None
        return member is not None and replace(member, changed_at=me.changed_at) == me
    if member is None:
        return True
    if member.state is DEAD:
        return not node.left or node.unheard  # Its goodbye may have reached nobody.
    # It may have left, started again and crashed before anyone heard that it was back.
    return member.state is LEFT and (node.left or member.incarnation >> START_SHIFT < node.boot)


# ---- sweeps -----------------------------------------------------------------------------


@dataclass(slots=True)
class Report:
    """What a sweep found. `counts` holds faults and what they led to, by name."""

    seeds: int = 0
    violations: list[tuple[int, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


NAMES: Final = ("n0", "n1", "n2", "n3", "n4")
# What must have happened at least once in a sweep for it to prove anything.
EXPECTED: Final = (
    "loss", "duplicate", "delay", "partition", "one_way_cut", "crash", "restart", "reset",
    "pause", "leave", "address_change", "suspicion", "refutation", "death", "sync",
    "datagrams_blocked", "stream_probe",
)  # fmt: skip


def run_seed(seed: int, machine: type[SwimMachine] = SwimMachine) -> SwimWorld:
    """A minute of faults and a minute of peace; the violations are in the world."""
    sim = SwimWorld(seed, NAMES, faults=CHAOS_FAULTS, machine=machine)
    sim.start_all()
    sim.run_for(5.0)
    end = sim.world.now + CHAOS_S
    while sim.world.now < end:
        sim.run_for(sim.rng.uniform(1.0, 8.0))
        disturb(sim)
    make_peace(sim)
    sim.run_for(SETTLE_S)
    for text in sim.disagreements():
        sim.world.violate(f"after {SETTLE_S:.0f} s of peace {text}")
    return sim


def sweep(seeds: range, machine: type[SwimMachine] = SwimMachine) -> Report:
    """Run each seed and gather what it violated and counted."""
    report = Report()
    for seed in seeds:
        world = run_seed(seed, machine).world
        report.seeds += 1
        report.violations += [(seed, text) for text in world.violations]
        report.counts.update(world.counts)
    return report


def disturb(sim: SwimWorld) -> None:
    """One fault, or the end of one. Hosts that were never started stay down."""
    running = sim.running()
    down = [n for n in sim.nodes.values() if n.machine is None and n.boot]
    paused = [n for n in running if n.paused]
    awake = [n for n in running if not n.paused]
    rng = sim.rng
    choice = rng.choice(
        ("crash", "restart", "restart", "cut", "one_way", "block", "heal", "pause", "leave")
    )
    if choice == "crash" and len(running) > 2:
        sim.crash(rng.choice(running).name, hint=rng.random() < 0.5)
    elif choice == "restart" and down:
        _restart(sim, rng.choice(down))
    elif choice in ("cut", "one_way"):
        some = rng.sample(list(sim.nodes), rng.choice((1, 2)))
        sim.cut(some, one_way=choice == "one_way")
    elif choice == "block":
        sim.block_datagrams(*rng.sample(list(sim.nodes), 2))
    elif choice == "heal":
        sim.heal()
    elif choice == "pause" and paused:
        sim.resume(rng.choice(paused).name)
    elif choice == "pause" and awake:
        sim.pause(rng.choice(awake).name)
    elif choice == "leave" and len(awake) > 3:
        sim.leave(rng.choice(awake).name)


def _restart(sim: SwimWorld, node: SimNode) -> None:
    """Start again: with all others as seeds, with one, or with none, to be found by the others.

    The others do not look for one that left, nor find one that moved: it must know them.
    """
    gone = node.left or any(
        member.node_id == node.node_id and member.state is LEFT
        for other in sim.running()
        if other.machine is not None
        for member in other.machine.members()
    )
    others = [name for name in sim.nodes if name != node.name]
    moved = sim.rng.random() < 0.3
    if gone or moved:
        sim.start(node.name, *others, moved=moved)
    else:
        sim.start(node.name, *sim.rng.sample(others, sim.rng.choice((0, 1, len(others)))))


def make_peace(sim: SwimWorld) -> None:
    sim.heal()
    sim.network.faults = LinkFaults()
    for node in sim.nodes.values():
        if node.paused:
            sim.resume(node.name)
