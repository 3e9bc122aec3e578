"""Fixtures: see `daemons`."""

from __future__ import annotations

from daemons import folder, trio_swarm

__all__ = ["folder", "trio_swarm"]
