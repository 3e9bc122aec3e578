"""Multicast DNS (RFC 6762, RFC 6763): who says on this link that they belong to our swarm.

What is heard is a hint and never trust: it yields addresses to say hello to, nothing else.
An announcement holds a version and eight bytes of an HMAC under the swarm id, so that a
member knows its own swarm at a glance and a stranger learns no swarm id.

It speaks IPv4 and IPv6, each where the interface has it. When interfaces or addresses change,
everything is opened anew on what there is, and announced at the addresses of now; so nothing is
ever announced that this node no longer has.

The DNS machinery runs in threads of its own library and hands over by `run_sync_soon` only.
Everything kept of what strangers say is bounded: see `adverts`, and `_WAITING_MAX` names that
wait to be looked at; a library cache that grew beyond `_CACHE_MAX` is thrown away.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import trio
import zeroconf

from swarmd.mesh.addresses import Address
from swarmd.mesh.discovery.adverts import (
    OWN_ECHO,
    TOO_MANY,
    VERSION,
    Adverts,
    InterfaceFacts,
    judge,
)
from swarmd.mesh.discovery.hearing import Hearing, listen, multicast_sources
from swarmd.mesh.discovery.interfaces import (
    Interface,
    is_link_local,
    usable_interfaces,
    watch_interfaces,
)
from swarmd.observe.log import get_logger

SERVICE: Final = "_swarmd._udp.local."
_WAITING_MAX: Final = 256
_CACHE_MAX: Final = 4_096
_FOUND_MAX: Final = 256
_LOOK_TIMEOUT_MS: Final = 1_000
_CHECK_EVERY_S: Final = 10.0
_CLOSE_TIMEOUT_S: Final = 3.0
_FIND_SETTLE_S: Final = 0.3
# Whoever asks again within this gets the same answer.
_HEARING_LASTS_S: Final = 3.0

_log = get_logger("discovery")


def swarm_hint(swarm_id: bytes) -> str:
    """What an announcement shows of a swarm: 16 hex digits."""
    return hmac.new(swarm_id, b"swarmd mdns", hashlib.sha256).hexdigest()[:16]


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
        self._adverts = Adverts()
        self._interfaces: list[Interface] = []
        self._announced: tuple[str, ...] = ()
        self._registered = False  # Once: then nobody else has our name.
        self._problem = ""
        self._hearings: dict[str, Hearing] = {}
        self._heard_at = float("-inf")
        self._hearing = trio.Lock()
        self._pending = 0
        self._zeroconf: zeroconf.Zeroconf | None = None
        self._changed = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._names_in, self._waiting = trio.open_memory_channel[str](_WAITING_MAX)
        self._found_in, self.found = trio.open_memory_channel[Address](_FOUND_MAX)

    def report(self) -> list[InterfaceFacts]:
        """What was announced, heard and refused, per interface."""
        facts = [
            InterfaceFacts(
                one.name,
                one.addresses,
                tuple(f"{host}:{self._port}" for host in self._announced if one.holds(host)),
                hearing=self._hearings.get(one.name),
                problem=self._problem,
                networks=one.networks,
            )
            for one in self._interfaces
        ]
        self._adverts.tell(facts, self._interfaces)
        return facts

    def refresh(self, addresses: tuple[str, ...]) -> None:
        """Interfaces or addresses may have changed: look, and announce `addresses` from now on.

        Args:
            addresses: as for `open_mdns`.
        """
        self._own_addresses = addresses
        self._changed.set()

    async def listen(self) -> None:
        """Try on each interface whether multicast is heard here, for `report`. Takes a second."""
        async with self._hearing:
            if trio.current_time() - self._heard_at < _HEARING_LASTS_S:
                return
            tried = self._interfaces
            hearings = await listen(tried)
            if tried and tried is self._interfaces:  # Else others were opened meanwhile.
                self._hearings, self._heard_at = hearings, trio.current_time()

    # ---- what runs --------------------------------------------------------------------

    async def run(self) -> None:
        """Announce and listen until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_loop)
            while True:
                self._changed = trio.Event()
                self._interfaces = await trio.to_thread.run_sync(usable_interfaces, self._names)
                self._adverts.clear()
                self._hearings, self._heard_at = {}, float("-inf")
                if self._interfaces:
                    await self._run_once()
                else:
                    await self._pause()

    async def _run_once(self) -> None:
        try:
            with trio.CancelScope(shield=True):
                opened = await trio.to_thread.run_sync(_open, self._interfaces)
        except (OSError, RuntimeError) as error:  # The latter: an address went at this moment.
            await self._rest(error)
            return
        self._zeroconf, self._problem = opened, ""
        failures: list[Exception] = []
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._browse, opened)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen_once)
                if self._announce:
                    nursery.start_soon(self._register, opened)
                await self._until_changed(opened)
                nursery.cancel_scope.cancel()
        except* (OSError, zeroconf.Error) as group:
            failures.extend(group.exceptions)
        finally:
            self._zeroconf, self._announced = None, ()
            with trio.move_on_after(_CLOSE_TIMEOUT_S, shield=True):
                await trio.to_thread.run_sync(opened.close, abandon_on_cancel=True)
        if failures:
            await self._rest(failures[0])

    async def _listen_once(self) -> None:
        """Say in the log where multicast is blocked on this host, once for each opening."""
        await self.listen()
        deaf = [name for name, hearing in self._hearings.items() if not hearing.own]
        if deaf:
            _log.warning("multicast is not heard here; seeds still work", interfaces=deaf)

    async def _rest(self, error: Exception) -> None:
        self._problem = f"multicast DNS does not work here: {error or type(error).__name__}"
        _log.warning("mdns", problem=self._problem)
        await self._pause()

    async def _pause(self) -> None:
        with trio.move_on_after(_CHECK_EVERY_S):
            await self._changed.wait()

    async def _register(self, opened: zeroconf.Zeroconf) -> None:
        info = self._info()
        if not info.parsed_addresses():
            return  # What is told is no address of this host, and a name has none in mDNS.
        probed = self._registered

        def register() -> None:
            opened.register_service(info, allow_name_change=True, cooperating_responders=probed)

        await trio.to_thread.run_sync(register, abandon_on_cancel=True)
        self._own_name = info.name
        self._registered = True
        self._announced = tuple(info.parsed_addresses())

    def _info(self) -> zeroconf.ServiceInfo:
        hosts = self._own_addresses or tuple(a for i in self._interfaces for a in i.addresses)
        return zeroconf.ServiceInfo(
            SERVICE,
            self._own_name,
            port=self._port,
            properties={b"v": VERSION, b"s": self._hint.encode()},
            parsed_addresses=[*dict.fromkeys(host.partition("%")[0] for host in hosts)],
            server=self._own_name,
        )

    def _browse(self, opened: zeroconf.Zeroconf) -> None:
        zeroconf.ServiceBrowser(opened, SERVICE, listener=_Listener(self))

    async def _until_changed(self, opened: zeroconf.Zeroconf) -> None:
        """Return when there are other interfaces or addresses, or too much is remembered."""
        told = self._own_addresses
        while len(opened.cache.cache) <= _CACHE_MAX:
            with trio.move_on_after(_CHECK_EVERY_S):
                await self._changed.wait()
                self._changed = trio.Event()
                now = await trio.to_thread.run_sync(usable_interfaces, self._names)
                if now != self._interfaces or told != self._own_addresses:
                    return

    # ---- what is heard ----------------------------------------------------------------

    def hear_from_thread(self, name: str, *, gone: bool = False) -> None:
        """A service name was seen, or withdrawn; called by the library's thread."""
        if self._pending >= _WAITING_MAX or len(name) > 255:
            self._adverts.count(TOO_MANY)
            return
        self._pending += 1
        try:
            self._token.run_sync_soon(self._hear, name, gone)
        except trio.RunFinishedError:
            self._pending = _WAITING_MAX  # Nobody is left to hear.

    def _hear(self, name: str, gone: bool) -> None:
        self._pending -= 1
        if gone:
            self._adverts.forget(name)
            return
        if name.lower() == self._own_name.lower():
            self._adverts.count(OWN_ECHO)
            return
        try:
            self._names_in.send_nowait(name)
        except trio.WouldBlock:
            self._adverts.count(TOO_MANY)

    async def _look_loop(self) -> None:
        async for name in self._waiting:
            opened = self._zeroconf
            if opened is None:
                continue
            info = await trio.to_thread.run_sync(_look, opened, name, abandon_on_cancel=True)
            self.note(name, info)

    def note(self, name: str, info: Any) -> None:
        """Judge what a service says of itself; `info` None means that it says nothing."""
        advert = judge(info, self._hint)
        self._adverts.note(name, advert)
        if advert.refused:
            return
        for host, port in advert.addresses:
            if is_link_local(host) and "%" not in host:
                continue  # It came over IPv4: nobody knows on which interface it is.
            try:
                self._found_in.send_nowait((host, port))
            except trio.WouldBlock:
                self._adverts.count(TOO_MANY)


