"""What a node does about the ring, from what it knows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swarmd.state.secrets.machine import (
    RETIRE_AFTER_MS,
    Facts,
    Step,
    ring_with,
    steps,
    to_keep,
)
from swarmd.state.secrets.messages import HeldKey
from swarmd.state.secrets.records import RING_KEYS_MAX, RingKey, RingRecord

A, B, C = (bytes([n]) * 16 for n in (1, 2, 3))
OLD = RingKey(A, 0)
NEW = RingKey(B, 10)
FACTS = Facts(
    may_hold=True,
    in_office=True,
    ring=RingRecord((OLD, NEW)),
    held=frozenset((A, B)),
    evicted=0,
    now_ms=1_000,
    sealed_under=frozenset(),
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"ring": None, "held": frozenset()}, []),
        ({"ring": None, "evicted": 3}, []),
        ({"may_hold": False}, [Step.FORGET]),
        ({"may_hold": False, "held": frozenset()}, []),
        ({"held": frozenset((B,))}, [Step.FETCH]),
        ({"held": frozenset((B,)), "in_office": False}, [Step.FETCH]),
        ({"evicted": 1}, [Step.ROTATE]),
        ({"evicted": 1, "in_office": False}, []),
        ({"evicted": 1, "held": frozenset()}, [Step.FETCH, Step.ROTATE]),
        ({"sealed_under": None}, [Step.RESEAL]),
        ({"sealed_under": None, "in_office": False}, []),
        ({"sealed_under": None, "held": frozenset((A,))}, [Step.FETCH]),
        ({"now_ms": 10 + RETIRE_AFTER_MS}, [Step.RETIRE]),
        ({"now_ms": 9 + RETIRE_AFTER_MS}, []),
        ({"now_ms": 10 + RETIRE_AFTER_MS, "sealed_under": frozenset((A,))}, []),
        ({"now_ms": 10 + RETIRE_AFTER_MS, "in_office": False}, []),
    ],
)
def test_steps(changes: dict[str, object], expected: list[Step]) -> None:
    assert steps(replace(FACTS, **changes)) == expected  # type: ignore[arg-type]


def test_a_ring_grows_to_its_bound_and_then_loses_the_oldest() -> None:
    ring = ring_with(None, A, 1, 0)
    assert ring == RingRecord((RingKey(A, 1),), 0)
    for number in range(RING_KEYS_MAX):
        ring = ring_with(ring, bytes([number + 10]) * 16, number, number)
    assert len(ring.keys) == RING_KEYS_MAX
    assert A not in ring.ids
    assert ring.newest.id == bytes([RING_KEYS_MAX + 9]) * 16


def test_keys_are_kept_while_they_are_in_the_ring_or_may_get_into_it() -> None:
    held = {A: HeldKey(b"a" * 32, 0), B: HeldKey(b"b" * 32, 5), C: HeldKey(b"c" * 32, 9)}
    assert set(to_keep(held, None, 0)) == {A, B, C}
    ring = RingRecord((RingKey(A, 1),))
    assert set(to_keep(held, ring, 5)) == {A, B, C}
    assert set(to_keep(held, ring, 6)) == {A, C}
    assert set(to_keep(held, ring, 10)) == {A}
