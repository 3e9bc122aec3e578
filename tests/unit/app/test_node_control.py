"""Leaving: what must be handed on before the node may end, and what happens if it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from swarmd.app.control import NodeControl
from swarmd.base.errors import NoQuorum, SwarmError, WouldLoseData


class Rooms:
    """The store and the blobs of a node; each hand-over does what it is told."""

    def __init__(self, seat: SwarmError | None, blobs: SwarmError | None) -> None:
        self.calls: list[str] = []
        self._errors = {"seat": seat, "blobs": blobs}

    async def _do(self, what: str) -> None:
        await trio.lowlevel.checkpoint()
        self.calls.append(what)
        error = self._errors[what]
        if error is not None:
            raise error

    async def hand_over_seat(self, timeout_s: float) -> None:
        await self._do("seat")

    async def hand_over(self, timeout_s: float) -> None:
        await self._do("blobs")

    def stay(self) -> None:
        self.calls.append("stay")


def control_of(seat: SwarmError | None = None, blobs: SwarmError | None = None) -> Any:
    control: Any = NodeControl()
    control.store = control.blobs = Rooms(seat, blobs)
    control.now_ready()
    return control


async def test_the_seat_goes_first_then_the_blobs_then_the_node() -> None:
    control = control_of()
    assert await control.leave(force=False) == []
    assert control.store.calls == ["seat", "blobs"]
    assert control.not_ready() == "it is stopping"


@pytest.mark.parametrize(
    "errors", [(WouldLoseData("alone"), None), (None, WouldLoseData("only here"))]
)
async def test_a_node_that_may_not_leave_stays_and_takes_seats_again(errors: Any) -> None:
    control = control_of(*errors)
    with pytest.raises(WouldLoseData):
        await control.leave(force=False)
    assert control.store.calls[-1] == "stay"
    assert control.not_ready() == ""


async def test_a_leave_that_is_given_up_leaves_nothing_behind() -> None:
    control = control_of()
    with trio.CancelScope() as scope:
        scope.cancel()
        await control.leave(force=False)
    assert control.store.calls == ["stay"]
    assert control.not_ready() == ""


async def test_force_leaves_with_a_warning() -> None:
    control = control_of(blobs=NoQuorum("nobody answers"))
    [warning] = await control.leave(force=True)
    assert "nobody answers" in warning
    assert control.store.calls == ["seat", "blobs"]
    assert control.not_ready() == "it is stopping"
