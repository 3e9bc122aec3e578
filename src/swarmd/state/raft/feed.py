"""News for a bounded number of subscribers, each with a bounded queue."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

import trio

from swarmd.base.errors import Busy

T = TypeVar("T")

SUBSCRIBERS_MAX: Final = 64


class Feed(Generic[T]):
    """Whoever does not keep up is cut off: better a clear end than a gap."""

    def __init__(self, waiting_max: int) -> None:
        self._waiting_max = waiting_max
        self._subscribers: list[trio.MemorySendChannel[T]] = []

    def subscribe(self, *first: T) -> trio.MemoryReceiveChannel[T]:
        """News from now on, after `first`. Raises Busy beyond 64 subscribers."""
        if len(self._subscribers) >= SUBSCRIBERS_MAX:
            raise Busy(f"there are {SUBSCRIBERS_MAX} subscribers already")
        send, receive = trio.open_memory_channel[T](self._waiting_max)
        for item in first:
            send.send_nowait(item)
        self._subscribers.append(send)
        return receive

    def emit(self, item: T) -> None:
        for send in list(self._subscribers):
            try:
                send.send_nowait(item)
            except (trio.WouldBlock, trio.BrokenResourceError):
                self._subscribers.remove(send)
                send.close()

    def close(self) -> None:
        """End every subscription."""
        for send in self._subscribers:
            send.close()
        self._subscribers.clear()
