"""Joining: how a stranger with a token becomes a member, and gives nothing away before.

On a TLS 1.3 stream of the plane `swarmd-join/1`, the joiner without a certificate:

    joiner                                        member
    Hello(swarm, token id, node key, proof)  ->
                                             <-   Challenge(nonce, genesis) + Epochs + Records
    Request(admission signed twice)          ->
                                             <-   Accepted(addresses) + Epochs + Records
    (at any step)                            <-   Refused(code, sentence)

- The proof in `Hello` is made by the token's key over the joiner's protocol version, its nonce
  and the TLS key of this very server. Without it a member says nothing about the swarm; in other
  hands than this server's it is worth nothing.
- The joiner believes nothing but its token: the genesis must hash to the token's swarm, the
  chain from it must pass through the token's head (a shorter one is old, one that differs
  there is a fork) and be certified by the voters of an epoch that is no older than the token,
  and the server's TLS key must belong to a member of that chain. Only then does it sign a
  request. The token's seed is never sent.
- The request names both nonces, so that none serves on another connection.
- The member asks the log, not itself. A request that was granted before is granted again at
  no cost, because an answer can get lost.
- Nothing is written by the joiner; the caller does that with the result in its hands.

Each step has a deadline and a size; `Records` and `Epochs` come in pages.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from swarmd.base.errors import (
    BadSignature,
    Busy,
    MalformedMessage,
    SwarmError,
    TokenRefused,
    Unavailable,
    Unreachable,
    Untrusted,
)
from swarmd.base.ids import NodeId, node_id_of, short
from swarmd.base.limits import KIB
from swarmd.base.names import check_name
from swarmd.identity.authority import AuthorityState, check_token
from swarmd.identity.entries import ENTRY_BYTES_MAX, Admit, open_entry, sign_entry
from swarmd.identity.epochs import Chain
from swarmd.identity.genesis import NONCE_BYTES, Genesis, decode_genesis, encode_genesis
from swarmd.identity.keys import KEY_BYTES, SigningKey, verify
from swarmd.identity.tokens import Token, is_later_history
from swarmd.mesh.addresses import Address
from swarmd.mesh.approval.porch import Porch, check_version
from swarmd.mesh.history import History, Shower
from swarmd.mesh.join_frames import (
    SESSION_TIMEOUT_S,
    STEP_TIMEOUT_S,
    Accepted,
    Challenge,
    Frames,
    Hello,
    Knock,
    Request,
    TlsStream,
    close_stream,
    covered_bytes,
)
from swarmd.mesh.trust import Trust
from swarmd.mesh.visitor import ClosedAtOnce, Visitor, calling, jitter, worst_of
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import DROPPED
from swarmd.wire.version import PROTOCOL_VERSION

Admitter = Callable[[bytes], Awaitable[object]]

# How long a joiner goes on where members are crowded with others.
CROWDED_S: Final = 60.0
CLOSED_S: Final = 10.0
_CROWDED_PAUSE_S: Final = 0.4
# The log may first have to find a coordinator.
ADMIT_TIMEOUT_S: Final = 10.0
SEEDS_MAX: Final = 64
# What a stranger may make a member keep; the rest comes from members.
HELLO_BYTES_MAX: Final = 1 * KIB
REQUEST_BYTES_MAX: Final = ENTRY_BYTES_MAX + 1 * KIB
_ADDRESSES_MAX: Final = 64
_PROOF_DOMAIN: Final = "join-hello"

_log = get_logger("join")


@dataclass(frozen=True)
class JoinResult:
    """What a new member starts with, all of it verified.

    `records` is the whole chain, its own admission in it, and `certificate` that of the last one;
    `epochs` are the certificates of the epochs after the first; `seeds` are members' addresses.
    """

    genesis: Genesis
    records: tuple[bytes, ...]
    certificate: bytes
    epochs: tuple[bytes, ...]
    seeds: tuple[Address, ...]


# ---- the joiner ------------------------------------------------------------------------


async def join_swarm(
    addresses: Sequence[Address], token: Token, key: SigningKey, name: str
) -> JoinResult:
    """Ask each address in turn to admit this node, until one does. Nothing is written.

    Members that are crowded with joiners are asked again for a minute.

    Args:
        addresses: host and port of members or of what may be one; hints, not trusted.
        token: what the swarm's admin handed out.
        key: this node's key.
        name: this node's name.

    Raises:
        TokenRefused: a member refused the token, with its reason.
        Untrusted, BadSignature: whoever answered is not a member of the token's swarm.
        Unreachable, Unavailable: nobody answered, or the swarm cannot admit now.
        BadRequest: `name` is not a node name.
        SwarmError: another refusal. The sentence names each address and its reason.

    Cancellation: the swarm may have admitted the node; joining again finds that out.
    """
    check_name(name, "node")
    if not addresses:
        raise Unreachable("no member of the swarm was found: name one with --seed HOST:PORT")
    began = trio.current_time()
    while True:
        failures: list[tuple[Address, SwarmError]] = []
        for address in list(dict.fromkeys(addresses))[:_ADDRESSES_MAX]:
            try:
                return await _join_at(address, token, key, name)
            except SwarmError as error:
                failures.append((address, error))
        # A member without room for one more connection cannot say so; nor can what is no member.
        crowded = any(isinstance(error, Busy) for _, error in failures)
        closed = any(isinstance(error, ClosedAtOnce) for _, error in failures)
        spent_s = trio.current_time() - began
        if not ((crowded and spent_s < CROWDED_S) or (closed and spent_s < CLOSED_S)):
            raise worst_of(failures)
        await trio.sleep(jitter() * _CROWDED_PAUSE_S)


async def _join_at(address: Address, token: Token, key: SigningKey, name: str) -> JoinResult:
    async with calling(address) as stream:
        return await _Joiner(stream, token, key, name).run()


class Newcomer(Visitor):
    """One call of a node that is to be let in."""

    async def _read(self, challenge: Challenge, genesis: Genesis) -> History:
        """The history from `genesis` on that this server shows. Raises Untrusted.

        Args:
            genesis: that of the challenge, once it is known to be of the swarm that was asked.
        """
        history = History(self._frames, AuthorityState(genesis), Chain(genesis))
        await history.read(challenge.epochs, challenge.height, challenge.certificate)
        return history

    def _check_server(self, challenge: Challenge, history: History) -> None:
        """Raise Untrusted unless a member of the swarm with this history shows it."""
        server_id = node_id_of(self._server_public)
        server = history.state.admissions.get(server_id)
        if challenge.node_public != self._server_public or server is None or server.evicted:
            raise Untrusted(f"its key {short(server_id)} is not one of a member of the swarm")
        if len(challenge.nonce) != NONCE_BYTES:
            raise MalformedMessage("its nonce has the wrong length")

    async def _be_welcomed(self, history: History) -> JoinResult:
        """Take what follows once the swarm has let this node in."""
        accepted = await self._frames.expect(
            Accepted, timeout_s=ADMIT_TIMEOUT_S + 2 * STEP_TIMEOUT_S
        )
        await history.read(accepted.epochs, accepted.height, accepted.certificate)
        mine = history.state.admissions.get(self._key.key_id)
        if mine is None or mine.evicted:
            raise Untrusted("it says that it admitted this node, but its records do not")
        seeds = tuple(x for x in accepted.seeds[:SEEDS_MAX] if x[0] and 0 < x[1] < 65_536)
        return JoinResult(
            history.state.genesis,
            tuple(history.state.dump()),
            accepted.certificate,
            history.chain.certificates_from(1),
            seeds,
        )


class _Joiner(Newcomer):
    """One attempt with a token, at one address."""

    def __init__(self, stream: TlsStream, token: Token, key: SigningKey, name: str) -> None:
        super().__init__(stream, key)
        self._token = token
        self._name = name

    async def run(self) -> JoinResult:
        await self._shake_hands()
        await self._frames.send(self._hello())
        challenge = await self._frames.expect(Challenge)
        genesis = decode_genesis(challenge.genesis)
        self._check_swarm(genesis, challenge.height)
        history = await self._read(challenge, genesis)
        self._check_history(history)
        self._check_server(challenge, history)
        await self._frames.send(Request(self._request(challenge.nonce)))
        return await self._be_welcomed(history)

    def _check_swarm(self, genesis: Genesis, height: int) -> None:
        """Raise Untrusted unless this is the token's swarm, and its history is long enough."""
        token = self._token
        if genesis.swarm_id != token.swarm_id:
            raise Untrusted("it belongs to another swarm than the token")
        if height < token.head_height:
            raise Untrusted(
                f"it knows only {height} of the {token.head_height} changes that the "
                "swarm had when the token was made: it is out of date or not honest"
            )

    def _check_history(self, history: History) -> None:
        """Raise Untrusted unless the token was made in this history."""
        token = self._token
        if not is_later_history(token, history.state.hash_at(token.head_height), history.chain):
            raise Untrusted("its history is not the one in which the token was made")

    def _hello(self) -> Hello:
        swarm_id = self._token.swarm_id
        covered = _proof_bytes(
            swarm_id, PROTOCOL_VERSION, self._nonce, self._key.public, self._server_public
        )
        return Hello(
            version=PROTOCOL_VERSION,
            nonce=self._nonce,
            swarm_id=swarm_id,
            token_id=self._token.token_id,
            node_public=self._key.public,
            proof=self._token.key.sign(covered),
        )

    def _request(self, server_nonce: bytes) -> bytes:
        entry = Admit(
            token_id=self._token.token_id,
            public=self._key.public,
            name=self._name,
            certificate_der=self._key.certificate,
            roles=self._token.roles,
            joiner_nonce=self._nonce,
            server_nonce=server_nonce,
        )
        return sign_entry(entry, self._token.swarm_id, self._token.key, self._key)


