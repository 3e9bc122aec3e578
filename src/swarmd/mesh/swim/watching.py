"""What streams tell of members: whose connections are kept, and what it means when one ends.

Each node keeps a connection to a few others, chosen by rendezvous (Thaler and Ravishankar, 1998):
those for whom a hash of both ids is highest. So each is connected to that many at least, the
choice needs no talk, and one who comes or goes changes little of it. When a process dies its host
resets these connections at once, also in a swarm that has nothing to say.

A reset is a hint and no more: three quick pings follow, and one attempt to connect. Where they stay
silent others are asked, for a cut between two hosts breaks their stream, too. A refused connection
is no more than a hint by itself, for a firewall may refuse TCP where datagrams pass; but a host
that refuses is near and awake, so the pings follow each other faster, and where they stay silent as
well, its process is gone, and the suspicion is short. A clean close gives its reason and is no
hint; who restarts, or leaves, is not suspected for as long as it said, or as its goodbye may take
to come round: once in each incarnation, for the next one is back.
"""

from __future__ import annotations

from typing import Final

from swarmd.base.ids import NodeId, digest
from swarmd.base.machine import Effect, SetTimer
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.events import Changed, HintTick, StreamClosed
from swarmd.mesh.swim.ledger import Ledger
from swarmd.mesh.swim.members import PRESENT, Record
from swarmd.mesh.swim.post import Post
from swarmd.mesh.swim.probes import Hint, Pending, Pendings
from swarmd.mesh.swim.probing import Probing

# How many others each node keeps a connection to.
WATCHED: Final = 4
_HINT_PINGS: Final = 3
_HINT_INTERVAL_S: Final = 0.1
_REFUSED_INTERVAL_S: Final = 0.05
# How long the quick pings have at most.
HINT_S: Final = _HINT_PINGS * _HINT_INTERVAL_S


class Watching:
    """The connections that one node keeps, and the hints that it got."""

    def __init__(
        self,
        me: NodeId,
        config: SwimConfig,
        ledger: Ledger,
        post: Post,
        pendings: Pendings,
        probing: Probing,
    ) -> None:
        self._me = me
        self._config = config
        self._ledger = ledger
        self._post = post
        self._pendings = pendings
        self._probing = probing
        self._hints: dict[NodeId, Hint] = {}
        self._tokens = 0
        self._watched: list[tuple[bytes, NodeId]] = []

    # ---- whom to watch ----------------------------------------------------------------

    def watched(self) -> list[NodeId]:
        """The members that this node keeps a connection to."""
        return [] if self._ledger.leaving else [node_id for _, node_id in self._watched]

    def keeps(self, peer: NodeId) -> bool:
        """True if either of the two keeps a connection to the other."""
        if any(node_id == peer for _, node_id in self._watched):
            return True
        record = self._ledger.members.get(peer)
        if record is None or record.state not in PRESENT:
            return False
        return any(node_id == self._me for _, node_id in self._highest(peer))

    def after_change(self, change: Changed) -> None:
        """Watch others where members came or went."""
        after = change.after
        one = after or change.before
        if one is None or one.node_id == self._me:
            return
        here = after is not None and after.state in PRESENT
        known = any(node_id == one.node_id for _, node_id in self._watched)
        if here and not known:
            self._watched = _best([*self._watched, (_rank(self._me, one.node_id), one.node_id)])
        elif known and not here:
            self._watched = self._highest(self._me)

    def _highest(self, watcher: NodeId) -> list[tuple[bytes, NodeId]]:
        present = self._ledger.members.present()
        return _best([(_rank(watcher, peer), peer) for peer in present if peer != watcher])

    # ---- how streams end --------------------------------------------------------------

    def on_closed(self, event: StreamClosed, now: float) -> list[Effect]:
        record = self._ledger.members.get(event.peer)
        if record is None or record.state not in PRESENT or self._ledger.leaving:
            return []
        if event.how in ("restarting", "leaving"):
            quiet_s = max(event.quiet_s, 2 * self._config.leave_timeout_s)
            self._ledger.members.change(record, lambda r: r.excuse(now + quiet_s))
            return []
        if record.is_excused(now) or event.how not in ("reset", "refused"):
            return []
        return self._ask_quickly(record, now, refused=event.how == "refused")

    def _ask_quickly(self, record: Record, now: float, *, refused: bool) -> list[Effect]:
        """Three pings, unless they are under way."""
        hint = self._hints.get(record.node_id)
        if hint is not None:
            hint.refused = hint.refused or refused
            return []
        self._tokens += 1
        self._hints[record.node_id] = Hint(self._tokens, record.incarnation, refused=refused)
        return self.on_hint_tick(HintTick(record.node_id, self._tokens), now)

    def on_hint_tick(self, event: HintTick, now: float) -> list[Effect]:
        hint = self._hints.get(event.subject)
        if hint is None or hint.token != event.token:
            return []
        if hint.sent == _HINT_PINGS:
            del self._hints[event.subject]
            if not hint.refused:
                return self._probing.ask_around(event.subject, hint.incarnation, now)
            # Its host answers and its process does not: doubt it briefly, and let it object.
            within_s = self._config.refused_suspicion_s
            return self._probing.silent(event.subject, hint.incarnation, now, within_s=within_s)
        hint.sent += 1
        sequence = self._pendings.open(Pending("hint", event.subject))
        interval_s = _REFUSED_INTERVAL_S if hint.refused else _HINT_INTERVAL_S
        return [self._post.ping(event.subject, sequence), SetTimer(interval_s, event)]

    def answered(self, peer: NodeId) -> None:
        """One of the quick pings was."""
        self._hints.pop(peer, None)

    def forget(self, evicted: frozenset[NodeId]) -> None:
        for peer in evicted & self._hints.keys():
            del self._hints[peer]


def _rank(watcher: NodeId, peer: NodeId) -> bytes:
    return digest(b"watch", watcher, peer)


def _best(ranked: list[tuple[bytes, NodeId]]) -> list[tuple[bytes, NodeId]]:
    return sorted(ranked, reverse=True)[:WATCHED]
