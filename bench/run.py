"""Runs one bench and holds its figures against bench/budgets.toml.

Every bench is a function that yields `(name, value)`. A figure without a budget, or a budget
without a figure, is not ok. The exit code is 1 unless every figure is ok.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NAMES = ("tasks", "cli")


def judge(name: str, value: float | None, budget: dict[str, Any] | None) -> dict[str, Any]:
    """One line of output. Missing on either side is not ok."""
    bound = None if budget is None else budget.get("max", budget.get("min"))
    ok = False
    if value is not None and budget is not None:
        ok = value <= budget["max"] if "max" in budget else value >= budget["min"]
    unit = "" if budget is None else budget["unit"]
    rounded = None if value is None else round(value, 3)
    return {"name": name, "value": rounded, "unit": unit, "budget": bound, "ok": ok}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("name", nargs="?", choices=NAMES)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--setup-peers", action="store_true", help="install the peers to compare")
    arguments = parser.parse_args()
    if arguments.setup_peers:
        print("these benches have no peers to install", file=sys.stderr)
        if arguments.name is None:
            return 0
    if arguments.name is None:
        parser.error(f"name a bench: {', '.join(NAMES)}")
    budgets = tomllib.loads((HERE / "budgets.toml").read_text())[arguments.name]
    sys.path.insert(0, str(HERE))
    bench = importlib.import_module(f"bench_{arguments.name}")
    lines = []
    seen = set()
    for name, value in bench.run():
        if name.startswith("info_"):
            print(f"{name.removeprefix('info_')} {value:.3f} (for information)", file=sys.stderr)
            continue
        seen.add(name)
        lines.append(judge(name, value, budgets.get(name)))
        show(lines[-1], as_json=arguments.json)
    for name in budgets:
        if name not in seen:
            lines.append(judge(name, None, budgets[name]))
            show(lines[-1], as_json=arguments.json)
    return 0 if all(line["ok"] for line in lines) else 1


def show(line: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(line), flush=True)
    else:
        verdict = "ok" if line["ok"] else "MISSED"
        bound = f"budget {line['budget']}" if line["budget"] is not None else "no budget"
        print(f"{line['name']:<34} {line['value']!s:>10} {line['unit']:<5} {bound:<14} {verdict}")


if __name__ == "__main__":
    sys.exit(main())
