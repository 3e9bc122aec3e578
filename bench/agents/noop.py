"""Gives back what it was given: the least an agent can do."""

from typing import Any

from swarmd.sdk import Context


def run(item: Any, context: Context) -> Any:
    return item
