"""Places and the forces between them: the cases of serf's `coordinate` package, and our guards."""

from __future__ import annotations

import math
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from swim_bench import ALIVE, LEFT, Bench, node, rumour

from swarmd.mesh.swim import coordinates
from swarmd.mesh.swim.coordinates import (
    COORDINATE_BYTES,
    ERROR_MAX,
    HEIGHT_MIN_S,
    ORIGIN,
    RTT_MAX_S,
    Coordinate,
    Coordinates,
    bare_distance_s,
    decode_coordinate,
    direction,
    distance_s,
    encode_coordinate,
    is_sane,
    pushed,
)
from swarmd.mesh.swim.events import ProbeTimeout, Refused, TrustChanged
from swarmd.mesh.swim.messages import (
    PACKET_HEADER_BYTES_MAX,
    PACKETS,
    Ack,
    Meta,
    Nack,
    Ping,
    PingFor,
    Rumour,
    encode_meta,
    encode_statement,
    make_rumour,
)

ME, PEER = node("me"), node("peer")


def aside() -> tuple[float, ...]:
    return (1.0, 0.0, 0.0)


def at(*axes_s: float, height_s: float = 0.0, adjustment_s: float = 0.0) -> Coordinate:
    return Coordinate(axes_s, height_s, adjustment_s)


def far(name: str, axis_s: float = 0.01) -> Coordinate:
    """Somewhere, told by one who is sure of it."""
    return Coordinate(tuple(axis_s * x for x in direction(node(name), PEER)), error=0.1)


# ---- distances --------------------------------------------------------------------------


def test_a_distance_is_that_of_axes_heights_and_adjustments() -> None:
    a, b = at(-0.5, 1.3, 2.4), at(1.2, -2.3, 3.4)
    assert distance_s(a, a) == 0.0
    assert distance_s(a, b) == distance_s(b, a) == pytest.approx(4.104875150354758)
    a, b = replace(a, height_s=0.7), replace(b, height_s=0.1)
    assert distance_s(a, b) == bare_distance_s(a, b) == pytest.approx(4.104875150354758 + 0.8)
    a, b = replace(a, adjustment_s=0.1), replace(b, adjustment_s=0.2)
    assert distance_s(a, b) == pytest.approx(4.104875150354758 + 0.8 + 0.3)
    assert bare_distance_s(a, b) == pytest.approx(4.104875150354758 + 0.8)


def test_adjustments_that_would_make_a_distance_negative_are_left_out() -> None:
    a, b = at(0.0, 0.0, 0.0, adjustment_s=-9.0), at(0.0, 0.0, 0.5)
    assert distance_s(a, b) == 0.5


# ---- forces -----------------------------------------------------------------------------


def test_a_force_pushes_straight_away_or_pulls_straight_near() -> None:
    moved = pushed(at(0.0, 0.0, 0.0), 5.3, at(0.0, 0.0, 2.9), aside)
    assert moved.axes_s == pytest.approx((0.0, 0.0, -5.3))
    moved = pushed(moved, 2.0, at(3.4, 0.0, -5.3), aside)
    assert moved.axes_s == pytest.approx((-2.0, 0.0, -5.3))
    assert pushed(moved, -2.0, at(3.4, 0.0, -5.3), aside).axes_s == pytest.approx((0.0, 0.0, -5.3))


def test_who_is_at_one_place_parts_aside() -> None:
    moved = pushed(at(0.2, 0.2, 0.2), 1.0, at(0.2, 0.2, 0.2), aside)
    assert moved.axes_s == pytest.approx((1.2, 0.2, 0.2))


def test_a_force_lifts_in_proportion_and_never_below_the_least_height() -> None:
    low = at(0.0, 0.0, 0.0, height_s=HEIGHT_MIN_S)
    above = at(0.0, 0.0, 2.9)
    lifted = pushed(low, 1.3, above, aside)
    assert lifted.height_s == pytest.approx(HEIGHT_MIN_S + HEIGHT_MIN_S * 1.3 / 2.9)
    assert pushed(low, -5.3, above, aside).height_s == HEIGHT_MIN_S


def test_a_height_changes_by_no_more_than_the_force_however_near_the_other_is() -> None:
    tower = at(0.0, 0.0, 2e-6, height_s=9.0)
    lifted = pushed(at(0.0, 0.0, 0.0, height_s=HEIGHT_MIN_S), 0.01, tower, aside)
    assert lifted.height_s == pytest.approx(HEIGHT_MIN_S + 0.01)


