"""Errors have codes that cross the wire: whoever gets one must have its class."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import importlib, pkgutil
import swarmd, swarmd.client
from swarmd.base.errors import SwarmError

known = set(SwarmError.by_code)
rooms = ("agents", "audit", "memory", "state", "tasks")
for room in rooms:
    package = importlib.import_module(f"swarmd.{room}")
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
for code, kind in SwarmError.by_code.items():
    if code not in known and kind.__module__.split(".")[1] in rooms:
        print(code)
"""


def test_a_client_has_the_classes_of_all_errors_that_rooms_raise() -> None:
    found = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=60.0, check=True
    )
    assert found.stdout.split() == [], "these belong into base/errors.py"
