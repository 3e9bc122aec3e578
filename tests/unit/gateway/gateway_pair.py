"""Two gateways that forward to each other, over links in one process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio
from gateway_fakes import FakeMesh, make_services, node_id

from swarmd.client import Client
from swarmd.gateway.config import GatewayConfig
from swarmd.gateway.service import open_gateway
from swarmd.gateway.services import Services
from swarmd.mesh.transports.memory import MemoryNetwork

CONFIG = GatewayConfig(keepalive_s=0.1, forward_timeout_s=1.0)


@dataclass
class Pair:
    network: MemoryNetwork
    here: Services
    there: Services

    def client(self, node: str = "n2") -> Client:
        return Client(str(self.here.config.socket_path), node=node, timeout_s=10)


@asynccontextmanager
async def two_nodes(tmp_path: Path) -> AsyncIterator[Pair]:
    network = MemoryNetwork()
    found = []
    for name in ("n1", "n2"):
        folder = tmp_path / name
        folder.mkdir()
        services = make_services(folder, name=name, members=("n1", "n2"))
        assert isinstance(services.mesh, FakeMesh)
        services.mesh.link = network.link(node_id(name))
        found.append(services)
    async with open_gateway(CONFIG, found[0]) as first, open_gateway(CONFIG, found[1]) as second:
        first.attach(found[0].mesh.link)  # type: ignore[union-attr]
        second.attach(found[1].mesh.link)  # type: ignore[union-attr]
        yield Pair(network, *found)


async def blocking(function: Any, *args: Any, **kwargs: Any) -> Any:
    return await trio.to_thread.run_sync(partial(function, *args, **kwargs))
