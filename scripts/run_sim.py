"""Runs simulations over many seeds, or over many mutants, on both cores; or measures one at scale.

Exit codes: 0 clean; 1 a violation, a fault that never fired, a mutant that survived, or a budget
that was exceeded; 2 a wrong call.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarmd.sim import swim_figures, swim_paper_tables, swim_table
from swarmd.sim.swarm_mutants import MUTANTS, SIMULATIONS, BySeed, ByTest, catch

_ROOT = Path(__file__).resolve().parent.parent
_SHOWN_MAX = 50


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/sim", description=__doc__)
    parser.add_argument("name", choices=sorted(SIMULATIONS), help="what to simulate")
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="how many (20)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first one (0)")
    parser.add_argument("--mutants", action="store_true", help="take guards away, one by one")
    parser.add_argument("--table", action="store_true", help="measure swim at scale (half an hour)")
    parser.add_argument(
        "--nodes", type=int, nargs="+", metavar="N", default=list(swim_table.COUNTS),
        help="how many members, with --table (10 100 1000 10000)",
    )  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", metavar="WHAT", choices=sorted(swim_table.PLAN),
        help="these experiments, with --table",
    )  # fmt: skip
    parser.add_argument(
        "--runs", type=int, metavar="N", help="so many runs of each, with --table and --only"
    )
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
    if options.table and options.name != "swim":
        parser.error("--table measures swim alone")
    if options.runs and not options.only:
        parser.error("--runs goes with --only")
    if min(options.nodes) < 4 or max(options.nodes) > 10_000:
        parser.error("--nodes are from 4 to 10000")
    if options.paper and (options.name != "swim" or options.mutants):
        parser.error("--paper is of swim, and without --mutants")
    started = time.monotonic()
    if options.table:
        counts = sorted(set(options.nodes))
        result = run_table(counts, options.jobs, options.only or swim_table.PLAN, options.runs)
        if options.paper:
            paper = run_paper(dataclasses.replace(options.paper, model=options.stall), options.jobs)
            result["paper"], result["ok"] = paper["tables"], result["ok"] and paper["ok"]
    elif options.paper:
        result = run_paper(dataclasses.replace(options.paper, model=options.stall), options.jobs)
    elif options.mutants:
        result = run_mutants(options.name, options.jobs)
    else:
        seeds = range(options.first, options.first + options.seeds)
        result = run_seeds(options.name, seeds, options.jobs)
    result["took_s"] = round(time.monotonic() - started, 1)
    if options.json:
        print(json.dumps(result, indent=2, sort_keys=True))
    elif options.table:
        show_table(result)
    elif options.paper:
        print(swim_paper_tables.text(result["tables"]))
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


def run_paper(plan: swim_paper_tables.Plan, jobs: int) -> dict[str, Any]:
    """The paper's tables; not ok if ours misses the goal, or there is nothing to compare with."""
    with ProcessPoolExecutor(jobs) as pool:
        results = swim_paper_tables.measure(
            plan, pool, wait=lambda futures: _progress(futures, "paper", [], "violations")
        )
    reached = swim_paper_tables.verdict(results)[1][-1] == "reached"
    return {"name": "swim", "tables": swim_paper_tables.tables(results), "ok": reached}


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
    width = max(map(len, result["mutants"]), default=0)
    for mutant, row in result["mutants"].items():
        verdict = "caught by" if row["caught"] else "SURVIVES "
        print(f"  {mutant:{width}}  {verdict} {row['by']}")
        if row["what"]:
            print(f"      {row['what'][:110]}")
    survivors = [mutant for mutant, row in result["mutants"].items() if not row["caught"]]
    print(f"\n{len(survivors)} survive: {', '.join(survivors) or 'all are caught'}")


# ---- the table ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of one experiment. `memory_bytes`: the most that its process ever held."""

    figures: Mapping[str, float]
    violations: list[str]
    cpu_s: float
    memory_bytes: int


def measured(experiment: str, count: int, seed: int) -> Measured:
    began_s = time.process_time()
    figures, violations = swim_figures.run(experiment, count, seed)
    memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Measured(figures, violations, time.process_time() - began_s, memory_bytes)


def run_table(
    counts: list[int], jobs: int, only: Iterable[str], runs: int | None = None
) -> dict[str, Any]:
    """Every experiment with every number of members."""
    results: list[tuple[int, Mapping[str, float]]] = []
    cpu_s: dict[int, float] = {}
    bytes_max = 0
    violations: list[str] = []
    for count in sorted(counts, reverse=True):
        cpu_s[count] = 0.0
        # Processes of its own for each size give their memory back.
        with ProcessPoolExecutor(jobs) as pool:
            work = swim_table.tasks(count, only, runs)
            futures = {pool.submit(measured, *task): task for task in work}
            for future in _progress(futures, f"{count:,} members", violations, "violations"):
                experiment, _, seed = futures[future]
                run = future.result()
                results.append((count, run.figures))
                cpu_s[count] += run.cpu_s
                bytes_max = max(bytes_max, run.memory_bytes)
                violations += [f"{experiment} {count} seed {seed}: {v}" for v in run.violations]
    samples = swim_table.gather(results)
    budgets = swim_table.broken(samples)
    return {
        "name": "swim",
        "nodes": counts,
        "lines": swim_table.lines(samples, counts),
        "samples": samples,
        "cpu_s": {count: round(took_s, 1) for count, took_s in cpu_s.items()},
        "memory_bytes_max": bytes_max,
        "over_budget": budgets,
        "violations": violations,
        "ok": not budgets and not violations,
    }


def show_table(result: dict[str, Any]) -> None:
    print("\n".join(result["lines"]))
    if "paper" in result:
        print("\n" + swim_paper_tables.text(result["paper"]))
    cpu = ", ".join(f"{count:,}: {took_s:,.0f} s" for count, took_s in result["cpu_s"].items())
    print(f"\nprocessor time: {cpu}; at most {result['memory_bytes_max'] / 1e9:.1f} GB at a time")
    for text in [*result["over_budget"], *result["violations"][:_SHOWN_MAX]]:
        print(f"\n{text}")
    print("\nwithin all budgets" if result["ok"] else "\nFAILED")


if __name__ == "__main__":
    sys.exit(main())
