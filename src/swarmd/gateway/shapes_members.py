"""What the API answers about members as they change, and about who keeps streams to whom.

As for `shapes`: a field that a later version adds has a default.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from swarmd.gateway.shapes import MemberInfo
from swarmd.mesh.swim.coordinates import DIMENSIONS


class MembersNews(Struct, frozen=True, kw_only=True):
    """What `members/watch` tells at a time."""

    members: list[MemberInfo]
    """All of them the first time, then those that changed."""
    gone: list[str] = []
    """Ids of members that are forgotten."""
    first: bool = False


class NodeTags(Struct, frozen=True, kw_only=True):
    """What one node tells of itself."""

    node: str
    node_id: str
    tags: dict[str, str]


class NodeLinks(Struct, frozen=True, kw_only=True):
    """The streams of one node."""

    node: str
    node_id: str
    peers: list[str]
    """Ids of the members that it has one with."""


class Place(Struct, frozen=True, kw_only=True):
    """A network coordinate (`mesh.swim.coordinates`)."""

    axes_ms: Annotated[list[float], Meta(min_length=DIMENSIONS, max_length=DIMENSIONS)]
    height_ms: float
    adjustment_ms: float
    error: float
    """How far the node trusts it: 0 fully, 1.5 not at all."""


class NodeCoordinate(Struct, frozen=True, kw_only=True):
    """Where one node is."""

    node: str
    node_id: str
    place: Place | None = None
    """None as long as it has measured nothing."""


class Rtt(Struct, frozen=True, kw_only=True):
    """The round trip between two members, estimated from their coordinates."""

    a: str
    a_id: str
    b: str
    b_id: str
    rtt_ms: float
    error: float
    """That of the coordinate which its node trusts less."""


class TopologyNode(Struct, frozen=True, kw_only=True):
    node: str
    node_id: str
    state: str
    coordinator: bool = False
    peers: list[str] = []
    """Ids of the members that it says it has a stream with."""
    problem: str = ""
    """Why it did not tell."""


class Topology(Struct, frozen=True, kw_only=True):
    node: str
    """The one that asked the others."""
    swarm: str
    nodes: list[TopologyNode]
