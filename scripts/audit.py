"""Reads what pip-audit found: advisories, and packages that nobody could say anything of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 120.0


def ask(requirements: Path) -> dict[str, Any]:
    """What pip-audit says of exactly these versions; empty if it could say nothing."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements)]
    command += ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        found: dict[str, Any] = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        return {}
    return found


def judge(found: dict[str, Any]) -> tuple[list[str], int, int]:
    """A line for each hole, how many packages were looked at, and how many could not be."""
    packages = found.get("dependencies", [])
    holes = [
        f"{one['name']} {one['version']}: {hole['id']}"
        + (f", mended in {', '.join(hole['fix_versions'])}" if hole.get("fix_versions") else "")
        for one in packages
        for hole in one.get("vulns", [])
    ]
    unknown = sum("skip_reason" in one for one in packages)
    return holes, len(packages) - unknown, unknown


def main() -> int:
    holes, known, unknown = judge(ask(ROOT / "constraints.txt"))
    for line in holes:
        print(line)
    if not known:
        print("audit: the index gives no advisories here, so nothing was audited")
    else:
        print(f"audit: {known} packages, {len(holes)} holes; {unknown} could not be looked at")
    return 1 if holes else 0


if __name__ == "__main__":
    sys.exit(main())