@given(st.binary(min_size=1, max_size=9), st.integers(1, 8))
@settings(deadline=None, max_examples=50)
def test_a_direction_follows_from_the_ids_and_has_length_one(name: bytes, dimensions: int) -> None:
    peer = node(name.hex())
    found = direction(ME, peer, dimensions)
    assert len(found) == dimensions
    assert math.hypot(*found) == pytest.approx(1.0)
    assert direction(ME, peer, dimensions) == found
    assert direction(peer, ME, dimensions) != found or dimensions == 1


# ---- one node ---------------------------------------------------------------------------


def test_a_new_node_is_at_the_origin_which_is_no_place() -> None:
    fresh = Coordinates(ME)
    assert fresh.own == ORIGIN
    assert fresh.of(ME) is None
    assert fresh.estimate_s(PEER) is None
    told = decode_coordinate(fresh.told())
    assert told is not None
    assert not told.placed


def test_a_trip_longer_than_the_distance_pushes_away_and_a_shorter_one_pulls() -> None:
    place = Coordinate((0.0, 0.0, 0.001))
    away, near = Coordinates(ME, dimensions=3), Coordinates(ME, dimensions=3)
    assert away.update(PEER, place, 0.002)
    assert away.own.axes_s[2] < 0.0
    assert near.update(PEER, place, 0.0001)
    assert near.own.axes_s[2] > 0.0
    assert away.of(ME) == away.own
    assert away.of(PEER) == place
    assert away.estimate_s(PEER) == distance_s(away.own, place)


@pytest.mark.parametrize("rtt_s", [-0.001, RTT_MAX_S + 0.001, math.inf, -math.inf, math.nan])
def test_an_absurd_trip_changes_nothing(rtt_s: float) -> None:
    one = Coordinates(ME)
    one.update(PEER, far("x"), 0.01)
    before = one.own, one.of(PEER), one.told()
    assert not one.update(PEER, far("y"), rtt_s)
    assert (one.own, one.of(PEER), one.told()) == before


def test_a_trip_of_no_time_is_a_very_short_one() -> None:
    one = Coordinates(ME)
    assert one.update(PEER, far("x"), 0.0)
    assert is_sane(one.own)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -11.0])
@pytest.mark.parametrize("field", [0, 7, "height_s", "adjustment_s", "error"])
def test_what_is_no_place_changes_nothing(field: int | str, value: float) -> None:
    one = Coordinates(ME)
    one.update(PEER, far("x"), 0.01)
    before = one.own, one.of(PEER), one.told()
    place = far("y")
    if isinstance(field, int):
        axes_s = [*place.axes_s]
        axes_s[field] = value
        place = replace(place, axes_s=tuple(axes_s))
    else:
        place = replace(place, **{field: value})
    assert not is_sane(place)
    assert not one.update(PEER, place, 0.01)
    raw = struct.pack(">11f", *place.axes_s, place.height_s, place.adjustment_s, place.error)
    assert decode_coordinate(raw) is None
    assert not one.hear(PEER, raw, 0.01)
    assert (one.own, one.of(PEER), one.told()) == before


def test_a_place_of_another_space_changes_nothing() -> None:
    one = Coordinates(ME)
    assert not one.update(PEER, Coordinate((0.1,) * 7), 0.01)
    assert one.own == ORIGIN


@pytest.mark.parametrize("raw", [b"", bytes(COORDINATE_BYTES + 4), b"x" * 9])
def test_an_answer_of_another_layout_is_let_be(raw: bytes) -> None:
    one = Coordinates(ME)
    assert one.hear(PEER, raw, 0.01)
    assert one.own == ORIGIN
    assert one.of(PEER) is None
    assert decode_coordinate(raw) is None


def test_of_the_last_three_trips_the_median_counts() -> None:
    one = Coordinates(ME)

    def filtered(peer: str, rtt_s: float) -> float:
        return one._note(node(peer), ORIGIN, rtt_s)

    trips = (0.201, 0.200, 0.207, 1.9, 0.203, 0.199, 0.211)
    assert [filtered("x", rtt_s) for rtt_s in trips] == [
        0.201, 0.201, 0.201, 0.207, 0.207, 0.203, 0.203
    ]  # fmt: skip
    assert filtered("y", 0.310) == 0.310
    one.forget(node("x"))
    assert filtered("x", 0.888) == 0.888


