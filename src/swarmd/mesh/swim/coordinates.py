"""Network coordinates: each member has a place such that distances are round trip times.

Each answered probe is a spring between two places: longer than it should be it pulls the prober
towards the one that answered, shorter it pushes it away, and the more the surer that one is of its
own place (Dabek, Cox, Kaashoek and Morris, "Vivaldi", 2004). The height stands for what every path
of a member has in common, its own link. From "Network Coordinates in the Wild" (Ledlie, Gardner
and Seltzer, 2007), with serf's constants: of the last three round trips to a peer the median
counts, and a little gravity keeps all places around the origin. The adjustment makes good on
average what no such space can hold (Lee and others, "On Suitability of Euclidean Embedding", 2010).

Members may lie about their place, and may let answers wait. So:
- What is no place is refused as a whole, and changes nothing.
- Whoever is settled moves for one answer by a part of what answers usually take, at most, wherever
  the peer says it is and however long it waited. Only who is wrong about most of those it asked
  last, as one is that has just come or was moved, goes as far as it must.
- One answer counts for an error of ERROR_MAX at most, so that one peer makes nobody unsure.
- Who ends beyond all reason begins at the origin again.
Where the liars are few the others hold each other in place; only what is asked of a liar is a lie.

Nothing here draws by lot: members that are at one place part in a direction that follows from
their ids.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from swarmd.base.ids import NodeId, digest

DIMENSIONS: Final = 8
COORDINATE_BYTES: Final = 4 * (DIMENSIONS + 3)
# Whose filter and place are kept: the most recent. Of more members each is asked so seldom that
# the trips before would tell of another day.
PEERS_MAX: Final = 1_024
# An error of 1 means: as wrong as the distance is long.
ERROR_MAX: Final = 1.5
RTT_MAX_S: Final = 10.0
# On each axis, and for a height or an adjustment.
REACH_MAX_S: Final = 10.0
HEIGHT_MIN_S: Final = 10e-6

_ERROR_SHARE: Final = 0.25
_FORCE_SHARE: Final = 0.25
_FILTER_SAMPLES: Final = 3
_ADJUSTMENT_SAMPLES: Final = 20
_GRAVITY_S: Final = 150.0
# Of so many peers, those asked last, more than half must contradict a place for it to be given up.
_RECENT: Final = 16
_LOST: Final = 1.0
# Shorter is no distance.
_LEAST: Final = 1e-6
_LAYOUT: Final = struct.Struct(f">{DIMENSIONS + 3}f")


@dataclass(frozen=True, slots=True)
class Coordinate:
    """A place. `error` says how far its owner trusts it: 0 fully, ERROR_MAX not at all."""

    axes_s: tuple[float, ...] = (0.0,) * DIMENSIONS
    height_s: float = HEIGHT_MIN_S
    adjustment_s: float = 0.0
    error: float = ERROR_MAX

    @property
    def placed(self) -> bool:
        """False at the origin, where everybody begins: it says nothing of its owner yet."""
        return any(self.axes_s)


ORIGIN: Final = Coordinate()


def is_sane(one: Coordinate) -> bool:
    """False for what no member can arrive at: infinite, no number, or beyond all reason."""
    reach = (*one.axes_s, one.height_s, one.adjustment_s)
    # Written so that a NaN fails each.
    return (
        all(abs(value) <= REACH_MAX_S for value in reach)
        and one.height_s >= 0.0
        and 0.0 <= one.error <= ERROR_MAX
    )


def bare_distance_s(a: Coordinate, b: Coordinate) -> float:
    """The distance without adjustments, in seconds."""
    return math.dist(a.axes_s, b.axes_s) + a.height_s + b.height_s


def distance_s(a: Coordinate, b: Coordinate) -> float:
    """The round trip time that two places stand for, in seconds."""
    bare_s = bare_distance_s(a, b)
    adjusted_s = bare_s + a.adjustment_s + b.adjustment_s
    return adjusted_s if adjusted_s > 0.0 else bare_s


def pushed(
    one: Coordinate, force_s: float, other: Coordinate, aside: Callable[[], tuple[float, ...]]
) -> Coordinate:
    """`one` moved by `force_s` seconds away from `other`, or towards it where that is negative.

    Args:
        aside: a unit vector, the way to go where the two are at one place.
    """
    apart_s = math.dist(one.axes_s, other.axes_s)
    if apart_s <= _LEAST:
        axes_s = tuple(x + force_s * unit for x, unit in zip(one.axes_s, aside(), strict=True))
        return replace(one, axes_s=axes_s)
    step = force_s / apart_s
    axes_s = tuple(x + step * (x - y) for x, y in zip(one.axes_s, other.axes_s, strict=True))
    # In the paper a height counts as one more axis, along which nothing moves by more than the
    # force; serf divides by the distance of the axes alone, which may be next to nothing.
    rise_s = max(-abs(force_s), min(abs(force_s), (one.height_s + other.height_s) * step))
    return replace(one, axes_s=axes_s, height_s=max(HEIGHT_MIN_S, one.height_s + rise_s))


def direction(me: NodeId, peer: NodeId, dimensions: int = DIMENSIONS) -> tuple[float, ...]:
    """A unit vector that follows from two ids."""
    drawn = struct.unpack(">8i", digest(b"aside", me, peer))[:dimensions]
    length = math.hypot(*drawn)
    if length == 0.0:
        return (1.0, *(0.0,) * (dimensions - 1))
    return tuple(value / length for value in drawn)


def encode_coordinate(one: Coordinate) -> bytes:
    """COORDINATE_BYTES bytes: axes, height, adjustment and error as 32-bit floats."""
    return _LAYOUT.pack(*one.axes_s, one.height_s, one.adjustment_s, one.error)


def decode_coordinate(raw: bytes) -> Coordinate | None:
    """The place in `raw`; None if it is none, or has another size."""
    if len(raw) != COORDINATE_BYTES:
        return None
    *axes_s, height_s, adjustment_s, error = _LAYOUT.unpack(raw)
    found = Coordinate(tuple(axes_s), height_s, adjustment_s, error)
    return found if is_sane(found) else None


@dataclass(frozen=True, slots=True)
class _Peer:
    """What its last answers took, the oldest first, and their median; where it said it was.

    `wrong`: by what part of the trip the distance was off, ERROR_MAX at most.
    """

    trips_s: tuple[float, ...]
    trip_s: float
    place: Coordinate
    wrong: float


class Coordinates:
    """Where one node is, and where it heard that others are.

    Args:
        dimensions: how many axes; a member has DIMENSIONS.
    """

    def __init__(self, me: NodeId, *, dimensions: int = DIMENSIONS) -> None:
        self._me = me
        self._origin = Coordinate((0.0,) * dimensions)
        self._peers: dict[NodeId, _Peer] = {}
        self._misses_s = [0.0] * _ADJUSTMENT_SAMPLES
        self._next_miss = 0
        self._told = b""
        self.own = self._origin
        self.resets = 0

    # ---- what may be asked ------------------------------------------------------------

    def told(self) -> bytes:
        """This node's place, for an answer."""
        if not self._told:
            self._told = encode_coordinate(self.own)
        return self._told

    def of(self, node_id: NodeId) -> Coordinate | None:
        """A member's place as far as it was heard; None if it was not, or has none yet."""
        peer = self._peers.get(node_id)
        place = self.own if node_id == self._me else peer.place if peer is not None else None
        return place if place is not None and place.placed else None

    def estimate_s(self, node_id: NodeId) -> float | None:
        """The round trip to another member in seconds; None if either has no place yet."""
        mine, theirs = self.of(self._me), self.of(node_id)
        if mine is None or theirs is None or node_id == self._me:
            return None
        return distance_s(mine, theirs)

    # ---- what moves it ----------------------------------------------------------------

    def begin_at(self, place: Coordinate) -> None:
        """Start where this node was before."""
        self.own, self._told = place, b""

    def hear(self, peer: NodeId, raw: bytes, rtt_s: float) -> bool:
        """Take an answer that came with a place; False if it is refused, and nothing is changed.

        An answer without one, or with one of another layout, is of another build: it is let be.
        """
        if len(raw) != COORDINATE_BYTES:
            return True
        place = decode_coordinate(raw)
        return place is not None and self.update(peer, place, rtt_s)

    def update(self, peer: NodeId, place: Coordinate, rtt_s: float) -> bool:
        """Move for a peer at `place` that answered in `rtt_s`; False if either is absurd."""
        same_space = len(place.axes_s) == len(self.own.axes_s)
        if not same_space or not is_sane(place) or not 0.0 <= rtt_s <= RTT_MAX_S:
            return False
        trip_s = self._note(peer, place, rtt_s)
        miss_max_s = self._miss_max_s()
        self._spring(peer, place, trip_s, miss_max_s)
        self._adjust(place, trip_s, miss_max_s)
        self._fall()
        if not is_sane(self.own):
            self.resets += 1
            self._misses_s = [0.0] * _ADJUSTMENT_SAMPLES
            self.own = self._origin
        self._told = b""
        return True

    def forget(self, peer: NodeId) -> None:
        """Drop what was heard of a peer: it is gone, or elsewhere."""
        self._peers.pop(peer, None)

    def _note(self, peer: NodeId, place: Coordinate, rtt_s: float) -> float:
        """Take down an answer; the median of the last few trips to its sender, with this one."""
        known = self._peers.pop(peer, None)
        before = () if known is None else known.trips_s
        trips_s = (*before, rtt_s)[-_FILTER_SAMPLES:]
        trip_s = max(_LEAST, sorted(trips_s)[len(trips_s) // 2])
        wrong = min(ERROR_MAX, abs(trip_s - distance_s(self.own, place)) / trip_s)
        self._peers[peer] = _Peer(trips_s, trip_s, place, wrong)
        if len(self._peers) > PEERS_MAX:
            del self._peers[next(iter(self._peers))]
        return trip_s

    def _miss_max_s(self) -> float:
        """What one answer may count for, by those who were asked last, each once.

        RTT_MAX_S for who is lost; else a trip that is longer than three in four are.
        """
        recent = list(islice(reversed(self._peers.values()), _RECENT))
        others = len(recent) - 1
        if sorted(one.wrong for one in recent)[others // 2] >= _LOST:
            return RTT_MAX_S
        return sorted(one.trip_s for one in recent)[3 * others // 4]

    def _spring(self, peer: NodeId, place: Coordinate, trip_s: float, miss_max_s: float) -> None:
        own = self.own
        miss_s = trip_s - distance_s(own, place)
        # Who is settled takes nobody for surer than itself: it costs nothing to say so.
        settled = miss_max_s < RTT_MAX_S
        theirs = max(own.error, place.error) if settled else place.error
        weight = own.error / max(_LEAST, own.error + theirs)
        share = _ERROR_SHARE * weight
        wrong = min(ERROR_MAX, abs(miss_s) / trip_s)
        force_s = _FORCE_SHARE * weight * max(-miss_max_s, min(miss_max_s, miss_s))
        moved = pushed(own, force_s, place, lambda: self._aside(peer))
        self.own = replace(moved, error=wrong * share + own.error * (1.0 - share))

    def _adjust(self, place: Coordinate, trip_s: float, miss_max_s: float) -> None:
        """Half of the mean miss: the other half is the peer's to make good."""
        miss_s = trip_s - bare_distance_s(self.own, place)
        self._misses_s[self._next_miss] = max(-miss_max_s, min(miss_max_s, miss_s))
        self._next_miss = (self._next_miss + 1) % _ADJUSTMENT_SAMPLES
        mean_s = sum(self._misses_s) / _ADJUSTMENT_SAMPLES
        self.own = replace(self.own, adjustment_s=mean_s / 2.0)

    def _fall(self) -> None:
        far_s = distance_s(self._origin, self.own)
        force_s = -((far_s / _GRAVITY_S) ** 2)
        self.own = pushed(self.own, force_s, self._origin, lambda: self._aside(self._me))

    def _aside(self, peer: NodeId) -> tuple[float, ...]:
        return direction(self._me, peer, len(self.own.axes_s))
