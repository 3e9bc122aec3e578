"""swarmctl mem: values that all nodes remember, on any side of a partition or by a majority."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from swarmd.base.errors import TaskFailed
from swarmd.cli.common import (
    Duration,
    SwarmGroup,
    Wait,
    open_client,
    print_json,
    say,
    wants_json,
    warn,
)
from swarmd.cli.tables import COLUMNS_MAX, ago, printable, size, table, time_left

if TYPE_CHECKING:
    from swarmd.gateway.shapes_memory import MemoryEntry, MemoryNamespace

_CACHE_BYTES = 64 * 1024 * 1024
_NAMESPACE = click.option(
    "--namespace", "-n", default="default", show_default=True, help="Which keys these are among."
)


@click.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl mem set theme dark",
        "swarmctl mem get theme",
        "swarmctl mem set plan --json-value '{\"step\": 3}' --ttl 1h -n crew",
        "swarmctl mem watch -n crew",
        "swarmctl mem namespace create ledger --consistency strong",
        "swarmctl mem compute report --ttl 1h -- ./make-report",
    ],
)
def mem() -> None:
    """Shared memory: values that every node has within a second, and keeps when cut off.

    Of two writes that did not see each other the later one counts. What must never be lost to
    another write, nor be read older than it is, belongs into a strong namespace.
    """


@mem.command("set", examples=["swarmctl mem set theme dark", "swarmctl mem set lease x --ttl 30s"])
@click.argument("key")
@click.argument("value", required=False)
@click.option("--json-value", metavar="JSON", help="A value of another type than text.")
@click.option("--ttl", type=Duration(), help="Let it expire after this, like 30s, 15m or 7d.")
@click.option("--if-version", metavar="VERSION", help="Only over this version; 0: only if absent.")
@_NAMESPACE
def set_(
    key: str,
    value: str | None,
    json_value: str | None,
    ttl: float | None,
    if_version: str | None,
    namespace: str,
) -> None:
    """Write VALUE, which is text, under KEY."""
    if (value is None) == (json_value is None):
        raise click.UsageError("give VALUE or --json-value")
    given: Any = value
    if json_value is not None:
        try:
            given = json.loads(json_value)
        except ValueError as error:
            raise click.UsageError(f"--json-value is not JSON: {error}") from error
    with open_client() as client:
        written = client.memory_set(namespace, key, given, ttl_s=ttl, if_version=if_version)
    if wants_json():
        print_json(written)
    else:
        say(f"{key} is written, version {written.version}")


@mem.command(examples=["swarmctl mem get theme"])
@click.argument("key")
@_NAMESPACE
def get(key: str, namespace: str) -> None:
    """Print the value of KEY: text as it is, all else as JSON."""
    with open_client() as client:
        found = client.memory_get(namespace, key)
    if wants_json():
        print_json(found)
    else:
        click.echo(_shown(found.value))


@mem.command("list", examples=["swarmctl mem list", "swarmctl mem list task/ -n crew"])
@click.argument("prefix", required=False, default="")
@_NAMESPACE
def list_(prefix: str, namespace: str) -> None:
    """List keys that begin with PREFIX, or all, and what they hold."""
    entries: list[MemoryEntry] = []
    with open_client() as client:
        more = True
        while more:
            after = entries[-1].key if entries else ""
            page = client.memory_list(namespace, prefix, after=after)
            entries += page.entries
            more = page.more
    if wants_json():
        print_json(entries)
        return
    rows = [
        [
            printable(one.key),
            printable(_shown(one.value)[:COLUMNS_MAX]),
            _age(one),
            printable(one.created_by),
            _left(one),
        ]
        for one in entries
    ]
    click.echo(table(["KEY", "VALUE", "WRITTEN", "BY", "EXPIRES IN"], rows, whole=1))


@mem.command(examples=["swarmctl mem delete theme"])
@click.argument("key")
@click.option("--if-version", metavar="VERSION", help="Only this version.")
@_NAMESPACE
def delete(key: str, if_version: str | None, namespace: str) -> None:
    """Delete KEY."""
    with open_client() as client:
        client.memory_delete(namespace, key, if_version=if_version)
    if wants_json():
        print_json({})
    else:
        say(f"{key} is deleted")


@mem.command(
    examples=[
        "swarmctl mem watch",
        "swarmctl mem watch task/ -n crew --json",
        "swarmctl mem watch task/ -n crew --since 5f0c2b7d91e3a8c4-17",
    ]
)
@click.argument("prefix", required=False, default="")
@click.option(
    "--since", metavar="POSITION", default="", help="Go on from where a watch with --json was."
)
@_NAMESPACE
def watch(prefix: str, since: str, namespace: str) -> None:
    """Print keys as they change, until Ctrl-C."""
    with open_client() as client:
        for news in client.memory_watch(namespace, prefix, since=since):
            if news.lagged:
                slow = news.key or not since
                why = "this was too slow" if slow else "that was too long ago, or elsewhere"
                warn(f"not all keys that changed can be told, because {why}: list them")
            if news.key is None:
                if news.namespace and sys.stderr.isatty():
                    warn("watching; Ctrl-C ends it")
                if wants_json() and news.position:
                    print_json(news)
                    sys.stdout.flush()
                continue
            if wants_json():
                print_json(news)
            elif news.entry is None:
                click.echo(f"{printable(news.key)}  is gone")
            else:
                click.echo(f"{printable(news.key)}  {printable(_shown(news.entry.value))}")
            sys.stdout.flush()


# ---- namespaces -----------------------------------------------------------------------


@mem.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl mem namespace create ledger --consistency strong",
        "swarmctl mem namespace create built --cache-values 1000 --cache-bytes 16777216",
        "swarmctl mem namespace list",
    ],
)
def namespace() -> None:
    """What namespaces promise. One that nobody made is eventual."""


@namespace.command(
    "create",
    examples=[
        "swarmctl mem namespace create ledger --consistency strong",
        "swarmctl mem namespace create built --cache-values 1000 --cache-bytes 16777216",
    ],
)
@click.argument("name")
@click.option(
    "--consistency",
    type=click.Choice(["eventual", "strong"]),
    default="eventual",
    show_default=True,
    help="Strong: every read and write asks a majority.",
)
@click.option("--cache-values", metavar="N", type=int, default=0, help="A cache of so many values.")
@click.option("--cache-bytes", metavar="N", type=int, default=0, help="And so many bytes. [64 MiB]")
def create(name: str, consistency: str, cache_values: int, cache_bytes: int) -> None:
    """Make the namespace NAME, for ever. It must hold nothing yet.

    From a cache what was used longest ago goes when it is full; see `swarmctl mem compute`.
    """
    if cache_values and not cache_bytes:
        cache_bytes = _CACHE_BYTES
    with open_client() as client:
        made = client.memory_namespace_create(
            name, consistency, entries_max=cache_values, bytes_max=cache_bytes
        )
    if wants_json():
        print_json(made)
    else:
        say(f"{name} is {_kind(made)}, on every node")


@namespace.command("list", examples=["swarmctl mem namespace list"])
def list_namespaces() -> None:
    """List namespaces that were made."""
    with open_client() as client:
        found = client.memory_namespaces()
    if wants_json():
        print_json(found)
        return
    rows = [
        [
            one.name,
            one.consistency,
            str(one.entries_max or ""),
            size(one.bytes_max) if one.bytes_max else "",
            printable(one.created_by),
            str(one.left_over or ""),
        ]
        for one in found
    ]
    head = ["NAMESPACE", "CONSISTENCY", "CACHE VALUES", "BYTES", "MADE BY", "LEFT OVER"]
    click.echo(table(head, rows, whole=1))
    if any(one.left_over for one in found):
        warn("left over: written by nodes that were cut off when the namespace was made")


@namespace.command("show", examples=["swarmctl mem namespace show ledger"])
@click.argument("name")
def show(name: str) -> None:
    """Say what the namespace NAME promises."""
    with open_client() as client:
        found = client.memory_namespace(name)
    if wants_json():
        print_json(found)
    else:
        click.echo(f"{name} is {_kind(found)}")


def _kind(one: MemoryNamespace) -> str:
    if one.entries_max:
        return f"a cache of {one.entries_max} values and {size(one.bytes_max)}"
    return one.consistency


# ---- values that are computed once ----------------------------------------------------


@mem.command(
    examples=[
        "swarmctl mem compute report --ttl 1h -- ./make-report",
        "swarmctl mem compute weather --ttl 10m -- curl -s wttr.in",
    ],
)
@click.argument("key")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--ttl", type=Duration(), help="Let it expire after this, like 30s, 15m or 7d.")
@click.option("--wait", type=Wait(), default=60.0, metavar="TIME", help="Longest wait. [1m]")
@click.option(
    "--limit", type=Duration(), default=300.0, metavar="TIME", help="COMMAND's time. [5m]"
)
@click.option("--namespace", "-n", default="cache", show_default=True, help="Which cache it is in.")
def compute(
    key: str,
    command: tuple[str, ...],
    ttl: float | None,
    wait: float,
    limit: float,
    namespace: str,
) -> None:
    """Print the value of KEY; if there is none, run COMMAND, and keep what it prints.

    Of all that ask for KEY on any host at once one runs COMMAND, and the others wait for what it
    prints. If that one's host is gone, another one runs its own.
    """
    with open_client() as client:
        value = client.memory_get_or_compute(
            namespace,
            key,
            lambda: _output_of(command, limit),
            ttl_s=ttl,
            wait_s=wait,
            compute_s=limit,
        )
    if wants_json():
        print_json({"key": key, "value": value})
    else:
        click.echo(_shown(value), nl=not (isinstance(value, str) and value.endswith("\n")))


def _output_of(command: tuple[str, ...], limit_s: float) -> str:
    """Raises TaskFailed."""
    import subprocess

    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, timeout=limit_s
        )
    except subprocess.CalledProcessError as error:
        raise TaskFailed(f"{command[0]} ended with {error.returncode}") from error
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise TaskFailed(f"{command[0]}: {error}") from error
    return done.stdout


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _age(one: MemoryEntry) -> str:
    """By the clock of this host, which may be behind that of who wrote it."""
    return ago(max(0.0, time.time() - one.created_at_ms / 1_000)) + " ago"


def _left(one: MemoryEntry) -> str:
    if not one.expires_at_ms:
        return "never"
    return time_left(one.expires_at_ms - time.time() * 1_000)
