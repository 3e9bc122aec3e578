"""Requests that wait: what becomes of their bodies, and of them when their client goes."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio
import trio.testing
from starlette.requests import Request

from swarmd.base.errors import ShuttingDown
from swarmd.gateway.config import GatewayConfig
from swarmd.gateway.context import Context
from swarmd.gateway.http import Budget, drain

NOBODY = cast(Any, None)


def context() -> Context:
    budget = Budget(10, 1_000_000, 1_000_000)
    return Context(NOBODY, GatewayConfig(), budget, NOBODY)


def request(*messages: dict[str, Any]) -> Request:
    """Says these, and then nothing more."""
    waiting = [*messages]

    async def receive() -> dict[str, Any]:
        if not waiting:
            await trio.sleep_forever()
        return waiting.pop(0)

    return Request({"type": "http", "method": "DELETE", "headers": [], "path": "/"}, receive)


async def slow() -> str:
    await trio.sleep(0.5)
    return "done"


@pytest.mark.parametrize("pieces", [(), (b"",), (b"", b"what nobody", b" reads")])
async def test_it_is_answered_when_it_is_done_whatever_came_with_it(
    pieces: tuple[bytes, ...], autojump_clock: trio.testing.MockClock
) -> None:
    last = len(pieces) - 1
    asked = request(
        *(
            {"type": "http.request", "body": one, "more_body": number < last}
            for number, one in enumerate(pieces)
        )
    )
    began = trio.current_time()
    assert await context().attended(asked, slow) == "done"
    if pieces:
        await drain(asked, context().budget)
    assert trio.current_time() - began == pytest.approx(0.5)


async def test_it_ends_with_its_client(autojump_clock: trio.testing.MockClock) -> None:
    asked = request({"type": "http.request", "body": b""}, {"type": "http.disconnect"})
    began = trio.current_time()
    with pytest.raises(ShuttingDown):
        await context().attended(asked, trio.sleep_forever)
    assert trio.current_time() == began


async def test_of_a_client_that_goes_in_the_middle_of_its_body_nothing_more_is_awaited(
    autojump_clock: trio.testing.MockClock,
) -> None:
    part = {"type": "http.request", "body": b"half", "more_body": True}
    asked = request(part, {"type": "http.disconnect"})
    began = trio.current_time()
    with pytest.raises(ShuttingDown):
        await context().attended(asked, trio.sleep_forever)
    await drain(asked, context().budget)
    assert trio.current_time() == began
