"""One machine on a bench, and rumours to tell it."""

from __future__ import annotations

from typing import Any

from swarmd.base.ids import NodeId, digest
from swarmd.base.machine import Effect, Event, Send, SetTimer
from swarmd.base.rng import make_rng
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.events import Changed, PacketIn, ProbeTick, Started
from swarmd.mesh.swim.machine import SwimMachine
from swarmd.mesh.swim.messages import (
    PACKETS,
    Gossip,
    MemberState,
    Meta,
    Ping,
    Rumour,
    decode_rumour,
    encode_meta,
    encode_statement,
    make_rumour,
)

ALIVE, SUSPECT, DEAD, LEFT = MemberState


def node(name: str) -> NodeId:
    return NodeId(digest(b"node", name.encode()))


class OpenSigner:
    """Believes everyone but those in `unknown`, if the signature is all zeros."""

    def __init__(self) -> None:
        self.unknown: list[NodeId] = []
        self.roles: dict[NodeId, tuple[str, ...]] = {}

    def sign_rumour(self, statement: bytes) -> bytes:
        return bytes(64)

    def sign_event(self, said: bytes) -> bytes:
        return bytes(64)

    def verify_event(self, origin: NodeId, said: bytes, signature: bytes) -> bool:
        return self.verify_rumour(origin, said, signature)

    def may_be(self, node_id: NodeId) -> tuple[str, ...] | None:
        return self.roles.get(node_id)

    def verify_rumour(self, author: NodeId, statement: bytes, signature: bytes) -> bool:
        return author not in self.unknown and signature == bytes(64)


def rumour(
    kind: MemberState, subject: str, incarnation: int, meta: str = "", by: str = "peer"
) -> Rumour:
    body = encode_meta(Meta(subject, tags=(("value", meta),))) if kind is ALIVE else b""
    author = node(by)
    said = encode_statement(kind, node(subject), incarnation, author=author, body=body)
    return make_rumour(said, bytes(64))


class Bench:
    """One machine, told rumours by a peer; keeps its changes."""

    def __init__(self) -> None:
        self.config = SwimConfig()
        self.signer = OpenSigner()
        self.machine = SwimMachine(
            node("me"), self.config, make_rng(1), self.signer, Meta("me"), 1, now=0.0
        )
        self.now = 1.0
        self.changes: list[Changed] = []
        self.effects: list[Effect] = []
        self.clear()

    def tell(self, *rumours: Rumour) -> list[Effect]:
        data = PACKETS.encode(Gossip([r.raw for r in rumours]))
        return self.handle(PacketIn(node("peer"), data))

    def handle(self, event: Any) -> list[Effect]:
        self.effects = self.machine.handle(event, self.now)
        self.changes += [effect for effect in self.effects if isinstance(effect, Changed)]
        return self.effects

    def get(self, peer: str, packet: Any) -> list[Effect]:
        """Let a packet come from a peer."""
        return self.handle(PacketIn(node(peer), PACKETS.encode(packet)))

    def timer(self, kind: type[Event]) -> SetTimer:
        """The timer of that kind which the last step set."""
        [found] = self.timers(kind)
        return found

    def timers(self, kind: type[Event]) -> list[SetTimer]:
        return [e for e in self.effects if isinstance(e, SetTimer) and isinstance(e.event, kind)]

    def elapse(self, kind: type[Event]) -> list[Effect]:
        """Let the timer of that kind fire."""
        found = self.timer(kind)
        self.now += found.delay_s
        return self.handle(found.event)

    def turn(self, number: int) -> list[Effect]:
        """Let that turn begin, when the one before it is over."""
        self.now = max(self.now, self.machine._probing._tick_due)
        return self.handle(ProbeTick(number))

    def probe(self) -> Ping:
        """Start the machine and let it probe; the ping."""
        self.handle(Started())
        self.elapse(ProbeTick)
        [ping] = self.sent()
        assert isinstance(ping, Ping)
        return ping

    def clear(self) -> None:
        """Forget what is queued, and the changes so far."""
        for waiting in self.machine.queued():
            self.machine._ledger.queue.drop(waiting.subject)
        self.changes.clear()

    def after_telling(self, *rumours: Rumour) -> Bench:
        """Let the rumours be told, and forget everything about how."""
        for one in rumours:
            self.tell(one)
        self.clear()
        self.now += 1.0
        return self

    @property
    def queued(self) -> list[tuple[MemberState, int]]:
        return [(r.kind, r.incarnation) for r in self.machine.queued()]

    def state(self, name: str) -> tuple[MemberState, int]:
        member = self.machine.get(node(name))
        assert member is not None
        return member.state, member.incarnation

    def changed_at(self, name: str) -> float:
        member = self.machine.get(node(name))
        assert member is not None
        return member.changed_at

    def sent(self, name: str = "") -> list[Any]:
        """The packets of the last step, all or those to one node."""
        return [
            PACKETS.decode(effect.message)
            for effect in self.effects
            if isinstance(effect, Send) and (not name or effect.peer == node(name))
        ]

    def know(self, *names: str) -> Bench:
        return self.after_telling(*(rumour(ALIVE, name, 1) for name in names))


def told(packet: Any) -> list[tuple[NodeId, MemberState, int]]:
    """The rumours of a packet."""
    rumours = [decode_rumour(raw) for raw in packet.rumours]
    return [(r.subject, r.kind, r.incarnation) for r in rumours]
