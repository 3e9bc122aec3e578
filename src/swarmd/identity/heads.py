"""Heads of the authority log, certified by the voters: what makes a record count.

A record shows who signed its entry. That the swarm *took* it, at this place of the log, is shown
by a *head certificate*: (epoch, height, hash), signed by a majority of the epoch's voters, each
after the record was applied from the log and durable here. The hash stands for all records up to
that height, so one certificate vouches for the whole chain before it.

- A voter signs one hash per height, ever: that of the record that it noted on its disk before.
- Only certificates by the newest epoch that the reader knows count. Who was replaced can certify
  nothing any more, once the reader knows that; the voters of each epoch sign the head anew.
- With one voter, one signature is a majority: its host decides alone.
"""

from __future__ import annotations

from typing import Final

import msgspec

from swarmd.base.errors import MalformedMessage, Untrusted
from swarmd.identity.epochs import EPOCH_KEY_BYTES, Chain, Epoch, verify_majority
from swarmd.identity.keys import SigningKey
from swarmd.identity.signing import sign_envelope, verify_envelope
from swarmd.wire.codec import decode_struct, encode_struct
from swarmd.wire.envelope import Envelope, decode_envelope, encode_envelope

HEAD_DOMAIN: Final = "head"
HEAD_BYTES_MAX: Final = 2_048
HASH_BYTES: Final = 32
# Heads of one voter that are kept while others have not signed them.
WAITING_MAX: Final = 64


class UnknownEpoch(Untrusted):
    """Signed in an epoch that is not known here yet; its certificate may be on the way."""


class Head(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What voters sign. `epoch` is the key of theirs; `height` and `hash` name a record."""

    epoch: bytes
    height: int
    hash: bytes


def sign_head(head: Head, swarm_id: bytes, *keys: SigningKey) -> bytes:
    """Signatures on `head`, as an envelope: a voter's own, or a certificate if enough sign."""
    return encode_envelope(sign_envelope(HEAD_DOMAIN, swarm_id, encode_struct(head), *keys))


def verify_head(certificate: bytes, chain: Chain) -> Head:
    """The head that a certificate is for.

    Raises:
        MalformedMessage: it is none.
        UnknownEpoch: by voters of an epoch that is not known here.
        Untrusted: by voters of one that has ended.
        BadSignature: not by a majority of the epoch's voters.
    """
    envelope, head = _open(certificate)
    epoch = chain.head
    if head.epoch != epoch.key:
        said = "a head of the authority log by voters whose epoch"
        if chain.number_of(head.epoch) is None:
            raise UnknownEpoch(f"{said} is not known here")
        raise Untrusted(f"{said} ended before epoch {epoch.number}")
    verify_majority(envelope, chain.swarm_id, epoch, f"the authority log at {head.height}")
    return head


def head_of(certificate: bytes) -> Head:
    """The head that a certificate says it is for; nothing is verified. Raises MalformedMessage."""
    return _open(certificate)[1]


def _open(raw: bytes) -> tuple[Envelope, Head]:
    if len(raw) > HEAD_BYTES_MAX:
        raise MalformedMessage(f"a signed head of {len(raw)} bytes is too large")
    envelope = decode_envelope(raw, domain=HEAD_DOMAIN)
    head: Head = decode_struct(Head, envelope.payload)
    sound = len(head.epoch) == EPOCH_KEY_BYTES and len(head.hash) == HASH_BYTES and head.height >= 1
    if not sound or encode_struct(head) != envelope.payload:
        raise MalformedMessage("a signed head with impossible contents")
    return envelope, head


class HeadVotes:
    """Signatures of one epoch's voters on heads, counted until a majority made one. Pure."""

    def __init__(self, swarm_id: bytes, epoch: Epoch) -> None:
        self.epoch = epoch
        self._swarm_id = swarm_id
        self._signatures: dict[Head, dict[bytes, bytes]] = {}
        self._waiting: dict[bytes, list[Head]] = {}  # By voter, the oldest first.

    def add(self, raw: bytes) -> Head:
        """Count the signatures on a head; the newest `WAITING_MAX` of a voter are kept.

        Raises:
            MalformedMessage, BadSignature: not signed by voters of the epoch.
            Untrusted: of another epoch.
        """
        envelope, head = _open(raw)
        if head.epoch != self.epoch.key:
            raise Untrusted("a signature on the authority log in another epoch than ours")
        verify_envelope(envelope, self._swarm_id, self.epoch.keys)
        for signer, signature in envelope.signatures:
            made = self._signatures.setdefault(head, {})
            if signer not in made:
                made[signer] = signature
                self._keep_waiting(signer, head)
        return head

    def certificate(self, above: int, up_to: int) -> bytes | None:
        """A certificate of the newest head above one height and up to another, if there is one."""
        ready = [
            head
            for head, made in self._signatures.items()
            if above < head.height <= up_to and len(made) >= self.epoch.majority
        ]
        if not ready:
            return None
        head = max(ready, key=lambda one: one.height)
        signatures = tuple(sorted(self._signatures[head].items()))
        return encode_envelope(Envelope(HEAD_DOMAIN, encode_struct(head), signatures))

    def forget(self, height: int) -> None:
        """Drop what was collected for heads up to `height`."""
        self._signatures = {h: made for h, made in self._signatures.items() if h.height > height}
        for signer, heads in self._waiting.items():
            self._waiting[signer] = [head for head in heads if head.height > height]

    def _keep_waiting(self, signer: bytes, head: Head) -> None:
        heads = self._waiting.setdefault(signer, [])
        heads.append(head)
        heads.sort(key=lambda one: one.height)
        while len(heads) > WAITING_MAX:
            dropped = heads.pop(0)
            made = self._signatures.get(dropped, {})
            made.pop(signer, None)
            if not made:
                self._signatures.pop(dropped, None)
