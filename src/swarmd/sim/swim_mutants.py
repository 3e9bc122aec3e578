"""Guards of membership, each taken away on trial: a sweep must catch that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect
from swarmd.base.rng import Rng
from swarmd.mesh.events.machine import Kept
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.exchange import Exchange
from swarmd.mesh.swim.ledger import TRANSITIONS, Ledger, Signer
from swarmd.mesh.swim.machine import SwimMachine
from swarmd.mesh.swim.members import Record
from swarmd.mesh.swim.messages import Meta, Rumour
from swarmd.mesh.swim.retries import Retries
from swarmd.mesh.swim.suspicion import Suspicion
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


# Each takes one guard away; a sweep must catch it.
MUTANTS: Final[Mapping[str, type[SwimMachine]]] = {
    "swim.refutation": _with(ledger_type=_NoRefutation),
    "swim.stale_timer": _with(ledger_type=_StaleTimers),
    "swim.incarnation_order": _with(ledger_type=_AnyIncarnation),
    "swim.retry_of_the_dead": _with(retries_type=_NoRetries),
    "swim.comparing_views": _with(exchange_type=_NoViews),
    "swim.start_counter": _ForgetfulStart,
}


def first_catch(mutant: str, seeds: range) -> tuple[int, str] | None:
    """The first of `seeds` in which the mutant breaks a promise, and which; None if it survives."""
    for seed in seeds:
        violations = run_seed(seed, MUTANTS[mutant]).world.violations
        if violations:
            return seed, violations[0]
    return None
