"""Multicast DNS (RFC 6762, RFC 6763): who says on this link that they belong to our swarm.

What is heard is a hint and never trust: it yields addresses to say hello to, nothing else.
An announcement holds a version and eight bytes of an HMAC under the swarm id, so that a
member knows its own swarm at a glance and a stranger learns no swarm id.

The DNS machinery runs in threads of its own library and hands over by `run_sync_soon` only.
Everything kept of what strangers say is bounded: `HEARD_MAX` services, `_WAITING_MAX` names
that wait to be looked at; a library cache that grew beyond `_CACHE_MAX` is thrown away.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import psutil
import trio
import zeroconf

from swarmd.mesh.addresses import Address
from swarmd.observe.log import get_logger

SERVICE: Final = "_swarmd._udp.local."
HEARD_MAX: Final = 256
_WAITING_MAX: Final = 256
_CACHE_MAX: Final = 4_096
_FOUND_MAX: Final = 256
_ADDRESSES_MAX: Final = 8
_VERSION: Final = b"1"
_HINT: Final = re.compile(rb"[0-9a-f]{16}")
_LOOK_TIMEOUT_MS: Final = 1_000
_CHECK_EVERY_S: Final = 10.0
_CLOSE_TIMEOUT_S: Final = 3.0
_FIND_SETTLE_S: Final = 0.3

_log = get_logger("discovery")


def swarm_hint(swarm_id: bytes) -> str:
    """What an announcement shows of a swarm: 16 hex digits."""
    return hmac.new(swarm_id, b"swarmd mdns", hashlib.sha256).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface as multicast uses it: its IPv4 and IPv6 addresses with prefix lengths."""

    name: str
    addresses: tuple[str, ...]
    networks: tuple[str, ...]


@dataclass(slots=True)
class InterfaceReport:
    """What happened on one interface. `reasons` counts what was refused."""

    interface: str
    addresses: tuple[str, ...]
    announced_as: tuple[str, ...] = ()
    heard_at: tuple[str, ...] = ()
    heard: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    problem: str = ""

    @property
    def announced(self) -> bool:
        return bool(self.announced_as)

    @property
    def refused(self) -> int:
        return sum(self.reasons.values())


@dataclass(frozen=True, slots=True)
class _Heard:
    name: str
    addresses: tuple[Address, ...]
    refused: str


def usable_interfaces(names: Sequence[str] = (), *, loopback: bool = False) -> list[Interface]:
    """The named interfaces that are up; without names all, loopback left out by default."""
    stats = psutil.net_if_stats()
    found = []
    for name, entries in sorted(psutil.net_if_addrs().items()):
        if name not in stats or not stats[name].isup:
            continue
        addresses, networks = [], []
        for entry in entries:
            if entry.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            host = entry.address.partition("%")[0]
            if names or loopback or not ipaddress.ip_address(host).is_loopback:
                addresses.append(host)
                networks.append(_network(host, entry.netmask))
        if addresses and (not names or name in names):
            found.append(Interface(name, tuple(addresses), tuple(networks)))
    return found


def _network(host: str, netmask: str | None) -> str:
    try:
        return str(ipaddress.ip_network(f"{host}/{netmask}", strict=False))
    except ValueError:  # psutil gives IPv6 masks in full, which the constructor does not take.
        return str(ipaddress.ip_network(f"{host}/64" if ":" in host else host, strict=False))


