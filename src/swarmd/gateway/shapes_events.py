"""What the API answers about user events and questions to all members; see `shapes`."""

from __future__ import annotations

from msgspec import Struct


class EventInfo(Struct, frozen=True, kw_only=True):
    """A user event. Whose `time` is higher may have been sent because of the other."""

    name: str
    payload: str
    time: int
    node: str
    node_id: str
    """Who sent it."""
    wall_ms: int
    """When, as its clock says."""


class EventNews(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a watch tells. The first one has `names` alone: from then on nothing is missed."""

    event: EventInfo | None = None
    names: list[str] | None = None
    """Whose events are told; empty: all."""
    missed: int = 0
    """So many were dropped before this one, because this was not read."""


class NodeAnswer(Struct, frozen=True, kw_only=True):
    """What one member answered to a question; `code` and `problem` if it did not."""

    node: str
    node_id: str
    answer: dict[str, int | float | str] | None = None
    code: str = ""
    problem: str = ""
    took_ms: int = 0


class QueryResult(Struct, frozen=True, kw_only=True):
    """`acks`: members that said anything at all in time; `answers`: those that gave an answer."""

    query: str
    node: str
    """The one that asked the others."""
    asked: int
    acks: int
    answers: int
    missing: list[str]
    """Names of those that said nothing in time."""
    nodes: list[NodeAnswer]
