"""swarmctl node: what a node may do in the swarm, and shutting one out."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from swarmd.base.ids import short, to_text
from swarmd.cli.common import (
    BadInput,
    SwarmGroup,
    admin_key_option,
    complete_members,
    open_client,
    print_json,
    say,
    wants_json,
    warn,
)
from swarmd.cli.tables import table, time_left

_ROLES = ("voter", "worker", "observer")


@click.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl node list",
        "swarmctl node roles n3 worker",
        "swarmctl node evict n3",
        "swarmctl node topology",
        "swarmctl node pending",
        "swarmctl node approve 1a2b3c4d5e",
    ],
    lazy={
        "pending": ("swarmd.cli.commands.approval:pending", "Show nodes that ask to join."),
        "approve": ("swarmd.cli.commands.approval:approve", "Let a node in that asks to join."),
        "deny": ("swarmd.cli.commands.approval:deny", "Refuse a node that asks to join."),
    },
)
def node() -> None:
    """Nodes: who asks to join, who is admitted, their roles, and how to shut one out."""


@node.command("list", examples=["swarmctl node list"])
def list_() -> None:
    """Show every node that was ever admitted, and what it may do."""
    from swarmd.cli.authority_log import read_asked

    head, state = read_asked()
    now_ms, found = head["store_time_ms"], list(state.admissions.values())
    if wants_json():
        print_json(
            [
                {
                    "name": one.name,
                    "node_id": to_text(one.node_id),
                    "roles": list(one.roles),
                    "evicted": one.evicted,
                    "admitted_by_record": one.height,
                    "expires_ms": one.expires_ms,
                    "left_s": max(0, one.expires_ms - now_ms) / 1000,
                }
                for one in found
            ]
        )
        return
    rows = [
        [
            short(one.node_id),
            one.name,
            "evicted" if one.evicted else ", ".join(one.roles),
            "-" if one.evicted else time_left(one.expires_ms - now_ms),
        ]
        for one in found
    ]
    click.echo(table(["ID", "NAME", "MAY BE", "EXPIRES"], rows, whole=1))


@node.command(
    examples=["swarmctl node topology", "swarmctl node topology --dot | dot -Tsvg > swarm.svg"]
)
@click.option("--dot", is_flag=True, help="Print a graph for Graphviz.")
def topology(dot: bool) -> None:
    """Show who keeps streams to whom, as each living node says."""
    from swarmd.cli.member_views import topology_dot, topology_tree

    with open_client() as client:
        found = client.topology()
    if wants_json():
        print_json(found)
    else:
        click.echo(topology_dot(found) if dot else topology_tree(found))


@node.command(examples=["swarmctl node roles n3 worker", "swarmctl node roles n3 voter worker"])
@click.argument("member", shell_complete=complete_members)
@click.argument("role", nargs=-1, required=True, type=click.Choice(_ROLES))
@admin_key_option
def roles(member: str, role: tuple[str, ...], admin_key: Path | None) -> None:
    """Let MEMBER be what is named and nothing else: voter, worker, observer."""
    from swarmd.cli.authority_log import find_node, propose, read_own
    from swarmd.identity.entries import SetRoles, fresh_nonce

    wanted = tuple(dict.fromkeys(role))
    with open_client(local=True) as client:
        head, log = read_own(client)
        alive = [one.node_id for one in client.members() if one.state in ("alive", "suspect")]
        found = find_node(log, member, alive)
        if found.evicted:
            raise BadInput(f"{found.name} was evicted: it may be nothing any more")
        entry = SetRoles(found.node_id, wanted, fresh_nonce())
        propose(client, head, entry, admin_key)
    if wants_json():
        print_json({"name": found.name, "node_id": to_text(found.node_id), "roles": list(wanted)})
    else:
        say(f"{found.name} may be {', '.join(wanted)}")


@node.command(examples=["swarmctl node evict n3", "swarmctl node evict n3 --yes n3"])
@click.argument("member", shell_complete=complete_members)
@admin_key_option
@click.option("--yes", metavar="NAME", default="", help="Do not ask: the node's name again.")
def evict(member: str, admin_key: Path | None, yes: str) -> None:
    """Shut MEMBER out for ever: nobody talks to it, and its id is never used again.

    Its daemon ends once it hears of it. Its tasks run elsewhere; what only it held is lost.
    """
    from swarmd.cli.authority_log import find_node, propose, read_own
    from swarmd.identity.entries import Evict, fresh_nonce

    with open_client(local=True) as client:
        head, log = read_own(client)
        found = find_node(log, member)
        if found.evicted:
            raise BadInput(f"{found.name} ({short(found.node_id)}) is evicted already")
        _confirm(found.name, found.node_id, yes)
        propose(client, head, Evict(found.node_id, fresh_nonce()), admin_key)
    if wants_json():
        print_json({"name": found.name, "node_id": to_text(found.node_id)})
    else:
        say(f"{found.name} is evicted")


def _confirm(name: str, node_id: bytes, given: str) -> None:
    if not given:
        if wants_json() or not sys.stdin.isatty():
            raise BadInput(f"an eviction is for ever: to go on, repeat this with --yes {name}")
        warn(f"{name} ({short(node_id)}) is shut out for ever; it may only join as a new node.")
        given = click.prompt("To go on, type its name", err=True)
    if given.strip() != name:
        raise BadInput(f"nothing is changed: {given!r} is not the name of that node")
