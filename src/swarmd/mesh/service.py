"""The mesh: this node's sockets, its view of the others, and how it finds them.

`open_mesh` puts the rooms below together and keeps four things moving between them:

- Addresses that may be members (seeds, members known from an earlier start, what multicast DNS
  heard) get a datagram hello until who answers there is a living member in our view.
- A member whose datagram session is new exchanges views with us: so joins do not wait for gossip.
- How streams end is a hint for membership; what membership says of addresses and deaths goes
  to the transports.
- What trust learns lets rumours be verified that could not be before.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, cast

import trio

from swarmd import __version__
from swarmd.base.clock import Clock
from swarmd.base.disk import Disk
from swarmd.base.errors import ConfigError, Evicted, Outdated, Unavailable, Untrusted
from swarmd.base.ids import NodeId, short
from swarmd.base.pace import pause, pause_ends
from swarmd.base.rng import Rng, derive
from swarmd.identity.keys import SigningKey
from swarmd.mesh.addresses import Address, AddressBook, is_scoped
from swarmd.mesh.approval.porch import Porch
from swarmd.mesh.approval.service import Approvals
from swarmd.mesh.approval.table import WaitingTable
from swarmd.mesh.config import MeshConfig
from swarmd.mesh.discovery.adverts import InterfaceFacts
from swarmd.mesh.discovery.interfaces import InterfaceWatch, usable_interfaces, watch_interfaces
from swarmd.mesh.discovery.service import announced, open_discovery
from swarmd.mesh.discovery.static import parse_address, resolve
from swarmd.mesh.facts import MeshFacts, SeedFacts, loopback_names, missing_binds
from swarmd.mesh.join import Admitter, serve_join, turn_away
from swarmd.mesh.link import Link
from swarmd.mesh.reach.knocking import TcpDoor
from swarmd.mesh.reach.service import ReachService, open_reach
from swarmd.mesh.rumours import RumourSigner
from swarmd.mesh.sockets import (
    Bound,
    advertised,
    bind,
    own_addresses,
)
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.service import Membership, MemberState, Meta, open_membership
from swarmd.mesh.swim.tags import Tags
from swarmd.mesh.transports.carriers import TlsStream, host_of
from swarmd.mesh.transports.streams import Streams, open_streams
from swarmd.mesh.transports.udp import Datagrams, open_datagrams
from swarmd.mesh.trust import Trust
from swarmd.mesh.trust_spread import serve_trust
from swarmd.observe.log import get_logger
from swarmd.wire.version import PROTOCOL_LOWEST, PROTOCOL_VERSION

if TYPE_CHECKING:
    from swarmd.mesh.discovery.mdns import Mdns

HINTS_MAX: Final = 256
_HINT_TRIES_MAX: Final = 10
_SEEDS_CALLED_MAX: Final = 16
_SLOW_RETRY: Final = 15
_FAST_TRIES: Final = 5
# Names in `mesh.advertise` may come to mean other addresses while no interface changes.
_NAMES_EVERY_S: Final = 30.0
_WATCH_EVERY_S: Final = 1.0
_SWIM_HOWS: Final = ("reset", "refused", "idle", "restarting", "leaving")

_log = get_logger("mesh")


class _JoinDesk:
    """Admits joiners once the strong store is open."""

    def __init__(self, trust: Trust, key: SigningKey, porch: Porch) -> None:
        self._trust, self._key, self._porch = trust, key, porch
        self._admit: Admitter = _not_ready
        self.seeds: Callable[[], Sequence[Address]] = tuple

    def open(self, admit: Admitter) -> None:
        self._admit = admit

    async def serve(self, stream: TlsStream, crowded: bool) -> None:
        joiner = cast("trio.SSLStream[trio.abc.Stream]", stream)
        if crowded:
            await turn_away(joiner)
            return
        await serve_join(
            joiner,
            self._trust,
            self._key.public,
            admit=self._admit,
            seeds=self.seeds,
            porch=self._porch,
            host=host_of(stream.transport_stream),
        )


async def _not_ready(entry: bytes) -> Sequence[bytes]:
    raise Unavailable("this member is still starting and cannot admit anybody yet")


class _Hint:
    """An address that may be a member's, and how often it was tried in vain."""

    def __init__(self, *, lasting: bool) -> None:
        self.lasting = lasting
        self.tries = 0

    def is_due(self) -> bool:
        """Each round at first; a lasting one goes on at a lower rate."""
        self.tries += 1
        return self.tries <= _FAST_TRIES or self.tries % _SLOW_RETRY == 0

    def is_spent(self) -> bool:
        return not self.lasting and self.tries > _HINT_TRIES_MAX


