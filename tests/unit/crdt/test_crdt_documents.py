"""Texts and lists that several edit at once: nobody's edit is lost, and all read the same."""

from __future__ import annotations

import pytest
from crdt_documents import run_documents
from crdt_replicas import STEPS, Step
from hypothesis import given, settings
from hypothesis import strategies as st
from test_crdt_types import _is_a_join

from swarmd.state.crdt.types.kinds import Kind

KINDS = [Kind.TEXT, Kind.LIST]
FEW = settings(max_examples=100, deadline=None)
MANY = settings(max_examples=10_000, deadline=None)


def holds(kind: Kind, count: int, steps: list[Step]) -> None:
    """All that is promised of a document, of one run."""
    group = run_documents(kind, count, steps)
    _is_a_join(*(one.cells for one in group.replicas[:3]))
    group.settle()
    for replica in group.replicas[1:]:
        assert replica.cells == group.replicas[0].cells
    values = [group.value(number) for number in range(count)]
    assert values == [values[0]] * count
    assert group.held() == group.expected()
    group.check()


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_converges_and_loses_nothing(kind: Kind) -> None:
    @FEW
    @given(st.integers(3, 5), STEPS)
    def check(count: int, steps: list[Step]) -> None:
        holds(kind, count, steps)

    check()
