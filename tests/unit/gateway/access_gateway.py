"""A gateway with a TCP port, a TLS port and API keys, and requests made to it by hand."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gateway_fakes import SWARM_ID, FakeStore, LiveGateway, make_services, wait_until

from swarmd.base.ids import NodeId
from swarmd.base.rng import make_rng
from swarmd.client import Client
from swarmd.gateway.access.service import open_access
from swarmd.gateway.config import GatewayConfig
from swarmd.gateway.services import Services
from swarmd.identity.api_keys import new_api_key
from swarmd.identity.keys import SigningKey

NODE_KEY = SigningKey.from_seed(b"a" * 32)
OTHER_NODE_KEY = SigningKey.from_seed(b"o" * 32)
WORKER_KEY = SigningKey.from_seed(b"w" * 32)
EVICTED_KEY = SigningKey.from_seed(b"e" * 32)


@dataclass
class Admissions:
    """Four nodes: two that may vote, one that only works, one that was evicted."""

    swarm_id: bytes = SWARM_ID
    found: dict[NodeId, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, roles, evicted in (
            (NODE_KEY, ("voter", "worker"), False),
            (OTHER_NODE_KEY, ("voter", "worker"), False),
            (WORKER_KEY, ("worker",), False),
            (EVICTED_KEY, ("voter", "worker"), True),
        ):
            self.found[key.key_id] = SimpleNamespace(
                public=key.public, roles=roles, evicted=evicted
            )

    def admission(self, node_id: NodeId) -> Any:
        return self.found.get(node_id)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@dataclass
class Guarded:
    """The gateway, and an admin's client over its socket."""

    live: LiveGateway
    admin: Client
    store: FakeStore
    port: int
    tls_port: int

    def new_key(self, name: str, **given: Any) -> str:
        """A key that the gateway knows by now."""
        text, key_hash = new_api_key()
        self.admin.create_api_key(name, key_hash, **given)
        access = self.live.services.access
        assert access is not None
        wait_until(lambda: key_hash in (access._by_hash or {}))
        return text

    def connections(self, address: str) -> int:
        """How many it holds for those of this address."""
        assert self.live.gateway is not None
        return list(self.live.gateway._streams.values()).count(address)

    def ask(
        self, method: str, path: str, credential: str = "", body: Any = None, **headers: str
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """Over the loopback port, as any program would."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        return ask(connection, method, path, credential, body, **headers)

    def ask_tls(
        self, method: str, path: str, credential: str = "", body: Any = None, **headers: str
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.tls_port, timeout=10, context=context
        )
        return ask(connection, method, path, credential, body, **headers)


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    credential: str,
    body: Any,
    **headers: str,
) -> tuple[int, Any, http.client.HTTPMessage]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if credential:
        sent["Authorization"] = f"Bearer {credential}"
    raw = None if body is None else json.dumps(body)
    try:
        connection.request(method, path, raw, sent)
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    answered = json.loads(text) if text.startswith((b"{", b"[")) else text
    return response.status, answered, response.headers


@contextmanager
def guarded_gateway(
    folder: Path,
    services: Services | None = None,
    gateway: type[LiveGateway] = LiveGateway,
    **settings: Any,
) -> Iterator[Guarded]:
    services = services or make_services(folder)
    store = services.store
    assert isinstance(store, FakeStore)
    (folder / "data").mkdir(exist_ok=True)
    port, tls_port = free_port(), free_port()
    config = GatewayConfig(
        tcp_port=port, listen=(f"127.0.0.1:{tls_port}",), keepalive_s=0.05, **settings
    )

    def access() -> Any:
        return open_access(store, Admissions(), NODE_KEY, services.clock, make_rng(b"access"))

    with (
        gateway(services, config, access=access) as live,
        Client(live.socket) as admin,
    ):
        yield Guarded(live, admin, store, port, tls_port)
