"""What every protocol machine is: events in, effects out.

A machine owns no clock, socket, file or task. `handle` is told the time, decides, and
returns what should happen; a shell (`mesh.driver`) or a simulator (`sim.world`) does it.
Effects are frozen and compared with `==`, so a test compares lists.

Rules that shells keep:
- All effects of one step are performed in order, except that `Persist` comes first: nothing
  is sent or answered before what it rests on is durable. Only an `Ahead` effect, which rests
  on nothing new, goes before it, so that others work while the disk does.
- A timer is never cancelled. Its event carries what the machine needs to see that it is
  stale (a round, a token), and a stale one is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from swarmd.base.ids import NodeId


class Event:
    """Something that happened; subclasses are frozen dataclasses."""

    __slots__ = ()


class Effect:
    """Something to be done; subclasses are frozen dataclasses."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Send(Effect):
    """Send `message` (a wire struct) to `peer`; it may be lost, repeated or overtaken."""

    peer: NodeId
    message: Any


@dataclass(frozen=True, slots=True)
class SetTimer(Effect):
    """Feed `event` back after `delay_s` seconds.

    `on_beat`: on the last beat within them, when the process is awake anyway (`base.pace`). That
    is up to a beat sooner, once: set again from there the timer keeps to its delay. It is for
    what comes regularly and takes no harm from coming too soon, not for what waits for others.
    Where the delay is not a number of whole beats, and in worlds without beats, it means nothing.
    """

    delay_s: float
    event: Event
    on_beat: bool = False


@dataclass(frozen=True, slots=True)
class Persist(Effect):
    """Make everything the machine has written durable before the rest of this step."""


class Ahead(Effect):
    """Performed before a `Persist` of its step: true already, whatever the disk does."""

    __slots__ = ()


class Machine(Protocol):
    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Decide. `now` is monotonic seconds and never falls between calls."""
        ...
