"""swarmctl voter: who votes in the strong store, and who should."""

from __future__ import annotations

from pathlib import Path

import click

from swarmd.base.errors import BadSignature
from swarmd.cli.common import (
    BadInput,
    SwarmGroup,
    complete_members,
    open_client,
    print_json,
    say,
    wants_json,
    warn,
)
from swarmd.cli.tables import table
from swarmd.gateway.shapes import RecoveryPlan, VoterSeat


@click.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl voter list",
        "swarmctl voter pin n3",
        "swarmctl voter unpin n3",
        "swarmctl voter recover --recovery-key lab.recovery.key",
    ],
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


@voter.command(
    examples=[
        "swarmctl voter recover --recovery-key /media/usb/lab.recovery.key",
        "swarmctl --node n2 voter recover --recovery-key lab.recovery.key",
    ]
)
@click.option(
    "--recovery-key",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    required=True,
    help="The key that `swarmd --init` named; it is read here and sent nowhere.",
)
@click.option("--yes", metavar="SWARM", default="", help="Accept the loss: the swarm's name.")
def recover(recovery_key: Path, yes: str) -> None:
    """Have one node go on alone after a majority of the voters is lost for ever.

    For the day when the disks of a majority are gone. The node that answers goes on with what it
    holds; choose the one whose log goes furthest: see `swarmctl raft status`.
    """
    from swarmd.identity.epochs import RECOVERY_DOMAIN
    from swarmd.identity.keys import SigningKey
    from swarmd.identity.signing import sign_envelope
    from swarmd.wire.envelope import encode_envelope

    key = SigningKey.load(recovery_key)
    with open_client() as client:
        plan = client.recovery_plan()
        _confirm(plan, yes)
        envelope = sign_envelope(RECOVERY_DOMAIN, plan.swarm_id, plan.statement, key)
        try:
            client.recover(encode_envelope(envelope))
        except BadSignature as error:
            raise BadInput(
                f"{recovery_key} is not the recovery key of the swarm {plan.swarm}"
            ) from error
    if wants_json():
        print_json({"node": plan.node, "revision": plan.revision, "keys": plan.keys})
    else:
        say(f"{plan.node} goes on alone from revision {plan.revision}, with {plan.keys} keys")


def _confirm(plan: RecoveryPlan, given: str) -> None:
    """Say what may be lost, and have the swarm's name typed."""
    voters = ", ".join(f"{one.node} ({one.state})" for one in plan.voters)
    held = "its log" if plan.source == "voter" else "its copy, for it is no voter"
    warn(
        f"{plan.node} would go on alone with {held}: {plan.keys} keys, at revision "
        f"{plan.revision}. The voters of epoch {plan.epoch} are given up: {voters}. What they "
        f"acknowledged and {plan.node} never got is lost for ever, and so is all that they do "
        "from now on, if some of them still run somewhere: then start or reach them instead."
    )
    if not given:
        if wants_json():
            raise BadInput(f"to accept the loss, repeat this with --yes {plan.swarm}")
        given = click.prompt("To accept the loss, type the name of the swarm", err=True)
    if given.strip() != plan.swarm:
        raise BadInput(f"nothing is changed: {given!r} is not the name of this swarm")
