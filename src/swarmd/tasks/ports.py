"""What this room asks of the rooms below, as protocols; the real services satisfy them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import trio

from swarmd.agents.attempts import AttemptRun, Outcome
from swarmd.base.ids import NodeId
from swarmd.mesh.swim.events import Changed, Member
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.raft.messages import Entry, Operation, OpResult
from swarmd.state.raft.statemachine import Change


class Office(Protocol):
    @property
    def fence(self) -> int: ...


class Replica(Protocol):
    """A voter's own copy of the store, read without waiting."""

    def get(self, key: bytes) -> Entry | None: ...

    def range(self, prefix: bytes, after: bytes, limit: int) -> Sequence[Entry]: ...


class Store(Protocol):
    @property
    def office(self) -> Office | None: ...

    @property
    def local(self) -> Replica | None: ...

    @property
    def is_voter(self) -> bool: ...

    async def propose(
        self, ops: Sequence[Operation], *, timeout_s: float = 5.0
    ) -> Sequence[OpResult]: ...

    async def get(
        self, key: bytes, *, stale: bool = False, timeout_s: float = 5.0
    ) -> Entry | None: ...

    async def read_index(self, timeout_s: float = 5.0) -> int: ...

    def coordinator(self) -> NodeId | None: ...

    async def office_changed(self) -> None: ...

    def changes(self) -> trio.MemoryReceiveChannel[list[Change]]: ...

    def store_time_ms(self) -> int: ...


class Blobs(Protocol):
    async def put(self, data: bytes) -> BlobRef: ...

    async def get(self, ref: BlobRef) -> bytes: ...

    async def keep(self, hashes: set[bytes]) -> int: ...


class Supervisor(Protocol):
    async def run(self, attempt: AttemptRun) -> Outcome: ...


class MemberChanges(Protocol):
    lagged: bool

    def __aiter__(self) -> AsyncIterator[Changed]: ...


class Membership(Protocol):
    def members(self) -> list[Member]: ...

    def subscribe(self) -> AbstractContextManager[MemberChanges]: ...
