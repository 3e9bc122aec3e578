"""swarmctl voter: who votes in the strong store, and who should."""

from __future__ import annotations

import click

from swarmd.cli.common import SwarmGroup, complete_members, open_client, print_json, say, wants_json
from swarmd.cli.tables import table
from swarmd.gateway.shapes import VoterSeat


@click.group(
    cls=SwarmGroup,
    examples=["swarmctl voter list", "swarmctl voter pin n3", "swarmctl voter unpin n3"],
)
def voter() -> None:
    """The voters of the strong store: the swarm chooses them, you may pin some."""


@voter.command("list", examples=["swarmctl voter list"])
def list_() -> None:
    """Show who has a seat and who could take one."""
    with open_client() as client:
        found = client.voters()
    if wants_json():
        print_json(found)
        return
    click.echo(table(["NODE", "STATE", "SEAT", "PINNED", "HOST"], [_row(one) for one in found]))


def _row(one: VoterSeat) -> list[str]:
    seat = "coordinator" if one.coordinator else "voter" if one.seat else "spare"
    return [one.node, one.state, seat, "yes" if one.pinned else "-", one.host or "-"]


@voter.command(examples=["swarmctl voter pin n3"])
@click.argument("member", shell_complete=complete_members)
def pin(member: str) -> None:
    """Give MEMBER a seat before others, and do not move it, dead or alive."""
    with open_client() as client:
        found = client.voter_pin(member)
    if wants_json():
        print_json(found)
    elif found.seat:
        say(f"{found.node} keeps its seat")
    else:
        say(f"{found.node} gets a seat at the next change of voters, within about a minute")


@voter.command(examples=["swarmctl voter unpin n3"])
@click.argument("member", shell_complete=complete_members)
def unpin(member: str) -> None:
    """Let MEMBER be moved again; it keeps its seat until there is a reason."""
    with open_client() as client:
        found = client.voter_unpin(member)
    if wants_json():
        print_json(found)
    else:
        say(f"{found.node} is not pinned")
