"""Whoever reads records as they come: told what is on the disk, in the moment that it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from swarmd.audit.chain import Sealed
from swarmd.base.errors import Busy

FOLLOWERS_MAX: Final = 16
# Batches that wait for a reader; one that reads more slowly is told so.
BATCHES_MAX: Final = 128


class Followers:
    """Those of one node."""

    def __init__(self) -> None:
        self._channels: set[trio.MemorySendChannel[Sealed]] = set()

    def __len__(self) -> int:
        return len(self._channels)

    def publish(self, batches: list[Sealed]) -> None:
        """Tell everybody; who has no room left is told no more."""
        for channel in list(self._channels):
            try:
                for sealed in batches:
                    channel.send_nowait(sealed)
            except (trio.WouldBlock, trio.BrokenResourceError):
                self._channels.discard(channel)
                channel.close()

    @contextmanager
    def join(self) -> Iterator[trio.MemoryReceiveChannel[Sealed]]:
        """Batches from now on; they end early for a reader that is too slow.

        Raises:
            Busy: too many follow already.
        """
        if len(self._channels) >= FOLLOWERS_MAX:
            raise Busy(f"{FOLLOWERS_MAX} readers follow the audit log of this node already")
        send, receive = trio.open_memory_channel[Sealed](BATCHES_MAX)
        self._channels.add(send)
        try:
            with send, receive:
                yield receive
        finally:
            self._channels.discard(send)
