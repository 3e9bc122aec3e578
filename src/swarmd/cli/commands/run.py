"""swarmctl run: one task per file or value, results as they end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swarmd.cli.commands.task import first_line, show_value
from swarmd.cli.common import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    BadInput,
    Duration,
    SwarmCommand,
    complete_agents,
    open_client,
    print_json,
    wants_json,
    warn,
)
from swarmd.cli.progress import Bar

if TYPE_CHECKING:
    from swarmd.client import Client, TaskInput
    from swarmd.gateway.shapes import TaskInfo


@click.command(
    cls=SwarmCommand,
    examples=[
        "swarmctl run extractor *.txt",
        "swarmctl run adder --input '[1, 2]'",
        "echo '{\"n\": 3}' | swarmctl run counter --input -",
        "swarmctl run extractor big.txt --detach",
    ],
)
@click.argument("agent", shell_complete=complete_agents)
@click.argument("files", metavar="FILE...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--input", "values", multiple=True, metavar="JSON|-", help="A value instead of files."
)
@click.option("--detach", is_flag=True, help="Print the ids and return; the tasks stay.")
@click.option("--key", default="", help="Idempotency key: the same key is the same task.")
@click.option("--priority", type=click.IntRange(-1_000, 1_000), help="Higher starts first.")
@click.option("--timeout", type=Duration(), help="Longest run of one attempt, like 90s or 10m.")
@click.option("--retries", type=click.IntRange(0, 100), help="Attempts after the first.")
def run(
    agent: str,
    files: tuple[Path, ...],
    values: tuple[str, ...],
    detach: bool,
    key: str,
    priority: int | None,
    timeout: float | None,
    retries: int | None,
) -> int:
    """Run AGENT on every FILE, or on the values of --input, and print what it gives.

    A file is given to the agent as {"name": ..., "content": bytes}. Ctrl-C cancels the tasks,
    except with --detach.
    """
    from swarmd.client import TaskInput

    named = _inputs(files, values)
    tasks = [
        TaskInput(
            agent=agent,
            input=value,
            name=name,
            key=key if len(named) == 1 or not key else f"{key}/{index}",
            priority=priority,
            timeout_s=timeout,
            retries=retries,
        )
        for index, (name, value) in enumerate(named)
    ]
    with open_client() as client:
        return _submit(client, tasks, detach)


def _inputs(files: tuple[Path, ...], values: tuple[str, ...]) -> list[tuple[str, Any]]:
    """(name, value) of every input."""
    if bool(files) == bool(values):
        raise click.UsageError("give files, or --input with a JSON value (null for none)")
    if values:
        return [("", json_value(text)) for text in values]
    from swarmd.cli.inputs import read_inputs

    for path in files:
        if path.is_dir():
            raise BadInput(f"{path} is a folder: give its files, or use `swarmctl job run`")
    found = read_inputs(files)
    for one in found:
        if one.unreadable:
            raise BadInput(f"cannot read {one.name}: {one.unreadable}")
    return [(one.name, one.value) for one in found]


def json_value(text: str) -> Any:
    """The value of --input: JSON, or - for what comes from standard input. Raises BadInput."""
    raw = sys.stdin.read() if text == "-" else text
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        where = "standard input" if text == "-" else f"--input {text!r}"
        raise BadInput(f"{where} is not JSON: {error}") from error


def _submit(client: Client, tasks: list[TaskInput], detach: bool) -> int:
    names = {}
    ids: list[str] = []
    failed = 0
    try:
        answers = client.submit(tasks)
    except KeyboardInterrupt:
        return _cancel_started(client, tasks)
    for task, submitted in zip(tasks, answers, strict=True):
        if submitted.error is not None:
            failed += 1
            warn(f"swarmctl: {task.name or task.agent}: {submitted.error.message}")
            continue
        names[submitted.id] = task.name
        ids.append(submitted.id)
    if detach:
        for one in ids:
            if wants_json():
                print_json({"id": one, "name": names[one]})
            else:
                click.echo(one)
        return EXIT_FAILED if failed else 0
    ids = list(dict.fromkeys(ids))
    try:
        failed += _follow(client, ids, names)
    except KeyboardInterrupt:
        return _cancel(client, ids)
    return EXIT_FAILED if failed else 0


def _cancel_started(client: Client, tasks: list[TaskInput]) -> int:
    """Interrupted in a submit: its keys tell which tasks there may be, so ask for their ids."""
    client.close()
    started = client.submit([task for task in tasks if task.key])
    return _cancel(client, [one.id for one in started if one.error is None])


def _cancel(client: Client, ids: list[str]) -> int:
    cancelled = client.cancel(ids)
    count = sum(one.state == "cancelled" for one in cancelled)
    warn(f"\nswarmctl: interrupted; {count} of {len(ids)} tasks cancelled")
    return EXIT_INTERRUPTED


def _follow(client: Client, ids: list[str], names: dict[str, str]) -> int:
    """Print results as they end; how many did not succeed."""
    failed = 0
    with Bar("tasks", len(ids)) as bar:
        for done, ended in enumerate(client.results(ids), 1):
            bar.update(done, note=f"{failed} failed" if failed else "")
            name = ended.name or names.get(ended.id, "")
            if ended.state != "succeeded":
                failed += 1
            _print(bar, ended, name, many=len(ids) > 1)
    return failed


def _print(bar: Bar, ended: TaskInfo, name: str, *, many: bool) -> None:
    if wants_json():
        print_json(ended)
        return
    label = name or ended.id
    if ended.state == "succeeded":
        text = show_value(ended.result)
        bar.print(f"{label}: {text}" if many else text)
        return
    cause = first_line(ended.error)
    where = f" on {ended.node}" if ended.node else ""
    warn(f"swarmctl: {label} {ended.state}{where} after {ended.attempts} attempts: {cause}")
