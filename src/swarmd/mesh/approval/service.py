"""Who waits to be let in, at whichever member: asked live, and denied everywhere at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import RemoteError, SwarmError
from swarmd.base.ids import NodeId
from swarmd.identity.fingerprints import FINGERPRINT_BYTES, Fingerprint
from swarmd.mesh.approval.messages import (
    APPROVAL,
    Applicants,
    Denied,
    Deny,
    Waiting,
    WaitingAsk,
)
from swarmd.mesh.approval.table import WAITING_MAX, WaitingTable
from swarmd.mesh.link import Inbound, Link
from swarmd.mesh.trust import Trust
from swarmd.mesh.trust_spread import Alive
from swarmd.wire.codec import Message

ASK_TIMEOUT_S: Final = 2.0
_ANSWER_TIMEOUT_S: Final = 1.0


@dataclass(frozen=True)
class Listed:
    """Who waits, by the members that were asked; those that did not answer in time are named."""

    waiting: tuple[tuple[NodeId, Waiting], ...]
    missing: tuple[NodeId, ...]


class Approvals:
    """This member's applicants, and questions to the others about theirs."""

    def __init__(
        self, table: WaitingTable, trust: Trust, link: Link, membership: Alive, clock: Clock
    ) -> None:
        self._table, self._trust, self._clock = table, trust, clock
        self._link, self._membership = link, membership

    async def serve(self) -> None:
        """Answer other members until cancelled."""
        async for inbound in self._link.open_inbox(APPROVAL):
            # A peer that takes nothing must not keep the others waiting.
            with trio.move_on_after(_ANSWER_TIMEOUT_S):
                await self._answer(inbound)

    async def waiting(self) -> Listed:
        """Who waits, at any living member. What others list is theirs to answer for: whoever
        acts on a request verifies it (`identity.requests.open_request`)."""
        heard, missing = await self._ask_all(WaitingAsk())
        found = [(self._link.node_id, one) for one in self._mine()]
        for node, answer in heard.items():
            if isinstance(answer, Applicants):
                found += [(node, one) for one in answer.waiting[:WAITING_MAX]]
            else:
                missing.append(node)
        return Listed(tuple(found), tuple(missing))

    async def deny(self, fingerprint: Fingerprint) -> tuple[bool, tuple[NodeId, ...]]:
        """Have every living member deny a node for an hour.

        Returns:
            Whether it was waiting somewhere, and the members that did not answer: there it
            may ask again.
        """
        waited = self._table.deny(fingerprint.raw, self._clock.now())
        heard, missing = await self._ask_all(Deny(fingerprint.raw))
        told = [one for one in heard.values() if isinstance(one, Denied)]
        return waited or any(one.waited for one in told), tuple(missing)

    async def _ask_all(self, question: Message) -> tuple[dict[NodeId, Message], list[NodeId]]:
        heard: dict[NodeId, Message] = {}
        asked = [x for x in sorted(self._membership.alive()) if x != self._link.node_id]

        async def ask(node: NodeId) -> None:
            try:
                heard[node] = await self._link.request(
                    APPROVAL, node, question, timeout_s=ASK_TIMEOUT_S
                )
            except SwarmError:
                return  # Named as missing.

        with trio.move_on_after(ASK_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                for node in asked:
                    nursery.start_soon(ask, node)
        return heard, [node for node in asked if node not in heard]

    def _mine(self) -> list[Waiting]:
        now = self._clock.now()
        return [
            Waiting(one.request, one.host, now - one.first_s, now - one.last_s)
            for one in self._table.waiting(now)
            if not self._trust.is_known(one.public)
        ]

    async def _answer(self, inbound: Inbound) -> None:
        message = inbound.message
        if isinstance(message, WaitingAsk):
            await inbound.answer(Applicants(tuple(self._mine())))
        elif isinstance(message, Deny) and len(message.fingerprint) == FINGERPRINT_BYTES:
            await inbound.answer(Denied(self._table.deny(message.fingerprint, self._clock.now())))
        else:
            await inbound.fail(RemoteError(f"{type(message).__name__} is not a question"))