class _Listener(zeroconf.ServiceListener):
    def __init__(self, mdns: Mdns) -> None:
        self._mdns = mdns

    def add_service(self, zc: zeroconf.Zeroconf, type_: str, name: str) -> None:
        self._mdns.hear_from_thread(name)

    def update_service(self, zc: zeroconf.Zeroconf, type_: str, name: str) -> None:
        self._mdns.hear_from_thread(name)

    def remove_service(self, zc: zeroconf.Zeroconf, type_: str, name: str) -> None:
        # Who is gone is for membership to say; it is only not heard here any more.
        self._mdns.hear_from_thread(name, gone=True)


def _open(interfaces: list[Interface]) -> zeroconf.Zeroconf:
    """The machinery on all interfaces, or on those of them that multicast works on."""
    sources = [source for one in interfaces for source in multicast_sources(one)]
    try:
        return _open_on(sources)
    except OSError:
        working = [source for source in sources if _works(source)]
        if not working:
            raise
        return _open_on(working)


def _open_on(sources: list[str]) -> zeroconf.Zeroconf:
    if not sources:
        raise OSError("no interface has an address that multicasts")
    families = {":" in source for source in sources}
    version = zeroconf.IPVersion.V6Only if families == {True} else zeroconf.IPVersion.V4Only
    if len(families) == 2:
        version = zeroconf.IPVersion.All
    return zeroconf.Zeroconf(interfaces=sources, ip_version=version)


def _works(source: str) -> bool:
    try:
        _open_on([source]).close()
    except OSError:
        return False
    return True


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

    Whoever opens it tells by `refresh` when interfaces or addresses changed.

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
    async with (
        open_mdns(hint or "", "finder", 0, interfaces=interfaces, announce=False) as mdns,
        watch_interfaces() as watch,
        trio.open_nursery() as nursery,
    ):

        async def follow() -> None:
            version = watch.version
            while True:
                version = await watch.changed(version)
                mdns.refresh(())

        nursery.start_soon(follow)
        with trio.move_on_after(timeout_s):
            found[await mdns.found.receive()] = None
            with trio.move_on_after(_FIND_SETTLE_S):
                while True:
                    found[await mdns.found.receive()] = None
        nursery.cancel_scope.cancel()
    return list(found)
