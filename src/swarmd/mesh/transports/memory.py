"""Streams between nodes of one process, for tests and simulations of the rooms above.

No task runs here: an item goes from the sender's call straight into the receiver's inbox, so
a full inbox is felt at once and nothing is ever in flight. Messages are encoded and decoded
as on a real wire. Loopback, a node's requests to itself, is the same on every transport.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import trio

from swarmd.base.errors import Unreachable
from swarmd.base.ids import NodeId, short
from swarmd.mesh.transports.mux import Item, MuxLink, PipeEnd, Port
from swarmd.mesh.transports.pipes import SocketPipe


class DirectPort(Port):
    """A port whose other end is in this process."""

    def __init__(self, peer: NodeId, target: MuxLink) -> None:
        super().__init__(peer)
        self.back: DirectPort = self
        self.broken: str | None = None
        self._target = target

    def put_nowait(self, item: Item, *, force: bool = False) -> bool:
        if self.broken is not None:
            return False
        return self._target.deliver_nowait(self.back, item)

    async def put(self, item: Item) -> None:
        await trio.lowlevel.checkpoint()
        if self.broken is not None:
            raise Unreachable(f"{short(self.peer)}: {self.broken}")
        await self._target.deliver(self.back, item)

    def break_off(self, reason: str) -> None:
        """Both ends are dead from here on."""
        for port in (self, self.back):
            if port.broken is None:
                port.broken = reason
                port.fail_calls(reason)


def direct_ports(left: MuxLink, right: MuxLink) -> tuple[DirectPort, DirectPort]:
    """Two connected ports: `left`'s, which leads to `right`, and the other way round."""
    forth = DirectPort(right.node_id, right)
    back = DirectPort(left.node_id, left)
    forth.back, back.back = back, forth
    return forth, back


class DirectPipePort(DirectPort, PipeEnd):
    """A pipe's end whose other one is in this process."""

    def __init__(self, peer: NodeId, target: MuxLink, sock: socket.socket) -> None:
        super().__init__(peer, target)
        self._pipe = SocketPipe(peer, sock)
        self._in_use = False

    @asynccontextmanager
    async def as_pipe(self) -> AsyncIterator[SocketPipe]:
        """See `Port`."""
        self._in_use = True
        try:
            yield self._pipe
        finally:
            self.break_off("the pipe was closed")
            self._pipe.close()

    async def put(self, item: Item) -> None:
        """See `Port`."""
        await super().put(self.fitted(item))

    async def receive(self, link: MuxLink) -> None:
        """See `PipeEnd`. Nothing is in flight here."""
        await trio.lowlevel.checkpoint()

    async def discard(self) -> None:
        """See `PipeEnd`. Nobody else closes the other end if it was never taken."""
        self.break_off("the pipe was closed")
        for end in (self, self.back):
            if isinstance(end, DirectPipePort) and not end._in_use:
                end._pipe.close()
        await trio.lowlevel.checkpoint()

    def break_off(self, reason: str) -> None:
        super().break_off(reason)
        self._pipe.break_off(reason)


def direct_pipe(left: MuxLink, right: MuxLink) -> tuple[DirectPipePort, DirectPipePort]:
    """Both ends of a pipe within this process, as `direct_ports`. Raises Unreachable."""
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise Unreachable(f"{short(right.node_id)}: {error.strerror}") from error
    forth = DirectPipePort(right.node_id, right, ours)
    back = DirectPipePort(left.node_id, left, theirs)
    forth.back, back.back = back, forth
    return forth, back


