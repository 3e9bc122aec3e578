"""What nobody did, as it comes into the audit log."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio

from swarmd.app import watch
from swarmd.base.ids import NodeId
from swarmd.observe.metrics import DROPPED
from swarmd.state.raft.views import Overstepping


class Noted:
    def __init__(self) -> None:
        self.found: list[tuple[str, ...]] = []

    def note(
        self, kind: str, actor: str = "", subject: str = "", outcome: str = "ok", details: str = ""
    ) -> None:
        self.found.append((kind, actor, subject, outcome, details))


async def test_what_the_rooms_of_the_mesh_refuse_is_counted_by_reason(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    monkeypatch.setattr(watch, "_REFUSED_S", 0.1)
    store: Any = SimpleNamespace(epoch_number=1, voters=(), office=None, take_overstepping=list)
    rooms = ("epoch", "heads", "store", "copy", "approval", "trust", "audit")
    noted = Noted()
    async with watch.watch_events(noted, store, lambda _: ""):
        await trio.sleep(0.05)
        for where in rooms:
            DROPPED.labels(where, "bad_signature").inc(3)
        DROPPED.labels("epoch", "inbox_full").inc()
        await trio.sleep(0.5)
    expected = [("mesh.refused", "", where, "bad_signature", "3 times") for where in rooms]
    assert sorted(noted.found) == sorted(expected)


async def test_who_forwards_what_it_may_not_write_has_one_record_however_often(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    monkeypatch.setattr(watch, "_REFUSED_S", 0.1)
    told = [[Overstepping(NodeId(b"n" * 32), "put a/", 1_000)]]
    store: Any = SimpleNamespace(
        epoch_number=1,
        voters=(),
        office=None,
        take_overstepping=lambda: told.pop() if told else [],
    )
    noted = Noted()
    async with watch.watch_events(noted, store, lambda _: "n4"):
        await trio.sleep(0.5)
    assert noted.found == [("member.overstepped", "n4", "put a/", "forbidden", "1000 times")]
