"""User events in membership's packets and views."""

from __future__ import annotations

from typing import Annotated

import msgspec
from swim_bench import ALIVE, Bench, node, rumour

from swarmd.base.machine import Send
from swarmd.mesh.events.events import Happened, SendEvent
from swarmd.mesh.events.messages import decode_event, decode_told, encode_said, make_event
from swarmd.mesh.swim.events import NewsTick, PacketIn, SyncIn, SyncWith, TrustChanged
from swarmd.mesh.swim.messages import PACKET_BYTES_MAX, PACKETS, SWIM, Gossip, Sync
from swarmd.wire.codec import Family, Growing


class OlderGossip(Growing, frozen=True, tag=5):
    rumours: Annotated[list[bytes], msgspec.Meta(max_length=64)]


class OlderSync(Growing, frozen=True, tag=1):
    rumours: Annotated[list[bytes], msgspec.Meta(max_length=100)]


def placed() -> Bench:
    """A machine that knows peers, and the swarm's events."""
    bench = Bench()
    bench.now = 20.0
    bench.handle(SendEvent(0, "first", "", 0))  # Alone, it knows all there was.
    bench.tell(*(rumour(ALIVE, name, 1) for name in ("peer", "a", "b", "c")))
    bench.handle(NewsTick())
    while bench.machine.events.queue.take(2_000, 1, 64):
        pass
    return bench


def gossip(bench: Bench) -> list[Gossip]:
    return [PACKETS.decode(e.message) for e in bench.effects if isinstance(e, Send)]


def event(time: int = 9, by: str = "a") -> bytes:
    return make_event(encode_said(time, node(by), "deploy", "v2", 0), bytes(64)).raw


def test_an_older_build_reads_what_this_one_sends_and_the_other_way_round() -> None:
    older = Family("swim-packet", OlderGossip, message_bytes_max=PACKET_BYTES_MAX)
    assert older.decode(PACKETS.encode(Gossip([b"r"], [event()]))).rumours == [b"r"]
    assert PACKETS.decode(older.encode(OlderGossip([b"r"]))) == Gossip([b"r"], [])
    older_views = Family("swim", OlderSync)
    assert older_views.decode(SWIM.encode(Sync([b"r"], b"told"))).rumours == [b"r"]
    assert SWIM.decode(older_views.encode(OlderSync([b"r"]))) == Sync([b"r"], b"")


def test_what_a_node_sends_goes_to_all_of_a_small_swarm_at_once() -> None:
    bench = placed()
    bench.handle(SendEvent(1, "x" * 128, "y" * 512, 2**60))
    bench.handle(NewsTick())
    told = gossip(bench)
    assert len(told) == 4
    assert all([decode_event(raw).payload for raw in one.news] == ["y" * 512] for one in told)


def test_events_go_with_rumours_and_no_packet_is_too_large() -> None:
    bench = placed()
    bench.handle(SendEvent(1, "x" * 128, "y" * 512, 2**60))
    for number in range(6):
        bench.tell(rumour(ALIVE, f"new{number}", 1, meta="z" * 60))
    bench.handle(NewsTick())
    sent = [e.message for e in bench.effects if isinstance(e, Send)]
    assert sent
    assert all(len(one) <= PACKET_BYTES_MAX for one in sent)
    assert all(one.rumours for one in gossip(bench))


def test_an_event_that_is_heard_is_told_and_passed_on() -> None:
    bench = placed()
    bench.handle(PacketIn(node("peer"), PACKETS.encode(Gossip([], [event(), event()]))))
    assert [e.event.payload for e in bench.effects if isinstance(e, Happened)] == ["v2"]
    bench.handle(NewsTick())
    assert [one.news for one in gossip(bench)] == [[event()]] * 3


def test_who_holds_other_events_is_asked_in_return_but_not_again_and_again() -> None:
    bench = placed()
    other = placed()
    other.handle(PacketIn(node("peer"), PACKETS.encode(Gossip([], [event()]))))
    asked = SyncIn(node("peer"), (), news=other.machine.events.told())
    for expected in (1, 0):
        bench.handle(asked)
        assert sum(isinstance(e, SyncWith) for e in bench.effects) == expected
    bench.now += 3.0
    bench.handle(asked)
    assert sum(isinstance(e, SyncWith) for e in bench.effects) == 1
    mine = bench.machine.events.told()
    answer = SyncIn(node("peer"), (), answer=True, news=other.machine.events.told(mine))
    bench.handle(answer)
    assert [e.event.payload for e in bench.effects if isinstance(e, Happened)] == ["v2"]


def test_who_is_evicted_has_sent_nothing() -> None:
    bench = placed()
    bench.handle(PacketIn(node("peer"), PACKETS.encode(Gossip([], [event()]))))
    before = len(bench.machine.events.recent())
    bench.signer.unknown.append(node("a"))
    bench.handle(TrustChanged(frozenset({node("a")})))
    assert len(bench.machine.events.recent()) == before - 1
    bench.handle(PacketIn(node("peer"), PACKETS.encode(Gossip([], [event()]))))
    assert not any(isinstance(e, Happened) for e in bench.effects)
    assert decode_told(bench.machine.events.told()).events == []
