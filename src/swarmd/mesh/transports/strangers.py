"""Places for connections whose other side has proven nothing yet.

There are so many in all, which bounds what strangers cost, and so many for one address, which
keeps the rest for others. An address is told by the kernel and takes a TCP handshake, so it is
no mere claim. Who is proven gives its place back.

Those who want to join have places of their own, for longer: an approval may take its time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from swarmd.mesh.addresses import network_of
from swarmd.mesh.transports.carriers import TlsStream
from swarmd.observe.metrics import DROPPED

_JOINERS_MAX: Final = 16
_JOINERS_PER_ADDRESS_MAX: Final = 8
_JOIN_TIMEOUT_S: Final = 70.0
_TURN_AWAY_S: Final = 2.0

# Serves a joiner, or, if true, turns it away because there are too many.
JoinServer = Callable[[TlsStream, bool], Awaitable[None]]


class Places:
    """Counts who holds a place, by address (`network_of`); asked, never waited for."""

    def __init__(self, in_all: int, per_address: int) -> None:
        self._in_all, self._per_address = in_all, per_address
        self._taken: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        return self._taken.total()

    def take(self, host: str) -> str:
        """Take a place, to be given back; else why there is none: `full` or `address_full`."""
        network = network_of(host)
        if self._taken[network] >= self._per_address:
            return "address_full"
        if self.taken >= self._in_all:
            return "full"
        self._taken[network] += 1
        return ""

    def give_back(self, host: str) -> None:
        network = network_of(host)
        self._taken[network] -= 1
        if not self._taken[network]:
            del self._taken[network]


class JoinDoor:
    """Where those come in who want to join; `unproven` are the places of all strangers."""

    def __init__(self, serve: JoinServer, unproven: Places) -> None:
        self._serve, self._unproven = serve, unproven
        self._joiners = Places(_JOINERS_MAX, _JOINERS_PER_ADDRESS_MAX)

    @property
    def taken(self) -> int:
        return self._joiners.taken

    async def serve(self, stream: TlsStream, host: str) -> None:
        """Serve one, for as long as its join may take; or tell it that there is no place.

        Who is told so has the place of an unproven one for that.
        """
        crowded = bool(self._joiners.take(host))
        places = self._unproven if crowded else self._joiners
        if crowded:
            DROPPED.labels("stream", "joiners_full").inc()
            if self._unproven.take(host):
                return
        try:
            with trio.move_on_after(_TURN_AWAY_S if crowded else _JOIN_TIMEOUT_S):
                await self._serve(stream, crowded)
        finally:
            places.give_back(host)
