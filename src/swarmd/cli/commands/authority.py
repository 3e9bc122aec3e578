"""swarmctl authority: who was admitted by whom, and the proof of it; swarmctl admin: its keys."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from swarmd.base.errors import BadRequest
from swarmd.base.ids import from_text, node_id_of, short, to_text
from swarmd.cli.common import (
    BadInput,
    SwarmGroup,
    admin_key_option,
    open_client,
    print_json,
    say,
    wants_json,
    warn,
)
from swarmd.cli.tables import ago, facts, table

if TYPE_CHECKING:
    from swarmd.gateway.shapes import MemberInfo
    from swarmd.identity.authority import AuthorityState

_VERSION_MAX: Final = 65_535


@click.group(cls=SwarmGroup, examples=["swarmctl authority list", "swarmctl authority verify"])
def authority() -> None:
    """The log that says who belongs to the swarm, and by whose word."""


@authority.command("list", examples=["swarmctl authority list", "swarmctl authority list --last 5"])
@click.option("--last", type=click.IntRange(1), metavar="N", help="Only the newest N records.")
def list_(last: int | None) -> None:
    """Show every change of who may do what; each is verified here."""
    from swarmd.cli.authority_log import by_whom, read_asked, records_of, what

    head, state = read_asked()
    found = records_of(state)[-last:] if last else records_of(state)
    if wants_json():
        print_json(
            [
                {
                    "height": record.height,
                    "store_time_ms": record.store_time_ms,
                    "what": what(entry, state),
                    "by": by_whom(entry, signers),
                    "signers": [to_text(one) for one in signers],
                }
                for record, entry, signers in found
            ]
        )
        return
    rows = [
        [
            str(record.height),
            ago(max(0, head["store_time_ms"] - record.store_time_ms) / 1000),
            what(entry, state),
            by_whom(entry, signers),
        ]
        for record, entry, signers in found
    ]
    click.echo(table(["RECORD", "AGO", "WHAT", "BY"], rows))


@authority.command(examples=["swarmctl authority verify", "swarmctl --node n2 authority verify"])
def verify() -> None:
    """Verify the log of the node that answers, from the genesis on, in this process."""
    from swarmd.cli.authority_log import read_asked

    _, state = read_asked()
    members = [x for x in state.admissions.values() if not x.evicted]
    found = {
        "swarm": state.genesis.name,
        "swarm_id": to_text(state.swarm_id),
        "records": state.head[0],
        "head": to_text(state.head[1]),
        "members": len(members),
        "evicted": len(state.admissions) - len(members),
        "admin_keys": len(state.admins),
    }
    if wants_json():
        print_json(found)
        return
    say(f"all {state.head[0]} records verify, from the genesis of {state.genesis.name} on")
    rows = [
        ("swarm id", found["swarm_id"]),
        ("head", f"record {state.head[0]}, {found['head']}"),
        ("members", f"{len(members)}, and {found['evicted']} evicted"),
        ("admin keys", ", ".join(short(one) for one in state.admins)),
    ]
    click.echo(facts([(name, str(value)) for name, value in rows]))


@authority.command(
    "min-version",
    examples=["swarmctl authority min-version 2", "swarmctl authority min-version 2 --force"],
)
@click.argument("version", type=click.IntRange(1, _VERSION_MAX), metavar="N")
@admin_key_option
@click.option("--force", is_flag=True, help="Also if living members speak less: their daemons end.")
def min_version(version: int, admin_key: Path | None, force: bool) -> None:
    """Accept no member that speaks a protocol version below N; this never falls again.

    Upgrade every node first: the daemon of one that speaks less ends, and says so.
    """
    from swarmd.cli.authority_log import propose, read_own
    from swarmd.identity.entries import Policy, fresh_nonce

    with open_client(local=True) as client:
        head, log = read_own(client)
        if version < log.min_version:
            raise BadInput(f"the lowest version is {log.min_version}, and never falls")
        behind = _speak_less(client.members(), version)
        if behind and not force:
            raise BadInput(
                f"{behind}: upgrade them first, or repeat this with --force, and their daemons end"
            )
        propose(client, head, Policy(version, fresh_nonce()), admin_key)
    if wants_json():
        print_json({"min_version": version})
    else:
        say(f"members speak protocol version {version} or above from now on")


def _speak_less(members: Sequence[MemberInfo], version: int) -> str:
    """Which living members speak less than `version`; empty if none does."""
    living = [one for one in members if one.state in ("alive", "suspect")]
    said = [f"{x.name} speaks version {x.protocol}" for x in living if x.protocol < version]
    return ", ".join(said[:5]) + (f" and {len(said) - 5} more" if len(said) > 5 else "")


# ---- admin keys --------------------------------------------------------------------------


@click.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl admin list",
        "swarmctl admin new laptop.admin.key",
        "swarmctl admin add k7q2...",
        "swarmctl admin revoke 5xw3ab",
    ],
)
def admin() -> None:
    """The keys that admit, evict and give roles; several people may have one each."""


@admin.command("list", examples=["swarmctl admin list"])
def list_admins() -> None:
    """Show whose word counts."""
    from swarmd.cli.authority_log import read_asked

    _, state = read_asked()
    since = _added(state)
    found = [{"id": to_text(one), "added_by_record": since.get(one, 0)} for one in state.admins]
    if wants_json():
        print_json(found)
        return
    rows = [
        [
            str(one["id"]),
            f"record {one['added_by_record']}" if one["added_by_record"] else "genesis",
        ]
        for one in found
    ]
    click.echo(table(["ADMIN KEY", "SINCE"], rows, whole=1))


def _added(state: AuthorityState) -> dict[bytes, int]:
    from swarmd.cli.authority_log import records_of
    from swarmd.identity.entries import AddAdmin

    return {
        node_id_of(entry.admin_public): record.height
        for record, entry, _ in records_of(state)
        if isinstance(entry, AddAdmin)
    }


@admin.command(examples=["swarmctl admin new ~/lab.admin.key"])
@click.argument("file", type=click.Path(path_type=Path))
def new(file: Path) -> None:
    """Make a key in FILE and print what to give to `swarmctl admin add`; it asks no daemon."""
    from swarmd.identity.keys import SigningKey

    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError as error:
        raise BadInput(f"{file} is there already; a key is never written over") from error
    except OSError as error:
        raise BadInput(f"cannot write {file}: {error.strerror}") from error
    key = SigningKey.generate()
    key.save(file)
    if wants_json():
        print_json({"file": str(file), "public": to_text(key.public), "id": to_text(key.key_id)})
        return
    click.echo(to_text(key.public))
    warn(f"the key {short(key.key_id)} is in {file}; nobody accepts it before it was added")


@admin.command(examples=["swarmctl admin add $(swarmctl admin new laptop.admin.key)"])
@click.argument("public")
@admin_key_option
def add(public: str, admin_key: Path | None) -> None:
    """Have the swarm accept the admin key whose public half is PUBLIC."""
    from swarmd.cli.authority_log import propose
    from swarmd.identity.entries import AddAdmin, fresh_nonce
    from swarmd.identity.keys import KEY_BYTES

    try:
        raw = from_text(public)
    except BadRequest:
        raw = b""
    if len(raw) != KEY_BYTES:
        raise BadInput("that is no public key: give what `swarmctl admin new` printed")
    with open_client(local=True) as client:
        propose(client, client.authority_head(), AddAdmin(raw, fresh_nonce()), admin_key)
    if wants_json():
        print_json({"id": to_text(node_id_of(raw))})
    else:
        say(f"the admin key {short(node_id_of(raw))} is accepted")


@admin.command(examples=["swarmctl admin revoke 5xw3ab"])
@click.argument("id")
@admin_key_option
def revoke(id: str, admin_key: Path | None) -> None:
    """Accept the admin key ID no longer; what it signed before stays."""
    from swarmd.cli.authority_log import find_id, propose, read_own
    from swarmd.identity.entries import RevokeAdmin, fresh_nonce

    with open_client(local=True) as client:
        head, log = read_own(client)
        found = find_id(list(log.admins), id, "admin key")
        propose(client, head, RevokeAdmin(found, fresh_nonce()), admin_key)
    if wants_json():
        print_json({"id": to_text(found)})
    else:
        say(f"the admin key {short(found)} is accepted no longer")
