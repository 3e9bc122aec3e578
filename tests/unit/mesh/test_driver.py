from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from swarmd.base.errors import Busy
from swarmd.base.machine import Ahead, Effect, Event, Persist, SetTimer
from swarmd.base.pace import BEAT_S, pause
from swarmd.mesh.driver import Driver


@dataclass(frozen=True)
class Heard(Event):
    what: str


@dataclass(frozen=True)
class Say(Effect):
    what: str


@dataclass(frozen=True)
class SayAhead(Ahead):
    what: str


class TrioClock:
    def now(self) -> float:
        return trio.current_time()

    def wall_ms(self) -> int:
        return 0


@dataclass
class Script:
    """Answers each event with the effects written down for it."""

    answers: dict[str, list[Effect]]
    heard: list[tuple[str, float]] = field(default_factory=list)

    def handle(self, event: Event, now: float) -> list[Effect]:
        assert isinstance(event, Heard)
        self.heard.append((event.what, round(now - trio.current_time(), 6)))
        return self.answers.get(event.what, [])


def start(nursery: trio.Nursery, script: Script, log: list[str], **kwargs: Any) -> Driver:
    says = dict.fromkeys((Say, SayAhead), lambda e: log.append(e.what))
    driver = Driver("t", script, says, clock=TrioClock(), **kwargs)
    nursery.start_soon(driver.run)
    return driver


