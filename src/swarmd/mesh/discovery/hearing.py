"""Does multicast DNS work here? A question is sent, and listened for on another socket.

Who sends to a multicast group gets a copy (IP_MULTICAST_LOOP), through the same rules of a
firewall as what others send. So a question that does not come back is blocked on this host, and
one that comes back while nobody answers is blocked beyond it, or nobody is there. Other nodes
answer the question to the group (RFC 6762, section 6), which tells who is heard right now.

Costs nothing until it is asked for, and lasts `LISTEN_S`, or less where somebody was heard.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from swarmd.mesh.discovery.interfaces import Interface

PORT: Final = 5353
LISTEN_S: Final = 1.3
_LISTEN_LEAST_S: Final = 0.3
_POLL_S: Final = 0.05
_GROUP_V4: Final = "224.0.0.251"
_GROUP_V6: Final = "ff02::fb"
_IP_MULTICAST_ALL: Final = 49
_IPV6_MULTICAST_ALL: Final = 29
_PACKETS_MAX: Final = 512
_HOSTS_MAX: Final = 64
_PACKET_BYTES_MAX: Final = 9_000
_HEADER_BYTES: Final = 12
_ANSWER_BIT: Final = 0x80
# `_swarmd._udp.local.` as a question for pointers, and what every answer to it holds.
_LABELS: Final = b"\x07_swarmd\x04_udp\x05local\x00"
_SERVICE: Final = b"\x07_swarmd\x04_udp"
_QUESTION: Final = _LABELS + struct.pack(">HH", 12, 1)


@dataclass(frozen=True, slots=True)
class Hearing:
    """What came of listening on one interface.

    `own` is whether this node's question came back; `nodes` are hosts that answered it; `sent`
    is false where the kernel would not even send it, and `problem` says why.
    """

    own: bool
    nodes: tuple[str, ...] = ()
    sent: bool = True
    problem: str = ""


class _Ear:
    """The sockets of one interface and one family."""

    def __init__(self, interface: Interface, source: str) -> None:
        self.interface, self.source = interface, source
        self.number = os.urandom(2)
        self.own, self.sent, self.problem = False, False, ""
        self.hosts: dict[str, None] = {}
        self.sock: socket.socket | None = None

    def open(self) -> None:
        """Listen, and then ask. What does not work is in `problem`."""
        try:
            self.sock = _listening(self.interface, self.source)
            with _speaking(self.interface, self.source) as speaker:
                packet = self.number + struct.pack(">HHHHH", 0, 1, 0, 0, 0) + _QUESTION
                speaker.sendto(packet, _group(self.interface, self.source))
                self.sent = True
        except OSError as error:
            self.problem = error.strerror or str(error)

    async def listen(self) -> None:
        """Take note of what comes until cancelled."""
        sock = self.sock
        if sock is None:
            return
        for _ in range(_PACKETS_MAX):
            await trio.lowlevel.wait_readable(sock)
            try:
                raw, address = sock.recvfrom(_PACKET_BYTES_MAX)
            except OSError:
                continue
            self.take(raw, str(address[0]).partition("%")[0])

    def take(self, raw: bytes, host: str) -> None:
        """One packet: any bytes from anybody."""
        ours = host in self.interface.addresses
        if ours and raw[:2] == self.number and raw[_HEADER_BYTES:] == _QUESTION:
            self.own = True
        answer = len(raw) > _HEADER_BYTES and bool(raw[2] & _ANSWER_BIT)
        if answer and not ours and _SERVICE in raw and len(self.hosts) < _HOSTS_MAX:
            self.hosts[host] = None

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()


async def listen(interfaces: Sequence[Interface]) -> dict[str, Hearing]:
    """Ask on every interface at once, and say what was heard, by the interface's name."""
    ears = [
        _Ear(interface, source)
        for interface in interfaces
        for source in multicast_sources(interface)
    ]
    try:
        for ear in ears:
            ear.open()
        with trio.move_on_after(LISTEN_S):
            async with trio.open_nursery() as nursery:
                for ear in ears:
                    nursery.start_soon(ear.listen)
                await trio.sleep(_LISTEN_LEAST_S)
                while not all(_works(_of(one, ears)) for one in interfaces):  # noqa: ASYNC110
                    await trio.sleep(_POLL_S)
                nursery.cancel_scope.cancel()
    finally:
        for ear in ears:
            ear.close()
    return {one.name: _sum(_of(one, ears)) for one in interfaces}


def _of(interface: Interface, ears: Sequence[_Ear]) -> list[_Ear]:
    return [ear for ear in ears if ear.interface is interface]


def _works(ears: Sequence[_Ear]) -> bool:
    """Is there nothing left to wait for?"""
    return any(ear.own for ear in ears) and any(ear.hosts for ear in ears)


def multicast_sources(interface: Interface) -> list[str]:
    """The addresses to multicast from: one for each family. IPv6 has no multicast on loopback."""
    found = [interface.ipv4, "" if interface.is_loopback else interface.ipv6]
    return [one for one in found if one]


def _sum(ears: Sequence[_Ear]) -> Hearing:
    """It works if it does over either family."""
    hosts = dict.fromkeys(host for ear in ears for host in ear.hosts)
    return Hearing(
        own=any(ear.own for ear in ears),
        nodes=tuple(hosts),
        sent=any(ear.sent for ear in ears),
        problem=next((ear.problem for ear in ears if ear.problem), ""),
    )


def _group(interface: Interface, source: str) -> tuple[str, int] | tuple[str, int, int, int]:
    if ":" in source:
        return (_GROUP_V6, PORT, 0, interface.index)
    return (_GROUP_V4, PORT)


def _shared(family: socket.AddressFamily) -> socket.socket:
    """A socket that shares its port with the other programs that speak multicast DNS."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return sock


def _listening(interface: Interface, source: str) -> socket.socket:
    """Bound to the group, so that it takes nobody's unicast, and to this interface alone."""
    sock = _shared(socket.AF_INET6 if ":" in source else socket.AF_INET)
    try:
        if ":" in source:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
            sock.bind((_GROUP_V6, PORT, 0, interface.index))
            group = ipaddress.ip_address(_GROUP_V6).packed + struct.pack("@I", interface.index)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
            sock.bind((_GROUP_V4, PORT))
            group = socket.inet_aton(_GROUP_V4) + socket.inet_aton(source)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    except OSError:
        sock.close()
        raise
    return sock


def _speaking(interface: Interface, source: str) -> socket.socket:
    sock = _shared(socket.AF_INET6 if ":" in source else socket.AF_INET)
    try:
        if ":" in source:
            index = struct.pack("@I", interface.index)
            sock.bind((source, PORT, 0, interface.index))
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
        else:
            sock.bind((source, PORT))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(source))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
    except OSError:
        sock.close()
        raise
    return sock
