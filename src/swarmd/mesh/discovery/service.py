"""How a node finds a swarm, and is found: by seeds, or by multicast DNS."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from swarmd.base.errors import ConfigError
from swarmd.base.ids import short
from swarmd.identity.keys import SigningKey
from swarmd.mesh.addresses import Address
from swarmd.mesh.config import DEFAULT_PORT, MeshConfig
from swarmd.mesh.discovery.static import parse_address, resolve
from swarmd.mesh.sockets import Bound, multicast_interfaces, scoped_hosts
from swarmd.mesh.trust import Trust

if TYPE_CHECKING:
    from swarmd.mesh.discovery.mdns import Mdns


async def find_swarm(
    config: MeshConfig, swarm_id: bytes | None, *, timeout_s: float = 5.0
) -> list[Address]:
    """Addresses to try joining a swarm at: the seeds, else what multicast DNS finds in time.

    Args:
        swarm_id: of the swarm; None finds those of any.

    Raises:
        ConfigError: a seed is malformed, or none of them has an address.
    """
    if config.seeds:
        default_port = config.port or DEFAULT_PORT
        wanted = [parse_address(seed, default_port=default_port) for seed in config.seeds]
        found, failures = await resolve(wanted)
        if not found:
            raise ConfigError(failures[0])
        return found
    if not config.mdns:
        return []
    # Loaded by a node that uses it only: with its library it takes 3 MB.
    from swarmd.mesh.discovery import mdns

    interfaces = await trio.to_thread.run_sync(multicast_interfaces, config)
    hint = None if swarm_id is None else mdns.swarm_hint(swarm_id)
    return await mdns.find(hint, interfaces=interfaces, timeout_s=timeout_s)


async def announced(config: MeshConfig, port: int, told: tuple[Address, ...]) -> tuple[str, ...]:
    """What multicast DNS shows: what members are told, and what only the link can use."""
    scoped = await trio.to_thread.run_sync(scoped_hosts, config)
    return (*(host for host, own_port in told if own_port == port), *scoped)


@asynccontextmanager
async def open_discovery(
    config: MeshConfig,
    key: SigningKey,
    trust: Trust,
    bound: Bound,
    told: tuple[Address, ...],
) -> AsyncIterator[Mdns | None]:
    """Show this node by multicast DNS and hear of others; None where it is not configured."""
    if not config.mdns:
        yield None
        return
    from swarmd.mesh.discovery import mdns

    interfaces = await trio.to_thread.run_sync(multicast_interfaces, config)
    hosts = await announced(config, bound.port, told)
    async with mdns.open_mdns(
        mdns.swarm_hint(trust.swarm_id),
        f"swarmd-{short(key.key_id)}",
        bound.port,
        interfaces=interfaces,
        addresses=hosts,
    ) as opened:
        yield opened
