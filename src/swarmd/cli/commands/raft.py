"""swarmctl raft, swarmctl coordinator: the strong store's voters and who leads them."""

from __future__ import annotations

import click

from swarmd.cli.common import (
    SwarmGroup,
    complete_members,
    open_client,
    print_json,
    say,
    wants_json,
    warn,
)
from swarmd.cli.tables import facts, size, table
from swarmd.gateway.shapes import RaftStatus, VoterInfo


@click.group(cls=SwarmGroup, examples=["swarmctl raft status", "swarmctl --node n2 raft status"])
def raft() -> None:
    """The log of the strong store."""


@raft.command()
def status() -> None:
    """Show every voter's log, and the journal of the node that answers.

    Voters that do not answer within a second are named. LAG is in entries not acknowledged.
    """
    with open_client() as client:
        found = client.raft_status()
    if wants_json():
        print_json(found)
        return
    heads = ["NODE", "ROLE", "TERM", "COMMIT", "APPLIED", "LAG", "SILENCE"]
    click.echo(table(heads, [_row(one) for one in found.voters]))
    click.echo("\n" + facts(_facts(found)))
    for one in found.voters:
        if one.problem:
            warn(f"{one.node} is missing: {one.problem}")


def _row(one: VoterInfo) -> list[str]:
    if one.problem:
        return [one.node, "missing", "-", "-", "-", _or_dash(one.lag), _ms(one.silence_s)]
    numbers = [str(one.term), str(one.commit), str(one.applied)]
    return [one.node, one.role, *numbers, _or_dash(one.lag), _ms(one.silence_s)]


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1_000:.0f} ms" if seconds < 10 else f"{seconds:.0f} s"


def _facts(found: RaftStatus) -> list[tuple[str, str]]:
    rows = [("coordinator", found.coordinator or "none"), ("epoch", str(found.epoch))]
    own = next((one for one in found.voters if one.node == found.node and not one.problem), None)
    if own is None:
        return [*rows, ("this node", f"{found.node}, no voter")]
    snapshot = f"ends at entry {own.snapshot_index}" if own.snapshot_index else "none yet"
    fsync = f"last {own.fsync_last_ms:.1f} ms, slowest {own.fsync_slowest_ms:.1f} ms"
    return [
        *rows,
        ("this node", found.node),
        ("journal", f"{size(own.journal_bytes)}, up to entry {own.last_index}"),
        ("snapshot", snapshot),
        ("fsync", fsync),
    ]


@click.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl coordinator show",
        "swarmctl coordinator transfer",
        "swarmctl coordinator transfer host2",
    ],
)
def coordinator() -> None:
    """The coordinator: the voter that leads the strong store."""


@coordinator.command()
def show() -> None:
    """Show who coordinates, and the fence of the office."""
    with open_client() as client:
        found = client.coordinator()
    if wants_json():
        print_json(found)
        return
    rows = [
        ("coordinator", f"{found.node} ({found.node_id[:8]})"),
        ("fence", str(found.fence)),
        ("term", f"{found.term} of epoch {found.epoch}"),
    ]
    click.echo(facts(rows))


@coordinator.command()
@click.argument(
    "successor", metavar="[NODE]", required=False, default="", shell_complete=complete_members
)
def transfer(successor: str) -> None:
    """Hand the office to the voter NODE, or to the one that holds most of the log.

    Nothing is lost and no election is waited for; writes go on after a moment.
    """
    with open_client() as client:
        taken = client.transfer_coordinator(successor)
    if wants_json():
        print_json({"coordinator": taken})
    else:
        say(f"{taken} coordinates")
