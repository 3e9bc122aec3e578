"""swarmctl locks and swarmctl elections: who holds, who leads, who waits."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from swarmd.cli.common import SwarmGroup, open_client, print_json, say, wants_json
from swarmd.cli.tables import ago, table

if TYPE_CHECKING:
    from swarmd.gateway.shapes import LineInfo, PlaceInfo


@click.group(
    cls=SwarmGroup,
    examples=["swarmctl locks list", "swarmctl locks show backup"],
)
def locks() -> None:
    """Who holds which lock, and who waits for it. Take one with `swarmctl lock`."""


@locks.command("list")
def list_locks() -> None:
    """List the locks that are held."""
    with open_client() as client:
        _print_lines(client.locks(), "HOLDER", "no lock is held")


@locks.command("show")
@click.argument("name")
def show_lock(name: str) -> None:
    """Show who holds NAME and who waits, in order."""
    with open_client() as client:
        _print_line(client.lock(name), "holds", f"lock {name} is free")


@click.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl elections list",
        "swarmctl elections show primary",
        "swarmctl elections watch primary --json",
    ],
)
def elections() -> None:
    """Who leads, and who stands to. Stand for one with `swarmctl elect`."""


@elections.command("list")
def list_elections() -> None:
    """List the elections that have a leader."""
    with open_client() as client:
        _print_lines(client.elections(), "LEADER", "nobody leads anything")


@elections.command("show")
@click.argument("name")
def show_election(name: str) -> None:
    """Show who leads NAME and who stands to, in order."""
    with open_client() as client:
        _print_line(client.election(name), "leads", f"nobody leads {name}")


@elections.command("watch")
@click.argument("name")
def watch_election(name: str) -> None:
    """Print who leads NAME now, and whenever that changes, until Ctrl-C."""
    with open_client() as client:
        for line in client.observe(name):
            holder = line.holder
            if wants_json():
                print_json(line)
            elif holder is None:
                say(f"nobody leads {name}")
            else:
                value = f" at {_text(holder)}" if holder.value else ""
                say(f"{holder.owner} leads {name}{value}, fence {holder.revision}")


def _print_lines(lines: list[LineInfo], head: str, none: str) -> None:
    if wants_json():
        print_json(lines)
        return
    if not lines:
        say(none)
        return
    rows = []
    for line in lines:
        holder = line.holder
        assert holder is not None, "a line that is listed has somebody in it"
        rows.append(
            [line.name, holder.owner, str(holder.revision), _age(holder), str(line.waiting)]
        )
    click.echo(table(["NAME", head, "FENCE", "SINCE", "WAITING"], rows))


def _print_line(line: LineInfo, verb: str, none: str) -> None:
    if wants_json():
        print_json(line)
        return
    if not line.line:
        say(none)
        return
    rows = []
    for index, place in enumerate(line.line):
        state = verb if index == 0 else "waits"
        rows.append([state, place.owner, str(place.revision), _age(place), _text(place)])
    heads = ["STATE", "OWNER", "FENCE", "SINCE", "VALUE"]
    if not any(place.value for place in line.line):
        heads, rows = heads[:-1], [row[:-1] for row in rows]
    click.echo(table(heads, rows))


def _age(place: PlaceInfo) -> str:
    """How long ago it asked."""
    return ago(max(time.time() - place.asked_ms / 1_000, 0.0))


def _text(place: PlaceInfo) -> str:
    return place.value.decode("utf-8", "backslashreplace")
