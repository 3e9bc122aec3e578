"""The stream hello: bound to both keys, to the plane and to the swarm."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from small_swarm import KEYS

from swarmd.base.errors import BadSignature, MalformedMessage, RemoteError
from swarmd.identity.keys import Exchange
from swarmd.mesh.link import Lane
from swarmd.mesh.transports.hello import (
    HELLO,
    HELLO_BYTES_MAX,
    Hello,
    Refused,
    make_session,
    read_hello,
    receive_part,
    refusal,
    send_part,
    sign_hello,
)
from swarmd.mesh.transports.mux import Item, Kind

SWARM = bytes(32)
A, B, C = KEYS[:3]
ITEM = Item(Kind.MESSAGE, Lane.CONTROL, "talk", 0, b"x")


def hello(**changes: object) -> Hello:
    fields = {
        "version": 1,
        "receiver": B.key_id,
        "alpn": "swarmd/1",
        "exchange": bytes(32),
        "boot": b"bootboot",
        "number": 1,
        "port": 7575,
    }
    return Hello(**{**fields, **changes})  # type: ignore[arg-type]


def read(raw: bytes) -> Hello:
    return read_hello(raw, SWARM, peer_public=A.public, me=B.key_id, alpn="swarmd/1")


def test_a_hello_is_read_as_it_was_signed() -> None:
    assert read(sign_hello(hello(), SWARM, A)) == hello()


@pytest.mark.parametrize(
    "raw",
    [
        sign_hello(hello(), b"o" * 32, A),
        sign_hello(hello(), SWARM, C),
        sign_hello(hello(receiver=C.key_id), SWARM, A),
        sign_hello(hello(alpn="swarmd-raft/1"), SWARM, A),
    ],
    ids=["other swarm", "other key", "other receiver", "other plane"],
)
def test_a_hello_of_another_binding_is_refused(raw: bytes) -> None:
    with pytest.raises(BadSignature):
        read(raw)


def test_every_altered_byte_is_noticed() -> None:
    raw = sign_hello(hello(), SWARM, A)
    for at in range(len(raw)):
        with pytest.raises(RemoteError):
            read(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])


@pytest.mark.parametrize(("said", "made"), [(2, 1), (1, 2)])
def test_nobody_between_can_lower_or_raise_the_version(said: int, made: int) -> None:
    payload = HELLO.encode(hello(version=said))
    altered = sign_hello(hello(version=said), SWARM, A).replace(
        payload, HELLO.encode(hello(version=made))
    )
    assert altered != sign_hello(hello(version=said), SWARM, A)
    with pytest.raises(BadSignature):
        read(altered)


def test_a_refusal_says_why() -> None:
    with pytest.raises(Refused, match="duplicate"):
        read(refusal("duplicate"))


@pytest.mark.parametrize("raw", [b"", b"\x00", b"\x03abc", b"\x02\xc1", b"\x01" + bytes(50)])
def test_junk_is_malformed(raw: bytes) -> None:
    with pytest.raises(MalformedMessage):
        read(raw)


def test_a_session_has_two_keys_and_both_sides_the_same() -> None:
    mine, theirs = Exchange(), Exchange()
    client = make_session(mine, theirs.public, "swarmd/1", opener=True)
    server = make_session(theirs, mine.public, "swarmd/1", opener=False)
    forth, back = client.sealer.seal([ITEM]), server.sealer.seal([ITEM])
    assert forth != back
    with pytest.raises(BadSignature):
        client.opener.open(forth)  # A reflected frame.
    assert server.opener.open(forth) == client.opener.open(back) == [ITEM]


def test_a_session_of_another_plane_has_other_keys() -> None:
    mine, theirs = Exchange(), Exchange()
    client = make_session(mine, theirs.public, "swarmd/1", opener=True)
    server = make_session(theirs, mine.public, "swarmd-raft/1", opener=False)
    with pytest.raises(BadSignature):
        server.opener.open(client.sealer.seal([ITEM]))


async def test_parts_are_framed_and_bounded() -> None:
    left, right = trio.testing.memory_stream_pair()
    await send_part(left, b"one")
    await send_part(left, b"")
    assert await receive_part(right) == b"one"
    assert await receive_part(right) == b""
    await left.send_all((HELLO_BYTES_MAX + 1).to_bytes(2, "big"))
    with pytest.raises(MalformedMessage):
        await receive_part(right)


async def test_a_stream_that_ends_within_a_part_is_broken() -> None:
    left, right = trio.testing.memory_stream_pair()
    await left.send_all(b"\x00\x09abc")
    await left.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await receive_part(right)
