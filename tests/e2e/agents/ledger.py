"""Writes down that it ran, then works for a while.

The ledger is a file outside the swarm: one line per start of an attempt, appended in one
write, so that a test can hold what was recorded as done against what was really run.
"""

from __future__ import annotations

import os
import time
from typing import Any

from swarmd.sdk import Context


def run(item: dict[str, Any], context: Context) -> Any:
    line = f"{item['key']} {context.fence} {context.attempt}\n".encode()
    fd = os.open(item["ledger"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)
    time.sleep(item["ms"] / 1000)
    return {"key": item["key"], "fence": context.fence, "size": len(item.get("body", b""))}
