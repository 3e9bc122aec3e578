"""Whole states as bytes, and back: for tests that need no slices."""

from __future__ import annotations

from collections.abc import Iterable

from swarmd.state.raft.frames import pack, unpack
from swarmd.state.raft.statefile import STATE_FORMAT, STATE_KIND
from swarmd.state.raft.statemachine import StateMachine


def whole(frames: Iterable[bytes]) -> bytes:
    return pack(STATE_KIND, STATE_FORMAT, frames)


def restore(state: StateMachine, raw: bytes) -> None:
    """Raises CorruptFile."""
    restoring = state.restoring()
    for frame in unpack(STATE_KIND, STATE_FORMAT, raw, source="test"):
        restoring.take(frame)
    restoring.finish()