def test_only_the_latest_peers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinates, "PEERS_MAX", 3)
    one = Coordinates(ME)
    for name in ("a", "b", "c", "a", "d"):
        one.update(node(name), far(name), 0.01)
    assert [name for name in "abcd" if one.of(node(name))] == ["a", "c", "d"]


def test_who_ends_beyond_reason_begins_anew() -> None:
    one = Coordinates(ME)
    one.own = replace(ORIGIN, axes_s=(math.nan,) * 8)
    assert one.update(PEER, far("x"), 0.25)
    assert one.own == ORIGIN
    assert one.resets == 1
    assert one.update(PEER, far("x"), 0.25)
    assert one.resets == 1
    assert is_sane(one.own)


def test_a_place_survives_the_wire() -> None:
    place = Coordinate((0.25, -0.5, 0.0, 1.0, 2.0, -4.0, 8.0, 0.125), 0.5, -0.25, 1.5)
    raw = encode_coordinate(place)
    assert len(raw) == COORDINATE_BYTES <= 80
    assert decode_coordinate(raw) == place


@given(st.binary(min_size=COORDINATE_BYTES, max_size=COORDINATE_BYTES), st.floats(0.0, 10.0))
@settings(deadline=None, max_examples=300)
def test_whatever_is_told_a_node_is_somewhere(raw: bytes, rtt_s: float) -> None:
    one = Coordinates(ME)
    one.update(node("x"), far("x"), 0.01)
    before = one.own
    if not one.hear(PEER, raw, rtt_s):
        assert one.own == before
    assert is_sane(one.own)
    assert decode_coordinate(one.told()) is not None


# ---- liars ------------------------------------------------------------------------------


def settled() -> Coordinates:
    """One among nine honest peers around it, 10 ms away each."""
    one = Coordinates(ME)
    for turn in range(600):
        one.update(node(f"n{turn % 9}"), far(f"n{turn % 9}"), 0.01)
    assert one.own.error < 0.5
    return one


@pytest.mark.parametrize("error", [0.0, ERROR_MAX])
def test_for_one_answer_who_is_settled_moves_by_what_it_took_at_most(error: float) -> None:
    one = settled()
    before = one.own
    liar = Coordinate((-9.0,) * 8, error=error)
    for rtt_s in (0.001, 0.002, 0.003):
        assert one.update(node("liar"), liar, rtt_s)
    assert math.dist(one.own.axes_s, before.axes_s) <= 3 * 0.003
    assert abs(one.own.height_s - before.height_s) <= 3 * 0.003
    assert abs(one.own.adjustment_s) <= 0.01


def test_one_answer_makes_nobody_unsure() -> None:
    one = settled()
    before = one.own.error
    one.update(node("liar"), Coordinate((-9.0,) * 8, error=0.0), 0.001)
    assert one.own.error - before <= 0.25 * ERROR_MAX


def test_who_was_moved_goes_as_far_as_it_must() -> None:
    """All that it hears contradicts its place: it is the one who is wrong."""
    one = settled()
    one.own = replace(one.own, axes_s=(5.0,) * 8)
    for turn in range(200):
        one.update(node(f"n{turn % 9}"), far(f"n{turn % 9}"), 0.01)
    assert all(distance_s(one.own, far(f"n{n}")) < 0.03 for n in range(9))


# ---- the machine ------------------------------------------------------------------------


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_who_answers_directly_and_in_time_is_measured(bench: Bench) -> None:
    bench.know("x")
    ping = bench.probe()
    bench.now += 0.02
    bench.get("x", Ack(ping.sequence, ping.view, [], coordinate=encode_coordinate(far("x"))))
    heard = bench.machine.coordinate(node("x"))
    assert heard == decode_coordinate(encode_coordinate(far("x")))
    estimate_s = bench.machine.estimate_s(node("x"))
    assert estimate_s is not None
    assert 0.01 < estimate_s < 0.02
    own = bench.machine.coordinate(ME)
    bench.now += 0.4
    bench.get("x", Ack(ping.sequence, ping.view, [], coordinate=encode_coordinate(far("y"))))
    assert bench.machine.coordinate(ME) == own, "the same answer twice"


