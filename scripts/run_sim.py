"""Runs simulations over many seeds, or over many mutants, on both cores.

Exit codes: 0 clean; 1 a violation, a fault that never fired, or a mutant that survived;
2 a wrong call.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from swarmd.sim import swim_paper_tables
from swarmd.sim.swarm_mutants import MUTANTS, SIMULATIONS, BySeed, ByTest, catch

_ROOT = Path(__file__).resolve().parent.parent
_SHOWN_MAX = 50


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/sim", description=__doc__)
    parser.add_argument("name", choices=sorted(SIMULATIONS), help="what to simulate")
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="how many (20)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first one (0)")
    parser.add_argument("--mutants", action="store_true", help="take guards away, one by one")
    parser.add_argument(
        "--paper",
        type=paper_plan,
        metavar="some|full|C,D,I:...",
        help="the Lifeguard paper's experiments, over some of its grid, all, or such points (swim)",
    )
    parser.add_argument(
        "--stall",
        choices=("messages", "senders", "process"),
        default="messages",
        help="what stands still in them (messages)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (2)")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.jobs < 1:
        parser.error("--seeds and --jobs are at least 1")
    if options.paper and (options.name != "swim" or options.mutants):
        parser.error("--paper is of swim, and without --mutants")
    started = time.monotonic()
    if options.paper:
        return run_paper(options)
    if options.mutants:
        result = run_mutants(options.name, options.jobs)
    else:
        seeds = range(options.first, options.first + options.seeds)
        result = run_seeds(options.name, seeds, options.jobs)
    result["took_s"] = round(time.monotonic() - started, 1)
    if options.json:
        print(json.dumps(result, indent=2, sort_keys=True))
    elif options.mutants:
        show_mutants(result)
    else:
        show_seeds(result)
    return 0 if result["ok"] else 1


# ---- seeds -------------------------------------------------------------------------------


def run_seeds(name: str, seeds: range, jobs: int) -> dict[str, Any]:
    """Every seed; what they violated and how often everything happened."""
    simulation = SIMULATIONS[name]
    counts: Counter[str] = Counter()
    violations: list[tuple[int, str]] = []
    with ProcessPoolExecutor(jobs) as pool:
        futures = {pool.submit(simulation.run, seed): seed for seed in seeds}
        for future in _progress(futures, f"sim {name}", violations, "violations"):
            seed = futures[future]
            try:
                texts, counted = future.result()
            except Exception as error:  # noqa: BLE001 - a seed that breaks the simulator is named
                texts, counted = [f"the simulation broke: {type(error).__name__}: {error}"], {}
            violations.extend((seed, text) for text in texts)
            counts.update(counted)
    required = (*simulation.faults, *simulation.others)
    missing = [what for what in required if not counts[what]]
    return {
        "name": name,
        "first": seeds.start,
        "seeds": len(seeds),
        "faults": {fault: counts[fault] for fault in simulation.faults},
        "counts": dict(sorted(counts.items())),
        "required": {what: counts[what] for what in simulation.others},
        "missing": missing,
        "violations": sorted(violations),
        "ok": not violations and not missing,
    }


def _progress(
    futures: dict[Future[Any], Any], title: str, bad: Sequence[Any], what: str
) -> Iterator[Future[Any]]:
    """Futures as they end, with a line on the terminal that tells how far it is."""
    shown = sys.stderr.isatty()
    for done, future in enumerate(as_completed(futures), 1):
        yield future
        if shown:
            line = f"{title}: {done}/{len(futures)}, {len(bad)} {what}"
            print(f"\r{line[:79]:79}", end="", file=sys.stderr, flush=True)
    if shown:
        print(f"\r{'':79}\r", end="", file=sys.stderr, flush=True)


def show_seeds(result: dict[str, Any]) -> None:
    last = result["first"] + result["seeds"] - 1
    print(f"sim {result['name']}: seeds {result['first']} to {last}, {result['took_s']} s")
    print("\nfaults")
    for fault, count in result["faults"].items():
        print(f"  {fault:24}{count:>10}")
    print("\nwhat happened")
    labels = {"acknowledged": "operations acknowledged", "election": "elections"}
    for what, count in result["required"].items():
        print(f"  {labels.get(what, what):24}{count:>10}")
    for what in result["missing"]:
        print(f"\nnever happened, so nothing is proven about it: {what}")
    for seed, text in result["violations"][:_SHOWN_MAX]:
        print(f"\nseed {seed}: {text}")
    more = len(result["violations"]) - _SHOWN_MAX
    if more > 0:
        print(f"\nand {more} more")
    print(f"\n{len(result['violations'])} violations: {'clean' if result['ok'] else 'FAILED'}")


# ---- the Lifeguard paper ---------------------------------------------------------------------


def paper_plan(text: str) -> swim_paper_tables.Plan:
    """What `--paper` names."""
    try:
        return swim_paper_tables.plan_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither some, nor full, nor points such as 4,16384,1 ({error})"
        ) from error


def run_paper(options: argparse.Namespace) -> int:
    """Print the paper's tables; 1 if ours misses the goal, or there is nothing to compare with."""
    with ProcessPoolExecutor(options.jobs) as pool:
        results = swim_paper_tables.measure(
            dataclasses.replace(options.paper, model=options.stall),
            pool,
            wait=lambda futures: _progress(futures, "paper", [], "violations"),
        )
    tables = swim_paper_tables.tables(results)
    print(json.dumps(tables, indent=2) if options.json else swim_paper_tables.text(tables))
    return 0 if swim_paper_tables.verdict(results)[1][-1] == "reached" else 1


