"""swarmctl snapshot: a copy of the strong store in a file, and its keys put back from one.

What is put back goes through the log like any other write, and every write holds only if the
key is still as the plan saw it: what others change meanwhile is left as they made it.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from swarmd.base.errors import BadRequest, Forbidden
from swarmd.cli import snapshot_file
from swarmd.cli.common import (
    EXIT_FAILED,
    Failed,
    SwarmGroup,
    node_asked,
    open_client,
    print_json,
    say,
    wants_json,
    warn,
)
from swarmd.cli.snapshot_file import Summary
from swarmd.cli.tables import facts, size

if TYPE_CHECKING:
    from swarmd.client import Client
    from swarmd.client.keystream import KeyStream

_PAGE: Final = 200
_PROGRESS_EVERY: Final = 1_000


@click.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl snapshot save before-upgrade.snap",
        "swarmctl snapshot restore before-upgrade.snap",
    ],
)
def snapshot() -> None:
    """Copies of users' keys and agents' records."""


@snapshot.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def save(file: Path, force: bool) -> None:
    """Write a copy of the store at one revision to FILE, while it goes on being used."""
    with open_client() as client, _voter_of(client) as voter:
        try:
            done = snapshot_file.write(file, voter.snapshot(), replace=force)
        except OSError as error:
            raise BadRequest(f"cannot write {file}: {error.strerror or error}") from error
    if wants_json():
        print_json({"file": str(file), "revision": done.revision, "keys": done.key_count})
        return
    written = size(file.stat().st_size)
    say(f"{file}: {done.key_count} keys at revision {done.revision}, {written}")


def _voter_of(client: Client) -> Client:
    """The client of a node that has a copy: of the one that was asked, else the coordinator."""
    from swarmd.client import Client

    store = client.status().store
    if node_asked() or (store is not None and store.role not in ("", "none")):
        return Client(client.sockets, node=node_asked())
    return Client(client.sockets, node=client.coordinator().node)


# ---- restoring ------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """What is to become of one key. `revision` is the one it has now, 0 if it is not there."""

    key: bytes
    revision: int
    before: bytes | None
    after: bytes | None


@dataclass
class Plan:
    new: int = 0
    changed: int = 0
    equal: int = 0
    others: int = 0

    def add(self, step: Step) -> None:
        if step.after is None:
            self.others += 1
        elif step.before is None:
            self.new += 1
        elif step.before == step.after:
            self.equal += 1
        else:
            self.changed += 1


@snapshot.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--delete", is_flag=True, help="Delete keys that are not in FILE.")
@click.option(
    "--force",
    is_flag=True,
    help="Take a file of another swarm, and of a damaged one what can be read.",
)
def restore(file: Path, yes: bool, delete: bool, force: bool) -> int:
    """Put the users' keys in FILE back, after saying what that changes.

    Keys that are not in FILE stay unless --delete is given. Agents are not put back: deploy
    them again. Secrets are in no file: set them again.
    """
    try:
        summary = snapshot_file.check(file, force=force)
    except OSError as error:
        raise BadRequest(f"cannot read {file}: {error.strerror or error}") from error
    with open_client() as client:
        _refuse_other_swarm(client, summary, file, force=force)
        plan = Plan()
        for step in _steps(client, file, summary):
            plan.add(step)
        _tell(summary, plan, file, delete=delete)
        if not (plan.new or plan.changed or (delete and plan.others)):
            return _finish(0, 0)
        if not yes:
            _confirm()
        written, left = _carry_out(client, file, summary, delete=delete)
    return _finish(written, left)


def _refuse_other_swarm(client: Client, summary: Summary, file: Path, *, force: bool) -> None:
    found = client.status()
    head = summary.head
    if head.swarm_id == found.swarm_id or force:
        return
    raise Forbidden(
        f"{file} is of the swarm {head.swarm} ({head.swarm_id[:8]}), and this one is "
        f"{found.swarm} ({found.swarm_id[:8]}): say --force to take it nevertheless"
    )


def _steps(client: Client, file: Path, summary: Summary) -> Iterator[Step]:
    """Every key that is in the file or in the store, in order, both read as they are needed."""
    there = ((key, 0, 0, value) for key, value in snapshot_file.keys(file, summary))
    merged = heapq.merge(there, _present(client), key=lambda one: one[:2])
    saved: tuple[bytes, bytes] | None = None
    for key, source, revision, value in merged:
        if saved is not None and saved[0] == key:
            yield Step(key, revision, value, saved[1])
            saved = None
            continue
        if saved is not None:
            yield Step(saved[0], 0, None, saved[1])
            saved = None
        if source == 0:
            saved = (key, value)
        else:
            yield Step(key, revision, value, None)
    if saved is not None:
        yield Step(saved[0], 0, None, saved[1])


def _present(client: Client) -> Iterator[tuple[bytes, int, int, bytes]]:
    after = ""
    while page := client.kv_list(after=after, limit=_PAGE):
        for one in page:
            yield one.key.encode(), 1, one.mod_revision, one.value
        after = page[-1].key


def _tell(summary: Summary, plan: Plan, file: Path, *, delete: bool) -> None:
    others = "to be deleted" if delete else "that are not in it and stay"
    rows = [
        ("file", f"{file}, of {summary.head.swarm} at revision {summary.revision}"),
        ("keys", f"{plan.new} new, {plan.changed} changed back, {plan.equal} as they are"),
        ("others", f"{plan.others} keys {others}"),
    ]
    if summary.agents:
        rows.append(("agents", f"not put back: {', '.join(summary.agents)}; deploy them again"))
    if summary.damage:
        rows.append(("damage", f"{summary.damage}; what comes after is lost"))
    click.echo(facts(rows), err=wants_json())


def _confirm() -> None:
    if not sys.stdin.isatty():
        raise BadRequest("nobody is there to be asked: say --yes to put the keys back")
    if not click.confirm("put them back?", default=False, err=wants_json()):
        raise Failed("nothing was changed")


def _carry_out(client: Client, file: Path, summary: Summary, *, delete: bool) -> tuple[int, int]:
    """Write what differs; how many writes were done, and how many others were faster."""
    written = left = 0
    with client.key_stream() as stream:
        for step in _steps(client, file, summary):
            if step.after == step.before or (step.after is None and not delete):
                continue
            _write(stream, step)
            if stream.under_way >= _PROGRESS_EVERY:
                done, conflicts = _take(stream)
                written, left = written + done, left + conflicts
                _progress(written)
        while stream.under_way:
            done, conflicts = _take(stream)
            written, left = written + done, left + conflicts
    return written, left


def _write(stream: KeyStream, step: Step) -> None:
    key = step.key.decode()
    if step.after is None:
        stream.delete(key, expect=step.revision)
    else:
        stream.put(key, step.after, expect=step.revision)


def _take(stream: KeyStream) -> tuple[int, int]:
    """Take answers; raises the first error that is not a conflict."""
    done = conflicts = 0
    for one in stream.take():
        if one.error is None:
            done += 1
        elif one.error.code == "conflict":
            conflicts += 1
        else:
            raise Failed(f"{one.error.message}; run it again to put back what is still missing")
    return done, conflicts


def _progress(written: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{written} keys put back", nl=False, err=True)


def _finish(written: int, left: int) -> int:
    if sys.stderr.isatty() and written >= _PROGRESS_EVERY:
        click.echo("\r", nl=False, err=True)
    if wants_json():
        print_json({"written": written, "left": left})
    else:
        say(f"{written} keys written" if written else "nothing to change")
    if left:
        warn(f"{left} keys were changed by others meanwhile and left as they are: run it again")
    return EXIT_FAILED if left else 0