def test_a_ping_is_answered_with_the_place_and_other_answers_are_not(bench: Bench) -> None:
    bench.know("x", "y")
    bench.get("x", Ping(7, b"", []))
    [ack] = [p for p in bench.sent("x") if isinstance(p, Ack)]
    assert decode_coordinate(ack.coordinate) is not None
    bench.get("x", PingFor(8, ME, []))
    [ack] = [p for p in bench.sent("x") if isinstance(p, Ack)]
    assert ack.coordinate == b""
    bench.get("y", PingFor(9, node("x"), []))
    [ping] = bench.sent("x")
    bench.get("x", Ack(ping.sequence, ping.view, [], coordinate=encode_coordinate(far("x"))))
    [relayed] = bench.sent("y")
    assert (relayed.sequence, relayed.coordinate) == (9, b"")
    assert bench.machine.coordinate(node("x")) is None, "it was another's probe"


def test_what_waited_or_took_another_way_is_not_measured(bench: Bench) -> None:
    bench.know("x", "y", "z")
    ping = bench.probe()
    place = encode_coordinate(far("x"))
    bench.now += bench.config.probe_timeout_s
    bench.handle(ProbeTimeout(ping.sequence))
    helpers = [name for name in "xyz" if bench.sent(name)]
    [target] = set("xyz") - set(helpers)
    bench.get(helpers[0], Ack(ping.sequence, ping.view, [], coordinate=place))
    bench.get(target, Ack(ping.sequence, ping.view, [], coordinate=place))
    assert [name for name in "xyz" if bench.machine.coordinate(node(name))] == []
    assert bench.machine.coordinate(ME) is None


def test_what_waited_behind_a_process_that_stood_still_is_not_measured(bench: Bench) -> None:
    bench.know("x")
    ping = bench.probe()
    bench.now += 5.0
    bench.get("x", Ack(ping.sequence, ping.view, [], coordinate=encode_coordinate(far("x"))))
    assert bench.machine.coordinate(ME) is None
    bench.handle(ProbeTimeout(ping.sequence))
    assert not any(isinstance(p, PingFor | Nack) for p in bench.sent()), "it did answer"


def test_an_absurd_place_is_refused_and_the_answer_counts(bench: Bench) -> None:
    bench.know("x")
    ping = bench.probe()
    bench.now += 0.02
    absurd = struct.pack(">11f", *(math.nan,) * 11)
    assert Refused("absurd") in bench.get("x", Ack(ping.sequence, ping.view, [], coordinate=absurd))
    assert bench.machine.coordinate(ME) is None
    bench.handle(ProbeTimeout(ping.sequence))
    assert bench.effects == [], "it is there all the same"


@pytest.mark.parametrize("how", ["evicted", "left", "moved", "renamed"])
def test_the_place_of_who_is_gone_or_elsewhere_is_forgotten(bench: Bench, how: str) -> None:
    bench.know("x")
    ping = bench.probe()
    bench.now += 0.02
    bench.get("x", Ack(ping.sequence, ping.view, [], coordinate=encode_coordinate(far("x"))))
    if how == "evicted":
        bench.handle(TrustChanged(frozenset({node("x")})))
    elif how == "left":
        bench.tell(rumour(LEFT, "x", 1, by="x"))
    else:
        bench.tell(moved_rumour() if how == "moved" else rumour(ALIVE, "x", 2, "other"))
    assert (bench.machine.coordinate(node("x")) is not None) == (how == "renamed")
    assert bench.machine.coordinate(ME) is not None


def moved_rumour() -> Rumour:
    body = encode_meta(Meta("x", addresses=(("10.0.0.9", 1),)))
    said = encode_statement(ALIVE, node("x"), 2, author=node("x"), body=body)
    return make_rumour(said, bytes(64))


def test_a_packet_with_a_place_and_the_largest_header_keeps_its_budget() -> None:
    header = PACKETS.encode(Ack(2**62, bytes(8), [], bytes(8), bytes(COORDINATE_BYTES)))
    # The list of rumours may need two bytes more for its length.
    assert len(header) + 2 <= PACKET_HEADER_BYTES_MAX


def test_a_place_of_a_later_layout_does_not_spoil_an_answer(bench: Bench) -> None:
    bench.know("x")
    ping = bench.probe()
    bench.now += 0.02
    assert Refused("malformed") not in bench.get(
        "x", Ack(ping.sequence, ping.view, [], coordinate=bytes(99))
    )
    assert bench.machine.coordinate(ME) is None
    bench.handle(ProbeTimeout(ping.sequence))
    assert bench.effects == []
