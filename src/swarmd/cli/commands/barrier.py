"""swarmctl barrier: wait until so many have come."""

from __future__ import annotations

import click

from swarmd.base.errors import BarrierWaits
from swarmd.base.limits import BARRIER_COUNT_MAX
from swarmd.cli.common import (
    EXIT_NO_QUORUM,
    TTL_S,
    WAIT_S,
    SwarmCommand,
    Ttl,
    Wait,
    open_client,
    print_json,
    say,
    wants_json,
    warn,
)


@click.command(
    cls=SwarmCommand,
    examples=[
        "swarmctl barrier start --count 3",
        "swarmctl barrier phase2 --count 10 --wait 30m && ./phase2.sh",
    ],
)
@click.argument("name")
@click.option(
    "--count",
    type=click.IntRange(1, BARRIER_COUNT_MAX),
    required=True,
    metavar="N",
    help="How many must come; all give the same.",
)
@click.option("--wait", type=Wait(), default=WAIT_S, metavar="TIME", help="Longest wait. [1m]")
@click.option("--ttl", type=Ttl(), default=TTL_S, metavar="TIME", help="Lease. [15s]")
@click.option("--owner", default="", metavar="TEXT", help="Who comes, for others to see.")
def barrier(name: str, count: int, wait: float, ttl: float, owner: str) -> int:
    """Wait at NAME until N have come, on whichever hosts; then all go on at once.

    All of them get the same number, the barrier's fence. One that dies or gives up before then
    does not count. The exit code is 4 if not enough came in time.
    """
    with open_client() as client:
        try:
            standing = client.barrier(name, count, owner=owner, ttl_s=ttl, wait_s=wait)
        except BarrierWaits as error:
            warn(f"swarmctl: {error.message}")
            if wants_json():
                described = {"code": error.code, "message": error.message, "retryable": True}
                print_json({"error": described})
            return EXIT_NO_QUORUM
    if wants_json():
        print_json(standing)
    else:
        say(f"{name} is open, fence {standing.fence}")
    return 0
