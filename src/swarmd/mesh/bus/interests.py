"""Who subscribes where: what this node tells the others, and what it knows of them. Pure.

Rules:
- A node that has neither published nor subscribed since its start says nothing: it only answers.
  One that begins to tells every living member what its subscribers ask for (`Interest`), again and
  again with growing pauses until it is answered with the same of the other.
- From then on it tells each change to those that have begun, too: the others will ask when they
  begin. One such message to a peer is under way at a time; what changed meanwhile goes next.
- What is published first waits until every living member has answered, or had `GRACE_S` to.
- A process is known by its `life`. Another one replaces it, and what was known of the former is
  void. A life that was replaced never comes back: what still names it is late.
- What a peer says makes this node tell it all filters so often and no more: what it was told last
  is under way until it says that it holds it, and whole answers have a pause between them. An
  answer without filters is as short as the question.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Send, SetTimer
from swarmd.mesh.bus.events import AnnounceDue
from swarmd.mesh.bus.messages import Interest
from swarmd.mesh.bus.topics import Filters

GRACE_S: Final = 1.0
_AGAIN_FIRST_S: Final = 0.25
_AGAIN_MAX_S: Final = 5.0
_WHOLE_PAUSE_S: Final = 0.25
_FORMER_MAX: Final = 8
_ROUTES_MAX: Final = 1_000


class Peer:
    """Another node's bus, as far as this one knows it."""

    def __init__(self) -> None:
        self.up = False
        self.life = 0
        self.version = 0
        self.filters = Filters()
        # It publishes, or has a subscriber: changes here are told to it.
        self.begun = False
        # It has answered since it is up.
        self.answered = False
        # The version of ours that it holds.
        self.noted = 0
        # The version that it was last told, asking.
        self.told = 0
        # When it was last answered with all filters.
        self.whole_at = -1e9
        self.token = 0
        self.pause_s = 0.0
        self._former: deque[int] = deque(maxlen=_FORMER_MAX)

    def is_former(self, life: int) -> bool:
        return life in self._former

    def replace(self, life: int) -> None:
        """Another process is there now."""
        if self.life:
            self._former.append(self.life)
        self.life, self.version, self.filters = life, 0, Filters()
        self.begun, self.answered, self.noted = False, False, 0


