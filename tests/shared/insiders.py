"""What somebody can try who has a copy of a member's key: hellos and requests of its own, to real
daemons.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import msgspec
import trio
from localswarm import Daemon

from swarmd.base.errors import RemoteError, from_code
from swarmd.cli.authority_log import read_log
from swarmd.client import Client
from swarmd.identity.authority import AuthorityState
from swarmd.identity.keys import Exchange, SigningKey
from swarmd.identity.tls import MESH_ALPN, client_context
from swarmd.mesh.addresses import AddressBook
from swarmd.mesh.link import Lane
from swarmd.mesh.transports.carriers import TlsStream, open_carrier
from swarmd.mesh.transports.hello import (
    Hello,
    Session,
    make_session,
    read_hello,
    receive_part,
    send_part,
    sign_hello,
)
from swarmd.mesh.transports.mux import Item, Kind
from swarmd.mesh.transports.sessions import Sessions
from swarmd.mesh.trust import open_trust
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World
from swarmd.wire.codec import Family, Message
from swarmd.wire.version import PROTOCOL_VERSION

ANSWER_S = 1.0


def key_of(daemon: Daemon) -> SigningKey:
    return SigningKey.load(daemon.folder / "data" / "node.key")


def log_of(daemon: Daemon) -> AuthorityState:
    with Client(daemon.socket) as client:
        return read_log(client, client.authority_head()["swarm_id"])


async def greet(
    daemon: Daemon,
    key: SigningKey,
    log: AuthorityState,
    plane: str,
    *,
    version: int = PROTOCOL_VERSION,
    alter: Callable[[bytes], bytes] = bytes,
) -> TlsStream:
    """A stream whose hello, signed by this key and then altered, the daemon answered.

    Raises:
        Refused, trio.BrokenResourceError: it did not, with or without a word.
    """
    return (await _meet(daemon, key, log, plane, version, alter))[0]


async def _meet(
    daemon: Daemon,
    key: SigningKey,
    log: AuthorityState,
    plane: str,
    version: int = PROTOCOL_VERSION,
    alter: Callable[[bytes], bytes] = bytes,
) -> tuple[TlsStream, Session]:
    them = next(x for x in log.admissions.values() if x.name == daemon.name)
    tcp = await trio.open_tcp_stream(daemon.address, daemon.port)
    members = [x for x in log.admissions.values() if not x.evicted]
    stream = trio.SSLStream(tcp, client_context(key, members, (plane,)))
    try:
        await stream.do_handshake()
        exchange = Exchange()
        hello = Hello(version, them.node_id, plane, exchange.public, os.urandom(8), 1, 1)
        await send_part(stream, alter(sign_hello(hello, log.swarm_id, key)))
        answer = await receive_part(stream)
        theirs = read_hello(
            answer, log.swarm_id, peer_public=them.public, me=key.key_id, alpn=plane
        )
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream, make_session(exchange, theirs.exchange, plane, opener=True)


def ask_as(
    daemon: Daemon, key: SigningKey, log: AuthorityState, family: Family, message: Message
) -> Any:
    """What the daemon answers to a request of this key's holder on the mesh's plane."""

    async def ask() -> list[Item]:
        answers: list[Item] = []
        request = Item(Kind.REQUEST, Lane.CONTROL, family.name, 1, family.encode(message))
        with trio.fail_after(10):
            stream, session = await _meet(daemon, key, log, MESH_ALPN)
            async with trio.open_nursery() as nursery:
                carrier = await open_carrier(MESH_ALPN, nursery, stream, client=True)
                await carrier.send(session.sealer.seal([request]))
                while not answers:
                    items = session.opener.open(await carrier.receive())
                    ends = (Kind.ANSWER, Kind.FAIL)
                    answers += [one for one in items if one.kind in ends and one.request == 1]
                nursery.cancel_scope.cancel()
            await trio.aclose_forcefully(stream)
        return answers

    [item] = trio.run(ask)
    if item.kind is Kind.FAIL:
        raise from_code(*msgspec.msgpack.decode(item.payload)[:2])
    return family.decode(item.payload)


def is_heard(
    daemon: Daemon,
    key: SigningKey,
    log: AuthorityState,
    plane: str,
    *,
    version: int = PROTOCOL_VERSION,
    alter: Callable[[bytes], bytes] = bytes,
) -> bool:
    """Does the daemon answer such a hello?"""

    async def ask() -> bool:
        try:
            with trio.fail_after(10):
                stream = await greet(daemon, key, log, plane, version=version, alter=alter)
        except (RemoteError, trio.BrokenResourceError):
            return False
        await trio.aclose_forcefully(stream)
        return True

    return trio.run(ask)


def is_met(daemon: Daemon, key: SigningKey, log: AuthorityState, source: str) -> bool:
    """Does the daemon answer a datagram hello by this key, from the address `source`?"""
    trust = open_trust(SimDisk(World(1), "trust"), log.genesis, log.dump())
    sessions = Sessions(key, trust, AddressBook())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind((source, 0))
        one.settimeout(ANSWER_S)
        sessions.hello((daemon.address, daemon.port), 0.0)
        for address, packet in sessions.outgoing:
            one.sendto(packet, address)
        try:
            packet, address = one.recvfrom(2_048)
        except TimeoutError:
            return False
        sessions.receive(packet, address, 0.0)
    return bool(sessions.met)
