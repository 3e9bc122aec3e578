"""Holds the lock "door" for a while; what it writes meanwhile shows until when it ran."""

from __future__ import annotations

import os
import time
from typing import Any

from swarmd.sdk import Context


def run(value: dict[str, Any], context: Context) -> dict[str, int]:
    with context.lock("door", ttl_s=4, wait_s=120) as fence:
        ledger = os.open(value["ledger"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        word, end = b"begin", time.monotonic() + value["hold_s"]
        while True:
            now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            os.write(ledger, b"%s %d %d\n" % (word, fence, now))
            if time.monotonic() >= end:
                break
            word = b"alive"
            time.sleep(0.01)
        os.close(ledger)
    context.counter("locker").add()
    return {"fence": fence}
