"""A loopback interface of the bench's own: who is bound there, and who sends what over it.

Counting needs CAP_NET_RAW, a network of one's own CAP_SYS_ADMIN: in practice, root.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import socket
import struct
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CLONE_NEWNET: Final = 0x40000000
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 0x1
_IFF_MULTICAST: Final = 0x1000
_IFREQ: Final = struct.Struct("16sH22x")
_ETH_P_IP: Final = 0x0800
_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6
_BUFFER_BYTES: Final = 8 * 1024 * 1024
_IP_TCP, _IP_UDP = 6, 17
_READ_TIMEOUT_S: Final = 0.2
_HEADERS_BYTES: Final = 128


def enter_own_network() -> bool:
    """Move this process, before it has threads or children, to a network that holds `lo` alone.

    So nothing that is measured reaches an interface of the machine, or meets what runs beside.
    False if this user may not: then all stays as it is.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        asked = _IFREQ.pack(b"lo", 0)
        _, flags = _IFREQ.unpack(fcntl.ioctl(sock, _SIOCGIFFLAGS, asked))
        changed = _IFREQ.pack(b"lo", flags | _IFF_UP | _IFF_MULTICAST)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, changed)
    return True


def bound_hosts(table: str, port: int) -> set[str]:
    """The IPv4 addresses on which UDP sockets have a port, in /proc/net/udp as it is read."""
    found = set()
    for line in table.splitlines()[1:]:
        host, _, bound = line.split()[1].partition(":")
        if int(bound, 16) == port:
            found.add(socket.inet_ntoa(struct.pack("<I", int(host, 16))))
    return found


def read_bound_hosts(port: int) -> set[str]:
    return bound_hosts(Path("/proc/net/udp").read_text(), port)


@dataclass
class Sent:
    """Packets, and bytes with their IP headers."""

    packets: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.packets += 1
        self.bytes += size


@dataclass(frozen=True)
class Packet:
    protocol: str
    sender: tuple[str, int]
    receiver: tuple[str, int]
    bytes: int


def parse_packet(raw: bytes) -> Packet | None:
    """A UDP or TCP packet over IPv4, from its IP header on; None for anything else."""
    if len(raw) < 20 or raw[0] >> 4 != 4 or raw[9] not in (_IP_TCP, _IP_UDP):
        return None
    header = (raw[0] & 15) * 4
    if len(raw) < header + 4:
        return None
    source, target = struct.unpack_from(">HH", raw, header)
    hosts = socket.inet_ntoa(raw[12:16]), socket.inet_ntoa(raw[16:20])
    name = "udp" if raw[9] == _IP_UDP else "tcp"
    size = int.from_bytes(raw[2:4], "big")
    return Packet(name, (hosts[0], source), (hosts[1], target), size)


class Count:
    """What passed while `counting` ran, by the port and the protocol."""

    def __init__(self, ports: Collection[int]) -> None:
        self._sent = {(port, name): Sent() for port in ports for name in ("udp", "tcp")}

    def note(self, packet: Packet) -> None:
        for _, port in (packet.receiver, packet.sender):
            sent = self._sent.get((port, packet.protocol))
            if sent is not None:
                sent.add(packet.bytes)
                return

    def of(self, port: int, protocol: str) -> Sent:
        """From and to a port that is counted."""
        return self._sent[port, protocol]


@contextlib.contextmanager
def counting(ports: Collection[int]) -> Iterator[Count]:
    """Count what passes over `lo` from or to one of the ports.

    Raises OSError: at first, if the user may not; at the end, if packets were missed.
    """
    count, stop = Count(ports), threading.Event()
    # Bound to one protocol such a socket sees what arrives, which is once what was sent.
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sock,
        ThreadPoolExecutor(1) as pool,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        sock.settimeout(_READ_TIMEOUT_S)
        sock.bind(("lo", _ETH_P_IP))

        def read() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    packet = parse_packet(sock.recv(_HEADERS_BYTES))
                    if packet is not None:
                        count.note(packet)

        reader = pool.submit(read)
        try:
            yield count
        finally:
            stop.set()
        reader.result()
        _, lost = struct.unpack("II", sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
    if lost:
        raise OSError(f"{lost} packets found no room")
