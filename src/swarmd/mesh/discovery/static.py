"""Seeds: addresses of members that somebody wrote down."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Final

import trio

from swarmd.base.errors import ConfigError
from swarmd.mesh.addresses import Address

_PORT_DIGITS_MAX: Final = 5


def parse_address(text: str, *, default_port: int) -> Address:
    """`HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`; a bare IPv6 address is one too.

    Raises:
        ConfigError: it is none of these; the sentence quotes it.
    """
    text = text.strip()
    host, port = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ConfigError(f"{text!r} is not an address: expected [IPV6]:PORT")
        port = rest[1:]
        missing = rest == ":"
    else:
        missing = text.endswith(":") and text.count(":") == 1
        if text.count(":") == 1:
            host, _, port = text.partition(":")
    if not host or missing or any(c.isspace() or c in "/[]" for c in host):
        raise ConfigError(f"{text!r} is not an address: expected HOST or HOST:PORT")
    if not port:
        return host, default_port
    is_number = port.isascii() and port.isdigit() and len(port) <= _PORT_DIGITS_MAX
    if not is_number or not 0 < int(port) <= 65_535:
        raise ConfigError(f"{text!r} has the port {port!r}: expected a number in 1..65535")
    return host, int(port)


async def resolve(addresses: Iterable[Address]) -> tuple[list[Address], list[str]]:
    """The literal addresses behind host names, and a sentence for each name that has none."""
    found: dict[Address, None] = {}
    failures: list[str] = []
    for host, port in addresses:
        try:
            infos = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        except OSError as error:
            failures.append(f"the seed {host}:{port} has no address: {error.strerror or error}")
            continue
        for *_, target in infos:
            found[str(target[0]), port] = None
    return list(found), failures
