"""A client waits for a node that leaves for as long as that may take."""

from __future__ import annotations

from typing import Any

import pytest

from swarmd.app.control import BLOBS_TIMEOUT_S, HAND_OVER_TIMEOUT_S, SHARDS_MAX_S
from swarmd.base.limits import LEAVE_TIMEOUT_S
from swarmd.client import Client


@pytest.mark.parametrize(("own_s", "waits_s"), [(1.0, LEAVE_TIMEOUT_S), (900.0, 900.0)])
def test_a_leave_is_waited_for_whatever_the_clients_timeout_is(
    own_s: float, waits_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def call(self: Client, *_: Any, **__: Any) -> None:
        waited.append(self._timeout_s)

    monkeypatch.setattr(Client, "_call", call)
    client = Client("/nowhere", timeout_s=own_s)
    client.leave()
    assert waited == [waits_s]
    assert client._timeout_s == own_s
    assert waits_s > HAND_OVER_TIMEOUT_S + BLOBS_TIMEOUT_S + SHARDS_MAX_S
