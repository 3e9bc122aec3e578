"""Who asks one member to be let in, without a token. Pure.

Strangers fill nothing but this: so many in all, so many from one address, each forgotten when
it asked no more for a while. It is kept in memory alone; who still wants to be let in asks again
within seconds, here or at another member. Who was denied is told so for an hour; of those, too,
so many are remembered, and the oldest is forgotten first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from swarmd.base.errors import Busy, Forbidden
from swarmd.mesh.addresses import network_of

WAITING_MAX: Final = 64
WAITING_PER_ADDRESS_MAX: Final = 4
DENIED_MAX: Final = 256
FORGET_S: Final = 600.0
DENIED_S: Final = 3_600.0


@dataclass(frozen=True, slots=True)
class Applicant:
    """A node that asks. Times are seconds of the clock that `WaitingTable` is told of."""

    fingerprint: bytes
    """Its fingerprint's bytes: one line each."""
    public: bytes
    request: bytes
    host: str
    first_s: float
    last_s: float


class WaitingTable:
    """The applicants of one member, and those it was told to deny."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, Applicant] = {}
        self._denied: dict[bytes, float] = {}  # By fingerprint: until when, the oldest first.

    def ask(self, fingerprint: bytes, public: bytes, request: bytes, host: str, now: float) -> bool:
        """Take note of who asks, or asks again; whether it is new here.

        Raises:
            Forbidden: it was denied.
            Busy: as many wait as may, in all or at its address.
        """
        self._forget(now)
        if fingerprint in self._denied:
            raise Forbidden("an admin of the swarm denied this node; nobody is asked for an hour")
        before = self._waiting.get(fingerprint)
        others = [one for one in self._waiting.values() if one.fingerprint != fingerprint]
        if len(others) >= WAITING_MAX:
            raise Busy("as many nodes wait to be approved as may at once")
        network = network_of(host)
        near = sum(network_of(one.host) == network for one in others)
        if near >= WAITING_PER_ADDRESS_MAX:
            raise Busy("as many nodes of this address wait to be approved as may at once")
        first_s = now if before is None else before.first_s
        self._waiting[fingerprint] = Applicant(fingerprint, public, request, host, first_s, now)
        return before is None

    def deny(self, fingerprint: bytes, now: float) -> bool:
        """Tell whoever has this fingerprint that it is denied; whether it was waiting here."""
        self._forget(now)
        self._denied.pop(fingerprint, None)
        if len(self._denied) >= DENIED_MAX:
            del self._denied[next(iter(self._denied))]
        self._denied[fingerprint] = now + DENIED_S
        return self._waiting.pop(fingerprint, None) is not None

    def forget_those(self, holds: Callable[[bytes], bool]) -> None:
        """Forget applicants for whose key `holds`: another member let them in."""
        for one in [x for x in self._waiting.values() if holds(x.public)]:
            del self._waiting[one.fingerprint]

    def remove(self, fingerprint: bytes) -> None:
        """It waits no more: it was let in."""
        self._waiting.pop(fingerprint, None)

    def waiting(self, now: float) -> list[Applicant]:
        """Who waits, the one that waits longest first."""
        self._forget(now)
        return sorted(self._waiting.values(), key=lambda one: (one.first_s, one.fingerprint))

    def _forget(self, now: float) -> None:
        for one in [x for x in self._waiting.values() if now - x.last_s >= FORGET_S]:
            del self._waiting[one.fingerprint]
        for fingerprint in [x for x, until_s in self._denied.items() if now >= until_s]:
            del self._denied[fingerprint]
