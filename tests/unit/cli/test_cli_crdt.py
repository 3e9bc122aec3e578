"""What a person is shown of a key."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from swarmd.cli.commands import crdt
from swarmd.gateway.shapes_memory import CrdtCell, CrdtKey


def test_nothing_of_a_value_reaches_the_terminal_as_an_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    value = "\x9b2Jgone\u202e"
    cell = CrdtCell(
        node="n1", life="7xw2mh5p", number=1, kind="register", fields=[value], value=value,
        value_bytes=9, created_by=value, written_at_ms=0, tick=0, expires_at_ms=0, counts=True,
        why="no other write stands beside it",
    )  # fmt: skip
    found = CrdtKey(
        namespace="default", key="k", kind="register", value=value, cells=[cell], left_out=0,
        shard=1, seen=[], early=0,
    )  # fmt: skip
    client = SimpleNamespace(crdt_inspect=lambda *_: found)
    monkeypatch.setattr(crdt, "open_client", lambda: nullcontext(client))
    shown = CliRunner().invoke(crdt.inspect, ["k"])
    assert shown.exit_code == 0, shown.output
    assert "gone" in shown.output
    assert all(line.isprintable() for line in shown.output.splitlines())
