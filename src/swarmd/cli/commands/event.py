"""swarmctl event: tell all members that something has happened, and hear of it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from swarmd.cli.common import SwarmGroup, open_client, print_json, say, wants_json, warn

if TYPE_CHECKING:
    from swarmd.gateway.shapes_events import EventInfo

_NAME_CHARS = 16


@click.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl event send deploy v2",
        "swarmctl event watch deploy",
        "swarmctl event list",
    ],
)
def event() -> None:
    """Named events that every node tells every other; the latest are kept for a while."""


@event.command(examples=["swarmctl event send deploy v2", "swarmctl event send cache-cleared"])
@click.argument("name")
@click.argument("payload", required=False, default="")
def send(name: str, payload: str) -> None:
    """Tell all nodes that NAME has happened, with up to 512 bytes of PAYLOAD.

    It is on its way when this ends: nearly all nodes have it within a second, and who is away is
    told when it is back.
    """
    with open_client() as client:
        sent = client.event_send(name, payload)
    if wants_json():
        print_json(sent)
    else:
        say(f"{sent.name} is on its way to all, as event {sent.time}")


@event.command("list", examples=["swarmctl event list"])
def list_() -> None:
    """Show the latest events that the node knows, oldest first."""
    from swarmd.cli.tables import printable, table

    with open_client() as client:
        found = client.events()
    if wants_json():
        print_json(found)
        return
    rows = [
        [str(one.time), _when(one), printable(one.node), one.name, printable(one.payload)]
        for one in found
    ]
    click.echo(table(["TIME", "SENT", "BY", "NAME", "PAYLOAD"], rows, whole=1))


@event.command(examples=["swarmctl event watch", "swarmctl event watch deploy --count 1"])
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N events.")
def watch(names: tuple[str, ...], count: int | None) -> None:
    """Print events as the node hears of them, of NAMEs or all, until Ctrl-C."""
    left = count
    with open_client() as client:
        for news in client.event_watch(names):
            if news.event is None:
                if sys.stderr.isatty():
                    warn("watching from now on; Ctrl-C ends it")
                continue
            if news.missed:
                warn(f"{news.missed} events were not told, because this was too slow")
            _print(news.event)
            sys.stdout.flush()
            if left is not None:
                left -= 1
                if left == 0:
                    return


def _print(one: EventInfo) -> None:
    if wants_json():
        print_json(one)
        return
    from swarmd.cli.tables import printable

    shown = f"  {printable(one.payload)}" if one.payload else ""
    click.echo(f"{_when(one)}  {one.name:<{_NAME_CHARS}}{shown}  from {printable(one.node)}")


def _when(one: EventInfo) -> str:
    """The sender's wall clock, in the time zone of this terminal; whatever it signed."""
    try:
        return time.strftime("%m-%d %H:%M:%S", time.localtime(one.wall_ms / 1_000))
    except (OverflowError, ValueError, OSError):
        return "?"
