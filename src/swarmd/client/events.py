"""User events, and questions to all members, as a program beside the daemons uses them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from swarmd.client.requests import Requests
from swarmd.gateway.shapes_events import EventInfo, EventNews, QueryResult


class EventCalls(Requests):
    """A part of `Client`."""

    def event_send(self, name: str, payload: str = "") -> EventInfo:
        """Tell all members that something has happened; 512 bytes of payload at most.

        Not repeated on another daemon if the outcome is unknown: it would be another event.
        """
        path = f"/events/{quote(name, safe='')}"
        return self._call("POST", path, {"payload": payload}, kind=EventInfo)

    def events(self) -> list[EventInfo]:
        """The latest events that the node knows, oldest first."""
        return self._get("/events", list[EventInfo])

    def event_watch(self, names: Sequence[str] = ()) -> Iterator[EventNews]:
        """Events of these names, or of all, until the daemon goes or the iterator is closed.

        The first item has only `names`: from then on nothing is missed, while this is read.
        """
        query = urlencode([("name", one) for one in names])
        return self._stream("GET", f"/events/watch{'?' + query if query else ''}", None, EventNews)

    def query(
        self,
        name: str,
        payload: str = "",
        *,
        nodes: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> QueryResult:
        """Ask all members, or those that fit, and gather their answers until the deadline.

        Args:
            nodes: names or ids of those to ask; none: everybody.
            tags: what those to ask must tell of themselves.
            timeout_s: at most 60; `gateway.ask_timeout_s` of the daemon if None.
        """
        body: dict[str, Any] = {"payload": payload, "nodes": list(nodes), "tags": dict(tags or {})}
        if timeout_s is not None:
            body["timeout_ms"] = max(1, round(timeout_s * 1_000))
        return self._call("POST", f"/queries/{quote(name, safe='')}", body, kind=QueryResult)
