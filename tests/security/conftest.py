"""Fixtures: see `daemons`."""

from __future__ import annotations

from daemons import folder

__all__ = ["folder"]