async def test_events_of_one_step_share_one_persist_before_any_other_effect(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    log: list[str] = []

    async def persist(ahead: bool) -> None:
        await trio.sleep(1)
        log.append("persist")

    script = Script({"a": [Say("a1"), Persist(), Say("a2")], "b": [Persist(), Say("b1")]})
    driver = start(nursery, script, log, persist=persist)
    driver.feed(Heard("a"))
    driver.feed(Heard("b"))
    await trio.sleep(0.5)
    assert log == [], "something was said before it was durable"
    await trio.sleep(1)
    assert log == ["persist", "a1", "a2", "b1"]


async def test_what_is_ahead_goes_before_the_persist_which_is_told_of_it(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    log: list[str] = []

    async def persist(ahead: bool) -> None:
        log.append("persist, something is on its way" if ahead else "persist")

    script = Script({"a": [Say("a1"), Persist(), SayAhead("early")], "b": [Persist(), Say("b")]})
    driver = start(nursery, script, log, persist=persist)
    driver.feed(Heard("a"))
    await trio.sleep(1)
    driver.feed(Heard("b"))
    await trio.sleep(1)
    assert log == ["early", "persist, something is on its way", "a1", "persist", "b"]


async def test_what_arrives_during_a_persist_waits_for_the_next_step(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    log: list[str] = []

    async def persist(ahead: bool) -> None:
        await trio.sleep(1)
        log.append("persist")

    script = Script({"a": [Persist(), Say("a")], "b": [Persist(), Say("b")]})
    driver = start(nursery, script, log, persist=persist)
    driver.feed(Heard("a"))
    await trio.sleep(0.5)
    driver.feed(Heard("b"))
    await trio.sleep(0.1)
    assert [what for what, _ in script.heard] == ["a"]
    await trio.sleep(3)
    assert log == ["persist", "a", "persist", "b"]


async def test_timers_fire_in_order_and_at_their_time(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    log: list[str] = []
    script = Script(
        {
            "go": [SetTimer(2.0, Heard("late")), SetTimer(1.0, Heard("soon"))],
            "soon": [Say("soon")],
            "late": [Say("late")],
        }
    )
    driver = start(nursery, script, log)
    driver.feed(Heard("go"))
    await trio.sleep(1.5)
    assert log == ["soon"]
    await trio.sleep(1)
    assert log == ["soon", "late"]


# ---- timers on the beat ------------------------------------------------------------------


@dataclass
class SkewedClock(TrioClock):
    """Another clock than trio's: it began elsewhere, and is a little faster or slower."""

    rate: float

    def now(self) -> float:
        return (trio.current_time() - 777.123_45) * self.rate


@dataclass
class Regular:
    """Wants to be called every `every_s` seconds."""

    every_s: float
    on_beat: bool = True
    called: list[float] = field(default_factory=list)

    def handle(self, event: Event, now: float) -> list[Effect]:
        self.called.append(trio.current_time())
        return [SetTimer(self.every_s, event, on_beat=self.on_beat)]


@pytest.mark.parametrize("clock", [TrioClock(), SkewedClock(1.000_02), SkewedClock(0.999_98)])
@pytest.mark.parametrize("began_s", [0.0, 0.000_05, 0.123, 0.499_95])
@pytest.mark.parametrize("every_s", [0.5, 1.0, 5.0])
async def test_a_timer_on_the_beat_comes_sooner_once_and_then_in_whole_intervals(
    autojump_clock: MockClock,
    nursery: trio.Nursery,
    clock: TrioClock,
    began_s: float,
    every_s: float,
) -> None:
    await trio.sleep_until(math.ceil(trio.current_time()) + began_s)
    regular = Regular(every_s)
    driver = Driver("t", regular, {}, clock=clock)
    nursery.start_soon(driver.run)
    driver.feed(Heard("go"))
    await trio.sleep(20.2 * every_s)
    first, *others = [after - before for before, after in pairwise(regular.called)]
    assert every_s - BEAT_S <= first <= every_s + 0.002
    assert others == pytest.approx([every_s] * len(others), abs=0.000_3)
    assert len(others) >= 18
    for called in regular.called[1:]:
        off_s = called % BEAT_S
        assert min(off_s, BEAT_S - off_s) < 0.000_3


@pytest.mark.parametrize(
    ("every_s", "on_beat"), [(1.0, False), (0.3, True), (0.7, True), (1.25, True), (0.0007, True)]
)
async def test_other_timers_are_exact(
    autojump_clock: MockClock, nursery: trio.Nursery, every_s: float, on_beat: bool
) -> None:
    """Goal: neither those that did not ask for it nor delays that a beat would cut each time."""
    await trio.sleep(0.123)
    regular = Regular(every_s, on_beat)
    driver = Driver("t", regular, {}, clock=TrioClock())
    nursery.start_soon(driver.run)
    driver.feed(Heard("go"))
    await trio.sleep(20.5 * every_s)
    intervals_s = [after - before for before, after in pairwise(regular.called)]
    assert intervals_s == pytest.approx([every_s] * 20, abs=1e-6)


async def test_timers_on_the_beat_and_pauses_wake_together(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    paused: list[float] = []
    regular = Regular(1.0)

    async def look() -> None:
        while True:
            await pause(1.0)
            paused.append(trio.current_time())

    await trio.sleep(0.1)
    driver = Driver("t", regular, {}, clock=TrioClock())
    nursery.start_soon(driver.run)
    driver.feed(Heard("go"))
    await trio.sleep(0.2)
    nursery.start_soon(look)
    await trio.sleep(10.0)
    assert regular.called[1:] == pytest.approx(paused)


async def test_a_full_inbox_refuses_and_takes_nothing(nursery: trio.Nursery) -> None:
    script = Script({})
    driver = Driver("t", script, {}, clock=TrioClock(), inbox_max=2)
    driver.feed(Heard("1"))
    driver.feed(Heard("2"))
    with pytest.raises(Busy, match="2 events waiting"):
        driver.feed(Heard("3"))
    nursery.start_soon(driver.run)
    await trio.testing.wait_all_tasks_blocked()
    assert [what for what, _ in script.heard] == ["1", "2"]


async def test_a_performer_may_feed_the_machine(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    script = Script({"a": [Say("again")]})
    driver = Driver("t", script, {Say: lambda e: driver.feed(Heard("b"))}, clock=TrioClock())
    nursery.start_soon(driver.run)
    driver.feed(Heard("a"))
    await trio.sleep(1)
    assert [what for what, _ in script.heard] == ["a", "b"]


async def test_a_long_step_gives_others_their_turn_and_ends_whole(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Also where a timer is due meanwhile: the step goes on where it was."""
    log: list[str] = []

    async def persist(ahead: bool) -> None:
        log.append("persist")

    async def other() -> None:
        log.append("another's turn")

    def settle(now: float) -> list[Effect]:
        return [Persist()] if script.heard else []

    script = Script({"a": [SetTimer(0.001, Heard("late"))], "late": []})
    script.settle = settle  # type: ignore[attr-defined]
    driver = start(nursery, script, log, persist=persist, turn_s=0.0)
    await trio.sleep(0.1)
    for what in ("a", "b", "c"):
        driver.feed(Heard(what))
    nursery.start_soon(other)
    await trio.sleep(0.1)
    assert log[:2] == ["another's turn", "persist"]
    assert [what for what, _ in script.heard] == ["a", "b", "c", "late"]
