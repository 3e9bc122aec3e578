"""swarmctl mem: values that all nodes remember, on any side of a partition or by a majority."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from swarmd.base.errors import TaskFailed
from swarmd.cli.common import (
    Duration,
    Size,
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
        "swarmctl mem namespace set crew --ttl 7d --bytes 64MiB",
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

_TYPES = ["any", "string", "number", "integer", "boolean", "array", "object"]
_ANYBODY = "anybody"
_EXAMPLES = [
    "swarmctl mem namespace create ledger --consistency strong",
    "swarmctl mem namespace create built --cache-values 1000 --cache-bytes 16MiB",
    "swarmctl mem namespace create traces --ttl 1d --bytes 256MiB",
    "swarmctl mem namespace create archive --copies 3",
    "swarmctl mem namespace create salaries --reader key:payroll --writer operator",
]
_SETTING = [
    "swarmctl mem namespace set traces --ttl 7d",
    "swarmctl mem namespace set traces --bytes 64MiB --evict",
    "swarmctl mem namespace set salaries --reader key:payroll --reader operator",
    "swarmctl mem namespace set salaries --reader anybody --ttl never",
]


class _Ttl(Duration):
    """A length of time; `never` is 0."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        return 0.0 if value in ("never", 0.0) else super().convert(value, param, ctx)


class _Bound(Size):
    """A size; `any` is 0."""

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        return 0 if value == "any" else super().convert(value, param, ctx)


def _policy(command: Callable[..., None]) -> Callable[..., None]:
    """With the options that say what a policy is."""
    for option in (
        click.option(
            "--writer",
            "writers",
            metavar="WHO",
            multiple=True,
            help="Who alone may write; repeat it for more.",
        ),
        click.option(
            "--reader",
            "readers",
            metavar="WHO",
            multiple=True,
            help="Who alone may read: a role, key:NAME, user:UID, or anybody.",
        ),
        click.option(
            "--type", "type_", type=click.Choice(_TYPES), help="Take values of this type alone."
        ),
        click.option(
            "--bytes",
            "bytes_max",
            type=_Bound(),
            metavar="SIZE",
            help="Hold so much; what was written longest ago goes first. Or: any.",
        ),
        click.option(
            "--ttl",
            type=_Ttl(),
            metavar="TIME",
            help="When values end that do not say it, like 15m or 7d. Or: never.",
        ),
    ):
        command = option(command)
    return command


@mem.group(cls=SwarmGroup, examples=[*_EXAMPLES, _SETTING[0], "swarmctl mem namespace list"])
def namespace() -> None:
    """What namespaces promise. One that nobody made is eventual, and anybody's."""


@namespace.command("create", examples=_EXAMPLES)
@click.argument("name")
@click.option(
    "--consistency",
    type=click.Choice(["eventual", "strong"]),
    default="eventual",
    show_default=True,
    help="Strong: every read and write asks a majority.",
)
@click.option("--cache-values", metavar="N", type=int, default=0, help="A cache of so many values.")
@click.option(
    "--cache-bytes", metavar="SIZE", type=Size(), default=0, help="And so many bytes. [64MiB]"
)
@click.option(
    "--copies", metavar="N", type=int, default=0, help="Keep each value on N nodes, 2 to 7. [all]"
)
@_policy
def create(
    name: str,
    consistency: str,
    copies: int,
    cache_values: int,
    cache_bytes: int,
    ttl: float | None,
    bytes_max: int | None,
    type_: str | None,
    readers: tuple[str, ...],
    writers: tuple[str, ...],
) -> None:
    """Make the namespace NAME. It must hold nothing yet.

    What kind it is stays for ever; `swarmctl mem namespace set` changes the rest. From a cache what
    was used longest ago goes when it is full; see `swarmctl mem compute`.
    """
    if bytes_max and (cache_values or cache_bytes):
        raise click.UsageError("of a cache --cache-bytes is the bound: leave --bytes out")
    if cache_values and not cache_bytes:
        cache_bytes = _CACHE_BYTES
    with open_client() as client:
        made = client.memory_namespace_create(
            name,
            consistency,
            entries_max=cache_values,
            bytes_max=cache_bytes or bytes_max or 0,
            copies=copies,
            ttl_s=ttl or 0.0,
            type=type_ or "any",
            readers=_who(readers) or (),
            writers=_who(writers) or (),
        )
    if wants_json():
        print_json(made)
    else:
        say(f"{name} is {_kind(made)}; every node knows")


@namespace.command("set", examples=_SETTING)
@click.argument("name")
@click.option("--cache-values", metavar="N", type=int, help="Of a cache: hold so many values.")
@_policy
@click.option("--evict", is_flag=True, help="Let --bytes take away what is too much already.")
def set_policy(
    name: str,
    cache_values: int | None,
    ttl: float | None,
    bytes_max: int | None,
    type_: str | None,
    readers: tuple[str, ...],
    writers: tuple[str, ...],
    evict: bool,
) -> None:
    """Change the policy of the namespace NAME; what is not given stays.

    Every node in reach follows within seconds. Values that are there keep the end that they have.
    """
    given = (ttl, bytes_max, type_, cache_values)
    if not readers and not writers and all(one is None for one in given):
        raise click.UsageError("say what to change: --ttl, --bytes, --type, --reader, --writer")
    with open_client() as client:
        made = client.memory_namespace_change(
            name,
            ttl_s=ttl,
            entries_max=cache_values,
            bytes_max=bytes_max,
            type=type_,
            readers=_who(readers),
            writers=_who(writers),
            evict=evict,
        )
    if wants_json():
        print_json(made)
    else:
        say(f"{name} is {_kind(made)}")


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
            str(one.copies or ""),
            time_left(one.ttl_s * 1_000) if one.ttl_s else "",
            "" if one.type == "any" else one.type,
            printable(" ".join(one.readers)),
            printable(" ".join(one.writers)),
            printable(one.created_by),
            str(one.left_over or ""),
        ]
        for one in found
    ]
    head = ["NAMESPACE", "CONSISTENCY", "CACHE VALUES", "BYTES", "COPIES", "TTL", "TYPE", "READERS"]
    head += ["WRITERS", "MADE BY", "LEFT OVER"]
    # A column that says nothing of any is left out.
    kept = [n for n in range(len(head)) if n < 2 or any(row[n] for row in rows)]
    shown = [[row[n] for n in kept] for row in rows]
    click.echo(table([head[n] for n in kept], shown, whole=1))
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


def _who(names: tuple[str, ...]) -> tuple[str, ...] | None:
    """None: nothing is said of it."""
    if _ANYBODY in names:
        return ()
    return names or None


def _kind(one: MemoryNamespace) -> str:
    kind = one.consistency
    if one.entries_max:
        kind = f"a cache of {one.entries_max} values and {size(one.bytes_max)}"
    elif one.bytes_max:
        kind += f", of {size(one.bytes_max)}"
    if one.copies:
        kind += f", each value on {one.copies} nodes"
    if one.ttl_s:
        kind += f", for {time_left(one.ttl_s * 1_000)}"
    if one.type != "any":
        kind += f", each value of type {one.type}"
    if one.readers:
        kind += f", read by {', '.join(map(printable, one.readers))} alone"
    if one.writers:
        kind += f", written by {', '.join(map(printable, one.writers))} alone"
    return kind


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
