"""The sockets of `sessions`: packets in and out, bounded, never waited for.

A datagram that finds no room, here or in the kernel, is dropped and counted: whoever sends
datagrams repeats what matters.
"""

from __future__ import annotations

import errno
import ipaddress
import math
import socket
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final, Literal

import trio

from swarmd.base.clock import Clock
from swarmd.base.ids import NodeId
from swarmd.base.limits import DATAGRAM_BYTES_MAX, INBOX_MESSAGES_MAX
from swarmd.identity.keys import SigningKey
from swarmd.mesh.addresses import Address, AddressBook, address_of
from swarmd.mesh.transports.roster import Roster
from swarmd.mesh.transports.sessions import PAYLOAD_BYTES_MAX, Sessions
from swarmd.observe.metrics import BYTES, DROPPED

__all__ = ["PAYLOAD_BYTES_MAX", "Datagrams", "open_datagrams", "udp_socket"]

_MET_MAX: Final = 256
_PROBES_MAX: Final = 256
# Never in pieces: ip(7) and ipv6(7), whose numbers Python does not name.
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_WANT: Final = 1
_PMTUDISC_DO: Final = 2
_BATCH_MAX: Final = 64


class Datagrams:
    """Datagrams to and from members. Made by `open_datagrams`.

    `inbox` brings (peer, data); `met` brings (peer, address) of each new session; `probes`
    brings (peer, data) of what was sent by `probe`.
    """

    def __init__(self, sessions: Sessions, sockets: Sequence[socket.socket], clock: Clock) -> None:
        self._sessions, self._sockets, self._clock = sessions, list(sockets), clock
        self._inbox_in, self.inbox = trio.open_memory_channel[tuple[NodeId, bytes]](
            INBOX_MESSAGES_MAX
        )
        self._met_in, self.met = trio.open_memory_channel[tuple[NodeId, Address]](_MET_MAX)
        self._probes_in, self.probes = trio.open_memory_channel[tuple[NodeId, bytes]](_PROBES_MAX)
        self._wake = trio.Event()
        self._sent = BYTES.labels("udp", "sent")
        self._received = BYTES.labels("udp", "received")

    def send_nowait(self, peer: NodeId, addresses: Iterable[Address], data: bytes) -> bool:
        """Send up to PAYLOAD_BYTES_MAX bytes to a member, making a session first if need be.

        Args:
            addresses: where to try besides what the address book knows.

        Returns:
            False if the packet was dropped here.
        """
        taken = self._sessions.send(peer, addresses, data, self._clock.now())
        self._flush()
        return taken

    def probe(self, peer: NodeId, data: bytes) -> Literal["sent", "too_large", "unsent"]:
        """Send to a member in one piece, which its `probes` bring; `too_large` for the way there.

        It goes over the session that there is, and is not sent where there is none.
        """
        made = self._sessions.probe(peer, data)
        self._flush()
        if made is None:
            return "unsent"
        address, packet = made
        sock = _socket_for(self._sockets, address)
        if sock is None:
            return "unsent"
        try:
            with _whole(sock):
                sock.sendto(packet, address)
        except OSError as error:
            return "too_large" if error.errno == errno.EMSGSIZE else "unsent"
        self._sent.inc(len(packet))
        return "sent"

    def heard_s(self, peer: NodeId) -> float:
        """How long ago a datagram came that is certain to be the member's; infinite if never."""
        return self._clock.now() - self._sessions.heard_at(peer)

    def hello(self, address: Address) -> None:
        """Say hello to whoever is at an address. A member's answer comes through `met`."""
        self._sessions.hello(address, self._clock.now())
        self._flush()

    async def repeat_hellos(self) -> None:
        """Run the timers until cancelled."""
        while True:
            due = self._sessions.tick(self._clock.now())
            self._flush()
            self._wake = trio.Event()
            pause_s = math.inf if due is None else max(0.0, due - self._clock.now())
            with trio.move_on_after(pause_s):
                await self._wake.wait()

    async def receive(self, sock: socket.socket) -> None:
        """Take packets off one socket until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(sock)
            for _ in range(_BATCH_MAX):
                try:
                    raw, address = sock.recvfrom(DATAGRAM_BYTES_MAX + 1)
                except BlockingIOError:
                    break
                except OSError:
                    DROPPED.labels("udp", "socket_error").inc()
                    break
                self._received.inc(len(raw))
                self._sessions.receive(raw, address_of(address), self._clock.now())
            self._flush()

    def _flush(self) -> None:
        sessions = self._sessions
        if sessions.outgoing and sessions.is_greeting:
            self._wake.set()
        while sessions.outgoing:
            address, packet = sessions.outgoing.popleft()
            self._transmit(address, packet)
        while sessions.delivered:
            try:
                self._inbox_in.send_nowait(sessions.delivered.popleft())
            except trio.WouldBlock:
                DROPPED.labels("udp", "inbox_full").inc()
        while sessions.probes:
            try:
                self._probes_in.send_nowait(sessions.probes.popleft())
            except trio.WouldBlock:
                DROPPED.labels("udp", "probes_full").inc()
        while sessions.met:
            try:
                self._met_in.send_nowait(sessions.met.popleft())
            except trio.WouldBlock:
                DROPPED.labels("udp", "met_full").inc()

    def _transmit(self, address: Address, packet: bytes) -> None:
        sock = _socket_for(self._sockets, address)
        if sock is None:
            DROPPED.labels("udp", "no_socket").inc()
            return
        try:
            sock.sendto(packet, address)
        except OSError:
            DROPPED.labels("udp", "unsent").inc()
            return
        self._sent.inc(len(packet))


@asynccontextmanager
async def open_datagrams(
    key: SigningKey,
    roster: Roster,
    addresses: AddressBook,
    sockets: Sequence[socket.socket],
    *,
    clock: Clock,
) -> AsyncIterator[Datagrams]:
    """Exchange datagrams over `sockets`, which this closes, for as long as the block runs."""
    datagrams = Datagrams(Sessions(key, roster, addresses), sockets, clock)
    try:
        async with trio.open_nursery() as nursery:
            for sock in sockets:
                nursery.start_soon(datagrams.receive, sock)
            nursery.start_soon(datagrams.repeat_hellos)
            try:
                yield datagrams
            finally:
                nursery.cancel_scope.cancel()
    finally:
        for sock in sockets:
            sock.close()


def udp_socket(host: str, port: int) -> socket.socket:
    """A bound, non-blocking socket on a literal address. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


@contextmanager
def _whole(sock: socket.socket) -> Iterator[None]:
    """What is sent meanwhile is not cut to pieces, here or on the way, however small an MTU is."""
    v6 = sock.family == socket.AF_INET6
    level = socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP
    option = _IPV6_MTU_DISCOVER if v6 else _IP_MTU_DISCOVER
    sock.setsockopt(level, option, _PMTUDISC_DO)
    try:
        yield
    finally:
        sock.setsockopt(level, option, _PMTUDISC_WANT)


def _socket_for(sockets: Sequence[socket.socket], address: Address) -> socket.socket | None:
    """The socket whose own address suits a destination best."""
    try:
        target = ipaddress.ip_address(address[0])
    except ValueError:
        return None
    best: tuple[int, socket.socket] | None = None
    for sock in sockets:
        if sock.fileno() < 0 or (sock.family == socket.AF_INET6) != (target.version == 6):
            continue
        own = ipaddress.ip_address(sock.getsockname()[0])
        fit = 2 if own.is_unspecified else 3 if own.is_loopback == target.is_loopback else 1
        if best is None or fit > best[0]:
            best = (fit, sock)
    return None if best is None else best[1]
