"""Real daemons under random faults, and the histories of their clients held to the promises.

Three or five daemons run in network namespaces. At each of them clients put, compare-and-set,
delete, read and submit tasks, while faults come and go. At the end everything is read once more
and all that the clients were told is checked. Exit codes: 0 every promise held; 1 one was
broken, and the history is kept; 2 it cannot be run here.

Everything runs in a process namespace of its own: whatever ends the first process in it, be it
Ctrl-C or a crash, the kernel ends all others with it, and so their namespaces and mounts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
from isolation import isolate
from localswarm import LocalSwarm, file_for_agents, wait_until
from nethosts import NetHosts, missing_tools
from reliability_clients import committed_fence
from reliability_faults import (
    FAULTS,
    HELD_S,
    Bag,
    Field,
    NotHealed,
    compile_shim,
    left_out,
)
from reliability_history import (
    FINAL_STATES,
    Call,
    Findings,
    acknowledgements,
    check_store,
    check_tasks,
    count_outcomes,
    longest_pause_s,
    read_history,
    read_ledger,
)

from swarmd.base.errors import SwarmError
from swarmd.client import Client

HERE: Final = Path(__file__).resolve().parent
LEDGER_AGENT: Final = HERE.parent / "tests" / "e2e" / "agents" / "ledger.toml"
CALM_S: Final = (1.5, 3.0)
CLIENTS_END_WITHIN_S: Final = 90.0
TASKS_END_WITHIN_S: Final = 120.0
# Two faults at a time; a pause is told for each kind as it was without the others.
TOGETHER: Final = "two_at_once"
_PAGE: Final = 1_000
_TASKS_ASKED: Final = 500
_SHOWN_MAX: Final = 20
# Names the folder of the run to the process that runs inside.
_INSIDE: Final = "RELIABILITY_FOLDER"


@dataclass(frozen=True)
class Window:
    """When a fault was on, healing included."""

    kinds: tuple[str, ...]
    began: float
    ended: float


@dataclass
class Run:
    """One run: what was done, and what came of it."""

    options: argparse.Namespace
    folder: Path
    since: float = field(default_factory=time.monotonic)
    windows: list[Window] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    findings: Findings = field(default_factory=Findings)
    clients: list[subprocess.Popen[bytes]] = field(default_factory=list)
    epochs: int = 0

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger"

    @property
    def histories(self) -> list[Path]:
        return sorted(self.folder.glob("history-*.jsonl"))

    def say(self, text: str) -> None:
        line = f"{time.monotonic() - self.since:7.1f} s  {text}"
        with (self.folder / "faults.log").open("a") as log:
            log.write(line + "\n")
        if not self.options.json:
            print(line, flush=True)


# ---- the run -----------------------------------------------------------------------------


def carry_out(run: Run) -> dict[str, Any]:
    """Everything, from the first daemon to the verdict."""
    options = run.options
    shim = compile_shim(run.folder)
    with NetHosts(options.nodes, own_folders=()) as hosts:
        swarm = LocalSwarm(run.folder, options.nodes, places=hosts.hosts)
        rng = random.Random(f"{options.seed} faults")
        ground = Field(swarm, hosts, shim, rng, run.say)
        with swarm:
            swarm.form(timeout_s=60.0)
            swarm[0].json("agent", "deploy", str(LEDGER_AGENT))
            file_for_agents(run.ledger)
            run.say(f"{options.nodes} daemons form a swarm; seed {options.seed}")
            first_epoch = ground.epoch()
            start_clients(run, swarm)
            trouble(run, ground)
            stop_clients(run)
            run.epochs = ground.epoch() - first_epoch
            calls = read_history(run.histories)
            final_calls, tasks = read_everything(run, swarm, calls)
        run.findings.problems += ground.problems + crashes(swarm)
        (run.folder / "history-end.jsonl").write_bytes(
            b"".join(msgspec.json.encode(call) + b"\n" for call in final_calls)
        )
        calls += final_calls
        run.say(f"checking {len(calls)} calls")
        run.findings.add(check_store(calls))
        starts = read_ledger(run.ledger.read_text())
        if tasks is not None:
            run.findings.problems += check_tasks(calls, tasks, starts)
        return report(run, calls, tasks, starts, left_out(ground))


def start_clients(run: Run, swarm: LocalSwarm) -> None:
    """A process of clients for every daemon; it asks its own first."""
    for daemon in swarm.daemons:
        others = [d for d in swarm.daemons if d is not daemon]
        sockets = [f"--socket={d.socket}" for d in (daemon, *others)]
        command = [
            *(sys.executable, str(HERE / "reliability_clients.py"), f"--name={daemon.name}"),
            *sockets,
            f"--history={run.folder / f'history-{daemon.name}.jsonl'}",
            f"--ledger={run.ledger}",
            f"--seed={run.options.seed}",
            f"--since={run.since}",
            f"--inject={run.options.inject}",
        ]
        with (run.folder / f"clients-{daemon.name}.log").open("ab") as log:
            run.clients.append(
                subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            )


def trouble(run: Run, ground: Field) -> None:
    """Fault after fault until the time is up and every kind has been."""
    wanted = [
        kind
        for kind in FAULTS
        if (ground.has_shim or not kind.needs_shim)
        and (not run.options.faults or kind.name in run.options.faults)
    ]
    bag = Bag(wanted, ground.rng)
    until = run.since + run.options.minutes * 60
    while wanted and (time.monotonic() < until or not bag.emptied):
        ground.rest(*CALM_S)
        began = time.monotonic()
        faults = bag.draw()
        try:
            for fault in faults:
                run.faults[fault.name] += 1
                run.say(f"{fault.name}: {fault.begin(ground)}")
            ground.rest(*HELD_S)
            ground.note_ended(disk_trouble=any(fault.of_disk for fault in faults))
            for fault in faults:
                fault.end(ground)
            ground.heal()
        except (NotHealed, TimeoutError) as error:
            run.findings.problems.append(f"{'+'.join(f.name for f in faults)}: {error}")
            run.say(str(error))
            return
        ended = time.monotonic()
        run.windows.append(Window(tuple(f.name for f in faults), began, ended))
        run.say(f"  healed; all serve again after {ended - began:.1f} s")
        for client in run.clients:
            if client.poll() is not None:
                run.findings.problems.append(f"clients ended with {client.returncode}")
                return
    if not wanted:
        time.sleep(max(0.0, until - time.monotonic()))


def stop_clients(run: Run) -> None:
    for client in run.clients:
        client.terminate()
    for client in run.clients:
        try:
            code = client.wait(CLIENTS_END_WITHIN_S)
        except subprocess.TimeoutExpired:
            client.kill()
            code = client.wait()
        if code != 0:
            run.findings.problems.append(f"clients ended with {code}")


# ---- what is there at the end ------------------------------------------------------------


def read_everything(
    run: Run, swarm: LocalSwarm, calls: Sequence[Call]
) -> tuple[list[Call], dict[str, tuple[str, int]] | None]:
    """Reads of every key through every daemon, and the end of every task; None: unreadable."""
    keys = {c.key for c in calls if c.kind in ("put", "cas", "get", "delete")}
    found: list[Call] = []
    tasks = None
    try:
        for daemon in swarm.daemons:
            with Client(daemon.socket, timeout_s=30.0) as client:
                found += read_keys(client, daemon.name, keys)
        ids = sorted({c.result for c in calls if c.kind == "submit" and c.result})
        tasks = read_tasks(swarm, ids)
    except SwarmError as error:
        run.findings.problems.append(f"what is there at the end cannot be read: {error.message}")
    return found, tasks


def read_keys(client: Client, name: str, keys: set[str]) -> Iterator[Call]:
    """One read of each of `keys`, and one of everything that was written once."""
    for prefix in ("k/", "g/"):
        called = time.monotonic()
        entries = {one.key: one for one in pages(client, prefix)}
        returned = time.monotonic()
        for key in sorted(k for k in keys if k.startswith(prefix)):
            entry = entries.get(key)
            value = entry.value.decode() if entry is not None else None
            revision = entry.mod_revision if entry is not None else 0
            yield Call(f"final-{name}", "get", key, called, returned, None, value, revision)
    called = time.monotonic()
    once = {one.key: one.value.decode() for one in pages(client, "once/")}
    yield Call(f"final-{name}", "final", "once/", called, time.monotonic(), None, once)


def pages(client: Client, prefix: str) -> Iterator[Any]:
    after = ""
    while True:
        page = client.kv_list(prefix, after=after, limit=_PAGE)
        yield from page
        if len(page) < _PAGE:
            return
        after = page[-1].key


def read_tasks(swarm: LocalSwarm, ids: Sequence[str]) -> dict[str, tuple[str, int]]:
    """State and committed fence of each task, once all have ended, or after long enough."""
    with Client([d.socket for d in swarm.daemons], timeout_s=10.0) as client:
        with contextlib.suppress(TimeoutError):
            wait_until("tasks end", lambda: open_tasks(client) == 0, timeout_s=TASKS_END_WITHIN_S)
        states = {one.id: (one.state, 0) for one in all_tasks(client)}
        over = [one for one in ids if states.get(one, ("", 0))[0] in FINAL_STATES]
        for start in range(0, len(over), _TASKS_ASKED):
            for task in client.results(over[start : start + _TASKS_ASKED]):
                states[task.id] = (task.state, committed_fence(task))
    return states


def open_tasks(client: Client) -> int:
    counts = client.status().tasks
    return sum(counts.values()) - sum(counts.get(state, 0) for state in FINAL_STATES)


def all_tasks(client: Client) -> Iterator[Any]:
    after = ""
    while True:
        page = client.tasks(after=after, limit=_TASKS_ASKED)
        yield from page.tasks
        after = page.after
        if not after:
            return


def crashes(swarm: LocalSwarm) -> list[str]:
    """Tracebacks in the daemons' logs: a bug is never only a line in a log."""
    return [
        f"{daemon.name} logged a traceback: see {daemon.log}"
        for daemon in swarm.daemons
        if daemon.log.exists() and "Traceback (most recent call last)" in daemon.log.read_text()
    ]


