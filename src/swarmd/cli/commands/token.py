"""swarmctl token: let new nodes join.

The token is made and signed here, with the admin key of this machine. The daemon never sees
that key, nor the token's secret: it only passes the signed entry on, which holds the public
half.
"""

from __future__ import annotations

from pathlib import Path

import click

from swarmd.base import folders
from swarmd.base.errors import BadSignature
from swarmd.cli.common import (
    BadInput,
    Duration,
    SwarmGroup,
    open_client,
    print_json,
    wants_json,
    warn,
)
from swarmd.cli.tables import ago


@click.group(
    cls=SwarmGroup, examples=["swarmctl token create --uses 3 --ttl 10m", "swarmd --join @token"]
)
def token() -> None:
    """Make tokens that let new nodes join."""


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
    "--admin-key",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Admin key of the swarm; default: SWARM.admin.key among the keys.",
)
def create(uses: int, ttl: float, admin_key: Path | None) -> None:
    """Make a join token and print it. It is shown this once."""
    from swarmd.identity.entries import issue_token
    from swarmd.identity.keys import SigningKey
    from swarmd.identity.tokens import encode_token

    with open_client() as client:
        head = client.authority_head()
        path = _admin_key_path(admin_key, head["swarm"], head["keys_folder"])
        key = SigningKey.load(path)
        expires_ms = head["store_time_ms"] + int(ttl * 1000)
        made, entry = issue_token(
            head["swarm_id"],
            (head["height"], head["hash"]),
            key,
            uses=uses,
            expires_ms=expires_ms,
        )
        try:
            client.authority_propose(entry)
        except BadSignature as error:
            raise BadInput(
                f"{path} is not an admin key of the swarm {head['swarm']}: use the one that "
                "`swarmd --init` named, with --admin-key"
            ) from error
    text = encode_token(made)
    if wants_json():
        print_json({"token": text, "uses": uses, "ttl_s": ttl})
        return
    click.echo(text)
    warn(f"good for {uses} join{'s' if uses > 1 else ''} within {ago(ttl)}: swarmd --join -")


def _admin_key_path(given: Path | None, swarm: str, keys_folder: str) -> Path:
    """Where the admin key is: as given, else among the daemon's keys, else among this user's."""
    name = f"{swarm}.admin.key"
    places = [given] if given else [Path(keys_folder) / name, folders.config_folder() / name]
    for path in places:
        if path.exists():
            return path
    raise BadInput(
        f"there is no admin key at {places[0]}: run this on the host that made the swarm, "
        "or name the key's file with --admin-key"
    )
