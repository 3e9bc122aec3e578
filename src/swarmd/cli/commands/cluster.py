"""swarmctl members, status, doctor, stop, leave."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from swarmd.base.errors import NotFound, ShuttingDown, TimedOut, Unreachable
from swarmd.cli.common import (
    EXIT_FAILED,
    SwarmCommand,
    node_asked,
    open_client,
    print_json,
    say,
    wants_json,
    warn,
)
from swarmd.cli.tables import ago, colour, facts
from swarmd.gateway.shapes import Check, Done, Status

if TYPE_CHECKING:
    from swarmd.client import Client

# The daemon drains for up to 10 s before it ends, and a seat may take as long to hand on.
_STOP_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.05


@click.command(
    cls=SwarmCommand,
    examples=["swarmctl members", "swarmctl members --watch", "swarmctl members --json"],
)
@click.option("--watch", is_flag=True, help="Go on showing them as they change, until Ctrl-C.")
def members(watch: bool) -> None:
    """List the members of the swarm, as this node sees them.

    With --watch a terminal shows the list of now; elsewhere each change is a line, or with --json
    a document.
    """
    from swarmd.cli.member_views import members_table, watch_members

    with open_client() as client:
        if watch:
            watch_members(client)
            return
        found = client.members()
    if wants_json():
        print_json(found)
    else:
        click.echo(members_table(found))


@click.command(cls=SwarmCommand, examples=["swarmctl status", "swarmctl --node host2 status"])
def status() -> None:
    """Show how the swarm is and what losing one more node would cost."""
    with open_client() as client:
        found = client.status()
    if wants_json():
        print_json(found)
    else:
        click.echo(facts(_status_rows(found)))


def _status_rows(found: Status) -> list[tuple[str, str]]:
    state = "ready" if found.ready else f"not ready: {found.reason}"
    rows = [
        ("swarm", f"{found.swarm} ({found.swarm_id[:8]})" if found.swarm else "none yet"),
        ("node", f"{found.node} ({found.node_id[:8]}), {state}, up {ago(found.uptime_s)}"),
    ]
    if found.swarm:
        rows.append(("fingerprint", _fingerprint_of(found.swarm_fingerprint)))
        rows.append(("members", f"{found.alive} alive of {found.total}"))
    if found.store is not None:
        may_lose = found.store.may_lose
        rows.append(
            ("voters", f"{', '.join(found.store.voters) or 'unknown'}; {may_lose} may be lost")
        )
        revision = f", revision {found.store.revision}" if found.store.revision else ""
        rows.append(("store", found.store.state + revision))
        rows.append(("coordinator", found.coordinator or "none"))
        tasks = ", ".join(f"{count} {state}" for state, count in found.tasks.items() if count)
        rows.append(("tasks", tasks or "none"))
    if found.api:
        rows.append(("api", f"{', '.join(found.api)}; certificate {found.api_fingerprint}"))
    if found.next_loss:
        rows.append(("next loss", found.next_loss))
    return rows + [("note", note) for note in found.notes]


def _fingerprint_of(digits: str) -> str:
    """The swarm's fingerprint, for those who join without a token to compare."""
    from swarmd.identity.fingerprints import Fingerprint

    fingerprint = Fingerprint(bytes.fromhex(digits))
    return f"{fingerprint.words} ({fingerprint.hex})"


@click.command(cls=SwarmCommand, examples=["swarmctl doctor", "swarmctl --node host2 doctor"])
def doctor() -> int:
    """Check daemon, data folder, port, clock, discovery, what gets through, and quorum.

    Works without a daemon too: then it checks what can be seen from outside. Exit code 1 if
    any check fails.
    """
    try:
        with open_client() as client:
            report = client.doctor()
            node, checks = report.node, report.checks
    except Unreachable as error:
        if error.code != "daemon_down" or node_asked():
            raise
        from swarmd.cli.local_doctor import examine

        node, checks = "this host", examine(error.message)
    failed = any(check.verdict == "fail" for check in checks)
    if wants_json():
        print_json({"node": node, "checks": checks})
    else:
        click.echo(_report(node, checks))
    return EXIT_FAILED if failed else 0


def _report(node: str, checks: list[Check]) -> str:
    import textwrap

    lines = [f"doctor of {node}"]
    for check in checks:
        head = f"{check.verdict:<5}{check.name:<13}"
        body = textwrap.wrap(check.finding, 62) or [""]
        lines.append(head.replace(check.verdict, colour(check.verdict), 1) + body[0])
        lines += [" " * 18 + more for more in body[1:]]
        for advice in check.advice.splitlines():
            if advice.startswith("  "):
                lines.append(" " * 6 + advice.strip())  # To be copied: not wrapped.
                continue
            wrapped = textwrap.wrap(advice, 59)
            lines += [" " * 18 + ("-> " if i == 0 else "   ") + w for i, w in enumerate(wrapped)]
    return "\n".join(lines)


@click.command(cls=SwarmCommand, examples=["swarmctl stop"])
def stop() -> None:
    """End the daemon: it finishes or hands back its tasks and says goodbye.

    It keeps its voter seat and its credential, and comes back when `swarmd` is started.
    """
    with open_client(timeout_s=_STOP_TIMEOUT_S) as client:
        done = client.stop()
        _wait_until_gone(client, done.pid)
        _print_done(done, "stopped; `swarmd` brings it back")


def _wait_until_gone(client: Client, pid: int) -> None:
    """Wait for the end of the daemon that was asked, or of the member that --node named.

    Raises:
        TimedOut: it is still there.
    """
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while time.monotonic() < deadline:
        if not _answers(client) and (node_asked() or not _lives(pid)):
            return
        time.sleep(_POLL_S)
    raise TimedOut(f"it is still stopping after {_STOP_TIMEOUT_S:g} s")


def _answers(client: Client) -> bool:
    try:
        client.ready_state()
    except (Unreachable, NotFound):  # A member that has left is none any more.
        return False
    except ShuttingDown:
        return True
    return True


def _lives(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    if pid == os.getpid():
        return False
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


@click.command(cls=SwarmCommand, examples=["swarmctl leave", "swarmctl leave --force"])
@click.option("--force", is_flag=True, help="Leave even if acknowledged data may be lost.")
def leave(force: bool) -> None:
    """End the daemon, and hand what it holds on to other members.

    That is its voter seat, blobs of which others have too few copies, and values of namespaces
    with --copies. Refused if acknowledged data would be lost; --force leaves nevertheless, and
    warns of what could not be handed on.
    """
    with open_client(timeout_s=_STOP_TIMEOUT_S) as client:
        done = client.leave(force=force)
        _wait_until_gone(client, done.pid)
        _print_done(done, "left the swarm")


def _print_done(done: Done, text: str) -> None:
    for warning in done.warnings:
        warn(f"warning: {warning}")
    if wants_json():
        print_json(done)
    else:
        say(text)
