"""swarmctl node pending, approve, deny: nodes that ask to join without a token.

What is approved is what the node itself signed, verified here against this machine's daemon: a
member can list nobody in another's name, and what is shown is what is let in.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swarmd.base.errors import SwarmError
from swarmd.cli.common import (
    BadInput,
    SwarmCommand,
    admin_key_option,
    open_client,
    print_json,
    say,
    wants_json,
    warn,
)
from swarmd.cli.tables import ago, facts, printable

if TYPE_CHECKING:
    from swarmd.client import Client
    from swarmd.gateway.shapes import JoinRequestInfo, JoinRequests
    from swarmd.identity.fingerprints import Fingerprint

_ROLES = ("member", "worker", "observer")
# Called otherwise inside, where --fingerprint is the certificate's.
_whose = click.argument("whose", nargs=-1, required=True, metavar="FINGERPRINT")


@dataclass(frozen=True)
class _Applicant:
    """One that waits; all but `told` is what its own key signed."""

    fingerprint: Fingerprint
    public: bytes
    name: str
    told: JoinRequestInfo


@click.command(cls=SwarmCommand, examples=["swarmctl node pending", "swarmctl node pending --json"])
def pending() -> None:
    """Show nodes that ask to join without a token, at whichever member.

    Compare the fingerprint with what the node itself shows, then approve it.
    """
    from swarmd.identity.fingerprints import door_of, fingerprint_of_swarm

    with open_client(local=True) as own:
        head = own.authority_head()
    with open_client() as client:
        listed = client.join_requests()
    swarm = fingerprint_of_swarm(door_of(head["swarm_id"]))
    found = _verified(listed, head["swarm_id"])
    if wants_json():
        print_json(
            {
                "swarm": {"name": head["swarm"], "fingerprint": swarm.raw.hex()},
                "pending": [_json_of(one) for one in found],
                "missing": listed.missing,
            }
        )
        return
    for one in found:
        click.echo(facts(_rows(one)) + "\n")
    if not found:
        say("no node asks to join")
    click.echo(f"fingerprint of the swarm {head['swarm']}:\n{swarm.shown()}")
    _tell_missing(listed)


@click.command(
    cls=SwarmCommand,
    examples=[
        "swarmctl node approve 1a2b3c4d5e",
        "swarmctl node approve aardvark adroitness absurd adviser accrue",
        "swarmctl node approve 1a2b3c4d5e6f708192a3 --yes --role worker",
    ],
)
@_whose
@click.option(
    "--role",
    type=click.Choice(_ROLES),
    default="member",
    show_default=True,
    help="What it may be; a member may vote and work.",
)
@click.option("--yes", is_flag=True, help="Do not ask; takes the whole fingerprint.")
@admin_key_option
def approve(whose: tuple[str, ...], role: str, yes: bool, admin_key: Path | None) -> None:
    """Let the node with FINGERPRINT in, in words or hex; five words are enough to name it.

    It is signed here, with the admin key of this machine.
    """
    from swarmd.cli.authority_log import admin_key_path, propose
    from swarmd.identity.entries import Approve, fresh_nonce
    from swarmd.identity.fingerprints import parse_fingerprint
    from swarmd.identity.tokens import TOKEN_ROLES

    with open_client(local=True) as client:
        head = client.authority_head()
        admin_key_path(admin_key, head)  # Whoever has none is told before they compare.
        wanted = parse_fingerprint(" ".join(whose))
        if not wanted.is_whole and (yes or wants_json() or not sys.stdin.isatty()):
            raise BadInput(
                "nobody is asked to compare the rest of it here: give the whole fingerprint, "
                "as the node shows it"
            )
        found = _find(client, head, wanted)
        _confirm(found, yes=yes)
        entry = Approve(found.told.request, TOKEN_ROLES[role], fresh_nonce())
        propose(client, head, entry, admin_key)
    if wants_json():
        print_json({**_json_of(found), "roles": list(TOKEN_ROLES[role])})
    else:
        say(f"{found.name} is let in as {role}: it joins within seconds")


@click.command(cls=SwarmCommand, examples=["swarmctl node deny 1a2b3c4d5e"])
@_whose
def deny(whose: tuple[str, ...]) -> None:
    """Refuse the node with FINGERPRINT, in words or hex: it is told so, for an hour."""
    from swarmd.identity.fingerprints import parse_fingerprint

    with open_client(local=True) as client:
        found = _find(client, client.authority_head(), parse_fingerprint(" ".join(whose)))
        done = client.deny_join_request(found.fingerprint.raw.hex())
    for warning in done.warnings:
        warn(warning)
    if wants_json():
        print_json(_json_of(found))
    else:
        say(f"{found.name} ({found.fingerprint.hex}) is denied for an hour")


# ---- finding it --------------------------------------------------------------------------


def _verified(listed: JoinRequests, swarm_id: bytes) -> list[_Applicant]:
    """Those whose request is their own, for this swarm; the others are left out, and counted."""
    from swarmd.identity.fingerprints import door_of, fingerprint_of_node
    from swarmd.identity.requests import open_request

    door, found, bad = door_of(swarm_id), [], 0
    for one in listed.waiting:
        try:
            request = open_request(one.request, door)
        except SwarmError:
            bad += 1
            continue
        fingerprint = fingerprint_of_node(door, request.public)
        found.append(_Applicant(fingerprint, request.public, request.name, one))
    if bad:
        warn(f"{bad} requests that their nodes did not sign are left out: a member lists them")
    return found


def _find(client: Client, head: dict[str, Any], wanted: Fingerprint) -> _Applicant:
    listed = client.join_requests()
    waiting = _verified(listed, head["swarm_id"])
    found = [one for one in waiting if one.fingerprint.begins(wanted)]
    if len(found) == 1:
        return found[0]
    _tell_missing(listed)
    if found:
        shown = ", ".join(one.fingerprint.hex for one in found)
        raise BadInput(f"several nodes that wait begin so: give more of it ({shown})")
    shown = ", ".join(f"{one.name} ({one.fingerprint.hex})" for one in waiting[:5]) or "nobody does"
    raise BadInput(f"no node with this fingerprint waits; who waits: {shown}")


def _confirm(found: _Applicant, *, yes: bool) -> None:
    if yes:
        return
    if wants_json() or not sys.stdin.isatty():
        raise BadInput("to let it in without being asked, repeat this with --yes")
    warn(facts(_rows(found)))
    if not click.confirm("Does the node itself show this fingerprint, all of it?", err=True):
        raise BadInput("nothing is changed")


def _rows(one: _Applicant) -> list[tuple[str, str]]:
    return [
        ("name", one.name),
        ("address", printable(one.told.address)),
        ("fingerprint", one.fingerprint.words),
        ("", one.fingerprint.hex),
        ("waits", f"{ago(one.told.waited_s)}, asked {', '.join(one.told.asked)}"),
    ]


def _json_of(one: _Applicant) -> dict[str, object]:
    return {
        "name": one.name,
        "address": one.told.address,
        "fingerprint": one.fingerprint.raw.hex(),
        "words": one.fingerprint.words,
        "waited_s": one.told.waited_s,
        "asked": one.told.asked,
    }


def _tell_missing(listed: JoinRequests) -> None:
    if listed.missing:
        warn(f"no answer from {', '.join(listed.missing)}: who asked only there is not listed")
