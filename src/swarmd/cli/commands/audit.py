"""swarmctl audit: who did what, and the proof that nobody changed the record of it."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import click

from swarmd.cli.common import (
    BadInput,
    Duration,
    Failed,
    SwarmCommand,
    complete_members,
    open_client,
    print_json,
    say,
    wants_json,
    warn,
)
from swarmd.cli.tables import COLUMNS_MAX, printable, table

if TYPE_CHECKING:
    from swarmd.audit.verify import Verdict
    from swarmd.cli.audit_log import Report
    from swarmd.gateway.shapes_audit import AuditRecord

_PAGE: Final = 1_000
_LAST: Final = 30
_FINDINGS_SHOWN_MAX: Final = 20
_HEADS: Final = ("WHEN", "NODE", "WHAT", "WHO", "ABOUT", "OUTCOME")
_WIDTHS: Final = (11, 8, 16, 16, 12)


@click.command(
    cls=SwarmCommand,
    examples=[
        "swarmctl audit",
        "swarmctl audit --since 1h --kind key.",
        "swarmctl audit --of host2 --who ci --json",
        "swarmctl audit --follow",
        "swarmctl audit --verify",
    ],
)
@click.option("--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--verify", is_flag=True, help="Check every copy of every record, in this process.")
@click.option("--since", type=Duration(), metavar="TIME", help="Not older than this, like 1h.")
@click.option(
    "--kind", default="", metavar="KIND", help="What, or how it begins: key.created, key."
)
@click.option("--who", default="", metavar="TEXT", help="A part of the name of who did it.")
@click.option(
    "--of",
    default="",
    metavar="NAME|ID",
    shell_complete=complete_members,
    help="Only what this node recorded.",
)
@click.option(
    "--stream", type=click.Choice(["security", "access", "work"]), help="Work is what agents do."
)
@click.option("--last", type=click.IntRange(1), metavar="N", help=f"The newest N; {_LAST}.")
def audit(
    follow: bool, verify: bool, since: float | None, kind: str, who: str, of: str,
    stream: str | None, last: int | None,
) -> None:  # fmt: skip
    """Show who did what, or with --verify whether the record of it is unchanged.

    Each node signs what happens on it, and every member that may vote keeps a copy.
    """
    asked = {"kind": kind, "actor": who, "of": of, "stream": stream or ""}
    if verify:
        if follow or since or last or any(asked.values()):
            raise BadInput("--verify checks everything: leave the other options out")
        _verify()
        return
    since_ms = max(0, int((time.time() - since) * 1000)) if since else 0
    if follow:
        _follow(asked, since_ms, last)
    else:
        _list(asked, since_ms, last)


# ---- reading -------------------------------------------------------------------------------


def _list(asked: dict[str, str], since_ms: int, last: int | None) -> None:
    most = last or (None if since_ms else _LAST)
    found = list(itertools.islice(_newest(asked, since_ms, most), most))
    found.reverse()
    if wants_json():
        print_json(found)
        return
    if not found:
        warn("no record is like that: the kinds of records are in docs/api.md")
        return
    click.echo(table(_HEADS, [_row(one) for one in found], whole=1))


def _newest(asked: dict[str, str], since_ms: int, most: int | None) -> Iterator[AuditRecord]:
    with open_client() as client:
        before = ""
        while True:
            limit = min(most or _PAGE, _PAGE)
            page = client.audit(**asked, since_ms=since_ms, before=before, limit=limit)
            yield from page.records
            before = page.before
            if not before:
                return


def _follow(asked: dict[str, str], since_ms: int, last: int | None) -> None:
    backlog = min(last or (_PAGE if since_ms else 10), _PAGE)
    with open_client() as client:
        if not wants_json():
            click.echo(_line(_HEADS))
        for one in client.audit_follow(**asked, since_ms=since_ms, backlog=backlog):
            if wants_json():
                print_json(one)
            else:
                click.echo(_line(_row(one)))
            sys.stdout.flush()
    raise Failed("the daemon ended: follow another one")


def _row(one: AuditRecord) -> list[str]:
    then, now = time.localtime(one.wall_ms / 1000), time.localtime()
    when = time.strftime("%H:%M:%S" if then[:3] == now[:3] else "%m-%d %H:%M", then)
    about = " ".join(filter(None, (one.subject, f"({one.details})" if one.details else "")))
    cells = (when, one.node, one.kind, one.actor or "-", about or "-", one.outcome)
    return [printable(cell) for cell in cells]


def _line(cells: Sequence[str]) -> str:
    """A row of a table whose other rows are not known yet."""
    outcome = cells[-1][:20]
    left = COLUMNS_MAX - sum(_WIDTHS) - 2 * len(_WIDTHS) - len(outcome)
    widths = list(_WIDTHS)
    widths[-1] += max(0, left)
    shown = [
        (cell if len(cell) <= width else cell[: width - 1] + "…").ljust(width)
        for cell, width in zip(cells, widths, strict=False)
    ]
    return "  ".join([*shown, outcome]).rstrip()


# ---- verifying -----------------------------------------------------------------------------


def _verify() -> None:
    from swarmd.cli.audit_log import tell_on_terminal, verify_all

    report = verify_all(tell_on_terminal)
    if wants_json():
        print_json(_as_json(report))
    else:
        rows = sorted(_verdict_row(one, report) for one in report.verdicts)
        heads = ["NODE", "STREAM", "RECORDS", "FROM", "TO", "ANCHORED", "COPIES", "VERDICT"]
        click.echo(table(heads, rows))
        for missing in report.missing:
            warn(f"not checked: {missing}")
    if not report.unchanged:
        _tell_findings(report)
        raise Failed("" if not wants_json() else "the audit log was changed")
    if report.missing:
        raise Failed(
            f"not all was checked: {len(report.missing)} did not show what they keep; what "
            f"{len(report.holders)} keep verifies; ask again when all are back, or evict those "
            "that never will be"
        )
    members = len(report.holders)
    kept = "1 member keeps" if members == 1 else f"{members} members keep"
    say(f"all records verify, as {kept} them")


def _verdict_row(one: Verdict, report: Report) -> list[str]:
    verdict = "ok"
    if one.findings:
        verdict = f"fail: {len(one.findings)}"
    elif one.behind:
        verdict = f"ok, {one.behind} behind"
    elif one.alone:
        verdict = f"ok, {one.alone} alone"
    numbers = (one.records, one.first, one.last)
    return [
        report.name_of(one.node),
        one.stream,
        *map(str, numbers),
        str(one.anchored or "-"),
        str(one.copies),
        verdict,
    ]


def _tell_findings(report: Report) -> None:
    lines = [
        f"{report.name_of(one.chain.node)} {one.chain.stream}: {one.what}; "
        + (f"in the copy of {report.name_of(one.holder)}" if one.holder else "in every copy")
        for verdict in report.verdicts
        for one in verdict.findings
    ]
    if report.unsigned_anchors:
        lines.append(f"{report.unsigned_anchors} seals in the strong store are not signed")
    for line in lines[:_FINDINGS_SHOWN_MAX]:
        warn(f"swarmctl: {printable(line)}")
    if len(lines) > _FINDINGS_SHOWN_MAX:
        warn(f"swarmctl: and {len(lines) - _FINDINGS_SHOWN_MAX} more")


def _as_json(report: Report) -> dict[str, object]:
    return {
        "sound": report.sound,
        "holders": report.holders,
        "missing": report.missing,
        "unsigned_anchors": report.unsigned_anchors,
        "nodes": [
            {
                "node": report.name_of(one.node),
                "stream": one.stream,
                "records": one.records,
                "first": one.first,
                "last": one.last,
                "anchored": one.anchored,
                "copies": one.copies,
                "behind": one.behind,
                "alone": one.alone,
                "findings": [
                    {
                        "number": found.number,
                        "what": found.what,
                        "holder": report.name_of(found.holder) if found.holder else "",
                    }
                    for found in one.findings
                ],
            }
            for one in report.verdicts
        ],
    }
