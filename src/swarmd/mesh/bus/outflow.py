"""The sending side: what was published and is not settled yet. Pure.

Towards each node with subscribers, the posts of a lane are numbered from 1 on, and kept until that
node says what became of them. Nothing is taken for lost in haste:
- a node that is asked for what it has (`Probe`, when nothing was settled for a while), or that
  misses a number, says how far it has come; what comes after that is sent again, in order;
- a node that is dead, or another process than before, will settle nothing any more: what it has
  not settled is told as unknown, and a new session begins, in which numbers start at 1;
- of what nobody waits for any more only so much is kept, for a node and for all: beyond, the node
  that holds up most is treated as one that will settle nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from swarmd.base.ids import NodeId
from swarmd.base.limits import BUS_LANE_MESSAGES_MAX, BUS_LANES_MAX, MIB
from swarmd.base.machine import Effect, SetTimer
from swarmd.mesh.bus.events import Outcome, ProbeDue, Publish, Reach
from swarmd.mesh.bus.messages import (
    PATIENCE_MS_MAX,
    POSTS_BYTES_MAX,
    POSTS_MAX,
    SLOW_NAMED_MAX,
    Asked,
    Post,
    Posts,
    Probe,
    Results,
    Standing,
)

PROBE_FIRST_S: Final = 0.25
PROBE_MAX_S: Final = 2.0
# Kept of posts whose publisher has given up: a publisher's own bounds count them no more.
_ORPHANS_BYTES_MAX: Final = 64 * MIB
_ALL_ORPHANS_BYTES_MAX: Final = 256 * MIB
# What a post takes beside its data, about.
_POST_BYTES: Final = 512


@dataclass(slots=True)
class _Publication:
    """One message on its way to some nodes."""

    token: int
    size: int
    waiting: dict[NodeId, None]
    reached: int = 0
    missed: int = 0
    slow: tuple[str, ...] = ()
    unknown: tuple[NodeId, ...] = ()


@dataclass(slots=True)
class _Lane:
    """Posts of one lane to one node that are not settled, by number, in order."""

    last: int = 0
    open: dict[int, tuple[Post, _Publication]] = field(default_factory=dict)
    # When, and from where on, they were last sent again.
    again_after: int = -1
    again_at: float = -1e9
    # The first that was open when the target's timer was set; 0 if none was.
    watched: int = 0

    @property
    def first(self) -> int:
        return next(iter(self.open), self.last + 1)


@dataclass(slots=True)
class _Target:
    """A node that posts go to."""

    session: int = 1
    lanes: dict[int, _Lane] = field(default_factory=dict)
    open: int = 0
    # Of posts that are open though nobody waits for them any more.
    orphans_bytes: int = 0
    outgoing: list[Post] = field(default_factory=list)
    # The timer that is not stale; 0 if none runs.
    token: int = 0
    settled: bool = False
    pause_s: float = PROBE_FIRST_S


class Outflow:
    """`out` takes effects."""

    def __init__(self, life: int, out: list[Effect]) -> None:
        self._life = life
        self._out = out
        self._targets: dict[NodeId, _Target] = {}
        self._publications: dict[int, _Publication] = {}
        # Nodes that something is to be sent to.
        self._ready: dict[NodeId, None] = {}
        self._tokens = 0
        self._orphans_bytes = 0

    @property
    def is_empty(self) -> bool:
        return not self._publications and not any(one.open for one in self._targets.values())

    def publish(self, event: Publish, nodes: tuple[NodeId, ...]) -> None:
        size = len(event.data) + _POST_BYTES
        publication = _Publication(event.token, size, dict.fromkeys(nodes))
        self._publications[event.token] = publication
        for node in nodes:
            self._post(node, event, publication)
        self._close_if_settled(publication)

    def _post(self, node: NodeId, event: Publish, publication: _Publication) -> None:
        target = self._targets.setdefault(node, _Target())
        lane = target.lanes.setdefault(event.lane, _Lane())
        if len(lane.open) >= BUS_LANE_MESSAGES_MAX:
            # Nobody waited for all of these, and the node settles none: it is not worth more.
            del publication.waiting[node]
            publication.unknown += (node,)
            return
        done = lane.first - 1
        lane.last += 1
        patience_ms = min(round(event.patience_s * 1_000), PATIENCE_MS_MAX)
        post = Post(event.lane, lane.last, done, event.topic, event.sender, event.data, patience_ms)
        lane.open[lane.last] = post, publication
        target.open += 1
        target.outgoing.append(post)
        self._ready[node] = None

    def give_up(self, token: int) -> None:
        """Tell what is known; posts that are on their way go on, as far as there is room."""
        publication = self._publications.get(token)
        if publication is None:
            return
        nodes = tuple(publication.waiting)
        publication.unknown += nodes
        publication.waiting.clear()
        for node in nodes:
            self._targets[node].orphans_bytes += publication.size
            self._orphans_bytes += publication.size
        self._close_if_settled(publication)
        for node in nodes:
            if self._targets[node].orphans_bytes > _ORPHANS_BYTES_MAX:
                self.abandon(node)
        if self._orphans_bytes > _ALL_ORPHANS_BYTES_MAX:
            self.abandon(max(self._targets, key=lambda one: self._targets[one].orphans_bytes))

    # ---- what a node says of its part ------------------------------------------------------

    def take_results(self, node: NodeId, message: Results) -> None:
        target = self._targets.get(node)
        if target is None or target.session != message.session:
            return
        for result in message.results:
            lane = target.lanes.get(result.lane)
            found = lane.open.pop(result.number, None) if lane is not None else None
            if found is None:
                continue  # Told twice.
            target.open -= 1
            target.settled = True
            publication = found[1]
            if node in publication.waiting:
                del publication.waiting[node]
                publication.reached += result.reached
                publication.missed += result.missed
                publication.slow = (publication.slow + result.slow)[:SLOW_NAMED_MAX]
                self._close_if_settled(publication)
            else:
                target.orphans_bytes -= publication.size
                self._orphans_bytes -= publication.size

    def take_standing(self, node: NodeId, message: Standing, now: float) -> None:
        target = self._targets.get(node)
        if target is None or target.session != message.session:
            return
        for held in message.lanes:
            lane = target.lanes.get(held.lane)
            if lane is None or not lane.open or held.got >= lane.last:
                continue
            if held.got < lane.first - 1:
                # It has settled more than it says it ever got: it has lost its place.
                self.abandon(node)
                return
            if lane.again_after == held.got and now - lane.again_at < target.pause_s:
                continue  # Said of each post that came too early; they are on their way again.
            lane.again_after, lane.again_at = held.got, now
            # What waits to be sent is sent once, in its place.
            waiting = {post.number for post in target.outgoing if post.lane == held.lane}
            again = [
                post
                for number, (post, _) in lane.open.items()
                if number > held.got and number not in waiting
            ]
            target.outgoing = again + target.outgoing
            self._ready[node] = None

    def abandon(self, node: NodeId) -> None:
        """The node will settle nothing of what it has: begin another session."""
        target = self._targets.get(node)
        if target is None:
            return
        lanes, target.lanes = target.lanes, {}
        target.session += 1
        target.open, target.outgoing = 0, []
        self._orphans_bytes -= target.orphans_bytes
        target.orphans_bytes = 0
        for lane in lanes.values():
            for _, publication in lane.open.values():
                if node in publication.waiting:
                    del publication.waiting[node]
                    publication.unknown += (node,)
                    self._close_if_settled(publication)

    def forget(self, node: NodeId) -> None:
        self.abandon(node)
        self._targets.pop(node, None)

    def _close_if_settled(self, publication: _Publication) -> None:
        if not publication.waiting and publication.token in self._publications:
            del self._publications[publication.token]
            reach = Reach(
                publication.reached, publication.missed, publication.slow, publication.unknown
            )
            self._out.append(Outcome(publication.token, reach))

    # ---- sending ---------------------------------------------------------------------------

    def flush(self, lives: Callable[[NodeId], int]) -> list[tuple[NodeId, Posts]]:
        """What is to be sent, in as few messages as it takes; `lives` tells whose life is what."""
        if not self._ready:
            return []
        ready, self._ready = self._ready, {}
        found = []
        for node in ready:
            target = self._targets.get(node)
            if target is None or not target.outgoing:
                continue
            posts, target.outgoing = target.outgoing, []
            if not target.token:
                self._arm(node, target)
            for batch in _batches(posts):
                found.append((node, Posts(self._life, lives(node), target.session, batch)))
        return found

    def _arm(self, node: NodeId, target: _Target) -> None:
        self._tokens += 1
        target.token, target.settled = self._tokens, False
        for lane in target.lanes.values():
            lane.watched = lane.first if lane.open else 0
        self._out.append(SetTimer(target.pause_s, ProbeDue(node, self._tokens)))

    def probe_due(self, event: ProbeDue, life: int) -> Probe | None:
        """What to ask a node that has settled nothing for a while, of a lane or at all."""
        target = self._targets.get(event.peer)
        if target is None or target.token != event.token:
            return None
        target.token = 0
        if not target.open:
            target.pause_s = PROBE_FIRST_S
            return None
        # A lane that was just begun is asked about as well if no other speaks for the node.
        asked = tuple(
            Asked(number, lane.first, lane.last)
            for number, lane in target.lanes.items()
            if lane.open and (not target.settled or lane.watched == lane.first)
        )
        assert len(asked) <= BUS_LANES_MAX
        again_s = PROBE_FIRST_S if target.settled else min(2 * target.pause_s, PROBE_MAX_S)
        target.pause_s = again_s
        self._arm(event.peer, target)
        return Probe(self._life, life, target.session, asked) if asked else None


def _batches(posts: list[Post]) -> list[tuple[Post, ...]]:
    """Posts in runs that fit a message each."""
    if len(posts) == 1:
        return [tuple(posts)]
    batches: list[tuple[Post, ...]] = []
    batch: list[Post] = []
    room = POSTS_BYTES_MAX
    for post in posts:
        room -= len(post.data)
        if batch and (room < 0 or len(batch) >= POSTS_MAX):
            batches.append(tuple(batch))
            batch, room = [], POSTS_BYTES_MAX - len(post.data)
        batch.append(post)
    batches.append(tuple(batch))
    return batches
