"""Calling at a member on the plane of joiners: the connection, who answers there, and knocking.

What is asked for is for those that call: to be let in (`mesh.join`, `mesh.approval.joiner`), to be
renewed (`mesh.renewal`), or to be shown what was missed (`mesh.catching_up`).
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from swarmd.base.errors import (
    BadSignature,
    Conflict,
    MalformedMessage,
    Outdated,
    SwarmError,
    TimedOut,
    TokenRefused,
    Unavailable,
    Unreachable,
    Untrusted,
)
from swarmd.identity.genesis import NONCE_BYTES
from swarmd.identity.keys import SigningKey
from swarmd.identity.tls import JOIN_ALPN, join_context, peer_public_key
from swarmd.mesh.addresses import Address, format_address
from swarmd.mesh.approval.porch import proof_bytes
from swarmd.mesh.join_frames import (
    SESSION_TIMEOUT_S,
    STEP_TIMEOUT_S,
    Door,
    Frames,
    Knock,
    TlsStream,
)
from swarmd.wire.version import PROTOCOL_VERSION

CONNECT_TIMEOUT_S: Final = 5.0


class ClosedAtOnce(Unreachable):
    """The connection was made, and closed before anything was said."""


@asynccontextmanager
async def calling(address: Address) -> AsyncIterator[TlsStream]:
    """A connection to ask for something on, for as long as the block runs; 60 s at most.

    Raises Unreachable, TimedOut.
    """
    raw = await _connect(address)
    stream: TlsStream = trio.SSLStream(raw, join_context())
    try:
        with trio.move_on_after(SESSION_TIMEOUT_S) as scope:
            yield stream
        if scope.cancelled_caught:
            raise TimedOut(f"joining took more than {SESSION_TIMEOUT_S:.0f} s")
    finally:
        await trio.aclose_forcefully(stream)


async def _connect(address: Address) -> trio.SocketStream:
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            return await trio.open_tcp_stream(*address)
    except (OSError, trio.TooSlowError, UnicodeError) as error:
        why = "no answer" if isinstance(error, trio.TooSlowError) else str(error)
        raise Unreachable(f"cannot connect: {why}") from error


class Visitor:
    """One call at one address. Subclasses say what is asked for."""

    def __init__(self, stream: TlsStream, key: SigningKey) -> None:
        self._stream = stream
        self._frames = Frames(stream)
        self._key = key
        self._nonce = os.urandom(NONCE_BYTES)
        self._server_public = b""  # Whose TLS it is, once hands were shaken.

    async def _shake_hands(self) -> None:
        """Raises Unreachable, Untrusted: no member is there."""
        try:
            with trio.fail_after(STEP_TIMEOUT_S):
                await self._stream.do_handshake()
        except (trio.BrokenResourceError, trio.TooSlowError, ssl.SSLError) as error:
            if _was_closed(error):
                raise ClosedAtOnce(
                    "what answers there closes at once: it is no swarmd, or has no room"
                ) from error
            raise Unreachable("what answers there is no swarmd, or an unusable one") from error
        public = peer_public_key(self._stream)
        if public is None or self._stream.selected_alpn_protocol() != JOIN_ALPN:
            raise Untrusted("what answers there does not admit nodes")
        self._server_public = public

    async def _knock(self) -> Door:
        """What a member tells one that shows no token; nothing of it was verified."""
        await self._shake_hands()
        await self._frames.send(Knock(PROTOCOL_VERSION, self._nonce))
        return await self._frames.expect(Door)

    def _proof(self, door: bytes, door_nonce: bytes, said: bytes) -> bytes:
        """Of holding this node's key, for what is said to this server after its `Door`."""
        covered = proof_bytes(
            door, PROTOCOL_VERSION, self._nonce, door_nonce, self._server_public, said
        )
        return self._key.sign(covered)


def _was_closed(error: BaseException) -> bool:
    """Was it the connection's end, and nothing that was said on it?"""
    cause = error.__cause__ or error
    return not isinstance(error, trio.TooSlowError) and (
        not isinstance(cause, ssl.SSLError)
        or isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError)
    )


def jitter() -> float:
    """From 0.5 to 1.5, so that those who came together do not come again together."""
    return 0.5 + int.from_bytes(os.urandom(2), "big") / 65_536


def worst_of(failures: list[tuple[Address, SwarmError]]) -> SwarmError:
    """One error that tells all: of the class that says most about what to do."""

    def weight(failure: tuple[Address, SwarmError]) -> int:
        order = (TokenRefused, Outdated, Conflict, Untrusted, BadSignature, MalformedMessage)
        kinds = [n for n, kind in enumerate(order) if isinstance(failure[1], kind)]
        plain = len(order) + (1 if isinstance(failure[1], Unavailable) else 0)
        return kinds[0] if kinds else plain

    told = sorted(failures, key=weight)
    text = "; ".join(f"{format_address(where)}: {error.message}" for where, error in told)
    return type(told[0][1])(text)
