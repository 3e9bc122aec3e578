"""Three connected nodes per transport, for the suite that holds them all to one contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from unittest.mock import patch

import trio

from swarmd.base.ids import NodeId, node_id_of
from swarmd.base.rng import make_rng
from swarmd.identity.authority import Admission
from swarmd.identity.keys import SigningKey
from swarmd.mesh.addresses import AddressBook
from swarmd.mesh.config import MeshConfig
from swarmd.mesh.transports.carriers import PlainCarrier, TlsStream
from swarmd.mesh.transports.memory import MemoryNetwork
from swarmd.mesh.transports.mux import MuxLink
from swarmd.mesh.transports.streams import Streams, open_streams


@dataclass
class Nodes:
    """Three links, and `kill(i)`: node i is gone as by SIGKILL."""

    links: list[MuxLink]
    kill: Callable[[int], None]


@asynccontextmanager
async def _memory() -> AsyncIterator[Nodes]:
    network = MemoryNetwork()
    ids = [node_id_of(bytes([i]) * 32) for i in range(3)]
    async with network.running():
        links: list[MuxLink] = [network.link(NodeId(node_id)) for node_id in ids]
        yield Nodes(links, lambda i: network.stop(ids[i]))


class FixedRoster:
    """A trust without a chain: the keys given, minus those evicted."""

    swarm_id = bytes(32)
    min_version = 0

    def __init__(self, *keys: SigningKey) -> None:
        self.version = 1
        self.keys = list(keys)
        self._wake = trio.Event()

    def admissions(self) -> list[Admission]:
        return [
            Admission(key.key_id, key.public, "n", key.certificate, ("voter", "worker"), 0, 0, 0)
            for key in self.keys
        ]

    def admission(self, node_id: NodeId) -> Admission | None:
        return next((a for a in self.admissions() if a.node_id == node_id), None)

    async def changed(self, version: int) -> None:
        while self.version == version:
            await self._wake.wait()

    def become(self, *keys: SigningKey) -> None:
        self.keys = list(keys)
        self.version += 1
        self._wake.set()
        self._wake = trio.Event()


async def listen() -> trio.SocketListener:
    return (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]


@asynccontextmanager
async def _websocket() -> AsyncIterator[Nodes]:
    keys = [SigningKey.from_seed(bytes([i]) * 32) for i in range(3)]
    roster = FixedRoster(*keys)
    listeners = [await listen() for _ in keys]
    links: list[MuxLink] = []
    scopes = [trio.CancelScope() for _ in keys]

    async def run(i: int, task_status: trio.TaskStatus[Streams]) -> None:
        book = AddressBook()
        for key, listener in zip(keys, listeners, strict=True):
            book.learn(key.key_id, [listener.socket.getsockname()])
        with scopes[i]:
            async with open_streams(
                keys[i], roster, book, [listeners[i]], config=MeshConfig(), rng=make_rng(i)
            ) as streams:
                task_status.started(streams)
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for i in range(3):
            links.append(await nursery.start(run, i))
        yield Nodes(links, lambda i: scopes[i].cancel())
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _plain() -> AsyncIterator[Nodes]:
    """Streams whose every plane is carried as the log's is."""

    async def carry(
        alpn: str, nursery: trio.Nursery, stream: TlsStream, *, client: bool
    ) -> PlainCarrier:
        return PlainCarrier(stream)

    with patch("swarmd.mesh.transports.streams.open_carrier", carry):
        async with _websocket() as nodes:
            yield nodes


HARNESSES: dict[str, Callable[[], AbstractAsyncContextManager[Nodes]]] = {
    "memory": _memory,
    "plain": _plain,
    "websocket": _websocket,
}
