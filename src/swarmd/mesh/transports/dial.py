"""A TCP connection to whichever of a peer's addresses answers first.

As RFC 8305 has it: the next address is tried when the one before failed, or has not answered
within 250 ms; the first connection wins and the others are closed.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Final

import trio

from swarmd.base.limits import KIB
from swarmd.mesh.addresses import Address

_STAGGER_S: Final = 0.25
_SILENT_PEER_MS: Final = 10_000
_RESOLVED_MAX: Final = 4
# Unsent bytes that the kernel may hold: what control waits behind, a millisecond at 1 Gbit/s.
# Smaller wakes the writer of bulk too often.
_UNSENT_BYTES: Final = 128 * KIB


async def dial_tcp(
    addresses: Sequence[Address], *, sources: Sequence[str] = ()
) -> tuple[trio.SocketStream, Address]:
    """Connect.

    Args:
        sources: literal addresses of ours to call from, where one suits the target; a node
            that listens on some addresses only must not be taken to be at another.

    Raises:
        ConnectionRefusedError: every address answered that nobody listens there.
        OSError: no address could be reached.

    Cancellation: all or nothing.
    """
    made: list[tuple[trio.SocketStream, Address]] = []
    errors: list[OSError] = []
    try:
        async with trio.open_nursery() as nursery:

            async def attempt(address: Address, over: trio.Event) -> None:
                try:
                    made.append((await _connect(address, sources), address))
                    nursery.cancel_scope.cancel()
                except OSError as error:
                    errors.append(error)
                finally:
                    over.set()

            for address in addresses:
                over = trio.Event()
                nursery.start_soon(attempt, address, over)
                with trio.move_on_after(_STAGGER_S):
                    await over.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
    except BaseException:
        _close_all(made)
        raise
    if not made:
        if errors and all(isinstance(error, ConnectionRefusedError) for error in errors):
            raise ConnectionRefusedError("nobody listens there")
        raise OSError(str(errors[0]) if errors else "no address is known")
    _close_all(made[1:])
    stream, address = made[0]
    set_options(stream)
    return stream, address


def set_options(stream: trio.SocketStream) -> None:
    """A peer that stays silent about what we sent is gone; idle ones are asked now and then.

    Seldom, for connections are kept that have nothing to say, and membership asks more often.
    """
    sock = stream.socket
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_PEER_MS)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 3)


async def _connect(address: Address, sources: Sequence[str]) -> trio.SocketStream:
    infos = await trio.socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    last: OSError = OSError(f"{address[0]} has no address")
    for family, kind, protocol, _, target in infos[:_RESOLVED_MAX]:
        sock = trio.socket.socket(family, kind, protocol)
        try:
            source = _source_for(str(target[0]), sources)
            if source is not None:
                await sock.bind((source, 0))
            await sock.connect(target)
            return trio.SocketStream(sock)
        except OSError as error:
            sock.close()
            last = error
        except BaseException:
            sock.close()
            raise
    raise last


def _source_for(target: str, sources: Sequence[str]) -> str | None:
    to = ipaddress.ip_address(target)
    for source in sources:
        own = ipaddress.ip_address(source)
        if (own.version, own.is_loopback) == (to.version, to.is_loopback):
            return None if own.is_unspecified else source
    return None


def _close_all(made: Sequence[tuple[trio.SocketStream, Address]]) -> None:
    for stream, _ in made:
        stream.socket.close()