# ---- the report --------------------------------------------------------------------------


def report(
    run: Run,
    calls: Sequence[Call],
    tasks: dict[str, tuple[str, int]] | None,
    starts: dict[str, list[int]],
    missing: dict[str, str],
) -> dict[str, Any]:
    """All figures, as `--json` prints them."""
    acknowledged = acknowledgements(calls)
    pauses: dict[str, float] = {}
    for window in run.windows:
        longest = longest_pause_s(acknowledged, window.began, window.ended)
        what = window.kinds[0] if len(window.kinds) == 1 else TOGETHER
        pauses[what] = max(pauses.get(what, 0.0), round(longest, 2))
    together = sum(len(window.kinds) > 1 for window in run.windows)
    times = {**run.faults, TOGETHER: together}
    return {
        "seed": run.options.seed,
        "nodes": run.options.nodes,
        "took_s": round(time.monotonic() - run.since, 1),
        "calls": count_outcomes(calls),
        "writes_acknowledged": len(acknowledged),
        "faults": {
            kind: {"times": count, "longest_pause_s": pauses.get(kind)}
            for kind, count in sorted(times.items())
        },
        "left_out": missing,
        "voter_changes": run.epochs,
        "tasks": dict(sorted(Counter(state for state, _ in (tasks or {}).values()).items())),
        "attempts": sum(map(len, starts.values())),
        "problems": run.findings.problems,
        "undecided": run.findings.undecided,
        "ok": run.findings.ok,
    }


