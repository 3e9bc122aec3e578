"""Mutual TLS 1.3 between real sockets: who gets in, on which plane, and who they are."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from swarmd.base.errors import Untrusted
from swarmd.base.ids import NodeId
from swarmd.identity.authority import CREDENTIAL_MS, Admission
from swarmd.identity.keys import SigningKey
from swarmd.identity.tls import (
    JOIN_ALPN,
    MESH_ALPN,
    RAFT_ALPN,
    ContextCache,
    client_context,
    join_context,
    peer_of,
    peer_public_key,
    server_context,
)

ALL = [MESH_ALPN, RAFT_ALPN, JOIN_ALPN]
SERVER = SigningKey.from_seed(b"s" * 32)
CLIENT = SigningKey.from_seed(b"c" * 32)
THIRD = SigningKey.from_seed(b"t" * 32)
STRANGER = SigningKey.from_seed(b"x" * 32)
Stream = trio.SSLStream[trio.abc.Stream]


def admission(key: SigningKey, *, evicted: bool = False) -> Admission:
    return Admission(
        key.key_id, key.public, "n", key.certificate, ("worker",), 1, 0, CREDENTIAL_MS, evicted
    )


def members(*keys: SigningKey) -> dict[NodeId, Admission]:
    return {key.key_id: admission(key) for key in keys}


TRUSTED = members(SERVER, CLIENT, THIRD)


class Outcome:
    """What each side saw of one connection."""

    client_peer: NodeId | None = None
    server_peer: NodeId | None = None
    server_key: bytes | None = None
    server_error: Exception | None = None
    client_error: Exception | None = None
    echoed: bytes = b""


async def meet(
    server: ssl.SSLContext,
    client: ssl.SSLContext,
    *,
    server_trusts: Mapping[NodeId, Admission] = TRUSTED,
    client_trusts: Mapping[NodeId, Admission] = TRUSTED,
) -> Outcome:
    """One connection over 127.0.0.1: shake hands, name each other, echo four bytes."""
    seen = Outcome()
    errors = (trio.BrokenResourceError, Untrusted, ssl.SSLError)

    async def serve(raw: trio.SocketStream) -> None:
        stream = trio.SSLStream[trio.abc.Stream](raw, server, server_side=True)
        try:
            await stream.do_handshake()
            seen.server_peer = peer_of(stream, server_trusts)
            await stream.send_all(await stream.receive_some(4))
        except errors as error:
            seen.server_error = error
        finally:
            await trio.aclose_forcefully(stream)

    async def call(listener: trio.SocketListener) -> None:
        host, port = listener.socket.getsockname()[:2]
        raw = await trio.open_tcp_stream(host, port)
        stream = trio.SSLStream[trio.abc.Stream](raw, client)
        try:
            await stream.do_handshake()
            seen.server_key = peer_public_key(stream)
            seen.client_peer = peer_of(stream, client_trusts)
            await stream.send_all(b"ping")
            seen.echoed = bytes(await stream.receive_some(4))
        except errors as error:
            seen.client_error = error
        finally:
            await trio.aclose_forcefully(stream)

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.fail_after(10):
        async with listener, trio.open_nursery() as nursery:
            nursery.start_soon(call, listener)
            await serve(await listener.accept())
    return seen


def serving(*keys: SigningKey, alpns: Sequence[str] = ALL) -> ssl.SSLContext:
    return server_context(SERVER, members(*keys).values(), alpns)


def calling(key: SigningKey, alpn: str = MESH_ALPN) -> ssl.SSLContext:
    return client_context(key, TRUSTED.values(), [alpn])


async def test_members_meet_and_know_each_other() -> None:
    seen = await meet(serving(SERVER, CLIENT), calling(CLIENT))
    assert (seen.client_peer, seen.server_peer) == (SERVER.key_id, CLIENT.key_id)
    assert seen.echoed == b"ping"


@pytest.mark.parametrize("alpn", ALL)
async def test_an_unknown_certificate_is_refused_on_every_plane(alpn: str) -> None:
    seen = await meet(serving(SERVER, CLIENT), calling(STRANGER, alpn))
    assert isinstance(seen.server_error, trio.BrokenResourceError)
    assert (seen.server_peer, seen.echoed) == (None, b"")


async def test_a_server_that_is_not_admitted_is_refused() -> None:
    impostor = server_context(STRANGER, TRUSTED.values(), ALL)
    seen = await meet(impostor, calling(CLIENT))
    assert isinstance(seen.client_error, trio.BrokenResourceError)
    assert seen.echoed == b""


async def test_a_member_that_is_not_the_one_meant_is_detected() -> None:
    seen = await meet(server_context(THIRD, TRUSTED.values(), ALL), calling(CLIENT))
    assert seen.client_peer == THIRD.key_id != SERVER.key_id


async def test_a_joiner_needs_no_certificate_and_sees_the_servers_key() -> None:
    seen = await meet(serving(SERVER, CLIENT), join_context(), client_trusts=TRUSTED)
    assert (seen.server_peer, seen.server_error) == (None, None)
    assert seen.server_key == SERVER.public
    assert seen.echoed == b"ping"


@pytest.mark.parametrize("alpn", [MESH_ALPN, RAFT_ALPN])
async def test_no_other_plane_opens_without_a_certificate(alpn: str) -> None:
    context = join_context()
    context.set_alpn_protocols([alpn])
    seen = await meet(serving(SERVER, CLIENT), context)
    assert isinstance(seen.server_error, Untrusted)
    assert seen.echoed == b""


async def test_no_common_plane_is_refused() -> None:
    seen = await meet(serving(SERVER, CLIENT, alpns=[MESH_ALPN]), calling(CLIENT, "h2"))
    assert seen.server_error is not None
    assert seen.echoed == b""


async def test_a_peer_without_alpn_is_refused() -> None:
    context = join_context()
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname, bare.verify_mode = False, context.verify_mode
    seen = await meet(serving(SERVER, CLIENT), bare)
    assert isinstance(seen.server_error, Untrusted)


async def test_an_evicted_node_is_refused_by_the_store_and_by_name() -> None:
    gone = replace(admission(CLIENT), evicted=True)
    store = server_context(SERVER, [admission(SERVER), gone], ALL)
    seen = await meet(store, calling(CLIENT))
    assert isinstance(seen.server_error, trio.BrokenResourceError)
    # Evicted after the context was made: the handshake passes, the name does not.
    late = await meet(
        serving(SERVER, CLIENT), calling(CLIENT), server_trusts={**TRUSTED, CLIENT.key_id: gone}
    )
    assert isinstance(late.server_error, Untrusted)
    assert late.echoed == b""


async def test_older_tls_is_refused() -> None:
    context = join_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    seen = await meet(serving(SERVER, CLIENT), context)
    assert isinstance(seen.server_error, trio.BrokenResourceError)


def certificate_by(signer: SigningKey, key: SigningKey) -> bytes:
    """A certificate of `key` in the signer's name and by the signer's hand."""
    parsed = x509.load_der_x509_certificate(signer.certificate)
    private = serialization.load_pem_private_key(signer.private_pem(), None)
    assert isinstance(private, Ed25519PrivateKey)
    builder = (
        x509.CertificateBuilder()
        .subject_name(parsed.subject)
        .issuer_name(parsed.subject)
        .public_key(Ed25519PublicKey.from_public_bytes(key.public))
        .serial_number(2)
        .not_valid_before(parsed.not_valid_before_utc)
        .not_valid_after(parsed.not_valid_after_utc)
    )
    return builder.sign(private, None).public_bytes(serialization.Encoding.DER)


async def test_a_member_cannot_vouch_for_another_key() -> None:
    """A member's certificate is an anchor for itself, not an authority over others."""

    class Vouched(SigningKey):
        certificate = certificate_by(CLIENT, STRANGER)

    seen = await meet(serving(SERVER, CLIENT), calling(Vouched.from_seed(b"x" * 32)))
    assert isinstance(seen.server_error, trio.BrokenResourceError)
    assert (seen.server_peer, seen.echoed) == (None, b"")


