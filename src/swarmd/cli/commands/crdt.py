"""swarmctl crdt: what stands behind a value that all nodes remember."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from swarmd.cli.common import SwarmGroup, open_client, print_json, wants_json
from swarmd.cli.tables import COLUMNS_MAX, printable, table, time_left

if TYPE_CHECKING:
    from swarmd.gateway.shapes_memory import CrdtCell


@click.group(cls=SwarmGroup, examples=["swarmctl crdt inspect theme"])
def crdt() -> None:
    """Values that nodes write without asking each other, seen from within."""


@crdt.command(
    examples=["swarmctl crdt inspect theme", "swarmctl crdt inspect plan -n crew --json"],
)
@click.argument("key")
@click.option(
    "--namespace", "-n", default="default", show_default=True, help="Which keys it is among."
)
def inspect(key: str, namespace: str) -> None:
    """Say what KEY holds, who wrote what when, and why this value won.

    Several writes stand side by side only where none had seen the others. Each has a dot: the node,
    which of its starts, and the number of the change. What was removed leaves no trace.
    """
    with open_client() as client:
        found = client.crdt_inspect(namespace, key)
    if wants_json():
        print_json(found)
        return
    click.echo(f"{'key':8} {printable(key)} in {namespace}, a {found.kind}")
    click.echo(f"{'value':8} {_cut(printable(_json(found.value)), 9)}")
    for one in found.cells:
        click.echo("")
        for name, value in _described(one):
            click.echo(f"{name:8} {_cut(value, 9)}")
    if found.left_out:
        click.echo(f"\nand {found.left_out} earlier ones, which are not shown")
    click.echo(f"\nseen of shard {found.shard}, where this key and others are:")
    rows = [[printable(one.node), one.life, str(one.number)] for one in found.seen]
    click.echo(table(["NODE", "LIFE", "CHANGES"], rows))
    if found.early:
        click.echo(f"and of {found.early} to come it is known that they are removed")


def _described(one: CrdtCell) -> list[tuple[str, str]]:
    """A cell as lines; what it has not is left out."""
    written = datetime.fromtimestamp(one.written_at_ms / 1_000).isoformat(" ", "milliseconds")
    lines = [
        ("dot", f"{one.node} {one.life} {one.number}"),
        ("at", f"{written} +{one.tick}"),
        ("by", one.created_by or ""),
        ("field", " / ".join(one.fields)),
        ("element", "" if one.kind != "set" else _json(one.element)),
        ("value", "" if one.kind == "set" else _value(one)),
        ("expires", _expiry(one)),
        ("counts" if one.counts else "loses", one.why),
    ]
    return [(name, printable(value)) for name, value in lines if value]


def _value(one: CrdtCell) -> str:
    if one.kind in ("text", "list") and one.value is not None:
        return f"puts {one.value['puts']}, deletes {one.value['deletes']}"
    if one.value is None and one.value_bytes > 16:
        return f"{one.value_bytes} bytes"
    return _json(one.value)


def _expiry(one: CrdtCell) -> str:
    if not one.expires_at_ms:
        return ""
    left_ms = one.expires_at_ms - time.time() * 1_000
    return f"in {time_left(left_ms)}" if left_ms > 0 else "has expired"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _cut(text: str, taken: int) -> str:
    room = COLUMNS_MAX - taken
    return text if len(text) <= room else text[: room - 1] + "…"
