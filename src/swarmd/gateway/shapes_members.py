"""What the API answers about members as they change, and about who keeps streams to whom.

As for `shapes`: a field that a later version adds has a default.
"""

from __future__ import annotations

from msgspec import Struct

from swarmd.gateway.shapes import MemberInfo


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
