"""A membership whose news the test tells, for rooms that only listen to it."""

from __future__ import annotations

from collections import deque
from types import TracebackType

import trio

from swarmd.base.ids import NodeId
from swarmd.mesh.swim.events import Changed, Member
from swarmd.mesh.swim.messages import MemberState


class Changes:
    """See `mesh.swim.service.MemberChanges`."""

    def __init__(self, membership: FixedMembership) -> None:
        self.lagged = False
        self.waiting: deque[Changed] = deque()
        self.wake = trio.Event()
        self._membership = membership

    def __enter__(self) -> Changes:
        self._membership.listeners.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._membership.listeners.remove(self)

    async def receive(self) -> Changed:
        while not self.waiting:
            self.wake = trio.Event()
            await self.wake.wait()
        return self.waiting.popleft()


class FixedMembership:
    """Everybody is alive until `tell` says otherwise."""

    def __init__(self, ids: list[NodeId]) -> None:
        self._members = {
            node: Member(node, f"n{i}", (), MemberState.ALIVE, 1 << 32, (), "", (), 0.0)
            for i, node in enumerate(ids, 1)
        }
        self.listeners: list[Changes] = []

    def members(self) -> list[Member]:
        return list(self._members.values())

    def get(self, node_id: NodeId) -> Member | None:
        return self._members.get(node_id)

    def subscribe(self) -> Changes:
        return Changes(self)

    def tell(self, node: NodeId, state: MemberState, start: int = 1) -> None:
        before = self._members[node]
        after = Member(node, before.name, (), state, start << 32, (), "", (), 0.0)
        self._members[node] = after
        for listener in self.listeners:
            listener.waiting.append(Changed(before, after))
            listener.wake.set()
