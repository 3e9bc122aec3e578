"""The worker: takes attempts from the coordinator, runs them, and reports until it is heard.

Rules:
- It obeys the highest office it has heard of, and only messages that name its own boot.
- A fence is started at most once in one boot: repeats are dropped. What is remembered is
  bounded; a fence below everything remembered is handed back, never run.
- A result is repeated until the coordinator has settled it, to whichever coordinator there is.
- The lease runs from when the renewed heartbeat was *sent*. Attempts that may not overlap with
  another (all modes but `default`) start only under a lease, and are killed when `lease -
  margin` has passed, so that they have ended when the coordinator counts the lease as lapsed.
- An attempt that cannot begin is handed back, and does not count.
- Stopping: attempts that have not begun are handed back at once, the others when their time is
  up; the worker is drained when nothing is left to report.

Attempts beyond an agent's instances wait here, in the order they came.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Event, Send, SetTimer
from swarmd.tasks.config import TasksConfig
from swarmd.tasks.messages import (
    Assign,
    AssignItem,
    HandBack,
    HandedItem,
    Heartbeat,
    Hello,
    Renewed,
    ResultItem,
    Results,
    Settled,
)
from swarmd.tasks.spec import Mode

GUARDS: Final = frozenset(
    {"worker_boot_check", "repeated_assign", "lease_lapse", "stale_office", "result_repeat"}
)
_REMEMBERED_MAX: Final = 65_536
_SENT_KEPT: Final = 64


# ---- events and effects ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin(Event):
    """The first event: heartbeats begin."""


@dataclass(frozen=True, slots=True)
class FromCoordinator(Event):
    peer: NodeId
    message: Hello | Assign | Settled | Renewed


@dataclass(frozen=True, slots=True)
class AttemptEnded(Event):
    """The attempt that `Start` asked for is over, whichever way."""

    item: ResultItem


@dataclass(frozen=True, slots=True)
class AttemptNotBegun(Event):
    """What `Start` asked for cannot begin here now: it may elsewhere, or later."""

    fence: int


@dataclass(frozen=True, slots=True)
class Drain(Event):
    """Stop taking work; `Drained` follows, after `drain_s` seconds at about the latest."""

    drain_s: float


@dataclass(frozen=True, slots=True)
class DrainDue(Event):
    """The time that running attempts had is up."""


@dataclass(frozen=True, slots=True)
class Beat(Event):
    """Time for a heartbeat."""


@dataclass(frozen=True, slots=True)
class LeaseDue(Event):
    """Look whether the lease still holds."""


@dataclass(frozen=True, slots=True)
class Start(Effect):
    """Run this attempt and report `AttemptEnded`."""

    item: AssignItem


@dataclass(frozen=True, slots=True)
class Kill(Effect):
    """End the attempt with this fence now; its `AttemptEnded` does not matter any more."""

    fence: int


@dataclass(frozen=True, slots=True)
class Over(Effect):
    """The coordinator in office is done with these attempts of this boot, whichever way."""

    fences: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Drained(Effect):
    """Nothing is left here."""


# ---- the machine ----------------------------------------------------------------------


class _Step(Enum):
    QUEUED = auto()
    RUNNING = auto()
    ENDED = auto()


@dataclass(slots=True)
class _Held:
    item: AssignItem
    step: _Step
    result: ResultItem | None = None
    handed: HandedItem | None = None
    sent_at: float = -1e9


@dataclass(slots=True)
class _Lane:
    """One agent's attempts here."""

    concurrency: int
    running: int = 0
    queue: deque[int] = field(default_factory=deque)


