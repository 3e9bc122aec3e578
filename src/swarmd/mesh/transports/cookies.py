"""Which datagram hellos are worth a signature check, decided before one is made.

A check costs far more than a forged hello costs its sender, and where a datagram says that it
comes from is a claim. So, as in DTLS (RFC 9147, section 5.1):

- While no more than 50 hellos a second arrive any of them may be checked, and nobody waits for
  a round trip more.
- Above that a hello must show a cookie, which only who receives at its address has been told.
  Nothing is kept for it: a cookie is a keyed tag over the address and the hello, under a secret
  of this process that is renewed every 10 s. The secret before counts, too, so a cookie is good
  for 10 to 20 s, for one hello, from one address and port.
- Who shows a cookie is known by its address, and an address has a share of the checks. Without
  a cookie no share is touched: else a forger used up a member's by naming its address.
- 200 checks a second are the end of it, whoever asks.

What is kept is two secrets and the shares of one second, which the last rule bounds.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Final

from swarmd.identity.keys import KEY_BYTES, TAG_BYTES, keyed_tag, tags_equal
from swarmd.mesh.addresses import Address, network_of

HELLOS_PER_S_FREE: Final = 50
CHECKS_PER_S_MAX: Final = 200
CHECKS_PER_ADDRESS_S_MAX: Final = 25
SECRET_S: Final = 10.0
NO_COOKIE: Final = bytes(TAG_BYTES)
# How far the count of hellos may run above what is free: a flood is over a second after its end.
_LEVEL_MAX: Final = 2.0 * HELLOS_PER_S_FREE

assert HELLOS_PER_S_FREE < CHECKS_PER_S_MAX, "who needs no cookie must not use up the checks"
assert CHECKS_PER_ADDRESS_S_MAX <= CHECKS_PER_S_MAX // 8, "one address must leave room for others"


class HelloGate:
    """Counts hellos, makes and judges cookies, gives out signature checks."""

    def __init__(self) -> None:
        self._level, self._level_at = 0.0, 0.0
        self._period = 0
        self._secrets = (os.urandom(KEY_BYTES), os.urandom(KEY_BYTES))
        self._second = 0
        self._checks: Counter[str] = Counter()

    def is_crowded(self, now: float) -> bool:
        """Count a hello that has come in; whether it must show a cookie."""
        drained = (now - self._level_at) * HELLOS_PER_S_FREE
        self._level = min(max(0.0, self._level - drained) + 1, _LEVEL_MAX)
        self._level_at = now
        return self._level > HELLOS_PER_S_FREE

    def cookie(self, hello: bytes, address: Address, now: float) -> bytes:
        """What the sender at `address` must show with the hello of this digest."""
        self._renew(now)
        return _cookie(self._secrets[0], hello, address)

    def is_good(self, cookie: bytes, hello: bytes, address: Address, now: float) -> bool:
        """Whether a cookie was made for this hello and address, and not long ago."""
        if cookie == NO_COOKIE:
            return False
        self._renew(now)
        return any(tags_equal(cookie, _cookie(s, hello, address)) for s in self._secrets)

    def spend_check(self, address: Address | None, now: float) -> str:
        """Take one signature check; why it is not to be had, else empty.

        Args:
            address: who asks, if it has shown a cookie.
        """
        if int(now) != self._second:
            self._second = int(now)
            self._checks.clear()
        if self._checks.total() >= CHECKS_PER_S_MAX:
            return "hellos_per_s"
        source = "" if address is None else network_of(address[0])
        if source and self._checks[source] >= CHECKS_PER_ADDRESS_S_MAX:
            return "hellos_per_address"
        self._checks[source] += 1
        return ""

    def _renew(self, now: float) -> None:
        period = int(now // SECRET_S)
        if period == self._period:
            return
        before = self._secrets[0] if period == self._period + 1 else os.urandom(KEY_BYTES)
        self._secrets = (os.urandom(KEY_BYTES), before)
        self._period = period


def _cookie(secret: bytes, hello: bytes, address: Address) -> bytes:
    host, port = address
    return keyed_tag(secret, hello + port.to_bytes(2, "big") + host.encode())
