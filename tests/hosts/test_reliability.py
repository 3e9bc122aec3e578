"""Two minutes of random faults on real daemons, and a promise broken on purpose."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from nethosts import missing_tools
from reliability_faults import FAULTS

ROOT = Path(__file__).resolve().parents[2]
# What two minutes on two slow cores, most of them spent in trouble, still acknowledge.
WRITES_MIN = 1_000
TASKS_MIN = 100

pytestmark = pytest.mark.hosts


def reliability(*arguments: str) -> tuple[int, dict[str, Any], str]:
    """The exit code, what was printed as JSON, and the rest."""
    reason = missing_tools()
    if reason:
        pytest.skip(reason)
    command = [str(ROOT / "scripts" / "reliability"), "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode in (0, 1), done.stderr[-4_000:]
    return done.returncode, json.loads(done.stdout), done.stderr


def test_two_minutes_of_faults_break_no_promise() -> None:
    code, result, errors = reliability("--minutes", "2", "--seed", "3")
    assert code == 0, f"{result['problems']} {result['undecided']}\n{errors}"
    for kind in FAULTS:
        if kind.needs_shim and kind.name in result["left_out"]:
            assert os.environ.get("CI") != "true", "CI installs a compiler"
            continue
        assert result["faults"][kind.name]["times"] >= 1, f"{kind.name} never happened"
    assert result["writes_acknowledged"] >= WRITES_MIN
    assert result["calls"]["get"]["answered"] >= WRITES_MIN
    assert result["calls"]["task"]["answered"] >= TASKS_MIN
    assert result["voter_changes"] >= 1


def test_stale_reads_that_are_called_fresh_are_found() -> None:
    """The checker is not blind: a node that is cut off answers from its own copy."""
    code, result, _ = reliability(
        *("--minutes", "0.4", "--seed", "1", "--inject", "stale-reads"),
        *("--faults", "isolate", "partition"),
    )
    assert code == 1
    assert any("no order explains" in problem for problem in result["problems"])
    history = Path(result["history"])
    assert list(history.glob("history-*.jsonl")), "the history is kept"
    subprocess.run(["rm", "-r", str(history)], check=True)
