"""Fails in the way that its input names: every way in which we could think of failing."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any, Final

from swarmd.sdk import Context

_HIGHEST_FD: Final = 64


def run(item: str, context: Context) -> Any:
    if item == "raise":
        raise ValueError("no such colour")
    if item == "exit":
        os._exit(7)
    if item == "sys.exit":
        sys.exit(3)
    if item == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "sleep":
        time.sleep(600)
    if item == "garbage":
        for fd in range(3, _HIGHEST_FD):
            try:
                os.write(fd, b"junk" * 99)
            except OSError:
                continue
        time.sleep(600)
    if item == "unpackable":
        return object()
    if item == "noise":
        sys.stdout.buffer.write(b"\x00\xff\x1b[2Jnoise\n" * 1_000)
        sys.stdout.buffer.flush()
        sys.stderr.buffer.write(b"x" * 100_000)
        sys.stderr.buffer.flush()
    return item
