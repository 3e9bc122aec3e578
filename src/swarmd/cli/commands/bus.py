"""swarmctl bus: messages between agents, programs and people, as they are sent."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from swarmd.cli.common import (
    EXIT_FAILED,
    SwarmGroup,
    open_client,
    print_json,
    read_duration_s,
    say,
    wants_json,
    warn,
)

if TYPE_CHECKING:
    from swarmd.gateway.shapes_bus import BusMessage

_TOPIC_CHARS = 16


@click.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl bus watch 'orders/*'",
        "swarmctl bus publish orders/paid 'number 17'",
        "swarmctl bus publish '*' 'going down at noon'",
    ],
)
def bus() -> None:
    """Publish and watch messages; nothing of them is kept for who comes later."""


@bus.command(
    examples=[
        "swarmctl bus publish orders/paid 'number 17'",
        """swarmctl bus publish orders/paid --input '{"number": 17}'""",
        "swarmctl bus publish @carol hello",
    ]
)
@click.argument("topic")
@click.argument("text", required=False)
@click.option("--input", "value", metavar="JSON|-", help="A value instead of TEXT.")
@click.option("--from", "sender", default="", metavar="@NAME", help="Whom to answer to.")
@click.option("--timeout", metavar="TIME", help="Longest wait for a full inbox, such as 5s.")
def publish(
    topic: str, text: str | None, value: str | None, sender: str, timeout: str | None
) -> int:
    """Publish to TOPIC and print how many subscribers have it; 0 ends with exit code 1.

    A TOPIC that begins with @ is one subscriber's name; * is everybody.
    """
    if (text is None) == (value is None):
        raise click.UsageError("give either TEXT or --input, one of the two")
    data: Any = text if value is None else _parse(value)
    wait_s = None if timeout is None else read_duration_s(timeout)
    with open_client() as client:
        reached = client.bus_publish(topic, data, sender=sender, timeout_s=wait_s)
    if wants_json():
        print_json({"topic": topic, "reached": reached})
    else:
        say(f"{reached} subscriber{'' if reached == 1 else 's'} reached")
    return 0 if reached else EXIT_FAILED


@bus.command(
    examples=[
        "swarmctl bus watch 'orders/*' news",
        "swarmctl bus watch @me --count 1",
    ]
)
@click.argument("topics", nargs=-1, required=True, metavar="TOPIC...")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N messages.")
def watch(topics: tuple[str, ...], count: int | None) -> None:
    """Print what is published to the TOPICs from now on, until Ctrl-C.

    A * at the end of a TOPIC stands for anything; @NAME gets what is sent to that name. Those who
    publish wait for this: what is not read fills the inbox, and holds them up.
    """
    left = count
    with open_client() as client:
        for one in client.bus_watch(topics):
            if one.topics:
                if sys.stderr.isatty():
                    warn("watching from now on; Ctrl-C ends it")
                continue
            _print(one)
            sys.stdout.flush()
            if left is not None:
                left -= 1
                if left == 0:
                    return


def _print(message: BusMessage) -> None:
    if wants_json():
        print_json(message)
        return
    from swarmd.cli.commands.task import show_value
    from swarmd.cli.tables import printable

    sender = f"  from {printable(message.sender)}" if message.sender else ""
    shown = printable(show_value(message.data))
    click.echo(f"{printable(message.topic):<{_TOPIC_CHARS}}  {shown}{sender}")


def _parse(text: str) -> Any:
    from swarmd.cli.commands.run import json_value

    return json_value(text)
