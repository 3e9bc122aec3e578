"""The `[mesh]` section: where this node listens, how it is found, how patient it is."""

from __future__ import annotations

import msgspec

from swarmd.base.errors import ConfigError

DEFAULT_PORT = 7575


class MeshConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of transports and discovery. Raises ConfigError from `check`."""

    # One port for TCP and UDP, so that one firewall rule opens the swarm; 0 takes any free one.
    port: int = DEFAULT_PORT
    # Addresses to listen on. The default is every interface, as members come from anywhere;
    # name some to keep the swarm off others.
    bind: tuple[str, ...] = ("0.0.0.0", "::")  # nosec B104
    # Addresses told to others, HOST or HOST:PORT. Empty: those of the interfaces listened on,
    # as they change, which is right unless this host is behind a port forwarding.
    advertise: tuple[str, ...] = ()
    # Members to contact at start, HOST or HOST:PORT. Needed only where multicast does not
    # reach; one living seed is enough.
    seeds: tuple[str, ...] = ()
    # Announce and look for the swarm by multicast DNS. Off, only seeds and known members help.
    mdns: bool = True
    # Interfaces for multicast DNS, by name. Empty: all that are up, loopback left out. They are
    # followed as they come and go, over IPv4 and IPv6.
    interfaces: tuple[str, ...] = ()
    # Longest wait for a connection to a member, handshakes included. Shorter fails over
    # faster; longer suits slow machines. At most 5.
    connect_timeout_s: float = 5.0
    # A connection without traffic is closed after this. Shorter frees memory; longer saves
    # handshakes, some 10 ms each.
    idle_close_s: float = 300.0
    # Unproven connections and handshakes end after this, so that strangers hold nothing.
    handshake_timeout_s: float = 5.0
    # Strangers may hold so many connections at once; more leaves room for many hosts starting
    # together, at 100 KB each.
    unproven_connections_max: int = 256
    # One address, in IPv6 one /64, may hold so many of them. Fewer leave more to others; more
    # suit many members behind one address.
    unproven_per_address_max: int = 16
    # Let nodes without a token ask to join, for an admin to approve (`swarmctl node pending`).
    # Off, strangers are not even told the swarm's name.
    join_requests: bool = True
    # How long `swarmd --join` without a token waits to be approved.
    join_wait_s: float = 3_600.0
    # How often seeds and addresses found by multicast are tried while nobody answers there.
    seed_retry_s: float = 2.0

    def check(self) -> None:
        """Raises ConfigError, naming the setting, for values that cannot work."""
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"mesh.port is {self.port}; it must be in 0..65535")
        if not self.bind:
            raise ConfigError("mesh.bind is empty; name at least one address to listen on")
        if not 0 < self.connect_timeout_s <= 5:
            raise ConfigError(f"mesh.connect_timeout_s is {self.connect_timeout_s}; at most 5")
        for name in ("idle_close_s", "handshake_timeout_s", "join_wait_s", "seed_retry_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"mesh.{name} must be above 0")
        for name in ("unproven_connections_max", "unproven_per_address_max"):
            if getattr(self, name) < 1:
                raise ConfigError(f"mesh.{name} must be at least 1")