class Mesh:
    """This node among the others. Made by `open_mesh`."""

    def __init__(
        self,
        config: MeshConfig,
        streams: Streams,
        datagrams: Datagrams,
        membership: Membership,
        addresses: AddressBook,
        mdns: Mdns | None,
        local_addresses: tuple[Address, ...],
        own: frozenset[Address],
        port: int,
        desk: _JoinDesk,
        approvals: Approvals,
        reach: ReachService,
    ) -> None:
        self.link: Link = streams
        self.approvals = approvals
        self.membership = membership
        self.addresses = addresses
        self.local_addresses = local_addresses
        self.port = port
        self._config, self._streams, self._datagrams = config, streams, datagrams
        self._mdns, self._own, self._desk = mdns, own, desk
        self._reach = reach
        self._hints: dict[Address, _Hint] = {}
        self._seeds: dict[str, list[Address]] = {}
        self._seed_problems: dict[str, str] = {}
        self._hurry = trio.Event()
        desk.seeds = self._member_addresses

    def discovery_report(self) -> list[InterfaceFacts]:
        """What multicast DNS announced, heard and refused, per interface; empty if it is off."""
        return [] if self._mdns is None else self._mdns.report()

    def seed_report(self) -> list[SeedFacts]:
        """What became of each configured seed."""
        reports = []
        for seed, addresses in self._seeds.items():
            peers = [p for a in addresses if (p := self.addresses.peer_at(a)) is not None]
            own = any(address in self._own for address in addresses)
            problem = self._seed_problems.get(seed, "")
            if not peers and not problem:
                problem = "this is the node itself" if own else "no member has answered there"
            reports.append(SeedFacts(seed, peers[0] if peers else None, problem, own))
        return reports

    async def facts(self, tried: Sequence[NodeId] = ()) -> MeshFacts:
        """What keeps nodes apart, or could. Multicast is tried, and members are called anew.

        Args:
            tried: members to find out about; as many as `ReachService.examine` takes.

        Takes up to 3 s where something is amiss.
        """
        async with trio.open_nursery() as nursery:
            if self._mdns is not None:
                nursery.start_soon(self._mdns.listen)
            seeds = self.seed_report()
            for number, seed in enumerate(seeds[:_SEEDS_CALLED_MAX]):
                if seed.problem and not seed.own:
                    nursery.start_soon(self._find_stranger, seeds, number)
            reach = await self._reach.examine(tried)
            names = await loopback_names(self._config)
        present = await trio.to_thread.run_sync(usable_interfaces)
        return MeshFacts(
            mdns=self._config.mdns,
            interfaces=self.discovery_report(),
            seeds=seeds,
            told=self.local_addresses,
            loopback_names=names,
            missing_binds=missing_binds(self._config, [a for i in present for a in i.addresses]),
            reach=reach,
        )

    async def _find_stranger(self, seeds: list[SeedFacts], number: int) -> None:
        """Note whether a node of another swarm answers where no member does."""
        for address in self._seeds.get(seeds[number].seed, ())[:1]:
            swarm = await self._reach.foreign_swarm(address)
            seeds[number] = replace(seeds[number], swarm=swarm)

    def serve_joins(self, admit: Admitter) -> None:
        """Admit joiners from now on; until then they are told to try another member.

        Args:
            admit: brings a signed admission into the log; see `mesh.join.serve_join`.
        """
        self._desk.open(admit)

    def contact(self, addresses: Iterable[Address]) -> None:
        """Try addresses of members that somebody named, as often as the configured seeds."""
        for address in addresses:
            self._note_hint(address, lasting=True)

    def possible_addresses(self) -> tuple[list[Address], list[Address]]:
        """Where members may be: what was configured, and what anything else tells. No two alike.

        None of it is trusted.
        """
        seeds = {one: None for found in self._seeds.values() for one in found}
        heard = [self.addresses.lookup(x.node_id)[:2] for x in self.membership.members()]
        told = dict.fromkeys([*(one for some in heard for one in some), *self._hints])
        first = [one for one in seeds if one not in self._own]
        return first, [one for one in told if one not in self._own and one not in seeds]

    async def leave(
        self, how: Literal["leaving", "restarting"] = "leaving", quiet_s: int = 0
    ) -> None:
        """Say goodbye: members hold this node `left` and its streams close with a reason.

        Args:
            quiet_s: for how long it will be away, if it is `restarting`: nobody suspects it
                meanwhile.

        Takes a few seconds at most; end the block of `open_mesh` afterwards.
        """
        await self.membership.leave()
        await self._streams.goodbye(how, quiet_s)

    # ---- loops ------------------------------------------------------------------------

    def start_loops(
        self, nursery: trio.Nursery, trust: Trust, watch: InterfaceWatch, rng: Rng
    ) -> None:
        """What `open_mesh` keeps running."""
        nursery.start_soon(self.contact_loop)
        nursery.start_soon(self.address_loop, watch)
        nursery.start_soon(self.met_loop)
        nursery.start_soon(self.closed_loop)
        nursery.start_soon(self.watch_loop)
        nursery.start_soon(self.members_loop)
        nursery.start_soon(self.trust_loop, trust)
        nursery.start_soon(partial(serve_trust, trust, self.link, self.membership, rng=rng))
        nursery.start_soon(self.approvals.serve)
        if self._mdns is not None:
            nursery.start_soon(self.hear_loop, self._mdns)

    async def contact_loop(self) -> None:
        """Say hello to addresses that may be members', until cancelled."""
        self._remember()
        while True:
            await self._resolve_seeds()
            for address, hint in list(self._hints.items()):
                if self._is_settled(address):
                    hint.tries = 0
                elif hint.is_spent():
                    del self._hints[address]
                elif hint.is_due():
                    self._datagrams.hello(address)
            self._hurry = trio.Event()
            with trio.move_on_at(pause_ends(self._config.seed_retry_s)):
                await self._hurry.wait()

    async def address_loop(self, watch: InterfaceWatch) -> None:
        """Follow this host's interfaces and addresses until cancelled.

        At a change members and the link are told, and everybody is tried anew from there.
        """
        version = handled = watch.version
        while True:
            wait_s = _NAMES_EVERY_S if self._config.advertise else math.inf
            with trio.move_on_after(wait_s):
                version = await watch.changed(version)
            try:
                told = await advertised(self._config, self.port)
            except ConfigError as error:  # A name that resolved at start does not now.
                _log.warning("addresses", problem=error.message)
                continue
            own = await trio.to_thread.run_sync(own_addresses, self._config, self.port, told)
            if (version, own, told) == (handled, self._own, self.local_addresses):
                continue
            handled = version
            if self._mdns is not None:
                self._mdns.refresh(await announced(self._config, self.port, told))
            gone, self._own = self._own - own, own
            if gone or told != self.local_addresses:
                _log.info("addresses", now=[host for host, _ in told])
            if told != self.local_addresses:
                self.local_addresses = told
                self.membership.set_addresses(told)
            self._begin_anew({host for host, _ in gone})

    def _begin_anew(self, gone: Collection[str]) -> None:
        """After a change: let go of connections from addresses that are gone, and try everybody."""
        for peer in self._streams.drop_from(gone):
            self._streams.reconnect(peer)
        for hint in self._hints.values():
            hint.tries = 0
        for member in self.membership.members():
            if member.node_id != self.link.node_id and member.state is not MemberState.LEFT:
                self._streams.retry_now(member.node_id)
                for address in self.addresses.lookup(member.node_id)[:1]:
                    self._note_hint(address, lasting=False)
        self._hurry.set()

    async def met_loop(self) -> None:
        """Exchange views with members whose sessions are new, until cancelled."""
        async for peer, _ in self._datagrams.met:
            member = self.membership.get(peer)
            if member is None or member.state is not MemberState.ALIVE:
                self._streams.retry_now(peer)
                self.membership.join(peer)

    async def closed_loop(self) -> None:
        """Tell membership how streams end, until cancelled."""
        async for closed in self._streams.closed:
            if closed.how in _SWIM_HOWS:
                self.membership.stream_closed(closed.peer, closed.how, closed.quiet_s)
            if closed.how == "reset":  # Refused now, its process is gone and not only the stream.
                self._streams.reconnect(closed.peer)

    async def watch_loop(self) -> None:
        """Keep the connections that membership wants, until cancelled."""
        self._streams.keeps = self.membership.keeps
        while True:
            await pause(_WATCH_EVERY_S)
            for peer in self.membership.watched():
                self._streams.keep(peer)

    async def members_loop(self) -> None:
        """Tell the transports what membership knows, until cancelled."""
        with self.membership.subscribe() as changes:
            while True:
                change = await changes.receive()
                member = change.after
                if changes.lagged:
                    changes.lagged = False
                    for known in self.membership.members():
                        self.addresses.learn(known.node_id, known.addresses)
                if member is None or member.node_id == self.link.node_id:
                    continue
                self.addresses.learn(member.node_id, member.addresses)
                if change.joined or change.moved:  # That it only refuted a doubt is no news.
                    self._streams.retry_now(member.node_id)
                elif member.state is MemberState.DEAD:
                    self._streams.drop(member.node_id, "it is dead as far as this node knows")

    async def trust_loop(self, trust: Trust) -> None:
        """Tell membership when keys were learned or members evicted, until cancelled.

        Raises:
            Evicted: it is this node that was.
            Outdated: this build speaks less than the swarm accepts by now.
        """
        version = trust.version
        # What this node remembers of members and events may be older than what it knows by now.
        self.membership.trust_changed(trust.evicted())
        while True:
            version = await trust.changed(version)
            _check_may_run(trust, self.link.node_id)
            self.membership.trust_changed(trust.evicted())
            self._hurry.set()

    async def hear_loop(self, mdns: Mdns) -> None:
        """Take up what multicast DNS finds, until cancelled."""
        async for address in mdns.found:
            if self._note_hint(address, lasting=False):
                self._hurry.set()

    # ---- helpers ----------------------------------------------------------------------

    def _note_hint(self, address: Address, *, lasting: bool) -> bool:
        known = self._hints.get(address)
        if known is not None:
            known.tries = min(known.tries, _FAST_TRIES - 1)
            known.lasting = known.lasting or lasting
            return False
        if address in self._own or (len(self._hints) >= HINTS_MAX and not lasting):
            return False
        self._hints[address] = _Hint(lasting=lasting)
        return True

    def _is_settled(self, address: Address) -> bool:
        peer = self.addresses.peer_at(address)
        member = None if peer is None else self.membership.get(peer)
        return member is not None and member.state is MemberState.ALIVE

    def _remember(self) -> None:
        for known in self.membership.remembered():
            self.addresses.learn(NodeId(known.node_id), known.addresses)
            for address in known.addresses:
                if len(self._hints) < HINTS_MAX:
                    self._note_hint(address, lasting=True)

    async def _resolve_seeds(self) -> None:
        for seed in self._config.seeds:
            address = parse_address(seed, default_port=self._config.port or self.port)
            found, failures = await resolve([address])
            self._seed_problems[seed] = failures[0] if failures else ""
            if found:
                self._seeds[seed] = found
            for one in self._seeds.setdefault(seed, []):
                if one not in self._hints:
                    self._note_hint(one, lasting=True)

    def _member_addresses(self) -> Sequence[Address]:
        """Where a new member finds others: this node first."""
        found = list(self.local_addresses)
        for member in self.membership.members():
            if member.state is MemberState.ALIVE and member.node_id != self.link.node_id:
                known = self.addresses.lookup(member.node_id)
                found.extend([one for one in known if not is_scoped(one)][:2])
        return found


