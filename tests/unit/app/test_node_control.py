"""Leaving: what must be handed on before the node may end, and what happens if it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from swarmd.app.control import NodeControl
from swarmd.base.errors import NoQuorum, SwarmError, WouldLoseData


class Rooms:
    """The stores and the blobs of a node; each hand-over does what it is told."""

    def __init__(self, **errors: SwarmError | None) -> None:
        self.calls: list[str] = []
        self._errors = errors

    async def _do(self, what: str) -> None:
        await trio.lowlevel.checkpoint()
        self.calls.append(what)
        error = self._errors.get(what)
        if error is not None:
            raise error

    async def hand_over_seat(self, timeout_s: float) -> None:
        await self._do("seat")

    async def hand_over(self, timeout_s: float) -> None:
        await self._do("blobs")

    def stay(self) -> None:
        self.calls.append("stay")


class Shards:
    """The eventual store of the same node."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    async def hand_over(self, timeout_s: float, at_most_s: float) -> None:
        await self._rooms._do("shards")

    def stay(self) -> None:
        self._rooms.calls.append("hold again")


def control_of(**errors: SwarmError | None) -> Any:
    control: Any = NodeControl()
    control.store = control.blobs = rooms = Rooms(**errors)
    control.eventual = Shards(rooms)
    control.now_ready()
    return control


async def test_the_seat_goes_first_then_the_blobs_then_shards_then_the_node() -> None:
    control = control_of()
    assert await control.leave(force=False) == []
    assert control.store.calls == ["seat", "blobs", "shards"]
    assert control.not_ready() == "it is stopping"


@pytest.mark.parametrize("what", ["seat", "blobs", "shards"])
async def test_a_node_that_may_not_leave_stays_and_takes_back_what_it_gave(what: str) -> None:
    control = control_of(**{what: WouldLoseData("only here")})
    with pytest.raises(WouldLoseData):
        await control.leave(force=False)
    assert control.store.calls[-3:] == [what, "stay", "hold again"]
    assert control.not_ready() == ""


async def test_a_leave_that_is_given_up_leaves_nothing_behind() -> None:
    control = control_of()
    with trio.CancelScope() as scope:
        scope.cancel()
        await control.leave(force=False)
    assert control.store.calls == ["stay", "hold again"]
    assert control.not_ready() == ""


async def test_force_leaves_with_a_warning_and_what_can_be_handed_on_is() -> None:
    control = control_of(seat=NoQuorum("nobody answers"), shards=WouldLoseData("one is here"))
    first, second = await control.leave(force=True)
    assert "nobody answers" in first
    assert "one is here" in second
    assert control.store.calls == ["seat", "blobs", "shards"]
    assert control.not_ready() == "it is stopping"
