"""Loops that look around now and then do so at the same moments.

To wake the process up costs more than what most of these loops do: on a small board it is what
idling costs. So all of them, whenever they began, end their pauses on whole and half seconds of the
loop's clock, where one wake-up serves all. That clock begins anywhere, so that the nodes of a swarm
do not wake together.
"""

from __future__ import annotations

import math
from typing import Final

import trio

BEAT_S: Final = 0.5


def pause_ends(pause_s: float, beat_s: float = BEAT_S, shift_s: float = 0.0) -> float:
    """When a pause of `pause_s` seconds from now ends, by `trio.current_time`.

    On the last beat that is in it: up to `beat_s` sooner than asked for, and never later. A pause
    that is shorter than a beat is as long as it says.

    Args:
        shift_s: by how much the beats come later than whole multiples of `beat_s`.
    """
    due = trio.current_time() + pause_s
    if pause_s < beat_s:
        return due
    return math.floor((due - shift_s) / beat_s) * beat_s + shift_s


async def pause(pause_s: float) -> None:
    """Sleep for about `pause_s` seconds; see `pause_ends`."""
    await trio.sleep_until(pause_ends(pause_s))
