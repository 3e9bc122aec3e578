"""Whether a run depends on how Python happens to hash: the same code in processes that differ."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HASH_SEEDS = ("1", "2", "4242")
_SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def printed_whatever_the_hash_seed(code: str, *, path: Path | None = None) -> str:
    """What `code` prints, which is the same in every process, or this fails.

    Args:
        path: a folder that it may import from, too.
    """
    folders = [*([] if path is None else [path]), Path(__file__).parent, _SCRIPTS]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
            timeout=120,
        ).stdout.strip()
        for seed in HASH_SEEDS
    }
    assert len(printed) == 1, printed
    return printed.pop()
