"""What can be asked about the members of the swarm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from swarmd.client.requests import Requests
from swarmd.gateway.shapes import MemberInfo
from swarmd.gateway.shapes_members import MembersNews, NodeTags, Rtt, Topology


class MemberCalls(Requests):
    """The members, as they change, their tags, how far they are, who keeps streams to whom."""

    def members(self) -> list[MemberInfo]:
        """Every member as the node sees it."""
        return self._get("/members", list[MemberInfo])

    def members_watch(self) -> Iterator[MembersNews]:
        """All members, and then those that change, until the daemon ends."""
        return self._stream("GET", "/members/watch", None, MembersNews)

    def change_tags(
        self, put: Mapping[str, str] | None = None, remove: Sequence[str] = ()
    ) -> NodeTags:
        """Change what the node tells of itself, until it is started anew; all or nothing."""
        body = {"put": dict(put or {}), "remove": list(remove)}
        return self._call("POST", "/tags", body, kind=NodeTags)

    def topology(self) -> Topology:
        """Who keeps streams to whom, as each living member says."""
        return self._get("/topology", Topology)

    def rtt(self, a: str, b: str = "") -> Rtt:
        """The round trip between two members, as estimated; `b` is the node asked if not named.

        Raises:
            NotReady: one of them has no coordinate yet.
            NotFound, BadRequest: no two members are named.
        """
        return self._get("/rtt", Rtt, {"a": a, "b": b})
