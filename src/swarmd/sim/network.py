"""A network that loses, repeats, delays, overtakes and cuts, all from the world's seed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from swarmd.sim.world import World


@dataclass(frozen=True, slots=True)
class LinkFaults:
    """What a packet may meet. Probabilities are in 0..1, delays in seconds."""

    loss: float = 0.0
    duplicate: float = 0.0
    delay_min_s: float = 0.0003
    delay_max_s: float = 0.002
    slow: float = 0.0
    slow_max_s: float = 0.5


class Network:
    """Carries messages between named hosts; `deliver` of a host is looked up on arrival.

    `distance_s`: what the way from one host to another takes beside what `faults` say.
    """

    def __init__(self, world: World, faults: LinkFaults | None = None) -> None:
        self.world = world
        self.faults = faults or LinkFaults()
        self._rng = world.rng_for("network")
        self._hosts: dict[Hashable, Callable[[Any, Any], None]] = {}
        self._cut: set[tuple[Hashable, Hashable]] = set()
        self._latest: dict[tuple[Hashable, Hashable], float] = {}
        self.sent = 0
        self.distance_s: Callable[[Hashable, Hashable], float] | None = None

    def attach(self, host: Hashable, deliver: Callable[[Any, Any], None]) -> None:
        """`deliver(source, message)` is called for each message that reaches `host`."""
        self._hosts[host] = deliver

    def detach(self, host: Hashable) -> None:
        """Messages in flight to `host` are lost."""
        self._hosts.pop(host, None)

    def attached(self, host: Hashable) -> bool:
        return host in self._hosts

    def cut(self, a: Iterable[Hashable], b: Iterable[Hashable], *, one_way: bool = False) -> None:
        """Nothing passes from a to b any more, nor back unless `one_way`."""
        left, right = list(a), list(b)
        self._cut.update((x, y) for x in left for y in right)
        if not one_way:
            self._cut.update((y, x) for x in left for y in right)
        self.world.count("one_way_cut" if one_way else "partition")

    def heal(self) -> None:
        self._cut.clear()

    def is_cut(self, source: Hashable, target: Hashable) -> bool:
        return (source, target) in self._cut

    def send(self, source: Hashable, target: Hashable, message: Any) -> None:
        """Send; what becomes of it is the seed's business."""
        self.sent += 1
        faults, rng = self.faults, self._rng
        if rng.random() < faults.loss:
            self.world.count("loss")
            return
        copies = 1
        if rng.random() < faults.duplicate:
            self.world.count("duplicate")
            copies = 2
        for _ in range(copies):
            delay = rng.uniform(faults.delay_min_s, faults.delay_max_s)
            if rng.random() < faults.slow:
                self.world.count("delay")
                delay = rng.uniform(delay, faults.slow_max_s)
            if self.distance_s is not None:
                delay += self.distance_s(source, target)
            self._note_order((source, target), self.world.now + delay)
            self.world.after(delay, self._arrive, source, target, message)

    def _note_order(self, link: tuple[Hashable, Hashable], arrives_at: float) -> None:
        latest = self._latest.get(link, 0.0)
        if arrives_at < latest:
            self.world.count("reorder")
        else:
            self._latest[link] = arrives_at

    def _arrive(self, source: Hashable, target: Hashable, message: Any) -> None:
        if (source, target) in self._cut:
            self.world.count("cut_packet")
            return
        deliver = self._hosts.get(target)
        if deliver is not None:
            deliver(source, message)
