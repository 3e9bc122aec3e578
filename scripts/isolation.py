"""Runs a script in a process namespace of its own, so that nothing that it started outlives it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def isolate(environ: Mapping[str, str]) -> int:
    """Run this again in a process and a mount namespace of its own; its exit code.

    Whatever ends the first process there, be it Ctrl-C or a crash, the kernel ends all others with
    it. That first one does nothing but wait and reap what lost its parent. It dies when this one
    does.

    Args:
        environ: variables besides, by which the script knows that it runs inside.
    """
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]
    inner = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, *sys.argv]
    child = subprocess.Popen(
        [*unshare, *inner],
        env={**os.environ, **environ},
        start_new_session=True,
        preexec_fn=lambda: ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os.killpg(child.pid, signal.SIGINT))
    return child.wait()
