"""swarmctl key: let programs and people ask the swarm, each for what it needs.

A key is drawn here, and the swarm gets its hash: nobody else ever sees it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from swarmd.cli.common import (
    BadInput,
    Duration,
    SwarmGroup,
    open_client,
    print_json,
    say,
    wants_json,
    warn,
)
from swarmd.cli.tables import ago, table

if TYPE_CHECKING:
    from swarmd.gateway.shapes import KeyInfo

_ROLES = ("viewer", "submitter", "operator", "admin")


@click.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl key create ci --role submitter --ttl 90d --out ci.key",
        "swarmctl key create one --allow task:submit:resize --allow blob:write",
        "swarmctl --socket https://host2:7580 --api-key-file ci.key status",
        "swarmctl key list",
        "swarmctl key revoke ci",
    ],
)
def key() -> None:
    """API keys: who may ask the swarm for what."""


@key.command(
    examples=[
        "swarmctl key create ci --role submitter --ttl 90d --out ci.key",
        "swarmctl key create backup --allow kv:read:app/*",
    ]
)
@click.argument("name")
@click.option("--role", type=click.Choice(_ROLES), help="What it may; `key rules` shows each.")
@click.option(
    "--allow",
    "rules",
    multiple=True,
    metavar="RULE",
    help="A rule besides, like task:submit:AGENT or kv:read:app/*; repeat for more.",
)
@click.option("--ttl", type=Duration(), help="How long it is good, like 12h or 90d; for ever.")
@click.option(
    "--per-min",
    type=click.IntRange(0, 1_000_000),
    default=0,
    help="Requests a minute at each node; 0: gateway.key_requests_per_min.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write it to a new file of mode 0600 instead of the terminal.",
)
def create(
    name: str, role: str | None, rules: tuple[str, ...], ttl: float | None, per_min: int,
    out: Path | None,
) -> None:  # fmt: skip
    """Make the API key NAME and print it. It is shown this once."""
    from swarmd.gateway.access.rules import rules_of
    from swarmd.identity.api_keys import new_api_key

    rules_of(role or "", rules)
    if out is not None and out.exists():
        raise BadInput(f"{out} exists: choose another file, or move it away")
    text, key_hash = new_api_key()
    with open_client() as client:
        made = client.create_api_key(
            name, key_hash, role=role or "", rules=rules, ttl_s=ttl or 0.0, requests_per_min=per_min
        )
        if out is not None:
            try:
                _write(out, text)
            except BaseException:
                client.revoke_api_key(name)
                raise
    if wants_json():
        shown = {"file": str(out)} if out is not None else {"key": text}
        print_json({"name": name, **shown, "allows": made.allows, "expires_ms": made.expires_ms})
        return
    click.echo(str(out) if out is not None else text)
    until = f"for {ago(ttl)}" if ttl else "until it is revoked"
    warn(f"key {name} is good {until}; it is not shown again")


def _write(path: Path, text: str) -> None:
    """Raises BadInput: it cannot be written; nothing is left of it."""
    from swarmd.base.errors import DiskFault
    from swarmd.base.files import write_atomically

    try:
        write_atomically(path, text.encode() + b"\n")
    except (OSError, DiskFault) as error:
        raise BadInput(f"cannot write {path}: {error}; no key was made") from error


@key.command("list", examples=["swarmctl key list", "swarmctl key list --json"])
def list_() -> None:
    """Show the keys there are; never their secrets, which no daemon has."""
    with open_client() as client:
        found = client.api_keys()
    if wants_json():
        print_json(found)
        return
    rows = [[one.name, one.role or "-", _left(one), ", ".join(one.rules) or "-"] for one in found]
    click.echo(table(["KEY", "ROLE", "TIME LEFT", "BESIDES"], rows))


def _left(one: KeyInfo) -> str:
    import time

    if one.expired:
        return "expired"
    return ago(max(0.0, one.expires_ms / 1000 - time.time())) if one.expires_ms else "for ever"


@key.command(examples=["swarmctl key revoke ci"])
@click.argument("name")
def revoke(name: str) -> None:
    """Have the key NAME, and the sessions made with it, count no more."""
    with open_client() as client:
        done = client.revoke_api_key(name)
    if wants_json():
        print_json(done)
    else:
        say(done.message)


@key.command(
    examples=["swarmctl --api-key-file ci.key key session --ttl 5m", "swarmctl key session"]
)
@click.option(
    "--ttl", type=Duration(), default="15m", show_default=True, help="How long; 15m at most."
)
def session(ttl: float) -> None:
    """Print a short-lived token (JWT) that stands in for whoever asks."""
    with open_client() as client:
        made = client.open_session(int(ttl))
    if wants_json():
        print_json(made)
        return
    click.echo(made.token)
    warn(f"it stands in for {made.caller} for {ago(ttl)}")


@key.command(examples=["swarmctl --api-key-file ci.key key whoami"])
def whoami() -> None:
    """Show whom the daemon takes you for, and what you may."""
    with open_client() as client:
        found = client.caller()
    if wants_json():
        print_json(found)
        return
    click.echo(found.name + (" (session)" if found.session else ""))
    for rule in found.rules:
        click.echo(f"  {'everything' if rule == '*' else rule}")


@key.command(examples=["swarmctl key rules"])
def rules() -> None:
    """Show what can be allowed, and which roles have it."""
    from swarmd.gateway.access.rules import EVERYTHING, PERMISSIONS, ROLES

    having = {
        permission: [role for role in _ROLES if {permission, EVERYTHING} & set(ROLES[role])]
        for permission in PERMISSIONS
    }
    if wants_json():
        print_json(
            [
                {"rule": name, "about": about, "resource": resource, "roles": having[name]}
                for name, (about, resource) in PERMISSIONS.items()
            ]
        )
        return
    shown = _ROLES[:-1]
    rows = [
        [
            name + (f"[:{resource}]" if resource else ""),
            *("yes" if role in having[name] else "-" for role in shown),
            about,
        ]
        for name, (about, resource) in PERMISSIONS.items()
    ]
    click.echo(table(["RULE", *map(str.upper, shown), "WHAT FOR"], rows))
    say("An admin may do everything. [:KEY] and such: on that one, or those below app/*.")