class MemoryLink(MuxLink):
    """One node's streams on a `MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, node_id: NodeId) -> None:
        super().__init__(node_id)
        self._network = network
        self.ports: dict[NodeId, DirectPort] = {}
        self.pipes: list[DirectPipePort] = []

    def connected(self) -> list[NodeId]:
        """See `mesh.link.Link`."""
        return sorted(peer for peer in self.ports if peer != self.node_id)

    def _port(self, peer: NodeId, alpn: str) -> Port:
        port = self.ports.get(peer)
        return port if port is not None else self._network.connect(self, peer)

    async def _connect_pipe(self, peer: NodeId) -> PipeEnd:
        await trio.lowlevel.checkpoint()
        return self._network.connect_pipe(self, peer)


class MemoryNetwork:
    """Joins `MemoryLink`s; cuts and heals between them."""

    def __init__(self) -> None:
        self._links: dict[NodeId, MemoryLink] = {}
        self._cut: set[tuple[NodeId, NodeId]] = set()

    def link(self, node_id: NodeId) -> MemoryLink:
        """The streams of a node that starts now; a link that the id had before is dead."""
        self.stop(node_id)
        link = self._links[node_id] = MemoryLink(self, node_id)
        return link

    @asynccontextmanager
    async def running(self) -> AsyncIterator[MemoryNetwork]:
        """Stops every node at the end; the network needs no more running than that."""
        try:
            yield self
        finally:
            for node_id in list(self._links):
                self.stop(node_id)

    def stop(self, node_id: NodeId) -> None:
        """The node is gone, as if killed: its connections are reset, new ones refused."""
        link = self._links.get(node_id)
        if link is not None:
            for peer in {*link.ports, *(pipe.peer for pipe in link.pipes)}:
                self._reset(node_id, peer)
            del self._links[node_id]

    def cut(
        self, a: NodeId | Iterable[NodeId], b: NodeId | Iterable[NodeId], *, one_way: bool = False
    ) -> None:
        """Nothing passes from a to b any more, nor back unless `one_way`.

        Connections between them are reset: what waited on them raises Unreachable. A stream
        needs both directions, so cutting one cuts requests altogether.
        """
        for left in _ids(a):
            for right in _ids(b):
                self._cut.add((left, right))
                if not one_way:
                    self._cut.add((right, left))
                self._reset(left, right)

    def heal(self) -> None:
        """Every cut is over. Connections come back when they are used."""
        self._cut.clear()

    def connect(self, source: MemoryLink, peer: NodeId) -> DirectPort:
        """Open a connection now. Raises Unreachable: cut off, or no such node."""
        target = self._reach(source, peer)
        forth, back = direct_ports(source, target)
        source.ports[peer] = forth
        target.ports[source.node_id] = forth if target is source else back
        return forth

    def connect_pipe(self, source: MemoryLink, peer: NodeId) -> DirectPipePort:
        """As `connect`, for a pipe."""
        target = self._reach(source, peer)
        forth, back = direct_pipe(source, target)
        for link, end in ((source, forth), (target, back)):
            link.pipes = [*(one for one in link.pipes if one.broken is None), end]
        return forth

    def _reach(self, source: MemoryLink, peer: NodeId) -> MemoryLink:
        me = source.node_id
        target = self._links.get(peer)
        if self._links.get(me) is not source:
            raise Unreachable(f"{short(me)} has stopped")
        if target is None:
            source.report_closed(peer, "refused")
            raise Unreachable(f"{short(peer)} refused the connection")
        if (me, peer) in self._cut or (peer, me) in self._cut:
            raise Unreachable(f"{short(peer)} does not answer")
        return target

    def _reset(self, left: NodeId, right: NodeId) -> None:
        for here, there in ((left, right), (right, left)):
            link = self._links.get(here)
            for pipe in link.pipes if link is not None else ():
                if pipe.peer == there:
                    pipe.break_off("the connection was reset")
            port = link.ports.pop(there, None) if link is not None else None
            if link is not None and port is not None:
                port.break_off("the connection was reset")
                link.report_closed(there, "reset")


def _ids(some: NodeId | Iterable[NodeId]) -> list[NodeId]:
    return [NodeId(some)] if isinstance(some, bytes) else list(some)
