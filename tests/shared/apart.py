"""What a test that runs apart (`scripts/apart`) does on the machine's own network all the same."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence


def run_outside(command: Sequence[str]) -> None:
    """Run a command that must succeed where packages can be fetched from."""
    descriptor = os.environ.get("APART_FROM")
    if descriptor is None:
        subprocess.run(command, check=True)
        return
    outside = ["nsenter", f"--net=/proc/self/fd/{descriptor}", *command]
    subprocess.run(outside, check=True, pass_fds=(int(descriptor),))
