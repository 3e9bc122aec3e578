"""swarmctl job: run, list, show, cancel."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swarmd.base.errors import SwarmError
from swarmd.cli.commands.task import first_line, show_value
from swarmd.cli.common import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    SwarmGroup,
    complete_jobs,
    open_client,
    print_json,
    say,
    wants_json,
    warn,
)
from swarmd.cli.progress import Bar
from swarmd.cli.tables import ago, facts, table

if TYPE_CHECKING:
    from swarmd.client import Client
    from swarmd.gateway.shapes import JobInfo

_MEMBERS_EVERY_S = 0.5


@click.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl job run pipeline.toml docs/ notes.txt",
        "swarmctl job run pipeline.toml docs/ --detach",
        "swarmctl job list",
        "swarmctl job cancel ID",
    ],
)
def job() -> None:
    """Run pipelines of agents over many inputs."""


@job.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument(
    "paths", metavar="FILE|FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--detach", is_flag=True, help="Print the id and return.")
@click.option("--key", default="", help="Idempotency key: the same key is the same job.")
def run(file: Path, paths: tuple[Path, ...], detach: bool, key: str) -> int:
    """Run the job FILE (TOML) over files, and over the documents in folders.

    The job is kept by the swarm: it goes on if this command or its daemon ends. Ctrl-C cancels
    it, except with --detach.
    """
    from swarmd.cli.inputs import read_inputs
    from swarmd.cli.job_file import load_job_file
    from swarmd.client import ItemInput

    loaded = load_job_file(file)
    inputs = read_inputs(paths, loaded.suffixes)
    items = [ItemInput(name=one.name, input=one.value) for one in inputs]
    del inputs
    with open_client() as client:
        key = key or secrets.token_hex(16)
        try:
            started = client.submit_job(loaded.job, items, key=key)
        except KeyboardInterrupt:
            client.close()  # The key tells which job there may be: ask for its id.
            return _cancel(client, client.submit_job(loaded.job, items, key=key).id)
        items.clear()
        if detach:
            if wants_json():
                print_json({"job": started.id})
            else:
                click.echo(started.id)
            return 0
        try:
            ended = _follow(client, started)
        except KeyboardInterrupt:
            return _cancel(client, started.id)
        return _finish(client, ended)


def _cancel(client: Client, job_id: str) -> int:
    client.cancel_job(job_id)
    warn(f"\nswarmctl: interrupted; job {job_id} is cancelled")
    return EXIT_INTERRUPTED


def _follow(client: Client, started: JobInfo) -> JobInfo:
    """Show the job's progress until it ended."""
    last = started
    nodes = _Nodes(client)
    with Bar(started.name or "job", started.total) as bar:
        for last in client.job_events(started.id):
            note = nodes.states() if bar.drawn else ""
            if last.failed:
                note = f"{last.failed} failed  {note}"
            bar.update(last.done, last.total, note)
    return last


class _Nodes:
    """The members' states for the line beside the bar, asked for now and then."""

    def __init__(self, client: Client) -> None:
        from swarmd.client import Client

        # Its own connection: the other one carries the events.
        self._client = Client(client.sockets, timeout_s=1.0)
        self._asked_at = float("-inf")
        self._text = ""

    def states(self) -> str:
        if time.monotonic() - self._asked_at < _MEMBERS_EVERY_S:
            return self._text
        self._asked_at = time.monotonic()
        try:
            members = self._client.members()
        except SwarmError:
            return self._text  # The events tell soon enough whether the daemon is gone.
        self._text = " ".join(
            f"{one.name}{'*' if one.coordinator else ''}:{one.state}" for one in members
        )
        return self._text


def _finish(client: Client, ended: JobInfo) -> int:
    if ended.state != "succeeded":
        cause = first_line(ended.error)
        warn(f"swarmctl: job {ended.id} {ended.state}: {cause}")
        if wants_json():
            print_json({"job": ended.id, "state": ended.state, "error": ended.error})
        return EXIT_FAILED
    result: Any = client.job_result(ended.id)
    if wants_json():
        print_json({"job": ended.id, "state": ended.state, "result": result, "info": ended})
    else:
        click.echo(show_value(result))
        warn(
            f"swarmctl: job {ended.id}: {ended.done} of {ended.total} tasks done, "
            f"{ended.failed} failed, {_took(ended)}"
        )
    return 0


def _took(one: JobInfo) -> str:
    end_ms = one.ended_ms or time.time_ns() // 1_000_000
    return ago(max(0, end_ms - one.created_ms) / 1000)


@job.command("list")
def list_jobs() -> None:
    """List the jobs."""
    with open_client() as client:
        found = client.jobs()
    if wants_json():
        print_json({"jobs": found})
        return
    rows = [
        [one.id, one.name, one.state, f"{one.done}/{one.total}", str(one.failed), _took(one)]
        for one in found
    ]
    click.echo(table(["ID", "NAME", "STATE", "DONE", "FAILED", "TOOK"], rows, whole=1))


@job.command()
@click.argument("job_id", metavar="ID", shell_complete=complete_jobs)
@click.option("--result", "with_result", is_flag=True, help="Print its result too.")
def show(job_id: str, with_result: bool) -> None:
    """Show one job and its stages."""
    with open_client() as client:
        found = client.job(job_id)
        result = client.job_result(job_id) if with_result else None
    if wants_json():
        print_json({"job": found, "result": result} if with_result else {"job": found})
        return
    rows = [
        ("id", found.id),
        ("name", found.name),
        ("state", found.state),
        ("tasks", f"{found.done} of {found.total} done, {found.failed} failed"),
        ("took", _took(found)),
    ]
    if found.error is not None:
        rows.append(("error", f"{found.error.code}: {found.error.message}"))
    click.echo(facts(rows))
    if found.stages:
        cells = [
            [str(one.get(key, "")) for key in ("name", "agent", "kind", "done", "total", "failed")]
            for one in found.stages
        ]
        click.echo("\n" + table(["STAGE", "AGENT", "KIND", "DONE", "TOTAL", "FAILED"], cells))
    if with_result:
        click.echo(show_value(result))


@job.command()
@click.argument("job_id", metavar="ID", shell_complete=complete_jobs)
def cancel(job_id: str) -> None:
    """Cancel a job and the tasks of it that have not ended."""
    with open_client() as client:
        found = client.cancel_job(job_id)
    if wants_json():
        print_json({"job": found})
    else:
        say(f"{found.id} is {found.state}")
