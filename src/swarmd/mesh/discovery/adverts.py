"""What services on the link say of themselves, judged and kept within bounds.

At most `HEARD_MAX` services are kept, the longest known going first. Each counts on the
interface whose network holds one of its addresses, else on the first.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from swarmd.mesh.addresses import Address, format_address
from swarmd.mesh.discovery.hearing import Hearing
from swarmd.mesh.discovery.interfaces import Interface

HEARD_MAX: Final = 256
VERSION: Final = b"1"
OTHER_SWARM: Final = "other_swarm"
OTHER_VERSION: Final = "other_version"
MALFORMED: Final = "malformed"
NO_ANSWER: Final = "no_answer"
TOO_MANY: Final = "too_many"
OWN_ECHO: Final = "own_echo"
_ADDRESSES_MAX: Final = 8
_SHOWN_MAX: Final = 8
_HINT: Final = re.compile(rb"[0-9a-f]{16}")


@dataclass(slots=True)
class InterfaceFacts:
    """What multicast DNS did on one interface.

    `refused` counts by reason what was not taken up; `own_echo` among them is this node's own
    advert come back, as it should. `others` are adverts of other swarms: HINT at ADDRESS.
    """

    interface: str
    addresses: tuple[str, ...]
    announced_as: tuple[str, ...] = ()
    heard_at: tuple[str, ...] = ()
    heard: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    old_at: tuple[str, ...] = ()
    """Adverts of a form that this build does not know: where."""
    hearing: Hearing | None = None
    """None: not tried yet."""
    problem: str = ""
    networks: tuple[str, ...] = ()

    @property
    def announced(self) -> bool:
        return bool(self.announced_as)


@dataclass(frozen=True, slots=True)
class Advert:
    """One service as it was heard; `refused` is the reason, empty for a node of this swarm."""

    addresses: tuple[Address, ...]
    refused: str
    hint: str = ""


def judge(info: Any, hint: str) -> Advert:
    """What a service says of itself; None says nothing. An empty hint takes every swarm."""
    if info is None:
        return Advert((), NO_ANSWER)
    port = info.port or 0
    addresses = tuple((host, port) for host in info.parsed_scoped_addresses()[:_ADDRESSES_MAX])
    properties: Mapping[bytes, bytes | None] = info.properties or {}
    shown = properties.get(b"s") or b""
    if properties.get(b"v") != VERSION:
        return Advert(addresses, OTHER_VERSION)
    if not _HINT.fullmatch(shown) or not addresses or not 0 < port <= 65_535:
        return Advert(addresses, MALFORMED)
    if hint and shown != hint.encode():
        return Advert(addresses, OTHER_SWARM, shown.decode())
    return Advert(addresses, "", shown.decode())


class Adverts:
    """The services heard of late, by name."""

    def __init__(self) -> None:
        self._heard: OrderedDict[str, Advert] = OrderedDict()
        self._counted: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._heard)

    def note(self, name: str, advert: Advert) -> None:
        self._heard.pop(name, None)
        if len(self._heard) >= HEARD_MAX:
            self._heard.popitem(last=False)
        self._heard[name] = advert

    def forget(self, name: str) -> None:
        self._heard.pop(name, None)

    def clear(self) -> None:
        """Forget the services, and not what was only counted."""
        self._heard.clear()

    def count(self, reason: str) -> None:
        """Count what was refused before it was looked at."""
        self._counted[reason] += 1

    def tell(self, facts: Sequence[InterfaceFacts], interfaces: Sequence[Interface]) -> None:
        """Add what was heard to the facts of the interfaces, which are in the same order."""
        if not facts:
            return
        facts[0].refused.update(self._counted)
        for advert in self._heard.values():
            _tell(advert, _place(advert, facts, interfaces))


def _place(
    advert: Advert, facts: Sequence[InterfaceFacts], interfaces: Sequence[Interface]
) -> InterfaceFacts:
    for interface, one in zip(interfaces, facts, strict=True):
        if any(interface.holds(host) for host, _ in advert.addresses):
            return one
    return facts[0]


def _tell(advert: Advert, facts: InterfaceFacts) -> None:
    shown = tuple(format_address(address) for address in advert.addresses)
    if not advert.refused:
        facts.heard += 1
        facts.heard_at += shown
        return
    facts.refused[advert.refused] = facts.refused.get(advert.refused, 0) + 1
    if advert.refused == OTHER_SWARM and len(facts.others) < _SHOWN_MAX:
        facts.others += (f"{advert.hint} at {shown[0]}",)
    if advert.refused == OTHER_VERSION and len(facts.old_at) < _SHOWN_MAX:
        facts.old_at += shown[:1]