# ---- the member ------------------------------------------------------------------------


async def serve_join(
    stream: TlsStream,
    trust: Trust,
    node_public: bytes,
    *,
    admit: Admitter,
    seeds: Callable[[], Sequence[Address]],
    porch: Porch,
    host: str,
) -> None:
    """Serve one joiner on a stream that shook hands on `JOIN_ALPN`, and close it.

    Whatever the joiner does ends here: it is counted, never raised.

    Args:
        node_public: this node's public key, the one of its TLS certificate.
        admit: brings a signed admission into the log, or raises a SwarmError, which the joiner
            is told.
        seeds: addresses of members, for the joiner to find them.
        porch: hears those that show no token, and members that renew.
        host: where the joiner connects from.
    """
    frames = Frames(stream)
    server = _Server(frames, trust, node_public, admit)
    try:
        with trio.move_on_after(SESSION_TIMEOUT_S):
            try:
                first = await frames.expect_any(Hello, Knock, bytes_max=HELLO_BYTES_MAX)
                if isinstance(first, Hello):
                    joiner = await server.admit_one(first)
                else:
                    assert isinstance(first, Knock)
                    heard = await porch.hear(frames, first, host, server.put_forward)
                    if heard is None:
                        return
                    joiner = heard
                    await server.challenge()
                await server.welcome(joiner, seeds()[:SEEDS_MAX])
            except SwarmError as error:
                DROPPED.labels("join", error.code).inc()
                _log.info("join refused", code=error.code, why=error.message)
                await frames.refuse(error)
    except Unreachable:
        DROPPED.labels("join", "gone").inc()  # Not even the refusal could be told.
    finally:
        await close_stream(stream)