class Interests:
    """`out` takes effects. `life` is this node's, `me` its id."""

    def __init__(self, me: NodeId, life: int, out: list[Effect]) -> None:
        self.me, self.life = me, life
        self.peers: dict[NodeId, Peer] = {}
        self.begun = False
        # 1 from the beginning: 0 says that nothing is held.
        self.version = 1
        self._out = out
        self._counts: dict[str, int] = {}
        self._own = Filters()
        self._routes: dict[str, tuple[NodeId, ...]] = {}

    # ---- what this node tells ------------------------------------------------------------

    @property
    def filters_count(self) -> int:
        return len(self._counts)

    def add(self, filters: tuple[str, ...]) -> None:
        fresh = False
        for one in filters:
            fresh = fresh or one not in self._counts
            self._counts[one] = self._counts.get(one, 0) + 1
        self._changed(fresh)

    def remove(self, filters: tuple[str, ...]) -> None:
        gone = False
        for one in filters:
            self._counts[one] -= 1
            if not self._counts[one]:
                del self._counts[one]
                gone = True
        self._changed(gone)

    def begin(self) -> bool:
        """This node takes part from now on; True if it did not before."""
        if self.begun:
            return False
        self.begun = True
        for node in self.peers:
            self._tell(node)
        return True

    def _changed(self, really: bool) -> None:
        if not really:
            return
        self.version += 1
        self._own = Filters(self._counts)
        self._routes.clear()
        for node in self.peers:
            self._tell(node)

    def told(self, version: int) -> bool:
        """Whether everybody whom it concerns holds that version, or a later one."""
        return all(
            not peer.up or (peer.answered and (not peer.begun or peer.noted >= version))
            for peer in self.peers.values()
        )

    def all_answered(self) -> bool:
        return all(not peer.up or peer.answered for peer in self.peers.values())

    def _wants_telling(self, peer: Peer) -> bool:
        if not self.begun or not peer.up:
            return False
        return not peer.answered or (peer.begun and peer.noted < self.version)

    def _tell(self, node: NodeId) -> None:
        """Tell a peer unless that is under way, or there is nothing to tell."""
        peer = self.peers[node]
        if peer.pause_s == 0.0 and self._wants_telling(peer):
            self._ask(node, peer)

    def _ask(self, node: NodeId, peer: Peer) -> None:
        whole = peer.noted != self.version
        self._out.append(Send(node, self._interest(peer, ask=True, whole=whole)))
        self._pause(node, peer)

    def _pause(self, node: NodeId, peer: Peer) -> None:
        """What was told now is under way; look again after a while."""
        peer.told = self.version
        peer.pause_s = min(max(2 * peer.pause_s, _AGAIN_FIRST_S), _AGAIN_MAX_S)
        peer.token += 1
        self._out.append(SetTimer(peer.pause_s, AnnounceDue(node, peer.token)))

    def _answer(self, node: NodeId, held: int, now: float) -> None:
        """Tell a peer that holds this version of ours what it lacks, unless it just was told."""
        peer = self.peers[node]
        whole = held != self.version and now - peer.whole_at >= _WHOLE_PAUSE_S
        if whole:
            peer.whole_at = now
        self._out.append(Send(node, self._interest(peer, ask=False, whole=whole)))

    def _interest(self, peer: Peer, *, ask: bool, whole: bool) -> Interest:
        filters = tuple(self._counts) if whole else None
        return Interest(self.life, self.version, peer.life, peer.version, ask, self.begun, filters)

    def announce_due(self, event: AnnounceDue) -> None:
        peer = self.peers.get(event.peer)
        if peer is None or peer.token != event.token:
            return
        if self._wants_telling(peer):
            self._ask(event.peer, peer)
        else:
            peer.pause_s = 0.0

    def introduce(self, node: NodeId, now: float) -> None:
        """Tell a peer who this is, for it took this node for an earlier process."""
        self._answer(node, 0, now)

    # ---- what is known of others -----------------------------------------------------------

    def up(self, node: NodeId) -> None:
        """A member is there, or may be another process than before."""
        peer = self.peers.setdefault(node, Peer())
        # It may have taken this node for dead meanwhile, and have dropped what it held.
        peer.up, peer.answered, peer.pause_s, peer.noted = True, False, 0.0, 0
        peer.whole_at = -1e9
        self._tell(node)

    def down(self, node: NodeId) -> None:
        peer = self.peers.get(node)
        if peer is not None:
            peer.up, peer.filters, peer.version = False, Filters(), 0
            self._routes.clear()

    def forget(self, node: NodeId) -> None:
        if self.peers.pop(node, None) is not None:
            self._routes.clear()

    def replace(self, node: NodeId, life: int) -> None:
        """Another process of the member is there."""
        self.peers[node].replace(life)
        self._routes.clear()

    def hear(self, node: NodeId, message: Interest, now: float) -> None:
        """Of a peer that is up, and whose life is known to be the message's."""
        peer = self.peers[node]
        if message.filters is not None and message.version > peer.version:
            peer.version, peer.filters = message.version, Filters(message.filters)
            self._routes.clear()
        held = min(message.knows_version, self.version) if message.knows_life == self.life else 0
        # Late messages know less. Who has really lost what it held asks; the answer is under way.
        lost = message.ask and held < peer.noted
        peer.noted = held if message.ask else max(peer.noted, held)
        peer.begun = peer.begun or message.begun
        if message.ask:
            self._answer(node, held, now)
            if lost and peer.pause_s == 0.0:
                self._pause(node, peer)
        elif message.version == peer.version:
            peer.answered = True
            if peer.noted >= peer.told:
                peer.pause_s = 0.0
        self._tell(node)

    def route(self, topic: str) -> tuple[NodeId, ...]:
        """Nodes with somebody who asks for `topic`, in a stable order."""
        found = self._routes.get(topic)
        if found is None:
            others = [node for node, peer in self.peers.items() if peer.filters.fit(topic)]
            mine = [self.me] if self._own.fit(topic) else []
            if len(self._routes) >= _ROUTES_MAX:
                self._routes.clear()
            found = self._routes[topic] = (*mine, *others)
        return found
