"""Where members can be reached, best first, whoever told us.

An address is a hint: each transport proves who answers there. What a member was last heard
from or reached at comes first; what others say of it comes after. At most `ADDRESSES_MAX` per
member and `MEMBERS_MAX` members are kept, the least recently touched member going first.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final

from swarmd.base.ids import NodeId
from swarmd.base.limits import MEMBERS_MAX

Address = tuple[str, int]

ADDRESSES_MAX: Final = 8


def network_of(host: str) -> str:
    """Whom a literal address counts as where each has a share: in IPv6 its /64.

    Who has one address of a /64 has all of them (RFC 4291, section 2.5.4), and so any number.
    """
    if ":" not in host:
        return host
    return str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))


def address_of(told: tuple[Any, ...]) -> Address:
    """What a socket tells of its other side. A link-local IPv6 host keeps its scope, as %INDEX."""
    host, port = str(told[0]), int(told[1])
    scope = told[3] if len(told) == 4 else 0
    return (f"{host}%{scope}" if scope and "%" not in host else host), port


def is_scoped(address: Address) -> bool:
    """Does it mean something on this host alone?"""
    return "%" in address[0]


def format_address(address: Address) -> str:
    """`host:port`, an IPv6 host in brackets."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class AddressBook:
    """Addresses by member, and members by address."""

    def __init__(self, *, members_max: int = MEMBERS_MAX) -> None:
        self._members_max = members_max
        self._of: OrderedDict[NodeId, list[Address]] = OrderedDict()
        self._at: dict[Address, NodeId] = {}

    def learn(self, peer: NodeId, addresses: Iterable[Address], *, proven: bool = False) -> None:
        """Add addresses; `proven` ones were seen to work just now and go to the front."""
        known = self._of.setdefault(peer, [])
        self._of.move_to_end(peer)
        fresh = [(host, port) for host, port in addresses if 0 < port <= 65_535 and host]
        merged = [*fresh, *known] if proven else [*known, *fresh]
        kept = list(dict.fromkeys(merged))[:ADDRESSES_MAX]
        for address in known:
            if address not in kept and self._at.get(address) == peer:
                del self._at[address]
        for address in kept:
            if proven and address in fresh:
                self._at[address] = peer
            else:
                self._at.setdefault(address, peer)
        self._of[peer] = kept
        while len(self._of) > self._members_max:
            self._drop_oldest()

    def lookup(self, peer: NodeId) -> list[Address]:
        """The member's addresses, best first; empty if none is known."""
        return list(self._of.get(peer, ()))

    def peer_at(self, address: Address) -> NodeId | None:
        """Who was last proven, or else said, to be at `address`."""
        return self._at.get(address)

    def refute(self, peer: NodeId, address: Address) -> None:
        """Somebody else answers there."""
        known = self._of.get(peer, [])
        if address in known:
            known.remove(address)
        if self._at.get(address) == peer:
            del self._at[address]

    def forget(self, peer: NodeId) -> None:
        for address in self._of.pop(peer, ()):
            if self._at.get(address) == peer:
                del self._at[address]

    def _drop_oldest(self) -> None:
        self.forget(next(iter(self._of)))
