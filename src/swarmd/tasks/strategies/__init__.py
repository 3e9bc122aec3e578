"""Which node gets a task: pure functions `choose(task, view, rng)`.

A view lists only nodes that have room for the task's agent, in a stable order; a strategy
returns one of them or None. It keeps nothing between calls but what the view carries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from swarmd.base.ids import NodeId
from swarmd.base.rng import Rng


@dataclass(slots=True)
class Candidate:
    """A node with room. `here` counts attempts at this agent, `load` those at any agent.

    `idle` instances of the agent would start a task at once; `turn` rises with each task
    that the node was given.
    """

    node: NodeId
    here: int = 0
    load: int = 0
    idle: int = 0
    turn: int = 0


@dataclass(frozen=True, slots=True)
class TaskView:
    """What a strategy may know of a task. `avoid`: where its last attempt failed."""

    agent: str
    priority: int = 0
    avoid: bytes = b""


Choose = Callable[[TaskView, Sequence[Candidate], Rng], NodeId | None]


def least_loaded(task: TaskView, view: Sequence[Candidate], rng: Rng) -> NodeId | None:
    """The node with an idle instance, then the fewest attempts; elsewhere than last time."""
    best: Candidate | None = None
    best_rank = (True, True, 0, 0)
    for candidate in view:
        rank = (
            candidate.node == task.avoid,
            candidate.idle <= 0,
            candidate.load,
            candidate.turn,
        )
        if best is None or rank < best_rank:
            best, best_rank = candidate, rank
    return best.node if best is not None else None


def round_robin(task: TaskView, view: Sequence[Candidate], rng: Rng) -> NodeId | None:
    """The node whose last turn is longest ago; elsewhere than last time."""
    best: Candidate | None = None
    for candidate in view:
        rank = (candidate.node == task.avoid, candidate.turn)
        if best is None or rank < (best.node == task.avoid, best.turn):
            best = candidate
    return best.node if best is not None else None


STRATEGIES: Final[Mapping[str, Choose]] = MappingProxyType(
    {"least_loaded": least_loaded, "round_robin": round_robin}
)
