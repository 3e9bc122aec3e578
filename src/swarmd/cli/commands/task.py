"""swarmctl task: list, show, cancel."""

from __future__ import annotations

import json
import time

import click

from swarmd.cli.common import (
    SwarmGroup,
    complete_agents,
    complete_jobs,
    complete_tasks,
    open_client,
    print_json,
    say,
    wants_json,
    warn,
)
from swarmd.cli.tables import facts, table
from swarmd.gateway.shapes import ErrorInfo, TaskInfo

STATES = [
    "pending", "assigned", "running", "succeeded", "failed", "cancelled", "dead", "unknown",
]  # fmt: skip
_PAGE = 1_000


@click.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl task list --state running",
        "swarmctl task show ID",
        "swarmctl task cancel ID",
    ],
)
def task() -> None:
    """Look at single tasks."""


@task.command("list")
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@click.option("--agent", shell_complete=complete_agents, help="Only those of this agent.")
@click.option("--job", shell_complete=complete_jobs, metavar="ID", help="Only those of this job.")
@click.option("--limit", type=click.IntRange(1, _PAGE), default=100, show_default=True)
@click.option("--after", metavar="MARK", default="", help="Go on where a page ended.")
@click.option("--all", "every", is_flag=True, help="All of them, however many.")
def list_tasks(
    state: str | None, agent: str | None, job: str | None, limit: int, after: str, every: bool
) -> None:
    """List tasks."""
    found: list[TaskInfo] = []
    with open_client() as client:
        while True:
            page = client.tasks(
                state=state or "",
                agent=agent or "",
                job=job or "",
                after=after,
                limit=_PAGE if every else limit,
            )
            found += page.tasks
            after = page.after
            if not every or not after:
                break
    if wants_json():
        print_json({"tasks": found, "after": after})
        return
    rows = [
        [one.id, one.agent, one.state, one.node or "-", str(one.attempts), one.name]
        for one in found
    ]
    click.echo(table(["ID", "AGENT", "STATE", "NODE", "ATTEMPTS", "NAME"], rows, whole=1))
    if after:
        warn(f"the first {len(found)}; go on with --after {after}, or --all")


@task.command()
@click.argument("task_id", metavar="ID", shell_complete=complete_tasks)
def show(task_id: str) -> None:
    """Show one task: its state, attempts, and result or error."""
    with open_client() as client:
        found = client.task(task_id)
    if wants_json():
        print_json(found)
        return
    rows = [
        ("id", found.id),
        ("agent", found.agent),
        ("state", found.state),
        ("node", found.node or "-"),
        ("attempts", f"{found.attempts}, fence {found.fence}"),
        ("key", found.key or "-"),
    ]
    if found.name:
        rows.append(("name", found.name))
    if found.job:
        rows.append(("job", found.job))
    rows += [
        (word, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value / 1000)))
        for word, value in (("created", found.created_ms), ("ended", found.ended_ms))
        if value
    ]
    rows += [("story", line) for line in found.story]
    if found.error is not None:
        rows.append(("error", f"{found.error.code}: {found.error.message}"))
    click.echo(facts(rows))
    if found.state == "succeeded":
        click.echo("result  " + show_value(found.result))


@task.command()
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True, shell_complete=complete_tasks)
def cancel(task_ids: tuple[str, ...]) -> None:
    """Cancel tasks that have not ended."""
    with open_client() as client:
        found = client.cancel(task_ids)
    if wants_json():
        print_json({"tasks": found})
        return
    for one in found:
        say(f"{one.id} is {one.state}")


def first_line(error: ErrorInfo | None) -> str:
    """The cause without the agent's stack, which `task show` prints."""
    if error is None:
        return "no cause given"
    return f"{error.code}: {(error.message.splitlines() or [''])[0]}"


def show_value(value: object) -> str:
    """A result for people: text as it is, everything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: object) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
