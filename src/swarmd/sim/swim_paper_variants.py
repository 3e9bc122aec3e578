"""Failure detectors to compare: SWIM as memberlist has it, each part of Lifeguard, and ours.

Dadgar, Phillips and Currey, "Lifeguard: Local Health Awareness for More Accurate Failure
Detection" (2018), compare SWIM with each of three extensions by itself and with all of them. Here
each is the production machine with what the papers do not have taken out of it:

- `SWIM`: members ask in a shuffled order of their own; a suspicion lasts for a fixed time; nobody
  looks after its own health, refuses by a Nack, or tells a suspect of the doubt before others.
- `LHA-Probe`: health scales the interval of probes and the time for an answer; helpers refuse.
- `LHA-Suspicion`: a suspicion begins long and gets shorter with each that confirms it.
- `Buddy System`: whoever pings a suspect tells it of the doubt.

As in memberlist, on which the paper's measurements were made, all of them gossip apart from the
probes and for a while to the dead, exchange whole views by the clock, and try a stream where a
datagram stays unanswered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Final

import msgspec

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect
from swarmd.base.rng import Rng
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.events import Changed, NewsTick, RelayTimeout
from swarmd.mesh.swim.exchange import Exchange
from swarmd.mesh.swim.ledger import Ledger
from swarmd.mesh.swim.machine import SwimMachine
from swarmd.mesh.swim.members import PRESENT, MemberTable, Record
from swarmd.mesh.swim.messages import MemberState, Ping, Rumour, decode_rumour
from swarmd.mesh.swim.post import Post
from swarmd.mesh.swim.probes import Round
from swarmd.mesh.swim.probing import Probing
from swarmd.mesh.swim.suspicion import LocalHealth, Suspicion

# K in the paper: after so many confirmations a suspicion is as short as it gets.
_CONFIRMATIONS: Final = 3
# Serf tries one of the dead again this often, in seconds.
_RETRY_S: Final = 30.0


# The same rumour reaches all members of a swarm, many times each: decoding it once saves time.
_decoded: Final = lru_cache(maxsize=1 << 14)(decode_rumour)


@dataclass(frozen=True, slots=True)
class Variant:
    """One failure detector. `alpha`, `beta`: the shortest suspicion, and the longest of those.

    `production` is the machine of this build as it is; the three parts are then all in it.
    """

    name: str
    lha_probe: bool = False
    lha_suspicion: bool = False
    buddy: bool = False
    production: bool = False
    alpha: int = 5
    beta: int = 6

    def config(self) -> SwimConfig:
        """The settings of `lan`, which are memberlist's, with these suspicions."""
        ours = SwimConfig(suspicion_mult=self.alpha, suspicion_max_mult=self.beta)
        if self.production:
            return ours
        return msgspec.structs.replace(ours, retry_interval_s=_RETRY_S, retry_dead=1)

    def machine(self) -> type[SwimMachine]:
        """The class to make members of."""
        if self.production:
            return SwimMachine
        variant = {"variant": self}
        health = LocalHealth if self.lha_probe else _Indifferent
        parts = {
            "ledger_type": type("PaperLedger", (_PaperLedger,), {**variant, "health_type": health}),
            "probing_type": type("PaperProbing", (_PaperProbing,), dict(variant)),
            "post_type": type("PaperPost", (_PaperPost,), dict(variant)),
        }
        return type("PaperMachine", (_PaperMachine,), parts)


class _Indifferent(LocalHealth):
    """Always well."""

    __slots__ = ()

    def adjust(self, delta: int) -> None:
        pass


class _Impatient(Suspicion):
    """It ends when its time is over, however late its timer comes."""

    __slots__ = ()

    def hold(self, until: float) -> bool:
        return False


class _ShuffledTable(MemberTable):
    """Each asks in an order of its own, shuffled anew after each round (SWIM, section 4.3)."""

    def __init__(self, me: NodeId, rng: Rng) -> None:
        super().__init__(me, rng)
        self._owner = me
        self._chance = rng
        self._order: list[NodeId] = []

    def probed_in(self, turn: int) -> Record | None:
        for _ in range(2):
            while self._order:
                node_id = self._order.pop()
                record = self.get(node_id)
                if record is not None and node_id != self._owner and record.state in PRESENT:
                    return record
            self._order = list(self.present())
            self._chance.shuffle(self._order)
        return None


class _PaperLedger(Ledger):
    variant: ClassVar[Variant]
    table_type = _ShuffledTable

    def hear(self, raw: bytes, now: float) -> list[Effect]:
        return self.judge(_decoded(raw), now)  # All members here are honest.

    def new_suspicion(self, accuser: NodeId, now: float) -> Suspicion:
        config, count = self._config, self.members.present_count
        min_s = self.variant.alpha * math.log10(max(10, count)) * config.probe_interval_s
        if not self.variant.lha_suspicion:
            return _Impatient(accuser, now, wanted=0, min_s=min_s, max_s=min_s)
        wanted = _CONFIRMATIONS if count - 2 >= _CONFIRMATIONS else 0
        max_s = min_s * self.variant.beta
        return _Impatient(accuser, now, wanted=wanted, min_s=min_s, max_s=max_s)


class _PaperProbing(Probing):
    variant: ClassVar[Variant]

    def timeout_s(self) -> float:
        return self._ledger.health.scale(self._config.probe_timeout_s)

    def after_change(self, change: Changed) -> list[Effect]:
        return []  # Who hears of a suspicion asks in its turn.

    def on_relay_timeout(self, event: RelayTimeout) -> list[Effect]:
        return super().on_relay_timeout(event) if self.variant.lha_probe else []

    def _stood_still(self, due: float, now: float) -> bool:
        return False

    def _conclude(self, sequence: int, now: float) -> list[Effect]:
        return self._end(sequence, now)  # Nobody asks a second time.

    def _is_lost(self, probe: Round) -> bool:
        return False  # Nothing is concluded before the interval is over.


class _PaperPost(Post):
    variant: ClassVar[Variant]

    def announce(self) -> list[Effect]:
        return []  # One's own word goes the way of all news.

    def ack(
        self, peer: NodeId, sequence: int, peer_view: bytes = b"", coordinate: bytes = b""
    ) -> Effect:
        return super().ack(peer, sequence)  # It does not look at the asker's view.

    def told_of(self, record: Record) -> Rumour | None:
        return None

    def ping(self, peer: NodeId, sequence: int, turn: int = 0) -> Effect:
        record = self._ledger.members.get(peer)
        first: list[Rumour] = []
        if self.variant.buddy and record is not None and record.state is MemberState.SUSPECT:
            first = record.rumours()[1:]
        view = self._ledger.members.view_digest()
        return self._packet(
            peer, lambda rumours: Ping(sequence, view, rumours, turn), first=tuple(first)
        )


class _PaperExchange(Exchange):
    def compare(self, peer: NodeId, view: bytes, now: float) -> list[Effect]:
        return []  # Views are exchanged by the clock alone.

    def compare_whole(self, peer: NodeId, now: float, *, differs: bool) -> list[Effect]:
        return super().compare_whole(peer, now, differs=True)


class _PaperMachine(SwimMachine):
    exchange_type = _PaperExchange

    def _on_news_tick(self, event: NewsTick, now: float) -> list[Effect]:
        self._news_armed = False
        return []  # News waits for the next gossip, or for a probe.
