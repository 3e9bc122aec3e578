"""Renewing where no member talks to this node any more: on the plane of joiners.

Its credential may have expired while it was off. Members hear it there as they hear strangers,
and take its entry `Renew` to the log. They tell it nothing but when its credential ends: once
that is renewed they talk to it again, and what it missed comes as to every member.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from swarmd.base.errors import MalformedMessage, SwarmError, Unreachable
from swarmd.identity.entries import Renew, sign_entry
from swarmd.identity.fingerprints import door_of
from swarmd.identity.keys import SigningKey
from swarmd.mesh.addresses import Address
from swarmd.mesh.join import ADMIT_TIMEOUT_S
from swarmd.mesh.join_frames import STEP_TIMEOUT_S, Credential, Renewal, TlsStream
from swarmd.mesh.trust import Trust
from swarmd.mesh.visitor import Visitor, calling, worst_of

_ADDRESSES_MAX: Final = 16


async def renew_from_outside(addresses: Sequence[Address], trust: Trust, key: SigningKey) -> None:
    """Have this node's credential renewed by the first member that does it.

    Raises:
        Evicted: this node was shut out.
        SwarmError: nobody renewed it; says what each answered.
    """
    failures: list[tuple[Address, SwarmError]] = []
    for address in list(dict.fromkeys(addresses))[:_ADDRESSES_MAX]:
        try:
            async with calling(address) as stream:
                await _Renewer(stream, trust, key).run()
        except SwarmError as error:
            failures.append((address, error))
        else:
            return
    if not failures:
        raise Unreachable("no address of a member is known")
    raise worst_of(failures)


def renewal_of(trust: Trust, key: SigningKey) -> bytes:
    """This node's entry `Renew` for the credential it has, signed: the same bytes every time."""
    mine = trust.known(key.key_id)
    assert mine is not None, "who was evicted does not run"
    return _signed(trust, key, mine.expires_ms)


def _signed(trust: Trust, key: SigningKey, expires_ms: int) -> bytes:
    return sign_entry(Renew(key.key_id, expires_ms), trust.swarm_id, key)


class _Renewer(Visitor):
    """One attempt at one address."""

    def __init__(self, stream: TlsStream, trust: Trust, key: SigningKey) -> None:
        super().__init__(stream, key)
        self._trust = trust

    async def run(self) -> None:
        door = await self._knock()
        answer = await self._ask(renewal_of(self._trust, self._key), door.nonce)
        if not answer.renewed:
            # It was renewed before, and this node never heard of it. Only for the end that the
            # log knows is a signature good, so whoever names another gains nothing by it.
            entry = _signed(self._trust, self._key, answer.expires_ms)
            answer = await self._ask(entry, door.nonce)
        if not answer.renewed:
            raise MalformedMessage("it names another end of this node's credential every time")

    async def _ask(self, entry: bytes, nonce: bytes) -> Credential:
        proof = self._proof(door_of(self._trust.swarm_id), nonce, entry)
        await self._frames.send(Renewal(entry, self._key.public, proof))
        return await self._frames.expect(Credential, timeout_s=ADMIT_TIMEOUT_S + 2 * STEP_TIMEOUT_S)
