"""The side of a node without a token: it asks to be let in, and waits until an admin approves.

It asks at one member after another, each time over a new connection, so that it waits for no
single one. What it is told before it is let in is believed by nobody: a swarm is known by its
fingerprint alone, which a person compares, or gave beforehand. Once let in it is shown the
chain of records from the genesis on, as who joins with a token; the genesis must be that of
the door it asked at, and its own admission must be in the chain, by an admin's key.

Nothing is written here; the caller does that with the result in its hands.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from swarmd.base.errors import (
    BadRequest,
    Conflict,
    Evicted,
    Forbidden,
    MalformedMessage,
    Outdated,
    SwarmError,
    TimedOut,
    TokenRefused,
    Unreachable,
    Untrusted,
)
from swarmd.base.ids import ID_BYTES
from swarmd.base.names import check_name
from swarmd.identity.fingerprints import (
    Fingerprint,
    door_of,
    fingerprint_of_node,
    fingerprint_of_swarm,
)
from swarmd.identity.genesis import NONCE_BYTES, decode_genesis
from swarmd.identity.keys import SigningKey
from swarmd.identity.requests import sign_request
from swarmd.mesh.addresses import Address, format_address
from swarmd.mesh.join import JoinResult, Newcomer
from swarmd.mesh.join_frames import Challenge, Door, Petition, TlsStream, Waiting
from swarmd.mesh.visitor import calling, jitter, worst_of

_ADDRESSES_MAX: Final = 16
# What a member says of when to ask again is heard within these.
_PAUSE_MIN_S: Final = 1.0
_PAUSE_MAX_S: Final = 15.0
# What will not pass, where every address says so: one alone may be anybody's.
_FINAL: Final = (Forbidden, Evicted, Outdated)


@dataclass(frozen=True, slots=True)
class Meeting:
    """A swarm that answered, as it calls itself, and how this node is known there."""

    name: str
    swarm: Fingerprint
    node: Fingerprint


@dataclass(frozen=True, slots=True)
class Progress:
    """How the waiting goes; `trouble` says why the last round reached no member."""

    left_s: float
    trouble: str = ""


Find = Callable[[], Awaitable[Sequence[Address]]]


class Asking:
    """A node's wish to be let in, until it is.

    Args:
        find: addresses of members, asked for again while nobody answers; hints, not trusted.
        key: this node's key.
        name: this node's name.
        wanted: the fingerprint of the swarm, or the beginning of it; None, or not the
            whole of it, asks `agree`.
        agree: told of the swarm that answered before it is asked for anything; raises a
            SwarmError if it is not the one. Who gave all of `wanted` has agreed.
        begin: told as what this node is known to the swarm, before it asks.
        tell: told of progress with every round.
    """

    def __init__(
        self,
        find: Find,
        key: SigningKey,
        name: str,
        *,
        wanted: Fingerprint | None,
        agree: Callable[[Meeting], Awaitable[None]],
        begin: Callable[[Meeting], None],
        tell: Callable[[Progress], None],
    ) -> None:
        check_name(name, "node")
        self._find, self._key, self._name = find, key, name
        self._wanted, self._agree, self._begin, self._tell = wanted, agree, begin, tell

    async def run(self, wait_s: float) -> JoinResult:
        """Ask until let in, for `wait_s` at the longest.

        Raises:
            TimedOut: nobody approved in time; what members noted is gone within ten minutes.
            Forbidden: an admin denied it.
            Unreachable, TokenRefused: nobody answered, or none that takes requests.
            Untrusted: none that answered is of the swarm that was wanted, or one showed a
                history that is not.
            Conflict: several swarms answered, and none was named.
            SwarmError: `agree` raised it.

        Cancellation: as if it had never asked, but that an admin may have approved meanwhile.
        """
        addresses = await self._addresses()
        door = await self._choose(addresses)
        ends = trio.current_time() + wait_s
        refused: dict[Address, SwarmError] = {}
        turn, troubled = 0, False
        while True:
            address = addresses[turn % len(addresses)]
            try:
                answer, trouble = await self._ask_at(address, door), ""
                refused.pop(address, None)
            except SwarmError as error:
                answer, trouble = _PAUSE_MIN_S, f"{format_address(address)}: {error.message}"
                if isinstance(error, _FINAL):
                    refused[address] = error
            if isinstance(answer, JoinResult):
                return answer
            if refused.keys() >= set(addresses):
                raise worst_of(list(refused.items()))
            left_s = ends - trio.current_time()
            if left_s <= 0:
                raise TimedOut(
                    "nobody approved this node in time; start it again to go on asking: its "
                    "fingerprint stays the same"
                )
            self._tell(Progress(left_s, trouble))
            await trio.sleep(min(answer * jitter(), left_s))
            turn, troubled = turn + 1, troubled or bool(trouble)
            if turn % len(addresses) == 0:
                if troubled:
                    addresses = await self._addresses(addresses)
                turn, troubled = 0, False

    async def _addresses(self, before: Sequence[Address] = ()) -> Sequence[Address]:
        """Where to ask; those of before if nobody is found now."""
        try:
            found = list(dict.fromkeys(await self._find()))[:_ADDRESSES_MAX]
        except SwarmError:
            if not before:
                raise
            found = []
        if not found and not before:
            raise Unreachable("no swarm was found: name a member of it with --seed HOST:PORT")
        return found or before

    async def _choose(self, addresses: Sequence[Address]) -> bytes:
        """The door of the one swarm to ask."""
        doors: dict[bytes, str] = {}
        failures: list[tuple[Address, SwarmError]] = []
        for address in addresses:
            try:
                async with calling(address) as stream:
                    door = await _Petitioner(stream, self._key, b"", b"").look()
            except SwarmError as error:
                failures.append((address, error))
                continue
            if self._wanted is None or fingerprint_of_swarm(door.door).begins(self._wanted):
                doors[door.door] = door.swarm
            else:
                wrong = fingerprint_of_swarm(door.door).hex
                other = Untrusted(f"it is of another swarm, whose fingerprint is {wrong}")
                failures.append((address, other))
        if not doors:
            raise worst_of(failures)
        if len(doors) > 1:
            said = " or ".join(f"{fingerprint_of_swarm(x).hex} ({doors[x]})" for x in doors)
            raise Conflict(
                f"several swarms answered; say which with --swarm FINGERPRINT: {said[:1_000]}"
            )
        [(found, name)] = doors.items()
        node = fingerprint_of_node(found, self._key.public)
        meeting = Meeting(name, fingerprint_of_swarm(found), node)
        if self._wanted is None or not self._wanted.is_whole:
            await self._agree(meeting)
        self._begin(meeting)
        return found

    async def _ask_at(self, address: Address, door: bytes) -> float | JoinResult:
        """What came of asking there, or in how many seconds to ask again."""
        request = sign_request(door, self._key, self._name)
        async with calling(address) as stream:
            return await _Petitioner(stream, self._key, door, request).run()


class _Petitioner(Newcomer):
    """One time of asking, at one address."""

    def __init__(self, stream: TlsStream, key: SigningKey, door: bytes, request: bytes) -> None:
        super().__init__(stream, key)
        self._door, self._request = door, request

    async def run(self) -> float | JoinResult:
        door = await self.look()
        if door.door != self._door:
            raise Untrusted("another swarm answers there now")
        proof = self._proof(self._door, door.nonce, self._request)
        await self._frames.send(Petition(self._request, self._key.public, proof))
        answer = await self._frames.expect_any(Waiting, Challenge)
        if isinstance(answer, Waiting):
            return min(max(answer.again_s, _PAUSE_MIN_S), _PAUSE_MAX_S)
        assert isinstance(answer, Challenge)
        genesis = decode_genesis(answer.genesis)
        if door_of(genesis.swarm_id) != self._door:
            raise Untrusted("its history is that of another swarm than the one that was asked")
        history = await self._read(answer, genesis)
        self._check_server(answer, history)
        return await self._be_welcomed(history)

    async def look(self) -> Door:
        """Which swarm is there; nothing is asked of it."""
        door = await self._knock()
        if not door.door:
            raise TokenRefused("it takes nobody in without a join token")
        if len(door.door) != ID_BYTES or len(door.nonce) != NONCE_BYTES:
            raise MalformedMessage("what it says of its swarm has the wrong length")
        try:
            check_name(door.swarm, "swarm")
        except BadRequest as error:
            raise MalformedMessage("it calls its swarm what no swarm is called") from error
        return door
