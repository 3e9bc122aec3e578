"""Ten real daemons in network namespaces, which find each other by multicast DNS alone.

One thing after the other befalls them, and each time all views have to be equal again within a
minute. No member that is well may be held dead by anybody at any time: the daemons' own logs tell
that. Exit codes: 0 every promise held; 1 one was broken, and the logs are kept; 2 it cannot be run
here. Everything runs in a process namespace of its own, which ends with this script.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from hosts_ground import COUNT, Ground, ten_hosts
from hosts_quota import controller, remove_groups
from hosts_scenarios import Outcome, Starved, all_of, figures, play
from isolation import isolate
from nethosts import missing_tools

_INSIDE: Final = "HOSTS_FOLDER"
_OWNER: Final = "HOSTS_OWNER"
_COLUMNS: Final = ("held_s", "known_s", "healed_s", "equal_s", "deaths", "suspicions")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/hosts", description=__doc__)
    parser.add_argument(
        "--long", action="store_true", help="ten minutes of partition, and ten of starved daemons"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these (all)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    known = [one.name for one in all_of(long=False)]
    for name in options.only:
        if name not in known:
            parser.error(f"there is no {name!r}; there are: {', '.join(known)}")
    return options


def main() -> int:
    options = parse()
    if _INSIDE in os.environ:
        return run_inside(options, Path(os.environ[_INSIDE]), int(os.environ[_OWNER]))
    reason = missing_tools()
    if reason:
        print(f"scripts/hosts: {reason}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix=f"swarmd-hosts-{os.getpid()}-"))
    code = 1
    try:
        code = isolate({_INSIDE: str(folder), _OWNER: str(os.getpid())})
    finally:
        remove_groups(os.getpid())
        if code == 1:
            print(f"the daemons' logs are in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return code


def run_inside(options: argparse.Namespace, folder: Path, owner: int) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.monotonic()

    def say(text: str) -> None:
        if not options.json:
            print(f"{time.monotonic() - began:7.1f} s  {text}", flush=True)

    try:
        with ten_hosts(folder, say, owner) as ground:
            result = carry_out(ground, options)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    result["took_s"] = round(time.monotonic() - began, 1)
    (folder / "result.json").write_text(json.dumps(result, indent=2))
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)
    return 0 if result["ok"] else 1


def carry_out(ground: Ground, options: argparse.Namespace) -> dict[str, Any]:
    """Everything, from the first daemon to the verdict."""
    outcomes: list[Outcome] = []
    try:
        formed_s = ground.form()
    except TimeoutError as error:
        ground.problems.append(f"the swarm did not form: {error}")
        return report(ground, None, [], {})
    ground.say(f"{COUNT} daemons found each other by multicast DNS and are one swarm")
    left_out: dict[str, str] = {}
    for scenario in all_of(long=options.long):
        if options.only and scenario.name not in options.only:
            continue
        if isinstance(scenario, Starved) and controller() is None:
            left_out[scenario.name] = "there are no control groups of processor time"
            continue
        outcomes.append(play(ground, scenario))
    ground.note_ended()
    return report(ground, formed_s, outcomes, left_out)


def report(
    ground: Ground, formed_s: float | None, outcomes: Sequence[Outcome], left_out: dict[str, str]
) -> dict[str, Any]:
    """All figures, as `--json` prints them."""
    # Between the scenarios, too, and while the swarm was formed.
    false_deaths = ground.false_deaths()
    counted = sum(outcome.false_deaths for outcome in outcomes)
    if len(false_deaths) > counted:
        ground.tell_false(false_deaths)
    return {
        "formed_s": None if formed_s is None else round(formed_s, 1),
        "scenarios": [figures(outcome) for outcome in outcomes],
        "left_out": left_out,
        "false_deaths": len(false_deaths),
        "problems": list(dict.fromkeys(ground.problems)),
        "ok": not ground.problems,
    }


def show(result: dict[str, Any]) -> None:
    print(f"\n{COUNT} daemons, {result['took_s']:g} s; one swarm after {result['formed_s']} s\n")
    titles = (
        *("lasted", "all knew", "healed in", "equal in", "deaths (false)", "suspicions (false)"),
        "waited",
    )
    widths = [len(title) + 3 for title in titles]
    print(" " * 18 + "".join(f"{t:>{w}}" for t, w in zip(titles, widths, strict=True)))
    for row in result["scenarios"]:
        cells = ["-" if row[c] is None else f"{row[c]:.1f} s" for c in _COLUMNS[:4]]
        cells += [f"{row[c]} ({row[f'false_{c}']})" for c in _COLUMNS[4:]]
        cells.append(f"{row['waited_s']:.2f} s")
        shown = "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))
        print(f"  {row['name']:16}{shown}")
    for name, why in result["left_out"].items():
        print(f"  {name:16}left out: {why}")
    for problem in result["problems"]:
        print(f"\nbroken: {problem}")
    print(f"\n{len(result['problems'])} broken promises: {'clean' if result['ok'] else 'FAILED'}")


if __name__ == "__main__":
    sys.exit(main())
