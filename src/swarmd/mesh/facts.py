"""What the mesh knows of itself, for whoever has to explain why nodes do not see each other."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from swarmd.base.errors import ConfigError
from swarmd.base.ids import NodeId
from swarmd.mesh.addresses import Address
from swarmd.mesh.config import MeshConfig
from swarmd.mesh.discovery.adverts import InterfaceFacts
from swarmd.mesh.discovery.static import parse_address, resolve
from swarmd.mesh.reach.service import Reach
from swarmd.mesh.sockets import is_loopback_only

HOST_NAME: Final = "host name"


@dataclass(frozen=True, slots=True)
class SeedFacts:
    """What became of one configured seed. `member` is who answered there.

    All hosts may be given one list of seeds: that one of them is the node itself (`own`) is fine.
    """

    seed: str
    member: NodeId | None
    problem: str
    own: bool = False
    swarm: str = ""
    """The name of another swarm, whose node answers there."""


@dataclass(frozen=True, slots=True)
class NameFacts:
    """A configured name that means this host alone, and what it resolved to."""

    setting: str
    name: str
    address: str


@dataclass(frozen=True, slots=True)
class MeshFacts:
    """`reach` is of the members that were tried; `told` are the addresses that others are told."""

    mdns: bool
    interfaces: Sequence[InterfaceFacts]
    seeds: Sequence[SeedFacts]
    told: Sequence[Address]
    loopback_names: Sequence[NameFacts]
    missing_binds: Sequence[str] = ()
    """Addresses in `mesh.bind` that no interface has any more."""
    reach: Mapping[NodeId, Reach] = field(default_factory=dict)


async def loopback_names(config: MeshConfig) -> list[NameFacts]:
    """Names in `mesh.advertise` and `mesh.seeds` that resolve to loopback, where that is wrong.

    It is right where this node listens on loopback alone. An address that is written as one is
    meant so, and stays unmentioned among the seeds; told to others it is wrong all the same. This
    host's own name often is loopback to itself, which harms only who believes it.
    """
    if is_loopback_only(config):
        return []
    return [
        *await _loopback_among("mesh.advertise", config.advertise, literal=True),
        *await _loopback_among("mesh.seeds", config.seeds, literal=False),
        *await _loopback_among(HOST_NAME, (socket.gethostname(),), literal=False),
    ]


async def _loopback_among(setting: str, texts: Iterable[str], *, literal: bool) -> list[NameFacts]:
    found = []
    for text in texts:
        try:
            host, port = parse_address(text, default_port=1)
        except ConfigError:
            continue
        if not literal and _is_address(host):
            continue
        addresses, _ = await resolve([(host, port)])
        hosts = [one for one, _ in addresses if ipaddress.ip_address(one).is_loopback]
        if hosts:
            found.append(NameFacts(setting, text, hosts[0]))
    return found


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def missing_binds(config: MeshConfig, present: Iterable[str]) -> list[str]:
    """Addresses to listen on that are not among those that this host has."""
    has = {ipaddress.ip_address(one) for one in present}
    wanted = [(host, ipaddress.ip_address(host)) for host in config.bind]
    return [
        host
        for host, one in wanted
        if not one.is_unspecified and not one.is_loopback and one not in has
    ]
