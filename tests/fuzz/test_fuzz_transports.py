"""Any bytes at every door of the transports: an answer or a counted refusal, never a crash."""

from __future__ import annotations

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.base.errors import RemoteError
from swarmd.base.ids import NodeId
from swarmd.identity.authority import Admission
from swarmd.identity.keys import Aead, SigningKey
from swarmd.mesh.addresses import AddressBook
from swarmd.mesh.link import Lane
from swarmd.mesh.transports.frames import FrameOpener
from swarmd.mesh.transports.hello import read_hello
from swarmd.mesh.transports.memory import MemoryNetwork
from swarmd.mesh.transports.mux import Item, Kind
from swarmd.mesh.transports.sessions import HELLO_BYTES, Sessions
from swarmd.wire.codec import Family, Message

KEYS = [SigningKey.from_seed(bytes([number]) * 32) for number in range(1, 4)]
ADDRESS = ("10.0.0.1", 1)


class Say(Message, frozen=True, tag=1):
    number: int


class Roster:
    swarm_id = bytes(32)
    version = 1

    def admissions(self) -> list[Admission]:
        return [Admission(k.key_id, k.public, "n", k.certificate, (), 0, 0, 0) for k in KEYS]

    def admission(self, node_id: NodeId) -> Admission | None:
        return next((a for a in self.admissions() if a.node_id == node_id), None)

    async def changed(self, version: int) -> None:
        raise AssertionError("not waited for")


def sessions() -> Sessions:
    return Sessions(KEYS[0], Roster(), AddressBook())


@settings(max_examples=300)
@given(st.binary(max_size=1_300))
def test_any_datagram(raw: bytes) -> None:
    node = sessions()
    node.receive(raw, ADDRESS, 0.0)
    assert not node.outgoing
    assert not node.delivered
    assert not node.met


@settings(max_examples=300)
@given(st.sampled_from([b"\x01", b"\x02", b"\x04"]), st.binary(max_size=500))
def test_any_datagram_by_who_knows_the_swarm_id(kind: bytes, body: bytes) -> None:
    node = sessions()
    padded = kind != b"\x02"
    raw = node._tagged(kind, body[: HELLO_BYTES - 17] if padded else body, padded=padded)
    node.receive(raw, ADDRESS, 0.0)
    assert not node.outgoing
    assert not node.delivered


@settings(max_examples=300)
@given(st.binary(max_size=HELLO_BYTES - 17 - 32))
def test_any_cookie_for_a_hello_that_is_under_way(rest: bytes) -> None:
    node = sessions()
    node.hello(ADDRESS, 0.0)
    node.outgoing.clear()
    name = next(iter(node._handshakes))
    node.receive(node._tagged(b"\x04", name + rest, padded=True), ADDRESS, 0.0)
    ((target, packet),) = node.outgoing
    assert target == ADDRESS
    assert len(packet) == HELLO_BYTES


@settings(max_examples=200)
@given(st.sampled_from(["udp-hello", "udp-reply"]), st.binary(max_size=200))
def test_any_payload_signed_by_a_member(domain: str, payload: bytes) -> None:
    node = sessions()
    member = Sessions(KEYS[1], Roster(), AddressBook())
    for kind in (b"\x01", b"\x02"):
        node.receive(member._signed(kind, domain, payload), ADDRESS, 0.0)
    assert not node.delivered
    assert not node.met


@settings(max_examples=300)
@given(st.binary(max_size=2_100))
def test_any_stream_hello(raw: bytes) -> None:
    for prefix in (b"", b"\x01", b"\x02"):
        with contextlib.suppress(RemoteError):
            read_hello(
                prefix + raw,
                bytes(32),
                peer_public=KEYS[1].public,
                me=KEYS[0].key_id,
                alpn="swarmd/1",
            )


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_any_batch_under_a_good_tag(batch: bytes) -> None:
    key = bytes(32)
    with contextlib.suppress(RemoteError):
        FrameOpener(key).open(bytes(8) + Aead(key).seal(0, b"", batch) + batch)


ITEMS = st.builds(
    Item,
    st.sampled_from(Kind),
    st.sampled_from(Lane),
    st.sampled_from(["talk", "", "nobody", "\N{SNOWMAN}"]),
    st.integers(-1, 5) | st.integers(-(2**63), 2**64 - 1),
    st.binary(max_size=40) | st.just(b"\x01\x92\x01\x05"),
)


@settings(max_examples=200)
@given(st.lists(ITEMS, max_size=60))
def test_any_items_by_a_proven_peer(items: list[Item]) -> None:
    network = MemoryNetwork()
    a, b = (network.link(key.key_id) for key in KEYS[:2])
    inbox = a.open_inbox(Family("talk", Say), size=5)
    port = network.connect(b, a.node_id)
    port.open_call(Family("talk", Say))
    for item in items:
        port.put_nowait(item)
        port.back.put_nowait(item)
    assert inbox.statistics().current_buffer_used <= 5
    assert len(a.ports[b.node_id].asked) <= 5