class Mdns:
    """Announces this node and hears others. Made by `open_mdns`; an empty hint hears every swarm.

    `found` brings addresses of nodes that show our swarm's hint, each time they are heard.
    """

    def __init__(
        self,
        hint: str,
        label: str,
        port: int,
        names: tuple[str, ...],
        *,
        addresses: tuple[str, ...],
        announce: bool,
    ) -> None:
        self._hint, self._port, self._names = hint, port, names
        self._own_addresses = addresses
        self._own_name = f"{label}.{SERVICE}"
        self._announce = announce
        self._heard: OrderedDict[str, _Heard] = OrderedDict()
        self._refused: Counter[str] = Counter()
        self._interfaces: list[Interface] = []
        self._announced = False
        self._problem = ""
        self._pending = 0
        self._zeroconf: zeroconf.Zeroconf | None = None
        self._token = trio.lowlevel.current_trio_token()
        self._names_in, self._waiting = trio.open_memory_channel[str](_WAITING_MAX)
        self._found_in, self.found = trio.open_memory_channel[Address](_FOUND_MAX)

    def report(self) -> list[InterfaceReport]:
        """What was announced, heard and refused, per interface.

        A node is counted on the interface whose network holds its address, else on the first.
        """
        reports = [
            InterfaceReport(
                i.name,
                i.addresses,
                self._announced_on(i) if self._announced else (),
                problem=self._problem,
            )
            for i in self._interfaces
        ]
        if not reports:
            return []
        reports[0].reasons.update(self._refused)
        for heard in self._heard.values():
            report = self._place(heard, reports)
            if heard.refused:
                report.reasons[heard.refused] = report.reasons.get(heard.refused, 0) + 1
            else:
                report.heard += 1
                report.heard_at += tuple(f"{host}:{port}" for host, port in heard.addresses)
        return reports

    def _announced_on(self, interface: Interface) -> tuple[str, ...]:
        own = self._own_addresses or interface.addresses
        return tuple(f"{host}:{self._port}" for host in own if _is_on(interface, host))

    async def run(self) -> None:
        """Announce and listen until cancelled, following the interfaces as they come and go."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_loop)
            while True:
                self._interfaces = await trio.to_thread.run_sync(usable_interfaces, self._names)
                if self._interfaces:
                    await self._run_once()
                else:
                    await trio.sleep(_CHECK_EVERY_S)

    async def _run_once(self) -> None:
        addresses = [a for i in self._interfaces for a in i.addresses if _multicasts(a)]
        try:
            with trio.CancelScope(shield=True):
                opened = await trio.to_thread.run_sync(_open, addresses)
        except OSError as error:
            await self._rest(error)
            return
        self._zeroconf, self._problem = opened, ""
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._browse, opened)
            if self._announce:
                await self._register(opened, addresses)
            await self._until_changed(opened)
        except (OSError, zeroconf.Error) as error:
            await self._rest(error)
        finally:
            self._zeroconf, self._announced = None, False
            with trio.move_on_after(_CLOSE_TIMEOUT_S, shield=True):
                await trio.to_thread.run_sync(opened.close, abandon_on_cancel=True)

    async def _rest(self, error: Exception) -> None:
        self._problem = f"multicast DNS does not work here: {error or type(error).__name__}"
        _log.warning("mdns", problem=self._problem)
        await trio.sleep(_CHECK_EVERY_S)

    async def _register(self, opened: zeroconf.Zeroconf, addresses: list[str]) -> None:
        info = zeroconf.ServiceInfo(
            SERVICE,
            self._own_name,
            port=self._port,
            properties={b"v": _VERSION, b"s": self._hint.encode()},
            parsed_addresses=[*self._own_addresses] or addresses,
            server=self._own_name,
        )

        def register() -> None:
            opened.register_service(info, allow_name_change=True)

        await trio.to_thread.run_sync(register, abandon_on_cancel=True)
        self._own_name = info.name
        self._announced = True

    def _browse(self, opened: zeroconf.Zeroconf) -> None:
        zeroconf.ServiceBrowser(opened, SERVICE, listener=_Listener(self))

    async def _until_changed(self, opened: zeroconf.Zeroconf) -> None:
        while True:
            await trio.sleep(_CHECK_EVERY_S)
            now = await trio.to_thread.run_sync(usable_interfaces, self._names)
            if now != self._interfaces or len(opened.cache.cache) > _CACHE_MAX:
                return

    # ---- what is heard ----------------------------------------------------------------

    def hear_from_thread(self, name: str) -> None:
        """A service name was seen; called by the library's thread."""
        if self._pending >= _WAITING_MAX or len(name) > 255:
            self._refused["too_many"] += 1
            return
        self._pending += 1
        try:
            self._token.run_sync_soon(self._hear, name)
        except trio.RunFinishedError:
            self._pending = _WAITING_MAX  # Nobody is left to hear.

    def _hear(self, name: str) -> None:
        self._pending -= 1
        if name.lower() == self._own_name.lower():
            return
        try:
            self._names_in.send_nowait(name)
        except trio.WouldBlock:
            self._refused["too_many"] += 1

    async def _look_loop(self) -> None:
        async for name in self._waiting:
            opened = self._zeroconf
            if opened is None:
                continue
            info = await trio.to_thread.run_sync(_look, opened, name, abandon_on_cancel=True)
            self.note(name, info)

    def note(self, name: str, info: Any) -> None:
        """Judge what a service says of itself; `info` None means that it says nothing."""
        heard = self._judge(name, info)
        self._heard.pop(name, None)
        if len(self._heard) >= HEARD_MAX:
            self._heard.popitem(last=False)
        self._heard[name] = heard
        if not heard.refused:
            for address in heard.addresses:
                try:
                    self._found_in.send_nowait(address)
                except trio.WouldBlock:
                    self._refused["too_many"] += 1

    def _judge(self, name: str, info: Any) -> _Heard:
        if info is None:
            return _Heard(name, (), "no_answer")
        port = info.port or 0
        hosts = info.parsed_addresses()[:_ADDRESSES_MAX]
        addresses = tuple((host.partition("%")[0], port) for host in hosts)
        properties = info.properties or {}
        hint = properties.get(b"s") or b""
        if properties.get(b"v") != _VERSION:
            return _Heard(name, addresses, "other_version")
        if not _HINT.fullmatch(hint) or not addresses or not 0 < port <= 65_535:
            return _Heard(name, addresses, "malformed")
        if self._hint and hint != self._hint.encode():
            return _Heard(name, addresses, "other_swarm")
        return _Heard(name, addresses, "")

    def _place(self, heard: _Heard, reports: list[InterfaceReport]) -> InterfaceReport:
        for interface, report in zip(self._interfaces, reports, strict=True):
            if any(_is_on(interface, host) for host, _ in heard.addresses):
                return report
        return reports[0]


