"""Guards of membership, each taken away on trial: a sweep or a test must catch that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect
from swarmd.base.rng import Rng
from swarmd.mesh.events.machine import Kept
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.events import Changed, RoundDue, StreamClosed
from swarmd.mesh.swim.exchange import Exchange
from swarmd.mesh.swim.ledger import TRANSITIONS, Ledger, Signer
from swarmd.mesh.swim.machine import SwimMachine
from swarmd.mesh.swim.members import Record
from swarmd.mesh.swim.messages import INCARNATION_MAX, Ack, MemberState, Meta, Ping, Rumour
from swarmd.mesh.swim.names import Names
from swarmd.mesh.swim.post import Post
from swarmd.mesh.swim.probing import Probing
from swarmd.mesh.swim.retries import Retries
from swarmd.mesh.swim.suspicion import Suspicion
from swarmd.mesh.swim.watching import Watching
from swarmd.sim.swim import run_seed


class _NoRefutation(Ledger):
    def _answer_for_self(self, rumour: Rumour, now: float) -> list[Effect]:
        return []


class _StaleTimers(Ledger):
    def is_due(self, suspicion: Suspicion, now: float) -> bool:
        return True


class _AnyIncarnation(Ledger):
    def outranks(self, record: Record, rumour: Rumour) -> bool:
        return (record.state, rumour.kind) in TRANSITIONS


class _NotAboveTheDoubt(Ledger):
    def _answer_for_self(self, rumour: Rumour, now: float) -> list[Effect]:
        return self._say_alive(rumour.incarnation)


class _LeftForNow(Ledger):
    """A goodbye is a word like any other."""

    def outranks(self, record: Record, rumour: Rumour) -> bool:
        if record.state is MemberState.LEFT:
            return rumour.incarnation >= record.incarnation
        return super().outranks(record, rumour)


class _HearsayProves(Ledger):
    def _doubt_hearsay(self, rumour: Rumour, now: float) -> list[Effect]:
        return self.judge(rumour, now)


class _AnySignature(Ledger):
    def _verified(self, rumour: Rumour) -> bool:
        return True


class _AnyStep(Ledger):
    def _too_far(self, rumour: Rumour) -> bool:
        return False


class _EvictedStay(Ledger):
    def shut_out(self, evicted: frozenset[NodeId], now: float) -> list[Effect]:
        return []


class _CountsTwice(Suspicion):
    def would_confirm(self, accuser: NodeId) -> bool:
        return self.confirmed < self._wanted


class _NoHold(Suspicion):
    def hold(self, until: float) -> bool:
        return False


class _EverHeld(Suspicion):
    def hold(self, until: float) -> bool:
        self._holds = 0
        return super().hold(until)


class _ExcusedAgain(Record):
    def excuse(self, until: float) -> None:
        self.excused_incarnation, self.excused_until = self.incarnation, until


class _ExcusedWhenBack(Record):
    def is_excused(self, now: float) -> bool:
        return now < self.excused_until


class _DoubtsTwice(Ledger):
    suspicion_type = _CountsTwice


class _DoubtsAtOnce(Ledger):
    suspicion_type = _NoHold


class _DoubtsForEver(Ledger):
    suspicion_type = _EverHeld


class _ExcusesAgain(Ledger):
    record_type = _ExcusedAgain


class _ExcusesWhenBack(Ledger):
    record_type = _ExcusedWhenBack


class _NeverStoodStill(Probing):
    def _stood_still(self, due: float, now: float) -> bool:
        return False


class _RefusesTooLate(Probing):
    def _refuse_after_s(self) -> float:
        return self._config.probe_interval_s


class _NoStream(Probing):
    def _speaks_stream_ping(self, target: NodeId) -> bool:
        return False


class _StreamToAnybody(Probing):
    def _speaks_stream_ping(self, target: NodeId) -> bool:
        return True


class _NoChecks(Probing):
    def after_change(self, change: Changed) -> list[Effect]:
        return []


class _DeafConfirms(Probing):
    """A check that nobody answers counts like a probe in turn."""

    def on_round_due(self, event: RoundDue, now: float) -> list[Effect]:
        probe = self._rounds.get(event.sequence)
        if probe is not None:
            probe.check = False
        return super().on_round_due(event, now)


class _AccusesNewLives(Probing):
    def silent(
        self, target: NodeId, incarnation: int, now: float, *, within_s: float | None = None
    ) -> list[Effect]:
        return super().silent(target, INCARNATION_MAX, now, within_s=within_s)


class _AnybodyAnswers(Probing):
    def on_ack(self, peer: NodeId, ack: Ack) -> bool:
        probe = self._rounds.get(ack.sequence)
        if probe is not None:
            probe.answered = True
        return probe is not None


class _FollowsAnyTurn(Probing):
    def follow(self, ping: Ping) -> None:
        self.turn = max(self.turn, ping.turn - 1)


class _MeasuresAll(Probing):
    def round_trip_s(self, peer: NodeId, ack: Ack, now: float) -> float | None:
        probe = self._rounds.get(ack.sequence)
        return None if probe is None else now - probe.sent_at


class _IgnoresResets(Watching):
    def _ask_quickly(self, record: Record, now: float, *, refused: bool) -> list[Effect]:
        return []


class _ResetsProve(Watching):
    def _ask_quickly(self, record: Record, now: float, *, refused: bool) -> list[Effect]:
        return self._probing.silent(record.node_id, record.incarnation, now)


class _RefusalsProveLittle(Watching):
    def _ask_quickly(self, record: Record, now: float, *, refused: bool) -> list[Effect]:
        return super()._ask_quickly(record, now, refused=False)


class _NoExcuses(Watching):
    def on_closed(self, event: StreamClosed, now: float) -> list[Effect]:
        return [] if event.how in ("restarting", "leaving") else super().on_closed(event, now)


class _NoQuietTime(Watching):
    def on_closed(self, event: StreamClosed, now: float) -> list[Effect]:
        return super().on_closed(replace(event, quiet_s=0.0), now)


class _TellsOthersFirst(Post):
    """Who is doubted hears of it with the other news, if it comes to that."""

    def _must_say(
        self, peer: NodeId, first: tuple[Rumour, ...], introduce: bool = False
    ) -> tuple[Rumour, ...]:
        record = self._ledger.members.get(peer)
        held = None if record is None else record.evidence
        said = super()._must_say(peer, first, introduce)
        return tuple(rumour for rumour in said if rumour in first or rumour is not held)


class _AnyNames(Names):
    def after_change(self, change: Changed) -> list[Effect]:
        return []


class _NoRetries(Retries):
    def on_tick(self) -> list[Effect]:
        return []


class _NoViews(Exchange):
    def compare(self, peer: NodeId, view: bytes, now: float) -> list[Effect]:
        return []

    def on_tick(self, now: float) -> list[Effect]:
        return []


class _ForgetfulStart(SwimMachine):
    def __init__(
        self,
        me: NodeId,
        config: SwimConfig,
        rng: Rng,
        signer: Signer,
        meta: Meta,
        start_counter: int,
        now: float,
        *,
        kept: Kept | None = None,
        founder: bool = False,
    ) -> None:
        first = min(start_counter, 1)
        super().__init__(me, config, rng, signer, meta, first, now, kept=kept, founder=founder)


def _with(**parts: type) -> type[SwimMachine]:
    return type("Mutant", (SwimMachine,), dict(parts))


# What chance brings about in the sweep catches these.
BY_SEED: Final[Mapping[str, type[SwimMachine]]] = {
    "swim.refutation": _with(ledger_type=_NoRefutation),
    "swim.stale_timer": _with(ledger_type=_StaleTimers),
    "swim.incarnation_order": _with(ledger_type=_AnyIncarnation),
    "swim.retry_of_the_dead": _with(retries_type=_NoRetries),
    "swim.comparing_views": _with(exchange_type=_NoViews),
    "swim.start_counter": _ForgetfulStart,
    "swim.above_the_doubt": _with(ledger_type=_NotAboveTheDoubt),
    "swim.left_stays_left": _with(ledger_type=_LeftForNow),
}
# These need what no honest member does, a clock that no simulated host has, or a look at when and
# to whom something is said: each has a test of `tests/unit/swim/test_swim_guards.py`.
BY_TEST: Final[Mapping[str, type[SwimMachine]]] = {
    "swim.hearsay_is_doubt": _with(ledger_type=_HearsayProves),
    "swim.signatures": _with(ledger_type=_AnySignature),
    "swim.step_bound": _with(ledger_type=_AnyStep),
    "swim.evicted_are_out": _with(ledger_type=_EvictedStay),
    "swim.distinct_accusers": _with(ledger_type=_DoubtsTwice),
    "swim.late_suspicion": _with(ledger_type=_DoubtsAtOnce),
    "swim.holds_end": _with(ledger_type=_DoubtsForEver),
    "swim.one_excuse_a_life": _with(ledger_type=_ExcusesAgain),
    "swim.no_excuse_when_back": _with(ledger_type=_ExcusesWhenBack),
    "swim.late_timers": _with(probing_type=_NeverStoodStill),
    "swim.nacks_in_time": _with(probing_type=_RefusesTooLate),
    "swim.stream_probe": _with(probing_type=_NoStream),
    "swim.version_of_messages": _with(probing_type=_StreamToAnybody),
    "swim.checks_out_of_turn": _with(probing_type=_NoChecks),
    "swim.deaf_checks": _with(probing_type=_DeafConfirms),
    "swim.new_lives": _with(probing_type=_AccusesNewLives),
    "swim.who_answers": _with(probing_type=_AnybodyAnswers),
    "swim.turn_bound": _with(probing_type=_FollowsAnyTurn),
    "swim.measured_trips": _with(probing_type=_MeasuresAll),
    "swim.watched_streams": _with(watching_type=_IgnoresResets),
    "swim.resets_are_hints": _with(watching_type=_ResetsProve),
    "swim.refused_connections": _with(watching_type=_RefusalsProveLittle),
    "swim.excuses": _with(watching_type=_NoExcuses),
    "swim.quiet_time": _with(watching_type=_NoQuietTime),
    "swim.buddy": _with(post_type=_TellsOthersFirst),
    "swim.name_conflict": _with(names_type=_AnyNames),
}
MUTANTS: Final[Mapping[str, type[SwimMachine]]] = {**BY_SEED, **BY_TEST}


def first_catch(mutant: str, seeds: range) -> tuple[int, str] | None:
    """The first of `seeds` in which the mutant breaks a promise, and which; None if it survives."""
    for seed in seeds:
        violations = run_seed(seed, MUTANTS[mutant]).world.violations
        if violations:
            return seed, violations[0]
    return None
