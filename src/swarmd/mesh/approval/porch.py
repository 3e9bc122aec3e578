"""A member's side of joining without a token, and of renewing: it hears who knocks.

On the plane of joiners, over TLS as in `mesh.join`:

    stranger                                      member
    Knock(version)                           ->
                                             <-   Door(nonce, the swarm's door and name)
    Petition(its request, proof)             ->
                                             <-   Waiting, or what `mesh.join` welcomes with
    or Renewal(its entry, proof)             ->
                                             <-   Credential
    or Behind(height, epoch, proof)          ->
                                             <-   Ahead + Epochs + Records
    (at any step)                            <-   Refused(code, sentence)

The proof is made by the stranger's own key over both nonces and the TLS key of this very server,
so that nobody else can show its request here, or this one's elsewhere. A stranger learns the
swarm's name and its door, which is a hash of its id, and nothing else; where requests are not
taken (`mesh.join_requests`) it learns neither.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Final

from swarmd.base.clock import Clock
from swarmd.base.errors import (
    BadSignature,
    Conflict,
    Evicted,
    MalformedMessage,
    Outdated,
    TokenRefused,
    Unreachable,
    Untrusted,
)
from swarmd.base.ids import NodeId, node_id_of, short
from swarmd.base.limits import KIB
from swarmd.identity.authority import Admission
from swarmd.identity.entries import ENTRY_BYTES_MAX, Renew, open_entry
from swarmd.identity.fingerprints import door_of, fingerprint_of_node
from swarmd.identity.genesis import NONCE_BYTES
from swarmd.identity.keys import KEY_BYTES, verify
from swarmd.identity.requests import JOIN_REQUEST_BYTES_MAX, open_request
from swarmd.mesh.approval.table import WaitingTable
from swarmd.mesh.history import Shower
from swarmd.mesh.join_frames import (
    Ahead,
    Behind,
    Credential,
    Door,
    Frames,
    Knock,
    Petition,
    Renewal,
    Waiting,
    covered_bytes,
)
from swarmd.mesh.trust import Trust
from swarmd.observe.log import get_logger

# How soon who waits shall ask again.
ASK_AGAIN_S: Final = 3.0
# Who renews may be told once that its credential ends otherwise than it thinks.
_TRIES_MAX: Final = 2
_PROOF_DOMAIN: Final = "join-knock"
_BYTES_MAX: Final = max(ENTRY_BYTES_MAX, JOIN_REQUEST_BYTES_MAX) + 1 * KIB

_log = get_logger("join")


# Has the log decide on an entry, and waits until the condition holds here. Raises SwarmError.
PutForward = Callable[[bytes, Callable[[], bool]], Awaitable[None]]


def proof_bytes(
    door: bytes, version: int, knocker_nonce: bytes, door_nonce: bytes, server: bytes, said: bytes
) -> bytes:
    """What the proof of what is said after the `Door` covers; `said` is what is asked for."""
    parts = (b"%d" % version, knocker_nonce, door_nonce, server, said)
    return covered_bytes(_PROOF_DOMAIN, door, *parts)


def check_version(version: int, trust: Trust) -> None:
    """Refuse, with Outdated, who speaks a version below the lowest of the log."""
    if version < trust.min_version:
        raise Outdated(
            f"this swarmd speaks protocol version {version}, and the swarm takes "
            f"{trust.min_version} or above: upgrade it"
        )


def place_of(behind: Behind) -> bytes:
    """What the proof of a `Behind` covers of it."""
    return b"%d %d" % (behind.height, behind.epoch)


class Porch:
    """Where one member hears strangers."""

    def __init__(
        self,
        trust: Trust,
        server_public: bytes,
        table: WaitingTable,
        clock: Clock,
        *,
        takes_requests: bool,
    ) -> None:
        self._trust, self._table, self._clock = trust, table, clock
        self._server_public = server_public
        self._takes_requests = takes_requests
        self._door = door_of(trust.swarm_id)

    async def hear(
        self, frames: Frames, knock: Knock, host: str, put_forward: PutForward
    ) -> NodeId | None:
        """Hear out one that knocked: who is to be welcomed, None if nobody is.

        Raises:
            SwarmError: what to refuse it with.
        """
        if len(knock.nonce) != NONCE_BYTES:
            raise MalformedMessage("a nonce of the wrong length while joining")
        nonce = os.urandom(NONCE_BYTES)
        # Members know their swarm's door; strangers are told it only if they may ask.
        told = (self._door, self._trust.genesis.name) if self._takes_requests else (b"", "")
        await frames.send(Door(nonce, *told))
        for _ in range(_TRIES_MAX):
            try:
                said = await frames.expect_any(Petition, Renewal, Behind, bytes_max=_BYTES_MAX)
            except Unreachable:
                return None  # It only looked which swarm this is.
            if isinstance(said, Petition):
                self._check_proof(knock, nonce, said.public, said.proof, said.request)
                heard = self._hear_petition(said, host)
                if heard is None:
                    await frames.send(Waiting(ASK_AGAIN_S))
                return heard
            if isinstance(said, Behind):
                self._check_proof(knock, nonce, said.public, said.proof, place_of(said))
                await self._show_rest(frames, said)
                return None
            assert isinstance(said, Renewal)
            self._check_proof(knock, nonce, said.public, said.proof, said.entry)
            credential = await self._renew(said, put_forward)
            await frames.send(credential)
            if credential.renewed:
                return None
        return None

    def _hear_petition(self, said: Petition, host: str) -> NodeId | None:
        request = open_request(said.request, self._door)
        if request.public != said.public:
            raise BadSignature("the request to join is another node's")
        node_id = node_id_of(said.public)
        self._check_not_evicted(node_id)
        fingerprint = fingerprint_of_node(self._door, said.public)
        if self._trust.known(node_id) is not None:
            self._table.remove(fingerprint.raw)
            return node_id
        if not self._takes_requests:
            raise TokenRefused("this member takes nobody in without a join token")
        now = self._clock.now()
        self._table.forget_those(self._trust.is_known)
        if self._table.ask(fingerprint.raw, said.public, said.request, host, now):
            _log.info("a node asks to join", name=request.name, of=fingerprint.hex, host=host)
        return None

    async def _show_rest(self, frames: Frames, said: Behind) -> None:
        self._check_known(said.public)
        shower = Shower(frames, self._trust, max(0, said.height), said.epoch)
        news = await shower.what_is_new()
        await frames.send(Ahead(news.epochs, news.height, news.certificate))
        await shower.show(news)

    async def _renew(self, said: Renewal, put_forward: PutForward) -> Credential:
        mine = self._check_known(said.public)
        node_id = mine.node_id
        entry = open_entry(said.entry)[1]
        if not isinstance(entry, Renew) or entry.node_id != node_id:
            raise BadSignature("what was to be renewed is not the credential of who asks")
        before_ms = mine.expires_ms
        if self._trust.now_ms < mine.renewable_ms:
            raise Conflict("a credential is renewed when half of its life is over, and no earlier")
        if entry.expires_ms != before_ms:
            return Credential(before_ms, False)  # It missed a renewal of its own.

        def expires_ms() -> int:
            found = self._trust.known(node_id)
            return before_ms if found is None else found.expires_ms

        await put_forward(said.entry, lambda: expires_ms() != before_ms)
        _log.info("credential renewed", of=short(node_id))
        return Credential(expires_ms(), True)

    def _check_proof(
        self, knock: Knock, nonce: bytes, public: bytes, proof: bytes, said: bytes
    ) -> None:
        if len(public) != KEY_BYTES:
            raise MalformedMessage("a key of the wrong length while joining")
        covered = proof_bytes(
            self._door, knock.version, knock.nonce, nonce, self._server_public, said
        )
        if not verify(public, proof, covered):
            raise BadSignature("the proof of holding the node's key does not match")
        check_version(knock.version, self._trust)

    def _check_known(self, public: bytes) -> Admission:
        node_id = node_id_of(public)
        self._check_not_evicted(node_id)
        mine = self._trust.known(node_id)
        if mine is None:
            raise Untrusted(f"{short(node_id)} is no node of this swarm")
        return mine

    def _check_not_evicted(self, node_id: NodeId) -> None:
        if node_id in self._trust.evicted():
            raise Evicted(
                f"node {short(node_id)} was evicted and its id is not used again; "
                "start it with an empty data folder to join as a new node"
            )