def show(result: dict[str, Any]) -> None:
    print(f"\nseed {result['seed']}, {result['nodes']} daemons, {result['took_s']:g} s\n")
    print(f"  {'fault':12}{'times':>8}{'longest time without an acknowledged write':>46}")
    for kind, found in result["faults"].items():
        pause = found["longest_pause_s"]
        shown = "-" if pause is None else f"{pause:.2f} s"
        print(f"  {kind:12}{found['times']:>8}{shown:>46}")
    for kind, why in result["left_out"].items():
        print(f"  {kind:12}left out: {why}")
    print(f"\n  {'call':12}{'answered':>10}{'unknown':>10}")
    for kind, found in result["calls"].items():
        print(f"  {kind:12}{found['answered']:>10}{found['unknown']:>10}")
    states = ", ".join(f"{count} {state}" for state, count in result["tasks"].items())
    print(f"\n  tasks: {states}; {result['attempts']} attempts")
    print(f"  changes of voters: {result['voter_changes']}")
    print(f"  acknowledged writes: {result['writes_acknowledged']}")
    for problem in result["problems"][:_SHOWN_MAX]:
        print(f"\nbroken: {problem}")
    if len(result["problems"]) > _SHOWN_MAX:
        print(f"\nand {len(result['problems']) - _SHOWN_MAX} more")
    for key in result["undecided"]:
        print(f"\nundecided: the search for an order of key {key} was given up")
    print(f"\n{len(result['problems'])} broken promises: {'clean' if result['ok'] else 'FAILED'}")


# ---- the program -------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/reliability", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, metavar="M", help="how long (2)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="chooses the faults (0)")
    parser.add_argument("--nodes", type=int, default=3, choices=(3, 5), help="daemons (3)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "--faults",
        nargs="*",
        choices=["none", *(kind.name for kind in FAULTS)],
        default=[],
        help="only these kinds, or none (all)",
    )
    parser.add_argument(
        "--inject",
        choices=("", "stale-reads"),
        default="",
        help="break a promise on purpose, to see that it is found",
    )
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error("--minutes must be above 0")
    return options


def main() -> int:
    options = parse()
    if _INSIDE in os.environ:
        return run_inside(options, Path(os.environ.pop(_INSIDE)))
    reason = missing_tools()
    if reason:
        print(f"scripts/reliability: {reason}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix=f"swarmd-reliability-{os.getpid()}-"))
    code = isolate({_INSIDE: str(folder)})
    if code == 1:
        print(f"the history and the daemons' logs are in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return code


def run_inside(options: argparse.Namespace, folder: Path) -> int:
    run = Run(options, folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = carry_out(run)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    finally:
        for client in run.clients:
            if client.poll() is None:
                client.kill()
    result["history"] = "" if result["ok"] else str(folder)
    (folder / "result.json").write_text(json.dumps(result, indent=2))
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
