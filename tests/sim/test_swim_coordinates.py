"""Network coordinates of many: how well they tell round trips, as serf measures its own.

The first half lets places alone meet over given round trips, with serf's topologies and bounds; the
second runs members, whose probes measure a network that has such distances.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import pytest
from hash_seeds import printed_whatever_the_hash_seed

from swarmd.base.rng import make_rng
from swarmd.mesh.swim.coordinates import (
    Coordinate,
    Coordinates,
    decode_coordinate,
    distance_s,
    encode_coordinate,
)
from swarmd.mesh.swim.machine import SwimMachine
from swarmd.mesh.swim.messages import PACKET_BYTES_MAX, Ack, Gossip, Nack, Ping, PingFor
from swarmd.sim.network import LinkFaults
from swarmd.sim.swim import SwimWorld, node_id
from swarmd.wire.codec import Family, Growing

Trips = list[list[float]]


# ---- places alone -----------------------------------------------------------------------


def trips(count: int, rtt_s: Callable[[int, int], float]) -> Trips:
    """The same both ways; `rtt_s` is asked for i < j."""
    return [
        [0.0 if i == j else rtt_s(min(i, j), max(i, j)) for j in range(count)] for i in range(count)
    ]


def line(count: int, spacing_s: float) -> Trips:
    return trips(count, lambda i, j: (j - i) * spacing_s)


def grid(count: int, spacing_s: float) -> Trips:
    side = math.isqrt(count)
    return trips(count, lambda i, j: spacing_s * math.dist(divmod(i, side), divmod(j, side)))


def split(count: int, near_s: float, far_s: float) -> Trips:
    half = count // 2
    return trips(count, lambda i, j: near_s + (far_s if i <= half < j else 0.0))


def circle(count: int, radius_s: float) -> Trips:
    """The first is as far from all others: above the middle of the circle."""

    def rtt_s(i: int, j: int) -> float:
        return 2 * radius_s if i == 0 else 2 * radius_s * abs(math.sin(math.pi * (i - j) / count))

    return trips(count, rtt_s)


def scattered(count: int, mean_s: float, deviation_s: float) -> Trips:
    rng = make_rng("scattered")
    drawn = {(i, j): rng.gauss(mean_s, deviation_s) for j in range(count) for i in range(j)}
    return trips(count, lambda i, j: drawn[i, j])


def everybody(count: int, dimensions: int = 8) -> list[Coordinates]:
    return [Coordinates(node_id(f"n{n}"), dimensions=dimensions) for n in range(count)]


def meet(places: Sequence[Coordinates], truth: Trips, rounds: int, seed: int = 1) -> None:
    """In each round everyone asks another one."""
    rng = make_rng(seed)
    for _ in range(rounds):
        for i, one in enumerate(places):
            j = rng.randrange(len(places))
            if j != i:
                assert one.update(node_id(f"n{j}"), places[j].own, truth[i][j])


def errors(places: Sequence[Coordinates], truth: Trips) -> list[float]:
    """How far each estimate is off, as a part of the trip."""
    return [
        abs(distance_s(places[i].own, places[j].own) - truth[i][j]) / truth[i][j]
        for i in range(len(places))
        for j in range(i)
    ]


@pytest.mark.parametrize(
    ("truth", "mean_max", "most_max"),
    [
        pytest.param(line(10, 0.010), 0.0031, 0.0130, id="line"),
        pytest.param(grid(25, 0.010), 0.0016, 0.0230, id="grid"),
        pytest.param(split(25, 0.001, 0.010), 0.000060, 0.00048, id="split"),
        pytest.param(scattered(25, 0.100, 0.010), 0.075, 0.33, id="random"),
    ],
)
def test_estimates_are_as_good_as_those_of_serf(
    truth: Trips, mean_max: float, most_max: float
) -> None:
    places = everybody(len(truth))
    meet(places, truth, 1_000, seed=2)
    off = errors(places, truth)
    assert sum(off) / len(off) <= mean_max
    assert max(off) <= most_max


@pytest.mark.long
def test_who_is_far_from_all_alike_stands_high() -> None:
    """Two axes hold the circle exactly; the first is above its middle."""
    radius_s = 0.100
    truth = circle(25, radius_s)
    places = everybody(25, 2)
    meet(places, truth, 1_000, seed=2)
    assert places[0].own.height_s >= 0.97 * radius_s
    assert max(one.own.height_s for one in places[1:]) <= 0.03 * radius_s
    off = errors(places, truth)
    assert sum(off) / len(off) <= 0.0028
    assert max(off) <= 0.064


@pytest.mark.long
def test_gravity_pulls_all_to_the_middle() -> None:
    """Four in a square that begins beside the origin."""
    side_s = 0.500
    truth = trips(4, lambda i, j: side_s * (math.sqrt(2) if i % 2 == j % 2 == 0 else 1.0))
    places = everybody(4, 2)
    for one, axes_s in zip(
        places, ((0, 0), (0, side_s), (side_s,) * 2, (side_s,) * 2), strict=True
    ):
        one.own = Coordinate((float(axes_s[0]), float(axes_s[1])))

    def off_s() -> float:
        axes = list(zip(*(one.own.axes_s for one in places), strict=True))
        return math.hypot(*((min(axis) + max(axis)) / 2 for axis in axes))

    meet(places, truth, 1_000)
    before_s = off_s()
    meet(places, truth, 10_000, seed=2)
    assert off_s() <= 0.8 * before_s


# ---- liars ------------------------------------------------------------------------------


def lied_to(
    truth: Trips, place: Callable[[Coordinates], Coordinate], delay_s: float, liars: int = 1
) -> list[Coordinates]:
    """The honest, after the last of `truth` have lied to them for as long as they could."""
    honest = len(truth) - liars
    places = everybody(honest)
    meet(places, truth, 300)
    rng = make_rng(1)
    for _ in range(1_000):
        for i, one in enumerate(places):
            j = rng.randrange(len(truth))
            if j >= honest:
                told = decode_coordinate(encode_coordinate(place(one)))
                if told is not None:
                    one.update(node_id(f"n{j}"), told, truth[i][j] + delay_s)
            elif j != i:
                one.update(node_id(f"n{j}"), places[j].own, truth[i][j])
    return places


LAN = grid(16, 0.001)
# Where a liar says that it is, to whom; and how long it lets an answer wait.
LIES: dict[str, tuple[Callable[[Coordinates], Coordinate], float]] = {
    "far away": (lambda one: Coordinate((9.9,) * 8, error=0.0), 0.0),
    "far away, and slow": (lambda one: Coordinate((9.9,) * 8, error=0.0), 0.4),
    "here, and slow": (lambda one: Coordinate(one.own.axes_s, one.own.height_s, 0.0, 0.0), 0.4),
    "high above": (lambda one: Coordinate(one.own.axes_s, 9.9, 0.0, 0.0), 0.0),
    "adjusted": (lambda one: Coordinate(one.own.axes_s, 0.0, 9.9, 0.0), 0.0),
    "behind": (
        lambda one: Coordinate(tuple(x - 0.01 for x in one.own.axes_s), 0.0, 0.0, 0.0), 0.4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_one_liar_among_sixteen_spoils_the_estimates_of_nobody_else(lie: str) -> None:
    place, delay_s = LIES[lie]
    places = lied_to(LAN, place, delay_s)
    off = errors(places, LAN)
    assert median(off) <= 0.25
    assert max(off) <= 2.0
    assert max(one.own.error for one in places) <= 0.75
    assert max(abs(axis_s) for one in places for axis_s in one.own.axes_s) <= 0.05
    assert not any(one.resets for one in places)


# ---- members ----------------------------------------------------------------------------


class EarlierAck(Growing, frozen=True, tag=3):
    """As builds answer that know of no coordinates."""

    sequence: int
    view: bytes
    rumours: list[bytes]


class EarlierFamily(Family):
    def __init__(self) -> None:
        kinds = (Ping, PingFor, EarlierAck, Nack, Gossip)
        super().__init__("swim-packet", *kinds, message_bytes_max=PACKET_BYTES_MAX)

    def encode(self, message: Any) -> bytes:
        if isinstance(message, Ack):
            message = EarlierAck(message.sequence, message.view, message.rumours)
        return super().encode(message)

    def decode(self, raw: bytes) -> Any:
        message = super().decode(raw)
        if isinstance(message, EarlierAck):
            return Ack(message.sequence, message.view, message.rumours)
        return message


class EarlierMachine(SwimMachine):
    packets = EarlierFamily()


class Far(SwimWorld):
    """Members between which packets take half of what `truth` says; `older` know no coordinates."""

    def __init__(self, truth: Trips, *, older: int = 0, **more: Any) -> None:
        self.hosts = [f"n{n}" for n in range(len(truth))]
        super().__init__(1, self.hosts, **more)
        self.truth, self.older = truth, self.hosts[:older]
        places = {name: number for number, name in enumerate(self.hosts)}
        self.network.distance_s = lambda a, b: truth[places[str(a)]][places[str(b)]] / 2

    def build_of(self, name: str) -> type[SwimMachine]:
        return EarlierMachine if name in self.older else super().build_of(name)

    def machine_of(self, name: str) -> SwimMachine:
        machine = self.nodes[name].machine
        assert machine is not None
        return machine

    def place(self, name: str) -> Coordinate | None:
        return self.machine_of(name).coordinate(self.nodes[name].node_id)

    def errors(self) -> list[float]:
        """As `errors` above, of what packets take on average; by what each says of its place."""
        off = []
        for i, a in enumerate(self.hosts):
            for j, b in enumerate(self.hosts[:i]):
                here, there = self.place(a), self.place(b)
                assert here is not None
                assert there is not None
                faults = self.network.faults
                rtt_s = self.truth[i][j] + faults.delay_min_s + faults.delay_max_s
                off.append(abs(distance_s(here, there) - rtt_s) / rtt_s)
        return off


@pytest.mark.parametrize(
    ("truth", "median_max"),
    [
        pytest.param(line(8, 0.010), 0.10, id="line"),
        pytest.param(grid(16, 0.010), 0.10, id="grid"),
        pytest.param(split(8, 0.004, 0.040), 0.10, id="split"),
        pytest.param(scattered(8, 0.050, 0.005), 0.20, id="random"),
    ],
)
def test_members_learn_how_far_they_are_by_their_probes(truth: Trips, median_max: float) -> None:
    """In four minutes; each way takes up to 0.5 ms more, and some packets are lost or late."""
    far = Far(truth, faults=LinkFaults(0.01, 0.0, 0.0001, 0.0005, slow=0.01))
    far.start_all()
    far.run_for(240.0)
    assert median(far.errors()) <= median_max
    assert far.world.counts["death"] == 0
    estimate_s = far.machine_of("n0").estimate_s(node_id("n1"))
    assert estimate_s is not None
    assert estimate_s == pytest.approx(truth[0][1], rel=0.75)


def test_a_lone_member_has_no_place_and_a_new_one_finds_its_own() -> None:
    truth = line(5, 0.020)
    far = Far(truth)
    far.start("n0")
    far.run_for(20.0)
    assert far.place("n0") is None
    assert far.machine_of("n0").estimate_s(node_id("n0")) is None
    for name in far.hosts[1:4]:
        far.start(name, "n0")
    far.run_for(120.0)
    assert far.place("n0") is not None
    far.start("n4", "n0")
    far.run_for(60.0)
    assert median(far.errors()) <= 0.2


def test_builds_without_coordinates_have_none_and_disturb_nobody() -> None:
    far = Far(line(6, 0.010), older=2)
    far.start_all()
    far.run_for(120.0)
    assert not far.disagreements()
    assert not far.world.violations
    newer = far.hosts[2:]
    for name in newer:
        machine = far.machine_of(name)
        assert all(machine.estimate_s(node_id(other)) is None for other in far.older)
        assert sum(machine.estimate_s(node_id(other)) is not None for other in newer) >= 2


def test_what_coordinates_cost_stays_within_the_budget() -> None:
    """Of an idle member; to each packet the transport adds 33 bytes, UDP and IP 28."""
    sizes: list[int] = []

    class Counting(SwimWorld):
        def _send(self, node: Any, effect: Any) -> None:
            sizes.append(len(effect.message))
            super()._send(node, effect)

    sim = Counting(1, [f"n{n}" for n in range(5)])
    sim.start_all()
    sim.run_for(30.0)
    sizes.clear()
    sim.run_for(100.0)
    assert len(sizes) / 5 / 100.0 <= 2.2
    assert (sum(sizes) + 61 * len(sizes)) / 5 / 100.0 <= 400


def test_one_seed_is_one_place_whatever_the_hash_seed() -> None:
    script = (
        "from swarmd.sim.swim import run_seed; world = run_seed(3)\n"
        "print([(n.name, n.machine.coordinate(n.node_id)) for n in world.running()])"
    )
    assert "Coordinate(" in printed_whatever_the_hash_seed(script)