async def turn_away(stream: TlsStream) -> None:
    """Tell a joiner that it must try again, as many join now as may, and close its stream.

    Cancellation: it is told nothing.
    """
    frames = Frames(stream)
    try:
        # Its hello is taken first: closed on unread bytes, TCP would take the answer back.
        await frames.expect_any(Hello, Knock, bytes_max=HELLO_BYTES_MAX)
        await frames.refuse(Busy("as many nodes are joining here as may at once"))
    except SwarmError:
        DROPPED.labels("join", "gone").inc()
    finally:
        await close_stream(stream)


class _Server:
    def __init__(self, frames: Frames, trust: Trust, public: bytes, admit: Admitter) -> None:
        self._frames = frames
        self._trust = trust
        self._public = public
        self._admit = admit
        self._shower = Shower(frames, trust)

    async def challenge(self) -> bytes:
        """Show the swarm's history; the nonce that went with it."""
        nonce = os.urandom(NONCE_BYTES)
        genesis = encode_genesis(self._trust.genesis)
        shown = await self._shower.what_is_new()
        await self._frames.send(
            Challenge(nonce, self._public, genesis, shown.epochs, shown.height, shown.certificate)
        )
        await self._shower.show(shown)
        return nonce

    async def admit_one(self, hello: Hello) -> NodeId:
        """Hear one joiner out and admit it. Raises SwarmError with what to tell it."""
        self._check_hello(hello)
        nonce = await self.challenge()
        request = await self._frames.expect(
            Request, timeout_s=SESSION_TIMEOUT_S, bytes_max=REQUEST_BYTES_MAX
        )
        self._check_request(request, hello, nonce)
        joiner = node_id_of(hello.node_public)
        # Its admission must count here before the joiner calls as a member.
        await self.put_forward(request.entry, lambda: self._trust.known(joiner) is not None)
        return joiner

    async def put_forward(self, entry: bytes, counts: Callable[[], bool]) -> None:
        """Have the log decide on an entry, and wait until what it decided counts here.

        Raises:
            Unavailable: it took too long.
            SwarmError: the entry was refused.
        """
        with trio.move_on_after(ADMIT_TIMEOUT_S) as scope:
            await self._admit(entry)
            while not counts():
                await self._trust.changed(self._trust.version)
        if scope.cancelled_caught:
            raise Unavailable("the swarm did not decide in time; ask again")

    async def welcome(self, joiner: NodeId, seeds: Sequence[Address]) -> None:
        """Tell an admitted joiner what it needs to start."""
        shown = await self._shower.what_is_new()
        await self._frames.send(
            Accepted(tuple(seeds), shown.epochs, shown.height, shown.certificate)
        )
        await self._shower.show(shown)
        _log.info("node joined", node=short(joiner))

    def _check_hello(self, hello: Hello) -> None:
        if hello.swarm_id != self._trust.swarm_id:
            raise TokenRefused("the join token is for another swarm")
        token = self._trust.token(NodeId(hello.token_id))
        if token is None:
            raise TokenRefused("the join token is not known to this swarm; ask for a new one")
        if len(hello.nonce) != NONCE_BYTES or len(hello.node_public) != KEY_BYTES:
            raise MalformedMessage("a nonce or key of the wrong length while joining")
        covered = _proof_bytes(
            hello.swarm_id, hello.version, hello.nonce, hello.node_public, self._public
        )
        if not verify(token.public, hello.proof, covered):
            raise BadSignature("the proof of holding the join token does not match")
        check_version(hello.version, self._trust)
        if self._trust.known(node_id_of(hello.node_public)) is None:
            check_token(token, self._trust.store_time_ms)

    def _check_request(self, request: Request, hello: Hello, nonce: bytes) -> None:
        _, entry = open_entry(request.entry)
        if not isinstance(entry, Admit) or (
            entry.joiner_nonce,
            entry.server_nonce,
            entry.public,
            entry.token_id,
        ) != (hello.nonce, nonce, hello.node_public, hello.token_id):
            raise BadSignature("the request to join was made for another connection")
        self._trust.check(request.entry)


def _proof_bytes(
    swarm_id: bytes, version: int, nonce: bytes, node_public: bytes, server_public: bytes
) -> bytes:
    parts = (b"%d" % version, nonce, node_public, server_public)
    return covered_bytes(_PROOF_DOMAIN, swarm_id, *parts)