def test_contexts_are_kept_until_trust_changes() -> None:
    class Fake:
        version = 1

        def admissions(self) -> list[Admission]:
            return list(TRUSTED.values())

    fake = Fake()
    cache = ContextCache(SERVER, fake)
    first = cache.server(ALL)
    assert cache.server(ALL) is first
    assert cache.client(ALL) is not first
    assert cache.client([MESH_ALPN]) is not cache.client(ALL)
    fake.version = 2
    assert cache.server(ALL) is not first


class Bent:
    """Both ends of a TLS connection without a network."""

    def __init__(self) -> None:
        self.to_server, self.to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = calling(CLIENT).wrap_bio(self.to_client, self.to_server)
        self.server = serving(SERVER, CLIENT).wrap_bio(
            self.to_server, self.to_client, server_side=True
        )
        for end in (self.client, self.server, self.client, self.server):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()


def test_all_that_has_come_is_read_at_once() -> None:
    bent, sent = Bent(), os.urandom(100_000)
    bent.client.write(sent)
    assert bent.server.read(40_000) == sent[:40_000]
    assert bent.server.read(1_000_000) == sent[40_000:]
    with pytest.raises(ssl.SSLWantReadError):
        bent.server.read(10)
    bent.client.write(b"more")
    buffer = bytearray(10)
    assert bent.server.read(10, buffer) == 4
    assert buffer[:4] == b"more"


def test_what_came_before_a_damaged_record_is_read_and_then_it_is_told() -> None:
    bent = Bent()
    bent.client.write(b"a" * 16_384)
    whole = bent.to_server.read()
    bent.client.write(b"b" * 16_384)
    damaged = bytearray(bent.to_server.read())
    damaged[100] ^= 1
    bent.to_server.write(whole + damaged)
    assert bent.server.read(65_536) == b"a" * 16_384
    for _ in range(2):
        with pytest.raises(ssl.SSLError):
            bent.server.read(65_536)


def test_a_goodbye_behind_data_is_read_after_it() -> None:
    bent = Bent()
    bent.client.write(b"last words")
    with suppress(ssl.SSLWantReadError):
        bent.client.unwrap()
    assert bent.server.read(65_536) == b"last words"
    assert bent.server.read(65_536) == b""
