"""Runs one bench and holds its figures against bench/budgets.toml.

Every bench is a module whose `run(options)` yields `(name, value)`, or a `Figure` where a peer
was measured beside it in the same run. A figure without a budget, a budget without a figure,
or one that is held against a peer without that peer's value, is not ok. The exit code is 1
unless every figure is ok.

A budget is `max` or `min`, `ratio_max` or `ratio_min` times the peer's value, or both; a
line's `budget` is the stricter bound, in the figure's own unit.
"""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NAMES = ("tasks", "cli", "raft", "bus", "blobs", "swim", "vector", "crdt")
PEERS = ("etcd_peer", "serf_peer", "crdt_peers")


@dataclass(frozen=True)
class Figure:
    """A measured value, and what the peer came to in the same run; None: not measured."""

    name: str
    value: float | None
    peer_value: float | None = None


@dataclass(frozen=True)
class Options:
    """`full`: also what takes many minutes. `only`: names of parts, all if empty."""

    full: bool = False
    only: tuple[str, ...] = ()


def bounds(budget: dict[str, Any], peer_value: float | None) -> tuple[float | None, float | None]:
    """(at most, at least) in the figure's unit. Without the peer's value: neither."""
    most = [budget[key] for key in ("max",) if key in budget]
    least = [budget[key] for key in ("min",) if key in budget]
    if "peer" in budget:
        if peer_value is None:
            return None, None
        most += [budget[key] * peer_value for key in ("ratio_max",) if key in budget]
        least += [budget[key] * peer_value for key in ("ratio_min",) if key in budget]
    return min(most, default=None), max(least, default=None)


def judge(figure: Figure, budget: dict[str, Any] | None) -> dict[str, Any]:
    """One line of output. Whatever is missing is not ok."""
    value, peer_value = figure.value, figure.peer_value
    most, least = (None, None) if budget is None else bounds(budget, peer_value)
    known = value is not None and (most is not None or least is not None)
    ok = known and (most is None or value <= most) and (least is None or value >= least)
    line = {
        "name": figure.name,
        "value": rounded(value),
        "unit": "" if budget is None else budget["unit"],
        "budget": rounded(most if most is not None else least),
        "ok": bool(ok),
    }
    if budget is not None and "peer" in budget:
        line["peer"] = budget["peer"]
        line["peer_value"] = rounded(peer_value)
        line["ratio"] = rounded(value / peer_value) if value is not None and peer_value else None
    return line


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("name", nargs="?", choices=NAMES)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--full", action="store_true", help="also what takes many minutes")
    parser.add_argument("--only", action="append", default=[], help="a part of the bench; repeat")
    parser.add_argument("--setup-peers", action="store_true", help="install the peers to compare")
    arguments = parser.parse_args()
    sys.path.insert(0, str(HERE))
    # Ended like this, too, a bench ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if arguments.setup_peers:
        for peer in PEERS:
            importlib.import_module(peer).setup()
        if arguments.name is None:
            return 0
    if arguments.name is None:
        parser.error(f"name a bench: {', '.join(NAMES)}")
    options = Options(arguments.full, tuple(arguments.only))
    lines = run(arguments.name, options, as_json=arguments.json)
    return 0 if all(line["ok"] for line in lines) else 1


def run(name: str, options: Options, *, as_json: bool) -> list[dict[str, Any]]:
    """Run a bench and show its lines as they come; then what should have come."""
    budgets = tomllib.loads((HERE / "budgets.toml").read_text())[name]
    bench = importlib.import_module(f"bench_{name}")
    lines = []
    for found in bench.run(options):
        figure = found if isinstance(found, Figure) else Figure(*found)
        if figure.name.startswith("info_"):
            tell(figure)
            continue
        lines.append(judge(figure, budgets.get(figure.name)))
        show(lines[-1], as_json=as_json)
    seen = {line["name"] for line in lines}
    for missing, budget in budgets.items():
        asked = options.full or not budget.get("full")
        if missing not in seen and asked and not options.only:
            lines.append(judge(Figure(missing, None), budget))
            show(lines[-1], as_json=as_json)
    return lines


def tell(figure: Figure) -> None:
    name = figure.name.removeprefix("info_")
    value = "none" if figure.value is None else f"{figure.value:.3f}"
    peer = "" if figure.peer_value is None else f", peer {figure.peer_value:.3f}"
    print(f"{name} {value}{peer} (for information)", file=sys.stderr, flush=True)


def show(line: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(line), flush=True)
        return
    verdict = "ok" if line["ok"] else "MISSED"
    bound = f"budget {line['budget']}" if line["budget"] is not None else "no budget"
    peer = f"  {line['peer']} {line['peer_value']}" if "peer" in line else ""
    text = f"{line['name']:<34} {line['value']!s:>10} {line['unit']:<5} {bound:<16} {verdict}"
    print(text + peer, flush=True)


if __name__ == "__main__":
    # Benches import this module by its name: they must get this very one.
    sys.modules["run"] = sys.modules["__main__"]
    sys.exit(main())
