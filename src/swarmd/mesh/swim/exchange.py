"""When whole views are exchanged: at a join, when views differ, and now and then.

What gossip misses, push-pull over a stream makes good. Views that differ although nobody has news
are exchanged at once, so that a join does not depend on gossip's luck; and whoever is new asks one
member after another as long as each has told it something, so that many who start at once find
each other in a few steps, each twice as far as the one before.

Now and then a member compares all that it knows with the next one that answers it, by a digest,
and exchanges views if they differ. Memberlist exchanges them whatever they are: in a quiet swarm of
a thousand that is most of all that is sent.
"""

from __future__ import annotations

from typing import Final

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, SetTimer
from swarmd.base.rng import Rng
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.events import (
    GrowTick,
    Join,
    JoinAgain,
    SyncFailed,
    SyncIn,
    SyncTick,
    SyncWith,
)
from swarmd.mesh.swim.ledger import Ledger
from swarmd.mesh.swim.messages import SYNC_BYTES_MAX, SYNC_RUMOURS_MAX, MemberState
from swarmd.mesh.swim.suspicion import sync_scale
from swarmd.wire.codec import BYTES_HEAD_MAX

_JOIN_AGAIN_S: Final = 1.0
_JOIN_AGAIN_MAX_S: Final = 60.0
_JOINING_MAX: Final = 64
# A node that started so recently does not wait for gossip to tell it who is here.
_NEW_HERE_S: Final = 10.0
# A new node asks the next one after this part of `sync_min_interval_s`.
_GROW_FRACTION: Final = 0.1
_SYNC_BACKOFF_MAX: Final = 32.0


class Exchange:
    """Whom this node exchanges views with, and when."""

    def __init__(
        self, me: NodeId, config: SwimConfig, rng: Rng, ledger: Ledger, now: float
    ) -> None:
        self._me = me
        self._config = config
        self._rng = rng
        self._ledger = ledger
        self._joining: dict[NodeId, float] = {}
        self._growing = False
        self._whole_due = False
        self._started_at = now
        self._after = now
        self._backoff = 1.0

    def first_tick(self) -> Effect:
        return SetTimer(self._rng.uniform(0.5, 1.0) * self._config.sync_interval_s, SyncTick())

    def view(self) -> list[bytes]:
        """The rumours to put into a push-pull: all, or as many as fit, from a random place on."""
        records = self._ledger.members.records()
        start = self._rng.randrange(len(records))
        mine = self._ledger.self_record
        chosen: list[bytes] = []
        room = SYNC_BYTES_MAX
        for record in [mine, *records[start:], *(r for r in records[:start])]:
            if record is mine and chosen:
                continue
            raws = [rumour.raw for rumour in record.rumours()]
            room -= sum(len(raw) + BYTES_HEAD_MAX for raw in raws)
            if room < 0 or len(chosen) + len(raws) > SYNC_RUMOURS_MAX:
                break
            chosen += raws
        return chosen

    # ---- joining ----------------------------------------------------------------------

    def on_join(self, event: Join) -> list[Effect]:
        effects: list[Effect] = []
        for peer in event.peers:
            if peer != self._me and peer not in self._joining and len(self._joining) < _JOINING_MAX:
                self._joining[peer] = _JOIN_AGAIN_S
                effects.append(SyncWith(peer))
        return effects

    def on_join_again(self, event: JoinAgain) -> list[Effect]:
        if event.peer not in self._joining or self._ledger.leaving:
            return []
        if self._ledger.members.get(event.peer) is not None:
            del self._joining[event.peer]  # Others told of it: the protocol cares for it now.
            return []
        return [SyncWith(event.peer)]

    def forget(self, evicted: frozenset[NodeId]) -> None:
        """Join by those no more; what could not be verified may be by now."""
        self._backoff = 1.0
        for peer in evicted & self._joining.keys():
            del self._joining[peer]

    # ---- exchanging -------------------------------------------------------------------

    def compare(self, peer: NodeId, view: bytes, now: float) -> list[Effect]:
        """Exchange views with a peer that we do not know, or whose view differs without news."""
        record = self._ledger.members.get(peer)
        if record is not None:
            if view == self._ledger.members.view_digest():
                self._backoff = 1.0
                return []
            if len(self._ledger.queue) and not self._is_new_here(now):
                return []
            if record.state is not MemberState.ALIVE:
                return []
        if self._ledger.leaving or now < self._after:
            return []
        self._backoff = min(_SYNC_BACKOFF_MAX, self._backoff * 2)
        return self.sync(peer, now)

    def compare_whole(self, peer: NodeId, now: float, *, differs: bool) -> list[Effect]:
        """Exchange views with the first that answers after a tick, unless it knows the same."""
        ledger = self._ledger
        if not self._whole_due or len(ledger.queue) or ledger.leaving or now < self._after:
            return []
        record = ledger.members.get(peer)
        if record is None or record.state is not MemberState.ALIVE:
            return []
        self._whole_due = False
        return self.sync(peer, now) if differs else []

    def sync(self, peer: NodeId, now: float) -> list[Effect]:
        """Exchange views with a peer."""
        # If exchanging does not help (a key we cannot verify yet), do it ever less often.
        self._after = now + self._config.sync_min_interval_s * self._backoff
        return [SyncWith(peer)]

    def on_sync(self, event: SyncIn, now: float) -> list[Effect]:
        self._joining.pop(event.peer, None)
        before = self._ledger.members.view_digest()
        effects = self._ledger.hear_view(event.rumours, now)
        if self._ledger.members.view_digest() == before:
            return effects
        self._backoff = 1.0
        if event.answer and self._is_new_here(now) and not self._growing:
            self._growing = True
            delay_s = self._config.sync_min_interval_s * _GROW_FRACTION
            effects.append(SetTimer(delay_s * self._rng.uniform(0.5, 1.5), GrowTick()))
        return effects

    def on_grow_tick(self) -> list[Effect]:
        self._growing = False
        if self._ledger.leaving:
            return []
        return [SyncWith(peer) for peer in self._ledger.members.pick_alive(1)]

    def _is_new_here(self, now: float) -> bool:
        return now - self._started_at <= _NEW_HERE_S

    def on_failed(self, event: SyncFailed) -> list[Effect]:
        """Try a peer to join by for ever, ever less often: it may be our only way to the swarm."""
        delay_s = self._joining.get(event.peer)
        if delay_s is None:
            return []
        self._joining[event.peer] = min(_JOIN_AGAIN_MAX_S, delay_s * 1.5)
        return [SetTimer(delay_s * self._rng.uniform(0.75, 1.25), JoinAgain(event.peer))]

    def on_tick(self, now: float) -> list[Effect]:
        """From now on compare; but exchange at once where digests tell nothing.

        That is while there is news, and where no answer could be compared since the last time.
        """
        ledger = self._ledger
        if ledger.leaving:
            return []
        scale = sync_scale(ledger.members.present_count)
        effects: list[Effect] = [SetTimer(self._config.sync_interval_s * scale, SyncTick())]
        if len(ledger.queue) or self._whole_due:
            self._whole_due = False
            for peer in ledger.members.pick_alive(1):
                effects += self.sync(peer, now)
        else:
            self._whole_due = True
        return effects
