"""What members ask each other about nodes that want to be let in. Nothing of it is stored."""

from __future__ import annotations

from typing import Final

import msgspec

from swarmd.wire.codec import Family, Message


class WaitingAsk(Message, frozen=True, tag=1):
    """Who asks you to be let in? Answered by `Applicants`."""


class Waiting(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One that waits; `request` is its own signed word, `host` where it asked from."""

    request: bytes
    host: str
    waited_s: float
    silent_s: float


class Applicants(Message, frozen=True, tag=2):
    waiting: tuple[Waiting, ...]


class Deny(Message, frozen=True, tag=3):
    """Let the one with this fingerprint wait no more, and tell it so. Answered by `Denied`."""

    fingerprint: bytes


class Denied(Message, frozen=True, tag=4):
    """`waited`: it was waiting here."""

    waited: bool


APPROVAL: Final = Family("approval", WaitingAsk, Applicants, Deny, Denied)
