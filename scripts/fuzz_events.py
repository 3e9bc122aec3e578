"""Targets about user events: the event itself, what push-pull tells, and the file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from fuzz_inputs import packed, unpacked
from fuzz_target import Target, always

from swarmd.base.disk import open_body, seal_body
from swarmd.mesh.events.machine import EventsMachine
from swarmd.mesh.events.messages import decode_event, decode_told, encode_said, make_event
from swarmd.mesh.events.service import load_kept
from swarmd.sim.disk import SimDisk
from swarmd.sim.swim import SimSigner, node_id
from swarmd.sim.world import World
from swarmd.wire.codec import encode_struct

_PEER = node_id("peer")


def _event(time: int) -> bytes:
    said = encode_said(time, _PEER, "deploy", "v2", 1)
    return make_event(said, SimSigner(_PEER).sign_event(said)).raw


def _machine(hear: Callable[[EventsMachine, bytes, float], Any]) -> Callable[[], Any]:
    def make() -> Callable[[bytes], Any]:
        me = node_id("me")
        machine = EventsMachine(me, SimSigner(me), 0.0, founder=True)
        ticks = itertools.count(1)
        return lambda raw: hear(machine, raw, next(ticks) / 100)

    return make


def _told(machine: EventsMachine, raw: bytes, now: float) -> None:
    decode_told(machine.told(raw))
    machine.hear_told(raw, now, answer=True)
    decode_told(raw)


def _file(raw: bytes) -> None:
    disk = SimDisk(World(0), "events")
    disk.replace("events", raw)
    load_kept(disk)
    open_body("events", 1, raw, source="events")  # What is damaged is a newcomer's, and no error.


def user_events() -> Iterator[Target]:
    events = [_event(1), _event(2**40)]
    other = EventsMachine(_PEER, SimSigner(_PEER), 0.0, founder=True)
    for one in events:
        other.hear(one, 1.0)
    asked = EventsMachine(_PEER, SimSigner(_PEER), 0.0).told()
    told = [other.told(asked), asked]
    kept = other.kept()
    assert kept is not None
    saved = encode_struct((kept.time, [one.raw for one in kept.events]))  # type: ignore[arg-type]
    yield Target(
        "events.event",
        always(decode_event),
        events,
        covers=("mesh.events.messages.decode_event",),
        dress=packed,
        values=[unpacked(raw) for raw in events],
    )
    yield Target(
        "events.heard",
        _machine(lambda machine, raw, now: machine.hear(raw, now)),
        events,
        dress=packed,
        values=[unpacked(raw) for raw in events],
        renewed_after=500,
    )
    yield Target(
        "events.told",
        _machine(_told),
        told,
        covers=("mesh.events.messages.decode_told",),
        dress=packed,
        values=[unpacked(raw) for raw in told],
        renewed_after=500,
    )
    yield Target(
        "events.file",
        always(_file),
        [seal_body("events", 1, saved)],
        covers=("mesh.events.service.load_kept",),
        dress=lambda value: seal_body("events", 1, packed(value)),
        values=[unpacked(saved)],
    )
