"""Fixtures of tests with real daemons, in a folder of the test's own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from localswarm import LocalSwarm


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A short path, because the path of a unix socket may have 107 bytes only.

    The daemons' logs are shown if the test fails.
    """
    root = Path(tempfile.mkdtemp(prefix="swarmd-"))
    yield root
    report = getattr(request.node, "rep_call", None)
    if report is not None and report.failed:
        for log in sorted(root.rglob("swarmd.log")):
            print(f"---- {log.parent.name}\n{log.read_text(errors='replace')[-6_000:]}")
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def trio_swarm(folder: Path) -> Iterator[LocalSwarm]:
    """Three daemons that form one swarm with three voters."""
    with LocalSwarm(folder, 3) as swarm:
        swarm.form()
        yield swarm
