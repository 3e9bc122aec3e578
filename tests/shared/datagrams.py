"""Datagram sessions in tests: nodes, and a network that keeps a copy of every packet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import cast

from small_swarm import KEYS, FixedRoster

from swarmd.base.ids import NodeId
from swarmd.identity.keys import SIGNATURE_BYTES, SigningKey
from swarmd.mesh.addresses import Address, AddressBook
from swarmd.mesh.transports.sessions import Sessions

HELLO, REPLY, DATA, COOKIE = (bytes([kind]) for kind in range(1, 5))


class Node:
    def __init__(self, net: Net, key: SigningKey, address: Address, roster: FixedRoster) -> None:
        self.key, self.address, self.net, self.roster = key, address, net, roster
        self.book = AddressBook()
        self.sessions = Sessions(key, roster, self.book)
        net.nodes[address] = self

    @property
    def id(self) -> bytes:
        return self.key.key_id

    def send(self, to: Node, data: bytes, *, told: bool = True) -> bool:
        addresses = (to.address,) if told else ()
        return self.sessions.send(to.key.key_id, addresses, data, self.net.now)

    def got(self) -> list[tuple[bytes, bytes]]:
        taken = list(self.sessions.delivered)
        self.sessions.delivered.clear()
        return taken


class Net:
    """Carries packets at once and keeps a copy of each: (source, target, packet)."""

    def __init__(self) -> None:
        self.now = 100.0
        self.nodes: dict[Address, Node] = {}
        self.captured: list[tuple[Address, Address, bytes]] = []

    def settle(self) -> None:
        moving = True
        while moving:
            moving = False
            for node in list(self.nodes.values()):
                while node.sessions.outgoing:
                    moving = True
                    target, packet = node.sessions.outgoing.popleft()
                    self.captured.append((node.address, target, packet))
                    self.carry(node.address, target, packet)

    def carry(self, source: Address, target: Address, packet: bytes) -> None:
        if target in self.nodes:
            self.nodes[target].sessions.receive(packet, source, self.now)

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.05)
            for node in self.nodes.values():
                node.sessions.tick(self.now)
            self.settle()


def pair() -> tuple[Net, Node, Node, FixedRoster]:
    net = Net()
    roster = FixedRoster(*KEYS[:3])
    a = Node(net, KEYS[0], ("10.0.0.1", 1), roster)
    b = Node(net, KEYS[1], ("10.0.0.2", 2), roster)
    return net, a, b, roster


def talking() -> tuple[Net, Node, Node, FixedRoster]:
    """Two nodes with a session that both have used."""
    net, a, b, roster = pair()
    a.send(b, b"one")
    net.settle()
    b.send(a, b"two")
    net.settle()
    assert b.got() == [(a.id, b"one")]
    assert a.got() == [(b.id, b"two")]
    return net, a, b, roster


def picture(node: Node) -> tuple[object, ...]:
    """What a packet must not change: sessions in use, and who is where."""
    s = node.sessions
    return (
        {p: (x.current, tuple(x.confirmed)) for p, x in s._peers.items()},
        dict(node.book._at),
        len(s.delivered),
        len(s.met),
    )


class Forger:
    """Knows the swarm's id and the members' ids, and signs with noise in the name of one."""

    def __init__(self, victim: NodeId) -> None:
        self.key_id = victim

    def sign(self, data: bytes) -> bytes:
        # Its last byte is that of a number in range: else it was refused before the curve is used.
        return os.urandom(SIGNATURE_BYTES - 1) + b"\x01"


def forged_hellos(victim: NodeId, roster: FixedRoster) -> Iterator[tuple[bytes, Sessions]]:
    """Hellos that only the check of their signature tells from real ones, and their senders'
    sessions: no two are alike."""
    while True:
        forger = Sessions(cast(SigningKey, Forger(victim)), roster, AddressBook())
        forger.hello(("192.0.2.1", 1), 0.0)
        _, hello = forger.outgoing.popleft()
        yield hello, forger
