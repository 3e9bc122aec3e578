"""What is being asked of whom: probes of this node's own, and pings outside of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from swarmd.base.ids import NodeId
from swarmd.base.rng import Rng

PENDING_MAX: Final = 1_024


@dataclass(slots=True)
class Round:
    """One probe: a ping, then helpers and a stream, until `due_at`.

    `incarnation` is the life of the target that is asked, at `sent_at`. `check`: it is made out of
    turn, because another doubts the target. `stream`: what is known of the attempt over a stream.
    `holds`: how often its end was put off because its timer came late. `slow`: it lasts for longer
    than an interval, because this node is unwell.
    """

    target: NodeId
    incarnation: int
    sequence: int
    sent_at: float
    due_at: float
    check: bool = False
    answered: bool = False
    asked: bool = False
    stream: Literal["none", "waiting", "silent"] = "none"
    helpers: list[NodeId] = field(default_factory=list)
    nacks: list[NodeId] = field(default_factory=list)
    holds: int = 0
    slow: bool = False

    def is_stale(self) -> bool:
        """Nothing at all came back, and much may have changed since it was asked."""
        return self.slow and not self.answered and not self.nacks

    def begin_again(self, due_at: float) -> None:
        """Try everything a second time, until `due_at`."""
        self.asked, self.stream, self.slow = False, "none", False
        self.helpers, self.due_at = [], due_at

    def hopeless(self) -> bool:
        """Every way was tried, and whoever could answer for the target has refused."""
        return (
            self.asked
            and bool(self.helpers)
            and self.stream != "waiting"
            and len(self.nacks) == len(self.helpers)
        )

    def nobody_hears_us(self) -> bool:
        """Helpers were asked, and not even one refused: likelier the fault is ours."""
        return bool(self.helpers) and not self.nacks

    def health_delta(self) -> int:
        """What its outcome says about this node's own health (Lifeguard, section IV.A).

        Helpers that did not even refuse make it likelier that the fault is ours.
        """
        if self.answered:
            return -1
        return len(self.helpers) - len(self.nacks) if self.helpers else 1


@dataclass(slots=True)
class Hint:
    """The quick pings to a member whose stream was reset, or that `refused` one."""

    token: int
    incarnation: int
    sent: int = 0
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Pending:
    """A ping outside the probes: for `asker` under its sequence, of the dead, or after a hint."""

    why: Literal["relay", "retry", "hint"]
    target: NodeId
    asker: NodeId | None = None
    asker_sequence: int = 0


class Pendings:
    """Sequence numbers and what they were given for; the oldest are forgotten beyond a bound."""

    def __init__(self, rng: Rng) -> None:
        # A random start, so that an answer to an earlier life of this node means nothing to it.
        self._next = rng.getrandbits(40)
        self._pending: dict[int, Pending] = {}

    def sequence(self) -> int:
        self._next += 1
        return self._next

    def open(self, pending: Pending) -> int:
        sequence = self.sequence()
        self._pending[sequence] = pending
        if len(self._pending) > PENDING_MAX:
            del self._pending[next(iter(self._pending))]
        return sequence

    def get(self, sequence: int) -> Pending | None:
        return self._pending.get(sequence)

    def close(self, sequence: int) -> None:
        self._pending.pop(sequence, None)