# ---- mutants -----------------------------------------------------------------------------


def run_mutants(name: str, jobs: int) -> dict[str, Any]:
    """Take each guard away; each absence must be noticed as the table says."""
    table = MUTANTS[name]
    rows: dict[str, dict[str, Any]] = {}
    with ProcessPoolExecutor(jobs) as pool:
        futures = {
            pool.submit(catch, mutant, how): (mutant, how)
            for mutant, how in table.items()
            if isinstance(how, BySeed)
        }
        tests = {mutant: how for mutant, how in table.items() if isinstance(how, ByTest)}
        passed = _passed([how.node_id for how in tests.values()])
        for mutant, by_test in tests.items():
            rows[mutant] = {"by": by_test.node_id, "caught": by_test.node_id in passed, "what": ""}
        survivors: list[str] = []
        for future in _progress(futures, f"mutants of {name}", survivors, "survive"):
            mutant, how = futures[future]
            found = future.result()
            if found is None:
                survivors.append(mutant)
            seed, what = found if found is not None else (how.seed, "")
            caught = found is not None
            rows[mutant] = {"by": f"{how.sim} seed {seed}", "caught": caught, "what": what}
    ok = all(row["caught"] for row in rows.values())
    return {"name": name, "mutants": {name: rows[name] for name in table}, "ok": ok}


def _passed(node_ids: list[str]) -> set[str]:
    """Which of these tests pass."""
    if not node_ids:
        return set()
    command = [sys.executable, "-m", "pytest", "-rA", "-q", "-p", "no:cacheprovider", *node_ids]
    environment = {**os.environ, "COLUMNS": "250"}
    done = subprocess.run(
        command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False
    )
    return set(re.findall(r"^PASSED (\S+)", done.stdout, re.MULTILINE))


def show_mutants(result: dict[str, Any]) -> None:
    print(f"mutants of {result['name']}: {len(result['mutants'])}, {result['took_s']} s\n")
    for mutant, row in result["mutants"].items():
        verdict = "caught by" if row["caught"] else "SURVIVES "
        print(f"  {mutant:28}{verdict} {row['by']}")
        if row["what"]:
            print(f"      {row['what'][:110]}")
    survivors = [mutant for mutant, row in result["mutants"].items() if not row["caught"]]
    print(f"\n{len(survivors)} survive: {', '.join(survivors) or 'all are caught'}")


if __name__ == "__main__":
    sys.exit(main())
