"""One port for TCP and UDP on every address to listen on, and what others are told of them."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from swarmd.base.errors import ConfigError, PortTaken
from swarmd.mesh.addresses import Address
from swarmd.mesh.config import MeshConfig
from swarmd.mesh.discovery.interfaces import is_link_local, usable_interfaces
from swarmd.mesh.discovery.static import parse_address, resolve
from swarmd.mesh.transports.udp import udp_socket

ADVERTISED_MAX: Final = 4
_TRIES: Final = 20
_BACKLOG: Final = 256


@dataclass
class Bound:
    """Sockets that share `port`. Whoever takes them closes them."""

    port: int
    listeners: list[trio.SocketListener]
    datagrams: list[socket.socket]

    def close(self) -> None:
        for listener in self.listeners:
            listener.socket.close()
        for sock in self.datagrams:
            sock.close()


def bind(config: MeshConfig) -> Bound:
    """Listen as the configuration says. Needs a running trio loop.

    Raises:
        PortTaken: another process has the port on one of the addresses.
        ConfigError: an address is not literal, not this host's, or not allowed.
    """
    for host in config.bind:
        try:
            ipaddress.ip_address(host)
        except ValueError as error:
            raise ConfigError(f"mesh.bind names {host!r}, which is not an IP address") from error
    for attempt in range(_TRIES):
        try:
            return _bind_all(config, config.port)
        except PortTaken:
            # A free port for UDP may be taken for TCP: then another one is.
            if config.port != 0 or attempt == _TRIES - 1:
                raise
    raise AssertionError("unreachable")


def _bind_all(config: MeshConfig, port: int) -> Bound:
    bound = Bound(port, [], [])
    try:
        for host in config.bind:
            _bind_one(bound, host, optional=host == "::" and len(config.bind) > 1)
    except BaseException:
        bound.close()
        raise
    return bound


def _bind_one(bound: Bound, host: str, *, optional: bool) -> None:
    try:
        datagrams = udp_socket(host, bound.port)
        port = datagrams.getsockname()[1]
        bound.datagrams.append(datagrams)
        bound.listeners.append(_listener(host, port))
        bound.port = port
    except OSError as error:
        if optional and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            return  # A host without IPv6.
        raise _explain(error, host, bound.port) from error


def _listener(host: str, port: int) -> trio.SocketListener:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def _explain(error: OSError, host: str, port: int) -> Exception:
    if error.errno == errno.EADDRINUSE:
        return PortTaken(
            f"port {port} of {host} is taken by another process; "
            "stop it, or choose another port with mesh.port"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(f"mesh.bind names {host}, which no interface of this host has")
    return ConfigError(f"cannot listen on {host} port {port}: {error.strerror}")


def is_loopback_only(config: MeshConfig) -> bool:
    return all(ipaddress.ip_address(host).is_loopback for host in config.bind)


def multicast_interfaces(config: MeshConfig) -> tuple[str, ...]:
    """Interfaces for multicast DNS: a node that listens on loopback alone announces it there."""
    if config.interfaces or not is_loopback_only(config):
        return config.interfaces
    return tuple(
        interface.name for interface in usable_interfaces(loopback=True) if interface.is_loopback
    )


def listening_hosts(config: MeshConfig) -> list[str]:
    """The literal addresses that a wildcard stands for, and the others as they are.

    Link-local ones of IPv6 mean nothing to who is told of them: see `scoped_hosts`.
    """
    hosts: dict[str, None] = {}
    for host in config.bind:
        if not ipaddress.ip_address(host).is_unspecified:
            hosts[host] = None
            continue
        for interface in usable_interfaces():
            for found in interface.addresses:
                same_family = (":" in found) == (":" in host)
                if same_family and not is_link_local(found):
                    hosts[found] = None
    # IPv4 has link-local addresses, too (RFC 3927): of use where there is nothing better.
    return sorted(hosts, key=lambda one: ipaddress.ip_address(one).is_link_local)


def scoped_hosts(config: MeshConfig) -> list[str]:
    """Link-local IPv6 addresses listened on, which whoever hears them on the link can use."""
    if config.advertise or "::" not in config.bind:
        return []
    found = [one for interface in usable_interfaces() for one in interface.addresses]
    return [one for one in found if is_link_local(one)]


async def advertised(config: MeshConfig, port: int) -> tuple[Address, ...]:
    """Up to four addresses to tell others, as configured or found.

    Raises:
        ConfigError: an address in `mesh.advertise` is malformed or has no address.
    """
    if config.advertise:
        wanted = [parse_address(text, default_port=port) for text in config.advertise]
        found, failures = await resolve(wanted)
        if failures:
            raise ConfigError(f"mesh.advertise: {failures[0]}")
        return tuple(found[:ADVERTISED_MAX])
    hosts: Iterable[str] = await trio.to_thread.run_sync(listening_hosts, config)
    return tuple((host, port) for host in hosts)[:ADVERTISED_MAX]


def own_addresses(config: MeshConfig, port: int, told: Sequence[Address]) -> frozenset[Address]:
    """Every address at which this node would meet itself."""
    own = {*told, *((host, port) for host in listening_hosts(config))}
    for interface in usable_interfaces():
        scoped = [f"{one}%{interface.index}" for one in interface.addresses if is_link_local(one)]
        own |= {(host, port) for host in scoped}
    if any(ipaddress.ip_address(host).is_unspecified for host in config.bind):
        own |= {("127.0.0.1", port), ("::1", port)}
    return frozenset(own)