def _is_on(interface: Interface, host: str) -> bool:
    address = ipaddress.ip_address(host)
    return any(address in ipaddress.ip_network(n) for n in interface.networks)


class _Listener(zeroconf.ServiceListener):
    def __init__(self, mdns: Mdns) -> None:
        self._mdns = mdns

    def add_service(self, zc: zeroconf.Zeroconf, type_: str, name: str) -> None:
        self._mdns.hear_from_thread(name)

    def update_service(self, zc: zeroconf.Zeroconf, type_: str, name: str) -> None:
        self._mdns.hear_from_thread(name)

    def remove_service(self, zc: zeroconf.Zeroconf, type_: str, name: str) -> None:
        return  # Who is gone is for membership to say.


def _open(addresses: list[str]) -> zeroconf.Zeroconf:
    """The machinery on all addresses, or on those of them that multicast works on."""
    v4 = [a for a in addresses if ":" not in a]
    version = zeroconf.IPVersion.V4Only if v4 else zeroconf.IPVersion.V6Only
    usable = v4 or addresses
    try:
        return zeroconf.Zeroconf(interfaces=usable, ip_version=version)
    except OSError:
        working = [a for a in usable if _works(a, version)]
        if not working:
            raise
        return zeroconf.Zeroconf(interfaces=working, ip_version=version)


def _works(address: str, version: zeroconf.IPVersion) -> bool:
    try:
        zeroconf.Zeroconf(interfaces=[address], ip_version=version).close()
    except OSError:
        return False
    return True


def _multicasts(host: str) -> bool:
    """An IPv6 interface has several addresses; its link-local one is no use without a scope."""
    return not ipaddress.ip_address(host).is_link_local or ":" not in host


def _look(opened: zeroconf.Zeroconf, name: str) -> zeroconf.ServiceInfo | None:
    try:
        info = zeroconf.ServiceInfo(SERVICE, name)
        if info.load_from_cache(opened) or info.request(opened, _LOOK_TIMEOUT_MS):
            return info
    except (zeroconf.Error, OSError, ValueError):
        return None  # A name that is none, or the machinery closes at this moment.
    return None


@asynccontextmanager
async def open_mdns(
    hint: str,
    label: str,
    port: int,
    *,
    interfaces: tuple[str, ...] = (),
    addresses: tuple[str, ...] = (),
    announce: bool = True,
) -> AsyncIterator[Mdns]:
    """Announce and hear for as long as the block runs; ends with a goodbye on the link.

    Args:
        hint: `swarm_hint` of the swarm.
        label: this node's name on the link.
        interfaces: names of those to use; empty means all that are up but loopback.
        addresses: where this node listens; empty means every address of the interfaces.
    """
    mdns = Mdns(hint, label, port, interfaces, addresses=addresses, announce=announce)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mdns.run)
        try:
            yield mdns
        finally:
            nursery.cancel_scope.cancel()


async def find(
    hint: str | None, *, interfaces: tuple[str, ...] = (), timeout_s: float = 5.0
) -> list[Address]:
    """Addresses that show the hint, as soon as there are any; empty if none did in time.

    Without a hint, those of any swarm.
    """
    found: dict[Address, None] = {}
    async with open_mdns(hint or "", "finder", 0, interfaces=interfaces, announce=False) as mdns:
        with trio.move_on_after(timeout_s):
            found[await mdns.found.receive()] = None
            with trio.move_on_after(_FIND_SETTLE_S):
                while True:
                    found[await mdns.found.receive()] = None
    return list(found)
