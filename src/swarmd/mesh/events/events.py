"""What the part of the machine that cares for user events is told, and what it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from swarmd.base.machine import Effect, Event
from swarmd.mesh.events.messages import UserEvent

# not_ready: this node does not know the swarm's time yet; busy: too many of its own events wait to
# be passed on; exhausted: there is no later time.
Refusal = Literal["not_ready", "busy", "exhausted"]


@dataclass(frozen=True, slots=True)
class SendEvent(Event):
    """Send an event, which `check_event` has let pass; `Answered` with the ticket follows."""

    ticket: int
    name: str
    payload: str
    wall_ms: int


@dataclass(frozen=True, slots=True)
class Answered(Effect):
    """What became of a `SendEvent`."""

    ticket: int
    outcome: UserEvent | Refusal


@dataclass(frozen=True, slots=True)
class Happened(Effect):
    """An event is news here: tell it to whoever listens. Each is told once."""

    event: UserEvent


@dataclass(frozen=True, slots=True)
class Remember(Effect):
    """What is to be kept over a restart has changed; see `EventsMachine.kept`."""


@dataclass(frozen=True, slots=True)
class EventRefused(Effect):
    """An event, or what push-pull told, had no effect.

    old: older than what is kept, so that nobody knows any more whether it was told here;
    too_far: its time is too far ahead for now (`clock`).
    """

    reason: Literal["malformed", "bad_signature", "old", "too_far", "early"]
