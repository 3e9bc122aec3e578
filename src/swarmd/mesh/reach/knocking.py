"""Calling a member over TCP only to see whether it can be called, and whether it is the one meant.

No hello is said: the call ends with the TLS handshake, which shows whose key answers. To the member
it is one more connection that proved nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, cast

import trio

from swarmd.base.errors import SwarmError, Untrusted
from swarmd.base.ids import NodeId, node_id_of
from swarmd.identity.fingerprints import door_of
from swarmd.identity.keys import SigningKey
from swarmd.identity.tls import MESH_ALPN, ContextCache, discard, peer_public_key
from swarmd.mesh import join_frames
from swarmd.mesh.addresses import Address, AddressBook
from swarmd.mesh.reach.messages import Outcome
from swarmd.mesh.transports.dial import dial_tcp
from swarmd.mesh.transports.roster import Roster
from swarmd.mesh.visitor import Visitor, calling

_NAME_CHARS_MAX: Final = 64


class Door(Protocol):
    async def knock(self, peer: NodeId, timeout_s: float) -> Outcome: ...
    async def foreign_swarm(self, address: Address, timeout_s: float) -> str: ...


class _Stranger(Visitor):
    async def ask(self) -> join_frames.Door:
        """What is told to whoever knocks where strangers are heard."""
        return await self._knock()


class TcpDoor:
    """Calls where the address book says that members are.

    Args:
        sources: see `dial_tcp`.
    """

    def __init__(
        self, key: SigningKey, roster: Roster, addresses: AddressBook, sources: Sequence[str]
    ) -> None:
        self._key, self._roster = key, roster
        self._contexts = ContextCache(key, roster)
        self._addresses, self._sources = addresses, sources

    async def knock(self, peer: NodeId, timeout_s: float) -> Outcome:
        """How a call ends, within `timeout_s`."""
        known = self._addresses.lookup(peer)
        if not known:
            return "nowhere"
        outcome: Outcome = "silent"
        with trio.move_on_after(timeout_s):
            try:
                tcp, _ = await dial_tcp(known, sources=self._sources)
            except ConnectionRefusedError:
                return "refused"
            except OSError:
                return "silent"
            outcome = "stalled"
            return await self._greet(tcp, peer)
        return outcome

    async def foreign_swarm(self, address: Address, timeout_s: float) -> str:
        """The name of the other swarm whose node answers at an address; empty if none does.

        It is what a stranger says of itself, shortened to what can be shown.
        """
        told = ""
        with trio.move_on_after(timeout_s):
            try:
                async with calling(address) as stream:
                    door = await _Stranger(stream, self._key).ask()
            except SwarmError:
                return ""
            if door.door != door_of(self._roster.swarm_id):
                shown = "".join(c if c.isprintable() else "?" for c in door.swarm)
                told = shown[:_NAME_CHARS_MAX] or "without a name"
        return told

    async def _greet(self, tcp: trio.SocketStream, peer: NodeId) -> Outcome:
        stream = trio.SSLStream(tcp, self._contexts.client((MESH_ALPN,)))
        try:
            await stream.do_handshake()
            public = peer_public_key(cast("trio.SSLStream[trio.abc.Stream]", stream))
            return "ok" if public is not None and node_id_of(public) == peer else "other"
        except (trio.BrokenResourceError, Untrusted):
            return "other"  # It ended the handshake, or no member of this swarm is there.
        finally:
            await discard(stream)
