"""Settings of the API that the CLI and other local programs talk to."""

from __future__ import annotations

import re
from typing import Annotated, Final

from msgspec import Meta, Struct

from swarmd.base.limits import BLOB_BYTES_MAX, MIB

Port = Annotated[int, Meta(ge=0, le=65_535)]
Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
SOCKET_ROLES: Final = ("viewer", "submitter", "operator", "admin")
_LISTEN: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9.]+):[0-9]{1,5}")


class GatewayConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[gateway]"""

    # Path of the unix socket. Empty: /run/swarmd/swarmd.sock as root, otherwise
    # $XDG_RUNTIME_DIR/swarmd/swarmd.sock. At most 107 bytes, the limit of the kernel.
    socket: str = ""
    # Group that may use the socket (mode 0660) besides its owner. Empty: the daemon's own group.
    socket_group: str = ""
    # Role of those who use the socket and are neither root nor the daemon's own user: viewer,
    # submitter, operator or admin. An operator deploys agents, whose code runs on every host, where
    # the daemon is not root's as its own user: viewer or submitter is for whom you trust less.
    socket_group_role: str = "operator"
    # TCP port on 127.0.0.1 for programs that cannot use a unix socket; 0 is off. Every local
    # user can connect to it, so it takes an API key, as other listeners do.
    tcp_port: Port = 0
    # Addresses that other hosts reach the API at, like ["192.168.1.5:7580", "[::]:7580"]. They
    # speak TLS and take API keys and sessions. Empty: none.
    listen: tuple[str, ...] = ()
    # Certificate chain and key (PEM files) of these listeners; read again when they change.
    # Empty: one that the node makes, whose fingerprint `swarmctl status` shows.
    tls_certificate: str = ""
    tls_key: str = ""
    # Requests a minute of one address that shows no credential that counts; then "rate_limited".
    stranger_requests_per_min: Count = 100
    # Requests a minute of one API key at this node, unless the key has a limit of its own.
    key_requests_per_min: Count = 6_000
    # Largest request body. It must hold one packed agent with its largest permitted bundle;
    # more lets one client take more of the daemon's memory.
    body_bytes_max: Annotated[int, Meta(ge=MIB)] = BLOB_BYTES_MAX + 8 * MIB
    # Bytes of request bodies held at once; past it requests are answered "busy".
    bodies_bytes_max: Annotated[int, Meta(ge=MIB)] = 2 * (BLOB_BYTES_MAX + 8 * MIB)
    # Requests served at once, open streams included; past it requests are answered "busy".
    requests_max: Count = 200
    # A stream without news says so this often, so that a broken one is noticed. Shorter notices
    # sooner and costs a few bytes per stream.
    keepalive_s: Seconds = 5.0
    # Longest silence of a member that a request was forwarded to (--node), before "unreachable".
    # Keep it above keepalive_s, or quiet log streams break.
    forward_timeout_s: Seconds = 15.0
    # Time every member has to answer a question put to all (instances, logs, clocks); who does
    # not is named as missing.
    ask_timeout_s: Seconds = 1.0

    def __post_init__(self) -> None:
        if self.socket_group_role not in SOCKET_ROLES:
            raise ValueError(f"socket_group_role must be one of {', '.join(SOCKET_ROLES)}")
        for one in self.listen:
            if not _LISTEN.fullmatch(one):
                raise ValueError(f"listen: {one!r} is no ADDRESS:PORT, like 192.168.1.5:7580")
