"""What the doctor goes by: see `swarmd.mesh.facts` for what the mesh knows of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from swarmd.gateway.local_facts import LocalFacts
from swarmd.memory.vector.service import IndexFacts
from swarmd.mesh.facts import MeshFacts
from swarmd.mesh.reach.service import Reach


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """One other member: its state here, its clock if it answered, and what gets through to it.

    `name` has the beginning of its id with it where another is called the same.
    `skew_s` is how far its clock is ahead; `state_s` for how long its state has been what it is;
    `reach` is None if that was not tried; `stream_only`: membership had its answers over TCP alone.
    """

    name: str
    state: str
    answered: bool
    skew_s: float
    hosts: tuple[str, ...] = ()
    version: str = ""
    protocol: int = 0
    reach: Reach | None = None
    state_s: float = 0.0
    stream_only: bool = False


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a running daemon knows. `not_ready` is empty if it takes work."""

    node: str
    not_ready: str
    swarm: str
    local: LocalFacts
    mesh: MeshFacts | None
    peers: tuple[PeerFacts, ...]
    store_state: str
    voters: tuple[str, ...]
    coordinator: str
    may_lose: int
    next_loss: str
    version: str = ""
    protocol: int = 0
    credential_left_ms: int | None = None
    """In store time; None if it is unknown."""
    shared_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names that several of the living carry, with the beginnings of their ids."""
    index: IndexFacts | None = None
    """How the index of vectors is; None: nothing can be said, or it is here and well."""

    @property
    def is_alone(self) -> bool:
        """Does it see nobody else alive?"""
        return not any(peer.state == "alive" for peer in self.peers)
