"""Places for connections whose other side has proven nothing yet.

There are so many in all, which bounds what strangers cost, and so many for one address, which
keeps the rest for others. An address is told by the kernel and takes a TCP handshake, so it is
no mere claim. Who is proven gives its place back.
"""

from __future__ import annotations

from collections import Counter

from swarmd.mesh.addresses import network_of


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
