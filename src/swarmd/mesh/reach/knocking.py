"""Calling a member over TCP only to see whether it can be called, and whether it is the one meant.

No hello is said: the call ends with the TLS handshake, which shows whose key answers. To the member
it is one more connection that proved nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import trio

from swarmd.base.errors import Untrusted
from swarmd.base.ids import NodeId, node_id_of
from swarmd.identity.keys import SigningKey
from swarmd.identity.tls import MESH_ALPN, ContextCache, discard, peer_public_key
from swarmd.mesh.addresses import AddressBook
from swarmd.mesh.reach.messages import Outcome
from swarmd.mesh.transports.dial import dial_tcp
from swarmd.mesh.transports.roster import Roster


class Door(Protocol):
    async def knock(self, peer: NodeId, timeout_s: float) -> Outcome: ...


class TcpDoor:
    """Calls where the address book says that members are.

    Args:
        sources: see `dial_tcp`.
    """

    def __init__(
        self, key: SigningKey, roster: Roster, addresses: AddressBook, sources: Sequence[str]
    ) -> None:
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
