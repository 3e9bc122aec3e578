"""A swarm in which two builds run that differ by one version, as while it is upgraded.

The other build is the same machine with another codec: its packets, its statements and what it
says of itself have fields at their ends which the present build does not know.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from swarmd.base.errors import TooLarge
from swarmd.mesh.swim.events import StreamProbe
from swarmd.mesh.swim.ledger import Ledger
from swarmd.mesh.swim.machine import SwimMachine
from swarmd.mesh.swim.messages import (
    PACKET_BYTES_MAX,
    Ack,
    Gossip,
    MemberState,
    Meta,
    Nack,
    Ping,
    PingFor,
    Rumour,
    Statement,
    encode_meta,
    make_rumour,
)
from swarmd.sim.network import LinkFaults
from swarmd.sim.swim import CHAOS_FAULTS, SimNode, SwimWorld
from swarmd.wire.codec import Family, encode_struct
from swarmd.wire.version import PROTOCOL_VERSION, common_version

NAMES = tuple(f"n{number}" for number in range(6))
# What a later build may say in a packet besides, beside as many rumours as fit.
MORE = (0.25,) * 10


class NextPing(Ping, frozen=True, tag=1):
    more: tuple[float, ...] = ()
    news: tuple[bytes, ...] = ()


class NextPingFor(PingFor, frozen=True, tag=2):
    news: tuple[bytes, ...] = ()


class NextAck(Ack, frozen=True, tag=3):
    more: tuple[float, ...] = ()
    news: tuple[bytes, ...] = ()


class NextNack(Nack, frozen=True, tag=4):
    why: str = ""


class NextGossip(Gossip, frozen=True, tag=5):
    news: tuple[bytes, ...] = ()


class NextMeta(Meta, frozen=True):
    later: tuple[str, ...] = ()


class NextStatement(Statement, frozen=True):
    later: tuple[str, int] = ("", 0)


class NextFamily(Family):
    """Packets as the next version has them; counts what it gets of them."""

    def __init__(self) -> None:
        kinds = (NextPing, NextPingFor, NextAck, NextNack, NextGossip)
        super().__init__("swim-packet", *kinds, message_bytes_max=PACKET_BYTES_MAX)
        self.later = self.earlier = 0

    def encode(self, message: Any) -> bytes:
        fields = msgspec.structs.asdict(message)
        if isinstance(message, Ping | Ack):
            fields["more"] = MORE
        if isinstance(message, Nack):
            fields["why"] = "silent"
        else:
            fields["news"] = (b"news", b"more")
        kind: Any = next(k for k in self.types if issubclass(k, type(message)))
        try:
            return super().encode(kind(**fields))
        except TooLarge:  # Its rumours were chosen by the present build's budget.
            return super().encode(message)

    def decode(self, raw: bytes) -> Any:
        message = super().decode(raw)
        if isinstance(message, Ping | Ack):
            more: Any = getattr(message, "more", ())
            assert more in ((), MORE)
            self.later += bool(more)
            self.earlier += not more
        return message


class NextLedger(Ledger):
    def _say(self, kind: MemberState, subject: Any, incarnation: int) -> Rumour:
        alive = kind is MemberState.ALIVE
        own = kind in (MemberState.ALIVE, MemberState.LEFT)
        said = NextStatement(
            kind,
            subject,
            incarnation,
            b"" if own else self.me,
            encode_meta(self._meta) if alive else b"",
            later=("a", 1),
        )
        statement = encode_struct(said)
        return make_rumour(statement, self._signer.sign_rumour(statement))


class NextMachine(SwimMachine):
    ledger_type = NextLedger
    packets = NextFamily()


class MixedWorld(SwimWorld):
    """`newer` run the next build; both say which versions they speak."""

    def __init__(self, seed: int, newer: tuple[str, ...], **more: Any) -> None:
        super().__init__(seed, NAMES, **more)
        self.newer = newer

    def build_of(self, name: str) -> type[SwimMachine]:
        return NextMachine if name in self.newer else SwimMachine

    def meta_of(self, node: SimNode) -> Meta:
        meta = super().meta_of(node)
        if node.name not in self.newer:
            return meta
        fields = msgspec.structs.asdict(meta) | {"protocol": PROTOCOL_VERSION + 1}
        return NextMeta(**fields, later=("what", "nobody", "knows"))

    def rumour_of(self, watcher: str, name: str) -> Rumour:
        machine, node = self.nodes[watcher].machine, self.nodes[name]
        assert machine is not None
        record = machine._ledger.members.get(node.node_id)
        assert record is not None
        return record.alive


@pytest.mark.parametrize("newer", [NAMES[:1], NAMES[:3], NAMES[1:]])
@pytest.mark.parametrize("seed", range(3))
def test_builds_that_differ_by_one_version_are_one_swarm(seed: int, newer: tuple[str, ...]) -> None:
    """Goal: members of either build see each other join, fail, be doubted, and leave.

    Method: six members; loss, a frozen one that refutes, a crash of each build, a partition, a
    leaver, and one that is upgraded by a restart. `SwimWorld` refuses what an honest member
    refuses of another, and what is wrong in anybody's view.
    """
    world = MixedWorld(seed, newer, faults=CHAOS_FAULTS)
    NextMachine.packets = NextFamily()
    world.start_all()
    world.run_for(10.0)
    assert not world.disagreements()
    world.pause(NAMES[1])
    world.run_for(4.0)
    world.resume(NAMES[1])
    world.cut(NAMES[2:4])
    world.run_for(15.0)
    world.heal()
    for name in (NAMES[0], NAMES[5]):
        world.crash(name)
    world.run_for(30.0)
    world.leave(NAMES[4])
    world.newer = (*newer, NAMES[5])
    world.start(NAMES[5], *NAMES[1:])
    world.start(NAMES[0], *NAMES[1:])
    world.run_for(60.0)
    assert not world.disagreements()
    assert not world.world.violations
    assert NextMachine.packets.later
    assert NextMachine.packets.earlier


class PastWorld(SwimWorld):
    """Two members run the version before: they do not know what a `StreamPing` is."""

    older = NAMES[:2]

    def meta_of(self, node: SimNode) -> Meta:
        meta = super().meta_of(node)
        highest = PROTOCOL_VERSION - (node.name in self.older)
        fields = msgspec.structs.asdict(meta)
        return Meta(**fields | {"protocol": highest, "protocol_lowest": PROTOCOL_VERSION - 1})

    def _stream_probe(self, node: SimNode, effect: StreamProbe) -> None:
        if {node.name, self._by_id[effect.peer].name} & set(self.older):
            self.world.violate(f"{node.name} sent what an older build does not know")
        super()._stream_probe(node, effect)


def test_an_older_build_is_sent_no_message_that_it_does_not_know() -> None:
    world = PastWorld(3, NAMES, faults=CHAOS_FAULTS)
    world.start_all()
    world.run_for(10.0)
    for name in (NAMES[1], NAMES[4]):
        world.crash(name)
        world.run_for(30.0)
        world.start(name, NAMES[2])
        world.run_for(30.0)
    assert not world.world.violations
    assert world.world.counts["stream_probe"]
    assert world.world.counts["death"]
    world.network.faults = LinkFaults()
    world.run_for(30.0)
    assert not world.disagreements()


def test_what_a_relay_does_not_know_survives_it_under_its_signature() -> None:
    """The newer two never meet: all that one hears of the other has passed through older ones."""
    world = MixedWorld(1, (NAMES[0], NAMES[5]))
    world.network.cut([NAMES[0]], [NAMES[5]])
    for name in NAMES:
        world.start(name, NAMES[1])
    world.run_for(3.0)
    said = world.rumour_of(NAMES[0], NAMES[0])
    heard = world.rumour_of(NAMES[5], NAMES[0])
    assert heard.raw == said.raw
    said_by_it = msgspec.msgpack.decode(heard.statement, type=NextStatement)
    assert msgspec.msgpack.decode(said_by_it.body, type=NextMeta).later == (
        "what",
        "nobody",
        "knows",
    )
    assert said_by_it.later == ("a", 1)


def test_each_is_spoken_to_in_the_highest_version_that_both_speak() -> None:
    world = MixedWorld(1, NAMES[:2])
    world.start_all()
    world.run_for(3.0)
    for name, peer, common in (
        (NAMES[0], NAMES[1], PROTOCOL_VERSION + 1),
        (NAMES[0], NAMES[2], PROTOCOL_VERSION),
        (NAMES[2], NAMES[0], PROTOCOL_VERSION),
        (NAMES[2], NAMES[3], PROTOCOL_VERSION),
    ):
        machine = world.nodes[name].machine
        assert machine is not None
        assert machine.version_with(world.nodes[peer].node_id) == common


@pytest.mark.parametrize(
    ("mine", "theirs", "common"),
    [
        ((1, 1), (1, 1), 1),
        ((1, 2), (2, 3), 2),
        ((2, 3), (1, 2), 2),
        ((1, 1), (2, 2), None),
        ((2, 3), (0, 1), None),
        ((1, 2), (2, 1), None),
    ],
)
def test_the_common_version_of_two_ranges(
    mine: tuple[int, int], theirs: tuple[int, int], common: int | None
) -> None:
    assert common_version(mine, theirs) == common
