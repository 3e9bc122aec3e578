"""swarmctl kv: the swarm's strongly consistent keys."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, BinaryIO, Final

import click

from swarmd.cli.common import (
    EXIT_FAILED,
    SwarmGroup,
    complete_leases,
    open_client,
    print_json,
    say,
    wants_json,
    warn,
)
from swarmd.cli.tables import COLUMNS_MAX, printable, table

if TYPE_CHECKING:
    from swarmd.gateway.shapes import KvChange

_REVISION_CHARS: Final = 8


@click.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl kv put colour blue",
        "swarmctl kv get colour",
        "swarmctl kv put colour red --expect 17",
        "swarmctl kv list col",
        "swarmctl kv watch col",
        "swarmctl kv txn swap.json",
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


@kv.command(
    examples=[
        "swarmctl kv put colour blue",
        "swarmctl kv put colour red --expect 17",
        "swarmctl kv put host/one up --lease 12",
        "swarmctl kv put image --file picture.png",
    ]
)
@click.argument("key")
@click.argument("value", required=False)
@click.option("--file", "source", type=click.File("rb"), help="Take the value from a file or -.")
@click.option(
    "--expect",
    type=click.IntRange(0),
    metavar="REVISION",
    help="Only if the key has this revision; 0: only if it does not exist.",
)
@click.option(
    "--lease",
    type=click.IntRange(1),
    default=None,
    metavar="ID",
    shell_complete=complete_leases,
    help="The key goes when this lease ends.",
)
def put(
    key: str, value: str | None, source: BinaryIO | None, expect: int | None, lease: int | None
) -> None:
    """Write VALUE under KEY."""
    if (value is None) == (source is None):
        raise click.UsageError("give either VALUE or --file, one of the two")
    raw = value.encode() if value is not None else source.read() if source else b""
    with open_client() as client:
        entry = client.kv_put(key, raw, expect=expect, lease=lease or 0)
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
    leased = any(one.lease for one in entries)
    rows = [
        [
            printable(one.key),
            str(one.mod_revision),
            *([str(one.lease or "-")] if leased else []),
            _shown(one.value),
        ]
        for one in entries
    ]
    heads = ["KEY", "REVISION", *(["LEASE"] if leased else []), "VALUE"]
    click.echo(table(heads, rows))


def _shown(value: bytes) -> str:
    return printable(value.decode("utf-8", "replace"))


# ---- several keys at once --------------------------------------------------------------


@kv.command(
    examples=[
        "swarmctl kv txn swap.json",
        'echo \'{"compares": [{"key": "a", "text": "1"}],',
        '       "then": [{"op": "put", "key": "a", "text": "2"}],',
        '       "else": [{"op": "delete", "key": "b"}]}\' | swarmctl kv txn -',
    ]
)
@click.argument("file", type=click.File("rb"))
def txn(file: BinaryIO) -> int:
    """Change several keys at once, if compares hold: FILE is JSON, - for stdin.

    All of "then" is applied if every one of "compares" holds, else all of "else"; the exit
    code is then 1. A compare has "key" and "revision" (0: must not exist), "text" (or "value",
    base64) or "exists"; an operation has "op" (put or delete), "key" and for a put "text" (or
    "value"), perhaps "lease".
    """
    from swarmd.cli.txn_file import read_txn

    wanted = read_txn(file)
    with open_client() as client:
        done = client.kv_txn(wanted.compares, wanted.then, wanted.otherwise)
    if wants_json():
        print_json(done)
    elif done.branch == "then":
        say(f"then was applied: revision {done.revision}")
    else:
        say(f"else was applied: revision {done.revision} ({done.unmet})")
    return 0 if done.branch == "then" else EXIT_FAILED


# ---- watching --------------------------------------------------------------------------


@kv.command(
    examples=[
        "swarmctl kv watch",
        "swarmctl kv watch host/ --from 17",
        "swarmctl kv watch ready --count 1",
    ]
)
@click.argument("prefix", required=False, default="")
@click.option(
    "--from",
    "begin",
    type=click.IntRange(1),
    metavar="REVISION",
    help="Begin with the changes of this revision; else with those to come.",
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N changes.")
def watch(prefix: str, begin: int | None, count: int | None) -> None:
    """Print changes of the keys that start with PREFIX, until Ctrl-C.

    Each line is one change: its revision, put or delete, the key, the value. It goes on when
    the daemon or the coordinator changes; nothing is missed or told twice.
    """
    left = count
    with open_client() as client:
        for told in client.kv_watch(prefix, from_revision=begin):
            if begin is None and sys.stderr.isatty():
                warn(f"watching from revision {told.revision + 1} on; Ctrl-C ends it")
            begin = told.revision + 1
            for change in told.changes:
                _print_change(change)
                if left is not None:
                    left -= 1
                    if left == 0:
                        return
            sys.stdout.flush()


def _print_change(change: KvChange) -> None:
    if wants_json():
        print_json(change)
        return
    head = f"{change.revision:<{_REVISION_CHARS}}  "
    if change.value is None:
        line = f"{head}delete  {printable(change.key)}"
    else:
        line = f"{head}put     {printable(change.key)}  {_shown(change.value)}"
    if sys.stdout.isatty() and len(line) > COLUMNS_MAX:
        line = line[: COLUMNS_MAX - 1] + "…"
    click.echo(line)
