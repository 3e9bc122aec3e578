"""swarmctl token: let new nodes join.

The token is made and signed here, with the admin key of this machine. The daemon never sees
that key, nor the token's secret: it only passes the signed entry on, which holds the public
half.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from swarmd.base.errors import BadSignature
from swarmd.base.ids import NodeId, short, to_text
from swarmd.cli.common import (
    Duration,
    SwarmGroup,
    admin_key_option,
    open_client,
    print_json,
    say,
    wants_json,
    warn,
)
from swarmd.cli.tables import ago, table

if TYPE_CHECKING:
    from swarmd.identity.authority import LoggedToken

_ROLES = ("member", "worker", "observer")


@click.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl token create --uses 3 --ttl 10m",
        "swarmd --join @token",
        "swarmctl token list",
        "swarmctl token revoke 5xw3ab",
    ],
)
def token() -> None:
    """Make tokens that let new nodes join, and take them back."""


@token.command()
@click.option(
    "--uses",
    type=click.IntRange(1, 10_000),
    default=1,
    show_default=True,
    help="How many nodes may join with it.",
)
@click.option(
    "--ttl",
    type=Duration(),
    default="1h",
    show_default=True,
    help="How long it is good, like 10m or 2h.",
)
@click.option(
    "--role",
    type=click.Choice(_ROLES),
    default="member",
    show_default=True,
    help="What who joins may be; a member may vote and work.",
)
@admin_key_option
def create(uses: int, ttl: float, role: str, admin_key: Path | None) -> None:
    """Make a join token and print it. It is shown this once."""
    from swarmd.cli.authority_log import admin_key_path, not_an_admin
    from swarmd.identity.entries import issue_token
    from swarmd.identity.keys import SigningKey
    from swarmd.identity.tokens import Moment, encode_token

    with open_client(local=True) as client:
        head = client.authority_head()
        path = admin_key_path(admin_key, head)
        made, entry = issue_token(
            head["swarm_id"],
            Moment(head["height"], head["hash"], head["epoch"], head["epoch_key"]),
            SigningKey.load(path),
            role=role,
            uses=uses,
            expires_ms=head["store_time_ms"] + int(ttl * 1000),
        )
        try:
            client.authority_propose(entry)
        except BadSignature as error:
            raise not_an_admin(path, head) from error
    text, name = encode_token(made), short(made.token_id)
    if wants_json():
        print_json({"token": text, "id": name, "uses": uses, "ttl_s": ttl, "role": role})
        return
    click.echo(text)
    times = f"{uses} join{'s' if uses > 1 else ''}"
    warn(f"token {name} is good for {times} within {ago(ttl)}: swarmd --join -")


@token.command("list", examples=["swarmctl token list", "swarmctl token list --all"])
@click.option("--all", "everything", is_flag=True, help="Those that admit nobody any more, too.")
def list_(everything: bool) -> None:
    """Show tokens that were made; never their secrets, which no daemon has."""
    from swarmd.cli.authority_log import read_asked

    head, log = read_asked()
    now_ms, found = head["store_time_ms"], list(log.tokens.values())
    states = {one.token_id: _state_of(one, now_ms) for one in found}
    shown = [one for one in found if everything or states[one.token_id] == "good"]
    if wants_json():
        print_json(
            [
                {
                    "id": to_text(one.token_id),
                    "role": one.role,
                    "uses_left": one.uses_left,
                    "left_s": max(0, one.expires_ms - now_ms) / 1000,
                    "state": states[one.token_id],
                }
                for one in shown
            ]
        )
        return
    rows = [
        [
            short(one.token_id),
            one.role,
            str(one.uses_left),
            ago(max(0, one.expires_ms - now_ms) / 1000),
            states[one.token_id],
        ]
        for one in shown
    ]
    click.echo(table(["TOKEN", "ROLE", "USES LEFT", "TIME LEFT", "STATE"], rows, whole=1))


def _state_of(one: LoggedToken, now_ms: int) -> str:
    if one.revoked:
        return "revoked"
    if one.expires_ms <= now_ms:
        return "expired"
    return "good" if one.uses_left > 0 else "used up"


@token.command(examples=["swarmctl token revoke 5xw3ab"])
@click.argument("token")
@admin_key_option
def revoke(token: str, admin_key: Path | None) -> None:
    """Let TOKEN, named by its id, admit nobody any more; who joined with it stays."""
    from swarmd.cli.authority_log import find_id, propose, read_own
    from swarmd.identity.entries import RevokeToken, fresh_nonce

    with open_client(local=True) as client:
        head, log = read_own(client)
        found: NodeId = find_id(list(log.tokens), token, "token")
        propose(client, head, RevokeToken(found, fresh_nonce()), admin_key)
    if wants_json():
        print_json({"id": to_text(found)})
    else:
        say(f"token {short(found)} admits nobody any more")