@asynccontextmanager
async def open_mesh(
    config: MeshConfig,
    swim: SwimConfig,
    *,
    key: SigningKey,
    trust: Trust,
    disk: Disk,
    clock: Clock,
    rng: Rng,
    name: str,
    tags: Tags = (),
) -> AsyncIterator[Mesh]:
    """Belong to the swarm for as long as the block runs; call `leave` first to say goodbye.

    Args:
        disk: holds what membership keeps between starts.
        name: this node's name, as others show it.
        tags: what it says of itself besides; see `checked_tags`.

    Raises:
        PortTaken, ConfigError: this node cannot listen as configured.
        Untrusted: the key is not that of a member of the trust's swarm.
        Evicted, Outdated: it was, or would be with a newer build.
        CorruptFile, DiskFault, TooLarge: see `open_membership`.
    """
    table = WaitingTable()
    porch = Porch(trust, key.public, table, clock, takes_requests=config.join_requests)
    desk = _JoinDesk(trust, key, porch)
    roles = _check(config, key, trust)
    bound, told, own = await _listen(config)
    versions = {"protocol": PROTOCOL_VERSION, "protocol_lowest": PROTOCOL_LOWEST}
    meta = Meta(name, told, roles, __version__, tags, **versions)
    book = AddressBook()
    async with (
        open_datagrams(key, trust, book, bound.datagrams, clock=clock) as datagrams,
        open_streams(
            key,
            trust,
            book,
            bound.listeners,
            config=config,
            rng=derive(rng, "streams"),
            join=desk.serve,
        ) as streams,
        open_membership(
            link=streams,
            datagrams=datagrams,
            disk=disk,
            signer=RumourSigner(key, trust),
            meta=meta,
            config=swim,
            clock=clock,
            rng=derive(rng, "swim"),
            founder=key.public == trust.genesis.first_node_public,
        ) as membership,
        open_discovery(config, key, trust, bound, told) as mdns,
        watch_interfaces() as watch,
        open_reach(streams, datagrams, trust, TcpDoor(key, trust, book, config.bind)) as reach,
        trio.open_nursery() as nursery,
    ):
        approvals = Approvals(table, trust, streams, membership, clock)
        mesh = Mesh(
            config, streams, datagrams, membership, book, mdns, told, own, bound.port,
            desk, approvals, reach,
        )  # fmt: skip
        mesh.start_loops(nursery, trust, watch, derive(rng, "trust"))
        _log.info("listening", port=bound.port, addresses=[host for host, _ in told])
        try:
            yield mesh
        finally:
            nursery.cancel_scope.cancel()


