"""How findings are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from swarmd.gateway.shapes import Check

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "fail"
_NAMES_MAX: Final = 5


def ok(name: str, finding: str, advice: str = "") -> Check:
    return Check(name=name, verdict=OK, finding=finding, advice=advice)


def warn(name: str, finding: str, advice: str) -> Check:
    return Check(name=name, verdict=WARN, finding=finding, advice=advice)


def fail(name: str, finding: str, advice: str) -> Check:
    return Check(name=name, verdict=FAIL, finding=finding, advice=advice)


def listed(names: Sequence[str]) -> str:
    """The first of the names, and how many more there are."""
    more = len(names) - _NAMES_MAX
    return ", ".join(names[:_NAMES_MAX]) + (f" and {more} more" if more > 0 else "")
