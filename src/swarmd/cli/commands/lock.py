"""swarmctl lock and swarmctl elect: a command that runs while a lock is held."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from swarmd.base.errors import LockHeld, LockLost, SwarmError
from swarmd.cli.common import (
    EXIT_NO_QUORUM,
    TTL_S,
    WAIT_S,
    SwarmCommand,
    Ttl,
    Wait,
    open_client,
    print_json,
    wants_json,
    warn,
)

if TYPE_CHECKING:
    from swarmd.cli.holding import Outcome, Signals
    from swarmd.client import Client
    from swarmd.gateway.shapes import Standing


@click.command(
    cls=SwarmCommand,
    examples=[
        "swarmctl lock backup -- rsync -a /data host2:/data",
        "swarmctl lock deploy --wait 10m --ttl 1m -- ./deploy.sh",
        "swarmctl lock nightly --wait 0 -- ./report.sh   # or not at all",
        "swarmctl lock reindex -- sh -c 'psql -v fence=$SWARM_FENCE -f reindex.sql'",
    ],
)
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--ttl", type=Ttl(), default=TTL_S, metavar="TIME", help="Lease. [15s]")
@click.option("--wait", type=Wait(), default=WAIT_S, metavar="TIME", help="Longest wait. [1m]")
@click.option("--owner", default="", metavar="TEXT", help="Who asks, for others to see.")
def lock(name: str, command: tuple[str, ...], ttl: float, wait: float, owner: str) -> int:
    """Run COMMAND while holding the lock NAME.

    One holder in the whole swarm, in the order of asking. COMMAND finds the lock's name in
    SWARM_LOCK and a number in SWARM_FENCE that rises with every holder: what it changes can
    refuse a smaller one. If the lock cannot be kept, COMMAND gets SIGTERM, then SIGKILL, before
    anybody else can have it; so does what it leaves running when it ends.

    The exit code is COMMAND's; 4 if the lock was not had in time, or was lost.
    """
    return _Run("locks", name, command, ttl, owner).once(wait)


@click.command(
    cls=SwarmCommand,
    examples=[
        "swarmctl elect scheduler -- ./scheduler --leader",
        "swarmctl elect primary --value host1:5432 -- ./serve.sh",
        "swarmctl elections show primary",
    ],
)
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--ttl", type=Ttl(), default=TTL_S, metavar="TIME", help="Lease. [15s]")
@click.option("--wait", type=Wait(), metavar="TIME", help="Longest wait to lead. [for ever]")
@click.option("--value", default="", metavar="TEXT", help="What others learn about the leader.")
@click.option("--owner", default="", metavar="TEXT", help="Who asks, for others to see.")
def elect(
    name: str, command: tuple[str, ...], ttl: float, wait: float | None, value: str, owner: str
) -> int:
    """Run COMMAND while this host leads NAME.

    Start it on every host that may lead: one of them runs COMMAND, and when it is gone another
    does. If the office is lost, COMMAND is ended in time, and this host stands again. It ends
    when COMMAND does, with its exit code. COMMAND finds SWARM_ELECTION and SWARM_FENCE.
    """
    run = _Run("elections", name, command, ttl, owner, value=value.encode())
    return run.again_and_again(math.inf if wait is None else wait)


class _Run:
    """One command under a lock or an office."""

    def __init__(
        self,
        what: str,
        name: str,
        command: tuple[str, ...],
        ttl_s: float,
        owner: str,
        value: bytes = b"",
    ) -> None:
        self._what = what
        self._name = name
        self._command = command
        self._ttl_s = ttl_s
        self._owner = owner
        self._value = value

    def once(self, wait_s: float) -> int:
        """Run the command under it once; the exit code."""
        return self._with_signals(lambda signals: self._round(signals, wait_s)[0])

    def again_and_again(self, wait_s: float) -> int:
        """Run the command under it until the command ends by itself; its exit code."""

        def rounds(signals: Signals) -> int:
            while True:
                code, lost = self._round(signals, wait_s)
                if not lost or signals.interrupted:
                    return code
                warn(f"swarmctl: standing for {self._name} again")

        return self._with_signals(rounds)

    def _with_signals(self, work: Callable[[Signals], int]) -> int:
        from swarmd.cli.holding import Signals, Terminated

        signals = Signals()
        try:
            with signals.caught():
                return work(signals)
        except Terminated as ended:
            return ended.exit_code

    def _round(self, signals: Signals, wait_s: float) -> tuple[int, bool]:
        """Get it, run the command, give it back: the exit code, and whether it was lost."""
        from swarmd.cli.holding import request_timeout_s

        began = time.monotonic()
        try:
            with open_client() as client:
                standing = self._take(client, wait_s)
        except LockHeld as error:
            self._say(error.code, error.message)
            return EXIT_NO_QUORUM, False
        waited_s = time.monotonic() - began
        with open_client(timeout_s=request_timeout_s(self._ttl_s)) as client:
            lost = False
            try:
                outcome = self._run(client, standing, signals)
                lost = outcome.lost
            except LockLost as error:
                lost = True
                self._say(error.code, error.message)
                return EXIT_NO_QUORUM, True
            finally:
                if not lost:
                    self._give_back(client, standing)
        return self._told(standing, outcome, waited_s), lost

    def _run(self, client: Client, standing: Standing, signals: Signals) -> Outcome:
        from swarmd.cli.holding import Holding
        from swarmd.cli.keeper import boot_ns

        sent_ns = boot_ns()
        self._renew(client, standing)
        holding = Holding(
            client,
            lambda client: self._renew(client, standing),
            ttl_s=self._ttl_s,
            sent_ns=sent_ns,
            signals=signals,
        )
        return holding.run(self._command, self._environ(standing))

    # ---- asking the daemon ---------------------------------------------------------------

    def _take(self, client: Client, wait_s: float) -> Standing:
        if self._what == "locks":
            return client.acquire_lock(
                self._name, owner=self._owner, ttl_s=self._ttl_s, wait_s=wait_s
            )
        return client.campaign(
            self._name, owner=self._owner, value=self._value, ttl_s=self._ttl_s, wait_s=wait_s
        )

    def _renew(self, client: Client, standing: Standing) -> None:
        if self._what == "locks":
            client.renew_lock(self._name, standing.lease)
        else:
            client.renew_election(self._name, standing.lease)

    def _give_back(self, client: Client, standing: Standing) -> None:
        try:
            if self._what == "locks":
                client.release_lock(self._name, standing.lease)
            else:
                client.resign(self._name, standing.lease)
        except LockLost:
            pass  # Repeated after an answer that was lost: it is given back.
        except SwarmError as error:
            warn(
                f"swarmctl: {self._name} could not be given back and lasts up to "
                f"{self._ttl_s:g} s more: {error.message}"
            )

    # ---- telling -------------------------------------------------------------------------

    def _environ(self, standing: Standing) -> dict[str, str]:
        which = "SWARM_LOCK" if self._what == "locks" else "SWARM_ELECTION"
        return {**os.environ, which: self._name, "SWARM_FENCE": str(standing.fence)}

    def _told(self, standing: Standing, outcome: Outcome, waited_s: float) -> int:
        """Say what there is to say; the exit code."""
        code = EXIT_NO_QUORUM if outcome.lost else outcome.exit_code
        if outcome.lost:
            why = outcome.why or "it could not be renewed in time"
            warn(f"swarmctl: {self._name} was lost, so the command was ended: {why}")
        elif outcome.why:
            warn(f"swarmctl: {outcome.why}")
        if wants_json():
            print_json(
                {
                    "name": self._name,
                    "fence": standing.fence,
                    "exit_code": outcome.exit_code,
                    "lost": outcome.lost,
                    "waited_s": round(waited_s, 3),
                }
            )
        return code

    def _say(self, code: str, message: str) -> None:
        warn(f"swarmctl: {message}")
        if wants_json():
            print_json({"error": {"code": code, "message": message, "retryable": True}})
