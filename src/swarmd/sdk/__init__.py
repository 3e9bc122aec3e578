"""What authors of agents import: `from swarmd.sdk import Context`.

An agent is a function `run(input, context)` in a module of its folder. `input` is one msgpack
value (None, bool, int, float, str, bytes, list, dict); so is what it returns. It runs in a
process of its own, one attempt at a time; what it prints becomes its log; what it raises
fails the attempt with that cause.
"""

from swarmd.sdk.context import Context

__all__ = ["BarrierWaits", "Context", "LockHeld", "SwarmError"]


def __getattr__(name: str) -> object:
    # Imported when an agent names them: a worker that does not must start fast.
    if name not in __all__:
        raise AttributeError(name)
    from swarmd.base import errors

    return getattr(errors, name)
