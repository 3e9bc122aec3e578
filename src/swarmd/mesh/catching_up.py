"""Catching up where no member that this node knows is left: on the plane of joiners.

A node that slept while everybody it knew was replaced is known to the others, but knows none of
them, so that no connection between members comes about. What it missed proves itself, whoever
shows it: epochs from the last one that it knew, each certified by the voters of the one before,
and the records that the newest voters certified. So it believes those that answer nothing more
than that, and they show it to nobody but nodes of the swarm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from swarmd.base.errors import SwarmError, Unreachable, Untrusted
from swarmd.identity.authority import AuthorityState
from swarmd.identity.epochs import Chain
from swarmd.identity.fingerprints import door_of
from swarmd.identity.keys import SigningKey
from swarmd.mesh.addresses import Address
from swarmd.mesh.approval.porch import place_of
from swarmd.mesh.history import SETTLE_TIMEOUT_S, History
from swarmd.mesh.join_frames import STEP_TIMEOUT_S, Ahead, Behind, TlsStream
from swarmd.mesh.trust import Trust
from swarmd.mesh.visitor import Visitor, calling, worst_of

_ADDRESSES_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Missed:
    """What came while a node slept, verified.

    `epochs` are certificates of those after the last one known, the newest of which has the key
    `epoch`; `state` is the whole log of authority, `certificate` that of its newest record.
    """

    epochs: tuple[bytes, ...]
    epoch: bytes
    state: AuthorityState
    certificate: bytes


async def catch_up_from_outside(
    addresses: Sequence[Address], trust: Trust, key: SigningKey
) -> Missed:
    """What the first member showed that this node does not know. Nothing is written.

    Raises:
        Evicted: this node was shut out.
        SwarmError: nobody showed anything new; says what each answered.
    """
    failures: list[tuple[Address, SwarmError]] = []
    for address in list(dict.fromkeys(addresses))[:_ADDRESSES_MAX]:
        # What this node holds may be what replaced voters told it: then the whole is read anew.
        for whole in (False, True):
            try:
                async with calling(address) as stream:
                    missed = await _Sleeper(stream, trust, key).run(whole=whole)
            except SwarmError as error:
                failures.append((address, error))
                if not isinstance(error, Untrusted):
                    break
            else:
                if missed is not None:
                    return missed
                break
    if not failures:
        raise Unreachable("nobody knows more than this node")
    raise worst_of(failures)


class _Sleeper(Visitor):
    """One attempt at one address."""

    def __init__(self, stream: TlsStream, trust: Trust, key: SigningKey) -> None:
        super().__init__(stream, key)
        self._trust = trust

    async def run(self, *, whole: bool) -> Missed | None:
        """What is new there, or None."""
        trust = self._trust
        assert trust.epochs is not None
        chain = Chain(trust.genesis)
        for certificate in trust.epochs.certificates_from(1):
            chain.extend(certificate)
        known = chain.head.number
        state = AuthorityState(trust.genesis) if whole else trust.what_counts()
        door = await self._knock()
        await self._frames.send(self._behind(state.head[0], known, door.nonce))
        ahead = await self._frames.expect(Ahead, timeout_s=SETTLE_TIMEOUT_S + STEP_TIMEOUT_S)
        history = History(self._frames, state, chain)
        await history.read(ahead.epochs, ahead.height, ahead.certificate)
        if chain.head.number <= known and state.head[0] <= trust.head[0]:
            return None  # Another beginning of what is known here already, perhaps.
        epochs = chain.certificates_from(known)
        return Missed(epochs, chain.head.key, state, ahead.certificate)

    def _behind(self, height: int, epoch: int, nonce: bytes) -> Behind:
        public = self._key.public
        said = place_of(Behind(height, epoch, public, b""))
        return Behind(
            height, epoch, public, self._proof(door_of(self._trust.swarm_id), nonce, said)
        )