def _check(config: MeshConfig, key: SigningKey, trust: Trust) -> tuple[str, ...]:
    """This node's roles, if it is a member and is configured well."""
    config.check()
    for seed in config.seeds:
        parse_address(seed, default_port=config.port)
    _check_may_run(trust, NodeId(key.key_id))
    admission = trust.known(key.key_id)
    if admission is None:
        raise Untrusted(f"the key of this node, {short(key.key_id)}, is not a member's")
    return admission.roles


def _check_may_run(trust: Trust, me: NodeId) -> None:
    if me in trust.evicted():
        raise Evicted(
            f"this node was evicted from the swarm {trust.genesis.name}, and its id is not used "
            "again: to join as a new node, start it with an empty data folder and a token"
        )
    if trust.min_version > PROTOCOL_VERSION:
        raise Outdated(
            f"the swarm {trust.genesis.name} takes protocol version {trust.min_version} or above, "
            f"and this swarmd ({__version__}) speaks {PROTOCOL_VERSION}: upgrade it"
        )


async def _listen(
    config: MeshConfig,
) -> tuple[Bound, tuple[Address, ...], frozenset[Address]]:
    """Sockets, the addresses to tell others, and those at which this node meets itself."""
    bound = bind(config)
    try:
        told = await advertised(config, bound.port)
        own = await trio.to_thread.run_sync(own_addresses, config, bound.port, told)
    except (ConfigError, trio.Cancelled):
        bound.close()
        raise
    return bound, told, own