class WorkerMachine:
    """Events in, effects out. `boot` is random for each run of the daemon."""

    def __init__(
        self,
        me: NodeId,
        boot: bytes,
        config: TasksConfig,
        *,
        removed_guards: frozenset[str] = frozenset(),
    ) -> None:
        assert removed_guards <= GUARDS, removed_guards - GUARDS
        self.me = me
        self.boot = boot
        self.coordinator: NodeId | None = None
        self.office = 0
        self.draining = False
        self.lease_until = -1e9
        self._lease_timer = False
        self._config = config
        self._guards = GUARDS - removed_guards
        self._held: dict[int, _Held] = {}
        self._lanes: dict[str, _Lane] = {}
        self._seen: OrderedDict[int, None] = OrderedDict()
        self._floor = 0
        self._sequence = 0
        self._sent: OrderedDict[int, float] = OrderedDict()
        self._now = 0.0
        self._out: list[Effect] = []
        self._drained = False
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            Begin: self._on_begin,
            FromCoordinator: self._on_message,
            AttemptEnded: self._on_ended,
            AttemptNotBegun: self._on_not_begun,
            Drain: self._on_drain,
            DrainDue: self._on_drain_due,
            Beat: self._on_beat,
            LeaseDue: self._on_lease_due,
        }

    def handle(self, event: Event, now: float) -> list[Effect]:
        self._now = now
        self._handlers[type(event)](event)
        effects, self._out = self._out, []
        return effects

    # ---- heartbeats and lease ---------------------------------------------------------

    def _on_begin(self, event: Begin) -> None:
        self._await_beat()

    def _on_beat(self, event: Beat) -> None:
        self._beat()
        if "result_repeat" in self._guards:
            self._report(self._now - 1.5 * self._config.heartbeat_s)
        self._await_beat()

    def _await_beat(self) -> None:
        self._out.append(SetTimer(self._config.heartbeat_s, Beat(), on_beat=True))

    def _beat(self) -> None:
        """Say what is held, and ask for the lease to be renewed."""
        if self.coordinator is None:
            return
        self._sequence += 1
        self._sent[self._sequence] = self._now
        while len(self._sent) > _SENT_KEPT:
            self._sent.popitem(last=False)
        by_step: dict[_Step, list[int]] = {step: [] for step in _Step}
        for fence, held in self._held.items():
            by_step[held.step].append(fence)
        beat = Heartbeat(
            self.office,
            self.boot,
            self._sequence,
            tuple(by_step[_Step.QUEUED]),
            tuple(by_step[_Step.RUNNING]),
            tuple(by_step[_Step.ENDED]),
            self.draining,
        )
        self._out.append(Send(self.coordinator, beat))

    def _on_renewed(self, message: Renewed) -> None:
        sent_at = self._sent.get(message.sequence)
        if sent_at is None:
            return
        until = sent_at + self._config.lease_s
        if until <= self.lease_until:
            return
        self.lease_until = until
        if not self._lease_timer:
            self._await_lease_end()
        for lane in list(self._lanes.values()):
            self._fill(lane)

    def _alone_until(self) -> float:
        return self.lease_until - self._config.lease_margin_s

    def _await_lease_end(self) -> None:
        """One timer is out at most: another for each renewal would wake the process each time."""
        self._lease_timer = True
        self._out.append(SetTimer(max(0.0, self._alone_until() - self._now), LeaseDue()))

    def _may_run_alone(self) -> bool:
        """Whether an attempt that must not overlap with another may run now."""
        if "lease_lapse" not in self._guards:
            return True
        return self._now < self._alone_until()

    def _on_lease_due(self, event: LeaseDue) -> None:
        self._lease_timer = False
        if self._now < self._alone_until():
            self._await_lease_end()  # Renewed since: for what is left.
            return
        if self._may_run_alone():
            return
        for fence, held in list(self._held.items()):
            if held.step is _Step.RUNNING and held.item.mode is not Mode.DEFAULT:
                self._out.append(Kill(fence))
                self._finish(held, self._lapsed(held.item))

    def _lapsed(self, item: AssignItem) -> ResultItem:
        text = "killed here because the coordinator was out of reach for a whole lease"
        return ResultItem(item.task_id, item.fence, False, code="lease_lapsed", message=text)

    # ---- what the coordinator says ----------------------------------------------------

    def _on_message(self, event: FromCoordinator) -> None:
        message = event.message
        beats = self._sequence
        if not self._obey(event.peer, message.office):
            return
        if isinstance(message, Hello):
            if self._sequence == beats:
                self._beat()
        elif message.boot != self.boot and "worker_boot_check" in self._guards:
            self._beat()  # Meant for an earlier run of this daemon: show that it is over.
        elif isinstance(message, Assign):
            for item in message.items:
                self._take(item)
        elif isinstance(message, Settled):
            self._out.append(Over(message.items))
            for fence in message.items:
                self._forget(fence)
        elif isinstance(message, Renewed):
            self._on_renewed(message)

    def _obey(self, peer: NodeId, office: int) -> bool:
        """Follow the highest office; a new one is told at once what is held and what ended."""
        if office < self.office and "stale_office" in self._guards:
            return False
        if office != self.office or peer != self.coordinator:
            self.office, self.coordinator = office, peer
            self._beat()
            self._report(self._now)
        return True

    def _take(self, item: AssignItem) -> None:
        fence = item.fence
        if fence in self._held and "repeated_assign" in self._guards:
            return
        forgotten = fence in self._seen or fence <= self._floor
        if (forgotten and "repeated_assign" in self._guards) or self.draining:
            self._hand_back(HandedItem(item.task_id, fence, forgotten))
            return
        self._remember(fence)
        held = self._held[fence] = _Held(item, _Step.QUEUED)
        lane = self._lanes.get(item.run.name)
        if lane is None:
            lane = self._lanes[item.run.name] = _Lane(item.run.concurrency)
        lane.concurrency = item.run.concurrency
        lane.queue.append(held.item.fence)
        self._fill(lane)

    def _remember(self, fence: int) -> None:
        self._seen[fence] = None
        while len(self._seen) > _REMEMBERED_MAX:
            oldest, _ = self._seen.popitem(last=False)
            self._floor = max(self._floor, oldest)

    def _hand_back(self, handed: HandedItem) -> None:
        if self.coordinator is not None:
            message = HandBack(self.office, self.boot, (handed,))
            self._out.append(Send(self.coordinator, message))

    def _forget(self, fence: int) -> None:
        """The coordinator is done with this attempt, so it must not run on."""
        held = self._held.pop(fence, None)
        if held is None:
            self._remember(fence)  # Its assignment may have been overtaken: it is not to begin.
            return
        if held.step is _Step.RUNNING:
            self._out.append(Kill(fence))
            self._leave_lane(held)
        self._check_drained()

    # ---- attempts ---------------------------------------------------------------------

    def _fill(self, lane: _Lane) -> None:
        """Start what waits, as far as the agent's instances allow."""
        waiting: list[int] = []
        while lane.queue and lane.running < lane.concurrency:
            fence = lane.queue.popleft()
            held = self._held.get(fence)
            if held is None or held.step is not _Step.QUEUED:
                continue
            if held.item.mode is not Mode.DEFAULT and not self._may_run_alone():
                waiting.append(fence)
                continue
            held.step = _Step.RUNNING
            lane.running += 1
            self._out.append(Start(held.item))
        lane.queue.extendleft(reversed(waiting))

    def _leave_lane(self, held: _Held) -> None:
        lane = self._lanes[held.item.run.name]
        lane.running -= 1
        self._fill(lane)
        if not lane.running and not lane.queue:
            del self._lanes[held.item.run.name]

    def _on_ended(self, event: AttemptEnded) -> None:
        held = self._held.get(event.item.fence)
        if held is not None and held.step is _Step.RUNNING:
            self._finish(held, event.item)

    def _on_not_begun(self, event: AttemptNotBegun) -> None:
        held = self._held.get(event.fence)
        if held is not None and held.step is _Step.RUNNING:
            self._give_up(held, started=False)
            self._leave_lane(held)

    def _finish(self, held: _Held, result: ResultItem) -> None:
        held.step, held.result = _Step.ENDED, result
        self._report_one(held)
        self._leave_lane(held)

    def _report(self, sent_before: float) -> None:
        """Repeat what was last said before `sent_before` and is not settled yet."""
        for held in self._held.values():
            if held.step is _Step.ENDED and held.sent_at <= sent_before:
                self._report_one(held)

    def _report_one(self, held: _Held) -> None:
        held.sent_at = self._now
        if self.coordinator is None:
            return
        if held.handed is not None:
            message: Results | HandBack = HandBack(self.office, self.boot, (held.handed,))
        else:
            assert held.result is not None
            message = Results(self.office, self.boot, (held.result,))
        self._out.append(Send(self.coordinator, message))

    # ---- stopping ---------------------------------------------------------------------

    def _on_drain(self, event: Drain) -> None:
        self.draining = True
        for held in list(self._held.values()):
            if held.step is _Step.QUEUED:
                self._give_up(held, started=False)
        self._beat()
        self._out.append(SetTimer(event.drain_s, DrainDue()))
        self._check_drained()

    def _on_drain_due(self, event: DrainDue) -> None:
        for fence, held in list(self._held.items()):
            if held.step is _Step.RUNNING:
                self._out.append(Kill(fence))
                self._give_up(held, started=True)
                self._leave_lane(held)

    def _give_up(self, held: _Held, *, started: bool) -> None:
        held.step = _Step.ENDED
        held.handed = HandedItem(held.item.task_id, held.item.fence, started)
        self._report_one(held)

    def _check_drained(self) -> None:
        if self.draining and not self._held and not self._drained:
            self._drained = True
            self._out.append(Drained())

    @property
    def held_count(self) -> int:
        """Attempts that wait, run, or have not been settled."""
        return len(self._held)
