"""Measures how long messages take from one agent to another, by the clock that both share."""

from __future__ import annotations

import time
from typing import Any


def run(value: dict[str, Any], context: Any) -> list[int]:
    return talk(value, context) if value["role"] == "talk" else listen(value, context)


def listen(value: dict[str, Any], context: Any) -> list[int]:
    """Ages in microseconds, as they came."""
    ages = []
    with context.bus.subscribe("talk/time") as messages:
        while not context.bus.publish("talk/ready", immediate=True):
            time.sleep(0.05)
        for message in messages:
            if message.data is None:
                break
            ages.append((time.monotonic_ns() - message.data) // 1_000)
    return ages


def talk(value: dict[str, Any], context: Any) -> list[int]:
    """How long each publish took until it was acknowledged, in microseconds."""
    took = []
    with context.bus.subscribe("talk/ready") as ready:
        if ready.receive(60.0) is None:
            raise TimeoutError("the listener is not there")
    for _ in range(value["count"]):
        began = time.monotonic_ns()
        context.bus.publish("talk/time", began, immediate=True)
        took.append((time.monotonic_ns() - began) // 1_000)
        time.sleep(value["pause_s"])
    context.bus.publish("talk/time", None, immediate=True)
    return took
