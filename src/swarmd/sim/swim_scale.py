"""Membership at scale: 10 to 10,000 members in one process, on virtual time, from one seed.

Each member is the production machine (`swim_shared`: over stores that may be shared). `SwimWorld`
of `swim` checks promises in small swarms under every fault; this one measures large ones, so it
does less at each step. What it models:

- Datagrams take as long as measured on loopback (`LOOPBACK_S`), and are lost by chance.
- A stream is an exchange there and back after a connection was made, as long as measured
  (`CONNECT_S`). Loss makes it slower, not fail: what is lost is sent again after 0.2 s, 0.4 s...
- Cuts stop both, in one direction or both.
- A stalled process (SIGSTOP) does nothing; when it goes on it finds what came meanwhile, as much
  of it as a socket holds.
- A killed process may have its host reset its connections, or not.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from swarmd.base.ids import NodeId, digest
from swarmd.base.machine import Effect, Event, Send, SetTimer
from swarmd.mesh.events.machine import Kept
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.events import (
    Changed,
    Departed,
    HowClosed,
    Join,
    PacketIn,
    Refused,
    SetMeta,
    Started,
    StreamAnswered,
    StreamClosed,
    StreamProbe,
    SyncFailed,
    SyncIn,
    SyncWith,
)
from swarmd.mesh.swim.members import Record
from swarmd.mesh.swim.messages import (
    MemberState,
    Meta,
    encode_meta,
    encode_statement,
    make_rumour,
)
from swarmd.sim.swim import SimSigner
from swarmd.sim.swim_shared import Agreed, SharedMachine
from swarmd.sim.world import World
from swarmd.wire.version import PROTOCOL_LOWEST, PROTOCOL_VERSION

ALIVE, SUSPECT, DEAD, LEFT = MemberState
# How long a datagram takes from one process to another on one machine, sealed and opened: the
# middles of 20 equal parts of 2,000, which `scripts/loopback_delays.py` measured on two cores while
# others kept them busy.
LOOPBACK_S: Final = (
    0.000163, 0.000189, 0.000220, 0.000247, 0.000277, 0.000301, 0.000327, 0.000351, 0.000369,
    0.000383, 0.000393, 0.000402, 0.000412, 0.000423, 0.000432, 0.000443, 0.000455, 0.000483,
    0.004106, 0.006794,
)  # fmt: skip
# A connection with TLS and both hellos, and an answer over it, likewise.
CONNECT_S: Final = (
    0.013968, 0.093086, 0.101510, 0.110646, 0.116762, 0.127444, 0.136627, 0.150197, 0.155671,
    0.164422, 0.181074, 0.199169, 0.205201, 0.218436, 0.224073, 0.227748, 0.229533, 0.246335,
    0.276434, 0.305978,
)  # fmt: skip
# What the transport adds to a packet (sealing), and IPv4 and UDP.
DATAGRAM_OVERHEAD_BYTES: Final = 33 + 28
# TLS record, TCP and IPv4, for each segment of a stream.
SEGMENT_BYTES: Final = 1_400
SEGMENT_OVERHEAD_BYTES: Final = 40 + 22
# Of what comes while a process stands still its socket keeps so many.
HELD_PACKETS_MAX: Final = 256
_RESEND_S: Final = 0.2
_RESENDS_MAX: Final = 6
_STREAM_TIMEOUT_S: Final = 5.0
# Whoever is "long here" started so long ago.
_LONG_AGO_S: Final = 60.0
_VIOLATIONS_MAX: Final = 100


class ScaleMember:
    """A host and its process: `machine` is None while it is down."""

    __slots__ = (
        "blind",
        "boot",
        "bytes_out",
        "excused",
        "held",
        "machine",
        "name",
        "node_id",
        "number",
        "packets_held",
        "packets_out",
        "stalled",
        "suspects",
        "syncs",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"n{number}"
        self.node_id = NodeId(digest(b"node", self.name.encode()))
        self.machine: SharedMachine | None = None
        self.boot = 0
        self.stalled = False
        self.held: deque[tuple[Event, int]] = deque()
        self.packets_held = 0
        # Its death is nothing that must not happen: it was starved, cut off or killed.
        self.excused = False
        # It is cut off: what it holds of others is no mistake.
        self.blind = False
        # How many others it suspects.
        self.suspects = 0
        self.packets_out = 0
        self.bytes_out = 0
        self.syncs = 0

    @property
    def up(self) -> bool:
        return self.machine is not None


class ScaleWorld:
    """`count` members; none runs until `start_warm` or `start_cold`.

    `watches` are called with each change of a view; `violations` holds every death of a member
    that was well, and every honest message refused.
    """

    def __init__(
        self,
        seed: int,
        count: int,
        *,
        config: SwimConfig | None = None,
        loss: float = 0.0,
        machine: type[SharedMachine] = SharedMachine,
    ) -> None:
        self.world = World(seed)
        self.config = config or SwimConfig()
        self.loss = loss
        self.rng = self.world.rng_for("scale")
        self.members = [ScaleMember(number) for number in range(count)]
        self.by_id = {member.node_id: member for member in self.members}
        self.watches: list[Callable[[ScaleMember, Changed], None]] = []
        self.false_deaths = 0
        # Deaths of the well are counted and no violation: more is asked of it than is promised.
        self.hopeless = False
        self._cuts: list[tuple[frozenset[int], frozenset[int]]] = []
        self._make = machine
        self._perform: dict[type[Effect], Callable[[ScaleMember, Any], None]] = {
            SetTimer: self._set_timer,
            Send: self._send,
            SyncWith: self._sync,
            Changed: self._changed,
            StreamProbe: self._stream_probe,
            Refused: self._refused,
            Departed: lambda member, effect: self._stop(member),
        }

    # ---- starting and stopping ------------------------------------------------------------

    def start_warm(self, *, dead: int = 0, but: int = 0) -> None:
        """Everybody has long been here and knows everybody, and `dead` others that died.

        The last `but` of the members are not started.
        """
        here = self.members[: len(self.members) - but]
        for member in here:
            member.boot = 1
            member.machine = self._build(member, self.world.now - _LONG_AGO_S, Kept(0))
        records = [m.machine.own_record() for m in here if m.machine is not None]
        agreed = Agreed([*records, *map(self._long_dead, range(dead))], self.rng)
        for member in here:
            assert member.machine is not None
            member.machine.adopt(agreed)
            self.feed(member, Started())

    def start_cold(self, seeds: int = 3) -> None:
        """Everybody starts at once, with a fresh memory and the first few as static seeds."""
        for member in self.members:
            self.start(member, seeds)

    def start(self, member: ScaleMember, seeds: int = 3) -> None:
        assert member.machine is None, member.name
        member.boot += 1
        member.held.clear()
        member.packets_held = member.suspects = 0
        member.machine = self._build(member, self.world.now)
        self.feed(member, Started())
        self.feed(member, Join(tuple(one.node_id for one in self.members[:seeds])))

    def _build(self, member: ScaleMember, now: float, kept: Kept | None = None) -> SharedMachine:
        return self._make(
            member.node_id,
            self.config,
            self.world.rng_for(f"{member.name}:{member.boot}"),
            SimSigner(member.node_id),
            self.meta_of(member),
            member.boot,
            now,
            kept=kept,
            founder=member is self.members[0],
        )

    def meta_of(self, member: ScaleMember, tag: str = "") -> Meta:
        """What a member says about itself; `tag` makes it something else than before."""
        return Meta(
            member.name,
            addresses=((f"10.{member.number >> 16}.{member.number >> 8 & 255}.1", 7575),),
            roles=("worker",),
            version="1",
            tags=(("tag", tag),) if tag else (),
            protocol=PROTOCOL_VERSION,
            protocol_lowest=PROTOCOL_LOWEST,
        )

    def _long_dead(self, number: int) -> Record:
        name, accuser = f"gone{number}", self.members[0].node_id
        gone = NodeId(digest(b"node", name.encode()))
        said = encode_statement(ALIVE, gone, 1, author=gone, body=encode_meta(Meta(name)))
        record = Record(make_rumour(said, SimSigner(gone).sign_rumour(said)), -2 * _LONG_AGO_S)
        said = encode_statement(DEAD, gone, 1, author=accuser)
        record.evidence = make_rumour(said, SimSigner(accuser).sign_rumour(said))
        record.state = DEAD
        return record

    def kill(self, member: ScaleMember, *, reset: bool = False) -> None:
        """End a process without a word. With `reset`, its host answers for it that it is gone."""
        keepers = self._keepers(member) if reset else []
        member.excused = True
        self._stop(member)
        for keeper in keepers:
            hows: tuple[HowClosed, ...] = ("reset", "refused")
            for how in hows:
                delay_s = 2 * self._delay_s()
                event = StreamClosed(member.node_id, how)
                self.world.after(delay_s, self._fire, keeper, keeper.boot, event)

    def _keepers(self, member: ScaleMember) -> list[ScaleMember]:
        """Who keeps a connection with `member`: those it watches, and those who watch it.

        To ask all of ten thousand for their choice would be a hundred million hashes: so only
        those are asked for whom it ranks high enough that it may be chosen at all.
        """
        machine = member.machine
        assert machine is not None
        others = [one for one in self.members if one is not member and one.machine is not None]
        least = 255 if len(others) > 5_000 else 0
        watched = set(machine.choice())
        return [
            one for one in others if one.node_id in watched or self._watches(one, member, least)
        ]

    def _watches(self, one: ScaleMember, member: ScaleMember, least: int) -> bool:
        if digest(b"watch", one.node_id, member.node_id)[0] < least:
            return False
        return one.machine is not None and member.node_id in one.machine.choice()

    def _stop(self, member: ScaleMember) -> None:
        member.machine = None
        member.stalled = False

    def stall(self, member: ScaleMember) -> None:
        """SIGSTOP."""
        member.stalled = True

    def go_on(self, member: ScaleMember) -> None:
        """SIGCONT."""
        member.stalled = False
        member.packets_held = 0
        held = list(member.held)
        member.held.clear()
        for event, boot in held:
            self._fire(member, boot, event)

    # ---- the network ----------------------------------------------------------------------

    def cut(self, source: Iterable[int], target: Iterable[int], *, one_way: bool = False) -> None:
        """Nothing passes from some members, by number, to others, nor back unless `one_way`."""
        a, b = frozenset(source), frozenset(target)
        self._cuts.append((a, b))
        if not one_way:
            self._cuts.append((b, a))

    def heal(self) -> None:
        self._cuts.clear()

    def _is_cut(self, source: ScaleMember, target: ScaleMember) -> bool:
        a, b = source.number, target.number
        return any(a in left and b in right for left, right in self._cuts)

    def _delay_s(self) -> float:
        return LOOPBACK_S[int(self.rng.random() * len(LOOPBACK_S))]

    def _connect_s(self) -> float:
        return CONNECT_S[int(self.rng.random() * len(CONNECT_S))]

    def _stream_delay_s(self, legs: int) -> float:
        """How long so many crossings of a stream take, with what is lost sent again."""
        delay_s = 0.0
        for _ in range(legs):
            delay_s += self._delay_s()
            resend_s, tries = _RESEND_S, 0
            while self.loss and tries < _RESENDS_MAX and self.rng.random() < self.loss:
                delay_s += resend_s
                resend_s *= 2
                tries += 1
        return delay_s

    # ---- stepping -------------------------------------------------------------------------

    def run_for(self, duration_s: float) -> None:
        self.world.run_for(duration_s)

    def run_until(self, done: Callable[[], bool], most_s: float, step_s: float = 0.1) -> float:
        """Run until `done`, looked at every `step_s`; the seconds it took, or infinity."""
        began = self.world.now
        while not done():
            if self.world.now - began >= most_s:
                return float("inf")
            self.world.run_for(step_s)
        return self.world.now - began

    def feed(self, member: ScaleMember, event: Event) -> None:
        """Step a member's machine and perform what it asks for."""
        machine = member.machine
        if machine is None:
            return
        if member.stalled:
            self._hold(member, event)
            return
        perform = self._perform
        for effect in machine.handle(event, self.world.now):
            act = perform.get(type(effect))
            if act is not None:
                act(member, effect)

    def _hold(self, member: ScaleMember, event: Event) -> None:
        if isinstance(event, PacketIn):
            if member.packets_held >= HELD_PACKETS_MAX:
                return
            member.packets_held += 1
        member.held.append((event, member.boot))

    def _fire(self, member: ScaleMember, boot: int, event: Event) -> None:
        if member.boot == boot:
            self.feed(member, event)

    def _set_timer(self, member: ScaleMember, effect: SetTimer) -> None:
        self.world.after(effect.delay_s, self._fire, member, member.boot, effect.event)

    def _send(self, member: ScaleMember, effect: Send) -> None:
        data: bytes = effect.message
        member.packets_out += 1
        member.bytes_out += len(data) + DATAGRAM_OVERHEAD_BYTES
        target = self.by_id.get(effect.peer)
        if target is None or (self._cuts and self._is_cut(member, target)):
            return
        if self.loss and self.rng.random() < self.loss:
            return
        self.world.after(self._delay_s(), self.feed, target, PacketIn(member.node_id, data))

    def _sync(self, member: ScaleMember, effect: SyncWith) -> None:
        peer = self.by_id.get(effect.peer)
        if peer is None:
            return
        member.syncs += 1
        assert member.machine is not None
        news = member.machine.events.told()
        asked = SyncIn(member.node_id, tuple(member.machine.view()), news=news)
        delay_s = self._connect_s() + self._stream_delay_s(3)
        self.world.after(delay_s, self._sync_asked, member, member.boot, peer, asked)

    def _sync_asked(self, member: ScaleMember, boot: int, peer: ScaleMember, asked: SyncIn) -> None:
        if not self._connected(member, peer):
            failed = SyncFailed(peer.node_id)
            self.world.after(_STREAM_TIMEOUT_S, self._fire, member, boot, failed)
            return
        assert peer.machine is not None
        news = peer.machine.events.told(asked.news)
        answer = SyncIn(peer.node_id, tuple(peer.machine.view()), answer=True, news=news)
        member.bytes_out += _stream_bytes(asked)
        peer.bytes_out += _stream_bytes(answer)
        self.world.after(self._stream_delay_s(1), self._fire, member, boot, answer)
        self.feed(peer, asked)

    def _stream_probe(self, member: ScaleMember, effect: StreamProbe) -> None:
        peer = self.by_id.get(effect.peer)
        delay_s = effect.timeout_s
        answered = False
        if peer is not None and self._connected(member, peer):
            # Most have no connection yet; where there is one it is faster.
            took_s = self._connect_s() + self._stream_delay_s(3)
            answered, delay_s = took_s < delay_s, min(took_s, delay_s)
        event = StreamAnswered(effect.peer, effect.sequence, answered)
        self.world.after(delay_s, self._fire, member, member.boot, event)

    def _connected(self, member: ScaleMember, peer: ScaleMember) -> bool:
        if peer.machine is None or peer.stalled:
            return False
        return not self._cuts or not (self._is_cut(member, peer) or self._is_cut(peer, member))

    # ---- watching -------------------------------------------------------------------------

    def _changed(self, member: ScaleMember, effect: Changed) -> None:
        before, after = effect.before, effect.after
        if before is not None and before.state is SUSPECT:
            member.suspects -= 1
        if after is not None and after.state is SUSPECT:
            member.suspects += 1
        if after is not None and after.state is DEAD:
            subject = self.by_id.get(after.node_id)
            if subject is not None and not subject.excused and not member.blind:
                self.false_deaths += 1
                if not self.hopeless:
                    self._violate(f"{member.name} declared {subject.name} dead, which is well")
        for watch in self.watches:
            watch(member, effect)

    def _refused(self, member: ScaleMember, effect: Refused) -> None:
        self._violate(f"{member.name} refused an honest message: {effect.reason}")

    def _violate(self, text: str) -> None:
        if len(self.world.violations) < _VIOLATIONS_MAX:
            self.world.violate(text)

    def up(self) -> list[ScaleMember]:
        return [member for member in self.members if member.machine is not None]

    def agreed(self) -> bool:
        """True if all who run hold exactly those who run alive, at the same incarnations."""
        up = self.up()
        if any(member.suspects for member in up):
            return False
        digests = {member.machine.view_digest() for member in up if member.machine}
        first = up[0].machine
        return len(digests) == 1 and first is not None and first.present_count() == len(up)

    def change_something(self, member: ScaleMember, tag: str) -> None:
        """Let a member say something else about itself."""
        self.feed(member, SetMeta(self.meta_of(member, tag)))


def _stream_bytes(view: SyncIn) -> int:
    rumours = view.rumours
    size = sum(map(len, rumours)) + 3 * len(rumours) + len(view.news) + 64
    return size + -(-size // SEGMENT_BYTES) * SEGMENT_OVERHEAD_BYTES


@contextmanager
def many_objects() -> Iterator[None]:
    """Collect no garbage meanwhile: looking through millions of live objects is all it would do."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
        gc.collect()
