"""Whatever a peer sends, and whatever the store holds, comes out as a named error."""

from __future__ import annotations

import contextlib

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.base.errors import CorruptFile, MalformedMessage
from swarmd.base.ids import node_id_of
from swarmd.base.rng import make_rng
from swarmd.tasks.config import TasksConfig
from swarmd.tasks.events import FromWorker, Liveness, TookOffice
from swarmd.tasks.machine import CoordinatorMachine
from swarmd.tasks.messages import (
    TASK,
    Assign,
    HandBack,
    HandedItem,
    Heartbeat,
    Hello,
    Renewed,
    ResultItem,
    Results,
    Settled,
)
from swarmd.tasks.office import decode_manifest
from swarmd.tasks.spec import Inline, decode_assignment, decode_job, decode_task
from swarmd.tasks.worker.machine import FromCoordinator, WorkerMachine

PEER = node_id_of(b"peer")
SEEDS = [
    TASK.encode(Hello(5)),
    TASK.encode(Heartbeat(5, b"b", 1, (1,), (2,), (3,), True)),
    TASK.encode(Results(5, b"b", (ResultItem("t", 3, True, Inline(b"\x01")),))),
    TASK.encode(HandBack(5, b"b", (HandedItem("t", 3, True),))),
]


@given(st.binary(max_size=200) | st.sampled_from(SEEDS), st.integers(0, 60), st.binary(max_size=4))
@settings(max_examples=500)
def test_any_bytes_decode_or_are_refused(raw: bytes, at: int, patch: bytes) -> None:
    changed = raw[:at] + patch + raw[at + len(patch) :]
    with contextlib.suppress(MalformedMessage):
        TASK.decode(changed)
    with contextlib.suppress(MalformedMessage):
        decode_manifest(changed)
    for decode in (decode_task, decode_assignment, decode_job):
        with contextlib.suppress(CorruptFile):
            decode(changed)


@given(
    st.recursive(
        st.none() | st.integers() | st.binary(max_size=9) | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=6),
        max_leaves=20,
    )
)
@settings(max_examples=300)
def test_any_value_decodes_or_is_refused(value: object) -> None:
    try:
        raw = b"\x01" + msgspec.msgpack.encode(value)
    except OverflowError:
        return  # Larger than msgpack holds.
    with contextlib.suppress(MalformedMessage):
        TASK.decode(raw)


FENCES = st.integers(0, 12)
BOOTS = st.sampled_from([b"b", b"c", b""])
IDS = st.sampled_from(["t", "u", "", "\0"])
RESULTS = st.lists(st.builds(ResultItem, IDS, FENCES, st.booleans()), max_size=4).map(tuple)
HANDED = st.lists(st.builds(HandedItem, IDS, FENCES, st.booleans()), max_size=4).map(tuple)
FROM_WORKERS = st.one_of(
    st.builds(
        Heartbeat, FENCES, BOOTS, FENCES, st.lists(FENCES, max_size=4).map(tuple),
        st.lists(FENCES, max_size=4).map(tuple), st.lists(FENCES, max_size=4).map(tuple),
        st.booleans(),
    ),
    st.builds(Results, FENCES, BOOTS, RESULTS),
    st.builds(HandBack, FENCES, BOOTS, HANDED),
)  # fmt: skip


@given(st.lists(FROM_WORKERS, max_size=20))
@settings(max_examples=200)
def test_no_worker_can_break_a_coordinator(messages: list[object]) -> None:
    machine = CoordinatorMachine(PEER, b"s" * 32, TasksConfig(), make_rng(1))
    members = ((PEER, Liveness.ALIVE),)
    machine.handle(TookOffice(5, 0, members=members), 0.0)
    for now, message in enumerate(messages):
        machine.handle(FromWorker(PEER, message), float(now))  # type: ignore[arg-type]


FROM_COORDINATORS = st.one_of(
    st.builds(Hello, FENCES),
    st.builds(Renewed, FENCES, BOOTS, FENCES),
    st.builds(Settled, FENCES, BOOTS, st.lists(FENCES, max_size=4).map(tuple)),
    st.builds(Assign, FENCES, BOOTS, st.just(())),
)


@given(st.lists(FROM_COORDINATORS, max_size=20))
@settings(max_examples=200)
def test_no_coordinator_can_break_a_worker(messages: list[object]) -> None:
    machine = WorkerMachine(PEER, b"b", TasksConfig())
    for now, message in enumerate(messages):
        machine.handle(FromCoordinator(PEER, message), float(now))  # type: ignore[arg-type]
