"""The receiving side: from posts that come in order to the subscribers' inboxes. Pure.

Rules:
- Posts of a lane are taken in the order of their numbers, each once. One that came before is
  answered with the result it had; one that comes too early is not taken, and it is said how far
  the lane has come.
- The first post of a lane goes to every subscriber that asks for its topic. Where an inbox has no
  room the lane waits, and with it whatever the same sender publishes next: nobody else does. After
  the sender's patience, counted from when the post came, it is settled without that inbox.
- A subscriber that ends is waited for no more.
- A result is kept until the sender has said that it knows it; of a node that never does, so many.
- A node has a few alarms set, whatever it sends: a daemon has only so many timers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from swarmd.base.ids import NodeId
from swarmd.base.limits import BUS_HELD_BYTES_MAX, BUS_INBOX_BYTES_MAX, BUS_LANE_MESSAGES_MAX
from swarmd.base.machine import Effect, SetTimer
from swarmd.mesh.bus.events import Arrival, Deliver, PatienceOver, Subscribe
from swarmd.mesh.bus.messages import (
    POSTS_MAX,
    SLOW_NAMED_MAX,
    Held,
    Post,
    Posts,
    Probe,
    Result,
    Results,
    Standing,
)
from swarmd.mesh.bus.topics import Filters

GUARDS: Final = frozenset({"take_once", "take_in_order", "wait_for_room", "one_session"})
_MATCHES_MAX: Final = 1_000
# A sender knows most results at once, and says so with what it publishes next.
_RESULTS_MAX: Final = 65_536
# Of results that are told again, to a node at once: it asks for the others later.
_REPEATS_BYTES_MAX: Final = 1_048_576
_RESULT_BYTES: Final = 32
_ALARM_MIN_S: Final = 0.001

_LaneKey = tuple[NodeId, int]


@dataclass(slots=True)
class _Subscriber:
    """`messages` and `size` are of its inbox; `blocked` are the lanes that wait for it."""

    name: str
    asked: tuple[str, ...]
    filters: Filters
    inbox_max: int
    messages: int = 0
    size: int = 0
    blocked: dict[_LaneKey, None] = field(default_factory=dict)

    def has_room(self, size: int) -> bool:
        if self.messages == 0:
            return True
        return self.messages < self.inbox_max and self.size + size <= BUS_INBOX_BYTES_MAX


@dataclass(slots=True)
class _Waiting:
    """A post that is not settled. `left` are those that still lack it, once it was begun."""

    post: Post
    deadline: float
    reached: int = 0
    left: tuple[int, ...] | None = None


@dataclass(slots=True)
class _Lane:
    got: int = 0
    queue: deque[_Waiting] = field(default_factory=deque)
    results: dict[int, Result] = field(default_factory=dict)


@dataclass(slots=True)
class _Source:
    """A node that posts come from."""

    session: int = 0
    lanes: dict[int, _Lane] = field(default_factory=dict)
    # Lanes that wait for an inbox, and until when.
    blocked: dict[int, float] = field(default_factory=dict)
    held_bytes: int = 0
    # Of all lanes together.
    results_kept: int = 0
    results: list[Result] = field(default_factory=list)
    # Told again: each once, by lane and number.
    repeats: dict[tuple[int, int], Result] = field(default_factory=dict)
    repeats_bytes: int = 0
    standing: dict[int, None] = field(default_factory=dict)

    def repeat(self, result: Result) -> bool:
        """Tell a result again; False if that must wait until it is asked for another time."""
        if (result.lane, result.number) in self.repeats:
            return True
        size = _RESULT_BYTES + sum(4 * len(name) for name in result.slow)
        if self.repeats_bytes + size > _REPEATS_BYTES_MAX:
            return False
        self.repeats[result.lane, result.number] = result
        self.repeats_bytes += size
        return True


class Inflow:
    """`out` takes effects. Without a guard one of the promises breaks; for trials only."""

    def __init__(
        self, life: int, out: list[Effect], *, removed_guards: frozenset[str] = frozenset()
    ) -> None:
        assert removed_guards <= GUARDS, removed_guards - GUARDS
        self._life = life
        self._out = out
        self._guards = GUARDS - removed_guards
        self._subscribers: dict[int, _Subscriber] = {}
        self._sources: dict[NodeId, _Source] = {}
        # When timers of a node go off, the first one last. They outlive sessions and lives.
        self._alarms: dict[NodeId, list[float]] = {}
        self._matches: dict[str, tuple[int, ...]] = {}
        # Nodes that are to be told something.
        self._telling: dict[NodeId, None] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits for an inbox."""
        return not any(
            lane.queue for source in self._sources.values() for lane in source.lanes.values()
        )

    # ---- subscribers -----------------------------------------------------------------------

    def add(self, event: Subscribe) -> None:
        self._subscribers[event.number] = _Subscriber(
            event.name, event.filters, Filters(event.filters), event.inbox_max
        )
        self._matches.clear()

    def remove(self, number: int, now: float) -> tuple[str, ...]:
        """What it had asked for; lanes that waited for it go on."""
        subscriber = self._subscribers.pop(number, None)
        if subscriber is None:
            return ()
        self._matches.clear()
        for node, lane in subscriber.blocked:
            self._go_on(node, lane, now)
        return subscriber.asked

    def taken(self, number: int, count: int, size: int, now: float) -> None:
        subscriber = self._subscribers.get(number)
        if subscriber is None:
            return
        subscriber.messages -= count
        subscriber.size -= size
        assert subscriber.messages >= 0
        assert subscriber.size >= 0
        for node, lane in list(subscriber.blocked):
            if subscriber.messages >= subscriber.inbox_max:
                return
            del subscriber.blocked[node, lane]
            self._go_on(node, lane, now)

    # ---- what other nodes say ----------------------------------------------------------------

    def take_posts(self, node: NodeId, message: Posts, now: float) -> None:
        source = self._source(node, message.session)
        if source is None:
            return
        touched: dict[int, None] = {}
        for post in message.posts:
            if self._take(source, post, now):
                touched[post.lane] = None
        for number in touched:
            self._run(node, source, number, now)

    def take_probe(self, node: NodeId, message: Probe) -> None:
        source = self._source(node, message.session)
        if source is None:
            return
        for asked in {one.lane: one for one in message.lanes}.values():
            lane = source.lanes.setdefault(asked.lane, _Lane())
            for number, result in lane.results.items():
                if asked.first <= number <= asked.last and not source.repeat(result):
                    break
            if lane.queue or lane.got < asked.last:
                source.standing[asked.lane] = None

    def new_life(self, node: NodeId) -> None:
        """Another process is there: what the former one had waiting goes nowhere any more."""
        self._sources.pop(node, None)
        for subscriber in self._subscribers.values():
            for key in [key for key in subscriber.blocked if key[0] == node]:
                del subscriber.blocked[key]

    def _source(self, node: NodeId, session: int) -> _Source | None:
        """Where a node stands; None if it says this of a session that is over."""
        source = self._sources.get(node)
        if source is None:
            source = self._sources[node] = _Source(session)
        if session < source.session and "one_session" in self._guards:
            return None
        if session > source.session:
            self.new_life(node)
            source = self._sources[node] = _Source(session)
        self._telling[node] = None
        return source

    def _take(self, source: _Source, post: Post, now: float) -> bool:
        lane = source.lanes.setdefault(post.lane, _Lane())
        while lane.results and (first := next(iter(lane.results))) <= post.done:
            del lane.results[first]
            source.results_kept -= 1
        if post.number <= lane.got and "take_once" in self._guards:
            result = lane.results.get(post.number)
            if result is not None:
                source.repeat(result)
            return False
        early = post.number > lane.got + 1 and "take_in_order" in self._guards
        if early or not self._has_room(source, lane, len(post.data)):
            source.standing[post.lane] = None
            return False
        lane.got = post.number
        source.held_bytes += len(post.data)
        lane.queue.append(_Waiting(post, now + post.patience_ms / 1_000))
        return True

    def _has_room(self, source: _Source, lane: _Lane, size: int) -> bool:
        if len(lane.queue) + len(lane.results) >= BUS_LANE_MESSAGES_MAX:
            return False
        return not source.held_bytes or source.held_bytes + size <= BUS_HELD_BYTES_MAX

    # ---- from lanes to inboxes -----------------------------------------------------------------

    def _go_on(self, node: NodeId, number: int, now: float) -> None:
        source = self._sources.get(node)
        if source is not None and number in source.lanes:
            self._run(node, source, number, now)

    def patience_over(self, event: PatienceOver, now: float) -> None:
        alarms = self._alarms[event.peer]
        alarms.remove(event.due)
        if not alarms:
            del self._alarms[event.peer]
        source = self._sources.get(event.peer)
        if source is None:
            return
        for lane in [lane for lane, deadline in source.blocked.items() if deadline <= now]:
            self._run(event.peer, source, lane, now)
        if source.blocked:
            self._alarm(event.peer, min(source.blocked.values()), now)

    def _alarm(self, node: NodeId, deadline: float, now: float) -> None:
        """Look at what a node has waiting at `deadline`, or before.

        A timer cannot be taken back. So another one is set only if it goes off in half the time
        of the first that runs, or sooner: 60 s and 1 ms are 16 halvings apart.
        """
        alarms = self._alarms.setdefault(node, [])
        due = max(deadline, now + _ALARM_MIN_S)
        if alarms:
            if alarms[-1] <= due:
                return
            due = min(due, max(now + (alarms[-1] - now) / 2, now + _ALARM_MIN_S))
            if alarms[-1] <= due:
                return
        alarms.append(due)
        self._out.append(SetTimer(due - now, PatienceOver(node, due)))

    def _run(self, node: NodeId, source: _Source, number: int, now: float) -> None:
        """Settle posts of a lane from the first on, until one must wait."""
        lane = source.lanes[number]
        self._telling[node] = None
        source.blocked.pop(number, None)
        while lane.queue:
            waiting = lane.queue[0]
            left = self._deliver(waiting)
            if left and now < waiting.deadline:
                self._wait(node, source, waiting, now)
                return
            lane.queue.popleft()
            post = waiting.post
            source.held_bytes -= len(post.data)
            slow = tuple(self._subscribers[one].name for one in left[:SLOW_NAMED_MAX])
            result = Result(number, post.number, waiting.reached, len(left), slow)
            for one in left:
                self._subscribers[one].blocked.pop((node, number), None)
            self._keep(source, lane, result)

    def _keep(self, source: _Source, lane: _Lane, result: Result) -> None:
        lane.results[result.number] = result
        source.results.append(result)
        source.results_kept += 1
        if source.results_kept > _RESULTS_MAX:
            oldest = next(one for one in source.lanes.values() if one.results)
            del oldest.results[next(iter(oldest.results))]
            source.results_kept -= 1

    def _deliver(self, waiting: _Waiting) -> tuple[int, ...]:
        """Put a post into each inbox that has room; the subscribers that still lack it."""
        post = waiting.post
        size = len(post.data)
        asked = waiting.left if waiting.left is not None else self._match(post.topic)
        left = []
        for number in asked:
            subscriber = self._subscribers.get(number)
            if subscriber is None:
                continue
            if not subscriber.has_room(size) and "wait_for_room" in self._guards:
                left.append(number)
                continue
            subscriber.messages += 1
            subscriber.size += size
            waiting.reached += 1
            arrival = Arrival(post.topic, post.sender, post.data)
            self._out.append(Deliver(number, arrival))
        waiting.left = tuple(left)
        return waiting.left

    def _wait(self, node: NodeId, source: _Source, waiting: _Waiting, now: float) -> None:
        lane = waiting.post.lane
        for number in waiting.left or ():
            self._subscribers[number].blocked[node, lane] = None
        source.blocked[lane] = waiting.deadline
        self._alarm(node, waiting.deadline, now)

    def _match(self, topic: str) -> tuple[int, ...]:
        found = self._matches.get(topic)
        if found is None:
            if len(self._matches) >= _MATCHES_MAX:
                self._matches.clear()
            found = self._matches[topic] = tuple(
                number for number, one in self._subscribers.items() if one.filters.fit(topic)
            )
        return found

    # ---- answering -----------------------------------------------------------------------------

    def flush(self, lives: Callable[[NodeId], int]) -> list[tuple[NodeId, Results | Standing]]:
        """What nodes are to be told; `lives` tells whose life is what, 0 if it is not known."""
        if not self._telling:
            return []
        telling, self._telling = self._telling, {}
        found: list[tuple[NodeId, Results | Standing]] = []
        for node in telling:
            source, life = self._sources.get(node), lives(node)
            if source is None:
                continue
            results, source.results = [*source.repeats.values(), *source.results], []
            source.repeats, source.repeats_bytes = {}, 0
            standing, source.standing = source.standing, {}
            if not life:
                continue
            for begin in range(0, len(results), POSTS_MAX):
                batch = tuple(results[begin : begin + POSTS_MAX])
                found.append((node, Results(self._life, life, source.session, batch)))
            if standing:
                lanes = tuple(Held(number, source.lanes[number].got) for number in standing)
                found.append((node, Standing(self._life, life, source.session, lanes)))
        return found
