"""swarmctl counter: numbers that the whole swarm counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from swarmd.cli.common import SwarmGroup, open_client, print_json, wants_json

if TYPE_CHECKING:
    from swarmd.gateway.shapes import CounterInfo

_FARTHEST = 2**63 - 1


@click.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl counter add builds",
        "swarmctl counter add stock -3",
        "swarmctl counter get stock",
    ],
)
def counter() -> None:
    """Count; no addition is lost or made twice. A counter is a key that holds a number."""


@counter.command()
@click.argument("name")
def get(name: str) -> None:
    """Print the number NAME; 0 if nothing was counted yet."""
    with open_client() as client:
        _print(client.counter(name))


@counter.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("delta", type=click.IntRange(-_FARTHEST, _FARTHEST), default=1)
def add(name: str, delta: int) -> None:
    """Add DELTA (1 if it is not given, perhaps negative) to NAME and print the new number."""
    with open_client() as client:
        _print(client.counter_add(name, delta))


def _print(found: CounterInfo) -> None:
    if wants_json():
        print_json(found)
    else:
        click.echo(found.value)
