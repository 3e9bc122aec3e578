"""swarmctl kv: the swarm's strongly consistent keys."""

from __future__ import annotations

import sys
from typing import BinaryIO

import click

from swarmd.cli.common import SwarmGroup, open_client, print_json, say, wants_json
from swarmd.cli.tables import table


@click.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl kv put colour blue",
        "swarmctl kv get colour",
        "swarmctl kv put colour red --expect 17",
        "swarmctl kv list col",
    ],
)
def kv() -> None:
    """Read and write keys; reads see every write that was acknowledged before."""


@kv.command()
@click.argument("key")
@click.option("--stale", is_flag=True, help="This node's copy, without asking the others.")
def get(key: str, stale: bool) -> None:
    """Print the value of KEY."""
    with open_client() as client:
        entry = client.kv_get(key, stale=stale)
    if wants_json():
        print_json(entry)
        return
    sys.stdout.buffer.write(entry.value)
    if sys.stdout.isatty() or not entry.value.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")


@kv.command()
@click.argument("key")
@click.argument("value", required=False)
@click.option("--file", "source", type=click.File("rb"), help="Take the value from a file or -.")
@click.option(
    "--expect",
    type=click.IntRange(0),
    metavar="REVISION",
    help="Only if the key has this revision; 0: only if it does not exist.",
)
def put(key: str, value: str | None, source: BinaryIO | None, expect: int | None) -> None:
    """Write VALUE under KEY."""
    if (value is None) == (source is None):
        raise click.UsageError("give either VALUE or --file, one of the two")
    raw = value.encode() if value is not None else source.read() if source else b""
    with open_client() as client:
        entry = client.kv_put(key, raw, expect=expect)
    if wants_json():
        print_json(entry)
    else:
        say(f"{entry.key} is at revision {entry.mod_revision}")


@kv.command()
@click.argument("key")
@click.option("--expect", type=click.IntRange(1), metavar="REVISION", help="Only at this revision.")
def delete(key: str, expect: int | None) -> None:
    """Delete KEY."""
    with open_client() as client:
        done = client.kv_delete(key, expect=expect)
    if wants_json():
        print_json(done)
    else:
        say(done.message or f"{key} is deleted")


@kv.command("list")
@click.argument("prefix", required=False, default="")
@click.option("--after", default="", metavar="KEY", help="Go on after this key.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=1_000, show_default=True)
def list_keys(prefix: str, after: str, limit: int) -> None:
    """List the keys that start with PREFIX, in order."""
    with open_client() as client:
        entries = client.kv_list(prefix, after=after, limit=limit)
    if wants_json():
        print_json(entries)
        return
    rows = [
        [one.key, str(one.mod_revision), one.value.decode("utf-8", "replace")] for one in entries
    ]
    click.echo(table(["KEY", "REVISION", "VALUE"], rows))
