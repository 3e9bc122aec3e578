"""The bus of one node: who subscribes where, what is on its way, what waits here. Pure.

`interests` knows who asks for what, `outflow` keeps what was published until it is settled,
`inflow` puts what comes into the subscribers' inboxes. This module joins them, and keeps the lives
of processes apart: what is said to or by another process than the present one has no effect.

A node is a peer of its own: what subscribers here are sent goes the same way, without a wire.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Event, Send, SetTimer
from swarmd.mesh.bus import events as e
from swarmd.mesh.bus.inflow import Inflow
from swarmd.mesh.bus.interests import GRACE_S, Interests
from swarmd.mesh.bus.messages import Interest, Posts, Probe, Results, Standing
from swarmd.mesh.bus.outflow import Outflow


class BusMachine:
    """Events in, effects out; `settle` ends a step.

    Args:
        me: this node.
        life: drawn at random for this process, from 1 to 2**63 - 1.
    """

    def __init__(
        self, me: NodeId, life: int, *, removed_guards: frozenset[str] = frozenset()
    ) -> None:
        assert life > 0
        self.me, self.life = me, life
        self._out: list[Effect] = []
        self._interests = Interests(me, life, self._out)
        self._outflow = Outflow(life, self._out)
        self._inflow = Inflow(life, self._out, removed_guards=removed_guards)
        # Subscribers that wait to be known, with the version that names them.
        self._spreading: dict[int, int] = {}
        # What was published before all peers were known; None once they are.
        self._unrouted: list[e.Publish] | None = []
        self._grace = 0
        self._handlers: dict[type[Event], Callable[[Any, float], None]] = {
            e.PeerUp: lambda event, now: self._interests.up(event.peer),
            e.PeerGone: self._on_gone,
            e.Heard: self._on_heard,
            e.Subscribe: self._on_subscribe,
            e.Unsubscribe: self._on_unsubscribe,
            e.Taken: lambda event, now: self._inflow.taken(
                event.number, event.count, event.size, now
            ),
            e.Publish: self._on_publish,
            e.GiveUp: self._on_give_up,
            e.AnnounceDue: lambda event, now: self._interests.announce_due(event),
            e.GraceOver: self._on_grace_over,
            e.ProbeDue: self._on_probe_due,
            e.PatienceOver: lambda event, now: self._inflow.patience_over(event, now),
        }

    @property
    def filters_count(self) -> int:
        """Different filters of the subscribers here."""
        return self._interests.filters_count

    @property
    def is_empty(self) -> bool:
        """Whether nothing is on its way from here, nor waits here for an inbox."""
        return self._outflow.is_empty and self._inflow.is_empty and not self._unrouted

    def handle(self, event: Event, now: float) -> list[Effect]:
        self._handlers[type(event)](event, now)
        return self._taken()

    def settle(self, now: float) -> list[Effect]:
        """Send what the events of a step came to, in as few messages as it takes."""
        while True:
            told: list[tuple[NodeId, Any]] = []
            told += self._outflow.flush(self._life_of)
            told += self._inflow.flush(self._life_of)
            if not told:
                return self._taken()
            for node, message in told:
                self._tell(node, message, now)

    def _tell(self, node: NodeId, message: Any, now: float) -> None:
        if node == self.me:
            self._take(node, message, now)
        else:
            self._out.append(Send(node, message))

    def _taken(self) -> list[Effect]:
        found = self._out[:]
        self._out.clear()
        return found

    def _life_of(self, node: NodeId) -> int:
        if node == self.me:
            return self.life
        peer = self._interests.peers.get(node)
        return peer.life if peer is not None else 0

    # ---- peers -----------------------------------------------------------------------------

    def _on_gone(self, event: e.PeerGone, now: float) -> None:
        self._outflow.abandon(event.peer)
        self._interests.down(event.peer)
        if event.for_good:
            self._outflow.forget(event.peer)
            self._inflow.new_life(event.peer)
            self._interests.forget(event.peer)
        self._look_again()

    def _on_heard(self, event: e.Heard, now: float) -> None:
        node, message = event.peer, event.message
        if not self._meet(node, message.life):
            return
        if isinstance(message, Interest):
            self._interests.hear(node, message, now)
            self._look_again()
        elif message.to == self.life:
            self._take(node, message, now)
        else:
            self._interests.introduce(node, now)

    def _meet(self, node: NodeId, life: int) -> bool:
        """Whether this comes from the present process of a member that is up."""
        peer = self._interests.peers.get(node)
        if peer is None or not peer.up or peer.is_former(life):
            return False
        if peer.life != life:
            self._outflow.abandon(node)
            self._inflow.new_life(node)
            self._interests.replace(node, life)
        return True

    def _take(self, node: NodeId, message: Any, now: float) -> None:
        if isinstance(message, Posts):
            self._inflow.take_posts(node, message, now)
        elif isinstance(message, Results):
            self._outflow.take_results(node, message)
        elif isinstance(message, Standing):
            self._outflow.take_standing(node, message, now)
        elif isinstance(message, Probe):
            self._inflow.take_probe(node, message)

    # ---- subscribing -------------------------------------------------------------------------

    def _on_subscribe(self, event: e.Subscribe, now: float) -> None:
        self._inflow.add(event)
        self._interests.add(event.filters)
        self._begin()
        self._spreading[event.number] = self._interests.version
        self._out.append(SetTimer(GRACE_S, e.GraceOver(event.number)))
        self._look_again()

    def _on_unsubscribe(self, event: e.Unsubscribe, now: float) -> None:
        self._interests.remove(self._inflow.remove(event.number, now))
        self._spreading.pop(event.number, None)

    # ---- publishing --------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._interests.begin():
            self._out.append(SetTimer(GRACE_S, e.GraceOver(0)))

    def _on_publish(self, event: e.Publish, now: float) -> None:
        self._begin()
        if self._unrouted is not None:
            self._unrouted.append(event)
            self._look_again()
        else:
            self._outflow.publish(event, self._interests.route(event.topic))

    def _on_give_up(self, event: e.GiveUp, now: float) -> None:
        for one in self._unrouted or ():
            if one.token == event.token:
                self._outflow.publish(one, ())
        if self._unrouted:
            self._unrouted = [one for one in self._unrouted if one.token != event.token]
        self._outflow.give_up(event.token)

    def _on_probe_due(self, event: e.ProbeDue, now: float) -> None:
        probe = self._outflow.probe_due(event, self._life_of(event.peer))
        if probe is not None:
            self._tell(event.peer, probe, now)

    def _look_again(self) -> None:
        """After news of peers: what waits to be known, and what waits for knowledge."""
        if self._unrouted is not None and self._interests.begun and self._interests.all_answered():
            self._route()
        for number, version in list(self._spreading.items()):
            if self._interests.told(version):
                del self._spreading[number]
                self._out.append(e.Spread(number))

    def _on_grace_over(self, event: e.GraceOver, now: float) -> None:
        if event.token == 0:
            self._route()
        elif self._spreading.pop(event.token, None) is not None:
            self._out.append(e.Spread(event.token))

    def _route(self) -> None:
        unrouted, self._unrouted = self._unrouted, None
        for event in unrouted or ():
            self._outflow.publish(event, self._interests.route(event.topic))
