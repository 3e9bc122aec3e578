"""The bus, as a program beside the daemons uses it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from swarmd.client.requests import Requests
from swarmd.gateway.shapes_bus import BusMessage, BusReached


class BusCalls(Requests):
    """A part of `Client`."""

    def bus_publish(
        self, topic: str, data: Any = None, *, sender: str = "", timeout_s: float | None = None
    ) -> int:
        """Publish to a topic, to `@NAME`, or to `*` for everybody; how many have it.

        Not repeated on another daemon if the outcome is unknown.

        Args:
            data: anything that msgpack can hold, 64 KiB of it at most.
            sender: `@NAME` of whom subscribers may answer to.
            timeout_s: longest wait for room in an inbox; `bus.timeout_s` of the daemon if None.

        Raises:
            InboxFull: a subscriber, which is named, had no room; others have the message.
            DeliveryUnknown: a node, which is named, did not acknowledge it; others have it.
            NotFound: no subscriber has that `@NAME`.
        """
        body: dict[str, Any] = {"data": data, "sender": sender}
        if timeout_s is not None:
            body["timeout_ms"] = max(1, round(timeout_s * 1_000))
        found = self._call("POST", f"/bus/{quote(topic, safe='/')}", body, kind=BusReached)
        return found.reached

    def bus_watch(self, topics: Sequence[str]) -> Iterator[BusMessage]:
        """What is published to topics that fit, until the daemon goes or the iterator is closed.

        The first item has only `topics`: from then on nothing is missed, while this is read.
        """
        path = "/bus?" + urlencode([("topic", one) for one in topics])
        return self._stream("GET", path, None, BusMessage)
