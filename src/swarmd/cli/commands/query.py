"""swarmctl node query: ask all nodes, or some, and show what each answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from swarmd.cli.common import (
    EXIT_FAILED,
    BadInput,
    SwarmCommand,
    complete_members,
    open_client,
    print_json,
    read_duration_s,
    wants_json,
    warn,
)

if TYPE_CHECKING:
    from swarmd.gateway.shapes_events import NodeAnswer, QueryResult

# The daemon answers a little after the deadline.
_SLACK_S = 10.0


@click.command(
    cls=SwarmCommand,
    examples=[
        "swarmctl node query uptime",
        "swarmctl node query disk --tag rack=a --timeout 3s",
        "swarmctl node query ping hello --member n2 --member n3",
    ],
)
@click.argument("name")
@click.argument("payload", required=False, default="")
@click.option(
    "--member",
    "members",
    multiple=True,
    metavar="NAME|ID",
    shell_complete=complete_members,
    help="Ask it and no other but those named likewise.",
)
@click.option("--tag", multiple=True, metavar="KEY=VALUE", help="Ask those with this tag.")
@click.option("--timeout", metavar="TIME", help="Longest wait, such as 5s; at most 60s.")
def query(
    name: str, payload: str, members: tuple[str, ...], tag: tuple[str, ...], timeout: str | None
) -> int:
    """Ask all nodes NAME: disk, load, ping, uptime or version; gather what they answer in time.

    Exit code 1 if any that was asked gave no answer.
    """
    if wrong := [one for one in tag if "=" not in one]:
        raise BadInput(f"nobody was asked: {wrong[0]!r} is not KEY=VALUE")
    tags = dict(one.split("=", 1) for one in tag)
    wait_s = None if timeout is None else read_duration_s(timeout)
    with open_client(timeout_s=_SLACK_S + (wait_s or _SLACK_S)) as client:
        found = client.query(name, payload, nodes=members, tags=tags, timeout_s=wait_s)
    if wants_json():
        print_json(found)
    else:
        _show(found)
    return 0 if found.answers == found.asked else EXIT_FAILED


def _show(found: QueryResult) -> None:
    from swarmd.cli.tables import printable, table

    rows = [[printable(one.node), f"{one.took_ms} ms", _answered(one)] for one in found.nodes]
    click.echo(table(["NODE", "AFTER", "ANSWER"], rows, whole=1))
    click.echo(f"{found.asked} asked, {found.acks} heard from, {found.answers} answered")
    if found.missing:
        warn(f"not heard from: {printable(', '.join(found.missing))}")


def _answered(one: NodeAnswer) -> str:
    from swarmd.cli.tables import printable

    if one.answer is None:
        return printable(f"{one.code}: {one.problem}")
    return printable("  ".join(f"{key}={value}" for key, value in one.answer.items()))
