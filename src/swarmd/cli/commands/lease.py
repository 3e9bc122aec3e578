"""swarmctl lease: keys that go by themselves unless somebody renews."""

from __future__ import annotations

import click

from swarmd.cli.common import (
    Duration,
    SwarmGroup,
    complete_leases,
    open_client,
    print_json,
    say,
    wants_json,
    warn,
)
from swarmd.cli.tables import ago, facts, printable, table
from swarmd.gateway.shapes import LeaseInfo

_KEYS_SHOWN = 20


@click.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl lease grant --ttl 30s",
        "swarmctl kv put host/one up --lease 17",
        "swarmctl lease renew 17",
        "swarmctl lease show 17",
        "swarmctl lease revoke 17",
    ],
)
def lease() -> None:
    """Rights that end by themselves; keys written with a lease go with it."""


@lease.command(
    examples=["swarmctl lease grant --ttl 30s", "LEASE=$(swarmctl lease grant --ttl 10m)"]
)
@click.option(
    "--ttl",
    type=Duration(),
    default="1m",
    show_default=True,
    help="How long it lasts unless renewed: 1s to 1d.",
)
def grant(ttl: float) -> None:
    """Begin a lease and print its id, which is its fence, too."""
    with open_client() as client:
        made = client.lease_grant(ttl)
    if wants_json():
        print_json(made)
        return
    click.echo(str(made.id))
    warn(f"good for {ago(made.ttl_s)}: swarmctl lease renew {made.id}")


@lease.command(examples=["swarmctl lease renew 17"])
@click.argument("id", type=click.IntRange(1), shell_complete=complete_leases)
def renew(id: int) -> None:
    """Give lease ID its whole time again."""
    with open_client() as client:
        found = client.lease_renew(id)
    if wants_json():
        print_json(found)
    else:
        say(f"lease {id} has {ago(found.left_s)} again")


@lease.command(examples=["swarmctl lease revoke 17"])
@click.argument("id", type=click.IntRange(1), shell_complete=complete_leases)
def revoke(id: int) -> None:
    """End lease ID now; its keys go with it, all at once."""
    with open_client() as client:
        done = client.lease_revoke(id)
    if wants_json():
        print_json(done)
    else:
        say(done.message)


@lease.command("list", examples=["swarmctl lease list", "swarmctl lease list --json"])
def list_leases() -> None:
    """List the leases that live, the oldest first."""
    with open_client() as client:
        found = client.leases()
    if wants_json():
        print_json(found)
        return
    rows = [[str(one.id), ago(one.ttl_s), ago(one.left_s), str(one.count)] for one in found]
    click.echo(table(["ID", "TTL", "LEFT", "KEYS"], rows, whole=1))


@lease.command(examples=["swarmctl lease show 17"])
@click.argument("id", type=click.IntRange(1), shell_complete=complete_leases)
def show(id: int) -> None:
    """Show lease ID and the keys that go with it."""
    with open_client() as client:
        found = client.lease(id)
    if wants_json():
        print_json(found)
        return
    click.echo(
        facts(
            [
                ("lease", str(found.id)),
                ("ttl", ago(found.ttl_s)),
                ("left", ago(found.left_s)),
                ("keys", str(found.count)),
            ]
        )
    )
    for name in _names(found):
        click.echo(f"  {name}")


def _names(found: LeaseInfo) -> list[str]:
    shown = [printable(name) for name in found.keys]
    shown += [f"{printable(name)} (the swarm's)" for name in found.others]
    shown = shown[:_KEYS_SHOWN]
    more = found.count - len(shown)
    return [*shown, f"and {more} more"] if more > 0 else shown
