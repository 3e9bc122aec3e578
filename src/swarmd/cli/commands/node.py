"""swarmctl node: what a node may do in the swarm, and shutting one out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from swarmd.base.ids import short, to_text
from swarmd.cli.common import (
    BadInput,
    SwarmGroup,
    admin_key_option,
    client_of,
    complete_members,
    open_client,
    print_json,
    say,
    wants_json,
    warn,
)
from swarmd.cli.tables import table, time_left

if TYPE_CHECKING:
    from swarmd.gateway.shapes import MemberInfo

_ID_CHARS_MIN = 6
_ROLES = ("voter", "worker", "observer")


@click.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl node list",
        "swarmctl node roles n3 worker",
        "swarmctl node evict n3",
        "swarmctl node topology",
        "swarmctl node rtt n2 n3",
        "swarmctl node tags n3 rack=a",
        "swarmctl node query uptime",
        "swarmctl node pending",
        "swarmctl node approve 1a2b3c4d5e",
    ],
    lazy={
        "pending": ("swarmd.cli.commands.approval:pending", "Show nodes that ask to join."),
        "approve": ("swarmd.cli.commands.approval:approve", "Let a node in that asks to join."),
        "deny": ("swarmd.cli.commands.approval:deny", "Refuse a node that asks to join."),
        "query": ("swarmd.cli.commands.query:query", "Ask all nodes how they are."),
    },
)
def node() -> None:
    """Nodes: who asks to join, who is admitted, their roles and tags, how to shut one out."""


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


@node.command(examples=["swarmctl node rtt n2", "swarmctl node rtt n2 n3"])
@click.argument("a", shell_complete=complete_members)
@click.argument("b", required=False, default="", shell_complete=complete_members)
def rtt(a: str, b: str) -> None:
    """Estimate the round trip between A and B, or between A and the node that is asked.

    Nothing is sent between the two for it: each member keeps a network coordinate up by its probes.
    """
    from swarmd.cli.member_views import rtt_text

    with open_client() as client:
        found = client.rtt(a, b)
    if wants_json():
        print_json(found)
    else:
        click.echo(rtt_text(found))


@node.command(
    examples=[
        "swarmctl node tags",
        "swarmctl node tags n3 rack=a zone=east",
        "swarmctl node tags n3 --remove rack",
    ]
)
@click.argument("member", required=False, shell_complete=complete_members)
@click.argument("tag", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--remove", multiple=True, metavar="KEY", help="Tell it no more; repeatable.")
def tags(member: str | None, tag: tuple[str, ...], remove: tuple[str, ...]) -> None:
    """Show the tags of all nodes, or of MEMBER, or change those of MEMBER.

    A change lasts until its daemon is started anew; what lasts is `node.tags` in its configuration.
    """
    from swarmd.cli.member_views import tags_table, tags_text

    if (member is None and remove) or "=" in (member or ""):
        raise BadInput("nothing is changed: name the node first whose tags are to change")
    if not tag and not remove:
        with open_client() as client:
            found = [one for one in client.members() if member is None or _is_meant(one, member)]
        if member is not None and not found:
            raise BadInput(f"no member is called {member!r}: `swarmctl members` lists them")
        if wants_json():
            print_json([{"name": x.name, "node_id": x.node_id, "tags": x.tags} for x in found])
        else:
            click.echo(tags_table(found))
        return
    assert member is not None
    if wrong := [one for one in tag if "=" not in one]:
        raise BadInput(f"nothing is changed: {wrong[0]!r} is not KEY=VALUE")
    put = dict(one.split("=", 1) for one in tag)
    with client_of(member) as client:
        done = client.change_tags(put, remove)
    if wants_json():
        print_json(done)
    else:
        told = tags_text(done.tags) if done.tags else "no tags"
        say(f"{done.node} tells {told}, until its daemon is started anew")


def _is_meant(one: MemberInfo, wanted: str) -> bool:
    begins = len(wanted) >= _ID_CHARS_MIN and one.node_id.startswith(wanted.lower())
    return one.name == wanted or begins


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
