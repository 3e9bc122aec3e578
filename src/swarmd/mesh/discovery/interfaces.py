"""The interfaces of this host and their addresses, and when they change.

The kernel tells of changes over a netlink socket (rtnetlink(7)), so that waiting costs nothing.
What it says is not read: that something changed is enough, and all is looked at anew. Where there
is no such socket the host is looked at once a second.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import trio

from swarmd.observe.log import get_logger

POLL_S: Final = 1.0
# Changes come in bursts: an interface that goes takes each of its addresses with it.
SETTLE_S: Final = 0.2
_DRAIN_BYTES: Final = 64 * 1024
_DRAINS_MAX: Final = 64
# rtnetlink(7): links, IPv4 and IPv6 addresses.
_GROUPS: Final = 0x1 | 0x10 | 0x100
_IPV6_TABLE: Final = Path("/proc/net/if_inet6")
_TENTATIVE: Final = 0x40

_log = get_logger("discovery")


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface that is up: its addresses, the networks they are in, its MTU in bytes."""

    name: str
    addresses: tuple[str, ...]
    networks: tuple[str, ...]
    index: int = 0
    mtu_bytes: int = 0

    @property
    def is_loopback(self) -> bool:
        return any(ipaddress.ip_address(one).is_loopback for one in self.addresses)

    @property
    def ipv4(self) -> str:
        """The address to multicast from over IPv4; empty if there is none."""
        return next((one for one in self.addresses if ":" not in one), "")

    @property
    def ipv6(self) -> str:
        """The address to multicast from over IPv6, link-local if there is one; else empty."""
        found = [one for one in self.addresses if ":" in one]
        return next((one for one in found if is_link_local(one)), found[0] if found else "")

    def holds(self, host: str) -> bool:
        """Is this address in a network of the interface, or scoped to it?"""
        address = ipaddress.ip_address(host)
        scope = getattr(address, "scope_id", None)
        if scope is not None:
            return scope in (self.name, str(self.index))
        return any(address in ipaddress.ip_network(one) for one in self.networks)


def is_link_local(host: str) -> bool:
    """Is this an IPv6 address that means nothing without an interface (RFC 4007)?"""
    return ":" in host and ipaddress.ip_address(host).is_link_local


def usable_interfaces(names: Sequence[str] = (), *, loopback: bool = False) -> list[Interface]:
    """The named interfaces that are up; without names all, loopback left out by default.

    IPv6 addresses that the kernel has not found to be unique yet are left out: nothing can be
    sent from them, and they come with a change of their own.
    """
    stats = psutil.net_if_stats()
    tentative = _tentative()
    found = []
    for name, entries in sorted(psutil.net_if_addrs().items()):
        if name not in stats or not stats[name].isup or (names and name not in names):
            continue
        addresses, networks = [], []
        for entry in entries:
            if entry.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            host = entry.address.partition("%")[0]
            if (name, host) in tentative:
                continue
            if names or loopback or not ipaddress.ip_address(host).is_loopback:
                addresses.append(host)
                networks.append(_network(host, entry.netmask))
        if addresses:
            index = _index(name)
            found.append(Interface(name, tuple(addresses), tuple(networks), index, stats[name].mtu))
    return found


def _network(host: str, netmask: str | None) -> str:
    try:
        return str(ipaddress.ip_network(f"{host}/{netmask}", strict=False))
    except ValueError:  # psutil gives IPv6 masks in full, which the constructor does not take.
        return str(ipaddress.ip_network(f"{host}/64" if ":" in host else host, strict=False))


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:  # It went at this moment.
        return 0


def _tentative() -> frozenset[tuple[str, str]]:
    try:
        lines = _IPV6_TABLE.read_text().splitlines()
    except OSError:  # No IPv6, or another system.
        return frozenset()
    rows = [line.split() for line in lines]
    return frozenset(
        (row[5], str(ipaddress.IPv6Address(int(row[0], 16))))
        for row in rows
        if len(row) == 6 and int(row[4], 16) & _TENTATIVE
    )


class InterfaceWatch:
    """Tells when interfaces or addresses changed. Made by `watch_interfaces`."""

    def __init__(self) -> None:
        self.version = 1
        self._wake = trio.Event()

    async def changed(self, version: int) -> int:
        """Wait until the version is no longer `version`; what it is then."""
        while self.version == version:
            await self._wake.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        return self.version

    def announce(self) -> None:
        """Something changed, or is to be looked at as if it had."""
        self.version += 1
        self._wake.set()
        self._wake = trio.Event()

    async def follow(self) -> None:
        """Listen to the kernel until cancelled, or look once a second if it cannot be heard."""
        try:
            heard = _netlink()
        except OSError as error:
            _log.info("interfaces are looked at every second", why=str(error))
            await self._poll()
            return
        with heard:
            while True:
                await trio.lowlevel.wait_readable(heard)
                await trio.sleep(SETTLE_S)
                _drain(heard)
                self.announce()

    async def _poll(self) -> None:
        before = await trio.to_thread.run_sync(_everything)
        while True:
            await trio.sleep(POLL_S)
            now = await trio.to_thread.run_sync(_everything)
            if now != before:
                before = now
                self.announce()


def _everything() -> list[Interface]:
    return usable_interfaces(loopback=True)


def _netlink() -> socket.socket:
    """A socket on which the kernel tells of links and addresses. Raises OSError."""
    if not hasattr(socket, "AF_NETLINK"):
        raise OSError("this system has no netlink")
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    try:
        sock.setblocking(False)
        sock.bind((0, _GROUPS))
    except OSError:
        sock.close()
        raise
    return sock


def _drain(sock: socket.socket) -> None:
    for _ in range(_DRAINS_MAX):
        try:
            sock.recv(_DRAIN_BYTES)
        except BlockingIOError:
            return
        except OSError:  # Too much came at once to be kept: then things changed all the more.
            continue


@asynccontextmanager
async def watch_interfaces() -> AsyncIterator[InterfaceWatch]:
    """Follow this host's interfaces for as long as the block runs."""
    watch = InterfaceWatch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.follow)
        try:
            yield watch
        finally:
            nursery.cancel_scope.cancel()
